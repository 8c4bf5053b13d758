"""A text on a page, each token in the colour of the expert with the largest gate, block by block."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from npmoe.probe.language import sites
from npmoe.probe.site import Site
from npmoe.report.text import text_page

__all__ = ["page"]

Array = np.ndarray


def page(model: Any, words: Sequence[str], ids: Array, prompt: int, title: str, text: str) -> str:
    """HTML of one sequence, ids (T,), whose first `prompt` tokens were given and the rest written by the model.

    Parameters
    ----------
    words : each token as text.
    title, text : what stands above: whose page it is, and what the model was trained on.

    Raises
    ------
    ValueError : for a model without a mixture, or as many words as there are not tokens.
    """
    ids = np.asarray(ids)
    if len(words) != len(ids):
        raise ValueError(f"expected a word for each of {len(ids)} tokens; got {len(words)}")
    found = [site for site in sites(model, ids) if site.router is not None]
    if not found:
        raise ValueError("expected a model with mixtures, whose experts a page shows; got a dense one")
    shown = [{"words": words, "experts": _experts(site), "prompt": prompt, "of": site.E} for site in found]
    panels = [{"title": site.name.capitalize(), "text": of} for site, of in zip(found, shown, strict=True)]
    return text_page(title, f"The model's text: {text}.", panels)


def _experts(site: Site) -> list[list[int]]:
    """The experts of each token, the largest gate first: those that were chosen; of a soft mixture the first."""
    soft = site.chosen is None or site.chosen.shape[1] == site.E
    k = 1 if soft else site.chosen.shape[1]  # type: ignore[union-attr]
    order: list[list[int]] = np.argsort(-site.gates, axis=1, kind="stable")[:, :k].tolist()
    return order
