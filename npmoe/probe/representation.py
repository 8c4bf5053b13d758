"""What the experts see: principal components of routed hidden states.

n tokens, d width, E experts.
"""

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.geometry.pca import Axes, Pca, n_eff, principal_axes, weighted_pca
from npmoe.probe.site import Site

__all__ = ["WEIGHTINGS", "overlaps", "routed_pca", "subspaces"]

Array = np.ndarray

#: Ways to read "PCA of the routed hidden states": covariance weighted by g_e; ordinary PCA of all rows sqrt(g_e) h, or
#: of all rows g_e h; ordinary PCA of the routed rows alone.
WEIGHTINGS = ("gates", "sqrt rows", "scaled rows", "routed rows")


def subspaces(site: Site, h: Array | None = None) -> Axes:
    """Covariance of each expert's tokens weighted by its gates, with eigenvectors: ``axes[:, :, :r]`` are r-dimensional
    subspaces, one an expert.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> subspaces(s).axes.shape
    (4, 3, 3)
    """
    return principal_axes(site.x if h is None else h, site.gates)


def overlaps(axes: Array) -> Array:
    """Mean cos^2 of the principal angles between the leading r-dimensional subspaces of each pair of experts, for
    every r at once, (E, d, d) -> (E, E, d): |U_r^T V_r|_F^2 / r, where column r - 1 is that of r.

    Two random subspaces have r / d.

    Examples
    --------
    >>> plane = np.eye(2)
    >>> overlaps(np.stack([plane, plane[:, ::-1]]))[0, 1]
    array([0., 1.])
    """
    E, d, _ = axes.shape
    larger = np.maximum.outer(np.arange(d), np.arange(d)).ravel()  # entry (i, j) counts from r = max(i, j) + 1 on
    out = np.empty((E, E, d))
    for a in range(E):
        for b in range(a, E):
            squares = matmul(axes[a].T, axes[b]) ** 2  # (d, d)
            out[a, b] = out[b, a] = np.bincount(larger, squares.ravel(), d).cumsum() / np.arange(1, d + 1)
    return out


def routed_pca(site: Site, weighting: str = "gates", h: Array | None = None, center: bool = True) -> Pca:
    """Principal components of what each expert is given, by one of `WEIGHTINGS`.

    Parameters
    ----------
    h : array (n, any), hidden states in the place of the Site's own x.
    center : subtract each expert's mean.

    Raises
    ------
    ValueError : for an unknown weighting.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> routed_pca(s).eigenvalues.shape
    (4, 3)
    """
    h = site.x if h is None else h
    if weighting == "gates":
        return weighted_pca(h, site.gates, center)
    if weighting == "routed rows":
        on = np.zeros(site.gates.shape)
        for e in range(site.E):
            on[site.rows(e), e] = 1
        return weighted_pca(h, on, center)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"expected a weighting among {', '.join(WEIGHTINGS)}; got {weighting!r}")
    power = 0.5 if weighting == "sqrt rows" else 1.0
    equal = np.ones((site.n, 1))
    parts = [weighted_pca(site.gates[:, e, None] ** power * h, equal, center) for e in range(site.E)]
    empty = ~(site.gates > 0).any(axis=0)
    eigenvalues = np.concatenate([part.eigenvalues for part in parts])
    eigenvalues[empty] = np.nan
    return Pca(eigenvalues, np.concatenate([part.mean for part in parts]), n_eff(site.gates))
