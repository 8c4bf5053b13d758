"""One look for every mark: a role has a colour, a line and a marker, so that it reads in grey, in dark and on paper."""

from __future__ import annotations

import html
import math
import re
from typing import NamedTuple


class Look(NamedTuple):
    """How a role is drawn: a colour on white, dashes in points (none: solid), and a marker ("" for none)."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


# Okabe and Ito's hues, darkened until each has a contrast of 3 to 1 on white. page.css names each again (--r-ROLE) for
# dark screens: inlined figures have these very strings replaced by the variable, so no two may be equal.
ROLES = {
    "dense": Look("#c44e00", (), "o"),
    "wide": Look("#9a6a00", (6, 2), "s"),
    "top2": Look("#0068a8", (), "^"),
    "soft": Look("#007f5c", (7, 2, 1.5, 2), "v"),
    "experts": Look("#a13d7b", (), "D"),
    "null": Look("#6b7079", (3, 2), "x"),
    "control": Look("#4f6274", (1.5, 1.5), "+"),
    "untrained": Look("#85654f", (2, 1.5), "h"),
    "loss": Look("#3a3f47", (4, 1.5), ""),
    "other": Look("#137a86", (), "p"),
    "paper": Look("#b3003f", (9, 2, 1.5, 2, 1.5, 2), "*"),
}
# A second and third mark of one role in one figure keep the colour and change dashes and marker.
MORE_DASHES: tuple[tuple[float, ...], ...] = ((5, 1.5), (1.5, 1.2), (8, 2, 2, 2), (3, 1, 1, 1), (10, 3))
MORE_MARKERS = ("s", "^", "D", "v", "p", "h", "o")

INK, MUTED, GRID, PAPER = "#1b1e23", "#59606a", "#dcdfe3", "#fefefe"
DIVERGING = ("#1a62a3", "#8fb8d8", "#f4f3f0", "#e9a981", "#b8480b")  # below, at and above the centre of a matrix

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Noto Sans','DejaVu Sans',sans-serif"

# The same markers for legends in HTML, about the origin, some 9 units wide.
MARKER_PATHS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.6L4.3 3.4H-4.3z",
    "v": "M0 4.6L4.3-3.4H-4.3z",
    "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "p": "M0-4.5L4.3-1.4L2.6 3.6H-2.6L-4.3-1.4z",
    "h": "M0-4.5L3.9-2.2V2.2L0 4.5L-3.9 2.2V-2.2z",
    "*": "M0-6L1.5-1.9L5.7-1.9L2.4 .8L3.5 4.9L0 2.4L-3.5 4.9L-2.4 .8L-5.7-1.9L-1.5-1.9z",
    "x": "M-3.4-3.4L3.4 3.4M-3.4 3.4L3.4-3.4",
    "+": "M-4.4 0H4.4M0-4.4V4.4",
    "": "",
}


def look(role: str, variant: int = 0) -> Look:
    """The look of the `variant`-th differently named mark of a role in a figure."""
    first = ROLES[role]
    if variant == 0:
        return first
    others = [marker for marker in MORE_MARKERS if marker != first.marker]
    return Look(first.colour, MORE_DASHES[(variant - 1) % len(MORE_DASHES)], others[(variant - 1) % len(others)])


def number(value: float | None, digits: int = 3) -> str:
    """A number as people write it: three significant digits, a true minus, powers of ten in superscript."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        # 0.30 beside 0.31: trailing zeros are kept, as digits that were measured
        decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:.{decimals}f}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = {"1": power, "-1": "-" + power}.get(mantissa, f"{mantissa}·{power}")
    return text.replace("-", "−")


def plain(value: float) -> str:
    """A tick's label: as `number`, without trailing zeros."""
    if value == 0 or not math.isfinite(value):
        return number(value)
    if 1e-4 <= abs(value) < 1e5:
        return f"{value:.10g}".replace("-", "−") if abs(value) >= 1e-3 else f"{value:.4f}".rstrip("0").replace("-", "−")
    return number(value, 3)


def interval(low: float | None, high: float | None, spare: int = 1) -> str:
    """Two ends in brackets, to as many decimals as their distance is known (`spare` more than its first digit)."""
    if low is None and high is None:
        return "–"
    decimals = _decimals(low, high, spare)
    return f"[{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def estimate(middle: float | None, low: float | None, high: float | None) -> str:
    """A number and its interval, all to the same decimals."""
    if middle is None or low is None or high is None:
        return " ".join(part for part in (number(middle), interval(low, high)) if part != "–") or "–"
    return f"{_fixed(middle, _decimals(low, high, 1))} {interval(low, high)}"


def diverging(share: float) -> str:
    """The colour of a cell that lies at a share of the limit from the centre, -1 to 1; beyond, that of the end."""
    at = 2 + 2 * min(max(share, -1.0), 1.0)
    i = min(int(at), 3)
    low, high = (tuple(int(DIVERGING[j][k : k + 2], 16) for k in (1, 3, 5)) for j in (i, i + 1))
    return "#" + "".join(f"{round(a + (at - i) * (b - a)):02x}" for a, b in zip(low, high, strict=True))


def minus(text: str) -> str:
    """Text with hyphens before digits turned into minus signs: -0.3 but not SC-3."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _decimals(low: float | None, high: float | None, spare: int) -> int | None:
    """Decimals for an interval, or None where powers of ten are plainer."""
    if low is None or high is None or not math.isfinite(low - high):
        return None
    size = high - low or max(abs(low), abs(high)) / 10
    if size == 0:
        return 0
    decimals = spare - math.floor(math.log10(size if spare else size / 3))
    return max(decimals, 0) if decimals <= 6 else None


def _fixed(value: float | None, decimals: int | None) -> str:
    if value is None or decimals is None or not math.isfinite(value):
        return number(value)
    text = f"{value:.{decimals}f}"
    return (
        "0" if not text.strip("-0.") and decimals == 0 else text.lstrip("-") if not text.strip("-0.") else text
    ).replace("-", "−")


def legend_key(kind: str, role: str, variant: int) -> str:
    """A small SVG that shows a mark as it looks in the figure, for the legends of the page."""
    drawn = look(role, variant)
    dash = f' stroke-dasharray="{" ".join(f"{d:g}" for d in drawn.dashes)}"' if drawn.dashes else ""
    line = f'<path d="M1 7H35" class="key-line"{dash}/>'
    hollow = " key-open" if drawn.marker in ("x", "+") else ""
    shape = f'<path d="{MARKER_PATHS[drawn.marker or "o"]}" transform="translate(18 7)" class="key-dot{hollow}"/>'
    dot = shape if drawn.marker else ""
    block = '<path d="M1 1H35V13H1z" class="key-fill"/>'
    parts = {
        "band": block + line + dot,
        "line": line + dot,
        "points": shape,
        "ribbon": block + '<path d="M1 1H35M1 13H35" class="key-line" stroke-dasharray="3 2"/>',
        "level": line if drawn.dashes else line.replace("/>", ' stroke-dasharray="6 2"/>'),
        "vline": '<path d="M18 0V14" class="key-line" stroke-dasharray="2 2"/>',
        "hist": '<path d="M3 14V7H13V2H23V9H33V14z" class="key-fill key-edge"/>',
    }
    return (
        f'<svg class="key" style="--c:var(--r-{html.escape(role)})" width="36" height="14" viewBox="0 0 36 14" '
        f'aria-hidden="true">{parts[kind]}</svg>'
    )
