"""The models in autograd, on batches in NumPy's own words; the erf is SciPy's.

n tokens, d width, h hidden, o output width, E experts, k experts a token. autograd's forward mode has no rule for the
erf, so that "jacobian:forward" is made of two reverse passes, the second through the first.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from npmoe.battery import frameworks as shared
from npmoe.calculus import check, tree
from npmoe.model.balance import Balance
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.verify.ask import common

__all__ = ["NAME", "answers", "arithmetics", "balance_answers", "version"]

Array = np.ndarray

NAME = "autograd"


def version() -> str:
    """The version of autograd, which carries it in its metadata alone."""
    from importlib.metadata import version as of

    import autograd  # noqa: F401  an installation may be there and broken

    return of("autograd")


def arithmetics() -> tuple[str, ...]:
    """The arithmetics in which autograd can be asked."""
    return "float64", "float32"


def _here() -> Any:
    return shared.load(NAME)


def _autograd() -> SimpleNamespace:
    """What is used of autograd: its NumPy, two special functions, and its ways to differentiate."""
    import autograd.numpy as anp
    from autograd import jacobian, make_vjp
    from autograd.differential_operators import make_jvp_reversemode
    from autograd.scipy.special import erf, logsumexp
    from autograd.tracer import getval

    ways = {"jacobian": jacobian, "make_vjp": make_vjp, "make_jvp": make_jvp_reversemode, "getval": getval}
    return SimpleNamespace(np=anp, erf=erf, logsumexp=logsumexp, **ways)


# ---- models --------------------------------------------------------------------------------------------------------


def _activation(ag: Any, name: str | None) -> Callable[[Any], Any]:
    """Python's floats, not NumPy's, which would turn float32 into float64."""
    return {
        "gelu": lambda z: 0.5 * z * (1 + ag.erf(z / math.sqrt(2))),
        "gelu_tanh": lambda z: 0.5 * z * (1 + ag.np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z))),
        "silu": lambda z: z * (0.5 + 0.5 * ag.np.tanh(0.5 * z)),  # 1 / (1 + exp(-z)) would overflow
        None: lambda z: z,
    }[name]


def _batch(ag: Any, layer: Any, p: Mapping[str, Any], x: Any) -> Any:
    """x (n, d) -> y (n, o) of a layer with the parameters p."""
    kinds: dict[type, Any] = {
        GeluExpert: _mlp,
        SwigluExpert: _gated_mlp,
        MoE: _mixture,
        Linear: _affine,
        RMSNorm: _norm,
    }
    kinds |= {Residual: _skip, Stack: _chain}
    return shared.of_kind(layer, kinds)(ag, layer, p, x)


def _mlp(ag: Any, layer: GeluExpert, p: Mapping[str, Any], x: Any) -> Any:
    hidden = _activation(ag, layer.activation)(ag.np.dot(x, p["W1"].T) + p["b1"])  # (n, h)
    return ag.np.dot(hidden, p["W2"].T) + p["b2"]


def _gated_mlp(ag: Any, layer: SwigluExpert, p: Mapping[str, Any], x: Any) -> Any:
    gate, up = ag.np.dot(x, p["Wg"].T), ag.np.dot(x, p["Wu"].T)  # (n, h), (n, h)
    return ag.np.dot(_activation(ag, "silu")(gate) * up, p["Wd"].T)


def _affine(ag: Any, layer: Linear, p: Mapping[str, Any], x: Any) -> Any:
    return _activation(ag, layer.activation)(ag.np.dot(x, p["W"].T) + p["b"])


def _norm(ag: Any, layer: RMSNorm, p: Mapping[str, Any], x: Any) -> Any:
    mean = ag.np.sum(x * x, axis=1, keepdims=True) / x.shape[1]  # (n, 1)
    return x / ag.np.sqrt(mean + float(layer.eps)) * p["gamma"]


def _skip(ag: Any, layer: Residual, p: Mapping[str, Any], x: Any) -> Any:
    return x + _batch(ag, layer.layer, shared.inner(p, "layer"), x)


def _chain(ag: Any, layer: Stack, p: Mapping[str, Any], x: Any) -> Any:
    for i, one in enumerate(layer.layers):
        x = _batch(ag, one, shared.inner(p, f"layers.{i}"), x)
    return x


def _mixture(ag: Any, layer: MoE, p: Mapping[str, Any], x: Any) -> Any:
    return _mixed(_gates(ag, layer, p, x)[1], _outputs(ag, layer, p, x))


def _gates(ag: Any, moe: MoE, p: Mapping[str, Any], x: Any) -> tuple[Any, Any]:
    """Scores and gates, (n, E) and (n, E)."""
    scores = ag.np.dot(x, p["router"].T)
    if moe.bias is not None:
        scores = scores + p["bias"]
    scores = scores / float(moe.temperature)
    return scores, _kept(ag, scores, np.argsort(-ag.getval(scores), axis=1, kind="stable")[:, : moe.k], moe.renormalize)


def _kept(ag: Any, scores: Any, chosen: Array, renormalize: bool) -> Any:
    """Softmax over the chosen (n, k), or over all of which the chosen are kept; zero elsewhere, (n, E)."""
    on = (chosen[:, :, None] == np.arange(scores.shape[1])).any(axis=1)  # (n, E)
    # far below, but finite: with -inf backward has 0 times infinity
    among = ag.np.where(on, scores, ag.getval(scores).min() - np.array(1e4, scores.dtype)) if renormalize else scores
    return _softmax(ag, among) * on


def _outputs(ag: Any, moe: MoE, p: Mapping[str, Any], x: Any) -> list[Any]:
    """What every expert says of all tokens, E times (n, o)."""
    return [_batch(ag, expert, shared.inner(p, f"experts.{e}"), x) for e, expert in enumerate(moe.experts)]


def _mixed(gates: Any, outputs: list[Any]) -> Any:
    return sum(gates[:, e : e + 1] * y for e, y in enumerate(outputs))


# ---- answers -------------------------------------------------------------------------------------------------------


def answers(
    layer: Any, x: Array, dy: Array, arithmetic: str = "float64", weights: Array | None = None
) -> dict[str, Array]:
    """What autograd makes of an npmoe layer, by the names of answers in `npmoe.battery.frameworks`."""
    x, dy = (array.astype(arithmetic) for array in shared.prepared(_here(), layer, x, dy, arithmetic))
    w = shared.shares(weights, len(x)).astype(arithmetic)  # (n,)
    p = {name: leaf.astype(arithmetic) for name, leaf in tree.named_leaves(layer)}
    # slopes of what is saturated; that of tanh is 1/cosh^2 in autograd, where infinity gives the right 0
    with np.errstate(under="ignore", over="ignore"):
        found = shared.every_answer(_ways(_autograd(), layer, p, x, dy, w), layer, len(x))
    # autograd's rule for a power leaks float64 where it is differentiated twice, as that of the norm's root is
    return {name: np.asarray(array).astype(arithmetic, copy=False) for name, array in found.items()}


def _ways(ag: Any, layer: Any, p: dict[str, Array], x: Array, dy: Array, w: Array) -> shared.Ways:
    """Functions of a batch, differentiated one token after another."""
    batch = partial(_batch, ag, layer, p)

    def pulled() -> dict[str, Any]:
        pull, y = ag.make_vjp(lambda both: _batch(ag, layer, *both))((p, x))
        dp, dx = pull(dy)
        return {"output": y, "gradient": dx, **dp}

    return shared.Ways(
        pulled=pulled,
        model=batch,
        reverse=lambda function: _reverse(ag, function, x),
        forward=lambda function: np.stack([ag.make_jvp(function)(x)(v) for v in _axes(x)], axis=2),
        whole=lambda: ag.jacobian(batch)(x),
        mean=lambda: ag.jacobian(lambda shift: ag.np.dot(w, batch(x + shift)))(np.zeros_like(x[0])),
        over=lambda function: function(x),
        hold=lambda value: [*map(ag.getval, value)] if isinstance(value, list) else ag.getval(value),
        mixed=_mixed,
        gates=partial(_gates, ag, layer, p),
        outputs=partial(_outputs, ag, layer, p),
    )


def _reverse(ag: Any, function: Callable[[Any], Any], x: Array) -> Array:
    """Token by token, (n, o, d)."""
    return np.stack([ag.jacobian(function)(x[i : i + 1])[0, :, 0] for i in range(len(x))])


def _axes(x: Array) -> list[Array]:
    """One direction for each input, the same at all tokens: d arrays (n, d)."""
    return [np.ones_like(x) * axis for axis in np.eye(x.shape[1], dtype=x.dtype)]


# ---- balance losses ------------------------------------------------------------------------------------------------


def balance_answers(balance: Balance, scores: Array, chosen: Array, arithmetic: str = "float64") -> dict[str, Array]:
    """What autograd makes of a balance loss of one layer: "value" () and its gradient "scores" (n, E)."""
    common.known(_here(), arithmetic)
    ag = _autograd()
    s = check.shaped("scores", scores, ("n", "E")).astype(arithmetic)
    w = shared.shares(balance.mask, len(s)).astype(arithmetic)  # (n,)
    loss = {"z": _z, "importance": _importance}.get(balance.kind, _product)
    with np.errstate(under="ignore"):  # probabilities of saturated scores
        pull, value = ag.make_vjp(lambda t: loss(ag, balance, t, np.asarray(chosen), w) * float(balance.weight))(s)
        return {"value": np.asarray(value).astype(arithmetic), "scores": pull(np.ones_like(value)).astype(arithmetic)}


def _softmax(ag: Any, s: Any) -> Any:
    # not exp(s - logsumexp(s)), which is rounded where scores are large
    e = ag.np.exp(s - ag.getval(s).max(axis=1, keepdims=True))
    return e / ag.np.sum(e, axis=1, keepdims=True)


def _product(ag: Any, balance: Balance, s: Any, chosen: Array, w: Array) -> Any:
    E, k = s.shape[1], chosen.shape[1]
    P = ag.np.dot(w, _softmax(ag, s))  # (E,)
    if balance.fraction == "hard":
        counted = chosen[:, :1] if shared.first_choices(balance) else chosen
        f = sum(w @ (counted[:, [j]] == np.arange(E)) for j in range(counted.shape[1]))  # (E,)
        f = f / counted.shape[1] if balance.count == "per token" else f
    else:
        f = P if balance.fraction == "soft" else ag.getval(P)
        f = f * k if balance.count == "per choice" else f
    return shared.scale(balance, E, k) * ag.np.sum(f * P)


def _importance(ag: Any, balance: Balance, s: Any, chosen: Array, w: Array) -> Any:
    E = s.shape[1]
    gates = _softmax(ag, s) if balance.gates == "soft" else _kept(ag, s, chosen, balance.gates == "renormalized")
    importance = ag.np.dot(w, gates)  # (E,)
    mean = ag.np.sum(importance) / E
    away = importance - mean
    return ag.np.sum(away * away) / (E - 1 if balance.variance == "sample" and E > 1 else E) / (mean * mean)


def _z(ag: Any, balance: Balance, s: Any, chosen: Array, w: Array) -> Any:
    return ag.np.dot(w, ag.logsumexp(s, axis=1) ** 2)
