"""Cross-entropy of next tokens, straight from the states that the head reads, a few rows of logits at a time.

n tokens, d width, V words. Logits of all tokens would be n V numbers, the largest array of a language model by far.
"""

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.calculus.threads import parts

__all__ = ["head_loss", "head_loss_vjp"]

Array = np.ndarray

_PIECE = 1 << 19  # logits that are formed at a time: 2 MB in float32


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
    loss = np.empty(len(h))
    for rows in parts(len(h), _PIECE // len(W)):
        s = matmul(h[rows], W.T)  # (m, V)
        right = s[np.arange(len(s)), targets[rows]]
        loss[rows] = _logsumexp(s)[0] - right
    return loss


def head_loss_vjp(h: Array, W: Array, targets: Array, scale: float) -> tuple[Array, Array, Array]:
    """The losses (n,), and the cotangents of h (n, d) and W (V, d) for `scale` times their sum.

    With p = softmax(W h): dh = scale W^T (p - 1_target), dW = scale sum_n (p - 1_target) h^T. One pass: the logits of
    a few rows become p, then p - 1_target, in the same array.
    """
    targets = _targets(targets, len(h), len(W))
    loss, dh, dW = np.empty(len(h)), np.empty_like(h), np.zeros_like(W)
    work = np.empty_like(W)
    for rows in parts(len(h), _PIECE // len(W)):
        s = matmul(h[rows], W.T)  # (m, V)
        at = np.arange(len(s)), targets[rows]
        right = s[at].real.astype(np.float64)
        lse, total = _logsumexp(s)  # s is now exp(s - max)
        loss[rows] = lse - right
        s *= (scale / total[:, None]).astype(s.dtype)
        s[at] -= s.dtype.type(scale)
        matmul(s, W, out=dh[rows])
        dW += matmul(s.T, h[rows], out=work)
    return loss, dh, dW


def _logsumexp(s: Array) -> tuple[Array, Array]:
    """logsumexp (m,) in float64 and the sums (m,) of exp(s - max), which stands in s afterwards."""
    top = s.max(axis=1)  # (m,)
    s -= top[:, None]
    np.exp(s, out=s)
    total = s.sum(axis=1)
    return np.log(total.astype(np.float64)) + top, total


def _targets(targets: Array, n: int, V: int) -> Array:
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu" or targets.shape != (n,):
        raise ValueError(f"expected targets as integers of shape ({n},); got {targets.dtype} of shape {targets.shape}")
    if n and not (targets.min() >= 0 and targets.max() < V):
        raise ValueError(f"expected targets within 0..{V - 1}; got {targets.min()}..{targets.max()}")
    return targets
