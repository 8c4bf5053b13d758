"""A Site's router in float64: its matrix over the temperature, its scores, what of them rounding may change.

n tokens, d width, E experts, r rank.

W (E, d) is always the router's matrix over its temperature, w_e its rows, C = I - 11^T/E centres over experts.
Everything is computed in float64, whatever the model's dtype: float32 numbers are float64 numbers too.

Of a Site with experts that every token visits unrouted (`always`), E is the number of the routed ones,
site.E - site.always: no router chose the others, and the router's matrix has no rows for them.
"""

from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line
from npmoe.probe.site import Site

__all__ = [
    "EPS",
    "Seen",
    "alone",
    "hidden_states",
    "higham_gamma",
    "need_softmax",
    "routed_count",
    "router_weights",
    "score_rounding",
    "scores_of",
    "seen_by_router",
    "sums_to_one",
]

Array = np.ndarray

EPS = float(np.finfo(np.float64).eps)


def routed_count(site: Site) -> int:
    """Number of experts that the router chooses from."""
    if site.always == site.E:
        raise ValueError(f"expected routed experts of the Site {site.name!r}; got {site.E}, all visited always")
    return site.E - site.always


def router_weights(site: Site, probe: str) -> tuple[Array, Array]:
    """W (E, d) and bias (E,), both over the temperature, in float64; a router that knows none has temperature 1."""
    site.need(probe, "router")
    router: Any = site.router
    temperature = float(getattr(router, "temperature", 1.0))
    effective = getattr(router, "effective", None)
    # one that is narrower than float64 was rounded by its division, while scores of float64 x are not: allowances are
    # of float64, so that it is divided once more where it can be
    if effective is None or (np.asarray(effective).dtype != np.float64 and hasattr(router, "temperature")):
        effective = np.asarray(router.matrix, np.float64) / temperature
    W = np.asarray(effective, np.float64)
    b = np.zeros(len(W)) if router.bias is None else np.asarray(router.bias, np.float64)
    wanted = (routed_count(site), site.x.shape[1])
    if W.shape != wanted:
        unrouted = f" but the last {site.always}, which are visited always" if site.always else ""
        raise ValueError(
            f"expected a router matrix of shape {wanted} of the Site {site.name!r}, a row for each column of "
            f"gates{unrouted}; got {W.shape}"
        )
    return W, b / temperature


def hidden_states(site: Site) -> Array:
    """The Site's x, (n, d), in float64."""
    return np.asarray(site.x, np.float64)


def scores_of(site: Site, x: Array) -> Array:
    """The router's own scores of x, (n, E), in float64."""
    return np.asarray(site.router.scores(x), np.float64)[:, : routed_count(site)]  # type: ignore[union-attr]


def alone(site: Site) -> bool:
    """Whether each gate follows from its own score, as a sigmoid's: such a router sees W x, not C W x alone."""
    return getattr(getattr(site.router, "gate", None), "scores", "softmax") == "sigmoid"


def need_softmax(site: Site, probe: str, gates: bool = True) -> None:
    """Raise a ValueError where the choice is not by scores alone or, with `gates`, gates are not a plain softmax's."""
    gate = getattr(site.router, "gate", None)
    if gate is None:
        return
    by_scores = gate.selection is None and gate.groups is None and gate.scores != "sparsemixer"
    plain = by_scores and gate.scores == "softmax" and gate.scale == 1
    if not (plain if gates else by_scores):
        of = "gates of a softmax without a scale" if gates else "a choice by scores alone"
        raise ValueError(f"{probe} needs {of}; the Site {site.name!r} has {gate!r}")


class Seen(NamedTuple):
    """C W (E, d) taken apart: sigma (r,), row (d, r), and what counts as zero among sigma.

    Of a router whose gates are each a sigmoid of its own score, W takes the place of C W.
    """

    CW: Array
    sigma: Array
    row: Array
    zero: float

    def __repr__(self) -> str:
        return one_line(self)


def seen_by_router(site: Site, probe: str) -> Seen:
    """What of x the router sees: C W and its row space; `probe` is named where the Site has no router."""
    W, _ = router_weights(site, probe)
    E, d = W.shape
    shifts = not alone(site)  # a constant on all scores changes no gate
    CW = W - W.mean(axis=0) if shifts else W
    _, sigma, Vt = np.linalg.svd(CW, full_matrices=False)  # Vt (min(E, d), d): the kernel is projected on, not spanned
    # beside sigma_1(W), not sigma_1(C W): the subtraction rounds by the size of W, whose rows may share a large mean
    zero = max(E, d) * EPS * float(np.linalg.norm(W, 2))
    r = min(int((sigma > zero).sum()), E - shifts)
    return Seen(CW, sigma[:r], Vt[:r].T, zero)


# Rounding


def higham_gamma(terms: int, eps: float = EPS) -> float:
    """Higham's gamma_m = m u/(1 - m u), u = eps/2: the relative error of a sum of m products, over their sizes."""
    return terms * eps / 2 / (1 - terms * eps / 2)


def score_rounding(site: Site, x: Array, eps: float = EPS) -> Array:
    """Bound on the error of any score of x, centred or not, (n,).

    A score is a dot product of d terms plus a bias, divided by the temperature; centring a row of W sums E numbers and
    at most doubles its size. So gamma_{d + E + 4} times twice the largest of sum_i |x_i w_ei| + |b_e| (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, 3.1).
    """
    W, b = router_weights(site, "bounds")
    return 2 * higham_gamma(sum(W.shape) + 4, eps) * (matmul(np.abs(x), np.abs(W).T) + np.abs(b)).max(axis=1)


def sums_to_one(gates: Array) -> Array:
    """Whose gates (n, E) sum to 1, within the rounding of their own dtype, (n,)."""
    eps = float(np.finfo(gates.dtype).eps)
    return np.abs(gates.sum(axis=1, dtype=np.float64) - 1) <= higham_gamma(2 * (gates.shape[1] + 8), eps)
