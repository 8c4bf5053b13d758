"""A language model trained stage by stage; each stage is a run that reads the one before.

p parameters. Arrays of a stage: theta, m, v (p,), parameters and Adam's moments at its end (of the last stage theta
alone); loss (steps of the stage,); held (held-out sequences, T) losses at its end.
"""

from collections.abc import Callable, Mapping

import numpy as np

from npmoe.calculus import tree
from npmoe.data.text import batches, windows
from npmoe.model import init
from npmoe.model.balance import Balance
from npmoe.model.language import Progress, Recipe, evaluate, train
from npmoe.model.transformer import Transformer
from npmoe.reproduce.natural_language.config import Config, Stage
from npmoe.reproduce.natural_language.text import prepared
from npmoe.reproduce.streams import generator_of

__all__ = ["build", "generator", "held_out", "model_at", "recipe", "stage"]

Array = np.ndarray
Arrays = dict[str, Array]

_STREAMS = ("model", "batches", "null", "thin", "pairs", "prompts", "rollouts")


def generator(seed: int, stream: str, part: int = 0) -> np.random.Generator:
    """A generator of its own for each use: all models of a seed see the same batches."""
    return generator_of(_STREAMS, seed, stream, part)


def build(config: Config) -> Transformer:
    """The untrained model in the dtype of training; soft and top-k models of a seed start from the same weights."""
    return init.transformer(
        generator(config.seed, "model", int(config.E > 1)),
        V=config.V,
        d=config.d,
        layers=config.layers,
        heads=config.heads,
        h=config.h,
        E=config.E,
        k=config.k,
        longest=config.T,
        dtype=np.dtype(config.dtype).type,
    )


def recipe(config: Config) -> Recipe:
    """How it is trained."""
    balances = (Balance("switch", weight=config.balance),) if config.balance else ()
    warmup = max(1, config.steps // 20)
    return Recipe(steps=config.steps, lr=config.lr, warmup=warmup, decay=config.decay, balances=balances)


def held_out(config: Config) -> tuple[Array, Array]:
    """The held-out sequences that losses are taken on, ids and targets (m, T)."""
    ids, targets = windows(prepared(config).heldout, config.T)
    return ids[: config.held], targets[: config.held]


def stage(config: Stage, read: Mapping[Stage, Mapping[str, Array]] | None = None) -> Arrays:
    """Train up to the end of a stage; the work of one run."""
    model, of = build(config.model), config.model
    data = prepared(of)
    batch: Callable = batches(data.train, of.B, of.T, of.seed)
    start = None
    for before, there in (read or {}).items():
        start = Progress(before.until, *(there[name].copy() for name in ("theta", "m", "v")))
    loss = []
    for step in train(model, batch, recipe(of), start, config.until):
        loss.append(step.loss)
        if step.progress is not None:
            found = {"theta": step.progress.theta, "m": step.progress.m, "v": step.progress.v}
            held = evaluate(step.model, *held_out(of))
    if config.until == of.steps:
        found = {"theta": found["theta"]}
    return {**found, "loss": np.array(loss), "held": held}


def model_at(config: Config, arrays: Mapping[str, Array] | None) -> Transformer:
    """The model at the end of a stage, or untrained, in float64: it is measured in double precision."""
    untrained = tree.cast(build(config), np.float64)
    return untrained if arrays is None else tree.unflatten(arrays["theta"].astype(np.float64), untrained)
