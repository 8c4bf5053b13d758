"""Words for people: verdicts, firmness, sentences and findings, made from numbers and true of them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.ledger import COUNT, FEWEST_SEEDS, RATIO, VERDICTS, Claim, Null, Reading, firmness, interval, judge, plain
from npmoe.ledger.firmness import seeds_for
from npmoe.ledger.told import Amount
from npmoe.reproduce import __main__ as command
from npmoe.reproduce import run
from npmoe.reproduce.findings import FINDINGS, findings
from npmoe.reproduce.markdown import findings_list, results_page
from npmoe.reproduce.papers import PAPERS

PAPER_OF = {id: paper for paper in PAPERS for id in paper.ids}


def claim_of(id, values, nulls=(), margin=RATIO, **more):
    """A claim with one reading, as ``results.json`` has it, told by its paper."""
    reading = Reading("r", "measure", "T", margin, tuple(values), tuple(nulls), True)
    return PAPER_OF[id].told(Claim(id, f"{id} says.", "about 3", (reading,), **more).as_json())


def nulls_of(id, value, seeds):
    """Every null of a claim's primary, with one value a seed."""
    spec = next(spec for spec in PAPER_OF[id].experiment.specs if spec.id == id)
    return [Null(name, kind, (value,) * seeds) for name, kind, _ in spec.ways[0].nulls]


# ---- words -----------------------------------------------------------------------------------------------------------


def test_every_verdict_of_the_rule_has_a_word_with_a_meaning():
    words = {plain.word(verdict) for verdict in VERDICTS} | {plain.word("so does the null", ["control"])}
    assert words == set(plain.MEANINGS)
    assert not {"so does the null", "undecided", "reversed"} & words


@pytest.mark.parametrize(
    ("kinds", "word"),
    [
        (["chance"], "matched by chance"),
        (["control"], "matched by the control"),
        (["control", "chance"], "matched by chance"),
    ],
)
def test_what_matched_a_claim_is_named(kinds, word):
    holding = [Null(f"null {i}", kind, (0.5,) * 5) for i, kind in enumerate(kinds)]
    told = claim_of("SC1.4", [0.5] * 5, [*holding, Null("nothing", "chance", (0.0,) * 5)])
    assert told["word"] == told["readings"][0]["word"] == word
    assert told["because"] == " and ".join(null.name for null in holding) + (
        " give as much" if kinds[1:] else " gives as much"
    )


def test_margins_are_said_as_what_they_are():
    assert plain.smallest_effect(RATIO) == "10 %"
    assert plain.smallest_effect(COUNT) == "1 component"
    assert plain.smallest_effect(0.3) == "0.3"


# ---- firmness --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), mean=st.floats(-0.4, 0.4), spread=st.floats(0.01, 0.3), count=st.integers(5, 9))
def test_a_verdict_stands_if_no_seed_alone_decides_it(seed, mean, spread, count):
    rng = np.random.default_rng(seed)
    values, null = rng.normal(mean, spread, count), rng.normal(0, spread, count)

    def reading(keep):
        nulls = (Null("n", "chance", tuple(null[keep])),)
        return Reading("r", "measure", "T", 0.1, tuple(values[keep]), nulls)

    every = np.arange(count)
    left = [plain.word(judge(reading(every[every != i]), FEWEST_SEEDS - 1)) for i in every]
    found = firmness(reading(every))
    assert found.without == {word: left.count(word) for word in left}
    assert found.stands == (set(left) == {plain.word(judge(reading(every)))})


def test_a_control_is_named_as_such_without_a_seed_too():
    """Five seeds: four are left, too few for a verdict of their own."""
    control = Null("wide", "control", (0.31, 0.3, 0.29, 0.3, 0.05))
    found = firmness(Reading("r", "measure", "T", 0.1, (0.3, 0.3, 0.31, 0.29, 0.3), (control,)))
    assert set(found.without) == {"inconclusive", "matched by the control"}


def test_under_five_seeds_nothing_is_firm():
    assert firmness(Reading("r", "measure", "T", 0.1, (0.3,) * 4)) is None


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(0.3, 2), spread=st.floats(0.05, 0.5))
def test_so_many_seeds_halve_the_interval_and_one_fewer_does_not(mean, spread):
    """Seeds made to have exactly this mean and spread."""
    shape = np.linspace(-1, 1, 5)
    values = mean + spread * shape / shape.std(ddof=1)
    need = seeds_for(values, 0.1)

    def width(seeds):
        made = np.linspace(-1, 1, seeds)
        low, high = interval(mean + spread * made / made.std(ddof=1))[1:]
        return high - low

    assert width(need) <= (mean - 0.1) / 2
    assert need == 2 or width(need - 1) > (mean - 0.1) / 2


def test_no_fewer_seeds_than_a_verdict_needs_are_enough():
    found = claim_of("SC1.4", [0.5, 0.5, 0.5, 0.5, 0.5000001], nulls_of("SC1.4", 0.0, 5))
    assert found["firmness"]["seeds"] == 5
    assert "5 seeds are enough" in plain.firm(found)


def test_no_number_of_seeds_settles_what_is_undefined():
    found = claim_of("SC1.4", [0.5, 0.5, math.nan, 0.5, 0.5], nulls_of("SC1.4", 0.0, 5))
    assert "100,000" not in plain.firm(found)
    assert "undefined in a seed" in plain.firm(found)


@pytest.mark.parametrize("id", [id for id, paper in PAPER_OF.items() if id in paper.tellings])
def test_a_sign_is_told_in_a_word(id):
    """No sentence has a negative count, share or ratio of its own, whichever sign T and T0 have."""
    if id in ("MY.1c", "MY.1d", "MY.5", "MY.5b", "MY.6", "MY.10"):
        return  # correlations and differences of overlaps have signs
    for T, T0 in ((0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5)):
        spec = next(s for s in PAPER_OF[id].experiment.specs if s.id == id)
        if spec.ways:
            sentence = claim_of(id, [T] * 5, nulls_of(id, T0, 5))["sentence"]
            assert not re.search(r"(?<![\w)])-\d", sentence), sentence


def test_seeds_are_none_where_the_mean_is_on_the_margin_or_undefined():
    assert seeds_for([0.0, 0.2], 0.1) is None
    assert seeds_for([math.nan, 0.2], 0.1) is None


def test_a_borderline_verdict_says_so_with_both_words():
    told = claim_of("SC1.4", [0.12, 0.3, 0.3, 0.31, 0.29, 0.03])
    assert "Borderline" in plain.firm(told)
    assert "reproduced" in plain.firm(told)
    assert "stands whichever seed is left out" in plain.firm(claim_of("SC1.4", [0.3, 0.31, 0.29, 0.3, 0.3]))


# ---- sentences -------------------------------------------------------------------------------------------------------

WITH_T = [spec.id for paper in PAPERS for spec in paper.experiment.specs if spec.ways]


@pytest.mark.parametrize("id", WITH_T)
@pytest.mark.parametrize("T", [-0.5, -0.02, 0.0, 0.02, 0.6])
def test_every_claim_has_a_sentence_whatever_came_out(id, T):
    values = T + 0.01 * np.arange(-2, 3)
    told = claim_of(id, values, nulls_of(id, 0.1, 5))
    assert re.fullmatch(r"[A-Z].*\.", told["sentence"])
    assert not re.search(r"nan|None|\{|  | -0 | 0 times ", told["sentence"]), told["sentence"]
    assert "95 % CI" in told["sentence"]
    of = PAPER_OF[id].tellings[id].of
    assert told["effect"]["values"] == pytest.approx([of(v) for v in values])
    low, high = sorted((of(interval(values).low), of(interval(values).high)))
    assert (told["effect"]["low"], told["effect"]["high"]) == pytest.approx((low, high))
    assert {null["name"] for null in told["effect"]["nulls"]} == {null.name for null in nulls_of(id, 0.1, 5)}


@pytest.mark.parametrize(
    ("id", "T", "null", "said"),
    [
        ("SC1.1", 0.2, 0.0, "norm grows by 22 %"),
        ("SC1.4", -0.385, 0.0, "leading singular value is 1.47 times"),
        ("SC1.4", 0.5, 0.0, "leading singular value is 0.607 times (95 % CI 0.599 to 0.614) the dense"),
        ("SC1.5", -0.02, 0.0, "hold 2.0 percentage points (95 % CI 1.0 to 3.0) less of the energy"),
        ("SC1.5", 0.02, 0.0, "hold 2.0 percentage points (95 % CI 1.0 to 3.0) more of the energy"),
        ("SC1.6", -46.6, -46.4, "need 52.600 components (95 % CI 52.588 to 52.612) for 90 %"),
        ("SC1.8", 6.0, 5.9, "need 6.000 (95 % CI 5.988 to 6.012) fewer components than soft"),
        ("SC1.8", -1.5, 5.9, "more components than soft experts"),
        ("SC1.10a", 0.1, 0.0, "shrinks: it is divided by 1.105 (95 % CI 1.092 to 1.119)"),
        ("SC1.10a", -0.1, 0.0, "grows: it is multiplied by 1.105 (95 % CI 1.092 to 1.119)"),
        ("GA.2a", -0.04, 0.0, "more than when the same gates"),
        ("GA.2a", 0.3, 0.0, "less than when the same gates"),
        ("MY.2", -0.1, 0.0, "Training the router changes the information between expert and topic more than clustered "
         "inputs do, by 20 percentage points (95 % CI 18 to 22)"),
        ("MY.2", 0.1, 0.0, "Clustered inputs change the information between expert and topic more than training the"),
        ("SC2.1", -0.5, 0.0, "leading singular value 1.65 times (95 % CI 1.63 to 1.67) the dense model's, mean over "
         "blocks; before training 1.00 times."),
        ("SC2.2", 1.0, 0.7, "aligned 2.72 times (95 % CI 2.68 to 2.75) as strongly as those of top-2 experts; with "
         "shuffled gates 2.01 times"),
        ("SC2.3", -0.5, 0.0, "need 0.607 times (95 % CI 0.599 to 0.614) as many components as the dense model's"),
        ("SC2.4", -1.5, 0.5, "need 1.500 (95 % CI 1.488 to 1.512) more components than soft experts for 90 % of the "
         "variance; with shuffled gates 0.500 fewer."),
        ("SC2.6", 0.7, 0.0, "derivatives are 2.01 times (95 % CI 1.99 to 2.04) as large as the top-2 experts'; before"),
        ("MY.1d", 0.5, 0.6, "a Mantel correlation of 0.500 (95 % CI 0.488 to 0.512); with a random router 0.600"),
        ("MY.3b", 0.788, 0.1, "0.455 times (95 % CI 0.449 to 0.460) as strongly as without one; to random directions "
         "of the same length 0.905 times as strongly."),
        ("MY.4b", 0.3, -0.1, "leaves topics 30.0 % (95 % CI 28.8 to 31.2) less to say of the choice of experts than "
         "all topics in each batch; without a balance loss 10.0 % more."),
        ("MY.4b", -0.3, 0.1, "30.0 % (95 % CI 28.8 to 31.2) more to say of the choice"),
        ("MY.5", 0.02, 0.04, "share more experts than answers of one author to different questions: their Jaccard "
         "overlap differs by 0.020 (95 % CI 0.008 to 0.032)"),
        ("MY.5", 0.08, 0.04, "share fewer experts than"),
        ("MY.5b", 0.3, 0.0, "share more experts than answers of different authors: their Jaccard overlap differs by "
         "0.300 (95 % CI 0.288 to 0.312); with authors permuted by 0.000"),
        ("MY.5b", -0.3, 0.0, "share fewer experts than answers of different authors"),
        ("MY.6", -0.1, 0.2, "a correlation of 0.300 (95 % CI 0.288 to 0.312); with continuations reassigned 0.000"),
        ("MY.7", -0.1, 0.1, "share 0.100 (95 % CI 0.088 to 0.112) less of their experts (Jaccard of top-80 % sets) in "
         "the last block than in the first; two halves of one sequence share 0.100 more"),
        ("MY.8", 0.1, -0.1, "share 10.0 percentage points (95 % CI 8.8 to 11.2) more of their experts in the first "
         "block than in the last; different tokens 10.0 percentage points fewer"),
        ("MY.9", 0.1, -0.1, "rises by 10.0 percentage points (95 % CI 8.8 to 11.2) more than on prompts"),
        ("MY.11", -0.1, 0.1, "the token explains 10.0 percentage points (95 % CI 8.8 to 11.2) less of the choice of "
         "experts than the topic of its document does; before training 10.0 percentage points more"),
        ("SC1.1", -0.1, 0.2, "shrinks by 9.5 % (95 % CI 8.4 to 10.6); that of a dense model as wide as all experts"),
        ("SC1.2", 0.5, -0.1, "is 1.65 times (95 % CI 1.63 to 1.67) that of the experts' norm, and 0.90 times that of"),
        ("SC1.8", 6.0, -0.5, "shuffled gates 0.500 more. Soft experts on as few effective tokens need 0.500 more."),
        ("GA.4b", 0.1, -0.1, "10.5 % (95 % CI 9.2 to 11.9) farther apart than those of soft experts; with shuffled "
         "gates they are 9.5 % less far apart"),
        ("MY.3", 0.788, 0.1, "0.455 times (95 % CI 0.449 to 0.460) as strongly as without one; to random directions"),
        ("MY.4", 0.05, -0.02, "3.8 to 6.2) less information, as a share of the topics' entropy, than with batches of "
         "all topics; without a balance loss 2.0 percentage points more."),
        ("MY.10", -0.47, 0.0, "differs by 0.54"),
    ],
)  # fmt: skip
def test_what_is_said_is_what_was_measured(id, T, null, said):
    told = claim_of(id, T + 0.02 * np.array([-0.5, -0.5, 0, 0.5, 0.5]), nulls_of(id, null, 5))
    if id in ("SC1.5",):
        told = claim_of(id, T + 0.008 * np.array([-1, -1, 0, 1, 1]), nulls_of(id, null, 5))
    assert said in told["sentence"], told["sentence"]


def test_few_seeds_are_told_without_an_interval_and_a_quick_run_without_a_number():
    told = claim_of("SC1.4", [-0.385, -0.38], nulls_of("SC1.4", 0.0, 2))
    assert told["sentence"].endswith("(2 seeds so far; a verdict needs 5.)")
    assert "CI" not in told["sentence"]
    assert told["word"] == "no verdict yet"
    mute = claim_of("SC1.4", [-0.385, -0.38], nulls_of("SC1.4", 0.0, 2), mute=True)
    assert not re.search(r"\d", mute["sentence"])
    assert mute["effect"] is None


def test_a_claim_that_was_not_tested_says_why():
    (spec,) = (spec for spec in PAPER_OF["GA.5"].experiment.specs if spec.id == "GA.5")
    told = PAPER_OF["GA.5"].told(Claim(spec.id, spec.says, spec.paper_value, (), note=spec.note).as_json())
    assert told["sentence"].startswith("Not tested: it needs pretrained checkpoints")


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Amount(1.4683, 1.402, 1.531), "1.47 (95 % CI 1.40 to 1.53)"),
        (Amount(52.6, 51.9, 53.3), "52.6 (95 % CI 51.9 to 53.3)"),
        (Amount(-0.001, -0.03, 0.03), "0.00 (95 % CI -0.03 to 0.03)"),
        (Amount(1234.0, 1100.0, 1400.0), "1234 (95 % CI 1100 to 1400)"),
        (Amount(0.5), "0.500"),
        (Amount(0.0), "0.00"),
        (Amount(math.nan), "an undefined number"),
    ],
)
def test_amounts_have_the_decimals_that_their_interval_warrants(amount, text):
    assert amount.text() == text


# ---- findings --------------------------------------------------------------------------------------------------------


def test_a_finding_whose_verdict_changes_changes_its_words():
    for finding in FINDINGS:
        exact = not next(s for s in PAPER_OF[finding.id].experiment.specs if s.id == finding.id).ways
        words = {"proved", "refuted"} if exact else set(plain.MEANINGS) - {"proved", "refuted"}
        assert words <= set(finding.titles), finding.id
        settled = [title for word, title in finding.titles.items() if word in words]
        assert len(set(settled)) == len(settled), finding.id


@pytest.mark.parametrize("T", [-0.4, 0.0, 0.4])
def test_findings_are_made_from_the_ledger(T):
    told = claim_of("SC1.4", T + 0.001 * np.arange(5), nulls_of("SC1.4", 0.0, 5))
    (found,) = findings([told])
    assert found == {"id": "SC1.4", "title": dict(FINDINGS)["SC1.4"][told["word"]], "says": told["sentence"]}


# ---- what the record says --------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recorded():
    return run.recorded([paper.word for paper in PAPERS])


def test_docs_and_readme_say_what_is_recorded(recorded):
    """docs/results.md is `--recorded --markdown`, and README's findings are the front page's."""
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == results_page(recorded) + "\n"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- findings -->\n{findings_list(recorded)}\n<!-- /findings -->" in readme
    assert len(readme.split()) <= 1100, "a README is read in five minutes"


def test_the_record_is_whole_and_small(recorded):
    assert [results["word"] for results, _ in recorded] == [paper.word for paper in PAPERS]
    for results, drawn in recorded:
        assert results["mode"] == "full"
        assert results["seeds"] >= 8
        assert results["made"]["seconds"] > 60
        assert not results["made"]["commit"].endswith("+")
        assert set(results["figures"]) == set(drawn)
    assert run.RECORDED.stat().st_size < 1_500_000


def test_recorded_pages_need_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "make", None)
    assert command.main(["--recorded", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "nothing was computed" in told.err
    assert "SC1.4  " in told.out
    assert {path.name for path in tmp_path.glob("*.html")} == {
        "index.html",
        *(f"{paper.word}.html" for paper in PAPERS),
    }
    assert all(path.stat().st_size < 1_000_000 for path in tmp_path.glob("*.html"))
    ledger = json.loads((tmp_path / "results.json").read_text())
    assert [finding["id"] for finding in ledger["findings"]] == [finding.id for finding in FINDINGS]
    # results of one's own are not replaced by recorded ones
    for head in ledger["papers"]:
        head["recorded"] = False
    (tmp_path / "results.json").write_text(json.dumps(ledger))
    assert command.main(["--recorded", "--output", str(tmp_path)]) == 2
    assert "expected a folder without results of your own" in capsys.readouterr().err
