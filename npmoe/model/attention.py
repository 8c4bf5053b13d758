"""Causal attention with grouped keys and values and rotary positions: forward, vjp, and a cache for sampling.

B sequences, T tokens a sequence, n = B T tokens, d width, H heads, G groups of keys and values (G divides H), q = H/G
queries a group, c width of a head. A batch is (n, d), its sequences one after another.

Source: Vaswani et al., arXiv 1706.03762, equation 1; groups: Ainslie et al., arXiv 2305.13245, section 2.2; rotary
positions: Su et al., arXiv 2104.09864, equation 34, in the half-split form that released models use.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check, tree, words
from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line

__all__ = ["Attention", "AttentionTrace", "Cache", "frequencies", "rotate"]

Array = np.ndarray


class AttentionTrace(NamedTuple):
    """What `Attention.vjp` reads.

    x (n, d); queries Q (B, G, q T, c), over sqrt(c) and turned; keys K and values V (B, G, T, c), keys turned;
    probabilities P (B, G, q T, T); heads O (n, H c).
    """

    x: Array
    Q: Array
    K: Array
    V: Array
    P: Array
    O: Array  # noqa: E741  the letter of "output of the heads"

    def __repr__(self) -> str:
        return one_line(self)


class Cache(NamedTuple):
    """Keys (B, G, T, c), turned, and values (B, G, T, c) of the tokens that were read."""

    K: Array
    V: Array

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class Attention:
    """y = concat_h(softmax(Q_h K_g^T / sqrt(c) + mask) V_g) Wo^T, each token reading itself and those before it.

    Parameters
    ----------
    Wq, Wk, Wv, Wo : arrays (H c, d), (G c, d), (G c, d), (d, H c).
    heads : H.
    groups : G, a divisor of H; queries h q .. h q + q - 1 read the keys of group h.
    rotary : base of the rotary positions (theta), their frequencies themselves (c/2 numbers), or None without.
    bq, bk, bv, bo : arrays (H c,), (G c,), (G c,), (d,), or None.

    Raises
    ------
    ValueError, TypeError : if shapes, heads and groups do not fit together or arrays are not floats.

    Examples
    --------
    The first token of a sequence reads itself alone:

    >>> eye = np.eye(2)
    >>> one_head = Attention(eye, eye, eye, eye, heads=1, groups=1)
    >>> one_head.forward(np.array([[1.0, 0.0], [0.0, 1.0]]))[0].round(3)
    array([[1.  , 0.  ],
           [0.33, 0.67]])
    """

    Wq: Array
    Wk: Array
    Wv: Array
    Wo: Array
    heads: int
    groups: int
    rotary: float | tuple[float, ...] | None = None
    bq: Array | None = None
    bk: Array | None = None
    bv: Array | None = None
    bo: Array | None = None

    def __post_init__(self) -> None:
        Hc, d = check.shaped("Wq", self.Wq, ("H c", "d"), "Attention").shape
        H = check.integer("heads", self.heads, 1, of="Attention")
        G = check.integer("groups", self.groups, 1, H, f"{H} heads")
        if H % G or Hc % H:
            raise ValueError(
                f"expected groups that divide heads, and heads that divide the rows of Wq; got {G} groups, {H} heads "
                f"and {Hc} rows"
            )
        c = Hc // H
        check.widths("Attention", d=d, c=c)
        for name, shape in (("Wk", (G * c, d)), ("Wv", (G * c, d)), ("Wo", (d, Hc))):
            check.shaped(name, getattr(self, name), shape, "Attention")
        for name, width in (("bq", Hc), ("bk", G * c), ("bv", G * c), ("bo", d)):
            if getattr(self, name) is not None:
                check.shaped(name, getattr(self, name), (width,), "Attention")
        if self.rotary is not None:
            if c % 2:
                raise ValueError(f"expected heads of even width, which rotary positions pair up; got width {c}")
            if not isinstance(self.rotary, tuple):
                check.positive("rotary", self.rotary)
            elif len(self.rotary) != c // 2:
                raise ValueError(f"expected {c // 2} rotary frequencies for heads of width {c}; got {len(self.rotary)}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, d)."""
        return self.Wq.shape[1], self.Wo.shape[0]

    @property
    def head(self) -> int:
        """c, the width of a head."""
        return len(self.Wq) // self.heads

    def forward(self, x: Array, length: int | None = None) -> tuple[Array, AttentionTrace]:
        """x (n, d) -> y (n, d) and what `vjp` reads; `length` is T, all of x unless given."""
        x = check.matrix("x", x, self.Wq.shape[1], "this attention")
        T = _length(len(x), length)
        Q, K, V = self._read(x, T, 0)
        P = _probabilities(matmul(Q, K.mT), T)  # (B, G, q T, T)
        O = self._flat(matmul(P, V), T)  # (n, H c)  # noqa: E741
        return _affine(O, self.Wo, self.bo), AttentionTrace(x, Q, K, V, P, O)

    def vjp(self, trace: AttentionTrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "Attention"]:
        """dy (n, d) -> dx (n, d) and the gradient, itself an Attention."""
        x, Q, K, V, P, O = trace  # noqa: E741
        dy = check.shaped("dy", dy, (len(x), len(self.Wo)), "this trace")
        T = K.shape[2]
        dO = self._grouped(matmul(dy, self.Wo), T, self.heads)  # (B, G, q T, c)
        dV = matmul(P.mT, dO)  # (B, G, T, c)
        dS = matmul(dO, V.mT)  # (B, G, q T, T), first of P, then of the scores: p (dp - <p, dp>)
        dS -= np.einsum("bgtc,bgtc->bgt", dO, self._grouped(O, T, self.heads))[..., None]
        dS *= P
        dQ, dK = matmul(dS, K), matmul(dS.mT, Q)
        dQ *= dQ.dtype.type(self.head**-0.5)
        flat = [self._flat(d_, T) for d_ in (self._turned(dQ, T, 0, -1), self._turned(dK, T, 0, -1), dV)]
        weights = (("Wq", "bq", self.Wq), ("Wk", "bk", self.Wk), ("Wv", "bv", self.Wv))
        found: dict[str, Array | None] = {"Wo": matmul(dy.T, O), "bo": None if self.bo is None else dy.sum(axis=0)}
        dx = np.zeros_like(x) if wrt_x else None
        for (W_name, b_name, W), dz in zip(weights, flat, strict=True):
            found[W_name] = matmul(dz.T, x)
            found[b_name] = None if getattr(self, b_name) is None else dz.sum(axis=0)
            if dx is not None:
                dx += matmul(dz, W)
        return dx, tree.alike(self, **found)

    def extend(self, x: Array, cache: Cache | None) -> tuple[Array, Cache]:
        """The next tokens of B sequences, x (B, t, d) -> y (B, t, d), and the cache with their keys and values."""
        B, t, d = check.shaped("x", x, ("B", "t", self.Wq.shape[1]), "this attention").shape
        before = 0 if cache is None else cache.K.shape[2]
        Q, K, V = self._read(x.reshape(B * t, d), t, before)
        if cache is not None:
            K, V = np.concatenate([cache.K, K], axis=2), np.concatenate([cache.V, V], axis=2)
        P = _probabilities(matmul(Q, K.mT), t)
        y = _affine(self._flat(matmul(P, V), t), self.Wo, self.bo)
        return y.reshape(B, t, -1), Cache(K, V)

    def jacobian(self, x: Array) -> Array:
        """Every output of one sequence in every input, (T, d, T, d): J[t, o, s, i] = dy_to / dx_si, zero for s > t.

        Row by row of the vjp: for small sizes, to look at and to test.
        """
        y, trace = self.forward(check.finite("x", x))
        J = np.empty((*y.shape, *x.shape), y.dtype)
        for t, o in np.ndindex(*y.shape):
            dy = np.zeros_like(y)
            dy[t, o] = 1
            J[t, o] = self.vjp(trace, dy)[0]
        return J

    def _read(self, x: Array, T: int, start: int) -> tuple[Array, Array, Array]:
        """Queries over sqrt(c) and keys, both turned, and values."""
        Q = self._grouped(_affine(x, self.Wq, self.bq), T, self.heads)
        Q *= Q.dtype.type(self.head**-0.5)
        K = self._grouped(_affine(x, self.Wk, self.bk), T, self.groups)
        V = self._grouped(_affine(x, self.Wv, self.bv), T, self.groups)
        return self._turned(Q, T, start, 1), self._turned(K, T, start, 1), V

    def _grouped(self, z: Array, T: int, heads: int) -> Array:
        """(n, heads c) -> (B, G, (heads/G) T, c): a group's queries stand under one another."""
        B, G = len(z) // T, self.groups
        return np.ascontiguousarray(z.reshape(B, T, heads, -1).swapaxes(1, 2)).reshape(B, G, heads // G * T, -1)

    def _flat(self, z: Array, T: int) -> Array:
        """(B, G, r T, c) -> (n, G r c), the inverse of `_grouped`."""
        B, _, _, c = z.shape
        return np.ascontiguousarray(z.reshape(B, -1, T, c).swapaxes(1, 2)).reshape(B * T, -1)

    def _turned(self, z: Array, T: int, start: int, sign: int) -> Array:
        """Rotary positions start, start + 1, ...; with sign -1 turned back, which is the vjp of turning."""
        if self.rotary is None:
            return z
        heads = z.reshape(*z.shape[:2], -1, T, z.shape[3])
        return rotate(heads, self.rotary, start, sign).reshape(z.shape)

    @words.never_raises
    def __repr__(self) -> str:
        parts = [f"{self.heads} heads of {self.head}"]
        parts += [f"{self.groups} groups"] * (self.groups != self.heads)
        if self.rotary is not None:
            parts.append("rotary by frequencies" if isinstance(self.rotary, tuple) else f"rotary {self.rotary:g}")
        return f"Attention({self.Wq.shape[1]}: {', '.join(parts)}, {words.dtype_of(tree.leaves(self))})"


def frequencies(theta: float, c: int) -> Array:
    """theta^(-2 i/c), the angle by which a token's pair i is turned for each position, (c/2,)."""
    return theta ** (-np.arange(0, c, 2) / c)


def rotate(z: Array, theta: float | tuple[float, ...], start: int = 0, sign: int = 1) -> Array:
    """Turn each pair (z_i, z_{i + c/2}) of the token at position p by the angle p theta^(-2 i/c), (..., T, c).

    In the place of theta stand the frequencies themselves, where a model has others.

    Examples
    --------
    Inner products depend on the difference of positions alone:

    >>> a, b = np.array([[1.0, 2.0]]), np.array([[0.5, -1.0]])
    >>> near, far = ((rotate(a, 1e4, p) * rotate(b, 1e4, p + 3)).sum() for p in (0, 40))
    >>> bool(np.isclose(near, far))
    True
    """
    cos, sin = _angles(z.shape[-2], z.shape[-1], theta, start, z.real.dtype)
    low, high = np.split(z, 2, axis=-1)
    out = np.empty_like(z)
    half = z.shape[-1] // 2
    np.multiply(low, cos, out=out[..., :half])
    np.multiply(high, cos, out=out[..., half:])
    out[..., :half] -= sign * sin * high
    out[..., half:] += sign * sin * low
    return out


@lru_cache(maxsize=64)
def _angles(T: int, c: int, theta: float | tuple[float, ...], start: int, dtype: np.dtype) -> tuple[Array, Array]:
    """cos and sin (T, c/2), computed in float64."""
    rate = np.array(theta) if isinstance(theta, tuple) else frequencies(theta, c)
    angle = np.arange(start, start + T)[:, None] * rate
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


@lru_cache(maxsize=16)
def _mask(t: int, T: int, dtype: np.dtype) -> Array:
    """(t, T), -inf where a key is later than the query, else 0: the t queries are the last of T tokens.

    Not a large negative number: what is later has probability exactly 0.
    """
    return np.where(np.arange(T) > np.arange(T - t, T)[:, None], -np.inf, 0).astype(dtype)


def _probabilities(S: Array, t: int) -> Array:
    """Softmax over the keys that are not later than each query, in place: S (B, G, q t, T)."""
    B, G, qt, T = S.shape
    rows = S.reshape(B, G, qt // t, t, T)
    if t > 1:
        rows += _mask(t, T, S.real.dtype)
    S -= S.real.max(axis=-1, keepdims=True)
    np.exp(S, out=S)
    S /= S.sum(axis=-1, keepdims=True)
    return S


def _affine(x: Array, W: Array, b: Array | None) -> Array:
    z = matmul(x, W.T)
    if b is not None:
        z += b
    return z


def _length(n: int, length: int | None) -> int:
    """T: sequences of one length, of which n tokens are a whole number."""
    if length is None:
        return n
    T = check.integer("length", length, 1)
    if n % T:
        raise ValueError(f"expected a whole number of sequences of {T} tokens; got {n} tokens")
    return T
