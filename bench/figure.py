"""The results as a picture: ratios with their spread and aims, and how cost grows."""

from pathlib import Path
from typing import Any

from bench.rows import AIMS

__all__ = ["draw"]

COLOURS = {"float64": "#0068a8", "float32": "#c44e00"}


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the figure, as SVG or PNG by the name's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in results["rows"] if row["ratio"] is not None]
    names = list(dict.fromkeys(row["name"] for row in rows))
    growth = results.get("growth", [])
    axes_of = list(dict.fromkeys(one["axis"] for one in growth))
    height = 0.34 * len(names) + 1.6 + (3.2 if growth else 0)
    figure = plt.figure(figsize=(11, height), layout="constrained")
    top: Any = figure
    if growth:
        parts: Any = figure.subfigures(2, 1, height_ratios=[0.34 * len(names) + 1.2, 3.6])
        top, below = parts
        panels = below.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
        for ax, axis in zip(panels, axes_of, strict=True):
            _growth(ax, axis, [one for one in growth if one["axis"] == axis])
        panels[0].set_ylabel("milliseconds")
        handles, labels = panels[0].get_legend_handles_labels()
        below.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    _ratios(top.subplots(), rows, names)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _ratios(ax: Any, rows: list[dict[str, Any]], names: list[str]) -> None:
    for row in rows:
        y = names.index(row["name"]) + (-0.14 if row["dtype"] == "float64" else 0.14)
        colour = COLOURS[row["dtype"]]
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.5)
        marker = "o" if row["dtype"] == "float64" else "s"
        ax.plot(row["ratio"], y, marker, color=colour, markersize=5)
        if row["plain_ratio"] is not None and row["plain"] != row["best"]:
            ax.plot(row["plain_ratio"], y, marker, color=colour, markersize=5, markerfacecolor="none")
        ax.annotate(row["best"], (row["high"], y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7,
                    color="#59606a")  # fmt: skip
    for i, name in enumerate(names):
        if name in AIMS:
            ax.plot([AIMS[name].least] * 2, [i - 0.35, i + 0.35], color="#6b7079", linewidth=1)
            ax.plot([AIMS[name].aim] * 2, [i - 0.35, i + 0.35], color="#1b1e23", linewidth=2)
    for dtype, marker in (("float64", "o"), ("float32", "s")):
        ax.plot([], [], marker, color=COLOURS[dtype], label=dtype)
    ax.plot([], [], "o", color="#59606a", markerfacecolor="none", label="against the plain peer")
    ax.plot([], [], color="#1b1e23", linewidth=2, label="aim")
    ax.plot([], [], color="#6b7079", linewidth=1, label="at least")
    ax.axvline(1, color="#b3003f", linewidth=1, linestyle="--", label="equal")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("time of the best peer / time of npmoe (median and 10 to 90 % of rounds; right of 1 npmoe is faster)")
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    ax.grid(axis="x", color="#dcdfe3")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _growth(ax: Any, axis: str, growth: list[dict[str, Any]]) -> None:
    colours = ["#0068a8", "#c44e00", "#007f5c", "#a13d7b", "#9a6a00", "#4f6274", "#85654f"]
    order = [
        "train",
        "expert_jacobians",
        "moe_jacobian",
        "mean_jacobians",
        "leading_values",
        "full_spectra",
        "weighted_pca",
    ]
    for one in growth:
        at = order.index(one["name"])
        ax.loglog(one["sizes"], one["ms"], "o^vsDph"[at] + "-", color=colours[at], markersize=4, linewidth=1.2,
                  label=one["name"].replace("_", " "))  # fmt: skip
        ax.annotate(f"{one['slope']:.1f}", (one["sizes"][-1], one["ms"][-1]), xytext=(4, 0), textcoords="offset points",
                    fontsize=7, color=colours[at], va="center")  # fmt: skip
    sizes = growth[0]["sizes"]
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel({"n": "tokens N"}.get(axis, axis))
    ax.grid(color="#dcdfe3")
    ax.spines[["top", "right"]].set_visible(False)
