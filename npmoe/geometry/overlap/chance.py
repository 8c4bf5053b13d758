"""What chance gives of an overlap: of random sets, and of the top-k sets of correlated scores.

E experts, k chosen, alpha = k/E, rho the correlation of two tokens' scores.
"""

from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.geometry.rows import ratio, vanishing

__all__ = ["corrected", "jaccard_chance", "overlap_chance", "topk_law", "topk_simulated"]

Array = np.ndarray

_PIECE = 1 << 17  # scores that `topk_simulated` draws at a time: 1 MB, a core's cache


# Random sets


def overlap_chance(k: int, E: int) -> float:
    """Mean overlap k/E of two random sets of k out of E experts.

    Examples
    --------
    >>> overlap_chance(8, 64)
    0.125
    """
    E = check.integer("E", E, 1)
    return check.integer("k", k, 1, E, f"{E} experts") / E


def jaccard_chance(a: Any, b: Any, E: int) -> Array:
    """Exact mean Jaccard of two independent random sets of a and b out of E experts, vectorised over sizes.

    The intersection i is hypergeometric, so it is sum_i P(i) i/(a + b - i). For many experts and equal shares
    q = a/E = b/E this tends to q/(2 - q). NaN where both sets are empty.

    Examples
    --------
    >>> jaccard_chance(1, 1, 4), jaccard_chance(np.array([8, 51]), np.array([8, 51]), 64).round(4)
    (np.float64(0.25), array([0.0705, 0.6631]))
    """
    E = check.integer("E", E, 1)
    a, b = np.broadcast_arrays(a, b)
    for name, size in (("a", a), ("b", b)):
        if size.dtype.kind not in "iu":
            raise TypeError(f"expected {name} to be sizes of sets, integers; got {size.dtype}")
        if size.size and (size.min() < 0 or size.max() > E):
            raise ValueError(f"expected {name} within 0..{E}; got {size.min()}..{size.max()}")
    # few sizes differ, however many pairs there are
    codes, where = np.unique(a.astype(np.int64) * (E + 1) + b, return_inverse=True)
    x, y = (part[:, None] for part in divmod(codes, E + 1))
    i = np.arange(E + 1)
    possible = (i <= np.minimum(x, y)) & (i >= x + y - E)  # (sizes, E + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, E + 1)))])  # log n!

    def choose(n: Array, k: Array) -> Array:
        return logs[n] - logs[k] - logs[n - k]

    inside = np.where(possible, i, np.maximum(0, x + y - E))  # some possible value, where i is none
    chance = np.where(possible, np.exp(choose(x, inside) + choose(E - x, y - inside) - choose(np.array(E), y)), 0)
    # the sum of chances is 1 but for the rounding of E logarithms, which is divided out
    mean = (chance * ratio(inside.astype(float), (x + y - inside).astype(float))).sum(axis=1) / chance.sum(axis=1)
    return mean[where].reshape(a.shape)[()]


def corrected(o: Any, o0: Any) -> Array:
    """(o - o0)/(1 - o0): 0 at chance, 1 at agreement; NaN where chance alone gives 1.

    Examples
    --------
    >>> corrected(0.5625, 0.125)
    np.float64(0.5)
    """
    o, o0 = np.asarray(o, float), np.asarray(o0, float)
    return ratio(o - o0, 1 - o0)[()]


# The law of top-k sets


@vanishing
def topk_law(rho: Any, alpha: Any) -> Array:
    """Share of k chosen experts that agree where two tokens' scores have correlation rho, alpha = k/E; vectorised.

    Phi2(-t, -t; rho)/alpha with t = Phi^-1(1 - alpha), the limit of many experts with bivariate normal scores. For few
    the threshold is each token's own, and for rho > 0 the law is too high: by 0.01 to 0.03 at E = 8, k = 2, by up to
    0.014 at E = 64, k = 8 (for rho < 0 too low, by less); `topk_simulated` does without the limit. rho is a property of
    a class of pairs, not estimated from the E scores of one pair.

    Examples
    --------
    >>> topk_law(np.array([-1.0, 0.0, 0.5, 1.0]), 0.125).round(4)
    array([0.    , 0.125 , 0.3559, 1.    ])
    """
    from scipy.special import ndtri, owens_t

    rho, alpha = np.asarray(rho, float), np.asarray(alpha, float)
    if not (np.abs(rho) <= 1).all():
        raise ValueError(f"expected correlations rho within -1..1; got {rho}")
    if not ((alpha > 0) & (alpha <= 1)).all():
        raise ValueError(f"expected shares alpha = k/E within (0, 1]; got {alpha}")
    t = np.where(alpha < 1, -ndtri(np.minimum(alpha, 1 - 2.0**-53)), 0)
    # Drezner's integral of exp(-t^2/(1 + sin th)) over th, with cot for th, is Owen's T (Owen 1956):
    # Phi2(-t, -t; rho) = Phi(-t) - 2 T(t, sqrt((1 - rho)/(1 + rho))), without a singularity at either end
    slope = np.sqrt(np.divide(1 - rho, 1 + rho, out=np.full(rho.shape, np.inf), where=rho > -1))
    law = np.clip(1 - 2 * owens_t(t, slope) / alpha, 0, 1)
    # at these correlations the value is known, and is given without rounding
    ends = np.maximum(0, 2 * alpha - 1) / alpha
    known = [rho == 0, rho == -1, alpha + 0 * rho == 1]
    return np.select(np.broadcast_arrays(*known), np.broadcast_arrays(alpha, ends, 1.0), law)[()]


def topk_simulated(rho: Any, E: int, k: int, rng: np.random.Generator, draws: int = 10_000) -> Array:
    """Mean overlap of the top-k sets of so many pairs of E normal scores with correlation rho, the shape of rho.

    One set of draws serves all rho. The standard error of an overlap o is sqrt(o (1 - o)/(k draws)) or below: experts
    compete for places, so that a pair's k agreements vary less than independent ones would.

    Examples
    --------
    >>> topk_simulated(np.array([0.0, 1.0]), 8, 2, np.random.default_rng(0)).round(2)
    array([0.25, 1.  ])
    """
    rho = np.asarray(rho, float)
    if not (np.abs(rho) <= 1).all():
        raise ValueError(f"expected correlations rho within -1..1; got {rho}")
    E = check.integer("E", E, 1)
    k, draws = check.integer("k", k, 1, E, f"{E} experts"), check.integer("draws", draws, 1)
    total = np.zeros(rho.size)
    step = max(1, _PIECE // E)
    for start in range(0, draws, step):
        x, z = rng.standard_normal((2, min(step, draws - start), E))
        on = _largest(x, k)
        total += [(on & _largest(r * x + np.sqrt(1 - r * r) * z, k)).sum() for r in rho.flat]
    return (total / (draws * k)).reshape(rho.shape)[()]


def _largest(scores: Array, k: int) -> Array:
    """Booleans of the k largest of each row; scores are continuous, so ties do not matter."""
    on = np.zeros(scores.shape, bool)
    np.put_along_axis(on, np.argpartition(-scores, k - 1, axis=1)[:, :k], True, axis=1)
    return on
