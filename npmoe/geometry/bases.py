"""Bases of subspaces: matrices, orthonormal columns and angles checked at the seam, and how a basis is made.

d width, k dimensions. A subspace is given by a basis: orthonormal columns, (d, k).
"""

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.geometry.spectra import numerical_rank

__all__ = ["as_angles", "as_basis", "as_matrices", "orthonormal", "undefined", "where_first"]

Array = np.ndarray


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
    A = as_matrices("A", A)
    d, k = A.shape[-2:]
    # columns of length 1 first: neither the rank nor the basis depends on the scale of a column
    A = _divided(A, np.abs(A).max(axis=-2, keepdims=True))
    A = _divided(A, np.linalg.norm(A, axis=-2, keepdims=True))  # (..., d, k)
    ranks = numerical_rank(np.linalg.svd(A, compute_uv=False), max(d, k))
    if (ranks < k).any():
        where = where_first(np.asarray(ranks < k))
        rank = np.atleast_1d(ranks)[np.atleast_1d(ranks) < k][0]
        raise ValueError(f"expected {k} independent columns of A{where}; got rank {rank}, d = {d}")
    return np.linalg.qr(A)[0]


def as_matrices(name: str, A: Array, ndim: int | None = None) -> Array:
    """`A` as finite real matrices (..., d, k), d and k at least 1; of exactly `ndim` axes where given."""
    A = check.finite(name, check.floating(name, A))
    if A.dtype.kind == "c":
        raise TypeError(f"expected {name} to be real; got {A.dtype}")
    if A.ndim < 2 or 0 in A.shape[-2:] or (ndim is not None and A.ndim != ndim):
        want = "(..., d, k)" if ndim is None else "(d, k)"
        raise ValueError(f"expected {name} of shape {want}, d and k at least 1; got {A.shape}")
    return A


def as_basis(name: str, A: Array, ndim: int | None = None) -> Array:
    """`A` (..., d, k) in float64, checked to be orthonormal to eps^(2/3), and made so to eps."""
    A = as_matrices(name, A, ndim)
    eps = np.finfo(A.dtype).eps
    A = A.astype(np.float64, copy=False)
    excess = matmul(A.mT, A) - np.eye(A.shape[-1])  # (..., k, k)
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
    A = A - matmul(A, excess / 2)
    while norm**2 > np.finfo(np.float64).eps:
        excess = matmul(A.mT, A) - np.eye(A.shape[-1])
        norm = np.linalg.norm(excess, axis=(-2, -1)).max(initial=0)
        A = A - matmul(A, excess / 2)
    return A


def undefined(A: Array) -> Array:
    """Which matrices (..., d, k) are NaN throughout, (...); none that are not floats, which others refuse."""
    A = check.unmasked("bases", A)
    return np.isnan(A).all(axis=(-2, -1)) & (A.size > 0) if A.ndim > 1 and A.dtype.kind == "f" else np.array(False)


def as_angles(theta: Array) -> Array:
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


def where_first(wrong: Array) -> str:
    """Where the first True of `wrong` (...) is, as an index to put after a name; nothing for a single matrix."""
    return str(np.argwhere(wrong)[0].tolist()) if wrong.ndim else ""
