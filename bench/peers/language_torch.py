# mypy: ignore-errors
"""One step of training the language model of SC2 in PyTorch, as its user would write it: eager, and compiled.

The tree of ours gives the weights. Attention is `scaled_dot_product_attention`, the optimizer is the fused AdamW.
Experts are visited one by one with the rows routed to them, as `transformers` does; compiled, each sees the rows of all
tokens (`torch.compile` needs shapes that stay), in one batched product.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from npmoe.model.language import Recipe
from npmoe.model.moe import MoE
from npmoe.model.transformer import Transformer

__all__ = ["steps"]

torch.set_num_threads(2)


class _Model(torch.nn.Module):
    """The same model; parameters by the names of our leaves."""

    def __init__(self, model: Transformer, dense_dispatch: bool) -> None:
        super().__init__()
        self.shape, self.dense_dispatch = model, dense_dispatch

        def kept(a: np.ndarray) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.tensor(a))

        self.W, self.positions = kept(model.embedding.W), kept(model.embedding.positions)
        self.blocks = torch.nn.ModuleList(_Block(block, kept, dense_dispatch) for block in model.blocks)
        self.gamma, self.beta = kept(model.norm.gamma), kept(model.norm.beta)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.W[ids] + self.positions[: ids.shape[1]]
        for block in self.blocks:
            h = block(h)
        h = F.layer_norm(h, h.shape[-1:], self.gamma, self.beta, 1e-5)
        return F.cross_entropy((h @ self.W.T).flatten(0, 1), targets.flatten())


class _Block(torch.nn.Module):
    def __init__(self, block: Any, kept: Callable, dense_dispatch: bool) -> None:
        super().__init__()
        a, self.heads, self.dense_dispatch = block.attention, block.attention.heads, dense_dispatch
        self.qkv = kept(np.concatenate([a.Wq, a.Wk, a.Wv]))
        self.bqkv = kept(np.concatenate([a.bq, a.bk, a.bv]))
        self.Wo, self.bo = kept(a.Wo), kept(a.bo)
        self.norms = torch.nn.ParameterList(
            kept(v) for v in (block.norm1.gamma, block.norm1.beta, block.norm2.gamma, block.norm2.beta)
        )
        mixture = isinstance(block.feed, MoE)
        experts = block.feed.experts if mixture else (block.feed,)
        self.router, self.k = (kept(block.feed.router), block.feed.k) if mixture else (None, 1)
        self.W1, self.b1, self.W2, self.b2 = (
            kept(np.stack([getattr(f, name) for f in experts])) for name in ("W1", "b1", "W2", "b2")
        )

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        B, T, d = h.shape
        g1, b1, g2, b2 = self.norms
        qkv = F.linear(F.layer_norm(h, (d,), g1, b1, 1e-5), self.qkv, self.bqkv)
        q, k, v = qkv.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, d)
        h = h + F.linear(a, self.Wo, self.bo)
        return h + self.feed(F.layer_norm(h, (d,), g2, b2, 1e-5).view(B * T, d)).view(B, T, d)

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        if self.router is None:
            return F.linear(F.gelu(F.linear(x, self.W1[0], self.b1[0])), self.W2[0], self.b2[0])
        s = x @ self.router.T
        top, chosen = s.topk(self.k)
        gates = top.softmax(-1)
        if self.dense_dispatch or self.k == len(self.router):
            weights = torch.zeros_like(s).scatter(1, chosen, gates)
            a = F.gelu(torch.einsum("nd,ehd->enh", x, self.W1) + self.b1[:, None])
            return torch.einsum("enh,eoh,ne->no", a, self.W2, weights) + weights @ self.b2
        y = torch.zeros_like(x)
        for e in range(len(self.router)):
            rows, slot = (chosen == e).nonzero(as_tuple=True)
            z = F.gelu(F.linear(x[rows], self.W1[e], self.b1[e]))
            y.index_add_(0, rows, F.linear(z, self.W2[e], self.b2[e]) * gates[rows, slot, None])
        return y


def steps(model: Transformer, batch: Callable[[int], tuple], recipe: Recipe) -> dict[str, Callable[[], float]]:
    """One step of training a call; gives the loss in front of it."""
    return {
        "torch eager": _steps(_Model(model, False), batch, recipe, lambda net: net),
        "torch compiled": _steps(_Model(model, True), batch, recipe, torch.compile),
    }


def _steps(net: _Model, batch: Callable[[int], tuple], recipe: Recipe, compiled: Callable) -> Callable[[], float]:
    matrices = [p for name, p in net.named_parameters() if _is_matrix(name, p)]
    ids = {id(p) for p in matrices}
    others = [p for p in net.parameters() if id(p) not in ids]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=1e-8, fused=True)
    forward, state = compiled(net), {"step": 0}

    def step() -> float:
        x, y = (torch.from_numpy(np.ascontiguousarray(a)).long() for a in batch(state["step"]))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(state["step"])
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, y)
        loss.backward()
        if math.isfinite(recipe.clip):
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
        state["step"] += 1
        return float(loss.detach())

    return step


def _is_matrix(name: str, p: torch.Tensor) -> bool:
    """Ours: weights, embedding and positions; biases of stacked experts are (E, h) here."""
    return p.ndim > 1 and not name.endswith((".b1", ".b2"))
