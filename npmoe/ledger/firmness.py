"""How firm a verdict is: whether it stands without any one seed, and how many seeds would settle it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from npmoe.ledger.plain import word
from npmoe.ledger.readings import Null, Reading
from npmoe.ledger.verdicts import FEWEST_SEEDS, catching, interval, judge

__all__ = ["Firmness", "firmness", "seeds_for"]

MOST = 100_000  # seeds; beyond that nobody will run them


class Firmness(NamedTuple):
    """Whether a verdict stands, the verdicts that leaving out one seed gives, and how many seeds it would need.

    stands : the verdict is the same whichever seed is left out.
    without : verdict, in plain words -> from how many of the seeds' absences it follows.
    seeds : the least number, of the five that a verdict needs or more, for an interval half as wide as the distance to
        the margin that decides; None if more than a hundred thousand, or where T is undefined in a seed.
    """

    stands: bool
    without: dict[str, int]
    seeds: int | None


def firmness(reading: Reading) -> Firmness | None:
    """The firmness of a reading's verdict; None with under five seeds, which have no verdict.

    Examples
    --------
    >>> firmness(Reading("r", "measure", "T", 0.1, (0.3, 0.3, 0.31, 0.29, 0.05)))
    Firmness(stands=False, without={'inconclusive': 4, 'reproduced': 1}, seeds=37)
    """
    if len(reading.values) < FEWEST_SEEDS:
        return None
    without = Counter(_word(_without(reading, i), FEWEST_SEEDS - 1) for i in range(len(reading.values)))
    return Firmness(set(without) == {_word(reading)}, dict(without), _seeds(reading, judge(reading)))


def _word(reading: Reading, fewest: int = FEWEST_SEEDS) -> str:
    return word(judge(reading, fewest), [null.kind for null in catching(reading, fewest)])


def _without(reading: Reading, i: int) -> Reading:
    """The reading with one seed left out, of T and of all nulls."""

    def rest(values: Sequence[float]) -> tuple[float, ...]:
        return (*values[:i], *values[i + 1 :])

    nulls = tuple(replace(null, values=rest(null.values)) for null in reading.nulls)
    return replace(reading, values=rest(reading.values), nulls=nulls)


def _seeds(reading: Reading, verdict: str) -> int | None:
    """Seeds for the comparison that needs most of all that decide: T with its margins, the excess over nulls with m."""
    m = reading.margin
    nearer = math.copysign(m, interval(reading.values).mean)  # the margin that T is nearer to
    needs = [seeds_for(reading.values, nearer)]
    over = [seeds_for(np.subtract(reading.values, null.values), m) for null in _deciding(reading, verdict)]
    if verdict == "so does the null" and over:
        over = [min(over, key=lambda need: math.inf if need is None else need)]  # one of them is enough
    needs += over
    return None if None in needs else max(FEWEST_SEEDS, *(need for need in needs if need is not None))


def _deciding(reading: Reading, verdict: str) -> Sequence[Null]:
    if verdict == "so does the null":
        return catching(reading)
    return reading.nulls if interval(reading.values).low > reading.margin else ()


def seeds_for(values: Sequence[float] | np.ndarray, boundary: float) -> int | None:
    """The least number of seeds with a 95 % interval at most half as wide as the mean's distance to a boundary.

    It takes mean and spread as these values have them. None where that is more than a hundred thousand.

    Examples
    --------
    >>> seeds_for([1.0, 1.2, 0.8, 1.1, 0.9], 0.1)
    5
    """
    v = np.asarray(values, dtype=float)
    if v.size < 2 or not np.isfinite(v).all():
        return None
    spread, distance = float(v.std(ddof=1)), abs(float(v.mean()) - boundary)

    def enough(seeds: int) -> bool:
        return bool(2 * student.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds) <= distance / 2)

    if not enough(MOST):
        return None
    low, high = 1, MOST  # the width falls with every further seed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
