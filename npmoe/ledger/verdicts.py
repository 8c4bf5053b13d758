"""The one rule that turns numbers into verdicts: intervals over seeds, and what they say beside the margin and nulls.

The rule stands in ``docs/verdicts.md`` and was committed before the first recorded run. It knows no paper.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from npmoe.ledger.readings import Null, Reading

__all__ = [
    "FEWEST_SEEDS",
    "VERDICTS",
    "Interval",
    "catching",
    "excess",
    "holds",
    "interval",
    "judge",
    "opposite",
]

FEWEST_SEEDS = 5
VERDICTS = (
    "reproduced", "so does the null", "reversed", "not reproduced", "undecided", "proved", "refuted", "not tested",
    "no verdict",
)  # fmt: skip


class Interval(NamedTuple):
    """Mean over seeds and its two-sided 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """mean +- t(0.975, S-1) sd / sqrt(S) over S seeds; NaN where a seed is undefined or there are under two.

    Examples
    --------
    >>> interval([1.0, 2.0, 3.0]).low.__round__(3)
    -0.484
    """
    v = np.asarray(values, dtype=float)
    if v.size < 2 or not np.isfinite(v).all():
        mean = float(v.mean()) if v.size and np.isfinite(v).all() else math.nan
        return Interval(mean, math.nan, math.nan)
    mean = float(v.mean())
    half = float(student.ppf(0.975, v.size - 1) * v.std(ddof=1) / math.sqrt(v.size))
    return Interval(mean, mean - half, mean + half)


def holds(values: Sequence[float], margin: float, fewest: int = FEWEST_SEEDS) -> bool:
    """T holds: the interval, over at least five seeds, lies above the margin."""
    return len(values) >= fewest and interval(values).low > margin


def opposite(values: Sequence[float], margin: float) -> bool:
    """T is opposite: the interval, over at least five seeds, lies below minus the margin."""
    return len(values) >= FEWEST_SEEDS and interval(values).high < -margin


def excess(reading: Reading, null: Null) -> Interval:
    """Interval of T - T0, paired by seed; NaN where a seed's difference is not finite."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is "undefined", not an error
        return interval(np.subtract(reading.values, null.values))


def judge(reading: Reading, fewest: int = FEWEST_SEEDS) -> str:
    """The verdict on one reading (rules 4 to 6); with under `fewest` seeds there is none.

    reproduced: T holds and is beyond every null (the interval of T - T0 lies above m). so does the null: T holds, and
    some null's T0 holds too without T being beyond it. reversed: T is opposite. not reproduced: T is absent, its
    interval within [-m, m]. undecided: all else. Under five seeds: no verdict.

    Examples
    --------
    >>> judge(Reading("r", "measure", "T", 0.1, (1.0, 1.1, 0.9, 1.0, 1.0), (Null("n", "chance", (0.0,) * 5),)))
    'reproduced'
    """
    m = reading.margin
    if len(reading.values) < fewest:
        return "no verdict"
    _, low, high = interval(reading.values)
    if low > m:
        caught = [null for null in reading.nulls if not excess(reading, null).low > m]
        if not caught:
            return "reproduced"
        return "so does the null" if any(holds(null.values, m, fewest) for null in caught) else "undecided"
    if high < -m:
        return "reversed"
    return "not reproduced" if low >= -m and high <= m else "undecided"


def catching(reading: Reading, fewest: int = FEWEST_SEEDS) -> list[Null]:
    """The nulls that hold too without T being beyond them."""
    m = reading.margin
    return [n for n in reading.nulls if holds(n.values, m, fewest) and not excess(reading, n).low > m]
