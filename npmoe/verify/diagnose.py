"""Where a difference shows, and what it looks like: common faults are made on purpose and held against the answer.

n tokens, d width, h hidden, o output width, E experts, k experts a token. Nothing here changes a verdict. An
explanation is named only if it fits every token, those that agree as well as those that are off; where several fit, all
are named.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import ACTIVATIONS
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.model.routing import gates_jacobian, mask
from npmoe.verify import bounds
from npmoe.verify.judge import FINE, Part, listed
from npmoe.verify.reference import ROWWISE, Reference, kind_of
from npmoe.verify.rounding import Rounding

__all__ = ["Clue", "clues"]

Array = np.ndarray

_FAR, _NEAR = 6, 10  # rows on which faults are tried first: those that are farthest off, and some that agree
_MOST_EXPERTS = 32  # experts that are tried one by one
_FEW = 8  # experts of which any two may be exchanged
_MOST_TOLD = 4  # explanations that fit equally well; more of them say nothing
_REFINED = 8  # changes of parameters that are tried out in full
_PROJECTIONS = 8  # random ones, through which changes of parameters are looked at
_MOST_PARAMETERS = 20_000_000  # of a layer whose changes are looked at
_MOST_CHANGES = 600  # that are looked at one by one
_ROUTING = ("router", "bias")
_ALL = " there explains 100 % of the difference"
_LOOSE = 1e-3  # of it; where a fault that has a name leaves more, changes are looked at too
_EXPLAINED = 0.1  # of the squared difference, at most this share may be left
_ROUGH = 1e-4  # eps beyond which limits are so wide that other maps may fit


class Clue(NamedTuple):
    """`kind` is "where" or "looks like"; `answer` the name of the answer; `says` the words."""

    kind: str
    answer: str
    says: str


class _Seen(NamedTuple):
    """An answer (n, ...) whose rows are tokens; `off` are the rows that an explanation must explain, and `used` those
    that it must fit, both (n,) booleans. Rows on a tie are in neither while there are others."""

    name: str
    ref: Reference
    got: Array
    want: Array
    usual: Array
    ratio: Array
    off: Array
    used: Array


class _Fault(NamedTuple):
    """Words, a layer that has the fault, and, of a fault in every expert, layers that have it in one alone."""

    words: str
    layer: Any
    alone: tuple[Any, ...] = ()


def clues(refs: Mapping[str, Reference], parts: Sequence[Part], answers: Mapping[str, Array]) -> list[Clue]:
    """Clues for the parts that are off; `refs` and `answers` by the names of all parts that could be judged."""
    with np.errstate(all="ignore"):  # a fault may overflow, an answer may be NaN
        wrong = [part for part in parts if part.verdict in ("doubtful", "differs")]
        found = [clue for part in wrong for clue in _where(refs[part.name], part, answers[part.name])]
        if not wrong:
            return []
        judged = [part for part in parts if part.name in refs and len(part.status) and kind_of(part.name) in ROWWISE]
        seen = [_seen(refs[part.name], part, answers[part.name]) for part in judged]
        looks = _looks(seen, _named)
        looks = looks or [clue for part in wrong if (clue := _factor(refs[part.name], part, answers[part.name]))]
        looks = looks or _looks(seen, _changed)
        if max(part.eps for part in wrong) > _ROUGH:
            looks = [rough for clue in looks if (rough := _roughly(clue))]
        return found + looks


def _roughly(clue: Clue) -> Clue | None:
    """A clue in half precision, whose limits many a map comes near: no sizes of changes, and a caveat."""
    named = [words for words in clue.says.split(", or ") if "a relative change of" not in words]
    return clue._replace(says=f"{', or '.join(named)} (as far as half precision can tell)") if named else None


def _rows_of(array: Array, part: Part) -> Array:
    """The answer as (n, ...): of a batch Jacobian the diagonal blocks."""
    n = len(part.status)
    if kind_of(part.name) == "jacobian" and array.ndim == 4:
        return array[np.arange(n), :, np.arange(n)].astype(np.float64)
    return array.astype(np.float64)


def _off(part: Part) -> Array:
    """Rows that are off."""
    return np.flatnonzero((part.status == "differs") | (part.status == "doubtful"))


def _s(values: Array, word: str) -> str:
    return f"{word}{'' if len(values) == 1 else 's'} {listed(values)}"


# ---- where ---------------------------------------------------------------------------------------------------------


def _where(ref: Reference, part: Part, array: Array) -> Iterator[Clue]:
    """Rows, entries and experts in which a part is off."""
    off, kind = _off(part), kind_of(part.name)
    if not len(off):
        return
    if kind not in ROWWISE:
        rows = "" if len(part.status) == 1 else f"{_s(off, 'row')} of {len(part.status)}"
        leaf = "" if kind == "mean_jacobian" else _leaf(kind)
        yield Clue("where", part.name, ", ".join(filter(None, [leaf if leaf != kind else "", rows])) or "all of it")
        return
    says = f"{len(off)} of {len(part.status)} tokens"
    if len(off) <= 6 or len(off) < len(part.status):
        says += f" ({listed(off)})"
    allowed = ref.allowed(part.name)
    far = ~(np.abs(_rows_of(array, part)[off] - allowed.want[off]) <= allowed.usual[off])  # NaN is far off
    axis = {"gates": "expert", "scores": "expert", "gradient": "input"}.get(kind, "output")
    columns = np.flatnonzero(far.any(axis=tuple(i for i in range(far.ndim) if i != 1)))
    if len(columns) < far.shape[1]:
        says += f", {_s(columns, axis)} of {far.shape[1]}"
    yield Clue("where", part.name, says + _whose(ref, part))


def _leaf(name: str) -> str:
    """The name of a parameter, of an expert's in words."""
    owner = name.split(".")
    if "experts" not in owner:
        return name
    at = owner.index("experts")
    return ", ".join(filter(None, [".".join(owner[:at]), f"expert {owner[at + 1]}", ".".join(owner[at + 2 :])]))


def _mixtures(layer: Any, x: Array, path: str = "") -> Iterator[tuple[str, MoE, Array]]:
    """Every mixture inside a layer, with its path and what reaches it."""
    if isinstance(layer, MoE):
        yield path, layer, x
        return
    for key, inner, _ in _inside(layer):
        yield from _mixtures(inner, x, _join(path, key))
        if isinstance(layer, Stack):
            x = inner.forward(x)[0]


def _inside(layer: Any) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """The layers inside a residual or a stack: key, layer, and how another is put into its place."""
    if isinstance(layer, Residual):
        yield "layer", layer.layer, Residual
    elif isinstance(layer, Stack):
        for i, inner in enumerate(layer.layers):

            def put(other: Any, i: int = i) -> Any:
                return Stack((*layer.layers[:i], other, *layer.layers[i + 1 :]))

            yield f"layers.{i}", inner, put


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _visits(layer: Any, x: Array) -> dict[str, Array]:
    """Who visits whom in each mixture, (n, E), by its path."""
    return {path: mask(moe.route(read)[1], len(moe.experts)) for path, moe, read in _mixtures(layer, x)}


def _whose(ref: Reference, part: Part) -> str:
    """The experts that the tokens which are off visit, and none or few of the others; tokens on a tie do not count."""
    decided = ~ref.undecided
    off = np.isin(np.arange(len(decided)), _off(part)) & decided
    fine = (part.status == FINE) & decided
    if not off.any() or not fine.any():
        return ""
    among, others = ("all tokens", "no others") if decided.all() else ("all decided tokens", "no other decided ones")
    only, shared, visited = [], [], []
    for path, on in _visits(ref.layer, ref.x).items():
        if on.all():  # everyone visits everyone
            continue
        of = f" of {path}" * bool(path)
        everywhere, elsewhere = on[off].all(axis=0), on[fine].any(axis=0)
        if len(e := np.flatnonzero(everywhere & ~elsewhere)):
            only.append(f"; {among} that visit {_s(e, 'expert')}{of}, and {others}")
        elif len(e := np.flatnonzero(everywhere)):
            shared.append(f"; all of them visit {_s(e, 'expert')}{of}")
        elif len(e := np.flatnonzero(on[off].any(axis=0) & ~elsewhere)):
            visited.append(f"; the experts{of} that only they visit: {listed(e)}")
    return "".join(only or shared or visited)


# ---- what an explanation must fit ----------------------------------------------------------------------------------


def _seen(ref: Reference, part: Part, array: Array) -> _Seen:
    allowed, off = ref.allowed(part.name), np.isin(np.arange(len(part.status)), _off(part))
    used = off | (part.status == FINE)
    if (off & ~ref.undecided).any() or not off.any():
        off, used = off & ~ref.undecided, used & ~ref.undecided
    return _Seen(part.name, ref, _rows_of(array, part), allowed.want, allowed.usual, part.ratio, off, used)


def _unit(seen: _Seen, rows: Array, made: Array) -> Array:
    """What rounding usually does to an explanation's numbers: about what it does to ours, the more the larger."""
    want, usual = seen.want[rows], seen.usual[rows]
    axes = tuple(range(1, want.ndim))

    def largest(a: Array) -> Array:
        return np.abs(a).max(axis=axes, keepdims=True, initial=0)

    grown = np.maximum(1, np.divide(largest(made), largest(want), out=np.ones_like(largest(want)), where=want.any()))
    # a gate that is zero in ours has no rounding of its own
    return grown * np.where(usual > 0, usual, largest(usual)) + 1e-13 * (np.abs(want) + np.abs(made)) + 1e-300


def _left(seen: _Seen, rows: Array, made: Array | None) -> Array | None:
    """How far an explanation's numbers are from the answer, in units of what is usual; None if they are no answer."""
    if made is None or made.shape != seen.got[rows].shape or not np.isfinite(made).all():
        return None
    return np.abs(made - seen.got[rows]) / _unit(seen, rows, made)


def _fit(seen: _Seen, rows: Array, layer: Any) -> float | None:
    """Sum of squares of what a layer leaves unexplained in these rows; None if it does not explain them."""
    made = _asked(seen, rows, layer)
    left = _left(seen, rows, made)
    if left is None or made is None:
        return None
    near = np.asarray(
        (left <= 2).reshape(len(rows), -1).all(axis=1)
    )  # the faulty map rounds about as the right one does
    if not near.all():
        # a token that a faulty router leaves on a tie may go either way
        if 2 * near.sum() < len(near) or not near[seen.off[rows]].any():
            return None
        if not (near | _tied(seen.ref, layer, rows)).all():
            return None
        rows, made, left = rows[near], made[near], left[near]
    was = np.abs(seen.want[rows] - seen.got[rows]) / _unit(seen, rows, made)
    square = float((left * left).sum())
    return square if square <= _EXPLAINED * float((was * was).sum()) else None


def _tied(ref: Reference, layer: Any, rows: Array) -> Any:
    """Rows that a layer with a fault routes by less than rounding; none of one that is only a wrong derivative."""
    r = Rounding(ref.arithmetic)
    try:
        margin = bounds.margins(layer, r.given(ref.x[rows]), r)
    except (TypeError, AttributeError):  # a layer with a wrong derivative is none whose rounding is known
        return np.zeros(len(rows), bool)
    return np.asarray(margin.gap <= margin.noise)


def _asked(seen: _Seen, rows: Array, layer: Any) -> Array | None:
    ref = seen.ref
    return _answer_of(layer, kind_of(seen.name), ref.x[rows], None if ref.dy is None else ref.dy[rows])


def _answer_of(layer: Any, kind: str, x: Array, dy: Array | None) -> Array | None:
    """What a layer answers, for answers whose rows are tokens; None where it has no such answer."""
    try:
        if kind == "output":
            return layer.forward(x)[0]
        if kind == "gradient":
            return None if dy is None else layer.vjp(layer.forward(x)[1], dy)[0]
        if kind == "gates":
            return layer.route(x)[0]
        return getattr(layer, kind)(x)
    except (ValueError, TypeError, AttributeError):  # a fault that these sizes do not allow, or another kind of layer
        return None


def _tried(seen: _Seen, order: Array) -> Array:
    """The rows on which an explanation is tried before it must fit all: some that are off, some that agree."""
    fine = np.flatnonzero(seen.used & ~seen.off)
    spread = np.linspace(0, len(fine) - 1, min(_NEAR, len(fine))).astype(int)
    return np.concatenate([order[:_FAR], fine[spread]])


def _worst(seen: _Seen) -> Array:
    """The rows that are off, worst first."""
    off = np.flatnonzero(seen.off)
    return off[np.argsort(-np.nan_to_num(seen.ratio[off], nan=np.inf), kind="stable")]


# ---- what is said --------------------------------------------------------------------------------------------------

_Found = list[tuple[float, _Fault]]


def _looks(seen: list[_Seen], explain: Callable[[_Seen], tuple[_Found, str]]) -> list[Clue]:
    """One clue for all answers where one explanation fits them all, else one for each of the first three."""
    clues = []
    for part in [part for part in seen if part.off.any()][:3]:
        found, else_ = explain(part)
        against = [(square, fault, _against(seen, part, fault)) for square, fault in found]
        agreed = [(square, fault) for square, fault, names in against if not names]
        if agreed and (says := _or(agreed, part)):
            return [Clue("looks like", part.name, says)]
        if found and not agreed and (says := _or(found, part)):
            most = min((names for _, _, names in against), key=len)
            clues.append(Clue("looks like", part.name, f"{says}; but {', '.join(most)} {_does(most)} not fit that"))
        elif else_:
            clues.append(Clue("looks like", part.name, else_))
    return list({clue.says: clue for clue in reversed(clues)}.values())[::-1]


def _does(names: list[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _against(seen: list[_Seen], part: _Seen, fault: _Fault) -> list[str]:
    """The other answers that an explanation does not fit."""
    names = []
    for other in seen:
        if other is not part and other.used.any():
            rows = np.flatnonzero(other.used)
            left = _left(other, rows, _asked(other, rows, fault.layer))
            if left is not None and not (left <= 2).all() and _fit(other, rows, fault.layer) is None:
                names.append(other.name)
    return names


def _or(found: _Found, part: _Seen) -> str:
    """The explanations that fit about equally well, in words; none where there are so many that they say nothing."""
    best = min(square for square, _ in found)
    limit = 2 * best + 0.02 * part.got[part.used].size  # rounding is some tenths of what is usual
    words = list(dict.fromkeys(fault.words for square, fault in found if square <= limit))
    if len(words) > _MOST_TOLD:
        return ""
    if all(text.endswith(_ALL) for text in words):
        return ", or ".join(text.removesuffix(_ALL) for text in words) + _ALL
    return ", or ".join(words)


# ---- faults that have a name ---------------------------------------------------------------------------------------


def _named(seen: _Seen) -> tuple[_Found, str]:
    """The faults under which our answer would be the candidate's, in all rows."""
    rows, every = _tried(seen, _worst(seen)), np.flatnonzero(seen.used)
    layer = seen.ref.layer
    visits = {path: on[seen.off].all(axis=0) for path, on in _visits(layer, seen.ref.x).items()}
    found = []
    for fault in _faults(layer, "", visits):
        if _fit(seen, rows, fault.layer) is None or (square := _fit(seen, every, fault.layer)) is None:
            continue
        if fault.alone and not _in_several(seen, every, fault):
            continue
        found.append((square, fault))
    was = float((((seen.want[every] - seen.got[every]) / _unit(seen, every, seen.want[every])) ** 2).sum())
    if found and min(square for square, _ in found) > _LOOSE * was:
        found += _changed(seen)[0]  # limits are so wide that something else may fit better
    return found or _named_in_part(seen, visits), ""


def _named_in_part(seen: _Seen, visits: Mapping[str, Array]) -> _Found:
    """Faults of a whole layer that fit the rows which are off, and these alone: other rows may be done otherwise."""
    off, found = np.flatnonzero(seen.off), []
    was = float((((seen.want[off] - seen.got[off]) / _unit(seen, off, seen.want[off])) ** 2).sum())
    for fault in _faults(seen.ref.layer, "", {path: np.zeros_like(e) for path, e in visits.items()}):
        if fault.alone or _fit(seen, _worst(seen)[:_FAR], fault.layer) is None:
            continue
        if (square := _fit(seen, off, fault.layer)) is not None and square <= _LOOSE * was:
            found.append((square, fault._replace(words=f"{fault.words}, in the rows that are off alone")))
    return found


def _in_several(seen: _Seen, rows: Array, fault: _Fault) -> bool:
    """Whether a fault that is said to be in every expert makes a difference in two of them at least."""
    several = 0
    for alone in fault.alone:
        made = _asked(seen, rows, alone)
        if made is not None and (np.abs(made - seen.want[rows]) > 2 * _unit(seen, rows, made)).any():
            several += 1
            if several == 2:
                return True
    return False


@dataclass(frozen=True, eq=False)
class _Slopes:
    """A layer whose values are right and whose Jacobian is another."""

    layer: Any
    jacobian: Callable[[Array], Array]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.layer.widths)

    def route(self, x: Array) -> Any:
        return self.layer.route(x)

    def scores(self, x: Array) -> Any:
        return self.layer.scores(x)

    def forward(self, x: Array) -> tuple[Array, Array]:
        return self.layer.forward(x)[0], x

    def vjp(self, trace: Array, dy: Array, wrt_x: bool = True) -> tuple[Array, Any]:
        return np.einsum("no,nod->nd", dy, self.jacobian(trace)), self


def _faults(layer: Any, path: str, visits: Mapping[str, Array]) -> Iterator[_Fault]:
    """Common faults of a layer and of all inside it; `visits` (E,) are the experts that a fault of one may be in."""
    where = f"in {path}: " if path else ""
    if not path and layer.widths[0] == layer.widths[-1]:
        yield _Fault("the Jacobian is transposed", _Slopes(layer, lambda x: layer.jacobian(x).transpose(0, 2, 1)))
    if isinstance(layer, MoE):
        own = [*_mixture_slopes(layer), *_mixture_faults(layer), *_in_experts(layer, visits[path])]
    else:
        own = [_Fault(words, _Slopes(layer, other.jacobian)) for words, other in _slopes(layer)]
        own += [_Fault(words, other) for words, other in _simple_faults(layer)]
    yield from (fault._replace(words=where + fault.words) for fault in own)
    for key, inner, put in _inside(layer):
        if isinstance(layer, Stack) and len(layer.layers) > 1 and inner.widths[0] == inner.widths[-1]:
            yield _Fault(f"{_join(path, key)} is left out", put(_Nothing(inner.widths[0])))
        for fault in _faults(inner, _join(path, key), visits):
            yield fault._replace(layer=put(fault.layer), alone=tuple(map(put, fault.alone)))


@dataclass(frozen=True, eq=False)
class _Nothing:
    """y = x."""

    d: int

    @property
    def widths(self) -> tuple[int, int]:
        return self.d, self.d

    def forward(self, x: Array) -> tuple[Array, None]:
        return x, None

    def vjp(self, trace: None, dy: Array, wrt_x: bool = True) -> tuple[Array, Any]:
        return dy, self

    def jacobian(self, x: Array) -> Array:
        return np.broadcast_to(np.eye(self.d), (len(x), self.d, self.d))


def _slopes(layer: Any) -> Iterator[tuple[str, Any]]:
    """Right values of another layer than a mixture, wrong derivatives."""
    if isinstance(layer, GeluExpert) or (isinstance(layer, Linear) and layer.activation):
        for name in ACTIVATIONS:
            if name != layer.activation:
                other = replace(layer, activation=name)  # whose slopes they are
                yield f"values of {layer.activation} with slopes of {name}", other


def _simple_faults(layer: Any) -> Iterator[tuple[str, Any]]:
    """Faults of the map of another layer than a mixture."""
    if isinstance(layer, Residual):
        yield "what goes in is not added", layer.layer
    if isinstance(layer, RMSNorm):
        yield "gamma is left out", replace(layer, gamma=np.ones_like(layer.gamma))
        yield "gamma is 1 more", replace(layer, gamma=1 + layer.gamma)
        for eps in (0.0, 1e-12, 1e-8, 1e-6, 1e-5, float(np.finfo(np.float32).eps)):
            if eps != layer.eps:
                yield f"eps is {eps:.2g}, not {layer.eps:.2g}", replace(layer, eps=eps)
    if isinstance(layer, GeluExpert | Linear):
        for name in ACTIVATIONS:
            if name != layer.activation and layer.activation:
                yield f"the activation is {name}, not {layer.activation}", replace(layer, activation=name)
        for bias in ("b", "b1", "b2"):
            if (b := getattr(layer, bias, None)) is not None and b.any():
                yield f"{bias} is left out", _replaced(layer, bias, np.zeros_like(b))
    if isinstance(layer, SwigluExpert):
        yield "gate and up are exchanged", replace(layer, Wg=layer.Wu, Wu=layer.Wg)
        h = len(layer.Wg)
        if h > 1 and h % 2 == 0:
            both = np.concatenate([layer.Wg, layer.Wu])
            yield "gate and up are read as interleaved rows", replace(layer, Wg=both[0::2].copy(), Wu=both[1::2].copy())
    if isinstance(layer, GeluExpert | SwigluExpert | Linear):
        for name, leaf in list(tree.named_leaves(layer)):
            if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] and len(leaf) > 1:
                yield f"{name} is transposed", _replaced(layer, name, np.ascontiguousarray(leaf.T))


def _replaced(layer: Any, name: str, leaf: Array) -> Any:
    return replace(layer, **{name: leaf})


def _mixture_slopes(moe: MoE) -> Iterator[_Fault]:
    """Right values of a mixture, wrong derivatives of its gates."""
    yield _Fault("the router's term is missing: gates are held constant", _Slopes(moe, moe.expert_jacobian))
    yield _Fault("the experts' term is missing", _Slopes(moe, moe.router_jacobian))

    def other_set(x: Array) -> Array:
        """The gates' derivative as if the softmax ran over the other set."""
        routing = moe.routing(x)
        flipped = routing._replace(q=replace(moe, renormalize=not moe.renormalize).routing(x).q)
        dgates = gates_jacobian(flipped, moe.router / moe.temperature)  # (n, E, d)
        return moe.expert_jacobian(x) + matmul(moe._outputs(x, routing), dgates)

    if moe.k < len(moe.experts):
        which = "all experts" if moe.renormalize else "the chosen experts alone"
        yield _Fault(f"the gates' derivative takes the softmax over {which}", _Slopes(moe, other_set))
    if moe.temperature != 1:
        yield _Fault(
            "the gates' derivative leaves out the temperature",
            _Slopes(moe, lambda x: moe.expert_jacobian(x) + moe.temperature * moe.router_jacobian(x)),
        )


def _mixture_faults(moe: MoE) -> Iterator[_Fault]:
    """Faults of the routing, and experts in another order."""
    E = len(moe.experts)
    if moe.k < E:
        which = "all experts" if moe.renormalize else "the chosen experts alone"
        yield _Fault(f"the softmax runs over {which}", replace(moe, renormalize=not moe.renormalize))
    for k in sorted({*range(1, min(E, _FEW) + 1), moe.k - 1, moe.k + 1, E} - {moe.k}):
        if 1 <= k <= E:
            yield _Fault(f"k is {k}, not {moe.k}", replace(moe, k=k))
    if moe.temperature != 1:
        yield _Fault("the temperature is left out", replace(moe, temperature=1.0))
        yield _Fault("scores are multiplied by the temperature", replace(moe, temperature=1 / moe.temperature))
    if moe.bias is not None:
        yield _Fault("the router's bias is left out", replace(moe, bias=None))
        if moe.temperature != 1:
            after = replace(moe, bias=moe.bias * moe.temperature)
            yield _Fault("the router's bias is added after the temperature", after)
    d = moe.widths[0]
    yield _Fault("scores are divided by the root of d", replace(moe, temperature=moe.temperature * d**0.5))
    if d == E and E > 1:
        yield _Fault("the router is transposed", replace(moe, router=np.ascontiguousarray(moe.router.T)))
    if E == 2:
        yield _Fault("the two experts are exchanged", replace(moe, experts=moe.experts[::-1]))
    elif E > 2:
        for shift, words in ((1, "the next"), (-1, "the one before")):
            experts = moe.experts[shift:] + moe.experts[:shift]
            says = f"in place of each expert e a token is given {words}, e {'+' if shift > 0 else '-'} 1"
            yield _Fault(says, replace(moe, experts=experts))
        yield _Fault("the experts stand in reverse order", replace(moe, experts=moe.experts[::-1]))
    for i, j in combinations(range(E), 2) if 2 < E <= _FEW else ():
        order = [{i: j, j: i}.get(e, e) for e in range(E)]
        yield _Fault(f"experts {i} and {j} are exchanged", replace(moe, experts=tuple(moe.experts[e] for e in order)))
    if E > 10:
        as_text = sorted(range(E), key=str)
        experts = tuple(moe.experts[e] for e in as_text)
        yield _Fault("the experts are sorted as text: 0, 1, 10, 11, ..., 2", replace(moe, experts=experts))


def _in_experts(moe: MoE, visited: Array) -> Iterator[_Fault]:
    """Faults of one expert, of those that all tokens visit which are off, and the same fault in every expert."""
    E = len(moe.experts)

    def mapped(experts: tuple[Any, ...]) -> Any:
        return replace(moe, experts=experts)

    def sloped(experts: tuple[Any, ...]) -> Any:
        other = replace(moe, experts=experts)
        return _Slopes(moe, lambda x: other.expert_jacobian(x) + moe.router_jacobian(x))

    def alone(make: Callable[[tuple[Any, ...]], Any], e: int, other: Any) -> Any:
        return make((*moe.experts[:e], other, *moe.experts[e + 1 :]))

    at = np.flatnonzero(visited).tolist()
    for make, kinds in (
        (sloped, [dict(_slopes(f)) for f in moe.experts]),
        (mapped, [dict(_simple_faults(f)) for f in moe.experts]),
    ):
        if len(at) <= _MOST_EXPERTS:
            for e in at:
                for words, other in kinds[e].items():
                    yield _Fault(f"in expert {e} {words}", alone(make, e, other))
        for words in kinds[0] if E > 1 else ():
            if all(words in kind for kind in kinds):
                others = tuple(kind[words] for kind in kinds)
                says = f"in every expert {words}"
                if make is sloped:
                    says = f"values of the experts' activation with slopes of {words.split()[-1]}"
                yield _Fault(says, make(others), tuple(alone(make, e, other) for e, other in enumerate(others)))


# ---- one number, and changes of parameters -------------------------------------------------------------------------


def _factor(ref: Reference, part: Part, array: Array) -> Clue | None:
    """Whether the whole answer is ours times one number."""
    allowed = ref.allowed(part.name)
    want, usual, got = allowed.want, allowed.usual, array.astype(np.float64)
    if kind_of(part.name) in ROWWISE:
        used = _seen(ref, part, array).used
        want, usual, got = want[used], usual[used], _rows_of(array, part)[used]
    square = float((want * want).sum())
    if want.shape != got.shape or not np.isfinite(got).all() or not square or np.count_nonzero(want) < 2:
        return None
    c = float((want * got).sum()) / square
    left, was = np.abs(got - c * want), np.abs(got - want)
    if not (left <= 2 * max(abs(c), 1.0) * usual).all():
        return None
    if float((left**2).sum()) > _EXPLAINED * float((was**2).sum()):
        return None
    n = len(ref.x)
    named = {n: "n: a sum for a mean", 1 / n: "1/n: a mean over tokens for a sum", -1.0: "-1", 0.5: "1/2", 2.0: "2"}
    names = [text for value, text in named.items() if abs(c / value - 1) < 1e-6]
    if c == 0:
        return Clue("looks like", part.name, "all of it is zero")
    return Clue("looks like", part.name, f"all of it is ours times {names[0] if names else _near_one(c)}")


def _near_one(c: float) -> str:
    return f"1 {'+' if c > 1 else '-'} {abs(c - 1):.2g}" if abs(c - 1) < 1e-3 else f"{c:.6g}"


class _Change(NamedTuple):
    """A row, a column or all (`part` is its index) of the leaves `at`, several where every expert has them."""

    words: str
    at: tuple[int, ...]
    part: tuple[Any, ...] = ()


def _changes(layer: Any) -> Iterator[_Change]:
    """Every row and column of every parameter, every entry of a vector, each matrix as a whole, and some together."""
    leaves = list(tree.named_leaves(layer))
    names = {name for name, _ in leaves}
    for at, (name, leaf) in enumerate(leaves):
        says = _leaf(name)
        if leaf.ndim == 1:
            yield from (_Change(f"{says}, entry {i}", (at,), (i,)) for i in range(len(leaf)))
            continue
        yield from (_Change(f"{says}, row {i}", (at,), (i,)) for i in range(len(leaf)))
        yield from (_Change(f"{says}, column {j}", (at,), (slice(None), j)) for j in range(leaf.shape[1]))
        cold = name.endswith("router") and name.removesuffix("router") + "bias" not in names
        yield _Change(f"{says}, all of it{_COLD * cold}", (at,))
    for says, found in _together(leaves).items():
        yield _Change(says, tuple(found))


_COLD = " (the inverse of a temperature)"


def _together(leaves: Sequence[tuple[str, Array]]) -> dict[str, list[int]]:
    """Leaves that may change together, by words: matrices that every expert has, the router and its bias."""
    groups: dict[str, list[int]] = {}
    places = {name: at for at, (name, _) in enumerate(leaves)}
    for name, at in places.items():
        before, among, after = name.rpartition("experts.")
        if among and leaves[at][1].ndim == 2:
            path = f"{before.rstrip('.')}, " if before else ""
            groups.setdefault(f"{path}every expert, {after.partition('.')[2]}, all of it", []).append(at)
        bias = name.removesuffix("router") + "bias"
        if name.endswith("router") and bias in places:
            groups[f"{name} and bias, all of both{_COLD}"] = [at, places[bias]]
    return {words: found for words, found in groups.items() if len(found) > 1}


def _changed(seen: _Seen) -> tuple[_Found, str]:
    """The parts of parameters of which a relative change explains the difference; else the one that nearly does."""
    order, every, layer = _worst(seen), np.flatnonzero(seen.used), seen.ref.layer
    if not np.isfinite(seen.got[every]).all() or sum(a.size for a in tree.leaves(layer)) > _MOST_PARAMETERS:
        return [], ""
    orders = [order]
    if len(order) > _FAR:  # where a change moves the choice of experts, the worst rows are the least like it
        middle = len(order) // 2 - _FAR // 2
        orders.append(order[middle : middle + _FAR])
    most, nearly, found = 0.0, "", []
    for some in orders:
        rows = _tried(seen, some)
        for change, guess in _likely(seen, rows):
            c, share = _refined(seen, rows, change, guess)
            other, says = _with(layer, change, c), f"{change.words}: a relative change of {c:.2e}"
            alone = tuple(_with(layer, change._replace(at=(at,)), c) for at in change.at) if len(change.at) > 1 else ()
            fault = _Fault(f"{says}{_ALL}", other, alone)
            if _fit(seen, rows, other) is not None and (square := _fit(seen, every, other)) is not None:
                if not alone or _in_several(seen, every, fault):
                    found.append((square, fault))
            elif share > most and abs(c) < 0.1:
                most = share
                nearly = f"{says} there would explain {100 * share:.4g} % of the difference, not all of it"
        if found:
            return found, ""
    return [], nearly if 0.99 <= most < 0.99995 else ""


def _with(layer: Any, change: _Change, c: float) -> Any:
    """The layer with a part of some leaves 1 + c times as large."""
    leaves = tree.leaves(layer)
    for at in change.at:
        leaves[at] = leaves[at].copy()
        leaves[at][change.part] *= 1 + c
    new = iter(leaves)
    return tree.map_leaves(lambda _: next(new), layer)


def _likely(seen: _Seen, rows: Array) -> list[tuple[_Change, float]]:
    """The changes whose direction is nearest to that of the difference, each with a first guess of its size.

    The difference D and what each change makes of the answer, R, are seen through a few random projections <P, D> and
    <P, R>. One backward pass gives <P, R> of all changes at once: <P, R> is the derivative of <P, answer> in the
    parameters, and of a Jacobian P = u v^T the difference of two passes, at x + h v and x - h v.
    """
    ref, kind = seen.ref, kind_of(seen.name)
    D = seen.got[rows] - seen.want[rows]
    if kind in ("output", "gradient", "jacobian"):
        p, Q, changes = _projected(ref, kind, rows, D)
    else:
        p, Q, changes = _one_by_one(seen, rows, D)
    square = (Q * Q).sum(axis=0)
    c = np.divide(matmul(p, Q), square, out=np.zeros_like(square), where=square > 0)
    left = ((p[:, None] - c * Q) ** 2).sum(axis=0)
    order = np.argsort(np.nan_to_num(left, nan=np.inf), kind="stable")[:_REFINED]
    # of a small change nothing is left but curvature; of a large one, or of two, more
    limit = min(0.5, 1e-3 + 100 * left.min(initial=np.inf) / max(matmul(p, p), 1e-300)) * matmul(p, p)
    return [(changes[i], float(c[i])) for i in order if left[i] <= limit]


def _projected(ref: Reference, kind: str, rows: Array, D: Array) -> tuple[Array, Array, list[_Change]]:
    """Projections of the difference (m,) and of all changes (m, changes)."""
    rng, layer, x = np.random.default_rng(0), ref.layer, ref.x[rows]
    h = 1e-5 * np.minimum(1, np.sqrt((x * x).mean(axis=1, keepdims=True)))  # (rows, 1)
    h[h == 0] = 1e-5

    def slopes(x: Array, u: Array) -> list[Array]:
        return tree.leaves(layer.vjp(layer.forward(x)[1], u)[1])

    p, Q = [], []
    for _ in range(_PROJECTIONS):
        u = rng.standard_normal((len(x), layer.widths[-1]))
        if kind == "output":
            p.append((u * D).sum())
            found = slopes(x, u)
        else:
            v = rng.standard_normal(x.shape)
            if kind == "gradient":
                assert ref.dy is not None
                u = ref.dy[rows]
            p.append((v * D).sum() if kind == "gradient" else np.einsum("no,nod,nd->", u, D, v))
            sides = slopes(x + h * v, u / (2 * h)), slopes(x - h * v, u / (2 * h))
            found = [a - b for a, b in zip(*sides, strict=True)]
        moved = [g * leaf for g, leaf in zip(found, tree.leaves(layer), strict=True)]
        groups = _together(list(tree.named_leaves(layer))).values()
        together = [sum(float(moved[at].sum()) for at in group) for group in groups]
        Q.append(np.concatenate([*map(_by_part, moved), together]))
    return np.array(p), np.array(Q), list(_changes(layer))


def _by_part(a: Array) -> Array:
    """Sums over rows, columns and all of it, in the order of `_changes`."""
    return a if a.ndim == 1 else np.concatenate([a.sum(axis=1), a.sum(axis=0), [a.sum()]])


def _one_by_one(seen: _Seen, rows: Array, D: Array) -> tuple[Array, Array, list[_Change]]:
    """The difference and what each change does, entry by entry, for answers that have no backward pass."""
    layer, step = seen.ref.layer, 1e-6
    changes = list(_changes(layer))
    if kind_of(seen.name) in ("gates", "scores"):
        changes = [change for change in changes if change.words.startswith(_ROUTING)]
    if len(changes) > _MOST_CHANGES:
        return np.zeros(0), np.zeros((0, 0)), []
    base = seen.want[rows]
    Q = [(_asked(seen, rows, _with(layer, change, step)) - base).ravel() / step for change in changes]
    return D.ravel(), np.stack(Q, axis=1), changes


def _refined(seen: _Seen, rows: Array, change: _Change, c: float) -> tuple[float, float]:
    """The size of a change by Newton's steps on the exact answer, and the share of the squares that it explains."""
    layer, step = seen.ref.layer, 1e-6
    got, unit = seen.got[rows], _unit(seen, rows, seen.want[rows])
    was = float((((got - seen.want[rows]) / unit) ** 2).sum())
    best = (np.inf, c)
    for i in range(8):
        made, ahead = (_asked(seen, rows, _with(layer, change, at)) for at in (c, c + step))
        if made is None or ahead is None or not np.isfinite(made).all():
            break
        left, R = (got - made) / unit, (ahead - made) / unit / step
        remains, square = float((left * left).sum()), float((R * R).sum())
        best = min(best, (remains, c))
        if not square > 0 or (i == 2 and remains > was / 100):
            break
        move = float((left * R).sum()) / square
        if abs(move) < 1e-15 * abs(c):
            break
        c += move
    return best[1], 1 - best[0] / was
