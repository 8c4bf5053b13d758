"""The battery: the same models in each framework, every answer held against ours, and oracles that are neither.

What is asked, step by step; `npmoe.battery.table` says what was found.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from npmoe.battery import frameworks, oracles
from npmoe.battery.table import GROUPS, Battery, Entry, Exact, Second
from npmoe.calculus import tree
from npmoe.model.balance import Balance
from npmoe.model.routing import top_k
from npmoe.verify.balances import compare_balance
from npmoe.verify.candidate import Missing
from npmoe.verify.compare import Report, compare_answers
from npmoe.verify.reference import kind_of
from npmoe.verify.rounding import ARITHMETICS

__all__ = ["LOSSES", "run"]

Array = np.ndarray

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
