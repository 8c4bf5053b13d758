"""`Site`: what a mixture did on a batch, the one thing that probes know. A null is a Site as well.

n tokens, d width, E experts, k experts a token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, words
from npmoe.calculus.factored import Factored
from npmoe.calculus.words import one_line
from npmoe.model.expert import Expert
from npmoe.model.gate import Gate
from npmoe.model.layers import LayerNorm, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE

__all__ = ["Before", "Router", "Site", "Visit", "mixture_site", "site", "visits"]

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Router:
    """A mixture's router: scores(x), gates(x), jacobian(x) -> (n, E, d), its matrix (E, d) and bias (E,) or None.

    Gates and Jacobian have a column for each shared expert too, behind those that are chosen.
    """

    moe: MoE

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def matrix(self) -> Array:
        """W (E, d), as trained: not divided by the temperature."""
        return self.moe.router

    @property
    def bias(self) -> Array | None:
        """(E,) or None."""
        return self.moe.bias

    @property
    def temperature(self) -> float:
        """What divides the scores."""
        return self.moe.temperature

    @property
    def effective(self) -> Array:
        """W over the temperature, (E, d): scores are ``x @ effective.T`` plus the bias over the temperature."""
        return self.matrix / self.matrix.dtype.type(self.temperature)

    def scores(self, x: Array) -> Array:
        """(n, E), over the temperature."""
        return self.moe.scores(x)

    def gates(self, x: Array) -> Array:
        """(n, E)."""
        return self.moe.weights(x, self.moe.routing(x))

    def jacobian(self, x: Array) -> Array:
        """Derivative of the gates, (n, E, d)."""
        return self.moe.weights_jacobian(x, self.moe.routing(x))

    @property
    def gate(self) -> Gate:
        """What scores become."""
        return self.moe.gate


class Before(NamedTuple):
    """What stands in front: a norm with `jacobian` and the x that it read, or None; whether a residual runs past."""

    norm: Any | None
    x: Array | None
    residual: bool

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class Site:
    """Where a mixture reads its tokens, and what it did with them.

    Parameters
    ----------
    x : array (n, d), what router and experts read.
    gates : array (n, E), non-negative.
    chosen : integer array (n, k), or None where all experts see all tokens.
    experts : sequence of E experts, maybe lazy; None for a recorded trace.
    router : object with ``scores(x)``, ``gates(x)``, ``jacobian(x)``, ``matrix``, ``bias``; or None.
    before : what stands in front (`Before`), or None.
    always : how many of the last experts every token visits without being routed: no choice names them, and a router's
        matrix has no rows for them.
    labels : arrays (n,) by name: token, sequence, topic, layer.

    Raises
    ------
    ValueError, TypeError : for shapes that do not fit together, NaN or infinity, negative gates, or choices outside
        0..E-1. The message names the array.

    Examples
    --------
    Your own mixture becomes a Site in a line; here a recorded trace:

    >>> trace = Site(x=np.zeros((2, 3)), gates=np.array([[0.5, 0.5], [1.0, 0.0]]))
    >>> trace.n, trace.E
    (2, 2)
    """

    x: Array
    gates: Array
    chosen: Array | None = None
    experts: Sequence[Any] | None = None
    router: Any | None = None
    before: Before | None = None
    always: int = 0
    labels: Mapping[str, Array] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        of = f"the Site {self.name!r}" if self.name else "this Site"
        n, _ = check.finite("x", check.shaped("x", self.x, ("n", "d"), of)).shape
        _, E = check.finite("gates", check.shaped("gates", self.gates, (n, "E"), of)).shape
        if not n:
            raise ValueError(f"expected at least one token of {of}; got none")
        if not self.gates.any():
            raise ValueError(f"expected gates of {of} of which some are positive; got zeros only")
        if (self.gates < 0).any():
            raise ValueError(f"expected gates of {of} to be non-negative; got {self.gates.min()}")
        if self.chosen is not None:
            chosen = check.unmasked(f"chosen of {of}", self.chosen)
            if chosen.dtype.kind not in "iu" or chosen.ndim != 2 or len(chosen) != n:
                raise ValueError(
                    f"expected chosen of {of} as integers of shape ({n}, k); got {chosen.dtype} of shape {chosen.shape}"
                )
            if chosen.size and (chosen.min() < 0 or chosen.max() >= E):
                raise ValueError(f"expected chosen of {of} within 0..{E - 1}; got {chosen.min()}..{chosen.max()}")
        if self.experts is not None and len(self.experts) != E:
            raise ValueError(f"expected {E} experts of {of}, one a column of gates; got {len(self.experts)}")
        routed = E - check.integer("always", self.always, 0, E, of)
        if self.chosen is not None and np.size(self.chosen) and np.max(self.chosen) >= routed:
            raise ValueError(
                f"expected chosen of {of} among the {routed} routed experts, before the {self.always} that are visited "
                f"always; got {np.max(self.chosen)}"
            )
        for key, label in self.labels.items():
            if np.shape(label) != (n,):
                raise ValueError(f"expected label {key!r} of {of} of shape ({n},); got {np.shape(label)}")

    @property
    def n(self) -> int:
        """Number of tokens."""
        return len(self.x)

    @property
    def E(self) -> int:
        """Number of experts."""
        return self.gates.shape[1]

    def need(self, probe: str, *names: str) -> None:
        """Raise a ValueError that names what a probe needs and this Site lacks."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{probe} needs {', '.join(missing)}, which the Site {self.name!r} does not have")

    def rows(self, e: int) -> Array:
        """Indices of the tokens that visit expert e: the choice where there is one, else all."""
        if self.chosen is None or e >= self.E - self.always:
            return np.arange(self.n)
        return np.flatnonzero((self.chosen == e).any(axis=1))

    def take(self, rows: slice | Array) -> "Site":
        """The Site of some of its tokens (an index array, a mask or a slice); experts and router stay.

        Examples
        --------
        >>> Site(x=np.eye(3), gates=np.ones((3, 1)), labels={"token": np.arange(3)}).take(slice(2)).labels["token"]
        array([0, 1])
        """
        before = self.before
        if before is not None and before.x is not None:
            before = Before(before.norm, before.x[rows], before.residual)
        return replace(
            self,
            x=self.x[rows],
            gates=self.gates[rows],
            chosen=None if self.chosen is None else self.chosen[rows],
            before=before,
            labels={key: np.asarray(label)[rows] for key, label in self.labels.items()},
        )

    @words.never_raises
    def __repr__(self) -> str:
        parts = [f"{self.n} tokens of width {self.x.shape[1]}", words.experts(self.experts, self.E)]
        if self.chosen is not None:
            parts.append(f"top {self.chosen.shape[1]}")
        parts += ["no router"] * (self.router is None)
        parts += [f"labels {', '.join(self.labels)}"] * bool(self.labels)
        return words.cut(f"Site({repr(self.name) + ': ' if self.name else ''}{', '.join(parts)}", f", {self.x.dtype})")


@dataclass(frozen=True, eq=False)
class Visit:
    """One expert: its number, itself, the rows that it is measured on, their weights, and what it reads there."""

    e: int
    expert: Any
    rows: Array
    weights: Array
    x: Array

    def __repr__(self) -> str:
        return one_line(self)

    @cached_property
    def J(self) -> Factored:
        """The expert's Jacobians at these rows, in factors; computed when first asked for, by whoever asks."""
        return self.expert.linearize(self.x)


def visits(site: Site, over: str = "routed", probe: str = "this probe") -> Iterator[Visit]:
    """Each expert once, in order; experts that no weight reaches are passed over.

    Parameters
    ----------
    over : "routed", the tokens routed to the expert, weighted by their gates; or "all", every token, equal weights.
    """
    if over not in ("routed", "all"):
        raise ValueError(f"expected over to be 'routed' or 'all'; got {over!r}")
    site.need(probe, "experts")
    experts = site.experts or ()
    for e in range(site.E):
        expert = experts[e]  # by its number: an iterator may keep the last one while it makes the next
        rows = site.rows(e) if over == "routed" else np.arange(site.n)
        weights = site.gates[rows, e] if over == "routed" else np.ones(site.n)
        visit = Visit(e, expert, rows, weights, site.x[rows])
        del expert  # a lazy one is to be gone before the next is made
        if visit.weights.any():
            yield visit
        del visit


def mixture_site(
    moe: MoE, x: Array, before: Before | None = None, labels: Mapping[str, Array] | None = None, name: str = ""
) -> Site:
    """The Site of a mixture on x (n, d), what it reads itself; shared experts are the last, visited always.

    Raises
    ------
    ValueError : for gates on the input: each expert reads something else there, and a Site has one x for all.
    """
    if moe.gate.on_input:
        raise ValueError("expected a mixture with gates on the experts' outputs; got gates on the input")
    gates, chosen = moe.route(x)
    if moe.shared:
        gates = moe.weights(x, moe.routing(x))
    return Site(x, gates, chosen, moe.visited, Router(moe), before, len(moe.shared), labels or {}, name)


def site(model: Any, x: Array, name: str = "") -> Site:
    """The Site of a model on a batch: of its last layer, a mixture or an expert, a residual around it or not.

    Parameters
    ----------
    model : a `MoE`, an expert (one expert, gates of ones), or a `Stack` or `Residual` that ends in one of these.
    x : array (n, d), what the *model* reads; the Site's own x is what reaches the mixture.

    Raises
    ------
    TypeError : if the last layer is neither a mixture nor an expert.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((7, 3)))
    >>> s.gates.shape, s.chosen.shape
    ((7, 4), (7, 2))
    """
    if not hasattr(model, "widths"):
        raise TypeError(f"expected a MoE, an expert, or a Stack or Residual around one; got {type(model).__name__}")
    x = check.finite("x", check.matrix("x", x, model.widths[0], "this model"))
    before = Before(None, None, False)
    while True:
        if isinstance(model, MoE):
            kept = None if before == Before(None, None, False) else before
            return mixture_site(model, x, kept, name=name)
        if isinstance(model, Expert):
            kept = None if before == Before(None, None, False) else before
            return Site(x, np.ones((len(x), 1), x.dtype), None, (model,), None, kept, name=name)
        if isinstance(model, Residual):
            model, before = model.layer, Before(None, None, True)
        elif isinstance(model, Stack):
            for layer in model.layers[:-1]:
                norm = isinstance(layer, RMSNorm | LayerNorm)
                before = Before(layer, x, before.residual) if norm else Before(None, None, False)
                x, _ = layer.forward(x)
            model = model.layers[-1]
        else:
            raise TypeError(f"expected a MoE, an expert, or a Stack or Residual around one; got {type(model).__name__}")
