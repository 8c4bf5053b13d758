"""Overlap of two usages: how far two tokens, texts or models use the same experts, by eight measures.

n, m rows (tokens, texts), E experts. A set of experts is a row of booleans (..., E); a usage is a row of non-negative
numbers (..., E): counts, gates or frequencies, integers or floats.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line
from npmoe.geometry.rows import as_sets, as_shares, as_usage, both_as, ratio, scaled, vanishing

__all__ = [
    "MEASURES",
    "Measure",
    "cosine",
    "hellinger",
    "hilbert",
    "jaccard",
    "jensen_shannon",
    "measure_named",
    "set_overlap",
    "similarities",
    "top_p",
    "total_variation",
    "weighted_jaccard",
]

Array = np.ndarray

_PIECE = 1 << 17  # elements of a (rows, rows, E) block of `similarities`: 1 MB in float64, a core's cache


# Sets


def set_overlap(A: Array, B: Array) -> Array:
    """|A and B| / max(|A|, |B|) of two sets, (..., E) booleans twice -> (...); NaN of two empty sets.

    For sets of one size k that is the share |A and B| / k of choices that agree.

    Examples
    --------
    >>> set_overlap(np.array([True, True, False]), np.array([False, True, True]))
    np.float64(0.5)
    """
    return _overlap_of(*_sizes(*both_as(as_sets, A, B, "AB")))[()]


def jaccard(A: Array, B: Array) -> Array:
    """|A and B| / |A or B| of two sets, (..., E) booleans twice -> (...); NaN of two empty sets.

    Examples
    --------
    >>> jaccard(np.array([True, True, False]), np.array([False, True, True])).round(4)
    np.float64(0.3333)
    """
    return _jaccard_of(*_sizes(*both_as(as_sets, A, B, "AB")))[()]


# Distributions. Each is a preparation of rows, done once a row, and a function of two prepared rows.


def weighted_jaccard(P: Array, Q: Array) -> Array:
    """sum min(P, Q) / sum max(P, Q), (..., E) twice -> (...); NaN of two rows of zeros.

    The one measure of distributions that does not normalise: twice the counts is another usage. Of shares it is
    (1 - TV)/(1 + TV); of sets, as 0 and 1, it is `jaccard`. Source: Ruzicka 1958; 1 - it is a metric.

    Examples
    --------
    >>> weighted_jaccard(np.array([2, 2, 0]), np.array([1, 1, 2])).round(4)
    np.float64(0.3333)
    """
    return _weighted_jaccard(*both_as(as_usage, P, Q))[()]


def total_variation(P: Array, Q: Array) -> Array:
    """Distance 1/2 sum |p - q| of the shares, (..., E) twice -> (...), within 0..1; rows need not be normalised.

    A row of zeros has no shares: NaN, here and in the three measures below.

    Examples
    --------
    >>> total_variation(np.array([2, 2, 0]), np.array([1, 1, 2]))
    np.float64(0.5)
    """
    return _total_variation(*both_as(as_shares, P, Q))[()]


def jensen_shannon(P: Array, Q: Array) -> Array:
    """Divergence 1/2 KL(p | m) + 1/2 KL(q | m), m = (p + q)/2, in nats, (..., E) twice -> (...), within 0..log 2.

    Rows need not be normalised. Its square root is a distance, which satisfies the triangle inequality (Endres and
    Schindelin 2003); the divergence itself does not.

    Examples
    --------
    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 3.0])).round(4)
    np.float64(0.6931)
    """
    return _jensen_shannon(*both_as(as_shares, P, Q))[()]


def hellinger(P: Array, Q: Array) -> Array:
    """Distance sqrt(1/2 sum (sqrt p - sqrt q)^2), (..., E) twice -> (...), within 0..1; rows need not be normalised.

    Examples
    --------
    >>> hellinger(np.array([1.0, 0.0]), np.array([0.0, 3.0]))
    np.float64(1.0)
    """
    return _hellinger(*both_as(_roots, P, Q))[()]


def cosine(P: Array, Q: Array) -> Array:
    """Cosine sum p q / (|p| |q|) of usages, (..., E) twice -> (...), within 0..1; rows need not be normalised.

    Source: the similarity of two texts' visit counts in Wang, Hayou and Nalisnick, arXiv 2604.09780, equations 13, 14.

    Examples
    --------
    >>> cosine(np.array([2, 2, 0]), np.array([1, 1, 2])).round(4)
    np.float64(0.5774)
    """
    return _cosine(*both_as(_directions, P, Q))[()]


def hilbert(P: Array, Q: Array) -> Array:
    """Distance max log(p/q) - min log(p/q), (..., E) twice -> (...); infinite where the supports differ.

    Scales cancel, so rows need not be normalised. Of soft gates it is the span of W (x - y), the scores' difference.

    Examples
    --------
    >>> hilbert(np.array([1.0, 2.0, 0.0]), np.array([3.0, 1.0, 0.0])).round(4) == np.log(6).round(4)
    np.True_
    """
    return _hilbert(*both_as(_logs, P, Q))[()]


@vanishing
def _directions(name: str, value: Any) -> Array:
    """Rows over their length; NaN for a row of zeros."""
    shares = as_shares(name, value)  # none of their squares overflows
    return shares / np.sqrt((shares**2).sum(axis=-1, keepdims=True))


def _roots(name: str, value: Any) -> Array:
    return np.sqrt(as_shares(name, value))


def _logs(name: str, value: Any) -> Array:
    """Logarithms of usage: -inf where there is none, NaN for a row of zeros."""
    usage = as_usage(name, value)
    logs = np.log(usage, out=np.full_like(usage, -np.inf), where=usage > 0)
    return np.where((usage > 0).any(axis=-1, keepdims=True), logs, np.nan)


def _sizes(A: Array, B: Array) -> tuple[Array, Array, Array]:
    """Sizes of the intersection, of A and of B, as floats."""
    return (A & B).sum(axis=-1, dtype=float), A.sum(axis=-1, dtype=float), B.sum(axis=-1, dtype=float)


def _divided(above: Array, below: Array) -> Array:
    """above / below, 0 where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape, np.result_type(above, below)), where=below > 0)


def _overlap_of(both: Array, a: Array, b: Array) -> Array:
    return ratio(both, np.maximum(a, b))


def _jaccard_of(both: Array, a: Array, b: Array) -> Array:
    return ratio(both, a + b - both)


@vanishing
def _weighted_jaccard(P: Array, Q: Array) -> Array:
    tops = P.max(axis=-1, keepdims=True, initial=0), Q.max(axis=-1, keepdims=True, initial=0)
    if max(top.max(initial=0) for top in tops) > np.finfo(np.result_type(P, Q)).max / max(1, P.shape[-1]):
        # their sum may overflow: a pair over its own maximum, as over that of all a small pair would vanish
        top = np.maximum(*tops)
        P, Q = _divided(P, top), _divided(Q, top)
    return ratio(np.minimum(P, Q).sum(axis=-1), np.maximum(P, Q).sum(axis=-1))


@vanishing
def _total_variation(p: Array, q: Array) -> Array:
    return np.abs(p - q).sum(axis=-1) / 2


@vanishing
def _jensen_shannon(p: Array, q: Array) -> Array:
    # with p = m (1 + u), q = m (1 - u) a term is m [2 u atanh u + log(1 - u^2)]/2: for nearby rows no digits cancel,
    # as they do in p log(p/m), whose rounding would be 1e-8 in the distance
    m = (p + q) / 2
    u = np.abs(np.divide(p - q, p + q, out=np.zeros_like(m), where=m > 0))
    apart = u >= 1  # one of the two is 0
    v = np.where(apart, 0, u)
    # 1 - u^2 near u = 1 from its factors, as u^2 is rounded by more than what is left
    rest = np.log1p(-v * v, out=np.log((1 - v) * (1 + v)), where=v < 0.5)
    terms = m * np.where(apart, 2 * math.log(2), 2 * v * np.arctanh(v) + rest)
    return terms.sum(axis=-1) / 2


@vanishing
def _cosine(p: Array, q: Array) -> Array:
    # 1 - |p - q|^2/2, which no cancellation harms where rows are nearly alike
    return np.clip(1 - ((p - q) ** 2).sum(axis=-1) / 2, 0, 1)


@vanishing
def _hellinger(p: Array, q: Array) -> Array:
    return np.minimum(np.sqrt(((p - q) ** 2).sum(axis=-1) / 2), 1)  # rounding leaves 1 + 1e-16


def _hilbert(p: Array, q: Array) -> Array:
    with np.errstate(invalid="ignore"):  # -inf - -inf: an expert that neither uses says nothing, and is left out
        difference = p - q
    # fmax and fmin skip NaN; rows of zeros are all NaN and stay so
    with np.errstate(invalid="ignore"):
        return np.fmax.reduce(difference, axis=-1) - np.fmin.reduce(difference, axis=-1)


# All by name


class Measure(NamedTuple):
    """A measure's function; kind of its rows, "sets" or "distributions"; sense, "similarity" or "distance"."""

    function: Callable[[Array, Array], Array]
    kind: str
    sense: str

    def __repr__(self) -> str:
        return one_line(self)


#: name -> (function, kind, sense)
MEASURES: dict[str, Measure] = {
    "set_overlap": Measure(set_overlap, "sets", "similarity"),
    "jaccard": Measure(jaccard, "sets", "similarity"),
    "weighted_jaccard": Measure(weighted_jaccard, "distributions", "similarity"),
    "total_variation": Measure(total_variation, "distributions", "distance"),
    "jensen_shannon": Measure(jensen_shannon, "distributions", "distance"),
    "hellinger": Measure(hellinger, "distributions", "distance"),
    "cosine": Measure(cosine, "distributions", "similarity"),
    "hilbert": Measure(hilbert, "distributions", "distance"),
}

_OF_SIZES = {"set_overlap": _overlap_of, "jaccard": _jaccard_of}
_OF_ROWS = {
    "weighted_jaccard": (as_usage, _weighted_jaccard),
    "total_variation": (as_shares, _total_variation),
    "jensen_shannon": (as_shares, _jensen_shannon),
    "hellinger": (_roots, _hellinger),
    "cosine": (_directions, _cosine),
    "hilbert": (_logs, _hilbert),
}


def measure_named(name: str) -> Measure:
    """The measure of that name, or an error that lists all names."""
    if name not in MEASURES:
        raise ValueError(f"expected a measure out of {', '.join(MEASURES)}; got {name!r}")
    return MEASURES[name]


def similarities(name: str, P: Array, Q: Array | None = None) -> Array:
    """The measure of that name between all pairs of rows, (n, E) and (m, E) -> (n, m); Q is P unless given.

    What it gives is what the measure gives: distances for a distance. Sets go through one matrix product,
    distributions through blocks that fit a core's cache; no array (n, m, E) is made.

    Raises
    ------
    ValueError, TypeError : for an unknown name, rows of another kind, or other numbers of experts.

    Examples
    --------
    >>> similarities("total_variation", np.array([[1.0, 0.0], [0.5, 0.5]]))
    array([[0. , 0.5],
           [0.5, 0. ]])
    """
    prepare, pair = (as_sets, None) if measure_named(name).kind == "sets" else _OF_ROWS[name]
    one, two = both_as(prepare, P, P if Q is None else Q)
    if one.ndim != 2 or two.ndim != 2:
        raise ValueError(f"expected P of shape (n, E) and Q of shape (m, E); got {one.shape} and {two.shape}")
    if pair is None:
        # float32 counts exactly up to 2^24 experts
        both = matmul(one.astype(np.float32), two.astype(np.float32).T)  # (n, m)
        return _OF_SIZES[name](both.astype(float), one.sum(axis=1, dtype=float)[:, None], two.sum(axis=1, dtype=float))
    out = np.empty((len(one), len(two)), np.result_type(one, two))
    step = max(1, int(np.sqrt(_PIECE / max(1, one.shape[1]))))
    # experts outermost in memory: the sum over them then adds whole blocks, which is quicker for few experts
    one, two = np.asfortranarray(one), np.asfortranarray(two)
    for i in range(0, len(one), step):
        for j in range(i if Q is None else 0, len(two), step):
            block = pair(one[i : i + step, None], two[None, j : j + step])  # (step, step)
            out[i : i + step, j : j + step] = block
            if Q is None:
                out[j : j + step, i : i + step] = block.T
    return out


# From usage to a set


def top_p(P: Array, p: float = 0.8) -> Array:
    """The smallest set of experts whose share is at least p, (..., E) -> booleans (..., E); ties to the lower index.

    A row of zeros has the empty set.

    Examples
    --------
    >>> top_p(np.array([5, 1, 3, 1]), 0.8)
    array([ True, False,  True, False])
    """
    if not 0 < p <= 1:
        raise ValueError(f"expected a share p within (0, 1]; got {p}")
    usage = scaled(as_usage("P", P))
    # stable: ties go to the lower expert, or two platforms choose differently
    order = np.argsort(-usage, axis=-1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(usage, order, axis=-1), axis=-1)
    total = cumulative[..., -1:]
    # a few eps of slack: 0.5 + 0.3 is to count as 0.8
    k = 1 + (cumulative < (p - 8 * np.finfo(usage.dtype).eps) * total).sum(axis=-1, keepdims=True)
    chosen = (np.arange(usage.shape[-1]) < k) & (total > 0)
    out = np.zeros(usage.shape, bool)
    np.put_along_axis(out, order, chosen, axis=-1)
    return out
