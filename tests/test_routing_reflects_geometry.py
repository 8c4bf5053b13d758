"""MY at a tiny size: planted mixtures whose numbers are known, nulls that are nulls, and every claim with its row."""

import json
from dataclasses import replace

import numpy as np
import pytest

import npmoe
from npmoe.calculus import tree
from npmoe.data import synthetic
from npmoe.probe.site import Site
from npmoe.report.read import read_figure
from npmoe.reproduce.experiment import Run
from npmoe.reproduce.routing_reflects_geometry import axes, claims, config, figures, measure, several, ways
from npmoe.reproduce.routing_reflects_geometry.config import BASE, Config, batch, build, feed

TINY = replace(BASE, E=4, d=7, h=6, sequences=12, length=4, topics=3, steps=6, draws=3, permutations=9)


@pytest.fixture(scope="module")
def runs():
    experiment = replace(claims.EXPERIMENT, base=TINY)
    made = experiment.plan((), full=False, quick=False, seeds=5)
    several_models = [made.run("models", seed) for seed in range(5)]  # which --full alone asks for
    return made, {c: measure.compute(c) for c in [*made.configs(), *several_models]}


# ---- data ----------------------------------------------------------------------------------------------------------


def test_sequences_have_one_topic_and_a_part_of_their_own():
    c = replace(BASE, sequences=400, length=8, spread=0.5, query=0.5)
    data = batch(c)
    topics = data.topic.reshape(400, 8)
    assert (topics == topics[:, :1]).all()
    centre = np.stack([data.x[data.topic == t].mean(axis=0) for t in range(c.topics)])
    rest = (data.x - centre[data.topic]).reshape(400, 8, c.d)
    own, tokens = rest.mean(axis=1), rest - rest.mean(axis=1, keepdims=True)
    within = (tokens**2).sum() / (400 * 7 * c.d)  # unbiased within sequences: spread (1 - query)
    assert within == pytest.approx(0.25, rel=0.05)
    assert (own**2).mean() - within / 8 == pytest.approx(0.25, rel=0.1)


def test_a_query_share_of_zero_is_the_data_without_queries():
    one, two = (synthetic.sequences(np.random.default_rng(0), 5, 4, 6, 3, **more) for more in ({}, {"query": 0.0}))
    np.testing.assert_array_equal(one.x, two.x)
    with pytest.raises(ValueError, match="the share of the variance within topics that a sequence has in common"):
        synthetic.sequences(np.random.default_rng(0), 5, 4, 6, 3, query=1.5)


def test_isotropic_topics_are_cells_of_the_nearest_centre():
    c = replace(BASE, inputs="isotropic")
    data = batch(c)
    drawn = synthetic.sequences(
        config.generator(c.seed, "x"), c.sequences, c.length, c.d, c.topics, c.common, c.spread, query=c.query
    )
    nearest = np.linalg.norm(data.x[:, None] - drawn.centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(data.topic, nearest)
    assert (np.diff(data.topic) >= 0).all(), "sorted, so that sequences keep a topic where they can"
    with pytest.raises(ValueError, match="topics or isotropic"):
        batch(replace(BASE, inputs="cubes"))


def test_batches_are_of_all_topics_or_of_one_and_x_goes_with_y():
    c = replace(TINY, batch=10)
    data = batch(c)
    rows = {tuple(row): i for i, row in enumerate(data.x.tolist())}
    for mixed in (True, False):
        x, y = feed(replace(c, mixed=mixed), data)
        topics = []
        for step in range(20):
            at = [rows[tuple(row)] for row in x(step).tolist()]
            np.testing.assert_array_equal(y(step), data.y[at])
            topics.append(len(set(data.topic[at].tolist())))
        assert max(topics) == (3 if mixed else 1)
    again, _ = feed(replace(c, order=1), data)
    assert not np.array_equal(feed(c, data)[0](0), again(0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_models_are_trained_in_the_dtype_of_the_config_and_measured_as_they_were_trained(dtype):
    c = replace(TINY, dtype=dtype, weight=0.1)
    data, exact = batch(c), np.dtype(dtype)
    for array in (data.x, data.y, *tree.leaves(build(c))):
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, array.astype(exact).astype(float))
        assert dtype == "float32" or (array != np.float32(array)).any(), "nothing was rounded"
    x, y = feed(c, data)
    assert (x.dtype, y.dtype) == (exact, exact)
    assert [made(0).dtype for made in feed(replace(c, batch=5), data)] == [exact, exact]
    first, last, loss = measure._trained(c, data)
    np.testing.assert_array_equal(tree.flatten(first), tree.flatten(build(c)))
    *_, (_, again, model) = npmoe.fit(
        tree.cast(build(c), exact), data.x.astype(exact), data.y.astype(exact), c.steps, balance=config.balance_of(c)
    )
    assert {leaf.dtype for leaf in tree.leaves(model)} == {exact}
    assert {leaf.dtype for leaf in tree.leaves(last)} == {np.dtype(float)}
    np.testing.assert_array_equal(tree.flatten(last), tree.flatten(model).astype(float))
    assert loss == again


# ---- measures ------------------------------------------------------------------------------------------------------


def planted(E=3, n=12, length=4):
    """A mixture that sends every topic to an expert of its own."""
    topic = np.repeat(np.arange(n) % E, length)
    x = 10.0 * np.eye(E)[topic]
    rng = np.random.default_rng(0)
    moe = npmoe.init.gelu_moe(rng, E, E, 4, 1, renormalize=True)
    moe = replace(moe, router=np.eye(E))
    labels = {"topic": topic, "sequence": np.repeat(np.arange(n), length)}
    return replace(npmoe.site(moe, x), labels=labels)


def test_information_is_one_where_each_topic_has_its_expert_and_less_with_topics_permuted():
    here = planted()
    c = Config(E=3, k=1, d=3, sequences=12, length=4, topics=3, draws=20)
    found = measure._information(here, here, c)
    np.testing.assert_allclose(found["information"], 1)
    assert (found["information null"] < 0.6).all()
    np.testing.assert_allclose(found["usage"][:, [0, 1, 2]], [[1, 1, 0]] * 2, atol=1e-12)
    assert (found["usage"][:, 3] > 0.3).all()


@pytest.mark.parametrize("size", [2, 3, 7, 32])
def test_no_query_keeps_its_own_choices_in_the_null(size):
    rng = np.random.default_rng(size)
    for _ in range(50):
        places = np.sort(rng.choice(99, size, replace=False))
        moved = several._deranged(places, rng)
        assert sorted(moved.tolist()) == places.tolist()
        assert (moved != places).all()


def test_relabelled_copies_of_a_model_agree_once_they_are_matched():
    rng = np.random.default_rng(0)
    S, length, E = 40, 8, 6
    topic = np.arange(S) % 3
    chosen = (2 * np.repeat(topic, length)[:, None] + np.arange(2)) % E  # two experts a topic
    on = np.zeros((S * length, E))
    np.put_along_axis(on, chosen, 1, axis=1)
    labels = {"topic": np.repeat(topic, length), "sequence": np.repeat(np.arange(S), length)}
    order = rng.permutation(E)
    x = np.zeros((S * length, 2))

    def of(U):
        return Site(x, U / 2, np.argsort(-U, axis=1, kind="stable")[:, :2], labels=labels)

    c = replace(BASE, E=E, sequences=S, length=length, topics=3)
    found = several._pair(of(on), of(on[:, order]), c, rng)
    row = dict(zip(several.COMPARED, found[0], strict=True))
    assert row["same query"] == row["same query, fitted on itself"] == 1
    assert row["other queries of one topic"] == row["other queries of one topic, one model"] == 1
    assert row["other topics"] == row["other topics, one model"] == 0
    assert row["queries permuted"] < 0.7
    assert found[1][several.COMPARED.index("same query")] == pytest.approx(1)


def test_independent_models_agree_by_chance_once_the_matching_is_held_out():
    rng = np.random.default_rng(0)
    S, length, E, k = 64, 4, 16, 2
    labels = {"topic": np.repeat(np.arange(S) % 8, length), "sequence": np.repeat(np.arange(S), length)}

    def random():
        chosen = rng.random((S * length, E)).argsort(axis=1)[:, :k]
        on = np.zeros((S * length, E))
        np.put_along_axis(on, chosen, 1.0, axis=1)
        return Site(np.zeros((S * length, 2)), on / k, chosen, labels=labels)

    found = several._pair(random(), random(), replace(BASE, length=length, draws=5), rng)
    tokens = dict(zip(several.COMPARED, found[several.MODELS.index("overlap of tokens' sets")], strict=True))
    error = 4 * np.sqrt(k / E / (S * length / 2 * k))  # of a mean of so many agreements
    for name in ("same query", "other topics", "queries permuted", "other topics, one model"):
        assert tokens[name] == pytest.approx(k / E, abs=error), name
    assert tokens["same query, fitted on itself"] > k / E + 0.05


def test_null_pairs_have_the_gates_of_x_and_no_kernel_gives_none():
    c = replace(BASE, sequences=8, length=4)
    data = batch(c)
    found = measure._pairs(measure._site(build(c), data), c)
    assert found["pairs"].tolist() == [32, 32]
    assert found["pair"][1] < 0
    assert (found["pair cosines"] <= 0).all()
    wide = replace(c, E=40, k=2)
    found = measure._pairs(measure._site(build(wide), data), wide)
    assert found["pairs"].tolist() == [0, 0]


def test_gradient_of_the_loss_with_f_equal_p_follows_the_law_for_small_scores():
    c = replace(BASE, common=1.0)
    found = measure._gradient(build(c), batch(c), c)
    assert found[1, 1] == pytest.approx([1, 1], abs=0.02)  # along mu, against C W mu; the law is of first order in 0.1
    assert (found[:, 4, 1] < found[:, 1, 1] - 0.3).all(), "random cotangents know nothing of the router"


def test_gain_of_batches_follows_the_law_for_small_scores():
    c = replace(BASE, draws=60)
    gains = measure._gains(build(c), batch(c), c)[1]  # (mixed, 3, b)
    predicted, measured, error = gains[:, 0], gains[:, 1], gains[:, 2]
    # leading order in scores a tenth as large: 10 % for what follows, beside four standard errors
    assert (np.abs(measured - predicted) < 4 * error + 0.1 * predicted).all()
    assert predicted[0, 0] / predicted[0, -1] == pytest.approx(64)
    assert predicted[1, -1] > 10 * predicted[0, -1], "one topic a batch is penalised at any size"


def test_similarities_are_sorted_into_bins_of_enough_pairs():
    at, values = np.array([-0.5] * 30 + [0.5] * 5), np.array([1.0] * 30 + [3.0] * 5)
    found = measure._binned(at, values, np.linspace(-1, 1, 5), fewest=20)
    assert found[:, 1].tolist() == [-0.5, 1.0, 30.0]
    assert np.isnan(found[:, 3]).all()


def ends_of(c):
    data = batch(c)
    return [measure._site(model, data) for model in measure._trained(c, data)[:2]]


def correlation(A, B):
    """Over the pairs i < j."""
    pairs = np.triu_indices(len(A), 1)
    return np.corrcoef(A[pairs], B[pairs])[0, 1]


def cosines_of(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_the_two_primary_correlations_by_a_second_route(runs):
    """Overlap of tokens' masks, and cosine of sequences' visit counts, against the cosines of their hidden states."""
    made, results = runs
    c = made.config("base", 2)
    found = results[c]
    assert measure.PAIRED[:2] == (
        ("cosine", "set_overlap", "tokens", False),
        ("cosine", "cosine", "sequences", False),
    )
    start, end = ends_of(c)
    for here, r in ((start, found["mantel start"][:2]), (end, found["mantel"][:2, 0])):
        on = np.zeros((here.n, c.E))
        np.put_along_axis(on, here.chosen, 1, axis=1)
        hidden = here.x.reshape(c.sequences, c.length, c.d).mean(axis=1)
        counts = on.reshape(c.sequences, c.length, c.E).sum(axis=1)
        expected = [correlation(cosines_of(here.x), on @ on.T), correlation(cosines_of(hidden), cosines_of(counts))]
        np.testing.assert_allclose(r, expected, rtol=0, atol=1e-12)


def test_tables_that_readings_share_are_those_of_the_site_at_hand():
    """Of one router after another, in both orders: what is kept is of hidden states alone."""
    c = replace(TINY, seed=1)
    sites = [*ends_of(c), measure._site(build(replace(c, seed=7)), batch(c))]
    alone = [measure._Similarities(c).correlations(here, 9) for here in sites]
    for order in ((0, 1, 2), (2, 1, 0)):
        shared = measure._Similarities(c)
        for i in order:
            np.testing.assert_array_equal(shared.correlations(sites[i], 9), alone[i])
    start, _, other = np.array(alone)[:, :, 0]
    assert (np.abs(start - other) > 1e-3).all(), "so that a table left over from another router would show"


def test_a_frozen_router_stays_and_top_1_without_renormalization_learns():
    data = batch(TINY)
    first, last, _ = measure._trained(replace(TINY, router="frozen"), data)
    np.testing.assert_array_equal(first.router, last.router)
    first, last, _ = measure._trained(replace(TINY, k=1, renormalize=False), data)
    assert not np.array_equal(first.router, last.router)


# ---- claims and figures --------------------------------------------------------------------------------------------


def test_every_claim_has_its_numbers(runs):
    made, results = runs
    found = {claim.id: claim for claim in made.claims(results)}
    assert list(found) == list(claims.EXPERIMENT.ids)
    for claim in found.values():
        json.dumps(claim.as_json(), allow_nan=False)
        for reading in claim.readings:
            assert np.isfinite(reading.values).all(), (claim.id, reading.name)
            for null in reading.nulls:
                assert np.isfinite(null.values).all(), (claim.id, reading.name, null.name)
    assert found["MY.1a"].verdict == "proved"
    assert found["MY.1b"].verdict == "refuted"
    assert found["SC2.5"].verdict == "proved"
    assert "Counter-example: seed" in found["MY.1b"].as_json()["rule"]


def test_models_matched_across_seeds_are_read_with_full_alone(runs):
    made, results = runs
    default, full = (replace(made, ids=("MY.10",), full=full).claims(results)[0] for full in (False, True))
    assert default.readings == ()
    (spec,) = (spec for spec in made.specs() if spec.id == "MY.10")
    assert [way.name for way in spec.ways] == [reading.name for reading in full.readings]
    for reading in full.readings:
        assert len(reading.values) == 5
        assert np.isfinite([reading.values, *(null.values for null in reading.nulls)]).all(), reading.name


def test_a_bound_that_is_violated_refutes(runs):
    """Planted: one violation in one run of one seed."""
    made, results = runs
    spoiled = {c: {**run} for c, run in results.items()}
    c = made.config("base", 3)
    spoiled[c]["bounds"] = results[c]["bounds"] + np.array([0, 1, 0, 0]) * (np.arange(9) == 2)[:, None]
    spoiled[c]["ambiguity"] = results[c]["ambiguity"] + np.array([0, 0, 0, 0, 1, 0, 0])
    found = {claim.id: claim.verdict for claim in made.claims(spoiled)}
    assert (found["MY.1a"], found["SC2.5"]) == ("refuted", "refuted")


def test_effects_of_two_by_two():
    def models(a, b, c, d):
        cells = {cell: {"information": np.array([0, v])} for cell, v in zip(axes.CELLS, (a, b, c, d), strict=True)}
        return type("M", (), {"__getitem__": lambda self, role: cells[role]})()

    assert ways.effects(models(0.8, 0.6, 0.4, 0.2), "information") == pytest.approx((0.2, 0.1))
    assert ways.owed()[0].T(models(0.8, 0.6, 0.4, 0.2)) == pytest.approx(0.1)
    assert ways.owed()[0].T(models(0.2, 0.2, 0.8, 0.8)) < 0, "isotropic inputs more informative: not what it says"


def test_figures_pass_the_checks_of_the_report(runs, tmp_path):
    made, results = runs
    drawn = figures.figures(results, made)
    assert set(drawn) == {
        "my-similarity", "my-law", "my-mantel", "my-wall", "my-two-by-two", "my-balance", "my-batch", "my-models",
        "my-matching",
    }  # fmt: skip
    for name, figure in drawn.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(figure, allow_nan=False))
        assert set(read_figure(tmp_path / f"{name}.json")["claims"]) <= set(claims.EXPERIMENT.ids)


def test_matching_alone_makes_any_number():
    """The figure's own numbers: in sample far above chance for few tokens, held out at chance."""
    (panel,) = figures._matching(64, 8)["panels"]
    same, held = (np.array(mark["values"]).mean(axis=0) for mark in panel["marks"][:2])
    assert same[0] > 0.6
    assert (np.diff(same) < 0).all()
    assert np.abs(held - 0.125).max() < 0.05


def bump(runs, role, array, place, by):
    table = np.array(runs[role][array], float)
    table[place] += by
    return {**runs, role: replace(runs[role], arrays={**runs[role].arrays, array: table})}


SAME, OTHER = several.COMPARED.index("same query"), several.COMPARED.index("other topics")


@pytest.mark.parametrize(
    ("id", "role", "array", "place", "moves"),
    [
        ("MY.2", "trained, topics", "information", 1, 0),  # raises both effects alike
        ("MY.2", "frozen, topics", "information", 1, 0.5),
        ("MY.4", "mixed, weight 0.01", "information", 1, 1),
        ("MY.4", "one topic, weight 0.01", "information", 1, -1),
        ("MY.4", "mixed, weight 0.01", "information", 0, 0),
        ("MY.10", "models", "models", (0, SAME), -1),
        ("MY.10", "models", "models", (0, OTHER), 1),
        ("MY.10", "models", "models start", (0, SAME), 0),
    ],
)
def test_what_a_claim_says_raises_its_T(runs, id, role, array, place, moves):
    """A planted change of one number by 0.1, where both effects of MY.2 are positive."""
    made, results = runs
    spec = next(spec for spec in made.specs() if spec.id == id)
    m = made.models(results, spec.roles, 0)
    if id == "MY.2":
        cells = zip(axes.CELLS, (0.8, 0.5, 0.3, 0.2), strict=True)
        m = replace(m, runs={cell: Run(None, {"information": np.array([0, v])}) for cell, v in cells})
    T = spec.ways[0].T
    changed = replace(m, runs=bump(m.runs, role, array, place, 0.1))
    assert T(changed) - T(m) == pytest.approx(moves * 0.1, abs=1e-12)


def planted_correlations(tokens, sequences):
    """m of a run whose Mantel correlations are these, in all four tables; the other readings have a lower one."""

    def table(i):
        rows = np.full((3, len(measure.PAIRED)), -0.9)  # draws, readings
        rows[:, :2] = np.column_stack([tokens[i], sequences[i]])
        return rows

    arrays = {name: table(i) for i, name in enumerate(("mantel", "mantel random", "mantel permuted", "mantel start"))}
    arrays |= {"mantel": np.column_stack([arrays["mantel"][0], np.ones(len(measure.PAIRED))])}  # r and p
    return {"base": {**arrays, "mantel start": arrays["mantel start"][0]}}


@pytest.mark.parametrize("swap", [False, True])
def test_similarity_must_hold_of_tokens_and_of_sequences(swap):
    """The lesser of both, in T and in each null; of a null that is drawn, the lesser of the means over draws."""
    one = [0.5, (0.0, 0.2, 0.4), (0.1, 0.1, 0.1), 0.05]
    other = [0.3, (0.6, 0.3, 0.0), (0.2, 0.4, 0.6), 0.02]
    m = planted_correlations(*((other, one) if swap else (one, other)))
    way, tokens, sequences = ways.in_practice()[:3]
    assert way.name == "the lesser of tokens and sequences"
    assert way.T(m) == pytest.approx(0.3)
    assert {name: (kind, T0(m)) for name, kind, T0 in way.nulls} == {
        "random router": ("chance", pytest.approx(0.2)),
        "coordinates permuted": ("chance", pytest.approx(0.1)),
        "untrained": ("chance", pytest.approx(0.02)),
    }
    assert [reading.T(m) for reading in (tokens, sequences)] == pytest.approx([0.3, 0.5] if swap else [0.5, 0.3])
    assert claims.EXPERIMENT.specs[2].ways[0].name == way.name, "it is primary"


def test_random_directions_of_equal_norm_are_a_control_of_suppression(runs):
    """The same log ratio as T, of the response along random directions."""
    made, results = runs
    spec = next(spec for spec in made.specs() if spec.id == "MY.3")
    m = made.models(results, spec.roles, 1)
    kinds, nulls = ({name: part for name, *parts in spec.ways[0].nulls for part in parts[i : i + 1]} for i in (0, 1))
    assert kinds["random directions of equal norm"] == "control"
    T0 = nulls["random directions of equal norm"]
    for role, column, moves in (("weight 0", 2, 1), ("weight 0.01", 2, -1), ("weight 0.1", 2, 0), ("weight 0", 0, 0)):
        changed = replace(m, runs=bump(m.runs, role, "response", (1, column), m[role]["response"][1, column]))
        assert T0(changed) - T0(m) == pytest.approx(moves * np.log(2), abs=1e-12)


def test_suppression_is_a_smaller_response_with_the_loss(runs):
    made, results = runs
    spec = next(spec for spec in made.specs() if spec.id == "MY.3")
    m = made.models(results, spec.roles, 0)
    for role, moves in (("weight 0", 1), ("weight 0.01", -1), ("weight 0.1", 0)):
        changed = replace(m, runs=bump(m.runs, role, "response", (1, 0), m[role]["response"][1, 0]))
        assert spec.ways[0].T(changed) - spec.ways[0].T(m) == pytest.approx(moves * np.log(2))
    T = {way.name: way.T for way in spec.ways}
    for name, column, rows in (("gradient along the mean", 0, (0.1,)), ("gradient against the response", 1, (0.1,))):
        changed = replace(m, runs=bump(m.runs, "weight 0", "gradient", (0, 0, column), rows[0]))
        assert T[name](changed) - T[name](m) == pytest.approx(0.1)


def test_the_null_of_several_models_is_the_statistic_with_queries_permuted(runs):
    made, results = runs
    spec = next(spec for spec in made.specs() if spec.id == "MY.10")
    m = made.models(results, spec.roles, 0)
    T0 = {name: T0 for name, _, T0 in spec.ways[0].nulls}["queries permuted"]
    for name, moves in (("queries permuted", -1), ("other topics, queries permuted", 1), ("same query", 0)):
        changed = replace(m, runs=bump(m.runs, "models", "models", (0, several.COMPARED.index(name)), 0.1))
        assert T0(changed) - T0(m) == pytest.approx(moves * 0.1, abs=1e-12)


def test_gaussian_hidden_states_follow_gaussian_hidden_states():
    """Where hidden states are Gaussian the two curves of the figure of the law are two samples of one thing."""
    c = replace(BASE, inputs="isotropic")
    found = measure._law(measure._site(build(c), batch(c)), c)
    both = ~np.isnan(found).any(axis=0)
    assert both.sum() > 10
    # pairs share tokens: a tenth is some three standard errors in the emptiest bins
    assert np.abs(found[1] - found[4])[both].max() < 0.1
