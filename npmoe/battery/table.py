"""What a battery found, as data and as tables: every answer beside its limits, and oracles that are neither.

An entry is one answer of one framework in one arithmetic on one case. Errors are in units of eps of that arithmetic
times the largest entry of their row. `npmoe.battery.run` asks and fills it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import npmoe
from npmoe.calculus.words import one_line
from npmoe.verify.judge import VERDICTS, worst
from npmoe.verify.rounding import ARITHMETICS
from npmoe.verify.text import number, table

__all__ = ["GROUPS", "Battery", "Entry", "Exact", "Second"]

#: Answers in words, in the order of the tables.
GROUPS = {
    "output": "output",
    "gradient": "gradient in x",
    "parameters": "gradients in parameters",
    "jacobian:reverse": "Jacobian, reverse mode",
    "jacobian:forward": "Jacobian, forward mode",
    "jacobian:batch": "Jacobian of the batch",
    "mean_jacobian": "mean Jacobian",
    "expert_jacobian": "experts' term",
    "router_jacobian": "router's term",
    "scores": "scores",
    "gates": "gates",
    "balance value": "balance losses",
    "balance scores": "their gradients",
}


class Entry(NamedTuple):
    """One answer judged: limits and error of the row that is nearest to its limit, or farthest beyond."""

    framework: str
    arithmetic: str
    case: str
    answer: str
    group: str
    verdict: str
    units: float
    usual: float
    worst: float
    ratio: float
    remark: str


class Exact(NamedTuple):
    """One answer of one implementation against mpmath, in float64: the largest error of all its entries."""

    case: str
    answer: str
    group: str
    who: str
    units: float


class Second(NamedTuple):
    """Our Jacobian of a case against two more oracles: complex step in eps, Richardson in its own error estimate."""

    case: str
    complex_step: float
    richardson: float
    undecided: int


@dataclass(frozen=True)
class Battery:
    """What a run found; prints as tables."""

    environment: dict[str, str]
    versions: dict[str, str]
    asked: tuple[str, ...]
    entries: tuple[Entry, ...]
    exact: tuple[Exact, ...]
    second: tuple[Second, ...]
    elementary: tuple[Any, ...]
    off: tuple[str, ...]

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def verdict(self) -> str:
        """The worst of all entries; "no answer" where no framework could be asked."""
        return worst([entry.verdict for entry in self.entries])

    @property
    def ok(self) -> bool:
        """Whether something was asked and nothing differs by more than rounding could explain."""
        return self.verdict in ("agrees", "undecided", "doubtful")

    def __str__(self) -> str:
        return "\n".join(_words(self))

    def json(self) -> dict[str, Any]:
        """Plain data: the report page is made of it alone."""
        return {
            "schema": 1,
            "npmoe": npmoe.__version__,
            "environment": self.environment,
            "frameworks": self.versions,
            "asked": list(self.asked),
            "verdict": self.verdict,
            "verdicts": dict(VERDICTS),
            "groups": dict(GROUPS),
            "arithmetics": {name: a.eps for name, a in ARITHMETICS.items()},
            "entries": [_safe(entry) for entry in self.entries],
            "exact": [_safe(row) for row in self.exact],
            "second": [_safe(row) for row in self.second],
            "elementary": [_safe(row) for row in self.elementary],
            "off": list(self.off),
        }


def _safe(row: Any) -> dict[str, Any]:
    """A row for JSON, which has no infinities."""
    found = row._asdict()
    return {
        key: (value if np.isfinite(value) else str(value)) if isinstance(value, float) else value
        for key, value in found.items()
    }


# ---- words ---------------------------------------------------------------------------------------------------------


def _words(battery: Battery) -> Iterator[str]:
    yield f"npmoe {npmoe.__version__} beside " + ", ".join(f"{n} {battery.versions[n]}" for n in battery.asked)
    yield "Errors in units of eps times the largest entry of their row; in brackets the limit, what rounding usually"
    yield "reaches there. Each cell has the answer nearest to its limit, and how many there were."
    for framework in dict.fromkeys(entry.framework for entry in battery.entries):
        columns = list(dict.fromkeys(e.arithmetic for e in battery.entries if e.framework == framework))
        yield ""
        head = [f"{framework} {battery.versions[framework]}", *columns]
        yield from table(head, [_group_row(battery, group, framework, columns) for group in GROUPS])
    yield from _exact_words(battery)
    for entry in battery.entries:
        if entry.verdict not in ("agrees", "undecided"):
            who = f"{entry.framework} {entry.arithmetic}, {entry.case}, {entry.answer}"
            limits = f"{number(entry.usual)} is usual and {number(entry.worst)} the worst case"
            remark = f"; {entry.remark}" * bool(entry.remark)
            yield f"  {who}: {entry.verdict}, {number(entry.units)} where {limits}{remark}"
    for text in battery.off:
        yield ""
        yield text
    if not battery.elementary:
        yield "mpmath was skipped, missing: pip install 'npmoe[verify]' has it; nothing was held against exact numbers"
    for name in battery.asked:
        if battery.versions[name].startswith(("missing", "broken")):
            yield f"{name} was skipped, {battery.versions[name]}: pip install 'npmoe[verify]' has it"
    yield ""
    counts = {verdict: sum(e.verdict == verdict for e in battery.entries) for verdict in VERDICTS}
    tally = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    yield f"{len(battery.entries)} answers{f': {tally}' if tally else ''}"
    yield f"{battery.verdict}: {VERDICTS[battery.verdict]}"


def _exact_words(battery: Battery) -> Iterator[str]:
    if battery.exact:
        who = list(dict.fromkeys(row.who for row in battery.exact))
        cases = len({row.case for row in battery.exact})
        yield ""
        yield f"Who is right in the last digits: float64 against mpmath at 50 digits, {cases} small cases"
        yield from table(["largest error", *who], _exact_rows(battery, who))
    if battery.second:
        most = max(battery.second, key=lambda row: row.complex_step)
        farthest = max(row.richardson for row in battery.second)
        yield ""
        held = f"{len(battery.second)} case{'s' * (len(battery.second) != 1)}"
        yield f"Our Jacobians beside two more oracles, {held}: complex step within"
        yield f"{number(most.complex_step)} eps ({most.case}), Richardson within {number(farthest)} of its own error"
        yield f"estimate; {sum(r.undecided for r in battery.second)} tokens lie on ties, where it says nothing"
    yield ""


def _group_row(battery: Battery, group: str, framework: str, columns: Sequence[str]) -> list[str]:
    cells = [GROUPS[group]]
    for arithmetic in columns:
        found = [e for e in battery.entries if (e.framework, e.arithmetic, e.group) == (framework, arithmetic, group)]
        judged = [e for e in found if e.usual > 0 or e.units > 0]
        most = max(judged, key=lambda e: e.ratio, default=None)
        shown = f"{number(most.units)} ({number(most.usual)})" if most else "0" if found else "-"
        cells.append(f"{shown} of {len(found)}" if found else shown)
    return cells


def _exact_rows(battery: Battery, who: Sequence[str]) -> list[list[str]]:
    rows = []
    for group, words in GROUPS.items():
        found = [[r.units for r in battery.exact if r.group == group and r.who == name] for name in who]
        if any(found):
            rows.append([words, *(number(max(units)) if units else "-" for units in found)])
    return rows
