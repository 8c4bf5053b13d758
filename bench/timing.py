"""Pairs of functions timed in turn, A B A B ..., so that a machine whose speed drifts is fair to both."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bench.memory import megabytes

__all__ = ["Row", "best_of", "compare"]

Way = Callable[[], Any]
BLOCK = 0.12  # seconds: a turn. What is shorter is called again and again, as in a training loop, with warm caches
PAUSE = 0.03  # seconds between two turns: threads of BLAS and OpenMP spin on after their work, and would take a core
SPEND = 4.0  # seconds that a row may take, beyond its least number of rounds


class Row(NamedTuple):
    """One comparison: medians in milliseconds; the ratio best peer / npmoe, and its spread over rounds; memory."""

    name: str
    dtype: str
    size: str
    npmoe_ms: float
    peers: dict[str, float]
    ratio: float | None  # median over rounds; None without a peer
    low: float | None  # 10 % quantile
    high: float | None  # 90 %
    best: str | None  # the peer of the ratio
    megabytes: dict[str, float]  # what a call takes beyond what was there, its result included
    rounds: int

    def shown(self) -> str:
        """The row as a line of the table on the screen."""
        own = f"{self.name:27}{self.dtype:9}{self.size:30}{self.npmoe_ms:10.3f}{self.megabytes.get('npmoe', 0):8.0f}"
        if self.best is None:
            return own
        theirs = f"{self.peers[self.best]:12.3f}{self.megabytes[self.best]:8.0f}  {self.best}"
        return f"{own}{self.ratio:8.2f}{f'{self.low:.2f} to {self.high:.2f}':>18}{theirs}"


def compare(
    name: str,
    ours: Way,
    peers: dict[str, Way],
    *,
    size: str,
    dtype: str = "float64",
    equal: Callable[[Any, Any], None] | None = None,
    least: int = 3,
    most: int = 31,
    first: str | None = None,
) -> Row:
    """Time `ours` against each peer in turn; first let `equal` hold their results against one another.

    Parameters
    ----------
    equal : called with our result and each peer's; it raises where they differ.
    least, most : rounds; between the two, as many as fit into `SPEND` seconds.
    first : what the peer's ratio is of: the fastest by its median, unless a name is given.

    Raises
    ------
    AssertionError : from `equal`, where a peer gives other numbers: then there is nothing to time.
    """
    ways = {"npmoe": ours, **peers}
    memory: dict[str, float] = {}
    result = None
    for way, function in ways.items():
        found = function()  # compiles, where there is something to compile
        result = found if result is None else result
        if equal is not None and way != "npmoe":
            try:
                equal(result, found)
            except AssertionError as error:
                raise AssertionError(f"{name} ({dtype}): {way} gives other numbers than npmoe: {error}") from None
        memory[way] = megabytes(function)
    del result, found
    times: dict[str, list[float]] = {way: [] for way in ways}
    start = time.perf_counter()
    for i in range(most):
        for way, function in ways.items():
            times[way].append(_milliseconds(function))
        if i + 1 >= least and time.perf_counter() - start > SPEND:
            break
    medians = {way: float(np.median(values)) for way, values in times.items()}
    npmoe_ms = medians.pop("npmoe")
    if not peers:
        return Row(name, dtype, size, npmoe_ms, {}, None, None, None, None, memory, i + 1)
    best = first or min(medians, key=lambda way: medians[way])
    low, median, high = np.quantile(np.array(times[best]) / times["npmoe"], [0.1, 0.5, 0.9]).tolist()
    return Row(name, dtype, size, npmoe_ms, medians, median, low, high, best, memory, i + 1)


def best_of(function: Way, spend: float = 0.3) -> float:
    """The shortest of several timings in milliseconds, at least three: for how cost grows, not for comparisons."""

    def timings() -> Iterator[float]:
        start = time.perf_counter()
        for i in range(101):
            yield _milliseconds(function)
            if i >= 2 and time.perf_counter() - start > spend:
                return

    return min(timings())


def _milliseconds(function: Way) -> float:
    """One turn: the median of the calls that fit into a block, the first quarter of them left out."""
    time.sleep(PAUSE)
    taken: list[float] = []
    begun = time.perf_counter()
    while not taken or time.perf_counter() - begun < BLOCK:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[len(taken) // 4 :])) * 1e3
