"""Association, each with what permuted labels give: of labels and experts, and of two matrices over the same rows.

n rows (tokens), m labels, E experts.
"""

from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.words import one_line
from npmoe.geometry.rows import as_shares, as_usage, vanishing

__all__ = ["Mantel", "information_chance", "mantel", "mutual_information", "partial_mantel", "random_table"]

Array = np.ndarray


# Information between labels and experts


@vanishing
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
    joint = as_shares("table", usage.reshape(*usage.shape[:-2], -1)).reshape(usage.shape)
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
    usage = as_usage("table", table)
    if usage.ndim < 2:
        raise ValueError(f"expected table of shape (..., m, E); got {usage.shape}")
    return usage


def _integers(name: str, value: Any, ndim: int = 2) -> Array:
    """`value` as non-negative integers of so many axes."""
    array = check.unmasked(name, value)
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

    def __repr__(self) -> str:
        return one_line(self)


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
    A = np.array(check.unmasked(name, value), np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) < 3:
        raise ValueError(f"expected {name} to be a square matrix of at least 3 rows; got shape {A.shape}")
    n = len(A)
    np.fill_diagonal(A, 0)
    check.finite(name, A)
    largest = np.abs(A).max()
    A = np.ldexp(A, -np.frexp(largest)[1])  # the norm of huge distances would overflow
    apart = np.abs(A - A.T).max()
    if apart > 1e-6:  # float32 distances differ in the last digits
        raise ValueError(
            f"expected {name} to be symmetric; got differences of up to {np.ldexp(apart, np.frexp(largest)[1]):.3g}"
        )
    pairs = A[~np.eye(n, dtype=bool)]
    if np.ptp(pairs) <= 1e-14 * np.abs(pairs).max():
        return n, None
    A -= pairs.mean()
    np.fill_diagonal(A, 0)
    return n, A / np.linalg.norm(A)


def _places(blocks: Any, n: int) -> Array:
    """Rows of each sequence in their order, (sequences, length)."""
    blocks = check.unmasked("blocks", blocks)
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
