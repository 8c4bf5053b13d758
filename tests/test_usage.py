"""Routing and hidden states: exact statements on random and trained mixtures, walls, and planted faults."""

from dataclasses import replace

import numpy as np
import pytest
from cases import gelu, mixture
from hypothesis import given, settings
from hypothesis import strategies as st

import npmoe
from npmoe import Site, site
from npmoe.geometry import overlap
from npmoe.probe import ensemble, router, scores, statements, usage, walls
from npmoe.probe.null import shuffled

EPS = np.finfo(float).eps
ROUNDING = 1e-12  # a few thousand eps: scores of some tens, differences of them divided by a gap of 0.01
EXAMPLES = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)

#: E, d, k, renormalize, temperature, bias
KINDS = {
    "soft": (6, 9, 6, True, 1.0, False),
    "soft not renormalized": (4, 7, 4, False, 1.0, False),
    "soft cold": (5, 8, 5, True, 0.25, False),
    "top2": (8, 12, 2, True, 1.0, False),
    "top2 cold biased": (8, 12, 2, True, 0.25, True),
    "top3 warm": (7, 9, 3, True, 4.0, False),
    "top2 not renormalized": (6, 8, 2, False, 1.0, True),
    "top1": (5, 8, 1, True, 1.0, False),
    "switch": (5, 8, 1, False, 1.0, False),
    "switch cold biased": (5, 8, 1, False, 0.25, True),
    "two experts": (2, 5, 1, True, 1.0, True),
    "two experts soft": (2, 5, 2, True, 4.0, False),
    "more experts than d": (9, 4, 3, True, 1.0, False),
    "many more, switch": (12, 3, 1, False, 4.0, True),
    "one expert": (1, 3, 1, True, 1.0, True),
}
#: those with a wall, and those of which a part of x is invisible
WALLED = {name for name, (E, _, k, *_) in KINDS.items() if k < E}
BLIND = {name for name, (E, d, *_) in KINDS.items() if d > E - 1}

kinds = st.sampled_from(sorted(KINDS))
walled = st.sampled_from(sorted(WALLED))
blind = st.sampled_from(sorted(BLIND - {"one expert"}))


def drawn(kind, seed, n=20, trained=False):
    """The Site of a mixture of this kind on n tokens, at random or after 20 steps, and the generator."""
    E, d, k, renormalize, temperature, bias = KINDS[kind]
    rng = np.random.default_rng(seed)
    b = rng.standard_normal(E) if bias else None
    moe = mixture(rng, E, d, 4, k, renormalize=renormalize, temperature=temperature, bias=b)
    if trained:
        x = rng.standard_normal((40, d))
        *_, (_, _, moe) = npmoe.fit(moe, x, np.tanh(x[:, ::-1]), 20, lr=0.05)
    labels = {"sequence": np.arange(n) % 3}
    return replace(site(moe, rng.standard_normal((n, d))), labels=labels), rng


def sets(s, x):
    """The chosen sets of the Site's router, (n, k) in order of number."""
    return np.sort(s.router.moe.route(x)[1], axis=1)


def changed(s, x):
    """Tokens whose set at x is another one than the Site's."""
    return (sets(s, x) != np.sort(s.chosen, axis=1)).any(axis=1)


def partners(s, rng):
    """Others near and far: half of them close to x."""
    far = rng.standard_normal(s.x.shape)
    near = s.x + rng.standard_normal(s.x.shape) * 10.0 ** rng.uniform(-9, 0, (s.n, 1))
    return np.where(rng.random((s.n, 1)) < 0.5, near, far)


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


def test_all_that_need_no_kernel_take_a_thin_decomposition(monkeypatch):
    """Of a router (E, d) with d large the d directions of a full one would take d^2 numbers."""
    s, rng = drawn("top2", 0)
    svd, full = np.linalg.svd, []

    def watched(a, full_matrices=True, compute_uv=True, **options):
        full.append(full_matrices and compute_uv and a.ndim == 2 and a.shape[0] < a.shape[1])
        return svd(a, full_matrices=full_matrices, compute_uv=compute_uv, **options)

    monkeypatch.setattr(np.linalg, "svd", watched)
    statements.bounds(s, s.x)
    router.row_basis(s)
    router.row_share(s)
    router.mean_response(s)
    usage.hidden_similarity(s, "row cosine")
    router.null_pair(s, [0], 0.5, rng)
    assert full
    assert not any(full)
    router.null_basis(s)
    assert any(full)


class Known:
    """A router that gives W over the temperature itself, and no temperature."""

    bias = None

    def __init__(self, router):
        self.matrix, self.effective = router.matrix * np.nan, router.effective


def test_the_routers_own_effective_matrix_is_taken():
    s, _ = drawn("soft cold", 0)
    np.testing.assert_array_equal(router.centred(replace(s, router=Known(s.router))), router.centred(s))


def test_a_temperature_does_not_round_the_matrix_of_float32(rng):
    s, _ = drawn("top2", 5)
    single = npmoe.MoE(s.router.matrix.astype(np.float32), s.experts, 2, temperature=0.7)
    assert statements.bounds(site(single, s.x.astype(np.float32)), rng.standard_normal(s.x.shape)).violations == 0


# Planted faults: each must be found


class Liar:
    """A router whose scores are those of another matrix than it shows."""

    def __init__(self, router, factor=1.0, matrix=None):
        self.router, self.factor, self.shown = router, factor, matrix
        self.bias, self.temperature, self.moe = router.bias, router.temperature, router.moe
        self.gates, self.scores = router.gates, router.scores

    @property
    def matrix(self):
        return self.router.matrix * self.factor if self.shown is None else self.shown


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


# What the router can see


@EXAMPLES
@given(kinds, seeds)
def test_row_and_null_basis_take_the_space_apart(kind, seed):
    s, _ = drawn(kind, seed)
    E, d = s.E, s.x.shape[1]
    CW, Q, N = router.centred(s), router.row_basis(s), router.null_basis(s)
    assert Q.shape == (d, min(E - 1, d))
    assert N.shape[1] == d - Q.shape[1] >= d - E + 1
    both = np.concatenate([Q, N], axis=1)
    np.testing.assert_allclose(both.T @ both, np.eye(d), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(CW @ N, 0, atol=ROUNDING * max(1, np.abs(CW).max()))
    C = np.eye(E) - 1 / E
    np.testing.assert_allclose(CW, C @ s.router.matrix / s.router.moe.temperature, rtol=0, atol=ROUNDING * 10)
    s.router.gates(s.x + 3 * N.sum(axis=1))
    np.testing.assert_allclose(s.router.gates(s.x + 3 * N.sum(axis=1)), s.gates, rtol=0, atol=ROUNDING)


def test_equal_rows_lower_the_rank(rng):
    s, _ = drawn("top2", 0)
    rows = s.router.matrix.copy()
    rows[5], rows[6] = rows[1], rows[1]
    twin = site(replace(s.router.moe, router=rows), s.x)
    assert router.row_basis(twin).shape == (12, 5)
    alike = site(replace(s.router.moe, router=np.ones((8, 12))), s.x)
    assert router.row_basis(alike).shape == (12, 0)
    assert np.isinf(walls.radius(alike).radius).all()
    assert statements.bounds(alike, rng.standard_normal(s.x.shape)).violations == 0


@EXAMPLES
@given(kinds, seeds)
def test_row_share_is_that_of_two_parts(kind, seed):
    s, _ = drawn(kind, seed)
    for center in (True, False):
        x = s.x - s.x.mean(axis=0) if center else s.x
        share, chance = router.row_share(s, center)
        outside = ((x @ router.null_basis(s)) ** 2).sum() / (x**2).sum()
        assert share + outside == pytest.approx(1, rel=1e-12)
        assert chance == router.row_basis(s).shape[1] / s.x.shape[1]


def test_row_share_without_variance_is_undefined_and_of_planted_ones_is_0_and_1(rng):
    s, _ = drawn("top2", 0)
    inside = replace(s, x=rng.standard_normal((s.n, 7)) @ router.row_basis(s).T)
    outside = replace(s, x=rng.standard_normal((s.n, 5)) @ router.null_basis(s).T)
    assert router.row_share(inside).share == pytest.approx(1)
    assert router.row_share(outside).share == pytest.approx(0, abs=1e-20)
    assert np.isnan(router.row_share(replace(s, x=np.ones_like(s.x))).share)


# The radius


@EXAMPLES
@given(walled, seeds, st.booleans())
def test_bisection_along_the_normal_finds_the_radius(kind, seed, trained):
    s, _ = drawn(kind, seed, trained=trained)
    found = walls.radius(s)
    low, high = np.zeros(s.n), 2 * found.radius
    u = walls.wall_point(s, found._replace(radius=np.ones(s.n)), 0.0) - s.x  # unit normals
    for _ in range(60):
        middle = (low + high) / 2
        over = changed(s, s.x + middle[:, None] * u)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    # a bisection sees scores: their rounding over the distance of the two rows
    W = s.router.effective
    apart = np.linalg.norm(W[found.inside] - W[found.outside], axis=1)
    np.testing.assert_array_less(np.abs(high - found.radius), 2 * scores.score_rounding(s, s.x) / apart + 1e-12)
    assert changed(s, walls.wall_point(s, found, 0.01)).all()
    assert not changed(s, walls.wall_point(s, found, -0.01)).any()


@EXAMPLES
@given(walled, seeds)
def test_radius_by_brute_force_and_its_pair(kind, seed):
    s, _ = drawn(kind, seed)
    found, W, scores = walls.radius(s), s.router.effective, s.router.scores(s.x)
    for i in range(s.n):
        T = set(s.chosen[i].tolist())
        distance = {
            (e, j): (scores[i, e] - scores[i, j]) / np.linalg.norm(W[e] - W[j]) for e in T for j in set(range(s.E)) - T
        }
        pair = min(distance, key=distance.get)
        assert found.radius[i] == pytest.approx(distance[pair], rel=1e-9)
        assert (found.inside[i], found.outside[i]) == pair


@pytest.mark.underflow  # far out gates vanish
@EXAMPLES
@given(walled, seeds, st.floats(1e-3, 1e3))
def test_without_a_bias_cells_are_cones(kind, seed, t):
    s, _ = drawn(kind, seed)
    moe = replace(s.router.moe, bias=None)
    s = site(moe, s.x)
    assert not changed(s, s.x * t).any()
    np.testing.assert_allclose(walls.radius(site(moe, s.x * t)).radius, t * walls.radius(s).radius, rtol=1e-9)


def test_with_a_bias_they_are_not():
    s, _ = drawn("two experts", 0)
    assert changed(s, s.x * 1e-6).any()


@EXAMPLES
@given(walled, seeds)
def test_radius_does_not_depend_on_temperature_nor_on_a_common_row(kind, seed):
    s, rng = drawn(kind, seed)
    bias = s.router.bias
    warm = replace(s.router.moe, temperature=7.0, router=s.router.matrix + rng.standard_normal(s.x.shape[1]))
    shifted = replace(warm, bias=None if bias is None else bias + 3)
    np.testing.assert_allclose(walls.radius(site(shifted, s.x)).radius, walls.radius(s).radius, rtol=1e-9)


@pytest.mark.parametrize("bias", [None, np.array([0.0, 0.5, 0.5, 0.0]), np.array([0.0, 0.2, 0.5, 0.0])])
def test_equal_rows_never_change_their_order(bias, rng):
    """Experts 1 and 2 share their row: of a set that holds one of them, the other is no danger, at any bias."""
    W = rng.integers(-3, 4, (4, 5)).astype(float)
    W[2] = W[1]
    s = site(mixture(rng, 4, 5, 3, 1, bias=bias), rng.integers(-9, 9, (200, 5)).astype(float))  # exact scores
    s = site(replace(s.router.moe, router=W), s.x)
    found = walls.radius(s)
    one, other = (2, 1) if bias is not None and bias[2] > bias[1] else (1, 2)
    assert (s.chosen == one).any()
    assert not (s.chosen == other).any()
    assert not ((found.inside == one) & (found.outside == other)).any()
    finite = np.isfinite(found.radius) & (found.radius > 0)
    assert changed(s, walls.wall_point(s, found, 1e-6))[finite].all()
    alike = site(replace(s.router.moe, router=np.tile(W[:1], (4, 1))), s.x)
    assert np.isinf(walls.radius(alike).radius).all()
    assert (walls.radius(alike).inside == -1).all()
    assert np.isnan(walls.wall_point(alike, walls.radius(alike))).all()


def test_a_tie_lies_on_the_wall(rng):
    moe = replace(mixture(rng, 3, 2, 3, 1), router=np.array([[1.0, 0], [0, 1], [-1, -1]]))
    found = walls.radius(site(moe, np.array([[2.0, 2.0], [2.0, 1.0]])))
    assert found.radius.tolist() == [0, pytest.approx(np.sqrt(0.5))]
    assert (found.inside.tolist(), found.outside.tolist()) == ([0, 0], [1, 1])


def test_nearly_equal_rows_do_not_cancel(rng):
    """Rows 1e-9 apart, by a power of two: their difference is exact, the scores' would lose half the digits."""
    W = rng.integers(-3, 4, (3, 4)).astype(float)
    W[1] = W[0]
    W[1, 2] += 2.0**-30
    W[2] = -W[0]
    x = rng.standard_normal((50, 4))
    x = x[x @ W[0] / np.linalg.norm(W[0]) > 1.1 * np.abs(x[:, 2])]  # the third expert is further away
    found = walls.radius(site(replace(mixture(rng, 3, 4, 3, 1), router=W), x))
    assert len(x) > 3
    np.testing.assert_allclose(found.radius, np.abs(x[:, 2]), rtol=1e-12)


def test_soft_routing_has_no_wall():
    s, _ = drawn("soft", 0)
    assert np.isinf(walls.radius(s).radius).all()
    assert statements.bounds(s, s.x).named("radius, inside").checked == 0


def test_pieces_of_tokens_make_no_difference(monkeypatch):
    s, _ = drawn("top3 warm", 0)
    whole = walls.radius(s)
    monkeypatch.setattr(walls, "_PIECE", 50)
    for a, b in zip(walls.radius(s), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_choice_that_is_not_of_the_largest_scores_is_refused():
    s, _ = drawn("top2", 0)
    with pytest.raises(ValueError, match=r"expected chosen .* 2 largest scores; got .* at token"):
        walls.radius(replace(s, chosen=(s.chosen + 1) % s.E))


# The same routing at another cosine


@pytest.mark.underflow
@EXAMPLES
@given(blind, seeds, st.floats(0.001, 1), st.booleans())
def test_null_pairs_have_the_gates_of_x_and_the_cosine_asked(kind, seed, where, by_rows):
    """Anywhere in the attainable range but its open end, of which `where` is the distance as a share."""
    s, rng = drawn(kind, seed)
    low = -np.linalg.norm(s.x @ router.null_basis(s), axis=1) / np.linalg.norm(s.x, axis=1)
    want = low + where * (1 - low)
    y = router.null_pair(s, np.arange(s.n) if by_rows else s.x, want, rng)
    cosine = (s.x * y).sum(axis=1) / np.linalg.norm(s.x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(cosine, want, rtol=0, atol=1e-10)
    # gates differ by the rounding of the scores of a y that may be long
    allowed = scores.score_rounding(s, s.x) + scores.score_rounding(s, y) + 1e-14
    assert (np.abs(s.router.gates(y) - s.gates).max(axis=1) <= allowed).all()
    np.testing.assert_array_equal(sets(s, y), sets(s, s.x))
    if where == 1:
        np.testing.assert_allclose(y, s.x, rtol=0, atol=1e-6)  # a cosine of 1 - eps is 2e-8 of |x| away


@EXAMPLES
@given(blind, seeds)
def test_no_other_cosine_can_be_had(kind, seed):
    """By search: partners of all lengths and directions never leave the range, and come near its ends."""
    s, rng = drawn(kind, seed, n=1)
    N = router.null_basis(s)
    x, z = s.x[0], s.x[0] @ N
    row, b = x - N @ z, np.linalg.norm(z)
    v = rng.standard_normal((3000, N.shape[1])) * 10.0 ** rng.uniform(-3, 6, (3000, 1))
    v = np.concatenate([v, -z * 10.0 ** np.linspace(-3, 6, 50)[:, None], z[None]])
    y = row + v @ N.T
    cosine = y @ x / np.linalg.norm(x) / np.linalg.norm(y, axis=1)
    low = -b / np.linalg.norm(x)
    assert cosine.min() >= low - 1e-12
    assert cosine.min() == pytest.approx(low, abs=1e-4)
    assert cosine.max() == pytest.approx(1, abs=1e-12)
    for wrong in (low - 1e-9, 1 + 1e-9, np.nan):
        with pytest.raises(ValueError, match=r"expected a cosine within \(.*, 1\]"):
            router.null_pair(s, [0], wrong, rng)


def test_null_pairs_at_the_edges(rng):
    s, _ = drawn("top2", 0)
    N, Q = router.null_basis(s), router.row_basis(s)
    inside = s.x @ Q @ Q.T  # nothing in the kernel but rounding: cosines above 0 only
    y = router.null_pair(s, inside, 0.25, rng)
    np.testing.assert_allclose((inside * y).sum(1) / np.linalg.norm(inside, axis=1) / np.linalg.norm(y, axis=1), 0.25)
    with pytest.raises(ValueError, match="expected a cosine within"):
        router.null_pair(s, inside, -0.1, rng)
    with pytest.raises(ValueError, match="other than 0"):
        router.null_pair(s, np.zeros((1, 12)), 0.5, rng)
    blindly, _ = drawn("one expert", 0)  # it sees nothing: the whole range
    for cosine in (-1.0, -0.5, 0.0, 1.0):
        y = router.null_pair(blindly, blindly.x, cosine, rng)
        found = (blindly.x * y).sum(1) / np.linalg.norm(blindly.x, axis=1) / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(found, cosine, atol=1e-14)
    with pytest.raises(ValueError, match=r"within \[-1, 1\]"):
        router.null_pair(blindly, [0], -1.1, rng)
    kernel = rng.standard_normal((6, 5)) @ N.T  # inside the kernel up to rounding: the whole range as well
    for cosine in (-1.0, -0.5, 0.0, 1.0):
        y = router.null_pair(s, kernel, cosine, rng)
        np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(kernel, axis=1), rtol=1e-12)
        found = (kernel * y).sum(1) / np.linalg.norm(kernel, axis=1) / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(found, cosine, rtol=0, atol=1e-14)
        # all scores are tied, so that rounding chooses the set: the soft gates are to agree
        soft = [statements._soft(s.router.scores(v)) for v in (y, kernel)]
        np.testing.assert_allclose(*soft, rtol=0, atol=ROUNDING)
    full, _ = drawn("more experts than d", 0)
    np.testing.assert_array_equal(router.null_pair(full, [0, 3], 1.0, rng), full.x[[0, 3]])
    with pytest.raises(ValueError, match="of 1: the router's null space is empty"):
        router.null_pair(full, [0], 0.5, rng)
    thin = site(mixture(rng, 1, 1, 2, 1), np.array([[2.0], [3.0]]))
    np.testing.assert_allclose(router.null_pair(thin, [0, 1], [1.0, -1.0], rng), [[2], [-3]])
    with pytest.raises(ValueError, match="cosine -1 or 1"):
        router.null_pair(thin, [0], 0.5, rng)
    assert N.shape == (12, 5)


# The wall


def crossing(kind, seed):
    """A Site of tokens with one wall well apart from the next, and steps far below the radius."""
    s, rng = drawn(kind, seed, n=60)
    found = walls.radius(s)
    keep = found.radius > 1e-2
    return site(s.router.moe, s.x[keep]), rng


@pytest.mark.parametrize("kind", sorted(WALLED))
def test_below_the_radius_quotients_tend_to_the_jacobian_with_first_order(kind):
    s, rng = crossing(kind, 7)
    eps = np.array([1e-3, 1e-4])
    w = walls.wall(s, rng, eps)
    for quotient, slope in ((w.towards, w.slope), (w.random, w.slope_random)):
        error = np.abs(quotient - slope[:, None])
        clear = error[:, 1] > 1e-8 * (slope + 1)  # not yet rounding, eps/step = 1e-11 at the least
        order = np.log10(error[clear, 0] / error[clear, 1])
        assert clear.mean() > 0.3
        np.testing.assert_allclose(np.median(order), 1, atol=0.01)
        np.testing.assert_allclose(quotient[:, 1], slope, rtol=1e-2, atol=1e-2)
        assert (slope <= w.norm * (1 + 1e-12)).all()
    moe, J = s.router.moe, s.router.moe.jacobian(s.x)
    np.testing.assert_allclose(w.norm, np.linalg.norm(J, 2, axis=(1, 2)), rtol=1e-12)
    assert w.jump.shape == (s.n, moe.widths[1])


@pytest.mark.parametrize("kind", sorted(WALLED))
def test_the_jump_in_closed_form_is_the_limit_of_differences(kind):
    s, rng = crossing(kind, 8)
    found, w = walls.radius(s), walls.wall(s, rng, [0.5])
    f = s.router.moe.forward
    errors = []
    for beyond in (1e-4, 1e-6):
        across = f(walls.wall_point(s, found, beyond))[0] - f(walls.wall_point(s, found, -beyond))[0]
        errors.append(np.linalg.norm(across - w.jump, axis=1))
    # twice the step times the slope: falls by 100, to 1e-6 of the slope
    assert np.median(errors[0] / errors[1]) == pytest.approx(100, rel=0.02)
    assert (errors[1] < 1e-4 * (1 + w.norm)).all()
    assert np.linalg.norm(w.jump, axis=1).max() > 0.1


def test_just_beyond_the_wall_quotients_are_the_jump_over_the_step():
    s, rng = crossing("top1", 9)
    found = walls.radius(s)
    w = walls.wall(s, rng, [0.999, 1.0 + 1e-9])
    before, after = w.towards.T * w.eps.T
    jump = np.linalg.norm(w.jump, axis=1)
    assert (np.abs(after - before) <= jump * (1 + 1e-6) + 2e-3 * found.radius * w.norm.max()).all()
    sharp = jump > 10 * found.radius * w.slope
    assert sharp.any()
    np.testing.assert_allclose(w.towards[sharp, 1], (jump / found.radius)[sharp], rtol=0.3)
    assert (w.towards[sharp, 1] > 5 * w.towards[sharp, 0]).all()


def test_soft_routing_does_not_jump(rng):
    s, _ = drawn("soft", 0)
    w = walls.wall(s, rng, [1e-5])
    assert (w.jump == 0).all()
    assert np.isnan(w.towards).all()
    assert np.isnan(w.slope).all()
    np.testing.assert_allclose(w.random[:, 0], w.slope_random, rtol=1e-3, atol=1e-3)


def test_equal_experts_make_no_jump(rng):
    s, _ = drawn("top2", 0)
    same = site(replace(s.router.moe, experts=(s.experts[0],) * 8), s.x)
    np.testing.assert_allclose(walls.wall(same, rng, [1.0]).jump, 0, atol=1e-13)


# Similarities


@EXAMPLES
@given(kinds, seeds)
def test_usage_frequencies_are_means_within_groups(kind, seed):
    s, _ = drawn(kind, seed)
    on = usage.usage(s)
    assert (on.sum(axis=1) == s.chosen.shape[1]).all()
    assert (on[s.gates > 0] == 1).all()
    np.testing.assert_array_equal(usage.usage(s, "gates"), s.gates)
    for which, values in (("sets", on), ("gates", s.gates)):
        groups, share = usage.frequencies(s, "sequence", which)
        assert groups.tolist() == [0, 1, 2]
        for g, row in zip(groups, share, strict=True):
            total = values[s.labels["sequence"] == g].sum(axis=0)
            np.testing.assert_allclose(row, total / total.sum(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("measure", sorted(overlap.MEASURES))
def test_similarities_are_those_of_overlap_and_largest_with_oneself(measure):
    s, _ = drawn("soft" if measure == "hilbert" else "top2", 0)
    of_sets = overlap.MEASURES[measure].kind == "sets"
    rows = usage.usage(s, "sets") > 0 if of_sets else s.gates
    found = usage.similarity(s, measure)
    sign = 1 if overlap.MEASURES[measure].sense == "similarity" else -1
    pairs = [[sign * overlap.MEASURES[measure].function(a, b) for b in rows] for a in rows]
    np.testing.assert_allclose(found, pairs, rtol=0, atol=ROUNDING)
    assert (found <= found.diagonal()[:, None] + ROUNDING).all()
    _, share = usage.frequencies(s, kind="gates" if measure == "hilbert" else "sets")
    groups = usage.similarity(s, measure, "sequence")
    rows = overlap.top_p(share) if of_sets else share
    np.testing.assert_allclose(groups, sign * overlap.similarities(measure, rows), rtol=0, atol=ROUNDING)


@EXAMPLES
@given(blind, seeds)
def test_hidden_similarities(kind, seed):
    s, rng = drawn(kind, seed)
    s = replace(s, x=s.x + 2)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in s.x] for a in s.x]
    np.testing.assert_allclose(usage.hidden_similarity(s), cosine, rtol=0, atol=ROUNDING)
    away = usage.hidden_similarity(s, "euclidean")
    np.testing.assert_allclose(-away, [[np.linalg.norm(a - b) for b in s.x] for a in s.x], rtol=0, atol=ROUNDING)
    seen = usage.hidden_similarity(replace(s, x=s.x @ router.centred(s).T, router=None), "cosine")
    np.testing.assert_allclose(usage.hidden_similarity(s, "row cosine"), seen, rtol=0, atol=ROUNDING)
    # what routing cannot see does not move the row kinds, and moves the cosine
    blinded = replace(s, x=s.x + rng.standard_normal((s.n, router.null_basis(s).shape[1])) @ router.null_basis(s).T)
    for which in ("row cosine", "row euclidean"):
        a, b = usage.hidden_similarity(s, which), usage.hidden_similarity(blinded, which)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert np.abs(usage.hidden_similarity(blinded) - cosine).max() > 1e-3
    means = np.stack([s.x[s.labels["sequence"] == g].mean(axis=0) for g in range(3)])
    grouped = usage.hidden_similarity(s, "euclidean", "sequence")
    np.testing.assert_allclose(grouped, -np.linalg.norm(means[:, None] - means, axis=2), rtol=0, atol=ROUNDING)
    shifted = usage.hidden_similarity(replace(s, x=s.x - 5), "centred cosine")
    np.testing.assert_allclose(usage.hidden_similarity(s, "centred cosine"), shifted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("measure", sorted(overlap.MEASURES))
def test_a_group_without_gates_has_no_similarity(measure):
    s, _ = drawn("soft" if measure == "hilbert" else "top2", 0)
    gates = s.gates * (s.labels["sequence"] != 1)[:, None]
    silent = replace(s, gates=gates)
    share = usage.frequencies(silent, kind="gates")[1]
    assert np.isnan(share).all(axis=1).tolist() == [False, True, False]
    found = usage.similarity(silent, measure, "sequence", "gates")
    want = usage.similarity(s, measure, "sequence", "gates")
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[::2, ::2], want[::2, ::2])


def test_behind_a_norm_the_cosine_is_that_of_what_the_norm_reads(rng):
    gamma = rng.uniform(0.2, 3, 12)
    moe = mixture(rng, 8, 12, 4, 2)
    raw = rng.standard_normal((20, 12))
    s = site(npmoe.Stack((npmoe.RMSNorm(gamma), moe)), raw)
    read = usage.hidden_similarity(replace(s, x=raw), "cosine")
    np.testing.assert_allclose(usage.hidden_similarity(s, "norm cosine"), read, rtol=0, atol=ROUNDING)
    assert np.abs(usage.hidden_similarity(s) - read).max() > 0.1
    assert np.ptp(np.linalg.norm(s.x, axis=1)) > 0.1  # one length only for a constant gamma
    gamma[3] = 0
    part = site(npmoe.Stack((npmoe.RMSNorm(gamma), moe)), raw)
    rest = usage.hidden_similarity(replace(s, x=np.delete(raw, 3, axis=1), router=None), "cosine")
    np.testing.assert_allclose(usage.hidden_similarity(part, "norm cosine"), rest, rtol=0, atol=ROUNDING)
    for without in (site(moe, raw), site(npmoe.Residual(moe), raw)):
        with pytest.raises(ValueError, match=r"expected before of the Site .* gamma.*got no norm"):
            usage.hidden_similarity(without, "norm cosine")


# The ensemble, and the mean


@pytest.mark.underflow
@EXAMPLES
@given(st.sampled_from(sorted(name for name, row in KINDS.items() if row[3])), seeds)
def test_the_error_of_a_convex_mixture_is_its_experts_less_their_spread(kind, seed):
    s, rng = drawn(kind, seed)
    y = rng.standard_normal(s.x.shape)
    found = ensemble.ambiguity(s, y)
    np.testing.assert_allclose(found.error, ((s.router.moe.forward(s.x)[0] - y) ** 2).sum(axis=1), rtol=1e-9)
    outputs = np.stack([f.forward(s.x)[0] for f in s.experts], axis=1)  # (n, E, o)
    np.testing.assert_allclose(
        found.individual, (s.gates * ((outputs - y[:, None]) ** 2).sum(axis=2)).sum(axis=1), rtol=1e-9
    )
    np.testing.assert_allclose(
        found.error, found.individual - found.spread, rtol=0, atol=1e-12 * found.individual.max()
    )
    assert found.relative < 100 * EPS
    assert (found.spread >= 0).all()


def test_ambiguity_refuses_gates_that_do_not_sum_to_1_and_takes_float32(rng):
    s, _ = drawn("switch", 0)
    with pytest.raises(ValueError, match="gates that sum to 1"):
        ensemble.ambiguity(s, s.x)
    s, _ = drawn("top2", 0)
    small = replace(s, gates=s.gates.astype(np.float32))
    assert ensemble.ambiguity(small, s.x).relative < 100 * EPS
    with pytest.raises(ValueError, match="expected y of shape"):
        ensemble.ambiguity(s, s.x[:, :2])
    with pytest.raises(ValueError, match="needs experts"):
        ensemble.ambiguity(replace(s, experts=None), s.x)


@EXAMPLES
@given(kinds, seeds)
def test_mean_response_beside_its_two_nulls(kind, seed):
    s, rng = drawn(kind, seed)
    found = router.mean_response(s)
    if s.E == 1:
        assert found.response == 0
        assert np.isnan(found.relative)
        return
    CW, mu, d = router.centred(s), s.x.mean(axis=0), s.x.shape[1]
    assert found.response == pytest.approx(np.linalg.norm(CW @ mu), rel=1e-9)
    # over a whole orthonormal basis, the root mean square is exact for random directions
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    ratio = np.linalg.norm(CW @ basis, axis=0) / np.linalg.norm(CW)
    assert found.chance == pytest.approx(np.sqrt((ratio**2).mean()), rel=1e-12)
    assert 0 <= found.relative <= 1
    assert router.mean_response(replace(s, x=3 * s.x)).relative == pytest.approx(found.relative, rel=1e-9)
    hidden = replace(s, x=s.x + 1e3 * (router.null_basis(s).sum(axis=1) if kind in BLIND else 0))
    assert router.mean_response(hidden).centred == pytest.approx(found.centred, rel=1e-6)
    if kind in BLIND:
        assert router.mean_response(hidden).relative < 0.02


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: walls.radius(replace(s, router=None)), "radius needs router"),
        (lambda s: statements.bounds(shuffled(s, np.random.default_rng(0)), s.x), "bounds needs router"),
        (lambda s: router.centred(replace(s, router=None)), "centred needs router"),
        (lambda s: walls.wall(replace(s, experts=None), np.random.default_rng(0)), "wall needs experts"),
        (lambda s: walls.wall(s, np.random.default_rng(0), [0.0]), "steps eps above 0"),
        (lambda s: statements.bounds(s, s.x[1:]), "expected other of shape"),
        (lambda s: statements.bounds(s, s.x * np.nan), "expected other to be finite"),
        (lambda s: statements.bounds(s, np.array([[0, 99]])), "within 0..19; got 0..99"),
        (lambda s: statements.bounds(s, np.array([0, 1])), r"of shape \(m, 2\)"),
        (lambda s: statements.bounds(s, s.x).named("magic"), "expected a statement among"),
        (lambda s: usage.usage(s, "none"), "'sets' or 'gates'; got 'none'"),
        (lambda s: usage.frequencies(s, "topic"), r"expected a label .* \('sequence'\); got 'topic'"),
        (lambda s: usage.similarity(s, "magic"), "expected a measure"),
        (lambda s: usage.hidden_similarity(s, "magic"), "expected a kind of hidden similarity"),
        (lambda s: router.centred(replace(s, router=Liar(s.router, matrix=np.ones((3, 3))))), "router matrix of shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn("top2", 0)[0])


def test_a_recorded_trace_has_usage_but_no_router():
    trace = Site(x=np.eye(3), gates=np.full((3, 2), 0.5))
    assert (usage.usage(trace) == 1).all()
    with pytest.raises(ValueError, match="mean_response needs router"):
        router.mean_response(trace)
    f = gelu(np.random.default_rng(0), 3, 4, 3)
    assert ensemble.ambiguity(replace(trace, experts=(f, f)), np.eye(3)).spread.max() < 1e-25
