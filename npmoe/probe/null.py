"""Nulls made by chance. A null is a Site, so that it goes through the very code that it is a null of."""

from dataclasses import replace

import numpy as np

from npmoe.geometry.pca import n_eff
from npmoe.probe.site import Router, Site

__all__ = ["permuted_router", "random_router", "shuffled", "thinned"]


def shuffled(site: Site, rng: np.random.Generator) -> Site:
    """The Site with one random permutation of the rows of gates and chosen; x and experts stay.

    Rows move as wholes: columns shuffled apart would destroy that two experts share tokens, and show a separation
    that is not there. Permuted gates are no function of x, so the Site has no router: its Jacobian has one term.

    Examples
    --------
    >>> s = Site(x=np.eye(3), gates=np.eye(3))
    >>> t = shuffled(s, np.random.default_rng(1))
    >>> bool((t.x == s.x).all()), t.gates.sum(axis=1)
    (True, array([1., 1., 1.]))
    """
    order = rng.permutation(site.n)
    chosen = None if site.chosen is None else site.chosen[order]
    return replace(site, gates=site.gates[order], chosen=chosen, router=None, name=f"{site.name} shuffled".strip())


def thinned(site: Site, target: float, rng: np.random.Generator) -> Site:
    """The Site of a random subset of its tokens whose mean n_eff over the experts comes nearest to `target`.

    Raises
    ------
    ValueError : if the target is above what all tokens give, or below 1.

    Examples
    --------
    >>> s = Site(x=np.eye(8), gates=np.ones((8, 1)))
    >>> thinned(s, 5, np.random.default_rng(0)).n
    5
    """
    most = n_eff(site.gates).mean()
    if not 1 <= target <= most * (1 + 1e-12):
        raise ValueError(
            f"expected a mean n_eff within 1..{most:.4g}, what all tokens of {site.name!r} give; got {target}"
        )
    order = rng.permutation(site.n)
    W = site.gates[order] / np.maximum(site.gates.max(axis=0), np.finfo(site.gates.dtype).tiny)
    total, squares = np.cumsum(W, axis=0), np.cumsum(W**2, axis=0)
    # mean n_eff of the first m tokens of the order, for every m at once
    growth = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0).mean(axis=1)
    kept = np.sort(order[: int(np.abs(growth - target).argmin()) + 1])
    return replace(site.take(kept), name=f"{site.name} thinned".strip())


def random_router(site: Site, rng: np.random.Generator) -> Site:
    """The same hidden states behind a random router that is as sharp as the Site's, |C W|_F, and looks elsewhere.

    Raises
    ------
    ValueError : for a Site without a router.
    """
    site.need("random_router", "router")
    W = site.router.matrix  # type: ignore[union-attr]
    other = rng.standard_normal(W.shape)
    other *= np.linalg.norm(W - W.mean(axis=0)) / np.linalg.norm(other - other.mean(axis=0))
    return _routed_by(site, other)


def permuted_router(site: Site, rng: np.random.Generator) -> Site:
    """The same hidden states behind the Site's router with its coordinates permuted.

    Permuting its rows would relabel experts and change nothing.

    Raises
    ------
    ValueError : for a Site without a router.
    """
    site.need("permuted_router", "router")
    W = site.router.matrix  # type: ignore[union-attr]
    return _routed_by(site, W[:, rng.permutation(W.shape[1])])


def _routed_by(site: Site, W: np.ndarray) -> Site:
    moe = replace(site.router.moe, router=W)  # type: ignore[union-attr]
    _, chosen = moe.route(site.x)
    router = Router(moe)
    return replace(site, gates=router.gates(site.x), chosen=chosen, router=router)
