"""A figure, drawn as SVG: one panel to stand in a page, the whole as a file, its legend, and what it shows in words.

A figure is data (see `read.py`); what its marks look like is in `marks.py`. We draw them ourselves: a page of forty
figures takes a tenth of a second, is redrawn after every seed, and its colours follow the screen from light to dark.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from pathlib import Path
from typing import Any

from npmoe.report import style
from npmoe.report.marks import Frame, draw, matrix
from npmoe.report.scales import Scale, scale_of

__all__ = ["describe", "figure_file", "legend", "panel_svg"]

WIDTH, HEIGHT = 432, 312  # of a panel; text of 12 units is near its size on phones and screens
LETTER = 6.3  # about how wide a letter of 12 units is


def variants(figure: dict[str, Any]) -> dict[tuple[str, str], int]:
    """(role, name) -> how many differently named marks of that role came before it in the figure."""
    order: dict[tuple[str, str], int] = {}
    count: dict[str, int] = {}
    for panel in figure["panels"]:
        for mark in panel["marks"]:
            key = (mark["role"], mark["name"])
            if mark["kind"] not in ("strip", "matrix", "vline") and key not in order:
                order[key] = count.get(mark["role"], 0)
                count[mark["role"]] = order[key] + 1
    return order


def legend(figure: dict[str, Any], panel: int) -> list[dict[str, str]]:
    """The legend of one panel for the page: name and a small SVG of each mark; a band replaces a line of its name."""
    order, seen, entries = variants(figure), set(), []
    for mark in figure["panels"][panel]["marks"]:
        key = (mark["role"], mark["name"], mark["kind"])
        if mark["kind"] in ("strip", "matrix") or not mark["name"] or key in seen:
            continue
        seen.add(key)
        variant = order.get((mark["role"], mark["name"]), 0)
        entries.append({"name": mark["name"], "key": style.legend_key(mark["kind"], mark["role"], variant)})
    return entries


def panel_svg(figure: dict[str, Any], panel: int, prefix: str) -> str:
    """One panel as SVG text to stand in HTML, with a name and a description to be read aloud; ids behind `prefix`."""
    shown = figure["panels"][panel]
    title = html.escape(shown["title"] or figure["title"])
    words = html.escape(describe(shown))
    return (
        f'<svg class="plot" role="img" aria-labelledby="{prefix}-t {prefix}-d" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<title id="{prefix}-t">{title}</title><desc id="{prefix}-d">{words}</desc>'
        f"{_panel(shown, variants(figure))}</svg>"
    )


def figure_file(figure: dict[str, Any]) -> bytes:
    """A whole figure as the bytes of an SVG file on white, with its title, its caption as description, and a legend."""
    panels, order = figure["panels"], variants(figure)
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    width = WIDTH * max(columns, 1)
    head = [
        _text(line, 8, 22 + 19 * i, "g-title") for i, line in enumerate(textwrap.wrap(figure["title"], int(width / 8)))
    ]
    top = 14 + 19 * len(head)
    parts = [*head]
    for index, panel in enumerate(panels):
        x, y = WIDTH * (index % columns), top + (HEIGHT + 24) * (index // columns)
        parts.append(_text(panel["title"], x + 8, y + 16, "g-name"))
        parts.append(f'<g transform="translate({x} {y + 22})">{_panel(panel, order)}</g>')
    bottom = top + (HEIGHT + 24) * math.ceil(len(panels) / max(columns, 1))
    keys, height = _legend_rows(figure, width, bottom)
    css = "".join(f"--r-{role}:{look.colour};" for role, look in style.ROLES.items())
    css += f"--ink:{style.INK};--muted:{style.MUTED};--grid:{style.GRID};"
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{html.escape(figure['title'])}</title><desc>{html.escape(figure['caption'])}</desc>"
        f"<style>svg{{{css}font-family:{style.FONTS}}}{_plot_css()}</style>"
        f'<rect width="100%" height="100%" fill="{style.PAPER}"/>{"".join(parts)}{keys}</svg>\n'
    )
    return text.encode()


def _plot_css() -> str:
    """The rules for what is drawn, which the page's style sheet has between two marks."""
    page = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    found = re.search(r"/\* drawn \*/(.*?)/\* end \*/", page, re.DOTALL)
    return re.sub(r"\s+", " ", found.group(1)).strip() if found else ""


def _legend_rows(figure: dict[str, Any], width: float, top: float) -> tuple[str, int]:
    """All legends of a figure in rows below its panels, and where they end."""
    entries = {e["name"] + e["key"]: e for i in range(len(figure["panels"])) for e in legend(figure, i)}
    x, y, parts = 8.0, top + 8, []
    for entry in entries.values():
        wide = 48 + LETTER * len(entry["name"])
        if x > 8 and x + wide > width:
            x, y = 8.0, y + 20
        parts.append(f'<g transform="translate({x:g} {y:g})">{entry["key"]}</g>')
        parts.append(_text(entry["name"], x + 42, y + 11, "g-label"))
        x += wide + 12
    return "".join(parts), round(y + 26 if entries else top + 6)


def _text(text: str, x: float, y: float, kind: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{more}>{html.escape(text)}</text>' if text else ""


# ---- one panel -------------------------------------------------------------------------------------------------------


def _panel(panel: dict[str, Any], order: dict[tuple[str, str], int]) -> str:
    tables = [mark for mark in panel["marks"] if mark["kind"] == "matrix"]
    if tables:
        return _with_matrix(panel, tables[0])
    columns = tuple(dict.fromkeys(mark["name"] for mark in panel["marks"] if mark["kind"] == "strip"))
    x = (
        _columns(len(columns))
        if columns
        else scale_of(panel["x"]["scale"], _along(panel, "x"), panel["x"].get("linear"))
    )
    y = scale_of(panel["y"]["scale"], _along(panel, "y"), panel["y"].get("linear"))
    wrapped = [textwrap.wrap(panel["x"]["label"], 62), textwrap.wrap(panel["y"]["label"], 42)]
    labels = [style.plain(t) for t in y.ticks]
    left = 14 * len(wrapped[1]) + LETTER * max(map(len, labels), default=0) + 12
    names, low = _column_names(columns)
    frame = Frame(left, 6, WIDTH - left - 8, HEIGHT - 6 - low - 15 * len(wrapped[0]) - 6, x, y)
    parts = [_grid(frame, labels, not columns)]
    parts += [
        draw(mark, style.look(mark["role"], order.get((mark["role"], mark["name"]), 0)), frame, columns)
        for mark in panel["marks"]
    ]
    parts += names(frame) if columns else []
    base = frame.top + frame.height
    parts += [
        _text(line, left + frame.width / 2, base + low + 11 + 15 * i, "g-label g-mid")
        for i, line in enumerate(wrapped[0])
    ]
    parts += _upright(wrapped[1], frame)
    if not any(mark["kind"] not in ("level", "vline") for mark in panel["marks"]):
        parts.append(_text("no data", left + frame.width / 2, frame.top + frame.height / 2, "g-label g-mid"))
    return "".join(parts)


def _columns(count: int) -> Scale:
    return Scale(-0.6, count - 0.4, lambda v: v, ())


def _along(panel: dict[str, Any], axis: str) -> list[float | None]:
    """Every number that a panel shows along one axis."""
    found: list[float | None] = []
    for mark in panel["marks"]:
        kind = mark["kind"]
        if axis == "x":
            found += mark.get("x", []) if isinstance(mark.get("x"), list) else [mark["x"]] if "x" in mark else []
            found += mark.get("edges", [])
        elif kind == "band":
            found += [value for row in mark["values"] for value in row]
        elif kind == "hist":
            found += [0, *mark["counts"]]
        else:
            for key in ("y", "values", "low", "high"):
                value = mark.get(key, [])
                found += value if isinstance(value, list) else [value]
    return found


def _column_names(columns: tuple[str, ...]) -> tuple[Any, float]:
    """A function that writes the strips' names under a frame, and the height that they take."""
    if not columns:
        return None, 18
    if len(columns) > 6:
        lines = [textwrap.wrap(name, 24) for name in columns]
        longest = max(len(line) for name in lines for line in name)
        low = min(12 + 0.60 * 5.6 * longest + 8 * max(map(len, lines)), 130)
    else:
        lines = [textwrap.wrap(name, max(8, 60 // len(columns))) for name in columns]
        low = 6 + 13 * max(map(len, lines))

    def write(frame: Frame) -> list[str]:
        parts = []
        for i, name in enumerate(lines):
            x = frame.left + frame.width * frame.x.place(i)
            y = frame.top + frame.height
            for j, line in enumerate(name):
                if len(columns) > 6:
                    at = x + 4 - 9 * (len(name) - 1) / 2 + 9 * j, y + 10 + 2 * j
                    turn = f' transform="rotate(-35 {at[0]:.1f} {at[1]:.1f})"'
                    parts.append(_text(line, *at, "g-tick g-end g-small", turn))
                else:
                    parts.append(_text(line, x, y + 14 + 13 * j, "g-tick g-mid"))
        return parts

    return write, low


def _grid(frame: Frame, labels: list[str], along_x: bool) -> str:
    """Lines at the ticks with their numbers, and the two axes."""
    path, parts = "", []
    bottom = frame.top + frame.height
    for tick, label in zip(frame.y.ticks, labels, strict=True):
        y = bottom - frame.height * frame.y.place(tick)
        path += f"M{frame.left:.1f} {y:.1f}h{frame.width:.1f}"
        parts.append(_text(label, frame.left - 6, y + 4, "g-tick g-end"))
    for tick in frame.x.ticks if along_x else ():
        x = frame.left + frame.width * frame.x.place(tick)
        path += f"M{x:.1f} {frame.top:.1f}v{frame.height:.1f}"
        parts.append(_text(style.plain(tick), x, bottom + 15, "g-tick g-mid"))
    axes = f"M{frame.left:.1f} {frame.top:.1f}v{frame.height:.1f}h{frame.width:.1f}"
    return f'<path class="g-net" d="{path}"/><path class="g-axes" d="{axes}"/>' + "".join(parts)


def _upright(lines: list[str], frame: Frame) -> list[str]:
    """The vertical axis's label, turned."""
    middle = frame.top + frame.height / 2
    return [
        _text(line, 11 + 14 * i, middle, "g-label g-mid", f' transform="rotate(-90 {11 + 14 * i} {middle:.1f})"')
        for i, line in enumerate(lines)
    ]


def _with_matrix(panel: dict[str, Any], mark: dict[str, Any]) -> str:
    wide = max(len(str(label)) for label in mark["rows"]) if mark["rows"] else 1
    left = 20 + LETTER * wide + 6
    frame = Frame(left, 8, WIDTH - left - 4, HEIGHT - 52, _columns(1), _columns(1))
    name = _text(mark["name"], left + frame.width - 48, frame.top + frame.height + 14, "g-tick")
    label = _text(panel["x"]["label"], left + (frame.width - 62) / 2, HEIGHT - 10, "g-label g-mid")
    return (
        matrix(mark, left, frame.top, frame.width, frame.height)
        + name
        + label
        + "".join(_upright([panel["y"]["label"]], frame))
    )


# ---- in words --------------------------------------------------------------------------------------------------------


def describe(panel: dict[str, Any]) -> str:
    """What a panel shows, in sentences, for those who hear the page: axes, then each mark with the numbers it spans."""
    axes = "; ".join(
        f"{'horizontal' if name == 'x' else 'vertical'} axis: {panel[name]['label']}"
        + (f" ({panel[name]['scale']} scale)" if panel[name]["scale"] != "linear" else "")
        for name in ("x", "y")
        if panel[name]["label"]
    )
    parts = [axes[:1].upper() + axes[1:] if axes else "", *(_seen(mark) for mark in panel["marks"])]
    return ". ".join(part.rstrip(".") for part in parts if part) + "."


def _seen(mark: dict[str, Any]) -> str:
    name, kind = mark["name"] or mark["kind"], mark["kind"]
    if kind in ("level", "vline"):
        at = mark["y"] if kind == "level" else mark["x"]
        return f"A line at {style.number(at)}: {name}"
    if kind in ("band", "line"):
        rows = mark["values"] if kind == "band" else [mark["y"]]
        means = [[v for v in column if v is not None] for column in zip(*rows, strict=True)]
        ends = [math.fsum(m) / len(m) for m in means if m]
        return f"{name}: from {style.number(ends[0])} to {style.number(ends[-1])}" if ends else f"{name}: no data"
    if kind == "strip":
        known = [v for v in mark["values"] if v is not None]
        return (
            f"{name} ({mark['role']}): {style.number(math.fsum(known) / len(known))}" if known else f"{name}: no data"
        )
    if kind == "points":
        known = [v for v in mark["y"] if v is not None]
        return (
            f"{name}: {len(known)} points from {style.number(min(known))} to {style.number(max(known))}"
            if known
            else ""
        )
    return {"matrix": f"A table of {name}", "hist": f"Histogram of {name}", "ribbon": f"A shaded range: {name}"}[kind]
