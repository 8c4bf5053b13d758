"""How far a token is from another choice of experts, and what the layer does at that wall.

n tokens, d width, o output width, E routed experts (see `npmoe.probe.scores`), k experts a token, m steps; W (E, d) is
the router's matrix over its temperature, w_e its rows.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import parts
from npmoe.calculus.words import one_line
from npmoe.model.routing import mask, top_k
from npmoe.probe.scores import hidden_states, need_softmax, routed_count, router_weights, score_rounding
from npmoe.probe.site import Site

__all__ = ["Radius", "Wall", "radius", "unit_normals", "wall", "wall_point"]

Array = np.ndarray
Rng = np.random.Generator

_PIECE = 1 << 21  # numbers that `radius` holds at a time: 16 MB


# ---- how far to the next choice ------------------------------------------------------------------------------------


class Radius(NamedTuple):
    """radius (n,), and the pair that attains it: the chosen expert that leaves, inside (n,), and the one that comes in
    its place, outside (n,). Infinite and -1 where no step changes the set."""

    radius: Array
    inside: Array
    outside: Array

    def __repr__(self) -> str:
        return one_line(self)


def radius(site: Site) -> Radius:
    """Certified routing radius r(x) = min over e in T, j not in T of (s_e - s_j)/|w_e - w_j|, in units of x.

    The set T is the cell of a polyhedron with one wall s_e = s_j a pair, and r is the distance of x from the nearest of
    them: no shorter step changes the set, and the step r along the normal w_j - w_e reaches the wall. Two equal rows
    have no wall between them: their scores differ by their biases everywhere, and where these are equal too the lower
    index wins everywhere. A tie of other rows lies on the wall: radius 0.

    Returns
    -------
    Radius : infinite where all experts are chosen, or all not chosen have rows equal to all chosen.

    Raises
    ------
    ValueError : for a Site without a router, or whose choice is not that of its router's largest scores.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> r = radius(s)
    >>> past = wall_point(s, r, beyond=0.01)
    >>> new = np.sort(s.router.moe.route(past)[1], axis=1)
    >>> bool((new != np.sort(s.chosen, axis=1)).any(axis=1).all())
    True
    """
    W, b = router_weights(site, "radius")
    need_softmax(site, "radius", gates=False)
    n, E = site.n, routed_count(site)
    chosen = site.chosen
    if chosen is None or chosen.shape[1] == E:
        return Radius(np.full(n, np.inf), np.full(n, -1), np.full(n, -1))
    x = hidden_states(site)
    s = matmul(x, (W - W.mean(axis=0)).T) + (b - b.mean())  # (n, E); differences of scores lose less once centred
    on = mask(chosen, E)
    # the Site chose in its own dtype; within its rounding the order may be another one in float64
    slack = 2 * score_rounding(site, x, float(np.finfo(np.result_type(site.x, site.router.matrix)).eps))  # type: ignore
    short = np.where(on, s, np.inf).min(axis=1) - np.where(on, -np.inf, s).max(axis=1) + slack
    if (short < 0).any():
        at = int(short.argmin())
        raise ValueError(
            f"expected chosen of the Site {site.name!r} to be its router's {chosen.shape[1]} largest scores; got "
            f"{sorted(chosen[at].tolist())} at token {at}, whose largest are {top_k(s[[at]], chosen.shape[1])[0]}"
        )
    gaps = np.array([np.linalg.norm(W - w, axis=1) for w in W])  # (E, E)
    inside, outside = np.zeros(n, int), np.zeros(n, int)
    found = np.zeros(n, bool)
    for rows in parts(n, max(1, _PIECE // (chosen.shape[1] * E))):
        # worst first: of chosen experts with equal scores everywhere it is the higher index that leaves
        T = chosen[rows, ::-1]  # (p, k)
        margin = np.take_along_axis(s[rows], T, axis=1)[:, :, None] - s[rows][:, None, :]  # (p, k, E)
        walls = ~on[rows][:, None, :] & (gaps[T] > 0)  # (p, k, E)
        distance = np.divide(margin, gaps[T], out=np.full(margin.shape, np.inf), where=walls)
        flat = distance.reshape(len(T), -1)
        best = flat.argmin(axis=1)
        inside[rows] = np.take_along_axis(T, best[:, None] // E, axis=1)[:, 0]
        outside[rows] = best % E
        found[rows] = np.isfinite(flat.min(axis=1))
    across = W[inside] - W[outside]  # (n, d)
    # once more for the pair alone, from the difference of the rows: nearly equal rows cancel before the sum, not after
    margin = np.einsum("nd,nd->n", x, across) + b[inside] - b[outside]
    r = np.divide(np.maximum(margin, 0), gaps[inside, outside], out=np.full(n, np.inf), where=found)
    return Radius(r, np.where(found, inside, -1), np.where(found, outside, -1))


def unit_normals(site: Site, found: Radius) -> Array:
    """Unit vectors towards the nearest wall, (n, d); NaN where there is none."""
    W, _ = router_weights(site, "wall_point")
    across = W[found.outside] - W[found.inside]
    across[found.inside < 0] = np.nan
    return across / np.linalg.norm(across, axis=1, keepdims=True)


def wall_point(site: Site, radius: Radius, beyond: float = 1e-6) -> Array:
    """x + r (1 + beyond) u, (n, d) in float64, with u the unit normal of the nearest wall: just past it.

    A `beyond` of 0 is the wall itself, a negative one lies in front of it. NaN where there is no wall.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=1), rng.standard_normal((9, 3)))
    >>> r = radius(s)
    >>> tied = np.take_along_axis(s.router.scores(wall_point(s, r, 0)), np.stack(r[1:], axis=1), axis=1)
    >>> bool(np.allclose(tied[:, 0], tied[:, 1]))
    True
    """
    step = np.where(np.isfinite(radius.radius), radius.radius, np.nan) * (1 + beyond)
    return hidden_states(site) + step[:, None] * unit_normals(site, radius)


# ---- what happens at a wall ----------------------------------------------------------------------------------------


class Wall(NamedTuple):
    """The layer on either side of the nearest wall of each token.

    eps (n, m), lengths of steps; towards (n, m) and random (n, m), |f(x + eps u) - f(x)|/eps along the wall's normal
    and along a random direction; slope (n,) and slope_random (n,), |J u|, what these tend to as eps falls; norm (n,),
    |J|_2; radius (n,); jump (n, o), f just beyond the wall less f just before it.
    """

    eps: Array
    towards: Array
    random: Array
    slope: Array
    slope_random: Array
    norm: Array
    radius: Array
    jump: Array

    def __repr__(self) -> str:
        return one_line(self)


def wall(site: Site, rng: Rng, eps: Iterable[float] = tuple(10.0 ** np.arange(-4, 2.25, 0.5))) -> Wall:
    """Difference quotients of the whole layer across its nearest wall, beside its Jacobian, which knows of no wall.

    Below the radius they tend to |J u|, just beyond it they are about |jump|/eps. On the wall s_e = s_j the expert j
    takes e's place with the same gate, so the jump is g_e (f_j - f_e) there, in closed form, with gates renormalized or
    not. It takes two experts whose rows differ from all others'; soft routing has no wall, and its jump is 0. The layer
    is ``router.moe``: experts that are visited always and that it does not hold add nothing to the jump, and are not
    in the quotients nor in the slopes.

    Parameters
    ----------
    eps : lengths of the steps, in units of each token's radius (of |x| where that is infinite or 0).

    Raises
    ------
    ValueError : for a Site without the whole layer: a router with its `moe`, and experts.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=9, h=5, k=2), rng.standard_normal((5, 9)))
    >>> w = wall(s, rng, [1e-4, 1.0001])
    >>> bool(np.allclose(w.towards[:, 0], w.slope, rtol=1e-2))
    True
    >>> bool((w.towards[:, 1] > w.towards[:, 0]).all())
    True
    """
    site.need("wall", "router", "experts")
    moe = getattr(site.router, "moe", None)
    if moe is None:
        raise ValueError(f"wall needs the whole layer, router.moe, which the Site {site.name!r} does not have")
    steps = check.finite("eps", np.asarray(tuple(eps), np.float64))  # (m,)
    if steps.ndim != 1 or not (steps > 0).all():
        raise ValueError(f"expected steps eps above 0; got {steps.tolist()}")
    x, found = hidden_states(site), radius(site)
    r = found.radius
    size = np.linalg.norm(x, axis=1)
    unit = np.where(np.isfinite(r) & (r > 0), r, np.where(size > 0, size, 1.0))
    lengths = unit[:, None] * steps  # (n, m)
    v = rng.standard_normal(x.shape)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    some = found.inside >= 0
    u = np.where(some[:, None], unit_normals(site, found), v)  # no wall: NaN below
    y = moe.forward(x)[0]  # (n, o)

    def quotients(direction: Array) -> Array:
        moved = [moe.forward(x + t[:, None] * direction)[0] - y for t in lengths.T]
        return np.stack([np.linalg.norm(dy, axis=1) for dy in moved], axis=1) / lengths

    slopes, norm = np.zeros((2, site.n)), np.zeros(site.n)
    for rows in parts(site.n, 128):
        J = moe.jacobian(x[rows])  # (p, o, d)
        slopes[:, rows] = [np.linalg.norm(np.einsum("noi,ni->no", J, w[rows]), axis=1) for w in (u, v)]
        norm[rows] = np.linalg.svd(J, compute_uv=False)[:, 0]
    towards = np.where(some[:, None], quotients(u), np.nan)
    return Wall(
        lengths, towards, quotients(v), np.where(some, slopes[0], np.nan), slopes[1], norm, r, _jump(site, found)
    )


def _jump(site: Site, found: Radius) -> Array:
    """g_e (f_j - f_e) at the nearest wall, (n, o); 0 where there is none."""
    moe = site.router.moe  # type: ignore[union-attr]
    jump = np.zeros((site.n, moe.widths[1]))
    some = np.flatnonzero(found.inside >= 0)
    if not len(some):
        return jump
    at = wall_point(site, found, 0.0)[some]
    inside, outside = found.inside[some], found.outside[some]
    gates, every = moe.routing(at).gates, np.arange(len(some))
    # of two equal scores rounding chooses one; the gate is the same whichever it is
    gate = np.maximum(gates[every, inside], gates[every, outside])
    for sign, numbers in ((-1, inside), (1, outside)):
        for e in np.unique(numbers):
            here = numbers == e
            jump[some[here]] += sign * gate[here, None] * moe.experts[e].forward(at[here])[0]
    return jump
