"""Results and figures as they lie on disk, read and checked: what was expected, what came, in which file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from npmoe.calculus.words import one_line
from npmoe.ledger import VERDICTS, split
from npmoe.ledger.plain import MEANINGS, word, word_of
from npmoe.report.fields import check_numbers, need, optional, read_json, shown
from npmoe.report.style import ROLES

SCALES = ("linear", "log", "symlog")
# what each kind of mark must carry; "values" and its shape are checked apart
MARKS = {
    "band": ("name", "role", "x", "values"),
    "line": ("name", "role", "x", "y"),
    "points": ("name", "role", "x", "y"),
    "strip": ("name", "role", "values"),
    "ribbon": ("name", "role", "x", "low", "high"),
    "level": ("name", "role", "y"),
    "vline": ("x",),
    "matrix": ("values",),
    "hist": ("name", "role", "edges", "counts"),
}


# Results


class Ledger(NamedTuple):
    """The results of each paper, the questions that tie them, and the findings that the front page opens with."""

    parts: list[dict[str, Any]]
    ties: list[dict[str, Any]]
    findings: list[dict[str, Any]]

    def __repr__(self) -> str:
        return one_line(self)


def read_results(path: Path) -> Ledger:
    """The results of each paper in a ledger, with every optional field filled in.

    Raises ValueError that names field and file.
    """
    ledger = read_json(path, "the results of a run")
    at = f"in {path}"
    seen: set[str] = set()
    for index, claim in enumerate(need(ledger, "claims", list, "results", at)):
        _claim(claim, f"claim {index + 1}", at)
        if claim["id"] in seen:
            raise ValueError(f"expected each claim once; got {claim['id']!r} twice {at}")
        seen.add(claim["id"])
    try:
        parts = split(ledger)
    except ValueError as error:
        raise ValueError(f"{error} {at}") from None
    words = [_part(part, at)["word"] for part in parts]
    if not words or len(set(words)) < len(words):
        raise ValueError(f"expected results of one paper or several, each once; got {', '.join(words) or 'none'} {at}")
    ties = optional(ledger, "ties", list, [], "results", at)
    for tie in ties:
        if not isinstance(tie, dict):
            raise ValueError(f"expected a tie to be an object; got {shown(tie)} {at}")
        need(tie, "says", str, "a tie", at)
        need(tie, "claims", list, "a tie", at)
    found = optional(ledger, "findings", list, [], "results", at)
    for finding in found:
        if not isinstance(finding, dict):
            raise ValueError(f"expected a finding to be an object; got {shown(finding)} {at}")
        for key in ("id", "title", "says"):
            need(finding, key, str, "a finding", at)
    return Ledger(parts, ties, found)


def _part(results: dict[str, Any], at: str) -> dict[str, Any]:
    """Check the results of one paper, all but its claims."""
    word = need(results, "word", str, "results", at)
    if not re.fullmatch(r"[a-z0-9]+", word):
        raise ValueError(f"expected a paper's word of letters and digits, the name of its page; got {word!r} {at}")
    need(results, "title", str, "results", at)
    need(results, "mode", str, "results", at, ("default", "full", "quick"))
    paper = optional(results, "paper", dict, {}, "results", at)
    for key in ("id", "title", "cite"):
        optional(paper, key, str, "", "paper", at)
    for key, empty in (("npmoe", ""), ("command", "")):
        optional(results, key, str, empty, "results", at)
    optional(results, "environment", dict, {}, "results", at)
    for key in ("notes", "figures"):
        optional(results, key, list, [], "results", at)
    for key in ("seeds", "progress"):
        optional(results, key, int, None, "results", at)
    optional(results, "recorded", bool, False, "results", at)
    return results


def _claim(claim: Any, where: str, at: str) -> None:
    if not isinstance(claim, dict):
        raise ValueError(f"expected {where} to be an object; got {shown(claim)} {at}")
    where = f"claim {need(claim, 'id', str, where, at)}"
    need(claim, "says", str, where, at)
    need(claim, "verdict", str, where, at, VERDICTS)
    for key in ("paper_value", "statistic", "unit", "headline", "rule", "measured", "note", "repeat"):
        optional(claim, key, str, "", where, at)
    optional(claim, "margin", float, None, where, at)
    optional(claim, "mute", bool, False, where, at)
    for key in ("because", "sentence"):
        optional(claim, key, str, "", where, at)
    _effect(claim, where, at)
    _firmness(claim, where, at)
    size = optional(claim, "size", dict, {}, where, at)
    for key, empty in (("measured", ""), ("paper", ""), ("judgement", "not given")):
        optional(size, key, str, empty, f"{where}, size", at)
    agreement = optional(claim, "agreement", dict, {}, where, at)
    for key in ("holds", "reversed", "of"):
        optional(agreement, key, int, 0, f"{where}, agreement", at)
    optional(claim, "left_out", list, [], where, at)
    for item in optional(claim, "beside", list, [], where, at):
        _interval(item, f"{where}, beside", at)
        optional(item, "says", str, "", f"{where}, beside", at)
    for reading in need(claim, "readings", list, where, at):
        _reading(reading, where, at)
    for statement in optional(claim, "statements", list, [], where, at):
        _statement(statement, where, at)
    primary = next((reading for reading in claim["readings"] if reading["primary"]), None)
    optional(claim, "word", str, primary["word"] if primary else word(claim["verdict"]), where, at)
    if claim["word"] not in MEANINGS:
        raise ValueError(f"expected {where}, word one of {', '.join(MEANINGS)}; got {shown(claim['word'])} {at}")


def _effect(claim: dict[str, Any], where: str, at: str) -> None:
    effect = optional(claim, "effect", dict, None, where, at)
    if effect is None:
        return
    where = f"{where}, effect"
    need(effect, "what", str, where, at)
    if any(effect.get(key) is None for key in ("mean", "none", "claimed", "opposite")):
        claim["effect"] = None  # undefined: there is nothing to draw
        return
    for key in ("mean", "none", "claimed", "opposite"):
        need(effect, key, float, where, at)
    for key in ("low", "high"):
        optional(effect, key, float, None, where, at)
    check_numbers(need(effect, "values", list, where, at), f"{where}, values", at)
    for null in need(effect, "nulls", list, where, at):
        if not isinstance(null, dict):
            raise ValueError(f"expected a null of {where} to be an object; got {shown(null)} {at}")
        name = need(null, "name", str, f"{where}, a null", at)
        need(null, "kind", str, f"{where}, null {name!r}", at, ("chance", "control"))
        check_numbers(need(null, "values", list, f"{where}, null {name!r}", at), f"{where}, null {name!r}, values", at)


def _firmness(claim: dict[str, Any], where: str, at: str) -> None:
    found = optional(claim, "firmness", dict, None, where, at)
    if found is not None:
        need(found, "stands", bool, f"{where}, firmness", at)
        need(found, "without", dict, f"{where}, firmness", at)
        optional(found, "seeds", int, None, f"{where}, firmness", at)


def _reading(reading: Any, where: str, at: str) -> None:
    name = _interval(reading, f"{where}, a reading", at)
    where = f"{where}, reading {name!r}"
    need(reading, "primary", bool, where, at)
    need(reading, "kind", str, where, at, ("measure", "train"))
    need(reading, "verdict", str, where, at, VERDICTS)
    optional(reading, "statistic", str, "", where, at)
    optional(reading, "margin", float, None, where, at)
    for null in optional(reading, "nulls", list, [], where, at):
        null_where = f"{where}, null {_interval(null, f'{where}, a null', at)!r}"
        need(null, "kind", str, null_where, at, ("chance", "control"))
        for key in ("excess_low", "excess_high"):
            optional(null, key, float, None, null_where, at)
    optional(reading, "word", str, word_of(reading), where, at)


def _statement(statement: Any, where: str, at: str) -> None:
    if not isinstance(statement, dict):
        raise ValueError(f"expected an exact statement of {where} to be an object; got {shown(statement)} {at}")
    where = f"{where}, statement {need(statement, 'name', str, f'{where}, a statement', at)!r}"
    need(statement, "verdict", str, where, at, VERDICTS)
    for key in ("says", "example"):
        optional(statement, key, str, "", where, at)
    for key in ("checked", "violations"):
        need(statement, key, int, where, at)
    optional(statement, "worst", float, None, where, at)
    optional(statement, "beside", bool, False, where, at)


def _interval(item: Any, where: str, at: str) -> str:
    """Check what readings, nulls and numbers beside share: a name, values of each seed, two ends."""
    if not isinstance(item, dict):
        raise ValueError(f"expected {where} to be an object; got {shown(item)} {at}")
    name = need(item, "name", str, where, at)
    check_numbers(optional(item, "values", list, [], f"{where} {name!r}", at), f"{where} {name!r}, values", at)
    for key in ("mean", "low", "high"):
        optional(item, key, float, None, f"{where} {name!r}", at)
    return name


# Figures


def read_figure(path: Path) -> dict[str, Any]:
    """A figure as data, checked mark by mark. Raises ValueError that names mark, panel and file."""
    figure = read_json(path, "a figure's data")
    at = f"in {path}"
    for key in ("id", "title"):
        need(figure, key, str, "the figure", at)
    for key in ("caption", "source"):
        optional(figure, key, str, "", "the figure", at)
    optional(figure, "claims", list, [], "the figure", at)
    panels = need(figure, "panels", list, "the figure", at)
    if not panels:
        raise ValueError(f"expected at least one panel; got none {at}")
    for index, panel in enumerate(panels):
        where = f"panel {index + 1}"
        if not isinstance(panel, dict):
            raise ValueError(f"expected {where} to be an object; got {shown(panel)} {at}")
        optional(panel, "title", str, "", where, at)
        for name in ("x", "y"):
            axis = optional(panel, name, dict, {}, where, at)
            optional(axis, "label", str, "", f"{where}, {name}", at)
            optional(axis, "scale", str, "linear", f"{where}, {name}", at)
            if axis["scale"] not in SCALES:
                raise ValueError(f"expected {where}, {name}.scale one of {SCALES}; got {axis['scale']!r} {at}")
        _text(panel, where, at)
        for number, mark in enumerate(need(panel, "marks", list, where, at)):
            _mark(mark, f"{where}, mark {number + 1}", at)
    return figure


def _text(panel: dict[str, Any], where: str, at: str) -> None:
    """A panel that is a text: its tokens' words and experts."""
    text = optional(panel, "text", dict, {}, where, at)
    if not text:
        return
    where = f"{where}, text"
    words = need(text, "words", list, where, at)
    experts = need(text, "experts", list, where, at)
    prompt, of = (need(text, key, int, where, at) for key in ("prompt", "of"))
    for token in words:
        if not isinstance(token, str):
            raise ValueError(f"expected {where}, words to be text; got {shown(token)} {at}")
    if len(experts) != len(words) or not 0 <= prompt <= len(words):
        raise ValueError(
            f"expected {where} to have experts for each of {len(words)} words, and a prompt among them; got "
            f"{len(experts)} and {prompt} {at}"
        )
    for some in experts:
        if not isinstance(some, list) or not some or not all(type(e) is int and 0 <= e < of for e in some):
            raise ValueError(f"expected {where}, experts to be lists of numbers below {of}; got {shown(some)} {at}")


def _mark(mark: Any, where: str, at: str) -> None:
    if not isinstance(mark, dict):
        raise ValueError(f"expected {where} to be an object; got {shown(mark)} {at}")
    kind = need(mark, "kind", str, where, at, tuple(MARKS))
    where = f"{where} ({kind})"
    missing = [key for key in MARKS[kind] if mark.get(key) is None]
    if missing:
        raise ValueError(f"expected {where} to have {', '.join(MARKS[kind])}; missing {', '.join(missing)} {at}")
    optional(mark, "name", str, "", where, at)
    optional(mark, "role", str, "null" if kind in ("vline", "ribbon") else "other", where, at)
    if mark["role"] not in ROLES:
        raise ValueError(f"expected {where}, role one of {', '.join(ROLES)}; got {shown(mark['role'])} {at}")
    if kind in ("level", "vline"):
        need(mark, "y" if kind == "level" else "x", float, where, at)
        return
    if kind in ("band", "matrix"):
        rows = need(mark, "values", list, where, at)
        if not rows or not all(isinstance(row, list) for row in rows):
            raise ValueError(f"expected {where}, values to be a list of rows; got {shown(rows)} {at}")
        columns = len(mark["x"]) if kind == "band" and isinstance(mark["x"], list) else len(rows[0])
        for row in rows:
            check_numbers(row, f"{where}, values", at, columns)
    if kind == "matrix":
        for key, length in (("rows", len(mark["values"])), ("columns", len(mark["values"][0]))):
            labels = optional(mark, key, list, [str(i) for i in range(length)], where, at)
            if len(labels) != length:
                raise ValueError(f"expected {where}, {length} {key}, as many as values has; got {len(labels)} {at}")
        for key, empty in (("center", 0.0), ("limit", None)):
            optional(mark, key, float, empty, where, at)
        return
    lengths = {"hist": ("counts", "edges")}.get(kind, ())
    for key in (k for k in MARKS[kind] if k not in ("name", "role") and (kind, k) != ("band", "values")):
        check_numbers(
            mark[key],
            f"{where}, {key}",
            at,
            len(mark["x"]) if "x" in MARKS[kind] and isinstance(mark["x"], list) else None,
        )
    if lengths and len(mark["edges"]) != len(mark["counts"]) + 1:
        counts, edges = len(mark["counts"]), len(mark["edges"])
        raise ValueError(f"expected {where}, one edge more than counts; got {edges} edges, {counts} counts {at}")
