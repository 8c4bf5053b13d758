"""How a model of MY is made: the config of one run, its inputs with topics, its mixtures.

MY = X. Wang, S. Hayou, E. Nalisnick, "The Myth of Expert Specialization in MoEs", arXiv 2604.09780. It studies
pretrained language models; the controlled setting is ours: sequences of tokens that keep a topic, each topic with a
task of its own. Models are trained in float32 and measured in float64, on numbers that float32 holds exactly.

n tokens, d width, h hidden, E experts, k experts a token, m topics.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line
from npmoe.data import synthetic
from npmoe.model import init
from npmoe.model.balance import Balance
from npmoe.reproduce.mixture import rounded
from npmoe.reproduce.streams import generator_of

__all__ = ["BASE", "QUICK", "Batch", "Config", "balance_of", "batch", "build", "feed", "generator"]

Array = np.ndarray


@dataclass(frozen=True)
class Config:
    """Mixtures trained on sequences with topics, and measured."""

    seed: int = 0
    E: int = 16
    k: int = 2
    renormalize: bool = True
    d: int = 32
    h: int = 32
    sequences: int = 64
    length: int = 16  # tokens a sequence
    topics: int = 8
    common: float = 0.0  # strength of the direction that all tokens share
    spread: float = 0.5  # share of the rest that lies within topics
    query: float = 0.5  # share of that which the tokens of a sequence have in common: a query is more than its topic
    inputs: str = "topics"  # topics; isotropic: the same number of topics, cells of an isotropic Gaussian
    steps: int = 300
    router: str = "trained"  # trained, frozen (random)
    loss: str = "switch"  # the balance loss
    weight: float = 0.0  # of it
    batch: int = 0  # tokens a step; 0 is all
    mixed: bool = True  # whether a batch has tokens of all topics, or of one
    order: int = 0  # which random order of batches
    models: int = 1  # trained on the same data, each from its own initialization
    draws: int = 20  # of each random null
    permutations: int = 199
    dtype: str = "float32"  # trained in; measured in float64
    detail: bool = False  # also what few runs are read for: Mantel's test, walls, the law

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        kind = f"{self.models} models" if self.models > 1 else "soft" if self.k == self.E else f"top-{self.k}"
        return f"{kind}, seed {self.seed}"


BASE = Config()
QUICK = replace(BASE, E=4, d=8, h=8, sequences=8, length=6, topics=3, steps=30, draws=2, permutations=9)
_STREAMS = ("x", "y", "model", "order", "null", "pairs", "match")


def generator(seed: int, stream: str, part: int = 0) -> np.random.Generator:
    """A generator of its own for each use: all models and nulls of a seed share the data, and nothing else."""
    return generator_of(_STREAMS, seed, stream, part)


class Batch(NamedTuple):
    """x (n, d), y (n, d), topic and sequence of each token, (n,); tokens of a sequence follow each other."""

    x: Array
    y: Array
    topic: Array
    sequence: Array

    def __repr__(self) -> str:
        return one_line(self)


def batch(config: Config) -> Batch:
    """All data of a run: y = A_topic x, a random linear task for each topic.

    Isotropic inputs have topics too, the nearest of the same centres: a router that wants to follow the task can, and
    only the inputs' clustering is gone, in topics and in sequences, which are then runs of tokens sorted by topic. The
    shared direction stays.
    """
    rng = generator(config.seed, "x")
    drawn = synthetic.sequences(
        rng, config.sequences, config.length, config.d, config.topics, config.common, config.spread, query=config.query
    )
    x, topic = drawn.x, drawn.label
    if config.inputs == "isotropic":
        x = synthetic.gaussian(rng, len(x), config.d)
        nearness = matmul(x, drawn.centres.T) - (drawn.centres**2).sum(axis=1) / 2  # (n, m)
        topic = nearness.argmax(axis=1)
        order = np.argsort(topic, kind="stable")
        x, topic = x[order] + config.common * drawn.direction, topic[order]
    elif config.inputs != "topics":
        raise ValueError(f"expected inputs of topics or isotropic; got {config.inputs!r}")
    y = synthetic.cluster_tasks(generator(config.seed, "y"), x, topic)
    return Batch(rounded(x, config.dtype), rounded(y, config.dtype), topic, np.asarray(drawn.sequence))


def build(config: Config, model: int = 0) -> Any:
    """The untrained mixture of a seed, float64; `model` counts initializations."""
    rng = generator(config.seed, "model", model)
    return rounded(
        init.gelu_moe(rng, config.E, config.d, config.h, config.k, renormalize=config.renormalize), config.dtype
    )


def balance_of(config: Config) -> Balance | None:
    """The balance loss of a run, or None."""
    return Balance(config.loss, config.weight) if config.weight else None


def feed(config: Config, data: Batch) -> tuple[Array | Callable[[int], Array], Array | Callable[[int], Array]]:
    """x and y for `fit`, in the dtype of training: all data, or the tokens of a step, of all topics or of a random one;
    drawn with replacement where a topic has fewer."""
    x, y = data.x.astype(config.dtype), data.y.astype(config.dtype)
    if not config.batch:
        return x, y

    def tokens(step: int) -> Array:
        rng = generator(config.seed, "order", 1_000_000 * config.order + step)
        pool = np.arange(len(data.x))
        if not config.mixed:
            pool = np.flatnonzero(data.topic == rng.choice(np.unique(data.topic)))
        return rng.choice(pool, config.batch, replace=config.batch > len(pool))

    return (lambda step: x[tokens(step)]), (lambda step: y[tokens(step)])
