"""The same models in other frameworks, written as their users write them and differentiated by them, not by us.

Each module `with_*` offers ``NAME``, ``version()``, ``arithmetics()``, ``answers(layer, x, dy, arithmetic, weights)``
and ``balance_answers(balance, scores, chosen, arithmetic)``; a framework is imported inside functions only, so that all
of them can be asked what is installed. What is asked is said once, in `every_answer`; a module says how its framework
does each thing (`Ways`), and what its models are. Models that are not ours are asked by
`npmoe.verify.ask`, whose helpers these share.

``answers`` takes a layer, x (n, d), dy (n, o), an arithmetic of the framework, in which all is computed and to which
parameters, x, dy and weights are rounded first, and weights (n,) of the mean; it raises a ModuleNotFoundError where the
framework is not installed, and a ValueError or TypeError for another kind of layer, another arithmetic, or shapes that
do not fit. ``balance_answers`` takes an `npmoe.model.balance.Balance` of one layer, scores (n, E) and chosen (n, k),
best first. What has 16 bits comes as float32.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.model.balance import Balance
from npmoe.model.moe import MoE
from npmoe.verify.ask.common import known, small

__all__ = ["FRAMEWORKS", "Ways", "available", "every_answer", "first_choices", "inner", "load", "of_kind", "prepared"]
__all__ += ["scale", "shares"]

Array = np.ndarray

#: Where each framework's models are; nothing of it is imported until it is asked for.
FRAMEWORKS = {name: f"npmoe.battery.frameworks.with_{name}" for name in ("torch", "jax", "autograd")}


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


# ---- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ways:
    """How a framework does what `every_answer` asks, of one layer at one batch x (n, d); values are the framework's.

    Parameters
    ----------
    pulled : () -> "output", "gradient" and the parameters' gradients, by name.
    model, gates, outputs : functions of what `reverse` differentiates in, one token or a batch: output; scores and
        gates; what every expert says. The last two are of a mixture.
    mixed : gates and outputs -> output.
    reverse, forward : a function of the same -> its Jacobians (n, o, d), in either mode.
    whole : () -> the Jacobian of the batch (n, o, n, d).
    mean : () -> the Jacobian (o, d) of the weighted mean of y in one shift of all tokens.
    over : a function of one token or a batch -> its values at all tokens.
    hold : a value -> the same, held constant.
    """

    pulled: Callable[[], dict[str, Any]]
    model: Callable[[Any], Any]
    reverse: Callable[[Callable[[Any], Any]], Any]
    forward: Callable[[Callable[[Any], Any]], Any]
    whole: Callable[[], Any]
    mean: Callable[[], Any]
    over: Callable[[Callable[[Any], Any]], Any]
    hold: Callable[[Any], Any]
    mixed: Callable[[Any, Any], Any]
    gates: Callable[[Any], tuple[Any, Any]]
    outputs: Callable[[Any], Any]


def every_answer(ways: Ways, layer: Any, n: int) -> dict[str, Any]:
    """All answers about a layer at n tokens, by name, as the framework's own values."""
    found = ways.pulled()
    found["jacobian:reverse"], found["jacobian:forward"] = ways.reverse(ways.model), ways.forward(ways.model)
    if small(n, layer.widths[-1], layer.widths[0]):
        found["jacobian:batch"] = ways.whole()
    found["mean_jacobian"] = ways.mean()
    if isinstance(layer, MoE):
        gates, outputs = ways.gates, ways.outputs
        found["scores"], found["gates"] = ways.over(gates)
        found["expert_jacobian"] = ways.reverse(lambda x: ways.mixed(ways.hold(gates(x)[1]), outputs(x)))
        found["router_jacobian"] = ways.reverse(lambda x: ways.mixed(gates(x)[1], ways.hold(outputs(x))))
    return found


def scale(balance: Balance, E: int, k: int) -> float:
    """What the sum of f P is multiplied by."""
    own = "1/E" if balance.kind == "gshard" else "E"
    return {"E": E, "E/k": E / k, "1": 1, "1/E": 1 / E}[balance.scale or own]


def first_choices(balance: Balance) -> bool:
    """Whether first choices alone are counted."""
    return balance.kind == "gshard" if balance.first_choice is None else balance.first_choice


# ---- what all of them need, in NumPy -------------------------------------------------------------------------------


def prepared(framework: Any, layer: Any, x: Array, dy: Array, arithmetic: str) -> tuple[Array, Array]:
    """x (n, d) and dy (n, o) that go with a layer, in an arithmetic that a framework has."""
    known(framework, arithmetic)
    x = check.finite("x", check.matrix("x", x, layer.widths[0], "this layer"))
    if not len(x):
        raise ValueError("expected at least one token; got none")
    return x, check.shaped("dy", dy, (len(x), layer.widths[-1]), "this layer and these tokens")


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
