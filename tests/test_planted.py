"""Tests of the tests: planted errors, classic ones and ones of 1e-5, that the laws must catch.

A plant breaks a layer of the table, or the module beneath it; above it stands the layer and the laws that must see it.
That the sound layers pass the same laws is what test_laws.py says.
"""

from dataclasses import replace

import numpy as np
import pytest
import test_laws as laws
from cases import BY_NAME, rows

from npmoe import GeluExpert, MoE, Residual, RMSNorm, Stack, SwigluExpert
from npmoe.calculus import factored, scalar
from npmoe.calculus.factored import Factored
from npmoe.model import gate as gate_module
from npmoe.model import moe as moe_module
from npmoe.model import routing
from npmoe.model.gate import Gate

SMALL = 1e-5  # relative: what no test that compares a few decimals would see
DERIVATIVE = (laws.gradient, laws.complex_step)
JACOBIAN = (laws.taylor, laws.complex_step_of_jacobian)
PLANTS = []


def caught(case, *by):
    """Enter a plant in the table: the layer that it breaks, and the laws that must each catch it."""

    def enter(plant):
        PLANTS.extend((plant, law, BY_NAME[case]) for law in by)
        return plant

    return enter


def broken(layer, base, **methods):
    """`layer` with some methods replaced, in a subclass of its own; inside a mixture, each of its experts."""
    if isinstance(layer, MoE) and base is not MoE:
        return replace(layer, experts=tuple(broken(f, base, **methods) for f in layer.experts))
    assert type(layer) is base, f"the plant is for {base.__name__}, not for {type(layer).__name__}"
    kind = type(f"Broken{base.__name__}", (base,), methods)
    return kind(**{name: getattr(layer, name) for name in layer.__dataclass_fields__})


# ---- plants in the scalar maps -------------------------------------------------------------------------------------


@caught("gelu", *DERIVATIVE, *JACOBIAN)
def tanh_value_with_erf_slope(patch, layer):
    """numpy-ml's mistake: 8e-4 off under green tests."""
    patch.setitem(scalar.ACTIVATIONS, "gelu", lambda z: (scalar.gelu_tanh(z)[0], scalar.gelu(z)[1]))
    return layer


@caught("gelu", *DERIVATIVE, *JACOBIAN)
def erf_value_with_tanh_slope(patch, layer):
    patch.setitem(scalar.ACTIVATIONS, "gelu", lambda z: (scalar.gelu(z)[0], scalar.gelu_tanh(z)[1]))
    return layer


@caught("top2", *DERIVATIVE, *JACOBIAN)
def slope_a_little_steep(patch, layer):
    patch.setitem(scalar.ACTIVATIONS, "gelu", lambda z: (scalar.gelu(z)[0], scalar.gelu(z)[1] * (1 + SMALL)))
    return layer


@caught("linear_gelu", *DERIVATIVE, *JACOBIAN)
def slope_without_the_density(patch, layer):
    patch.setitem(scalar.ACTIVATIONS, "gelu", lambda z: (scalar.gelu(z)[0], scalar.normal(z)[0]))
    return layer


# ---- plants in experts and layers ------------------------------------------------------------------------------------


@caught("gelu_square", laws.transpose, *DERIVATIVE)
def first_weight_transposed(patch, layer):
    def vjp(self, trace, dy, wrt_x=True):
        return (dy @ self.W2 * trace.slope) @ self.W1.T, GeluExpert.vjp(self, trace, dy)[1]

    return broken(layer, GeluExpert, vjp=vjp)


@caught("gelu", *DERIVATIVE)
def bias_without_gradient(patch, layer):
    def vjp(self, trace, dy, wrt_x=True):
        dx, bar = GeluExpert.vjp(self, trace, dy, wrt_x)
        return dx, replace(bar, b1=0 * bar.b1)

    return broken(layer, GeluExpert, vjp=vjp)


@caught("gelu", *DERIVATIVE)
def gradient_a_little_long(patch, layer):
    def vjp(self, trace, dy, wrt_x=True):
        dx, bar = GeluExpert.vjp(self, trace, dy, wrt_x)
        return dx, replace(bar, W2=bar.W2 * (1 + SMALL))

    return broken(layer, GeluExpert, vjp=vjp)


@caught("gelu_one_token", laws.transpose, *DERIVATIVE)
def gradient_without_slope(patch, layer):
    def vjp(self, trace, dy, wrt_x=True):
        return GeluExpert.vjp(self, trace._replace(slope=np.ones_like(trace.slope)), dy, wrt_x)

    return broken(layer, GeluExpert, vjp=vjp)


@caught("soft", laws.transpose, *JACOBIAN)
def one_row_of_one_jacobian_off(patch, layer):
    """One token's slope of one hidden unit, of one expert."""

    def linearize(self, x):
        J = GeluExpert.linearize(self, x)
        S = J.S.copy()
        S[0, :1, 0] *= 1 + SMALL
        return Factored(J.L, S, J.R)

    if isinstance(layer, MoE):
        return replace(layer, experts=(broken(layer.experts[0], GeluExpert, linearize=linearize), *layer.experts[1:]))
    return broken(layer, GeluExpert, linearize=linearize)


@caught("norm", laws.transpose, laws.complex_step_of_jacobian)
@caught("gelu", laws.transpose, laws.complex_step_of_jacobian, laws.factors_are_the_jacobian)
def one_entry_of_the_jacobian_off(patch, layer):
    def jacobian(self, x):
        J = type(layer).jacobian(self, x)
        J[-1, -1, -1] *= 1 + SMALL
        return J

    return broken(layer, type(layer), jacobian=jacobian)


@caught("swiglu", laws.transpose, *JACOBIAN)
def second_term_forgotten(patch, layer):
    def linearize(self, x):
        J = SwigluExpert.linearize(self, x)
        return Factored(J.L, J.S[:1], J.R[:1])

    return broken(layer, SwigluExpert, linearize=linearize)


@caught("swiglu_narrow_output", laws.transpose, *JACOBIAN)
def terms_exchanged(patch, layer):
    def linearize(self, x):
        J = SwigluExpert.linearize(self, x)
        return Factored(J.L, J.S[::-1], J.R)

    return broken(layer, SwigluExpert, linearize=linearize)


@caught("swiglu", laws.transpose, *DERIVATIVE)
def gate_without_gradient(patch, layer):
    def vjp(self, trace, dy, wrt_x=True):
        return SwigluExpert.vjp(self, trace._replace(slope=0 * trace.slope), dy, wrt_x)

    return broken(layer, SwigluExpert, vjp=vjp)


@caught("norm", laws.transpose, *DERIVATIVE)
def norm_as_a_constant(patch, layer):
    """The classic stop-gradient through the norm."""

    def vjp(self, trace, dy, wrt_x=True):
        return dy * self.gamma * trace.inverse, RMSNorm.vjp(self, trace, dy)[1]

    return broken(layer, RMSNorm, vjp=vjp)


@caught("norm_near_zero", laws.transpose, *JACOBIAN)
def eps_forgotten_in_the_jacobian(patch, layer):
    return broken(layer, RMSNorm, jacobian=lambda self, x: replace(layer, eps=0.0).jacobian(x))


@caught("residual", laws.transpose, *JACOBIAN)
def residual_forgotten(patch, layer):
    return broken(layer, Residual, jacobian=lambda self, x: self.layer.jacobian(x))


@caught("block", laws.transpose, *DERIVATIVE)
def residual_forgotten_backward(patch, layer):
    def vjp(self, trace, dy, wrt_x=True):
        dx, bar = Residual.vjp(self, trace, dy, wrt_x)
        return dx - dy, bar

    return broken(layer, Residual, vjp=vjp)


@caught("stack_of_squares", laws.transpose, *JACOBIAN)
def chain_the_wrong_way_round(patch, layer):
    def jacobian(self, x):
        J = np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
        for inner in self.layers:
            J, x = J @ inner.jacobian(x), inner.forward(x)[0]
        return J

    return broken(layer, Stack, jacobian=jacobian)


@caught("stack_of_squares", laws.transpose, *JACOBIAN)
def chain_at_the_first_input(patch, layer):
    """Every layer linearized at x, not at what reaches it."""

    def jacobian(self, x):
        J = self.layers[0].jacobian(x)
        for inner in self.layers[1:]:
            J = inner.jacobian(x) @ J
        return J

    return broken(layer, Stack, jacobian=jacobian)


@caught("gelu", laws.batch_equals_its_rows)
def tokens_leak(patch, layer):
    """A mean over the batch, as a batch norm would take it."""

    def forward(self, x):
        return type(layer).forward(self, x + SMALL * x.mean(axis=0))

    return broken(layer, type(layer), forward=forward)


@caught("top2", laws.batch_equals_its_rows, laws.permuted_tokens)
def place_matters(patch, layer):
    def forward(self, x):
        y, trace = type(layer).forward(self, x)
        return y + SMALL * np.arange(len(x))[:, None], trace

    return broken(layer, type(layer), forward=forward)


@caught("swiglu", laws.writes_to_nothing)
def input_scribbled_on(patch, layer):
    def forward(self, x):
        x *= 1
        return type(layer).forward(self, x)

    return broken(layer, type(layer), forward=forward)


@caught("gelu", laws.writes_to_nothing)
def trace_scribbled_on(patch, layer):
    """Backward that works in the trace's own memory gives another answer the second time."""

    def vjp(self, trace, dy, wrt_x=True):
        trace.slope[...] *= 2
        return GeluExpert.vjp(self, trace, dy, wrt_x)

    return broken(layer, GeluExpert, vjp=vjp)


@caught("top2", laws.keeps_float32)
def float64_creeps_in(patch, layer):
    def forward(self, x):
        y, trace = type(layer).forward(self, x)
        return y * np.float64(1), trace

    return broken(layer, type(layer), forward=forward)


@caught("gelu", laws.mean_is_the_mean, laws.whole_weights_repeat_rows)
def mean_of_the_weighted(patch, layer):
    """Divided by n, not by the sum of the weights."""

    def mean(self, weights=None):
        return np.einsum("n,nod->od", np.ones(len(self)) if weights is None else weights, self.dense()) / len(self)

    patch.setattr(factored.Factored, "mean", mean)
    return layer


@caught("swiglu", laws.mean_is_the_mean, laws.whole_weights_repeat_rows)
def weights_forgotten(patch, layer):
    mean = factored.Factored.mean
    patch.setattr(factored.Factored, "mean", lambda self, weights=None: mean(self))
    return layer


@caught("gelu", laws.weights_have_no_unit)
def weights_padded(patch, layer):
    """A small number against division by zero, which is not small beside small weights."""
    mean = factored.Factored.mean
    patch.setattr(factored.Factored, "mean", lambda self, weights=None: mean(self, weights + SMALL))
    return layer


@caught("gelu", laws.parameters_only)
def short_cut_without_dx(patch, layer):
    """Where dx is not wanted, more is left out than dx."""

    def vjp(self, trace, dy, wrt_x=True):
        dx, bar = GeluExpert.vjp(self, trace, dy, wrt_x)
        return dx, bar if wrt_x else replace(bar, W1=0 * bar.W1)

    return broken(layer, GeluExpert, vjp=vjp)


@caught("gelu_square", laws.jvp_is_the_jacobian)
def jvp_reads_from_the_left(patch, layer):
    patch.setattr(factored.Factored, "apply", factored.Factored.apply_transpose)
    return layer


# ---- plants in the routing -------------------------------------------------------------------------------------------


@caught("soft", laws.transpose, *DERIVATIVE)
def gate_gradient_dropped(patch, layer):
    """Experts are trained, the router is not."""
    patch.setattr(moe_module, "route_vjp", lambda routing, dgates: 0 * dgates)
    return layer


@caught("top2", laws.transpose, *DERIVATIVE)
def gate_gradient_a_little_long(patch, layer):
    patch.setattr(moe_module, "route_vjp", lambda r, dgates: routing.route_vjp(r, dgates) * (1 + SMALL))
    return layer


@caught("top2_not_renormalized", laws.transpose, *DERIVATIVE)
def softmax_over_the_wrong_set(patch, layer):
    """Backward as if only the chosen shared the softmax, where all experts do."""

    def vjp(r, dgates):
        return routing.softmax_vjp(r.gates / r.gates.sum(axis=1, keepdims=True), dgates)

    patch.setattr(moe_module, "route_vjp", vjp)
    return layer


@caught("top2_not_renormalized", laws.transpose, *JACOBIAN)
def unselected_rows_forgotten(patch, layer):
    """Without renormalization the rows of the router that were not chosen matter too."""

    def gates_jacobian(r, W):
        mean = r.gates @ W
        return r.gates[:, :, None] * (W[None] - mean[:, None, :])

    patch.setattr(moe_module, "gates_jacobian", gates_jacobian)
    return layer


@caught("top2", laws.transpose, *JACOBIAN)
def router_term_forgotten(patch, layer):
    return broken(layer, MoE, jacobian=MoE.expert_jacobian)


@caught("top2_cold", laws.transpose, *DERIVATIVE)
def temperature_forgotten_backward(patch, layer):
    def vjp(self, trace, dy, wrt_x=True, dscores=0.0):
        return MoE.vjp(replace(layer, temperature=1.0), trace, dy, wrt_x, dscores)

    return broken(layer, MoE, vjp=vjp)


@caught("top3_biased", *DERIVATIVE)
def router_bias_without_gradient(patch, layer):
    def vjp(self, trace, dy, wrt_x=True, dscores=0.0):
        dx, bar = MoE.vjp(self, trace, dy, wrt_x, dscores)
        return dx, replace(bar, bias=0 * bar.bias)

    return broken(layer, MoE, vjp=vjp)


@caught("top2", laws.sum_of_gated_experts, laws.all_chosen_is_softmax)
def gates_of_the_neighbour(patch, layer):
    """Expert e weighted by the gate of expert e + 1: an index off by one."""

    def forward(self, x):
        r = self.routing(x)
        return MoE.forward(self, x)[0] + sum(
            (np.roll(r.gates, -1, axis=1) - r.gates)[:, e, None] * f.forward(x)[0] for e, f in enumerate(self.experts)
        ), MoE.forward(self, x)[1]

    return broken(layer, MoE, forward=forward)


@caught("soft", laws.relabelled_experts, laws.all_chosen_is_softmax)
def first_expert_favoured(patch, layer):
    """A score that knows the number of its expert."""
    return broken(layer, MoE, scores=lambda self, x: MoE.scores(self, x) + SMALL * np.arange(len(self.experts)))


@caught("top2", laws.gates_add_up)
def gates_that_leak(patch, layer):
    """A little gate for those who were not chosen."""

    def route(scores, k, renormalize=True):
        r = routing.route(scores, k, renormalize)
        return r._replace(gates=r.gates + SMALL * ~r.on)

    patch.setattr(gate_module, "route", route)
    return layer


@caught("groups_by_best_two", laws.gates_by_hand)
def groups_forgotten(patch, layer):
    """The choice goes over all groups: what masks the others was forgotten."""
    patch.setattr(Gate, "ranked", lambda self, scores: scores.real)
    return layer


@caught("soft", laws.gates_add_up, laws.all_chosen_is_softmax, *DERIVATIVE)
def gates_a_little_large(patch, layer):
    def route(scores, k, renormalize=True):
        r = routing.route(scores, k, renormalize)
        return r._replace(gates=r.gates * (1 + SMALL))

    patch.setattr(gate_module, "route", route)
    return layer


@caught("avoided_expert", laws.unused_experts_learn_nothing, laws.no_tokens, *DERIVATIVE)
def idle_experts_taught(patch, layer):
    """Weight decay that has crept into the gradient."""

    def vjp(self, trace, dy, wrt_x=True, dscores=0.0):
        dx, bar = MoE.vjp(self, trace, dy, wrt_x, dscores)
        return dx, replace(bar, experts=tuple(replace(b, b1=b.b1 + SMALL) for b in bar.experts))

    return broken(layer, MoE, vjp=vjp)


@caught("soft", laws.mean_of_the_mixture)
def mean_without_the_router(patch, layer):
    return broken(layer, MoE, mean_jacobian=lambda self, x, router=True: MoE.mean_jacobian(self, x, router=False))


# ---- each is caught --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plant", "law", "case"), rows(*PLANTS))
def test_planted(plant, law, case, monkeypatch):
    layer, x = case.build()
    layer = plant(monkeypatch, layer)
    # an array that cannot be written to says so itself, with a ValueError
    error = (AssertionError, ValueError) if law is laws.writes_to_nothing else AssertionError
    with pytest.raises(error):
        law(layer, x)


def test_every_law_has_caught_something():
    never = {*laws.OF_ALL, *laws.OF_SMOOTH, *laws.OF_EXPERTS, *laws.OF_MIXTURES, *laws.OF_SOFTMAX} - {
        law for _, law, _ in PLANTS
    }
    assert not never, f"no plant shows that these can fail: {sorted(law.__name__ for law in never)}"
