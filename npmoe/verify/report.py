"""A report: what `compare` found, in words and as plain data."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npmoe.calculus import words as words_of
from npmoe.verify.diagnose import Clue
from npmoe.verify.judge import Part, worst
from npmoe.verify.reference import ROWWISE, kind_of
from npmoe.verify.rounding import ARITHMETICS
from npmoe.verify.text import number, table

__all__ = ["Report", "plain", "words"]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Report:
    """What `compare` found; prints as a table.

    Attributes
    ----------
    name, layer : of the layer, and its kind and sizes in words.
    arithmetic : the candidate's.
    parts : one for each answer.
    margin, noise : routing margin of each token and what rounding may move it by, (n,); infinite and 0 without routing.
    undecided : tokens (n,) whose choice of experts is within rounding, or nearer than the candidate's step.
    chosen : (n, k), or None.
    problems : what is wrong beside numbers: exceptions, a changed input, answers that are not the same twice.
    clues : where it shows, and what it looks like.
    notes : what the candidate says of itself: parameters that a mapping leaves out, how it was asked.
    """

    name: str
    layer: str
    arithmetic: str
    parts: tuple[Part, ...]
    margin: Array
    noise: Array
    undecided: Array
    chosen: Array | None
    problems: tuple[str, ...] = ()
    clues: tuple[Clue, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst of the parts' verdicts; a problem beside numbers is a difference."""
        return worst([part.verdict for part in self.parts] + ["differs"] * bool(self.problems and self.parts))

    @property
    def ok(self) -> bool:
        """Whether all that could be decided agrees."""
        return self.verdict == "agrees"

    def __getitem__(self, name: str) -> Part:
        """The part of an answer by name."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f"expected one of the answers {', '.join(part.name for part in self.parts)}; got {name!r}")

    def __str__(self) -> str:
        return words(self)

    def json(self) -> dict[str, Any]:
        """The report as plain data."""
        return plain(self)

    @words_of.never_raises
    def __repr__(self) -> str:
        return words_of.cut(f"Report({self.name}: {self.verdict}, {len(self.parts)} answers", f", {self.arithmetic})")


def words(report: Report) -> str:
    """The whole report: first what matters most."""
    n = len(report.margin)
    eps = ARITHMETICS[report.arithmetic].eps
    computed = f"; {report.arithmetic}, eps = {eps:.3g}" if report.parts else ""
    lines = [f"{report.name}: {report.verdict}"]
    lines.append(f"  {report.layer}; {n} token{'s' * (n != 1)}{computed}")
    lines += [f"  ! {problem}" for problem in report.problems]
    lines += _clues(report, "looks like", "likely cause")
    if judged := [part for part in report.parts if len(part.units)]:
        lines += ["", "  errors in units of eps times the largest entry of their row", *_errors(judged)]
    for part in report.parts:
        lines += [f"  {part.name}: {remark}" for remark in part.remarks]
    lines += [f"  {note}" for note in report.notes]
    lines += _ties(report)
    lines += _clues(report, "where", "where it shows")
    off = [part for part in report.parts if part.verdict in ("doubtful", "differs")]
    for part in off[:3]:
        lines += ["", f"  {part.name}, worst rows", *_rows(report, part)]
    if len(off) > 3:
        lines.append(f"  (and the rows of {len(off) - 3} more answers: report[name].rows())")
    return "\n".join(lines)


def _errors(judged: list[Part]) -> list[str]:
    """The table of answers; of many parameters that agree the one with the largest error speaks for the rest."""
    fine = [part for part in judged if part.verdict == "agrees"]
    kept = [part for part in judged if part.verdict != "agrees" or len(fine) <= _MANY or "." not in part.name]
    head = ["answer", "verdict", "error", "usual limit", "worst case", "row", "absolute"]
    lines = table(head, [_line(part) for part in kept])
    if folded := [part for part in fine if part not in kept]:
        most = max(folded, key=lambda part: part.rows(1)[0].units)
        lines.append(f"  {len(folded)} more answers agree, by {number(most.largest)} at most ({most.name})")
    return lines


def _clues(report: Report, kind: str, title: str) -> list[str]:
    """The clues of a kind under their title, if there are any."""
    found = [clue for clue in report.clues if clue.kind == kind]
    if not found:
        return []
    lines = [f"    {clue.answer}: {clue.says}" for clue in found[:_CLUES]]
    return ["", f"  {title}", *lines, *[f"    (and {len(found) - _CLUES} more)"] * (len(found) > _CLUES)]


def _line(part: Part) -> list[str]:
    row = part.rows(1)[0]
    cells = [part.name, part.verdict, number(row.units), number(row.usual), number(row.worst), str(row.row)]
    return [*cells, f"{row.error:.2g}"]


def _rows(report: Report, part: Part) -> list[str]:
    rows = [row for row in part.rows(5) if row.status in ("doubtful", "differs", "undecided")]
    by_token = kind_of(part.name) in ROWWISE
    head = ["row", "error", "usual limit", "worst case", "at", "ours", "theirs"]
    head += ["margin", "experts"] if by_token and report.chosen is not None else []
    body = []
    for row in rows:
        at = "[" + ", ".join(map(str, row.at)) + "]"
        cells = [str(row.row), number(row.units), number(row.usual), number(row.worst), at]
        cells += [f"{row.ours:.9g}", f"{row.theirs:.9g}"]
        if by_token and report.chosen is not None:
            margin = report.margin[row.row]
            cells += [f"{margin:.2g}", ", ".join(map(str, report.chosen[row.row].tolist()))]
        body.append(cells)
    return ["  " + line for line in table(head, body)]


_MANY = 12  # answers that agree are listed one by one up to this number
_CLUES = 8


def _ties(report: Report) -> list[str]:
    at = np.flatnonzero(report.undecided)
    if not len(at):
        return []
    lines = ["", f"  {len(at)} of {len(report.margin)} tokens lie on a tie or nearer to one than rounding or the step:"]
    for row in at[:5].tolist():
        line = f"    row {row}: margin {report.margin[row]:.2g}, rounding {report.noise[row]:.2g}"
        found = {str(part.status[row]) for part in report.parts if len(part.status) == len(report.margin)}
        line += "; agrees with another of the choices that tie" if "other choice" in found else ""
        line += "; agrees with our choice" if found == {"agrees"} else ""
        line += "; the derivative is undefined there, and the answers differ" if "undecided" in found else ""
        line += "; agrees with none of the choices that tie" if "differs" in found else ""
        lines.append(line)
    return lines + ([f"    and {len(at) - 5} more"] if len(at) > 5 else [])


def plain(report: Report) -> dict[str, Any]:
    """The report as data for JSON: floats that are not finite become strings."""

    def safe(value: float) -> Any:
        return float(value) if np.isfinite(value) else str(value)

    parts = []
    for part in report.parts:
        rows = [
            {
                key: (safe(value) if isinstance(value, float) else list(value) if isinstance(value, tuple) else value)
                for key, value in row._asdict().items()
            }
            for row in part.rows(5)
        ]
        parts.append(
            {
                "name": part.name,
                "verdict": part.verdict,
                "error": safe(part.error.max(initial=0.0)),
                "units": safe(part.largest),
                "usual": safe(part.rows(1)[0].usual) if rows else None,
                "worst": safe(part.rows(1)[0].worst) if rows else None,
                "ratio": safe(part.ratio.max(initial=0.0)),
                "rows": rows,
                "remarks": list(part.remarks),
            }
        )
    return {
        "name": report.name,
        "layer": report.layer,
        "arithmetic": report.arithmetic,
        "verdict": report.verdict,
        "tokens": len(report.margin),
        "undecided": np.flatnonzero(report.undecided).tolist(),
        "problems": list(report.problems),
        "notes": list(report.notes),
        "parts": parts,
        "clues": [clue._asdict() for clue in report.clues],
    }
