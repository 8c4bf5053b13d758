"""The picture of verify.json: strips of dots, each an error over the limits of rounding, on log axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from npmoe.report.battery_read import size
from npmoe.report.style import plain

# the strips: heights in pixels, widths in thousandths of the plot
HEIGHT, FLOOR, BIN = 58, 37, 8
NOTHING, LEFT, RIGHT, ENDLESS = 10, 76, 924, 988
SPAN = (1e-3, 1e5)  # eps that the picture tells apart: rows that nearly cancel have units as small as one likes


def pictures(found: dict[str, Any], columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """For each framework and arithmetic two strips of dots: errors over their limits' ticks, errors over limits."""
    judged = [entry for entry in found["entries"] if entry["judged"]]
    strips = {c: [e for e in judged if (e["framework"], e["arithmetic"]) == c] for c in columns}
    by_size, size_ticks = _axis([entry[key] for entry in judged for key in ("units", "usual")], SPAN)
    by_ratio, ratio_ticks = _axis([entry["ratio"] for entry in judged] + [1.0])
    tallest = {
        key: max((_tallest(entries, key, place) for entries in strips.values()), default=1)
        for key, place in (("units", by_size), ("ratio", by_ratio))
    }
    shown = []
    for (framework, arithmetic), entries in strips.items():
        limits = [place for entry in entries if (place := by_size(entry["usual"])) is not None]
        errors = [entry["units"] for entry in entries if math.isfinite(entry["units"])]
        allowed = [entry["usual"] for entry in entries if math.isfinite(entry["usual"])]
        off = [(word, sum(entry["verdict"] == word for entry in entries)) for word in found["verdicts"]]
        shown.append(
            {
                "framework": framework,
                "arithmetic": arithmetic,
                "count": len(entries),
                "off": [(word, count) for word, count in off if count and word != "agrees"],
                "errors": (min(errors, default=0.0), max(errors, default=0.0)),
                "allowed": (min(allowed, default=0.0), max(allowed, default=0.0)),
                "ratio": max((size(entry["ratio"]) for entry in entries), default=0.0),
                "sizes": _dots(entries, "units", by_size, tallest["units"]),
                "ratios": _dots(entries, "ratio", by_ratio, tallest["ratio"]),
                "limits": (min(limits), max(limits)) if limits else None,
                "rug": "".join(f"M{x} {FLOOR + 7}v9" for x in sorted(set(limits))),
            }
        )
    return {
        "strips": shown,
        "height": HEIGHT,
        "floor": FLOOR,
        "one": by_ratio(1.0),
        "size_ticks": size_ticks,
        "ratio_ticks": ratio_ticks,
    }


def _axis(
    values: Sequence[float], span: tuple[float, float] = (0.0, math.inf)
) -> tuple[Callable[[float], int | None], list[tuple[int, str]]]:
    """A map from a value to thousandths of the width on a log axis, and ticks with their labels.

    Zeros, and what is below the span, stand apart at the left, what is above it and what is no number at the right.
    """
    sizes = [value for value in values if 0 < value < math.inf and span[0] <= value <= span[1]]
    low, high = (math.log10(min(sizes)), math.log10(max(sizes))) if sizes else (0.0, 1.0)
    low = max(low, high - 9)  # errors of 1e-20 are as good as none, and would press the rest together
    low, high = (low, high) if high - low > 1 else ((low + high - 1) / 2, (low + high + 1) / 2)

    def place(value: float) -> int | None:
        if value == 0 or value < span[0]:
            return NOTHING
        if not 0 < value < math.inf or value > span[1]:
            return ENDLESS
        return round(LEFT + (RIGHT - LEFT) * (max(math.log10(value), low) - low) / (high - low))

    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    every = max(1, math.ceil(len(powers) / 6))
    ticks = [(place(10.0**p), plain(10.0**p)) for p in powers if p % every == 0]
    ticks += [(NOTHING, "≈0" if span[0] else "0")] if any(v <= span[0] for v in values) else []
    endless = "∞" if math.isinf(span[1]) else "≫"
    ticks += [(ENDLESS, endless)] if any(not v <= span[1] or math.isinf(v) for v in values) else []
    return place, sorted((x, text) for x, text in ticks if x is not None)


def _column(value: float, place: Callable[[float], int | None]) -> int:
    """Where a value's dot stands: columns side by side, none of them across 1; zeros and infinities have their own."""
    x = place(value) or 0
    if x in (NOTHING, ENDLESS):
        return x
    one = place(1.0) or 0
    return one + (x - one) // BIN * BIN + BIN // 2


def _tallest(entries: Sequence[dict[str, Any]], key: str, place: Callable[[float], int | None]) -> int:
    """How many dots stand on each other where they are most, within the axis."""
    columns = Counter(_column(entry[key], place) for entry in entries if 0 < entry[key] < math.inf)
    return max(columns.values(), default=1)


def _dots(
    entries: Sequence[dict[str, Any]], key: str, place: Callable[[float], int | None], tallest: int
) -> dict[str, Any]:
    """Dots in columns: a path of those that agree, the others one by one, above them and where they belong."""
    counts = Counter(_column(entry[key], place) for entry in entries)
    high: Counter[int] = Counter()
    path, apart = [], []
    for entry in sorted(entries, key=lambda entry: (entry["verdict"] != "agrees", size(entry[key]))):
        x = _column(entry[key], place)
        # what stands beside the axis may be pressed together: it says nothing of the others
        step = min(3.6, (FLOOR - 7) / (counts[x] if x in (NOTHING, ENDLESS) else tallest))
        y = f"{FLOOR - 3 - high[x] * step:.1f}".removesuffix(".0")
        high[x] += 1
        if entry["verdict"] == "agrees":
            path.append(f"M{x} {y}h0")
        else:
            apart.append({"x": f"{(place(entry[key]) or 0) / 10:.1f}", "y": y, "entry": entry})
    return {"path": "".join(path), "apart": apart}
