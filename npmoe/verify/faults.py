"""Common faults of layers, as data: what each is called, in which kinds of layer it may be, and how it is made.

n tokens, d width, h hidden, o output width, E experts, k experts a token. A new fault is a row of `MAPS`, `SLOPES`,
`ROUTES` or `GATE_SLOPES`; `npmoe.verify.diagnose` tries every row on every layer of its kinds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import ACTIVATIONS
from npmoe.calculus.words import one_line
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.model.routing import gates_jacobian

__all__ = ["GATE_SLOPES", "MAPS", "ROUTES", "SLOPES", "Fault", "Row", "faults", "inside", "joined"]

Array = np.ndarray

MOST_EXPERTS = 32  # experts that are tried one by one
FEW = 8  # experts of which any two may be exchanged


class Fault(NamedTuple):
    """Words, a layer that has the fault, and, of a fault in every expert, layers that have it in one alone."""

    words: str
    layer: Any
    alone: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return one_line(self)


def _once(layer: Any) -> Iterable[Any]:
    return (None,)


class Row(NamedTuple):
    """A fault, or several of one form.

    Parameters
    ----------
    kinds : classes of layers that may have it.
    words : what it is called; ``{layer}`` is the right layer, ``{it}`` the one of several.
    make : the right layer and the one of several -> the faulty layer, or what stands in its place (see the tables).
    each : of a right layer, all that `it` may be; empty where it cannot have the fault. Without it there is one.
    everywhere : what it is called where every expert of a mixture has it; ``{words}`` are those of the first expert.
    """

    kinds: tuple[type, ...]
    words: str
    make: Callable[[Any, Any], Any]
    each: Callable[[Any], Iterable[Any]] = _once
    everywhere: str = "in every expert {words}"


class Made(NamedTuple):
    """A fault that a layer may have: words, what its row makes, and words where every expert has it."""

    words: str
    other: Any
    everywhere: str


def made(rows: Iterable[Row], layer: Any) -> Iterator[Made]:
    """The faults of a table that a layer may have."""
    for row in rows:
        if isinstance(layer, row.kinds):
            for it in row.each(layer):
                words = row.words.format(layer=layer, it=it)
                yield Made(words, row.make(layer, it), row.everywhere.format(layer=layer, it=it, words=words))


def where(condition: Callable[[Any], bool]) -> Callable[[Any], Iterable[Any]]:
    """Once, where a layer is so."""
    return lambda layer: (None,) if condition(layer) else ()


# ---- layers that are no mixtures -------------------------------------------------------------------------------------


def _other_activations(layer: Any) -> list[str]:
    return [name for name in ACTIVATIONS if name != layer.activation and layer.activation]


def _biases(layer: Any) -> list[str]:
    return [name for name in ("b", "b1", "b2") if (b := getattr(layer, name, None)) is not None and b.any()]


def _squares(layer: Any) -> list[str]:
    leaves = tree.named_leaves(layer)
    return [name for name, leaf in leaves if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] and len(leaf) > 1]


def _interleaved(layer: SwigluExpert, _: None) -> SwigluExpert:
    both = np.concatenate([layer.Wg, layer.Wu])
    return replace(layer, Wg=both[0::2].copy(), Wu=both[1::2].copy())


def _other_eps(layer: RMSNorm) -> list[float]:
    usual = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, float(np.finfo(np.float32).eps))
    return [eps for eps in usual if eps != layer.eps]


def _with(layer: Any, name: str, leaf: Array) -> Any:
    return replace(layer, **{name: leaf})


#: Right values with the derivatives of another layer, which `make` gives.
SLOPES = (
    Row(
        (GeluExpert, Linear),
        "values of {layer.activation} with slopes of {it}",
        lambda layer, name: replace(layer, activation=name),
        _other_activations,
        everywhere="values of the experts' activation with slopes of {it}",
    ),
)

#: Another map.
MAPS = (
    Row((Residual,), "what goes in is not added", lambda layer, _: layer.layer),
    Row((RMSNorm,), "gamma is left out", lambda layer, _: replace(layer, gamma=np.ones_like(layer.gamma))),
    Row((RMSNorm,), "gamma is 1 more", lambda layer, _: replace(layer, gamma=1 + layer.gamma)),
    Row(
        (RMSNorm,),
        "eps is {it:.2g}, not {layer.eps:.2g}",
        lambda layer, eps: replace(layer, eps=eps),
        _other_eps,
    ),
    Row(
        (GeluExpert, Linear),
        "the activation is {it}, not {layer.activation}",
        lambda layer, name: replace(layer, activation=name),
        _other_activations,
    ),
    Row(
        (GeluExpert, Linear),
        "{it} is left out",
        lambda layer, name: _with(layer, name, np.zeros_like(getattr(layer, name))),
        _biases,
    ),
    Row(
        (SwigluExpert,),
        "gate and up are exchanged",
        lambda layer, _: replace(layer, Wg=layer.Wu, Wu=layer.Wg),
    ),
    Row(
        (SwigluExpert,),
        "gate and up are read as interleaved rows",
        _interleaved,
        where(lambda layer: len(layer.Wg) > 1 and len(layer.Wg) % 2 == 0),
    ),
    Row(
        (GeluExpert, SwigluExpert, Linear),
        "{it} is transposed",
        lambda layer, name: _with(layer, name, np.ascontiguousarray(getattr(layer, name).T)),
        _squares,
    ),
)


# ---- mixtures --------------------------------------------------------------------------------------------------------


def _other_set(moe: MoE) -> tuple[str, ...]:
    """What a softmax runs over that should not, in words."""
    which = "all experts" if moe.renormalize else "the chosen experts alone"
    return (which,) if moe.k < len(moe.experts) else ()


def _slopes_of_other_set(moe: MoE, _: str) -> Callable[[Array], Array]:
    """The gates' derivative as if the softmax ran over the other set."""

    def jacobian(x: Array) -> Array:
        routing = moe.routing(x)
        flipped = routing._replace(q=replace(moe, renormalize=not moe.renormalize).routing(x).q)
        dgates = gates_jacobian(flipped, moe.router / moe.temperature)  # (n, E, d)
        return moe.expert_jacobian(x) + matmul(moe._outputs(x, routing), dgates)

    return jacobian


_warm = where(lambda moe: moe.temperature != 1)

#: Right values of a mixture with wrong derivatives of its gates: `make` gives the Jacobian, a function of x.
GATE_SLOPES = (
    Row((MoE,), "the router's term is missing: gates are held constant", lambda moe, _: moe.expert_jacobian),
    Row((MoE,), "the experts' term is missing", lambda moe, _: moe.router_jacobian),
    Row((MoE,), "the gates' derivative takes the softmax over {it}", _slopes_of_other_set, _other_set),
    Row(
        (MoE,),
        "the gates' derivative leaves out the temperature",
        lambda moe, _: lambda x: moe.expert_jacobian(x) + moe.temperature * moe.router_jacobian(x),
        _warm,
    ),
)


def _other_ks(moe: MoE) -> list[int]:
    E = len(moe.experts)
    return [k for k in sorted({*range(1, min(E, FEW) + 1), moe.k - 1, moe.k + 1, E} - {moe.k}) if 1 <= k <= E]


def _reordered(moe: MoE, order: Iterable[int]) -> MoE:
    return replace(moe, experts=tuple(moe.experts[e] for e in order))


def _exchanged(moe: MoE, pair: tuple[int, int]) -> MoE:
    i, j = pair
    return _reordered(moe, [{i: j, j: i}.get(e, e) for e in range(len(moe.experts))])


def _shifted(by: int) -> Callable[[MoE, Any], MoE]:
    return lambda moe, _: replace(moe, experts=moe.experts[by:] + moe.experts[:by])


_several = where(lambda moe: len(moe.experts) > 2)

#: Another routing, or experts in another order.
ROUTES = (
    Row(
        (MoE,),
        "the softmax runs over {it}",
        lambda moe, _: replace(moe, renormalize=not moe.renormalize),
        _other_set,
    ),
    Row((MoE,), "k is {it}, not {layer.k}", lambda moe, k: replace(moe, k=k), _other_ks),
    Row((MoE,), "the temperature is left out", lambda moe, _: replace(moe, temperature=1.0), _warm),
    Row(
        (MoE,),
        "scores are multiplied by the temperature",
        lambda moe, _: replace(moe, temperature=1 / moe.temperature),
        _warm,
    ),
    Row(
        (MoE,),
        "the router's bias is left out",
        lambda moe, _: replace(moe, bias=None),
        where(lambda moe: moe.bias is not None),
    ),
    Row(
        (MoE,),
        "the router's bias is added after the temperature",
        lambda moe, _: replace(moe, bias=moe.bias * moe.temperature),
        where(lambda moe: moe.bias is not None and moe.temperature != 1),
    ),
    Row(
        (MoE,),
        "scores are divided by the root of d",
        lambda moe, _: replace(moe, temperature=moe.temperature * moe.widths[0] ** 0.5),
    ),
    Row(
        (MoE,),
        "the router is transposed",
        lambda moe, _: replace(moe, router=np.ascontiguousarray(moe.router.T)),
        where(lambda moe: moe.widths[0] == len(moe.experts) > 1),
    ),
    Row(
        (MoE,),
        "the two experts are exchanged",
        lambda moe, _: replace(moe, experts=moe.experts[::-1]),
        where(lambda moe: len(moe.experts) == 2),
    ),
    Row((MoE,), "in place of each expert e a token is given the next, e + 1", _shifted(1), _several),
    Row((MoE,), "in place of each expert e a token is given the one before, e - 1", _shifted(-1), _several),
    Row(
        (MoE,),
        "the experts stand in reverse order",
        lambda moe, _: replace(moe, experts=moe.experts[::-1]),
        _several,
    ),
    Row(
        (MoE,),
        "experts {it[0]} and {it[1]} are exchanged",
        _exchanged,
        lambda moe: combinations(range(len(moe.experts)), 2) if 2 < len(moe.experts) <= FEW else (),
    ),
    Row(
        (MoE,),
        "the experts are sorted as text: 0, 1, 10, 11, ..., 2",
        lambda moe, _: _reordered(moe, sorted(range(len(moe.experts)), key=str)),
        where(lambda moe: len(moe.experts) > 10),
    ),
)


# ---- all faults of a layer -------------------------------------------------------------------------------------------


def faults(layer: Any, path: str, visits: Mapping[str, Array]) -> Iterator[Fault]:
    """Every fault of a layer and of all inside it; `visits` (E,) are the experts that a fault of one may be in."""
    place = f"in {path}: " if path else ""
    if not path and layer.widths[0] == layer.widths[-1]:
        turned = WrongDerivative(layer, lambda x: layer.jacobian(x).transpose(0, 2, 1))
        yield Fault("the Jacobian is transposed", turned)
    yield from (fault._replace(words=place + fault.words) for fault in _own(layer, visits.get(path)))
    for key, inner, put in inside(layer):
        if isinstance(layer, Stack) and len(layer.layers) > 1 and inner.widths[0] == inner.widths[-1]:
            yield Fault(f"{joined(path, key)} is left out", put(Identity(inner.widths[0])))
        for fault in faults(inner, joined(path, key), visits):
            yield fault._replace(layer=put(fault.layer), alone=tuple(map(put, fault.alone)))


def _own(layer: Any, visited: Array | None) -> Iterator[Fault]:
    """The faults of the tables that a layer may have, without those of layers inside a stack or a residual."""
    for words, jacobian, _ in made(GATE_SLOPES, layer):
        yield Fault(words, WrongDerivative(layer, jacobian))
    for words, other, _ in made(ROUTES, layer):
        yield Fault(words, other)
    if isinstance(layer, MoE) and visited is not None:
        yield from _in_experts(layer, visited)
    for words, other, _ in made(SLOPES, layer):
        yield Fault(words, WrongDerivative(layer, other.jacobian))
    for words, other, _ in made(MAPS, layer):
        yield Fault(words, other)


def _by_words(rows: Iterable[Row], expert: Any) -> dict[str, Made]:
    return {fault.words: fault for fault in made(rows, expert)}


def _in_experts(moe: MoE, visited: Array) -> Iterator[Fault]:
    """Faults of one expert, of those that all tokens visit which are off, and the same fault in every expert."""
    E = len(moe.experts)

    def mapped(experts: tuple[Any, ...]) -> Any:
        return replace(moe, experts=experts)

    def sloped(experts: tuple[Any, ...]) -> Any:
        other = replace(moe, experts=experts)
        return WrongDerivative(moe, lambda x: other.expert_jacobian(x) + moe.router_jacobian(x))

    def alone(make: Callable[[tuple[Any, ...]], Any], e: int, other: Any) -> Any:
        return make((*moe.experts[:e], other, *moe.experts[e + 1 :]))

    at = np.flatnonzero(visited).tolist()
    for make, kinds in (
        (sloped, [_by_words(SLOPES, f) for f in moe.experts]),
        (mapped, [_by_words(MAPS, f) for f in moe.experts]),
    ):
        if len(at) <= MOST_EXPERTS:
            for e in at:
                for words, fault in kinds[e].items():
                    yield Fault(f"in expert {e} {words}", alone(make, e, fault.other))
        for words, fault in kinds[0].items() if E > 1 else ():
            if all(words in kind for kind in kinds):
                others = tuple(kind[words].other for kind in kinds)
                each = tuple(alone(make, e, other) for e, other in enumerate(others))
                yield Fault(fault.everywhere, make(others), each)


def inside(layer: Any) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """The layers inside a residual or a stack: key, layer, and how another is put into its place."""
    if isinstance(layer, Residual):
        yield "layer", layer.layer, Residual
    elif isinstance(layer, Stack):
        for i, inner in enumerate(layer.layers):

            def put(other: Any, i: int = i) -> Any:
                return Stack((*layer.layers[:i], other, *layer.layers[i + 1 :]))

            yield f"layers.{i}", inner, put


def joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


@dataclass(frozen=True, eq=False)
class WrongDerivative:
    """A layer whose values are right and whose Jacobian is another."""

    layer: Any
    jacobian: Callable[[Array], Array]

    def __repr__(self) -> str:
        return one_line(self)

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


@dataclass(frozen=True, eq=False)
class Identity:
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
