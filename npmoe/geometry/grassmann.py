"""Subspaces: principal angles, and the distances and the overlap made of them.

d width, k and l dimensions, q = min(k, l), p = max(k, l), E subspaces, r their dimension where all have the same;
theta the angles, ascending, in radians. A subspace is given by a basis: orthonormal columns, (d, k).
"""
# ruff: noqa: E741  (k and l are the dimensions in every paper on the subject, and here)

from collections.abc import Sequence

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import one_blas_thread, parts
from npmoe.geometry.bases import as_angles, as_basis, as_matrices, orthonormal, undefined

# bases, chance and covariances are files of their own; their names are found here too, where docs/subspaces.md had them
from npmoe.geometry.covariances import bures, log_euclidean
from npmoe.geometry.random_subspaces import chance_overlap, chance_spread, planted, random_subspace, z_score

__all__ = [
    "DISTANCES",
    "METRICS",
    "bures",
    "chance_overlap",
    "chance_spread",
    "distance",
    "log_euclidean",
    "orthonormal",
    "overlap",
    "pairwise",
    "pairwise_angles",
    "planted",
    "principal_angles",
    "random_subspace",
    "z_score",
]

Array = np.ndarray

#: Names of the distances, in the order of the table in docs/subspaces.md.
DISTANCES = (
    "geodesic",
    "chordal",
    "procrustes",
    "asimov",
    "projection",
    "spectral",
    "binet-cauchy",
    "fubini-study",
    "martin",
)

#: Those that obey the triangle inequality: among subspaces of one dimension, and with missing angles at pi/2 among all.
#: Martin's does not in either case: three lines at 0, pi/4 and pi/2 are 0.83, 0.83 and infinity apart.
METRICS = DISTANCES[:-1]

RIGHT_ANGLE = 1e-14  # how near pi/2 an angle is pi/2 to Martin's distance: what `principal_angles` can tell apart

_PIECE = 1 << 21  # elements of one array in `pairwise_angles`: 16 MB


# Angles


def principal_angles(A: Array, B: Array) -> Array:
    """Principal angles between subspaces, A (..., d, k) and B (..., d, l) -> theta (..., q), ascending, in float64.

    Accurate to 1e-14 absolute from 0 to pi/2, also for a tiny angle beside a large one; relative accuracy of a tiny
    angle is not claimed. Leading axes broadcast.

    Parameters
    ----------
    A, B : orthonormal columns: A^T A may deviate from the identity by eps^(2/3) of its dtype (4e-11 in float64, 2e-5
        in float32) in each element. What deviation there is does not reach the angles: it is taken out first, to eps of
        float64. The angles are those of the columns as given: rounding to float32 had turned them by about 1e-7 before.

    Raises
    ------
    ValueError : for columns that are not orthonormal (the worst deviation is named), widths that differ, NaN.

    Notes
    -----
    With B the narrower, the cosines are the singular values of A^T B and the sines those of (I - A A^T) B; the
    largest cosine belongs to the smallest sine. Source: Bjorck and Golub 1973; Knyazev and Argentati 2002.

    Examples
    --------
    >>> A, B = np.eye(3)[:, :1], np.array([[0.6], [0.0], [0.8]])
    >>> principal_angles(A, B).round(4)
    array([0.9273])
    """
    A, B = as_basis("A", A), as_basis("B", B)
    if A.shape[-2] != B.shape[-2]:
        raise ValueError(f"expected A and B of one width d; got {A.shape} and {B.shape}")
    return _principal_angles(A, B)


def pairwise_angles(bases: Array) -> Array:
    """Principal angles between all pairs of E subspaces of one dimension, (E, d, r) -> (E, E, r).

    Symmetric to the bit, zeros on the diagonal. Pairs are taken together, as many as memory allows. A basis that is NaN
    throughout, that of an expert without tokens, gives a row and a column of NaN, the diagonal with them.

    Raises
    ------
    ValueError : as `principal_angles`; a basis that is NaN in part is refused.

    Examples
    --------
    >>> pairwise_angles(np.eye(2)[:, :, None])[..., 0].round(4)
    array([[0.    , 1.5708],
           [1.5708, 0.    ]])
    """
    check.shaped("bases", bases, ("E", "d", "r"))
    bases = check.unmasked("bases", bases)
    E, _, r = bases.shape
    none = undefined(bases)  # (E,)
    check.finite("bases", np.where(none[:, None, None], 0, bases))  # before the rest is renumbered
    known = np.flatnonzero(~none)
    bases = as_basis("bases", bases[known])
    a, b = np.triu_indices(len(known), 1)
    theta = np.zeros((E, E, r))
    theta[known[a], known[b]] = theta[known[b], known[a]] = _angles_of_pairs(bases, bases, a, b)
    theta[none], theta[:, none] = np.nan, np.nan
    return theta


def pairwise(bases: Sequence[Array] | Array, name: str) -> Array:
    """Distances `name` between all pairs of E subspaces of any dimensions, a list of (d, k_e) -> (E, E).

    Symmetric to the bit, zeros on the diagonal; missing angles as in `distance`; NaN as in `pairwise_angles`.

    Raises
    ------
    ValueError : as `principal_angles` and `distance`; the error says which of the bases it is about.

    Examples
    --------
    >>> pairwise([np.eye(3)[:, :1], np.eye(3)[:, :2]], "chordal")
    array([[0., 1.],
           [1., 0.]])
    """
    _known(name)
    none = np.array([undefined(basis).all() for basis in bases], bool)  # (E,)
    # where there is no basis its shape still counts
    checked = [
        as_matrices(f"bases[{e}]", np.zeros_like(basis), ndim=2) if none[e] else as_basis(f"bases[{e}]", basis, ndim=2)
        for e, basis in enumerate(bases)
    ]
    if len({basis.shape[0] for basis in checked}) > 1:
        raise ValueError(f"expected bases of one width d; got {[basis.shape for basis in checked]}")
    found = np.zeros((len(checked), len(checked)))
    dims = np.array([basis.shape[1] for basis in checked], int)  # (E,)
    groups = {k: np.flatnonzero((dims == k) & ~none) for k in np.unique(dims[~none]).tolist()}
    stacks = {k: np.stack([checked[e] for e in rows]) for k, rows in groups.items()}
    for k, rows in groups.items():
        for l, columns in groups.items():
            if l < k:
                continue
            a, b = (index.ravel() for index in np.indices((len(rows), len(columns))))
            once = rows[a] < columns[b] if k == l else np.ones(a.shape, bool)  # a pair once, and none with itself
            a, b = a[once], b[once]
            values = distance(_angles_of_pairs(stacks[k], stacks[l], a, b), name, missing=l - k)
            found[rows[a], columns[b]] = found[columns[b], rows[a]] = values
    found[none], found[:, none] = np.nan, np.nan
    return found


def _angles_of_pairs(A: Array, B: Array, a: Array, b: Array) -> Array:
    """Angles between A[a] and B[b] for lists of indices a, b (P,), from checked stacks, -> (P, q)."""
    theta = np.empty((len(a), min(A.shape[-1], B.shape[-1])))
    for part in parts(len(a), _PIECE // max(A.shape[-2] * A.shape[-1], B.shape[-2] * B.shape[-1])):
        theta[part] = _principal_angles(A[a[part]], B[b[part]])
    return theta


def _principal_angles(A: Array, B: Array) -> Array:
    """`principal_angles` of checked bases."""
    if A.shape[-1] < B.shape[-1]:
        A, B = B, A
    AtB = matmul(A.mT, B)  # (..., p, q)
    rest = B - matmul(A, AtB)  # (..., d, q)
    # once more ("twice is enough", Kahan): what the rounding of A^T B left of A in the rest goes
    rest = rest - matmul(A, matmul(A.mT, rest))
    cos = _singular_values(AtB)  # (..., q) descending
    # the triangle has the singular values of the tall rest, and costs a fraction: LAPACK's own way from d x q is slow
    sin = _singular_values(np.asarray(np.linalg.qr(rest, mode="r")))[..., ::-1]  # (..., q) ascending
    # Each spectrum errs by a few eps absolute, whatever its largest value (Weyl), and the derivative of arctan2 is
    # (cos, -sin): so does the angle, near 0 from the sines, near pi/2 from the cosines, with no branch between them.
    return np.arctan2(sin, cos)


def _singular_values(M: Array) -> Array:
    """Singular values, descending, (..., m, q) -> (..., q), to a few eps of the largest also where many are equal."""
    # With the vectors, though nobody reads them: for values alone LAPACK takes another way (dqds), which errs by up to
    # 1e-14 where values repeat and some are 0; this one by 5e-15. One thread: on small matrices several get in each
    # other's way.
    with one_blas_thread():
        return np.linalg.svd(M, full_matrices=False)[1]


# Distances from angles


def distance(theta: Array, name: str, missing: int = 0) -> Array:
    """The distance `name`, one of `DISTANCES`, from principal angles, (..., q) -> (...).

    Parameters
    ----------
    theta : within [0, pi/2], in any order. NaN gives NaN: "undefined" stays undefined.
    missing : p - q, by how much the dimensions differ: so many angles of pi/2 are added. That makes every one of
        `METRICS` a metric over all dimensions, though asimov, projection, spectral, binet-cauchy and fubini-study are
        then at their greatest value whatever the subspaces (pi/2, 1, sqrt 2, 1, pi/2). Martin's is infinite there, as
        wherever an angle is within 1e-14 of pi/2.

    Raises
    ------
    ValueError : for a name that is not in the table, or angles outside [0, pi/2].

    Notes
    -----
    Source: Edelman, Arias and Smith 1998; Hamm and Lee 2008; Ye and Lim 2016 (arXiv 1407.0900) for `missing`.

    Examples
    --------
    >>> distance(np.array([0.3, 0.4]), "geodesic")
    np.float64(0.5)
    >>> distance(np.array([0.0]), "procrustes", missing=2).round(6)
    np.float64(2.0)
    """
    _known(name)
    theta = as_angles(theta)
    theta = np.concatenate([theta, np.full((*theta.shape[:-1], check.integer("missing", missing, 0)), np.pi / 2)], -1)
    if name == "geodesic":
        return _norm(theta)
    if name == "chordal":
        return _norm(np.sin(theta))  # |A A^T - B B^T|_F / sqrt 2
    if name == "procrustes":
        return 2 * _norm(np.sin(theta / 2))  # min over rotations of |A - B R|_F; a missing angle adds 4 sin^2 pi/4 = 2
    if name == "asimov":
        return theta.max(axis=-1, initial=0)
    if name == "projection":
        return np.sin(theta.max(axis=-1, initial=0))  # |A A^T - B B^T|_2
    if name == "spectral":
        return 2 * np.sin(theta.max(axis=-1, initial=0) / 2)  # min over rotations of |A - B R|_2
    log_cos = _log_cos(theta).sum(axis=-1)  # log of prod cos = |det A^T B|
    if name == "martin":
        right = (theta > np.pi / 2 - RIGHT_ANGLE).any(axis=-1)
        return np.where(right, np.inf, np.sqrt(-2 * log_cos))[()]
    # sqrt(1 - prod cos^2), where 1 - cos^2 would have lost the angles below 1e-8
    sine = np.sqrt(-np.expm1(2 * log_cos))
    if name == "binet-cauchy":
        return sine
    with np.errstate(under="ignore"):  # a product of many small cosines may vanish
        return np.arctan2(sine, np.exp(log_cos))  # fubini-study: arccos(prod cos), without its loss near 0


def _log_cos(theta: Array) -> Array:
    """log cos, to full relative accuracy: by the sine below pi/4, where cos is near 1."""
    with np.errstate(under="ignore"):  # squares of angles below 1e-154 count as 0
        by_sine = np.log1p(-(np.sin(np.minimum(theta, np.pi / 4)) ** 2)) / 2
    return np.where(theta < np.pi / 4, by_sine, np.log(np.cos(theta)))


def _norm(values: Array) -> Array:
    """Euclidean norm over the last axis: hypot, so that tiny angles do not vanish in their squares."""
    return np.hypot.reduce(values, axis=-1)


def _known(name: str) -> None:
    if name not in DISTANCES:
        raise ValueError(f"expected a distance out of {', '.join(DISTANCES)}; got {name!r}")


# Overlap


def overlap(theta: Array) -> Array:
    """Mean cos^2 of the angles, tr(P Q) / q of the projections, (..., q) -> (...); 1 where one contains the other.

    Its null is `chance_overlap`, with `chance_spread`.

    Examples
    --------
    >>> overlap(np.array([0.0, np.pi / 2])).round(6)
    np.float64(0.5)
    """
    theta = as_angles(theta)
    check.integer("the number of angles", theta.shape[-1], 1)
    return (np.cos(theta) ** 2).mean(axis=-1)
