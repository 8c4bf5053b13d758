"""A specification curve: every reading of a claim on one axis, a row each, its nulls beside it, the margin shaded.

Rows are SVG whose abscissas are percentages, so that the plot is as wide as the screen and no letter ever shrinks;
names, numbers and verdicts around it are HTML.
"""

from __future__ import annotations

import html
import math
from typing import Any

from npmoe.report.style import interval, number, plain

LEFT, RIGHT = 2.0, 98.0  # per cent of the plot's width that the axis uses


def curve(claim: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The rows of a claim's specification curve, sorted by T, with axis, grid and a note on the scale.

    Returns rows (each with its reading and an SVG), axis and grid (SVG text), note, and by (what they are sorted by).
    The axis is T; where the readings' margins differ it is T in margins, because a count and a log ratio share no unit.
    """
    margins = {r["margin"] for r in claim["readings"]}
    in_margins = len(margins) > 1 and all(m is not None and m > 0 for m in margins)

    def order(reading: dict[str, Any]) -> tuple[bool, float, str]:
        middle = _middle(reading)
        scale = reading["margin"] if in_margins else 1.0
        return middle is None, -(middle or 0.0) / scale, reading["name"]

    readings = sorted(claim["readings"], key=order)
    place, ticks, bent = _axis(readings, in_margins)
    by = "T / m" if in_margins else "T"
    notes = ["the axis is T / m, because the readings differ in their margin m"] if in_margins else []
    if bent:
        notes.append("the axis is stretched near zero and compressed far from it")
    rows = [{"reading": r, "svg": _row(r, place, r["margin"] if in_margins else 1.0, prefix)} for r in readings]
    return {
        "rows": rows,
        "axis": _ticks(ticks, place),
        "grid": _grid(ticks, place, prefix),
        "note": "; ".join(notes),
        "by": by,
    }


def _middle(reading: dict[str, Any]) -> float | None:
    """Where a reading's dot stands: its mean, or the middle of its interval."""
    if reading["mean"] is not None:
        return float(reading["mean"])
    if reading["low"] is None or reading["high"] is None:
        return None
    return float(reading["low"] + reading["high"]) / 2


def _axis(readings: list[dict[str, Any]], in_margins: bool) -> tuple[Any, list[float], bool]:
    """A map from T to per cent, the ticks, and whether the axis is bent (asinh) because a few readings lie far out."""
    ends = [0.0]
    dots: list[float] = []
    for reading in readings:
        scale = reading["margin"] if in_margins else 1.0
        middle = _middle(reading)
        dots += [abs(middle) / scale] if middle is not None else []
        found = [reading["low"], reading["high"], middle]
        found += [end for null in reading["nulls"] for end in (null["low"], null["high"])]
        if reading["margin"]:
            found += [reading["margin"], -reading["margin"]]
        ends += [end / scale for end in found if end is not None]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = -1.0, 1.0
    typical = sorted(dots)[(3 * len(dots)) // 4] if dots else 0.0
    bent = typical > 0 and max(-low, high) > 8 * typical and len(dots) > 3
    bend = (lambda t: math.asinh(t / typical)) if bent else (lambda t: t)
    start, stop = bend(low), bend(high)
    pad = 0.02 * (stop - start)

    def place(t: float) -> float:
        return LEFT + (RIGHT - LEFT) * (bend(t) - start + pad) / (stop - start + 2 * pad)

    return place, _nice(low, high, typical if bent else None), bent


def _nice(low: float, high: float, bend: float | None) -> list[float]:
    """Round numbers for ticks: even steps, or zero and powers of ten where the axis is bent."""
    if bend is not None:
        first, last = math.floor(math.log10(bend)), math.floor(math.log10(max(-low, high)))
        powers = [10.0**p for p in range(first, last + 1)]
        return [t for t in [-p for p in reversed(powers)] + [0.0, *powers] if low <= t <= high]
    raw = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * f for f in (1, 2, 2.5, 5, 10) if unit * f >= raw * 0.999)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _ticks(ticks: list[float], place: Any) -> str:
    words = "".join(f'<text x="{place(t):.2f}%" y="13">{plain(t)}</text>' for t in ticks)
    return f'<svg class="axis" width="100%" height="18" aria-hidden="true">{words}</svg>'


def _grid(ticks: list[float], place: Any, prefix: str) -> str:
    """Vertical lines drawn once and used by every row."""
    lines = "".join(
        f'<line class="{"zero" if t == 0 else "tick"}" x1="{place(t):.2f}%" x2="{place(t):.2f}%" y1="0" y2="100%"/>'
        for t in (ticks if 0.0 in ticks else [*ticks, 0.0])
    )
    hidden = '<svg class="hidden" width="0" height="0" aria-hidden="true">'
    return f'{hidden}<defs><g id="{prefix}-grid">{lines}</g></defs></svg>'


def _row(reading: dict[str, Any], place: Any, scale: float, prefix: str) -> str:
    """One reading: margin band, interval and dot, and below it a bar for each null."""

    def at(t: float) -> str:
        return f"{place(t / scale):.2f}%"

    def width(low: float, high: float) -> str:
        return f"{max(place(high / scale) - place(low / scale), 0.4):.2f}%"

    height, parts = 22 + 6 * len(reading["nulls"]), []
    margin, low, high, middle = reading["margin"], reading["low"], reading["high"], _middle(reading)
    if margin:
        parts.append(f'<rect class="margin" x="{at(-margin)}" width="{width(-margin, margin)}" y="0" height="100%"/>')
    parts.append(f'<use href="#{prefix}-grid"/>')
    for index, null in enumerate(reading["nulls"]):
        if null["low"] is not None and null["high"] is not None:
            parts.append(
                f'<rect class="null {null["kind"]}" x="{at(null["low"])}" width="{width(null["low"], null["high"])}" '
                f'y="{19 + 6 * index}" height="4" rx="1"/>'
            )
    if low is not None and high is not None:
        parts.append(f'<line class="bar" x1="{at(low)}" x2="{at(high)}" y1="11" y2="11"/>')
    if reading["primary"]:
        parts += [
            f'<line class="seed" x1="{at(v)}" x2="{at(v)}" y1="3" y2="19"/>' for v in reading["values"] if v is not None
        ]
    if middle is None:
        parts.append(f'<text class="undefined" x="{at(0.0)}" y="15">undefined</text>')
    else:
        mark = "primary" if reading["primary"] else reading["kind"]
        parts.append(f'<use href="#dot-{mark}" x="{at(middle)}" y="11"/>')
    nulls = "; ".join(
        f"{null['name']} ({null['kind']}) {interval(null['low'], null['high'])}" for null in reading["nulls"]
    )
    says = f"T = {number(middle)}, 95 % interval {interval(low, high)}" + (f"; nulls: {nulls}" if nulls else "")
    return (
        f'<svg role="img" width="100%" height="{height}" style="min-height:{height}px">'
        f"<title>{html.escape(says)}</title>{''.join(parts)}</svg>"
    )
