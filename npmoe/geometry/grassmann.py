"""Subspaces: principal angles, the distances made of them, overlap with its chance level; distances of covariances.

d width, k and l dimensions, q = min(k, l), p = max(k, l), E subspaces, r their dimension where all have the same;
theta the angles, ascending, in radians. A subspace is given by a basis: orthonormal columns, (d, k).
"""
# ruff: noqa: E741  (k and l are the dimensions in every paper on the subject, and here)

from collections.abc import Sequence

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.threads import one_blas_thread, parts
from npmoe.geometry.spectra import numerical_rank

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


# Bases


def orthonormal(A: Array) -> Array:
    """An orthonormal basis of what the columns span, (..., d, k) -> (..., d, k), by Householder QR.

    The size of a column does not matter. Columns dependent but for a relative 1e-8 give a basis that rounding has
    moved by eps / 1e-8.

    Raises
    ------
    ValueError : where columns are dependent to working precision, k > d included; or not finite.

    Examples
    --------
    >>> np.abs(orthonormal(np.array([[3.0], [4.0]])))
    array([[0.6],
           [0.8]])
    """
    A = _stack("A", A)
    d, k = A.shape[-2:]
    # columns of length 1 first: neither the rank nor the basis depends on the scale of a column
    A = _divided(A, np.abs(A).max(axis=-2, keepdims=True))
    A = _divided(A, np.linalg.norm(A, axis=-2, keepdims=True))  # (..., d, k)
    ranks = numerical_rank(np.linalg.svd(A, compute_uv=False), max(d, k))
    if (ranks < k).any():
        where = _first(np.asarray(ranks < k))
        rank = np.atleast_1d(ranks)[np.atleast_1d(ranks) < k][0]
        raise ValueError(f"expected {k} independent columns of A{where}; got rank {rank}, d = {d}")
    return np.linalg.qr(A)[0]


def random_subspace(rng: np.random.Generator, d: int, k: int, shape: tuple[int, ...] = ()) -> Array:
    """Bases of uniformly distributed subspaces, (*shape, d, k); the bases themselves are uniform (Haar) too.

    Source: QR of normal numbers with the signs of R's diagonal taken out (Mezzadri 2007, math-ph/0609050).

    Examples
    --------
    >>> random_subspace(np.random.default_rng(0), d=5, k=2, shape=(3,)).shape
    (3, 5, 2)
    """
    d = check.integer("d", d, 1)
    k = check.integer("k", k, 1, d, f"a space of {d} dimensions")
    Q, R = np.linalg.qr(rng.standard_normal((*shape, d, k)))
    # without the signs LAPACK's convention shows: the subspace would be uniform, its basis not
    return Q * np.copysign(1, np.diagonal(R, axis1=-2, axis2=-1))[..., None, :]


def planted(
    rng: np.random.Generator, d: int, theta: Array, k: int | None = None, l: int | None = None
) -> tuple[Array, Array]:
    """A pair of bases A (d, k) and B (d, l) with exactly the principal angles `theta` (q,), turned at random.

    Parameters
    ----------
    theta : angles within [0, pi/2], in any order; `k` and `l` are q unless given, and one of them must be q.

    Raises
    ------
    ValueError : where d dimensions do not hold such a pair: they must be at least p + the number of angles above 0.

    Examples
    --------
    >>> A, B = planted(np.random.default_rng(0), 6, np.array([0.1, 0.2]), l=3)
    >>> principal_angles(A, B).round(12)
    array([0.1, 0.2])
    """
    theta = check.finite("theta", _angles(check.shaped("theta", theta, ("q",))))
    q = check.integer("the number of angles", len(theta), 1)
    k = check.integer("k", q if k is None else k, q, of=f"{q} angles")
    l = check.integer("l", q if l is None else l, q, of=f"{q} angles")
    if min(k, l) != q:
        raise ValueError(f"expected as many angles as min(k, l) = {min(k, l)}; got {q}")
    apart = np.flatnonzero(theta)  # a pair at angle 0 shares its direction
    # dim(A + B) = k + l - dim(A and B), and q - len(apart) directions are shared
    needed = max(k, l) + len(apart)
    check.integer("d", d, needed, of=f"subspaces of {k} and {l} dimensions with {len(apart)} angles above 0")
    frame = random_subspace(rng, d, needed)  # (d, p + angles above 0)
    a, b = np.eye(needed)[:, :k], np.zeros((needed, l))
    b[np.arange(q), np.arange(q)] = np.cos(theta)
    b[k + np.arange(len(apart)), apart] = np.sin(theta[apart])
    b[k + len(apart) + np.arange(l - q), q + np.arange(l - q)] = 1  # at right angles to all of A
    return frame @ (a @ random_subspace(rng, k, k)), frame @ (b @ random_subspace(rng, l, l))


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
    A, B = _basis("A", A), _basis("B", B)
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
    bases = np.asarray(bases)
    E, _, r = bases.shape
    none = _undefined(bases)  # (E,)
    check.finite("bases", np.where(none[:, None, None], 0, bases))  # before the rest is renumbered
    known = np.flatnonzero(~none)
    bases = _basis("bases", bases[known])
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
    none = np.array([_undefined(basis).all() for basis in bases], bool)  # (E,)
    # where there is no basis its shape still counts
    checked = [
        _stack(f"bases[{e}]", np.zeros_like(basis), ndim=2) if none[e] else _basis(f"bases[{e}]", basis, ndim=2)
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
    AtB = A.mT @ B  # (..., p, q)
    rest = B - A @ AtB  # (..., d, q)
    # once more ("twice is enough", Kahan): what the rounding of A^T B left of A in the rest goes
    rest = rest - A @ (A.mT @ rest)
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
    theta = _angles(theta)
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
    theta = _angles(theta)
    check.integer("the number of angles", theta.shape[-1], 1)
    return (np.cos(theta) ** 2).mean(axis=-1)


def chance_overlap(k: int, l: int, d: int) -> float:
    """Expected overlap of two independent uniform subspaces of k and l dimensions: E tr(P Q) / q = max(k, l) / d.

    Examples
    --------
    >>> chance_overlap(2, 4, 16)
    0.25
    """
    k, l, d = _sizes(k, l, d)
    return max(k, l) / d


def chance_spread(k: int, l: int, d: int) -> float:
    """Standard deviation of the overlap of two independent uniform subspaces, exact for every size.

    0 where k or l is d: the overlap is then 1 always.

    Notes
    -----
    P is fixed, Q uniform with E Q = (l/d) I. The traceless part of Q is isotropic among the traceless symmetric
    matrices, a space of (d - 1)(d + 2)/2 dimensions, and its squared norm is l (d - l)/d always; that of P is
    k (d - k)/d. The variance of the product of two such matrices is |.|^2 |.|^2 / dimensions:

        Var tr(P Q) = 2 k l (d - k)(d - l) / (d^2 (d - 1)(d + 2))

    Examples
    --------
    >>> chance_spread(1, 1, 2) ** 2  # the variance of cos^2 of a uniform angle: 1/8
    0.12500000000000003
    """
    k, l, d = _sizes(k, l, d)
    if d in (k, l):  # d = 1 always is: the formula would be 0/0
        return 0.0
    variance = 2 * (k / d) * (l / d) * ((d - k) / (d - 1)) * ((d - l) / (d + 2))
    return float(np.sqrt(variance)) / min(k, l)


def z_score(overlap: Array | float, k: int, l: int, d: int) -> Array:
    """How many chance spreads an overlap (...) is above its chance level, -> (...).

    Raises
    ------
    ValueError : where k or l is d: the overlap is 1 without any spread, and says nothing.

    Examples
    --------
    >>> float(z_score(1.0, 1, 1, 2).round(4))
    1.4142
    """
    spread = chance_spread(k, l, d)
    if spread == 0:
        raise ValueError(f"expected k and l below d, or the overlap is always 1; got k = {k}, l = {l}, d = {d}")
    return (np.asarray(overlap) - chance_overlap(k, l, d)) / spread


def _sizes(k: int, l: int, d: int) -> tuple[int, int, int]:
    d = check.integer("d", d, 1)
    of = f"a space of {d} dimensions"
    return check.integer("k", k, 1, d, of), check.integer("l", l, 1, d, of), d


# Distances of covariances, which need no dimension


def bures(A: Array, B: Array) -> Array:
    """Bures distance sqrt(tr A + tr B - 2 tr (A^{1/2} B A^{1/2})^{1/2}) of covariances, (..., d, d) -> (...).

    It is that of Wasserstein (2) between normal distributions of equal means. Singular covariances are welcome.

    Raises
    ------
    ValueError : for matrices that are not symmetric, or that have an eigenvalue below 0 by more than rounding.

    Notes
    -----
    The formula takes a difference of traces, and its square root leaves 1e-8 of what rounding left, 1e-16. The same
    number is a minimum over rotations R of |A^{1/2} - B^{1/2} R|_F, which R = U V^T from the singular value
    decomposition B^{T/2} A^{1/2} = U S V^T attains (Bhatia, Jain and Lim 2019, arXiv 1712.01504): a norm of a
    difference, so that nothing is lost where A and B are near. Any root X with X X^T = A will do.

    Accuracy, relative to sqrt(tr A + tr B): about eps / sqrt(c), where c is the least eigenvalue over the largest.
    Eigenvalues below d eps of the largest count as 0, so the worst is about sqrt(eps), when a covariance is all but
    singular. That is no more than what rounding the elements of A does to the exact number.

    Examples
    --------
    >>> bures(np.diag([4.0, 1.0]), np.diag([1.0, 1.0])).round(12)
    np.float64(1.0)
    """
    X, Y = _root("A", A), _root("B", B)
    _one_size(X, Y)
    U, _, Vt = np.linalg.svd(_product(Y, X))  # (..., d, d)
    return np.linalg.norm(X - Y @ (U @ Vt), axis=(-2, -1))


def log_euclidean(A: Array, B: Array, floor: float | None = None) -> Array:
    """|log A - log B|_F of positive definite covariances, (..., d, d) -> (...) (Arsigny et al. 2006).

    Parameters
    ----------
    floor : what is added to every eigenvalue first, relative to their mean. None adds nothing. Directions in which
        both are below it then count as equal, so it belongs beside the number it led to.

    Raises
    ------
    ValueError : for a matrix that is singular to working precision, or as `bures`.

    Examples
    --------
    >>> log_euclidean(np.diag([1.0, np.e]), np.eye(2)).round(12)
    np.float64(1.0)
    """
    X, Y = _log("A", A, floor), _log("B", B, floor)
    _one_size(X, Y)
    return np.linalg.norm(X - Y, axis=(-2, -1))


def _eigen(name: str, A: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues (..., d), ascending, eigenvectors (..., d, d), and what of an eigenvalue is rounding, (..., 1)."""
    A = _stack(name, A)
    if A.shape[-2] != A.shape[-1]:
        raise ValueError(f"expected {name} of shape (..., d, d); got {A.shape}")
    eps = np.finfo(A.dtype).eps
    scale = np.abs(A).max(axis=(-2, -1), keepdims=True)
    wrong = np.abs(A - A.mT) > eps ** (2 / 3) * scale
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"expected {name} symmetric; got {A[where]} at {where} and {A.mT[where]} across the diagonal")
    values, vectors = np.linalg.eigh((A + A.mT) / 2)
    noise = A.shape[-1] * eps * np.abs(values).max(axis=-1, keepdims=True)
    if (values < -(eps ** (2 / 3)) * scale[..., 0]).any():
        raise ValueError(f"expected {name} with no eigenvalue below 0; got {values.min()} beside {values.max()}")
    return values, vectors, noise


def _one_size(A: Array, B: Array) -> None:
    if A.shape[-1] != B.shape[-1]:
        raise ValueError(f"expected covariances of one size; got {A.shape} and {B.shape}")


def _root(name: str, A: Array) -> Array:
    """X (..., d, d) with X X^T = A, its columns along eigenvectors."""
    values, vectors, noise = _eigen(name, A)
    # the root of an eigenvalue that is rounding, 1e-16, would be 1e-8
    return vectors * np.sqrt(np.where(values > noise, values, 0))[..., None, :]


def _product(Y: Array, X: Array) -> Array:
    with np.errstate(under="ignore"):  # elements far below the largest may vanish
        return Y.mT @ X


def _log(name: str, A: Array, floor: float | None) -> Array:
    """Matrix logarithm of a symmetric matrix (..., d, d)."""
    values, vectors, noise = _eigen(name, A)
    if floor is not None:
        values = values + check.positive("floor", floor) * values.mean(axis=-1, keepdims=True)
    singular = np.asarray((values <= noise).any(axis=-1))
    if singular.any():
        where = _first(singular)
        raise ValueError(
            f"expected {name}{where} positive definite; got a singular one, least eigenvalue {values.min()} beside "
            f"{values.max()}: give `floor`, relative to the mean eigenvalue, or take `bures`"
        )
    return (vectors * np.log(values)[..., None, :]) @ vectors.mT


# Checks


def _stack(name: str, A: Array, ndim: int | None = None) -> Array:
    """`A` as finite real matrices (..., d, k), d and k at least 1; of exactly `ndim` axes where given."""
    A = check.finite(name, check.floating(name, A))
    if A.dtype.kind == "c":
        raise TypeError(f"expected {name} to be real; got {A.dtype}")
    if A.ndim < 2 or 0 in A.shape[-2:] or (ndim is not None and A.ndim != ndim):
        want = "(..., d, k)" if ndim is None else "(d, k)"
        raise ValueError(f"expected {name} of shape {want}, d and k at least 1; got {A.shape}")
    return A


def _basis(name: str, A: Array, ndim: int | None = None) -> Array:
    """`A` (..., d, k) in float64, checked to be orthonormal to eps^(2/3), and made so to eps."""
    A = _stack(name, A, ndim)
    eps = np.finfo(A.dtype).eps
    A = A.astype(np.float64, copy=False)
    excess = A.mT @ A - np.eye(A.shape[-1])  # (..., k, k)
    worst = np.abs(excess).max(initial=0)
    norm = np.linalg.norm(excess, axis=(-2, -1)).max(initial=0)
    # many elements, each within bounds, may still hide that columns depend on each other; below norm 1 they do not
    if worst > eps ** (2 / 3) or norm >= 1:
        raise ValueError(
            f"expected {name} with orthonormal columns, {name}^T {name} = I to {eps ** (2 / 3):.1e}; got a deviation "
            f"of {worst:.3g} (`orthonormal` makes a basis)"
        )
    # Steps of Newton and Schulz's towards the polar factor: the same span, the deviation squared (times 3/4). For a
    # basis that rounding alone made, one moves the last bits only, where another QR would add its own; single precision
    # takes two.
    A = A - A @ (excess / 2)
    while norm**2 > np.finfo(np.float64).eps:
        excess = A.mT @ A - np.eye(A.shape[-1])
        norm = np.linalg.norm(excess, axis=(-2, -1)).max(initial=0)
        A = A - A @ (excess / 2)
    return A


def _undefined(A: Array) -> Array:
    """Which matrices (..., d, k) are NaN throughout, (...); none that are not floats, which others refuse."""
    A = np.asarray(A)
    return np.isnan(A).all(axis=(-2, -1)) & (A.size > 0) if A.ndim > 1 and A.dtype.kind == "f" else np.array(False)


def _angles(theta: Array) -> Array:
    """`theta` as float64 within [0, pi/2]; NaN is let through."""
    theta = check.floating("theta", theta)
    if theta.ndim < 1:
        raise ValueError(f"expected theta of shape (..., q); got {theta.shape}")
    # pi/2 in float32 is above pi/2 in float64
    outside = (theta < 0) | (theta > theta.dtype.type(np.pi / 2))
    if outside.any():
        raise ValueError(f"expected angles within [0, pi/2], in radians; got {theta[outside][0]}")
    return np.minimum(theta.astype(np.float64, copy=False), np.pi / 2)


def _divided(A: Array, by: Array) -> Array:
    return np.divide(A, by, out=np.zeros_like(A), where=by > 0)


def _first(wrong: Array) -> str:
    """Where the first True of `wrong` (...) is, as an index to put after a name; nothing for a single matrix."""
    return str(np.argwhere(wrong)[0].tolist()) if wrong.ndim else ""
