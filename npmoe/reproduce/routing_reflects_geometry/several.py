"""Several models trained on the same data: how far the experts that they use for a query agree, matched or as numbered.

n tokens, E experts, S sequences ("queries"), M models.
"""

import numpy as np

from npmoe.geometry import overlap
from npmoe.probe import usage
from npmoe.probe.site import Site
from npmoe.reproduce.routing_reflects_geometry.config import Config, generator

__all__ = ["COMPARED", "MODELS", "TOP", "compare"]

Array = np.ndarray
Arrays = dict[str, Array]

TOP = 0.8  # share of usage that a query's set of experts holds
MODELS = ("jaccard of sets", "jaccard corrected for chance", "weighted jaccard of usage", "overlap of tokens' sets")
#: What two models, or one, are compared on, scored on the half of the queries that no matching was fitted on.
COMPARED = (
    "same query, as numbered",
    "same query",
    "same query, fitted on itself",
    "other topics",
    "other queries of one topic",
    "other topics, one model",
    "other queries of one topic, one model",
    "queries permuted, as numbered",
    "queries permuted",
    "other topics, queries permuted",
)


def compare(start: list[Site], end: list[Site], config: Config) -> Arrays:
    """Overlap of the experts that models use, mean over pairs of models, which are untrained and trained Sites.

    models, models start (4, 10): readings `MODELS`, comparisons `COMPARED`, trained and untrained. Experts are matched
    on one half of the queries unless said otherwise. sizes (2,): mean size of a query's set over E, and the Jaccard
    that random sets of these sizes have.
    """
    found = {}
    for name, sites in (("models start", start), ("models", end)):
        pairs = [(a, b) for a in range(len(sites)) for b in range(a)]
        rngs = [generator(config.seed, "match", i) for i in range(len(pairs))]
        each = [_pair(sites[a], sites[b], config, rng) for (a, b), rng in zip(pairs, rngs, strict=True)]
        found[name] = np.mean(each, axis=0)
    sizes = overlap.top_p(np.concatenate([usage.frequencies(s)[1] for s in sites]), TOP).sum(axis=1)
    chance = overlap.jaccard_chance(sizes[:, None], sizes[None], config.E).mean()
    return {**found, "sizes": np.array([sizes.mean() / config.E, chance])}


def _pair(one: Site, other: Site, config: Config, rng: np.random.Generator) -> Array:
    """One pair of models by each reading of `MODELS`, (4, 10). The null gives the second model's choices for a query to
    another query, half by half, and matches again: 20 draws."""
    S, E = config.sequences, config.E
    P, Q = (usage.usage(s).reshape(S, config.length, E) for s in (one, other))
    topics = one.labels["topic"].reshape(S, config.length)
    topic = np.array([np.bincount(row).argmax() for row in topics])  # isotropic sequences may have two
    half = overlap.split_halves(S, rng)

    def matched(Q: Array) -> Array:
        return overlap.match(P[half].reshape(-1, E), Q[half].reshape(-1, E))

    order = matched(Q)
    rest = ~half
    nulls = []
    for _ in range(config.draws):
        moved = np.arange(S)
        for side in (half, rest):
            moved[side] = _deranged(np.flatnonzero(side), rng)
        nulls.append((Q[moved], matched(Q[moved])))
    rows = []
    for kind in MODELS:
        A, raw, B = (_table_of(U[rest], kind) for U in (P, Q, Q[..., order]))
        fitted = _same(_table_of(P[half], kind), _table_of(Q[half][..., order], kind), kind)
        of = topic[rest]
        row = [_same(A, raw, kind), _same(A, B, kind), fitted, *_different(A, B, of, kind)]
        row += np.mean([_different(U, U, of, kind) for U in (A, raw)], axis=0).tolist()
        chance = []
        for moved_Q, its in nulls:
            plain, again = _table_of(moved_Q[rest], kind), _table_of(moved_Q[rest][..., its], kind)
            chance.append([_same(A, plain, kind), _same(A, again, kind), _different(A, again, of, kind)[0]])
        rows.append([*row, *np.mean(chance, axis=0)])
    return np.array(rows)


def _deranged(places: Array, rng: np.random.Generator) -> Array:
    """Sorted places, each given another: the next on a random ring."""
    ring = rng.permutation(len(places))
    moved = np.empty_like(places)
    moved[ring] = places[np.roll(ring, 1)]
    return moved


def _table_of(U: Array, kind: str) -> Array:
    """Usage of queries (s, length, E) as the measure reads it: sets of tokens, of queries, or shares."""
    if kind == MODELS[3]:
        return U > 0
    total = U.sum(axis=1)
    total = total / total.sum(axis=1, keepdims=True)
    return total if kind == MODELS[2] else overlap.top_p(total, TOP)


def _measured(X: Array, Y: Array, kind: str) -> Array:
    """The measure of rows against rows, broadcast; sets of queries corrected for the chance of their sizes
    where asked."""
    if kind == MODELS[3]:
        return overlap.set_overlap(X, Y)
    if kind == MODELS[2]:
        return overlap.weighted_jaccard(X, Y)
    found = overlap.jaccard(X, Y)
    if kind == MODELS[0]:
        return found
    chance = overlap.jaccard_chance(X.sum(axis=-1), Y.sum(axis=-1), X.shape[-1])
    # two sets of all experts agree whatever happens: there is nothing to correct, and nothing learnt
    return np.where(chance < 1, overlap.corrected(found, np.minimum(chance, 1 - 1e-12)), 0.0)


def _same(X: Array, Y: Array, kind: str) -> float:
    return float(_measured(X, Y, kind).mean())


def _different(X: Array, Y: Array, topic: Array, kind: str) -> list[float]:
    """Means over pairs of queries of other topics, and over pairs of different queries of one topic."""
    if kind == MODELS[3]:  # tokens in the same place of two queries: places mean nothing
        table = np.mean([_measured(X[:, None, t], Y[None, :, t], kind) for t in range(X.shape[1])], axis=0)
    else:
        table = _measured(X[:, None], Y[None], kind)
    other = topic[:, None] != topic
    one = ~other & ~np.eye(len(topic), dtype=bool)
    return [float(table[mask].mean()) if mask.any() else float("nan") for mask in (other, one)]
