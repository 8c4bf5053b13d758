"""What the experts see: principal components of routed hidden states.

n tokens, d width, E experts.
"""

import numpy as np

from npmoe.geometry.pca import Pca, n_eff, weighted_pca
from npmoe.probe.site import Site

__all__ = ["WEIGHTINGS", "routed_pca"]

Array = np.ndarray

#: Ways to read "PCA of the routed hidden states": covariance weighted by g_e; ordinary PCA of all rows sqrt(g_e) h, or
#: of all rows g_e h; ordinary PCA of the routed rows alone.
WEIGHTINGS = ("gates", "sqrt rows", "scaled rows", "routed rows")


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
