"""GA at a tiny size: what is measured by a second route, planted cases whose verdict is known, nulls that are nulls."""

import json
from dataclasses import replace

import numpy as np
import pytest
from _reproduce_jobs import computed

from npmoe.calculus import tree
from npmoe.geometry import grassmann
from npmoe.geometry.covariances import bures
from npmoe.geometry.pca import n_eff
from npmoe.geometry.spectra import cosines, k_at, off_diagonal
from npmoe.model.train import fit
from npmoe.probe.function import mean_jacobians
from npmoe.probe.null import shuffled, thinned
from npmoe.probe.representation import overlaps, routed_pca, subspaces
from npmoe.probe.site import Site, site
from npmoe.report.read import read_figure
from npmoe.reproduce import trained as training
from npmoe.reproduce.geometric_asymmetry import GA, claims, figures, measure, ways
from npmoe.reproduce.geometric_asymmetry.config import Measured, Thinned
from npmoe.reproduce.mixture import PRIMARY, batch, build, generator

TINY = replace(PRIMARY, E=4, d=12, h=14, n=60, steps=8, draws=4)
R = len(measure.RANKS)


@pytest.fixture(scope="module")
def runs():
    experiment = replace(claims.EXPERIMENT, base=TINY)
    made = experiment.plan((), full=False, quick=False, seeds=5)
    return made, computed(GA.compute, made)


@pytest.fixture(scope="module")
def one(runs):
    made, results = runs
    config = made.config("top2", 0)
    return config, results[Measured(config)]


def test_the_config_is_that_of_sc1():
    assert claims.EXPERIMENT.base == PRIMARY


def test_shapes(one):
    config, run = one
    E, d, draws = config.E, config.d, config.draws
    assert run["overlap"].shape == (2, E, E, R)
    assert run["shuffled overlap"].shape == run["apart overlap"].shape == (draws, E, E, R)
    assert run["distances"].shape == (11, E, E)
    assert run["shuffled distances"].shape == run["apart distances"].shape == (draws, 11, E, E)
    assert run["left"].shape == (2, E, E, R)
    assert run["shuffled right"].shape == (draws, E, E, R)
    assert run["overlap curve"].shape == (2, d)
    infinite = ("distances", "k90")  # Martin's; a table's diagonal, which means nothing
    assert all(np.isfinite(table).all() for name, table in run.items() if not name.endswith(infinite))


def test_overlaps_and_distances_by_principal_angles(one):
    config, run = one
    data = batch(config)
    untrained = tree.cast(build(config), np.float32)
    *_, (_, loss, model) = fit(untrained, np.float32(data.x), np.float32(data.y), config.steps)
    assert run["loss"] == loss
    here = site(tree.cast(model, np.float64), data.x)
    found = subspaces(here)
    np.testing.assert_allclose(found.eigenvalues, routed_pca(here).eigenvalues, rtol=1e-9, atol=1e-12)
    column = ways.column_of(measure.RANK)
    U, V = found.axes[0][:, : measure.RANK], found.axes[2][:, : measure.RANK]
    theta = grassmann.principal_angles(U, V)
    assert run["overlap"][1, 0, 2, column] == pytest.approx(grassmann.overlap(theta), rel=1e-10)
    for i, name in enumerate(measure.MEASURES[:9]):
        assert run["distances"][i, 0, 2] == pytest.approx(grassmann.distance(theta, name), rel=1e-7), name
    k, l = (int(k_at(found.eigenvalues[e])) for e in (0, 2))  # noqa: E741
    theta = grassmann.principal_angles(found.axes[0][:, :k], found.axes[2][:, :l])
    chance = grassmann.chance_overlap(k, l, config.d)
    assert run["overlap k90"][0, 2] == pytest.approx(grassmann.overlap(theta) / chance, rel=1e-9)
    U, _, _ = np.linalg.svd(mean_jacobians(here))
    both = U[1][:, :4].T @ U[3][:, :4]
    assert run["left"][1, 1, 3, 0] == pytest.approx((both**2).sum() / 4, rel=1e-9)


def test_overlaps_for_every_r_at_once():
    rng = np.random.default_rng(0)
    bases = grassmann.random_subspace(rng, 7, 7, (3,))
    found = overlaps(bases)
    for r in range(1, 8):
        theta = grassmann.pairwise_angles(bases[:, :, :r])
        np.testing.assert_allclose(found[:, :, r - 1], grassmann.overlap(theta), atol=1e-12)


def test_chance_z_is_one_for_random_matrices_and_subspaces():
    """1 within three standard errors of so many pairs."""
    rng = np.random.default_rng(0)
    E, d = 60, 24
    J = rng.standard_normal((E, d, d))
    assert ways.functional_z(cosines(J), d) == pytest.approx(1, abs=3 / np.sqrt(E * (E - 1)))
    table = measure._at_ranks(overlaps(grassmann.random_subspace(rng, d, d, (E,))))
    for r in measure.RANKS:
        # a z is not normal: its square spreads by more than sqrt(2)
        assert ways.representational_z(table, d, r) == pytest.approx(1, abs=0.1)


def test_an_expert_without_tokens_is_left_out():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6))
    gates = np.zeros((40, 3))
    gates[np.arange(40), rng.integers(0, 2, 40)] = 1
    found = subspaces(Site(x, gates))
    tables = measure._distances(found)
    assert np.isnan(tables[:, 2]).all()
    assert np.isfinite(tables[1][:2, :2]).all()
    J = rng.standard_normal((3, 6, 6))
    J[2] = np.nan
    for table in measure.singular_overlaps(J).values():
        assert np.isnan(table[2]).all()
        assert np.isfinite(table[:2, :2]).all()
    assert np.isnan(measure._own_ranks(found)[0, 2])


def test_sets_drawn_apart_are_as_large_as_n_eff(one):
    config, _ = one
    here = site(build(config), batch(config).x)
    sizes = np.maximum(2, np.rint(n_eff(here.gates)))
    found = measure._apart(here, np.random.default_rng(0))
    rank = (found.eigenvalues > 1e-10).sum(axis=1)
    np.testing.assert_array_equal(rank, np.minimum(sizes - 1, config.d))


def test_subspaces_that_gates_keep_apart_are_distinct_and_shuffled_ones_are_not():
    """Two planted orthogonal subspaces, each seen by one expert: the overlap is 0, with gates shuffled it is near 1."""
    rng = np.random.default_rng(1)
    d, r, n = 16, 8, 400
    label = np.arange(n) % 2
    x = 0.01 * rng.standard_normal((n, d))
    for c in (0, 1):
        x[label == c, c * r : (c + 1) * r] += rng.standard_normal((n // 2, r))
    here = Site(x, np.eye(2)[label], label[:, None])
    column = ways.column_of(8)
    real = measure._at_ranks(overlaps(subspaces(here).axes))[0, 1, column]
    null = measure._at_ranks(overlaps(subspaces(shuffled(here, rng)).axes))[0, 1, column]
    assert real < 0.01
    assert null > 0.3


def test_independent_experts_come_from_different_runs(runs):
    made, results = runs
    m = made.models(results, ("independent top2",), 3)
    seeds = [config.seed for config in made.run("independent top2", 3).runs]
    assert seeds == [3, 4, 0, 1]
    trained = [results[Measured(made.config("top2", seed))]["mean jacobians"][e] for e, seed in enumerate(seeds)]
    np.testing.assert_array_equal(ways.independent(m), trained)


def test_every_claim_has_its_numbers(runs):
    made, results = runs
    found = {claim.id: claim for claim in made.claims(results)}
    assert list(found) == list(claims.EXPERIMENT.ids)
    for claim in found.values():
        for reading in claim.readings:
            assert np.isfinite(reading.values).all(), (claim.id, reading.name)
            for null in reading.nulls:
                assert np.isfinite(null.values).all(), (claim.id, reading.name, null.name)
    T = found["GA.1"].primary
    m = made.models(results, ("top2", "soft"), 0)
    pair = np.sqrt(np.mean(off_diagonal(m["top2"]["cosines"][1]) ** 2))
    assert T.values[0] == pytest.approx(np.log(3 / (TINY.d * pair)))
    assert found["GA.5"].verdict == "not tested"


def bumped(run, array, factor):
    return replace(run, arrays={**run.arrays, array: factor * run[array]})


@pytest.mark.parametrize(
    ("id", "role", "array", "factor", "moves"),
    [
        ("GA.1", "top2", "cosines", 0.5, 1),
        ("GA.2a", "top2", "overlap", 0.5, 1),
        ("GA.2a", "top2", "shuffled overlap", 0.5, -1),
        ("GA.2b", "top2", "overlap", 2.0, 1),
        ("GA.3", "top2", "cosines", 0.5, 1),
        ("GA.4a", "top2", "cosines", 0.5, 1),
        ("GA.4a", "soft", "cosines", 0.5, -1),
        ("GA.4a", "soft", "shuffled cosines", 0.5, 0),
        ("GA.4b", "top2", "distances", 2.0, 1),
        ("GA.4b", "soft", "distances", 2.0, -1),
        ("GA.4b", "soft", "shuffled distances", 2.0, 0),
    ],
)
def test_what_a_claim_says_raises_its_T(runs, id, role, array, factor, moves):
    """A planted change of one array by a factor of 2 moves the primary T by log 2, in the direction of the claim."""
    made, results = runs
    spec = next(spec for spec in made.specs() if spec.id == id)
    m = made.models(results, spec.roles, 1)
    changed = replace(m, runs={**m.runs, role: bumped(m[role], array, factor)})
    T = spec.ways[0].T
    assert T(changed) - T(m) == pytest.approx(moves * np.log(2), abs=1e-9)


@pytest.mark.parametrize(
    ("id", "null", "role", "array", "factor", "moves"),
    [
        ("GA.2a", "sets of that size drawn apart", "top2", "apart overlap", 0.5, 1),
        ("GA.2b", "shuffled gates", "top2", "shuffled overlap", 2.0, 1),
        ("GA.3", "shuffled gates", "top2", "shuffled cosines", 0.5, 1),
        ("GA.4a", "shuffled gates", "top2", "shuffled cosines", 0.5, 1),
        ("GA.4a", "shuffled gates", "soft", "cosines", 0.5, 0),
        ("GA.4b", "shuffled gates", "top2", "shuffled distances", 2.0, 1),
        ("GA.4b", "soft at the same n_eff", "soft at the n_eff of top2", "distances", 2.0, 1),
        ("GA.2a", "soft at the same n_eff", "soft at the n_eff of top2", "overlap", 0.5, 1),
        ("GA.2a", "two halves of one expert", "top2", "halves", 0.5, 1),
        ("GA.2a", "two halves of one expert", "top2", "shuffled halves", 0.5, -1),
        ("GA.2a", "two halves of one expert", "top2", "overlap", 0.5, 0),
    ],
)
def test_a_null_is_the_same_statistic_of_its_own_arrays(runs, id, null, role, array, factor, moves):
    made, results = runs
    spec = next(spec for spec in made.specs() if spec.id == id)
    T0 = next(T0 for name, _, T0 in spec.ways[0].nulls if name == null)
    m = made.models(results, spec.roles, 1)
    changed = replace(m, runs={**m.runs, role: bumped(m[role], array, factor)})
    assert T0(changed) - T0(m) == pytest.approx(moves * np.log(2), abs=1e-9)


def test_soft_at_the_n_eff_of_soft_is_soft_itself(runs):
    """All tokens in another order: what the thinned mixture gives where nothing is left out."""
    made, results = runs
    config = made.config("soft", 0)
    read = {config: training.train(config)}
    found, soft = measure.thin(Thinned(config, config), read), results[Measured(config)]
    for r in measure.RANKS:
        same = ways.overlap_of(soft["overlap"][1], r)
        assert found["overlap"][ways.column_of(r)] == pytest.approx(same)
    i = measure.MEASURES.index("chordal")
    assert found["distances"][i] == pytest.approx(np.nanmean(off_diagonal(soft["distances"][i])))


def weighted(x, g):
    """Covariance of rows under weights, and its principal directions, by NumPy alone."""
    C = np.cov(x.T, aweights=g, bias=True)
    return C, np.linalg.eigh(C)[1][:, ::-1]


def angles_of(U, V, r):
    return grassmann.principal_angles(U[:, :r], V[:, :r])


@pytest.fixture(scope="module")
def eight():
    """Models of which every null has eight draws: two of those that take a quarter of them. Enough tokens that half of
    them span every subspace that is compared: others have directions that are any."""
    configs = {role: replace(TINY, n=120, k=k, draws=8, seed=2) for role, k in (("top2", 2), ("soft", 4))}
    return configs, {config: training.train(config) for config in configs.values()}


def test_soft_at_the_n_eff_of_top2_by_a_second_route(eight):
    (configs, read), pairs = eight, [(a, b) for a in range(TINY.E) for b in range(a)]
    soft, top2 = configs["soft"], configs["top2"]
    found = measure.thin(Thinned(soft, top2), read)
    gates = training.ends(top2, read[top2])[1].gates
    target = np.mean(gates.sum(axis=0) ** 2 / (gates**2).sum(axis=0))
    assert found["n_eff"] == pytest.approx(target, rel=1e-14)
    assert target < n_eff(training.ends(soft, read[soft])[1].gates).mean() - 5, "something is left out"
    rng, here = generator(soft.seed, "thin"), training.ends(soft, read[soft])[1]
    kept = [thinned(here, target, rng) for _ in range(2)]
    assert kept[0].x.tobytes() != kept[1].x.tobytes()
    draws = [[weighted(s.x, g) for g in s.gates.T] for s in kept]
    for i, r in enumerate(measure.ranks_of(TINY.d)):
        overlap = [grassmann.overlap(angles_of(d[a][1], d[b][1], r)) for d in draws for a, b in pairs]
        assert found["overlap"][i] == pytest.approx(np.mean(overlap), rel=1e-8)
    for name in ("chordal", "geodesic"):
        apart = [grassmann.distance(angles_of(d[a][1], d[b][1], 8), name) for d in draws for a, b in pairs]
        assert found["distances"][measure.MEASURES.index(name)] == pytest.approx(np.mean(apart), rel=1e-6)
    apart = [bures(d[a][0], d[b][0]) for d in draws for a, b in pairs]
    assert found["distances"][measure.MEASURES.index("bures")] == pytest.approx(np.mean(apart), rel=1e-8)


def test_a_mixture_that_has_fewer_tokens_than_it_is_thinned_to_keeps_all(eight):
    configs, read = eight
    soft, top2 = configs["soft"], configs["top2"]
    found, own = measure.thin(Thinned(top2, soft), read), training.ends(top2, read[top2])[1]
    assert found["n_eff"] == pytest.approx(n_eff(own.gates).mean(), rel=1e-14)
    whole = np.nanmean(off_diagonal(overlaps(subspaces(own).axes)), axis=0)
    assert found["overlap"][ways.column_of(8)] == pytest.approx(whole[8 - 1], rel=1e-10)


def test_soft_at_the_n_eff_of_top2_is_made_of_both_models_of_a_seed(runs):
    made, _ = runs
    for axis in (None, next(axis for axis in made.axes(made.specs()[0]) if axis.name == "N = 128")):
        run = made.run("soft at the n_eff of top2", 3, axis)
        assert run == Thinned(made.config("soft", 3, axis), made.config("top2", 3, axis))
        assert run.reads() == (run.model, run.to)


def test_halves_of_an_expert_by_a_second_route(eight):
    """The tokens' halves drawn again, each with NumPy's covariance, and principal angles of every pair of halves."""
    configs, read = eight
    ranks, own = measure.ranks_of(TINY.d), np.eye(TINY.E, dtype=bool)
    for config in configs.values():
        found = measure.compute(Measured(config), read)
        end, rng = training.ends(config, read[config])[1], generator(config.seed, "null")
        nulls = [shuffled(end, rng) for _ in range(8)]
        tables = []
        for here in (end, end, *nulls):
            order = rng.permutation(config.n)
            halves = order[:60], order[60:]
            assert min((here.gates[rows] > 0).sum(axis=0).min() for rows in halves) > max(ranks)
            one, two = ([weighted(here.x[rows], g[rows])[1] for g in here.gates.T] for rows in halves)
            every = np.array([[[grassmann.overlap(angles_of(a, b, r)) for r in ranks] for b in two] for a in one])
            tables.append([every[own].mean(axis=0), every[~own].mean(axis=0)])
        np.testing.assert_allclose(found["halves"], np.mean(tables[:2], axis=0), rtol=1e-7)
        np.testing.assert_allclose(found["shuffled halves"], tables[2:], rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "role"),
    [(f"within over between experts, r = {r}", "top2") for r in measure.RANKS]
    + [("soft, within over between experts, r = 8", "soft")],
)
@pytest.mark.parametrize(
    ("array", "factor", "moves"),
    [
        ("halves", (2.0, 1.0), (1, 0)),  # within; between
        ("halves", (1.0, 2.0), (-1, 0)),
        ("shuffled halves", (2.0, 1.0), (0, 1)),
        ("shuffled halves", (1.0, 2.0), (0, -1)),
        ("overlap", (2.0,), (0, 0)),
    ],
)
def test_an_expert_is_told_from_others_by_its_halves(runs, name, role, array, factor, moves):
    made, results = runs
    (way,) = (way for spec in made.specs() if spec.id == "GA.2a" for way in spec.ways if way.name == name)
    m = made.models(results, ("top2", "soft"), 1)
    factor = np.array(factor)[:, None] if len(factor) == 2 else factor[0]
    changed = replace(m, runs={**m.runs, role: bumped(m[role], array, factor)})
    ((_, kind, T0),) = way.nulls
    assert kind == "chance"
    found = [T(changed) - T(m) for T in (way.T, T0)]
    np.testing.assert_allclose(found, np.log(2) * np.array(moves), atol=1e-9)


def test_halves_of_planted_experts():
    """Two clusters, each with an expert: halves of one cluster overlap fully, halves of two not at all."""
    rng = np.random.default_rng(0)
    d, n = 16, 400
    x, label = 1e-3 * rng.standard_normal((n, d)), np.arange(n) % 2
    for c in (0, 1):
        x[label == c, 8 * c : 8 * c + 8] += rng.standard_normal((n // 2, 8))
    within, between = measure._halves(Site(x, np.eye(2)[label], label[:, None]), rng)[:, ways.column_of(8)]
    assert within > 0.99
    assert between < 0.01
    one, two = measure._halves(Site(x, np.full((n, 2), 0.5)), rng)[:, ways.column_of(8)]
    assert one == pytest.approx(two, rel=1e-9), (
        "experts with equal gates are no farther from others than from themselves"
    )


def test_figures_pass_the_checks_of_the_report(runs, tmp_path):
    made, results = runs
    drawn = figures.figures(results, made)
    assert set(drawn) == {"ga-plane", "ga-overlap", "ga-distances", "ga-distances-soft", "ga-sparsity", "ga-planted"}
    for name, figure in drawn.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(figure, allow_nan=False))
        assert set(read_figure(tmp_path / f"{name}.json")["claims"]) <= set(claims.EXPERIMENT.ids)


def test_planted_angles_are_found_where_tokens_are_routed_by_cluster(runs):
    made, _ = runs
    (panel,) = figures._planted(made)["panels"]
    routed, _, null = (np.array(mark["values"]).mean(axis=0) for mark in panel["marks"][:3])
    truth = np.array(panel["marks"][3]["y"])
    assert truth[0] == 1
    assert truth[-1] < 0.01
    # 15 tokens on 3 dimensions with 5 % of noise: a tenth
    assert np.abs(routed - truth).max() < 0.1
    assert (null[-4:] > routed[-4:] + 0.05).all()


def test_dendrogram_keeps_near_experts_together_and_dead_ones_last():
    table = np.full((5, 5), 9.0)
    table[np.ix_([0, 3], [0, 3])] = 1.0
    table[np.ix_([1, 4], [1, 4])] = 1.0
    np.fill_diagonal(table, 0)
    table[2] = table[:, 2] = np.nan
    order = figures._dendrogram(table)
    assert order[-1] == 2
    assert {tuple(sorted(order[:2])), tuple(sorted(order[2:4]))} == {(0, 3), (1, 4)}
