"""Halves of tokens and matched experts: noise floors, planted permutations, chance in sample and held out."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usages import random_sets, usage

from npmoe.geometry.overlap import MEASURES, match, matched_overlap, noise_floor, split_halves

EXACT = 1e-12  # the same sum of a few dozen terms, in another order
EXAMPLES = settings(max_examples=40, deadline=None)
NAMES = list(MEASURES)
seeds = st.integers(0, 2**32 - 1)


# Halves


@EXAMPLES
@given(seeds, st.integers(2, 30), st.integers(2, 6))
def test_halves_are_halves_and_keep_groups_together(seed, n, G):
    rng = np.random.default_rng(seed)
    assert split_halves(n, rng).sum() == n // 2
    groups = rng.permutation(np.arange(n) % min(G, n))
    half = split_halves(n, rng, groups)
    sides = [set(half[groups == g]) for g in np.unique(groups)]
    assert all(len(side) == 1 for side in sides)
    assert sum(side == {True} for side in sides) == len(sides) // 2


def test_noise_floor_is_that_of_samples_and_groups_raise_it():
    rng, n, E = np.random.default_rng(0), 4000, 16
    P = np.eye(E)[rng.integers(E, size=n)]
    found = noise_floor(P, None, rng, draws=50).mean()
    # halves of n/2: a share's difference has variance 4 p (1 - p)/n, mean |difference| sqrt(2/pi) of its root
    p = 1 / E
    expected = E / 2 * np.sqrt(2 / np.pi) * np.sqrt(4 * p * (1 - p) / n)
    assert found == pytest.approx(expected, rel=0.1)  # 50 halves of one sample know it to about 5 %
    groups = np.arange(n) // 40
    topical = np.eye(E)[rng.integers(E, size=n // 40)[groups]]  # each group of 40 uses one expert
    assert noise_floor(topical, groups, rng, draws=20).mean() > 3 * noise_floor(topical, None, rng, draws=20).mean()
    for name in NAMES:
        assert noise_floor(P > 0, groups, rng, name, draws=2).shape == (2,)
    with pytest.raises(ValueError, match="a half that uses no expert"):
        noise_floor(np.eye(2)[[0, 0]] * [[1], [0]], None, rng)


# Matching


@EXAMPLES
@given(seeds, st.integers(1, 6))
def test_match_is_the_best_of_all_permutations(seed, E):
    rng = np.random.default_rng(seed)
    P, Q = rng.random((2, 10, E))
    best = max(sum(P[:, e] @ Q[:, o[e]] for e in range(E)) for o in permutations(range(E)))
    assert (P * Q[:, match(P, Q)]).sum() == pytest.approx(best, rel=EXACT)


@EXAMPLES
@given(seeds, st.integers(2, 12))
def test_a_planted_permutation_is_found(seed, E):
    rng = np.random.default_rng(seed)
    P = random_sets(rng, 200, E, max(1, E // 4))
    planted = rng.permutation(E)
    # distinct experts: with 100 tokens a half two have the same tokens with a chance of (1 - 3/E)^100 or so
    found = matched_overlap(P, P[:, planted], rng)
    np.testing.assert_array_equal(planted[found.permutation], np.arange(E))
    assert found.in_sample == found.held_out == 1
    chosen = matched_overlap(P, P[:, planted], None, split_halves(200, rng), "jaccard")
    assert chosen.held_out == 1
    assert matched_overlap(P * 0.5, P[:, planted] * 0.5, rng, measure="total_variation").held_out == 0


def test_pure_chance_matched_in_sample_looks_like_agreement():
    """E = 64, k = 8, as many tokens as a short question: 0.125 becomes 0.62 where fitted, and stays where not."""
    rng = np.random.default_rng(0)
    found = np.array(
        [
            matched_overlap(random_sets(rng, 40, 64, 8), random_sets(rng, 40, 64, 8), rng)[:3]  # 20 tokens a half
            for _ in range(60)
        ]
    )
    # a token's overlap has standard deviation sqrt(0.125 0.875/8 56/63) = 0.11; 60 x 20 tokens; five standard errors
    assert found[:, [0, 2]].mean(axis=0) == pytest.approx([0.125] * 2, abs=5 * 0.11 / np.sqrt(1200))
    assert found[:, 1].mean() == pytest.approx(0.62, abs=0.02)


def test_busy_experts_are_matched_held_out_too_and_the_permuted_null_says_so():
    rng, E, k, n = np.random.default_rng(0), 16, 4, 800
    lean = 1.5 * rng.standard_normal((2, E))
    P, Q = (np.argsort(-(s + rng.gumbel(size=(n, E))), axis=1).argsort(axis=1) < k for s in lean)  # no tokens shared
    found = matched_overlap(P, Q, rng)
    null = matched_overlap(P, Q[rng.permutation(n)], rng)
    assert found.held_out > k / E + 0.1
    # one token's overlap has a standard deviation of about 0.2, 400 are scored on each side: four standard errors
    assert found.held_out == pytest.approx(null.held_out, abs=4 * 0.2 * np.sqrt(2 / 400))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Q": np.ones((3, 4), bool)}, "expected usage of the same tokens|boolean index did not match"),
        ({"halves": np.array([1, 0, 0, 0])}, r"expected halves as booleans of shape \(4,\), the tokens; got int64"),
        ({"halves": np.ones(4, bool)}, "expected tokens in both halves; got an empty half"),
        ({"rng": None}, "expected rng or halves; got neither"),
        ({"measure": "sine"}, "expected a measure out of"),
    ],
)
def test_matchings_of_what_does_not_fit_are_refused(change, message):
    good = {"P": np.ones((4, 4), bool), "Q": np.ones((4, 4), bool), "rng": np.random.default_rng(0)}
    with pytest.raises((ValueError, IndexError), match=message):
        matched_overlap(**(good | change))


@pytest.mark.parametrize("model", ["P", "Q"])
def test_a_token_without_experts_is_named_not_averaged_to_nan(model):
    both = dict(zip("PQ", usage(np.random.default_rng(0), 16, 4).reshape(2, 8, 4), strict=True))
    halves = np.arange(8) < 4
    both[model][5] = 0
    for name in ("total_variation", "jensen_shannon", "hellinger", "hilbert"):
        with pytest.raises(ValueError, match=f"expected tokens whose {name} is defined; .* at token 5"):
            matched_overlap(**both, rng=None, halves=halves, measure=name)
    assert matched_overlap(**both, rng=None, halves=halves, measure="weighted_jaccard").held_out > 0  # defined, 0
    sets = {name: rows > 0 for name, rows in both.items()}
    sets["P"][2] = sets["Q"][2] = False
    with pytest.raises(ValueError, match=r"set_overlap is defined; .* at token 2"):
        matched_overlap(**sets, rng=None, halves=halves)
