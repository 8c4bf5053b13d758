"""Results and figures as they lie on disk, read and checked: what was expected, what came, in which file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from npmoe.ledger import split
from npmoe.report.style import ROLES

VERDICTS = (
    "reproduced",
    "so does the null",
    "reversed",
    "not reproduced",
    "undecided",
    "proved",
    "refuted",
    "not tested",
    "no verdict",
)
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
WORDS = {
    str: "text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file of schema 1, NaN and infinities as None. Raises ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"expected {what} in {path}; there is no such file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected {what}, whole and in JSON, in {path}; got {error} (was it cut off?)") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected {what}, an object with schema 1, in {path}; got {_shown(found)}")
    if found.get("schema") != 1:
        raise ValueError(f"expected schema 1 of {what} in {path}; got {_shown(found.get('schema'))}")
    return found


def read_results(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of each paper in a ledger, with every optional field filled in, and the questions that tie them.

    Raises ValueError that names field and file.
    """
    ledger = read_json(path, "the results of a run")
    at = f"in {path}"
    seen: set[str] = set()
    for index, claim in enumerate(_need(ledger, "claims", list, "results", at)):
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
    ties = _optional(ledger, "ties", list, [], "results", at)
    for tie in ties:
        if not isinstance(tie, dict):
            raise ValueError(f"expected a tie to be an object; got {_shown(tie)} {at}")
        _need(tie, "says", str, "a tie", at)
        _need(tie, "claims", list, "a tie", at)
    return parts, ties


def _part(results: dict[str, Any], at: str) -> dict[str, Any]:
    """Check the results of one paper, all but its claims."""
    word = _need(results, "word", str, "results", at)
    if not re.fullmatch(r"[a-z0-9]+", word):
        raise ValueError(f"expected a paper's word of letters and digits, the name of its page; got {word!r} {at}")
    _need(results, "title", str, "results", at)
    _need(results, "mode", str, "results", at, ("default", "full", "quick"))
    paper = _optional(results, "paper", dict, {}, "results", at)
    for key in ("id", "title", "cite"):
        _optional(paper, key, str, "", "paper", at)
    for key, empty in (("npmoe", ""), ("command", "")):
        _optional(results, key, str, empty, "results", at)
    _optional(results, "environment", dict, {}, "results", at)
    for key in ("notes", "figures"):
        _optional(results, key, list, [], "results", at)
    _optional(results, "seeds", int, None, "results", at)
    return results


def _claim(claim: Any, where: str, at: str) -> None:
    if not isinstance(claim, dict):
        raise ValueError(f"expected {where} to be an object; got {_shown(claim)} {at}")
    where = f"claim {_need(claim, 'id', str, where, at)}"
    _need(claim, "says", str, where, at)
    _need(claim, "verdict", str, where, at, VERDICTS)
    for key in ("paper_value", "statistic", "unit", "headline", "rule", "measured", "note", "repeat"):
        _optional(claim, key, str, "", where, at)
    _optional(claim, "margin", float, None, where, at)
    size = _optional(claim, "size", dict, {}, where, at)
    for key, empty in (("measured", ""), ("paper", ""), ("judgement", "not given")):
        _optional(size, key, str, empty, f"{where}, size", at)
    agreement = _optional(claim, "agreement", dict, {}, where, at)
    for key in ("holds", "reversed", "of"):
        _optional(agreement, key, int, 0, f"{where}, agreement", at)
    _optional(claim, "left_out", list, [], where, at)
    for item in _optional(claim, "beside", list, [], where, at):
        _interval(item, f"{where}, beside", at)
        _optional(item, "says", str, "", f"{where}, beside", at)
    for reading in _need(claim, "readings", list, where, at):
        _reading(reading, where, at)
    for statement in _optional(claim, "statements", list, [], where, at):
        _statement(statement, where, at)


def _reading(reading: Any, where: str, at: str) -> None:
    name = _interval(reading, f"{where}, a reading", at)
    where = f"{where}, reading {name!r}"
    _need(reading, "primary", bool, where, at)
    _need(reading, "kind", str, where, at, ("measure", "train"))
    _need(reading, "verdict", str, where, at, VERDICTS)
    _optional(reading, "statistic", str, "", where, at)
    _optional(reading, "margin", float, None, where, at)
    for null in _optional(reading, "nulls", list, [], where, at):
        null_where = f"{where}, null {_interval(null, f'{where}, a null', at)!r}"
        _need(null, "kind", str, null_where, at, ("chance", "control"))
        for key in ("excess_low", "excess_high"):
            _optional(null, key, float, None, null_where, at)


def _statement(statement: Any, where: str, at: str) -> None:
    if not isinstance(statement, dict):
        raise ValueError(f"expected an exact statement of {where} to be an object; got {_shown(statement)} {at}")
    where = f"{where}, statement {_need(statement, 'name', str, f'{where}, a statement', at)!r}"
    _need(statement, "verdict", str, where, at, VERDICTS)
    for key in ("says", "example"):
        _optional(statement, key, str, "", where, at)
    for key in ("checked", "violations"):
        _need(statement, key, int, where, at)
    _optional(statement, "worst", float, None, where, at)
    _optional(statement, "beside", bool, False, where, at)


def _interval(item: Any, where: str, at: str) -> str:
    """Check what readings, nulls and numbers beside share: a name, values of each seed, two ends."""
    if not isinstance(item, dict):
        raise ValueError(f"expected {where} to be an object; got {_shown(item)} {at}")
    name = _need(item, "name", str, where, at)
    _numbers(_optional(item, "values", list, [], f"{where} {name!r}", at), f"{where} {name!r}, values", at)
    for key in ("mean", "low", "high"):
        _optional(item, key, float, None, f"{where} {name!r}", at)
    return name


def read_figure(path: Path) -> dict[str, Any]:
    """A figure as data, checked mark by mark. Raises ValueError that names mark, panel and file."""
    figure = read_json(path, "a figure's data")
    at = f"in {path}"
    for key in ("id", "title"):
        _need(figure, key, str, "the figure", at)
    for key in ("caption", "source"):
        _optional(figure, key, str, "", "the figure", at)
    _optional(figure, "claims", list, [], "the figure", at)
    panels = _need(figure, "panels", list, "the figure", at)
    if not panels:
        raise ValueError(f"expected at least one panel; got none {at}")
    for index, panel in enumerate(panels):
        where = f"panel {index + 1}"
        if not isinstance(panel, dict):
            raise ValueError(f"expected {where} to be an object; got {_shown(panel)} {at}")
        _optional(panel, "title", str, "", where, at)
        for name in ("x", "y"):
            axis = _optional(panel, name, dict, {}, where, at)
            _optional(axis, "label", str, "", f"{where}, {name}", at)
            _optional(axis, "scale", str, "linear", f"{where}, {name}", at)
            if axis["scale"] not in SCALES:
                raise ValueError(f"expected {where}, {name}.scale one of {SCALES}; got {axis['scale']!r} {at}")
        for number, mark in enumerate(_need(panel, "marks", list, where, at)):
            _mark(mark, f"{where}, mark {number + 1}", at)
    return figure


def _mark(mark: Any, where: str, at: str) -> None:
    if not isinstance(mark, dict):
        raise ValueError(f"expected {where} to be an object; got {_shown(mark)} {at}")
    kind = _need(mark, "kind", str, where, at, tuple(MARKS))
    where = f"{where} ({kind})"
    missing = [key for key in MARKS[kind] if mark.get(key) is None]
    if missing:
        raise ValueError(f"expected {where} to have {', '.join(MARKS[kind])}; missing {', '.join(missing)} {at}")
    _optional(mark, "name", str, "", where, at)
    _optional(mark, "role", str, "null" if kind in ("vline", "ribbon") else "other", where, at)
    if mark["role"] not in ROLES:
        raise ValueError(f"expected {where}, role one of {', '.join(ROLES)}; got {_shown(mark['role'])} {at}")
    if kind in ("level", "vline"):
        _need(mark, "y" if kind == "level" else "x", float, where, at)
        return
    if kind in ("band", "matrix"):
        rows = _need(mark, "values", list, where, at)
        if not rows or not all(isinstance(row, list) for row in rows):
            raise ValueError(f"expected {where}, values to be a list of rows; got {_shown(rows)} {at}")
        columns = len(mark["x"]) if kind == "band" and isinstance(mark["x"], list) else len(rows[0])
        for row in rows:
            _numbers(row, f"{where}, values", at, columns)
    if kind == "matrix":
        for key, length in (("rows", len(mark["values"])), ("columns", len(mark["values"][0]))):
            labels = _optional(mark, key, list, [str(i) for i in range(length)], where, at)
            if len(labels) != length:
                raise ValueError(f"expected {where}, {length} {key}, as many as values has; got {len(labels)} {at}")
        for key, empty in (("center", 0.0), ("limit", None)):
            _optional(mark, key, float, empty, where, at)
        return
    lengths = {"hist": ("counts", "edges")}.get(kind, ())
    for key in (k for k in MARKS[kind] if k not in ("name", "role") and (kind, k) != ("band", "values")):
        _numbers(
            mark[key],
            f"{where}, {key}",
            at,
            len(mark["x"]) if "x" in MARKS[kind] and isinstance(mark["x"], list) else None,
        )
    if lengths and len(mark["edges"]) != len(mark["counts"]) + 1:
        counts, edges = len(mark["counts"]), len(mark["edges"])
        raise ValueError(f"expected {where}, one edge more than counts; got {edges} edges, {counts} counts {at}")


def _numbers(found: Any, where: str, at: str, length: int | None = None) -> None:
    """Check a list of numbers, null where undefined."""
    good = isinstance(found, list) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in found
    )
    if not good:
        raise ValueError(f"expected {where} to be a list of numbers (null where undefined); got {_shown(found)} {at}")
    if length is not None and len(found) != length:
        raise ValueError(f"expected {where} to have {length} numbers, one for each x or column; got {len(found)} {at}")


def _need(found: dict[str, Any], key: str, kind: type, where: str, at: str, among: tuple[str, ...] = ()) -> Any:
    if key not in found:
        raise ValueError(
            f"expected {where} to have {key!r}, {WORDS[kind]}; it has {', '.join(found) or 'nothing'} {at}"
        )
    value = found[key]
    fits = isinstance(value, int | float) and not isinstance(value, bool) if kind is float else isinstance(value, kind)
    if not fits or (kind is int and isinstance(value, bool)):
        raise ValueError(f"expected {where}, {key} to be {WORDS[kind]}; got {_shown(value)} {at}")
    if among and value not in among:
        raise ValueError(f"expected {where}, {key} one of {', '.join(among)}; got {value!r} {at}")
    return value


def _optional(found: dict[str, Any], key: str, kind: type, empty: Any, where: str, at: str) -> Any:
    """As `_need`, but a missing or null field is filled in."""
    if found.get(key) is None:
        found[key] = empty
        return empty
    return _need(found, key, kind, where, at)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
