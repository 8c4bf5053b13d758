"""The controlled mixture of SC1 and GA: the config of one run, its batch, its model.

Models are trained in float32, as PyTorch trains by default, and measured in float64. So batch and untrained weights are
numbers that the training's dtype holds exactly: what is measured is what was trained, to the last bit.

SC1 = F. Liu, "Mixture-of-Experts as Soft Clustering", arXiv 2601.11616 v1. Where the text is silent the primary takes
PyTorch's defaults; every other choice is one axis, changed one at a time (``docs/readings.md``).

n tokens, d width, h hidden, E experts, k experts a token.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.words import one_line
from npmoe.data import synthetic
from npmoe.model import init
from npmoe.model.layers import Residual, RMSNorm, Stack
from npmoe.reproduce.streams import generator_of

__all__ = ["PRIMARY", "QUICK", "Batch", "Config", "batch", "build", "dense_of", "feed", "generator", "rounded"]

Array = np.ndarray


@dataclass(frozen=True)
class Config:
    """One model, trained on one batch and measured; the defaults are the primary reading of SC1's set-up."""

    seed: int = 0
    E: int = 8  # 1 is the dense baseline: a single expert, no router
    k: int = 2
    n: int = 512
    d: int = 64
    h: int = 128
    steps: int = 1000
    scheme: str = "pytorch"
    activation: str = "gelu"
    temperature: float = 1.0
    renormalize: bool = True
    bias: bool = False  # of the router
    alike: bool = False  # experts initialized alike
    frozen: tuple[str, ...] = ()
    front: str = "none"  # none, linear, gelu: a trainable layer in front
    around: str = "none"  # none, residual, norm (a shared RMSNorm in front)
    layers: int = 1
    inputs: str = "gaussian"  # gaussian, clusters
    targets: str = "gaussian"  # gaussian, x, teacher, fresh, tasks
    shared_batch: bool = False  # one batch for all seeds
    dtype: str = "float32"  # trained in; measured in float64
    keep: int = 40  # log-spaced snapshots
    draws: int = 20  # of each random null
    lean: bool = False  # measure only what the primary readings need (runs of *train* readings)

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        kind = "dense" if self.E == 1 else "soft" if self.k == self.E else f"top-{self.k}"
        return f"{kind}, seed {self.seed}"


PRIMARY = Config()
QUICK = replace(PRIMARY, E=4, n=96, d=16, h=32, steps=60, keep=12, draws=3)  # shows that the path works, no more


def dense_of(config: Config, h: int | None = None) -> Config:
    """The dense baseline beside a mixture: one FFN of the same width, activation and surroundings.

    What only concerns a mixture is put back to its default, so that equal baselines are one run.
    """
    mixture = ("temperature", "renormalize", "bias", "alike", "frozen", "k")
    defaults = {name: getattr(PRIMARY, name) for name in mixture}
    return replace(config, E=1, h=h or config.h, **{**defaults, "k": 1})


_STREAMS = ("x", "y", "dense", "moe", "front", "null", "thin", "gaussian")


def generator(seed: int, stream: str, part: int = 0) -> np.random.Generator:
    """A generator of its own for each use: all models and nulls of a seed share the batch, and nothing else."""
    return generator_of(_STREAMS, seed, stream, part)


class Batch(NamedTuple):
    """x (n, d), y (n, d), and the topic of each token where inputs are clusters."""

    x: Array
    y: Array
    label: Array | None

    def __repr__(self) -> str:
        return one_line(self)


def batch(config: Config) -> Batch:
    """The fixed batch of a run, float64; `y` is what step 0 trains on where targets are drawn afresh each step."""
    seed = 0 if config.shared_batch else config.seed
    rng_x, rng_y = generator(seed, "x"), generator(seed, "y")
    label = None
    if config.inputs == "clusters":
        x, label, _ = synthetic.clusters(rng_x, config.n, config.d)
    else:
        x = synthetic.gaussian(rng_x, config.n, config.d)
    if config.targets == "x":
        y = x
    elif config.targets == "teacher":
        y = synthetic.teacher(rng_y, x)
    elif config.targets == "tasks":
        if label is None:
            raise ValueError(f"expected inputs of clusters for targets of tasks; got {config.inputs!r}")
        y = synthetic.cluster_tasks(rng_y, x, label)
    else:
        y = synthetic.gaussian(rng_y, config.n, config.d)
    return Batch(rounded(x, config.dtype), rounded(y, config.dtype), label)


def rounded(tree_: Any, dtype: str) -> Any:
    """An array, or all arrays of a model, in float64 with numbers that `dtype` holds exactly."""
    return tree.cast(tree.cast(tree_, dtype), np.float64)


def feed(config: Config) -> tuple[Any, Any]:
    """x and y for `fit`, in the dtype of training; y a function of the step where targets are drawn afresh."""
    data = batch(config)
    x = data.x.astype(config.dtype)
    if config.targets != "fresh":
        return x, data.y.astype(config.dtype)
    seed = 0 if config.shared_batch else config.seed
    return x, lambda step: synthetic.gaussian(generator(seed, "y", step), config.n, config.d).astype(config.dtype)


def build(config: Config) -> Any:
    """The untrained model, float64. Soft and top-k mixtures of a seed start from the same weights."""
    return rounded(_built(config), config.dtype)


def _built(config: Config) -> Any:
    core = tuple(_core(config, part) for part in range(config.layers))
    layers: tuple[Any, ...] = core
    if config.around == "residual":
        layers = tuple(Residual(layer) for layer in core)
    elif config.around == "norm":
        layers = tuple(part for layer in core for part in (RMSNorm(np.ones(config.d)), layer))
    if config.front != "none":
        activation = None if config.front == "linear" else config.activation
        rng = generator(config.seed, "front")
        layers = (init.linear(rng, config.d, config.d, scheme=config.scheme, activation=activation), *layers)
    return layers[0] if len(layers) == 1 else Stack(layers)


def _core(config: Config, part: int) -> Any:
    if config.E == 1:
        rng = generator(config.seed, "dense", part)
        return init.dense(rng, config.d, config.h, scheme=config.scheme, activation=config.activation)
    return init.gelu_moe(
        generator(config.seed, "moe", part),
        config.E,
        config.d,
        config.h,
        config.k,
        scheme=config.scheme,
        renormalize=config.renormalize,
        temperature=config.temperature,
        bias=config.bias,
        alike=config.alike,
        activation=config.activation,
    )
