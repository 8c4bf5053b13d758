"""Each layer once more, on numbers that carry their rounding: output, gradient, Jacobian and a bound for each.

n tokens, d width, h hidden, o output width, E experts, k experts a token, t terms of an expert's Jacobian,
J = L (sum_t diag(S_t) R_t). The values are a second route to what the layers compute; the errors,
at worst or as a rule, are what `npmoe.verify.compare` allows.
"""

from collections.abc import Iterator
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.scalar import softmax
from npmoe.calculus.words import one_line
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import LayerNorm, Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.model.routing import mask, top_k
from npmoe.verify.rounding import Rounded, Rounding

__all__ = [
    "Jacobians",
    "forward",
    "gates",
    "inputs_of",
    "jacobian",
    "leaf_names",
    "mean_jacobian",
    "scores",
    "terms",
    "vjp",
]

Array = np.ndarray
Gradients = dict[str, Rounded]


class Jacobians(NamedTuple):
    """Stack of Jacobians (n, o, d): value, error, and the size of what was summed, entry by entry."""

    value: Array
    error: Array
    size: Array

    def __repr__(self) -> str:
        return one_line(self)


def _unknown(layer: Any) -> TypeError:
    known = "GeluExpert, SwigluExpert, MoE, Linear, RMSNorm, LayerNorm, Residual or Stack"
    return TypeError(f"expected a layer whose rounding is known, {known}; got {type(layer).__name__}")


def check_known(layer: Any) -> None:
    """Raise a TypeError for a layer with a gate or experts whose rounding is not known."""
    if isinstance(layer, MoE):
        if not layer.plain:
            raise TypeError(f"expected a mixture whose rounding is known, of softmax gates; got {layer!r}")
        for expert in layer.experts:
            check_known(expert)
    elif isinstance(layer, SwigluExpert) and not layer.plain:
        raise TypeError("expected a SwigluExpert whose rounding is known; got one with biases, a limit or a shift")
    elif isinstance(layer, Residual):
        check_known(layer.layer)
    elif isinstance(layer, Stack):
        for part in layer.layers:
            check_known(part)


@singledispatch
def forward(layer: Any, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    """Output (n, o) of a layer at x (n, d); `chosen` (n, k) stands in for the choice of a `MoE`."""
    raise _unknown(layer)


@singledispatch
def vjp(layer: Any, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    """dy (n, o) -> dx (n, d) and the gradients of the leaves by name."""
    raise _unknown(layer)


@singledispatch
def jacobian(layer: Any, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    """Jacobians (n, o, d)."""
    raise _unknown(layer)


def mean_jacobian(
    layer: Any, x: Rounded, r: Rounding, weights: Array | None = None, chosen: Array | None = None
) -> Rounded:
    """Weighted mean over tokens, (o, d): of the Jacobians as they are, or of slopes before any product."""
    J = jacobian(layer, x, r, chosen)
    w = np.ones(len(x.value)) if weights is None else np.asarray(weights, np.float64)
    w = (w / w.max()) / (w / w.max()).sum()

    def mean(a: Array) -> Array:
        return np.einsum("n,nod->od", w, a)

    # the weights are rounded, their sum is, and so is the sum over tokens
    sums = (2 * r.growth(len(w), plain=True) + 3 * r.u) * mean(J.size)
    return r.stored(mean(J.value), r.join(r.total(w[:, None, None] * J.error, 0), sums))


# ---- products that experts share -----------------------------------------------------------------------------------


class _Terms(NamedTuple):
    """An expert at x: hidden values a (n, h), L (o, h), terms S_t (n, h) with R_t (h, d), and its leaves' names."""

    a: Rounded
    L: Rounded
    S: tuple[Rounded, ...]
    R: tuple[Rounded, ...]
    leaves: dict[str, Any]


def _terms(expert: GeluExpert | SwigluExpert, x: Rounded, r: Rounding) -> _Terms:
    if isinstance(expert, GeluExpert):
        W1, W2 = r.given(expert.W1), r.given(expert.W2)
        z = r.plus(r.product(x, W1.T), r.given(expert.b1))  # (n, h)
        a, slope = r.activation(expert.activation, z)
        return _Terms(a, W2, (slope,), (W1,), {"R": ("W1",), "L": "W2", "inner": "b1", "outer": "b2"})
    Wg, Wu, Wd = r.given(expert.Wg), r.given(expert.Wu), r.given(expert.Wd)
    b, slope = r.activation("silu", r.product(x, Wg.T))  # (n, h)
    u = r.product(x, Wu.T)  # (n, h)
    return _Terms(r.times(b, u), Wd, (r.times(slope, u), b), (Wg, Wu), {"R": ("Wg", "Wu"), "L": "Wd"})


def _expert_forward(expert: GeluExpert | SwigluExpert, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    t = _terms(expert, x, r)
    y = r.product(t.a, t.L.T)
    return r.plus(y, r.given(expert.b2)) if isinstance(expert, GeluExpert) else y


def _expert_vjp(
    expert: GeluExpert | SwigluExpert, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None
) -> tuple[Rounded, Gradients]:
    t = _terms(expert, x, r)
    da = r.product(dy, t.L)  # (n, h)
    dz = [r.times(da, S) for S in t.S]  # (n, h) each
    parts = [r.product(dz_t, R) for dz_t, R in zip(dz, t.R, strict=True)]  # (n, d) each
    dx = parts[0] if len(parts) == 1 else r.plus(*parts)
    grads = {name: r.product(dz_t.T, x) for name, dz_t in zip(t.leaves["R"], dz, strict=True)}
    grads[t.leaves["L"]] = r.product(dy.T, t.a)
    if "inner" in t.leaves:
        grads |= {t.leaves["inner"]: r.sum(dz[0], 0), t.leaves["outer"]: r.sum(dy, 0)}
    return dx, grads


def _expert_jacobian(
    expert: GeluExpert | SwigluExpert, x: Rounded, r: Rounding, chosen: Array | None = None
) -> Jacobians:
    return _dense(_terms(expert, x, r), None, r)


def _dense(t: _Terms, g: Rounded | None, r: Rounding) -> Jacobians:
    """sum_t g L diag(S_t) R_t for every token, with gates g (n,) or without."""
    n, (o, h), d = len(t.a.value), t.L.value.shape, t.R[0].value.shape[1]
    value, size = np.zeros((2, n, o, d))
    errors: list[Array] = []
    L = np.abs(t.L.value)
    # the sum over h, that over the terms, and a product with a slope and with a gate on the way
    cost = r.growth(h * len(t.S)) + 4 * r.u
    for S, R in zip(t.S, t.R, strict=True):
        s, es, W = np.abs(S.value), S.error, np.abs(R.value)
        value += (product := t.L.value @ (S.value[:, :, None] * R.value))
        size += (part := r.size(L, s[:, :, None] * W, product))
        errors += [
            cost * part,
            r.through(L + t.L.error, es[:, :, None] * (W + R.error)),
            r.through(t.L.error, s[:, :, None] * (W + R.error)),
            r.through(L, s[:, :, None] * R.error),
        ]
    error = r.join(*errors)
    if g is not None:  # one gate for all of a token's Jacobian: what it is off by does not average out over h
        gate, away = np.abs(g.value)[:, None, None], g.error[:, None, None]
        error = r.join(gate * error, away * (np.abs(value) if r.usual else size + error))
        value, size = g.value[:, None, None] * value, gate * size
    return Jacobians(*r.stored(value, error), size)


for _kind in (GeluExpert, SwigluExpert):
    forward.register(_kind)(_expert_forward)
    vjp.register(_kind)(_expert_vjp)
    jacobian.register(_kind)(_expert_jacobian)


# ---- the mixture ---------------------------------------------------------------------------------------------------


class _Routed(NamedTuple):
    """scores (n, E), q (n, E), on (n, E), gates (n, E), router (E, d), over the temperature where it enters J.

    `off` (n, E) is what a softmax over all has where nothing was chosen, if gates are renormalized: written that way,
    what should cancel there leaves its rounding, `leak` times as much.
    """

    scores: Rounded
    q: Rounded
    on: Array
    gates: Rounded
    router: Rounded
    off: Array
    leak: float


def scores(moe: MoE, x: Rounded, r: Rounding) -> Rounded:
    """Scores over the temperature, (n, E)."""
    s = r.product(x, r.given(moe.router).T)
    if moe.bias is not None:
        s = r.plus(s, r.given(moe.bias))
    return r.scaled(s, 1 / moe.temperature) if moe.temperature != 1 else s


def gates(moe: MoE, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    """Gates (n, E)."""
    return _routed(moe, x, r, chosen).gates


def _routed(moe: MoE, x: Rounded, r: Rounding, chosen: Array | None) -> _Routed:
    s = scores(moe, x, r)
    chosen = top_k(s.value, moe.k) if chosen is None else chosen
    on = mask(chosen, s.value.shape[1])  # (n, E)
    q = r.softmax(s, on if moe.renormalize else None)
    off = ~on * softmax(s.value) if moe.renormalize else np.zeros(s.value.shape)
    leak = 2 * r.growth(len(moe.experts), plain=True) + 6 * r.u
    return _Routed(s, q, on, Rounded(on * q.value, on * q.error), r.given(moe.router), off, leak)


def _visits(moe: MoE, routed: _Routed) -> Iterator[tuple[int, Any, Array]]:
    """Number, expert and rows of the experts that any token visits."""
    for e, expert in enumerate(moe.experts):
        if len(rows := np.flatnonzero(routed.on[:, e])):
            yield e, expert, rows


def _outputs(moe: MoE, x: Rounded, routed: _Routed, r: Rounding) -> Rounded:
    """Outputs of the chosen experts, (n, E, o); 0 where not chosen."""
    F, eF = np.zeros((2, len(x.value), len(moe.experts), moe.widths[1]))
    for e, expert, rows in _visits(moe, routed):
        F[rows, e], eF[rows, e] = forward(expert, x.at(rows), r)
    return Rounded(F, eF)


@forward.register
def _(moe: MoE, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    routed = _routed(moe, x, r, chosen)
    F, g = _outputs(moe, x, routed, r), routed.gates
    gated = r.times(Rounded(g.value[..., None], g.error[..., None]), F)  # (n, E, o)
    return r.sum(gated, 1)


@vjp.register
def _(moe: MoE, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    routed = _routed(moe, x, r, chosen)
    F, g, q, on = _outputs(moe, x, routed, r), routed.gates, routed.q, routed.on
    dgates = r.sum(r.times(Rounded(dy.value[:, None], dy.error[:, None]), F), 2)  # (n, E), 0 where not on
    dgates = Rounded(on * dgates.value, on * dgates.error)
    mean = r.sum(r.times(q, dgates), 1, keepdims=True)  # (n, 1)
    ds = r.times(q, r.minus(dgates, mean))  # (n, E)
    cancels = (q.value * np.abs(dgates.value)).sum(axis=1, keepdims=True)  # (n, 1)
    ds = Rounded(ds.value, r.join(ds.error, routed.leak * routed.off * cancels))
    ds = r.scaled(ds, 1 / moe.temperature) if moe.temperature != 1 else ds
    through_router = r.product(ds, routed.router)  # (n, d)
    dx, edx = through_router.value, through_router.error
    grads: Gradients = {"router": r.product(ds.T, x)}
    if moe.bias is not None:
        grads["bias"] = r.sum(ds, 0)
    for e, expert in enumerate(moe.experts):
        rows = np.flatnonzero(on[:, e])
        g_e = Rounded(g.value[rows, e, None], g.error[rows, e, None])
        dx_e, grads_e = vjp(expert, x.at(rows), r.times(g_e, dy.at(rows)), r)
        dx[rows] += dx_e.value
        edx[rows] = r.join(edx[rows], dx_e.error, r.growth(moe.k + 1, plain=True) * np.abs(dx_e.value))
        grads |= {f"experts.{e}.{name}": grad for name, grad in grads_e.items()}
    return r.stored(dx, edx), grads


@jacobian.register
def _(moe: MoE, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    experts, router = terms(moe, x, r, chosen)
    sums = 2 * r.u * (np.abs(experts.value) + np.abs(router.value))
    error = r.join(experts.error, router.error, sums)
    return Jacobians(experts.value + router.value, error, experts.size + router.size)


def terms(moe: MoE, x: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Jacobians, Jacobians]:
    """The two terms of a mixture's Jacobian, sum_e g_e J_e and sum_e f_e dg_e^T, (n, o, d) each."""
    routed = _routed(moe, x, r, chosen)
    n, (d, o) = len(x.value), moe.widths
    value, error, size = np.zeros((3, n, o, d))
    for e, expert, rows in _visits(moe, routed):
        J = _dense(_terms(expert, x.at(rows), r), routed.gates.at((rows, e)), r)
        value[rows] += J.value
        error[rows] = r.join(error[rows], J.error)
        size[rows] += J.size
    error = r.join(error, r.growth(moe.k, plain=True) * size)
    return Jacobians(value, error, size), _router_term(moe, _outputs(moe, x, routed, r), routed, r)


def _router_term(moe: MoE, F: Rounded, routed: _Routed, r: Rounding) -> Jacobians:
    """sum_e f_e g_e (w_e - sum_j q_j w_j)^T / temperature; by rows it is sum_e q_e (f_e - sum_j g_j f_j) w_e^T.

    Both ways of summing have the same absolute values, sum_e g_e |f_e| |w_e|^T + (sum_e g_e |f_e|) (sum_j q_j |w_j|)^T.
    """
    g, q, W = routed.gates, routed.q, routed.router

    T = moe.temperature
    FA, gA, qA, WA = np.abs(F.value), g.value, q.value, np.abs(W.value)

    def both(F: Array, g: Array, q: Array, W: Array) -> Array:
        """Both sums with one of the four an error, (n, o, d); over experts and then over inputs, as `through` adds."""
        first = r.through((g[:, :, None] * F).transpose(0, 2, 1), W)
        gated = r.through(g[:, None], F)  # (n, 1, o)
        return r.join(first, gated.transpose(0, 2, 1) * r.through(q, W)[:, None]) / T

    mean = qA @ W.value  # (n, d)
    weighted = gA[:, :, None] * (W.value[None] - mean[:, None])  # (n, E, d)
    value = F.value.transpose(0, 2, 1) @ weighted / T
    gated = (gA[:, :, None] * FA).transpose(0, 2, 1)  # (n, o, E)
    every = gated.sum(axis=2, keepdims=True)  # (n, o, 1)
    size = (gated @ WA + every * (qA @ WA)[:, None]) / T
    error = r.join(
        every * (routed.leak * (routed.off @ WA))[:, None] / T,
        (2 * r.growth(len(moe.experts), plain=True) + 6 * r.u) * size,
        both(F.error, gA + g.error, qA + q.error, WA + W.error),
        both(FA, g.error, qA + q.error, WA + W.error),
        every * r.through(q.error, WA + W.error)[:, None] / T,
        both(FA, gA, qA, W.error),
    )
    return Jacobians(*r.stored(value, error), size)


# ---- what stands around a mixture ----------------------------------------------------------------------------------


def _linear(layer: Linear, x: Rounded, r: Rounding) -> tuple[Rounded, Rounded | None]:
    z = r.plus(r.product(x, r.given(layer.W).T), r.given(layer.b))  # (n, o)
    return (z, None) if layer.activation is None else r.activation(layer.activation, z)


@forward.register
def _(layer: Linear, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    return _linear(layer, x, r)[0]


@vjp.register
def _(layer: Linear, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    slope = _linear(layer, x, r)[1]
    dz = dy if slope is None else r.times(dy, slope)
    return r.product(dz, r.given(layer.W)), {"W": r.product(dz.T, x), "b": r.sum(dz, 0)}


@jacobian.register
def _(layer: Linear, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    slope, W = _linear(layer, x, r)[1], r.given(layer.W)
    slope = r.exact(np.ones((len(x.value), len(layer.W)))) if slope is None else slope
    J = r.times(Rounded(slope.value[:, :, None], slope.error[:, :, None]), Rounded(W.value[None], W.error[None]))
    return Jacobians(J.value, J.error, np.abs(J.value))


def _inverse(layer: RMSNorm | LayerNorm, x: Rounded, r: Rounding) -> Rounded:
    """1/r, (n, 1), of x as it is: of a LayerNorm less its mean."""
    square = r.plus(r.scaled(r.sum(r.times(x, x), 1, keepdims=True), 1 / x.value.shape[1]), r.given(layer.eps))
    value = square.value**-0.5
    # 1/r is no more than eps^-1/2, however far the sum of squares is off
    least = np.maximum(1 - float(layer.eps) / square.value, 0.0)
    share = np.minimum(square.error / square.value, np.minimum(least, 1 - 1e-15))
    moved = np.expm1(-0.5 * np.log1p(-share)) if not r.usual else square.error / square.value / 2
    return r.stored(value, value * r.join(moved, r.elementary))


@forward.register
def _(layer: RMSNorm, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    return r.times(r.times(x, _inverse(layer, x, r)), r.given(layer.gamma))


@vjp.register
def _(layer: RMSNorm, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    inverse = _inverse(layer, x, r)
    dgamma = r.sum(r.times(dy, r.times(x, inverse)), 0)
    dhat = r.times(r.times(dy, r.given(layer.gamma)), inverse)  # (n, d)
    mean = r.scaled(r.sum(r.times(dhat, x), 1, keepdims=True), 1 / x.value.shape[1])  # (n, 1)
    back = r.times(x, r.times(r.times(inverse, inverse), mean))
    return r.minus(dhat, back), {"gamma": dgamma}


@jacobian.register
def _(layer: RMSNorm, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    inverse, gamma = _inverse(layer, x, r), r.given(layer.gamma)
    inverse = Rounded(inverse.value[:, :, None], inverse.error[:, :, None])
    column = Rounded(x.value[:, :, None], x.error[:, :, None])
    row = Rounded(x.value[:, None], x.error[:, None])
    outer = r.scaled(r.times(r.times(column, row), r.times(inverse, inverse)), 1 / x.value.shape[1])
    front = r.times(Rounded(gamma.value[:, None], gamma.error[:, None]), inverse)
    J = r.times(front, r.minus(r.exact(np.eye(x.value.shape[1])), outer))
    # where the two cancel, a route that multiplies them out first has rounded each
    size = np.abs(front.value) * (np.eye(x.value.shape[1]) + np.abs(outer.value))
    return Jacobians(J.value, r.join(J.error, 4 * r.u * size), size)


def _mean(a: Rounded, r: Rounding) -> Rounded:
    """Mean over the width, (n, 1)."""
    return r.scaled(r.sum(a, 1, keepdims=True), 1 / a.value.shape[1])


def _normalized(layer: LayerNorm, x: Rounded, r: Rounding) -> tuple[Rounded, Rounded]:
    """xhat (n, d) and 1/sigma (n, 1)."""
    centred = r.minus(x, _mean(x, r))
    inverse = _inverse(layer, centred, r)
    return r.times(centred, inverse), inverse


@forward.register
def _(layer: LayerNorm, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    return r.plus(r.times(_normalized(layer, x, r)[0], r.given(layer.gamma)), r.given(layer.beta))


@vjp.register
def _(layer: LayerNorm, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    xhat, inverse = _normalized(layer, x, r)
    dhat = r.times(dy, r.given(layer.gamma))  # (n, d)
    back = r.plus(_mean(dhat, r), r.times(xhat, _mean(r.times(dhat, xhat), r)))
    gradients = {"gamma": r.sum(r.times(dy, xhat), 0), "beta": r.sum(dy, 0)}
    return r.times(r.minus(dhat, back), inverse), gradients


@jacobian.register
def _(layer: LayerNorm, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    d = x.value.shape[1]
    xhat, inverse = _normalized(layer, x, r)
    gamma = r.given(layer.gamma)
    inverse = Rounded(inverse.value[:, :, None], inverse.error[:, :, None])
    column = Rounded(xhat.value[:, :, None], xhat.error[:, :, None])
    row = Rounded(xhat.value[:, None], xhat.error[:, None])
    outer = r.scaled(r.times(column, row), 1 / d)
    centring = r.given(np.eye(d) - 1 / d)
    front = r.times(Rounded(gamma.value[:, None], gamma.error[:, None]), inverse)
    J = r.times(front, r.minus(centring, outer))
    # where they cancel, a route that multiplies them out first has rounded each
    size = np.abs(front.value) * (np.eye(d) + 1 / d + np.abs(outer.value))
    return Jacobians(J.value, r.join(J.error, 6 * r.u * size), size)


@forward.register
def _(layer: Residual, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    return r.plus(x, forward(layer.layer, x, r))


@vjp.register
def _(layer: Residual, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    dx, grads = vjp(layer.layer, x, dy, r)
    return r.plus(dx, dy), {f"layer.{name}": grad for name, grad in grads.items()}


@jacobian.register
def _(layer: Residual, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    J, eye = jacobian(layer.layer, x, r), np.eye(x.value.shape[1])
    return Jacobians(*r.stored(eye + J.value, r.join(J.error, r.u * np.abs(J.value))), eye + J.size)


def inputs_of(layer: Stack, x: Rounded, r: Rounding) -> list[Rounded]:
    """What each layer of a stack reads."""
    inputs = [x]
    for inner in layer.layers[:-1]:
        inputs.append(forward(inner, inputs[-1], r))
    return inputs


@forward.register
def _(layer: Stack, x: Rounded, r: Rounding, chosen: Array | None = None) -> Rounded:
    return forward(layer.layers[-1], inputs_of(layer, x, r)[-1], r)


@vjp.register
def _(layer: Stack, x: Rounded, dy: Rounded, r: Rounding, chosen: Array | None = None) -> tuple[Rounded, Gradients]:
    grads: Gradients = {}
    inputs = inputs_of(layer, x, r)
    for i in reversed(range(len(inputs))):
        dy, inner = vjp(layer.layers[i], inputs[i], dy, r)
        grads |= {f"layers.{i}.{name}": grad for name, grad in inner.items()}
    return dy, grads


@jacobian.register
def _(layer: Stack, x: Rounded, r: Rounding, chosen: Array | None = None) -> Jacobians:
    inputs = inputs_of(layer, x, r)
    value, error, size = jacobian(layer.layers[0], inputs[0], r)
    for inner, read in zip(layer.layers[1:], inputs[1:], strict=True):
        J = jacobian(inner, read, r)
        # by columns (forward mode) the products are with vectors, so that sizes multiply, not values
        value = J.value @ value
        sums = r.growth(size.shape[1]) * r.size(J.size, size, value)
        errors = r.join(sums, r.through(J.size + J.error, error), r.through(J.error, size))
        size = r.size(J.size, size, value)
        value, error = r.stored(value, errors)
    return Jacobians(value, error, size)


def leaf_names(layer: Any) -> list[str]:
    """Names of the parameters, as `vjp` gives their gradients."""
    return [name for name, _ in tree.named_leaves(layer) if name]
