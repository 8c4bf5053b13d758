"""Overlap between two halves of the tokens, and between two models whose experts have to be matched first.

n tokens, E experts; P and Q (n, E) are usage of the same tokens, a row of each a token.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line
from npmoe.geometry.overlap.measures import MEASURES, measure_named, top_p
from npmoe.geometry.rows import as_rows, as_sets, as_shares, both_as, scaled, vanishing

__all__ = ["Matched", "match", "matched_overlap", "noise_floor", "split_halves"]

Array = np.ndarray


# Halves


def split_halves(n: int, rng: np.random.Generator, groups: Array | None = None) -> Array:
    """A random half of n tokens, (n,) booleans: n // 2 are True; by whole `groups` (n,), sequences say, where given.

    Examples
    --------
    >>> split_halves(6, np.random.default_rng(1), groups=np.array([0, 0, 1, 1, 2, 2]))
    array([ True,  True, False, False, False, False])
    """
    check.integer("n", n, 2)
    if groups is None:
        return rng.permutation(n) < n // 2
    groups = check.unmasked("groups", groups)
    if groups.shape != (n,):
        raise ValueError(f"expected groups of shape ({n},), one label a token; got {groups.shape}")
    labels, group = np.unique(groups, return_inverse=True)
    if len(labels) < 2:
        raise ValueError("expected at least 2 groups to make halves of; got 1")
    return split_halves(len(labels), rng)[group]


def noise_floor(
    P: Array,
    groups: Array | None,
    rng: np.random.Generator,
    measure: str = "total_variation",
    draws: int = 100,
    p: float = 0.8,
) -> Array:
    """The measure between two random halves of the same thing, (draws,): what sampling alone does to it.

    Parameters
    ----------
    P : (n, E) usage a token (gates, counts or masks), or counts a group. Each half's rows are added up and normalised;
        measures of sets take the `top_p` sets of that.
    groups : (n,) labels of what is drawn as a whole, or None: tokens of one text are not independent.

    A half has half the tokens: the floor is that of comparing two samples of n/2.

    Examples
    --------
    >>> noise_floor(np.ones((6, 4)), None, np.random.default_rng(0), draws=2)
    array([0., 0.])
    """
    usage = scaled(as_rows("P", P), axis=None)
    kind = measure_named(measure).kind
    out = np.empty(check.integer("draws", draws, 1))
    for draw in range(draws):
        half = split_halves(len(usage), rng, groups)
        both = as_shares("P", _together(np.stack([half, ~half], axis=1).astype(usage.dtype), usage))  # (2, E)
        if np.isnan(both).any():
            raise ValueError("expected usage in every half of P; got a half that uses no expert")
        out[draw] = MEASURES[measure].function(*(top_p(both, p) if kind == "sets" else both))
    return out


# Matching the experts of two models


class Matched(NamedTuple):
    """Mean measure between two models' usage of the same tokens, and the `permutation` (E,) of the second's experts.

    raw : experts as they are numbered, on the scored half.
    in_sample : matched, and scored on the very half that the matching was fitted on: chance alone makes it large.
    held_out : matched, and scored on the other half.
    """

    raw: float
    in_sample: float
    held_out: float
    permutation: Array

    def __repr__(self) -> str:
        return one_line(self)


def match(P: Array, Q: Array) -> Array:
    """The permutation of Q's experts with the largest summed co-usage, (n, E) twice -> (E,); Q[:, it] goes with P.

    Maximises sum_e sum_n P[n, e] Q[n, it[e]] (linear assignment).

    Raises
    ------
    ValueError, TypeError : unless P and Q are usage of the same n tokens by equally many experts.

    Examples
    --------
    >>> P = np.array([[True, False, False], [False, True, False], [False, False, True]])
    >>> match(P, P[:, [2, 0, 1]])
    array([1, 2, 0])
    """
    P, Q = both_as(as_rows, P, Q)
    if len(P) != len(Q):
        raise ValueError(f"expected usage of the same tokens; got {len(P)} and {len(Q)}")
    return _assigned(_together(scaled(P, axis=None), scaled(Q, axis=None)))


@vanishing
def _together(P: Array, Q: Array) -> Array:
    return matmul(P.T, Q)


def _assigned(together: Array) -> Array:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(together, maximize=True)[1]


def matched_overlap(
    P: Array,
    Q: Array,
    rng: np.random.Generator | None,
    halves: Array | None = None,
    measure: str = "set_overlap",
) -> Matched:
    """Mean of a measure over tokens after matching: fitted on one half of the tokens, scored on the other.

    Held out, independent choices of equal shares give k/E again. Where some experts are busy in both models matching
    pairs busy with busy, which raises even the held-out number: its null is the same with Q's rows permuted.

    Parameters
    ----------
    P, Q : (n, E) usage of the same n tokens, booleans where the measure is one of sets.
    halves : (n,) booleans, True where the matching is fitted: `split_halves` with groups. Drawn with rng unless given.

    Raises
    ------
    ValueError, TypeError : as `match`; for a token whose measure is undefined, such as one that uses no expert: leave
        it out of both, or every mean would be NaN.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> P, Q = (rng.random((40, 64)).argsort(axis=1) < 8 for _ in range(2))  # chance: 0.125
    >>> [round(v, 2) for v in matched_overlap(P, Q, rng)[:3]]
    [0.09, 0.62, 0.15]
    """
    function, kind, _ = measure_named(measure)
    if kind == "sets":
        both_as(as_sets, P, Q)
    P, Q = check.unmasked("P", P), check.unmasked("Q", Q)
    if halves is None:
        if rng is None:
            raise ValueError("expected rng or halves; got neither")
        halves = split_halves(len(P), rng)
    halves = check.unmasked("halves", halves)
    if halves.dtype != bool or halves.shape != (len(P),):
        raise ValueError(
            f"expected halves as booleans of shape ({len(P)},), the tokens; got {halves.dtype} of shape {halves.shape}"
        )
    if halves.all() or not halves.any():
        raise ValueError("expected tokens in both halves; got an empty half")
    order = match(P[halves], Q[halves])
    rest = ~halves

    def mean(rows: Array, order: Array | slice) -> float:
        values = function(P[rows], Q[rows][:, order])
        if np.isnan(values).any():
            token = np.flatnonzero(rows)[np.isnan(values)][0]
            raise ValueError(f"expected tokens whose {measure} is defined; got no expert used at token {token}")
        return float(np.mean(values))

    return Matched(mean(rest, slice(None)), mean(halves, order), mean(rest, order), order)
