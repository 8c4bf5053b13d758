"""From verify.json to one page that opens from disk: other frameworks' answers beside the limits of rounding.

Nothing is estimated here: numbers are sorted, grouped, counted, and of each group the worst is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npmoe.files import write
from npmoe.report.battery_read import read, size
from npmoe.report.battery_strips import pictures
from npmoe.report.page import HERE, world
from npmoe.report.style import number

#: Each verdict, from best to worst: the class that gives its colour, its glyph in the page's sprite, and the verb that
#: goes with a count of one or of several.
LOOKS = {
    "agrees": ("good", "check", "agrees", "agree"),
    "undecided": ("same", "waves", "on ties", "on ties"),
    "doubtful": ("turned", "question", "doubtful", "doubtful"),
    "differs": ("wrong", "cross", "differs", "differ"),
    "no answer": ("absent", "dash", "no answer", "no answer"),
}
STEPS = (0.1, 0.25, 0.5, 1.0)  # of the error over its limit: where the table's shade deepens


class Cell(NamedTuple):
    """A group of answers of one framework in one arithmetic: how many, the one nearest to its limit, what is off."""

    answers: int
    nearest: dict[str, Any] | None
    step: int
    marks: list[tuple[str, int]]


def write_battery(data: dict[str, Any] | Path, output: Path) -> Path:
    """Write output/verify.html, one page that needs no server, no network and no script, from a battery's JSON alone.

    Parameters
    ----------
    data : what `npmoe.battery.table.Battery.json` gives, or the path of a file that holds it. It may also have
        "command", the call that repeats it.
    output : folder, made if it is not there.

    Returns
    -------
    Path : of the page. It is written whole or not at all.

    Raises
    ------
    ValueError : that names field and file where the JSON is missing, cut off or of another shape; nothing was written.
    """
    found = read(data)
    templates = world()
    templates.filters |= {"units": units, "short": lambda value: number(value, 3 if value and abs(value) >= 100 else 2)}
    columns = _columns(found)
    page = templates.get_template("battery.html.j2").render(
        data=found,
        front=(Path(output) / "index.html").exists(),
        own_css=(HERE / "battery.css").read_text(encoding="utf-8"),
        words=_looks(found),
        headline=_headline(found),
        skipped=[name for name in found["asked"] if _skipped(found["frameworks"][name])],
        present=[name for name in found["asked"] if not _skipped(found["frameworks"][name])],
        columns=columns,
        heads=[(name, sum(c[0] == name for c in columns)) for name in dict.fromkeys(c[0] for c in columns)],
        rows=_rows(found, columns),
        steps=STEPS,
        pictures=pictures(found, columns),
        off=_off(found),
        exact=_exact(found),
        frameworks=_by_framework(found),
    )
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "verify.html"
    write(path, page.encode())
    return path


def units(value: float) -> str:
    """A number of eps, its point below the points of others: two decimals under 10, else three digits at most.

    Examples
    --------
    >>> units(0.625), units(13.4).strip(), units(3998.0).strip(), units(1e-9), units(float("inf")).strip()
    ('0.62', '13', '4000', '<0.01', '∞')
    """
    blank = "\u2008\u2007\u2007"  # as wide as a point and two digits
    if math.isnan(value):
        return "NaN" + blank
    if 0 < abs(value) < 0.005:
        return "<0.01" if value > 0 else ">−0.01"
    if 0 < abs(value) < 9.995:
        return f"{value:.2f}".replace("-", "−")
    if abs(value) < 1e5:
        return f"{float(f'{value:.3g}'):.0f}".replace("-", "−") + blank
    return number(value, 2) + blank


# ---- the headline -------------------------------------------------------------------------------------------------


def _skipped(version: str) -> bool:
    return version.startswith(("missing", "broken"))


def _looks(found: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """How each of the verdicts looks; a new one looks like an open question."""
    return {word: LOOKS.get(word, ("open", "dot", word, word)) for word in found["verdicts"]}


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """Counts of answers, frameworks and arithmetics, and for each verdict how many and the verb."""
    entries, looks = found["entries"], _looks(found)
    counts = []
    for word in found["verdicts"]:
        count = sum(entry["verdict"] == word for entry in entries)
        if count or word != "no answer":
            counts.append((word, count, looks[word][2 if count == 1 else 3]))
    sizes = {key: len({entry[key] for entry in entries}) for key in ("framework", "arithmetic", "case")}
    return {"answers": len(entries), "counts": counts, **sizes}


# ---- the table ----------------------------------------------------------------------------------------------------


def _columns(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Framework and arithmetic, in the order in which they were asked."""
    there = {(entry["framework"], entry["arithmetic"]) for entry in found["entries"]}
    return [(name, a) for name in dict.fromkeys(found["asked"]) for a in found["arithmetics"] if (name, a) in there]


def _rows(found: dict[str, Any], columns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each group of answers: its words, how many answers a column has, and its cells."""
    place: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in found["entries"]:
        place.setdefault((entry["group"], entry["framework"], entry["arithmetic"]), []).append(entry)
    rows = []
    for group, words in found["groups"].items():
        cells = [_cell(place.get((group, *column), []), found) for column in columns]
        counts = sorted({cell.answers for cell in cells if cell.answers})
        if counts:
            each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            rows.append({"words": words[:1].upper() + words[1:], "each": each, "cells": cells})
    return rows


def _cell(entries: Sequence[dict[str, Any]], found: dict[str, Any]) -> Cell:
    judged = [entry for entry in entries if entry["judged"]]
    nearest = max(judged, key=lambda entry: size(entry["ratio"]), default=None)
    step = sum(not nearest["ratio"] <= edge for edge in STEPS) if nearest else 0
    counts = [(word, sum(entry["verdict"] == word for entry in entries)) for word in found["verdicts"]]
    marks = [(word, count) for word, count in counts if count and word != "agrees"]
    if any(word in ("doubtful", "differs") for word, _ in marks):
        step = len(STEPS)
    return Cell(len(entries), nearest, step, marks)


# ---- what is off, and the tables below ----------------------------------------------------------------------------


def _off(found: dict[str, Any]) -> dict[str, Any]:
    """Entries that are doubtful or worse, those that did not come last, each with its report; and the reports."""
    order = list(found["verdicts"])
    entries = [entry for entry in found["entries"] if entry["verdict"] not in ("agrees", "undecided")]
    entries.sort(key=lambda entry: (not entry["judged"], -order.index(entry["verdict"]), -size(entry["ratio"])))
    shown = []
    for entry in entries:
        head = f"{entry['framework']}, {entry['arithmetic']}: {entry['case']}:"
        report = next((index for index, text in enumerate(found["off"]) if text.startswith(head)), None)
        shown.append((entry, report))
    return {"entries": shown, "reports": [text.partition("\n") for text in found["off"]]}


def _exact(found: dict[str, Any]) -> dict[str, Any]:
    """Everybody against 50 digits: the largest of each group, and every case."""
    who = list(dict.fromkeys(row["who"] for row in found["exact"]))
    groups = []
    for group, words in found["groups"].items():
        cells = [[r["units"] for r in found["exact"] if r["group"] == group and r["who"] == name] for name in who]
        if any(cells):
            groups.append((words[:1].upper() + words[1:], _marked([max(c, key=size) if c else None for c in cells])))
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for row in found["exact"]:
        cases.setdefault(row["case"], {}).setdefault(row["answer"], {})[row["who"]] = row["units"]
    shown = [
        (case, [(answer, _marked([got.get(name) for name in who])) for answer, got in answers.items()])
        for case, answers in cases.items()
    ]
    return {"who": who, "groups": groups, "cases": shown}


def _marked(cells: Sequence[float | None]) -> list[tuple[float | None, bool]]:
    """Numbers of a row, each with whether it is the least of several, as far as the page shows them."""
    shown = [None if value is None else units(value) for value in cells]
    known = [value for value in cells if value is not None]
    least = units(min(known, key=size)) if len({text for text in shown if text is not None}) > 1 else None
    return [(value, text is not None and text == least) for value, text in zip(cells, shown, strict=True)]


def _by_framework(found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each framework the cases, balance losses behind models, and of each answer the entry in each arithmetic."""
    shown = []
    for name in dict.fromkeys(found["asked"]):
        entries = [entry for entry in found["entries"] if entry["framework"] == name]
        arithmetics = [a for a in found["arithmetics"] if any(entry["arithmetic"] == a for entry in entries)]
        blocks: dict[tuple[bool, str], dict[str, list[dict[str, dict[str, Any]]]]] = {}
        for entry in entries:
            # a loss may be named like a model
            block = blocks.setdefault((entry["group"].startswith("balance "), entry["case"]), {})
            lines = block.setdefault(entry["answer"], [])
            line = next((line for line in lines if entry["arithmetic"] not in line), None)
            if line is None:
                lines.append(line := {})
            line[entry["arithmetic"]] = entry
        if not entries:
            continue
        cases = [
            {
                "name": case,
                "loss": loss,
                "lines": [
                    {"answer": answer, "cells": [line.get(a) for a in arithmetics], "remarks": _remarks(line)}
                    for answer, lines in block.items()
                    for line in lines
                ],
            }
            for (loss, case), block in sorted(blocks.items(), key=lambda item: item[0][0])
        ]
        off = sum(entry["verdict"] not in ("agrees", "undecided") for entry in entries)
        shown.append({"name": name, "count": len(entries), "off": off, "arithmetics": arithmetics, "cases": cases})
    return shown


def _remarks(line: dict[str, dict[str, Any]]) -> list[str]:
    """Remarks of an answer, each once, with the arithmetics to which it belongs unless it belongs to all."""
    said: dict[str, list[str]] = {}
    for arithmetic, entry in line.items():
        if entry["remark"]:
            said.setdefault(entry["remark"], []).append(arithmetic)
    return [text if len(names) == len(line) else f"{', '.join(names)}: {text}" for text, names in said.items()]
