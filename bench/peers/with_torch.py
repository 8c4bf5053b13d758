# mypy: ignore-errors
"""The rows of `bench.peers` in PyTorch, each as its best user would write it, on two threads.

n tokens, d width, h hidden, E experts, k experts a token; o counts outputs and i inputs of a Jacobian, both d. C slots
an expert hold the rows routed to it, padded to the busiest expert's. "Compiled" means `torch.compile`: the first call
compiles. It looks at the number of threads, so that a caller who changes it makes it compile once more.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value, jacrev, jvp, vmap

from bench.problem import Problem
from npmoe.calculus.memory import keep_heap

__all__ = [
    "expert_jacobians",
    "full_spectra",
    "leading_values",
    "mean_jacobians",
    "mean_jacobians_closed",
    "moe_jacobian",
    "sc1",
    "train",
    "weighted_pca",
]

Ways = dict[str, Callable[[], Any]]
Activation = Callable[[Tensor], Tensor]

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
ROUND = 32  # slots an expert come in multiples of this where they are compiled for, lest every step compile anew
REALIZE = {"realize_opcount_threshold": 1}  # store what two kernels read: Inductor would compute erf again in each
ROOT_HALF, ROOT_TAU = 0.5**0.5, (2 * np.pi) ** -0.5

torch.set_num_threads(2)
torch._dynamo.config.recompile_limit = 256  # beyond it a function silently falls back to eager
keep_heap()  # what tcmalloc does for others: without it every large tensor is paid for in page faults


class _Gelu(torch.autograd.Function):
    """Exact GELU that keeps its slope, so that each of many cotangents costs one product and no erf."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        return F.gelu(z), torch.ops.aten.gelu_backward(torch.ones_like(z), z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, da: Tensor, _: Tensor) -> Tensor:
        return da * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> tuple[Tensor, None]:
        return dz * ctx.saved_tensors[0], None


def _gelu_kept(z: Tensor) -> Tensor:
    return _Gelu.apply(z)[0]


def _gelu_erf(z: Tensor) -> Tensor:
    """Exact GELU in parts that a compiler can share between value and derivative."""
    return z * (0.5 + 0.5 * torch.erf(z * ROOT_HALF))


class _Net(NamedTuple):
    """x, y (n, d); router (E, d); W1 (E, h, d); b1 (E, h); W2 (E, d, h); b2 (E, d); gates (n, E)."""

    x: Tensor
    y: Tensor
    router: Tensor
    W1: Tensor
    b1: Tensor
    W2: Tensor
    b2: Tensor
    gates: Tensor


def _net(problem: Problem) -> _Net:
    return _Net(*(torch.from_numpy(getattr(problem, name)) for name in _Net._fields))


def _two_threads(function: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
    """Apply to every part, on two Python threads of one core each: LAPACK's batches run serially within one."""
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(2)


# Training.

Parameters = list[Tensor]  # router, W1, b1, W2, b2, in the layout of the way
Loss = Callable[[Parameters, Tensor, Tensor], Tensor]


def _owned(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _wide_parameters(net: _Net) -> Parameters:
    """All experts side by side: W1 (d, Eh), W2 (d, Eh) in float64 and (Eh, d) in float32, where MKL is fastest."""
    E, h, d = net.W1.shape
    W2 = net.W2.transpose(0, 1).reshape(d, E * h)
    W2 = W2 if net.x.dtype == torch.float64 else W2.T
    return [_owned(t) for t in (net.router, net.W1.reshape(E * h, d).T, net.b1.flatten(), W2, net.b2)]


def _wide_loss(k: int, gelu: Activation) -> Loss:
    """Every token through every expert, as two wide products; gates of zero where an expert is not chosen."""

    def loss(parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        router, W1, b1, W2, b2 = parameters
        n, E = len(x), len(router)
        scores = x @ router.T
        if k < E:
            values, chosen = scores.topk(k, dim=1)
            gates = torch.zeros_like(scores).scatter(1, chosen, values.softmax(1))
        else:
            gates = scores.softmax(1)
        a = gelu(torch.addmm(b1, x, W1)).view(n, E, -1)
        a = (a * gates[:, :, None]).view(n, -1)
        return F.mse_loss(torch.addmm(gates @ b2, a, W2.T if x.dtype == torch.float64 else W2), y)

    return loss


def _stacked_parameters(net: _Net) -> Parameters:
    """Experts along the batch of `bmm`: W1 (E, d, h), W2 (E, h, d)."""
    return [_owned(t) for t in (net.router, net.W1.mT, net.b1, net.W2.mT, net.b2)]


def _slots(chosen: Tensor, E: int, C: int) -> tuple[Tensor, Tensor]:
    """Slot of every choice, (n, k), and token of every slot, (E C,), token 0 where it is empty."""
    n, k = chosen.shape
    expert = chosen.flatten()
    earlier = F.one_hot(expert, E).cumsum(0).gather(1, expert[:, None])[:, 0] - 1
    slot = expert * C + earlier
    token = torch.zeros(E * C, dtype=torch.long).scatter(0, slot, torch.arange(n * k) // k)
    return slot.view(n, k), token


def _busiest(chosen: Tensor, E: int, multiple: int = 1) -> int:
    """C: rows of the expert that has most, rounded up."""
    return -(-int(torch.bincount(chosen.flatten(), minlength=E).max()) // multiple) * multiple


def _dispatched_loss(k: int, gelu: Activation) -> Callable[..., Tensor]:
    """Each expert sees its routed rows only, gathered into slots, all experts in one `baddbmm`."""

    def loss(parameters: Parameters, x: Tensor, y: Tensor, C: int | None = None) -> Tensor:
        router, W1, b1, W2, b2 = parameters
        E = len(router)
        values, chosen = (x @ router.T).topk(k, dim=1)
        C = _busiest(chosen, E) if C is None else C
        slot, token = _slots(chosen, E, C)
        a = gelu(torch.baddbmm(b1[:, None], x[token].view(E, C, -1), W1))
        f = torch.baddbmm(b2[:, None], a, W2).view(E * C, -1)[slot]  # (n, k, d)
        return F.mse_loss((f * values.softmax(1)[:, :, None]).sum(1), y)

    return loss


def _eager_step(parameters: Parameters, loss: Loss, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Autograd's backward and the fused Adam."""
    for parameter in parameters:
        parameter.requires_grad_()
    adam = torch.optim.Adam(parameters, lr=LR, betas=(BETA1, BETA2), eps=EPS, fused=True)

    def step() -> Tensor:
        value = loss(parameters, x, y)
        adam.zero_grad()
        value.backward()
        adam.step()
        return value.detach()

    return step


def _compiled_step(
    parameters: Parameters, loss: Callable[..., Tensor], x: Tensor, y: Tensor, slots: Callable[[], tuple[int, ...]]
) -> Callable[[], Tensor]:
    """Loss, backward and Adam as one graph; the two numbers that depend on the step come from outside."""
    m, v = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    t = 0

    def whole(parameters: Parameters, m: Parameters, v: Parameters, scale: Tensor, *rest: Any) -> Tensor:
        gradients, value = grad_and_value(loss)(parameters, *rest)
        for p, g, mp, vp in zip(parameters, gradients, m, v, strict=True):
            mp.mul_(BETA1).add_(g, alpha=1 - BETA1)
            vp.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            p.sub_(mp / (vp.sqrt() * scale[1] + EPS) * scale[0])
        return value

    compiled = torch.compile(whole, fullgraph=True, dynamic=False, options=REALIZE)

    def step() -> Tensor:
        nonlocal t
        t += 1
        scale = torch.tensor([LR / (1 - BETA1**t), (1 - BETA2**t) ** -0.5], dtype=x.dtype)
        return compiled(parameters, m, v, scale, x, y, *slots())

    return step


def _compiled_dispatch(parameters: Parameters, k: int, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The graph of `_dispatched_loss`, one for each number of slots, which is found before it."""

    def slots() -> tuple[int]:
        return (_busiest((x @ parameters[0].T).topk(k, dim=1)[1], len(parameters[0]), ROUND),)

    return _compiled_step(parameters, _dispatched_loss(k, _gelu_erf), x, y, slots)


def train(problem: Problem) -> Ways:
    """Wide products for all experts, or rows dispatched into padded slots; eager with fused Adam, or one graph."""
    net, k, E = _net(problem), problem.k, len(problem.router)
    ways = {
        "torch eager": _eager_step(_wide_parameters(net), _wide_loss(k, F.gelu), net.x, net.y),
        "torch compile": _compiled_step(_wide_parameters(net), _wide_loss(k, _gelu_erf), net.x, net.y, tuple),
    }
    if k < E:
        ways["torch dispatch"] = _eager_step(_stacked_parameters(net), _dispatched_loss(k, F.gelu), net.x, net.y)
        ways["torch dispatch compile"] = _compiled_dispatch(_stacked_parameters(net), k, net.x, net.y)
    return ways


# Jacobians.


def _expert_jacobian(x: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, outputs: int = 16) -> Tensor:
    """Reverse mode: the outputs' sum over tokens has each token's Jacobian as its gradient, (o, n, i).

    One cotangent an output serves all tokens, since no token sees another; the sum comes before W2, that W2 carries
    back one vector and not n. Cotangents go in batches that stay within the cache.
    """
    leaf = x.detach().requires_grad_()
    total = W2 @ _gelu_kept(torch.addmm(b1, leaf, W1.T)).sum(0)
    basis = torch.eye(len(W2), dtype=x.dtype)
    J = x.new_empty(len(W2), *x.shape)
    for o in range(0, len(W2), outputs):
        part = slice(o, o + outputs)
        J[part] = torch.autograd.grad(total, leaf, basis[part], retain_graph=True, is_grads_batched=True)[0]
    return J


def _all_jacobians(net: _Net) -> list[Tensor]:
    """The fastest way to all experts' Jacobians: E views (n, o, i)."""
    experts = zip(net.W1, net.b1, net.W2, strict=True)
    return [_expert_jacobian(net.x, *weights).transpose(0, 1) for weights in experts]


def _forward_columns(function: Callable[[Tensor], Tensor], basis: Tensor) -> Tensor:
    """Derivatives at 0 along every row of `basis`, forward mode: (rows, *shape of the result)."""
    zero = torch.zeros_like(basis[0])
    return vmap(lambda tangent: jvp(function, (zero,), (tangent,))[1])(basis)


def expert_jacobians(problem: Problem) -> Ways:
    """Tokens vmapped over jacrev; or cotangents shared by all tokens; or tangents shared by all, compiled."""
    net = _net(problem)
    basis = torch.eye(net.x.shape[1], dtype=net.x.dtype)

    def one(x: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
        return W2 @ F.gelu(W1 @ x + b1) + b2

    def plain() -> Tensor:
        over_tokens = vmap(jacrev(one), in_dims=(0, None, None, None, None))
        return vmap(over_tokens, in_dims=(None, 0, 0, 0, 0))(net.x, *net[3:7])

    @torch.compile(dynamic=False)
    def columns(x: Tensor, W1: Tensor, b1: Tensor, W2: Tensor) -> Tensor:
        z = torch.addmm(b1, x, W1.T)
        return _forward_columns(lambda shift: _gelu_erf(z + W1 @ shift) @ W2.T, basis)

    def compiled() -> list[Tensor]:
        return [columns(net.x, *weights).permute(1, 2, 0) for weights in zip(net.W1, net.b1, net.W2, strict=True)]

    return {
        "torch vmap jacrev": plain,
        "torch shared cotangents": lambda: _all_jacobians(net),
        "torch shared tangents, compiled": compiled,
    }


def _by_tokens(part: Callable[[Tensor], Tensor], x: Tensor, tokens: int = 32) -> Tensor:
    """(n, o, i) from `part`, which gives (i, tokens, o) of a few tokens at a time, that they stay within the cache."""
    n, d = x.shape
    J = x.new_empty(d, n, d)
    for r in range(0, n, tokens):
        J[:, r : r + tokens] = part(x[r : r + tokens])
    return J.permute(1, 2, 0)


def _wide_columns(net: _Net, k: int, gelu: Activation) -> Callable[[Tensor], Tensor]:
    """Forward mode through all experts at once: one tangent a column serves all tokens, (i, n, o)."""
    E, h, d = net.W1.shape
    W1, b1, W2 = net.W1.view(E * h, d), net.b1.flatten(), net.W2.transpose(0, 1).reshape(d, E * h)
    basis = torch.eye(d, dtype=net.x.dtype)

    def columns(x: Tensor) -> Tensor:
        z, scores = torch.addmm(b1, x, W1.T), x @ net.router.T

        def layer(shift: Tensor) -> Tensor:
            s = scores + net.router @ shift
            if k < E:
                values, chosen = s.topk(k, dim=1)
                gates = torch.zeros_like(s).scatter(1, chosen, values.softmax(1))
            else:
                gates = s.softmax(1)
            a = gelu(z + W1 @ shift).view(-1, E, h) * gates[:, :, None]
            return a.view(-1, E * h) @ W2.T + gates @ net.b2

        return _forward_columns(layer, basis)

    return columns


def _dispatched_columns(net: _Net, k: int, gelu: Activation) -> Callable[[Tensor, int], Tensor]:
    """The same with routed rows only: for some rows of the basis and C slots an expert, (rows, n, o)."""
    E, _, d = net.W1.shape

    def columns(basis: Tensor, C: int) -> Tensor:
        scores = net.x @ net.router.T
        chosen = scores.topk(k, dim=1)[1]
        slot, token = _slots(chosen, E, C)
        z = torch.baddbmm(net.b1[:, None], net.x[token].view(E, C, d), net.W1.mT)

        def layer(shift: Tensor) -> Tensor:
            gates = (scores + net.router @ shift).gather(1, chosen).softmax(1)
            a = gelu(z + (net.W1 @ shift)[:, None])
            f = (a @ net.W2.mT + net.b2[:, None]).view(E * C, d)[slot]  # (n, k, o)
            return (f * gates[:, :, None]).sum(1)

        return _forward_columns(layer, basis)

    return columns


def _by_columns(part: Callable[[Tensor, int], Tensor], net: _Net, k: int, multiple: int, columns: int) -> Tensor:
    """(n, o, i) from `part`, a few columns of all tokens at a time."""
    n, d = net.x.shape
    C = _busiest((net.x @ net.router.T).topk(k, dim=1)[1], len(net.router), multiple)
    basis, J = torch.eye(d, dtype=net.x.dtype), net.x.new_empty(d, n, d)
    for i in range(0, d, columns):
        J[i : i + columns] = part(basis[i : i + columns], C)
    return J.permute(1, 2, 0)


def moe_jacobian(problem: Problem) -> Ways:
    """Forward mode, tangents shared by all tokens; for k < E also with routed rows only."""
    net, k = _net(problem), problem.k
    eager = _wide_columns(net, k, _gelu_kept)
    compiled = torch.compile(_wide_columns(net, k, _gelu_erf), dynamic=False)
    ways = {
        "torch shared tangents": lambda: _by_tokens(eager, net.x),
        "torch shared tangents, compiled": lambda: _by_tokens(compiled, net.x),
    }
    if k < len(net.router):
        rows = _dispatched_columns(net, k, _gelu_kept)
        fused = torch.compile(_dispatched_columns(net, k, _gelu_erf), dynamic=False)
        ways["torch dispatch"] = lambda: _by_columns(rows, net, k, 1, 8)
        ways["torch dispatch, compiled"] = lambda: _by_columns(fused, net, k, ROUND, 32)
    return ways


# Means.


def _shares(gates: Tensor) -> Tensor:
    """Gates over their sums, (E, n)."""
    return (gates / gates.sum(0)).T.contiguous()


def mean_jacobians(problem: Problem) -> Ways:
    """Derivative of sum_n w_ne f_e(x_n + shift) at shift = 0: batched backward; or forward mode, compiled."""
    net = _net(problem)
    basis = torch.eye(net.x.shape[1], dtype=net.x.dtype)

    def backward() -> Tensor:
        rows = []
        for w, W1, b1, W2 in zip(_shares(net.gates), net.W1, net.b1, net.W2, strict=True):
            shift = torch.zeros_like(basis[0], requires_grad=True)
            mean = W2 @ (w @ _gelu_kept(torch.addmm(b1 + W1 @ shift, net.x, W1.T)))
            rows.append(torch.autograd.grad(mean, shift, basis, is_grads_batched=True)[0])
        return torch.stack(rows)

    @torch.compile(dynamic=False)
    def columns(x: Tensor, w: Tensor, W1: Tensor, b1: Tensor, W2: Tensor) -> Tensor:
        z = torch.addmm(b1, x, W1.T)
        return _forward_columns(lambda shift: W2 @ (w @ _gelu_erf(z + W1 @ shift)), basis)

    def compiled() -> Tensor:
        experts = zip(_shares(net.gates), net.W1, net.b1, net.W2, strict=True)
        return torch.stack([columns(net.x, *weights).T for weights in experts])

    return {"torch batched backward": backward, "torch forward, compiled": compiled}


def mean_jacobians_closed(problem: Problem) -> Ways:
    """W2 diag(m) W1, m the mean of gelu'(z) = Phi(z) + z phi(z): by ATen's own slope; or typed and compiled."""
    net = _net(problem)
    n, (E, h, d) = len(net.x), net.W1.shape

    def hidden(x: Tensor, W1: Tensor, b1: Tensor) -> Tensor:
        return torch.addmm(b1.flatten(), x, W1.view(E * h, d).T).view(n, E, h)

    def eager() -> Tensor:
        w = (net.gates / net.gates.sum(0))[:, :, None].expand(n, E, h)
        m = torch.ops.aten.gelu_backward(w, hidden(net.x, net.W1, net.b1)).sum(0)
        return (net.W2 * m[:, None]) @ net.W1

    @torch.compile(dynamic=False)
    def typed(x: Tensor, gates: Tensor, W1: Tensor, b1: Tensor, W2: Tensor) -> Tensor:
        z = hidden(x, W1, b1)
        slope = 0.5 + 0.5 * torch.erf(z * ROOT_HALF) + z * torch.exp(-0.5 * z * z) * ROOT_TAU
        m = (slope * (gates / gates.sum(0))[:, :, None]).sum(0)
        return (W2 * m[:, None]) @ W1

    return {"torch closed": eager, "torch closed, compiled": lambda: typed(net.x, net.gates, net.W1, net.b1, net.W2)}


# Spectra.


def _largest(J: Tensor) -> Tensor:
    """Square root of the largest eigenvalue of J J^T, (n, o, i) -> (n,): good to half the digits and more."""
    return torch.linalg.eigvalsh(J @ J.mT)[:, -1].sqrt()


def leading_values(problem: Problem) -> Ways:
    """The first of all singular values; or eigenvalues of the Gram matrices, experts on two threads."""
    net = _net(problem)
    return {
        "torch svdvals": lambda: torch.stack([torch.linalg.svdvals(J)[:, 0] for J in _all_jacobians(net)]),
        "torch Gram, two threads": lambda: torch.stack(_two_threads(_largest, _all_jacobians(net))),
    }


def full_spectra(problem: Problem) -> Ways:
    """svdvals of the Jacobians, one batch after another; or experts on two threads."""
    net = _net(problem)
    return {
        "torch svdvals": lambda: torch.stack([torch.linalg.svdvals(J) for J in _all_jacobians(net)]),
        "torch svdvals, two threads": lambda: torch.stack(_two_threads(torch.linalg.svdvals, _all_jacobians(net))),
    }


def _covariances(x: Tensor, gates: Tensor) -> Tensor:
    """Weighted covariances about the weighted means, (E, d, d), by one `bmm`."""
    w = _shares(gates)
    centered = (x - (w @ x)[:, None]) * w.sqrt()[:, :, None]  # (E, n, d)
    return centered.mT @ centered


def weighted_pca(problem: Problem) -> Ways:
    """Batched covariances and eigvalsh; eight matrices do not pay back two Python threads."""
    net = _net(problem)
    return {"torch eigvalsh": lambda: torch.linalg.eigvalsh(_covariances(net.x, net.gates)).flip(1)}


# End to end.


def _trained(problem: Problem, steps: int, compiled: bool) -> tuple[_Net, float]:
    """The network after `steps` steps of its fastest way, and its loss."""
    net, (E, h, d) = _net(problem), problem.W1.shape
    sparse = problem.k < E
    parameters = _stacked_parameters(net) if sparse else _wide_parameters(net)
    loss = (_dispatched_loss if sparse else _wide_loss)(problem.k, F.gelu)
    if not compiled:
        step = _eager_step(parameters, loss, net.x, net.y)
    elif sparse:
        step = _compiled_dispatch(parameters, problem.k, net.x, net.y)
    else:
        step = _compiled_step(parameters, _wide_loss(problem.k, _gelu_erf), net.x, net.y, tuple)
    for _ in range(steps):
        step()
    with torch.no_grad():
        final = float(loss(parameters, net.x, net.y))
    router, W1, b1, W2, b2 = (parameter.detach() for parameter in parameters)
    if sparse:
        W1, W2 = W1.mT, W2.mT
    else:
        W1, b1 = W1.T.reshape(E, h, d), b1.view(E, h)
        W2 = (W2 if net.x.dtype == torch.float64 else W2.T).reshape(d, E, h).transpose(0, 1)
    values, chosen = (net.x @ router.T).topk(problem.k, dim=1)
    gates = torch.zeros_like(net.gates).scatter(1, chosen, values.softmax(1))
    return _Net(net.x, net.y, router, W1, b1, W2, b2, gates), final


def _geometry(net: _Net) -> tuple[Tensor, Tensor, Tensor]:
    """Mean spectra, spectra of the means and covariances' eigenvalues, (E, d) each; each Jacobian is formed once."""
    weights, jacobians, means = [], [], []
    for g, W1, b1, W2 in zip(net.gates.T, net.W1, net.b1, net.W2, strict=True):
        rows = g.nonzero()[:, 0]
        w = g[rows] / g.sum()
        J = _expert_jacobian(net.x[rows], W1, b1, W2).transpose(0, 1)
        weights.append(w)
        jacobians.append(J)
        means.append(torch.einsum("n,noi->oi", w, J))
    spectra = _two_threads(torch.linalg.svdvals, jacobians)
    mean_spectra = torch.stack([w @ s for w, s in zip(weights, spectra, strict=True)])
    of_means = torch.linalg.svdvals(torch.stack(means))
    return mean_spectra, of_means, torch.linalg.eigvalsh(_covariances(net.x, net.gates)).flip(1)


def sc1(problems: dict[str, Problem], steps: int, *, compiled: bool = False) -> dict[str, tuple]:
    """Train each problem, then (loss, mean of the experts' spectra, spectra of the means, eigenvalues) of each.

    Eager unless asked: a thousand steps do not pay back what compiling three problems costs.
    """
    results = {}
    for name, problem in problems.items():
        net, loss = _trained(problem, steps, compiled)
        results[name] = (np.asarray(loss), *(values.numpy() for values in _geometry(net)))
    return results
