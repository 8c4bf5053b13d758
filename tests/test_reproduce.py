"""SC1 from end to end at a tiny size: every T by a second route, what is written, and a command that loses nothing."""

import csv
import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from _reproduce_jobs import TINY, tiny

import npmoe
from npmoe.calculus import tree
from npmoe.ledger import FEWEST_SEEDS, VERDICTS, join, judge, split
from npmoe.probe.function import NORMS
from npmoe.probe.null import thinned
from npmoe.probe.representation import routed_pca
from npmoe.report.read import read_figure, read_results
from npmoe.reproduce import __main__ as command
from npmoe.reproduce import mixture, run
from npmoe.reproduce import paper as papers
from npmoe.reproduce import trained as training
from npmoe.reproduce.experiment import Run, Trial
from npmoe.reproduce.mixture import PRIMARY, Config, batch, build, dense_of, generator
from npmoe.reproduce.papers import PAPERS
from npmoe.reproduce.soft_clustering import SC1, axes
from npmoe.reproduce.soft_clustering import runs as named
from npmoe.reproduce.soft_clustering.axes import AXES, SETTINGS
from npmoe.reproduce.soft_clustering.config import Measured, Thinned
from npmoe.reproduce.trained import Apart, named_steps, snapshot_steps
from npmoe.reproduce.trained import apart as of_seeds
from npmoe.sweep import SweepError, in_order, sweep

EARLY = 4  # in the place of 250 of so few steps
SEEDS = 5
SOURCE = SC1.source
IDS = SC1.ids
MODELS = ("dense", "top2", "soft", "wide")


@pytest.fixture(scope="module", autouse=True)
def early():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EARLY", EARLY)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("sc1") / "runs"


def planned(ids=IDS, full=False, seeds=SEEDS, base=TINY):
    return Trial(tiny(base).experiment, tuple(ids), full, seeds)


def swept(made, folder):
    with np.errstate(all="raise"):
        return sweep(made.configs(), SC1.compute, folder, source=SOURCE, reads=papers.reads)


def of_role(role, axis=None, base=PRIMARY, seed=0):
    """The config of a role's model, in the primary setting or on an axis."""
    return planned(base=base).config(role, seed, axis)


def models_of(made):
    """The training runs of a plan."""
    return [run for run in in_order(made.configs(), papers.reads) if isinstance(run, Config)]


@pytest.fixture(scope="module")
def made():
    return planned()


@pytest.fixture(scope="module")
def results(made, runs):
    return swept(made, runs)


@pytest.fixture(scope="module")
def ledger(made, results):
    with np.errstate(all="raise"):
        return {claim.id: claim for claim in made.claims(results)}


@pytest.fixture(scope="module")
def written(made, results, ledger, runs):
    """The output folder of the default run, its page drawn."""
    folder = runs.parent
    with np.errstate(all="raise"):
        drawn = SC1.figures(results, made)
        run.write(folder, run.results_of(SC1, list(ledger.values()), made, drawn), drawn)
    return folder


def files(folder):
    """Every file below by its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the set-up --------------------------------------------------------------------------------------------------


def test_primary_is_the_set_up_of_the_paper():
    assert Config() == PRIMARY
    assert (PRIMARY.E, PRIMARY.k, PRIMARY.d, PRIMARY.h, PRIMARY.n, PRIMARY.steps) == (8, 2, 64, 128, 512, 1000)
    assert (PRIMARY.scheme, PRIMARY.activation, PRIMARY.temperature) == ("pytorch", "gelu", 1.0)
    assert (PRIMARY.renormalize, PRIMARY.bias, PRIMARY.alike, PRIMARY.frozen) == (True, False, False, ())
    assert (PRIMARY.front, PRIMARY.around, PRIMARY.layers, PRIMARY.inputs, PRIMARY.targets) == (
        "none", "none", 1, "gaussian", "gaussian",
    )  # fmt: skip
    dense, top2, soft, wide = map(of_role, MODELS)
    assert (top2, soft.k, dense.h, wide.h) == (PRIMARY, 8, 128, 1024)
    assert (dense, wide) == (dense_of(PRIMARY), replace(dense_of(PRIMARY, h=1024), keep=20))
    assert PRIMARY.dtype == "float32"


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"temperature": 4.0, "renormalize": False, "bias": True, "alike": True, "frozen": ("router",), "k": 5}, {}),
        ({"temperature": 4.0, "steps": 7}, {"steps": 7}),
        *(({name: value}, {name: value}) for name, value in [
            ("seed", 3), ("n", 9), ("d", 5), ("h", 6), ("scheme", "he"), ("activation", "gelu_tanh"),
            ("front", "gelu"), ("around", "norm"), ("layers", 2), ("inputs", "clusters"), ("targets", "x"),
            ("shared_batch", True), ("keep", 4), ("draws", 2), ("lean", True),
        ]),
    ],
)  # fmt: skip
def test_dense_baseline_forgets_what_only_a_mixture_has(change, kept):
    assert dense_of(replace(PRIMARY, **change)) == replace(PRIMARY, E=1, k=1, **kept)
    assert dense_of(replace(PRIMARY, **change), h=99) == replace(PRIMARY, E=1, k=1, **{**kept, "h": 99})


def leaves(model):
    return [model.router, *(getattr(expert, name) for expert in model.experts for name in ("W1", "b1", "W2", "b2"))]


def test_soft_and_top_2_of_a_seed_start_alike_and_share_the_batch_and_seeds_do_not():
    dense, moe, soft, wide = (of_role(role, base=TINY) for role in MODELS)
    other = replace(moe, seed=1)
    for a, b in zip(leaves(build(moe)), leaves(build(soft)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (build(moe).k, build(soft).k) == (2, TINY.E)
    for same in (soft, dense, wide, replace(moe, steps=3, scheme="he", temperature=2.0)):
        np.testing.assert_array_equal(batch(moe).x, batch(same).x)
        np.testing.assert_array_equal(batch(moe).y, batch(same).y)
    for a, b in zip(leaves(build(moe)), leaves(build(other)), strict=True):
        assert not np.isin(a, b).any()
    assert not np.isin(batch(moe).x, batch(other).x).any()
    assert not np.isin(batch(moe).x, batch(moe).y).any()
    assert not np.isin(build(dense).W1, build(moe).experts[0].W1).any()


def test_axes_do_what_their_names_say():
    def made(name, **of):
        return replace(TINY, **next(axis for axis in AXES if axis.name == name).change, **of)

    shared = [replace(made("one batch for all seeds"), seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(batch(shared[0]).x, batch(shared[1]).x)
    np.testing.assert_array_equal(batch(shared[0]).y, batch(shared[1]).y)
    assert not np.isin(build(shared[0]).router, build(shared[1]).router).any()

    alike = build(made("experts initialized alike"))
    np.testing.assert_array_equal(alike.experts[0].W1, alike.experts[2].W1)
    assert build(made("router bias")).bias is not None
    frozen = made("gates without gradient")
    *_, (_, _, last) = npmoe.fit(build(frozen), *batch(frozen)[:2], 3, frozen=frozen.frozen)
    np.testing.assert_array_equal(last.router, build(frozen).router)
    assert np.abs(last.experts[0].W1 - build(frozen).experts[0].W1).max() > 0

    np.testing.assert_array_equal(batch(made("targets x")).y, batch(TINY).x)
    _, fresh = mixture.feed(made("targets fresh each step"))
    np.testing.assert_array_equal(fresh(0), batch(TINY).y)
    assert not np.isin(fresh(0), fresh(1)).any()
    np.testing.assert_array_equal(fresh(1), fresh(1))
    assert fresh(1).dtype == np.float32
    assert [type(layer).__name__ for layer in build(made("linear + GELU in front")).layers][1:] == ["MoE"]
    x = batch(TINY).x
    core, around = build(TINY), build(made("residual"))
    np.testing.assert_allclose(around.forward(x)[0], x + core.forward(x)[0], rtol=1e-14)


@pytest.mark.parametrize(("steps", "keep"), [(1000, 40), (5000, 40), (250, 40), (12, 5), (3, 40), (1, 3), (0, 5)])
def test_snapshots_hold_the_named_steps(steps, keep):
    made = replace(PRIMARY, steps=steps, keep=keep)
    found = snapshot_steps(made)
    assert set(named_steps(made)) <= set(found)
    assert named_steps(made) == (0, min(EARLY, steps), steps // 2, steps)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] == steps
    assert len(found) <= keep + 4


def test_snapshots_of_the_primary_are_forty_and_log_spaced(monkeypatch):
    monkeypatch.setattr(training, "EARLY", 250)
    found = [step for step in snapshot_steps(PRIMARY) if step > 20]
    assert {250, 500, 1000} < set(found)
    assert all(b / a < 1.25 for a, b in pairwise(found))


# ---- the plan ----------------------------------------------------------------------------------------------------


def test_modes_have_the_seeds_that_the_rule_asks_for():
    plan = SC1.experiment.plan
    assert plan(IDS, full=False, quick=False, seeds=None).seeds == FEWEST_SEEDS == 5
    assert plan(IDS, full=True, quick=False, seeds=None).seeds == 8
    made = plan((), full=True, quick=False, seeds=3)
    assert (made.ids, made.full, made.seeds, made.base) == (IDS, True, 3, PRIMARY)
    quick = plan(IDS, full=False, quick=True, seeds=None)
    assert quick.quick
    assert quick.base != PRIMARY
    with pytest.raises(ValueError, match=r"expected a claim among SC1.1, .*; got 'SC1.12'"):
        plan(["SC1.12"], full=False, quick=False, seeds=None)


def test_ids_are_those_of_the_paper_in_its_order():
    assert list(IDS) == [*(f"SC1.{i}" for i in range(1, 10)), *(f"SC1.10{c}" for c in "abcd"), "SC1.11"]


@pytest.mark.parametrize("full", [False, True])
def test_every_run_is_planned_once_and_equal_baselines_are_one(full):
    found = models_of(planned(full=full, seeds=8, base=PRIMARY))
    assert len(set(found)) == len(found)
    seed0 = [replace(c, lean=True) for c in found if c.seed == 0]
    assert len(set(seed0)) == len(seed0), "the same model is not trained twice for being measured twice"
    dense = {c for c in found if c.E == 1}
    assert all((c.temperature, c.bias, c.alike, c.frozen, c.k) == (1.0, False, False, (), 1) for c in dense)
    for axis in AXES:
        for role in set(MODELS) - set(axis.roles or MODELS):
            assert of_role(role, axis) == of_role(role), (axis.name, role)
        if axis.roles == ("dense",):
            assert of_role("dense", axis).h == axis.change["h"]
    if not full:
        assert not {c for c in found if c.steps != 1000 or c.n != 512 or c.scheme != "pytorch"}


def test_same_setting_by_two_names_is_one_run():
    residual = next(axis for axis in AXES if axis.name == "residual")
    assert of_role("top2", residual) == of_role(axes.role_in(SETTINGS["b"][0], "top2"))
    k8 = next(axis for axis in AXES if axis.name == "k = 8")
    assert of_role("top2", k8) == of_role("soft")


def test_papers_that_ask_for_one_model_train_it_once():
    """GA's top-2 and soft models, and its independent experts, are SC1's."""
    sc1, ga = (
        set(in_order(paper.experiment.plan((), full=False, quick=False, seeds=None).configs(), papers.reads))
        for paper in PAPERS[:2]
    )
    shared = {asked for asked in ga if isinstance(asked, Config | Apart)}
    assert {type(asked) for asked in shared} == {Config, Apart}
    assert shared < sc1
    for config in shared:
        assert PAPERS[0].source_of(config) == PAPERS[1].source_of(config)
        assert PAPERS[0].computes[type(config)] is PAPERS[1].computes[type(config)]


# What claims.md names as train readings, by what a change concerns
DENSE = {"dense h = 256", "dense h = 1024"}
MIXTURE = {
    "router bias", "experts initialized alike", "gates without gradient", "k = 1", "k = 3", "k = 4", "k = 5", "k = 6",
    "k = 7", "k = 8",
}  # fmt: skip
BOTH = {
    "Xavier", "He", "normal(0.02)", "tanh-GELU", "250 steps", "5000 steps", "N = 128", "N = 256", "linear in front",
    "linear + GELU in front", "residual", "targets x", "targets of a teacher", "targets fresh each step",
    "one batch for all seeds", "trained in float64",
}  # fmt: skip
TRAIN = {
    "SC1.1": BOTH | DENSE,
    "SC1.2": (BOTH | DENSE | MIXTURE) - {"250 steps"},
    "SC1.3": BOTH | MIXTURE,
    "SC1.4": BOTH | DENSE | MIXTURE,
    "SC1.5": BOTH | DENSE | MIXTURE,
    # x is the batch where nothing trainable stands in front: the other axes would repeat the primary
    "SC1.6": {"N = 128", "N = 256", "linear in front", "linear + GELU in front", "one batch for all seeds"},
    "SC1.7": BOTH | DENSE | MIXTURE,
    "SC1.8": (BOTH | MIXTURE) - {"k = 8"},
    "SC1.9": (BOTH | MIXTURE) - {"k = 8"},
    "SC1.11": (BOTH | DENSE | MIXTURE) - {"tanh-GELU"},
}


def test_every_axis_is_a_reading_of_every_claim_that_it_can_change():
    assert {axis.name for axis in AXES} == BOTH | DENSE | MIXTURE
    whole, default = planned(full=True, base=PRIMARY).readings(), planned(base=PRIMARY).readings()
    for (id, _, run_now, none), (same, _, measured, left_out) in zip(whole, default, strict=True):
        assert id == same
        assert none == []
        assert set(measured) | set(left_out) == set(run_now)
        assert len(measured) + len(left_out) == len(run_now)
        if id in TRAIN:
            assert set(left_out) == TRAIN[id], id


# ---- every claim -------------------------------------------------------------------------------------------------

RATIO = math.log(1.1)
UNTRAINED, APART = ("untrained", "chance"), ("independent experts", "chance")
SHUFFLED, WIDE = ("shuffled gates", "chance"), ("dense as wide as all experts", "control")
AGAIN = ("the primary in the setting's place", "chance")
# primary reading, margin, nulls, the paper's number, how many measure readings: claims.md
PRIMARIES = {
    "SC1.1": ("leading value of the mean Jacobian", RATIO, {WIDE}, (50, math.inf), 9),
    "SC1.2": ("experts: leading value of the mean Jacobian", RATIO, {WIDE}, (200, 300), 34),
    "SC1.3": ("root mean square over all pairs", RATIO, {APART, UNTRAINED}, (-0.01, 0.015), 2),
    "SC1.4": ("SVD of the mean, at equal steps", RATIO, {UNTRAINED, WIDE}, (1.5, 1.7), 9),
    "SC1.5": ("sigma^2, SVD of the mean", 0.02, {UNTRAINED}, None, 6),
    "SC1.6": ("x", 1, {("Gaussian of as many rows", "chance")}, (2.5, 3.5), 8),
    "SC1.7": ("covariance weighted by g", RATIO, {SHUFFLED, ("dense at the same n_eff", "chance")}, (20, math.inf), 5),
    "SC1.8": ("k@0.9, covariance weighted by g", 1, {SHUFFLED, ("soft at top-2's n_eff", "chance")}, None, 8),
    "SC1.9": ("both regimes", RATIO, {APART, UNTRAINED}, None, 3),
    "SC1.10a": ("temperature 4, SC1.4", RATIO, {AGAIN}, None, 2),
    "SC1.10b": ("residual, SC1.4", RATIO, {AGAIN}, None, 2),
    "SC1.10c": ("labelled clusters with a task each, SC1.4", RATIO, {AGAIN}, None, 2),
    "SC1.10d": ("two layers, SC1.4", RATIO, {AGAIN}, None, 2),
    "SC1.11": ("top-2 experts", RATIO, {UNTRAINED}, None, 2),
}


def test_every_claim_is_there_with_the_primary_that_was_fixed(ledger):
    assert tuple(ledger) == IDS == tuple(PRIMARIES)
    for id, (name, margin, nulls, paper, count) in PRIMARIES.items():
        claim = ledger[id]
        assert sum(reading.primary for reading in claim.readings) == 1
        assert claim.readings[0] is claim.primary
        kind = "train" if id.startswith("SC1.10") else "measure"
        assert (claim.primary.name, claim.primary.kind) == (name, kind)
        assert claim.primary.margin == pytest.approx(margin, rel=1e-12)
        assert {(null.name, null.kind) for null in claim.primary.nulls} == nulls
        assert (claim.size.paper if claim.size else None) == paper
        assert len(claim.readings) == count
        assert {reading.kind for reading in claim.readings} == {kind}
        assert claim.left_out
        assert claim.verdict in set(VERDICTS) - {"no verdict", "not tested"}
        for reading in claim.readings:
            assert len(reading.values) == SEEDS
            assert np.isfinite(reading.values).all() or "equal loss" in reading.name
            assert reading.nulls


def test_left_out_names_the_readings_of_a_full_run(ledger, made):
    whole = {id: set(names) for id, _, names, _ in replace(made, full=True).readings()}
    for id, claim in ledger.items():
        names = {reading.name for reading in claim.readings}
        assert names | set(claim.left_out) == whole[id]
        assert not names & set(claim.left_out)


def test_claims_asked_for_alone_have_the_numbers_of_all(ledger, results, made):
    few = replace(made, ids=("SC1.3", "SC1.8", "SC1.10b"))
    needed = set(few.configs())
    assert needed < set(results)
    alone = few.claims({c: results[c] for c in needed})
    assert [claim.id for claim in alone] == ["SC1.3", "SC1.8", "SC1.10b"]
    for claim in alone:
        assert claim.as_json() == ledger[claim.id].as_json()
    assert SC1.figures({c: results[c] for c in needed}, few) == {}


@pytest.fixture
def short_axes(monkeypatch):
    """All axes by their names, those that cost time with small numbers."""
    small = {
        "250 steps": {"steps": 6}, "5000 steps": {"steps": 260}, "dense h = 256": {"h": 15},
        "dense h = 1024": {"h": 30}, "N = 128": {"n": 24}, "N = 256": {"n": 40},
    }  # fmt: skip
    short = tuple(axis._replace(change=small.get(axis.name, axis.change)) for axis in AXES)
    monkeypatch.setattr(axes, "AXES", short)


@pytest.mark.usefixtures("short_axes")
def test_full_run_has_every_reading_and_none_is_zero_by_construction(tmp_path):
    base = replace(TINY, steps=8, keep=2, draws=1)
    full = planned(full=True, seeds=2, base=base)
    results = swept(full, tmp_path)
    found = {claim.id: claim for claim in full.claims(results)}
    assert tuple(found) == IDS
    for id, claim in found.items():
        assert claim.left_out == ()
        train = {reading.name for reading in claim.readings if reading.kind == "train"}
        if id in TRAIN:
            few = {f"k = {k}" for k in range(TINY.E + 1, 9)}
            gone = {"k = 3"} if id in ("SC1.8", "SC1.9") else set()
            wanted = TRAIN[id] - few - gone
            assert train == (wanted if id != "SC1.2" else {"5000 steps"}), id
        for reading in claim.readings:
            if "k@0.9" not in reading.statistic:  # counts can be equal by chance
                assert any(value != 0 for value in reading.values), (id, reading.name)
            for null in reading.nulls:
                run_for_it = null.kind == "chance" or reading.kind == "measure"
                assert np.isfinite(null.values).all() == run_for_it
                assert null.name.endswith("(not run)") != run_for_it
            if any(null.name.endswith("(not run)") for null in reading.nulls):
                # many seeds of the same kind: T may hold, but nobody measured the control
                more = replace(reading, values=(1.0, 1.1) * 4, nulls=tuple(replace(n, values=n.values * 4) for n in
                               reading.nulls if n.kind == "control"))  # fmt: skip
                assert judge(more) == "undecided"
    for axis in axes.AXES:
        for id, other in (("SC1.7", "dense"), ("SC1.8", "soft")):
            if any(reading.name == axis.name for reading in found[id].readings):
                m = full.models(results, ("top2", other), 0, axis)
                assert np.abs(m["top2"]["pca"][0] - m[other]["pca"][0]).min() > 0, (id, axis.name)
    both = {f"{setting.name}, {id}" for setting in (s for letter in SETTINGS.values() for s in letter) for id in
             ("SC1.4", "SC1.5", "SC1.8")}  # fmt: skip
    assert {r.name for id, claim in found.items() if "10" in id for r in claim.readings} == both


# ---- every T by a second route -----------------------------------------------------------------------------------
# Models trained again with npmoe.fit, a dense Jacobian for every token, NumPy's SVD and covariance.


@functools.cache
def trained(which, seed, **change):
    """All models of a run, step by step, with their losses: [(loss, model)]; trained in float32, here in float64."""
    made = replace(of_role({"moe": "top2"}.get(which, which), base=TINY), seed=seed, **change)
    return path_of(made)


def path_of(made):
    data = batch(made)
    path = npmoe.fit(tree.cast(build(made), made.dtype), *(a.astype(made.dtype) for a in data[:2]), made.steps)
    return [(loss, tree.cast(model, np.float64)) for _, loss, model in path]


def model(which, seed, step=-1):
    return trained(which, seed)[step][1]


def jacobians(model, x, over="routed"):
    """[(expert, J (n, o, d), weights (n,))] over all tokens, also those that are not routed to it."""
    if not hasattr(model, "route"):
        return [(model, model.jacobian(x), np.ones(len(x)))]
    gates, _ = model.route(x)
    return [
        (expert, expert.jacobian(x), gates[:, e] if over == "routed" else np.ones(len(x)))
        for e, expert in enumerate(model.experts)
    ]


def size(norm, J, w, expert=None):
    """A norm of Jacobians J (n, o, d) with weights (n,), as the paper may mean it."""
    if norm == "weights":
        return np.linalg.norm(expert.W2, 2) * np.linalg.norm(expert.W1, 2)
    kind, how = norm.split()
    order = {"sigma": 2, "frob": "fro"}[kind]
    if how == "mean":
        return np.linalg.norm(sum(a * b for a, b in zip(w, J, strict=True)) / w.sum(), order)
    if how == "stack":
        return np.linalg.norm(np.concatenate([np.sqrt(a) * b for a, b in zip(w, J, strict=True)]), order)
    each = np.array([np.linalg.norm(one, order) for one in J])
    return each[w > 0].max() if how == "peak" else np.average(each, weights=w)


def norm_of(norm, model, x, of="experts"):
    if of in ("experts", "experts over all tokens"):
        over = "routed" if of == "experts" else "all"
        return np.mean([size(norm, J, w, expert) for expert, J, w in jacobians(model, x, over)])
    J = model.jacobian(x)
    if of == "layer without the router's term":
        J = sum(w[:, None, None] * J for _, J, w in jacobians(model, x))
    return size(norm, J, np.ones(len(x)))


NORM_WORDS = {
    "sigma mean": "leading value of the mean Jacobian",
    "sigma token": "leading value per token, mean",
    "sigma peak": "leading value per token, maximum",
    "sigma stack": "leading value of the stacked Jacobians",
    "frob mean": "Frobenius norm of the mean Jacobian",
    "frob token": "Frobenius norm per token, mean",
    "frob peak": "Frobenius norm per token, maximum",
    "frob stack": "Frobenius norm of the stacked Jacobians",
    "weights": "product of the weights' spectral norms",
}


def means(which, seed, step=-1):
    x = batch(replace(TINY, seed=seed)).x
    return [np.tensordot(w, J, 1) / w.sum() for _, J, w in jacobians(model(which, seed, step), x)]


def decorrelation(matrices, worst=False):
    pairs = [
        np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b)) for i, a in enumerate(matrices) for b in matrices[:i]
    ]
    found = np.abs(pairs).max() if worst else np.sqrt(np.mean(np.square(pairs)))
    return math.log(3 / (TINY.d * found))


def apart(which, seed):
    """Experts of as many seeds."""
    return [means(which, (seed + e) % SEEDS)[e] for e in range(TINY.E)]


def first_ten(sigma, power):
    return (sigma[:10] ** power).sum() / (sigma**power).sum()


def shares(which, seed, power, tokens, step=-1):
    x = batch(replace(TINY, seed=seed)).x
    found = []
    for _, J, w in jacobians(model(which, seed, step), x):
        each = J if tokens else (np.tensordot(w, J, 1) / w.sum())[None]
        weights = w if tokens else None
        found.append(np.average([first_ten(np.linalg.svd(one)[1], power) for one in each], weights=weights))
    return np.mean(found)


def components(values):
    values = np.sort(values)[::-1]
    return 1 + int(np.argmax(np.cumsum(values) >= 0.9 * values.sum()))


def top_ten(values):
    return np.sort(values)[::-1][:10].sum() / values.sum()


def covariances(x, gates, weighting):
    for g in gates.T:
        if weighting == "covariance weighted by g":
            yield np.cov(x.T, aweights=g, bias=True)
        elif weighting == "routed rows only":
            yield np.cov(x[g > 0].T, bias=True)
        else:
            yield np.cov(((np.sqrt(g) if weighting == "rows sqrt(g) h" else g)[:, None] * x).T, bias=True)


def ranks(which, seed, weighting, measure=components, order=slice(None)):
    x = batch(replace(TINY, seed=seed)).x
    gates = model(which, seed).route(x)[0][order] if which != "dense" else np.ones((len(x), 1))
    return np.mean([measure(np.linalg.eigvalsh(C)) for C in covariances(x, gates, weighting)])


def n_eff(which, seed):
    gates = model(which, seed).route(batch(replace(TINY, seed=seed)).x)[0]
    return np.mean(gates.sum(axis=0) ** 2 / (gates**2).sum(axis=0))


@functools.cache
def at_n_eff(which, seed, of, end=None):
    """k@0.9 of `which` on random subsets of tokens with the n_eff of `of`; or its sigma_1, untrained and trained."""
    x, rng = batch(replace(TINY, seed=seed)).x, generator(seed, "thin")
    untrained, last = (npmoe.site(model(which, seed, step), x) for step in (0, -1))
    target = n_eff(of, seed)
    draws = [thinned(last, target, rng) for _ in range(TINY.draws)]
    if end is None:
        tables = (C for s in draws for C in covariances(s.x, s.gates, WEIGHTINGS[0]))
        return np.mean([components(np.linalg.eigvalsh(C)) for C in tables])
    if end == 0:
        draws = [thinned(untrained, target, rng) for _ in range(TINY.draws)]
    return np.mean([norm_of("sigma mean", s.experts[0], s.x) for s in draws])


def equal_n_eff(which, seed, end=1):
    x = batch(replace(TINY, seed=seed)).x
    return math.log(at_n_eff("dense", seed, which, end) / norm_of("sigma mean", model(which, seed, -end), x))


def shuffles(seed):
    rng = generator(seed, "null")
    return [rng.permutation(TINY.n) for _ in range(TINY.draws)]


def curvature(which, seed, step=-1):
    """Root mean square norm of the second derivatives, by central differences of the Jacobian."""
    x, h = batch(replace(TINY, seed=seed)).x, 1e-5
    found = []
    for expert, _, w in jacobians(model(which, seed, step), x):
        sides = [(expert.jacobian(x + h * e) - expert.jacobian(x - h * e)) / (2 * h) for e in np.eye(TINY.d)]
        found.append(np.sqrt(np.average((np.array(sides) ** 2).sum(axis=(0, 2, 3)), weights=w)))
    return np.mean(found)


def hidden(name, seed):
    x, dense = batch(replace(TINY, seed=seed)).x, model("dense", seed)
    z = x @ dense.W1.T + dense.b1
    if name == "x uncentred":
        return components(np.linalg.eigvalsh(x.T @ x))
    wanted = set(snapshot_steps(TINY))
    table = {
        "x": x,
        "before GELU": z,
        "after GELU": z * np.vectorize(lambda t: (1 + math.erf(t / math.sqrt(2))) / 2)(z),
        "output": dense.forward(x)[0],
        "32 rows": x[:32],
        "training trajectory": np.array(
            [m.forward(x)[0].ravel() for step, (_, m) in enumerate(trained("dense", seed)) if step in wanted]
        ),
        "rows of the mean Jacobian": dense.jacobian(x).mean(axis=0),
    }[name]
    return components(np.linalg.svd(table - table.mean(axis=0))[1] ** 2)


def log_ratio(norm, which, seed, step=-1, of="experts"):
    x = batch(replace(TINY, seed=seed)).x
    return math.log(norm_of(norm, model("dense", seed, step), x) / norm_of(norm, model(which, seed, step), x, of))


def growth(norm, which, seed, since, of="experts"):
    x = batch(replace(TINY, seed=seed)).x
    return math.log(norm_of(norm, model(which, seed), x, of) / norm_of(norm, model(which, seed, since), x, of))


def plateau(norm, which, seed, of="experts"):
    return abs(growth(norm, "dense", seed, EARLY)) - abs(growth(norm, which, seed, EARLY, of))


HALF = TINY.steps // 2
LAYERS = ("experts over all tokens", "layer without the router's term", "layer with the router's term")
WEIGHTINGS = ("covariance weighted by g", "rows sqrt(g) h", "rows g h", "routed rows only")
HIDDEN = (
    "x", "before GELU", "after GELU", "output", "x uncentred", "32 rows", "training trajectory",
    "rows of the mean Jacobian",
)  # fmt: skip


def against_dense(which, weighting, seed, order=slice(None)):
    return math.log(ranks(which, seed, weighting, order=order) / ranks("dense", seed, WEIGHTINGS[0]))


def soft_minus_top(weighting, seed, measure=components, order=slice(None)):
    return ranks("soft", seed, weighting, measure, order) - ranks("moe", seed, weighting, measure, order)


def shuffled_mean(T):
    return lambda seed: np.mean([T(seed, order) for order in shuffles(seed)])


# (claim, reading) -> T of a seed; (claim, reading, null) -> T0
SECOND = {
    **{("SC1.1", words): lambda s, n=norm: growth(n, "dense", s, HALF) for norm, words in NORM_WORDS.items()},
    ("SC1.1", NORM_WORDS["sigma mean"], WIDE[0]): lambda s: growth("sigma mean", "wide", s, HALF),
    **{
        ("SC1.2", f"experts: {words}"): lambda s, n=norm: plateau(n, "moe", s)
        for norm, words in NORM_WORDS.items()
    },
    **{
        ("SC1.2", f"{of}: {words}"): lambda s, n=norm, of=of: plateau(n, "moe", s, of)
        for of in LAYERS for norm, words in NORM_WORDS.items() if norm != "weights"
    },
    ("SC1.2", "soft, experts: leading value of the mean Jacobian"): lambda s: plateau("sigma mean", "soft", s),
    ("SC1.2", "experts: leading value per token, mean", WIDE[0]): lambda s: plateau("sigma token", "wide", s),
    ("SC1.3", "root mean square over all pairs"): lambda s: decorrelation(means("moe", s)),
    ("SC1.3", "root mean square over all pairs", "untrained"): lambda s: decorrelation(means("moe", s, 0)),
    ("SC1.3", "root mean square over all pairs", APART[0]): lambda s: decorrelation(apart("moe", s)),
    ("SC1.3", "the pair most alike"): lambda s: decorrelation(means("moe", s), worst=True),
    ("SC1.3", "the pair most alike", APART[0]): lambda s: decorrelation(apart("moe", s), worst=True),
    ("SC1.4", "SVD of the mean, at equal steps"): lambda s: log_ratio("sigma mean", "moe", s),
    ("SC1.4", "SVD of the mean, at equal steps", "untrained"): lambda s: log_ratio("sigma mean", "moe", s, 0),
    ("SC1.4", "SVD of the mean, at equal steps", WIDE[0]): lambda s: log_ratio("sigma mean", "wide", s),
    ("SC1.4", "mean of the SVDs, at equal steps"): lambda s: log_ratio("sigma token", "moe", s),
    ("SC1.4", "soft, SVD of the mean, at equal steps"): lambda s: log_ratio("sigma mean", "soft", s),
    ("SC1.4", "soft, mean of the SVDs, at equal steps"): lambda s: log_ratio("sigma token", "soft", s),
    ("SC1.4", "SVD of the mean, at equal n_eff"): lambda s: equal_n_eff("moe", s),
    ("SC1.4", "SVD of the mean, at equal n_eff", "untrained"): lambda s: equal_n_eff("moe", s, 0),
    ("SC1.4", "soft, SVD of the mean, at equal n_eff"): lambda s: equal_n_eff("soft", s),
    ("SC1.7", WEIGHTINGS[0], "dense at the same n_eff"): lambda s: math.log(
        at_n_eff("dense", s, "moe") / ranks("dense", s, WEIGHTINGS[0])
    ),
    ("SC1.8", f"k@0.9, {WEIGHTINGS[0]}", "soft at top-2's n_eff"): lambda s: (
        ranks("soft", s, WEIGHTINGS[0]) - at_n_eff("soft", s, "moe")
    ),
    **{
        ("SC1.5", f"{soft}{of}, {kind}"): lambda s, w=which, p=power, t=tokens: (
            shares(w, s, p, t) - shares("dense", s, p, t)
        )
        for soft, which, of, power, kind, tokens in [
            ("", "moe", "sigma^2", 2, "SVD of the mean", False), ("", "moe", "sigma", 1, "SVD of the mean", False),
            ("", "moe", "sigma^2", 2, "mean of the SVDs", True), ("", "moe", "sigma", 1, "mean of the SVDs", True),
            ("soft, ", "soft", "sigma^2", 2, "SVD of the mean", False),
            ("soft, ", "soft", "sigma^2", 2, "mean of the SVDs", True),
        ]
    },
    ("SC1.5", "sigma^2, SVD of the mean", "untrained"): lambda s: (
        shares("moe", s, 2, False, 0) - shares("dense", s, 2, False, 0)
    ),
    **{("SC1.6", name): lambda s, name=name: 6 - hidden(name, s) for name in HIDDEN},
    **{("SC1.7", words): lambda s, w=words: against_dense("moe", w, s) for words in WEIGHTINGS},
    ("SC1.7", f"soft, {WEIGHTINGS[0]}"): lambda s: against_dense("soft", WEIGHTINGS[0], s),
    ("SC1.7", WEIGHTINGS[0], SHUFFLED[0]): shuffled_mean(lambda s, o: against_dense("moe", WEIGHTINGS[0], s, o)),
    **{("SC1.8", f"k@0.9, {words}"): lambda s, w=words: soft_minus_top(w, s) for words in WEIGHTINGS},
    **{("SC1.8", f"cum-var@10, {words}"): lambda s, w=words: -soft_minus_top(w, s, top_ten) for words in WEIGHTINGS},
    **{
        ("SC1.8", f"k@0.9, {words}", SHUFFLED[0]): shuffled_mean(lambda s, o, w=words: soft_minus_top(w, s, order=o))
        for words in WEIGHTINGS[:2]
    },
    ("SC1.9", "both regimes"): lambda s: min(decorrelation(means("soft", s)), decorrelation(means("moe", s))),
    ("SC1.9", "both regimes", APART[0]): lambda s: min(decorrelation(apart("soft", s)), decorrelation(apart("moe", s))),
    ("SC1.9", "soft"): lambda s: decorrelation(means("soft", s)),
    ("SC1.9", "soft", "untrained"): lambda s: decorrelation(means("soft", s, 0)),
    ("SC1.9", "top-2"): lambda s: decorrelation(means("moe", s)),
    ("SC1.11", "top-2 experts"): lambda s: math.log(curvature("dense", s) / curvature("moe", s)),
    ("SC1.11", "top-2 experts", "untrained"): lambda s: math.log(curvature("dense", s, 0) / curvature("moe", s, 0)),
    ("SC1.11", "soft, experts"): lambda s: math.log(curvature("dense", s) / curvature("soft", s)),
}  # fmt: skip


def found_in(ledger, id, name, null=None):
    (reading,) = [reading for reading in ledger[id].readings if reading.name == name]
    if null is None:
        return reading.values
    return next(other.values for other in reading.nulls if other.name == null)


@pytest.mark.parametrize("what", SECOND, ids=", ".join)
def test_statistic_by_a_second_route(ledger, what):
    # leading values per token are of Lanczos, to 1e-6; second differences to 1e-8
    for seed in (0, 3):
        assert found_in(ledger, *what)[seed] == pytest.approx(SECOND[what](seed), rel=1e-6, abs=3e-6)


def test_weights_are_repeated_rows():
    x, counts = batch(TINY).x, np.arange(TINY.n) % 3
    gates = counts[:, None] / 2.0
    repeated = np.linalg.eigvalsh(np.cov(np.repeat(x, counts, axis=0).T, bias=True))[::-1]
    np.testing.assert_allclose(routed_pca(npmoe.probe.site.Site(x, gates)).eigenvalues[0], repeated, rtol=1e-12)


def test_trajectory_stands_beside_random_walks_as_well(ledger):
    steps, rng = snapshot_steps(TINY), np.random.default_rng(3)
    k90 = []
    for _ in range(30):
        walk = np.cumsum(rng.standard_normal((TINY.steps + 1, 1000)), axis=0)[steps]
        k90.append(components(np.linalg.svd(walk - walk.mean(axis=0))[1] ** 2))
    found = found_in(ledger, "SC1.6", "training trajectory", "random walk at the same steps")
    assert abs(6 - np.mean(found) - np.mean(k90)) < 0.4


def test_what_is_said_beside_and_as_size(ledger):
    for seed in (0, 3):
        size_of = {id: claim.size.values[seed] for id, claim in ledger.items() if claim.size}
        assert size_of["SC1.4"] == pytest.approx(math.exp(log_ratio("sigma mean", "moe", seed)))
        assert size_of["SC1.6"] == hidden("x", seed)
        assert size_of["SC1.7"] == pytest.approx(ranks("moe", seed, WEIGHTINGS[0]))
        (beside,) = ledger["SC1.9"].beside
        lower = decorrelation(means("moe", seed)) - decorrelation(means("soft", seed))
        assert beside.values[seed] == pytest.approx(lower)
        x = batch(replace(TINY, seed=seed)).x
        assert size_of["SC1.1"] == pytest.approx(norm_of("sigma mean", model("dense", seed), x))
        a = means("moe", seed)
        cos = [np.vdot(p, q) / np.linalg.norm(p) / np.linalg.norm(q) for i, p in enumerate(a) for q in a[:i]]
        assert size_of["SC1.3"] == pytest.approx(np.mean(cos), abs=1e-12)


def test_later_claims_are_changes_of_earlier_ones(ledger, results):
    here = found_in(ledger, "SC1.4", "SVD of the mean, at equal steps")
    for seed in range(SEEDS):
        there = of_role(axes.role_in(SETTINGS["a"][0], "top2"), base=TINY, seed=seed)
        assert there.temperature == 4
        x, *_ = batch(there)
        *_, (_, mixture) = path_of(there)
        changed = math.log(norm_of("sigma mean", model("dense", seed), x) / norm_of("sigma mean", mixture, x))
        weaker = abs(here[seed]) - abs(changed)
        assert found_in(ledger, "SC1.10a", "temperature 4, SC1.4")[seed] == pytest.approx(weaker)
        assert found_in(ledger, "SC1.10a", "temperature 4, SC1.4", AGAIN[0])[seed] == 0


def test_equal_loss_is_read_off_the_trajectory(ledger):
    """The nearest snapshots, not the nearest steps: those are log-spaced."""
    at = snapshot_steps(TINY)
    for seed in range(SEEDS):
        x = batch(replace(TINY, seed=seed)).x
        target = trained("dense", seed)[-1][0]
        path = [(trained("moe", seed)[i][0], norm_of("sigma mean", model("moe", seed, i), x)) for i in at]
        value = found_in(ledger, "SC1.4", "SVD of the mean, at equal loss")[seed]
        below = [i for i, (loss, _) in enumerate(path) if loss <= target]
        if not below:
            assert math.isnan(value)
            continue
        (loss1, norm1), (loss0, norm0) = path[below[0]], path[max(below[0] - 1, 0)]
        part = 0 if loss0 == loss1 else math.log(target / loss0) / math.log(loss1 / loss0)
        equal = norm0 * (norm1 / norm0) ** part
        assert value == pytest.approx(math.log(norm_of("sigma mean", model("dense", seed), x) / equal))


# ---- pieces ------------------------------------------------------------------------------------------------------


def series(losses, values):
    norms = np.full((len(losses), 1, 8), np.nan)
    norms[:, 0, 0] = values
    return Run(TINY, {"steps": np.arange(len(losses)), "loss": np.array(losses, float), "norms": norms})


@pytest.mark.parametrize(
    ("losses", "values", "loss", "expected"),
    [
        ([4, 2, 1], [1, 2, 8], 2, 2),  # at a snapshot
        ([4, 2, 1], [1, 2, 8], math.sqrt(2), 4),  # half-way in logs on both axes
        ([4, 2, 1], [1, 2, 8], 4, 1),
        ([4, 2, 1], [1, 2, 8], 5, 1),  # was below from the start
        ([4, 2, 1], [1, 2, 8], 0.5, None),  # never reached
        ([4, 1, 4, 1], [1, 2, 3, 100], 2, math.sqrt(2)),  # the first time
        ([4, 2, 1], [1, np.nan, 16], 2, 4),  # a snapshot where the norm was not taken is passed over
        ([4, 2, 1], [np.nan, 2, 8], 2, 2),
    ],
)
def test_value_at_equal_loss(losses, values, loss, expected):
    found = named.at_loss(series(losses, values), "sigma mean", loss)
    assert math.isnan(found) if expected is None else found == pytest.approx(expected)


def test_a_thinned_model_has_the_n_eff_of_another():
    """Exactly aimed at, never above what all tokens give, and means over its draws."""
    top2, soft = (replace(of_role(role, base=TINY), draws=40) for role in ("top2", "soft"))
    read = {config: training.train(config) for config in (top2, soft)}
    found = SC1.compute(Thinned(soft, top2), read)
    gates = training.ends(top2, read[top2])[1].gates
    assert found["n_eff"] == pytest.approx(np.mean(gates.sum(axis=0) ** 2 / (gates**2).sum(axis=0)))
    here, rng = training.ends(soft, read[soft])[1], np.random.default_rng(5)
    draws = [routed_pca(thinned(here, found["n_eff"][0], rng)).eigenvalues for _ in range(200)]
    assert abs(found["k90"][0] - np.mean([components(v) for draw in draws for v in draw])) < 0.2
    assert abs(found["cum10"][0] - np.mean([top_ten(v) for draw in draws for v in draw])) < 0.01
    assert "sigma" not in found, "which is read of dense models alone"
    itself, whole = SC1.compute(Thinned(top2, soft), read), SC1.compute(Measured(top2), read)
    assert itself["n_eff"] == pytest.approx(found["n_eff"]), "a mixture with fewer tokens keeps all of its own"
    for name in ("k90", "cum10"):
        np.testing.assert_allclose(itself[name], whole[name].mean(axis=1), rtol=1e-12)


def test_a_thinned_model_is_measured_by_means_over_draws_of_one_stream():
    """Each draw again, of the same generator: NumPy's covariances in every weighting, dense Jacobians of both ends."""
    three = {role: replace(of_role(role, base=TINY, seed=3), draws=3) for role in ("dense", "top2", "soft")}
    read = {config: training.train(config) for config in three.values()}
    for of, to in (("dense", "top2"), ("dense", "soft"), ("soft", "top2")):
        found = SC1.compute(Thinned(three[of], three[to]), read)
        (first, last), gates = (
            training.ends(three[of], read[three[of]]),
            training.ends(three[to], read[three[to]])[1].gates,
        )
        target, rng = np.mean(gates.sum(axis=0) ** 2 / (gates**2).sum(axis=0)), generator(3, "thin")
        assert found["n_eff"] == pytest.approx(target, rel=1e-14)
        kept = [thinned(last, target, rng) for _ in range(3)]
        assert len({site.x.tobytes() for site in kept}) == 3, "each draw has tokens of its own"
        for i, weighting in enumerate(WEIGHTINGS):
            values = [np.linalg.eigvalsh(C) for s in kept for C in covariances(s.x, s.gates, weighting)]
            assert found["k90"][i] == pytest.approx(np.mean([components(v) for v in values]))
            assert found["cum10"][i] == pytest.approx(np.mean([top_ten(v) for v in values]))
        assert ("sigma" in found) == (of == "dense")
        if of == "dense":
            sites = [thinned(first, target, rng) for _ in range(3)], kept
            sigma = [np.mean([norm_of("sigma mean", s.experts[0], s.x) for s in end]) for end in sites]
            np.testing.assert_allclose(found["sigma"], sigma, rtol=1e-10)


def test_a_lean_model_is_thinned_as_a_whole_one_and_measured_less():
    one, to = (of_role(role, base=TINY) for role in ("dense", "top2"))
    read = {config: training.train(config) for config in (one, to, replace(one, lean=True))}
    whole, lean = (SC1.compute(Thinned(config, to), read) for config in (one, replace(one, lean=True)))
    assert set(whole) - set(lean) == {"sigma"}
    for name in lean:
        np.testing.assert_array_equal(lean[name], whole[name][:1])


def test_components_by_size_are_means_over_random_subsets():
    """For figure S1: the sizes of the grid that there are and the number of tokens, of a dense model alone."""
    config = replace(of_role("dense", base=TINY), n=40, draws=25, seed=2)
    read = {config: training.train(config)}
    found, rng, x = SC1.compute(Measured(config), read), generator(2, "thin", 1), batch(config).x
    assert found["sizes"].tolist() == [16, 24, 32, 40]
    # k@0.9 is a whole number: of few draws another stream may have the same mean
    subsets = [[x[rng.permutation(40)[:size]] for _ in range(25)] for size in (16, 24, 32)] + [[x]]
    expected = [np.mean([components(np.linalg.eigvalsh(np.cov(rows.T))) for rows in some]) for some in subsets]
    np.testing.assert_allclose(found["k90 by size"], expected, rtol=1e-12)
    lean, top2 = replace(config, lean=True), replace(of_role("top2", base=TINY), n=40)
    for other in (lean, top2):
        assert not {"sizes", "k90 by size"} & set(SC1.compute(Measured(other), {other: training.train(other)}))


def test_a_pair_is_made_of_both_models_of_a_seed_also_on_an_axis():
    made = planned(base=TINY)
    axis = next(axis for axis in AXES if axis.name == "N = 128")
    for where in (None, axis):
        run = made.run("dense at the n_eff of top2", 3, where)
        assert run == Thinned(made.config("dense", 3, where), made.config("top2", 3, where))
        assert papers.reads(run) == (run.model, run.to)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("role", ["dense", "top2", "soft"])
def test_models_are_trained_in_the_dtype_of_the_config_and_measured_as_they_were_trained(role, dtype):
    config = replace(of_role(role, base=TINY), dtype=dtype)
    arrays = training.train(config)
    assert arrays["weights"].dtype == dtype
    path = path_of(config)  # trained again, in that dtype
    np.testing.assert_array_equal(tree.flatten(path[-1][1]), arrays["weights"].astype(float))
    np.testing.assert_array_equal(arrays["loss"], [path[step][0] for step in arrays["steps"]])
    ends = training.ends(config, arrays)
    for site, (_, expected) in zip(ends, (path[0], path[-1]), strict=True):
        found = site.experts[0] if role == "dense" else site.router.moe
        assert {leaf.dtype for leaf in tree.leaves(found)} == {site.x.dtype} == {np.dtype(float)}
        np.testing.assert_array_equal(tree.flatten(found), tree.flatten(expected))
        np.testing.assert_array_equal(site.x, batch(config).x)


@pytest.mark.parametrize("change", [{}, {"inputs": "clusters", "targets": "tasks"}, {"targets": "teacher"},
                                    {"front": "gelu", "around": "norm"}], ids=str)  # fmt: skip
def test_batch_and_untrained_weights_are_numbers_that_the_dtype_of_training_holds(change):
    """So that what is measured is what was trained, to the last bit; of float64 nothing is rounded."""
    for dtype in ("float32", "float64"):
        config = replace(TINY, dtype=dtype, **change)
        data = batch(config)
        for array in (data.x, data.y, *tree.leaves(build(config))):
            assert array.dtype == np.float64
            np.testing.assert_array_equal(array, array.astype(dtype).astype(float))
        exact = [np.array_equal(a, np.float32(a)) for a in (data.x, data.y, tree.flatten(build(config)))]
        assert exact == [dtype == "float32"] * 3
        x, y = mixture.feed(config)
        assert (x.dtype, y.dtype) == (dtype, dtype)
        np.testing.assert_array_equal(x, data.x)
        np.testing.assert_array_equal(y, data.y)


@pytest.mark.parametrize("role", ["top2", "soft"])
def test_leading_values_per_token_are_taken_at_named_steps_and_of_sparse_models_at_every_third(role):
    config = replace(of_role(role, base=TINY), steps=40, keep=12)
    arrays = training.train(config)
    taken = {name: ~np.isnan(arrays["norms"][:, 0, i]) for i, name in enumerate(NORMS)}
    spaced = np.unique(np.rint(np.geomspace(1, 40, 12)).astype(int))
    assert set(arrays["steps"]) == {*named_steps(config), *spaced}
    wanted = {*named_steps(config), *(spaced[::3] if role == "top2" else ())}
    assert wanted < set(arrays["steps"])
    for name, where in taken.items():
        expected = wanted if name in ("sigma token", "sigma peak") else set(arrays["steps"])
        assert set(arrays["steps"][where]) == expected, name


#: What a lean run leaves out, and its shape in a whole one: s snapshots, E experts, n tokens.
OVER_ALL = {
    "dense": {"outputs gram": "s s"},
    "top2": {"router share": "4 n", "norms all": "2 E 8", "layer norms": "2 2 8"},
    "soft": {"router share": "4 n"},
}


@pytest.mark.parametrize("role", OVER_ALL)
def test_a_lean_run_is_the_named_steps_of_a_whole_one(role):
    assert snapshot_steps(replace(PRIMARY, lean=True)) == [0, EARLY, 500, 1000]
    config = replace(of_role(role, base=TINY), n=40)
    whole, lean = (training.train(replace(config, lean=lean)) for lean in (False, True))
    sizes = {"s": len(whole["steps"]), "E": config.E, "n": 40}
    left_out = {name: tuple(sizes.get(c) or int(c) for c in shape.split()) for name, shape in OVER_ALL[role].items()}
    assert {name: whole[name].shape for name in set(whole) - set(lean)} == left_out
    assert set(lean["steps"]) == set(named_steps(config)) < set(whole["steps"])
    at = np.isin(whole["steps"], lean["steps"])
    for name in lean:
        np.testing.assert_array_equal(lean[name], whole[name] if name == "weights" else whole[name][at], name)


def test_what_is_not_an_experts_own_norm_is_taken_early_and_at_the_end():
    """Rows of "norms all" and "layer norms", of dense Jacobians; and the router's share at all four named steps."""
    config = of_role("top2", base=TINY, seed=1)
    arrays, x = training.train(config), batch(config).x
    for row, step in enumerate((EARLY, TINY.steps)):
        here = model("top2", 1, step)
        found = np.nanmean(arrays["norms all"][row], axis=0)
        for of, values in zip(LAYERS, (found, *arrays["layer norms"][row]), strict=True):
            expected = [norm_of(norm, here, x, of) for norm in NORMS]
            np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=of)
    for row, step in enumerate(named_steps(config)):
        here = model("top2", 1, step)
        experts = sum(w[:, None, None] * J for _, J, w in jacobians(here, x))
        a, b = (np.linalg.norm(J, axis=(1, 2)) for J in (experts, here.jacobian(x) - experts))
        np.testing.assert_allclose(arrays["router share"][row], b / (a + b), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("seeds", "E"), [(5, 3), (8, 8), (2, 8), (5, 8), (1, 3)])
def test_independent_experts_are_of_as_many_seeds(seeds, E):
    made = planned(seeds=seeds, base=replace(TINY, E=E))
    everyone = []
    for seed in range(seeds):
        run = made.run("independent top2", seed)
        assert len(run.runs) == len({config.seed for config in run.runs}) == E, "two of one seed share init and batch"
        assert run.runs[0] == made.config("top2", seed)
        assert {replace(config, seed=0, lean=False) for config in run.runs} == {made.config("top2", 0)}
        everyone += [(config.seed, e) for e, config in enumerate(run.runs)]
    assert len(set(everyone)) == len(everyone)


def test_independent_experts_are_those_of_the_runs_that_are_read():
    configs = tuple(of_role("top2", base=TINY, seed=seed) for seed in range(TINY.E))
    (means_of,) = of_seeds(Apart(configs), {config: training.train(config) for config in configs}).values()
    for e, config in enumerate(configs):
        np.testing.assert_allclose(means_of[e], means("moe", config.seed)[e], rtol=0, atol=1e-12)


def test_fewer_seeds_than_experts_take_donors():
    found = [(c.seed, c.k, c.lean) for c in models_of(planned(("SC1.9",), seeds=2)) if c.E > 1]
    assert set(found) == {(0, 2, False), (1, 2, False), (2, 2, True), (0, 3, False), (1, 3, False), (2, 3, True)}
    assert {c.seed for c in models_of(planned(("SC1.8",), seeds=2))} == {0, 1}


# ---- what is written ---------------------------------------------------------------------------------------------

CLAIM = {
    "id": str, "says": str, "paper_value": str, "verdict": str, "size": dict, "agreement": dict, "headline": str,
    "readings": list,
}  # fmt: skip
READING = {
    "name": str, "primary": bool, "kind": str, "statistic": str, "margin": float | int, "values": list,
    "low": float | None, "high": float | None, "nulls": list, "verdict": str,
}  # fmt: skip
NULL = {
    "name": str, "kind": str, "values": list, "low": float | None, "high": float | None,
    "excess_low": float | None, "excess_high": float | None,
}  # fmt: skip


def check(found, schema):
    for key, kind in schema.items():
        assert isinstance(found[key], kind), (key, found[key])


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_results_are_as_the_design_has_them(written, ledger):
    text = (written / "results.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=refuse)
    check(found, {"schema": int, "npmoe": str, "environment": dict, "claims": list})
    (head,) = found["papers"]
    assert (found["schema"], head["word"], head["mode"], head["seeds"]) == (1, "sc1", "default", SEEDS)
    assert head["command"] == "python -m npmoe.reproduce sc1"
    assert head["claims"] == list(IDS)
    assert [claim["id"] for claim in found["claims"]] == list(IDS)
    for claim in found["claims"]:
        check(claim, CLAIM)
        check(claim["agreement"], {"holds": int, "reversed": int, "of": int})
        assert claim["agreement"]["of"] == len(claim["readings"])
        assert claim["verdict"] in VERDICTS
        assert claim["headline"].startswith(claim["verdict"])
        for reading in claim["readings"]:
            check(reading, READING)
            assert reading["kind"] in ("measure", "train")
            assert len(reading["values"]) == SEEDS
            for null in reading["nulls"]:
                check(null, NULL)
                assert null["kind"] in ("chance", "control")
                assert len(null["values"]) == SEEDS
    ((read,), ties, findings) = read_results(written / "results.json")
    assert read["claims"][3]["id"] == "SC1.4"
    assert ties == []
    assert [finding["id"] for finding in findings] == ["SC1.4", "SC1.8"]
    assert found["claims"] == [json.loads(json.dumps(SC1.told(claim.as_json()))) for claim in ledger.values()]


def test_table_has_a_row_for_every_reading(written, ledger):
    with (written / "claims.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [(id, reading.name) for id, claim in ledger.items() for reading in claim.readings]
    assert [(row["claim"], row["reading"]) for row in rows] == expected
    readings = [reading for claim in ledger.values() for reading in claim.readings]
    for row, reading in zip(rows, readings, strict=True):
        assert row["primary"] == str(reading.primary)
        assert all(null.name in row["nulls"] for null in reading.nulls)
        if np.isfinite(reading.values).all():
            assert float(row["mean"]) == pytest.approx(np.mean(reading.values))
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])


def test_figures_are_those_of_the_paper_and_pass_the_checks_of_the_report(written):
    names = {path.stem for path in (written / "figures").glob("*.json")}
    assert names == {
        "1A", "1B", "1C", "1D", "2A", "2B", "3A", "3B", "3C", "3D", "sample-size", "router-share", "curvature",
    }  # fmt: skip
    for name in names:
        path = written / "figures" / f"{name}.json"
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        figure = read_figure(path)
        assert set(figure["claims"]) <= set(IDS)
        marks = [mark for panel in figure["panels"] for mark in panel["marks"]]
        for mark in marks:
            if mark["kind"] == "band":
                assert len(mark["values"]) == SEEDS
                assert mark["x"] == sorted(mark["x"])
                assert 0 not in mark["x"], "steps are on a log axis"
        assert path.with_suffix(".svg").read_bytes().startswith(b"<svg xmlns=")


def test_figures_show_the_numbers_of_the_claims(written, ledger, results):
    def mark(figure, panel, name):
        data = read_figure(written / "figures" / f"{figure}.json")
        return next(mark for mark in data["panels"][panel]["marks"] if mark["name"] == name)

    dense = mark("1A", 0, "dense")
    assert [row[-1] for row in dense["values"]] == pytest.approx(list(ledger["SC1.1"].size.values), rel=1e-5)
    assert dense["x"] == snapshot_steps(TINY)[1:]
    gap = np.subtract(mark("2B", 1, "top2")["values"], ledger["SC1.7"].size.values)
    assert np.abs(gap).max() < 1e-5
    trained_dense, top2 = mark("curvature", 0, "dense, trained"), mark("curvature", 0, "top2, trained")
    ratio = np.log(np.divide(trained_dense["values"], top2["values"]))
    np.testing.assert_allclose(ratio, ledger["SC1.11"].primary.values, atol=1e-5)
    pairs = mark("1C", 0, "trained")
    assert sum(pairs["counts"]) == SEEDS * TINY.E * (TINY.E - 1) / 2
    matrix = np.array(mark("3D", 0, "cosine")["values"], float)
    pair = np.sqrt(np.mean(matrix[np.triu_indices(TINY.E, 1)] ** 2))
    assert math.log(3 / (TINY.d * pair)) == pytest.approx(ledger["SC1.3"].primary.values[0], abs=1e-4)
    points = mark("sample-size", 0, "top-k experts")
    assert len(points["x"]) == SEEDS * TINY.E * 2, "the primary and temperature 4"


def test_page_has_every_claim_and_nothing_from_elsewhere(written):
    page = (written / "index.html").read_text(encoding="utf-8")
    for id in IDS:
        assert id in page
    assert page.rstrip().endswith("</html>")
    assert not [word for word in ("http://", "https://") if f'src="{word}' in page or f'<link href="{word}' in page]
    assert not [path for path in written.rglob("*") if path.name.endswith(".tmp")]


def test_writing_again_gives_the_same_bytes_and_drops_figures_that_are_no_more(
    written, made, results, ledger, tmp_path
):
    folder = tmp_path / "out"
    shutil.copytree(written, folder, ignore=shutil.ignore_patterns("runs"))
    drawn = SC1.figures(results, made)
    with np.errstate(under="ignore"):
        run.write(folder, run.results_of(SC1, list(ledger.values()), made, {"3D": 0}), {"3D": drawn["3D"]})
    left = files(folder)
    assert {Path(name).stem for name in left if name.startswith("figures")} == {"3D"}
    assert json.loads(left["results.json"])["papers"][0]["figures"] == ["3D"]
    same = ("claims.csv", "figures/3D.json", "figures/3D.svg")
    assert [left[name] for name in same] == [(written / name).read_bytes() for name in same]


# ---- the command -------------------------------------------------------------------------------------------------


def only(monkeypatch, **changes):
    """The command knows SC1 alone, on a tiny model."""
    monkeypatch.setattr(command, "PAPERS", (replace(tiny(TINY), **changes),))


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """main() on a tiny model and in this process -> exit status, standard output, standard error."""
    only(monkeypatch)
    monkeypatch.setattr(run, "RECORDED", tmp_path / "recorded.json")
    monkeypatch.setattr(papers, "_source", lambda files: SOURCE)  # as `swept` names them

    def made(*words, output=tmp_path / "out"):
        with np.errstate(under="ignore"):
            status = command.main([*words, "--executor", "serial", "--output", str(output)])
        return status, *capsys.readouterr()

    return made


def one_line(status, out, err):
    """Exit 2, one line after what was told while it ran, no traceback."""
    assert status == 2
    assert out == ""
    err = err[err.index("python -m npmoe.reproduce: ") :]
    assert err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def one_claim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    made = planned(("SC1.6",))
    run.write(folder, run.results_of(SC1, made.claims(swept(made, folder / "runs")), made, {}), {})
    return folder


@pytest.fixture
def out(one_claim, tmp_path):
    """A folder in which SC1.6 was reproduced."""
    return Path(shutil.copytree(one_claim, tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SC1.33"], "expected sc1, all, or a claim among SC1.1, .*; got 'SC1.33'; did you mean SC1.3?"),
        (["sc11.8"], "got 'sc11.8'; did you mean SC1.8?"),
        (["SC1.6", "gibberish"], "got 'gibberish'"),
        (["--record"], "expected --record with --full, whole papers and 8 seeds or more"),
        (["--record", "--quick"], "expected --record with --full"),
        (["SC1.6", "--full", "--record"], "expected --record with .*whole papers"),
        (["--full", "--record", "--seeds", "7"], "expected --record with .*8 seeds or more"),
        (["--check", "--quick"], "expected --check with 5 seeds or more and without --quick"),
        (["--check", "--seeds", "4"], "expected --check with 5 seeds or more and without --quick"),
        (["--recorded", "--check", "--seeds", "3"], "expected --recorded without --check, --seeds"),
        (["SC1.6", "--executor", "cloud"], "expected .*processes.*; got 'cloud'"),
    ],
)  # fmt: skip
def test_call_that_is_wrong(call, tmp_path, words, said, capsys):
    if "--executor" in words:
        told = one_line(command.main([*words, "--output", str(tmp_path / "out")]), *capsys.readouterr())
    else:
        told = one_line(*call(*words))
    assert re.search(said.replace("?", r"\?"), told), told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [["--seeds", "0"], ["--seeds", "x"], ["--jobs", "-1"], ["--quick", "--full"], ["--no"]]
)
def test_options_that_are_none(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ([], IDS),
        (["SC1"], IDS),
        (["sc1.8", "SC1.3"], ("SC1.3", "SC1.8")),
        (["SC1.10"], ("SC1.10a", "SC1.10b", "SC1.10c", "SC1.10d")),
        (["sc1.10B", "SC1.10b"], ("SC1.10b",)),
    ],
)
def test_claims_are_named_in_any_case_and_come_in_the_order_of_the_paper(words, ids):
    ((paper, found),) = command.claims_of(words or ["sc1"])
    assert (paper.id, found) == ("SC1", ids)


@pytest.mark.parametrize("options", [[], ["--full"], ["--quick"], ["SC1.10b", "--full"]])
def test_list_runs_nothing(call, tmp_path, monkeypatch, options):
    monkeypatch.setattr(run, "make", None)
    status, told, err = call("--list", *options)
    assert (status, err) == (0, "")
    assert not list(tmp_path.iterdir())
    assert "* residual, SC1.4" in told
    assert ("shared norm in front, SC1.8" in told) is True
    assert ("with --full also" in told) is ("--full" not in options)
    assert "runs, " in told.splitlines()[-1]
    assert ("SC1.3: " in told) is ("SC1.10b" not in options)


def test_summary_names_every_claim_that_was_run(out, call):
    status, told, err = call("SC1.6", "SC1.3")
    assert status == 0
    lines = told.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["SC1.3", "SC1.6"]
    results = json.loads((out / "results.json").read_text())
    for claim in results["claims"]:
        assert f"{claim['id']}  {claim['word']}" in told
        assert " ".join(claim["sentence"].split()) in " ".join(told.split())
    assert str(out / "index.html") in err
    assert results["papers"][0]["command"] == "python -m npmoe.reproduce SC1.3 SC1.6"


def test_why_tells_statistic_margin_readings_nulls_intervals_and_rule(out, call):
    status, told, _ = call("SC1.6", "--why")
    assert status == 0
    (claim,) = json.loads((out / "results.json").read_text())["claims"]
    assert f"T: {claim['statistic']}; smallest effect of interest 1 component" in told
    assert f"rule: {claim['rule']}" in told
    assert f"verdict: {claim['word']}" in told
    assert f"found: {claim['sentence']}" in told
    for reading in claim["readings"]:
        assert f"{reading['name']} (measure): T = {reading['mean']:.3g} [{reading['low']:.3g}, " in told
        for null in reading["nulls"]:
            assert f"null model {null['name']}: T0 = {null['mean']:.3g} [" in told
    assert "* x (measure)" in told
    assert "left out by this run: N = 128" in told


def test_check_holds_against_what_was_recorded(out, call, monkeypatch):
    shutil.copy(out / "results.json", run.RECORDED)
    status, told, _ = call("SC1.6", "--check")
    assert status == 0
    assert "1 of 1 verdicts as recorded" in told

    recorded = json.loads(run.RECORDED.read_text())
    (primary,) = (reading for reading in recorded["claims"][0]["readings"] if reading["primary"])
    now = recorded["claims"][0]["word"]
    seeds = len(primary["values"])

    def held_against(values):
        primary["values"] = values
        run.RECORDED.write_text(json.dumps(recorded))
        before = run.RECORDED.read_bytes()
        status, told, _ = call("SC1.6", "--check")
        assert run.RECORDED.read_bytes() == before
        assert "0 of 1 verdicts as recorded" in told
        return status, told

    status, told = held_against([4.0] * seeds)
    assert status == 1
    assert f"differs: SC1.6 was recorded as reproduced, now {now}" in told
    # all but one seed say that T holds, and the one makes the interval as wide as the sky
    status, told = held_against([4.0] * (seeds - 1) + [-40.0])
    assert status == 0
    assert f"borderline: SC1.6 was recorded as inconclusive, now {now}" in told


def test_check_without_a_sound_record_runs_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "make", None)
    assert f"expected a recorded ledger in {run.RECORDED}" in one_line(*call("SC1.6", "--check"))
    for damage in (another_schema, bare, scribbled):
        damage(run.RECORDED)
        assert str(run.RECORDED) in one_line(*call("SC1.6", "--check"))
    assert [path.name for path in tmp_path.iterdir()] == ["recorded.json"]


def test_recording_keeps_the_claims_of_other_papers(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RECORDED", tmp_path / "recorded.json")

    def ledger(word, **verdicts):
        claims = [{"id": i, "verdict": v} for i, v in verdicts.items()]
        return {"word": word, "npmoe": "0", "environment": {}, "mode": "full", "claims": claims, "figures": [word]}

    def recorded(results, seconds):
        return run.record(results, {results["word"]: {"drawn at": seconds}}, {"seconds": seconds})

    assert recorded(ledger("ga", A="reversed", B="undecided"), 1) == run.RECORDED
    recorded(ledger("sc1", C="reproduced"), 2)
    recorded(ledger("ga", A="reproduced"), 3)
    found = json.loads(run.RECORDED.read_text())
    assert found["figures"] == {"ga": {"drawn at": 3}, "sc1": {"drawn at": 2}}
    assert [head["made"] for head in found["papers"]] == [{"seconds": 2}, {"seconds": 3}]
    assert {claim["id"]: claim["verdict"] for claim in found["claims"]} == {"C": "reproduced", "A": "reproduced"}
    assert [head["word"] for head in found["papers"]] == ["sc1", "ga"], "in the order of the papers"
    assert [path.name for path in tmp_path.iterdir()] == ["recorded.json"]


def test_a_claim_that_has_moved_is_recorded_once(tmp_path, monkeypatch):
    """MY.5 was of `my` and is of `sc2` now: the old entry goes when the new one comes."""
    monkeypatch.setattr(run, "RECORDED", tmp_path / "recorded.json")

    def ledger(word, *ids):
        claims = [{"id": i, "verdict": "undecided", "of": word} for i in ids]
        return {"word": word, "npmoe": "0", "environment": {}, "mode": "full", "claims": claims, "figures": []}

    run.record(ledger("my", "MY.4", "MY.5"), {}, {"seconds": 1})
    run.record(ledger("sc2", "SC2.1", "MY.5"), {}, {"seconds": 2})
    found = json.loads(run.RECORDED.read_text())
    assert [(claim["id"], claim["of"]) for claim in found["claims"]] == [
        ("MY.4", "my"), ("SC2.1", "sc2"), ("MY.5", "sc2"),
    ]  # fmt: skip
    assert [head["claims"] for head in found["papers"]] == [["MY.4"], ["SC2.1", "MY.5"]]


def test_quick_call_says_that_it_means_nothing_and_leaves_a_real_page(out, call):
    before = files(out)
    status, told, err = call("SC1.6", "--quick", "--seeds", "2")
    assert status == 0
    assert "no verdict" in told
    assert "its verdicts mean nothing" in err
    assert "the page is left as it is" in err
    assert f"{out / 'results.json'} is of a default run and this one was quick" in err
    after = files(out)
    assert {name: after[name] for name in before} == before


def test_real_call_takes_the_place_of_a_quick_page(call, tmp_path):
    status, _, err = call("SC1.6", "SC1.3", "--quick", "--seeds", "2")
    assert status == 0, err
    quick = json.loads((tmp_path / "out" / "results.json").read_text())
    assert quick["papers"][0]["mode"] == "quick"
    assert {claim["verdict"] for claim in quick["claims"]} == {"no verdict"}
    status, *_ = call("SC1.6")
    assert status == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["papers"][0]["mode"] == "default"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (("full", "AB"), ("quick", "AB"), "is of a full run and this one was quick"),
        (("default", "AB"), ("default", "A"), r"has claims that this call did not ask for \(B\)"),
        (("full", "AB"), ("default", "ABC"), "is of a full run and this one was default"),
        (("full", "ABC"), ("full", "A"), r"\(B, C\)"),
        (("quick", "AB"), ("default", "A"), None),
        (("quick", "AB"), ("quick", "A"), None),
        (("default", "A"), ("default", "AB"), None),
        (("default", "AB"), ("full", "AB"), None),
        (None, ("quick", "A"), None),
        (("default", "A", 8), ("default", "A", 6), "has 8 seeds and this call 6"),
        (("default", "A", 8), ("default", "A", 3), "has verdicts, of 8 seeds, and this call none, of 3"),
        (("default", "A", 5), ("full", "A", 3), "has verdicts, of 5 seeds"),
        (("full", "A", 8, 8), ("default", "A", 1), "has verdicts, of 8 seeds"),
        (("default", "A", 5, 5), ("default", "A", 1), "has verdicts, of 5 seeds"),
        (("default", "A", 8), ("full", "A", 5), None),
        (("default", "A", 5), ("default", "A", 5), None),
        (("full", "AB", 8, 0), ("quick", "A", 2), None),  # an interrupted call left a page without numbers
        (("full", "A", 8, 1), ("default", "A", 5), None),  # and one of one seed
        (("full", "A", 8, 1), ("default", "A", 5, 3), "is of a full run and this one was default"),
        (("full", "A", 8, 1), ("quick", "A", 2), "is of a full run and this one was quick"),
        (("default", "A", 8, 6), ("default", "A", 5), None),
        (("default", "A", 8, 6), ("default", "A", 5, 4), "has verdicts, of 6 seeds, and this call none, of 4"),
        (("default", "A", 5, 3), ("full", "A", 8, 0), "has 3 seeds and this call 0"),
        (("default", "A", 5, 3), ("full", "A", 8, 3), None),
        (("default", "A", 5), ("full", "A", 8, 7), "of a run that is complete"),
        (("default", "AB", 5, 3), ("default", "A", 5), r"\(B\)"),
    ],
)
def test_lesser_results(tmp_path, old, new, said):
    def ledger(mode, ids, seeds=5, progress=None):
        claims = [{"id": id, "verdict": "undecided", "readings": [{}]} for id in ids]
        head = {"word": "sc1", "npmoe": "0", "environment": {}, "mode": mode, "seeds": seeds, "progress": progress}
        return {**head, "claims": claims}

    if old:
        (tmp_path / "results.json").write_text(json.dumps(join([ledger(*old)])))
    found = run.lesser(tmp_path, ledger(*new))
    assert found is None if said is None else re.search(said, found)


def test_a_page_without_any_number_gives_way_whatever_it_says_of_seeds(tmp_path):
    """Such as that of a claim which --full alone measures."""
    head = {"word": "sc1", "npmoe": "0", "environment": {}, "mode": "default", "seeds": 5, "progress": None}
    empty = {**head, "claims": [{"id": "A", "verdict": "not tested", "readings": [], "statements": []}]}
    (tmp_path / "results.json").write_text(json.dumps(join([empty])))
    new = {**head, "seeds": 2, "progress": 1, "claims": [{"id": "A", "verdict": "no verdict", "readings": [{}]}]}
    assert run.lesser(tmp_path, new) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def another_schema(path):
    path.write_text('{"schema": 99, "claims": []}')


def bare(path):
    path.write_text('{"schema": 1}')


def scribbled(path):
    path.write_bytes(b"\xff\xfe thesis")


def another_format(path):
    path.write_text('{"format": 99}')


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("results.json", cut, "expected results as JSON in {path}"),
        ("results.json", another_schema, "expected results of schema 1 in {path}; got 99"),
        ("results.json", bare, "{path}"),
        ("results.json", scribbled, "expected results as JSON in {path}"),
        ("runs/format.json", another_format, "expected runs of {{'format': 1}} in {path.parent}; got {{'format': 99}}"),
        ("runs/format.json", cut, "{path}"),
    ],
)
def test_what_is_damaged_is_named_and_nothing_is_lost(out, call, file, damage, said):
    path = sorted(out.glob(file))[0]
    damage(path)
    before = files(out)
    assert said.format(path=path) in one_line(*call("SC1.6"))
    assert files(out) == before


def test_a_damaged_run_is_computed_again_and_said_in_one_line(out, call):
    before = files(out)
    for path in sorted((out / "runs").glob("*.npz")):
        cut(path)
    status, _, err = call("SC1.6")
    assert status == 0
    told = [line for line in err.splitlines() if "computed again" in line]
    assert len(told) == 2 * SEEDS, "each run that measures, and the one that it reads"
    assert all(".npz.damaged: " in line and "expected" in line for line in told)
    after = files(out)
    assert {name: after[name] for name in before} == before
    assert sum("damaged" in name for name in after) == 2 * SEEDS


def test_a_full_disk_names_the_file_and_says_how_to_go_on(out, call, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    before = files(out)
    monkeypatch.setattr(os, "replace", full)
    told = one_line(*call("SC1.6"))
    assert f"cannot write {out / 'runs' / 'format.json'}: No space left on device." in told
    assert "the same command continues" in told
    assert files(out) == before


def test_output_that_is_a_file(call, tmp_path):
    (tmp_path / "thesis").write_text("precious")
    told = one_line(*call("SC1.6", output=tmp_path / "thesis"))
    assert str(tmp_path / "thesis") in told
    assert files(tmp_path) == {"thesis": b"precious"}


def test_output_folder_of_other_things(call, tmp_path):
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "thesis.tex").write_text("precious")
    before = files(tmp_path)
    assert "thesis.tex" in one_line(*call("SC1.6"))
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it likes")
def test_output_without_permission(out, call):
    before = files(out)
    for folder in (out / "runs", out):
        folder.chmod(0o500)
    try:
        one_line(*call("SC1.6", "--fresh"))
    finally:
        for folder in (out, out / "runs"):
            folder.chmod(0o700)
    assert files(out) == before


@pytest.mark.parametrize("name", ["format.json", ".npz", "claims.csv", "results.json", "index.html"])
def test_disk_that_is_full_costs_no_file(out, call, monkeypatch, name):
    before, rename = files(out), os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device" in one_line(*call("SC1.6", "--fresh"))
    assert files(out) == before


def test_second_run_in_a_folder_is_refused(out, call):
    fcntl = pytest.importorskip("fcntl")
    before = files(out)
    with (out / "runs" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = one_line(*call("SC1.6"))
        with pytest.raises(SweepError, match="to be free"):
            run.write(out, split(json.loads(before["results.json"]))[0], {})  # as of a call whose runs ended meanwhile
    assert f"expected {out / 'runs'} to be free" in told
    assert files(out) == before
    assert call("SC1.6")[0] == 0


def test_run_that_fails_is_named_without_a_traceback(out, call, monkeypatch):
    def failing(config):
        raise ValueError("expected better weather")

    before = files(out)
    only(monkeypatch, computes={**SC1.computes, Config: failing})
    status, told, err = call("SC1.6", "--fresh")
    assert (status, told) == (2, "")
    assert err.splitlines()[-2:] == [
        "python -m npmoe.reproduce: expected better weather", "  in the run of dense, seed 0",
    ]  # fmt: skip
    assert files(out) == before


def test_interrupted_call_says_how_to_go_on(call, tmp_path, monkeypatch):
    def interrupting(config):
        if config.seed == 2:
            raise KeyboardInterrupt
        return training.train(config)

    only(monkeypatch, computes={**SC1.computes, Config: interrupting})
    status, told, err = call("SC1.6")
    assert (status, told) == (130, "")
    assert "This call continues there: python -m npmoe.reproduce SC1.6 " in err
    assert len(list((tmp_path / "out" / "runs").glob("*.npz"))) == 4, "of two seeds, trained and measured"
    (head,) = json.loads((tmp_path / "out" / "results.json").read_text())["papers"]
    assert (head["progress"], head["seeds"]) == (2, 5)
    assert "2 of 5 seeds" in (tmp_path / "out" / "index.html").read_text()


def test_interrupted_counts_end_quietly(tmp_path, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.counts, "report", interrupted)
    assert command.main(["my", "--counts", str(tmp_path / "counts.npz")]) == 130
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", "interrupted")


def test_the_commit_is_that_of_the_whole_package(tmp_path, monkeypatch):
    """A change in any of its folders shows."""
    package = tmp_path / "npmoe"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "moe.py").write_text("a = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(run.npmoe, "__file__", str(package / "__init__.py"))
    clean = run.commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (package / "model" / "moe.py").write_text("a = 2\n")
    assert run.commit() == clean + "+"


def test_runs_that_are_there_are_not_computed_again_but_by_fresh(out, call, monkeypatch):
    calls = []

    def counted(config):
        calls.append(config.seed)
        return training.train(config)

    only(monkeypatch, computes={**SC1.computes, Config: counted})
    before = files(out)
    assert call("SC1.6")[0] == 0
    assert calls == []
    assert call("SC1.6", "--fresh")[0] == 0
    assert calls == [0, 1, 2, 3, 4]
    assert files(out) == before


def test_command_in_a_process_of_its_own(tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-m", "npmoe.reproduce", "SC1.44"],
        env=os.environ | {"PYTHONPATH": str(Path(npmoe.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "did you mean SC1.4?" in one_line(found.returncode, found.stdout, found.stderr)
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_ours_are_neither_replaced_nor_removed(tmp_path, capsys, monkeypatch):
    for name in ("index.html", "claims.csv"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        assert command.main(["SC1.6", "--quick", "--executor", "serial", "--output", str(folder)]) == 2
        assert f"holds {name} and no results.json" in capsys.readouterr().err
        assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "mine"}
    ours = tmp_path / "ours"
    (ours / "figures").mkdir(parents=True)
    (ours / "runs").mkdir()
    old = {
        "word": "sc1",
        "npmoe": "0",
        "environment": {},
        "mode": "default",
        "seeds": 5,
        "figures": ["1A"],
        "claims": [],
    }
    (ours / "results.json").write_text(json.dumps(join([old])))
    for name in ("1A.json", "1A.svg", "mine.json", "mine.png"):
        (ours / "figures" / name).write_text("{}")
    monkeypatch.setattr("npmoe.report.write_report", lambda folder: folder / "index.html")
    run.write(ours, {**old, "figures": []}, {})
    assert {path.name for path in (ours / "figures").iterdir()} == {"mine.json", "mine.png"}
