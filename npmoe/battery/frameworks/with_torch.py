"""The models in PyTorch: modules for output and gradients, functions of one token under torch.func for Jacobians.

n tokens, d width, h hidden, o output width, E experts, k experts a token. Nothing global is changed: neither the
default dtype, nor threads, nor the state of the random generator.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from npmoe.battery import frameworks as shared
from npmoe.calculus import check, tree
from npmoe.model.balance import Balance
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.verify.ask import common
from npmoe.verify.ask.torch import arithmetics, array_of, pulled, tensor_of

__all__ = ["NAME", "answers", "arithmetics", "array_of", "balance_answers", "build", "pulled", "tensor_of", "version"]

Array = np.ndarray

NAME = "torch"

#: Our names of leaves for those of the modules below, by their last two parts.
_LEAVES = {"up.weight": "W1", "up.bias": "b1", "down.weight": "W2", "down.bias": "b2"}
_LEAVES |= {"gate_proj.weight": "Wg", "up_proj.weight": "Wu", "down_proj.weight": "Wd"}
_LEAVES |= {"gate.weight": "router", "gate.bias": "bias"}
_LEAVES |= {"linear.weight": "W", "linear.bias": "b", "norm.weight": "gamma"}


def version() -> str:
    """The version of PyTorch."""
    import torch

    return str(torch.__version__)


def _activation(torch: Any, name: str | None) -> Callable[[Any], Any]:
    F = torch.nn.functional
    exact, tanh = partial(F.gelu, approximate="none"), partial(F.gelu, approximate="tanh")
    return {"gelu": exact, "gelu_tanh": tanh, "silu": F.silu, None: lambda z: z}[name]


# ---- modules -------------------------------------------------------------------------------------------------------


@cache
def _classes(torch: Any) -> dict[type, Any]:
    """One class of module for each kind of layer; they can only be made once torch is there."""
    nn: Any = torch.nn
    F = nn.functional

    class Mlp(nn.Module):
        def __init__(self, layer: GeluExpert) -> None:
            super().__init__()
            d, h, o = layer.widths
            self.up, self.down, self.activation = nn.Linear(d, h), nn.Linear(h, o), layer.activation

        def forward(self, x: Any) -> Any:
            return self.down(_activation(torch, self.activation)(self.up(x)))

    class GatedMlp(nn.Module):
        def __init__(self, layer: SwigluExpert) -> None:
            super().__init__()
            d, h, o = layer.widths
            self.gate_proj, self.up_proj = nn.Linear(d, h, bias=False), nn.Linear(d, h, bias=False)
            self.down_proj = nn.Linear(h, o, bias=False)

        def forward(self, x: Any) -> Any:
            return self.down_proj(_activation(torch, "silu")(self.gate_proj(x)) * self.up_proj(x))

    class Mixture(nn.Module):
        """Each expert sees its own rows, and adds to them what it has to say."""

        def __init__(self, layer: MoE) -> None:
            super().__init__()
            (d, self.o), E = layer.widths, len(layer.experts)
            self.k, self.renormalize, self.temperature = layer.k, layer.renormalize, layer.temperature
            self.gate = nn.Linear(d, E, bias=layer.bias is not None)
            self.experts = nn.ModuleList(_module(torch, expert) for expert in layer.experts)

        def route(self, x: Any) -> tuple[Any, Any, Any]:
            scores = self.gate(x) / self.temperature  # (n, E)
            best, chosen = torch.topk(scores, self.k, dim=-1)  # (n, k), (n, k)
            if self.renormalize:
                return scores, F.softmax(best, dim=-1), chosen
            return scores, F.softmax(scores, dim=-1).gather(1, chosen), chosen

        def forward(self, x: Any) -> Any:
            _, gates, chosen = self.route(x)
            y = x.new_zeros(len(x), self.o)
            for e, expert in enumerate(self.experts):
                rows, place = torch.where(chosen == e)  # (n_e,), (n_e,)
                if len(rows):
                    y.index_add_(0, rows, gates[rows, place, None] * expert(x[rows]))
            return y

    class Affine(nn.Module):
        def __init__(self, layer: Linear) -> None:
            super().__init__()
            self.linear, self.activation = nn.Linear(*layer.widths), layer.activation

        def forward(self, x: Any) -> Any:
            return _activation(torch, self.activation)(self.linear(x))

    class Norm(nn.Module):
        def __init__(self, layer: RMSNorm) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(layer.widths[0], eps=float(layer.eps))

        def forward(self, x: Any) -> Any:
            return self.norm(x)

    class Skip(nn.Module):
        def __init__(self, layer: Residual) -> None:
            super().__init__()
            self.layer = _module(torch, layer.layer)

        def forward(self, x: Any) -> Any:
            return x + self.layer(x)

    class Chain(nn.Module):
        def __init__(self, layer: Stack) -> None:
            super().__init__()
            self.layers = nn.ModuleList(_module(torch, inner) for inner in layer.layers)

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    kinds = {GeluExpert: Mlp, SwigluExpert: GatedMlp, MoE: Mixture, Linear: Affine, RMSNorm: Norm, Residual: Skip}
    return {**kinds, Stack: Chain}


def _module(torch: Any, layer: Any) -> Any:
    return shared.of_kind(layer, _classes(torch))(layer)


def _leaf(name: str) -> str:
    """Our name of a parameter of the modules here: "experts.0.W1" of "experts.0.up.weight"."""
    *front, a, b = name.split(".")
    return ".".join([*front, _LEAVES[f"{a}.{b}"]])


def build(layer: Any, arithmetic: str = "float64") -> Any:
    """An nn.Module with the parameters of an npmoe layer, in the arithmetic named.

    Raises
    ------
    ModuleNotFoundError : where PyTorch is not installed.
    ValueError : for a kind of layer that is not npmoe's.
    """
    import torch

    with torch.device("meta"):  # no numbers are drawn, which would move the user's generator
        module = _module(torch, layer)
    leaves = dict(tree.named_leaves(layer))
    state = {name: tensor_of(torch, leaves[_leaf(name)], arithmetic) for name, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    return module


# ---- functions of one token, for torch.func ------------------------------------------------------------------------


def _token(torch: Any, layer: Any, p: Mapping[str, Any], x: Any) -> Any:
    """x (d,) -> y (o,), with masks instead of rows, since vmap follows no choice."""
    if isinstance(layer, GeluExpert):
        return p["W2"] @ _activation(torch, layer.activation)(p["W1"] @ x + p["b1"]) + p["b2"]
    if isinstance(layer, SwigluExpert):
        return p["Wd"] @ (_activation(torch, "silu")(p["Wg"] @ x) * (p["Wu"] @ x))
    if isinstance(layer, Linear):
        return _activation(torch, layer.activation)(p["W"] @ x + p["b"])
    if isinstance(layer, RMSNorm):
        return x * torch.rsqrt((x * x).mean() + float(layer.eps)) * p["gamma"]
    if isinstance(layer, Residual):
        return x + _token(torch, layer.layer, shared.inner(p, "layer"), x)
    if isinstance(layer, Stack):
        for i, one in enumerate(layer.layers):
            x = _token(torch, one, shared.inner(p, f"layers.{i}"), x)
        return x
    return _gates(torch, layer, p, x)[1] @ _outputs(torch, layer, p, x)


def _gates(torch: Any, moe: MoE, p: Mapping[str, Any], x: Any) -> tuple[Any, Any]:
    """Scores and gates of one token, (E,) and (E,)."""
    scores = p["router"] @ x
    if moe.bias is not None:
        scores = scores + p["bias"]
    scores = scores / moe.temperature
    chosen = torch.topk(scores.detach(), moe.k).indices  # (k,)
    on = (chosen[:, None] == torch.arange(len(moe.experts))).any(dim=0)  # (E,)
    if moe.renormalize:
        return scores, torch.softmax(scores.masked_fill(~on, -torch.inf), dim=0)
    return scores, torch.softmax(scores, dim=0) * on


def _outputs(torch: Any, moe: MoE, p: Mapping[str, Any], x: Any) -> Any:
    """What every expert says of one token, (E, o)."""
    experts = enumerate(moe.experts)
    return torch.stack([_token(torch, expert, shared.inner(p, f"experts.{e}"), x) for e, expert in experts])


# ---- answers -------------------------------------------------------------------------------------------------------


def answers(
    layer: Any, x: Array, dy: Array, arithmetic: str = "float64", weights: Array | None = None
) -> dict[str, Array]:
    """What PyTorch makes of an npmoe layer, by the names of answers in `npmoe.battery.frameworks`."""
    import torch

    x, dy = shared.prepared(_here(), layer, x, dy, arithmetic)
    w = tensor_of(torch, shared.shares(weights, len(x)), arithmetic)  # (n,)
    X, dY = (tensor_of(torch, array, arithmetic) for array in (x, dy))
    found = shared.every_answer(_ways(torch, layer, build(layer, arithmetic), X, dY, w), layer, len(x))
    return {name: array_of(torch, tensor) for name, tensor in found.items()}


def _ways(torch: Any, layer: Any, module: Any, x: Any, dy: Any, w: Any) -> shared.Ways:
    """Values and gradients of the module, Jacobians of functions of one token."""
    from torch.func import jacfwd, jacrev, vmap

    parameters = {_leaf(name): leaf for name, leaf in module.named_parameters()}
    p = {name: leaf.detach() for name, leaf in parameters.items()}
    rows = partial(torch.autograd.functional.jacobian, vectorize=True)
    return shared.Ways(
        pulled=lambda: pulled(torch, module, parameters, x, dy),
        model=partial(_token, torch, layer, p),
        reverse=lambda function: vmap(jacrev(function))(x),
        forward=lambda function: vmap(jacfwd(function))(x),
        whole=lambda: rows(module, x),
        mean=lambda: rows(lambda shift: w @ module(x + shift), torch.zeros_like(x[0])),
        over=lambda function: vmap(function)(x),
        hold=lambda value: value.detach(),
        mixed=lambda gates, outputs: gates @ outputs,
        gates=partial(_gates, torch, layer, p),
        outputs=partial(_outputs, torch, layer, p),
    )


def _here() -> Any:
    return shared.load(NAME)


# ---- balance losses ------------------------------------------------------------------------------------------------


def balance_answers(balance: Balance, scores: Array, chosen: Array, arithmetic: str = "float64") -> dict[str, Array]:
    """What PyTorch makes of a balance loss of one layer: "value" () and its gradient "scores" (n, E)."""
    import torch

    common.known(_here(), arithmetic)
    s = tensor_of(torch, check.shaped("scores", scores, ("n", "E")), arithmetic).requires_grad_()
    w = tensor_of(torch, shared.shares(balance.mask, len(s)), arithmetic)  # (n,)
    index = torch.from_numpy(np.array(chosen, np.int64))  # (n, k)
    loss = {"z": _z, "importance": _importance}.get(balance.kind, _product)
    value = balance.weight * loss(torch, balance, s, index, w)
    (ds,) = torch.autograd.grad(value, s)
    return {"value": array_of(torch, value), "scores": array_of(torch, ds)}


def _product(torch: Any, balance: Balance, s: Any, chosen: Any, w: Any) -> Any:
    E, k = s.shape[1], chosen.shape[1]
    P = w @ s.softmax(dim=-1)  # (E,)
    if balance.fraction == "hard":
        counted = chosen[:, 0] if shared.first_choices(balance) else chosen.flatten()
        each = counted.numel() // len(chosen)  # choices a token
        hits = torch.nn.functional.one_hot(counted, E).reshape(len(chosen), each, E).to(s.dtype)
        f = w @ (hits.mean(dim=1) if balance.count == "per token" else hits.sum(dim=1))  # (E,)
    else:
        f = P if balance.fraction == "soft" else P.detach()
        f = f * k if balance.count == "per choice" else f
    return shared.scale(balance, E, k) * (f * P).sum()


def _importance(torch: Any, balance: Balance, s: Any, chosen: Any, w: Any) -> Any:
    gates = s.softmax(dim=-1)  # (n, E)
    if balance.gates != "soft":
        kept = torch.zeros_like(gates).scatter(1, chosen, gates.gather(1, chosen))
        best = s.gather(1, chosen).softmax(dim=-1)  # (n, k)
        gates = kept if balance.gates == "kept" else torch.zeros_like(gates).scatter(1, chosen, best)
    importance = w @ gates  # (E,)
    correction = 1 if balance.variance == "sample" and s.shape[1] > 1 else 0
    return importance.var(correction=correction) / importance.mean() ** 2


def _z(torch: Any, balance: Balance, s: Any, chosen: Any, w: Any) -> Any:
    return w @ torch.logsumexp(s, dim=-1) ** 2
