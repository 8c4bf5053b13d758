"""A loss on the routing in training: every mixture of a model, with the loss's gradient added at its scores.

n tokens, d width, o output width, E experts, k experts a token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.model.balance import Balance, pooled
from npmoe.model.moe import MoE, MoETrace

__all__ = ["RoutingLoss", "for_one_pass", "with_loss"]

Array = np.ndarray

#: scores (n, E), chosen (n, k) -> value, dvalue/dscores (n, E). A `Balance` is one.
RoutingLoss = Callable[[Array, Array], tuple[float, Array]]


@dataclass(frozen=True, eq=False)
class _AllMixtures:
    """A `Balance` over all mixtures of one forward pass: each with its trace, in order, then its gradients (n, E)."""

    balance: Balance
    seen: list[tuple[MoE, MoETrace]] = field(default_factory=list)
    found: list[Array] = field(default_factory=list)

    def gradient(self, trace: MoETrace) -> Array:
        """dvalue/dscores (n, E) of the mixture that left this trace; computed for all of them at the first call."""
        if not self.found:
            scores = [moe.scores(each.x) for moe, each in self.seen]
            chosen = [each.routing.chosen for _, each in self.seen]
            # one mixture has nothing to be pooled with
            alone = len(self.seen) == 1
            self.found.extend(
                [self.balance(scores[0], chosen[0])[1]] if alone else pooled(self.balance, scores, chosen)[1]
            )
        return next(ds for (_, each), ds in zip(self.seen, self.found, strict=True) if each is trace)


@dataclass(frozen=True, eq=False)
class _MixtureWithLoss:
    """A mixture in training: `MoE.vjp`, with the loss's gradient added at the scores."""

    moe: MoE
    loss: "RoutingLoss | _AllMixtures"

    @property
    def widths(self) -> tuple[int, int]:
        """(d, o)."""
        return self.moe.widths

    def forward(self, x: Array) -> tuple[Array, MoETrace]:
        """x (n, d) -> y (n, o) and what `vjp` reads; a loss of all mixtures notes the scores and the choice."""
        y, trace = self.moe.forward(x)
        if isinstance(self.loss, _AllMixtures):
            self.loss.seen.append((self.moe, trace))
        return y, trace

    def vjp(self, trace: MoETrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, MoE]:
        """dy (n, o) -> dx (n, d) and the gradient, a MoE."""
        if isinstance(self.loss, _AllMixtures):
            return self.moe.vjp(trace, dy, wrt_x, dscores=self.loss.gradient(trace))
        scores = self.moe.scores(trace.x)  # (n, E)
        dscores = self.loss(scores, trace.routing.chosen)[1]
        check.shaped("the balance loss's gradient", dscores, scores.shape, "the scores")
        return self.moe.vjp(trace, dy, wrt_x, dscores=dscores)


def for_one_pass(loss: RoutingLoss) -> "RoutingLoss | _AllMixtures":
    """The loss as one forward pass needs it: a `Balance` is one loss of all mixtures, and knows those of that pass."""
    return _AllMixtures(loss) if isinstance(loss, Balance) else loss


def with_loss(layer: Any, loss: "RoutingLoss | _AllMixtures") -> Any:
    """The layer, with the loss at each mixture in it; the same object where it holds none."""
    if isinstance(layer, MoE):
        return _MixtureWithLoss(layer, loss)
    if isinstance(layer, tuple):
        inner = tuple(with_loss(child, loss) for child in layer)
        return layer if all(a is b for a, b in zip(inner, layer, strict=True)) else inner
    if not is_dataclass(layer):
        return layer
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    changed = {name: new for name, old in found.items() if (new := with_loss(old, loss)) is not old}
    return replace(layer, **changed) if changed and not isinstance(layer, type) else layer
