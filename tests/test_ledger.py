"""The rule of docs/verdicts.md on made-up seeds: every verdict, every boundary, and what is written and told of it."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npmoe.ledger import (
    FEWEST_SEEDS,
    VERDICTS,
    Beside,
    Claim,
    Null,
    Reading,
    Size,
    compared,
    differences,
    holds,
    interval,
    judge,
    opposite,
    read_results,
    rule,
    why,
)

M = 0.125  # a margin that is exact in binary, for the boundaries
EXAMPLES = settings(max_examples=150, deadline=None)


def between(low, high, seeds=5):
    """Made-up seeds whose 95 % interval is [low, high]."""
    shape = np.linspace(-1, 1, seeds)
    half = scipy.stats.t.ppf(0.975, seeds - 1) * shape.std(ddof=1) / math.sqrt(seeds)
    return tuple((low + high) / 2 + (high - low) / 2 / half * shape)


def reading(values, *nulls, margin=M, name="primary", primary=True, kind="measure"):
    return Reading(name, kind, "log of a ratio", margin, tuple(values), nulls, primary)


def null(values, name="shuffled", kind="chance"):
    return Null(name, kind, tuple(values))


def claim(*readings, **more):
    return Claim("SC0.1", "MoE experts are so", "about 1.6", tuple(readings), **more)


UP, DOWN, NOWHERE, WIDE = between(0.5, 0.7), between(-0.7, -0.5), between(-0.05, 0.05), between(-0.3, 0.4)
SAME_NOISE = tuple(v - 0.01 for v in UP)  # T0 that holds, and that T exceeds by less than the margin


# Intervals


@EXAMPLES
@given(st.lists(st.integers(-(10**6), 10**6).map(lambda v: v / 64), min_size=2, max_size=12))
def test_the_interval_is_students(values):
    found = interval(values)
    scale = max(map(abs, values))
    if len(set(values)) == 1:  # where SciPy's is undefined
        assert found == pytest.approx((values[0],) * 3, rel=1e-12)
        return
    expected = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert found == pytest.approx((np.mean(values), *expected), rel=1e-9, abs=1e-12 * scale)


def test_the_made_up_seeds_have_the_intervals_that_the_tests_below_mean():
    for low, high in [(0.5, 0.7), (-0.3, 0.4)]:
        for seeds in (5, 8):
            assert interval(between(low, high, seeds))[1:] == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, np.nan, 2.0), (1.0, 2.0, np.inf), (-np.inf, np.inf)])
def test_where_a_seed_is_undefined_or_there_are_under_two_there_is_no_interval(values):
    mean, low, high = interval(values)
    assert math.isnan(low)
    assert math.isnan(high)
    assert mean == 1 if values == (1.0,) else math.isnan(mean)


# The rule

CHANCE, CONTROL, NOTHING = null(UP), null(UP, "wide dense", "control"), null(NOWHERE)

TABLE = {
    "holds, and there is no null": (reading(UP), "reproduced"),
    "holds, beyond a null": (reading(UP, NOTHING), "reproduced"),
    "holds, beyond two nulls of both kinds": (reading(UP, NOTHING, null(DOWN, "w", "control")), "reproduced"),
    "holds, beyond a null that holds too": (reading(between(2, 2.1), CHANCE), "reproduced"),
    "holds, with eight seeds": (reading(between(0.5, 0.7, 8), null(between(0, 0.1, 8))), "reproduced"),
    "so does chance": (reading(UP, null(SAME_NOISE)), "so does the null"),
    "so does chance, by more": (reading(UP, null(between(2, 2.1))), "so does the null"),
    "so does a control": (reading(UP, CONTROL), "so does the null"),
    "so does one null of two": (reading(UP, NOTHING, CONTROL), "so does the null"),
    "reversed": (reading(DOWN), "reversed"),
    "reversed, whatever the null": (reading(DOWN, null(DOWN), CHANCE), "reversed"),
    "absent": (reading(NOWHERE), "not reproduced"),
    "absent, whatever the null": (reading(NOWHERE, null(DOWN), CHANCE), "not reproduced"),
    "crosses the upper margin": (reading(between(0.0, 0.3)), "undecided"),
    "crosses the lower margin": (reading(between(-0.3, 0.0)), "undecided"),
    "crosses both": (reading(WIDE), "undecided"),
    "crosses, though beyond the null": (reading(between(0.0, 0.3), null(DOWN)), "undecided"),
    "holds, not beyond a null that does not hold": (reading(UP, null(between(-0.4, 1.5))), "undecided"),
    "holds, not beyond a null that is a little lower": (reading(between(0.2, 0.22), null((M,) * 5)), "undecided"),
    "holds, and the null is undefined": (reading(UP, null((np.nan,) * 5)), "undecided"),
    "holds, and the null is undefined in one seed": (reading(UP, null((*NOWHERE[:4], np.nan))), "undecided"),
    "undefined in one seed": (reading((*UP[:4], np.nan), NOTHING), "undecided"),
    "infinite in one seed": (reading((*UP[:4], np.inf), NOTHING), "undecided"),
    "four seeds": (reading(between(0.5, 0.7, 4)), "no verdict"),
    "one seed": (reading((0.5,)), "no verdict"),
    "no seed": (reading(()), "no verdict"),
}


@pytest.mark.parametrize(("given", "verdict"), TABLE.values(), ids=TABLE)
def test_verdicts(given, verdict):
    assert judge(given) == verdict
    assert claim(given).verdict == verdict
    assert verdict in VERDICTS


def test_the_table_has_every_verdict_on_a_reading():
    assert {verdict for _, verdict in TABLE.values()} == set(VERDICTS) - {"proved", "refuted", "not tested"}


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (M, "not reproduced"),  # low = high = m: not above it, and within [-m, m]
        (np.nextafter(M, 1), "reproduced"),
        (np.nextafter(M, 0), "not reproduced"),
        (-M, "not reproduced"),
        (np.nextafter(-M, -1), "reversed"),
        (0.0, "not reproduced"),
    ],
)
def test_boundaries_of_a_statistic_that_is_the_same_in_all_seeds(value, verdict):
    assert judge(reading((value,) * 8)) == verdict


@pytest.mark.parametrize(
    ("below", "verdict"),
    [(M, "so does the null"), (M - 2**-20, "so does the null"), (M + 2**-20, "reproduced")],
)
def test_beyond_a_null_is_by_more_than_the_margin(below, verdict):
    assert judge(reading((4.0,) * 8, null((4.0 - below,) * 8))) == verdict


def test_the_excess_is_paired_by_seed():
    drift = np.array([0.0, 10, 20, 30, 40])  # seeds differ a lot, T and T0 of a seed do not
    low = reading(drift + 50, null(drift + 49))
    assert interval(low.nulls[0].values).high > interval(low.values).low
    assert judge(low) == "reproduced"
    apart = reading(drift + 50, null(drift[::-1] + 49))
    assert judge(apart) == "so does the null"


def rule_as_written(T, margin, nulls):
    """Rules 4 to 6 once more, each sentence in its own words."""

    def bounds(values):
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        return np.mean(values) - half, np.mean(values) + half

    def is_up(values):
        return bounds(values)[0] > margin

    low, high = bounds(T)
    beyond = [is_up(np.subtract(T, T0)) for T0 in nulls]
    if is_up(T) and all(beyond):
        return "reproduced"
    if is_up(T) and any(is_up(T0) and not b for T0, b in zip(nulls, beyond, strict=True)):
        return "so does the null"
    if high < -margin:
        return "reversed"
    if -margin <= low and high <= margin:
        return "not reproduced"
    return "undecided"


@st.composite
def seeds(draw):
    """T, up to three nulls, and a margin; centres and scatters chosen so that every verdict comes up."""
    count = draw(st.integers(5, 9))
    margin = draw(st.sampled_from([0.02, 0.1, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shared = rng.standard_normal(count)

    def column():
        centre = draw(st.sampled_from([-4, -1, -0.5, 0, 0.5, 1, 2, 4]))
        return margin * (centre + draw(st.sampled_from([0, 0.1, 1])) * (shared + 0.3 * rng.standard_normal(count)))

    T, nulls = column(), [column() for _ in range(draw(st.integers(0, 3)))]
    # not where the last bit of a sum decides; the boundaries have tests of their own
    for values in (T, *nulls, *(T - T0 for T0 in nulls)):
        _, low, high = interval(values)
        assume(all(abs(abs(bound) - margin) > 1e-9 for bound in (low, high)))
    return T, nulls, margin


def made(T, nulls, margin):
    return reading(T, *(null(T0, f"null {i}") for i, T0 in enumerate(nulls)), margin=margin)


@EXAMPLES
@given(seeds())
def test_the_rule_is_the_one_that_is_written(drawn):
    T, nulls, margin = drawn
    assert judge(made(T, nulls, margin)) == rule_as_written(T, margin, nulls)


@EXAMPLES
@given(seeds(), st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_of_nulls_does_not_matter(drawn, random):
    T, nulls, margin = drawn
    order = list(range(len(T)))
    random.shuffle(order)
    moved = [T0[order] for T0 in nulls]
    random.shuffle(moved)
    assert judge(made(T[order], moved, margin)) == judge(made(T, nulls, margin))


@EXAMPLES
@given(seeds())
def test_the_rule_is_the_same_upside_down(drawn):
    """Without nulls reproduced and reversed change places, and nothing else does; nulls only ever matter above."""
    T, nulls, margin = drawn
    turned = {"reproduced": "reversed", "reversed": "reproduced"}
    plain = judge(made(T, [], margin))
    assert judge(made(-T, [], margin)) == turned.get(plain, plain)
    assert opposite(T, margin) == holds(-T, margin)
    with_nulls = judge(made(T, nulls, margin))
    if plain == "reproduced":
        assert with_nulls in ("reproduced", "so does the null", "undecided")
    else:
        assert with_nulls == plain


@EXAMPLES
@given(seeds(), st.sampled_from([2.0**-30, 2.0**20]))
def test_only_the_ratio_to_the_margin_matters(drawn, scale):
    T, nulls, margin = drawn
    assert judge(made(T * scale, [T0 * scale for T0 in nulls], margin * scale)) == judge(made(T, nulls, margin))


# Claims

OTHER = {"primary": False, "kind": "train"}


def test_the_verdict_is_the_primarys_never_the_best():
    best = reading(UP, name="best", **OTHER)
    assert claim(best, reading(NOWHERE)).verdict == "not reproduced"
    assert claim(reading(NOWHERE), best).primary.name == "primary"
    assert claim(reading(NOWHERE), best).agreement == {"holds": 1, "reversed": 0, "of": 2}


@pytest.mark.parametrize("primaries", [0, 2, 3])
def test_there_is_exactly_one_primary_reading(primaries):
    with pytest.raises(ValueError, match=r"exactly one primary reading of SC0\.1"):
        claim(*(reading(UP, name=f"r{i}", primary=i < primaries) for i in range(3)))


def test_a_claim_without_readings_is_not_tested():
    empty = claim()
    assert (empty.verdict, empty.headline, empty.primary) == ("not tested", "not tested", None)
    told = empty.as_json()
    assert (told["verdict"], told["rule"], told["readings"]) == ("not tested", "Nothing was measured.", [])
    assert "not tested" in why(told)


@pytest.mark.parametrize(
    ("readings", "headline"),
    [
        ([reading(UP)], "reproduced"),
        ([reading(UP), reading(DOWN, name="b", **OTHER)], "reproduced; depends on the reading"),
        ([reading(DOWN), reading(UP, name="b", **OTHER)], "reversed; depends on the reading"),
        ([reading(NOWHERE), reading(UP, name="b", **OTHER)], "not reproduced"),
        (
            [reading(WIDE), reading(UP, name="b", **OTHER), reading(DOWN, name="c", **OTHER)],
            "undecided; depends on the reading",
        ),
        ([reading(UP, CHANCE)], "so does the null (chance: shuffled)"),
        ([reading(UP, CONTROL, NOTHING)], "so does the null (control: wide dense)"),
        ([reading(UP, CHANCE, CONTROL)], "so does the null (chance: shuffled, control: wide dense)"),
        # T holds although the null does too: that is still a reading in which T is not opposite
        (
            [reading(UP, CHANCE), reading(DOWN, name="b", **OTHER)],
            "so does the null (chance: shuffled); depends on the reading",
        ),
        ([reading(UP), reading(DOWN[:4], name="four seeds", **OTHER)], "reproduced"),
    ],
)
def test_headlines(readings, headline):
    assert claim(*readings).headline == headline


def test_agreement_counts_readings_that_hold_and_that_are_opposite():
    readings = [reading(UP), *(reading(v, name=str(i), **OTHER) for i, v in enumerate([UP, DOWN, WIDE, NOWHERE, UP]))]
    assert claim(*readings).agreement == {"holds": 3, "reversed": 1, "of": 6}


def test_a_quick_runs_claims_are_mute():
    quick = claim(reading(UP), reading(DOWN, name="b", **OTHER), size=Size((1.0,), (1.0, 1.0), ""), mute=True)
    told = quick.as_json()
    assert (quick.verdict, quick.headline) == ("no verdict", "no verdict")
    assert quick.agreement == {"holds": 0, "reversed": 0, "of": 2}
    assert {r["verdict"] for r in told["readings"]} == {"no verdict"}
    assert told["size"]["judgement"] == "not given"
    assert "mean nothing" in told["rule"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reading(UP, kind="other"), "reading 'primary' of kind measure or train; got 'other'"),
        (lambda: reading(UP, margin=0.0), "margin above 0 for reading 'primary'; got 0.0"),
        (lambda: reading(UP, margin=math.nan), "margin above 0"),
        (lambda: reading(UP, null(UP[:4])), "null 'shuffled' of reading 'primary' to have 5 values, one a seed; got 4"),
        (lambda: reading(UP, null(UP, kind="other")), "null 'shuffled' of kind chance or control; got 'other'"),
        (lambda: claim(reading(UP), reading(UP, primary=False)), "with different names; got primary twice"),
    ],
)
def test_what_is_no_reading_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The size, judged apart

INSIDE, NEAR, OUTSIDE = "inside our seeds' range", "within a factor 1.5", "outside"


@pytest.mark.parametrize(
    ("values", "paper", "judgement"),
    [
        ((1, 2, 3), (2, 2), INSIDE),
        ((1, 2, 3), (3, 3), INSIDE),  # the ends belong to it
        ((1, 2, 3), (1, 1), INSIDE),
        ((1, 2, 3), (0.5, 10), INSIDE),  # a range of the paper's that ours lies in
        ((1, 2, 3), (2.5, 10), INSIDE),  # or overlaps with
        ((1, 2), (3, 3), NEAR),  # 3 / 2 = 1.5, no more
        ((1, 2), (3.01, 3.01), OUTSIDE),
        ((3, 5), (2, 2), NEAR),
        ((3, 5), (1.99, 1.99), OUTSIDE),
        ((3, 5), (0.1, 2), NEAR),  # the nearer end counts
        ((3, 5), (7, 50), NEAR),
        ((-3, -2), (-2.5, -2.5), INSIDE),
        ((-3, -2), (-4, -4), NEAR),
        ((-3, -2), (-1.4, -1.4), NEAR),
        ((-3, -2), (-1.3, -1.3), OUTSIDE),
        ((-3, -2), (-5, -5), OUTSIDE),
        ((-0.1, -0.01), (0.01, 0.01), OUTSIDE),  # the other sign is never near
        ((0.01, 0.1), (-0.01, -0.01), OUTSIDE),
        ((0.01, 0.02), (0, 0), OUTSIDE),
        ((0, 0), (0.1, 0.1), OUTSIDE),
        ((-0.1, 0.1), (0, 0), INSIDE),
        ((2,), (2, 2), INSIDE),
        ((math.nan, 1, 2), (1, 1), "not given"),
        ((1, math.nan, 2), (1, 1), "not given"),
        ((1, 2, math.inf), (1, 1), "not given"),
        ((30, 40), (20, math.inf), "within the paper's bound"),
        ((10, 19), (20, math.inf), NEAR),
        ((1, 2), (50, math.inf), OUTSIDE),
    ],
)
def test_size(values, paper, judgement):
    size = Size(tuple(map(float, values)), tuple(map(float, paper)), "times")
    assert size.judgement() == judgement
    told = claim(reading(UP), size=size).as_json()["size"]
    assert told["judgement"] == judgement
    assert ("nan" in told["measured"] or "inf" in told["measured"]) is False


def test_a_direction_can_be_reproduced_with_its_size_outside():
    found = claim(reading(UP, NOTHING), size=Size((9.0, 10.0), (1.5, 1.7), "times"))
    assert (found.verdict, found.as_json()["size"]["judgement"]) == ("reproduced", OUTSIDE)
    assert found.as_json()["size"]["measured"] == "9 to 10 times"


# What is written


def every_claim():
    """Claims with all that can stand in one, numbers that are not finite included."""
    bad = null((math.inf, -math.inf, math.nan, 0.0, 1.0), "undefined")
    readings = [replace(r, name=name, primary=False) for name, (r, _) in TABLE.items()]
    readings += [reading(UP, bad, name="bad null", primary=False), reading(WIDE, NOTHING, CONTROL)]
    beside = (Beside("sigma", "for comparison", (1.0, math.nan)),)
    whole = claim(
        *readings, size=Size(UP, (1.5, 1.7), "times"), left_out=("5000 steps",), beside=beside, note="Read on."
    )
    return [whole, claim(), *(claim(r) for r, _ in TABLE.values())]


def test_results_go_through_json_without_nan(tmp_path):
    results = {"schema": 1, "claims": [c.as_json() for c in every_claim()]}
    text = json.dumps(results, allow_nan=False)
    assert json.loads(text) == results
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    assert read_results(path) == results
    for told in results["claims"]:
        assert why(told)


def test_results_have_the_fields_of_the_design():
    told = every_claim()[0].as_json()
    assert set(told) >= {"id", "says", "paper_value", "verdict", "size", "agreement", "headline", "readings"}
    assert set(told["agreement"]) == {"holds", "reversed", "of"}
    for r in told["readings"]:
        fields = {"name", "primary", "kind", "statistic", "margin", "values", "low", "high", "nulls", "verdict"}
        assert set(r) >= fields
        for n in r["nulls"]:
            assert set(n) >= {"name", "kind", "values", "low", "high", "excess_low", "excess_high"}


def test_results_carry_the_numbers_that_the_verdict_came_from():
    made = reading(UP, null(SAME_NOISE))
    (told,) = claim(made).as_json()["readings"]
    assert told["values"] == list(UP)
    assert (told["mean"], told["low"], told["high"]) == interval(UP)
    assert (told["nulls"][0]["low"], told["nulls"][0]["high"]) == interval(SAME_NOISE)[1:]
    assert (told["nulls"][0]["excess_low"], told["nulls"][0]["excess_high"]) == pytest.approx((0.01, 0.01))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "got a file that does not parse"),
        ("[]", "got 'list'"),
        ('{"schema": 2}', "expected results of schema 1 in .*results.json; got 2"),
        ("{}", "got None"),
    ],
)
def test_results_that_are_none_name_the_file(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_differences_name_each_verdict_that_changed():
    def ledger(**verdicts):
        return {"claims": [{"id": name, "verdict": verdict} for name, verdict in verdicts.items()]}

    recorded = ledger(A="reproduced", B="reversed", C="undecided")
    assert differences(recorded, recorded) == []
    assert differences(ledger(B="reversed"), recorded) == []  # a part of the claims was run
    assert differences(ledger(A="reversed", D="undecided"), recorded) == [
        ("A", "reproduced", "contradicted", False),
        ("D", "not recorded", "inconclusive", False),
    ]


def test_a_control_in_the_place_of_chance_is_a_difference():
    """Both are "so does the null" in the rule's words."""

    def told(kind):
        return {"claims": [claim(reading(UP, null(SAME_NOISE, "n", kind))).as_json()]}

    assert differences(told("chance"), told("chance")) == []
    ((_, recorded, now, _),) = differences(told("control"), told("chance"))
    assert (recorded, now) == ("matched by chance", "matched by the control")


def test_more_seeds_than_were_recorded_are_held_against_all_of_those():
    """The word and the firmness of what was recorded are not lost when a run has a seed more."""

    def told(values, noise):
        return {"claims": [claim(reading(values, null(noise, "n", "control"))).as_json()]}

    more, noise = (*UP, UP[-1]), (*SAME_NOISE, SAME_NOISE[-1])
    assert differences(told(more, noise), told(UP, SAME_NOISE)) == []


def test_without_a_verdict_nothing_is_compared():
    def exact(verdict):
        return {"id": "A", "verdict": verdict, "readings": [], "statements": [{"name": "s"}]}

    assert differences({"claims": [exact("no verdict")]}, {"claims": [exact("proved")]}) == []
    assert not compared(exact("no verdict"), exact("proved"))
    assert compared(exact("proved"), exact("proved"))
    ((id, *_),) = differences({"claims": [exact("refuted")]}, {"claims": [exact("proved")]})
    assert id == "A"


# What is told

WORDS = {
    "reproduced": ["T holds.", "T exceeds it. Verdict: reproduced."],
    "so does the null": ["T holds.", "which holds too", "T does not exceed it. Verdict: matched by chance."],
    "reversed": ["below minus the margin: contradicted."],
    "not reproduced": ["lies within the margins: no effect."],
    "undecided": ["crosses a margin: inconclusive."],
    "no verdict": ["A verdict needs 5 seeds; here are 4."],
}
TOLD = {
    "reproduced": reading(UP, NOTHING),
    "so does the null": reading(UP, null(SAME_NOISE)),
    "reversed": reading(DOWN, NOTHING),
    "not reproduced": reading(NOWHERE, NOTHING),
    "undecided": reading(WIDE, NOTHING),
    "no verdict": reading(UP[:4], null(UP[:4])),
}


@pytest.mark.parametrize("verdict", TOLD)
def test_the_rule_is_told_in_words(verdict):
    text = rule(TOLD[verdict])
    for words in WORDS[verdict]:
        assert words in text
    for other, phrases in WORDS.items():
        if other != verdict:
            assert phrases[-1] not in text


def test_the_rule_names_each_null_with_its_numbers():
    text = rule(reading(UP, null(between(-0.4, 1.5), "same n_eff"), null(between(-0.31, -0.21), "wide", "control")))
    assert "T over 5 seeds lies in [0.5, 0.7], and the margin is 0.125 (0.125)." in text
    assert "The null model 'same n_eff' has T0 in [-0.4, 1.5]. The excess T - T0 lies in [" in text
    assert "The control 'wide' has T0 in [-0.31, -0.21]. The excess T - T0 lies in [0.81, 0.91]: T exceeds" in text
    assert text.endswith("Verdict: inconclusive.")
    assert "seeds T is not defined, so the claim is inconclusive" in rule(reading((*UP[:4], math.nan)))


def test_why_prints_all_that_the_verdict_rests_on():
    others = [reading(DOWN, name="mean of the SVDs", primary=False), reading(WIDE, name="Xavier", **OTHER)]
    made = claim(
        *others,
        reading(UP, null(between(-0.2, 0.1), "same n_eff"), null(DOWN, "wide dense", "control")),
        size=Size((1.5, 1.75), (1.6, 1.6), "times"),
        left_out=("5000 steps", "He"),
        beside=(Beside("ambiguity", "SC2.5", (0.25, 0.25)),),
        note="Read on.",
    )
    text = why(made.as_json())
    for part in [
        "SC0.1: MoE experts are so",
        "the paper's number: about 1.6",
        "verdict: reproduced",
        "size: 1.5 to 1.75 times (inside our seeds' range)",
        "T: log of a ratio; smallest effect of interest 0.125",
        f"rule: {rule(made.primary)}",
        "note: Read on.",
        "interpretations: supported under 1 of 3 interpretations, contradicted under 1",
        "* primary (measure): T = 0.6 [0.5, 0.7], reproduced",
        "  mean of the SVDs (measure): T = -0.6 [-0.7, -0.5], contradicted",
        "  Xavier (train): T = 0.05 [-0.3, 0.4], inconclusive",
        "null model same n_eff: T0 = -0.05 [-0.2, 0.1], excess [",
        "control wide dense: T0 = -0.6 [-0.7, -0.5], excess [1.2, 1.2]",
        "left out by this run: 5000 steps, He",
        "further: ambiguity = 0.25 [0.25, 0.25]; SC2.5",
    ]:
        assert part in text
    places = [text.index(name) for name in ("* primary", "mean of the SVDs", "Xavier (train)")]
    assert all(a < b for a, b in pairwise(places)), "the primary first, then by kind"


def test_why_says_undefined_where_a_number_is():
    told = claim(reading((*UP[:4], math.nan), null((math.nan,) * 5))).as_json()
    text = why({**told, "rule": ""})  # the rule has words of its own for it
    assert "T = undefined [undefined, undefined], inconclusive" in text
    assert "T0 = undefined [undefined, undefined], excess [undefined, undefined]" in text
    assert "nan" not in text


def test_five_seeds_are_the_fewest():
    assert FEWEST_SEEDS == 5
    assert judge(reading((1.0,) * 5)) == "reproduced"
    assert judge(reading((1.0,) * 4)) == "no verdict"


def test_fewer_seeds_are_held_against_the_recorded_numbers_of_these_seeds():
    def told(values, verdict):
        r = {"name": "r", "kind": "measure", "statistic": "T", "primary": True, "margin": 0.1, "values": values}
        r["nulls"] = []
        return {"claims": [{"id": "A", "verdict": verdict, "readings": [r]}]}

    recorded = told([0.1, 0.4, 0.1, 0.4, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4], "reproduced")
    assert differences(told(recorded["claims"][0]["readings"][0]["values"][:5], "undecided"), recorded) == []
    assert differences(told([0.0] * 5, "not reproduced"), recorded) == [("A", "inconclusive", "no effect", False)]
    assert differences(told([0.0] * 10, "reversed"), recorded) == [("A", "reproduced", "contradicted", False)]
