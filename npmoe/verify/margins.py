"""How far each token is from another choice of experts, and how far rounding may move it.

n tokens, E experts, k experts a token.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.model.layers import Residual, Stack
from npmoe.model.moe import MoE
from npmoe.model.routing import mask
from npmoe.verify.bounds import inputs_of, scores
from npmoe.verify.rounding import Rounded, Rounding

__all__ = ["Margin", "margins"]

Array = np.ndarray


class Margin(NamedTuple):
    """How far each token is from another choice, and how far rounding may move it: both (n,).

    `reach` (n,) is how fast the margin may shrink as one coordinate of what the router reads moves.
    """

    gap: Array
    noise: Array
    reach: Array

    def __repr__(self) -> str:
        return one_line(self)


def margins(layer: Any, x: Rounded, r: Rounding) -> Margin:
    """The routing margin of each token, the narrowest of all mixtures inside; infinite where nothing is chosen."""
    found = [_margin(moe, read, r) for moe, read in _mixtures(layer, x, r)]
    if not found:
        return Margin(np.full(len(x.value), np.inf), np.zeros(len(x.value)), np.zeros(len(x.value)))
    slack = np.array([m.gap - m.noise for m in found])  # (mixtures, n)
    at = slack.argmin(axis=0), np.arange(len(x.value))
    return Margin(*(np.array([getattr(m, name) for m in found])[at] for name in Margin._fields))


def _margin(moe: MoE, x: Rounded, r: Rounding) -> Margin:
    n, E = len(x.value), len(moe.experts)
    if moe.k == E:
        return Margin(np.full(n, np.inf), np.zeros(n), np.zeros(n))
    s, rows = scores(moe, x, r), np.arange(n)
    order = np.argsort(-s.value, axis=1, kind="stable")
    last, next_ = order[:, moe.k - 1], order[:, moe.k]
    # any chosen expert may change places with any other: the noise is that of the widest pair
    on = mask(order[:, : moe.k], E)
    noise = np.where(on, s.error, 0).max(axis=1) + np.where(on, 0, s.error).max(axis=1)
    far = np.abs(moe.router[last] - moe.router[next_]).max(axis=1) / moe.temperature
    return Margin(s.value[rows, last] - s.value[rows, next_], noise, far)


def _mixtures(layer: Any, x: Rounded, r: Rounding) -> Iterator[tuple[MoE, Rounded]]:
    """Every mixture inside a layer with what reaches it."""
    if isinstance(layer, MoE):
        yield layer, x
    elif isinstance(layer, Residual):
        yield from _mixtures(layer.layer, x, r)
    elif isinstance(layer, Stack):
        for inner, read in zip(layer.layers, inputs_of(layer, x, r), strict=True):
            yield from _mixtures(inner, read, r)
