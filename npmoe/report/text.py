"""A text with the experts of each token: as a panel of a figure, and as a page of its own.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; since no eight colours are safe for all,
each token also carries its experts' numbers. There is no script, and nothing that needs a mouse.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["HOW_TO_READ", "text_file", "text_html", "text_page"]

HOW_TO_READ = (
    "Each token is underlined in the colour of the expert with the largest gate. The small numbers are its experts, "
    "the largest gate first. The bar is where the model begins to write by itself."
)
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
_CSS = """
:root { color-scheme: light dark; --rule: #8885; }
body { font: 1.05rem/1.5 Georgia, serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, nav, .small { font-family: system-ui, sans-serif; line-height: 1.4; } .small { font-size: .85rem; opacity: .8; }
nav a { margin-right: 1rem; white-space: nowrap; } a:focus-visible { outline: 3px solid #0072b2; outline-offset: 3px; }
@media print { nav { display: none; } }
"""


def text_html(text: dict[str, Any]) -> str:
    """One block's view of a text, as HTML: its tokens, and each expert's share of them.

    Parameters
    ----------
    text : ``words`` of the tokens; ``experts``, a list of their experts for each, the largest gate first; ``prompt``,
        how many tokens were given; ``of``, the number of experts.
    """
    prompt, pairs = text["prompt"], list(zip(text["words"], text["experts"], strict=True))
    tokens = [_token(word, experts) for word, experts in pairs]
    written = f' <span class="rollout">{" ".join(tokens[prompt:])}</span>' if tokens[prompt:] else ""
    parts = (("prompt", text["experts"][:prompt]), ("written by the model", text["experts"][prompt:]))
    rows = "".join(_row(name, experts, text["of"]) for name, experts in parts if experts)
    heads = "".join(f'<th scope="col">{e}</th>' for e in range(text["of"]))
    return (
        f'<p class="tokens">{" ".join(tokens[:prompt])}{written}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Share of the choices by expert">'
        '<table class="shares"><caption>Share of the choices by expert</caption>'
        f'<thead><tr><th scope="col">expert</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _token(word: str, experts: Sequence[int]) -> str:
    numbers = ",".join(str(int(e)) for e in experts)
    colour = _COLOURS[int(experts[0]) % len(_COLOURS)]
    shown = "¶" if word == "\n" else word
    return f'<span class="token" style="--c:{colour}">{html.escape(shown)}<sub>{numbers}</sub></span>'


def _row(name: str, experts: Sequence[Sequence[int]], of: int) -> str:
    chosen = [e for some in experts for e in some]
    shares = "".join(f"<td>{100 * chosen.count(e) / len(chosen):.0f} %</td>" for e in range(of))
    return f'<tr><th scope="row">{name}</th>{shares}</tr>'


def text_page(title: str, lead: str, panels: Sequence[dict[str, Any]]) -> str:
    """A page of panels, each with a ``title`` of its own and a ``text``, that opens from disk."""
    named = [(re.sub(r"[^a-z0-9]+", "-", panel["title"].lower()), html.escape(panel["title"])) for panel in panels]
    links = " ".join(f'<a href="#{slug}">{name}</a>' for slug, name in named)
    sections = "".join(
        f'<section id="{slug}" aria-labelledby="{slug}-h"><h2 id="{slug}-h">{name}</h2>'
        f"{text_html(panel['text'])}</section>"
        for (slug, name), panel in zip(named, panels, strict=True)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}{_shared_css()}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><p class="small">{html.escape(lead)} {HOW_TO_READ}</p>'
        f'<nav aria-label="Parts">{links}</nav>{sections}</body></html>\n'
    )


def text_file(figure: dict[str, Any]) -> bytes:
    """A figure whose panels are texts, as the bytes of a page of its own."""
    return text_page(figure["title"], figure["caption"], figure["panels"]).encode()


def _shared_css() -> str:
    """The rules for tokens, which the page's style sheet has between two marks."""
    page = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    found = re.search(r"/\* tokens \*/(.*?)/\* end tokens \*/", page, re.DOTALL)
    return re.sub(r"\s+", " ", found.group(1)).strip() if found else ""
