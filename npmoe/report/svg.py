"""Matplotlib's SVG text made small, fit to stand inside a page, and readable in light and dark."""

from __future__ import annotations

import html
import re

from npmoe.report.style import GRID, INK, MUTED, ROLES

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Noto Sans','DejaVu Sans',sans-serif"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    look.colour: f"--r-{role}" for role, look in ROLES.items()
}


def alone(text: str, title: str, caption: str) -> str:
    """An SVG file that stands for itself: smaller, with title and description in it."""
    text = _small(text)
    named = f"<title>{html.escape(title)}</title><desc>{html.escape(caption)}</desc>"
    return re.sub(r"(<svg [^>]*>)", lambda found: found.group(1) + named, text, count=1)


def inline(text: str, prefix: str, title: str, description: str) -> str:
    """An SVG to stand inside HTML: ids behind `prefix`, our colours as CSS variables, with a name to be read aloud."""
    text = _small(text)
    text = text[text.index("<svg") :]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m.group(1)}"' if m.group(1) in used else "", text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{prefix}-\2", text)
    text = re.sub(r"<defs><style.*?</style></defs>", "", text.replace("xlink:href", "href"))  # it would style the page
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="([^"]*)"', text)
    head = (
        f'<svg class="plot" role="img" aria-labelledby="{prefix}-t {prefix}-d" viewBox="{box.group(1) if box else ""}">'
        f'<title id="{prefix}-t">{html.escape(title)}</title><desc id="{prefix}-d">{html.escape(description)}</desc>'
    )
    return re.sub(r"<svg [^>]*>", lambda _: head, _flat(text), count=1).strip()


def _small(text: str) -> str:
    """Without comments, metadata and line breaks; coordinates to a tenth of a point; fonts that every system has."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE.*?>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<= )(d|x|y|width|height|transform|points)="([^"]*)"', _rounded, text)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", text)
    text = re.sub(r' transform="rotate\((-?0)[ )][^"]*"', "", text)
    text = re.sub(r"\n\s*", " ", text).replace("> <", "><").replace('" >', '">')
    return text


def _flat(text: str) -> str:
    """Without groups that carry nothing, once their ids are gone."""
    out, carrying = [], []
    for piece in re.split(r"(<g\b[^>]*>|</g>)", re.sub(r"<g( [^>]*)?/>", "", text)):
        if piece.startswith("<g"):
            carrying.append(piece != "<g>")
        keep = carrying[-1] if piece.startswith("<g") else carrying.pop() if piece == "</g>" else True
        out.append(piece if keep else "")
    return "".join(out)


def _rounded(found: re.Match[str]) -> str:
    places = 2 if found.group(1) == "transform" else 1
    value = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m.group()):.{places}f}".rstrip("0").rstrip("."), found.group(2))
    value = re.sub(r"\s+", " ", value).strip().replace("-0 ", "0 ")
    value = re.sub(r" ?([MLCQZz]) ?", r"\1", value) if found.group(1) == "d" else value
    return f'{found.group(1)}="{value}"'
