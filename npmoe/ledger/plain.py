"""Verdicts, margins and firmness in the words that a person reads; ``results.json`` keeps the rule's own words."""

from collections.abc import Mapping, Sequence
from typing import Any

from npmoe.ledger.readings import CORRELATION, COUNT, RATIO, SHARE

__all__ = ["MEANINGS", "agreement", "because", "firm", "smallest_effect", "word", "word_of"]

#: Each word with what it means, in the order of the legend.
MEANINGS = {
    "reproduced": "The effect is as the paper says, large enough to matter, and exceeds every null model and control.",
    "matched by chance": "The effect is there, but a null model without any learned structure gives as much.",
    "matched by the control": "The effect is there, but a control model gives as much.",
    "contradicted": "The opposite effect was found.",
    "no effect": "Any effect is smaller than the smallest effect of interest.",
    "inconclusive": "Neither the effect nor its absence is settled: an interval reaches over a limit of the rule.",
    "proved": "An exact statement, checked without a violation on every model of five seeds or more.",
    "refuted": "An exact statement with a counter-example, which is printed.",
    "not tested": "The data or models that the claim needs are not here.",
    "no verdict yet": "Fewer than five seeds, or a quick run on a small model.",
}

_NAMES = {
    "untrained": "untrained models",
    "dense as wide as all experts": "a dense model as wide as all experts",
    "without a balance loss": "a model without a balance loss",
    "random router": "a random router",
    "the primary in the setting's place": "the primary setting",
}
_WORDS = {
    "reversed": "contradicted",
    "not reproduced": "no effect",
    "undecided": "inconclusive",
    "no verdict": "no verdict yet",
}


def word(verdict: str, kinds: Sequence[str] = ()) -> str:
    """A verdict of the rule in plain words; `kinds` are those of the nulls that caught it.

    Examples
    --------
    >>> word("reversed"), word("so does the null", ["control"]), word("so does the null", ["control", "chance"])
    ('contradicted', 'matched by the control', 'matched by chance')
    """
    if verdict == "so does the null":
        return "matched by the control" if set(kinds) == {"control"} else "matched by chance"
    return _WORDS.get(verdict, verdict)


def word_of(reading: Mapping[str, Any]) -> str:
    """The plain word of a reading as it stands in ``results.json``."""
    return word(reading["verdict"], [null["kind"] for null in _catching(reading)])


def _catching(reading: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The nulls that hold too without T being beyond them."""
    m = reading["margin"]

    def above(value: float | None) -> bool:
        return value is not None and m is not None and value > m

    return [null for null in reading["nulls"] if above(null["low"]) and not above(null["excess_low"])]


def because(claim: Mapping[str, Any]) -> str:
    """What stands behind a claim's word in its line: what matched it, and whether it depends on the interpretation."""
    parts = []
    primary = next((r for r in claim["readings"] if r["primary"]), None)
    if primary and primary["verdict"] == "so does the null":
        names = [_NAMES.get(null["name"], null["name"]) for null in _catching(primary)]
        many = len(names) > 1
        listed = ", ".join(names[:-1]) + " and " + names[-1] if many else "".join(names)
        parts.append(f"{listed} give{'' if many or _plural(listed) else 's'} as much")
    counts = claim["agreement"]
    if counts["holds"] and counts["reversed"]:
        parts.append("depends on the interpretation")
    return "; ".join(parts)


def _plural(name: str) -> bool:
    """Whether the name of a null speaks of several: by its head, "two halves of one expert", not by its end."""
    head = name.split()[:3]
    return head[0] not in ("a", "the") and any(word.endswith("s") and not word.endswith("'s") for word in head)


def agreement(claim: Mapping[str, Any]) -> str:
    """In how many interpretations the claim is supported, and in how many contradicted; empty where it has none."""
    counts = claim["agreement"]
    if not counts["of"]:
        return ""
    many = "interpretation" if counts["of"] == 1 else "interpretations"
    return f"supported under {counts['holds']} of {counts['of']} {many}, contradicted under {counts['reversed']}"


def firm(claim: Mapping[str, Any]) -> str:
    """A sentence on whether a claim's verdict stands; empty where it has none."""
    found = claim.get("firmness")
    if not found:
        return ""
    seeds = found["seeds"]
    values = next(r for r in claim["readings"] if r["primary"])["values"]
    have = len(values)
    more = f"{seeds:,} seeds would settle it" if seeds else "more than 100,000 seeds would be needed to settle it"
    if None in values:
        more = "where T is undefined in a seed, no number of seeds settles it"
    if found["stands"]:
        enough = f"{seeds:,} seeds are enough to be sure" if seeds and seeds <= have else more
        return f"The verdict stands whichever seed is left out; {enough}."
    others = [f"{other} ({count} of {have})" for other, count in found["without"].items()]
    return f"Borderline: with one seed left out the verdict is {' or '.join(others)}; {more}."


def smallest_effect(margin: float | None) -> str:
    """The smallest effect of interest as what it is.

    Examples
    --------
    >>> smallest_effect(RATIO), smallest_effect(SHARE), smallest_effect(COUNT), smallest_effect(CORRELATION)
    ('10 %', '2 percentage points', '1 component', '0.1')
    """
    known = {RATIO: "10 %", SHARE: "2 percentage points", COUNT: "1 component", CORRELATION: "0.1"}
    if margin is None:
        return ""
    return next((text for value, text in known.items() if abs(margin - value) < 1e-9), f"{margin:.3g}")
