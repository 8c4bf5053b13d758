"""A language model as a tree of layers: embedding, blocks of attention and feed-forward, norm, head.

B sequences, T tokens a sequence, n = B T tokens, d width, V words, L blocks. A batch of states is (n, d), its sequences
one after another.

    h = embedding[ids] + positions
    h = h + attention(norm1(h));  h = h + feed(norm2(h))       in each block (Radford et al. 2019; Xiong et al. 2020)
    logits = W norm(h),  W the head or, where it is None, the embedding (Press and Wolf, arXiv 1608.05859)

The kinds are data: LayerNorm, learned positions, GELU experts and tied weights make the GPT-like model of SC2; RMSNorm,
rotary positions, grouped keys and values, and SwiGLU experts behind a top-k router make Mixtral's architecture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, tree, words
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import each, one_blas_thread
from npmoe.calculus.words import one_line
from npmoe.model.attention import Attention, Cache
from npmoe.model.balance import Balance, pooled
from npmoe.model.crossentropy import add_rows, head_loss, head_loss_vjp
from npmoe.model.layers import LayerNorm, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE, MoETrace

__all__ = [
    "Block",
    "BlockTrace",
    "Embedding",
    "Transformer",
    "flat_gradient",
    "loss",
    "loss_and_gradient",
]

Array = np.ndarray

_PARTS = 2  # of a batch, side by side


@dataclass(frozen=True, eq=False)
class Embedding:
    """h = W[ids] + positions[0 .. T-1].

    Parameters
    ----------
    W : array (V, d).
    positions : array (longest, d), or None: positions come in elsewhere, as rotary ones do.

    Examples
    --------
    >>> Embedding(np.array([[1.0], [2.0]])).forward(np.array([[1, 0, 1]]))
    array([[2.],
           [1.],
           [2.]])
    """

    W: Array
    positions: Array | None = None

    def __post_init__(self) -> None:
        V, d = check.shaped("W", self.W, ("V", "d"), "Embedding").shape
        check.widths("Embedding", V=V, d=d)
        if self.positions is not None:
            check.shaped("positions", self.positions, ("longest", d), "Embedding")

    def forward(self, ids: Array, start: int = 0) -> Array:
        """ids (B, T) -> h (n, d); `start` is the position of the first token."""
        B, T = ids.shape
        h = self.W[ids]  # (B, T, d)
        if self.positions is not None:
            if start + T > len(self.positions):
                raise ValueError(
                    f"expected at most {len(self.positions)} tokens a sequence, as this model has positions for; got "
                    f"{start + T}"
                )
            h += self.positions[start : start + T]
        return h.reshape(B * T, -1)

    def vjp(self, ids: Array, dh: Array) -> "Embedding":
        """dh (n, d) -> the gradient, itself an Embedding."""
        dW = np.zeros_like(self.W)
        add_rows(dW, ids.ravel(), dh)
        if self.positions is None:
            return tree.alike(self, W=dW)
        dpositions = np.zeros_like(self.positions)
        dpositions[: ids.shape[1]] = dh.reshape(*ids.shape, -1).sum(axis=0)
        return tree.alike(self, W=dW, positions=dpositions)

    @words.never_raises
    def __repr__(self) -> str:
        learned = "" if self.positions is None else f", {len(self.positions)} positions"
        return f"Embedding({self.W.shape[0]} words of {self.W.shape[1]}{learned}, {self.W.dtype})"


class BlockTrace(NamedTuple):
    """What `Block.vjp` reads: the traces of norm1, attention, norm2 and feed."""

    norm1: Any
    attention: Any
    norm2: Any
    feed: Any

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class Block:
    """h = h + attention(norm1(h)), then h + feed(norm2(h)).

    Parameters
    ----------
    norm1, norm2 : `LayerNorm` or `RMSNorm`.
    attention : `Attention`.
    feed : a `MoE`, or an expert: a dense feed-forward layer.
    """

    norm1: LayerNorm | RMSNorm
    attention: Attention
    norm2: LayerNorm | RMSNorm
    feed: Any

    def __post_init__(self) -> None:
        d = self.attention.widths[0]
        for name in ("norm1", "norm2", "feed"):
            layer = getattr(self, name)
            if (layer.widths[0], layer.widths[-1]) != (d, d):
                raise ValueError(f"expected {name} of width {d}, as the attention of this block; got {layer.widths}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, d)."""
        return self.attention.widths

    @property
    def feedforward(self) -> Residual:
        """The second half as a layer, h + feed(norm2(h)): its Jacobian is I + J_feed J_norm."""
        return Residual(Stack((self.norm2, self.feed)))

    def attend(self, h: Array, length: int | None = None) -> Array:
        """The first half, (n, d) -> (n, d): the state that enters the feed-forward."""
        return h + self.attention.forward(self.norm1.forward(h)[0], length)[0]

    def forward(self, h: Array, length: int | None = None) -> tuple[Array, BlockTrace]:
        """h (n, d) -> h (n, d) and what `vjp` reads; `length` is T, all of h unless given."""
        a, norm1 = self.norm1.forward(h)
        y, attention = self.attention.forward(a, length)
        h = h + y
        b, norm2 = self.norm2.forward(h)
        y, feed = self.feed.forward(b)
        y += h
        return y, BlockTrace(norm1, attention, norm2, feed)

    def vjp(
        self, trace: BlockTrace, dh: Array, wrt_x: bool = True, dscores: Array | float = 0.0
    ) -> tuple[Any, "Block"]:
        """dh (n, d) -> dh (n, d) and the gradient, itself a Block; `dscores` reaches the router from a loss on it."""
        more = {"dscores": dscores} if isinstance(self.feed, MoE) else {}
        db, dfeed = self.feed.vjp(trace.feed, dh, **more)
        dh2, dnorm2 = self.norm2.vjp(trace.norm2, db)
        dh2 += dh
        da: Any
        da, dattention = self.attention.vjp(trace.attention, dh2)
        dh1, dnorm1 = self.norm1.vjp(trace.norm1, da, wrt_x)
        if dh1 is not None:
            dh1 += dh2
        return dh1, tree.alike(self, norm1=dnorm1, attention=dattention, norm2=dnorm2, feed=dfeed)

    @words.never_raises
    def __repr__(self) -> str:
        return words.cut(f"Block({self.norm1!r}, {self.attention!r}, {self.feed!r}", ")")


@dataclass(frozen=True, eq=False)
class Transformer:
    """A causal language model: embedding, blocks, norm, head.

    Parameters
    ----------
    embedding : `Embedding`.
    blocks : tuple of `Block`.
    norm : the last norm.
    head : array (V, d), or None: the embedding's.

    Raises
    ------
    ValueError, TypeError : if widths do not fit together.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> model = npmoe.init.transformer(rng, V=11, d=8, layers=2, heads=2, h=16, E=4, k=2, longest=9)
    >>> model.forward(np.array([[1, 2, 3], [4, 5, 6]])).shape
    (6, 11)
    """

    embedding: Embedding
    blocks: tuple[Block, ...]
    norm: LayerNorm | RMSNorm
    head: Array | None = None

    def __post_init__(self) -> None:
        V, d = self.embedding.W.shape
        if not isinstance(self.blocks, tuple):
            raise TypeError(f"expected a tuple of blocks; got {type(self.blocks).__name__}")
        for i, block in enumerate(self.blocks):
            if block.widths != (d, d):
                raise ValueError(f"expected blocks of width {d}, as the embedding; block {i} has {block.widths}")
        if self.norm.widths != (d, d):
            raise ValueError(f"expected a last norm of width {d}, as the embedding; got {self.norm.widths[0]}")
        if self.head is not None:
            check.shaped("head", self.head, (V, d), "Transformer")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, V)."""
        return self.embedding.W.shape[1], self.embedding.W.shape[0]

    @property
    def mixtures(self) -> tuple[int, ...]:
        """Numbers of the blocks whose feed-forward is a mixture."""
        return tuple(i for i, block in enumerate(self.blocks) if isinstance(block.feed, MoE))

    @property
    def unembedding(self) -> Array:
        """The matrix (V, d) that makes logits: the head, or the embedding where they are tied."""
        return self.embedding.W if self.head is None else self.head

    def ids(self, ids: Any) -> Array:
        """Token numbers, checked, as (B, T): one sequence (T,) or several (B, T)."""
        found = np.asarray(ids)
        V = len(self.embedding.W)
        if found.dtype.kind not in "iu" or found.ndim not in (1, 2) or not found.size:
            raise ValueError(f"expected ids as integers (T,) or (B, T); got {found.dtype} of shape {found.shape}")
        if found.min() < 0 or found.max() >= V:
            raise ValueError(
                f"expected ids within 0..{V - 1}, the words of this model; got {found.min()}..{found.max()}"
            )
        return found.reshape(-1, found.shape[-1])

    def states(self, ids: Any) -> Iterator[tuple[Array, Array]]:
        """Block by block: what enters the feed-forward, in front of its norm, and what it adds; each (n, d)."""
        ids = self.ids(ids)
        h = self.embedding.forward(ids)
        for block in self.blocks:
            h = block.attend(h, ids.shape[1])
            y = block.feed.forward(block.norm2.forward(h)[0])[0]
            yield h, y
            h = h + y

    def hidden(self, ids: Any) -> Array:
        """What the head reads, (n, d): after the last norm."""
        ids = self.ids(ids)
        h = self.embedding.forward(ids)
        for block in self.blocks:
            h = block.forward(h, ids.shape[1])[0]
        return self.norm.forward(h)[0]

    def forward(self, ids: Any) -> Array:
        """Logits (n, V) of the next token, for one sequence (T,) or several (B, T)."""
        return matmul(self.hidden(ids), self.unembedding.T)

    def extend(self, ids: Array, caches: Sequence[Cache | None] | None = None) -> tuple[Array, list[Cache]]:
        """Logits (B, V) after the next tokens ids (B, t) of each sequence, and the caches with these tokens.

        `caches` hold keys and values of the tokens before, one a block; None at the start.
        """
        ids = self.ids(ids)
        B, t = ids.shape
        before = [None] * len(self.blocks) if caches is None else list(caches)
        start = 0 if not before or before[0] is None else before[0].K.shape[2]
        h = self.embedding.forward(ids, start)
        after = []
        for block, cache in zip(self.blocks, before, strict=True):
            y, cache = block.attention.extend(block.norm1.forward(h)[0].reshape(B, t, -1), cache)
            h = block.feedforward.forward(h + y.reshape(B * t, -1))[0]
            after.append(cache)
        last = h.reshape(B, t, -1)[:, -1]  # (B, d)
        return matmul(self.norm.forward(last)[0], self.unembedding.T), after

    @words.never_raises
    def __repr__(self) -> str:
        d, V = self.widths
        feeds = words.counted([words.kind(block.feed) for block in self.blocks])
        size = sum(leaf.size for leaf in tree.leaves(self))
        dtype = words.dtype_of(tree.leaves(self))
        return f"Transformer({V} words, width {d}, blocks of {feeds}, {size:,} parameters, {dtype})"


# ---- the loss and its gradient ---------------------------------------------------------------------------------------


class _Forward(NamedTuple):
    """One part of a batch on its way back: ids (B, T), the blocks' traces, that of the last norm, and its output."""

    ids: Array
    traces: list[BlockTrace]
    norm: Any
    h: Array


def loss(model: Transformer, ids: Array, targets: Array) -> Array:
    """-log p(target) of every token, (n,), float64; ids and targets (B, T) or (T,)."""
    return head_loss(model.hidden(ids), model.unembedding, np.asarray(targets).ravel())


def loss_and_gradient(
    model: Transformer, ids: Array, targets: Array, balances: Sequence[Balance] = ()
) -> tuple[float, Transformer]:
    """Mean cross-entropy of a batch, and its gradient, itself a Transformer.

    Parameters
    ----------
    ids, targets : integers (B, T).
    balances : losses on the routing of all mixtures, pooled as each says. Their gradients are added, their values not.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> model = npmoe.init.transformer(rng, V=11, d=8, layers=1, heads=2, h=16, E=4, k=2, longest=5)
    >>> value, gradient = loss_and_gradient(model, *rng.integers(0, 11, (2, 4, 5)))
    >>> bool(abs(value - np.log(11)) < 0.1), gradient.blocks[0].feed.router.shape
    (True, (4, 8))
    """
    value, vector = flat_gradient(model, ids, targets, balances)
    return value, tree.unflatten(vector, model)


def flat_gradient(
    model: Transformer, ids: Array, targets: Array, balances: Sequence[Balance] = ()
) -> tuple[float, Array]:
    """`loss_and_gradient` with the gradient as one vector, in the order of `npmoe.calculus.tree.leaves`.

    The batch is taken in two halves, side by side, whatever the machine has: the bits do not depend on it.
    """
    ids = model.ids(ids)
    targets = np.asarray(targets).reshape(ids.shape)
    n = ids.size
    halves = np.array_split(np.arange(len(ids)), min(_PARTS, len(ids)))
    with one_blas_thread():
        forwards = each(lambda rows: _forward(model, ids[rows]), halves)
        dscores = _on_scores(model, forwards, balances) if balances else [{}] * len(halves)
        found = each(lambda f, rows, ds: _backward(model, f, targets[rows].ravel(), n, ds), forwards, halves, dscores)
    vector = found[0][1]
    for _, other in found[1:]:
        vector += other
    return sum(part for part, _ in found) / n, vector


def _forward(model: Transformer, ids: Array) -> _Forward:
    h = model.embedding.forward(ids)
    traces = []
    for block in model.blocks:
        h, trace = block.forward(h, ids.shape[1])
        traces.append(trace)
    h, norm = model.norm.forward(h)
    return _Forward(ids, traces, norm, h)


def _on_scores(model: Transformer, forwards: list[_Forward], balances: Sequence[Balance]) -> list[dict[int, Array]]:
    """dvalue/dscores of each part, by block: the loss is one of the whole batch."""
    at = model.mixtures
    feeds: list[list[MoETrace]] = [[f.traces[i].feed for f in forwards] for i in at]
    scores = [
        np.concatenate([model.blocks[i].feed.scores(trace.x) for trace in of]) for i, of in zip(at, feeds, strict=True)
    ]
    chosen = [np.concatenate([trace.routing.chosen for trace in of]) for of in feeds]
    gradients = [sum(of) for of in zip(*(pooled(balance, scores, chosen)[1] for balance in balances), strict=True)]
    ends = np.cumsum([f.ids.size for f in forwards])[:-1]
    parts = [np.split(ds, ends) for ds in gradients]
    return [{i: part[p] for i, part in zip(at, parts, strict=True)} for p in range(len(forwards))]


def _backward(
    model: Transformer, f: _Forward, targets: Array, n: int, dscores: dict[int, Array]
) -> tuple[float, Array]:
    """Sum of the losses of a part, and the part's share of the gradient of the mean, as a vector."""
    dh: Any
    losses, dh, dhead = head_loss_vjp(f.h, model.unembedding, targets, 1 / n)
    dh, dnorm = model.norm.vjp(f.norm, dh)
    dblocks = []
    for i in reversed(range(len(model.blocks))):
        dh, dblock = model.blocks[i].vjp(f.traces[i], dh, dscores=dscores.get(i, 0.0))
        dblocks.append(dblock)
    dembedding = model.embedding.vjp(f.ids, dh)
    if model.head is None:
        dembedding = tree.alike(dembedding, W=dembedding.W + dhead)
    gradient = (dembedding, tuple(reversed(dblocks)), dnorm, None if model.head is None else dhead)
    return float(losses.sum()), tree.flatten(gradient)
