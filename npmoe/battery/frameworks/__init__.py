"""The same models in other frameworks, written as their users write them and differentiated by them, not by us.

Each module `with_*` offers ``NAME``, ``version()``, ``arithmetics()``, ``answers(layer, x, dy, arithmetic, weights)``
and ``balance_answers(balance, scores, chosen, arithmetic)``; a framework is imported inside functions only, so that all
of them can be asked what is installed. `ask_torch` and `ask_jax` ask models that are not ours.

Names of answers
----------------
n tokens, d width, o output width, E experts.

============================================  ==============================================================
"output" (n, o)                               y
"gradient" (n, d), names of leaves            gradients of sum(dy * y) in x and in every parameter
"jacobian:reverse", "jacobian:forward"        (n, o, d), token by token, in either mode
"jacobian:batch" (n, o, n, d)                 reverse mode on the whole batch, where it is `small`
"mean_jacobian" (o, d)                        of the weighted mean of y, in one shift of all tokens
"scores", "gates" (n, E)                      of a mixture
"expert_jacobian", "router_jacobian"          (n, o, d), of a mixture: gates, or experts' outputs, held constant
============================================  ==============================================================
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from npmoe.calculus import check, tree

__all__ = ["FRAMEWORKS", "SMALL", "Answers", "available", "inner", "known", "leaves_of", "load", "of_kind", "own_rows"]
__all__ += ["prepared", "shares", "small"]

Array = np.ndarray

#: Where each framework's models are; nothing of it is imported until it is asked for.
FRAMEWORKS = {name: f"npmoe.battery.frameworks.with_{name}" for name in ("torch", "jax", "autograd")}

SMALL = 10**6  # elements of a batch's Jacobian, most of which are zeros: 8 MB in float64


class Answers(dict[str, Any]):
    """Answers by name, and what is to be said of them.

    Attributes
    ----------
    remarks : what is wrong beside the numbers, in sentences: tokens that feel each other, a changed input.
    notes : what should be known, and is no fault: tensors that a mapping does not use.

    Examples
    --------
    >>> Answers({"output": np.zeros((2, 3))}, ["row 1 depends on row 0"]).remarks
    ('row 1 depends on row 0',)
    """

    def __init__(self, found: Mapping[str, Any], remarks: Iterable[str] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(found)
        self.remarks, self.notes = tuple(remarks), tuple(notes)


def load(name: str) -> ModuleType:
    """The module of a framework's models; the framework itself is imported by the first call that needs it.

    Raises
    ------
    ValueError : for a framework of which there is no module.

    Examples
    --------
    >>> load("torch").NAME
    'torch'
    """
    if name not in FRAMEWORKS:
        raise ValueError(f"expected a framework among {', '.join(FRAMEWORKS)}; got {name!r}")
    return import_module(FRAMEWORKS[name])


def available() -> dict[str, str]:
    """For each framework its version, or why it cannot be used: "missing: ..." or "broken: ...".

    Examples
    --------
    >>> list(available())
    ['torch', 'jax', 'autograd']
    """
    found = {}
    for name in FRAMEWORKS:
        try:
            found[name] = load(name).version()
        except ModuleNotFoundError as error:
            found[name] = f"missing: {error}"
        except Exception as error:  # built for another NumPy, or without a library: whatever it is, say it
            found[name] = f"broken: {type(error).__name__}: {error}"
    return found


# ---- what all of them need, in NumPy -------------------------------------------------------------------------------


def prepared(framework: Any, layer: Any, x: Array, dy: Array, arithmetic: str) -> tuple[Array, Array]:
    """x (n, d) and dy (n, o) that go with a layer, in an arithmetic that a framework has."""
    known(framework, arithmetic)
    x = check.finite("x", check.matrix("x", x, layer.widths[0], "this layer"))
    if not len(x):
        raise ValueError("expected at least one token; got none")
    return x, check.shaped("dy", dy, (len(x), layer.widths[-1]), "this layer and these tokens")


def known(framework: Any, arithmetic: str) -> None:
    """Raise a ValueError unless the framework has this arithmetic."""
    if arithmetic not in framework.arithmetics():
        offered = ", ".join(framework.arithmetics())
        raise ValueError(f"expected an arithmetic of {framework.NAME} among {offered}; got {arithmetic!r}")


def shares(weights: Array | None, n: int) -> Array:
    """What each token counts, (n,), of sum 1; equal unless weights are given.

    Examples
    --------
    >>> shares(np.array([1.0, 3.0]), 2)
    array([0.25, 0.75])
    """
    if weights is None:
        return np.full(n, 1 / n)
    weights = np.asarray(weights)
    whole = weights.dtype.kind in "biu"  # a mask of tokens
    w = check.weights("weights", weights.astype(np.float64) if whole else weights, n).astype(np.float64)
    w = w / w.max()  # the sum of subnormal weights must not be 0
    return w / w.sum()


def inner(parameters: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The parameters of the layer called `key` inside this one, by its own names.

    Examples
    --------
    >>> inner({"layers.0.W": 1, "layers.0.b": 2, "layers.1.W": 3}, "layers.0")
    {'W': 1, 'b': 2}
    """
    return {name.removeprefix(f"{key}."): value for name, value in parameters.items() if name.startswith(f"{key}.")}


def leaves_of(read: Any) -> dict[str, Array]:
    """Arrays by name of what a reader of a candidate's parameters gave: such a mapping already, or a layer."""
    return dict(read) if isinstance(read, Mapping) else dict(tree.named_leaves(read))


def small(n: int, o: int, d: int) -> bool:
    """Whether a batch's Jacobian (n, o, n, d) is small enough to be made as a whole."""
    return n * o * n * d < SMALL


def own_rows(J: Array) -> Array:
    """Each token's Jacobian in its own input, (n, o, n, d) -> (n, o, d).

    Examples
    --------
    >>> own_rows(np.arange(4.0).reshape(2, 1, 2, 1)).ravel()
    array([0., 3.])
    """
    return np.einsum("nond->nod", J)


def of_kind(layer: Any, kinds: Mapping[type, Any]) -> Any:
    """What goes with the kind of a layer; a ValueError for one that no framework has a model of.

    Examples
    --------
    >>> of_kind(1.0, {int: "whole", float: "real"})
    'real'
    """
    if type(layer) not in kinds:
        raise ValueError(f"expected a layer among {', '.join(k.__name__ for k in kinds)}; got {type(layer).__name__}")
    return kinds[type(layer)]
