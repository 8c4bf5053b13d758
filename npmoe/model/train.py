"""`fit`: Adam on the mean squared error, as a generator of (step, loss, model)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from npmoe.calculus import check, tree
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.threads import one_blas_thread
from npmoe.model.adam import Adam
from npmoe.model.balance import Balance as Layered
from npmoe.model.balance import pooled
from npmoe.model.expert import Expert
from npmoe.model.moe import MoE, MoETrace

__all__ = ["fit", "mse"]

Array = np.ndarray
Balance = Callable[[Array, Array], tuple[float, Array]]


def mse(prediction: Array, y: Array) -> tuple[float, Array]:
    """Mean over n and o of the squared error, and its cotangent (n, o).

    Examples
    --------
    >>> mse(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    (2.0, array([[0., 2.]]))
    """
    dy = prediction - y
    loss = float(np.einsum("no,no->", dy, dy, dtype=np.float64)) / dy.size
    dy *= 2 / dy.size
    return loss, dy


def fit(
    model: Any,
    x: Array | Callable[[int], Array],
    y: Array | Callable[[int], Array],
    steps: int,
    *,
    lr: float = 1e-3,
    balance: Balance | None = None,
    frozen: Sequence[str] = (),
) -> Iterator[tuple[int, float, Any]]:
    """Train by Adam on the mean squared error, over one batch or a batch drawn for each step.

    Parameters
    ----------
    model : a layer with ``forward`` and ``vjp`` (a `MoE`, an expert, a `Stack`, ...). It is never changed.
    x : array (n, d), or a function of the step that gives one (minibatches), of any n. Then y is a function too.
    y : array (n, o), or a function of the step that gives one (targets drawn afresh each step). Both functions are
        asked once a step, in order, x first; what they give is checked at that step.
    steps : number of steps, 0 or more.
    lr : Adam's step size.
    balance : a loss on the routing, such as a `npmoe.model.balance.Balance`: scores (n, E), chosen (n, k) -> value,
        dvalue/dscores (n, E). Every `MoE` in the model gets it, whether it is the model itself or stands in a `Stack`
        or `Residual`; the gradient reaches the router and the layers in front of it. Of several mixtures a `Balance`
        makes one loss, as its `pool` and `layers` say (by default the mean over mixtures, see
        `npmoe.model.balance.pooled`); any other function is called for each mixture by itself, and their losses add
        up. A `Balance` with a mask goes with a fixed batch of as many tokens. It is trained on, but is not part of the
        loss that is reported.
    frozen : names of leaves, or of branches such as "router" or "experts.0", that stay as they are.

    Yields
    ------
    step, loss, model : from step 0, the untrained model, to `steps`; the loss is the mean squared error of the model
        beside it on that step's batch.
        Each model's leaves are views of a vector of its own: none that was yielded ever changes.

    Raises
    ------
    ValueError, TypeError : at the call, for shapes that do not fit, NaN in x or y, a frozen name that the model
        does not have, or a balance loss without a `MoE`; at the step, for what a function gave, or a `Balance` that
        does not fit the mixtures: pooled over some that differ in E or k, or a mask of another number of tokens.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> moe = npmoe.init.gelu_moe(rng, E=4, d=3, h=8, k=2)
    >>> x, y = rng.standard_normal((2, 32, 3))
    >>> losses = [loss for step, loss, model in fit(moe, x, y, steps=200, lr=1e-2)]
    >>> losses[-1] < losses[0] / 2
    True
    """
    if not hasattr(model, "widths"):
        raise TypeError(f"expected a layer with forward and vjp to train; got {type(model).__name__}")
    if not callable(x):
        x = _inputs("x", x, model)
        if not callable(y):
            y = check.finite("y", check.shaped("y", y, (len(x), model.widths[-1]), "the targets of this batch"))
    elif not callable(y):
        raise TypeError(
            "expected y to be a function of the step, as x is, that gives the targets of x's batch; "
            f"got {type(y).__name__}"
        )
    check.integer("steps", steps, 0)
    check.positive("lr", lr)
    if balance is not None and _balanced(model, balance) is model:
        raise TypeError(
            f"expected a MoE, or layers that hold one, whose routing a balance loss reads; got {type(model).__name__}"
        )
    return _fit(model, x, y, steps, Adam(lr), balance, _frozen(model, frozen))


def _inputs(name: str, x: Any, model: Any) -> Array:
    """One batch (n, d) for this model, of at least one token."""
    x = check.finite(name, check.matrix(name, x, model.widths[0], "this model"))
    if not len(x):
        raise ValueError(f"expected at least one token to train on; got none in {name}")
    return x


def _targets(name: str, y: Any, prediction: Array) -> Array:
    """Targets of one batch (n, o), of exactly the prediction's shape: NumPy would stretch others without a word."""
    return check.finite(name, check.shaped(name, y, prediction.shape, "this batch"))


@dataclass(frozen=True, eq=False)
class _Pooled:
    """A `Balance` over all mixtures of one forward pass: each with its trace, in order, then its gradients (n, E)."""

    balance: Layered
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
class _Balanced:
    """A mixture in training: `MoE.vjp`, with the balance loss's gradient added at the scores."""

    moe: MoE
    balance: "Balance | _Pooled"

    @property
    def widths(self) -> tuple[int, int]:
        """(d, o)."""
        return self.moe.widths

    def forward(self, x: Array) -> tuple[Array, MoETrace]:
        """x (n, d) -> y (n, o) and what `vjp` reads; a pooled loss notes the scores and the choice."""
        y, trace = self.moe.forward(x)
        if isinstance(self.balance, _Pooled):
            self.balance.seen.append((self.moe, trace))
        return y, trace

    def vjp(self, trace: MoETrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, MoE]:
        """dy (n, o) -> dx (n, d) and the gradient, a MoE."""
        if isinstance(self.balance, _Pooled):
            return self.moe.vjp(trace, dy, wrt_x, dscores=self.balance.gradient(trace))
        scores = self.moe.scores(trace.x)  # (n, E)
        dscores = self.balance(scores, trace.routing.chosen)[1]
        check.shaped("the balance loss's gradient", dscores, scores.shape, "the scores")
        return self.moe.vjp(trace, dy, wrt_x, dscores=dscores)


def _balanced(layer: Any, balance: "Balance | _Pooled") -> Any:
    """The layer, with each mixture in it `_Balanced`; the same object where it holds none."""
    if isinstance(layer, MoE):
        return _Balanced(layer, balance)
    if isinstance(layer, tuple):
        inner = tuple(_balanced(child, balance) for child in layer)
        return layer if all(a is b for a, b in zip(inner, layer, strict=True)) else inner
    if not is_dataclass(layer):
        return layer
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    changed = {name: new for name, old in found.items() if (new := _balanced(old, balance)) is not old}
    return replace(layer, **changed) if changed and not isinstance(layer, type) else layer


def _frozen(model: Any, names: Sequence[str]) -> Array | None:
    """Mask over the flat vector, true where a leaf stays; None where all are trained."""
    if isinstance(names, str):
        raise TypeError(f"expected a sequence of names of leaves to freeze; got the single string {names!r}")
    paths = [(path, leaf.size) for path, leaf in tree.named_leaves(model)]
    for name in names:
        if not any(path == name or path.startswith(name + ".") for path, _ in paths):
            known = ", ".join(path for path, _ in paths[:8])
            raise ValueError(f"expected frozen names among the model's leaves ({known}, ...); got {name!r}")
    if not names:
        return None
    still = [any(path == name or path.startswith(name + ".") for name in names) for path, _ in paths]
    return np.repeat(still, [size for _, size in paths])


def _fit(
    model: Any,
    x: Array | Callable[[int], Array],
    y: Array | Callable[[int], Array],
    steps: int,
    adam: Adam,
    balance: Balance | None,
    frozen: Array | None,
) -> Iterator[tuple[int, float, Any]]:
    keep_heap()
    theta = tree.flatten(model)
    model = tree.unflatten(theta, model)
    state = adam.start(theta.size, theta.dtype)
    # experts share the threads out among themselves; a single one is left those of BLAS
    calm = nullcontext if isinstance(model, Expert) else one_blas_thread
    for step in range(steps + 1):
        batch = _inputs(f"x({step})", x(step), model) if callable(x) else x
        # anew each step: a pooled loss knows the mixtures of one forward pass
        loss_of = _Pooled(balance) if isinstance(balance, Layered) else balance
        running = model if loss_of is None else _balanced(model, loss_of)
        with calm():
            prediction, trace = running.forward(batch)
        target = _targets(f"y({step})", y(step), prediction) if callable(y) else y
        loss, dy = mse(prediction, target)
        yield step, loss, model
        if step == steps:
            return
        with calm():
            _, dmodel = running.vjp(trace, dy, wrt_x=False)
            gradient = tree.flatten(dmodel)
            if frozen is not None:
                gradient[frozen] = 0  # Adam's step is then exactly zero
            theta = adam.step(theta, gradient, state)
        model = tree.unflatten(theta, model)
