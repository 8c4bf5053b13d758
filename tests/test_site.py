"""Sites: what each kind of model shows on a batch, who is visited and when, and what is refused."""

import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cases import COMPLEX_STEP, ROUNDING, TRANSPOSE, close, gelu, linear, mixture, norm, swiglu

import npmoe
from npmoe import Residual, Site, Stack, site
from npmoe.calculus.factored import Factored
from npmoe.probe import function
from npmoe.probe.site import visits

E, D, H, N = 4, 5, 3, 11


@pytest.fixture
def moe(rng):
    return mixture(rng, E, D, H, 2, temperature=0.7, bias=rng.standard_normal(E))


@pytest.fixture
def x(rng):
    return rng.standard_normal((N, D))


def trace(**changed):
    """A recorded trace of six tokens and three experts."""
    rng = np.random.default_rng(0)
    fields = {"x": rng.standard_normal((6, 2)), "gates": rng.random((6, 3)), "chosen": rng.integers(0, 3, (6, 2))}
    return Site(**{**fields, **changed})


# The Site of a model


def test_a_mixture_shows_its_routing(moe, x):
    s = site(moe, x, "layer 3")
    gates, chosen = moe.route(x)
    np.testing.assert_array_equal(s.gates, gates)
    np.testing.assert_array_equal(s.chosen, chosen)
    assert (s.n, s.E, s.name, s.before, s.always) == (N, E, "layer 3", None, 0)
    assert s.x is x
    assert s.experts is moe.experts
    for e in range(E):
        assert s.rows(e).tolist() == [n for n in range(N) if e in chosen[n]]


def test_its_router_is_the_mixtures_with_the_temperature_in_scores_and_slopes(moe, x):
    router = site(moe, x).router
    assert router.matrix is moe.router
    assert router.bias is moe.bias
    close(router.scores(x), (x @ moe.router.T + moe.bias) / 0.7, ROUNDING)
    np.testing.assert_array_equal(router.gates(x), moe.route(x)[0])
    steps = [router.gates(x + 1e-30j * axis).imag / 1e-30 for axis in np.eye(D)]
    close(router.jacobian(x), np.stack(steps, axis=2), COMPLEX_STEP)


@pytest.mark.parametrize("kind", [gelu, swiglu])
def test_a_dense_model_is_one_expert_with_gates_of_ones(rng, x, kind):
    expert = kind(rng, D, H, 2)
    s = site(expert, x)
    assert (s.E, s.chosen, s.router, s.before) == (1, None, None, None)
    assert (s.gates == 1).all()
    assert s.experts == (expert,)
    assert s.rows(0).tolist() == list(range(N))


def around(rng, moe):
    """Model, what its mixture reads as a function of x, the norm in front, whether a residual runs past."""
    front, rms, first = linear(rng, D, D, "gelu"), norm(rng, D), mixture(rng, 3, D, H, 1)
    block = Residual(Stack((rms, first)))
    return {
        "residual": (Residual(moe), lambda x: x, None, True),
        "linear in front": (Stack((front, moe)), lambda x: front.forward(x)[0], None, False),
        "norm in front": (Stack((rms, moe)), lambda x: rms.forward(x)[0], rms, False),
        "block": (Residual(Stack((rms, moe))), lambda x: rms.forward(x)[0], rms, True),
        "linear, norm": (Stack((front, rms, moe)), lambda x: rms.forward(front.forward(x)[0])[0], rms, False),
        "norm, linear": (
            Residual(Stack((rms, front, moe))),
            lambda x: front.forward(rms.forward(x)[0])[0],
            None,
            False,
        ),
        "two layers": (Stack((first, moe)), lambda x: first.forward(x)[0], None, False),
        "two residual layers": (Stack((Residual(first), Residual(moe))), lambda x: x + first.forward(x)[0], None, True),
        "two blocks": (
            Stack((block, Residual(Stack((rms, moe))))),
            lambda x: rms.forward(block.forward(x)[0])[0],
            rms,
            True,
        ),
    }


AROUND = list(around(np.random.default_rng(0), mixture(np.random.default_rng(0), E, D, H, 2)))


@pytest.mark.parametrize("name", AROUND)
def test_what_stands_around_a_mixture_is_seen_and_its_input_is_what_reaches_it(rng, moe, x, name):
    model, reads, rms, residual = around(rng, moe)[name]
    s = site(model, x)
    close(s.x, reads(x), ROUNDING)
    np.testing.assert_array_equal(s.gates, moe.route(s.x)[0])
    assert s.experts is moe.experts
    if rms is None and not residual:
        assert s.before is None
    else:
        assert (s.before.norm, s.before.residual) == (rms, residual)


@pytest.mark.parametrize("residual", [False, True])
def test_norm_and_residual_give_the_blocks_jacobian(rng, moe, x, residual):
    model = Stack((norm(rng, D), moe))
    s = site(Residual(model) if residual else model, x)
    ((_, experts, router),) = function.layer_jacobians(s)
    J = (experts + router) @ s.before.norm.jacobian(s.before.x) + residual * np.eye(D)
    assert s.before.residual == residual
    close(J, (Residual(model) if residual else model).jacobian(x), TRANSPOSE)


def test_a_dense_model_in_surroundings_is_found_too(rng, x):
    expert, front = gelu(rng, D, H, D), linear(rng, D, D)
    s = site(Stack((front, Residual(expert))), x)
    assert s.experts == (expert,)
    assert s.before.residual
    close(s.x, front.forward(x)[0], ROUNDING)


def test_a_model_that_does_not_end_in_a_mixture_is_refused(rng, moe, x):
    with pytest.raises(TypeError, match="expected a MoE, an expert, or a Stack or Residual around one; got Linear"):
        site(Stack((moe, linear(rng, D, D))), x)


def test_a_newcomers_own_mixture_is_a_site_in_five_lines(rng, x):
    W, V = rng.standard_normal((2, 3, D, D))

    class Tanh:  # 1: an expert is anything that can linearize, f(x) = V tanh(W x)
        def __init__(self, e):
            self.e = e

        def linearize(self, x):
            return Factored(V[self.e], (1 / np.cosh(x @ W[self.e].T) ** 2)[None], W[self.e][None])

    scores = rng.random((N, 3))
    gates = scores / scores.sum(axis=1, keepdims=True)
    mine = Site(x=x, gates=gates, experts=[Tanh(0), Tanh(1), Tanh(2)], name="mine")
    for e, J in enumerate(function.mean_jacobians(mine)):
        each = [np.imag(V[e] @ np.tanh(W[e] @ (x[:, :, None] + 1e-30j * np.eye(D)))) / 1e-30][0]  # (n, o, d)
        close(J, np.tensordot(gates[:, e] / gates[:, e].sum(), each, 1), COMPLEX_STEP)
    assert function.norms(mine).shape == (3, 8)
    assert not np.isnan(function.norms(mine)).any()


# Visits


class Counted(Sequence):
    """Experts that are made when they are asked for, as from a file larger than memory; who asked when is kept."""

    def __init__(self, experts):
        self._experts, self.visited, self.most = experts, [], 0
        self._alive = weakref.WeakSet()

    def __len__(self):
        return len(self._experts)

    def __getitem__(self, e):
        expert = replace(self._experts[e])  # IndexError ends an iteration
        self._alive.add(expert)
        self.visited.append(e)
        self.most = max(self.most, len(self._alive))
        return expert


PROBES = {
    "mean_jacobians": function.mean_jacobians,
    "survey": function.survey,
    "norms": function.norms,
    "norms over all": lambda s: function.norms(s, over="all"),
    "token_spectra": function.token_spectra,
    "curvature": function.curvature,
    "weight_norms": function.weight_norms,
    "layer_norms": function.layer_norms,  # once a piece of 128 tokens, and here is one piece
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_each_expert_is_visited_once_in_order_and_not_kept(moe, x, probe):
    counted = Counted(moe.experts)
    s = replace(site(moe, x), experts=counted)
    assert counted.visited == []
    expected, found = probe(site(moe, x)), probe(s)
    assert counted.visited == list(range(E))
    assert counted.most <= 2, "the one at hand, and the one before until it is let go"
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_visits_are_lazy(moe, x):
    counted = Counted(moe.experts)
    s = replace(site(moe, x), experts=counted)
    for e, visit in enumerate(visits(s)):
        assert visit.e == e
        assert counted.visited == list(range(e + 1))


def test_visits_carry_rows_weights_and_jacobians_of_those_rows(moe, x):
    s = site(moe, x)
    for visit in visits(s):
        np.testing.assert_array_equal(visit.rows, s.rows(visit.e))
        np.testing.assert_array_equal(visit.weights, s.gates[visit.rows, visit.e])
        np.testing.assert_array_equal(visit.J.dense(), moe.experts[visit.e].jacobian(x[visit.rows]))
    for visit in visits(s, over="all"):
        assert len(visit.rows) == len(visit.J) == N
        assert (visit.weights == 1).all()


def test_experts_without_weight_are_passed_over_and_shared_ones_see_all(moe, x):
    gates, chosen = np.full((N, E), 0.5), np.tile([0, 1], (N, 1))
    gates[:, 1] = 0  # chosen, but its gates underflowed
    s = Site(x=x, gates=gates, chosen=chosen, experts=moe.experts, always=1)
    assert [(visit.e, len(visit.rows)) for visit in visits(s)] == [(0, N), (3, N)]
    assert [visit.e for visit in visits(s, over="all")] == [0, 1, 2, 3]


def test_other_ways_to_weigh_are_refused(moe, x):
    with pytest.raises(ValueError, match="expected over to be 'routed' or 'all'; got 'chosen'"):
        function.norms(site(moe, x), over="chosen")


# Bad input


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_says_what_a_recorded_trace_lacks(probe):
    with pytest.raises(ValueError, match=r"^\w+ needs experts, which the Site 'recorded' does not have$"):
        probe(trace(name="recorded"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_place(moe, x, bad):
    for name in ("x", "gates"):
        array = getattr(trace(), name).copy()
        array[4, 1] = bad
        with pytest.raises(ValueError, match=rf"expected {name} to be finite; got {bad} at \(4, 1\) of shape"):
            trace(**{name: array})
    x[2, 3] = bad
    with pytest.raises(ValueError, match=rf"expected x to be finite; got {bad} at \(2, 3\)"):
        site(moe, x)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": np.zeros(6)}, ValueError, r"expected x of shape \(n, d\) of this Site; got \(6,\)"),
        ({"x": np.zeros((6, 2), int)}, TypeError, "expected x to be an array of floats"),
        ({"gates": np.zeros((5, 3))}, ValueError, r"expected gates of shape \(6, E\) of this Site; got \(5, 3\)"),
        (
            {"gates": np.full((6, 3), -0.5), "name": "L0"},
            ValueError,
            "gates of the Site 'L0' to be non-negative; got -0.5",
        ),
        ({"chosen": np.zeros((6, 2))}, ValueError, r"chosen of this Site as integers of shape \(6, k\); got float64"),
        ({"chosen": np.zeros((5, 2), int)}, ValueError, r"of shape \(6, k\); got int64 of shape \(5, 2\)"),
        ({"chosen": np.full((6, 1), 3)}, ValueError, r"chosen of this Site within 0\.\.2; got 3\.\.3"),
        ({"chosen": np.full((6, 1), -1)}, ValueError, r"within 0\.\.2; got -1\.\.-1"),
        ({"experts": [None, None]}, ValueError, "expected 3 experts of this Site, one a column of gates; got 2"),
        ({"always": 4}, ValueError, r"expected always within 0\.\.3 of this Site; got 4"),
        ({"chosen": np.full((6, 1), 2), "always": 1}, ValueError, r"chosen of this Site among the 2 routed .*; got 2"),
        (
            {"labels": {"topic": np.zeros(5)}},
            ValueError,
            r"expected label 'topic' of this Site of shape \(6,\); got \(5,\)",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(changed, error, message):
    with pytest.raises(error, match=message):
        trace(**changed)


def test_x_of_another_width_is_refused_by_the_site_of_a_model(moe):
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 5\), the width of this model; got \(3, 4\)"):
        npmoe.site(moe, np.zeros((3, 4)))


@pytest.mark.parametrize(
    "rows", [slice(1, 4), np.array([4, 0, 0]), np.arange(6) % 2 == 0], ids=["slice", "index", "mask"]
)
def test_some_tokens_of_a_site_keep_all_that_is_theirs(rng, moe, rows):
    x = rng.standard_normal((6, D))
    s = site(Residual(Stack((norm(rng, D), moe))), x)
    s = replace(s, labels={"token": np.arange(6)})
    few = s.take(rows)
    for of, whole in ((few.x, s.x), (few.gates, s.gates), (few.chosen, s.chosen), (few.before.x, s.before.x)):
        np.testing.assert_array_equal(of, whole[rows])
    np.testing.assert_array_equal(few.labels["token"], np.arange(6)[rows])
    assert few.experts is s.experts
    assert few.router is s.router
    np.testing.assert_array_equal(few.before.norm.forward(few.before.x)[0], few.x)
