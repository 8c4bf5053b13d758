"""Routing: scores -> chosen, gates; one code path, whose variants are values of two numbers and a switch.

n tokens, d width, E experts, k experts a token. ``k = E`` is the soft router; ``k = 2, renormalize`` the papers'
top-2 and Mixtral's; ``k = 1, not renormalize`` is Switch. Who is chosen is `chosen`, not ``gates != 0``: a gate can
underflow.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import softmax, softmax_vjp
from npmoe.calculus.words import one_line

__all__ = ["Routing", "gates_jacobian", "mask", "route", "route_vjp", "softmax_over", "top_k"]

Array = np.ndarray

_FEW = 2  # so many maxima are found faster than a row is sorted


class Routing(NamedTuple):
    """gates (n, E); chosen (n, k), best first; on (n, E) bool; and what the gates' derivative is made of.

    dg_e = slope_e ds_e - g_e sum_j q_j ds_j, where the slope is that of the gate by itself: of a softmax it is the gate
    (None), and q the softmax behind the gates. Where each choice has a softmax of its own, q is (n, k, E).
    """

    gates: Array
    chosen: Array
    on: Array
    q: Array
    slope: Array | None = None

    def __repr__(self) -> str:
        return one_line(self)


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k largest scores of each row, best first, (n, E) -> (n, k); ties to the lower index.

    Examples
    --------
    >>> top_k(np.array([[1.0, 3.0, 3.0, 2.0]]), 2)
    array([[1, 2]])
    """
    s = scores.real
    if k <= _FEW and k < s.shape[1] and np.isfinite(s).all():
        return _best(s, k)
    # stable: ties go to the lower expert, or two platforms route differently
    return np.argsort(-s, axis=1, kind="stable")[:, :k]


def _best(s: Array, k: int) -> Array:
    """The first k of a stable sort of finite scores, one maximum after another: argmax takes the lower of equals."""
    left, rows = s.copy(), np.arange(len(s))
    chosen = np.empty((len(s), k), np.intp)
    for i in range(k):
        chosen[:, i] = left.argmax(axis=1)
        left[rows, chosen[:, i]] = -np.inf
    return chosen


def mask(chosen: Array, E: int) -> Array:
    """`chosen` (n, k) as a table of booleans (n, E).

    Examples
    --------
    >>> mask(np.array([[2, 0]]), 3)
    array([[ True, False,  True]])
    """
    on = np.zeros((len(chosen), E), bool)
    np.put_along_axis(on, chosen, True, axis=1)
    return on


def route(scores: Array, k: int, renormalize: bool = True) -> Routing:
    """Gates from scores (n, E) that are already divided by the temperature.

    Examples
    --------
    >>> route(np.log([[1.0, 2.0, 5.0]]), k=2).gates.round(4)
    array([[0.    , 0.2857, 0.7143]])
    >>> route(np.log([[1.0, 2.0, 5.0]]), k=2, renormalize=False).gates.round(4)
    array([[0.   , 0.25 , 0.625]])
    """
    _, E = check.shaped("scores", scores, ("n", "E")).shape
    return softmax_over(scores, top_k(scores, check.integer("k", k, 1, E, f"{E} experts")), renormalize)


def softmax_over(scores: Array, chosen: Array, renormalize: bool) -> Routing:
    """Gates of experts (n, k) that are chosen, however: a softmax over them, the best first, or over all."""
    on = mask(chosen, scores.shape[1])  # (n, E)
    if not renormalize or chosen.shape[1] == scores.shape[1]:
        q = softmax(scores)  # (n, E)
        return Routing(on * q, chosen, on, q)
    # softmax over the chosen, with tokens last: sums over a few long rows are much faster than over many short ones
    rows, of = np.arange(len(scores)), chosen.T  # (n,), (k, n)
    s = scores[rows, of]  # (k, n)
    p = np.exp(s - s.real.max(axis=0))
    p /= p.sum(axis=0)
    q = np.zeros_like(scores)
    q[rows, of] = p
    return Routing(q, chosen, on, q)


def route_vjp(routing: Routing, dgates: Array) -> Array:
    """Cotangent of the scores from that of the gates, (n, E) -> (n, E); the choice itself has no derivative."""
    dgates = routing.on * dgates
    if routing.slope is None and routing.q.ndim == 2:
        return softmax_vjp(routing.q, dgates)
    slope = routing.gates if routing.slope is None else routing.slope
    return slope * dgates - _mean_vjp(routing, routing.gates * dgates)


def _mean_vjp(routing: Routing, weights: Array) -> Array:
    """sum_e weights_e q, of the q that is e's, (n, E)."""
    if routing.q.ndim == 2:
        return weights.sum(axis=1, keepdims=True) * routing.q
    return np.einsum("nk,nke->ne", np.take_along_axis(weights, routing.chosen, axis=1), routing.q)


def gates_jacobian(routing: Routing, W: Array) -> Array:
    """Jacobian of the gates in x where scores = x W^T + bias: W (E, d), already over the temperature -> (n, E, d).

    dg_e = on_e q_e (w_e - sum_j q_j w_j): with gates renormalized q covers the chosen, else all E experts, so that
    rows of the router that were not chosen matter too.
    """
    if routing.q.ndim == 2:
        mean = matmul(routing.q, W)[:, None, :]  # (n, 1, d)
    else:
        mean = np.zeros((*routing.gates.shape, W.shape[1]), np.result_type(routing.q, W))  # (n, E, d)
        np.put_along_axis(mean, routing.chosen[:, :, None], matmul(routing.q, W), axis=1)
    if routing.slope is None:
        return routing.gates[:, :, None] * (W[None] - mean)
    return routing.slope[:, :, None] * W[None] - routing.gates[:, :, None] * mean
