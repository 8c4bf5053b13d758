"""A language model trained stage by stage; each stage is a run that reads the one before.

p parameters. Arrays of a stage: theta, m, v (p,), parameters and Adam's moments at its end (of the last stage theta
alone); loss, norm (steps of the stage,); held (held-out sequences, T) losses at its end.
"""

from collections.abc import Callable, Mapping

import numpy as np

from npmoe.calculus import tree
from npmoe.data.text import batches
from npmoe.model import init
from npmoe.model.balance import Balance
from npmoe.model.language import Progress, Recipe, evaluate, train
from npmoe.model.transformer import Transformer
from npmoe.reproduce.natural_language.config import Config, Stage
from npmoe.reproduce.natural_language.text import prepared, windows_of

__all__ = ["build", "generator", "model_at", "stage"]

Array = np.ndarray
Arrays = dict[str, Array]

_STREAMS = ("model", "batches", "null", "thin", "pairs", "prompts", "rollouts", "baseline")


def generator(seed: int, stream: str, part: int = 0) -> np.random.Generator:
    """A generator of its own for each use: all models of a seed see the same batches."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(stream), part))))


def build(config: Config) -> Transformer:
    """The untrained model in the dtype of training; soft and top-k models of a seed start from the same weights."""
    rotary = config.norm == "rms"
    return init.transformer(
        generator(config.seed, "model", int(config.E > 1)),
        V=config.V,
        d=config.d,
        layers=config.layers,
        heads=config.heads,
        h=config.h,
        E=config.E,
        k=config.k,
        longest=None if rotary else config.T,
        rotary=1e4 if rotary else None,
        norm=config.norm,
        expert=config.expert,
        renormalize=config.renormalize,
        temperature=config.temperature,
        dtype=np.dtype(config.dtype).type,
    )


def recipe(config: Config) -> Recipe:
    """How it is trained."""
    balances = [Balance("switch", weight=config.balance)] * bool(config.balance)
    balances += [Balance("z", weight=config.z)] * bool(config.z)
    return Recipe(steps=config.steps, lr=config.lr, warmup=max(1, config.steps // 20), decay=config.decay,
                  balances=tuple(balances))  # fmt: skip


def stage(config: Stage, read: Mapping[Stage, Mapping[str, Array]] | None = None) -> Arrays:
    """Train up to the end of a stage; the work of one run."""
    model, of = build(config.model), config.model
    data = prepared(of)
    batch: Callable = batches(data.train, of.B, of.T, of.seed)
    start = None
    for before, there in (read or {}).items():
        start = Progress(before.until, *(there[name].copy() for name in ("theta", "m", "v")))
    loss, norm = [], []
    for step in train(model, batch, recipe(of), start, config.until):
        loss.append(step.loss)
        norm.append(step.norm)
        if step.progress is not None:
            found = {"theta": step.progress.theta, "m": step.progress.m, "v": step.progress.v}
            held = evaluate(step.model, *windows_of(data.heldout.ids, of.T, of.held))
    if config.until == of.steps:
        found = {"theta": found["theta"]}
    return {**found, "loss": np.array(loss), "norm": np.array(norm), "held": held}


def model_at(config: Config, arrays: Mapping[str, Array] | None) -> Transformer:
    """The model at the end of a stage, or untrained, in float64: it is measured in double precision."""
    untrained = tree.cast(build(config), np.float64)
    return untrained if arrays is None else tree.unflatten(arrays["theta"].astype(np.float64), untrained)
