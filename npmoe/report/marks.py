"""The marks of a figure's panel, drawn: bands over seeds, null ribbons, strips, matrices, histograms.

A mark is data (see `read.py`); every function here takes that data and draws it on matplotlib's object-oriented API.
Matplotlib is imported inside the functions that draw.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np

from npmoe.report import style

MANY = 1500  # more points than this are drawn as pixels, or a page of megabytes comes out


def draw_panel(ax: Any, panel: dict[str, Any], order: dict[tuple[str, str], int]) -> dict[tuple[str, str], Any]:
    """Draw every mark of a panel on an Axes; returns the legend's handles by (role, name)."""
    ax.set_title("\n".join(textwrap.wrap(panel["title"], 56)))
    matrices = [mark for mark in panel["marks"] if mark["kind"] == "matrix"]
    if matrices:
        _matrix(ax, matrices[0], panel)
        return {}
    handles: dict[tuple[str, str], Any] = {}
    for mark in panel["marks"]:
        look = style.look(mark["role"], order.get((mark["role"], mark["name"]), 0))
        if mark["kind"] == "strip":
            continue
        handle = DRAW[mark["kind"]](ax, mark, look, panel)
        handles.setdefault((mark["role"], mark["name"]), handle)
    _strips(ax, [mark for mark in panel["marks"] if mark["kind"] == "strip"], panel)
    for name in ("x", "y"):
        _scale(ax, name, panel)
    if not any(mark["kind"] not in ("level", "vline") for mark in panel["marks"]):
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color=style.MUTED)
    return handles


def _floats(values: Any) -> np.ndarray:
    """Numbers with null as NaN."""
    return np.array(values, dtype=float)


def _positive(values: np.ndarray, axis: dict[str, Any]) -> np.ndarray:
    """On a log axis what is not positive has no place: NaN."""
    return np.where(values > 0, values, np.nan) if axis["scale"] == "log" else values


def _line(ax: Any, x: np.ndarray, y: np.ndarray, look: style.Look, label: str) -> Any:
    every = max(1, len(x) // 8)
    pattern: Any = (0, look.dashes) if look.dashes else "solid"
    (line,) = ax.plot(
        x,
        y,
        color=look.colour,
        linestyle=pattern,
        marker=look.marker or None,
        markevery=(every // 2, every),
        label=label,
    )
    return line


def _band(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    """The mean over seeds as a line, and from the least seed to the greatest as a light band; values (seeds, m)."""
    x, values = _positive(_floats(mark["x"]), panel["x"]), _positive(_floats(mark["values"]), panel["y"])
    some = np.isfinite(values).any(axis=0)
    mean, low, high = (np.full(len(x), np.nan) for _ in range(3))
    known = np.ma.masked_invalid(values[:, some])
    if some.any():
        mean[some], low[some], high[some] = known.mean(axis=0), known.min(axis=0), known.max(axis=0)
    if len(values) > 1:
        ax.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)
    return _line(ax, x, mean, look, mark["name"])


def _plain_line(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    x, y = _positive(_floats(mark["x"]), panel["x"]), _positive(_floats(mark["y"]), panel["y"])
    return _line(ax, x, y, look, mark["name"])


def _points(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    x, y = _positive(_floats(mark["x"]), panel["x"]), _positive(_floats(mark["y"]), panel["y"])
    size = 60.0 if look.marker == "*" else 20.0
    thin = look.marker in ("x", "+")
    return ax.scatter(
        x,
        y,
        s=size,
        color=look.colour,
        marker=look.marker or "o",
        alpha=0.95 if mark["role"] == "paper" else 0.75,
        linewidths=1.1 if thin else 0,
        label=mark["name"],
        rasterized=len(x) > MANY,
        zorder=3,
    )


def _ribbon(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    x = _positive(_floats(mark["x"]), panel["x"])
    low, high = (_positive(_floats(mark[end]), panel["y"]) for end in ("low", "high"))
    for edge in (low, high):
        ax.plot(x, edge, color=look.colour, linewidth=0.8, linestyle=(0, (3, 2)))
    return ax.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0, label=mark["name"])


def _level(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    return ax.axhline(mark["y"], color=look.colour, linestyle=(0, look.dashes or (6, 2)), linewidth=1.4)


def _vline(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    return ax.axvline(mark["x"], color=look.colour, linestyle=(0, (2, 2)), linewidth=1.2)


def _hist(ax: Any, mark: dict[str, Any], look: style.Look, panel: dict[str, Any]) -> Any:
    """Counts between edges as a filled outline."""
    edges, counts = _floats(mark["edges"]), np.nan_to_num(_floats(mark["counts"]))
    ax.stairs(counts, edges, color=look.colour, fill=True, alpha=0.18, linewidth=0)
    return ax.stairs(
        counts, edges, color=look.colour, linewidth=1.4, linestyle=(0, look.dashes) if look.dashes else "-"
    )


DRAW = {
    "band": _band,
    "line": _plain_line,
    "points": _points,
    "ribbon": _ribbon,
    "level": _level,
    "vline": _vline,
    "hist": _hist,
}


def _strips(ax: Any, marks: list[dict[str, Any]], panel: dict[str, Any]) -> None:
    """Seeds as dots, one column for each name, spread sideways in the order of the seeds."""
    if not marks:
        return
    names = list(dict.fromkeys(mark["name"] for mark in marks))
    for mark in marks:
        look, values = style.look(mark["role"]), _positive(_floats(mark["values"]), panel["y"])
        column = names.index(mark["name"])
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
        width = 1.1 if look.marker in ("x", "+") else 0
        ax.scatter(
            column + spread, values, s=24, color=look.colour, marker=look.marker or "o", linewidths=width, alpha=0.85
        )
        known = values[np.isfinite(values)]
        if len(known):
            ax.plot([column - 0.28, column + 0.28], [known.mean()] * 2, color=look.colour, linewidth=1.6)
    many = len(names) > 6
    wrap = 26 if many else max(8, 60 // len(names))
    labels = ["\n".join(textwrap.wrap(name, wrap)) for name in names]
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": 7} if many else {}
    ax.set_xticks(range(len(names)), labels, **turned)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(False, axis="x")
    ax.tick_params(axis="x", length=0)


def _scale(ax: Any, name: str, panel: dict[str, Any]) -> None:
    """The label and the scale of an axis, with ticks written as plain numbers."""
    from matplotlib import ticker

    axis, along = panel[name], ax.xaxis if name == "x" else ax.yaxis
    along.set_label_text("\n".join(textwrap.wrap(axis["label"], 58 if name == "x" else 40)))
    if name == "x" and any(mark["kind"] == "strip" for mark in panel["marks"]):
        return
    limits = along.get_data_interval()
    if axis["scale"] == "log" and np.all(np.isfinite(limits)) and limits[1] > 0:
        (ax.set_xscale if name == "x" else ax.set_yscale)("log")
        least = along.get_minpos()
        decades = math.log10(limits[1] / least) if least > 0 else 0
        along.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1,), numticks=9))
        along.set_minor_formatter(ticker.NullFormatter())
        if decades < 0.7:
            along.set_major_locator(ticker.MaxNLocator(5))
            along.set_minor_locator(ticker.NullLocator())
    elif axis["scale"] == "symlog":
        sizes = np.abs(limits[np.isfinite(limits)])
        top = sizes.max() if sizes.size and sizes.max() > 0 else 1.0
        linear = axis.get("linear") or 10.0 ** (math.floor(math.log10(top)) - 2)
        (ax.set_xscale if name == "x" else ax.set_yscale)("symlog", linthresh=linear)
    else:
        along.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    along.set_major_formatter(ticker.FuncFormatter(lambda value, _: style.plain(value)))


def _matrix(ax: Any, mark: dict[str, Any], panel: dict[str, Any]) -> None:
    """A heat map that diverges from its centre, (rows, columns), with a colour bar; small ones with their numbers."""
    from matplotlib import ticker
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    values, center = np.ma.masked_invalid(_floats(mark["values"])), mark["center"]
    spread = float(np.abs(values - center).max()) if values.count() else 1.0
    limit = mark["limit"] or spread or 1.0
    colours = LinearSegmentedColormap.from_list("diverging", style.DIVERGING).with_extremes(bad=style.GRID)
    norm = Normalize(center - limit, center + limit)
    rows, columns = values.shape
    if values.size <= 900:
        gap = 0.6 if values.size <= 300 else 0.0
        shown = ax.pcolormesh(values, cmap=colours, norm=norm, edgecolors=style.PAPER, linewidth=gap)
        ax.invert_yaxis()
    else:
        extent = (0, columns, rows, 0)
        shown = ax.imshow(values, cmap=colours, norm=norm, extent=extent, aspect="auto", interpolation="nearest")
    if rows <= 10 and columns <= 10:
        decimals = min(max(0, 1 - math.floor(math.log10(limit))), 4)
        for (i, j), value in np.ndenumerate(values.filled(np.nan)):
            deep = abs(value - center) > 0.75 * limit
            colour = "#fdfdfd" if deep else "#111317"  # the cells are the same in light and dark: so is their ink
            text = "–" if math.isnan(value) else f"{value:.{decimals}f}".replace("-", "−")
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=6.3, color=colour)
    for set_ticks, labels in ((ax.set_xticks, mark["columns"]), (ax.set_yticks, mark["rows"])):
        step = math.ceil(len(labels) / 16)
        set_ticks(np.arange(0, len(labels), step) + 0.5, [str(label) for label in labels[::step]])
    if len(mark["columns"]) <= 16 and max(len(str(label)) for label in mark["columns"]) * columns > 48:
        ax.tick_params(axis="x", rotation=40)
    over = bool((np.abs(values - center) > limit * (1 + 1e-9)).any())
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.92, pad=0.02, extend="both" if over else "neither")
    bar.ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: style.plain(value)))
    bar.outline.set_visible(False)
    if mark["name"]:
        bar.set_label(mark["name"])
    ax.set(xlabel=panel["x"]["label"], ylabel=panel["y"]["label"])
    ax.grid(False)
    ax.tick_params(length=0)
