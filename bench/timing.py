"""Pairs of functions timed in turn, A B A B ..., so that a machine whose speed drifts is fair to both."""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from bench.memory import megabytes

__all__ = ["Row", "best_of", "compare"]

Way = Callable[[], Any]
BLOCK = 0.12  # seconds: a turn. What is shorter is called again and again, as in a training loop, with warm caches
PAUSE = 0.03  # seconds between two turns: threads of BLAS and OpenMP spin on after their work, and would take a core
SPEND = 1.5  # seconds that a row may take, beyond its least number of rounds


class Row(NamedTuple):
    """One comparison: medians in milliseconds; the ratio best peer / npmoe, and its spread over rounds; memory."""

    name: str
    dtype: str
    size: str
    npmoe_ms: float
    peers: dict[str, float]
    megabytes: dict[str, float]  # what a call takes beyond what was there, its result included
    rounds: int
    ratio: float | None = None  # median over rounds; None without a peer, as all that follows
    low: float | None = None  # 10 % quantile
    high: float | None = None  # 90 %
    best: str | None = None  # the peer of the ratio
    plain: str | None = None  # the fastest peer among those that are written plainly
    plain_ratio: float | None = None

    def shown(self) -> str:
        """The row as a line of the table on the screen."""
        own = f"{self.name:27}{self.dtype:9}{self.size:30}{self.npmoe_ms:10.3f}{self.megabytes.get('npmoe', 0):8.0f}"
        if self.best is None:
            return own
        theirs = f"{self.peers[self.best]:12.3f}{self.megabytes[self.best]:8.0f}  {self.best}"
        if self.plain is not None:
            theirs += f" (plain: {self.plain_ratio:.2f}, {self.plain})"
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
    plain: Collection[str] = (),
    memory: dict[str, float] | None = None,
) -> Row:
    """Time `ours` against each peer in turn; first let `equal` hold their results against one another.

    Parameters
    ----------
    equal : called with our result and each peer's; it raises where they differ. None where that was done before.
    least, most : rounds; between the two, as many as fit into `SPEND` seconds.
    memory : megabytes of each way, where they are known already: long work need not be done once more for them.
    plain : names of ways that are the framework's own line for the work, not tuned for this one.

    Raises
    ------
    AssertionError : from `equal`, where a peer gives other numbers: then there is nothing to time.
    """
    ways = {"npmoe": ours, **peers}
    measured = dict(memory or {})
    result = None
    for way, function in ways.items():
        if equal is not None:
            found = function()  # compiles, where there is something to compile
            result = found if result is None else result
            try:
                equal(result, found)
            except AssertionError as error:
                raise AssertionError(f"{name} ({dtype}): {way} gives other numbers than npmoe: {error}") from None
            del found
        elif memory is None:
            function(), function()  # compiles; and a training run's first call is half a step
        if memory is None:
            measured[way] = megabytes(function)
    del result
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
        return Row(name, dtype, size, npmoe_ms, {}, measured, i + 1)
    best = min(medians, key=lambda way: medians[way])
    low, median, high = np.quantile(np.array(times[best]) / times["npmoe"], [0.1, 0.5, 0.9]).tolist()
    simple = min((way for way in medians if way in plain), key=lambda way: medians[way], default=None)
    plain_ratio = None if simple is None else float(np.median(np.array(times[simple]) / times["npmoe"]))
    ratios = median, low, high, best, simple, plain_ratio
    return Row(name, dtype, size, npmoe_ms, medians, measured, i + 1, *ratios)


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
