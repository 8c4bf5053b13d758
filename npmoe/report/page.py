"""From results.json and figures/*.json to one page that opens from disk."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from npmoe.files import write
from npmoe.ledger.plain import MEANINGS, agreement, firm, smallest_effect
from npmoe.report import style
from npmoe.report.curve import curve
from npmoe.report.effect import effect_svg, statements_svg
from npmoe.report.figure import figure_file, legend, panel_svg
from npmoe.report.read import read_figure, read_results
from npmoe.report.text import HOW_TO_READ, text_file, text_html

HERE = Path(__file__).parent
# each verdict in plain words: the class that gives its colour, and the glyph in the page's sprite
LOOKS = {
    "reproduced": ("good", "check"),
    "matched by chance": ("same", "waves"),
    "matched by the control": ("same", "waves"),
    "contradicted": ("turned", "turn"),
    "no effect": ("none", "ring"),
    "inconclusive": ("open", "question"),
    "proved": ("proof", "square"),
    "refuted": ("wrong", "cross"),
    "not tested": ("absent", "dash"),
    "no verdict yet": ("absent", "dot"),
}
WORDS = {word: (*LOOKS[word], meaning) for word, meaning in MEANINGS.items()}


def write_report(output: Path) -> Path:
    """Draw output/figures/*.json as SVG, write the pages from them and from output/results.json.

    One paper has output/index.html; several have a page each, such as output/sc1.html, and output/index.html leads to
    them, and to the battery's page, output/verify.html, where there is one. Returns the path of the front page. Raises
    ValueError that names the file where JSON is missing, cut off or of another shape than expected; in that case
    nothing was written.
    """
    output = Path(output)
    parts, ties, found = read_results(output / "results.json")
    figures = {part["word"]: _figures(output / "figures", part["figures"]) for part in parts}
    for name, figure in (pair for found in figures.values() for pair in found):
        draw = text_file if _is_text(figure) else figure_file
        write(output / "figures" / f"{name}.{_suffix(figure)}", draw(figure))
    front = output / "index.html"
    if len(parts) == 1:
        write(front, _page(parts[0], figures[parts[0]["word"]], [], found).encode())
        return front
    for part in parts:
        write(output / f"{part['word']}.html", _page(part, figures[part["word"]], parts, []).encode())
    write(front, _front(parts, ties, found, verified=(output / "verify.html").exists()).encode())
    return front


def _figures(folder: Path, names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """A paper's figures by name, read and checked, in the order of the page."""
    found = [(name, read_figure(folder / f"{name}.json")) for name in names]
    return sorted(found, key=lambda pair: _order(*pair))


def _is_text(figure: dict[str, Any]) -> bool:
    """Its panels are texts, not drawings."""
    return all(panel["text"] for panel in figure["panels"])


def _suffix(figure: dict[str, Any]) -> str:
    return "html" if _is_text(figure) else "svg"


def _order(name: str, figure: dict[str, Any]) -> tuple[Any, ...]:
    """The paper's figures first, then ours, each by number."""
    pieces = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", figure["id"]) if part]
    return (not figure["source"].startswith("paper"), pieces, name)


@cache
def world() -> Environment:
    """Jinja with our filters."""
    env = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=lambda name: True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= {"interval": style.interval, "number": style.number, "minus": style.minus}
    env.globals |= {"estimate": style.estimate, "words": WORDS, "agreement": agreement, "firm": firm}
    env.globals |= {"smallest_effect": smallest_effect}
    env.globals |= {"css": (HERE / "page.css").read_text(encoding="utf-8")}
    return env


def _front(parts: list[dict[str, Any]], ties: list[dict[str, Any]], found: list[dict[str, Any]], verified: bool) -> str:
    """The page that ties the papers together: findings, all claims, and questions that several papers speak to.

    `verified` says whether the battery's page lies beside it.
    """
    papers = []
    known: dict[str, dict[str, Any]] = {}
    for part in parts:
        href, slugs = f"{part['word']}.html", _slugs([claim["id"] for claim in part["claims"]])
        papers.append({"data": part, "href": href, "claims": [(claim, slugs[claim["id"]]) for claim in part["claims"]]})
        known |= {claim["id"]: {"data": claim, "href": f"{href}#{slugs[claim['id']]}"} for claim in part["claims"]}
    shown = [{**tie, "claims": [known[id] for id in tie["claims"] if id in known]} for tie in ties]
    count = {word: sum(c["word"] == word for part in parts for c in part["claims"]) for word in WORDS}
    page = world().get_template("front.html.j2")
    return page.render(
        papers=papers,
        verified=verified,
        count=count,
        ties=[tie for tie in shown if len(tie["claims"]) > 1],
        findings=_cards(found, known),
        waiting=[part for part in parts if part["progress"] is not None],
    )


def _cards(found: list[dict[str, Any]], known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings with their claim and its small picture."""
    cards = []
    for i, finding in enumerate(found):
        claim = known.get(finding["id"])
        if claim is not None:
            cards.append(
                {**finding, "href": claim["href"], "claim": claim["data"], "svg": _effect(claim["data"], f"f{i}")}
            )
    return cards


def _effect(claim: dict[str, Any], prefix: str) -> str:
    """The small picture of a claim's effect; none where it has no numbers."""
    if claim["effect"]:
        return effect_svg(claim["effect"], prefix)
    return statements_svg(claim, prefix) if claim["statements"] else ""


def _page(
    results: dict[str, Any],
    figures: list[tuple[str, dict[str, Any]]],
    parts: list[dict[str, Any]],
    found: list[dict[str, Any]],
) -> str:
    """One paper's page; `parts` are the papers to which it leads on, `found` what it opens with if it stands alone."""
    slugs = _slugs([claim["id"] for claim in results["claims"]] + [f"figure {name}" for name, _ in figures])
    claims = [
        _claim(claim, slugs[claim["id"]], [pair for pair in figures if claim["id"] in pair[1]["claims"]], slugs)
        for claim in results["claims"]
    ]
    known = {claim["id"]: {"data": claim, "href": f"#{slugs[claim['id']]}"} for claim in results["claims"]}
    readings = [reading for claim in results["claims"] for reading in claim["readings"]]
    return (
        world()
        .get_template("page.html.j2")
        .render(
            results=results,
            claims=claims,
            figures=[_figure(name, figure, slugs) for name, figure in figures],
            readings=len(readings),
            parts=parts,
            findings=_cards(found, known),
        )
    )


def _slugs(names: list[str]) -> dict[str, str]:
    """A different id for each name, of letters, digits and dashes."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = first = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
        count = 1
        while slug in slugs.values():
            count += 1
            slug = f"{first}-{count}"
        slugs[name] = slug
    return slugs


def _claim(claim: dict[str, Any], slug: str, figures: list[tuple[str, Any]], slugs: dict[str, str]) -> dict[str, Any]:
    """What the page shows of a claim: the claim, its anchor, its curve and the figures about it."""
    primary = next((reading for reading in claim["readings"] if reading["primary"]), None)
    return {
        "data": claim,
        "slug": slug,
        "primary": primary,
        "effect": _effect(claim, slug),
        "curve": curve(claim, slug) if claim["readings"] else None,
        "longest": max((len(reading["name"]) for reading in claim["readings"]), default=0),
        "figures": [{"slug": slugs[f"figure {name}"], "id": figure["id"]} for name, figure in figures],
        "kinds": sorted({reading["kind"] for reading in claim["readings"]}),
        "nulls": sorted({null["kind"] for reading in claim["readings"] for null in reading["nulls"]}),
    }


def _figure(name: str, figure: dict[str, Any], slugs: dict[str, str]) -> dict[str, Any]:
    """What the page shows of a figure: a panel each with its own SVG; one legend where all panels share it."""
    slug = slugs[f"figure {name}"]
    legends = [legend(figure, index) for index in range(len(figure["panels"]))]
    shared = all(entries == legends[0] for entries in legends)
    return {
        "data": figure,
        "name": name,
        "slug": slug,
        "legend": legends[0] if shared else [],
        "panels": [
            {
                "title": panel["title"],
                "svg": text_html(panel["text"]) if panel["text"] else panel_svg(figure, index, f"{slug}-{index}"),
                "legend": [] if shared else legends[index],
            }
            for index, panel in enumerate(figure["panels"])
        ],
        "suffix": _suffix(figure),
        "more": f" {HOW_TO_READ}" if _is_text(figure) else "",
        "claims": [{"id": claim, "slug": slugs.get(claim)} for claim in figure["claims"]],
    }
