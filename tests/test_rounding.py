"""What rounding may do, attacked: forms and orders that are right are not called wrong, nor wrong numbers right."""

from dataclasses import replace

import numpy as np
import pytest
from cases import mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verify import drawn, everything, moe_and_x

from npmoe import GeluExpert, RMSNorm
from npmoe.calculus import tree
from npmoe.calculus.scalar import softmax
from npmoe.model.balance import Balance
from npmoe.model.routing import mask, top_k
from npmoe.verify import compare, compare_answers, compare_balance
from npmoe.verify.rounding import ARITHMETICS, Rounded, Rounding

pytestmark = pytest.mark.underflow
EXAMPLES = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def plain_moe(rng, E, d, h, k, **options):
    """A mixture of plain sizes."""
    moe = mixture(rng, E, d, h, k, **options)
    return tree.map_leaves(lambda a: a / a.shape[-1] ** 0.5, moe)


def all_then_divided(moe, x, dy, dtype):
    """The router's gradient where gates are a softmax over all experts, divided by the sum of those kept (Mixtral)."""
    s = (x @ moe.router.T).astype(dtype)
    p = softmax(s)
    on = mask(top_k(s, moe.k), len(moe.experts))
    kept = on * p
    total = kept.sum(axis=1, keepdims=True)
    g = kept / total
    F = np.stack([f.forward(x)[0] for f in moe.experts], axis=1).astype(dtype)  # (n, E, o)
    dg = np.einsum("no,neo->ne", dy, F)
    dp = on * (dg - (g * dg).sum(axis=1, keepdims=True)) / total
    ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
    return ds.T @ x


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@EXAMPLES
@given(seed=seeds)
def test_gates_divided_by_their_sum_are_no_fault(dtype, seed):
    """Rows of the router that nobody chose then get what cancels, not 0."""
    rng = np.random.default_rng(seed)
    moe = tree.map_leaves(lambda a: a.astype(dtype), plain_moe(rng, 8, 6, 8, 2))
    x, dy = rng.standard_normal((2, 2, 6)).astype(dtype)
    report = compare_answers(moe, {"router": all_then_divided(moe, x, dy, dtype)}, x, dy=dy)
    assert report.verdict in ("agrees", "undecided"), str(report)


def test_the_same_of_an_importance_loss():
    rng = np.random.default_rng(0)
    s = rng.standard_normal((12, 6))
    chosen = top_k(s, 2)
    loss = Balance("importance", gates="renormalized")
    _, ds = loss(s, chosen)
    on = mask(chosen, 6)
    leaked = ds + ~on * softmax(s) * 1e-17
    assert compare_balance(loss, {"scores": leaked}, s, chosen).verdict == "agrees"
    assert compare_balance(loss, {"scores": ds + ~on * 1e-9}, s, chosen).verdict == "differs"


def test_zeros_are_no_gradient_in_half_precision():
    moe, x = moe_and_x(d=6, h=12)
    x = x.astype(np.float16).astype(np.float64)
    moe = tree.map_leaves(ARITHMETICS["float16"].round, moe)
    dy = ARITHMETICS["float16"].round(1e-3 * drawn(moe, x))
    zeros = {"gradient": np.zeros_like(x), "router": np.zeros_like(moe.router)}
    report = compare_answers(moe, zeros, x, dy=dy, arithmetic="float16")
    assert {part.verdict for part in report.parts} == {"differs"}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_a_small_fault_is_seen_behind_saturated_gates(scale):
    rng = np.random.default_rng(1)
    moe = plain_moe(rng, 4, 6, 8, 2, renormalize=False, temperature=1e-3)
    x = scale * rng.standard_normal((12, 6))
    report = compare(moe, lambda x: moe.jacobian(x) * (1 + 1e-6), x)
    assert report.verdict == "differs"


@pytest.mark.parametrize("factor", [0.0, 2.0, -1.0])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_bfloat16_tells_a_jacobian_from_none_where_units_are_saturated(factor, activation):
    rng = np.random.default_rng(0)
    keep = ARITHMETICS["bfloat16"].round
    f = GeluExpert(*(keep(rng.standard_normal(s) / 4) for s in [(32, 16), (32,), (16, 32), (16,)]), activation)
    x = keep(1e3 * rng.standard_normal((8, 16)))
    assert compare(f, lambda x: factor * f.jacobian(x), x, arithmetic="bfloat16").verdict in ("doubtful", "differs")


@pytest.mark.parametrize("n", [300, 3000])
@pytest.mark.parametrize("constant", [0.1, None])
def test_a_sum_of_equal_numbers_one_by_one_is_no_fault(n, constant):
    """Each is rounded to the same side on the way up."""
    rng = np.random.default_rng(0)
    f = GeluExpert(*(rng.standard_normal(s).astype(np.float32) for s in [(4, 3), (4,), (2, 4), (2,)]))
    x = rng.standard_normal((n, 3)).astype(np.float32)
    dy = np.full((n, 2), np.float32(constant or 1 / n))
    total = np.zeros(2, np.float32)
    for row in dy:
        total += row
    report = compare_answers(f, {"b2": total}, x, dy=dy)
    assert report.verdict == "agrees", str(report)
    assert compare_answers(f, {"b2": total * np.float32(1.01)}, x, dy=dy).verdict == "differs"


def test_a_variance_in_one_pass_is_doubtful_at_most():
    s = (1e-2 * np.random.default_rng(0).standard_normal((64, 8))).astype(np.float32)
    importance = softmax(s).mean(axis=0)
    one_pass = ((importance**2).mean() - importance.mean() ** 2) / importance.mean() ** 2
    report = compare_balance(Balance("importance"), {"value": np.array(one_pass)}, s, top_k(s, 2))
    assert report.verdict in ("agrees", "doubtful"), str(report)


def test_a_root_mean_square_summed_in_bfloat16_is_doubtful_at_most():
    keep = ARITHMETICS["bfloat16"].round
    x = keep(np.random.default_rng(0).standard_normal((3, 4096)))
    total = np.zeros(3)
    for column in x.T:
        total = keep(total + keep(column**2))
    y = x / np.sqrt(total[:, None] / 4096 + 1e-6)
    report = compare(RMSNorm(np.ones(4096)), lambda x: y, x, arithmetic="bfloat16")
    assert report.verdict in ("agrees", "doubtful"), str(report)


def test_scores_that_one_rounding_makes_equal_are_no_fault():
    scores = np.array([[1036.0, 1044.0]])
    r = Rounding(ARITHMETICS["bfloat16"])
    q = r.softmax(Rounded(scores, r.u * scores))
    rounded = softmax(ARITHMETICS["bfloat16"].round(scores))
    assert np.abs(rounded - q.value).max() > 0.4
    assert (np.abs(rounded - q.value) <= q.error).all()


@EXAMPLES
@given(seeds, st.floats(1e-6, 3.0), st.booleans())
def test_a_softmax_of_moved_scores_is_within_its_bound_and_the_bound_is_reached(seed, away, some):
    """Not to first order: exactly, however far the scores may be off."""
    rng = np.random.default_rng(seed)
    s = 3 * rng.standard_normal((1, 5))
    on = rng.random((1, 5)) < 0.7 if some else np.ones((1, 5), bool)
    on[0, 0] = True
    r = Rounding(ARITHMETICS["float64"])
    q = r.softmax(Rounded(s, np.full_like(s, away)), on)
    worst = np.zeros(5)
    for _ in range(20):
        sides = rng.choice([-1.0, 1.0], (1, 5))
        moved = softmax(np.where(on, s + away * sides, -np.inf))
        worst = np.maximum(worst, np.abs(moved - q.value)[0])
    assert (worst <= q.error[0]).all()
    first = np.where(np.arange(5) == 0, away, -away)
    rise, fall = (abs(softmax(np.where(on, s + side * first, -np.inf))[0, 0] - q.value[0, 0]) for side in (1, -1))
    assert max(rise, fall) <= q.error[0, 0] <= max(rise, fall) * (1 + 1e-9) + 1e-13


def test_numbers_too_small_for_the_arithmetic_are_rounded_where_they_are_handed_over():
    r = Rounding(ARITHMETICS["float32"])
    tiny = r.given(np.array([1.1e-42, 1e-60]))
    assert (np.abs(tiny.value.astype(np.float32) - tiny.value) <= tiny.error).all()
    half = Rounding(ARITHMETICS["float16"]).given(np.array([3.3e-7]))
    assert half.error[0] >= abs(float(np.float16(3.3e-7)) - 3.3e-7)


@pytest.mark.parametrize("scale", [1e100, 1e200])
def test_a_layer_agrees_with_itself_however_large_its_input(scale):
    moe, x = moe_and_x(n=4)
    f = moe.experts[0]
    with np.errstate(all="ignore"):
        report = compare(f, lambda x: {"output": f.forward(x)[0], "jacobian": f.jacobian(x)}, scale * x)
    assert report.verdict == "agrees", str(report)


ORDERS = {
    "as they are": lambda a: np.arange(len(a)),
    "reversed": lambda a: np.arange(len(a))[::-1],
    "large first": lambda a: np.argsort(-np.abs(a)),
    "small first": lambda a: np.argsort(np.abs(a)),
    "positive first": lambda a: np.argsort(-a),
}


@pytest.mark.parametrize("order", ORDERS)
@EXAMPLES
@given(seed=seeds, scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_an_expert_summed_one_by_one_in_any_order_is_within_its_limits(order, seed, scale):
    rng = np.random.default_rng(seed)
    d, h, o = rng.integers(1, 20, 3)
    f = GeluExpert(*(rng.standard_normal(s).astype(np.float32) for s in [(h, d), (h,), (o, h), (o,)]))
    x = (scale * rng.standard_normal((1, d))).astype(np.float32)

    def dot(a, b):
        terms = a * b
        total = np.float32(0)
        for i in ORDERS[order](terms):
            total += terms[i]
        return total

    z = np.array([dot(w, x[0]) for w in f.W1], np.float32) + f.b1
    hidden = replace(f, W1=np.eye(h, dtype=np.float32), b1=np.zeros(h, np.float32)).forward(z[None])[1]
    y = np.array([dot(w, hidden.a[0]) for w in f.W2], np.float32) + f.b2
    J = np.array([[dot(f.W2[i] * hidden.slope[0], f.W1[:, j]) for j in range(d)] for i in range(o)], np.float32)
    report = compare_answers(f, {"output": y[None], "jacobian": J[None]}, x)
    assert report.verdict == "agrees", str(report)


def test_everything_of_a_wide_layer_agrees_and_a_millionth_does_not():
    rng = np.random.default_rng(0)
    moe = plain_moe(rng, 32, 64, 64, 4)
    x = rng.standard_normal((8, 64))
    dy = drawn(moe, x)
    assert compare(moe, lambda x, dy: everything(moe, x, dy), x, dy=dy).verdict == "agrees"
    assert compare(moe, lambda x: moe.jacobian(x) * (1 + 1e-6), x).verdict == "differs"


def test_more_choices_than_are_tried_are_undecided_and_not_wrong():
    """A router of zeros ties everything; a candidate that takes a set in the middle is right, and nobody can tell."""
    rng = np.random.default_rng(0)
    moe = replace(plain_moe(rng, 16, 4, 5, 8), router=np.zeros((16, 4)))
    x = rng.standard_normal((3, 4))
    odd = replace(moe, bias=np.where(np.arange(16) % 2, 1e-30, 0.0))  # takes every second expert
    report = compare(moe, odd.jacobian, x)
    assert report.undecided.all()
    assert report.verdict == "undecided"


def test_central_differences_are_allowed_their_error_in_every_derivative_in_x():
    moe, x = moe_and_x(n=8)
    h = 1e-4

    def differences(x, dy):
        sides = [(moe.forward(x + h * e)[0], moe.forward(x - h * e)[0]) for e in np.eye(x.shape[1])]
        J = np.stack([(ahead - behind) / (2 * h) for ahead, behind in sides], axis=2)
        router = J - moe.expert_jacobian(x)
        return {
            "jacobian": J,
            "mean_jacobian": J.mean(0),
            "router_jacobian": router,
            "gradient": np.einsum("no,nod->nd", dy, J),
        }

    assert compare(moe, differences, x, dy=drawn(moe, x), step=h).verdict == "agrees"
