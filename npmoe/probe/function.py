"""What the experts do: norms and spectra of their Jacobians, alignment, curvature, the router's share.

n tokens, d width, o output width, E experts. Each expert is visited once, in order, and only what is small is kept; the
one exception is the whole layer's Jacobian at every token, for which each is visited once for every 128 tokens.
An expert that no token reaches has NaN.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from npmoe.calculus.factored import Factored
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import LONG, each
from npmoe.calculus.words import one_line
from npmoe.geometry.spectra import energy
from npmoe.probe.site import Site, Visit, visits

__all__ = [
    "NORMS",
    "LayerNorms",
    "Survey",
    "TokenSpectra",
    "curvature",
    "layer_jacobians",
    "layer_norms",
    "leading_values",
    "mean_jacobians",
    "mean_spectra",
    "norms",
    "router_share",
    "survey",
    "token_spectra",
    "weight_norms",
]

Array = np.ndarray
T = TypeVar("T")

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
    d = site.x.shape[1]
    mean = _each(lambda visit: visit.J.mean(visit.weights), site, over, "mean_jacobians", max(site.x.size // 8, d * d))
    return _filled(mean, site)


def mean_spectra(site: Site, over: str = "routed") -> Array:
    """Singular values of each expert's mean Jacobian, (E, min(o, d)), through the small core where h is below o and d.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=6, h=2, k=2), rng.standard_normal((9, 6)))
    >>> (mean_spectra(s) > 1e-9).sum(axis=1)
    array([2, 2, 2, 2])
    """
    found = _each(lambda visit: visit.J.averaged(visit.weights).singular_values()[0], site, over, "mean_spectra")
    return _filled(found, site)


def _each(measure: Callable[[Visit], T], site: Site, over: str, probe: str, elements: int = LONG) -> dict[int, T]:
    """What `measure` says of each expert that some weight reaches, by its number; experts side by side.

    Where nearly all of the work is element-wise, `elements` is an eighth of the tokens' numbers (or those of a mean):
    NumPy's calls are then shorter than elsewhere, and two threads pay only for larger batches.
    """

    def numbered(visit: Visit) -> tuple[int, T]:
        return visit.e, measure(visit)

    if site.E == 1:  # `each` cannot count what comes from a generator: a single expert keeps all threads of BLAS
        return dict(map(numbered, visits(site, over, probe)))
    return dict(each(numbered, visits(site, over, probe), elements=elements))


class Survey(NamedTuple):
    """norms (E, 8) in the order of `NORMS`, and the mean Jacobians (E, o, d)."""

    norms: Array
    means: Array

    def __repr__(self) -> str:
        return one_line(self)

    def table(self) -> dict[str, Array]:
        """The norms by their names, each (E,): what ``pandas.DataFrame`` takes as it is, a row for each expert.

        Examples
        --------
        >>> import npmoe
        >>> rng = np.random.default_rng(0)
        >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
        >>> list(survey(s).table())[:2]
        ['sigma mean', 'sigma token']
        """
        return dict(zip(NORMS, self.norms.T, strict=True))


def survey(site: Site, over: str = "routed", tokens: bool = True, tol: float = 1e-6) -> Survey:
    """Norms of each expert's Jacobians and the mean Jacobians, from one visit to each expert.

    Parameters
    ----------
    over : "routed", weighted by gates, or "all", every token alike.
    tokens : without, the two leading values per token, the only ones that are not closed forms, are left NaN.
    tol : relative error of these two (Lanczos).
    """

    def measure(visit: Visit) -> tuple[Array, Array]:
        mean = visit.J.mean(visit.weights)
        return np.array(_norms(visit.J, mean, visit.weights, tokens, tol)), mean

    found = _each(measure, site, over, "survey")
    return Survey(*(_filled({e: pair[i] for e, pair in found.items()}, site) for i in (0, 1)))


def norms(site: Site, over: str = "routed", tokens: bool = True, tol: float = 1e-6) -> Array:
    """The first half of a `survey`: norms of each expert's Jacobians, (E, 8) in the order of `NORMS`."""
    return survey(site, over, tokens, tol).norms


def _filled(found: dict[int, Array], site: Site) -> Array:
    """What was found for some experts as an array over all, NaN for the others."""
    if not found:
        raise ValueError(f"expected an expert that some token reaches; the Site {site.name!r} has none")
    one = next(iter(found.values()))
    out = np.full((site.E, *one.shape), np.nan, one.dtype)
    for e, value in found.items():
        out[e] = value
    return out


def _norms(J: Factored, mean: Array, weights: Array, tokens: bool, tol: float) -> tuple[float, ...]:
    """One row of `norms`."""
    w = weights / weights.sum()
    frob = J.frobenius()
    sigma = J.leading(tol).values if tokens else np.full(len(J), np.nan)
    visited = weights > 0
    return (
        float(np.linalg.norm(mean, 2)),
        float(matmul(w, sigma)),
        float(sigma[visited].max()),
        float(np.sqrt(max(np.linalg.eigvalsh(J.second_moment(weights))[-1], 0))),
        float(np.linalg.norm(mean)),
        float(matmul(w, frob)),
        float(frob[visited].max()),
        float(np.sqrt(matmul(weights, frob**2))),
    )


def weight_norms(site: Site) -> Array:
    """Product of the spectral norms of each GELU expert's weights, |W2|_2 |W1|_2, (E,): a bound of its Jacobian's."""
    site.need("weight_norms", "experts")
    out = np.zeros(site.E)
    for e, f in enumerate(site.experts or ()):
        if not hasattr(f, "W2"):
            raise ValueError(f"weight_norms needs two-layer experts with W1 and W2; got {type(f).__name__}")
        out[e] = np.linalg.norm(f.W2, 2) * np.linalg.norm(f.W1, 2)
    return out


def leading_values(site: Site, over: str = "routed", tol: float = 1e-6) -> Array:
    """Leading singular value of each expert's Jacobian at every token that it is measured on, (n, E), by Lanczos.

    NaN where an expert does not see a token. No Jacobian is formed: memory is that of one expert's weights.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> np.isfinite(leading_values(s)).sum(axis=1)
    array([2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    out = np.full((site.n, site.E), np.nan)
    for e, (rows, sigma) in _each(lambda v: (v.rows, v.J.leading(tol).values), site, over, "leading_values").items():
        out[rows, e] = sigma
    return out


class TokenSpectra(NamedTuple):
    """Means over tokens, weighted by gates: sigma (E, r); cumulative shares of sigma^2 and of sigma, each (E, r)."""

    sigma: Array
    energy: Array
    energy_sigma: Array

    def __repr__(self) -> str:
        return one_line(self)


def token_spectra(site: Site, over: str = "routed") -> TokenSpectra:
    """Exact spectra of every token's Jacobian, streamed, and averaged for each expert ("the mean of the SVDs")."""

    def measure(visit: Visit) -> Array:
        total = 0
        for piece, J in visit.J.pieces():
            sigma = J.singular_values()  # (m, r)
            # a Jacobian of zeros has no shares; it counts with its zero sigma only
            parts = np.nan_to_num(np.stack([sigma, energy(sigma**2), energy(sigma)]))  # (3, m, r)
            total = total + matmul(visit.weights[piece], parts)
        return total / visit.weights.sum()

    return TokenSpectra(*_filled(_each(measure, site, over, "token_spectra"), site).transpose(1, 0, 2))


def curvature(site: Site, over: str = "routed") -> Array:
    """Root mean square over tokens of each GELU expert's Hessian norm, (E,); closed form."""

    def measure(visit: Visit) -> Array:
        if not hasattr(visit.expert, "hessian_norm"):
            raise ValueError(f"curvature needs experts with a hessian_norm; got {type(visit.expert).__name__}")
        w = visit.weights / visit.weights.sum()
        return np.sqrt(matmul(w, visit.expert.hessian_norm(visit.x) ** 2))

    return _filled(_each(measure, site, over, "curvature"), site)


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


class LayerNorms(NamedTuple):
    """Norms of the whole layer's Jacobian without and with the router's term, each (8,) in the order of `NORMS`, and
    the router's share at every token, |J_router|_F / (|J_experts|_F + |J_router|_F), (n,)."""

    experts: Array
    whole: Array
    share: Array

    def __repr__(self) -> str:
        return one_line(self)


def layer_norms(site: Site) -> LayerNorms:
    """Norms of the whole layer's Jacobian and the router's share of it; exact, streamed in pieces of tokens."""
    parts = [_Norms(site.n), _Norms(site.n)]
    share = np.zeros(site.n)
    for rows, first, second in layer_jacobians(site):
        share[rows] = _share(first, second)
        parts[0].add(rows, first)
        first += second
        parts[1].add(rows, first)
    return LayerNorms(parts[0].finish(), parts[1].finish(), share)


def router_share(site: Site) -> Array:
    """The last of `layer_norms` alone: |J_router|_F / (|J_experts|_F + |J_router|_F) at every token, (n,)."""
    share = np.zeros(site.n)
    for rows, first, second in layer_jacobians(site):
        share[rows] = _share(first, second)
    return share


def _share(experts: Array, router: Array) -> Array:
    a, b = np.linalg.norm(experts, axis=(1, 2)), np.linalg.norm(router, axis=(1, 2))
    return np.divide(b, a + b, out=np.zeros_like(b), where=a + b > 0)


class _Norms:
    """The eight norms of a stack of Jacobians that comes in pieces."""

    def __init__(self, n: int) -> None:
        self.sigma, self.frob = np.zeros(n), np.zeros(n)
        self.total: Array | float = 0.0
        self.moment: Array | float = 0.0

    def add(self, rows: slice, J: Array) -> None:
        self.sigma[rows] = np.linalg.svd(J, compute_uv=False)[:, 0]
        self.frob[rows] = np.linalg.norm(J, axis=(1, 2))
        flat = J.reshape(-1, J.shape[2])
        self.total = self.total + J.sum(axis=0)
        self.moment = self.moment + matmul(flat.T, flat)

    def finish(self) -> Array:
        mean, sigma, frob = np.asarray(self.total) / len(self.sigma), self.sigma, self.frob
        stack = np.sqrt(np.linalg.eigvalsh(self.moment)[-1])
        of_mean = np.linalg.norm(mean, 2), np.linalg.norm(mean)
        frob_stack = np.sqrt((frob**2).sum())
        return np.array([of_mean[0], sigma.mean(), sigma.max(), stack, of_mean[1], frob.mean(), frob.max(), frob_stack])
