"""Weighted principal components, one set of weights an expert, and the effective sample size behind them.

n tokens, d width, E experts.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import each
from npmoe.calculus.words import one_line

__all__ = ["Axes", "Pca", "n_eff", "principal_axes", "weighted_pca"]

Array = np.ndarray


class Pca(NamedTuple):
    """Eigenvalues of the covariances, descending (E, d); means (E, d); n_eff (E,). An expert without weight has NaN."""

    eigenvalues: Array
    mean: Array
    n_eff: Array

    def __repr__(self) -> str:
        return one_line(self)


class Axes(NamedTuple):
    """Eigenvalues of the covariances, descending (E, d), and eigenvectors as columns in their order, (E, d, d)."""

    eigenvalues: Array
    axes: Array

    def __repr__(self) -> str:
        return one_line(self)


def n_eff(W: Array) -> Array:
    """Effective sample size (sum w)^2 / sum w^2 of each column (Kish), (n, E) -> (E,); 0 for a column of zeros.

    Examples
    --------
    >>> n_eff(np.array([[1.0, 1.0], [1.0, 0.0]]))
    array([2., 1.])
    """
    W = check.finite("weights", check.shaped("weights", W, ("n", "E")))
    if (W < 0).any():
        raise ValueError(f"expected non-negative weights; got {W.min()}")
    # divided by the largest first: squares of tiny gates must not vanish
    top = W.max(axis=0, initial=0)
    scaled = np.divide(W, top, out=np.zeros_like(W), where=top > 0)
    total, squares = scaled.sum(axis=0), (scaled**2).sum(axis=0)
    return np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)


def weighted_pca(x: Array, W: Array, center: bool = True) -> Pca:
    """Spectra of the covariances C_e = sum_n w_ne (x_n - mu_e)(x_n - mu_e)^T / sum_n w_ne, one for each column of W.

    Parameters
    ----------
    x : array (n, d).
    W : array (n, E), non-negative. A column of zeros has no covariance: its eigenvalues are NaN, its n_eff 0.
    center : subtract the weighted mean mu_e; else second moments about the origin.

    Raises
    ------
    ValueError, TypeError : for shapes that do not fit, NaN, negative weights, or weights that are all zero.

    Examples
    --------
    >>> weighted_pca(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones((2, 1))).eigenvalues
    array([[1., 0.]])
    """
    eigenvalues, mu = _decomposed(x, W, center, axes=False)
    return Pca(eigenvalues, mu, n_eff(W))


def principal_axes(x: Array, W: Array, center: bool = True) -> Axes:
    """As `weighted_pca`, with the eigenvectors; where fewer than d tokens count, those of eigenvalue 0 are any basis.

    Examples
    --------
    >>> np.abs(principal_axes(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones((2, 1))).axes)
    array([[[1., 0.],
            [0., 1.]]])
    """
    eigenvalues, _, axes = _decomposed(x, W, center, axes=True)
    return Axes(eigenvalues, axes)


def _decomposed(x: Array, W: Array, center: bool, axes: bool) -> list[Array]:
    """Eigenvalues (E, d), means (E, d) and, where asked, eigenvectors (E, d, d) of each column's covariance."""
    x = check.finite("x", check.shaped("x", x, ("n", "d")))
    W = check.finite("weights", check.shaped("weights", W, (len(x), "E"), "these tokens"))
    if (W < 0).any():
        raise ValueError(f"expected non-negative weights; got {W.min()}")
    if not (W > 0).any():
        raise ValueError("expected weights of which some are positive; got zeros only")
    x = x.astype(np.float64, copy=False)

    def spectrum(w: Array) -> tuple[Array, ...]:
        rows = np.flatnonzero(w)
        if not len(rows):
            return tuple(np.full((x.shape[1],) * ndim, np.nan) for ndim in (1, 1, 2)[: 2 + axes])
        if len(rows) == len(x):
            w, X = w.astype(np.float64), x
        else:
            w, X = w[rows].astype(np.float64), x[rows]
        w /= w.max()  # the sum of subnormal weights must not be 0
        w /= w.sum()
        mu = matmul(w, X) if center else np.zeros(x.shape[1])
        X = X - mu
        X *= np.sqrt(w)[:, None]
        covariance = matmul(X.T, X)  # (d, d)
        if axes:
            values, vectors = np.linalg.eigh(covariance)
            return np.maximum(values[::-1], 0), mu, vectors[:, ::-1]
        return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0), mu  # rounding leaves -1e-17

    found = each(spectrum, W.T, elements=max(x.size // 8, x.shape[1] ** 2))
    return [np.array(part) for part in zip(*found, strict=True)]
