"""Random subspaces: uniform ones, pairs with planted angles, and the overlap that chance alone gives.

d width, k and l dimensions, q = min(k, l), p = max(k, l); theta the principal angles, in radians.
"""
# ruff: noqa: E741  (k and l are the dimensions in every paper on the subject, and here)

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.geometry.bases import as_angles

__all__ = ["chance_overlap", "chance_spread", "planted", "random_subspace", "z_score"]

Array = np.ndarray


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
    >>> from npmoe.geometry.grassmann import principal_angles
    >>> A, B = planted(np.random.default_rng(0), 6, np.array([0.1, 0.2]), l=3)
    >>> principal_angles(A, B).round(12)
    array([0.1, 0.2])
    """
    theta = check.finite("theta", as_angles(check.shaped("theta", theta, ("q",))))
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
    return matmul(frame, matmul(a, random_subspace(rng, k, k))), matmul(frame, matmul(b, random_subspace(rng, l, l)))


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
