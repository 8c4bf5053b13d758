"""Exact statements about routing on random and trained mixtures, and planted faults that they find."""

from dataclasses import replace

import numpy as np
import pytest
from cases import gelu, mixture
from hypothesis import given
from hypothesis import strategies as st
from routed import EXAMPLES, KINDS, ROUNDING, WALLED, Liar, changed, drawn, kinds, partners, seeds

import npmoe
from npmoe import site
from npmoe.geometry import overlap
from npmoe.probe import router, scores, statements, usage, walls

# Statements


@pytest.mark.underflow  # gates of cold routers vanish
@EXAMPLES
@given(kinds, seeds, st.booleans())
def test_no_statement_is_violated(kind, seed, trained):
    s, rng = drawn(kind, seed, trained=trained)
    for other in (partners(s, rng), rng.integers(0, s.n, (30, 2)), s.x.copy()):
        found = statements.bounds(s, other, rng)
        assert [f.name for f in found] == [
            "lipschitz, soft gates",
            "lipschitz by sigma_1, soft gates",
            "total variation, soft gates",
            "lipschitz, one set",
            "total variation, one set",
            "hilbert, soft gates",
            "row part, soft gates",
            "radius, inside",
            "radius, beyond",
        ]
        assert found.violations == 0, found
        assert all(f.worst <= 1 for f in found), found
        assert found.named("hilbert, soft gates").checked == len(other)
        if kind in WALLED:
            assert found.named("radius, inside").checked > 3.8 * s.n  # four directions
            assert found.named("radius, beyond").checked == s.n
        if KINDS[kind][2] == s.E:
            assert found.named("lipschitz, one set").checked == len(other)
            assert found.named("lipschitz, one set").broken == 0


def test_bounds_are_met_nearly_with_equality_where_they_can_be(rng):
    """Two experts of equal score and opposite rows: the softmax's slope is 1/2 there, and tanh is exact."""
    moe = mixture(rng, 2, 3, 4, 2)
    moe = replace(moe, router=np.stack([moe.router[0], -moe.router[0]]))
    x = np.zeros((5, 3))
    x[:, 0] = 1e-12  # nearly tied
    x -= 1e-12 * moe.router[0] / 9
    small = statements.bounds(site(moe, x), x + 1e-4 * moe.router[0])
    assert small.named("lipschitz, soft gates").worst > 0.999
    assert small.named("lipschitz by sigma_1, soft gates").worst > 0.999
    # symmetric about the tie, the span is shared evenly: total variation = tanh(span/4)
    a = 0.3 * moe.router[:1]
    even = statements.bounds(site(moe, a), -a)
    assert even.named("total variation, soft gates").worst == pytest.approx(1, abs=1e-12)
    assert even.violations == 0


@pytest.mark.parametrize("kind", ["top2", "top1", "top2 not renormalized", "switch"])
def test_renormalized_gates_break_the_bounds_where_sets_differ(kind):
    """Gates of one expert after another jump. It is the condition that fails, so it is not counted as a violation."""
    s, rng = drawn(kind, 1, n=300)
    found = statements.bounds(s, s.x + 0.05 * rng.standard_normal(s.x.shape))
    for name in ("lipschitz, one set", "total variation, one set"):
        one = found.named(name)
        assert one.violations == 0
        assert 0 < one.checked < s.n
        assert one.broken > 0
        assert one.broken <= s.n - one.checked


@pytest.mark.parametrize("kind", ["switch", "top2 not renormalized"])
def test_gates_not_renormalized_need_all_experts_in_the_bound(kind):
    """Over the chosen set alone C Delta is too short (of one expert it is 0): the statement takes all by the data."""
    s, rng = drawn(kind, 3, n=100)
    y = s.x + 1e-3 * rng.standard_normal(s.x.shape)
    same = ~changed(s, y)
    g = np.linalg.norm(s.gates - s.router.gates(y), axis=1)
    Delta = (s.x - y) @ s.router.effective.T
    on = s.gates > 0
    alone = statements._centred_norm(Delta, on) / 2
    assert (g > alone + 1e-9)[same].any()
    assert (g <= statements._centred_norm(Delta, np.ones_like(on)) / 2)[same].all()
    # the remedy: renormalized over the set it holds over the set
    soft = on * s.gates / s.gates.sum(axis=1, keepdims=True)
    other = s.router.gates(y)
    assert (np.linalg.norm(soft - other / other.sum(axis=1, keepdims=True), axis=1) <= alone + 1e-12)[same].all()


@pytest.mark.underflow
@EXAMPLES
@given(kinds, seeds)
def test_hilbert_distance_of_gates_is_the_span_of_score_differences(kind, seed):
    """By the other route: the measure of geometry.overlap, on gates themselves."""
    s, rng = drawn(kind, seed)
    y = rng.standard_normal(s.x.shape)
    q, p = (statements._soft(s.router.scores(v)) for v in (s.x, y))
    span = np.ptp((s.x - y) @ s.router.effective.T, axis=1)
    np.testing.assert_allclose(overlap.hilbert(q, p), span, rtol=1e-12, atol=1e-12)


@pytest.mark.underflow
def test_tiny_gates_do_not_spoil_the_hilbert_statement(rng):
    """Scores so far apart that gates underflow to 0: their logarithms do not."""
    s, _ = drawn("soft cold", 0)
    far = site(replace(s.router.moe, temperature=1e-4), s.x)
    assert (far.gates == 0).any()
    found = statements.bounds(far, rng.standard_normal(far.x.shape))
    assert found.violations == 0, found


def test_a_large_common_row_and_float32_are_within_the_allowance(rng):
    s, _ = drawn("top2", 5)
    moe = s.router.moe
    shifted = site(replace(moe, router=moe.router + 1e6 * rng.standard_normal(12)), s.x)
    assert statements.bounds(shifted, rng.standard_normal(s.x.shape)).violations == 0
    assert router.row_basis(shifted).shape == (12, 7)  # not 8: rounding of the mean is no direction
    single = npmoe.MoE(moe.router.astype(np.float32), moe.experts, 2)
    small = site(single, s.x.astype(np.float32))
    assert statements.bounds(small, rng.standard_normal(s.x.shape)).violations == 0


@pytest.mark.underflow
def test_saturated_gates_of_switch_do_not_stand_for_their_partners(rng):
    """Gates of 1 on one side: the bound over the single expert of the set, 0, holds only if both sides saturate."""
    moe = mixture(rng, 5, 8, 4, 1, renormalize=False)
    s = site(moe, 3000 * rng.standard_normal((200, 8)))
    s = replace(s, x=s.x[s.gates.max(axis=1) == 1], gates=s.gates[s.gates.max(axis=1) == 1], chosen=None)
    s = site(moe, s.x)
    for y in (s.x / 3000, s.x * 2, rng.standard_normal(s.x.shape)):
        found = statements.bounds(s, y)
        assert found.named("lipschitz, one set").checked > 10
        assert found.violations == 0, found
    turned = statements.bounds(site(moe, s.x / 3000), s.x)
    assert turned.named("lipschitz, one set").worst > 0
    assert turned.violations == 0


def sharing(s, rng):
    """The same Site with two experts more, which every token visits with a gate of 1."""
    shared = tuple(gelu(rng, s.x.shape[1], 4, s.x.shape[1]) for _ in range(2))
    gates = np.concatenate([s.gates, np.ones((s.n, 2))], axis=1)
    return replace(s, gates=gates, experts=(*s.experts, *shared), always=2)


@pytest.mark.parametrize("kind", ["top2", "soft", "switch"])
def test_experts_that_no_router_chose_change_nothing(kind):
    s, rng = drawn(kind, 0)
    more, y = sharing(s, rng), rng.standard_normal(s.x.shape)
    for call in (
        lambda at: walls.radius(at),
        lambda at: (router.row_basis(at), router.null_basis(at), router.centred(at)),
        lambda at: tuple(map(tuple, [f[1:] for f in statements.bounds(at, y)])),
        lambda at: router.null_pair(at, [0, 3], 0.5, np.random.default_rng(0)),
        lambda at: router.mean_response(at),
        lambda at: walls.wall(at, np.random.default_rng(0), [0.5]),
        lambda at: (usage.usage(at), usage.usage(at, "gates")),
        lambda at: [usage.frequencies(at, kind=by)[1] for by in ("sets", "gates")],
        lambda at: [usage.similarity(at, m, label) for m in ("jaccard", "hellinger") for label in (None, "sequence")],
        lambda at: usage.hidden_similarity(at, "row cosine"),
    ):
        for a, b in zip(call(more), call(s), strict=True):
            np.testing.assert_array_equal(a, b)
    every = replace(s, chosen=None, router=None, always=s.E)
    with pytest.raises(ValueError, match="expected routed experts"):
        usage.usage(every)
    with pytest.raises(ValueError, match="visited always; got"):
        router.centred(replace(s, chosen=s.chosen * 0, always=1))


def test_a_temperature_does_not_round_the_matrix_of_float32(rng):
    s, _ = drawn("top2", 5)
    single = npmoe.MoE(s.router.matrix.astype(np.float32), s.experts, 2, temperature=0.7)
    assert statements.bounds(site(single, s.x.astype(np.float32)), rng.standard_normal(s.x.shape)).violations == 0


# Planted faults: each must be found


def test_a_bound_with_half_the_constant_is_found_violated(rng):
    """Half of W shown is half of every bound: pairs near a tie of two experts need it all."""
    s, _ = drawn("two experts soft", 2, n=400)
    y = s.x + 1e-3 * rng.standard_normal(s.x.shape)
    whole = statements.bounds(s, y)
    half = statements.bounds(replace(s, router=Liar(s.router, 0.5)), y)
    for name in ("lipschitz, soft gates", "total variation, soft gates", "hilbert, soft gates"):
        assert whole.named(name).violations == 0
        assert half.named(name).violations > 0, name
        assert half.named(name).worst > 1
    assert half.named("lipschitz, soft gates").violations < s.n  # it is slack elsewhere
    double = statements.bounds(replace(s, router=Liar(s.router, 2.0)), y)
    assert double.named("lipschitz, soft gates").violations == 0
    assert double.named("hilbert, soft gates").violations == s.n


def test_too_large_a_smallest_singular_value_is_found_violated():
    s, _ = drawn("two experts soft", 2)
    y = -s.x
    moved = statements.bounds(replace(s, router=Liar(s.router, 2.0)), y).named("row part, soft gates")
    assert moved.violations == s.n  # of rank 1 the statement is an equality
    assert moved.worst == pytest.approx(2, rel=1e-9)
    assert statements.bounds(s, y).named("row part, soft gates").worst == pytest.approx(1, abs=1e-9)


def test_a_wrong_null_space_is_found(monkeypatch, rng):
    s, _ = drawn("top2", 4)
    right = router.null_pair(s, np.arange(s.n), 0.2, rng)
    np.testing.assert_allclose(s.router.gates(right), s.gates, rtol=0, atol=ROUNDING)
    seen, null = scores.seen_by_router, router.null_basis(s)

    def turned(site, probe):
        """Row space and null space with one direction of each exchanged."""
        row = seen(site, probe).row.copy()
        row[:, -1] = null[:, 0]
        return seen(site, probe)._replace(row=row)

    hidden = s.x + s.x @ router.null_basis(s) @ router.null_basis(s).T
    assert statements.bounds(s, hidden).violations == 0
    for probe in (router, statements):
        monkeypatch.setattr(probe, "seen_by_router", turned)
    wrong = router.null_pair(s, np.arange(s.n), 0.2, rng)
    assert (np.abs(s.router.gates(wrong) - s.gates).max(axis=1) > 1e-6).mean() > 0.9
    # of a pair that routing cannot tell apart the wrong row space sees a part
    assert statements.bounds(s, hidden).named("row part, soft gates").violations == s.n


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_radius_one_per_cent_wrong_is_found(monkeypatch, factor):
    s, _ = drawn("top2", 6)
    right = walls.radius
    monkeypatch.setattr(statements, "radius", lambda site: right(site)._replace(radius=right(site).radius * factor))
    found = statements.bounds(s, s.x)
    if factor > 1:
        assert found.named("radius, inside").violations >= s.n  # 0.999 x 1.01 along the normal is beyond
    else:
        assert found.named("radius, beyond").violations == s.n
