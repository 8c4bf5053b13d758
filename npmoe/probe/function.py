"""What the experts do: norms and spectra of their Jacobians, alignment, curvature, the router's share.

n tokens, d width, o output width, E experts. Each expert is visited once, in order, and only what is small is kept.
An expert that no token reaches has NaN.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npmoe.calculus.factored import Factored
from npmoe.geometry.spectra import energy
from npmoe.probe.site import Site, visits

__all__ = [
    "NORMS",
    "TokenSpectra",
    "curvature",
    "layer_jacobians",
    "layer_norms",
    "mean_jacobians",
    "norms",
    "router_share",
    "token_spectra",
    "weight_norms",
]

Array = np.ndarray

#: The readings of "the Jacobian's norm". sigma: leading value, frob: Frobenius norm; of the mean Jacobian (mean); per
#: token, its weighted mean and its maximum (token, peak); of the rows sqrt(w_n) J_n stacked (stack).
NORMS = (
    "sigma mean", "sigma token", "sigma peak", "sigma stack", "frob mean", "frob token", "frob peak", "frob stack",
)  # fmt: skip


def mean_jacobians(site: Site, over: str = "routed") -> Array:
    """Mean Jacobian of each expert, (E, o, d), weighted by its gates ("routed") or over all tokens ("all").

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> mean_jacobians(s).shape
    (4, 3, 3)
    """
    means: Array | None = None
    for visit in visits(site, over, "mean_jacobians"):
        mean = visit.J.mean(visit.weights)
        if means is None:
            means = np.full((site.E, *mean.shape), np.nan, mean.dtype)
        means[visit.e] = mean
    if means is None:
        raise ValueError(f"expected an expert that some token reaches; the Site {site.name!r} has none")
    return means


def norms(site: Site, over: str = "routed", tokens: bool = True, tol: float = 1e-6) -> Array:
    """Norms of each expert's Jacobians, (E, 8) in the order of `NORMS`.

    Parameters
    ----------
    tokens : without, the two leading values per token, the only ones that are not closed forms, are left NaN.
    tol : relative error of these two (Lanczos).
    """
    out = np.full((site.E, len(NORMS)), np.nan)
    for visit in visits(site, over, "norms"):
        out[visit.e] = _norms(visit.J, visit.weights, tokens, tol)
    return out


def _norms(J: Factored, weights: Array, tokens: bool, tol: float) -> tuple[float, ...]:
    """One row of `norms`."""
    mean = J.mean(weights)
    w = weights / weights.sum()
    frob = J.frobenius()
    sigma = J.leading(tol).values if tokens else np.full(len(J), np.nan)
    visited = weights > 0
    return (
        float(np.linalg.norm(mean, 2)),
        float(w @ sigma),
        float(sigma[visited].max()),
        float(np.sqrt(max(np.linalg.eigvalsh(J.second_moment(weights))[-1], 0))),
        float(np.linalg.norm(mean)),
        float(w @ frob),
        float(frob[visited].max()),
        float(np.sqrt(weights @ frob**2)),
    )


def weight_norms(site: Site) -> Array:
    """Product of the spectral norms of each GELU expert's weights, |W2|_2 |W1|_2, (E,): a bound of its Jacobian's."""
    site.need("weight_norms", "experts")
    return np.array([np.linalg.norm(f.W2, 2) * np.linalg.norm(f.W1, 2) for f in site.experts or ()])


class TokenSpectra(NamedTuple):
    """Means over tokens, weighted by gates: sigma (E, r); cumulative shares of sigma^2 and of sigma, each (E, r)."""

    sigma: Array
    energy: Array
    energy_sigma: Array


def token_spectra(site: Site, over: str = "routed") -> TokenSpectra:
    """Exact spectra of every token's Jacobian, streamed, and averaged for each expert ("the mean of the SVDs")."""
    rows: list[tuple[int, list[Array]]] = []
    for visit in visits(site, over, "token_spectra"):
        sums: list[Array] = [np.zeros(0)] * 3
        for piece, J in visit.J.pieces():
            sigma = J.singular_values()  # (m, r)
            w = visit.weights[piece] / visit.weights.sum()
            parts = [sigma, energy(sigma**2), energy(sigma)]
            # a Jacobian of zeros has no shares; it counts with its zero sigma only
            parts = [w @ np.nan_to_num(part) for part in parts]
            sums = [part if not s.size else s + part for s, part in zip(sums, parts, strict=True)]
        rows.append((visit.e, sums))
    if not rows:
        raise ValueError(f"expected an expert that some token reaches; the Site {site.name!r} has none")
    out = np.full((3, site.E, rows[0][1][0].size), np.nan)
    for e, sums in rows:
        out[:, e] = sums
    return TokenSpectra(*out)


def curvature(site: Site, over: str = "routed") -> Array:
    """Root mean square over tokens of each GELU expert's Hessian norm, (E,); closed form."""
    out = np.full(site.E, np.nan)
    for visit in visits(site, over, "curvature"):
        w = visit.weights / visit.weights.sum()
        out[visit.e] = np.sqrt(w @ visit.expert.hessian_norm(site.x[visit.rows]) ** 2)
    return out


def layer_jacobians(site: Site, piece: int = 128) -> Iterator[tuple[slice, Array, Array]]:
    """The two terms of the whole layer's Jacobian, for consecutive runs of tokens.

    Yields
    ------
    rows, experts (m, o, d), router (m, o, d) : sum_e g_e J_e and sum_e f_e dg_e^T. Without a router (a dense model,
        shuffled gates of a recorded trace) the second is zero.

    Notes
    -----
    Memory is that of `piece` tokens; every expert is visited once a piece.
    """
    site.need("layer_jacobians", "experts")
    experts = site.experts or ()
    for start in range(0, site.n, piece):
        rows = slice(start, min(start + piece, site.n))
        x, gates = site.x[rows], site.gates[rows]
        dgates = None if site.router is None else site.router.jacobian(x)  # (m, E, d)
        first: Array | None = None
        second: Array | None = None
        for e, expert in enumerate(experts):
            on = site.rows(e)
            on = on[(on >= rows.start) & (on < rows.stop)] - rows.start
            J = expert.linearize(x[on]).dense()  # (m_e, o, d)
            if first is None or second is None:
                first = np.zeros((len(x), *J.shape[1:]), J.dtype)
                second = np.zeros_like(first)
            first[on] += gates[on, e, None, None] * J
            if dgates is not None:
                second[on] += expert.forward(x[on])[0][:, :, None] * dgates[on, e, None, :]
        if first is not None and second is not None:
            yield rows, first, second


def layer_norms(site: Site, router: bool = True) -> Array:
    """Norms of the whole layer's Jacobian with or without the router's term, (8,) in the order of `NORMS`."""
    total = moment = frob_sum = None
    sigma, frob = np.zeros(site.n), np.zeros(site.n)
    for rows, J, second in layer_jacobians(site):
        if router:
            J += second
        sigma[rows] = np.linalg.svd(J, compute_uv=False)[:, 0]
        frob[rows] = np.linalg.norm(J, axis=(1, 2))
        flat = J.reshape(-1, J.shape[2])
        total = J.sum(axis=0) if total is None else total + J.sum(axis=0)
        moment = flat.T @ flat if moment is None else moment + flat.T @ flat
    if total is None or moment is None:
        raise ValueError(f"expected at least one token; the Site {site.name!r} has none")
    mean = total / site.n
    frob_sum = np.sqrt((frob**2).sum())
    stack = np.sqrt(np.linalg.eigvalsh(moment)[-1])
    return np.array(
        [
            np.linalg.norm(mean, 2), sigma.mean(), sigma.max(), stack,
            np.linalg.norm(mean), frob.mean(), frob.max(), frob_sum,
        ]
    )  # fmt: skip


def router_share(site: Site) -> Array:
    """The router's share of the whole Jacobian at every token, |J_router|_F / (|J_experts|_F + |J_router|_F), (n,)."""
    site.need("router_share", "router")
    share = np.zeros(site.n)
    for rows, first, second in layer_jacobians(site):
        a, b = np.linalg.norm(first, axis=(1, 2)), np.linalg.norm(second, axis=(1, 2))
        share[rows] = np.divide(b, a + b, out=np.zeros_like(b), where=a + b > 0)
    return share
