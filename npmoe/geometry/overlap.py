"""Usage similarity: how far two tokens, texts or models use the same experts, with what chance gives of each measure.

n, m rows (tokens, texts), E experts, k chosen. A set of experts is a row of booleans (..., E); a usage is a row of
non-negative numbers (..., E): counts, gates or frequencies, integers or floats.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check

__all__ = [
    "MEASURES",
    "Mantel",
    "Matched",
    "Measure",
    "corrected",
    "cv",
    "entropy",
    "entropy_share",
    "gini",
    "hellinger",
    "hilbert",
    "information_chance",
    "jaccard",
    "jaccard_chance",
    "jain",
    "jensen_shannon",
    "mantel",
    "match",
    "matched_overlap",
    "max_over_mean",
    "mutual_information",
    "noise_floor",
    "overlap_chance",
    "partial_mantel",
    "random_table",
    "set_overlap",
    "similarities",
    "split_halves",
    "top_p",
    "topk_law",
    "topk_simulated",
    "total_variation",
    "weighted_jaccard",
]

Array = np.ndarray

_PIECE = 1 << 17  # elements of a (rows, rows, E) block of `similarities`: 1 MB in float64, a core's cache

# a share that vanishes is none: e^-800 over a sum is 0, and that is meant
_vanishing = np.errstate(under="ignore")


# Measures: sets


def set_overlap(A: Array, B: Array) -> Array:
    """|A and B| / max(|A|, |B|) of two sets, (..., E) booleans twice -> (...); NaN of two empty sets.

    For sets of one size k that is the share |A and B| / k of choices that agree.

    Examples
    --------
    >>> set_overlap(np.array([True, True, False]), np.array([False, True, True]))
    np.float64(0.5)
    """
    return _overlap_of(*_sizes(*_both(_masks, A, B, "AB")))[()]


def jaccard(A: Array, B: Array) -> Array:
    """|A and B| / |A or B| of two sets, (..., E) booleans twice -> (...); NaN of two empty sets.

    Examples
    --------
    >>> jaccard(np.array([True, True, False]), np.array([False, True, True])).round(4)
    np.float64(0.3333)
    """
    return _jaccard_of(*_sizes(*_both(_masks, A, B, "AB")))[()]


# Measures: distributions. Each is a preparation of rows, done once a row, and a function of two prepared rows.


def weighted_jaccard(P: Array, Q: Array) -> Array:
    """sum min(P, Q) / sum max(P, Q), (..., E) twice -> (...); NaN of two rows of zeros.

    The one measure of distributions that does not normalise: twice the counts is another usage. Of shares it is
    (1 - TV)/(1 + TV); of sets, as 0 and 1, it is `jaccard`. Source: Ruzicka 1958; 1 - it is a metric.

    Examples
    --------
    >>> weighted_jaccard(np.array([2, 2, 0]), np.array([1, 1, 2])).round(4)
    np.float64(0.3333)
    """
    return _weighted_jaccard(*_both(_usage, P, Q))[()]


def total_variation(P: Array, Q: Array) -> Array:
    """Distance 1/2 sum |p - q| of the shares, (..., E) twice -> (...), within 0..1; rows need not be normalised.

    A row of zeros has no shares: NaN, here and in the three measures below.

    Examples
    --------
    >>> total_variation(np.array([2, 2, 0]), np.array([1, 1, 2]))
    np.float64(0.5)
    """
    return _total_variation(*_both(_shares, P, Q))[()]


def jensen_shannon(P: Array, Q: Array) -> Array:
    """Divergence 1/2 KL(p | m) + 1/2 KL(q | m), m = (p + q)/2, in nats, (..., E) twice -> (...), within 0..log 2.

    Rows need not be normalised. Its square root is a distance, which satisfies the triangle inequality (Endres and
    Schindelin 2003); the divergence itself does not.

    Examples
    --------
    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 3.0])).round(4)
    np.float64(0.6931)
    """
    return _jensen_shannon(*_both(_shares, P, Q))[()]


def hellinger(P: Array, Q: Array) -> Array:
    """Distance sqrt(1/2 sum (sqrt p - sqrt q)^2), (..., E) twice -> (...), within 0..1; rows need not be normalised.

    Examples
    --------
    >>> hellinger(np.array([1.0, 0.0]), np.array([0.0, 3.0]))
    np.float64(1.0)
    """
    return _hellinger(*_both(_roots, P, Q))[()]


def hilbert(P: Array, Q: Array) -> Array:
    """Distance max log(p/q) - min log(p/q), (..., E) twice -> (...); infinite where the supports differ.

    Scales cancel, so rows need not be normalised. Of soft gates it is the span of W (x - y), the scores' difference.

    Examples
    --------
    >>> hilbert(np.array([1.0, 2.0, 0.0]), np.array([3.0, 1.0, 0.0])).round(4) == np.log(6).round(4)
    np.True_
    """
    return _hilbert(*_both(_logs, P, Q))[()]


def _masks(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype != bool or array.ndim < 1:
        raise TypeError(
            f"expected {name} to be sets, booleans of shape (..., E); got {array.dtype} of shape {array.shape}"
        )
    return array


def _usage(name: str, value: Any) -> Array:
    """`value` as non-negative floats (..., E); counts and masks become float64, where all of them are exact.

    So does anything below float32: float16 ends at 65 504, and sums of a few thousand shares are rounded away.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "buif" or array.ndim < 1:
        raise TypeError(
            f"expected {name} to be usage, numbers of shape (..., E); got {array.dtype} of shape {array.shape}"
        )
    exact = array.dtype.kind == "f" and array.dtype.itemsize >= 4
    array = check.finite(name, array if exact else array.astype(np.float64))
    if (array < 0).any():
        raise ValueError(f"expected {name} to be non-negative; got {array.min()}")
    return array


@_vanishing
def _scaled(usage: Array, axis: int | None = -1) -> Array:
    """Usage over the power of two next above its maximum along the axis: sums do not overflow, no digit changes."""
    _, exponent = np.frexp(usage.max(axis=axis, keepdims=True, initial=0))
    return np.ldexp(usage, -exponent)


@_vanishing
def _shares(name: str, value: Any) -> Array:
    usage = _scaled(_usage(name, value))
    total = usage.sum(axis=-1, keepdims=True)
    return np.divide(usage, total, out=np.full_like(usage, np.nan), where=total > 0)


def _roots(name: str, value: Any) -> Array:
    return np.sqrt(_shares(name, value))


def _logs(name: str, value: Any) -> Array:
    """Logarithms of usage: -inf where there is none, NaN for a row of zeros."""
    usage = _usage(name, value)
    logs = np.log(usage, out=np.full_like(usage, -np.inf), where=usage > 0)
    return np.where((usage > 0).any(axis=-1, keepdims=True), logs, np.nan)


def _both(prepare: Callable[[str, Any], Array], P: Any, Q: Any, names: str = "PQ") -> tuple[Array, Array]:
    one, two = prepare(names[0], P), prepare(names[1], Q)
    if one.shape[-1] != two.shape[-1]:
        raise ValueError(f"expected as many experts in both; got {one.shape[-1]} and {two.shape[-1]}")
    return one, two


def _sizes(A: Array, B: Array) -> tuple[Array, Array, Array]:
    """Sizes of the intersection, of A and of B, as floats."""
    return (A & B).sum(axis=-1, dtype=float), A.sum(axis=-1, dtype=float), B.sum(axis=-1, dtype=float)


def _ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is 0."""
    out = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan, np.result_type(above, below))
    return np.divide(above, below, out=out, where=below > 0)


def _divided(above: Array, below: Array) -> Array:
    """above / below, 0 where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape, np.result_type(above, below)), where=below > 0)


def _overlap_of(both: Array, a: Array, b: Array) -> Array:
    return _ratio(both, np.maximum(a, b))


def _jaccard_of(both: Array, a: Array, b: Array) -> Array:
    return _ratio(both, a + b - both)


@_vanishing
def _weighted_jaccard(P: Array, Q: Array) -> Array:
    tops = P.max(axis=-1, keepdims=True, initial=0), Q.max(axis=-1, keepdims=True, initial=0)
    if max(top.max(initial=0) for top in tops) > np.finfo(np.result_type(P, Q)).max / max(1, P.shape[-1]):
        # their sum may overflow: a pair over its own maximum, as over that of all a small pair would vanish
        top = np.maximum(*tops)
        P, Q = _divided(P, top), _divided(Q, top)
    return _ratio(np.minimum(P, Q).sum(axis=-1), np.maximum(P, Q).sum(axis=-1))


@_vanishing
def _total_variation(p: Array, q: Array) -> Array:
    return np.abs(p - q).sum(axis=-1) / 2


@_vanishing
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


@_vanishing
def _hellinger(p: Array, q: Array) -> Array:
    return np.minimum(np.sqrt(((p - q) ** 2).sum(axis=-1) / 2), 1)  # rounding leaves 1 + 1e-16


def _hilbert(p: Array, q: Array) -> Array:
    with np.errstate(invalid="ignore"):  # -inf - -inf: an expert that neither uses says nothing, and is left out
        difference = p - q
    # fmax and fmin skip NaN; rows of zeros are all NaN and stay so
    with np.errstate(invalid="ignore"):
        return np.fmax.reduce(difference, axis=-1) - np.fmin.reduce(difference, axis=-1)


class Measure(NamedTuple):
    """A measure's function; kind of its rows, "sets" or "distributions"; sense, "similarity" or "distance"."""

    function: Callable[[Array, Array], Array]
    kind: str
    sense: str


#: name -> (function, kind, sense)
MEASURES: dict[str, Measure] = {
    "set_overlap": Measure(set_overlap, "sets", "similarity"),
    "jaccard": Measure(jaccard, "sets", "similarity"),
    "weighted_jaccard": Measure(weighted_jaccard, "distributions", "similarity"),
    "total_variation": Measure(total_variation, "distributions", "distance"),
    "jensen_shannon": Measure(jensen_shannon, "distributions", "distance"),
    "hellinger": Measure(hellinger, "distributions", "distance"),
    "hilbert": Measure(hilbert, "distributions", "distance"),
}

_OF_SIZES = {"set_overlap": _overlap_of, "jaccard": _jaccard_of}
_OF_ROWS = {
    "weighted_jaccard": (_usage, _weighted_jaccard),
    "total_variation": (_shares, _total_variation),
    "jensen_shannon": (_shares, _jensen_shannon),
    "hellinger": (_roots, _hellinger),
    "hilbert": (_logs, _hilbert),
}


def _measure(name: str) -> Measure:
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
    prepare, pair = (_masks, None) if _measure(name).kind == "sets" else _OF_ROWS[name]
    one, two = _both(prepare, P, P if Q is None else Q)
    if one.ndim != 2 or two.ndim != 2:
        raise ValueError(f"expected P of shape (n, E) and Q of shape (m, E); got {one.shape} and {two.shape}")
    if pair is None:
        both = one.astype(np.float32) @ two.astype(np.float32).T  # (n, m); float32 counts exactly up to 2^24 experts
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
    usage = _scaled(_usage("P", P))
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


# Chance


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
    mean = (chance * _ratio(inside.astype(float), (x + y - inside).astype(float))).sum(axis=1) / chance.sum(axis=1)
    return mean[where].reshape(a.shape)[()]


def corrected(o: Any, o0: Any) -> Array:
    """(o - o0)/(1 - o0): 0 at chance, 1 at agreement; NaN where chance alone gives 1.

    Examples
    --------
    >>> corrected(0.5625, 0.125)
    np.float64(0.5)
    """
    o, o0 = np.asarray(o, float), np.asarray(o0, float)
    return _ratio(o - o0, 1 - o0)[()]


# Balance of usage: counts (..., E) -> (...); a row of zeros has none, NaN


def cv(counts: Array) -> Array:
    """Coefficient of variation of usage, standard deviation (over E, not E - 1) by mean, (..., E) -> (...).

    Examples
    --------
    >>> cv(np.array([2, 0]))
    np.float64(1.0)
    """
    shares = _shares("counts", counts) * np.shape(counts)[-1]  # their mean is 1
    return np.sqrt(((shares - 1) ** 2).mean(axis=-1))[()]


def max_over_mean(counts: Array) -> Array:
    """Usage of the busiest expert over the mean, within 1..E, (..., E) -> (...).

    Examples
    --------
    >>> max_over_mean(np.array([3, 1]))
    np.float64(1.5)
    """
    shares = _shares("counts", counts)
    return (shares.max(axis=-1) * shares.shape[-1])[()]


@_vanishing
def entropy(counts: Array) -> Array:
    """Entropy of usage in nats, (..., E) -> (...).

    Examples
    --------
    >>> entropy(np.array([1, 1, 0])).round(4)
    np.float64(0.6931)
    """
    shares = _shares("counts", counts)
    logs = np.log(shares, out=np.zeros_like(shares), where=~(shares <= 0))  # NaN stays NaN
    return np.abs(-(shares * logs).sum(axis=-1))[()]  # abs: 0, not -0


def entropy_share(counts: Array) -> Array:
    """Entropy of usage over log E, what equal usage has, (..., E) -> (...); NaN for a single expert.

    Examples
    --------
    >>> entropy_share(np.array([1, 1, 0, 0])).round(4)
    np.float64(0.5)
    """
    return _ratio(entropy(counts), np.log(np.shape(counts)[-1]))[()]


def gini(counts: Array) -> Array:
    """Gini coefficient sum_ab |c_a - c_b| / (2 E sum c), within 0..1 - 1/E, (..., E) -> (...).

    Examples
    --------
    >>> gini(np.array([4, 0, 0, 0]))
    np.float64(0.75)
    """
    shares = np.sort(_shares("counts", counts), axis=-1)
    E = shares.shape[-1]
    return (shares * (2 * np.arange(E) + 1 - E)).sum(axis=-1)[()] / E


@_vanishing
def jain(counts: Array) -> Array:
    """Jain's index (sum c)^2 / (E sum c^2) = 1/(1 + cv^2), within 1/E..1, (..., E) -> (...). Jain et al. 1984.

    Examples
    --------
    >>> jain(np.array([4, 0, 0, 0]))
    np.float64(0.25)
    """
    shares = _shares("counts", counts)
    return (1 / (shares.shape[-1] * (shares**2).sum(axis=-1)))[()]


# Information between labels and experts


@_vanishing
def mutual_information(table: Array) -> Array:
    """Mutual information of rows and columns of a contingency table in nats, (..., m, E) -> (...).

    Rows may be kinds of text, columns experts. Biased upwards for small samples: `information_chance`. A table of
    zeros has none, NaN.

    Examples
    --------
    >>> mutual_information(np.array([[5, 0], [0, 5]])).round(4)
    np.float64(0.6931)
    """
    usage = _table(table)
    joint = _shares("table", usage.reshape(*usage.shape[:-2], -1)).reshape(usage.shape)
    independent = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=~(joint <= 0))
    terms = joint * np.log(ratio)
    # rounding leaves -1e-17; NaN is kept
    return np.maximum(terms.sum(axis=(-2, -1)), 0)[()]


def information_chance(table: Array, rng: np.random.Generator | None = None, draws: int = 200) -> float:
    """What `mutual_information` is expected to be where labels are permuted, (m, E) counts -> nats.

    Without `rng` the approximation (rows - 1)(columns - 1)/(2 n) of Miller and Madow (1955), of rows and columns that
    are not empty; good where expected counts are well above 1. With it, the mean of so many permutations.

    Examples
    --------
    >>> table = np.array([[30, 20], [20, 30]])
    >>> information_chance(table), round(information_chance(table, np.random.default_rng(0)), 4)
    (0.005, 0.0053)
    """
    table = _integers("table", table)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    if rng is None:
        degrees = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1)
        return float(degrees / (2 * table.sum())) if table.any() else float("nan")
    drawn = [mutual_information(random_table(rows, columns, rng)) for _ in range(check.integer("draws", draws, 1))]
    return float(np.mean(drawn))


def random_table(rows: Array, columns: Array, rng: np.random.Generator) -> Array:
    """A contingency table of these margins, (m,) and (E,) -> (m, E), as permuted labels would give it.

    Row by row from the multivariate hypergeometric distribution of what is left: no array of single labels is made.

    Examples
    --------
    >>> random_table(np.array([2, 3]), np.array([1, 4]), np.random.default_rng(0)).sum(axis=0)
    array([1, 4])
    """
    rows, left = _integers("rows", rows, 1), _integers("columns", columns, 1).copy()
    if rows.sum() != left.sum():
        raise ValueError(f"expected rows and columns of one sum; got {rows.sum()} and {left.sum()}")
    out = np.empty((len(rows), len(left)), np.int64)
    for row, size in zip(out, rows, strict=True):
        row[:] = rng.multivariate_hypergeometric(left, size, method="marginals")
        left -= row
    return out


def _table(table: Any) -> Array:
    usage = _usage("table", table)
    if usage.ndim < 2:
        raise ValueError(f"expected table of shape (..., m, E); got {usage.shape}")
    return usage


def _integers(name: str, value: Any, ndim: int = 2) -> Array:
    """`value` as non-negative integers of so many axes."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"expected {name} to be counts, integers; got {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"expected {name} with {ndim} axes; got shape {array.shape}")
    if (array < 0).any():
        raise ValueError(f"expected {name} to be non-negative; got {array.min()}")
    return array.astype(np.int64)


# Correlation of matrices (Mantel 1967)


class Mantel(NamedTuple):
    """Correlation r over pairs; p, one-sided for large r; null (permutations,), r of permuted rows and columns."""

    r: float
    p: float
    null: Array


def mantel(
    A: Array, B: Array, rng: np.random.Generator, permutations: int = 999, blocks: Array | None = None
) -> Mantel:
    """Correlation of two symmetric matrices over the pairs i < j, against permutations of rows and columns together.

    p = (1 + permutations with r at least as large) / (1 + permutations).

    Parameters
    ----------
    A, B : arrays (n, n), symmetric; the diagonal is not looked at.
    blocks : (n,) labels of sequences. Neighbours in a sequence are alike, so single tokens are not exchangeable: whole
        sequences are exchanged, each token for the one in the same place. All must be of one length.

    Returns
    -------
    Mantel : all NaN where A or B is constant over the pairs: there is no correlation then.

    Raises
    ------
    ValueError, TypeError : for matrices that are not square, symmetric and of one size, or hold NaN or infinity
        (a Hilbert distance may); for sequences of different lengths.

    Examples
    --------
    >>> x = np.arange(8.0)
    >>> D = np.abs(x[:, None] - x)
    >>> found = mantel(D, D**2, np.random.default_rng(0))
    >>> round(found.r, 4), found.p
    (0.9707, 0.001)
    """
    A, B, orders = _mantel_input({"A": A, "B": B}, rng, permutations, blocks)
    if A is None or B is None:
        return Mantel(np.nan, np.nan, np.full(permutations, np.nan))
    r = np.vdot(A, B)
    return _against(r, np.array([np.vdot(_permuted(A, order), B) for order in orders]))


def partial_mantel(
    A: Array, B: Array, C: Array, rng: np.random.Generator, permutations: int = 999, blocks: Array | None = None
) -> Mantel:
    """As `mantel`, the correlation of A and B with C (say, whether two tokens are the same word) held constant.

    r = (r_AB - r_AC r_BC) / sqrt((1 - r_AC^2)(1 - r_BC^2)), rows and columns of A permuted, B and C kept (Smouse, Long
    and Sokal 1986; the first method of Legendre 2000). A constant C holds nothing constant: that is `mantel`. NaN where
    A or B is constant, or is C but for scale.

    Examples
    --------
    >>> x, y, z = np.random.default_rng(0).standard_normal((3, 12))
    >>> A, B, C = (np.abs(v[:, None] - v) for v in (x + 3 * z, y + 3 * z, z))
    >>> rng = np.random.default_rng(1)
    >>> round(mantel(A, B, rng).p, 2), round(partial_mantel(A, B, C, rng).p, 2)
    (0.0, 0.74)
    """
    A, B, C, orders = _mantel_input({"A": A, "B": B, "C": C}, rng, permutations, blocks)
    if A is not None and B is not None and C is None:
        return _against(np.vdot(A, B), np.array([np.vdot(_permuted(A, order), B) for order in orders]))
    undefined = Mantel(np.nan, np.nan, np.full(permutations, np.nan))
    if A is None or B is None:
        return undefined
    ac, bc = np.vdot(A, C), np.vdot(B, C)
    if max(abs(ac), abs(bc)) > 1 - 1e-12:  # nothing is left of A or of B
        return undefined

    def partial(A: Array) -> tuple[float, float]:
        ac = np.vdot(A, C)
        return np.vdot(A, B) - ac * bc, (1 - ac**2) * (1 - bc**2)

    above, below = np.array([partial(A), *(partial(_permuted(A, order)) for order in orders)]).T
    # a permutation that makes A into C leaves nothing of A: its r is undefined, and counts as 0
    r = np.divide(above, np.sqrt(np.maximum(below, 0)), out=np.zeros_like(above), where=below > 1e-12)
    return _against(r[0], r[1:])


def _mantel_input(matrices: dict[str, Any], rng: Any, permutations: int, blocks: Any) -> tuple[Any, ...]:
    """Each matrix with its pairs centred and of norm 1 and its diagonal 0 (None: constant), then the permutations."""
    found = [_centred(name, matrix) for name, matrix in matrices.items()]
    sizes = {n for n, _ in found}
    if len(sizes) > 1:
        raise ValueError(f"expected matrices of one size; got {', '.join(str(n) for n, _ in found)}")
    n = sizes.pop()
    check.integer("permutations", permutations, 1)
    places = np.arange(n)[:, None] if blocks is None else _places(blocks, n)  # (sequences, length)
    orders = (_exchanged(places, rng) for _ in range(permutations))
    return *(matrix for _, matrix in found), orders


def _centred(name: str, value: Any) -> tuple[int, Array | None]:
    A = np.array(value, np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) < 3:
        raise ValueError(f"expected {name} to be a square matrix of at least 3 rows; got shape {A.shape}")
    n = len(A)
    np.fill_diagonal(A, 0)
    check.finite(name, A)
    if not np.allclose(A, A.T, rtol=1e-6, atol=1e-6 * np.abs(A).max()):  # float32 distances differ in the last digits
        raise ValueError(f"expected {name} to be symmetric; got differences of up to {np.abs(A - A.T).max():.3g}")
    A = np.ldexp(A, -np.frexp(np.abs(A).max())[1])  # the norm of huge distances would overflow
    pairs = A[~np.eye(n, dtype=bool)]
    if np.ptp(pairs) <= 1e-14 * np.abs(pairs).max():
        return n, None
    A -= pairs.mean()
    np.fill_diagonal(A, 0)
    return n, A / np.linalg.norm(A)


def _places(blocks: Any, n: int) -> Array:
    """Rows of each sequence in their order, (sequences, length)."""
    blocks = np.asarray(blocks)
    if blocks.shape != (n,):
        raise ValueError(f"expected blocks of shape ({n},), one label a row; got {blocks.shape}")
    _, label, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(set(sizes)) > 1:
        raise ValueError(f"expected sequences of one length, so that they can be exchanged; got {sorted(set(sizes))}")
    return np.argsort(label, kind="stable").reshape(len(sizes), -1)


def _exchanged(places: Array, rng: np.random.Generator) -> Array:
    order = np.empty(places.size, np.int64)
    order[places] = places[rng.permutation(len(places))]
    return order


def _permuted(A: Array, order: Array) -> Array:
    return A[order].take(order, axis=1)  # rows first, which are contiguous; then within a row, in cache


def _against(r: float, null: Array) -> Mantel:
    # a permutation that changes nothing has r itself but for rounding, and counts
    p = (1 + np.count_nonzero(null >= r - 1e-12)) / (1 + len(null))
    return Mantel(float(r), float(p), null)


# Halves


def split_halves(n: int, rng: np.random.Generator, groups: Array | None = None) -> Array:
    """A random half of n tokens, (n,) booleans: n // 2 are True; by whole `groups` (n,), sequences say, where given.

    Examples
    --------
    >>> split_halves(6, np.random.default_rng(1), groups=np.array([0, 0, 1, 1, 2, 2]))
    array([ True,  True, False, False, False, False])
    """
    check.integer("n", n, 2)
    if groups is None:
        return rng.permutation(n) < n // 2
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"expected groups of shape ({n},), one label a token; got {groups.shape}")
    labels, group = np.unique(groups, return_inverse=True)
    if len(labels) < 2:
        raise ValueError("expected at least 2 groups to make halves of; got 1")
    return split_halves(len(labels), rng)[group]


def noise_floor(
    P: Array,
    groups: Array | None,
    rng: np.random.Generator,
    measure: str = "total_variation",
    draws: int = 100,
    p: float = 0.8,
) -> Array:
    """The measure between two random halves of the same thing, (draws,): what sampling alone does to it.

    Parameters
    ----------
    P : (n, E) usage a token (gates, counts or masks), or counts a group. Each half's rows are added up and normalised;
        measures of sets take the `top_p` sets of that.
    groups : (n,) labels of what is drawn as a whole, or None: tokens of one text are not independent.

    A half has half the tokens: the floor is that of comparing two samples of n/2.

    Examples
    --------
    >>> noise_floor(np.ones((6, 4)), None, np.random.default_rng(0), draws=2)
    array([0., 0.])
    """
    usage = _scaled(_rows("P", P), axis=None)
    kind = _measure(measure).kind
    out = np.empty(check.integer("draws", draws, 1))
    for draw in range(draws):
        half = split_halves(len(usage), rng, groups)
        both = _shares("P", _together(np.stack([half, ~half], axis=1).astype(usage.dtype), usage))  # (2, E)
        if np.isnan(both).any():
            raise ValueError("expected usage in every half of P; got a half that uses no expert")
        out[draw] = MEASURES[measure].function(*(top_p(both, p) if kind == "sets" else both))
    return out


def _rows(name: str, value: Any) -> Array:
    usage = _usage(name, value)
    if usage.ndim != 2:
        raise ValueError(f"expected {name} of shape (n, E); got {usage.shape}")
    return usage


# Matching the experts of two models


class Matched(NamedTuple):
    """Mean measure between two models' usage of the same tokens, and the `permutation` (E,) of the second's experts.

    raw : experts as they are numbered, on the scored half.
    in_sample : matched, and scored on the very half that the matching was fitted on: chance alone makes it large.
    held_out : matched, and scored on the other half.
    """

    raw: float
    in_sample: float
    held_out: float
    permutation: Array


def match(P: Array, Q: Array) -> Array:
    """The permutation of Q's experts with the largest summed co-usage, (n, E) twice -> (E,); Q[:, it] goes with P.

    Maximises sum_e sum_n P[n, e] Q[n, it[e]] (linear assignment).

    Raises
    ------
    ValueError, TypeError : unless P and Q are usage of the same n tokens by equally many experts.

    Examples
    --------
    >>> P = np.array([[True, False, False], [False, True, False], [False, False, True]])
    >>> match(P, P[:, [2, 0, 1]])
    array([1, 2, 0])
    """
    P, Q = _both(_rows, P, Q)
    if len(P) != len(Q):
        raise ValueError(f"expected usage of the same tokens; got {len(P)} and {len(Q)}")
    return _assigned(_together(_scaled(P, axis=None), _scaled(Q, axis=None)))


@_vanishing
def _together(P: Array, Q: Array) -> Array:
    return P.T @ Q


def _assigned(together: Array) -> Array:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(together, maximize=True)[1]


def matched_overlap(
    P: Array,
    Q: Array,
    rng: np.random.Generator | None,
    halves: Array | None = None,
    measure: str = "set_overlap",
) -> Matched:
    """Mean of a measure over tokens after matching: fitted on one half of the tokens, scored on the other.

    Held out, independent choices of equal shares give k/E again. Where some experts are busy in both models matching
    pairs busy with busy, which raises even the held-out number: its null is the same with Q's rows permuted.

    Parameters
    ----------
    P, Q : (n, E) usage of the same n tokens, booleans where the measure is one of sets.
    halves : (n,) booleans, True where the matching is fitted: `split_halves` with groups. Drawn with rng unless given.

    Raises
    ------
    ValueError, TypeError : as `match`; for a token whose measure is undefined, such as one that uses no expert: leave
        it out of both, or every mean would be NaN.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> P, Q = (rng.random((40, 64)).argsort(axis=1) < 8 for _ in range(2))  # chance: 0.125
    >>> [round(v, 2) for v in matched_overlap(P, Q, rng)[:3]]
    [0.09, 0.62, 0.15]
    """
    function, kind, _ = _measure(measure)
    if kind == "sets":
        _both(_masks, P, Q)
    P, Q = np.asarray(P), np.asarray(Q)
    if halves is None:
        if rng is None:
            raise ValueError("expected rng or halves; got neither")
        halves = split_halves(len(P), rng)
    halves = np.asarray(halves)
    if halves.dtype != bool or halves.shape != (len(P),):
        raise ValueError(
            f"expected halves as booleans of shape ({len(P)},), the tokens; got {halves.dtype} of shape {halves.shape}"
        )
    if halves.all() or not halves.any():
        raise ValueError("expected tokens in both halves; got an empty half")
    order = match(P[halves], Q[halves])
    rest = ~halves

    def mean(rows: Array, order: Array | slice) -> float:
        values = function(P[rows], Q[rows][:, order])
        if np.isnan(values).any():
            token = np.flatnonzero(rows)[np.isnan(values)][0]
            raise ValueError(f"expected tokens whose {measure} is defined; got no expert used at token {token}")
        return float(np.mean(values))

    return Matched(mean(rest, slice(None)), mean(halves, order), mean(rest, order), order)


# The law of top-k sets


@_vanishing
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
