"""Nulls made by chance: what they keep, what they destroy, and how near they come to what was asked."""

from dataclasses import replace

import numpy as np
import pytest
from cases import ROUNDING, close, linear, mixture, norm
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe import Site, Stack, site
from npmoe.geometry.pca import n_eff
from npmoe.probe.null import permuted_router, random_router, shuffled, thinned

EXAMPLES = settings(max_examples=40, deadline=None)

seeds = st.integers(0, 2**32 - 1)


@st.composite
def sites(draw):
    """A Site whose first feature numbers its tokens; soft, top-k, or a trace without choice."""
    rng = np.random.default_rng(draw(seeds))
    n, E = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    k = draw(st.integers(1, E))
    s = site(mixture(rng, E, 3, 2, k, renormalize=draw(st.booleans())), rng.standard_normal((n, 3)))
    x = s.x.copy()
    x[:, 0] = np.arange(n)
    labels = {"token": np.arange(n), "topic": rng.integers(0, 3, n)}
    return replace(s, x=x, labels=labels, chosen=s.chosen if draw(st.booleans()) else None, name="s")


def table(s):
    """Gates and choice side by side, one row a token, sorted: a multiset of rows."""
    parts = [s.gates] if s.chosen is None else [s.gates, s.chosen]
    return np.array(sorted(np.concatenate(parts, axis=1).tolist()))


# Shuffled


@EXAMPLES
@given(sites(), seeds)
def test_shuffled_rows_move_as_wholes_and_nothing_else_moves(s, seed):
    null = shuffled(s, np.random.default_rng(seed))
    np.testing.assert_array_equal(table(null), table(s))
    assert null.x is s.x
    assert null.experts is s.experts
    assert null.labels is s.labels  # labels belong to the tokens, not to the gates
    assert (null.router, null.name) == (None, "s shuffled")
    on, was = null.gates > 0, s.gates > 0
    np.testing.assert_array_equal(on.T.astype(int) @ on, was.T.astype(int) @ was)  # tokens that two experts share
    close(null.gates.T @ null.gates, s.gates.T @ s.gates, ROUNDING)
    close(n_eff(null.gates), n_eff(s.gates), ROUNDING)


def test_columns_shuffled_apart_would_be_caught(rng):
    """The null that claims.md warns of: it keeps every column's values and loses which experts share a token."""
    s = site(mixture(rng, 4, 3, 2, 2), rng.standard_normal((40, 3)))
    apart = replace(s, gates=rng.permuted(s.gates, axis=0))
    np.testing.assert_array_equal(np.sort(apart.gates, axis=0), np.sort(s.gates, axis=0))
    assert table(apart).tolist() != table(s).tolist()
    assert np.abs(apart.gates.T @ apart.gates - s.gates.T @ s.gates).max() > 0.5


def test_a_shuffle_is_a_fresh_permutation_of_all_rows_and_the_same_for_the_same_generator():
    n = 6
    s = Site(x=np.eye(n), gates=np.eye(n))
    landed = np.zeros((n, n))
    generator = np.random.default_rng(0)
    for _ in range(600):
        landed += shuffled(s, generator).gates
    # each row is as likely at each place: 100 times, with a standard deviation of 9
    assert 60 < landed.min() <= landed.max() < 140
    first, again = (shuffled(s, np.random.default_rng(1)).gates for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (s.gates == np.eye(n)).all()


# Thinned


@EXAMPLES
@given(sites(), seeds, st.integers(0, 64))
def test_thinned_comes_within_half_a_token_of_its_target(s, seed, share):
    """One more token adds at most 1 to any n_eff ((S + w)^2 / (Q + w^2) is largest, S^2/Q + 1, at w = Q/S): the sizes
    on the way from one token to all leave no gap wider than 1, so the nearest is within 1/2."""
    most = n_eff(s.gates).mean()
    if most < 1:
        with pytest.raises(ValueError, match="expected a mean n_eff within"):
            thinned(s, 1.0, np.random.default_rng(seed))
        return
    target = 1 + share / 64 * (most - 1)
    null = thinned(s, target, np.random.default_rng(seed))
    assert abs(n_eff(null.gates).mean() - target) <= 0.5 + ROUNDING
    # a subset, in order, of which everything was kept together
    kept = null.x[:, 0].astype(int)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(null.x, s.x[kept])
    np.testing.assert_array_equal(null.gates, s.gates[kept])
    if s.chosen is not None:
        np.testing.assert_array_equal(null.chosen, s.chosen[kept])
    for name, label in s.labels.items():
        np.testing.assert_array_equal(null.labels[name], label[kept])
    assert null.experts is s.experts
    assert null.router is s.router
    assert null.name == "s thinned"


def test_all_tokens_are_kept_where_all_are_asked_for(rng):
    s = site(mixture(rng, 3, 4, 2, 3), rng.standard_normal((20, 4)))
    null = thinned(s, n_eff(s.gates).mean(), rng)
    assert n_eff(null.gates).mean() == pytest.approx(n_eff(s.gates).mean(), abs=0.5)
    dense = Site(x=s.x, gates=np.ones((20, 1)))
    np.testing.assert_array_equal(thinned(dense, 20, rng).x, s.x)


@pytest.mark.parametrize("target", [1, 3, 7.4, 20])
def test_of_equal_gates_as_many_tokens_are_kept_as_asked_for(target):
    s = Site(x=np.arange(20.0)[:, None], gates=np.full((20, 2), 0.3))
    assert thinned(s, target, np.random.default_rng(0)).n == round(target)


def test_every_token_is_as_likely_to_be_kept():
    s = Site(x=np.arange(8.0)[:, None], gates=np.ones((8, 1)))
    generator = np.random.default_rng(0)
    counts = np.zeros(8)
    for _ in range(400):
        counts[thinned(s, 4, generator).x[:, 0].astype(int)] += 1
    assert 160 < counts.min() <= counts.max() < 240  # 200, with a standard deviation of 10


def test_what_stands_in_front_is_thinned_too(rng):
    rms = norm(rng, 4)
    for model in (Stack((rms, mixture(rng, 3, 4, 2, 2))), Stack((linear(rng, 4, 4), rms, mixture(rng, 3, 4, 2, 2)))):
        s = site(model, rng.standard_normal((20, 4)))
        null = thinned(s, 5, rng)
        assert null.before.norm is rms
        close(rms.forward(null.before.x)[0], null.x, ROUNDING)


@pytest.mark.parametrize("target", [0, 0.99, 20.01, 1e9, np.nan, -3])
def test_a_target_out_of_reach_is_refused(target):
    s = Site(x=np.zeros((20, 1)), gates=np.ones((20, 1)), name="dense")
    with pytest.raises(ValueError, match=r"a mean n_eff within 1\.\.20, what all tokens of 'dense' give; got"):
        thinned(s, target, np.random.default_rng(0))


# Other routers


@pytest.mark.parametrize("null", [random_router, permuted_router])
def test_another_router_is_as_sharp_and_reads_the_same_states(rng, null):
    s = site(mixture(rng, 5, 7, 2, 2), rng.standard_normal((40, 7)))
    other = null(s, np.random.default_rng(1))

    def size(router):
        W = router.matrix
        return np.linalg.norm(W - W.mean(axis=0))

    close(size(other.router), size(s.router), ROUNDING)
    assert other.x is s.x
    assert other.experts is s.experts
    assert not np.array_equal(other.chosen, s.chosen)
    gates, chosen = other.router.moe.route(s.x)  # what it says it chose is what its router chooses
    np.testing.assert_array_equal(other.gates, gates)
    np.testing.assert_array_equal(other.chosen, chosen)


def test_permuting_a_router_keeps_each_experts_own_weights(rng):
    s = site(mixture(rng, 5, 7, 2, 2), rng.standard_normal((4, 7)))
    W = permuted_router(s, np.random.default_rng(1)).router.matrix
    np.testing.assert_array_equal(np.sort(W, axis=1), np.sort(s.router.matrix, axis=1))


@pytest.mark.parametrize("null", [random_router, permuted_router])
def test_a_site_without_a_router_is_refused(rng, null):
    with pytest.raises(ValueError, match=f"{null.__name__}.*router"):
        null(Site(x=np.eye(3), gates=np.eye(3)), rng)
