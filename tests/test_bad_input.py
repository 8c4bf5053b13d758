"""Bad input to calculus and model: one clear error, of what was expected and what came; and nothing is changed."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cases import ROUNDING, close, gelu, linear, mixture, norm, swiglu

import npmoe
from npmoe import GeluExpert, MoE, Residual, RMSNorm, Stack, SwigluExpert, init
from npmoe.calculus import tree
from npmoe.calculus.factored import Factored
from npmoe.probe import function

d, h, o, E = 3, 5, 2, 4
zeros = np.zeros


@pytest.fixture
def good(rng):
    """Sound layers and inputs, none of which can be written to."""
    f, g, moe = gelu(rng, d, h, o), swiglu(rng, d, h, o), mixture(rng, E, d, h, 2, o=o, bias=zeros(E))
    line, rms = linear(rng, d, o, "gelu"), norm(rng, d)
    x = rng.standard_normal((6, d))
    for leaf in (x, *(leaf for layer in (f, g, moe, line, rms) for leaf in tree.leaves(layer))):
        leaf.flags.writeable = False
    J = f.linearize(x)
    return SimpleNamespace(f=f, g=g, moe=moe, line=line, rms=rms, x=x, J=J, rng=rng)


def backward(layer, x, dy):
    return layer.vjp(layer.forward(x)[1], dy)


wide, ints = zeros((6, 9)), zeros((6, 3), int)
L, S, R = zeros((2, 5)), zeros((1, 6, 5)), zeros((1, 5, 3))

# The name of a row, what is called, and what the message must hold: the thing, what was expected of it, what came.
INPUTS = [
    ("x_too_wide_gelu", lambda s: s.f.forward(wide), "x of shape (n, 3), the width of this expert; got (6, 9)"),
    ("x_too_wide_swiglu", lambda s: s.g.forward(wide), "x of shape (n, 3), the width of this expert; got (6, 9)"),
    ("x_too_wide_moe", lambda s: s.moe.forward(wide), "x of shape (n, 3), the width of this mixture; got (6, 9)"),
    ("x_too_wide_route", lambda s: s.moe.route(wide), "x of shape (n, 3), the width of this mixture; got (6, 9)"),
    ("x_too_wide_linear", lambda s: s.line.forward(wide), "x of shape (n, 3), the width of this layer; got (6, 9)"),
    ("x_too_wide_norm", lambda s: s.rms.forward(wide), "x of shape (n, 3), the width of this norm; got (6, 9)"),
    ("x_too_wide_stack", lambda s: Stack((s.rms, s.f)).forward(wide), "x of shape (n, 3)", "got (6, 9)"),
    ("x_too_wide_jacobian", lambda s: s.moe.jacobian(wide), "x of shape (n, 3)", "got (6, 9)"),
    ("x_too_wide_mean", lambda s: s.f.mean_jacobian(wide), "x of shape (n, 3)", "got (6, 9)"),
    ("x_too_wide_hessian", lambda s: s.f.hessian_norm(wide), "x of shape (n, 3)", "got (6, 9)"),
    ("x_a_vector", lambda s: s.f.forward(zeros(3)), "x of shape (n, 3), the width of this expert; got (3,)"),
    ("x_a_cube", lambda s: s.moe.forward(zeros((2, 6, 3))), "x of shape (n, 3)", "got (2, 6, 3)"),
    ("dx_of_another_batch", lambda s: s.f.jvp(s.x, s.x[:2]), "dx of shape (6, 3) of x; got (2, 3)"),
    ("no_tokens", lambda s: s.f.mean_jacobian(s.x[:0]), "at least one token; got none"),
    ("no_tokens_weighted", lambda s: s.f.mean_jacobian(s.x[:0], zeros(0)), "at least one token; got none"),
    ("no_tokens_moe", lambda s: s.moe.mean_jacobian(s.x[:0]), "at least one token; got none"),
    ("inner", lambda s: s.J.inner(s.J[:2]), "of one shape (n, o, d); got (6, 2, 3) and (2, 2, 3)"),
    ("leading_steps", lambda s: s.J.leading(steps=0), "steps of at least 1; got 0"),
    ("leading_tol_below", lambda s: s.J.leading(tol=-1.0), "tol above 0; got -1.0"),
    ("leading_tol_0", lambda s: s.J.leading(tol=0.0), "tol above 0; got 0.0"),
    ("curvature_of_silu", lambda s: replace(s.f, activation="silu").hessian_norm(s.x), "exact GELU", "got 'silu'"),
    ("flat_vector", lambda s: tree.unflatten(zeros(7), s.f), "flat vector of 32 elements", "got (7,)"),
]

COTANGENTS = [
    (
        f"{kind}_{name}",
        lambda s, name=name, dy=dy: backward(getattr(s, name), s.x, dy),
        "dy of shape (6, ",
        str(dy.shape),
    )
    for name, width in (("f", o), ("g", o), ("moe", o), ("line", o), ("rms", d))
    for kind, dy in (
        ("dy_of_more_tokens", zeros((9, width))),
        ("dy_of_one_token", zeros((1, width))),
        ("dy_a_vector", zeros(width)),
        ("dy_too_wide", zeros((6, 7))),
    )
]

FIELDS = [
    ("W1", lambda s: replace(s.f, W1=zeros(5)), "W1 of shape (h, d) of GeluExpert; got (5,)"),
    ("b1", lambda s: replace(s.f, b1=zeros(4)), "b1 of shape (5,) of GeluExpert; got (4,)"),
    ("W2", lambda s: replace(s.f, W2=zeros((2, 4))), "W2 of shape (o, 5) of GeluExpert; got (2, 4)"),
    ("b2", lambda s: replace(s.f, b2=zeros((2, 1))), "b2 of shape (2,) of GeluExpert; got (2, 1)"),
    ("Wu", lambda s: replace(s.g, Wu=zeros((5, 4))), "Wu of shape (5, 3) of SwigluExpert; got (5, 4)"),
    ("Wd", lambda s: replace(s.g, Wd=zeros((5, 2))), "Wd of shape (o, 5) of SwigluExpert; got (5, 2)"),
    ("no_hidden", lambda s: GeluExpert(L[:0], zeros(0), L[:, :0], zeros(2)), "at least 1 of GeluExpert", "h = 0"),
    ("no_width", lambda s: SwigluExpert(L.T[:, :0], L.T[:, :0], L), "at least 1 of SwigluExpert", "d = 0"),
    ("b", lambda s: replace(s.line, b=zeros(3)), "b of shape (2,) of Linear; got (3,)"),
    ("gamma", lambda s: RMSNorm(zeros((3, 3))), "gamma of shape (d,) of RMSNorm; got (3, 3)"),
    ("eps_below", lambda s: RMSNorm(zeros(3), -1e-6), "eps of at least 0 of RMSNorm; got -1e-06"),
    ("eps_nan", lambda s: RMSNorm(zeros(3), math.nan), "eps of at least 0 of RMSNorm; got nan"),
    ("router_rows", lambda s: replace(s.moe, router=zeros((3, 3))), "tuple of 3 experts", "router; got 4"),
    ("router_width", lambda s: replace(s.moe, router=zeros((4, 7))), "experts of width 7", "(3, 2)"),
    ("router_bias", lambda s: replace(s.moe, bias=zeros(3)), "bias of shape (4,) of MoE; got (3,)"),
    ("experts_unequal", lambda s: MoE(zeros((2, 3)), (s.f, gelu(s.rng, d, h, 9)), 1), "one output width", "(3, 9)"),
    ("k_0", lambda s: replace(s.moe, k=0), "k within 1..4 of a mixture of 4 experts; got 0"),
    ("k_5", lambda s: replace(s.moe, k=5), "k within 1..4 of a mixture of 4 experts; got 5"),
    ("k_below", lambda s: replace(s.moe, k=-1), "k within 1..4 of a mixture of 4 experts; got -1"),
    ("temperature_0", lambda s: replace(s.moe, temperature=0.0), "temperature", "above 0", "got 0.0"),
    ("temperature_below", lambda s: replace(s.moe, temperature=-1.0), "temperature", "above 0", "got -1.0"),
    ("temperature_nan", lambda s: replace(s.moe, temperature=math.nan), "temperature", "got nan"),
    ("temperature_inf", lambda s: replace(s.moe, temperature=math.inf), "temperature", "got inf"),
    ("residual", lambda s: Residual(s.f), "equal widths inside a residual; got width 3 and output 2"),
    ("stack_misfit", lambda s: Stack((s.f, s.g)), "GeluExpert of output 2 in front of SwigluExpert of width 3"),
    ("stack_empty", lambda s: Stack(()), "tuple of at least one layer; got ()"),
    ("stack_a_list", lambda s: Stack([s.rms, s.f]), "tuple of at least one layer; got ["),
    ("activation", lambda s: replace(s.f, activation="relu"), "among gelu, gelu_tanh, silu; got 'relu'"),
    ("activation_linear", lambda s: replace(s.line, activation="GELU"), "among None, gelu", "got 'GELU'"),
    ("factors_h", lambda s: Factored(L, S[:, :, :4], R), "S of shape (t, n, 5) of Factored; got (1, 6, 4)"),
    ("factors_t", lambda s: Factored(L, S[[0, 0]], R), "R of shape (2, 5, d) of Factored; got (1, 5, 3)"),
    ("factors_flat", lambda s: Factored(L, S[0], R[0]), "S of shape (t, n, 5) of Factored; got (6, 5)"),
    ("scheme", lambda s: init.dense(s.rng, d, h, scheme="kaiming"), "xavier, he, normal002; got 'kaiming'"),
    ("init_E", lambda s: init.gelu_moe(s.rng, 0, d, h, 1), "E of at least 1; got 0"),
    ("init_h", lambda s: init.dense(s.rng, d, 0), "h of at least 1; got 0"),
    ("init_k", lambda s: init.swiglu_moe(s.rng, E, d, h, 9), "k within 1..4 of a mixture of 4 experts; got 9"),
    ("init_activation", lambda s: init.linear(s.rng, d, o, activation="tanh"), "got 'tanh'"),
]

WEIGHTS = [
    (f"{name}_{where}", lambda s, w=w, take=take: take(s, w), says)
    for where, take in (
        ("of_expert", lambda s, w: s.f.mean_jacobian(s.x, w)),
        ("of_factors", lambda s, w: s.J.mean(w)),
        ("of_moment", lambda s, w: s.J.second_moment(w)),
    )
    for name, w, says in (
        ("weights_of_others", np.ones(5), "weights of shape (6,); got (5,)"),
        ("weights_a_column", np.ones((6, 1)), "weights of shape (6,); got (6, 1)"),
        ("negative_weight", np.array([1, 1, -0.5, 1, 1, 1]), "weights to be non-negative; got -0.5 at 2"),
        ("all_zero_weights", zeros(6), "weights with a positive sum; got 6 zeros"),
        ("nan_weight", np.array([1, 1, 1, np.nan, 1, 1]), "weights to be finite; got nan at (3,)"),
        ("infinite_weight", np.array([np.inf, 1, 1, 1, 1, 1]), "weights to be finite; got inf at (0,)"),
    )
]

KINDS = [
    ("experts_a_list", lambda s: replace(s.moe, experts=[*s.moe.experts]), "tuple of 4 experts", "got list"),
    ("x_of_ints", lambda s: s.f.forward(ints), "x to be an array of floats; got int64 of shape (6, 3)"),
    ("x_of_bools", lambda s: s.moe.forward(ints > 0), "x to be an array of floats; got bool of shape (6, 3)"),
    ("x_of_objects", lambda s: s.rms.forward(ints.astype(object)), "x to be an array of floats; got object"),
    ("x_a_word", lambda s: s.line.forward("token"), "x to be an array of floats; got"),
    ("x_nothing", lambda s: s.g.forward(None), "x to be an array of floats; got"),
    ("x_of_ints_jacobian", lambda s: s.moe.jacobian(ints), "x to be an array of floats; got int64"),
    ("dy_of_ints", lambda s: backward(s.moe, s.x, ints[:, :2]), "dy to be an array of floats; got int64"),
    ("W1_of_ints", lambda s: replace(s.f, W1=ints[:5]), "W1 to be an array of floats; got int64 of shape (5, 3)"),
    ("router_of_ints", lambda s: replace(s.moe, router=ints[:4]), "router to be an array of floats; got int64"),
    ("weights_of_ints", lambda s: s.J.mean(np.ones(6, int)), "weights to be an array of floats; got int64"),
    ("k_a_float", lambda s: replace(s.moe, k=2.0), "k to be an integer; got 2.0"),
    ("k_a_bool", lambda s: replace(s.moe, k=True), "k to be an integer; got True"),
    ("renormalize", lambda s: replace(s.moe, renormalize="yes"), "renormalize to be True or False; got 'yes'"),
    ("temperature", lambda s: replace(s.moe, temperature="cold"), "temperature to be a number; got 'cold'"),
    ("init_d", lambda s: init.dense(s.rng, 3.0, h), "d to be an integer; got 3.0"),
]


def rows(error, *tables):
    return [pytest.param(error, call, says, id=name) for table in tables for name, call, *says in table]


BAD = rows(ValueError, INPUTS, COTANGENTS, FIELDS, WEIGHTS) + rows(TypeError, KINDS)
assert len({row.id for row in BAD}) == len(BAD)


@pytest.mark.parametrize(("error", "call", "says"), BAD)
def test_one_clear_error(error, call, says, good):
    """It begins with what was expected, names all that the row names, and what was there is as it was."""
    layers = (good.f, good.g, good.moe, good.line, good.rms)
    before = [tree.flatten(layer).tobytes() for layer in layers], good.x.tobytes()
    with pytest.raises(error, match="expected") as caught:
        call(good)
    message = str(caught.value)
    for part in says:
        assert part in message, message
    assert message.startswith("expected ")
    assert "got " in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "an error on top of an error"
    assert ([tree.flatten(layer).tobytes() for layer in layers], good.x.tobytes()) == before


def test_a_weight_of_nan_is_seen_even_where_its_slope_is_zero(good):
    with pytest.raises(ValueError, match="finite"):
        Factored(zeros((2, 1)), zeros((1, 2, 1)), zeros((1, 1, 3))).mean(np.array([1.0, np.nan]))


@pytest.mark.parametrize("name", ["f", "g", "line", "rms", "moe"])
def test_nan_in_a_token_stays_in_that_token(good, name):
    """A forward map passes NaN on, in that row and no other; what measures an expert or a mixture refuses it."""
    layer, x = getattr(good, name), good.x.copy()
    x[2, 1] = np.nan
    got, want = layer.forward(x)[0], layer.forward(good.x)[0]
    assert np.isnan(got[2]).any()
    close(np.delete(got, 2, axis=0), np.delete(want, 2, axis=0), ROUNDING)
    measures = {"f": ("linearize", "jacobian", "mean_jacobian"), "g": ("linearize", "jacobian", "mean_jacobian")}
    measures["moe"] = ("route", "jacobian", "expert_jacobian", "router_jacobian", "mean_jacobian")
    for measure in measures.get(name, ()):
        with pytest.raises(ValueError, match=r"expected x to be finite; got nan at \(2, 1\)"):
            getattr(layer, measure)(x)


@pytest.mark.parametrize("name", ["f", "g", "line", "rms", "moe"])
def test_lists_of_floats_are_arrays(good, name):
    """What NumPy takes for an array is one, all the way through the backward pass."""
    layer = getattr(good, name)
    (y, trace), (want, same) = layer.forward(good.x.tolist()), layer.forward(good.x)
    np.testing.assert_array_equal(y, want)
    for got, wanted in zip(layer.vjp(trace, y), layer.vjp(same, y), strict=True):
        np.testing.assert_array_equal(tree.flatten(got), tree.flatten(wanted))


def test_a_frozen_layer_cannot_be_reassigned(good):
    for layer, field in ((good.f, "W1"), (good.moe, "k"), (good.rms, "gamma"), (good.J, "L")):
        with pytest.raises(AttributeError):
            setattr(layer, field, 0)


def test_layers_are_told_apart_by_identity(good):
    """`==` of arrays would be ambiguous; two layers are equal if they are one, so that they can be keys."""
    other = replace(good.f)
    assert good.f == good.f
    assert good.f != other
    assert len({good.f, other, good.moe, good.J}) == 4


def test_numbers_of_numpy_are_numbers(good):
    """What comes out of an array or a config file is as good as a Python number."""
    moe = replace(good.moe, k=np.int64(3), temperature=np.float32(2), renormalize=np.bool_(False))
    same = replace(good.moe, k=3, temperature=2, renormalize=False)
    np.testing.assert_array_equal(moe.forward(good.x)[0], same.forward(good.x)[0])


def test_products_with_a_stack_want_one_vector_a_token(rng):
    J = npmoe.init.dense(rng, d=3, h=4).linearize(rng.standard_normal((5, 3)))
    for product in (J.apply, J.apply_transpose):
        with pytest.raises(ValueError, match=r"expected [vu] of shape \(5, 3\) of this stack; got \(3,\)"):
            product(np.ones(3))


def test_probes_of_gelu_experts_say_so(rng):
    swiglu = npmoe.site(npmoe.init.swiglu_moe(rng, E=2, d=3, h=4, k=1), rng.standard_normal((5, 3)))
    for probe in (function.curvature, function.weight_norms):
        with pytest.raises(ValueError, match="got SwigluExpert"):
            probe(swiglu)
    with pytest.raises(TypeError, match="expected a MoE, an expert"):
        npmoe.site({"router": 1}, np.ones((2, 3)))
