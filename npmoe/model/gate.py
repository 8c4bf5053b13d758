"""Gates of the field: what scores become, as data. `route` in `routing` is the plain one; here are the others.

n tokens, E experts, k experts a token, G groups of experts. p are the probabilities that scores become, g the gates, T
the chosen set, c the scale.
"""

from dataclasses import dataclass

import numpy as np

from npmoe.calculus import check, words
from npmoe.calculus.scalar import sigmoid, softmax
from npmoe.model.routing import Routing, mask, route, softmax_over, top_k

__all__ = ["BY_GROUP", "PLAIN", "SCORES", "Gate", "Groups"]

Array = np.ndarray

SCORES = ("softmax", "sigmoid", "sparsemixer")
BY_GROUP = ("largest", "best two")


@dataclass(frozen=True)
class Groups:
    """Experts in `number` groups of neighbours, of which a token may choose in the best `kept` alone.

    A group is as good as its "largest" member (DeepSeek-V2) or as the sum of its "best two" (DeepSeek-V3).
    """

    number: int
    kept: int
    by: str = "best two"


@dataclass(frozen=True, eq=False)
class Gate:
    """How a router's scores become a choice and gates; k and whether gates are renormalized stand in the mixture.

    Parameters
    ----------
    scores : what p is. "softmax" is over all experts, or over the chosen ones where gates are renormalized. "sigmoid"
        takes each score by itself (DeepSeek-V3, arXiv 2412.19437, equations 13 to 15; Llama 4). "sparsemixer" is two
        choices in turn, each a softmax over the scores near its best (PhiMoE; Liu et al., arXiv 2310.00811).
    selection : array (E,) or None: added to p when experts are chosen, and not to the gates. No gradient reaches it.
    groups : `Groups`, or None.
    scale : positive number that multiplies the gates.
    on_input : the gate multiplies what an expert reads, not what it says (Llama 4).
    near : of the sparsemixer: how near to the best a score has to be, as a share of the larger of both sizes; the
        released model's ``2 * router_jitter_noise``.

    Raises
    ------
    ValueError, TypeError : for a name that is none of these, a scale that is not positive.

    Examples
    --------
    >>> Gate("sigmoid", scale=2.5).route(np.array([[0.0, 2.0, -1.0]]), k=2, renormalize=True).gates.round(3)
    array([[0.905, 1.595, 0.   ]])
    """

    scores: str = "softmax"
    selection: Array | None = None
    groups: Groups | None = None
    scale: float = 1.0
    on_input: bool = False
    near: float = 0.02

    def __post_init__(self) -> None:
        if self.scores not in SCORES:
            raise ValueError(f"expected scores among {', '.join(SCORES)}; got {self.scores!r}")
        check.positive("scale", self.scale)
        check.positive("near", self.near)
        if self.selection is not None:
            check.shaped("selection", self.selection, ("E",), "Gate")
        if self.groups is not None:
            check.integer("groups", self.groups.number, 1)
            check.integer("groups kept", self.groups.kept, 1, self.groups.number, f"{self.groups.number} groups")
            if self.groups.by not in BY_GROUP:
                raise ValueError(f"expected groups by {' or '.join(BY_GROUP)}; got {self.groups.by!r}")
        if self.scores == "sparsemixer" and (self.selection is not None or self.groups is not None):
            raise ValueError("expected a sparsemixer without selection and groups, which it has no use for")

    def fits(self, E: int, k: int) -> None:
        """Raise a ValueError where this is no gate for E experts, of which k are chosen."""
        if self.selection is not None and len(self.selection) != E:
            raise ValueError(f"expected selection of {E} experts; got {len(self.selection)}")
        if self.scores == "sparsemixer" and k > 2:
            raise ValueError(f"expected one or two experts a token of a sparsemixer; got k = {k}")
        if self.groups is None:
            return
        size, rest = divmod(E, self.groups.number)
        if rest:
            raise ValueError(f"expected groups of one size; got {E} experts in {self.groups.number} groups")
        if self.groups.by == "best two" and size < 2:
            raise ValueError(f"expected groups of two experts or more, to take the best two of; got {size}")
        if k > size * self.groups.kept:
            raise ValueError(
                f"expected k up to {size * self.groups.kept}, the experts of {self.groups.kept} "
                f"group{'s' * (self.groups.kept > 1)}; got {k}"
            )

    def route(self, scores: Array, k: int, renormalize: bool) -> Routing:
        """Gates and choice from scores (n, E) that are already divided by the temperature."""
        if self.scores == "sparsemixer":
            return self._scaled(self._sparsemixer(scores, k))
        if self.scores == "softmax" and self.selection is None and self.groups is None:
            return self._scaled(route(scores, k, renormalize))
        chosen = self.choice(scores, k)
        if self.scores == "softmax":
            return self._scaled(softmax_over(scores, chosen, renormalize))
        on = mask(chosen, scores.shape[1])  # (n, E)
        p = sigmoid(scores)
        slope = on * p * (1 - p)  # (n, E)
        if not renormalize:
            return self._scaled(Routing(on * p, chosen, on, np.zeros_like(p), slope))
        # dg_e = (s_e' ds_e - g_e sum_T s_j' ds_j) / S: the same form as a softmax's, with slope and mean of their own
        total = (on * p).sum(axis=1, keepdims=True)
        return self._scaled(Routing(on * p / total, chosen, on, slope / total, slope / total))

    def choice(self, scores: Array, k: int) -> Array:
        """Chosen experts (n, k), best first, by what `ranked` gives."""
        return top_k(self.ranked(scores), k)

    def ranked(self, scores: Array) -> Array:
        """What experts are chosen by, (n, E): p and the selection, -inf outside of the groups that are kept."""
        s = scores.real
        if self.selection is None and self.groups is None:
            return s  # p rises with s, and may saturate
        p = softmax(s) if self.scores == "softmax" else sigmoid(s)
        if self.selection is not None:
            p = p + self.selection.real
        if self.groups is None:
            return p
        G, kept = self.groups.number, self.groups.kept
        members = p.reshape(len(p), G, p.shape[1] // G)  # (n, G, E/G)
        largest = self.groups.by == "largest"
        best = members.max(axis=2) if largest else np.sort(members, axis=2)[:, :, -2:].sum(axis=2)  # (n, G)
        out = ~mask(top_k(best, kept), G)  # (n, G)
        return np.where(out[:, :, None], -np.inf, members).reshape(p.shape)

    def _scaled(self, routing: Routing) -> Routing:
        if self.scale == 1:
            return routing
        slope = routing.gates if routing.slope is None else routing.slope
        return routing._replace(gates=routing.gates * self.scale, slope=slope * self.scale)

    def _sparsemixer(self, scores: Array, k: int) -> Routing:
        """The best by a softmax over the scores near it; then, without it, the second by one over those near that."""
        n, E = scores.shape
        left, rows = scores.real.copy(), np.arange(n)
        chosen, q = np.empty((n, k), np.intp), np.zeros((n, k, E), scores.dtype)
        gates = np.zeros_like(scores)
        for i in range(k):
            chosen[:, i] = left.argmax(axis=1)
            best = left[rows, chosen[:, i], None]  # (n, 1)
            far = (best - left) > self.near * np.maximum(np.abs(scores.real), best)
            q[:, i] = softmax(np.where(far | np.isneginf(left), -np.inf, scores))
            gates[rows, chosen[:, i]] = q[rows, i, chosen[:, i]]
            left[rows, chosen[:, i]] = -np.inf
        return Routing(gates, chosen, mask(chosen, E), q)

    @words.never_raises
    def __repr__(self) -> str:
        parts = [self.scores]
        parts += ["a selection bias"] * (self.selection is not None)
        if self.groups is not None:
            parts.append(f"the best {self.groups.kept} of {self.groups.number} groups by their {self.groups.by}")
        parts += [f"times {self.scale:.4g}"] * (self.scale != 1) + ["on the input"] * self.on_input
        return f"Gate({', '.join(parts)})"


PLAIN = Gate()
"""Softmax, the k largest, on the output: Mixtral's, Qwen's, OLMoE's and Switch's."""
