"""A figure, drawn: one panel to be inlined in a page, the whole as SVG and PNG, and its legend.

A figure is data (see `read.py`); what its marks look like is in `marks.py`. Matplotlib is imported inside the functions
that draw.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from npmoe.report import style, svg
from npmoe.report.marks import draw_panel

PANEL = (
    4.5,
    3.3,
)  # inches; the text of an inlined panel is 9 points at 432 pixels, near its size on phones and screens


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
    """One panel as SVG text to be inlined in HTML: transparent, colours as CSS variables, every id behind `prefix`."""
    with _canvas(f"{prefix}-{panel}"):
        from matplotlib.figure import Figure

        drawn = Figure(figsize=PANEL, layout="constrained")
        ax = drawn.add_subplot()
        draw_panel(ax, figure["panels"][panel], variants(figure))
        ax.set_title("")  # the page says it in its own type
        text = _svg(drawn, transparent=True)
    title = figure["panels"][panel]["title"] or figure["title"]
    return svg.inline(text, prefix, title, _describe(figure["panels"][panel], figure["caption"]))


def figure_files(figure: dict[str, Any], name: str) -> tuple[bytes, bytes]:
    """A whole figure as the bytes of an SVG and of a PNG, on white, with its title and a legend."""
    with _canvas(name):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        panels = figure["panels"]
        columns = len(panels) if len(panels) <= 3 else (2 if len(panels) == 4 else 3)
        rows = math.ceil(len(panels) / columns)
        size = (PANEL[0] * columns, PANEL[1] * rows + 0.9)
        drawn = Figure(figsize=size, layout="constrained", facecolor=style.PAPER)
        handles: dict[tuple[str, str], Any] = {}
        for index, panel in enumerate(panels):
            ax = drawn.add_subplot(rows, columns, index + 1)
            handles |= {key: handle for key, handle in draw_panel(ax, panel, variants(figure)).items() if key[1]}
        title = "\n".join(textwrap.wrap(figure["title"], 46 * columns))
        drawn.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        if handles:
            names = [name for _, name in handles]
            fit = max(1, int(size[0] / (0.55 + 0.075 * max(len(name) for name in names))))
            drawn.legend(list(handles.values()), names, loc="outside lower left", ncols=min(len(names), fit))
        text = _svg(drawn)
        png = io.BytesIO()
        FigureCanvasAgg(drawn).print_png(png, metadata={"Software": None})
    return svg.alone(text, figure["title"], figure["caption"]).encode(), png.getvalue()


@contextmanager
def _canvas(salt: str) -> Iterator[None]:
    """Matplotlib with our settings alone, whatever matplotlibrc a machine has; a letter no font has is no error."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        for key, value in style.matplotlib_settings(salt).items():
            matplotlib.rcParams[key] = value  # type: ignore[index]
        yield


def _svg(drawn: Any, transparent: bool = False) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(out, format="svg", transparent=transparent, metadata=nothing)
    return out.getvalue()


def _describe(panel: dict[str, Any], caption: str) -> str:
    """What a panel shows, in a sentence, for those who hear the page."""
    axes = "; ".join(
        f"{'horizontal' if name == 'x' else 'vertical'}: {panel[name]['label']}"
        + (f" ({panel[name]['scale']} scale)" if panel[name]["scale"] != "linear" else "")
        for name in ("x", "y")
        if panel[name]["label"]
    )
    names = ", ".join(dict.fromkeys(mark["name"] for mark in panel["marks"] if mark["name"]))
    return ". ".join(part.rstrip(".") for part in (caption, axes, f"Shown: {names}" if names else "") if part) + "."
