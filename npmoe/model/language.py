"""A language model trained, evaluated and sampled from.

B sequences, T tokens a sequence, V words, p parameters. Training is a generator of steps over one flat vector of
parameters, as in `npmoe.model.train`; its whole state is a `Progress`, from which it goes on to the same bytes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check, tree
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.scalar import softmax
from npmoe.calculus.threads import each, one_blas_thread, parts
from npmoe.calculus.words import one_line
from npmoe.model.adam import Adam, AdamState
from npmoe.model.balance import Balance
from npmoe.model.transformer import Transformer, flat_gradient, loss

__all__ = ["Batches", "Progress", "Recipe", "Step", "evaluate", "sample", "train"]

Array = np.ndarray
Batches = Callable[[int], tuple[Array, Array]]


@dataclass(frozen=True)
class Recipe:
    """How a language model is trained.

    Parameters
    ----------
    steps : number of steps.
    lr : the largest step size of Adam, reached after `warmup` steps; then a cosine down to `floor` times it.
    warmup : steps of linear rise.
    floor : share of `lr` at the end.
    decay : weight decay of matrices, decoupled: theta loses lr decay theta (Loshchilov and Hutter, arXiv 1711.05101).
    clip : the gradient is scaled down to this norm where it is longer; infinity for never.
    beta1, beta2 : of Adam.
    balances : losses on the routing, such as ``Balance("switch", weight=0.01)`` and ``Balance("z", weight=0.001)``.

    Examples
    --------
    >>> Recipe(steps=100, lr=1e-3, warmup=10).rate(9), round(Recipe(steps=100, lr=1e-3, warmup=10).rate(100), 6)
    (0.001, 0.0001)
    """

    steps: int
    lr: float = 3e-3
    warmup: int = 20
    floor: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    balances: tuple[Balance, ...] = ()

    def __post_init__(self) -> None:
        check.integer("steps", self.steps, 0)
        check.integer("warmup", self.warmup, 0)
        check.positive("lr", self.lr)
        if not self.clip > 0:
            raise ValueError(f"expected clip above 0; got {self.clip}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"expected floor within 0..1; got {self.floor}")
        if not (self.decay >= 0 and math.isfinite(self.decay)):
            raise ValueError(f"expected decay of at least 0; got {self.decay}")

    def rate(self, step: int) -> float:
        """Adam's step size at a step, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        after = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * after)) / 2)


class Progress(NamedTuple):
    """Where training stands: steps taken, parameters (p,), and Adam's moments (p,) each."""

    step: int
    theta: Array
    m: Array
    v: Array

    def __repr__(self) -> str:
        return one_line(self)


class Step(NamedTuple):
    """One step: its number, the loss of its batch, the gradient's norm before clipping, and the model in front of it.

    The last one carries the progress from which training goes on, and no norm: there is no step after it.
    """

    step: int
    loss: float
    norm: float
    model: Transformer
    progress: Progress | None

    def __repr__(self) -> str:
        return one_line(self)


def train(
    model: Transformer, batches: Batches, recipe: Recipe, start: Progress | None = None, until: int | None = None
) -> Iterator[Step]:
    """Train by Adam on the cross-entropy of the next token.

    Parameters
    ----------
    model : where training starts; only its shape counts where `start` is given. It is never changed.
    batches : step -> ids (B, T), targets (B, T); a function of the step alone, or a resumed run is another run.
    recipe : `Recipe`.
    start : where to go on, of the same recipe; from the model's own weights unless given.
    until : stop in front of this step; at the recipe's end unless given.

    Yields
    ------
    Step : one in front of each step, and one at the end. No model that was yielded ever changes.

    Raises
    ------
    ValueError, TypeError : for ids that the model does not know, a `start` of another size, balance losses without a
        mixture. FloatingPointError where the loss is no longer finite.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> model = npmoe.init.transformer(rng, V=5, d=8, layers=1, heads=2, h=16, E=4, k=2, longest=6)
    >>> text = np.arange(7 * 4).reshape(4, 7) % 5  # 0 1 2 3 4 0 1 ...: each word follows from the one before
    >>> steps = list(train(model, lambda step: (text[:, :-1], text[:, 1:]), Recipe(steps=60, lr=1e-2)))
    >>> steps[0].loss > 1.5, steps[-1].loss < 0.5
    (True, True)
    """
    if recipe.balances and not model.mixtures:
        raise TypeError("expected a model with mixtures, whose routing a balance loss reads; got a dense one")
    theta = tree.flatten(model)
    if start is None:
        start = Progress(0, theta, *np.zeros((2, theta.size), theta.dtype))
    if not start.theta.shape == start.m.shape == start.v.shape == theta.shape:
        raise ValueError(f"expected progress of a model of {theta.size} parameters; got {start.theta.shape}")
    end = recipe.steps if until is None else check.integer("until", until, start.step, recipe.steps, "this recipe")
    return _train(model, batches, recipe, start, end)


def _train(model: Transformer, batches: Batches, recipe: Recipe, start: Progress, end: int) -> Iterator[Step]:
    keep_heap()
    unflatten = tree.unflattener(model)
    adam = Adam(beta1=recipe.beta1, beta2=recipe.beta2)
    theta, state = start.theta, AdamState(start.m.copy(), start.v.copy(), start.step)
    matrices = _matrices(model)
    for step in range(start.step, end + 1):
        model = unflatten(theta)
        if step == end:
            value = float(loss(model, *batches(step)).mean())
            yield Step(step, value, math.nan, model, Progress(step, theta, state.m, state.v))
            return
        value, gradient = flat_gradient(model, *batches(step), recipe.balances)
        norm = math.sqrt(float(np.dot(gradient, gradient)))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(
                f"expected a finite loss and gradient at step {step}; got {value} and {norm}: try a smaller lr"
            )
        yield Step(step, value, norm, model, None)
        if norm > recipe.clip:
            gradient *= gradient.dtype.type(recipe.clip / norm)
        rate = recipe.rate(step)
        new = replace(adam, lr=rate).step(theta, gradient, state)
        for part in matrices if recipe.decay else ():
            new[part] -= theta.dtype.type(rate * recipe.decay) * theta[part]
        theta = new


def _matrices(model: Transformer) -> list[slice]:
    """Where in the flat vector the matrices stand: norms and biases do not decay."""
    leaves = tree.leaves(model)
    ends = np.cumsum([leaf.size for leaf in leaves])
    return [slice(int(end) - leaf.size, int(end)) for leaf, end in zip(leaves, ends, strict=True) if leaf.ndim > 1]


# ---- what a trained model is worth, and what it says -----------------------------------------------------------------


def evaluate(model: Transformer, ids: Array, targets: Array, sequences: int = 16) -> Array:
    """-log p(target) of every token, (m, T), float64, a few sequences at a time; exp of the mean is the perplexity.

    Parameters
    ----------
    ids, targets : integers (m, T).
    sequences : how many are read at once; the numbers do not depend on it but for rounding.
    """
    ids, targets = model.ids(ids), np.asarray(targets)
    pieces = list(parts(len(ids), sequences))
    with one_blas_thread():
        found = each(lambda rows: loss(model, ids[rows], targets[rows]), pieces)
    return np.concatenate(found).reshape(ids.shape)


def sample(
    model: Transformer,
    prompts: Array,
    tokens: int,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Array:
    """Continue prompts token by token, (B, t) -> (B, t + tokens), from a cache of keys and values.

    Parameters
    ----------
    prompts : integers (B, t) or (t,).
    tokens : how many to add.
    rng : where the draws come from.
    temperature : number that divides the logits; 0 takes the likeliest word.
    top_p : draw among the likeliest words that together have this probability (Holtzman et al., arXiv 1904.09751).

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> model = npmoe.init.transformer(rng, V=5, d=8, layers=1, heads=2, h=16, longest=9)
    >>> sample(model, np.array([1, 2]), 4, rng, temperature=0.8, top_p=0.9).shape
    (1, 6)
    """
    ids = model.ids(prompts)
    check.integer("tokens", tokens, 0)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"expected a temperature of at least 0; got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"expected top_p within 0..1, above 0; got {top_p}")
    new, caches = ids, None
    for _ in range(tokens):
        logits, caches = model.extend(new, caches)
        new = _drawn(logits.astype(np.float64), rng, temperature, top_p)[:, None]
        ids = np.concatenate([ids, new], axis=1)
    return ids


def _drawn(logits: Array, rng: np.random.Generator, temperature: float, top_p: float) -> Array:
    """One word for each row of logits (B, V)."""
    if temperature == 0:
        return logits.argmax(axis=1)
    with np.errstate(under="ignore"):
        p = softmax(logits / temperature)
    order = np.argsort(-p, axis=1, kind="stable")
    p = np.take_along_axis(p, order, axis=1)
    # the first is always kept: what lies in front of a word must be under top_p
    p[np.cumsum(p, axis=1) - p >= top_p] = 0
    at = np.cumsum(p, axis=1)
    drawn = (at < rng.random((len(p), 1)) * at[:, -1:]).sum(axis=1)
    return order[np.arange(len(p)), drawn]
