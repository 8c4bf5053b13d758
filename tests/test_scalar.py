"""Scalar maps against mpmath over their whole range, and the softmax and its relatives.

Letters: z argument, a value, Phi and N the standard normal distribution and its density, p probabilities.
"""

from functools import cache

import mpmath
import numpy as np
import pytest
from cases import COMPLEX_STEP, ROUNDING, close
from hypothesis import given
from hypothesis import strategies as st

from npmoe.calculus import scalar
from npmoe.calculus.scalar import (
    gelu,
    gelu_curvature,
    gelu_tanh,
    logsumexp,
    logsumexp_vjp,
    normal,
    silu,
    softmax,
    softmax_vjp,
)

mpmath.mp.dps = 50
b, c = mpmath.mpf("0.044715"), mpmath.sqrt(2 / mpmath.pi)
Phi, N = mpmath.ncdf, mpmath.npdf


def sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


# Name -> ours, exact, and the error allowed in eps of the larger of 1 and the value; a little above what was measured
# on this grid. What is rounded near 1 is multiplied by z: by 9 at most for Phi, whose table ends there, by 37 at most
# for 1 + tanh(z/2), which only then is 2 or 0 exactly.
VALUES = {
    "Phi": (lambda z: normal(z)[0], Phi, 2),
    "N": (lambda z: normal(z)[1], N, 2),
    "gelu": (lambda z: gelu(z)[0], lambda z: z * Phi(z), 4),
    "gelu_slope": (lambda z: gelu(z)[1], lambda z: Phi(z) + z * N(z), 4),
    "gelu_curvature": (gelu_curvature, lambda z: (2 - z * z) * N(z), 4),
    "gelu_tanh": (lambda z: gelu_tanh(z)[0], lambda z: z * sigmoid(2 * c * (z + b * z**3)), 4),
    "gelu_tanh_slope": (
        lambda z: gelu_tanh(z)[1],
        lambda z: (
            sigmoid(2 * c * (z + b * z**3)) + z * c * (1 + 3 * b * z * z) / (2 * mpmath.cosh(c * (z + b * z**3)) ** 2)
        ),
        16,
    ),
    "silu": (lambda z: silu(z)[0], lambda z: z * sigmoid(z), 16),
    "sigmoid": (scalar.sigmoid, sigmoid, 2),
    "silu_slope": (lambda z: silu(z)[1], lambda z: sigmoid(z) * (1 + z * sigmoid(-z)), 16),
}
PAIRS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


@cache
def grid(dtype):
    """Points of the whole range: dense where the map lives, the table's cells from both sides, its edge, zeros."""
    rng, one = np.random.default_rng(0), np.dtype(dtype).type
    c = scalar._CELLS
    half = (rng.choice(np.arange(-9 * c, 9 * c), 60, replace=False) + 0.5) / c  # where the nearest node changes
    nodes = rng.choice(np.arange(-9 * c, 9 * c + 1), 30, replace=False) / c
    edge = np.array([-9, -9 + 0.5 / c, -9 + 1 / c, 9 - 1 / c, 9 - 0.5 / c, 9])
    seams = np.concatenate([half, nodes, edge]).astype(dtype)
    around = [seams, np.nextafter(seams, one(100)), np.nextafter(seams, one(-100))]
    free = [rng.uniform(-10, 10, 300), rng.uniform(-45, 45, 60), [0.0, -0.0, 1e-8, -1e-8, 1e-30, -1e-30, 1e4, -1e4]]
    return np.concatenate([*around, *(np.asarray(z, dtype) for z in free)])


@cache
def exact(name, dtype):
    return np.array([float(VALUES[name][1](mpmath.mpf(float(z)))) for z in grid(dtype)])


@pytest.mark.underflow  # densities of what is 40 standard deviations away
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", VALUES)
def test_value_and_slope_against_mpmath(name, dtype):
    z = grid(dtype)
    ours, _, eps = VALUES[name]
    got, want = ours(z), exact(name, dtype)
    assert got.dtype == dtype
    close(got, want, eps * np.finfo(dtype).eps, scale=1)


@pytest.mark.parametrize("pair", PAIRS)
def test_slope_is_of_this_value(pair):
    """By mpmath's own differentiation of the value, a route that knows no formula for the slope."""
    z = np.concatenate([np.linspace(-6, 6, 49), [-9, 9, 0.5 / scalar._CELLS]])
    want = [float(mpmath.diff(VALUES[pair][1], mpmath.mpf(float(at)))) for at in z]
    close(PAIRS[pair](z)[1], want, 16 * np.finfo(float).eps, scale=1)


@pytest.mark.parametrize("pair", PAIRS)
def test_slope_is_the_complex_step_of_the_value(pair):
    z = np.linspace(-6, 6, 481)
    with np.errstate(under="ignore"):  # the step's square
        a, slope = PAIRS[pair](z + 1e-30j)
    close(a.imag / 1e-30, PAIRS[pair](z)[1], COMPLEX_STEP)
    close(a.real, PAIRS[pair](z)[0], COMPLEX_STEP)
    close(slope.real, PAIRS[pair](z)[1], COMPLEX_STEP)


def test_curvature_is_the_complex_step_of_the_slope():
    z = np.linspace(-6, 6, 481)
    with np.errstate(under="ignore"):
        slope = gelu(z + 1e-30j)[1]
    close(slope.imag / 1e-30, gelu_curvature(z), COMPLEX_STEP)


def test_exact_and_tanh_are_two_pairs():
    """They differ by up to 4.7e-4 in value and 8.7e-4 in slope: mixing them would show."""
    z = np.linspace(-6, 6, 20001)
    (a, slope), (a_tanh, slope_tanh) = gelu(z), gelu_tanh(z)
    assert 4.6e-4 < np.abs(a - a_tanh).max() < 4.8e-4
    assert 8.6e-4 < np.abs(slope - slope_tanh).max() < 8.8e-4


def test_a_sigmoid_by_the_complex_step_and_at_its_ends():
    z = np.linspace(-40, 40, 481)
    with np.errstate(under="ignore"):
        p = scalar.sigmoid(z + 1e-30j)
    close(p.imag / 1e-30, scalar.sigmoid(z) * scalar.sigmoid(-z), COMPLEX_STEP)
    np.testing.assert_array_equal(scalar.sigmoid(np.array([-1e4, 1e4, np.nan])), [0, 1, np.nan])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("function", [*PAIRS.values(), normal], ids=lambda f: f.__name__)
def test_nan_in_nan_out_and_only_there(function, dtype):
    z = np.array([-1, np.nan, 2, -np.nan], dtype)
    for got in function(z):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(z))


@pytest.mark.parametrize("function", [*PAIRS.values(), normal], ids=lambda f: f.__name__)
def test_any_layout_and_size(function):
    """Elements do not know their place: in pieces or at once, in any order of memory, down to none."""
    z = np.random.default_rng(0).standard_normal((130, 600))  # more than two of the table's pieces
    whole = function(z)
    for view in (np.asfortranarray(z), z[:, ::-1][:, ::-1], z.T.copy().T):
        for got, want in zip(function(view), whole, strict=True):
            close(got, want, ROUNDING)  # not to the bit: NumPy's vector loops may round strided memory otherwise
    for got, want in zip(function(z[7, 3:5]), whole, strict=True):
        close(got, want[7, 3:5], ROUNDING)
    for shape in [(), (0,), (0, 3), (1, 1, 1)]:
        assert {got.shape for got in function(np.ones(shape))} == {shape}


@pytest.mark.parametrize(
    "function", [*PAIRS.values(), normal, gelu_curvature, softmax, logsumexp], ids=lambda f: f.__name__
)
def test_argument_is_only_read(function):
    z = np.linspace(-3, 3, 12).reshape(3, 4)
    z.flags.writeable = False
    function(z)
    np.testing.assert_array_equal(z, np.linspace(-3, 3, 12).reshape(3, 4))


def test_activations_by_name():
    assert scalar.ACTIVATIONS == PAIRS


# ---- softmax and logsumexp -----------------------------------------------------------------------------------------


def exact_softmax(row):
    terms = [mpmath.exp(mpmath.mpf(float(s))) if np.isfinite(s) else mpmath.mpf(0) for s in row]
    return [float(term / sum(terms)) for term in terms], float(mpmath.log(sum(terms)))


@pytest.mark.underflow
@given(st.integers(1, 7), st.sampled_from([1e-3, 1.0, 30.0, 1e5]), st.booleans(), st.integers(0, 999))
def test_softmax_and_logsumexp_against_mpmath(E, scale, masked, seed):
    s = scale * np.random.default_rng(seed).standard_normal((3, E))
    if masked:
        s[:, 1::2] = -np.inf
    p, total = zip(*map(exact_softmax, s), strict=True)
    # scores are rounded to eps of themselves, and so the exponents
    rtol = ROUNDING * max(1, scale)
    close(softmax(s), np.array(p), rtol, scale=1)
    close(logsumexp(s), np.array(total), ROUNDING)
    assert (softmax(s)[np.isneginf(s)] == 0).all()
    close(softmax(s).sum(axis=1), np.ones(3), ROUNDING)


@pytest.mark.underflow
@pytest.mark.parametrize("size", [0.0, 745.0, 1e300, -1e300])
def test_huge_scores(size):
    """A constant added to all scores is nothing to the softmax; a huge gap is a hard choice, not a NaN."""
    np.testing.assert_array_equal(softmax(np.full((2, 4), size)), np.full((2, 4), 0.25))
    np.testing.assert_array_equal(softmax(np.array([size, size - 1e301, -np.inf])), [1, 0, 0])
    close(logsumexp(np.full((2, 4), size)), np.full(2, size + np.log(4)), ROUNDING)


def test_float32_scores():
    s = np.linspace(-5, 5, 12, dtype=np.float32).reshape(3, 4)
    arrays = softmax(s), softmax_vjp(softmax(s), s), logsumexp(s), logsumexp_vjp(s, s[:, 0])
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("masked", [False, True], ids=["all", "some_at_minus_infinity"])
def test_vjps_by_complex_step(masked, rng):
    """<dp, dsoftmax> and <dy, dlogsumexp> along every score, in batches of any depth."""
    s, dp = rng.standard_normal((2, 2, 3, 5))
    if masked:
        s[..., [1, 4]] = -np.inf
    ds, dlse = np.empty((2, *s.shape))
    for e in range(5):
        step = s + 1e-30j * (np.arange(5) == e)
        with np.errstate(under="ignore", invalid="ignore"):  # NumPy flags exp(-inf + 0j), and gets it right
            ds[..., e] = (dp * softmax(step).imag).sum(axis=-1) / 1e-30
            dlse[..., e] = dp[..., 0] * logsumexp(step).imag / 1e-30
    close(softmax_vjp(softmax(s), dp), ds, COMPLEX_STEP)
    close(logsumexp_vjp(s, dp[..., 0]), dlse, COMPLEX_STEP)


def test_softmax_vjp_leaves_no_shift(rng):
    """Adding one number to all scores changes nothing: the cotangent sums to zero."""
    s, dp = rng.standard_normal((2, 6, 4))
    close(softmax_vjp(softmax(s), dp).sum(axis=1), np.zeros(6), ROUNDING, scale=1)


@pytest.mark.parametrize("function", [softmax, logsumexp])
def test_nan_scores_give_nan(function):
    assert np.isnan(function(np.array([0.0, np.nan, 1.0]))).all()


@pytest.mark.parametrize("far", [1e20, 1e155, 1e300])
def test_far_out_the_activations_are_their_asymptotes_and_nothing_overflows(far):
    z = np.array([-far, far])
    for activation in (scalar.gelu, scalar.gelu_tanh):
        a, slope = activation(z)
        np.testing.assert_array_equal(a, [0, far])
        np.testing.assert_array_equal(slope, [0, 1])
    np.testing.assert_array_equal(scalar.gelu_curvature(z), [0, 0])
