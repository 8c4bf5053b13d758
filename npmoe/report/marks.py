"""The marks of a figure's panel as SVG: bands over seeds, null ribbons, strips, matrices, histograms.

A mark is data (see `read.py`). Colours are CSS variables (--r-ROLE), which page and file define for light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from npmoe.report import style
from npmoe.report.scales import Scale

__all__ = ["Frame", "draw", "matrix"]

Values = Sequence[float | None]


class Frame(NamedTuple):
    """The rectangle of a panel that holds its marks, in units of the drawing, and its scales."""

    left: float
    top: float
    width: float
    height: float
    x: Scale
    y: Scale

    def at(self, x: float | None, y: float | None) -> tuple[float, float] | None:
        """Where a point stands; None for one without a place."""
        px, py = self.left + self.width * self.x.place(x), self.top + self.height * (1 - self.y.place(y))
        return None if math.isnan(px) or math.isnan(py) else (px, py)


def draw(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    """One mark in a frame; `columns` are the names of the strips' columns."""
    return f'<g style="--c:var(--r-{mark["role"]})">{_DRAW[mark["kind"]](mark, look, frame, columns)}</g>'


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A broken line through points, with gaps where there is none."""
    text, pen = [], False
    for point in points:
        if point is not None:
            text.append(f"{'L' if pen else 'M'}{_n(point[0])} {_n(point[1])}")
        pen = point is not None
    return "".join(text)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _stroke(path: str, look: style.Look, width: float = 2) -> str:
    dashes = f' stroke-dasharray="{" ".join(f"{1.3 * d:g}" for d in look.dashes)}"' if look.dashes else ""
    return f'<path class="g-line" stroke-width="{width:g}"{dashes} d="{path}"/>' if path else ""


def _dots(points: Sequence[tuple[float, float] | None], look: style.Look, size: float = 1.0) -> str:
    """The marker at every point, as one path."""
    start, rest = MARKERS[look.marker or "o"]
    path = "".join(f"M{_n(p[0] + start[0])} {_n(p[1] + start[1])}{rest}" for p in points if p is not None)
    kind = "g-thin" if look.marker in ("x", "+") else "g-dots"
    return f'<path class="{kind}" d="{path}"/>' if path else ""


#: Each marker as a path that goes on from its first point, about 7 units wide; see `style.MARKER_PATHS`.
MARKERS: dict[str, tuple[tuple[float, float], str]] = {
    "o": ((-3.1, 0), "a3.1 3.1 0 1 0 6.2 0a3.1 3.1 0 1 0-6.2 0z"),
    "s": ((-2.9, -2.9), "h5.8v5.8h-5.8z"),
    "^": ((0, -3.8), "l3.6 6.6h-7.2z"),
    "v": ((0, 3.8), "l3.6-6.6h-7.2z"),
    "D": ((0, -3.9), "l3.9 3.9l-3.9 3.9l-3.9-3.9z"),
    "p": ((0, -3.7), "l3.5 2.5l-1.4 4.2h-4.2l-1.4-4.2z"),
    "h": ((0, -3.8), "l3.3 1.9v3.8l-3.3 1.9l-3.3-1.9v-3.8z"),
    "*": ((0, -5), "l1.3 3.4h3.6l-2.8 2.3l.9 3.5l-3-2l-3 2l.9-3.5l-2.8-2.3h3.6z"),
    "x": ((-2.8, -2.8), "l5.6 5.6m-5.6 0l5.6-5.6"),
    "+": ((-3.6, 0), "h7.2m-3.6-3.6v7.2"),
}


def _band(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    """The mean over seeds as a line, and from the least seed to the greatest as a light band; values (seeds, m)."""
    seeds = len(mark["values"])
    rows = [[v for v in column if _has_place(v, frame.y)] for column in zip(*mark["values"], strict=True)]
    low, high = ([end(row) if row else None for row in rows] for end in (min, max))
    mean = [math.fsum(row) / len(row) if row else None for row in rows]
    return (_area(mark["x"], low, high, frame) if seeds > 1 else "") + _with_dots(mark["x"], mean, look, frame)


def _has_place(value: float | None, scale: Scale) -> bool:
    return value is not None and not math.isnan(scale.place(value))


def _with_dots(x: Values, y: Values, look: style.Look, frame: Frame) -> str:
    points = [frame.at(*point) for point in zip(x, y, strict=True)]
    every = max(1, len(points) // 8)
    return _stroke(_path(points), look) + (_dots(points[every // 2 :: every], look) if look.marker else "")


def _line(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    return _with_dots(mark["x"], mark["y"], look, frame)


def _area(x: Values, low: Values, high: Values, frame: Frame) -> str:
    """What lies between two curves, in pieces where there are gaps."""
    path = ""
    for piece in _pieces([(frame.at(a, b), frame.at(a, c)) for a, b, c in zip(x, low, high, strict=True)]):
        path += _path([*(top for _, top in piece), *(bottom for bottom, _ in reversed(piece))]) + "z"
    return f'<path class="g-area" d="{path}"/>' if path else ""


def _pieces(pairs: Sequence[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    piece: list[tuple[Any, Any]] = []
    for pair in [*pairs, (None, None)]:
        if None in pair:
            if piece:
                yield piece
            piece = []
        else:
            piece.append(pair)


def _points(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    return _dots([frame.at(*point) for point in zip(mark["x"], mark["y"], strict=True)], look)


def _ribbon(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    edge = style.Look(look.colour, (3, 2), "")
    edges = ([frame.at(*point) for point in zip(mark["x"], mark[end], strict=True)] for end in ("low", "high"))
    lines = "".join(_stroke(_path(points), edge, 1) for points in edges)
    return _area(mark["x"], mark["low"], mark["high"], frame) + lines


def _level(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    height = frame.top + frame.height * (1 - frame.y.place(mark["y"]))
    if math.isnan(height):
        return ""
    path = f"M{_n(frame.left)} {_n(height)}h{_n(frame.width)}"
    return _stroke(path, look if look.dashes else look._replace(dashes=(6, 2)), 1.7)


def _vline(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    across = frame.left + frame.width * frame.x.place(mark["x"])
    path = "" if math.isnan(across) else f"M{_n(across)} {_n(frame.top)}v{_n(frame.height)}"
    return _stroke(path, look._replace(dashes=(2, 2)), 1.5)


def _hist(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    """Counts between edges as a filled outline."""
    edges, counts = mark["edges"], [count or 0 for count in mark["counts"]]
    floor = max(frame.y.low, 0)
    corners = [(edges[0], floor)]
    for i, count in enumerate(counts):
        corners += [(edges[i], max(count, floor)), (edges[i + 1], max(count, floor))]
    path = _path([frame.at(*corner) for corner in [*corners, (edges[-1], floor)]])
    return f'<path class="g-area" d="{path}z"/>' + _stroke(path, look, 1.6)


def _strip(mark: dict[str, Any], look: style.Look, frame: Frame, columns: Sequence[str]) -> str:
    """Seeds as dots in a column, spread sideways in the order of the seeds, and their mean as a bar."""
    column, values = columns.index(mark["name"]), mark["values"]
    spread = np.linspace(-0.16, 0.16, len(values)).tolist() if len(values) > 1 else [0.0] * len(values)
    dots = [frame.at(column + aside, value) for aside, value in zip(spread, values, strict=True)]
    known = [value for value in values if _has_place(value, frame.y)]
    mean = math.fsum(known) / len(known) if known else None
    bar = _path([frame.at(column - 0.28, mean), frame.at(column + 0.28, mean)])
    return _dots(dots, look) + _stroke(bar, look._replace(dashes=()), 2)


_DRAW = {
    "band": _band,
    "line": _line,
    "points": _points,
    "ribbon": _ribbon,
    "level": _level,
    "vline": _vline,
    "hist": _hist,
    "strip": _strip,
}


# ---- matrices --------------------------------------------------------------------------------------------------------


def matrix(mark: dict[str, Any], left: float, top: float, width: float, height: float) -> str:
    """A heat map that diverges from its centre, (rows, columns), with a colour bar; small ones with their numbers."""
    values, center = np.array(mark["values"], dtype=float), mark["center"]
    known = np.abs(values[~np.isnan(values)] - center)
    limit = mark["limit"] or float(known.max(initial=0)) or 1.0
    rows, columns = values.shape
    w, h = (width - 62) / columns, height / rows
    parts = []
    for (i, j), value in np.ndenumerate(values):
        x, y = left + j * w, top + i * h
        share = 0.0 if math.isnan(value) else (value - center) / limit
        fill = "var(--grid)" if math.isnan(value) else style.diverging(share)
        parts.append(f'<rect x="{_n(x)}" y="{_n(y)}" width="{w:.2f}" height="{h:.2f}" fill="{fill}"/>')
        if rows <= 10 and columns <= 10:
            decimals = min(max(0, 1 - math.floor(math.log10(limit))), 4)
            text = "–" if math.isnan(value) else f"{value:.{decimals}f}".replace("-", "−")
            # the cells are the same in light and dark: so is their ink, but for cells without a value
            ink = "var(--muted)" if math.isnan(value) else "#fdfdfd" if abs(share) > 0.75 else "#111317"
            parts.append(f'<text class="g-cell" x="{_n(x + w / 2)}" y="{_n(y + h / 2 + 3)}" fill="{ink}">{text}</text>')
    for labels, along in ((mark["columns"], True), (mark["rows"], False)):
        step = math.ceil(len(labels) / 16)
        for i in range(0, len(labels), step):
            text = html.escape(str(labels[i]))
            if along:
                at = f'x="{_n(left + (i + 0.5) * w)}" y="{_n(top + height + 14)}"'
                parts.append(f'<text class="g-tick g-mid" {at}>{text}</text>')
            else:
                parts.append(
                    f'<text class="g-tick g-end" x="{_n(left - 5)}" y="{_n(top + (i + 0.5) * h + 4)}">{text}</text>'
                )
    return "".join(parts) + _bar(
        center, limit, left + width - 48, top, height, bool((known > limit * (1 + 1e-9)).any())
    )


def _bar(center: float, limit: float, left: float, top: float, height: float, over: bool) -> str:
    """The colours of a matrix beside their numbers; `over`: some are beyond the ends."""
    steps = 24
    parts = [
        f'<rect x="{_n(left)}" y="{_n(top + height * i / steps)}" width="11" height="{height / steps + 0.4:.2f}" '
        f'fill="{style.diverging(1 - 2 * (i + 0.5) / steps)}"/>'
        for i in range(steps)
    ]
    for share in (1, 0.5, 0, -0.5, -1):
        beyond = ("≥ " if share > 0 else "≤ ") if over and abs(share) == 1 else ""
        text = beyond + style.plain(float(f"{center + share * limit:.2g}"))
        parts.append(
            f'<text class="g-tick" x="{_n(left + 15)}" y="{_n(top + height * (1 - share) / 2 + 4)}">{text}</text>'
        )
    return "".join(parts)
