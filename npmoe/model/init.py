"""Initializations by name.

E experts, d width, h hidden, k experts a token. A scheme draws a weight (out, in) and a bias (out,):

============  =====================================================================================
pytorch       weights and biases uniform within 1/sqrt(in) (``torch.nn.Linear``'s default)
xavier        weights uniform within sqrt(6/(in + out)), biases zero (Glorot and Bengio 2010, eq. 16)
he            weights normal with variance 2/in, biases zero (He et al., arXiv 1502.01852, eq. 10)
normal002     weights normal(0, 0.02), biases zero (GPT-2)
============  =====================================================================================
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check, tree
from npmoe.model.attention import Attention
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import LayerNorm, Linear, RMSNorm
from npmoe.model.moe import MoE
from npmoe.model.transformer import Block, Embedding, Transformer

__all__ = ["SCHEMES", "dense", "gelu_moe", "linear", "swiglu_moe", "transformer"]

Array = np.ndarray
Rng = np.random.Generator


def _pytorch(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    bound = 1 / np.sqrt(into)
    return rng.uniform(-bound, bound, (out, into)), rng.uniform(-bound, bound, out)


def _xavier(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    bound = np.sqrt(6 / (into + out))
    return rng.uniform(-bound, bound, (out, into)), np.zeros(out)


def _he(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    return rng.normal(0, np.sqrt(2 / into), (out, into)), np.zeros(out)


def _normal002(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    return rng.normal(0, 0.02, (out, into)), np.zeros(out)


SCHEMES: dict[str, Callable[[Rng, int, int], tuple[Array, Array]]] = {
    "pytorch": _pytorch,
    "xavier": _xavier,
    "he": _he,
    "normal002": _normal002,
}


def _scheme(name: str) -> Callable[[Rng, int, int], tuple[Array, Array]]:
    if name not in SCHEMES:
        raise ValueError(f"expected a scheme among {', '.join(SCHEMES)}; got {name!r}")
    return SCHEMES[name]


def dense(
    rng: Rng, d: int, h: int, *, scheme: str = "pytorch", activation: str = "gelu", dtype: type = np.float64
) -> GeluExpert:
    """One feed-forward layer of width d and hidden width h.

    Examples
    --------
    >>> dense(np.random.default_rng(0), d=4, h=8).widths
    (4, 8, 4)
    """
    draw = _scheme(scheme)
    d, h = check.integer("d", d, 1), check.integer("h", h, 1)
    W1, b1 = draw(rng, h, d)
    W2, b2 = draw(rng, d, h)
    W1, b1, W2, b2 = (a.astype(dtype) for a in (W1, b1, W2, b2))
    return GeluExpert(W1, b1, W2, b2, activation)


def linear(
    rng: Rng, d: int, o: int, *, scheme: str = "pytorch", activation: str | None = None, dtype: type = np.float64
) -> Linear:
    """One linear layer d -> o.

    Examples
    --------
    >>> linear(np.random.default_rng(0), d=4, o=2).widths
    (4, 2)
    """
    W, b = _scheme(scheme)(rng, check.integer("o", o, 1), check.integer("d", d, 1))
    return Linear(W.astype(dtype), b.astype(dtype), activation)


def gelu_moe(
    rng: Rng,
    E: int,
    d: int,
    h: int,
    k: int,
    *,
    scheme: str = "pytorch",
    renormalize: bool = True,
    temperature: float = 1.0,
    bias: bool = False,
    alike: bool = False,
    activation: str = "gelu",
    dtype: type = np.float64,
) -> MoE:
    """Mixture of E two-layer GELU experts; the router has a bias only where asked.

    Parameters
    ----------
    alike : give every expert the first one's weights (copies: each trains for itself).

    Examples
    --------
    >>> moe = gelu_moe(np.random.default_rng(0), E=3, d=4, h=8, k=2, alike=True)
    >>> bool((moe.experts[0].W1 == moe.experts[2].W1).all())
    True
    """
    W, b = _scheme(scheme)(rng, check.integer("E", E, 1), check.integer("d", d, 1))
    experts = [dense(rng, d, h, scheme=scheme, activation=activation, dtype=dtype) for _ in range(E)]
    if alike:
        experts = [tree.map_leaves(np.copy, experts[0]) for _ in experts]
    return MoE(W.astype(dtype), tuple(experts), k, renormalize, temperature, b.astype(dtype) if bias else None)


def swiglu_moe(
    rng: Rng,
    E: int,
    d: int,
    h: int,
    k: int,
    *,
    scheme: str = "pytorch",
    renormalize: bool = True,
    temperature: float = 1.0,
    dtype: type = np.float64,
) -> MoE:
    """Mixture of E SwiGLU experts, without biases.

    Examples
    --------
    >>> swiglu_moe(np.random.default_rng(0), E=3, d=4, h=8, k=1).experts[0].widths
    (4, 8, 4)
    """
    draw = _scheme(scheme)
    d, h = check.integer("d", d, 1), check.integer("h", h, 1)
    W, _ = draw(rng, check.integer("E", E, 1), d)

    experts = tuple(
        SwigluExpert(*(draw(rng, out, into)[0].astype(dtype) for out, into in [(h, d), (h, d), (d, h)]))
        for _ in range(E)
    )
    return MoE(W.astype(dtype), experts, k, renormalize, temperature)


def transformer(
    rng: Rng,
    V: int,
    d: int,
    layers: int,
    heads: int,
    h: int,
    *,
    E: int = 1,
    k: int = 1,
    longest: int | None = None,
    groups: int | None = None,
    rotary: float | None = None,
    norm: str = "layer",
    expert: str = "gelu",
    tied: bool = True,
    renormalize: bool = True,
    temperature: float = 1.0,
    activation: str = "gelu",
    dtype: type = np.float64,
) -> Transformer:
    """A language model, drawn as GPT-2 is: weights normal(0, 0.02), those that end in a residual over sqrt(2 layers).

    Source: Radford et al. 2019, section 2.3. Biases are zero, norms one.

    Parameters
    ----------
    V, d, layers, heads, h : words, width, blocks, heads of attention, hidden width of a feed-forward or of an expert.
    E, k : experts and experts a token; with E = 1 the feed-forward is dense. k = E is the soft router.
    longest : learned positions for so many tokens; None without, as with `rotary`.
    groups : of keys and values; as many as heads unless given.
    rotary : base of rotary positions, or None.
    norm : "layer" (and biases in attention) or "rms" (without biases).
    expert : "gelu" or "swiglu".
    tied : whether the head is the embedding.

    Examples
    --------
    The GPT-like model of SC2, and Mixtral's architecture:

    >>> rng = np.random.default_rng(0)
    >>> gpt = transformer(rng, V=50, d=16, layers=3, heads=4, h=32, E=8, k=2, longest=64)
    >>> mixtral = transformer(
    ...     rng, V=50, d=16, layers=3, heads=4, h=32, E=8, k=2, groups=2, rotary=1e4, norm="rms", expert="swiglu",
    ...     tied=False,
    ... )
    >>> gpt.blocks[0].feed.k, mixtral.blocks[0].attention.groups
    (2, 2)
    """
    for name, value in (("V", V), ("d", d), ("heads", heads), ("h", h), ("E", E)):
        check.integer(name, value, 1)
    check.integer("layers", layers, 0)
    if d % heads:
        raise ValueError(f"expected a width that heads divide; got width {d} and {heads} heads")
    if norm not in _NORMS or expert not in ("gelu", "swiglu"):
        raise ValueError(
            f"expected a norm among layer, rms and experts among gelu, swiglu; got {norm!r} and {expert!r}"
        )
    draw = _Gpt2(rng, dtype, (2 * max(layers, 1)) ** -0.5)
    G, c, biased = groups or heads, d // heads, norm == "layer"

    def feed() -> GeluExpert | SwigluExpert:
        if expert == "swiglu":
            return SwigluExpert(draw.weight(h, d), draw.weight(h, d), draw.last(d, h))
        return GeluExpert(draw.weight(h, d), draw.zeros(h), draw.last(d, h), draw.zeros(d), activation)

    def block() -> Block:
        biases = {name: draw.zeros(size) for name, size in (("bq", d), ("bk", G * c), ("bv", G * c), ("bo", d))}
        weights = draw.weight(d, d), draw.weight(G * c, d), draw.weight(G * c, d), draw.last(d, d)
        attention = Attention(*weights, heads, G, rotary, **(biases if biased else {}))
        experts = (
            feed() if E == 1 else MoE(draw.weight(E, d), tuple(feed() for _ in range(E)), k, renormalize, temperature)
        )
        return Block(_NORMS[norm](d, dtype), attention, _NORMS[norm](d, dtype), experts)

    positions = None if longest is None else draw.weight(check.integer("longest", longest, 1), d)
    embedding = Embedding(draw.weight(V, d), positions)
    blocks = tuple(block() for _ in range(layers))
    return Transformer(embedding, blocks, _NORMS[norm](d, dtype), None if tied else draw.weight(V, d))


_NORMS: dict[str, Callable[[int, type], LayerNorm | RMSNorm]] = {
    "layer": lambda d, dtype: LayerNorm(np.ones(d, dtype), np.zeros(d, dtype)),
    "rms": lambda d, dtype: RMSNorm(np.ones(d, dtype), 1e-5),
}


class _Gpt2(NamedTuple):
    """Draws of GPT-2: `last` are weights that end in a residual, scaled down by the number of residuals."""

    rng: Rng
    dtype: type
    scale: float

    def weight(self, out: int, into: int) -> Array:
        return self.rng.normal(0, 0.02, (out, into)).astype(self.dtype)

    def last(self, out: int, into: int) -> Array:
        return self.rng.normal(0, 0.02 * self.scale, (out, into)).astype(self.dtype)

    def zeros(self, size: int) -> Array:
        return np.zeros(size, self.dtype)
