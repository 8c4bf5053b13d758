"""Laws that every layer keeps, over the table of layers in cases.py.

A law takes a layer and its input and asserts; test_planted.py hands the same laws broken layers.
Letters: v a direction over parameters and input at once, w a cotangent of the output.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import (
    ALL,
    BY_NAME,
    COMPLEX_STEP,
    DIFFERENCE,
    EXPERTS,
    FIELD_EXPERTS,
    FIELD_MIXTURES,
    MIXTURES,
    ORDER,
    ROOM,
    ROUNDING,
    SINGLE,
    TRANSPOSE,
    close,
    margin,
    mixtures,
    rows,
    trees_close,
)

from npmoe.calculus import tree

RNG = 20260

STEP = 1e-30  # of the complex step: its square is nothing beside 1
STEPS = 2.0 ** -np.arange(8, 20)  # of the finite differences, largest first


# ---- what the laws are made of -------------------------------------------------------------------------------------


def cotangent(y):
    return np.random.default_rng(RNG).standard_normal(y.shape)


def direction(leaf):
    """Like `leaf`, random, of the size of its typical entry, so that one step suits parameters of every scale."""
    return np.random.default_rng([RNG, leaf.size]).standard_normal(leaf.shape) * (np.median(np.abs(leaf)) or 1.0)


def moved(layer, x, v, dx, step):
    """The layer and its input a step along v and dx."""
    return tree.map_leaves(lambda leaf, to: leaf + step * to, layer, v), x + step * dx


def output(layer, x):
    return layer.forward(x)[0]


def imaginary_part(layer, x):
    with np.errstate(under="ignore"):  # squares of the step, and slopes of what is saturated: meant to be nothing
        return output(layer, x).imag / STEP


def pullback(layer, x, w=None):
    """vjp of a cotangent: dx and the layer's gradient."""
    y, trace = layer.forward(x)
    return layer.vjp(trace, cotangent(y) if w is None else w)


def stays_in_its_cells(layer, x, v, dx, step):
    """No step up to `step` moves any score so far that another set of experts is chosen: the map is smooth there."""
    ends = [moved(layer, x, v, dx, sign * step) for sign in (-1, 1)]
    for here, *there in zip(mixtures(layer, x), *(list(mixtures(*end)) for end in ends), strict=True):
        changes = [np.abs(moe.scores(inner) - here[0].scores(here[1])).max(axis=1) for moe, inner in there]
        assert (margin(*here) > 2 * np.maximum(*changes)).all(), "the step crosses a boundary of the routing"


def converges(exact, difference, scale):
    """Central differences approach `exact`: their error falls as h^2, and the best of them is as good as doubles allow.

    The order alone would let an error of 1e-6 through, the size alone a wrong formula that is nearly right.
    """
    errors = np.array([np.abs(difference(h) - exact).max() for h in STEPS]) / scale
    assert errors.min() < DIFFERENCE, f"best difference is off by {errors.min():.1e}"
    clean = errors > 1e3 * np.finfo(float).eps / STEPS  # the rest is rounding
    if clean[:4].all():  # a polynomial of degree two has no error of order h^2
        orders = np.log2(errors[:3] / errors[1:4])
        assert np.abs(orders - 2).max() < ORDER, f"the error falls with orders {orders}"


# ---- derivatives ---------------------------------------------------------------------------------------------------


def transpose(layer, x):
    """<vjp(w), v> = <w, J v>, for every token and entry: backward reads the Jacobian from the left."""
    w = cotangent(output(layer, x))
    J = layer.jacobian(x)
    close(pullback(layer, x, w)[0], np.einsum("no,nod->nd", w, J), TRANSPOSE)


def complex_step(layer, x):
    """Along one random direction over all parameters and the input: f(theta + i h v) = f + i h J v, exactly."""
    v, dx = tree.map_leaves(direction, layer), direction(x)
    Jv = imaginary_part(*moved(layer, x, v, dx, 1j * STEP))
    w = cotangent(Jv)
    xbar, bar = pullback(layer, x, w)
    terms = np.concatenate([(tree.flatten(bar) * tree.flatten(v)), (xbar * dx).ravel()])
    close((w * Jv).sum(), terms.sum(), COMPLEX_STEP, scale=np.linalg.norm(terms))


def complex_step_of_jacobian(layer, x):
    """The same for the Jacobian, column by column: a wrong row of one token has nowhere to hide."""
    columns = [imaginary_part(layer, x + 1j * STEP * e) for e in np.eye(x.shape[1])]
    close(layer.jacobian(x), np.stack(columns, axis=2), COMPLEX_STEP)


def gradient(layer, x):
    """The gradient of <w, y> along one random direction over all parameters and the input, by finite differences."""
    v, dx = tree.map_leaves(direction, layer), direction(x)
    stays_in_its_cells(layer, x, v, dx, STEPS[0])
    w = cotangent(output(layer, x))
    xbar, bar = pullback(layer, x, w)
    terms = np.concatenate([(tree.flatten(bar) * tree.flatten(v)), (xbar * dx).ravel()])

    def difference(h):
        plus, minus = (output(*moved(layer, x, v, dx, s * h)) for s in (1, -1))
        return (w * (plus - minus)).sum() / (2 * h)

    converges(terms.sum(), difference, np.linalg.norm(terms))


def taylor(layer, x):
    """y(x + h dx) - y(x - h dx) = 2 h J dx + O(h^3), token by token."""
    dx, still = direction(x), tree.map_leaves(np.zeros_like, layer)
    stays_in_its_cells(layer, x, still, dx, STEPS[0])
    Jdx = np.einsum("nod,nd->no", layer.jacobian(x), dx)
    converges(Jdx, lambda h: (output(layer, x + h * dx) - output(layer, x - h * dx)) / (2 * h), np.abs(Jdx).max())


def parameters_only(layer, x):
    """vjp with wrt_x=False gives no dx and the same gradient."""
    y, trace = layer.forward(x)
    nothing, bar = layer.vjp(trace, cotangent(y), wrt_x=False)
    assert nothing is None
    trees_close(bar, pullback(layer, x)[1], 0)


# ---- tokens do not know of each other ------------------------------------------------------------------------------


def batch_equals_its_rows(layer, x):
    y, w, J = output(layer, x), cotangent(output(layer, x)), layer.jacobian(x)
    xbar, bar = pullback(layer, x, w)
    each = [slice(i, i + 1) for i in range(len(x))]
    close(np.vstack([output(layer, x[i]) for i in each]), y, ROUNDING)
    close(np.vstack([layer.jacobian(x[i]) for i in each]), J, ROUNDING)
    pulled = [pullback(layer, x[i], w[i]) for i in each]
    close(np.vstack([dx for dx, _ in pulled]), xbar, ROUNDING)
    total = tree.map_leaves(lambda *leaves: sum(leaves[1:]), layer, *(dlayer for _, dlayer in pulled))
    sizes = tree.map_leaves(lambda *leaves: sum(map(np.abs, leaves[1:])), layer, *(dlayer for _, dlayer in pulled))
    trees_close(total, bar, ROUNDING, scale=sizes)


def permuted_tokens(layer, x):
    order = np.random.default_rng(RNG).permutation(len(x))
    w = cotangent(output(layer, x))
    close(output(layer, x[order]), output(layer, x)[order], ROUNDING)
    close(layer.jacobian(x[order]), layer.jacobian(x)[order], ROUNDING)
    (xbar, bar), (xbar_p, bar_p) = pullback(layer, x, w), pullback(layer, x[order], w[order])
    close(xbar_p, xbar[order], ROUNDING)
    trees_close(bar_p, bar, ROUNDING)


def no_tokens(layer, x):
    """An empty batch has empty outputs and a gradient of zeros."""
    d, o = layer.widths[0], layer.widths[-1]
    xbar, bar = pullback(layer, x[:0])
    assert output(layer, x[:0]).shape == (0, o)
    assert layer.jacobian(x[:0]).shape == (0, o, d)
    assert xbar.shape == (0, d)
    assert not tree.flatten(bar).any()


# ---- nothing is written to, nothing changes its kind ----------------------------------------------------------------


def locked(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def writes_to_nothing(layer, x):
    """All of it works on arrays that cannot be written to, twice with the same result, and the trace survives vjp."""
    layer, x = tree.map_leaves(locked, layer), locked(x)
    y, trace = layer.forward(x)
    w = locked(cotangent(y))
    first, second = layer.vjp(trace, w), layer.vjp(trace, w)
    close(second[0], first[0], 0)
    trees_close(second[1], first[1], 0)
    close(layer.jacobian(x), layer.jacobian(x), 0)
    assert not any(np.shares_memory(leaf, x) for leaf in (y, first[0], *tree.leaves(first[1])))


def keeps_float32(layer, x):
    """float32 in, float32 out, everywhere; and near the float64 numbers."""
    small, x32 = tree.map_leaves(lambda leaf: leaf.astype(np.float32), layer), x.astype(np.float32)
    layer, x = tree.map_leaves(lambda leaf: leaf.astype(np.float64), small), x32.astype(np.float64)  # the same numbers
    (y32, trace), w = small.forward(x32), cotangent(output(layer, x)).astype(np.float32)
    (xbar32, bar32), (xbar, bar) = small.vjp(trace, w), pullback(layer, x, w.astype(np.float64))
    J32 = small.jacobian(x32)
    assert {array.dtype for array in (y32, xbar32, J32, *tree.leaves(bar32))} == {np.dtype(np.float32)}
    close(y32, output(layer, x), SINGLE)
    close(J32, layer.jacobian(x), SINGLE)
    close(xbar32, xbar, SINGLE)
    trees_close(bar32, bar, SINGLE)


# ---- experts -------------------------------------------------------------------------------------------------------


def jvp_is_the_jacobian(expert, x):
    dx = direction(x)
    close(expert.jvp(x, dx), np.einsum("nod,nd->no", expert.jacobian(x), dx), ROUNDING)


def mean_is_the_mean(expert, x):
    """The closed form against the average of the dense Jacobians, weighted and not."""
    J, w = expert.jacobian(x), 0.1 + np.random.default_rng(RNG).random(len(x))
    close(expert.mean_jacobian(x), J.mean(axis=0), ROUNDING, scale=np.abs(J).max())
    close(expert.mean_jacobian(x, w), np.einsum("n,nod->od", w / w.sum(), J), ROUNDING, scale=np.abs(J).max())


def whole_weights_repeat_rows(expert, x):
    """A weight of 3 is the row three times; a weight of 0 is no row, whatever stands in it."""
    counts = np.arange(len(x)) % 4 + (len(x) == 1)
    repeated = expert.mean_jacobian(np.repeat(x, counts, axis=0))
    J = expert.jacobian(x)
    close(expert.mean_jacobian(x, counts.astype(float)), repeated, ROUNDING, scale=np.abs(J).max())
    close(expert.mean_jacobian(x[counts > 0], counts[counts > 0].astype(float)), repeated, ROUNDING, np.abs(J).max())


def weights_have_no_unit(expert, x):
    w = 0.1 + np.random.default_rng(RNG).random(len(x))
    for unit in (1e-300, 1e308):  # whose sum is no number any more
        close(expert.mean_jacobian(x, unit * w), expert.mean_jacobian(x, w), ROUNDING)


def factors_are_the_jacobian(expert, x):
    """`linearize` holds the same numbers as the Jacobian, in float32 as well."""
    close(expert.linearize(x).dense(), expert.jacobian(x), ROUNDING)
    small, x32 = tree.map_leaves(lambda leaf: leaf.astype(np.float32), expert), x.astype(np.float32)
    J = small.linearize(x32)
    leading, v = J.leading(), np.ones_like(x32)
    products = (J.dense(), J.apply(v), J.apply_transpose(J.apply(v)), J.mean(), J.frobenius(), J.singular_values())
    assert {a.dtype for a in (*products, leading.values, leading.residual)} == {np.dtype(np.float32)}
    assert {a.dtype for a in (small.jvp(x32, x32), small.mean_jacobian(x32))} == {np.dtype(np.float32)}


# ---- mixtures ------------------------------------------------------------------------------------------------------


def relabelled_experts(moe, x):
    """Experts have no order: renumber them with their rows of the router, and nothing else changes.

    Where scores tie the lower index is chosen, so tied experts keep their order among themselves.
    """
    s = moe.scores(x)
    order = np.random.default_rng(RNG).permutation(len(moe.experts))
    if moe.gate.groups is not None:  # groups have no order either, but keep their members
        groups = np.arange(len(order)).reshape(moe.gate.groups.number, -1)
        order = groups[np.random.default_rng(RNG).permutation(len(groups))].ravel()
    tied = [{e, f} for e in range(len(order)) for f in range(e) if (s[:, e] == s[:, f]).any()]
    for pair in tied:
        at = [i for i, e in enumerate(order) if e in pair]
        order[at] = sorted(order[at])
    bias = None if moe.bias is None else moe.bias[order]
    gate = moe.gate if moe.gate.selection is None else replace(moe.gate, selection=moe.gate.selection[order])
    other = replace(moe, router=moe.router[order], bias=bias, experts=tuple(moe.experts[e] for e in order), gate=gate)
    w = cotangent(output(moe, x))
    (xbar, bar), (xbar_o, bar_o) = pullback(moe, x, w), pullback(other, x, w)
    close(output(other, x), output(moe, x), ROUNDING)
    close(other.jacobian(x), moe.jacobian(x), ROUNDING)
    close(other.route(x)[0], moe.route(x)[0][:, order], ROUNDING)
    np.testing.assert_array_equal(order[other.route(x)[1]], moe.route(x)[1])
    close(xbar_o, xbar, ROUNDING)
    close(bar_o.router, bar.router[order], ROUNDING)
    trees_close(bar_o.experts, tuple(bar.experts[e] for e in order), ROUNDING)


def written_out(moe, x, gates):
    """y with every expert seeing every token, gates and shared experts as they are defined."""
    if moe.gate.on_input:
        y = sum(output(f, gates[:, e, None] * x) for e, f in enumerate(moe.experts))
        y = y - sum((gates[:, e, None] == 0) * output(f, 0 * x) for e, f in enumerate(moe.experts))  # not chosen
    else:
        y = sum(gates[:, e, None] * output(f, x) for e, f in enumerate(moe.experts))
    for s, f in enumerate(moe.shared):
        w = 1 if moe.shared_gate is None else 1 / (1 + np.exp(-(x @ moe.shared_gate[s])))
        y = y + np.reshape(w, (-1, 1)) * output(f, x)
    return y


def all_chosen_is_softmax(moe, x):
    """k = E, renormalized or not, is the soft router, written out here in one line."""
    z = (x @ moe.router.T + (0 if moe.bias is None else moe.bias)) / moe.temperature
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p *= moe.gate.scale / p.sum(axis=1, keepdims=True)
    for renormalize in (True, False):
        soft = replace(moe, k=len(moe.experts), renormalize=renormalize)
        close(soft.route(x)[0], p, ROUNDING)
        close(output(soft, x), written_out(moe, x, p), ROUNDING)


def gates_by_hand(moe, x):
    """One token at a time, from the definition, with nothing but sorting and exp."""
    gate, k, E = moe.gate, moe.k, len(moe.experts)
    gates, chosen = moe.route(x)
    for t, s in enumerate(moe.scores(x)):
        if gate.scores == "sparsemixer":
            want, picked, left = np.zeros(E), [], s.copy()
            for _ in range(k):
                best = int(left.argmax())
                near = [e for e in range(E) if left[e] > -np.inf
                        and left[best] - left[e] <= gate.near * max(abs(s[e]), left[best])]  # fmt: skip
                want[best] = 1 / sum(np.exp(s[e] - s[best]) for e in near)
                picked.append(best)
                left[best] = -np.inf
        else:
            p = 1 / (1 + np.exp(-s)) if gate.scores == "sigmoid" else np.exp(s - s.max()) / np.exp(s - s.max()).sum()
            rank = p + (0 if gate.selection is None else gate.selection)
            allowed = set(range(E))
            if gate.groups is not None:
                size = E // gate.groups.number
                worth = [sorted(rank[g * size : (g + 1) * size])[-1 if gate.groups.by == "largest" else -2 :]
                         for g in range(gate.groups.number)]  # fmt: skip
                kept = sorted(range(len(worth)), key=lambda g: (-sum(worth[g]), g))[: gate.groups.kept]
                allowed = {e for g in kept for e in range(g * size, (g + 1) * size)}
            rank = s if gate.selection is None and gate.groups is None else rank  # p may underflow, and tie
            picked = sorted(allowed, key=lambda e: (-rank[e], e))[:k]
            want = np.array([p[e] if e in picked else 0.0 for e in range(E)])
            if moe.renormalize and gate.scores == "softmax":
                top = max(s[e] for e in picked)
                want = np.array([np.exp(s[e] - top) if e in picked else 0.0 for e in range(E)])
            if moe.renormalize:
                want = want / want.sum()
        assert chosen[t].tolist() == picked
        close(gates[t], gate.scale * want, ROUNDING)


def sum_of_gated_experts(moe, x):
    """y = sum_e g_e f_e with every expert seeing every token: what sparse work leaves out is exactly zero."""
    gates, chosen = moe.route(x)
    close(output(moe, x), written_out(moe, x, gates), ROUNDING)
    read = [gates[:, e, None] * x if moe.gate.on_input else x for e in range(len(moe.experts))]
    first = sum(gates[:, e, None, None] * f.jacobian(read[e]) for e, f in enumerate(moe.experts))
    for s, f in enumerate(moe.shared):
        w = np.ones(len(x)) if moe.shared_gate is None else 1 / (1 + np.exp(-(x @ moe.shared_gate[s])))
        first = first + w[:, None, None] * f.jacobian(x)
    close(moe.expert_jacobian(x), first, ROUNDING)
    close(moe.expert_jacobian(x) + moe.router_jacobian(x), moe.jacobian(x), ROUNDING)
    assert chosen.shape == (len(x), moe.k)
    assert (np.sort(chosen, axis=1)[:, 1:] > np.sort(chosen, axis=1)[:, :-1]).all()


def gates_add_up(moe, x):
    """To one, or the scale, where they are renormalized, else to at most that; and no one else has any."""
    gates, chosen = moe.route(x)
    others = gates.copy()
    np.put_along_axis(others, chosen, 0, axis=1)
    assert not others.any()
    assert (gates >= 0).all()
    scale = moe.gate.scale
    if moe.renormalize or moe.k == len(moe.experts):
        close(gates.sum(axis=1), np.full(len(x), scale), ROUNDING)
    else:
        assert (gates.sum(axis=1) <= scale * (1 + ROUNDING)).all()


def mean_of_the_mixture(moe, x):
    """Both closed forms against the average of the dense Jacobians."""
    close(moe.mean_jacobian(x), moe.jacobian(x).mean(axis=0), ROUNDING, scale=np.abs(moe.jacobian(x)).max())
    whole = np.abs(moe.expert_jacobian(x)).max()
    close(moe.mean_jacobian(x, router=False), moe.expert_jacobian(x).mean(axis=0), ROUNDING, scale=whole)


def unused_experts_learn_nothing(moe, x):
    """The gradient of an expert that no token chose is exactly zero."""
    _, bar = pullback(moe, x)
    for e in set(range(len(moe.experts))) - set(moe.route(x)[1].ravel().tolist()):
        assert not tree.flatten(bar.experts[e]).any()


# ---- the table of laws over the table of layers ----------------------------------------------------------------------

OF_ALL = (transpose, complex_step, complex_step_of_jacobian, parameters_only, batch_equals_its_rows)
OF_ALL += (permuted_tokens, no_tokens, writes_to_nothing, keeps_float32)
OF_SMOOTH = (gradient, taylor)
OF_EXPERTS = (jvp_is_the_jacobian, mean_is_the_mean, whole_weights_repeat_rows, weights_have_no_unit)
OF_EXPERTS += (factors_are_the_jacobian,)
OF_MIXTURES = (relabelled_experts, gates_by_hand, sum_of_gated_experts, mean_of_the_mixture)
OF_MIXTURES += (unused_experts_learn_nothing,)
OF_SOFTMAX = (all_chosen_is_softmax, gates_add_up)  # what a sigmoid's gates or a sparsemixer's need not do
EVERY_EXPERT, EVERY_MIXTURE = EXPERTS + FIELD_EXPERTS, MIXTURES + FIELD_MIXTURES
SOFTMAX = [case for case in EVERY_MIXTURE if (g := case.build()[0].gate).scores == "softmax" and not g.groups]


@pytest.mark.parametrize(("law", "case"), rows(*((law, case) for law in OF_ALL for case in ALL)))
def test_layer(law, case):
    law(*case.build())


@pytest.mark.parametrize(("law", "case"), rows(*((law, case) for law in OF_SMOOTH for case in ALL if case.smooth)))
def test_smooth_layer(law, case):
    law(*case.build())


@pytest.mark.parametrize(("law", "case"), rows(*((law, case) for law in OF_EXPERTS for case in EVERY_EXPERT)))
def test_expert(law, case):
    law(*case.build())


@pytest.mark.parametrize(("law", "case"), rows(*((law, case) for law in OF_MIXTURES for case in EVERY_MIXTURE)))
def test_mixture(law, case):
    law(*case.build())


@pytest.mark.parametrize(("law", "case"), rows(*((law, case) for law in OF_SOFTMAX for case in SOFTMAX)))
def test_softmax_mixture(law, case):
    law(*case.build())


@pytest.mark.parametrize("case", rows(*((case,) for case in ALL if case.smooth)))
def test_tokens_are_routed_by_a_margin(case):
    """The table's own promise: else finite differences and float32 would compare two different routings."""
    for moe, x in mixtures(*case.build()):
        assert (margin(moe, x) > ROOM).all()


def test_what_the_table_is_for():
    """The cases are as odd as their names say."""
    moe, x = BY_NAME["avoided_expert"].build()
    assert 2 not in moe.route(x)[1]
    moe, x = BY_NAME["ties"].build()
    assert (margin(moe, x) == 0).sum() == 4
    moe, x = BY_NAME["more_experts_than_tokens"].build()
    assert len(np.unique(moe.route(x)[1])) < len(moe.experts)
    f, x = BY_NAME["gelu_saturated"].build()
    assert np.abs(f.hidden(x)).max() > 9
    f, x = BY_NAME["gelu_rank_one"].build()
    assert (f.linearize(x).singular_values()[:, 1] < 1e-12).all()
    with np.errstate(under="ignore"):
        moe, x = BY_NAME["underflowing_chosen_gate"].build()
        gates, chosen = moe.route(x)
    assert (np.take_along_axis(gates, chosen, axis=1) == 0).any()
