"""How cost grows: each row over N, d, h, E and k, with the slope that the arithmetic allows beside the one measured.

n tokens, d width, h hidden, E experts, k experts a token.
"""

from typing import Any, NamedTuple

import numpy as np

from bench.problem import problem
from bench.rows import WORK
from bench.timing import best_of

__all__ = ["AXES", "Growth", "growths"]

#: From where each axis starts and how it grows. The base is large enough for arithmetic to outweigh calls.
BASE: dict[str, Any] = {"n": 512, "d": 64, "h": 128, "E": 8, "k": 8}
AXES = {
    "n": (256, 512, 1024, 2048),
    "d": (32, 64, 128, 256),
    "h": (64, 128, 256, 512),
    "E": (4, 8, 16, 32),
    "k": (1, 2, 4, 8),
}
#: Bases of the costly rows: fewer tokens and experts.
SMALLER = {"expert_jacobians": 4, "moe_jacobian": 4, "full_spectra": 8, "leading_values": 2}

#: Exponents of the arithmetic that dominates for large sizes: (n, d, h, E, k), k = E where an axis is not k.
#: train: n k d h. expert_jacobians: n E d^2 h. moe_jacobian: n k d^2 h. mean_jacobians: n E d h. leading_values:
#: n E d h a step, and steps grow a little with d. full_spectra: n E (d^2 h + d^3). weighted_pca: E (n d^2 + d^3).
ALLOWED = {
    "train": (1, 1, 1, 1, 1),
    "expert_jacobians": (1, 2, 1, 1, None),
    "moe_jacobian": (1, 2, 1, 1, 1),
    "mean_jacobians": (1, 1, 1, 1, 1),
    "leading_values": (1, 1, 1, 1, None),
    "full_spectra": (1, 3, 1, 1, None),
    "weighted_pca": (1, 3, 0, 1, 1),
}


class Growth(NamedTuple):
    """Times of one row along one axis, the least-squares slope of their logarithms, and what the arithmetic allows."""

    name: str
    axis: str
    sizes: tuple[int, ...]
    ms: tuple[float, ...]
    slope: float
    allowed: int


def growths(name: str) -> list[Growth]:
    """One row of `WORK` along each axis that it depends on; float64."""
    found = []
    for (axis, sizes), allowed in zip(AXES.items(), ALLOWED[name], strict=True):
        if allowed is None:
            continue
        taken = []
        for size in sizes:
            s = {**BASE, axis: size}
            s["n"] //= SMALLER.get(name, 1)
            if axis == "E":
                s["k"] = size  # every expert sees every token, so that E is the whole of the growth
            taken.append(best_of(WORK[name](problem(**s)), spend=0.15))
        slope = float(np.polyfit(np.log(sizes), np.log(taken), 1)[0])
        found.append(Growth(name, axis, sizes, tuple(taken), slope, allowed))
    return found
