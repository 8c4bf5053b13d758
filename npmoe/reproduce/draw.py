"""The grammar of a figure's data, as `npmoe.report` reads it: figure, panel, axis, marks."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["Mark", "axis", "band", "clean", "figure", "histogram", "level", "line", "matrix", "panel"]
__all__ += ["points", "strip", "text"]

Array = np.ndarray
Mark = dict[str, Any]


def figure(id: str, title: str, caption: str, source: str, claims: Sequence[str], panels: list[Mark]) -> Mark:
    """A figure: its panels, what it is about, and the claims that it shows."""
    return {
        "schema": 1,
        "id": id,
        "title": title,
        "caption": caption,
        "source": source,
        "claims": list(claims),
        "panels": panels,
    }


def panel(title: str, x: Mark, y: Mark, marks: Iterable[Mark]) -> Mark:
    """One panel: two axes and marks."""
    return {"title": title, "x": x, "y": y, "marks": list(marks)}


def text(title: str, words: Sequence[str], experts: Array, prompt: int, of: int) -> Mark:
    """One panel that is a text: its words, the experts of each token (T, k), the largest gate first, how many tokens
    were given, and how many experts there are."""
    shown = {"words": list(words), "experts": experts.tolist(), "prompt": prompt, "of": of}
    return {"title": title, "text": shown, "marks": []}


def axis(label: str, scale: str = "linear") -> Mark:
    """An axis: linear, log or symlog."""
    return {"label": label, "scale": scale}


def clean(values: Any) -> Any:
    """Nested lists of numbers with None for NaN, rounded to what a figure can show."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [clean(value) for value in values]
    return None if values is None or not np.isfinite(values) else float(f"{values:.6g}")


def histogram(name: str, role: str, values: Array, edges: Array) -> Mark:
    """Counts of values between edges; what lies beyond is counted at the ends."""
    counts, _ = np.histogram(np.clip(values[~np.isnan(values)], edges[0], edges[-1]), edges)
    return {"kind": "hist", "name": name, "role": role, "edges": clean(edges), "counts": counts.tolist()}


def band(name: str, role: str, x: Any, values: Any) -> Mark:
    """A curve for each seed, values (seeds, m): drawn as their mean and from the least to the greatest."""
    return {"kind": "band", "name": name, "role": role, "x": clean(x), "values": clean(values)}


def line(name: str, role: str, x: Any, y: Any) -> Mark:
    """One curve."""
    return {"kind": "line", "name": name, "role": role, "x": clean(x), "y": clean(y)}


def points(name: str, role: str, x: Any, y: Any) -> Mark:
    """A point for each pair of numbers."""
    return {"kind": "points", "name": name, "role": role, "x": clean(x), "y": clean(y)}


def strip(name: str, role: str, values: Any) -> Mark:
    """Seeds as dots in a column of their own."""
    return {"kind": "strip", "name": name, "role": role, "values": clean(values)}


def level(name: str, y: float, role: str = "null") -> Mark:
    """A horizontal line."""
    return {"kind": "level", "name": name, "role": role, "y": clean(y)}


def matrix(name: str, table: Array, labels: Sequence[str], limit: float, center: float = 0.0) -> Mark:
    """A heat map that diverges from its centre."""
    return {
        "kind": "matrix",
        "name": name,
        "values": clean(table),
        "rows": list(labels),
        "columns": list(labels),
        "center": clean(center),
        "limit": clean(limit),
    }
