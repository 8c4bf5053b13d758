"""`fit`: Adam on the mean squared error, as a generator of (step, loss, model)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from npmoe.calculus import check, tree
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.threads import one_blas_thread
from npmoe.model.adam import Adam
from npmoe.model.expert import Expert
from npmoe.model.routing_loss import RoutingLoss, for_one_pass, with_loss

__all__ = ["fit", "mse"]

Array = np.ndarray


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
    balance: RoutingLoss | None = None,
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
    if balance is not None and with_loss(model, balance) is model:
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
    balance: RoutingLoss | None,
    frozen: Array | None,
) -> Iterator[tuple[int, float, Any]]:
    keep_heap()
    theta = tree.flatten(model)
    unflatten = tree.unflattener(model)
    model = unflatten(theta)
    state = adam.start(theta.size, theta.dtype)
    # experts share the threads out among themselves; a single one is left those of BLAS
    calm = nullcontext if isinstance(model, Expert) else one_blas_thread
    for step in range(steps + 1):
        batch = _inputs(f"x({step})", x(step), model) if callable(x) else x
        # anew each step: a `Balance` knows the mixtures of one forward pass
        running = model if balance is None else with_loss(model, for_one_pass(balance))
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
        model = unflatten(theta)
