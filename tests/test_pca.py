"""Weighted PCA against np.cov, laws of weights, and the effective sample size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.geometry.pca import n_eff, weighted_pca

# Covariances of a few dozen rows agree to a few eps; eigenvalues are held to that of the largest one.
RTOL = 1e-12
EXAMPLES = settings(max_examples=40, deadline=None)

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


def draw(seed, n, d, E):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) + 1, rng.uniform(0.1, 1, (n, E))


def same(found, expected):
    scale = np.nanmax(np.abs(expected), initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=RTOL * max(scale, 1e-300))


def falling(C):
    return np.linalg.eigvalsh(np.atleast_2d(C))[::-1]


@EXAMPLES
@given(seeds, st.integers(2, 12), sizes, sizes)
def test_eigenvalues_means_and_traces_are_those_of_np_cov(seed, n, d, E):
    x, W = draw(seed, n, d, E)
    found = weighted_pca(x, W)
    for e in range(E):
        same(found.eigenvalues[e], falling(np.cov(x.T, aweights=W[:, e], ddof=0)))
        same(found.mean[e], np.average(x, axis=0, weights=W[:, e]))
    uncentred = weighted_pca(x, W, center=False)
    for e in range(E):
        same(uncentred.eigenvalues[e], falling((x * W[:, e, None]).T @ x / W[:, e].sum()))
        assert (uncentred.mean[e] == 0).all()
    assert (np.diff(found.eigenvalues) <= 0).all()
    assert (found.eigenvalues >= 0).all()


@EXAMPLES
@given(seeds, st.integers(2, 9), sizes)
def test_integer_weights_equal_repeated_rows(seed, n, d):
    x, _ = draw(seed, n, d, 1)
    times = np.random.default_rng(seed).integers(0, 4, n)
    times[0] = 2
    repeated = np.repeat(x, times, axis=0)
    found = weighted_pca(x, times[:, None].astype(float))
    same(found.eigenvalues, weighted_pca(repeated, np.ones((len(repeated), 1))).eigenvalues)
    same(found.eigenvalues[0], falling(np.cov(repeated.T, bias=True)))


@EXAMPLES
@given(seeds, st.integers(2, 9), sizes, sizes)
def test_zero_weight_equals_a_removed_row_and_other_columns_do_not_matter(seed, n, d, E):
    x, W = draw(seed, n, d, E)
    W[0] = 0
    x[0] = 1e6  # would be seen at once
    whole, without = weighted_pca(x, W), weighted_pca(x[1:], W[1:])
    for a, b in zip(whole, without, strict=True):
        same(a, b)
    for e in range(E):
        alone = weighted_pca(x, W[:, [e]])
        same(alone.eigenvalues[0], whole.eigenvalues[e])


@EXAMPLES
@given(seeds, st.integers(2, 9), sizes, sizes)
def test_permuted_tokens_shifts_and_rotations_change_nothing(seed, n, d, E):
    x, W = draw(seed, n, d, E)
    rng = np.random.default_rng(seed)
    order, Q = rng.permutation(n), np.linalg.qr(rng.standard_normal((d, d)))[0]
    expected = weighted_pca(x, W)
    permuted = weighted_pca(x[order], W[order])
    for a, b in zip(permuted, expected, strict=True):
        same(a, b)
    moved = weighted_pca(x @ Q + 5, W)
    np.testing.assert_allclose(moved.eigenvalues, expected.eigenvalues, rtol=0, atol=1e-12 * 25)  # of the shift squared


@pytest.mark.parametrize("power", [-1070, -900, -30, 30, 1000])
def test_the_scale_of_the_weights_does_not_matter(power):
    x, W = draw(0, 20, 3, 2)
    W = np.rint(9 * W)
    scaled = np.ldexp(W, power)  # exact, also where it is subnormal: 2^-1070
    for a, b in zip(weighted_pca(x, scaled), weighted_pca(x, W), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_eigenvalues_go_with_the_square_of_x(scale):
    x, W = draw(0, 20, 3, 2)
    np.testing.assert_allclose(
        weighted_pca(x * scale, W).eigenvalues, weighted_pca(x, W).eigenvalues * scale**2, rtol=1e-10
    )


def test_float32_is_accumulated_in_float64():
    x, W = (a.astype(np.float32) for a in draw(0, 50, 3, 2))
    found, expected = weighted_pca(x, W), weighted_pca(x.astype(float), W.astype(float))
    same(found.eigenvalues, expected.eigenvalues)


def test_one_token_has_no_variance_and_an_expert_without_tokens_has_none_that_is_defined():
    x, W = draw(0, 4, 3, 3)
    W[:, 1] = 0
    W[1:, 2] = 0
    found = weighted_pca(x, W)
    assert np.isnan(found.eigenvalues).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(found.mean).all(axis=1).tolist() == [False, True, False]
    assert not np.isnan(found.eigenvalues[[0, 2]]).any()
    assert (found.eigenvalues[2] == 0).all()
    np.testing.assert_array_equal(found.mean[2], x[0])
    assert found.n_eff.tolist() == [pytest.approx(n_eff(W[:, [0]])[0]), 0, 1]


# Effective sample size


@EXAMPLES
@given(seeds, st.integers(1, 20), sizes)
def test_n_eff_is_kishs_within_its_bounds_and_free_of_scale(seed, n, E):
    rng = np.random.default_rng(seed)
    W = rng.random((n, E)) * (rng.random((n, E)) < 0.7)
    found = n_eff(W)
    for e in range(E):
        w = W[:, e][W[:, e] > 0]
        if len(w) == 0:
            assert found[e] == 0
            continue
        assert found[e] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=RTOL)
        assert 1 - RTOL <= found[e] <= len(w) * (1 + RTOL)
    for scale in (1e-250, 1e250):
        np.testing.assert_allclose(n_eff(W * scale), found, rtol=RTOL)
    np.testing.assert_allclose(n_eff(np.concatenate([W, W])), 2 * found, rtol=RTOL)


def test_n_eff_of_equal_weights_counts_them():
    assert n_eff(np.array([[0.2], [0.2], [0.0], [0.2]])) == pytest.approx([3])


@pytest.mark.underflow  # the square of 1e-200 is 0
def test_n_eff_ignores_tiny_weights_beside_large_ones():
    assert n_eff(np.array([[1.0], [1e-200], [1e-200]])) == pytest.approx([1])


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, W: (x[0], W), ValueError, r"expected x of shape \(n, d\)"),
        (lambda x, W: (x, W[1:]), ValueError, r"expected weights of shape \(4, E\)"),
        (lambda x, W: (x, W[:, 0]), ValueError, "expected weights of shape"),
        (lambda x, W: (x, -W), ValueError, "non-negative weights; got -"),
        (lambda x, W: (x, W * 0), ValueError, "zeros only"),
        (lambda x, W: (x * np.nan, W), ValueError, "expected x to be finite"),
        (lambda x, W: (x, W / W.min() * np.inf), ValueError, "expected weights to be finite"),
        (lambda x, W: (x.astype(int), W), TypeError, "expected x to be an array of floats"),
        (lambda x, W: (x, W > 0.5), TypeError, "expected weights to be an array of floats"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        weighted_pca(*change(*draw(0, 4, 3, 2)))
