"""verify.json, read and checked: entries with numbers for the words that stand for infinities."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from npmoe.report.fields import need, optional, read_json

ENTRY = {"framework": str, "arithmetic": str, "case": str, "answer": str, "group": str, "verdict": str}
NUMBERS = ("units", "usual", "worst", "ratio")
COMMAND = "python -m npmoe.verify"
WHAT = "the battery's results"


def read(data: dict[str, Any] | Path) -> dict[str, Any]:
    """The battery's JSON, checked, with numbers for the words that stand for infinities."""
    if isinstance(data, dict):
        found, at = copy.deepcopy(data), "in the data given"
        if found.get("schema") != 1:
            raise ValueError(f"expected schema 1 of {WHAT} {at}; got {found.get('schema')!r}")
    else:
        found, at = read_json(Path(data), WHAT), f"in {data}"
    need(found, "npmoe", str, WHAT, at)
    for key in ("environment", "frameworks", "verdicts", "groups", "arithmetics"):
        need(found, key, dict, WHAT, at)
    for key in ("asked", "entries", "exact", "second", "elementary", "off"):
        need(found, key, list, WHAT, at)
    need(found, "verdict", str, WHAT, at, tuple(found["verdicts"]))
    optional(found, "command", str, COMMAND, WHAT, at)
    for key in ("frameworks", "verdicts", "groups"):
        for name in found[key]:
            need(found[key], name, str, key, at)
    for name in found["arithmetics"]:
        need(found["arithmetics"], name, float, "arithmetics", at)
    for name in found["asked"]:
        if not isinstance(name, str) or name not in found["frameworks"]:
            known = ", ".join(found["frameworks"]) or "none"
            raise ValueError(f"expected asked among the frameworks ({known}); got {name!r} {at}")
    for index, text in enumerate(found["off"]):
        if not isinstance(text, str):
            raise ValueError(f"expected off {index + 1} to be text; got {text!r} {at}")
    for where, row in _numbered(found["entries"], "entry", at):
        for key, kind in ENTRY.items():
            among = {"verdict": "verdicts", "group": "groups", "arithmetic": "arithmetics"}.get(key)
            need(row, key, kind, where, at, (tuple(found[among]) or ("none",)) if among else ())
        if row["framework"] not in found["asked"]:
            asked = ", ".join(found["asked"]) or "none"
            raise ValueError(f"expected {where}, framework among those asked ({asked}); got {row['framework']!r} {at}")
        optional(row, "remark", str, "", where, at)
        _numbers(row, NUMBERS, where, at)
        row["judged"] = judged(row)
    for where, row in _numbered(found["exact"], "exact", at):
        for key in ("case", "answer", "group", "who"):
            need(row, key, str, where, at, (tuple(found["groups"]) or ("none",)) if key == "group" else ())
        _numbers(row, ("units",), where, at)
    for where, row in _numbered(found["second"], "second", at):
        need(row, "case", str, where, at)
        need(row, "undecided", int, where, at)
        _numbers(row, ("complex_step", "richardson"), where, at)
    for where, row in _numbered(found["elementary"], "elementary", at):
        need(row, "name", str, where, at)
        need(row, "dtype", str, where, at)
        _numbers(row, [kind + at_ for kind in ("absolute", "mixed", "relative") for at_ in ("", "_at")], where, at)
    return found


def _numbered(rows: Iterable[Any], what: str, at: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows with what to call them, once it is sure that they are objects."""
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"expected {what} {index + 1} to be an object; got {json.dumps(row)[:60]} {at}")
        yield f"{what} {index + 1}", row


def _numbers(row: dict[str, Any], keys: Iterable[str], where: str, at: str) -> None:
    """Numbers in place of numbers and of the words inf, -inf and nan."""
    for key in keys:
        if row.get(key) in ("inf", "-inf", "nan"):
            row[key] = float(row[key])
        row[key] = float(need(row, key, float, where, at))


def judged(entry: dict[str, Any]) -> bool:
    """Whether there was something to measure: not so where no answer came, or all lay on ties."""
    return entry["units"] != 0 or entry["usual"] != 0 or entry["verdict"] in ("agrees", "doubtful", "differs")


def size(value: float) -> float:
    """To sort by: what is no number is worse than any."""
    return math.inf if math.isnan(value) else value
