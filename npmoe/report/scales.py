"""Scales of a panel's axes: where a number stands, and which numbers stand beside the axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Scale", "nice_ticks", "scale_of"]

MOST = 1e200  # beyond it, and on a log axis below its inverse, a number has no place, as an infinite one has none


class Scale(NamedTuple):
    """A map from numbers to 0..1 along an axis, and its ticks; NaN for what has no place (0 on a log axis)."""

    low: float
    high: float
    bend: Callable[[float], float]
    ticks: tuple[float, ...]

    def place(self, value: float | None) -> float:
        """Where a number stands, 0 at the axis's start and 1 at its end."""
        if value is None or not _known(value):
            return math.nan
        start, stop = self.bend(self.low), self.bend(self.high)
        return (self.bend(value) - start) / (stop - start)


def scale_of(kind: str, values: Iterable[float | None], linear: float | None = None) -> Scale:
    """The scale that shows all values: "linear", "log", or "symlog", which is linear up to `linear` and log beyond."""
    known = [v for v in values if v is not None and _known(v)]
    if kind == "log":
        return _log([v for v in known if v >= 1 / MOST])
    if kind == "symlog" and any(known):
        return _symlog(known, linear)
    low, high = _spread(min(known, default=0.0), max(known, default=1.0))
    return Scale(low, high, lambda v: v, nice_ticks(low, high))


def _known(value: float) -> bool:
    return abs(value) <= MOST  # so is not NaN


def _spread(low: float, high: float, share: float = 0.045) -> tuple[float, float]:
    """A little more than low to high, so that nothing touches the frame."""
    pad = share * (high - low) or 0.1 * abs(high) or 0.5
    return low - pad, high + pad


def _log(values: list[float]) -> Scale:
    first, last = _spread(math.log10(min(values, default=0.1)), math.log10(max(values, default=10.0)))
    decades = last - first
    low, high = 10**first, 10**last
    if decades < 0.7:
        ticks = tuple(t for t in nice_ticks(low, high) if t > 0)
    else:
        heads = (1, 2, 5) if decades < 1.7 else (1,)
        every = max(1, math.ceil(decades / 8))
        powers = range(math.floor(first), math.ceil(last) + 1)
        found = (head * 10.0**p for p in powers for head in heads if p % every == 0)
        ticks = tuple(float(f"{t:.3g}") for t in found if low <= t <= high)
    return Scale(low, high, lambda v: math.log10(v) if v >= 1 / MOST else math.nan, ticks)


def _symlog(values: list[float], linear: float | None) -> Scale:
    top = max(map(abs, values))
    knee = linear or 10.0 ** (math.floor(math.log10(top)) - 2)

    def bend(v: float) -> float:
        return math.copysign(v / knee if abs(v) <= knee else 1 + math.log10(abs(v) / knee), v) if v >= 0 else -bend(-v)

    start, stop = _spread(bend(min(*values, 0.0)), bend(max(*values, 0.0)))

    def back(u: float) -> float:
        return math.copysign(knee * (abs(u) if abs(u) <= 1 else 10 ** (abs(u) - 1)), u)

    powers = [10.0**p for p in range(math.ceil(math.log10(knee)), math.floor(math.log10(top)) + 1)]
    ticks = tuple(t for t in (*(-p for p in reversed(powers)), 0.0, *powers) if start <= bend(t) <= stop)
    return Scale(back(start), back(stop), bend, ticks)


def nice_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round numbers from low to high, at most `most` steps apart.

    Examples
    --------
    >>> nice_ticks(0.0, 1.0)
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * f for f in (1, 2, 2.5, 5, 10) if unit * f >= raw * 0.999)
    ticks = (k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1))
    return tuple(float(f"{tick:.12g}") for tick in ticks)
