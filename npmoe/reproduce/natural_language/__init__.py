"""SC2: version 2 of "Mixture-of-Experts as Soft Clustering", on a language model trained on text; and MY on the same.

`config`: what one run is; `text`: the corpus as ids; `trained`: stages of training; `axes`: which models are compared;
`measure` and `rollouts`: what is measured on one model; `ways` and `routing_ways`: statistics, margins and nulls of SC2
and of MY; `claims`: what the papers say; `figures`: as data; `sentences`: each effect in its own unit.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.natural_language.claims import EXPERIMENT, MODELS, PERPLEXITY
from npmoe.reproduce.natural_language.config import Authors, Measured, Stage, Thinned
from npmoe.reproduce.natural_language.figures import figures as figures_of
from npmoe.reproduce.natural_language.measure import compute, thin
from npmoe.reproduce.natural_language.rollouts import authors, least
from npmoe.reproduce.natural_language.sentences import TELLINGS
from npmoe.reproduce.natural_language.text import found, labelled, prepared
from npmoe.reproduce.natural_language.trained import stage
from npmoe.reproduce.paper import Paper

__all__ = ["SC2"]


def _fit(plan: Trial) -> Trial:
    """The plan, once its texts are known to suffice; without the claims on topics where no text has any."""
    base = plan.base
    read = {run.model for run in plan.configs() if isinstance(run, Measured) and run.model.seed == 0}
    for config in dict.fromkeys((base, *sorted(read, key=lambda model: model.label))):
        have, need = len(prepared(config).heldout.ids), least(config)
        if have < need:
            raise ValueError(
                f"expected at least {need:,} held-out tokens of the text {config.text.name!r}; got {have:,}: give a "
                "longer text"
            )
    if labelled(base.text).topics:
        return plan
    lacks = "No text with topics is here; `pip install 'npmoe[text]'` brings one."
    return replace(plan, missing=(("MY.4b", lacks), ("MY.11", lacks)))


def _notes(claims: list[Claim], plan: Trial) -> list[str]:
    base = plan.base
    notes = [f"The text: {base.text.name}."] if base.text.name else []
    other = labelled(base.text)
    if other != base.text and {"MY.4b", "MY.11"} & {claim.id for claim in claims}:
        notes.append(f"MY.4b and MY.11 need documents with topics, and are measured on another text: {other.name}.")
    notes.append(
        "Of SC2 only the abstract was at hand: sizes, text and training are ours. The models are small: three blocks "
        f"of width {base.d}, trained for {base.steps} steps of {base.B * base.T:,} tokens."
    )
    return notes + _best(claims)


def _best(claims: list[Claim]) -> list[str]:
    """Whether the models predict better than counts of words do, where that was measured."""
    found = {
        b.name.removeprefix(PERPLEXITY): float(np.mean(b.values))
        for claim in claims
        for b in claim.beside
        if b.name.startswith(PERPLEXITY) and len(b.values)
    }
    if not found:
        return []
    (ours, least_of_ours), (counts, least_of_counts) = (
        min(((name, value) for name, value in found.items() if (name in MODELS) == model), key=lambda pair: pair[1])
        for model in (True, False)
    )
    models, counted = f"the {ours} model ({least_of_ours:.0f})", f"the {counts} ({least_of_counts:.0f})"
    wins = "Counting words predicts better" if least_of_counts < least_of_ours else "The models predict better"
    return [f"{wins}: the lowest held-out perplexity of ours is that of {models}, of counts that of {counted}."]


def _news(config: Any, arrays: Mapping[str, np.ndarray]) -> str:
    if not isinstance(config, Measured):
        return ""
    held = float(np.exp(arrays["loss"][-1]))
    return f"{config.model.label}: held-out perplexity {held:.0f} after {config.model.steps} steps"


SC2 = Paper(
    word="sc2",
    id="SC2",
    title="Mixture-of-Experts as Soft Clustering, version 2: on a transformer language model",
    cite="F. Liu, arXiv 2601.11616 v2",
    heading="Mixture-of-Experts as Soft Clustering, on natural language",
    experiment=EXPERIMENT,
    computes={Stage: stage, Measured: compute, Thinned: thin, Authors: authors},
    figures=figures_of,
    tellings=TELLINGS,
    notes=_notes,
    text=found,
    fit=_fit,
    alone=True,
    news=_news,
)
