"""What routing says of hidden states and they of it: exact statements, walls, and similarities of both.

n tokens, d width, o output width, E experts, k experts a token, r rank, S groups of tokens, m pairs.

W (E, d) is here always the router's matrix over its temperature, w_e its rows, C = I - 11^T/E centres over experts,
Delta = W (x - y). Gates see the scores only up to a constant, so all that routing knows of x is C W x. Everything is
computed in float64, whatever the model's dtype: float32 numbers are float64 numbers too.

Of a Site with experts that every token visits unrouted (`always`), E is everywhere here the number of the routed ones,
site.E - site.always: no router chose the others, and the router's matrix has no rows for them. `ambiguity` alone, which
is about outputs, takes them all.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.scalar import logsumexp, softmax
from npmoe.calculus.threads import parts
from npmoe.geometry import overlap
from npmoe.model.routing import mask, top_k
from npmoe.probe.site import Site

__all__ = [
    "HIDDEN",
    "Ambiguity",
    "MeanResponse",
    "Radius",
    "RowShare",
    "Statement",
    "Statements",
    "Wall",
    "ambiguity",
    "bounds",
    "centred",
    "frequencies",
    "hidden_similarity",
    "mean_response",
    "null_basis",
    "null_pair",
    "radius",
    "row_basis",
    "row_share",
    "similarity",
    "usage",
    "wall",
    "wall_point",
]

Array = np.ndarray
Rng = np.random.Generator

_EPS = float(np.finfo(np.float64).eps)
_PIECE = 1 << 21  # numbers that `radius` holds at a time: 16 MB


def _routed(site: Site) -> int:
    """Number of experts that the router chooses from."""
    if site.always == site.E:
        raise ValueError(f"expected routed experts of the Site {site.name!r}; got {site.E}, all visited always")
    return site.E - site.always


def _weights(site: Site, probe: str) -> tuple[Array, Array]:
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
    wanted = (_routed(site), site.x.shape[1])
    if W.shape != wanted:
        unrouted = f" but the last {site.always}, which are visited always" if site.always else ""
        raise ValueError(
            f"expected a router matrix of shape {wanted} of the Site {site.name!r}, a row for each column of "
            f"gates{unrouted}; got {W.shape}"
        )
    return W, b / temperature


def _x(site: Site) -> Array:
    return np.asarray(site.x, np.float64)


def _scores(site: Site, x: Array) -> Array:
    """The router's own scores of x, (n, E), in float64."""
    return np.asarray(site.router.scores(x), np.float64)[:, : _routed(site)]  # type: ignore[union-attr]


# ---- what the router can see ---------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """C W (E, d) taken apart: sigma (r,), row (d, r), and what counts as zero among sigma."""

    CW: Array
    sigma: Array
    row: Array
    zero: float


def _seen(site: Site, probe: str) -> _Seen:
    W, _ = _weights(site, probe)
    E, d = W.shape
    CW = W - W.mean(axis=0)
    _, sigma, Vt = np.linalg.svd(CW, full_matrices=False)  # Vt (min(E, d), d): the kernel is projected on, not spanned
    # beside sigma_1(W), not sigma_1(C W): the subtraction rounds by the size of W, whose rows may share a large mean
    zero = max(E, d) * _EPS * float(np.linalg.norm(W, 2))
    r = min(int((sigma > zero).sum()), E - 1)
    return _Seen(CW, sigma[:r], Vt[:r].T, zero)


def centred(site: Site) -> Array:
    """C W over the temperature, (E, d): what is left of the router once scores count only up to a constant.

    Raises
    ------
    ValueError : for a Site without a router.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> bool(np.allclose(centred(s).sum(axis=0), 0))
    True
    """
    W, _ = _weights(site, "centred")
    return W - W.mean(axis=0)


def row_basis(site: Site) -> Array:
    """Orthonormal basis of row(C W), (d, r): the directions of x that move some gate.

    The rank r counts singular values of C W above max(E, d) eps sigma_1(W), and is E - 1 at most.

    Raises
    ------
    ValueError : for a Site without a router.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=6, h=5, k=2), rng.standard_normal((9, 6)))
    >>> row_basis(s).shape, null_basis(s).shape
    ((6, 3), (6, 3))
    """
    return _seen(site, "row_basis").row


def null_basis(site: Site) -> Array:
    """Orthonormal basis of ker(C W), (d, d - r): the directions of x that routing cannot see; rank as in `row_basis`.

    d - r is at least d - E + 1. It holds d (d - r) numbers and takes a singular value decomposition with all d vectors.

    Raises
    ------
    ValueError : for a Site without a router.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=3, d=4, h=5, k=2), rng.standard_normal((9, 4)))
    >>> bool(np.allclose(s.router.gates(s.x + 100 * null_basis(s)[:, 0]), s.gates))
    True
    """
    seen = _seen(site, "null_basis")
    return np.linalg.svd(seen.CW)[2][len(seen.sigma) :].T  # of all d directions, which nothing else here needs


class RowShare(NamedTuple):
    """Share of the variance inside row(C W), and what a random subspace of that dimension holds on average, r/d."""

    share: float
    chance: float


def row_share(site: Site, center: bool = True) -> RowShare:
    """Share of the hidden states' variance (second moment, where not centred) that lies inside row(C W), beside r/d.

    NaN where there is no variance.

    Raises
    ------
    ValueError : for a Site without a router.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=3, d=8, h=5, k=2), rng.standard_normal((4000, 8)))
    >>> [round(value, 2) for value in row_share(s)]
    [0.25, 0.25]
    """
    Q = _seen(site, "row_share").row
    x = _x(site)
    if center:
        x = x - x.mean(axis=0)
    total = float((x**2).sum())
    share = float(((x @ Q) ** 2).sum()) / total if total > 0 else float("nan")
    return RowShare(share, Q.shape[1] / x.shape[1])


# ---- how far to the next choice ------------------------------------------------------------------------------------


class Radius(NamedTuple):
    """radius (n,), and the pair that attains it: the chosen expert that leaves, inside (n,), and the one that comes in
    its place, outside (n,). Infinite and -1 where no step changes the set."""

    radius: Array
    inside: Array
    outside: Array


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
    W, b = _weights(site, "radius")
    n, E = site.n, _routed(site)
    chosen = site.chosen
    if chosen is None or chosen.shape[1] == E:
        return Radius(np.full(n, np.inf), np.full(n, -1), np.full(n, -1))
    x = _x(site)
    s = x @ (W - W.mean(axis=0)).T + (b - b.mean())  # (n, E); differences of scores lose less once centred
    on = mask(chosen, E)
    # the Site chose in its own dtype; within its rounding the order may be another one in float64
    slack = 2 * _rounding(site, x, float(np.finfo(np.result_type(site.x, site.router.matrix)).eps))  # type: ignore
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


def _normals(site: Site, found: Radius) -> Array:
    """Unit vectors towards the nearest wall, (n, d); NaN where there is none."""
    W, _ = _weights(site, "wall_point")
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
    return _x(site) + step[:, None] * _normals(site, radius)


# ---- the same routing at another cosine ----------------------------------------------------------------------------


def null_pair(site: Site, rows: Array, cosine: float | Array, rng: Rng) -> Array:
    """Partners y with the gates of x and a cosine with x as asked, (m, d) in float64: closed form.

    y = Pi x + v, where Pi projects on row(C W) and v lies in ker(C W): C W y = C W x, so that scores differ by one
    constant and all gates agree, with a bias or without, soft or top-k.

    Parameters
    ----------
    rows : integer array (m,), tokens of the Site; or floats (m, d), hidden states themselves.
    cosine : number or array (m,) within (-b/|x|, 1], where b = |x - Pi x|. Nothing else can be attained: the cosine
        (|Pi x|^2 + <x, v>)/(|x| |y|) is 1 for v = x - Pi x, and falls to -b/|x| as v grows the other way. Where Pi x
        is zero all of [-1, 1] can (of a one-dimensional kernel the ends alone), where the kernel is, 1 alone. Pi x is
        zero where |C W x| is no more than the rounding of C W itself, 4 max(E, d) eps sigma_1(W) |x|: no gate tells
        such an x from one inside the kernel.

    Raises
    ------
    ValueError : for a cosine that cannot be attained, with the range that can; for x = 0, which has no cosine.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=9, h=5, k=2), rng.standard_normal((7, 9)))
    >>> y = null_pair(s, np.arange(7), 0.0, rng)
    >>> bool(np.allclose((s.x * y).sum(axis=1), 0)), bool(np.allclose(s.router.gates(y), s.gates))
    (True, True)
    """
    seen = _seen(site, "null_pair")
    rows = np.asarray(rows)
    x = _x(site)[rows] if rows.dtype.kind in "iu" else np.asarray(rows, np.float64)
    x = check.finite("x", check.matrix("x", x, site.x.shape[1], "this Site"))
    want = np.broadcast_to(np.asarray(cosine, np.float64), (len(x),))
    length = np.linalg.norm(x, axis=1)
    if not length.all():
        raise ValueError(f"expected x other than 0, which has no cosine; got 0 at row {int(length.argmin())}")
    Q = seen.row
    d, free = len(Q), len(Q) - Q.shape[1]
    z = _hidden(x, Q)  # (m, d)
    a, b = np.linalg.norm(x @ Q, axis=1), np.linalg.norm(z, axis=1)
    # not beside |x| alone: a weak direction of C W turns by eps sigma_1/sigma_min, but what it does to scores is small
    a = np.where(np.linalg.norm(x @ seen.CW.T, axis=1) <= 4 * seen.zero * length, 0, a)
    # the projection's own rounding, d terms of it, is no direction either
    z[b <= 4 * d * _EPS * length] = 0
    b = np.where(b <= 4 * d * _EPS * length, 0, b)
    _attainable(want, a, b, length, free)
    if not free:
        return x.copy()
    p, q = _directions(z, Q, rng)  # (m, d) each
    # v runs along u = c p + sqrt(1 - c^2) q. In the plane of Pi x and u, x has the length R and the angle phi, and y
    # some angle theta: cosine |x| = R cos(theta - phi). Attainable for c above `least`; half of what is left is drawn.
    g = want * length
    least = np.where(g < 0, (g / np.where(b > 0, b, 1)) ** 2, np.maximum(g**2 - a**2, 0) / np.where(b > 0, b, 1) ** 2)
    least = np.minimum(least, 1)
    alone = (free == 1) | (a == 0)
    c = np.sqrt(np.where(alone, 1, least + (1 - least) * rng.uniform(0.5, 1, len(x))))
    u = c[:, None] * p + np.sqrt(1 - c**2)[:, None] * q
    phi, R = np.arctan2(b * c, a), np.hypot(a, b * c)
    theta = phi - np.arccos(np.clip(g / R, -1, 1))
    v = (a * np.tan(np.where(a > 0, theta, 0)))[:, None] * u
    # x inside the kernel: y is any vector of it, taken as long as x
    within = length[:, None] * (want[:, None] * p + np.sqrt(np.maximum(1 - want**2, 0))[:, None] * q)
    return x @ Q @ Q.T + np.where((a > 0)[:, None], v, within)


def _hidden(x: Array, Q: Array) -> Array:
    """x less its part in the span of Q (d, r)."""
    return x - (x @ Q) @ Q.T


def _attainable(want: Array, a: Array, b: Array, length: Array, free: int) -> None:
    """Raise unless every cosine can be had with `free` dimensions of kernel; a and b as in `null_pair`."""
    if free == 0:
        low, fine = np.ones(len(want)), want == 1
    else:
        low = np.where(a > 0, -b / length, -1)
        fine = np.where(a > 0, want > low, (want >= -1) if free > 1 else np.abs(want) == 1) & (want <= 1)
    if not fine.all():
        at = int(np.flatnonzero(~fine)[0])
        span = f"within ({low[at]:.6g}, 1]" if free and a[at] > 0 else ("-1 or 1" if free == 1 else "within [-1, 1]")
        if free == 0:
            span = "of 1: the router's null space is empty"
        raise ValueError(f"expected a cosine {span}, all that can be attained at row {at}; got {want[at]}")


def _directions(z: Array, Q: Array, rng: Rng) -> tuple[Array, Array]:
    """Unit vectors orthogonal to Q, (m, d) each: along z (random where z is 0), and random ones orthogonal to those (0
    where one dimension is left beside Q)."""
    p, q = rng.standard_normal((2, *z.shape))
    p = np.where((z != 0).any(axis=1, keepdims=True), z, p)
    for _ in range(2):  # twice: what is left of Q after once is its rounding over |p|, which may be small
        p = _hidden(p / np.linalg.norm(p, axis=1, keepdims=True), Q)
    p = p / np.linalg.norm(p, axis=1, keepdims=True)
    if len(Q) - Q.shape[1] == 1:
        return p, np.zeros_like(p)
    for _ in range(2):
        q = _hidden(q, Q)
        q = q - np.einsum("nd,nd->n", p, q)[:, None] * p
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return p, q


# ---- bounds --------------------------------------------------------------------------------------------------------


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


def _gamma(terms: int, eps: float = _EPS) -> float:
    """Higham's gamma_m = m u/(1 - m u), u = eps/2: the relative error of a sum of m products, over their sizes."""
    return terms * eps / 2 / (1 - terms * eps / 2)


def _rounding(site: Site, x: Array, eps: float = _EPS) -> Array:
    """Bound on the error of any score of x, centred or not, (n,).

    A score is a dot product of d terms plus a bias, divided by the temperature; centring a row of W sums E numbers and
    at most doubles its size. So gamma_{d + E + 4} times twice the largest of sum_i |x_i w_ei| + |b_e| (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, 3.1).
    """
    W, b = _weights(site, "bounds")
    return 2 * _gamma(sum(W.shape) + 4, eps) * (np.abs(x) @ np.abs(W).T + np.abs(b)).max(axis=1)


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
    Allowances follow from the error delta of a score (`_rounding`): the softmax is 1/2-Lipschitz and its own rounding
    is below gamma_{E + 8}; a span moves by 2 delta, a 2-norm by sqrt(E) delta; a subspace of C W turns by
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
    seen = _seen(site, "bounds")
    x, y = _pairs(site, other)
    E = _routed(site)
    k = E if site.chosen is None else site.chosen.shape[1]
    sx, sy = _scores(site, x), _scores(site, y)  # (m, E)
    Delta = (x - y) @ seen.CW.T  # (m, E), centred: by another way than the scores
    qx, qy = _soft(sx), _soft(sy)
    delta = _rounding(site, x) + _rounding(site, y)
    own = 4 * _gamma(E + 8)  # of two softmaxes, twice over
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
    over = Tx | ~(_convex(raw[0]) & _convex(raw[1]))[:, None]
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
    in_logs = 4 * delta + 8 * _gamma(E + 8) * (1 + np.log(E))
    found.append(_statement("hilbert, soft gates", np.abs(_span(moved) - _span(Delta)), np.zeros(len(x)), 2 * in_logs))
    least = float(seen.sigma.min(initial=np.inf))
    seen_part = np.linalg.norm((x - y) @ seen.row, axis=1)
    right = np.linalg.norm(moved - moved.mean(axis=1, keepdims=True), axis=1) / least
    turned = (np.sqrt(E) * in_logs + 2 * seen.zero * distance) / least + _gamma(x.shape[1] + 4) * distance
    found.append(_statement("row part, soft gates", seen_part, right, turned))
    return Statements((*found, *_radius_statements(site, k, np.random.default_rng(0) if rng is None else rng)))


def _pairs(site: Site, other: Array) -> tuple[Array, Array]:
    other = np.asarray(other)
    x = _x(site)
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


def _convex(gates: Array) -> Array:
    """Whose gates (n, E) sum to 1, within the rounding of their own dtype, (n,)."""
    eps = float(np.finfo(gates.dtype).eps)
    return np.abs(gates.sum(axis=1, dtype=np.float64) - 1) <= _gamma(2 * (gates.shape[1] + 8), eps)


def _radius_statements(site: Site, k: int, rng: Rng) -> list[Statement]:
    """ "radius, inside" and "radius, beyond" on all tokens of the Site."""
    found = radius(site)
    x, r = _x(site), found.radius
    if not np.isfinite(r).any():
        return [Statement("radius, inside", 0, 0, 0.0), Statement("radius, beyond", 0, 0, 0.0)]
    finite = np.isfinite(r) & (r > 0)
    x, r, u = x[finite], r[finite], _normals(site, found)[finite]
    chosen = np.asarray(site.chosen)[finite]
    W, _ = _weights(site, "bounds")
    on = mask(chosen, len(W))
    pair = r * np.linalg.norm(W[found.inside[finite]] - W[found.outside[finite]], axis=1)  # the margin that is used up

    def gap(y: Array) -> Array:
        s = _scores(site, y)
        return np.where(on, s, np.inf).min(axis=1) - np.where(on, -np.inf, s).max(axis=1)

    def same(y: Array) -> Array:
        return (mask(top_k(_scores(site, y), k), len(W)) == on).all(axis=1)

    here = gap(x)

    def judge(name: str, y: Array, stays: bool, left: Array) -> Statement:
        clear = (here > 0) & (left > 2 * (_rounding(site, x) + _rounding(site, y)))
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
    x, found = _x(site), radius(site)
    r = found.radius
    size = np.linalg.norm(x, axis=1)
    unit = np.where(np.isfinite(r) & (r > 0), r, np.where(size > 0, size, 1.0))
    lengths = unit[:, None] * steps  # (n, m)
    v = rng.standard_normal(x.shape)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    some = found.inside >= 0
    u = np.where(some[:, None], _normals(site, found), v)  # no wall: NaN below
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


# ---- usage and hidden states, as similarities ----------------------------------------------------------------------

#: Kinds of `hidden_similarity`.
HIDDEN = ("cosine", "centred cosine", "euclidean", "row cosine", "row euclidean", "norm cosine")


def usage(site: Site, kind: str = "sets") -> Array:
    """Who is used by each token, (n, E): 0 or 1 by the chosen sets ("sets"), or the gates ("gates").

    Without a choice all experts are used. E counts the routed experts: those that are visited always have no column.

    Raises
    ------
    ValueError : for an unknown kind, or a Site of which no expert is routed.

    Examples
    --------
    >>> s = Site(x=np.eye(2), gates=np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]]), chosen=np.array([[0, 1], [1, 2]]))
    >>> usage(s)
    array([[1., 1., 0.],
           [0., 1., 1.]])
    """
    E = _routed(site)
    if kind == "gates":
        return np.asarray(site.gates[:, :E], np.float64)
    if kind != "sets":
        raise ValueError(f"expected a kind of usage, 'sets' or 'gates'; got {kind!r}")
    if site.chosen is None:
        return np.ones((site.n, E))
    return mask(site.chosen, E).astype(np.float64)


def _means(site: Site, values: Array, label: str) -> tuple[Array, Array]:
    """Sorted groups (S,) and means of rows within each, (S, any)."""
    if label not in site.labels:
        known = ", ".join(map(repr, site.labels)) or "none"
        raise ValueError(f"expected a label of the Site {site.name!r} ({known}); got {label!r}")
    groups, at, count = np.unique(np.asarray(site.labels[label]), return_inverse=True, return_counts=True)
    total = np.zeros((len(groups), values.shape[1]))
    np.add.at(total, at, values)
    return groups, total / count[:, None]


def frequencies(site: Site, label: str = "sequence", kind: str = "sets") -> tuple[Array, Array]:
    """How often each group of tokens uses each expert: groups (S,), sorted, and shares (S, E) that sum to 1.

    Shares of all choices ("sets"), or of the gates' sum ("gates"), of routed experts; the row of a group whose gates
    are all 0 is NaN.

    Raises
    ------
    ValueError : for a label that the Site does not have, or an unknown kind.

    Examples
    --------
    >>> chosen = np.array([[0], [0], [1], [1]])
    >>> labels = {"sequence": np.array([7, 7, 7, 9])}
    >>> s = Site(x=np.eye(4), gates=np.eye(2)[chosen[:, 0]], chosen=chosen, labels=labels)
    >>> groups, share = frequencies(s)
    >>> groups, share.round(2)
    (array([7, 9]), array([[0.67, 0.33],
           [0.  , 1.  ]]))
    """
    groups, mean = _means(site, usage(site, kind), label)
    total = mean.sum(axis=1, keepdims=True)
    return groups, np.divide(mean, total, out=np.full_like(mean, np.nan), where=total > 0)


def hidden_similarity(site: Site, kind: str = "cosine", label: str | None = None) -> Array:
    """Similarity of hidden states, (n, n), or with a label of its groups' mean states, (S, S) in sorted order.

    Parameters
    ----------
    kind : "cosine" of x; "centred cosine", of x less its mean over tokens; "euclidean", -|x - y|, 0 at most; "row
        cosine" and "row euclidean", the same of C W x, what routing can see (these need a router); "norm cosine", of
        x/gamma where an RMSNorm stands in front: the cosine of what the norm reads. A gamma of 0 hides its feature,
        which counts as 0. A cosine with a zero vector is NaN.

    Raises
    ------
    ValueError : for an unknown kind, a label that the Site does not have, or no router where one is needed; for "norm
        cosine" where `before` has no norm with a gamma.

    Examples
    --------
    >>> s = Site(x=np.array([[1.0, 0.0], [3.0, 4.0]]), gates=np.ones((2, 1)))
    >>> hidden_similarity(s)
    array([[1. , 0.6],
           [0.6, 1. ]])
    """
    if kind not in HIDDEN:
        raise ValueError(f"expected a kind of hidden similarity among {', '.join(HIDDEN)}; got {kind!r}")
    v = _x(site)
    if kind == "centred cosine":
        v = v - v.mean(axis=0)
    if kind.startswith("row"):
        v = v @ _seen(site, "hidden_similarity").CW.T  # (n, E)
    if kind == "norm cosine":
        gamma = _gain(site)  # (d,)
        v = np.divide(v, gamma, out=np.zeros_like(v), where=gamma != 0)
    if label is not None:
        v = _means(site, v, label)[1]
    if kind.endswith("euclidean"):
        # one row at a time against all: |x|^2 + |y|^2 - 2 <x, y> would lose half the digits of near pairs
        return -np.array([np.linalg.norm(v - row, axis=1) for row in v])
    size = np.linalg.norm(v, axis=1, keepdims=True)
    v = np.divide(v, size, out=np.full_like(v, np.nan), where=size > 0)
    return np.clip(v @ v.T, -1, 1)


def _gain(site: Site) -> Array:
    """gamma (d,) of the norm in front of the Site."""
    gamma = getattr(getattr(site.before, "norm", None), "gamma", None)
    if gamma is None:
        raise ValueError(
            f"expected before of the Site {site.name!r} with a norm that has a gamma, which 'norm cosine' divides by; "
            f"got {'no norm' if getattr(site.before, 'norm', None) is None else type(site.before.norm).__name__}"  # type: ignore[union-attr]
        )
    return check.finite("gamma", check.shaped("gamma", gamma, (site.x.shape[1],), "the norm before this Site"))


def similarity(site: Site, measure: str, label: str | None = None, kind: str | None = None, p: float = 0.8) -> Array:
    """Similarity of usage by a measure of `npmoe.geometry.overlap`, larger is more alike: (n, n), or (S, S) of groups.

    A distance enters with a minus. Measures of sets compare the chosen sets of tokens, or of groups the smallest sets
    that hold a share p of their usage (`top_p`); the others compare gates of tokens, or usage frequencies of groups.

    Parameters
    ----------
    label : groups are those of this label, in sorted order.
    kind : usage by chosen "sets" or by "gates". Unless given: of groups sets where there is a choice, else gates.
    p : share that a group's set holds.

    Returns
    -------
    (n, n) or (S, S). Rows and columns of a group whose gates are all 0 are NaN: it has no frequencies.

    Raises
    ------
    ValueError : for an unknown measure or kind, or a label that the Site does not have.

    Examples
    --------
    >>> s = Site(x=np.eye(2), gates=np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]]), chosen=np.array([[0, 1], [1, 2]]))
    >>> similarity(s, "set_overlap")
    array([[1. , 0.5],
           [0.5, 1. ]])
    >>> similarity(s, "total_variation").round(2) + 0.0
    array([[ 0. , -0.9],
           [-0.9,  0. ]])
    """
    of_sets = measure in overlap.MEASURES and overlap.MEASURES[measure].kind == "sets"
    if label is None:
        P = usage(site, kind or ("sets" if of_sets else "gates"))
        P = P > 0 if of_sets else P
    else:
        picked = site.chosen is not None and site.chosen.shape[1] < _routed(site)
        _, P = frequencies(site, label, kind or ("sets" if picked else "gates"))
        used = ~np.isnan(P).any(axis=1)  # (S,)
        P = overlap.top_p(P[used], p) if of_sets else P[used]
    found = overlap.similarities(measure, P)
    if label is not None and not used.all():
        some, found = found, np.full((len(used), len(used)), np.nan)
        found[np.ix_(used, used)] = some
    return found if overlap.MEASURES[measure].sense == "similarity" else -found


# ---- the ensemble, and the mean ------------------------------------------------------------------------------------


class Ambiguity(NamedTuple):
    """error (n,) = |f - y|^2, individual (n,) = sum_e g_e |f_e - y|^2, spread (n,) = sum_e g_e |f_e - f|^2, and the
    identity's largest error relative to individual + spread."""

    error: Array
    individual: Array
    spread: Array
    relative: float


def ambiguity(site: Site, y: Array) -> Ambiguity:
    """Error of the mixture taken apart: |f - y|^2 = sum_e g_e |f_e - y|^2 - sum_e g_e |f_e - f|^2, for each token.

    Exact for gates that sum to 1 (Krogh and Vedelsby 1995): the mixture is better than its experts by just how much
    they differ.

    Parameters
    ----------
    y : array (n, o), targets.

    Raises
    ------
    ValueError : for gates that do not sum to 1, a Site without experts, or targets of another shape.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> a = ambiguity(s, rng.standard_normal((9, 3)))
    >>> bool(np.allclose(a.error, a.individual - a.spread))
    True
    """
    site.need("ambiguity", "experts")
    experts = site.experts or ()
    if not _convex(site.gates).all():
        total = site.gates.sum(axis=1)
        at = int(np.abs(total - 1).argmax())
        raise ValueError(
            f"ambiguity needs gates that sum to 1; those of the Site {site.name!r} sum to {total[at]} at token {at}"
        )
    gates, x = np.asarray(site.gates, np.float64), _x(site)
    gates = gates / gates.sum(axis=1, keepdims=True)  # float32 gates sum to 1 in their own dtype alone
    outputs = [(rows, experts[e].forward(x[rows])[0]) for e in range(site.E) for rows in [site.rows(e)]]
    y = check.finite("y", check.shaped("y", y, (site.n, outputs[0][1].shape[1]), "the targets of this Site"))
    f = np.zeros(y.shape)
    for e, (rows, out) in enumerate(outputs):
        f[rows] += gates[rows, e, None] * out
    individual, spread = np.zeros(site.n), np.zeros(site.n)
    for e, (rows, out) in enumerate(outputs):
        individual[rows] += gates[rows, e] * ((out - y[rows]) ** 2).sum(axis=1)
        spread[rows] += gates[rows, e] * ((out - f[rows]) ** 2).sum(axis=1)
    error = ((f - y) ** 2).sum(axis=1)
    size = individual + spread
    off = np.divide(np.abs(error - (individual - spread)), size, out=np.zeros(site.n), where=size > 0)
    return Ambiguity(error, individual, spread, float(off.max()))


class MeanResponse(NamedTuple):
    """response |C W mu|; relative |C W mu|/(|C W|_F |mu|); chance, the root mean square of |C W v|/(|C W|_F |v|) over
    random directions v, 1/sqrt(d); centred, sqrt(sum |C W (x - mu)|^2 / sum |x - mu|^2)/|C W|_F over the tokens."""

    response: float
    relative: float
    chance: float
    centred: float


def mean_response(site: Site) -> MeanResponse:
    """The router's response along the mean hidden state mu, beside random directions and the centred data.

    A small share says that the router turns away from what all tokens have in common. NaN where a ratio is undefined.

    Raises
    ------
    ValueError : for a Site without a router.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=4, h=5, k=2), rng.standard_normal((9, 4)))
    >>> mean_response(s).chance
    0.5
    """
    CW = _seen(site, "mean_response").CW
    x = _x(site)
    mu = x.mean(axis=0)
    whole = float(np.linalg.norm(CW))

    def ratio(v: Array) -> float:
        size = whole * float(np.linalg.norm(v))
        return float(np.linalg.norm(v @ CW.T)) / size if size > 0 else float("nan")

    return MeanResponse(float(np.linalg.norm(CW @ mu)), ratio(mu), float(1 / np.sqrt(x.shape[1])), ratio(x - mu))
