"""Distances of covariances, which need no dimension: Bures's, which takes singular ones, and the log-Euclidean.

d width; A and B (..., d, d) symmetric, without negative eigenvalues.
"""

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.geometry.bases import as_matrices, where_first

__all__ = ["bures", "log_euclidean", "pairwise_bures"]

Array = np.ndarray


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
    return _between(X, Y)


def pairwise_bures(C: Array) -> Array:
    """Bures distance of each pair of covariances (E, d, d) -> (E, E), each decomposed once; see `bures`.

    Examples
    --------
    >>> pairwise_bures(np.stack([np.diag([4.0, 1.0]), np.eye(2)])).round(12)
    array([[0., 1.],
           [1., 0.]])
    """
    X = _root("C", check.shaped("C", C, ("E", "d", "d")))
    a, b = np.triu_indices(len(X), 1)
    out = np.zeros((len(X), len(X)), X.dtype)
    out[a, b] = out[b, a] = _between(X[a], X[b])
    return out


def _between(X: Array, Y: Array) -> Array:
    """Bures distance of X X^T and Y Y^T."""
    U, _, Vt = np.linalg.svd(_product(Y, X))  # (..., d, d)
    return np.linalg.norm(X - matmul(Y, matmul(U, Vt)), axis=(-2, -1))


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
    A = as_matrices(name, A)
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
        return matmul(Y.mT, X)


def _log(name: str, A: Array, floor: float | None) -> Array:
    """Matrix logarithm of a symmetric matrix (..., d, d)."""
    values, vectors, noise = _eigen(name, A)
    if floor is not None:
        values = values + check.positive("floor", floor) * values.mean(axis=-1, keepdims=True)
    singular = np.asarray((values <= noise).any(axis=-1))
    if singular.any():
        where = where_first(singular)
        raise ValueError(
            f"expected {name}{where} positive definite; got a singular one, least eigenvalue {values.min()} beside "
            f"{values.max()}: give `floor`, relative to the mean eigenvalue, or take `bures`"
        )
    return matmul(vectors * np.log(values)[..., None, :], vectors.mT)
