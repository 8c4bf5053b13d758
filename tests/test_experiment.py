"""Roles, axes and readings: which runs are planned, and how finished runs become claims."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from _reproduce_jobs import computed

from npmoe.ledger import RATIO, Claim, Reading, Statement, join, split
from npmoe.reproduce import __main__ as command
from npmoe.reproduce import run
from npmoe.reproduce.experiment import Across, Axis, Experiment, Pair, Spec, Way
from npmoe.reproduce.papers import PAPERS, TIES


@dataclass(frozen=True)
class Toy:
    seed: int = 0
    size: int = 1
    twist: float = 0.0
    lean: bool = False


@dataclass(frozen=True)
class Mean:
    """A run made of the runs of several seeds."""

    runs: tuple[Toy, ...]

    def reads(self):
        return self.runs


@dataclass(frozen=True)
class Twice:
    """A run that measures another."""

    model: Toy

    def reads(self):
        return (self.model,)


@dataclass(frozen=True)
class Gap:
    """A run made of two models of one seed."""

    one: Toy
    other: Toy

    def reads(self):
        return self.one, self.other


def compute(config, read=None):
    if isinstance(config, Gap):
        return {"x": read[config.other]["x"] - read[config.one]["x"]}
    if isinstance(config, Mean):
        return {"x": np.mean([read[run]["x"] for run in config.runs])}
    if isinstance(config, Twice):
        return {"x": 2 * read[config.model]["x"]}
    return {"x": np.array(config.size + config.twist + 0.01 * config.seed)}


def value(m):
    return float(m["two"]["x"] - m["one"]["x"])


WAY = Way("difference", "two minus one", value, RATIO, (("nothing", "chance", lambda m: 0.0),))
SPEC = Spec("T.1", "two exceeds one", "none", ("one", "two"), (WAY, WAY._replace(name="again")),
            (Axis("twisted", {"twist": 1.0}, ("two",)),
             Axis("each its own", {}, each={"one": {"twist": 2.0}})))  # fmt: skip
SEVEN = Way("mean", "mean", lambda m: float(m["seven"]["x"]), RATIO)
APART = Spec("T.2", "crosses seeds", "none", ("seven",), (SEVEN,), (Axis("twisted", {"twist": 1.0}),))
EXACT = Spec("T.3", "an identity", "none", ("one",), exact=lambda seeds: (
    Statement("identity", "x = x", len(seeds), sum(m["one"]["x"] < 0 for m in seeds), 0.5),))  # fmt: skip
NONE = Spec("T.4", "waits", "none")
ROLES = {"one": {}, "two": lambda base: {"size": 10 * base.size}, "seven": Across("one", Mean, lambda base: 7)}
TOY = Experiment(Toy(), Toy(size=2), ROLES, (SPEC, APART, EXACT, NONE))


def plan(*ids, full=False, quick=False, seeds=None):
    return TOY.plan(ids or TOY.ids, full=full, quick=quick, seeds=seeds)


def results(made):
    return computed(compute, made)


def test_configs_are_roles_of_seeds_each_once():
    made = plan("T.1")
    assert made.seeds == 5
    expected = {Toy(s, 1) for s in range(5)} | {Toy(s, 10) for s in range(5)}
    assert set(made.configs()) == expected
    assert len(made.configs()) == len(expected)


def test_full_adds_axes_where_they_concern_a_role():
    made = plan("T.1", full=True, seeds=5)
    extra = set(made.configs()) - set(plan("T.1", seeds=5).configs())
    assert extra == {Toy(s, 10, 1.0) for s in range(5)} | {Toy(s, 1, 2.0) for s in range(5)}
    claim = made.claims(results(made))[0]
    by_name = {r.name: r for r in claim.readings}
    assert by_name["twisted"].values == pytest.approx([10.0] * 5)
    assert by_name["each its own"].values == pytest.approx([7.0] * 5)
    assert (by_name["twisted"].kind, by_name["again"].kind) == ("train", "measure")
    assert [r.name for r in claim.readings if r.primary] == ["difference"]


def test_quick_starts_from_the_small_base():
    made = plan(quick=True)
    assert made.seeds == 2
    assert {c.size for c in results(made) if isinstance(c, Toy)} == {2, 20}
    claims = made.claims(results(made))
    assert [c.verdict for c in claims] == ["no verdict", "no verdict", "no verdict", "not tested"]


def test_a_role_across_seeds_takes_its_own_and_those_after_it_and_comes_round():
    made = plan("T.2")
    assert [run.seed for run in made.run("seven", 3).runs] == [3, 4, 5, 6, 0, 1, 2]
    assert made.configs() == [made.run("seven", seed) for seed in range(5)]
    (claim,) = made.claims(results(made))
    assert claim.readings[0].values == pytest.approx([1.03] * 5)
    (claim,) = plan("T.2", full=True).claims(results(plan("T.2", full=True)))
    assert claim.readings[1].values == pytest.approx([2 + 0.01 * np.mean([s, *((s + i) % 8 for i in range(1, 7))])
                                                      for s in range(8)])  # fmt: skip
    with pytest.raises(ValueError, match="'seven' is made of several"):
        made.config("seven", 0)


def test_a_run_that_measures_another_reads_it():
    made = replace(TOY, measured=Twice).plan(("T.1",), full=False, quick=False, seeds=5)
    assert {type(config) for config in made.configs()} == {Twice}
    (claim,) = made.claims(results(made))
    assert claim.readings[0].values == pytest.approx([18.0] * 5)
    assert made.found(results(made), "two", 3).config == Toy(3, 10)
    assert made.found({}, "two", 3) is None
    with pytest.raises(KeyError, match="two of seed 0 was not run"):
        made.models({Twice(Toy(0)): {}}, ("one", "two"), 0)


def test_runs_of_axes_and_donors_are_lean_unless_the_model_is_there_in_full():
    axes = (Axis("ten", {"size": 10}, ("one",)), Axis("twisted", {"twist": 1.0}, ("two",)))
    spec = replace(SPEC, axes=axes)
    toy = replace(TOY, specs=(spec, APART), lean={"lean": True})
    made = toy.plan((), full=True, quick=False, seeds=2)
    assert made.config("one", 0, axes[0]) == Toy(0, 10)  # the run of "two", in full
    assert made.config("two", 0, axes[0]) == Toy(0, 10)
    assert made.config("two", 1, axes[1]) == Toy(1, 10, 1.0, lean=True)
    assert made.config("one", 1, axes[1]) == Toy(1)
    assert [run.lean for run in made.run("seven", 0).runs] == [False] * 2 + [True] * 5
    assert [run.lean for run in made.run("seven", 0, APART.axes[0]).runs] == [True] * 7


GAP = Spec("T.7", "a gap", "none", ("gap",), (Way("gap", "gap", lambda m: float(m["gap"]["x"]), RATIO),),
           (Axis("twisted", {"twist": 1.0}, ("two",)), Axis("ten", {"size": 10}, ("one",))))  # fmt: skip
PAIRED = replace(TOY, roles={**ROLES, "gap": Pair("one", "two", Gap)}, specs=(GAP,))


def test_a_pair_is_made_of_two_models_of_one_seed():
    for toy in (PAIRED, replace(PAIRED, measured=Twice)):  # it reads the models, not what measures them
        made = toy.plan((), full=False, quick=False, seeds=3)
        assert made.configs() == [Gap(Toy(seed), Toy(seed, 10)) for seed in range(3)]
        (claim,) = made.claims(results(made))
        assert claim.readings[0].values == pytest.approx([9.0] * 3)
        assert made.found(results(made), "gap", 1).config is None, "it is no model's own run"
        with pytest.raises(ValueError, match="'gap' is made of several"):
            made.config("gap", 0)


def test_a_pair_on_an_axis_has_both_models_there_lean_unless_they_are_in_full():
    toy = replace(PAIRED, lean={"lean": True})
    made = toy.plan((), full=True, quick=False, seeds=2)
    twisted, ten = GAP.axes
    assert made.run("gap", 1, twisted) == Gap(Toy(1), Toy(1, 10, 1.0, lean=True))
    assert made.run("gap", 1, ten) == Gap(Toy(1, 10), Toy(1, 10))
    (claim,) = made.claims(results(made))
    assert [r.name for r in claim.readings] == ["gap", "twisted", "ten"]
    assert [r.values for r in claim.readings] == [pytest.approx([v] * 2) for v in (9.0, 10.0, 0.0)]


def test_pairs_come_with_their_seed_and_roles_across_seeds_after_all():
    spec = replace(GAP, roles=("seven", "gap", "one"), axes=())
    made = replace(PAIRED, specs=(spec,)).plan((), full=False, quick=False, seeds=2)
    assert [type(config).__name__ for config in made.configs()] == ["Gap", "Toy"] * 2 + ["Mean"] * 2


def test_what_is_run_once_has_no_control_on_an_axis():
    control = (("the other", "control", lambda m: float(m["two"]["x"])), ("nothing", "chance", lambda m: 0.0))
    way = Way("size", "x of one", lambda m: float(m["one"]["x"]), RATIO, control)
    spec = Spec("T.5", "one is large", "none", ("one",), (way,), (Axis("twisted", {"twist": 1.0}),), once=("two",))
    made = replace(TOY, specs=(spec,)).plan((), full=True, quick=False, seeds=2)
    assert set(made.configs()) == {Toy(s, *rest) for s in range(2) for rest in ((1,), (10,), (1, 1.0))}
    (claim,) = made.claims(results(made))
    measured, trained = claim.readings
    assert [null.name for null in measured.nulls] == ["the other", "nothing"]
    assert [null.name for null in trained.nulls] == ["the other (not run)", "nothing"]
    assert np.isnan(trained.nulls[0].values).all()


def test_ways_of_a_full_run_and_of_other_roles():
    more = Way("two", "x of two", lambda m: float(m["two"]["x"]), RATIO, roles=("two",), kind="train", full=True)
    spec = Spec("T.6", "one is large", "none", ("one",), (Way("one", "x", lambda m: float(m["one"]["x"]), RATIO), more))
    toy = replace(TOY, specs=(spec,))
    default, full = (toy.plan((), full=full, quick=False, seeds=2) for full in (False, True))
    assert set(default.configs()) == {Toy(0), Toy(1)}
    assert set(full.configs()) == {Toy(0), Toy(1), Toy(0, 10), Toy(1, 10)}
    assert default.readings() == [("T.6", "one is large", ["one"], ["two"])]
    assert full.readings() == [("T.6", "one is large", ["one", "two"], [])]
    (claim,) = default.claims(results(default))
    assert (len(claim.readings), claim.left_out) == (1, ("two",))
    (claim,) = full.claims(results(full))
    assert [(r.name, r.kind, r.values[1]) for r in claim.readings] == [
        ("one", "measure", pytest.approx(1.01)),
        ("two", "train", pytest.approx(10.01)),
    ]
    assert claim.left_out == ()


def test_exact_claims():
    made = plan("T.3")
    (claim,) = made.claims(results(made))
    assert claim.verdict == "proved"
    assert claim.headline == "proved: 0 violations in 5 cases"
    json.dumps(claim.as_json(), allow_nan=False)
    wrong = replace(EXACT, exact=lambda seeds: (Statement("identity", "x = 2", 5, 1, 2.0, "x = 1"),))
    (claim,) = (
        Experiment(Toy(), Toy(), {"one": {}}, (wrong,))
        .plan(("T.3",), full=False, quick=False, seeds=None)
        .claims(results(made))
    )
    assert claim.verdict == "refuted"
    assert "Counter-example: x = 1" in claim.as_json()["rule"]


def test_an_exact_claim_is_proved_from_five_seeds_on_and_refuted_at_once():
    fine, broken = Statement("a", "", 5, 0, 0.5), Statement("a", "", 5, 1, 2.0, "x = 1")
    words = {
        (s.violations, n): Claim("X", "", "", (), statements=(s,), seeds=n).verdict
        for s in (fine, broken)
        for n in (4, 5)
    }
    assert words == {(0, 4): "no verdict", (0, 5): "proved", (1, 4): "refuted", (1, 5): "refuted"}


def test_a_claim_that_is_still_to_come_has_no_verdict_yet():
    """ "Not tested" is said of what nothing here can test."""
    found = {claim.id: claim for claim in plan().claims({})}
    assert {id: claim.verdict for id, claim in found.items() if claim.pending} == dict.fromkeys(
        (spec.id for spec in TOY.specs if spec.ways or spec.exact), "no verdict"
    )
    made = plan("T.3")
    (claim,) = made.claims({made.run("one", 0): results(made)[made.run("one", 0)]})
    assert (claim.verdict, claim.seeds) == ("no verdict", 1)


def test_train_readings_that_are_still_to_come_are_listed():
    axis = Axis("twisted", {"twist": 1.0})
    toy = replace(TOY, specs=(replace(TOY.specs[0], axes=(axis,)),))
    full = toy.plan((), full=True, quick=False, seeds=5)
    there = {c: arrays for c, arrays in results(full).items() if getattr(c, "twist", 0.0) == 0.0 or c.seed < 2}
    (claim,) = full.claims(there)
    assert [len(r.values) for r in claim.readings if r.kind == "train"] == [2]
    assert claim.left_out == ("twisted (still to come: 3 of 5 seeds)",)
    (claim,) = full.claims(results(full))
    assert claim.left_out == ()


def test_what_stands_beside_an_exact_claim_does_not_decide_it():
    fine = Statement("a", "", 5, 0, 0.5)
    assert Claim("X", "", "", (), statements=(fine, Statement("b", "", 5, 5, 9.0, beside=True))).verdict == "proved"
    assert Claim("X", "", "", (), statements=(fine, Statement("b", "", 0, 0, 0.0))).verdict == "not tested"
    with pytest.raises(ValueError, match="readings or exact statements"):
        Claim("X", "", "", (Reading("r", "measure", "", 1.0, (0.0,), primary=True),), statements=(fine,))


def test_unknown_claim():
    with pytest.raises(ValueError, match=r"among T\.1, T\.2, T\.3, T\.4; got 'T\.9'"):
        plan("T.9")


def test_listing_says_what_is_left_out():
    assert plan("T.1").readings() == [("T.1", SPEC.says, ["difference", "again"], ["twisted", "each its own"])]
    assert plan("T.1", full=True).readings()[0][2:] == (["difference", "again", "twisted", "each its own"], [])


# ---- papers --------------------------------------------------------------------------------------------------------


def test_ids_of_all_papers_differ_and_words_name_them():
    ids = [id for paper in PAPERS for id in paper.ids]
    assert len(ids) == len(set(ids))
    for paper in PAPERS:
        assert paper.named(paper.word) == paper.ids
        assert paper.named(paper.word.upper()) == paper.ids
        for id in paper.ids:
            assert paper.named(id.lower()) == (id,)
    assert {id for tie in TIES for id in tie["claims"]} <= set(ids)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["GA.2"], {"GA": ("GA.2a", "GA.2b")}),
        (["my.1", "sc1.3"], {"SC1": ("SC1.3",), "MY": ("MY.1a", "MY.1b", "MY.1c")}),
        (["SC2.5"], {"MY": ("SC2.5",)}),  # and not SC2.5b, which trains language models
        (["MY.3b", "MY.3"], {"MY": ("MY.3",), "SC2": ("MY.3b",)}),
        (["MY", "MY.2"], {"MY": PAPERS[2].ids}),
        ([], {paper.id: paper.ids for paper in PAPERS[:3]}),
        (["all"], {paper.id: paper.ids for paper in PAPERS}),
    ],
)
def test_words_of_a_call(words, expected):
    assert {paper.id: ids for paper, ids in command.claims_of(words)} == expected


def test_counts_are_of_my_alone_and_a_missing_file_is_named(tmp_path, capsys):
    path = tmp_path / "none.npz"
    for words, said in ((["my"], str(path)), (["ga"], "expected --counts with my"), (["my.12"], "did you mean MY")):
        assert command.main([*words, "--counts", str(path), "--output", str(tmp_path / "out")]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert said in told.err
    assert not list(tmp_path.iterdir())


def test_every_claim_asked_for_has_its_row():
    """The rows that the issue names, with readings and nulls, or statements."""
    by_id = {
        spec.id: spec
        for paper in PAPERS[1:]
        for spec in paper.experiment.plan((), full=True, quick=False, seeds=None).specs()
    }
    for id in ("GA.1", "GA.2a", "GA.2b", "GA.3", "GA.4a", "GA.4b", "MY.1c", "MY.2", "MY.3", "MY.4", "MY.10"):
        assert len(by_id[id].ways) > 2, id
        assert by_id[id].ways[0].nulls, id
        assert by_id[id].axes, id
    for id in ("MY.1a", "MY.1b", "SC2.5"):
        assert by_id[id].exact, id
    for id in ("SC2.1", "SC2.2", "SC2.3", "SC2.4", "MY.1d", "MY.3b", "MY.5", "MY.6", "MY.7", "MY.8", "MY.9"):
        assert by_id[id].ways, id
        assert by_id[id].ways[0].nulls, id
    assert not by_id["GA.5"].roles
    assert "Not tested" in by_id["GA.5"].note


def test_every_paper_trains_in_float32_and_reads_float64_beside_it():
    without = set()
    for paper in PAPERS:
        assert (paper.experiment.base.dtype, paper.experiment.quick.dtype) == ("float32", "float32")
        made = paper.experiment.plan((), full=True, quick=False, seeds=None)
        if paper.alone:
            continue  # a language model is trained otherwise in text and layers, not in arithmetic
        for spec in (spec for spec in made.specs() if made.axes(spec)):
            double = [axis for axis in made.axes(spec) if axis.name == "trained in float64"]
            assert all((axis.change, axis.roles, axis.each) == ({"dtype": "float64"}, (), {}) for axis in double)
            without |= set() if double else {spec.id}
    assert without == {"SC1.6", "MY.10"}, "which is about x; which is ours, of three models each"


def test_verdicts_md_says_what_is_judged():
    """The page fixes statistic, margin and nulls of every primary; the code must be what it says."""
    page = (Path(__file__).parents[1] / "docs" / "verdicts.md").read_text(encoding="utf-8")
    for paper in PAPERS[1:]:
        for spec in paper.experiment.specs:
            if spec.ways:
                way = spec.ways[0]
                words = way.statistic.replace("|", "\\|")
                row = f"| {spec.id} | {words} | {way.margin:.3g} | {'; '.join(name for name, _, _ in way.nulls)} |"
                assert row in page, row


def part(word, *ids):
    claims = [Claim(id, f"{id} says", "none", ()).as_json() for id in ids]
    head = {"word": word, "npmoe": "0", "mode": "default", "seeds": 5, "title": f"about {word}", "figures": []}
    return {**head, "environment": {}, "claims": claims}


def test_ledgers_of_papers_join_and_split():
    one, two = part("sc1", "SC1.3"), part("ga", "GA.1", "GA.4a")
    ledger = join([one, two], TIES)
    assert split(ledger) == [one, two]
    assert [tie["claims"] for tie in ledger["ties"]] == [["SC1.3", "GA.1"]]
    assert join([one], TIES)["ties"] == []


def test_a_second_paper_keeps_the_first_and_makes_a_front_page(tmp_path):
    run.write(tmp_path, part("ga", "GA.1"), {})
    assert not (tmp_path / "ga.html").exists()
    alone = (tmp_path / "index.html").read_text()
    run.write(tmp_path, part("sc1", "SC1.3"), {})
    found = json.loads((tmp_path / "results.json").read_text())
    assert [claim["id"] for claim in found["claims"]] == ["SC1.3", "GA.1"]
    front = (tmp_path / "index.html").read_text()
    assert front != alone
    for word, id in (("sc1", "SC1.3"), ("ga", "GA.1")):
        page = (tmp_path / f"{word}.html").read_text()
        assert f"{id} says" in page
        assert 'href="index.html"' in page
        assert f'href="{word}.html#' in front
    assert "Questions that several papers speak to" in front
    again = part("ga", "GA.1", "GA.4a")
    run.write(tmp_path, again, {})
    found = json.loads((tmp_path / "results.json").read_text())
    assert [claim["id"] for claim in found["claims"]] == ["SC1.3", "GA.1", "GA.4a"]
