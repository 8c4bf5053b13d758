"""The battery: the same models in each framework, every answer held against ours, and oracles that are neither.

An entry is one answer of one framework in one arithmetic on one case. Errors are in units of eps of that arithmetic
times the largest entry of their row.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import npmoe
from npmoe.battery import frameworks, oracles
from npmoe.calculus import tree
from npmoe.calculus.words import one_line
from npmoe.model.balance import Balance
from npmoe.model.routing import top_k
from npmoe.verify.balances import compare_balance
from npmoe.verify.compare import Missing, Report, compare_answers
from npmoe.verify.judge import VERDICTS, worst
from npmoe.verify.reference import kind_of
from npmoe.verify.rounding import ARITHMETICS
from npmoe.verify.text import number, table

__all__ = ["GROUPS", "Battery", "Entry", "run"]

Array = np.ndarray

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

#: Balance losses: each kind, and the conventions of frameworks.
LOSSES = {
    "switch": Balance("switch"),
    "switch, as Mixtral counts": Balance("switch", count="per choice"),
    "switch, soft": Balance("switch", fraction="soft"),
    "gshard": Balance("gshard"),
    "importance": Balance("importance"),
    "importance of gates kept": Balance("importance", gates="kept", variance="sample"),
    "z": Balance("z"),
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


def run(
    names: Sequence[str],
    cases: Sequence[Any],
    *,
    arithmetics: Sequence[str] | None = None,
    exact: bool = True,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda steps: steps,
) -> Battery:
    """Ask the frameworks, hold their answers against ours, and both against mpmath.

    Parameters
    ----------
    names : frameworks, among `npmoe.battery.frameworks.FRAMEWORKS`; one that is not installed is left out by name.
    cases : with name, layer, x and dy, as `npmoe.battery.cases` has them.
    arithmetics : which ones; float64, float32 and bfloat16 unless given, of those that a framework has.
    exact : whether to hold everybody against mpmath as well, on small cases of its own.
    progress : wraps the list of steps.

    Returns
    -------
    Battery.

    Raises
    ------
    ValueError : for a framework or an arithmetic that is unknown.
    """
    for name in names:
        frameworks.load(name)
    wanted = ("float64", "float32", "bfloat16") if arithmetics is None else tuple(arithmetics)
    for name in wanted:
        if name not in ARITHMETICS:
            raise ValueError(f"expected an arithmetic among {', '.join(ARITHMETICS)}; got {name!r}")
    versions = frameworks.available()
    here = [name for name in names if not versions[name].startswith(("missing", "broken"))]
    steps: list[tuple[Any, ...]] = []
    for name in here:
        offered = frameworks.load(name).arithmetics()
        for arithmetic in (a for a in offered if a in wanted):
            steps += [("case", name, arithmetic, case) for case in cases]
            steps += [("loss", name, arithmetic, loss) for loss in LOSSES]
    steps += [("exact", here, case) for case in oracles.handful() if exact and _mpmath()]
    steps += [("second", case) for case in cases if _scalar_size(case) < 40_000]
    entries: list[Entry] = []
    against: list[Exact] = []
    second: list[Second] = []
    off: list[str] = []
    for step in progress(steps):
        if step[0] in ("case", "loss"):
            _, name, arithmetic, what = step
            report = (_asked if step[0] == "case" else _asked_loss)(name, arithmetic, what)
            entries += _entries(name, arithmetic, report, loss=step[0] == "loss")
            if report.verdict not in ("agrees", "undecided"):
                off.append(f"{name}, {arithmetic}: {report}")
        elif step[0] == "exact":
            against += _exact(*step[1:])
        else:
            second.append(_second(step[1]))
    return Battery(
        _environment(), versions, tuple(names), tuple(entries), tuple(against), tuple(second), _elementary(), tuple(off)
    )


def _environment() -> dict[str, str]:
    import scipy

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _scalar_size(case: Any) -> int:
    """Multiplications of one Jacobian by scalar loops, about."""
    parameters = sum(leaf.size for leaf in tree.leaves(case.layer))
    return parameters * case.x.size


# ---- steps ---------------------------------------------------------------------------------------------------------


def _asked(name: str, arithmetic: str, case: Any) -> Report:
    """A framework's answers on a case whose numbers its arithmetic can hold."""
    a = ARITHMETICS[arithmetic]
    layer = tree.map_leaves(a.round, case.layer)
    x, dy = a.round(case.x), a.round(case.dy)
    try:
        answers: dict[str, Any] = frameworks.load(name).answers(layer, x, dy, arithmetic)
    except Exception as error:  # a framework that cannot is a line of the table, not the end of the battery
        answers = {"output": Missing(f"{type(error).__name__}: {error}")}
    return compare_answers(layer, answers, x, dy=dy, arithmetic=arithmetic, name=case.name)


def _asked_loss(name: str, arithmetic: str, loss: str) -> Report:
    """A framework's balance loss on scores of 24 tokens and 6 experts, two chosen."""
    s = ARITHMETICS[arithmetic].round(np.random.default_rng(0).standard_normal((24, 6)))
    chosen = top_k(s, 2)
    try:
        answers: dict[str, Any] = frameworks.load(name).balance_answers(LOSSES[loss], s, chosen, arithmetic)
    except Exception as error:
        answers = {"value": Missing(f"{type(error).__name__}: {error}")}
    return compare_balance(LOSSES[loss], answers, s, chosen, arithmetic=arithmetic, name=loss)


def _entries(name: str, arithmetic: str, report: Report, *, loss: bool) -> Iterator[Entry]:
    for part in report.parts:
        group = f"balance {part.name}" if loss else part.name if part.name in GROUPS else kind_of(part.name)
        group = group if group in GROUPS else "parameters"
        if not len(part.units):
            yield Entry(
                name, arithmetic, report.name, part.name, group, part.verdict, 0.0, 0.0, 0.0, 0.0, part.remarks[0]
            )
            continue
        decided = part.status != "undecided"
        if not decided.any():
            yield Entry(
                name, arithmetic, report.name, part.name, group, part.verdict, 0.0, 0.0, 0.0, 0.0, "all on ties"
            )
            continue
        at = int(np.argmax(np.where(decided, part.ratio, -1.0)))
        remark = "; ".join(part.remarks)
        if others := int((part.status == "other choice").sum()):
            remark = "; ".join(filter(None, [remark, f"{others} row{'s' * (others != 1)} by another choice that ties"]))
        limits = float(part.usual[at]), float(part.worst[at]), float(part.ratio[at])
        nearest = float(part.nearest[at])
        yield Entry(name, arithmetic, report.name, part.name, group, part.verdict, nearest, *limits, remark)


def _exact(names: Sequence[str], case: Any) -> Iterator[Exact]:
    """Everybody's float64 against 50 digits, ours with them."""
    truth = oracles.answers(case.layer, case.x, case.dy)
    everybody = {"npmoe": _ours(case)}
    for name in names:
        try:
            everybody[name] = frameworks.load(name).answers(case.layer, case.x, case.dy, "float64")
        except Exception:  # it stands among the entries
            continue
    for who, answers in everybody.items():
        for answer, got in answers.items():
            kind = kind_of(answer)
            if kind not in truth or got.shape != truth[kind].value.shape:
                continue
            want = truth[kind].value
            scale = np.abs(want).reshape(len(want), -1).max(axis=1).reshape(-1, *[1] * (want.ndim - 1))
            units = oracles.ulps(np.asarray(got, np.float64), truth[kind], scale)
            group = answer if answer in GROUPS else kind
            yield Exact(case.name, answer, group if group in GROUPS else "parameters", who, float(units.max()))


def _ours(case: Any) -> dict[str, Array]:
    """Our closed forms on a case."""
    layer, x = case.layer, case.x
    y, trace = layer.forward(x)
    dx, dlayer = layer.vjp(trace, case.dy)
    J = layer.jacobian(x)
    found = {
        "output": y,
        "gradient": dx,
        "jacobian:reverse": J,
        "jacobian:forward": J,
        **dict(tree.named_leaves(dlayer)),
    }
    if hasattr(layer, "mean_jacobian"):
        found["mean_jacobian"] = layer.mean_jacobian(x)
    if hasattr(layer, "router"):
        found |= {"gates": layer.route(x)[0], "scores": layer.scores(x)}
        found |= {name: getattr(layer, name)(x) for name in ("expert_jacobian", "router_jacobian")}
    return found


def _second(case: Any) -> Second:
    """Our Jacobian against complex step and Richardson."""
    J = case.layer.jacobian(case.x)
    scale = np.abs(J).max(axis=(1, 2), keepdims=True)
    eps = float(np.finfo(np.float64).eps)
    away = np.abs(oracles.complex_step(case.layer, case.x) - J)
    step = float(np.divide(away, eps * scale, out=np.zeros_like(J), where=scale > 0).max())
    R, error = oracles.richardson(case.layer, case.x)
    decided = np.isfinite(error)
    ratio = np.divide(np.abs(R - J), error, out=np.zeros_like(J), where=decided & (error > 0))
    return Second(case.name, step, float(ratio.max()), int((~decided).any(axis=(1, 2)).sum()))


def _mpmath() -> bool:
    """Whether mpmath is installed; without it there is no exact answer, and the rest goes on."""
    return find_spec("mpmath") is not None


def _elementary() -> tuple[Any, ...]:
    return tuple(oracles.elementary()) if _mpmath() else ()


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
