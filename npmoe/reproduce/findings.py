"""What the front page opens with: a few findings in plain words, whose words follow the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["FINDINGS", "Finding", "findings"]


class Finding(NamedTuple):
    """A claim that the front page opens with, and its title for each verdict, in plain words."""

    id: str
    titles: Mapping[str, str]


_OPEN = {
    "inconclusive": "Not settled yet: {topic}",
    "no verdict yet": "Still being measured: {topic}",
    "not tested": "Not tested: {topic}",
}


def _titles(topic: str, **titles: str) -> dict[str, str]:
    """Titles by verdict; those that leave the question open are made from the topic."""
    return {word.replace("_", " "): title for word, title in titles.items()} | {
        word: title.format(topic=topic) for word, title in _OPEN.items()
    }


FINDINGS = (
    Finding(
        "SC1.4",
        _titles(
            "are experts less sensitive than a dense model?",
            contradicted="Experts are more sensitive than a dense model, not less",
            reproduced="Experts are less sensitive than a dense model",
            no_effect="Experts are as sensitive as a dense model",
            matched_by_chance="Experts are less sensitive than a dense model, and so are untrained ones",
            matched_by_the_control="Experts are less sensitive than a dense model, and so is a wide dense model",
        ),
    ),
    Finding(
        "SC1.8",
        _titles(
            "does sparse routing concentrate what experts see?",
            matched_by_chance="Experts need fewer components under sparse routing, even when handed random tokens",
            reproduced="Sparse routing concentrates what experts see, beyond what fewer tokens explain",
            contradicted="Sparse routing spreads out what experts see",
            no_effect="Sparse routing leaves the number of components as it is",
            matched_by_the_control="Sparse routing needs fewer components, and so does the control",
        ),
    ),
    Finding(
        "GA.1",
        _titles(
            "do experts become decorrelated?",
            matched_by_chance="Experts are decorrelated, as experts that never met are",
            reproduced="Training decorrelates experts beyond what independent starts give",
            contradicted="Experts are aligned, not decorrelated",
            no_effect="Experts are aligned about as strongly as the claim allows",
            matched_by_the_control="Experts are decorrelated, and so is the control",
        ),
    ),
    Finding(
        "MY.1b",
        _titles(
            "does equal routing mean similar hidden states?",
            refuted="Tokens that are routed alike need not be alike",
            proved="Tokens that are routed alike are alike",
        ),
    ),
    Finding(
        "MY.3",
        _titles(
            "what does load balancing suppress?",
            reproduced="Load balancing weakens the response to what all tokens share",
            contradicted="Load balancing makes the router follow what all tokens share",
            no_effect="Load balancing leaves the response to what all tokens share as it is",
            matched_by_chance="Load balancing weakens the router's response, in any direction",
            matched_by_the_control="Load balancing weakens the router's response, as much along random directions",
        ),
    ),
)


def findings(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The findings that these claims of ``results.json`` allow: title, sentence and the claim's id."""
    by_id = {claim["id"]: claim for claim in claims}
    return [
        {"id": id, "title": titles[by_id[id]["word"]], "says": by_id[id]["sentence"]}
        for id, titles in FINDINGS
        if id in by_id and by_id[id].get("sentence") and not by_id[id].get("mute")
    ]
