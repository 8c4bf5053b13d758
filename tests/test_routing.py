"""Routing: who is chosen, how much they weigh, and both terms of the mixture's Jacobian.

n tokens, d width, E experts, k experts a token.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import BY_NAME, COMPLEX_STEP, EXPERTS, MIXTURES, ROUNDING, close, gelu, mixture, rows
from hypothesis import given
from hypothesis import strategies as st
from test_laws import STEP, converges, cotangent, direction, output

import npmoe
from npmoe import MoE
from npmoe.calculus import tree
from npmoe.calculus.scalar import softmax
from npmoe.model.routing import gates_jacobian, mask, route, route_vjp, top_k

# ---- the choice ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(0, 6), st.integers(1, 4), st.integers(0, 999), st.data())
def test_ties_go_to_the_lower_index(E, n, levels, seed, data):
    """Few different scores, so that ties are everywhere: sorting pairs (-score, index) in plain Python agrees."""
    k = data.draw(st.integers(1, E))
    scores = np.random.default_rng(seed).integers(0, levels, (n, E)).astype(float)
    want = [sorted(range(E), key=lambda e, row=row: (-row[e], e))[:k] for row in scores]
    chosen = top_k(scores, k)
    assert chosen.shape == (n, k)
    assert chosen.tolist() == want
    np.testing.assert_array_equal(mask(chosen, E), [[e in row for e in range(E)] for row in want] or np.empty((0, E)))


def test_zero_has_no_sign():
    np.testing.assert_array_equal(top_k(np.array([[-0.0, 0.0, -0.0]]), 2), [[0, 1]])


def test_a_complex_step_does_not_choose():
    scores = np.array([[1.0 - 1j, 1.0 + 1j, 2.0]])
    np.testing.assert_array_equal(top_k(scores, 2), [[2, 0]])


@pytest.mark.underflow
def test_chosen_is_not_what_has_a_gate():
    """A gate can underflow to 0, and its expert is chosen all the same; no one else steps in."""
    r = route(np.array([[0.0, -900.0, -1800.0, -1900.0]]), 3)
    np.testing.assert_array_equal(r.chosen, [[0, 1, 2]])
    np.testing.assert_array_equal(r.on, [[True, True, True, False]])
    np.testing.assert_array_equal(r.gates, [[1, 0, 0, 0]])
    moe, x = BY_NAME["underflowing_chosen_gate"].build()
    rows_of = [x[rows] for rows in moe.forward(x)[1].rows]
    np.testing.assert_array_equal([len(rows) for rows in rows_of], np.bincount(moe.route(x)[1].ravel(), minlength=5))


@pytest.mark.parametrize("renormalize", [True, False])
def test_scores_at_infinity_are_never_weighed(renormalize):
    """An expert masked out with -inf has gate 0 even where it is among the chosen."""
    r = route(np.array([[0.0, -np.inf, np.log(3), -np.inf]]), 3, renormalize)
    close(r.gates, [[0.25, 0, 0.75, 0]], ROUNDING)
    np.testing.assert_array_equal(r.chosen, [[2, 0, 1]])


def test_gates_of_small_whole_numbers():
    scores = np.log([[1.0, 2.0, 5.0]])
    close(route(scores, 2).gates, [[0, 2 / 7, 5 / 7]], ROUNDING)
    close(route(scores, 2, renormalize=False).gates, [[0, 2 / 8, 5 / 8]], ROUNDING)
    close(route(scores, 1).gates, [[0, 0, 1]], ROUNDING)
    close(route(scores, 3).gates, [[1 / 8, 2 / 8, 5 / 8]], ROUNDING)


def test_cells_are_cones(rng):
    """Without a router bias only a token's direction decides who is chosen."""
    moe, x = mixture(rng, 6, 4, 3, 2), rng.standard_normal((50, 4))
    for length in (0.25, 64.0):
        np.testing.assert_array_equal(moe.route(length * x)[1], moe.route(x)[1])


def test_temperature_divides_the_scores(rng):
    moe, x = mixture(rng, 5, 4, 3, 2, bias=rng.standard_normal(5)), rng.standard_normal((6, 4))
    cold = replace(moe, temperature=0.25)
    np.testing.assert_array_equal(cold.scores(x), 4 * moe.scores(x))
    np.testing.assert_array_equal(cold.route(x)[1], moe.route(x)[1])
    hot = replace(moe, k=5, temperature=1e9)
    close(hot.route(x)[0], np.full((6, 5), 0.2), 1e-8)


def test_a_shift_of_all_scores_is_nothing(rng):
    moe, x = mixture(rng, 5, 4, 3, 2, bias=rng.standard_normal(5), renormalize=False), rng.standard_normal((6, 4))
    close(output(replace(moe, bias=moe.bias + 3), x), output(moe, x), ROUNDING)


# ---- the gates' derivative -----------------------------------------------------------------------------------------

ROUTES = [(k, renormalize) for k in (1, 2, 4) for renormalize in (True, False)]


@pytest.mark.parametrize(("k", "renormalize"), ROUTES)
def test_gates_jacobian_by_complex_step(k, renormalize, rng):
    W, x = rng.standard_normal((4, 3)), rng.standard_normal((6, 3))
    r = route(x @ W.T, k, renormalize)
    steps = [route((x + 1j * STEP * e) @ W.T, k, renormalize).gates.imag / STEP for e in np.eye(3)]
    J = gates_jacobian(r, W)
    close(J, np.stack(steps, axis=2), COMPLEX_STEP)
    dgates = rng.standard_normal(r.gates.shape)
    close(route_vjp(r, dgates) @ W, np.einsum("ne,ned->nd", dgates, J), COMPLEX_STEP)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rows_not_chosen_matter_unless_renormalized(k, rng):
    """Move the router row of an expert that a token did not choose: its gates change only without renormalization."""
    moe, x = mixture(rng, 4, 5, 3, k), rng.standard_normal((1, 5))
    gates, chosen = moe.route(x)
    other = next(e for e in range(4) if e not in chosen)
    router = moe.router.copy()
    router[other] -= 1e-3 * x[0]  # further away: it stays out
    free = replace(moe, renormalize=False)
    np.testing.assert_array_equal(replace(moe, router=router).route(x)[0], gates)
    assert (replace(free, router=router).route(x)[0][0, chosen] > free.route(x)[0][0, chosen]).all()
    for layer, matters in ((moe, False), (free, True)):
        y, trace = layer.forward(x)
        assert layer.vjp(trace, cotangent(y))[1].router[other].any() == matters


@pytest.mark.parametrize(("k", "renormalize"), ROUTES)
def test_rank_of_the_router_term(k, renormalize, rng):
    """k - 1 where the gates sum to one, which is where they are renormalized or all chosen; else k."""
    moe, x = mixture(rng, 4, 7, 9, k, o=6, renormalize=renormalize), rng.standard_normal((5, 7))
    sigma = np.linalg.svd(moe.router_jacobian(x), compute_uv=False)
    rank = k - 1 if renormalize or k == 4 else k
    whole = np.linalg.norm(moe.jacobian(x), axis=(1, 2))[:, None]
    assert (sigma[:, :rank] > 1e-6 * whole).all()
    assert (sigma[:, rank:] < ROUNDING * whole).all()


# ---- both terms of the mixture's Jacobian --------------------------------------------------------------------------


def gates_held(moe, x, at):
    """The mixture with its gates held as they are at `at`: its derivative is the first term."""
    gates = moe.route(at)[0]
    return sum(gates[:, e, None] * output(f, x) for e, f in enumerate(moe.experts))


def outputs_held(moe, x, at):
    """The mixture with its experts' outputs held: its derivative is the second term."""
    gates = moe.route(x)[0]
    return sum(gates[:, e, None] * output(f, at) for e, f in enumerate(moe.experts))


TERMS = {"expert": (MoE.expert_jacobian, gates_held), "router": (MoE.router_jacobian, outputs_held)}


@pytest.mark.parametrize(("term", "case"), rows(*((term, case) for term in TERMS for case in MIXTURES)))
def test_each_term_by_complex_step(term, case):
    moe, x = case.build()
    jacobian, held = TERMS[term]
    with np.errstate(under="ignore"):  # the step's square
        columns = [held(moe, x + 1j * STEP * e, x).imag / STEP for e in np.eye(x.shape[1])]
    close(jacobian(moe, x), np.stack(columns, axis=2), COMPLEX_STEP, scale=np.abs(moe.jacobian(x)).max())


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", ["soft", "top2", "top2_not_renormalized", "switch", "top3_biased"])
def test_each_term_by_finite_differences(term, name):
    moe, x = BY_NAME[name].build()
    jacobian, held = TERMS[term]
    dx = 0.25 * direction(x)
    Jdx = np.einsum("nod,nd->no", jacobian(moe, x), dx)
    converges(Jdx, lambda h: (held(moe, x + h * dx, x) - held(moe, x - h * dx, x)) / (2 * h), np.abs(Jdx).max())


def test_experts_alike_leave_nothing_to_the_router(rng):
    """Gates that sum to one over equal outputs: the mixture is the expert, and the second term is zero."""
    moe, x = mixture(rng, 3, 4, 5, 2), rng.standard_normal((6, 4))
    f = moe.experts[0]
    alike = replace(moe, experts=(f, f, f))
    close(output(alike, x), output(f, x), ROUNDING)
    close(alike.jacobian(x), f.jacobian(x), ROUNDING)
    close(alike.router_jacobian(x), np.zeros((6, 4, 4)), ROUNDING, scale=np.abs(f.jacobian(x)).max())
    y, trace = alike.forward(x)
    close(alike.vjp(trace, cotangent(y))[1].router, np.zeros((3, 4)), ROUNDING, scale=1)


@pytest.mark.parametrize("name", ["one_expert", "one_of_everything"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_one_expert_is_a_dense_layer(name, renormalize):
    moe, x = BY_NAME[name].build()
    moe = replace(moe, renormalize=renormalize)
    np.testing.assert_array_equal(output(moe, x), output(moe.experts[0], x))
    np.testing.assert_array_equal(moe.jacobian(x), moe.experts[0].jacobian(x))


def test_the_router_does_not_see_its_null_space(rng):
    """A step in the kernel of the centred router changes no gate, and the second term does not feel it."""
    moe, x = mixture(rng, 3, 6, 4, 2), rng.standard_normal((5, 6))
    centred = moe.router - moe.router.mean(axis=0)
    kernel = np.linalg.svd(centred)[2][2:]  # (4, 6): rank 2 of 6
    close(moe.route(x + rng.standard_normal((5, 4)) @ kernel)[0], moe.route(x)[0], ROUNDING)
    close(moe.router_jacobian(x) @ kernel.T, np.zeros((5, 6, 4)), ROUNDING, scale=np.abs(moe.jacobian(x)).max())


def test_experts_see_only_their_rows(rng):
    """Sparse work for sparse routing: an expert is asked about the tokens that chose it, and once."""
    seen = []

    class Counting(type(gelu(rng, 4, 3, 4))):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    moe, x = mixture(rng, 5, 4, 3, 2), rng.standard_normal((20, 4))
    counting = tuple(Counting(f.W1, f.b1, f.W2, f.b2) for f in moe.experts)
    output(replace(moe, experts=counting), x)
    np.testing.assert_array_equal(seen, np.bincount(moe.route(x)[1].ravel(), minlength=5))


# ---- curvature -----------------------------------------------------------------------------------------------------

WITH_CURVATURE = [case for case in EXPERTS if getattr(case.build()[0], "activation", None) == "gelu"]


def hessian(f, x):
    """d2 y_o / dx_i dx_j by the complex step of the Jacobian, (n, o, d, d)."""
    with np.errstate(under="ignore"):
        return np.stack([f.jacobian(x + 1j * STEP * e).imag / STEP for e in np.eye(x.shape[1])], axis=3)


@pytest.mark.parametrize("case", rows(*((case,) for case in WITH_CURVATURE)))
def test_hessian_norm_by_complex_step(case):
    f, x = case.build()
    want = np.sqrt((hessian(f, x) ** 2).sum(axis=(1, 2, 3)))
    close(f.hessian_norm(x), want, COMPLEX_STEP)


def test_hessian_norm_by_finite_differences():
    f, x = BY_NAME["gelu"].build()

    def difference(h):
        steps = [(f.jacobian(x + h * e) - f.jacobian(x - h * e)) / (2 * h) for e in np.eye(x.shape[1])]
        return np.sqrt((np.stack(steps) ** 2).sum(axis=(0, 2, 3)))

    converges(f.hessian_norm(x), difference, f.hessian_norm(x).max())


def test_hessian_norm_keeps_float32():
    f, x = BY_NAME["gelu"].build()
    small = tree.map_leaves(lambda leaf: leaf.astype(np.float32), f)
    assert small.hessian_norm(x.astype(np.float32)).dtype == np.float32


# ---- laws of gates that more than one law rests on -------------------------------------------------------------------


@pytest.mark.underflow
@given(st.integers(1, 8), st.integers(1, 6), st.sampled_from([0.1, 3.0, 500.0]), st.integers(0, 999), st.data())
def test_gates_over_drawn_scores(E, n, scale, seed, data):
    """Gates are the softmax on the chosen set, and no larger gate is ever left out for a smaller one."""
    k = data.draw(st.integers(1, E))
    scores = scale * np.random.default_rng(seed).standard_normal((n, E))
    p = softmax(scores)
    kept, whole = route(scores, k, renormalize=False), route(scores, k)
    np.testing.assert_array_equal(kept.gates, np.where(kept.on, p, 0))
    close(whole.gates, kept.gates / kept.gates.sum(axis=1, keepdims=True), ROUNDING)
    assert (np.diff(np.take_along_axis(kept.gates, kept.chosen, axis=1), axis=1) <= 0).all()
    assert (np.where(kept.on, -np.inf, scores).max(axis=1) <= np.where(kept.on, scores, np.inf).min(axis=1)).all()


def test_weighted_mean_of_the_whole_layer_is_that_of_its_jacobians(rng):
    moe = npmoe.init.gelu_moe(rng, E=4, d=5, h=6, k=2, temperature=0.7, bias=True)
    x, w = rng.standard_normal((9, 5)), rng.random(9)
    w[3] = 0
    for router in (True, False):
        J = moe.jacobian(x) if router else moe.expert_jacobian(x)
        mean = moe.mean_jacobian(x, w, router=router)
        np.testing.assert_allclose(mean, np.einsum("n,nod->od", w / w.sum(), J), rtol=0, atol=1e-13 * np.abs(J).max())
    with pytest.raises(ValueError, match="positive sum"):
        moe.mean_jacobian(x, np.zeros(9))
