"""`fit`: full-batch Adam on the mean squared error, as a generator of (step, loss, model)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from npmoe.calculus import check, tree
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.threads import one_blas_thread
from npmoe.model.adam import Adam
from npmoe.model.expert import Expert
from npmoe.model.moe import MoE

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
    x: Array,
    y: Array | Callable[[int], Array],
    steps: int,
    *,
    lr: float = 1e-3,
    balance: Balance | None = None,
    frozen: Sequence[str] = (),
) -> Iterator[tuple[int, float, Any]]:
    """Train by Adam on the mean squared error over one batch.

    Parameters
    ----------
    model : a layer with ``forward`` and ``vjp`` (a `MoE`, an expert, a `Stack`, ...). It is never changed.
    x : array (n, d).
    y : array (n, o), or a function of the step that gives one (targets drawn afresh each step).
    steps : number of steps, 0 or more.
    lr : Adam's step size.
    balance : for a `MoE`, a loss on its routing: scores (n, E), chosen (n, k) -> value, dvalue/dscores (n, E).
        It is trained on, but is not part of the loss that is reported.
    frozen : names of leaves, or of branches such as "router" or "experts.0", that stay as they are.

    Yields
    ------
    step, loss, model : from step 0, the untrained model, to `steps`; the loss is that of the model beside it.
        Each model's leaves are views of a vector of its own: none that was yielded ever changes.

    Raises
    ------
    ValueError, TypeError : at the call, for shapes that do not fit, NaN in x or y, or a frozen name that the model
        does not have.

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
    d, o = model.widths[0], model.widths[-1]
    x = check.finite("x", check.matrix("x", x, d, "this model"))
    if not len(x):
        raise ValueError("expected at least one token to train on; got none")
    if not callable(y):
        y = check.finite("y", check.shaped("y", y, (len(x), o), "the targets of this batch"))
    check.integer("steps", steps, 0)
    check.positive("lr", lr)
    if balance is not None and not isinstance(model, MoE):
        raise TypeError(f"expected a MoE, whose routing a balance loss reads; got {type(model).__name__}")
    return _fit(model, x, y, steps, Adam(lr), balance, _frozen(model, frozen))


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
    x: Array,
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
        with calm():
            prediction, trace = model.forward(x)
        target = check.shaped(f"y({step})", y(step), prediction.shape, "this batch") if callable(y) else y
        loss, dy = mse(prediction, target)
        yield step, loss, model
        if step == steps:
            return
        with calm():
            if balance is None:
                _, dmodel = model.vjp(trace, dy, wrt_x=False)
            else:
                scores = model.scores(x)
                dscores = balance(scores, trace.routing.chosen)[1]
                check.shaped("the balance loss's gradient", dscores, scores.shape, "the scores")
                _, dmodel = model.vjp(trace, dy, wrt_x=False, dscores=dscores)
            gradient = tree.flatten(dmodel)
            if frozen is not None:
                gradient[frozen] = 0  # Adam's step is then exactly zero
            theta = adam.step(theta, gradient, state)
        model = tree.unflatten(theta, model)
