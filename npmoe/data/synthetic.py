"""Synthetic inputs and targets with ground truth, all from a generator.

n tokens, d width, m clusters or topics, r dimensions of a cluster's subspace.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line

__all__ = ["Clusters", "Sequences", "SubspaceClusters", "Topics", "cluster_tasks", "clusters", "gaussian", "sequences"]
__all__ += ["subspace_clusters", "teacher", "topics"]

Array = np.ndarray
Rng = np.random.Generator


def gaussian(rng: Rng, n: int, d: int) -> Array:
    """Isotropic rows, N(0, I_d), (n, d).

    Examples
    --------
    >>> gaussian(np.random.default_rng(0), 2, 3).shape
    (2, 3)
    """
    return rng.standard_normal((n, d))


def _share(name: str, value: float, what: str) -> None:
    """Refuse what is not within 0..1, NaN too."""
    if not 0 <= value <= 1:
        raise ValueError(f"expected a {name} within 0..1, {what}; got {value}")


class Clusters(NamedTuple):
    """x (n, d), label (n,) and the centres (m, d) that the rows scatter about."""

    x: Array
    label: Array
    centres: Array

    def __repr__(self) -> str:
        return one_line(self)


def clusters(rng: Rng, n: int, d: int, m: int = 8, spread: float = 0.5) -> Clusters:
    """m labelled clusters: x = c_label + noise, scaled to unit mean square entries.

    Parameters
    ----------
    spread : share of the variance that lies within clusters, 0..1; 1 is the isotropic Gaussian.

    Examples
    --------
    >>> x, label, centres = clusters(np.random.default_rng(0), 6, 3, m=2)
    >>> x.shape, sorted(set(label.tolist())), centres.shape
    ((6, 3), [0, 1], (2, 3))
    """
    _share("spread", spread, "the share of variance within clusters")
    centres = np.sqrt(1 - spread) * rng.standard_normal((m, d))
    label = rng.permutation(np.arange(n) % m)  # as equal in size as n allows
    x = centres[label] + np.sqrt(spread) * rng.standard_normal((n, d))
    return Clusters(x, label, centres)


def cluster_tasks(rng: Rng, x: Array, label: Array) -> Array:
    """Targets of predefined tasks: y = A_label x, one random map of unit gain for each label, (n, d)."""
    y = np.zeros_like(x)
    d = x.shape[1]
    for c in np.unique(label):
        A = rng.standard_normal((d, d)) / np.sqrt(d)
        y[label == c] = matmul(x[label == c], A.T)
    return y


def teacher(rng: Rng, x: Array) -> Array:
    """Targets of a random one-hidden-layer teacher, y = A tanh(B x), scaled to unit mean square entries, (n, d).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = teacher(rng, rng.standard_normal((50, 4)))
    >>> bool(np.isclose((y**2).mean(), 1))
    True
    """
    d = x.shape[1]
    y = matmul(np.tanh(matmul(x, rng.standard_normal((d, d))) / np.sqrt(d)), rng.standard_normal((d, d)))
    return y / np.sqrt((y**2).mean())


class SubspaceClusters(NamedTuple):
    """x (n, d), label (n,), orthonormal bases (m, d, r), and the principal angles of all pairs (m, m, r), ascending."""

    x: Array
    label: Array
    bases: Array
    angles: Array

    def __repr__(self) -> str:
        return one_line(self)


def subspace_clusters(
    rng: Rng, n: int, d: int, m: int, r: int, angle: float | Array, noise: float = 0.1
) -> SubspaceClusters:
    """m clusters about the origin, each on an r-dimensional subspace of its own, at known angles to each other.

    With A, Q_1, ..., Q_{m-1} orthonormal and orthogonal to each other, cluster 0 has the basis A and cluster c has
    A cos(angle) + Q_c sin(angle), column by column. So every other cluster stands at exactly `angle` to cluster 0; two
    others have cosines cos^2(angle), thus angles 2 arcsin(sin(angle)/sqrt 2). All pairs are exact up to rounding.

    Parameters
    ----------
    angle : principal angles to cluster 0 in radians within 0..pi/2, one number or r of them.
    noise : share of the variance that is isotropic, 0..1; at 0 each token lies on its cluster's subspace.
        Entries have unit mean square.

    Raises
    ------
    ValueError, TypeError : for d below m r, which that many orthogonal directions need; angles or noise out of range.

    Examples
    --------
    >>> data = subspace_clusters(np.random.default_rng(0), 6, 8, m=3, r=2, angle=0.5)
    >>> data.bases.shape, data.angles[0, 1], data.angles[0, 0]
    ((3, 8, 2), array([0.5, 0.5]), array([0., 0.]))
    """
    check.integer("n", n, 0)
    check.integer("m", m, 1)
    check.integer("r", r, 1)
    if check.integer("d", d, 1) < m * r:
        raise ValueError(f"expected d of at least m r = {m * r}, so that {m} subspaces of {r} can stand apart; got {d}")
    _share("noise", noise, "the share of variance that is isotropic")
    theta = np.asarray(angle, np.float64)
    if theta.shape not in ((), (r,)):
        raise ValueError(f"expected one angle, or an array of shape ({r},), one for each dimension; got {theta.shape}")
    theta = np.broadcast_to(theta, (r,))
    if not ((theta >= 0) & (theta <= np.pi / 2)).all():
        raise ValueError(f"expected angles within 0..pi/2, in radians; got {angle}")
    frame = np.linalg.qr(rng.standard_normal((d, m * r)))[0].reshape(d, m, r).transpose(1, 0, 2)  # (m, d, r)
    bases = frame[0] * np.cos(theta) + frame * np.sin(theta)
    bases[0] = frame[0]
    label = rng.permutation(np.arange(n) % m)
    z = rng.standard_normal((n, r)) * np.sqrt((1 - noise) * d / r)
    x = np.sqrt(noise) * rng.standard_normal((n, d))
    for c in range(m):
        x[label == c] += matmul(z[label == c], bases[c].T)

    ascending = np.sort(theta)
    angles = np.empty((m, m, r))
    angles[:] = 2 * np.arcsin(np.sin(ascending) / np.sqrt(2))  # arccos(cos^2) would lose half the digits near 0
    angles[0, :] = angles[:, 0] = ascending
    angles[np.arange(m), np.arange(m)] = 0
    return SubspaceClusters(x, label, bases, angles)


class Topics(NamedTuple):
    """x (n, d), label (n,), centres (m, d), the shared direction (d,), and the population's moments.

    mean (d,) is common * direction; between (d, d) the covariance of the centres, within (d, d) that of a token about
    its centre, topics being equally likely. A token's covariance is their sum.
    """

    x: Array
    label: Array
    centres: Array
    direction: Array
    mean: Array
    between: Array
    within: Array

    def __repr__(self) -> str:
        return one_line(self)


def topics(
    rng: Rng, n: int, d: int, m: int = 8, common: float = 1.0, spread: float = 0.5, direction: Array | None = None
) -> Topics:
    """m topics whose tokens share a direction: x = common * u + c_label + noise, |u|^2 = d.

    u has unit mean square, as has all the rest together: at `common` 1 the two are equally strong. The centres are
    orthogonal to u and sum to zero, both exactly, so that at `common` 0 nothing is shared; the same generator gives the
    same centres and noise whatever `common` is, and the same draws whether or not a direction is given.

    Parameters
    ----------
    m : number of topics, 2 or more unless `spread` is 1.
    common : strength of the shared part.
    spread : share of the remaining variance that lies within topics, 0..1; that noise is isotropic.
    direction : array (d,), of any length but zero, that u is along; drawn unless given.

    Raises
    ------
    ValueError, TypeError : for a spread outside 0..1, fewer than two topics or dimensions where centres must differ,
        a direction that does not fit.

    Examples
    --------
    >>> data = topics(np.random.default_rng(0), 6, 3, m=2, common=2.0)
    >>> data.x.shape, bool(np.allclose(data.centres @ data.direction, 0)), round(float((data.mean**2).mean()), 6)
    ((6, 3), True, 4.0)
    """
    check.integer("n", n, 0)
    centres, u = _centres(rng, d, m, common, spread, direction)
    label = rng.permutation(np.arange(n) % m)  # as equal in size as n allows
    x = common * u + centres[label] + np.sqrt(spread) * rng.standard_normal((n, d))
    return Topics(x, label, centres, u, common * u, matmul(centres.T, centres) / m, spread * np.eye(d))


def _centres(rng: Rng, d: int, m: int, common: float, spread: float, direction: Array | None) -> tuple[Array, Array]:
    """Centres (m, d) of mean square 1 - spread, exactly orthogonal to u (d,), |u|^2 = d, and of sum zero."""
    check.integer("d", d, 1)
    check.integer("m", m, 1)
    _share("spread", spread, "the share of variance within topics")
    if not np.isfinite(common):
        raise ValueError(f"expected common to be finite, the strength of the shared part; got {common}")
    if spread < 1 and min(m, d) < 2:
        raise ValueError(f"expected at least 2 topics in 2 dimensions, whose centres differ; got m = {m}, d = {d}")
    drawn = rng.standard_normal(d)  # also where a direction is given: what follows is then the same
    u = drawn if direction is None else check.finite("direction", check.shaped("direction", direction, (d,)))
    if not u.any():
        raise ValueError(f"expected a direction that is not zero; got {d} zeros")
    u = u / np.abs(u).max()
    u = u * np.sqrt(d / matmul(u, u))
    centres = rng.standard_normal((m, d))
    for _ in range(2):  # twice: the first leaves rounding of the size of what it took away
        centres -= centres.mean(axis=0)
        centres -= np.outer(matmul(centres, u) / d, u)
    if spread == 1:
        return np.zeros((m, d)), u
    return centres * np.sqrt((1 - spread) / (centres**2).mean()), u


class Sequences(NamedTuple):
    """x (S length, d), label (S length,), sequence (S length,), centres (m, d) and the shared direction (d,)."""

    x: Array
    label: Array
    sequence: Array
    centres: Array
    direction: Array

    def __repr__(self) -> str:
        return one_line(self)


def sequences(
    rng: Rng,
    n_sequences: int,
    length: int,
    d: int,
    m: int = 8,
    common: float = 0.0,
    spread: float = 0.5,
    persistence: float = 1.0,
    query: float = 0.0,
) -> Sequences:
    """S sequences of tokens that keep their topic: x = common * u + c_label + noise as in `topics`.

    With `query` above 0 a sequence is more than its topic: its tokens share a part of their own of the noise.

    The sequences' first topics are as equal in number as can be. Each next token keeps the topic of the one before with
    probability `persistence`, else takes one of the others, all alike: at 1 a sequence has one topic, at 1/m its tokens
    have independent topics. Tokens of a sequence follow each other in x.

    Parameters
    ----------
    n_sequences, length : S sequences of so many tokens each.
    m, common, spread : as in `topics`.
    persistence : probability 0..1.
    query : share of the variance within topics that the tokens of a sequence have in common, 0..1.

    Raises
    ------
    ValueError, TypeError : as `topics`; for a persistence or query outside 0..1, or a persistence below 1 where there
        is one topic only.

    Examples
    --------
    >>> data = sequences(np.random.default_rng(0), 2, 3, d=4, m=2)
    >>> data.x.shape, data.sequence, len(set(data.label[:3].tolist()))
    ((6, 4), array([0, 0, 0, 1, 1, 1]), 1)
    """
    S, length = check.integer("n_sequences", n_sequences, 0), check.integer("length", length, 1)
    _share("persistence", persistence, "the probability that a token keeps the topic")
    _share("query", query, "the share of the variance within topics that a sequence has in common")
    centres, u = _centres(rng, d, m, common, spread, None)
    if m == 1 and persistence < 1:
        raise ValueError(f"expected a persistence of 1, since there is one topic only; got {persistence}")
    start = rng.permutation(np.arange(S) % m)  # (S,)
    moves = rng.random((S, length)) >= persistence  # (S, length): random() is below 1, so that 1 never moves
    moves[:, 0] = False
    # a step of 1..m-1 around the circle of topics reaches each of the others alike
    step = np.where(moves, rng.integers(1, max(m, 2), (S, length)), 0)
    label = ((start[:, None] + step.cumsum(axis=1)) % m).ravel()  # (S length,)
    sequence = np.repeat(np.arange(S), length)
    noise = rng.standard_normal((S * length, d))
    if query:
        noise = np.sqrt(1 - query) * noise + np.sqrt(query) * rng.standard_normal((S, d))[sequence]
    return Sequences(common * u + centres[label] + np.sqrt(spread) * noise, label, sequence, centres, u)
