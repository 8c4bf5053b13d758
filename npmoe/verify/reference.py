"""What a layer should answer, entry by entry, with what rounding may do to it in a candidate's arithmetic.

n tokens, d width, o output width, E experts, k experts a token. An answer has a name: "output" (n, o), "gradient"
(n, d) of <dy, y> in x, "jacobian" (n, o, d), its terms "expert_jacobian" and "router_jacobian", "mean_jacobian"
(o, d), "gates" and "scores" (n, E), and for each parameter by its name in the tree the gradient of <dy, y> in it. What
stands after a colon is a label: "jacobian:forward".
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, tree
from npmoe.calculus.words import one_line
from npmoe.model.moe import MoE
from npmoe.model.routing import top_k
from npmoe.verify import bounds
from npmoe.verify.margins import Margin, margins
from npmoe.verify.rounding import ARITHMETICS, Arithmetic, Rounding

__all__ = ["CHANCE", "ROWWISE", "Allowed", "Reference", "kind_of", "reference", "shapes"]

Array = np.ndarray

#: Answers whose rows are tokens, each for itself.
ROWWISE = ("output", "gradient", "jacobian", "expert_jacobian", "router_jacobian", "gates", "scores")

#: The chance that rounding as it usually goes takes one answer beyond what is allowed, where errors are independent.
CHANCE = 1e-6

_OF_STEP = ("jacobian", "gradient", "mean_jacobian", "expert_jacobian", "router_jacobian")  # derivatives in x

MOST_CHOICES = 24  # ways in which a tie may fall that are still tried one by one
_OURS = ARITHMETICS["float64"]


class Allowed(NamedTuple):
    """How far from `want` an answer may be: as rounding usually goes, but for a chance of CHANCE, and at worst."""

    want: Array
    usual: Array
    worst: Array

    def __repr__(self) -> str:
        return one_line(self)


def kind_of(name: str) -> str:
    """The name without its label."""
    return name.partition(":")[0]


@dataclass(frozen=True, eq=False)
class Reference:
    """A layer in float64 at x (n, d), with cotangent dy (n, o) and weights (n,) where they are given.

    `step` is that of a candidate which takes central differences, 0 for one that does not.
    """

    layer: Any
    x: Array
    dy: Array | None
    weights: Array | None
    arithmetic: Arithmetic
    step: float = 0.0
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return one_line(self)

    @cached_property
    def margin(self) -> Margin:
        """Routing margins, with the noise of candidate and reference together."""
        theirs, ours = (margins(self.layer, (r := Rounding(a)).given(self.x), r) for a in (self.arithmetic, _OURS))
        return Margin(ours.gap, theirs.noise + ours.noise, ours.reach)

    @cached_property
    def undecided(self) -> Array:
        """Rows (n,) whose choice is within rounding, or nearer than the step of a candidate's differences."""
        gap, noise, reach = self.margin
        return gap <= noise + 2 * self.step * reach

    def names(self) -> list[str]:
        """All answers that this layer has."""
        mixture = ["gates", "scores", "expert_jacobian", "router_jacobian"] * isinstance(self.layer, MoE)
        leaves = ["gradient", *bounds.leaf_names(self.layer)] * (self.dy is not None)
        return ["output", *leaves, "jacobian", "mean_jacobian", *mixture]

    def tie(self, row: int) -> tuple[Array, Array]:
        """Experts that a token visits whatever rounding does, and those of which the rest may be made up."""
        moe, r = self.layer, Rounding(self.arithmetic)
        s = bounds.scores(moe, r.given(self.x[row : row + 1]), r)
        value, error = s.value[0], s.error[0] * 2
        ours = top_k(s.value, moe.k)[0]
        last, first = value[ours[-1]], np.delete(value, ours).max()
        sure = value - error > first + error.max()
        open_ = ~sure & (value + error >= last - error[ours[-1]])
        return np.flatnonzero(sure), np.flatnonzero(open_)

    def ways(self, row: int) -> int:
        """How many choices rounding allows for a token."""
        sure, open_ = self.tie(row)
        return comb(len(open_), max(self.layer.k - len(sure), 0))

    def choices(self, row: int, most: int = MOST_CHOICES) -> Iterator[Array]:
        """Choices (k,) that rounding allows for a token, ours first, then from the lowest and the highest number."""
        sure, open_ = self.tie(row)
        ours = top_k(self.layer.scores(self.x[row : row + 1]), self.layer.k)[0]
        room = max(self.layer.k - len(sure), 0)
        up, down = (combinations(side, room) for side in (open_.tolist(), open_[::-1].tolist()))
        seen = {frozenset(ours.tolist())}
        yield ours
        for extra in chain.from_iterable(zip(up, down, strict=True)):
            if len(seen) >= most:
                return
            chosen = np.concatenate([sure, np.array(extra, int)])
            if (found := frozenset(chosen.tolist())) not in seen:
                seen.add(found)
                yield chosen

    def allowed(self, name: str, chosen: Array | None = None, rows: Array | slice = slice(None)) -> Allowed:
        """What is to be answered, and how near; with another choice (n, k) than ours, of these rows only."""
        kind = kind_of(name)
        theirs, ours = self.arithmetic, _OURS
        (want, worst), (_, worst_ours) = (self._rounded(kind, Rounding(a), chosen, rows) for a in (theirs, ours))
        (_, usual), (_, usual_ours) = (self._rounded(kind, Rounding(a, True), chosen, rows) for a in (theirs, ours))
        if chosen is None:
            want = self._own(kind)[rows] if kind in ROWWISE else self._own(kind)
        worst = worst + worst_ours
        deviations = np.sqrt(2 * np.log(2 * max(want.size, 1) / CHANCE))
        usual = np.minimum(deviations * np.hypot(usual, usual_ours), worst)
        if self.step and kind in _OF_STEP:
            extra = self._differences(kind)
            extra = extra if kind == "mean_jacobian" else extra[rows]
            usual, worst = usual + extra, worst + extra
        return Allowed(want, usual, worst)

    def _own(self, kind: str) -> Array:
        """What the layer itself says: by its closed forms, all at once where one pass gives several."""
        if kind not in self._kept:
            layer, x = self.layer, self.x
            if kind == "output":
                self._kept[kind] = layer.forward(x)[0]
            elif kind == "mean_jacobian":
                own = getattr(layer, "mean_jacobian", None)
                w = np.ones(len(x)) if self.weights is None else self.weights
                dense = np.einsum("n,nod->od", w / w.sum(), layer.jacobian(x)) if own is None else own(x, self.weights)
                self._kept[kind] = dense
            elif kind == "gates":
                self._kept[kind] = layer.route(x)[0]
            elif kind in ("scores", "jacobian", "expert_jacobian", "router_jacobian"):
                self._kept[kind] = getattr(layer, kind)(x)
            else:
                dx, dlayer = layer.vjp(layer.forward(x)[1], self.dy)
                self._kept.update({"gradient": dx, **dict(tree.named_leaves(dlayer))})
        return self._kept[kind]

    def _rounded(self, kind: str, r: Rounding, chosen: Array | None, rows: Array | slice) -> tuple[Array, Array]:
        """Value and error by `bounds`; kept where the choice is ours."""
        key = (kind, r)
        whole = kind not in ROWWISE
        if chosen is None and key in self._kept:
            value, error = self._kept[key]
            return (value, error) if whole else (value[rows], error[rows])
        x = self.x if chosen is None or whole else self.x[rows]
        found = self._bounds(kind, r, x, chosen, slice(None) if chosen is None or whole else rows)
        if chosen is not None:
            return found[kind]
        self._kept.update({(name, r): pair for name, pair in found.items()})
        value, error = found[kind]
        return (value, error) if whole else (value[rows], error[rows])

    def _bounds(
        self, kind: str, r: Rounding, x: Array, chosen: Array | None, rows: Array | slice
    ) -> dict[str, tuple[Array, Array]]:
        layer, given = self.layer, r.given(x)
        if kind == "output":
            return {kind: (*bounds.forward(layer, given, r, chosen),)}
        if kind == "jacobian":
            return {kind: bounds.jacobian(layer, given, r, chosen)[:2]}
        if kind == "mean_jacobian":
            return {kind: (*bounds.mean_jacobian(layer, given, r, self.weights, chosen),)}
        if kind in ("expert_jacobian", "router_jacobian"):
            both = bounds.terms(layer, given, r, chosen)
            return {name: J[:2] for name, J in zip(("expert_jacobian", "router_jacobian"), both, strict=True)}
        if kind == "gates":
            return {kind: (*bounds.gates(layer, given, r, chosen),)}
        if kind == "scores":
            return {kind: (*bounds.scores(layer, given, r),)}
        assert self.dy is not None
        dx, grads = bounds.vjp(layer, given, r.given(self.dy[rows]), r, chosen)
        return {"gradient": (dx.value, dx.error), **{name: (grad.value, grad.error) for name, grad in grads.items()}}

    def _differences(self, kind: str) -> Array:
        """What central differences add: rounding of outputs over the step, and twice our own truncation at it."""
        if "step" not in self._kept:
            h, d = self.step, self.x.shape[1]
            J = self._own("jacobian")
            found = np.empty_like(J)
            for i in range(d):
                away = h * np.eye(d)[i]
                found[..., i] = (self.layer.forward(self.x + away)[0] - self.layer.forward(self.x - away)[0]) / (2 * h)
            _, noise = self._rounded("output", Rounding(self.arithmetic), None, slice(None))
            self._kept["step"] = 2 * np.abs(found - J) + noise[:, :, None] / h
        extra: Array = self._kept["step"]
        if kind == "mean_jacobian":
            w = np.ones(len(self.x)) if self.weights is None else self.weights
            return np.einsum("n,nod->od", w / w.sum(), extra)
        if kind != "gradient" or self.dy is None:
            return extra
        return np.einsum("no,nod->nd", np.abs(self.dy), extra)


def reference(
    layer: Any,
    x: Array,
    *,
    dy: Array | None = None,
    weights: Array | None = None,
    arithmetic: str = "float64",
    step: float = 0.0,
) -> Reference:
    """A `Reference` of checked arguments: the layer's numbers and x as they are, in float64.

    Raises
    ------
    ValueError, TypeError : for x that is not (n, d), dy that is not (n, o), weights that are none, an unknown
        arithmetic, a layer whose rounding is not known, NaN.
    """
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"expected an arithmetic among {', '.join(ARITHMETICS)}; got {arithmetic!r}")
    if not hasattr(layer, "widths"):
        hint = ": pass its .layer" if hasattr(layer, "layer") and hasattr(layer, "coverage") else ""
        raise TypeError(f"expected a layer of npmoe; got {type(layer).__name__}{hint}")
    layer = tree.map_leaves(lambda a: check.finite("a parameter", a).astype(np.float64), layer)
    d, o = layer.widths[0], layer.widths[-1]
    x = check.finite("x", check.matrix("x", x, d, "this layer")).astype(np.float64)
    if not len(x):
        raise ValueError("expected x of at least one token; got none")
    if dy is not None:
        dy = check.finite("dy", check.shaped("dy", dy, (len(x), o), "this layer")).astype(np.float64)
    if weights is not None:
        weights = check.weights("weights", weights, len(x)).astype(np.float64)
    if not (np.isfinite(step) and step >= 0):
        raise ValueError(f"expected a step of at least 0; got {step}")
    bounds.check_known(layer)
    return Reference(layer, x, dy, weights, ARITHMETICS[arithmetic], float(step))


def shapes(ref: Reference) -> dict[str, tuple[int, ...]]:
    """The shape of each answer that a layer has."""
    n, d, o = len(ref.x), ref.layer.widths[0], ref.layer.widths[-1]
    found = {"output": (n, o), "gradient": (n, d), "jacobian": (n, o, d), "mean_jacobian": (o, d)}
    if isinstance(ref.layer, MoE):
        found |= dict.fromkeys(("expert_jacobian", "router_jacobian"), (n, o, d))
        found |= {name: (n, len(ref.layer.experts)) for name in ("gates", "scores")}
    return found | {name: leaf.shape for name, leaf in tree.named_leaves(ref.layer) if name}
