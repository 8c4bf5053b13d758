"""Hold what another implementation answers against a layer's closed forms, and say where and by how much it is off.

n tokens, d width, o output width, E experts, k experts a token.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from npmoe.model.moe import MoE
from npmoe.verify.candidate import Missing, Typed, again, ask, common, typed
from npmoe.verify.diagnose import clues
from npmoe.verify.judge import FINE, OPEN, OTHER, Part, judge, none, statuses
from npmoe.verify.reference import MOST_CHOICES, ROWWISE, Allowed, Reference, kind_of, reference, shapes
from npmoe.verify.report import Report
from npmoe.verify.rounding import ARITHMETICS

__all__ = ["Report", "compare", "compare_answers"]

Array = np.ndarray


def compare(
    layer: Any,
    candidate: Callable[..., Any],
    x: Array,
    *,
    dy: Array | None = None,
    weights: Array | None = None,
    what: str | None = None,
    arithmetic: str | None = None,
    step: float = 0.0,
    name: str = "layer",
) -> Report:
    """Hold what a candidate answers at x against our layer: errors by row, ties, a verdict, and where it shows.

    Parameters
    ----------
    layer : a layer of npmoe with the candidate's weights (see `npmoe.verify.from_torch` and `from_jax`).
    candidate : called with x (n, d), and with dy where that is given. It returns something that `numpy.asarray` takes
        (a tensor of PyTorch is detached first): the output (n, o), the Jacobians (n, o, d), or those of the whole batch
        (n, o, n, d); with dy the gradient (n, d) of sum(dy * y). Or a dict of several: "output", "gradient",
        "jacobian", "mean_jacobian", "expert_jacobian", "router_jacobian", "gates", "scores", and names of parameters as
        ``npmoe.calculus.tree.named_leaves(layer)`` gives them, for the gradient of sum(dy * y) in them. A label may
        stand behind a colon: "jacobian:forward".
    x : array (n, d).
    dy : array (n, o), the cotangent of gradients.
    weights : array (n,), of the mean Jacobian.
    what : the name of an answer that is not a dict, where its shape does not say.
    arithmetic : "float64", "float32", "bfloat16" or "float16": what the candidate computes in. Unless given, the dtype
        of its answers.
    step : of a candidate that takes central differences; their own error is then allowed.
    name : of the layer, for the report.

    Returns
    -------
    Report : its verdict is "agrees", "undecided", "doubtful", "differs" or "no answer". What is allowed follows from
        the sizes and the arithmetic (`docs/verify.md`), never from the answers.

    Raises
    ------
    ValueError, TypeError : for what we were given; whatever goes wrong inside the candidate is a line of the report.

    Examples
    --------
    >>> import npmoe
    >>> moe = npmoe.init.gelu_moe(np.random.default_rng(0), E=4, d=3, h=5, k=2)
    >>> x = np.random.default_rng(1).standard_normal((6, 3))
    >>> compare(moe, moe.jacobian, x).verdict
    'agrees'
    >>> report = compare(moe, moe.expert_jacobian, x, what="jacobian")
    >>> report.verdict, report.clues[-1].says
    ('differs', "the router's term is missing: gates are held constant")
    """
    if callable(layer) and not hasattr(layer, "widths"):
        raise TypeError("expected a layer of npmoe first and the candidate second; got them the other way round")
    check_only = reference(layer, x, dy=dy, weights=weights, step=step, arithmetic=arithmetic or "float64")
    answers, problems, notes = ask(candidate, np.asarray(x), dy)
    if what is not None and isinstance(answers, Mapping):
        problems.append(
            f"expected one answer, {what!r} as `what` says; the candidate gave a dict, which has its own names"
        )
    report = _judge(check_only, answers, what, arithmetic, problems, name)
    report = replace(report, notes=notes)
    if report.verdict in ("doubtful", "differs") and answers is not None and not problems:
        problems = again(candidate, np.asarray(x), dy, answers, report)
        report = replace(report, problems=tuple(problems))
    return report


def compare_answers(
    layer: Any,
    answers: Mapping[str, Any],
    x: Array,
    *,
    dy: Array | None = None,
    weights: Array | None = None,
    arithmetic: str | None = None,
    step: float = 0.0,
    name: str = "layer",
) -> Report:
    """`compare` for answers that are already there, by name; a `str` in place of one says why there is none."""
    ref = reference(layer, x, dy=dy, weights=weights, step=step, arithmetic=arithmetic or "float64")
    named = {key: Missing(value) if isinstance(value, str) else value for key, value in answers.items()}
    return _judge(ref, named, None, arithmetic, [], name)


def _judge(ref: Reference, answers: Any, what: str | None, asked: str | None, problems: list[str], name: str) -> Report:
    if isinstance(answers, Mapping):
        named = {str(key): typed(value) for key, value in answers.items()}
        if not named:
            problems = [*problems, "expected one answer at least; got an empty dict"]
    else:
        named = {} if answers is None else {what or _guess(ref, answers): answers}
    judged: dict[str, Part] = {}
    by_part: dict[str, Reference] = {}
    arithmetic = asked or common(named)
    refs = {arithmetic: _in(ref, arithmetic)}
    made: Choices = {}
    rowwise = [key for key in named if kind_of(key) in ROWWISE]
    for key in rowwise + [key for key in named if key not in rowwise]:
        answer, of = named[key], asked
        if of is None:
            of = answer.arithmetic if isinstance(answer, Typed) else arithmetic
        refs.setdefault(of, _in(ref, of))
        judged[key], by_part[key] = _part(refs[of], key, answer, asked, made), refs[of]
    ref = refs[arithmetic]
    parts = tuple(judged[key] for key in named)
    routed = ref.layer.route(ref.x)[1] if isinstance(ref.layer, MoE) else None
    found = clues(by_part, parts, {key: value.array for key, value in named.items() if isinstance(value, Typed)})
    return Report(
        name,
        _describe(ref.layer),
        arithmetic,
        parts,
        ref.margin.gap,
        ref.margin.noise,
        ref.undecided,
        routed,
        tuple(problems),
        tuple(found),
    )


def _in(ref: Reference, arithmetic: str) -> Reference:
    """The same reference for a candidate of another arithmetic."""
    if ref.arithmetic.name == arithmetic:
        return ref
    return reference(ref.layer, ref.x, dy=ref.dy, weights=ref.weights, arithmetic=arithmetic, step=ref.step)


def _guess(ref: Reference, answer: Any) -> str:
    """What an answer without a name is, by its shape."""
    if not isinstance(answer, Typed):
        return "answer"
    if ref.dy is not None:
        return "gradient"
    known, shape = shapes(ref), answer.array.shape
    if len(shape) >= 3:
        return "jacobian"
    return "mean_jacobian" if shape == known["mean_jacobian"] and shape != known["output"] else "output"


def _part(ref: Reference, name: str, answer: Any, asked: str | None, made: "Choices") -> Part:
    """One answer judged; `made` collects, row by row, how the candidate may have resolved ties."""
    kind, known = kind_of(name), shapes(ref)
    if isinstance(answer, str):
        return none(ref.arithmetic, name, answer)
    if kind not in known:
        near = ", ".join(ref.names())
        return none(ref.arithmetic, name, f"expected the name of an answer, {near}; got {kind!r}")
    if ref.dy is None and kind not in _WITHOUT_DY:
        return none(ref.arithmetic, name, f"{kind} is a gradient of sum(dy * y): expected dy of shape (n, o); got none")
    array, remarks = answer.array.astype(np.float64), []
    if asked is not None and answer.arithmetic != asked and ARITHMETICS[answer.arithmetic].eps > ARITHMETICS[asked].eps:
        remarks.append(f"expected {asked}; answered in {answer.arithmetic}")
    want_shape = known[kind]
    leak = None
    if kind == "jacobian" and array.shape == (*want_shape[:2], want_shape[0], want_shape[2]):
        array, leak = _blocks(array)
    if array.shape != want_shape:
        return none(ref.arithmetic, name, _misshapen(kind, array.shape, want_shape))
    status, allowed = _statuses(ref, name, array, made)
    leaks = leak is not None and leak[0] != 0  # NaN is no zero
    if leak is not None and leaks:
        remarks.append(
            f"row {leak[1]} of the output depends on row {leak[2]} of x (entry {leak[0]:.3g}): tokens are not "
            f"independent of one another"
        )
    part = judge(ref.arithmetic, name, array, allowed, status, tuple(remarks))
    return replace(part, verdict="differs") if leaks else part


#: Answers that need no cotangent.
_WITHOUT_DY = {*ROWWISE, "mean_jacobian"} - {"gradient"}


def _blocks(array: Array) -> tuple[Array, tuple[float, int, int]]:
    """The diagonal blocks of a batch Jacobian (n, o, n, d), and the largest entry off them with its rows."""
    n = len(array)
    own = array[np.arange(n), :, np.arange(n)]  # (n, o, d)
    rest = np.abs(array).max(axis=(1, 3), initial=0)  # (n, n)
    np.fill_diagonal(rest, 0)
    at = np.unravel_index(int(np.nan_to_num(rest, nan=np.inf).argmax()), rest.shape)
    return own, (float(rest[at]), int(at[0]), int(at[1]))


def _misshapen(kind: str, got: tuple[int, ...], want: tuple[int, ...]) -> str:
    axes = {"output": "(n, o)", "gradient": "(n, d)", "jacobian": "(n, o, d)", "mean_jacobian": "(o, d)"}.get(kind, "")
    also = f" or {(*want[:2], want[0], want[2])}, (n, o, n, d)" if kind == "jacobian" else ""
    turned = "; its axes are in another order" if sorted(got) == sorted(want) and got != want else ""
    return f"expected {kind} of shape {want}{f', {axes}' if axes else ''}{also}; got {got}{turned}"


#: Choices that are tried for all rows of an answer that lie on ties, times the experts that each costs.
_TRIES = 3000

#: For each row on a tie the choices, as sorted tuples of experts, that agree with every answer looked at so far.
Choices = dict[int, set[tuple[int, ...]]]


def _statuses(ref: Reference, name: str, array: Array, made: Choices) -> tuple[Array, Allowed]:
    """The status of each row, and what was allowed, at ties by the choice that the candidate seems to have made."""
    allowed = ref.allowed(name)
    status = statuses(array, allowed)
    if not ref.undecided.any():
        return status, allowed
    rowwise = kind_of(name) in ROWWISE
    if ref.step or not isinstance(ref.layer, MoE):
        touched = ref.undecided if rowwise else np.ones(len(status), bool)
        return np.where(touched & (status != FINE), OPEN, status), allowed
    return (_row_by_row if rowwise else _all_at_once)(ref, name, array, made, status, allowed)


def _row_by_row(
    ref: Reference, name: str, array: Array, made: Choices, status: Array, allowed: Allowed
) -> tuple[Array, Allowed]:
    """An answer whose rows are tokens: each row on a tie is held against every choice that rounding allows."""
    at_ties = Allowed(*(np.array(a) for a in allowed))
    rows = np.flatnonzero(ref.undecided).tolist()
    most = max(3, min(MOST_CHOICES, _TRIES // (len(rows) * len(ref.layer.experts))))
    for row in rows:
        agreeing: set[tuple[int, ...]] = set()
        for i, choice in enumerate(ref.choices(row, most)):
            by_choice = ref.allowed(name, choice[None], slice(row, row + 1))
            if statuses(array[row : row + 1], by_choice)[0] != FINE:
                continue
            if not agreeing:
                status[row] = FINE if i == 0 else OTHER
                for kept, found in zip(at_ties, by_choice, strict=True):
                    kept[row] = found[0]
            agreeing.add(tuple(sorted(choice.tolist())))
        if not agreeing and ref.ways(row) > most:
            status[row] = OPEN  # one of those that were not tried may fit
        made[row] = made[row] & agreeing if row in made else agreeing
    return status, at_ties


def _all_at_once(
    ref: Reference, name: str, array: Array, made: Choices, status: Array, allowed: Allowed
) -> tuple[Array, Allowed]:
    """An answer to which all tokens add: by the choices that the other answers show, where they show one each."""
    if (status == FINE).all():
        return status, allowed
    known = {row: made.get(row, set()) for row in np.flatnonzero(ref.undecided).tolist()}
    if all(known.values()):
        choice = ref.layer.route(ref.x)[1]
        for row, sets in known.items():
            choice[row] = min(sets)
        by_choice = ref.allowed(name, choice)
        found = statuses(array, by_choice)
        if (found == FINE).all() or all(len(sets) == 1 for sets in known.values()):
            return np.where(found == FINE, OTHER, found), by_choice
    # who was chosen is not known: a difference may be no more than the tie's
    return np.where(status == FINE, status, OPEN), allowed


def _describe(layer: Any) -> str:
    """Kind and sizes of a layer in words."""
    kind, widths = type(layer).__name__, layer.widths
    if isinstance(layer, MoE):
        hidden = sorted({expert.widths[1] for expert in layer.experts})
        h = str(hidden[0]) if len(hidden) == 1 else f"{hidden[0]}..{hidden[-1]}"
        kinds = "/".join(sorted({type(expert).__name__ for expert in layer.experts}))
        gates = "" if layer.k == len(layer.experts) else ", renormalized" if layer.renormalize else ", not renormalized"
        return f"MoE of {len(layer.experts)} {kinds}, k = {layer.k}{gates}, d = {widths[0]}, h = {h}, o = {widths[1]}"
    return f"{kind}, " + ", ".join(
        f"{a} = {b}" for a, b in zip("dho" if len(widths) == 3 else "do", widths, strict=True)
    )
