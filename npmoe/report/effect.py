"""The small picture beside a finding: what was measured a seed at a time, in its own unit, next to the null models."""

from __future__ import annotations

import html
import math
import textwrap
from typing import Any

from npmoe.report.scales import scale_of
from npmoe.report.style import number, plain

__all__ = ["effect_svg", "statements_svg"]

WIDTH, LABEL, ROW = 430, 168, 30


def effect_svg(effect: dict[str, Any], prefix: str) -> str:
    """Rows of dots, one a seed: ours, then each null.

    The claim holds in what is shaded, and its opposite beyond the dashed line.
    """
    rows = [("measured", "ours", effect["values"])]
    rows += [(null["name"], null["kind"], null["values"]) for null in effect["nulls"]]
    ends = [effect["none"], effect["claimed"], effect["opposite"]]
    scale = scale_of("linear", [*ends, *(value for _, _, values in rows for value in values)])
    top, height = 4, ROW * len(rows)

    def at(value: float) -> float:
        return LABEL + (WIDTH - LABEL - 8) * scale.place(value)

    edge = at(scale.high if effect["claimed"] >= effect["none"] else scale.low)
    left, right = sorted((at(effect["claimed"]), edge))
    parts = [f'<rect class="e-claim" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{height}"/>']
    parts.append(f'<path class="e-zero" d="M{at(effect["none"]):.1f} {top}v{height}"/>')
    parts.append(f'<path class="e-opposite" d="M{at(effect["opposite"]):.1f} {top}v{height}"/>')
    for i, (name, kind, values) in enumerate(rows):
        y = top + ROW * (i + 0.5)
        lines = textwrap.wrap(name, 27)[:2]
        for j, line in enumerate(lines):
            shift = 4 - 5.5 * (len(lines) - 1) + 11 * j
            parts.append(f'<text class="e-{kind}" x="0" y="{y + shift:.1f}">{html.escape(line)}</text>')
        parts += [f'<circle class="e-{kind}" cx="{at(value):.1f}" cy="{y:.1f}" r="4"/>' for value in values]
        if values:
            mean = math.fsum(values) / len(values)
            parts.append(f'<path class="e-{kind}" d="M{at(mean):.1f} {y - 8:.1f}v16"/>')
    bottom = top + height
    for tick in scale.ticks[:: max(1, len(scale.ticks) // 5)]:
        parts.append(f'<text class="e-tick" x="{at(tick):.1f}" y="{bottom + 15}">{plain(tick)}</text>')
    parts.append(f'<path class="e-axis" d="M{LABEL} {bottom}H{WIDTH - 8}"/>')
    label = textwrap.wrap(effect["what"], 66)
    for i, line in enumerate(label):
        parts.append(f'<text class="e-what" x="{WIDTH - 8}" y="{bottom + 31 + 13 * i}">{html.escape(line)}</text>')
    says = f"{effect['what']}: measured {number(effect['mean'])}" + "".join(
        f"; {name} {number(math.fsum(values) / len(values))}" for name, _, values in rows[1:] if values
    )
    return _whole("".join(parts), bottom + 22 + 13 * len(label), says, prefix)


def statements_svg(claim: dict[str, Any], prefix: str) -> str:
    """A bar for each exact statement that decides: the share of cases that violate it."""
    decide = [s for s in claim["statements"] if not s["beside"]][:3]
    parts = []
    for i, s in enumerate(decide):
        y, share = 4 + 44 * i, s["violations"] / s["checked"] if s["checked"] else 0.0
        words = f"{s['name']}: {s['violations']:,} violations in {s['checked']:,} cases"
        parts.append(f'<text class="e-ours" x="0" y="{y + 12}">{html.escape(words)}</text>')
        parts.append(f'<rect class="e-rest" x="0" y="{y + 19}" width="{WIDTH - 8}" height="12"/>')
        parts.append(f'<rect class="e-bad" x="0" y="{y + 19}" width="{(WIDTH - 8) * share:.1f}" height="12"/>')
    says = "; ".join(f"{s['name']}: {s['violations']:,} of {s['checked']:,} cases violate it" for s in decide)
    return _whole("".join(parts), 8 + 44 * len(decide), says, prefix)


def _whole(inside: str, height: float, says: str, prefix: str) -> str:
    return (
        f'<svg class="effect" role="img" aria-labelledby="{prefix}-e" viewBox="0 0 {WIDTH} {height:.0f}">'
        f'<title id="{prefix}-e">{html.escape(says)}</title>{inside}</svg>'
    )
