"""From verify.json to one page that opens from disk: other frameworks' answers beside the limits of rounding.

Nothing is estimated here: numbers are sorted, grouped, counted, and of each group the worst is shown.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npmoe.report.page import HERE, _world, _write
from npmoe.report.read import _need, _optional, read_json
from npmoe.report.style import number, plain

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
ENTRY = {"framework": str, "arithmetic": str, "case": str, "answer": str, "group": str, "verdict": str}
NUMBERS = ("units", "usual", "worst", "ratio")
COMMAND = "python -m npmoe.verify"
WHAT = "the battery's results"

# the strips: heights in pixels, widths in thousandths of the plot
HEIGHT, FLOOR, BIN = 58, 37, 8
NOTHING, LEFT, RIGHT, ENDLESS = 10, 76, 924, 988
SPAN = (1e-3, 1e5)  # eps that the picture tells apart: rows that nearly cancel have units as small as one likes


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
    found = _read(data)
    world = _world()
    world.filters |= {"units": units, "short": lambda value: number(value, 3 if value and abs(value) >= 100 else 2)}
    columns = _columns(found)
    page = world.get_template("battery.html.j2").render(
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
        pictures=_pictures(found, columns),
        off=_off(found),
        exact=_exact(found),
        frameworks=_by_framework(found),
    )
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "verify.html"
    _write(path, page.encode())
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


# ---- reading -------------------------------------------------------------------------------------------------------


def _read(data: dict[str, Any] | Path) -> dict[str, Any]:
    """The battery's JSON, checked, with numbers for the words that stand for infinities."""
    if isinstance(data, dict):
        found, at = copy.deepcopy(data), "in the data given"
        if found.get("schema") != 1:
            raise ValueError(f"expected schema 1 of {WHAT} {at}; got {found.get('schema')!r}")
    else:
        found, at = read_json(Path(data), WHAT), f"in {data}"
    _need(found, "npmoe", str, WHAT, at)
    for key in ("environment", "frameworks", "verdicts", "groups", "arithmetics"):
        _need(found, key, dict, WHAT, at)
    for key in ("asked", "entries", "exact", "second", "elementary", "off"):
        _need(found, key, list, WHAT, at)
    _need(found, "verdict", str, WHAT, at, tuple(found["verdicts"]))
    _optional(found, "command", str, COMMAND, WHAT, at)
    for key in ("frameworks", "verdicts", "groups"):
        for name in found[key]:
            _need(found[key], name, str, key, at)
    for name in found["arithmetics"]:
        _need(found["arithmetics"], name, float, "arithmetics", at)
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
            _need(row, key, kind, where, at, (tuple(found[among]) or ("none",)) if among else ())
        if row["framework"] not in found["asked"]:
            asked = ", ".join(found["asked"]) or "none"
            raise ValueError(f"expected {where}, framework among those asked ({asked}); got {row['framework']!r} {at}")
        _optional(row, "remark", str, "", where, at)
        _numbers(row, NUMBERS, where, at)
        row["judged"] = _judged(row)
    for where, row in _numbered(found["exact"], "exact", at):
        for key in ("case", "answer", "group", "who"):
            _need(row, key, str, where, at, (tuple(found["groups"]) or ("none",)) if key == "group" else ())
        _numbers(row, ("units",), where, at)
    for where, row in _numbered(found["second"], "second", at):
        _need(row, "case", str, where, at)
        _need(row, "undecided", int, where, at)
        _numbers(row, ("complex_step", "richardson"), where, at)
    for where, row in _numbered(found["elementary"], "elementary", at):
        _need(row, "name", str, where, at)
        _need(row, "dtype", str, where, at)
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
        row[key] = float(_need(row, key, float, where, at))


# ---- the headline --------------------------------------------------------------------------------------------------


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


# ---- the table -----------------------------------------------------------------------------------------------------


def _columns(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Framework and arithmetic, in the order in which they were asked."""
    there = {(entry["framework"], entry["arithmetic"]) for entry in found["entries"]}
    return [(name, a) for name in dict.fromkeys(found["asked"]) for a in found["arithmetics"] if (name, a) in there]


def _judged(entry: dict[str, Any]) -> bool:
    """Whether there was something to measure: not so where no answer came, or all lay on ties."""
    return entry["units"] != 0 or entry["usual"] != 0 or entry["verdict"] in ("agrees", "doubtful", "differs")


def _size(value: float) -> float:
    """To sort by: what is no number is worse than any."""
    return math.inf if math.isnan(value) else value


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
    nearest = max(judged, key=lambda entry: _size(entry["ratio"]), default=None)
    step = sum(not nearest["ratio"] <= edge for edge in STEPS) if nearest else 0
    counts = [(word, sum(entry["verdict"] == word for entry in entries)) for word in found["verdicts"]]
    marks = [(word, count) for word, count in counts if count and word != "agrees"]
    if any(word in ("doubtful", "differs") for word, _ in marks):
        step = len(STEPS)
    return Cell(len(entries), nearest, step, marks)


# ---- the picture ---------------------------------------------------------------------------------------------------


def _pictures(found: dict[str, Any], columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """For each framework and arithmetic two strips of dots: errors over their limits' ticks, errors over limits."""
    judged = [entry for entry in found["entries"] if entry["judged"]]
    strips = {c: [e for e in judged if (e["framework"], e["arithmetic"]) == c] for c in columns}
    by_size, size_ticks = _axis([entry[key] for entry in judged for key in ("units", "usual")], SPAN)
    by_ratio, ratio_ticks = _axis([entry["ratio"] for entry in judged] + [1.0])
    tallest = {
        key: max((_tallest(entries, key, place) for entries in strips.values()), default=1)
        for key, place in (("units", by_size), ("ratio", by_ratio))
    }
    shown = []
    for (framework, arithmetic), entries in strips.items():
        limits = [place for entry in entries if (place := by_size(entry["usual"])) is not None]
        errors = [entry["units"] for entry in entries if math.isfinite(entry["units"])]
        allowed = [entry["usual"] for entry in entries if math.isfinite(entry["usual"])]
        off = [(word, sum(entry["verdict"] == word for entry in entries)) for word in found["verdicts"]]
        shown.append(
            {
                "framework": framework,
                "arithmetic": arithmetic,
                "count": len(entries),
                "off": [(word, count) for word, count in off if count and word != "agrees"],
                "errors": (min(errors, default=0.0), max(errors, default=0.0)),
                "allowed": (min(allowed, default=0.0), max(allowed, default=0.0)),
                "ratio": max((_size(entry["ratio"]) for entry in entries), default=0.0),
                "sizes": _dots(entries, "units", by_size, tallest["units"]),
                "ratios": _dots(entries, "ratio", by_ratio, tallest["ratio"]),
                "limits": (min(limits), max(limits)) if limits else None,
                "rug": "".join(f"M{x} {FLOOR + 7}v9" for x in sorted(set(limits))),
            }
        )
    return {
        "strips": shown,
        "height": HEIGHT,
        "floor": FLOOR,
        "one": by_ratio(1.0),
        "size_ticks": size_ticks,
        "ratio_ticks": ratio_ticks,
    }


def _axis(
    values: Sequence[float], span: tuple[float, float] = (0.0, math.inf)
) -> tuple[Callable[[float], int | None], list[tuple[int, str]]]:
    """A map from a value to thousandths of the width on a log axis, and ticks with their labels.

    Zeros, and what is below the span, stand apart at the left, what is above it and what is no number at the right.
    """
    sizes = [value for value in values if 0 < value < math.inf and span[0] <= value <= span[1]]
    low, high = (math.log10(min(sizes)), math.log10(max(sizes))) if sizes else (0.0, 1.0)
    low = max(low, high - 9)  # errors of 1e-20 are as good as none, and would press the rest together
    low, high = (low, high) if high - low > 1 else ((low + high - 1) / 2, (low + high + 1) / 2)

    def place(value: float) -> int | None:
        if value == 0 or value < span[0]:
            return NOTHING
        if not 0 < value < math.inf or value > span[1]:
            return ENDLESS
        return round(LEFT + (RIGHT - LEFT) * (max(math.log10(value), low) - low) / (high - low))

    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    every = max(1, math.ceil(len(powers) / 6))
    ticks = [(place(10.0**p), plain(10.0**p)) for p in powers if p % every == 0]
    ticks += [(NOTHING, "≈0" if span[0] else "0")] if any(v <= span[0] for v in values) else []
    endless = "∞" if math.isinf(span[1]) else "≫"
    ticks += [(ENDLESS, endless)] if any(not v <= span[1] or math.isinf(v) for v in values) else []
    return place, sorted((x, text) for x, text in ticks if x is not None)


def _column(value: float, place: Callable[[float], int | None]) -> int:
    """Where a value's dot stands: columns side by side, none of them across 1; zeros and infinities have their own."""
    x = place(value) or 0
    if x in (NOTHING, ENDLESS):
        return x
    one = place(1.0) or 0
    return one + (x - one) // BIN * BIN + BIN // 2


def _tallest(entries: Sequence[dict[str, Any]], key: str, place: Callable[[float], int | None]) -> int:
    """How many dots stand on each other where they are most, within the axis."""
    columns = Counter(_column(entry[key], place) for entry in entries if 0 < entry[key] < math.inf)
    return max(columns.values(), default=1)


def _dots(
    entries: Sequence[dict[str, Any]], key: str, place: Callable[[float], int | None], tallest: int
) -> dict[str, Any]:
    """Dots in columns: a path of those that agree, the others one by one, above them and where they belong."""
    counts = Counter(_column(entry[key], place) for entry in entries)
    high: Counter[int] = Counter()
    path, apart = [], []
    for entry in sorted(entries, key=lambda entry: (entry["verdict"] != "agrees", _size(entry[key]))):
        x = _column(entry[key], place)
        # what stands beside the axis may be pressed together: it says nothing of the others
        step = min(3.6, (FLOOR - 7) / (counts[x] if x in (NOTHING, ENDLESS) else tallest))
        y = f"{FLOOR - 3 - high[x] * step:.1f}".removesuffix(".0")
        high[x] += 1
        if entry["verdict"] == "agrees":
            path.append(f"M{x} {y}h0")
        else:
            apart.append({"x": f"{(place(entry[key]) or 0) / 10:.1f}", "y": y, "entry": entry})
    return {"path": "".join(path), "apart": apart}


# ---- what is off, and the tables below -----------------------------------------------------------------------------


def _off(found: dict[str, Any]) -> dict[str, Any]:
    """Entries that are doubtful or worse, those that did not come last, each with its report; and the reports."""
    order = list(found["verdicts"])
    entries = [entry for entry in found["entries"] if entry["verdict"] not in ("agrees", "undecided")]
    entries.sort(key=lambda entry: (not entry["judged"], -order.index(entry["verdict"]), -_size(entry["ratio"])))
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
            groups.append((words[:1].upper() + words[1:], _marked([max(c, key=_size) if c else None for c in cells])))
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
    least = units(min(known, key=_size)) if len({text for text in shown if text is not None}) > 1 else None
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
