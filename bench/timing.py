"""Pairs of functions timed in turn, A B A B ..., so that a machine whose speed drifts is fair to both."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Row", "compare"]


class Row(NamedTuple):
    """One comparison: medians in milliseconds, and the ratio best peer / npmoe of pairs taken next to one another."""

    name: str
    dtype: str
    size: str
    npmoe_ms: float
    peers: dict[str, float]
    ratio: float
    low: float
    high: float


def compare(
    name: str,
    ours: Callable[[], Any],
    peers: dict[str, Callable[[], Any]],
    *,
    size: str,
    dtype: str = "float64",
    rounds: int = 15,
    equal: Callable[[Any, Any], None] | None = None,
) -> Row:
    """Time `ours` against each peer in turn; first let `equal` hold their results against one another.

    Raises
    ------
    AssertionError : from `equal`, where a peer gives other numbers: then there is nothing to time.
    """
    result = ours()
    for peer in peers.values():
        other = peer()
        if equal is not None:
            equal(result, other)
    mine, theirs = np.zeros(rounds), np.zeros((rounds, len(peers)))
    for i in range(rounds):
        mine[i] = _milliseconds(ours)
        for j, peer in enumerate(peers.values()):
            theirs[i, j] = _milliseconds(peer)
    best = int(np.median(theirs, axis=0).argmin())
    ratios = theirs[:, best] / mine
    medians = dict(zip(peers, np.median(theirs, axis=0).tolist(), strict=True))
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9]).tolist()
    return Row(name, dtype, size, float(np.median(mine)), medians, median, low, high)


def _milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3
