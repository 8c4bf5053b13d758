"""The three oracles against one another, against the closed forms, and against closed forms with a planted fault."""

import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, CASES, gelu, linear, mixture, norm, rows, swiglu
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe import GeluExpert, Linear, MoE, RMSNorm, Stack
from npmoe.battery import oracles
from npmoe.battery.oracles import Exact, complex_step, handful, jacobian, measured, output, richardson, room, ulps
from npmoe.calculus import scalar, tree
from npmoe.model.balance import Balance

# The complex step rounds as the forward program does: 12 eps of the largest element at most over the cases, 2.7e-15.
STEP = 1e-13
# Richardson's own estimate is one of size: over the cases the true error is up to 1.6 times as large.
ESTIMATE = 5
# An estimate that is of any use is far under the size of a fault: 2e-13 of the largest element at most.
EXTRAPOLATED = 1e-11
# Ours, in eps times the largest entry of a row: 44 at most over the handful, in a row of a gradient whose one factor
# is a sum that nearly cancels; 31 over the cases, in a Jacobian of rank one. Another BLAS sums in another order.
OWN = 200
EXAMPLES = settings(max_examples=25, deadline=None)

seeds = st.integers(0, 2**32 - 1)
SMOOTH = [case for case in CASES if case.smooth]
HANDFUL = {case.name: case for case in handful()}


def scale(exact):
    return np.abs(exact.value).max(initial=0)


def by_row(got, exact):
    return ulps(got, exact, np.abs(exact.value).max(axis=-1, keepdims=True)).max()


# ---- the oracles among themselves, and the closed forms --------------------------------------------------------------


@pytest.mark.parametrize("case", rows(*((case,) for case in SMOOTH)))
def test_three_oracles_and_the_closed_form_agree_on_the_table_of_cases(case):
    layer, x = case.build()
    x = x[:2]
    exact = jacobian(layer, x)
    J, error = richardson(layer, x)
    assert np.abs(complex_step(layer, x) - exact.value).max() <= STEP * scale(exact)
    assert (np.abs(J - exact.value) <= ESTIMATE * error).all()
    assert error.max() <= EXTRAPOLATED * max(scale(exact), scale(output(layer, x)))
    assert by_row(layer.jacobian(x), exact) <= OWN
    assert by_row(layer.forward(x)[0], output(layer, x)) <= OWN


# the same draws each time: Richardson's error is an estimate, and where a layer's terms cancel it can be too small
@settings(EXAMPLES, derandomize=True)
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_three_oracles_agree_at_any_size(seed, n, d, h, E, data):
    rng = np.random.default_rng(seed)
    options = {"renormalize": data.draw(st.booleans()), "temperature": data.draw(st.sampled_from([0.5, 1.0, 3.0]))}
    kind = data.draw(st.sampled_from([gelu, swiglu]))
    layer = mixture(rng, E, d, h, data.draw(st.integers(1, E)), kind=kind, bias=rng.standard_normal(E), **options)
    x = rng.standard_normal((n, d))
    exact = jacobian(layer, x)
    J, error = richardson(layer, x)
    assert np.abs(complex_step(layer, x) - exact.value).max() <= STEP * max(scale(exact), 1)
    inside = np.isfinite(error)  # a token may be drawn on an edge
    assert (np.abs(J - exact.value)[inside] <= 2 * ESTIMATE * error[inside]).all()  # many more draws than cases


@pytest.mark.parametrize("name", list(HANDFUL))
def test_our_own_error_is_rounding(name):
    found = oracles.own_error(cases=[HANDFUL[name]])
    assert max(row.by_row for row in found) <= OWN
    single = oracles.own_error(cases=[HANDFUL[name]], dtype=np.float32)
    assert max(row.by_row for row in single) <= OWN
    assert [row.quantity for row in found] == [row.quantity for row in single]
    named = {row.quantity for row in found}
    assert {path.rpartition(".")[2] for path, _ in tree.named_leaves(HANDFUL[name].layer)} <= named
    if isinstance(HANDFUL[name].layer, MoE):
        assert {"expert_jacobian", "router_jacobian", "gates", "scores"} <= named


def test_the_handful_is_small_and_of_every_kind():
    assert 8 <= len(HANDFUL) <= 10
    for case in HANDFUL.values():
        n, d = case.x.shape
        assert n <= 3
        assert d <= 4
        assert case.dy.shape == (n, case.layer.widths[-1])
        assert (room(case.layer, case.x, 1 / 64) == 1 / 64).all()
    for again in handful():
        np.testing.assert_array_equal(again.x, HANDFUL[again.name].x)


@pytest.mark.parametrize("name", ["soft", "top2_not_renormalized", "top3_biased_cold"])
def test_the_two_terms_make_the_whole_and_the_mean_is_the_weighted_one(name):
    case = HANDFUL[name]
    w = np.array([1.0, 3.0])
    found = oracles.answers(case.layer, case.x, case.dy, w, parameters=False)
    assert "router" not in found
    J, first, second = (found[part] for part in ("jacobian", "expert_jacobian", "router_jacobian"))
    whole = (first.value - J.value) + second.value + (first.rest - J.rest + second.rest)
    assert np.abs(whole).max() <= 4 * np.finfo(float).eps * scale(J)  # the sum of the values is rounded
    assert np.abs(second.value).max() > 1e-3 * scale(J)
    assert by_row(case.layer.mean_jacobian(case.x, w), found["mean_jacobian"]) <= OWN
    assert (found["gates"].value.sum(axis=1) <= 1 + 1e-15).all()
    assert ((found["gates"].value != 0).sum(axis=1) == case.layer.k).all()


def test_gradients_are_the_jacobian_read_from_the_left():
    case = HANDFUL["block"]
    found = oracles.gradients(case.layer, case.x, case.dy)
    J = jacobian(case.layer, case.x).value
    np.testing.assert_allclose(found["gradient"].value, np.einsum("no,noi->ni", case.dy, J), rtol=0, atol=1e-13)
    assert list(found)[1:] == [name for name, _ in tree.named_leaves(case.layer)]
    for name, leaf in tree.named_leaves(case.layer):
        assert found[name].value.shape == leaf.shape


# ---- how right the exact answers are ---------------------------------------------------------------------------------


def apart(a, b):
    """Largest difference of two exact answers, beyond float64."""
    return np.abs((a.value - b.value) + (a.rest - b.rest)).max()


@pytest.mark.parametrize("name", ["gelu", "swiglu", "top2", "block"])
def test_another_step_and_more_digits_change_what_the_docstring_says(name):
    case = HANDFUL[name]
    best = jacobian(case.layer, case.x, digits=90)
    for digits in (30, 36, 42):
        error = apart(jacobian(case.layer, case.x, digits=digits), best) / scale(best)
        # 10^(-2/3 digits) times the third derivative, of the order of the first or ten times that
        assert 1e-3 * 10 ** (-2 * digits / 3) <= error <= 1e2 * 10 ** (-2 * digits / 3)
    assert apart(jacobian(case.layer, case.x), best) <= 1e-30 * scale(best)
    gradients = oracles.gradients(case.layer, case.x[:1], case.dy[:1])
    for group, exact in oracles.gradients(case.layer, case.x[:1], case.dy[:1], digits=90).items():
        assert apart(gradients[group], exact) <= 1e-30 * max(scale(exact), 1)


@given(seeds, st.integers(1, 5))
@EXAMPLES
def test_value_and_rest_are_the_exact_number_rounded(seed, d):
    """An affine map of floats is a fraction, and Python has those."""
    rng = np.random.default_rng(seed)
    layer, x = linear(rng, d, 1), rng.standard_normal((1, d))
    y = output(layer, x)
    w, b = (list(map(Fraction, leaf.ravel().tolist())) for leaf in (layer.W, layer.b))
    exact = sum((a * c for a, c in zip(w, map(Fraction, x[0].tolist()), strict=True)), b[0])
    assert y.value.item() == float(exact)  # correctly rounded
    assert abs(float(exact - Fraction(y.value.item()) - Fraction(y.rest.item()))) <= 1e-31 * max(abs(float(exact)), 1)
    assert abs(y.rest.item()) <= np.spacing(abs(y.value.item())) / 2


def test_the_callers_precision_stays_as_it_is():
    import mpmath

    before = mpmath.mp.dps
    jacobian(HANDFUL["gelu"].layer, HANDFUL["gelu"].x, digits=70)
    assert mpmath.mp.dps == before


def test_ulps_counts_last_places():
    exact = Exact(np.array([1.0, 1.0, 0.0, 0.0, 3.0, 1.0]), np.array([0.0, 2.0**-54, 0.0, 0.0, 0.0, 0.0]))
    got = np.array([1 + 2.0**-52, 1.0, 0.0, 1.0, 3.0, np.nan])
    assert ulps(got, exact)[[0, 1, 2, 4]].tolist() == [1, 0.25, 0, 0]
    assert np.isnan(ulps(got, exact)[5])
    assert ulps(got, exact, exact.value)[3] == np.inf
    assert ulps(got, exact, 4.0)[[0, 1, 2, 3]].tolist() == [0.25, 0.0625, 0, 2.0**50]
    single = ulps(np.array([1 + 2.0**-23], np.float32), Exact(np.ones(1), np.zeros(1)))
    assert single.dtype == np.float64
    assert single.tolist() == [1]


# ---- edges of the routing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renormalize", [True, False])
def test_at_a_tie_two_oracles_are_in_our_piece_and_the_third_says_that_it_cannot_tell(rng, renormalize):
    moe = replace(
        mixture(rng, 3, 2, 4, 1 + renormalize, renormalize=renormalize),
        router=np.array([[1.0, 1.0], [2.0, 1.0], [2.0, 2.0]]) * (-1 if renormalize else 1),
    )
    # scores of token 0: 1, 2, 2 or their negatives: 1 and 2 tie, and only the second number moves them apart
    x = np.array([[1.0, 0.0], [0.3, 0.9]])
    ours = moe.jacobian(x)
    assert by_row(ours, jacobian(moe, x)) <= OWN
    assert np.abs(complex_step(moe, x) - ours).max() <= STEP * np.abs(ours).max()
    J, error = richardson(moe, x)
    nan = np.zeros_like(J, bool)
    nan[0, :, 1] = True
    np.testing.assert_array_equal(np.isnan(J), nan)
    np.testing.assert_array_equal(np.isinf(error), nan)
    assert (np.abs(J - ours)[~nan] <= ESTIMATE * error[~nan]).all()
    assert room(moe, x)[0].tolist() == [0.25, 0]


def test_ties_of_equal_routers_go_to_the_lower_expert_in_every_field():
    layer, x = BY_NAME["ties"].build()
    assert by_row(layer.jacobian(x), jacobian(layer, x)) <= OWN
    J, error = richardson(layer, x)  # no step tells two equal experts apart
    assert (np.abs(J - layer.jacobian(x)) <= ESTIMATE * error).all()


@EXAMPLES
@given(seeds, st.integers(2, 5), st.integers(1, 4), st.data())
def test_room_is_the_distance_to_the_nearest_edge_along_an_axis_halved_at_most_once_too_often(seed, E, d, data):
    rng = np.random.default_rng(seed)
    k, h = data.draw(st.integers(1, E - 1)), 0.5
    moe, x = mixture(rng, E, d, 1, k, temperature=0.5), rng.standard_normal((3, d))
    s, chosen, found = x @ moe.router.T, moe.route(x)[1], room(moe, x, h)
    for n, i in np.ndindex(x.shape):
        others = [e for e in range(E) if e not in chosen[n]]
        # s_e - s_j - t |w_e - w_j| = 0, for steps to either side
        edges = [
            (s[n, e] - s[n, j]) / max(abs(moe.router[e, i] - moe.router[j, i]), 1e-300)
            for e in chosen[n]
            for j in others
        ]
        edge = min(edges)
        assert found[n, i] <= edge * (1 + 1e-9)
        assert found[n, i] == h or 2 * found[n, i] >= edge * (1 - 1e-9) or edge < h / 2**23


def test_a_first_step_over_an_edge_is_made_smaller():
    moe, x = HANDFUL["switch"].layer, HANDFUL["switch"].x
    assert room(moe, x, 16.0).min() < 16
    J, error = richardson(moe, x, 16.0)
    exact = jacobian(moe, x)
    assert (np.abs(J - exact.value) <= ESTIMATE * error).all()
    assert error.max() <= EXTRAPOLATED * scale(exact) * 10


# ---- planted faults --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faulty:
    """A copy of the closed forms of an expert and of a mixture, in which one thing can be wrong."""

    fault: str = ""

    def expert(self, f, x):
        """(n, o, d)."""
        z = x @ f.W1.T + f.b1
        slope = (scalar.gelu_tanh if self.fault == "slope of the other GELU" else scalar.gelu)(z)[1]
        if self.fault == "value for slope":
            slope = scalar.gelu(z)[0]
        W2 = f.W2.T if self.fault == "transposed weight" else f.W2
        return np.einsum("oh,nh,hi->noi", W2, slope, f.W1)

    def mixture(self, moe, x):
        """(n, o, d)."""
        gates, _ = moe.route(x)
        q = moe.routing(x).q
        if self.fault == "gates not kept to the chosen":
            gates = scalar.softmax(moe.scores(x))
        J = sum(gates[:, e, None, None] * self.expert(f, x) for e, f in enumerate(moe.experts))
        if self.fault == "dropped router term":
            return J
        W = moe.router if self.fault == "forgotten temperature" else moe.router / moe.temperature
        F = np.stack([f.forward(x)[0] for f in moe.experts], axis=-1)  # (n, o, E)
        mean = (gates if self.fault == "mean over the chosen alone" else q) @ W
        return J + np.einsum("noe,ned->nod", F, gates[:, :, None] * (W[None] - mean[:, None, :]))


def square(rng):
    """A mixture in which every weight may be transposed, and no gate adds up to 1."""
    return mixture(rng, 3, 3, 3, 2, renormalize=False, temperature=0.7)


def disagrees(oracle, layer, x, got):
    """Whether an oracle tells, at its own stated error, that a Jacobian is not that of a layer."""
    if oracle == "mpmath":
        return by_row(got, jacobian(layer, x)) > OWN
    if oracle == "complex step":
        found = complex_step(layer, x)
        return bool((np.abs(got - found) > STEP * np.abs(found).max()).any())
    found, error = richardson(layer, x)
    return bool((np.abs(got - found) > ESTIMATE * error).any())


FAULTS = ["slope of the other GELU", "value for slope", "transposed weight", "gates not kept to the chosen"]
FAULTS += ["dropped router term", "forgotten temperature", "mean over the chosen alone"]


@pytest.mark.parametrize("oracle", ["mpmath", "complex step", "richardson"])
@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_each_oracle_tells_a_planted_fault_and_nothing_else(oracle, fault):
    rng = np.random.default_rng(3)
    moe = square(rng)
    x = rng.standard_normal((2, 3))
    assert room(moe, x, 1 / 64).min() > 0
    assert disagrees(oracle, moe, x, Faulty(fault).mixture(moe, x)) == (fault != "")


@pytest.mark.parametrize("leaf", ["W1", "b1", "W2", "b2"])
def test_a_planted_fault_in_a_gradient_is_told(leaf):
    case = HANDFUL["gelu"]
    y, trace = case.layer.forward(case.x)
    _, gradient = case.layer.vjp(trace, case.dy)
    exact = oracles.gradients(case.layer, case.x, case.dy)[leaf]
    right = dict(tree.named_leaves(gradient))[leaf]
    assert by_row(right, exact) <= OWN
    assert by_row(right / len(y), exact) > 1e10  # the mean over tokens for the sum
    assert by_row(right[::-1], exact) > 1e10


# ---- balance losses --------------------------------------------------------------------------------------------------

LOSSES = [Balance(kind) for kind in ("switch", "gshard", "importance", "z")]
LOSSES += [Balance("switch", count="per choice"), Balance("switch", first_choice=True, weight=0.01)]
LOSSES += [Balance("gshard", first_choice=False, count="per choice", scale="E/k"), Balance("gshard", scale="1")]
LOSSES += [Balance("switch", fraction="soft"), Balance("switch", fraction="held", count="per choice")]
LOSSES += [Balance("importance", gates="renormalized", variance="sample"), Balance("importance", gates="kept")]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}-{loss.count}-{loss.fraction}-{loss.gates}")
def test_balance_losses_and_their_gradients(rng, loss):
    scores = rng.standard_normal((4, 3))
    chosen = np.argsort(-scores, axis=1)[:, :2]
    value, dscores = oracles.balance(loss, scores, chosen)
    ours, dours = loss(scores, chosen)
    assert ulps(np.array(ours), value) <= 32
    assert by_row(dours, dscores) <= OWN
    # a constant on all scores of a token moves the z loss alone
    moved = np.abs(dscores.value.sum(axis=1)).max() > 1e-12
    assert moved == (loss.kind == "z")


def test_a_wrong_balance_gradient_is_told(rng):
    scores = rng.standard_normal((4, 3))
    chosen = np.argsort(-scores, axis=1)[:, :2]
    _, held = oracles.balance(Balance(fraction="held"), scores, chosen)
    assert by_row(Balance(fraction="soft")(scores, chosen)[1], held) > 1e10


# ---- elementary functions --------------------------------------------------------------------------------------------


def test_the_scalar_functions_are_right_to_a_few_eps():
    found = {(row.name, row.dtype): row for row in oracles.elementary()}
    assert len(found) == 24
    for (name, _), row in found.items():
        # 9.5 is that of the tanh GELU's slope, 1 - t^2 times z (1 + 3 b z^2); the next is 4.5, that of silu's
        assert row.mixed < (16 if name == "gelu_tanh slope" else 8)
        assert max(abs(row.absolute_at), abs(row.mixed_at), abs(row.relative_at)) < 12.01
    for dtype in ("float64", "float32"):
        assert found["normal", dtype].absolute < 2  # as its docstring says
        assert found["normal density", dtype].absolute < 2
        assert found["gelu slope", dtype].absolute < 4


def test_the_wrong_elementary_function_is_told(monkeypatch):
    table = {"gelu slope": (lambda z: scalar.gelu_tanh(z)[1], measured._ELEMENTARY["gelu slope"][1])}
    monkeypatch.setattr(measured, "_ELEMENTARY", table)
    row = oracles.elementary()[0]
    assert 8e-4 < row.absolute * np.finfo(float).eps < 9e-4  # 8.7e-4 apart


# ---- bad input -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unknown:
    """A layer that has no scalar program."""

    layer: Any = None


def test_without_mpmath_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    with pytest.raises(ImportError, match=r"pip install 'npmoe\[verify\]'"):
        output(HANDFUL["gelu"].layer, HANDFUL["gelu"].x)
    complex_step(HANDFUL["gelu"].layer, HANDFUL["gelu"].x)  # needs it not


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, x, dy: output(Unknown(), x), TypeError, "a layer among GeluExpert, SwigluExpert.*; got Unknown"),
        (lambda f, x, dy: richardson(Unknown(), x), TypeError, "there is no scalar program"),
        (lambda f, x, dy: complex_step(Stack((f, f)), x[:, :3]), ValueError, "expected x of shape"),
        (lambda f, x, dy: jacobian(f, x[0]), ValueError, r"expected x of shape \(n, 4\), the width of this GeluExpert"),
        (lambda f, x, dy: jacobian(f, x + 0j), TypeError, "expected real x"),
        (lambda f, x, dy: jacobian(f, x * np.nan), ValueError, "expected x to be finite"),
        (lambda f, x, dy: output(replace(f, b1=f.b1 * np.inf), x), ValueError, "expected b1 to be finite"),
        (lambda f, x, dy: jacobian(f, x, digits=16), ValueError, "expected digits of at least 30"),
        (lambda f, x, dy: oracles.gradients(f, x, dy[:1]), ValueError, r"expected dy of shape \(3, 4\)"),
        (lambda f, x, dy: oracles.answers(f, x[:0], dy[:0]), ValueError, "expected at least one token"),
        (lambda f, x, dy: oracles.terms(f, x), TypeError, "expected a MoE"),
        (lambda f, x, dy: room(f, x, 0.0), ValueError, "expected h to be a finite number above 0"),
        (lambda f, x, dy: richardson(f, x, -1.0), ValueError, "expected h to be a finite number above 0"),
        (lambda f, x, dy: ulps(x, output(f, x[:2])), ValueError, "expected as many numbers as exact ones"),
        (lambda f, x, dy: oracles.elementary(["gelo"]), ValueError, "expected names among .*; got 'gelo'"),
        (
            lambda f, x, dy: oracles.balance(Balance(mask=np.ones(3)), x, np.zeros((3, 1), int)),
            ValueError,
            "without a mask",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_input_is_named(call, error, message):
    rng = np.random.default_rng(0)
    f = gelu(rng, 4, 3, 4)
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        call(f, rng.standard_normal((3, 4)), rng.standard_normal((3, 4)))


def test_no_tokens_have_no_jacobians(rng):
    for layer in (mixture(rng, 3, 2, 2, 1), RMSNorm(np.ones(2)), Stack((norm(rng, 2), gelu(rng, 2, 3, 4)))):
        x, shape = np.zeros((0, 2)), (0, layer.widths[-1], 2)
        assert jacobian(layer, x).value.shape == complex_step(layer, x).shape == richardson(layer, x)[0].shape == shape
        assert output(layer, x).value.shape == shape[:2]


def test_float32_parameters_are_taken_as_they_are():
    layer = Linear(np.array([[0.1]], np.float32), np.zeros(1, np.float32))
    assert jacobian(layer, np.ones((1, 1), np.float32)).value.item() == float(np.float32(0.1))
    f = GeluExpert(*(np.full(s, 0.1, np.float32) for s in ((2, 2), (2,), (1, 2), (1,))))
    assert complex_step(f, np.ones((1, 2), np.float32)).dtype == np.float64
