"""Exact statements about similar hidden states and similar routing, counted on pairs of tokens.

n tokens, d width, E routed experts (see `npmoe.probe.scores`), k experts a token, m pairs; W (E, d) is the router's
matrix over its temperature, C = I - 11^T/E centres over experts, Delta = W (x - y).
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import logsumexp, softmax
from npmoe.calculus.words import one_line
from npmoe.model.routing import mask, top_k
from npmoe.probe.scores import (
    hidden_states,
    higham_gamma,
    need_softmax,
    routed_count,
    router_weights,
    score_rounding,
    scores_of,
    seen_by_router,
    sums_to_one,
)
from npmoe.probe.site import Site
from npmoe.probe.walls import radius, unit_normals

__all__ = ["Statement", "Statements", "bounds"]

Array = np.ndarray
Rng = np.random.Generator


class Statement(NamedTuple):
    """One inequality, left <= right, on many pairs.

    checked : how many pairs it speaks of; violations : how many have left > right + allowance; worst : the largest
    left/(right + allowance), 1 at most if and only if none is violated; broken : how many of the pairs that it does
    *not* speak of violate it, for information.
    """

    name: str
    checked: int
    violations: int
    worst: float
    broken: int = 0

    def __repr__(self) -> str:
        return one_line(self)


class Statements(tuple[Statement, ...]):
    """All statements, in order; by name through `named`."""

    def named(self, name: str) -> Statement:
        """The statement of this name.

        Raises
        ------
        ValueError : if there is none.
        """
        for statement in self:
            if statement.name == name:
                return statement
        raise ValueError(f"expected a statement among {', '.join(s.name for s in self)}; got {name!r}")

    @property
    def violations(self) -> int:
        """Over all statements; 0 where the mathematics and the code agree."""
        return sum(statement.violations for statement in self)


def _statement(
    name: str, left: Array, right: Array, allowance: Array | float, on: Array | None = None, broken: int = 0
) -> Statement:
    """Count left <= right + allowance where `on`; a pair of equal zeros counts as 0."""
    on = np.ones(len(left), bool) if on is None else on
    total = right + allowance
    ratio = np.divide(left, total, out=np.where(left > 0, np.inf, 0.0), where=total > 0)[on]
    return Statement(name, int(on.sum()), int((ratio > 1).sum()), float(ratio.max(initial=0)), broken)


def _span(values: Array, on: Array | None = None) -> Array:
    """max - min over experts, of those that are on."""
    if on is None:
        return values.max(axis=1) - values.min(axis=1)
    return np.where(on, values, -np.inf).max(axis=1) - np.where(on, values, np.inf).min(axis=1)


def _centred_norm(values: Array, on: Array) -> Array:
    """|C v|_2 of each row, where C centres over the experts that are on."""
    mean = (values * on).sum(axis=1) / on.sum(axis=1)
    return np.linalg.norm((values - mean[:, None]) * on, axis=1)


def _soft(scores: Array, on: Array | bool = True) -> Array:
    with np.errstate(under="ignore"):  # gates that vanish are meant to
        return softmax(np.where(on, scores, -np.inf))


def bounds(site: Site, other: Array, rng: Rng | None = None) -> Statements:
    """The exact statements about "similar hidden states, similar routing" in both directions, counted on pairs.

    In order, with q the soft gates of the router's scores, g its gates, Delta = W (x - y), span = max - min:

    - "lipschitz, soft gates": |q(x) - q(y)|_2 <= 1/2 |C Delta|_2 (Nair, arXiv 2510.23012);
    - "lipschitz by sigma_1, soft gates": the same left side <= 1/2 sigma_1(C W) |x - y|;
    - "total variation, soft gates": 1/2 |q(x) - q(y)|_1 <= tanh(span(Delta)/4);
    - "lipschitz, one set", "total variation, one set": the same for g on pairs whose chosen sets agree. C and span go
      over the chosen set for pairs of which both gates sum to 1, else (Switch) over all experts, since g is there a
      part of q. `broken` counts pairs of different sets with more than the soft bound allows.
    - "hilbert, soft gates": span(log q(x) - log q(y)) = span(Delta); left is the difference, right the allowance;
    - "row part, soft gates": |Pi (x - y)| <= |C (log q(x) - log q(y))|_2 / sigma_min+(C W), Pi projects on row(C W);
    - "radius, inside": no point at 0.999 r(x) has another set, in three random directions and the worst one. The ratio
      is 1 - gap(y)/gap(x), gap the least score of the set of x less the largest outside;
    - "radius, beyond": r(x) (1 + 1e-6) along the normal has another one; the ratio is 1 + gap(y)/gap(x).

    Where the router takes all experts, q and g are the same.

    Parameters
    ----------
    other : floats (n, d), a partner for each token; or integers (m, 2), pairs of tokens of the Site.
    rng : directions for the radius, seeded with 0 unless given.

    Raises
    ------
    ValueError : for a Site without a router, or others that fit neither shape.

    Notes
    -----
    Allowances follow from the error delta of a score (`score_rounding`): the softmax is 1/2-Lipschitz and its own
    rounding is below gamma_{E + 8}; a span moves by 2 delta, a 2-norm by sqrt(E) delta; a subspace of C W turns by
    max(E, d) eps sigma_1(W)/sigma_min+. A radius is checked where the gap that is left exceeds delta.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=9, h=5, k=2), rng.standard_normal((50, 9)))
    >>> found = bounds(s, rng.standard_normal((50, 9)))
    >>> found.violations, found.named("total variation, soft gates").checked
    (0, 50)
    """
    need_softmax(site, "bounds")
    seen = seen_by_router(site, "bounds")
    x, y = _pairs(site, other)
    E = routed_count(site)
    k = E if site.chosen is None else site.chosen.shape[1]
    sx, sy = scores_of(site, x), scores_of(site, y)  # (m, E)
    Delta = matmul(x - y, seen.CW.T)  # (m, E), centred: by another way than the scores
    qx, qy = _soft(sx), _soft(sy)
    delta = score_rounding(site, x) + score_rounding(site, y)
    own = 4 * higham_gamma(E + 8)  # of two softmaxes, twice over
    distance = np.linalg.norm(x - y, axis=1)
    in_two, in_one = np.sqrt(E) * delta + own, delta + own

    away, tv = np.linalg.norm(qx - qy, axis=1), np.abs(qx - qy).sum(axis=1) / 2
    half, most = np.linalg.norm(Delta, axis=1) / 2, np.tanh(_span(Delta) / 4)
    sigma_1 = float(seen.sigma.max(initial=0))
    found = [
        _statement("lipschitz, soft gates", away, half, in_two),
        _statement("lipschitz by sigma_1, soft gates", away, sigma_1 * distance / 2, in_two + seen.zero * distance),
        _statement("total variation, soft gates", tv, most, in_one),
    ]

    Tx, Ty = (mask(top_k(s, k), E) for s in (sx, sy))
    same = (Tx == Ty).all(axis=1)
    raw = [np.asarray(site.router.gates(t))[:, :E] for t in (x, y)]  # type: ignore[union-attr]
    # of each pair: gates of Switch sum to 1 as well where they saturate, and its partner's need not
    over = Tx | ~(sums_to_one(raw[0]) & sums_to_one(raw[1]))[:, None]
    gx, gy = (g.astype(np.float64) for g in raw)
    away, tv = np.linalg.norm(gx - gy, axis=1), np.abs(gx - gy).sum(axis=1) / 2
    broken = [int((~same & (left > right)).sum()) for left, right in ((away, half + in_two), (tv, most + in_one))]
    tanh = np.tanh(_span(Delta, over) / 4)
    found += [
        _statement("lipschitz, one set", away, _centred_norm(Delta, over) / 2, in_two, same, broken[0]),
        _statement("total variation, one set", tv, tanh, in_one, same, broken[1]),
    ]

    # from log-gates, so that tiny gates do not spoil it; the log-sum-exp rounds by its own size, log E above a score
    moved = (sx - _lse(sx)) - (sy - _lse(sy))  # (m, E)
    in_logs = 4 * delta + 8 * higham_gamma(E + 8) * (1 + np.log(E))
    found.append(_statement("hilbert, soft gates", np.abs(_span(moved) - _span(Delta)), np.zeros(len(x)), 2 * in_logs))
    least = float(seen.sigma.min(initial=np.inf))
    seen_part = np.linalg.norm(matmul(x - y, seen.row), axis=1)
    right = np.linalg.norm(moved - moved.mean(axis=1, keepdims=True), axis=1) / least
    turned = (np.sqrt(E) * in_logs + 2 * seen.zero * distance) / least + higham_gamma(x.shape[1] + 4) * distance
    found.append(_statement("row part, soft gates", seen_part, right, turned))
    return Statements((*found, *_radius_statements(site, k, np.random.default_rng(0) if rng is None else rng)))


def _pairs(site: Site, other: Array) -> tuple[Array, Array]:
    other = np.asarray(other)
    x = hidden_states(site)
    if other.dtype.kind in "iu":
        if other.ndim != 2 or other.shape[1] != 2:
            raise ValueError(f"expected pairs of tokens of shape (m, 2); got {other.shape}")
        if other.size and (other.min() < 0 or other.max() >= site.n):
            raise ValueError(f"expected pairs of tokens within 0..{site.n - 1}; got {other.min()}..{other.max()}")
        return x[other[:, 0]], x[other[:, 1]]
    return x, check.finite("other", check.shaped("other", other, x.shape, "this Site")).astype(np.float64)


def _lse(scores: Array) -> Array:
    with np.errstate(under="ignore"):  # terms that vanish beside the largest
        return logsumexp(scores)[:, None]


def _radius_statements(site: Site, k: int, rng: Rng) -> list[Statement]:
    """ "radius, inside" and "radius, beyond" on all tokens of the Site."""
    found = radius(site)
    x, r = hidden_states(site), found.radius
    if not np.isfinite(r).any():
        return [Statement("radius, inside", 0, 0, 0.0), Statement("radius, beyond", 0, 0, 0.0)]
    finite = np.isfinite(r) & (r > 0)
    x, r, u = x[finite], r[finite], unit_normals(site, found)[finite]
    chosen = np.asarray(site.chosen)[finite]
    W, _ = router_weights(site, "bounds")
    on = mask(chosen, len(W))
    pair = r * np.linalg.norm(W[found.inside[finite]] - W[found.outside[finite]], axis=1)  # the margin that is used up

    def gap(y: Array) -> Array:
        s = scores_of(site, y)
        return np.where(on, s, np.inf).min(axis=1) - np.where(on, -np.inf, s).max(axis=1)

    def same(y: Array) -> Array:
        return (mask(top_k(scores_of(site, y), k), len(W)) == on).all(axis=1)

    here = gap(x)

    def judge(name: str, y: Array, stays: bool, left: Array) -> Statement:
        clear = (here > 0) & (left > 2 * (score_rounding(site, x) + score_rounding(site, y)))
        then = gap(y)[clear] / here[clear]
        ratio = 1 - then if stays else 1 + then
        wrong = same(y)[clear] != stays
        return Statement(name, int(clear.sum()), int(wrong.sum()), float(ratio.max(initial=0)))

    random = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.standard_normal((3, *x.shape))]
    inside = [judge("", x + 0.999 * r[:, None] * v, True, 0.001 * here) for v in (u, *random)]
    total = Statement(
        "radius, inside",
        sum(part.checked for part in inside),
        sum(part.violations for part in inside),
        max(part.worst for part in inside),
    )
    return [total, judge("radius, beyond", x + (r * (1 + 1e-6))[:, None] * u, False, 1e-6 * pair)]
