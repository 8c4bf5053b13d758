"""Cross-entropy of next tokens, straight from the states that the head reads, a few rows of logits at a time.

n tokens, d width, V words. Logits of all tokens would be n V numbers, the largest array of a language model by far, and
each pass over them costs as much as a product. So they are formed in pieces, and nothing is done to them but `exp`:
with E = exp(W h - top), p = E / sum E, the sums of p W and of p h^T are taken of E, and divided afterwards.
"""

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.calculus.threads import parts

__all__ = ["head_loss", "head_loss_vjp"]

Array = np.ndarray

_PIECE = 1 << 20  # logits that are formed at a time: 4 MB in float32
_SMALL = 40.0  # logits within this need no shift: exp(40) and its sums are far from float32's ends, 3e38 and 1e-38


def head_loss(h: Array, W: Array, targets: Array) -> Array:
    """-log softmax(W h_n)[target_n] of every token, (n,), float64.

    Parameters
    ----------
    h : array (n, d).
    W : array (V, d).
    targets : integers (n,) within 0..V-1.

    Examples
    --------
    >>> head_loss(np.zeros((1, 3)), np.ones((4, 3)), np.array([2])).round(4) == np.log(4).round(4)
    array([ True])
    """
    targets = _targets(targets, len(h), len(W))
    loss, small = np.empty(len(h)), _are_small(h, W)
    for rows in parts(len(h), _PIECE // len(W)):
        s = matmul(h[rows], W.T)  # (m, V)
        right = s[np.arange(len(s)), targets[rows]].astype(np.float64)
        top, total = _exponentiated(s, small)
        loss[rows] = np.log(total) + top - right
    return loss


def head_loss_vjp(h: Array, W: Array, targets: Array, scale: float) -> tuple[Array, Array, Array]:
    """The losses (n,), and the cotangents of h (n, d) and W (V, d) for `scale` times their sum.

    dh = scale (W^T p - W[target]), dW = scale sum_n (p - 1_target) h_n^T, p = softmax(W h).
    """
    targets = _targets(targets, len(h), len(W))
    loss, dh, dW = np.empty(len(h)), np.empty_like(h), np.zeros_like(W)
    work, small = np.empty_like(W), _are_small(h, W)
    for rows in parts(len(h), _PIECE // len(W)):
        s = matmul(h[rows], W.T)  # (m, V)
        right = s[np.arange(len(s)), targets[rows]].astype(np.float64)
        top, total = _exponentiated(s, small)  # s is E now
        loss[rows] = np.log(total) + top - right
        share = (scale / total).astype(s.dtype)[:, None]  # (m, 1)
        matmul(s, W, out=dh[rows])
        dh[rows] *= share
        dW += matmul(s.T, share * h[rows], out=work)
    dh -= h.dtype.type(scale) * W[targets]
    add_rows(dW, targets, h.dtype.type(-scale) * h)
    return loss, dh, dW


def add_rows(table: Array, at: Array, rows: Array) -> None:
    """table[at[i]] += rows[i], repeated indices added up: sorted first, since ``np.add.at`` is many times slower."""
    order = np.argsort(at, kind="stable")
    found, first = np.unique(at[order], return_index=True)
    if len(found):
        table[found] += np.add.reduceat(rows[order], first, axis=0)


def _are_small(h: Array, W: Array) -> bool:
    """Whether no logit can be beyond `_SMALL`, by |W h| <= |W| |h|."""
    longest = (np.einsum("nd,nd->n", a, a).max(initial=0) for a in (h, W))
    return bool(np.prod([float(square) ** 0.5 for square in longest]) <= _SMALL)


def _exponentiated(s: Array, small: bool) -> tuple[Array, Array]:
    """exp(s - top) in the place of s (m, V); top, 0 where logits are small, and the sums (m,), float64."""
    top = np.zeros(1) if small else s.max(axis=1)  # (m,)
    if not small:
        s -= top[:, None]
    np.exp(s, out=s)
    return top, s.sum(axis=1).astype(np.float64)


def _targets(targets: Array, n: int, V: int) -> Array:
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu" or targets.shape != (n,):
        raise ValueError(f"expected targets as integers of shape ({n},); got {targets.dtype} of shape {targets.shape}")
    if n and not (targets.min() >= 0 and targets.max() < V):
        raise ValueError(f"expected targets within 0..{V - 1}; got {targets.min()}..{targets.max()}")
    return targets
