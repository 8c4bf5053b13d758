"""SC2: version 2 of "Mixture-of-Experts as Soft Clustering", on a language model trained on text; and MY on the same.

`config`: what one run is; `text`: the corpus as ids; `trained`: stages of training; `axes`: which models are compared;
`measure` and `rollouts`: what is measured on one model; `ways` and `routing_ways`: statistics, margins and nulls of SC2
and of MY; `claims`: what the papers say; `figures`: as data; `sentences`: each effect in its own unit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.natural_language.claims import EXPERIMENT
from npmoe.reproduce.natural_language.config import Authors, Measured, Stage, Thinned
from npmoe.reproduce.natural_language.figures import figures as figures_of
from npmoe.reproduce.natural_language.measure import compute, thin
from npmoe.reproduce.natural_language.rollouts import authors
from npmoe.reproduce.natural_language.sentences import TELLINGS
from npmoe.reproduce.natural_language.text import found
from npmoe.reproduce.natural_language.trained import stage
from npmoe.reproduce.paper import Paper

__all__ = ["SC2"]


def _notes(claims: list[Claim], plan: Trial) -> list[str]:
    text = plan.base.text
    notes = [f"The text: {text.name}."] if text.name else []
    notes.append(
        "Of SC2 only the abstract was at hand: sizes, text and training are ours. The models are small: three blocks "
        f"of width {plan.base.d}, trained for {plan.base.steps} steps of {plan.base.B * plan.base.T:,} tokens."
    )
    return notes


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
    alone=True,
    news=_news,
)
