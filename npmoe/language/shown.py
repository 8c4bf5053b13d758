"""A text on a page, each token in the colour of the expert with the largest gate, block by block.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; since no eight colours are safe for all,
each token also carries its experts' numbers. The page needs no network, no script and no mouse.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from npmoe.probe.language import sites
from npmoe.probe.site import Site

__all__ = ["page"]

Array = np.ndarray

_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
_CSS = """
:root { color-scheme: light dark; }
body { font: 1.05rem/2.1 Georgia, serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, nav, table, .small { font-family: system-ui, sans-serif; line-height: 1.4; }
nav a { margin-right: 1rem; } a:focus, section:focus { outline: 3px solid #0072b2; outline-offset: 3px; }
.t { border-bottom: 5px solid var(--c); padding: 0 .1em; white-space: pre-wrap; }
.t sub { font: .62rem system-ui, sans-serif; opacity: .75; line-height: 0; }
.rollout { border-left: 4px solid currentColor; padding-left: .5em; margin-left: .3em; }
table { border-collapse: collapse; margin: .5rem 0 2rem; font-size: .85rem; }
th, td { padding: .15rem .6rem; text-align: right; border-top: 1px solid #8885; }
td:first-child, th:first-child { text-align: left; } .small { font-size: .85rem; opacity: .8; }
@media print { nav { display: none; } }
"""


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
    links = " ".join(f'<a href="#{_slug(site)}">{html.escape(site.name)}</a>' for site in found)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head><body>'
        f"<h1>{html.escape(title)}</h1><p class='small'>The model's text: {html.escape(text)}. Each token is "
        "underlined in the colour of the expert with the largest gate; small numbers are its experts, the largest gate "
        "first. The bar is where the model begins to write by itself.</p>"
        f'<nav aria-label="Blocks">{links}</nav>{"".join(_section(site, words, prompt) for site in found)}'
        "</body></html>\n"
    )


def _slug(site: Site) -> str:
    return site.name.replace(" ", "-")


def _section(site: Site, words: Sequence[str], prompt: int) -> str:
    order = np.argsort(-site.gates, axis=1, kind="stable")[:, : _shown(site)]  # (T, k), the largest gate first
    tokens = [_token(word, experts) for word, experts in zip(words, order, strict=True)]
    written = f'<span class="rollout">{" ".join(tokens[prompt:])}</span>' if tokens[prompt:] else ""
    return (
        f'<section id="{_slug(site)}" tabindex="-1" aria-labelledby="{_slug(site)}-h"><h2 id="{_slug(site)}-h">'
        f"{html.escape(site.name.capitalize())}</h2><p>{' '.join(tokens[:prompt])} {written}</p>"
        f"{_table(site, prompt)}</section>"
    )


def _shown(site: Site) -> int:
    """How many experts stand at a token: those that were chosen; of a soft mixture the first."""
    return 1 if site.chosen is None or site.chosen.shape[1] == site.E else site.chosen.shape[1]


def _token(word: str, experts: Array) -> str:
    numbers = ",".join(str(int(e)) for e in experts)
    colour = _COLOURS[int(experts[0]) % len(_COLOURS)]
    shown = "¶" if word == "\n" else word
    return f'<span class="t" style="--c:{colour}">{html.escape(shown)}<sub>{numbers}</sub></span>'


def _table(site: Site, prompt: int) -> str:
    """How much of the gates each expert has, of the prompt and of what follows."""
    parts = [("prompt", site.gates[:prompt]), ("written by the model", site.gates[prompt:])]
    heads = "".join(f"<th scope='col'>{e}</th>" for e in range(site.E))
    rows = [
        f"<tr><th scope='row'>{name}</th>"
        + "".join(f"<td>{100 * share:.0f} %</td>" for share in gates.sum(axis=0) / gates.sum())
        + "</tr>"
        for name, gates in parts
        if len(gates)
    ]
    caption = "<caption class='small'>Share of the gates by expert</caption>"
    return f"<table>{caption}<tr><th scope='col'>expert</th>{heads}</tr>{''.join(rows)}</table>"
