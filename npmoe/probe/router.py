"""What a router sees of hidden states: its row space, its null space, and tokens that it cannot tell apart.

n tokens, d width, E routed experts (see `npmoe.probe.scores`), r rank, m pairs.

W (E, d) is the router's matrix over its temperature, C = I - 11^T/E centres over experts, Pi projects on row(C W).
Gates see the scores only up to a constant, so all that routing knows of x is C W x.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line
from npmoe.probe.scores import EPS, hidden_states, router_weights, seen_by_router
from npmoe.probe.site import Site

__all__ = ["MeanResponse", "RowShare", "centred", "mean_response", "null_basis", "null_pair", "row_basis", "row_share"]

Array = np.ndarray
Rng = np.random.Generator


# ---- row space and null space --------------------------------------------------------------------------------------


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
    W, _ = router_weights(site, "centred")
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
    return seen_by_router(site, "row_basis").row


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
    seen = seen_by_router(site, "null_basis")
    return np.linalg.svd(seen.CW)[2][len(seen.sigma) :].T  # of all d directions, which nothing else here needs


class RowShare(NamedTuple):
    """Share of the variance inside row(C W), and what a random subspace of that dimension holds on average, r/d."""

    share: float
    chance: float

    def __repr__(self) -> str:
        return one_line(self)


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
    Q = seen_by_router(site, "row_share").row
    x = hidden_states(site)
    if center:
        x = x - x.mean(axis=0)
    total = float((x**2).sum())
    share = float((matmul(x, Q) ** 2).sum()) / total if total > 0 else float("nan")
    return RowShare(share, Q.shape[1] / x.shape[1])


class MeanResponse(NamedTuple):
    """response |C W mu|; relative |C W mu|/(|C W|_F |mu|); chance, the root mean square of |C W v|/(|C W|_F |v|) over
    random directions v, 1/sqrt(d); centred, sqrt(sum |C W (x - mu)|^2 / sum |x - mu|^2)/|C W|_F over the tokens."""

    response: float
    relative: float
    chance: float
    centred: float

    def __repr__(self) -> str:
        return one_line(self)


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
    CW = seen_by_router(site, "mean_response").CW
    x = hidden_states(site)
    mu = x.mean(axis=0)
    whole = float(np.linalg.norm(CW))

    def ratio(v: Array) -> float:
        size = whole * float(np.linalg.norm(v))
        return float(np.linalg.norm(matmul(v, CW.T))) / size if size > 0 else float("nan")

    return MeanResponse(float(np.linalg.norm(matmul(CW, mu))), ratio(mu), float(1 / np.sqrt(x.shape[1])), ratio(x - mu))


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
    seen = seen_by_router(site, "null_pair")
    rows = np.asarray(rows)
    x = hidden_states(site)[rows] if rows.dtype.kind in "iu" else np.asarray(rows, np.float64)
    x = check.finite("x", check.matrix("x", x, site.x.shape[1], "this Site"))
    want = np.broadcast_to(np.asarray(cosine, np.float64), (len(x),))
    length = np.linalg.norm(x, axis=1)
    if not length.all():
        raise ValueError(f"expected x other than 0, which has no cosine; got 0 at row {int(length.argmin())}")
    Q = seen.row
    d, free = len(Q), len(Q) - Q.shape[1]
    z = _hidden(x, Q)  # (m, d)
    a, b = np.linalg.norm(matmul(x, Q), axis=1), np.linalg.norm(z, axis=1)
    # not beside |x| alone: a weak direction of C W turns by eps sigma_1/sigma_min, but what it does to scores is small
    a = np.where(np.linalg.norm(matmul(x, seen.CW.T), axis=1) <= 4 * seen.zero * length, 0, a)
    # the projection's own rounding, d terms of it, is no direction either
    z[b <= 4 * d * EPS * length] = 0
    b = np.where(b <= 4 * d * EPS * length, 0, b)
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
    return matmul(matmul(x, Q), Q.T) + np.where((a > 0)[:, None], v, within)


def _hidden(x: Array, Q: Array) -> Array:
    """x less its part in the span of Q (d, r)."""
    return x - matmul(matmul(x, Q), Q.T)


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
