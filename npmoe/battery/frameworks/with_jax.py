"""The models in JAX: a function of one token, vmapped, jitted and differentiated.

n tokens, d width, h hidden, o output width, E experts, k experts a token. float64 and full products are switched on in
a context, so that the user's own settings are as they were.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from npmoe.battery import frameworks as shared
from npmoe.calculus import check, tree
from npmoe.model.balance import Balance
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.verify.ask import common
from npmoe.verify.ask.jax import arithmetics, array_of, settings

__all__ = ["NAME", "answers", "arithmetics", "array_of", "balance_answers", "settings", "version"]

Array = np.ndarray

NAME = "jax"


def version() -> str:
    """The version of JAX."""
    import jax

    return str(jax.__version__)


def _here() -> Any:
    return shared.load(NAME)


# ---- functions of one token ----------------------------------------------------------------------------------------


def _activation(jax: Any, name: str | None) -> Callable[[Any], Any]:
    exact, tanh = partial(jax.nn.gelu, approximate=False), partial(jax.nn.gelu, approximate=True)
    return {"gelu": exact, "gelu_tanh": tanh, "silu": jax.nn.silu, None: lambda z: z}[name]


def _token(jax: Any, layer: Any, p: Mapping[str, Any], x: Any) -> Any:
    """x (d,) -> y (o,) of a layer with the parameters p."""
    kinds: dict[type, Any] = {
        GeluExpert: _mlp,
        SwigluExpert: _gated_mlp,
        MoE: _mixture,
        Linear: _affine,
        RMSNorm: _norm,
    }
    kinds |= {Residual: _skip, Stack: _chain}
    return shared.of_kind(layer, kinds)(jax, layer, p, x)


def _mlp(jax: Any, layer: GeluExpert, p: Mapping[str, Any], x: Any) -> Any:
    hidden = _activation(jax, layer.activation)(p["W1"] @ x + p["b1"])  # (h,)
    return p["W2"] @ hidden + p["b2"]


def _gated_mlp(jax: Any, layer: SwigluExpert, p: Mapping[str, Any], x: Any) -> Any:
    return p["Wd"] @ (_activation(jax, "silu")(p["Wg"] @ x) * (p["Wu"] @ x))


def _affine(jax: Any, layer: Linear, p: Mapping[str, Any], x: Any) -> Any:
    return _activation(jax, layer.activation)(p["W"] @ x + p["b"])


def _norm(jax: Any, layer: RMSNorm, p: Mapping[str, Any], x: Any) -> Any:
    return x * jax.lax.rsqrt(jax.numpy.mean(jax.numpy.square(x)) + float(layer.eps)) * p["gamma"]


def _skip(jax: Any, layer: Residual, p: Mapping[str, Any], x: Any) -> Any:
    return x + _token(jax, layer.layer, shared.inner(p, "layer"), x)


def _chain(jax: Any, layer: Stack, p: Mapping[str, Any], x: Any) -> Any:
    for i, one in enumerate(layer.layers):
        x = _token(jax, one, shared.inner(p, f"layers.{i}"), x)
    return x


def _mixture(jax: Any, layer: MoE, p: Mapping[str, Any], x: Any) -> Any:
    return _gates(jax, layer, p, x)[1] @ _outputs(jax, layer, p, x)


def _gates(jax: Any, moe: MoE, p: Mapping[str, Any], x: Any) -> tuple[Any, Any]:
    """Scores and gates of one token, (E,) and (E,)."""
    scores = p["router"] @ x
    if moe.bias is not None:
        scores = scores + p["bias"]
    scores = scores / float(moe.temperature)
    best, chosen = jax.lax.top_k(scores, moe.k)  # (k,), (k,)
    kept = jax.nn.softmax(best) if moe.renormalize else jax.nn.softmax(scores)[chosen]
    return scores, jax.numpy.zeros_like(scores).at[chosen].set(kept)


def _outputs(jax: Any, moe: MoE, p: Mapping[str, Any], x: Any) -> Any:
    """What every expert says of one token, (E, o)."""
    experts = enumerate(moe.experts)
    return jax.numpy.stack([_token(jax, expert, shared.inner(p, f"experts.{e}"), x) for e, expert in experts])


# ---- answers -------------------------------------------------------------------------------------------------------


def answers(
    layer: Any, x: Array, dy: Array, arithmetic: str = "float64", weights: Array | None = None
) -> dict[str, Array]:
    """What JAX makes of an npmoe layer, by the names of answers in `npmoe.battery.frameworks`."""
    import jax

    x, dy = shared.prepared(_here(), layer, x, dy, arithmetic)
    given = (dict(tree.named_leaves(layer)), x, dy, shared.shares(weights, len(x)))
    with settings(jax, arithmetic):
        cast = jax.tree_util.tree_map(lambda array: jax.numpy.asarray(array, arithmetic), given)
        found = jax.jit(partial(_found, jax, layer))(*cast)
        return {name: array_of(array) for name, array in found.items()}


def _found(jax: Any, layer: Any, p: dict[str, Any], x: Any, dy: Any, w: Any) -> dict[str, Any]:
    """All answers as one function of parameters, x (n, d), dy (n, o) and shares w (n,)."""
    token = partial(_token, jax, layer)
    batch = jax.vmap(token, in_axes=(None, 0))  # (n, o)

    def pulled() -> dict[str, Any]:
        y, pull = jax.vjp(batch, p, x)
        dp, dx = pull(dy)
        return {"output": y, "gradient": dx, **dp}

    ways = shared.Ways(
        pulled=pulled,
        model=partial(token, p),
        reverse=lambda function: jax.vmap(jax.jacrev(function))(x),
        forward=lambda function: jax.vmap(jax.jacfwd(function))(x),
        whole=lambda: jax.jacrev(partial(batch, p))(x),
        mean=lambda: jax.jacrev(lambda shift: w @ batch(p, x + shift))(jax.numpy.zeros_like(x[0])),
        over=lambda function: jax.vmap(function)(x),
        hold=jax.lax.stop_gradient,
        mixed=lambda gates, outputs: gates @ outputs,
        gates=partial(_gates, jax, layer, p),
        outputs=partial(_outputs, jax, layer, p),
    )
    return shared.every_answer(ways, layer, len(x))


# ---- balance losses ------------------------------------------------------------------------------------------------


def balance_answers(balance: Balance, scores: Array, chosen: Array, arithmetic: str = "float64") -> dict[str, Array]:
    """What JAX makes of a balance loss of one layer: "value" () and its gradient "scores" (n, E)."""
    import jax

    common.known(_here(), arithmetic)
    scores = check.shaped("scores", scores, ("n", "E"))
    loss = {"z": _z, "importance": _importance}.get(balance.kind, _product)
    with settings(jax, arithmetic):
        s, w = (jax.numpy.asarray(a, arithmetic) for a in (scores, shared.shares(balance.mask, len(scores))))
        index = jax.numpy.asarray(chosen, "int32")  # (n, k)
        value, ds = jax.jit(jax.value_and_grad(lambda s: balance.weight * loss(jax, balance, s, index, w)))(s)
        return {"value": array_of(value), "scores": array_of(ds)}


def _product(jax: Any, balance: Balance, s: Any, chosen: Any, w: Any) -> Any:
    E, k = s.shape[1], chosen.shape[1]
    P = jax.numpy.einsum("n,ne->e", w, jax.nn.softmax(s))
    if balance.fraction == "hard":
        hits = jax.nn.one_hot(
            chosen[:, :1] if shared.first_choices(balance) else chosen, E, dtype=s.dtype
        )  # (n, 1 or k, E)
        f = jax.numpy.einsum("n,nke->e", w, hits)
        f = f / hits.shape[1] if balance.count == "per token" else f
    else:
        f = P if balance.fraction == "soft" else jax.lax.stop_gradient(P)
        f = f * k if balance.count == "per choice" else f
    return jax.numpy.dot(f, P) * shared.scale(balance, E, k)


def _importance(jax: Any, balance: Balance, s: Any, chosen: Any, w: Any) -> Any:
    rows = jax.numpy.arange(len(s))[:, None]  # (n, 1)
    gates = jax.nn.softmax(s)  # (n, E)
    if balance.gates == "kept":
        gates = jax.numpy.zeros_like(s).at[rows, chosen].set(gates[rows, chosen])
    elif balance.gates == "renormalized":
        gates = jax.numpy.zeros_like(s).at[rows, chosen].set(jax.nn.softmax(s[rows, chosen]))
    importance = w @ gates  # (E,)
    ddof = int(balance.variance == "sample" and s.shape[1] > 1)
    return jax.numpy.var(importance, ddof=ddof) / jax.numpy.mean(importance) ** 2


def _z(jax: Any, balance: Balance, s: Any, chosen: Any, w: Any) -> Any:
    return w @ jax.numpy.square(jax.nn.logsumexp(s, axis=-1))
