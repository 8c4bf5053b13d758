"""Who is used when: usage of experts and hidden states, as similarities between tokens or groups of tokens.

n tokens, d width, E routed experts (see `npmoe.probe.scores`), S groups of tokens.
"""

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.geometry import overlap
from npmoe.model.routing import mask

# walls, null-space pairs and the exact statements are files of their own; what the docs showed here is found here too
from npmoe.probe.router import null_pair, row_share
from npmoe.probe.scores import hidden_states, routed_count, seen_by_router
from npmoe.probe.site import Site
from npmoe.probe.statements import bounds
from npmoe.probe.walls import radius, wall, wall_point

__all__ = [
    "HIDDEN",
    "bounds",
    "frequencies",
    "hidden_similarity",
    "null_pair",
    "radius",
    "row_share",
    "similarity",
    "usage",
    "wall",
    "wall_point",
]

Array = np.ndarray


# ---- usage ---------------------------------------------------------------------------------------------------------


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
    E = routed_count(site)
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
        picked = site.chosen is not None and site.chosen.shape[1] < routed_count(site)
        _, P = frequencies(site, label, kind or ("sets" if picked else "gates"))
        used = ~np.isnan(P).any(axis=1)  # (S,)
        P = overlap.top_p(P[used], p) if of_sets else P[used]
    found = overlap.similarities(measure, P)
    if label is not None and not used.all():
        some, found = found, np.full((len(used), len(used)), np.nan)
        found[np.ix_(used, used)] = some
    return found if overlap.MEASURES[measure].sense == "similarity" else -found


# ---- hidden states -------------------------------------------------------------------------------------------------


#: Kinds of `hidden_similarity`.
HIDDEN = ("cosine", "centred cosine", "euclidean", "row cosine", "row euclidean", "norm cosine")


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
    v = hidden_states(site)
    if kind == "centred cosine":
        v = v - v.mean(axis=0)
    if kind.startswith("row"):
        v = matmul(v, seen_by_router(site, "hidden_similarity").CW.T)  # (n, E)
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
    return np.clip(matmul(v, v.T), -1, 1)


def _gain(site: Site) -> Array:
    """gamma (d,) of the norm in front of the Site."""
    gamma = getattr(getattr(site.before, "norm", None), "gamma", None)
    if gamma is None:
        raise ValueError(
            f"expected before of the Site {site.name!r} with a norm that has a gamma, which 'norm cosine' divides by; "
            f"got {'no norm' if getattr(site.before, 'norm', None) is None else type(site.before.norm).__name__}"  # type: ignore[union-attr]
        )
    return check.finite("gamma", check.shaped("gamma", gamma, (site.x.shape[1],), "the norm before this Site"))
