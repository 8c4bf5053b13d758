"""Where a difference shows, and what it looks like: common faults are made on purpose and held against the answer.

n tokens, d width, h hidden, o output width, E experts, k experts a token. Nothing here changes a verdict.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.scalar import ACTIVATIONS
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE
from npmoe.model.routing import gates_jacobian, mask
from npmoe.verify.reference import ROWWISE, Reference, kind_of

__all__ = ["Clue", "clues"]

Array = np.ndarray

_FEW = 6  # rows on which faults are tried: those that are farthest off
_MOST_PARTS = 2000  # rows of parameters that are tried one by one


class Clue(NamedTuple):
    """`kind` is "where" or "looks like"; `answer` the name of the answer; `says` the words."""

    kind: str
    answer: str
    says: str


def clues(ref: Reference, wrong: list[Any], answers: Mapping[str, Array]) -> list[Clue]:
    """Clues for the parts that are off, where it shows first; `answers` are the candidate's, by name."""
    found = [clue for part in wrong for clue in _where(ref, part, answers[part.name])]
    rowwise = [part for part in wrong if kind_of(part.name) in ROWWISE]
    looks = [clue for part in rowwise[:3] for clue in _looks(ref, part, _rows_of(answers[part.name], part))]
    if not looks:
        looks = [clue for part in wrong if (clue := _factor(ref, part, answers[part.name]))]
    if not looks:
        looks = [clue for part in rowwise[:1] if (clue := _changed(ref, part, _rows_of(answers[part.name], part)))]
    seen: set[str] = set()
    unique = [clue for clue in looks if not (clue.says in seen or seen.add(clue.says))]  # type: ignore[func-returns-value]
    return found + unique


def _rows_of(array: Array, part: Any) -> Array:
    """The answer as (n, ...): of a batch Jacobian the diagonal blocks."""
    n = len(part.status)
    if kind_of(part.name) == "jacobian" and array.ndim == 4:
        return array[np.arange(n), :, np.arange(n)].astype(np.float64)
    return array.astype(np.float64)


def _off(part: Any) -> Array:
    """Rows that are off."""
    return np.flatnonzero((part.status == "differs") | (part.status == "doubtful"))


def _numbers(values: Any, most: int = 6) -> str:
    values = [int(v) for v in values]
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")


def _s(values: Any, word: str) -> str:
    return f"{word}{'' if len(values) == 1 else 's'} {_numbers(values)}"


# ---- where ---------------------------------------------------------------------------------------------------------


def _where(ref: Reference, part: Any, array: Array) -> Iterator[Clue]:
    """Rows, entries and experts in which a part is off."""
    off, kind = _off(part), kind_of(part.name)
    if not len(off):
        return
    if kind not in ROWWISE:
        rows = "" if len(part.status) == 1 else f", {_s(off, 'row')} of {len(part.status)}"
        owner = kind.split(".")
        if "experts" in owner:
            at = owner.index("experts")
            layer = "".join(f"{'.'.join(owner[:at])}, " if at else "")
            yield Clue("where", part.name, f"{layer}expert {owner[at + 1]}, {'.'.join(owner[at + 2 :])}{rows}")
        else:
            yield Clue("where", part.name, rows.removeprefix(", ") or "all of it")
        return
    says = f"{len(off)} of {len(part.status)} tokens"
    if len(off) <= 6 or len(off) < len(part.status):
        says += f" ({_numbers(off)})"
    allowed = ref.allowed(part.name)
    far = np.abs(_rows_of(array, part)[off] - allowed.want[off]) > allowed.usual[off]
    axis = {"gates": "expert", "scores": "expert", "gradient": "input"}.get(kind, "output")
    columns = np.flatnonzero(far.any(axis=tuple(i for i in range(far.ndim) if i != 1)))
    if len(columns) < far.shape[1]:
        says += f", {_s(columns, axis)} of {far.shape[1]}"
    says += _whose(ref, off, part)
    yield Clue("where", part.name, says)


def _only(ref: Reference, part: Any) -> list[list[str]]:
    """The experts that all tokens which are off visit, as names of leaves begin; none where that says nothing."""
    if not isinstance(ref.layer, MoE) or ref.layer.k == len(ref.layer.experts):
        return []
    on = mask(ref.layer.route(ref.x)[1], len(ref.layer.experts))
    fine = np.flatnonzero(part.status == "agrees")
    shared = np.flatnonzero(on[_off(part)].all(axis=0) & ~on[fine].any(axis=0))
    return [["experts", str(e)] for e in shared] if len(fine) else []


def _whose(ref: Reference, off: Array, part: Any) -> str:
    """The experts that all tokens which are off visit, and none or few of the others."""
    if not isinstance(ref.layer, MoE) or ref.layer.k == len(ref.layer.experts):
        return ""
    on = mask(ref.layer.route(ref.x)[1], len(ref.layer.experts))  # (n, E)
    fine = np.flatnonzero(part.status == "agrees")
    everywhere = on[off].all(axis=0)
    only = np.flatnonzero(everywhere & ~on[fine].any(axis=0))
    if len(only) and len(fine):
        return f"; all tokens that visit {_s(only, 'expert')}, and no others"
    shared = np.flatnonzero(everywhere)
    if len(shared) and len(fine):
        return f"; all of them visit {_s(shared, 'expert')}"
    visited = np.flatnonzero(on[off].any(axis=0) & ~on[fine].any(axis=0))
    return f"; the experts that only they visit: {_numbers(visited)}" if len(visited) and len(fine) else ""


# ---- what it looks like --------------------------------------------------------------------------------------------

_Answer = Callable[[str, Array, Array | None], Array | None]


def _looks(ref: Reference, part: Any, array: Array) -> list[Clue]:
    """The faults under which our answer would be the candidate's, in the rows that are farthest off."""
    off = _off(part)
    rows = off[np.argsort(-np.nan_to_num(part.ratio[off], posinf=1e300), kind="stable")][:_FEW]
    allowed = ref.allowed(part.name)
    want, got = allowed.want[rows], array[rows]
    near = 2 * allowed.usual[rows] + 1e-13 * np.abs(want)  # the faulty map rounds about as the right one does
    dy = None if ref.dy is None else ref.dy[rows]
    found = []
    for words, answer in _faults(ref.layer):
        try:
            made = answer(kind_of(part.name), ref.x[rows], dy)
        except (ValueError, TypeError):  # a fault that these sizes do not allow
            continue
        if made is None or made.shape != got.shape:
            continue
        if (np.abs(made - got) <= near).all() and not (np.abs(made - want) <= near).all():
            found.append(Clue("looks like", part.name, words))
    return found[:3]


def _answer_of(layer: Any, kind: str, x: Array, dy: Array | None) -> Array | None:
    """What a layer answers, for answers whose rows are tokens."""
    if kind == "output":
        return layer.forward(x)[0]
    if kind == "gradient":
        return None if dy is None else layer.vjp(layer.forward(x)[1], dy)[0]
    if kind == "gates":
        return layer.route(x)[0]
    return getattr(layer, kind)(x)


def _through(J: Callable[[Array], Array], kind: str, x: Array, dy: Array | None) -> Array | None:
    """What a faulty Jacobian gives: the Jacobian itself or the gradient."""
    if kind == "jacobian":
        return J(x)
    return np.einsum("no,nod->nd", dy, J(x)) if kind == "gradient" and dy is not None else None


def _faults(layer: Any) -> Iterator[tuple[str, _Answer]]:
    """Words and answers of common faults: first those of derivatives alone, then those of the map."""
    d, o = layer.widths[0], layer.widths[-1]
    if d == o:
        yield "the Jacobian is transposed", partial(_through, lambda x: layer.jacobian(x).transpose(0, 2, 1))
    if isinstance(layer, MoE):
        yield from _mixture_slopes(layer)
    elif isinstance(layer, GeluExpert):
        for name in ACTIVATIONS:
            if name != layer.activation:
                other = replace(layer, activation=name)
                words = f"values of {layer.activation} with slopes of {name}"
                yield words, partial(_through, other.jacobian)
    for words, other in _others(layer):
        yield words, partial(_answer_of, other)


def _mixture_slopes(moe: MoE) -> Iterator[tuple[str, _Answer]]:
    """Right values, wrong derivatives."""
    yield "the router's term is missing: gates are held constant", partial(_through, moe.expert_jacobian)
    yield "the experts' term is missing", partial(_through, moe.router_jacobian)
    for name in ACTIVATIONS:
        if any(isinstance(f, GeluExpert) and f.activation != name for f in moe.experts):
            other = replace(moe, experts=tuple(_activated(f, name) for f in moe.experts))

            def mixed(x: Array, other: MoE = other) -> Array:
                return other.expert_jacobian(x) + moe.router_jacobian(x)

            yield f"values of the experts' activation with slopes of {name}", partial(_through, mixed)

    def other_set(x: Array) -> Array:
        """The gates' derivative as if the softmax ran over the other set."""
        routing = moe.routing(x)
        flipped = routing._replace(q=replace(moe, renormalize=not moe.renormalize).routing(x).q)
        dgates = gates_jacobian(flipped, moe.router / moe.temperature)  # (n, E, d)
        return moe.expert_jacobian(x) + moe._outputs(x, routing) @ dgates

    if moe.k < len(moe.experts):
        which = "all experts" if moe.renormalize else "the chosen experts alone"
        yield f"the gates' derivative takes the softmax over {which}", partial(_through, other_set)
    if moe.temperature != 1:
        yield (
            "the gates' derivative leaves out the temperature",
            partial(_through, lambda x: moe.expert_jacobian(x) + moe.temperature * moe.router_jacobian(x)),
        )


def _activated(f: Any, name: str) -> Any:
    return replace(f, activation=name) if isinstance(f, GeluExpert) else f


def _others(layer: Any) -> Iterator[tuple[str, Any]]:
    """Words and layers of faults in the map itself."""
    if not isinstance(layer, MoE):
        yield from _other_experts(layer)
        return
    moe, E = layer, len(layer.experts)
    if moe.k < E:
        to = (
            "the softmax runs over all experts" if moe.renormalize else "the softmax runs over the chosen experts alone"
        )
        yield to, replace(moe, renormalize=not moe.renormalize)
    for k in sorted({1, moe.k - 1, moe.k + 1, E} - {moe.k}):
        if 1 <= k <= E:
            yield f"k is {k}, not {moe.k}", replace(moe, k=k)
    if moe.temperature != 1:
        yield "the temperature is left out", replace(moe, temperature=1.0)
        yield "scores are multiplied by the temperature", replace(moe, temperature=1 / moe.temperature)
    if moe.bias is not None:
        yield "the router's bias is left out", replace(moe, bias=None)
    yield "scores are divided by the root of d", replace(moe, temperature=moe.temperature * moe.widths[0] ** 0.5)
    if moe.widths[0] == E:
        yield "the router is transposed", replace(moe, router=np.ascontiguousarray(moe.router.T))
    for shift in (1, -1):
        if E > 1:
            experts = moe.experts[shift:] + moe.experts[:shift]
            yield f"each token's experts are those numbered {-shift:+d} too far", replace(moe, experts=experts)
            if E == 2:
                break
    kinds = [list(_other_experts(f)) for f in moe.experts]
    for i, (words, _) in enumerate(kinds[0]):  # the same fault in every expert
        if all(len(kind) == len(kinds[0]) for kind in kinds):
            yield f"in every expert {words}", replace(moe, experts=tuple(kind[i][1] for kind in kinds))
    for e, kind in enumerate(kinds):
        for words, other in kind:
            yield f"in expert {e} {words}", replace(moe, experts=(*moe.experts[:e], other, *moe.experts[e + 1 :]))


def _other_experts(f: Any) -> Iterator[tuple[str, Any]]:
    """Faults of one expert."""
    if isinstance(f, GeluExpert):
        for name in ACTIVATIONS:
            if name != f.activation:
                yield f"the activation is {name}, not {f.activation}", replace(f, activation=name)
        for bias in ("b1", "b2"):
            if getattr(f, bias).any():
                yield f"{bias} is left out", replace(f, **{bias: np.zeros_like(getattr(f, bias))})
    if isinstance(f, SwigluExpert):
        yield "gate and up are exchanged", replace(f, Wg=f.Wu, Wu=f.Wg)
        h = len(f.Wg)
        if h > 1 and h % 2 == 0:
            both = np.concatenate([f.Wg, f.Wu])
            yield "gate and up are read as interleaved rows", replace(f, Wg=both[0::2].copy(), Wu=both[1::2].copy())
    for name, leaf in list(tree.named_leaves(f)):
        if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] and len(leaf) > 1:
            yield f"{name} is transposed", replace(f, **{name: np.ascontiguousarray(leaf.T)})


def _factor(ref: Reference, part: Any, array: Array) -> Clue | None:
    """Whether the whole answer is ours times one number."""
    if kind_of(part.name) in ROWWISE:
        array = _rows_of(array, part)
    allowed = ref.allowed(part.name)
    want, got = allowed.want, array.astype(np.float64)
    if want.shape != got.shape or not np.isfinite(got).all() or not (square := float((want * want).sum())):
        return None
    c = float((want * got).sum()) / square
    near = 2 * max(abs(c), 1.0) * allowed.usual
    if not (np.abs(got - c * want) <= near).all() or (np.abs((c - 1) * want) <= near).all():
        return None
    n = len(ref.x)
    named = {n: "n: a sum for a mean", 1 / n: "1/n: a mean over tokens for a sum", -1.0: "-1", 0.5: "1/2", 2.0: "2"}
    names = [text for value, text in named.items() if abs(c / value - 1) < 1e-6]
    return Clue("looks like", part.name, f"all of it is ours times {names[0] if names else _near_one(c)}")


def _near_one(c: float) -> str:
    return f"1 {'+' if c > 1 else '-'} {abs(c - 1):.2g}" if abs(c - 1) < 1e-3 else f"{c:.6g}"


def _changed(ref: Reference, part: Any, array: Array) -> Clue | None:
    """The one row of a parameter of which a small relative change explains the difference best."""
    layer, kind = ref.layer, kind_of(part.name)
    rows = _off(part)
    rows = rows[np.argsort(-part.error[rows], kind="stable")][:_FEW]
    x, dy = ref.x[rows], None if ref.dy is None else ref.dy[rows]
    D = array[rows] - ref.allowed(part.name).want[rows]
    leaves, only = list(tree.named_leaves(layer)), _only(ref, part)
    tried = [at for at, (name, _) in enumerate(leaves) if not only or name.split(".")[:2] in only]
    if not np.isfinite(D).all() or sum(len(leaves[at][1]) for at in tried) > _MOST_PARTS:
        return None
    base, step = _answer_of(layer, kind, x, dy), 1e-6
    assert base is not None
    best = (0.0, "", 0, 0.0)
    for at in tried:
        name, leaf = leaves[at]
        for row in range(len(leaf)):
            changed = [a.copy() if i == at else a for i, (_, a) in enumerate(leaves)]
            changed[at][row] *= 1 + step
            other = tree.unflatten(np.concatenate([a.ravel() for a in changed]), layer)
            R = (_answer_of(other, kind, x, dy) - base) / step
            if square := float((R * R).sum()):
                c = float((D * R).sum()) / square
                left = float(((D - c * R) ** 2).sum() / (D * D).sum())
                best = max(best, (1 - left, name, row, c))
    share, name, row, c = best
    if share < 0.99:
        return None
    owner = name.split(".")
    whose = f"expert {owner[1]}, {owner[2]}" if owner[0] == "experts" else name
    says = f"{whose}, row {row}: a relative change of {c:.2e} there explains {100 * share:.4g} % of the difference"
    return Clue("looks like", part.name, says)
