"""A language model trained stage by stage; each stage is a run that reads the one before.

p parameters. Arrays of a stage: theta, m, v (p,), parameters and Adam's moments at its end (of the last stage theta
alone); loss (steps of the stage,); held (held-out sequences, T) losses at its end.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npmoe.calculus import tree
from npmoe.data.text import batches, batches_of_one_topic, windows
from npmoe.model import init
from npmoe.model.balance import Balance
from npmoe.model.language import Batches, Progress, Recipe, evaluate, train
from npmoe.model.transformer import Transformer
from npmoe.news import tell
from npmoe.reproduce.natural_language.config import Config, Stage
from npmoe.reproduce.natural_language.text import prepared
from npmoe.reproduce.streams import generator_of

__all__ = ["batches_of", "build", "generator", "held_out", "model_at", "recipe", "stage"]

Array = np.ndarray
Arrays = dict[str, Array]

_STREAMS = ("model", "batches", "null", "thin", "pairs", "prompts", "rollouts")


def generator(seed: int, stream: str, part: int = 0) -> np.random.Generator:
    """A generator of its own for each use: all models of a seed see the same batches."""
    return generator_of(_STREAMS, seed, stream, part)


#: What `init.transformer` makes of each kind; half as many groups of keys and values as heads in Mixtral's.
KINDS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "gpt": lambda config: {"longest": config.T},
    "mixtral": lambda config: {
        "rotary": 1e4,
        "norm": "rms",
        "expert": "swiglu",
        "groups": config.heads // 2,
        "tied": False,
    },
}


def build(config: Config) -> Transformer:
    """The untrained model in the dtype of training; soft and top-k models of a seed start from the same weights."""
    return init.transformer(
        generator(config.seed, "model", int(config.E > 1)),
        V=len(prepared(config).vocabulary.words),  # a small text has fewer words than are asked for
        d=config.d,
        layers=config.layers,
        heads=config.heads,
        h=config.h,
        E=config.E,
        k=config.k,
        **KINDS[config.kind](config),
        dtype=np.dtype(config.dtype).type,
    )


def recipe(config: Config) -> Recipe:
    """How it is trained."""
    balances = (Balance("switch", weight=config.balance),) if config.balance else ()
    warmup = max(1, config.steps // 20)
    return Recipe(steps=config.steps, lr=config.lr, warmup=warmup, decay=config.decay, balances=balances)


def batches_of(config: Config) -> Batches:
    """What it reads at each step."""
    of = batches_of_one_topic if config.one_topic else batches
    return of(prepared(config).train, config.B, config.T, config.seed)


def held_out(config: Config) -> tuple[Array, Array]:
    """The held-out sequences that losses are taken on, ids and targets (m, T)."""
    ids, targets = windows(prepared(config).heldout, config.T)
    return ids[: config.held], targets[: config.held]


def stage(config: Stage, read: Mapping[Stage, Mapping[str, Array]] | None = None) -> Arrays:
    """Train up to the end of a stage; the work of one run."""
    model, of = build(config.model), config.model
    start = None
    for before, there in (read or {}).items():
        start = Progress(before.until, *(there[name].copy() for name in ("theta", "m", "v")))
    loss, far = [], _Far(of, 0 if start is None else start.step)
    for step in train(model, batches_of(of), recipe(of), start, config.until):
        loss.append(step.loss)
        far.tell(step.step, step.loss)
        if step.progress is not None:
            found = {"theta": step.progress.theta, "m": step.progress.m, "v": step.progress.v}
            held = evaluate(step.model, *held_out(of))
    if config.until == of.steps:
        found = {"theta": found["theta"]}
    return {**found, "loss": np.array(loss), "held": held}


class _Far:
    """How far a training is, told once a second: loss, tokens a second, time left."""

    def __init__(self, config: Config, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self.start, self.clock = config, start, clock
        self.begin = self.told = clock()

    def tell(self, step: int, loss: float) -> None:
        now, of = self.clock(), self.config
        if now - self.told < 1 or step == self.start:
            return
        # the gradient of this step is there already
        self.told, a_step = now, (now - self.begin) / (step - self.start + 1)
        tell(
            f"{of.label}: step {step} of {of.steps}, loss {loss:.2f}, {of.B * of.T / a_step:,.0f} tokens/s, "
            f"{(of.steps - step) * a_step:.0f} s left"
        )


def model_at(config: Config, arrays: Mapping[str, Array] | None) -> Transformer:
    """The model at the end of a stage, or untrained, in float64: it is measured in double precision."""
    untrained = tree.cast(build(config), np.float64)
    return untrained if arrays is None else tree.unflatten(arrays["theta"].astype(np.float64), untrained)
