"""Distances of covariances: metrics that know no rotation, fifty digits, singular ones, and what is refused."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.geometry.covariances import bures, log_euclidean, pairwise_bures
from npmoe.geometry.random_subspaces import random_subspace

EXAMPLES = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def covariances(rng, d, condition, count):
    Q = random_subspace(rng, d, d, (count,))
    C = (Q * condition ** -rng.uniform(0, 1, (count, 1, d))) @ Q.mT
    return (C + C.mT) / 2


COVARIANCE = {"bures": bures, "log-euclidean": log_euclidean}


@pytest.mark.parametrize("metric", COVARIANCE.values(), ids=COVARIANCE)
@EXAMPLES
@given(seeds, st.integers(1, 6))
def test_distances_of_covariances_are_metrics_and_know_no_rotation(metric, seed, d):
    rng = np.random.default_rng(seed)
    A, B, C = covariances(rng, d, 1e3, 3)
    near = A + 1e-10 * B
    sides = [metric(A, B), metric(B, C), metric(A, C)]
    assert 2 * max(sides) <= sum(sides) + 1e-12
    assert metric(A, A) < 1e-12
    assert 0 < metric(A, near) < 1e-6
    # eigenvalues err by eps of the largest, their logarithms by eps times the condition
    np.testing.assert_allclose(metric(B, A), sides[0], rtol=0, atol=1e-11)
    Q = random_subspace(rng, d, d)
    turned = [(Q @ X @ Q.T + (Q @ X @ Q.T).T) / 2 for X in (A, B)]
    np.testing.assert_allclose(metric(*turned), sides[0], rtol=0, atol=1e-11)
    stacks = metric(np.stack([A, B]), C)
    np.testing.assert_allclose(stacks, [sides[2], sides[1]], rtol=0, atol=1e-11)


@EXAMPLES
@given(seeds, st.integers(1, 6))
def test_distances_of_covariances_that_commute(seed, d):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.1, 2, (2, d))
    Q = random_subspace(rng, d, d)
    for basis in (np.eye(d), Q):
        A, B = ((basis * x) @ basis.T for x in (a, b))
        assert bures(A, B) == pytest.approx(np.linalg.norm(np.sqrt(a) - np.sqrt(b)), abs=1e-13)
        assert log_euclidean(A, B) == pytest.approx(np.linalg.norm(np.log(a) - np.log(b)), abs=1e-12)


def exact_bures(A, B):
    with mpmath.workdps(50):
        A, B = mpmath.matrix(A.tolist()), mpmath.matrix(B.tolist())
        values, Q = mpmath.eigsy(A)
        root = Q * mpmath.diag([mpmath.sqrt(v) for v in values])
        inner = mpmath.eigsy(root.T * B * root, eigvals_only=True)
        traces = sum(A[i, i] + B[i, i] for i in range(A.rows))
        return float(mpmath.sqrt(traces - 2 * sum(mpmath.sqrt(v) for v in inner)))


def textbook_bures(A, B):
    root = scipy.linalg.sqrtm(A).real
    return np.sqrt(max(np.trace(A) + np.trace(B) - 2 * np.trace(scipy.linalg.sqrtm(root @ B @ root).real), 0))


@pytest.mark.parametrize("condition", [10, 1e4, 1e8])
def test_bures_of_near_covariances_agrees_with_fifty_digits_where_the_textbook_does_not(rng, condition):
    A, other = covariances(rng, 4, condition, 2)
    W = np.eye(4) + 1e-10 * rng.standard_normal((4, 4))
    B = W @ A @ W.T
    B = (B + B.T) / 2
    scale = np.sqrt(np.trace(A) + np.trace(B))
    # eps sqrt(condition), as the docstring has it, with a factor of 8 for four dimensions
    floor = 8 * np.finfo(float).eps * np.sqrt(condition) * scale
    exact = exact_bures(A, B)
    assert 1e-11 < exact < 1e-9
    assert abs(bures(A, B) - exact) < floor
    assert abs(bures(A, other) - exact_bures(A, other)) < floor
    assert abs(textbook_bures(A, B) - exact) > 100 * np.finfo(float).eps * scale


def test_bures_takes_singular_covariances(rng):
    X, Y = rng.standard_normal((2, 6, 2))
    A, B = X @ X.T, Y @ Y.T  # rank 2 of 6
    # min over rotations of |X - Y R|_F, from factors that need no root
    expected = np.sqrt((X**2).sum() + (Y**2).sum() - 2 * np.linalg.svd(Y.T @ X, compute_uv=False).sum())
    assert bures(A, B) == pytest.approx(expected, rel=1e-12)
    assert bures(A, A) < 1e-12
    assert bures(A, np.zeros((6, 6))) == pytest.approx(np.sqrt(np.trace(A)), rel=1e-14)
    assert bures(np.zeros((1, 1)), np.zeros((1, 1))) == 0


def test_bures_of_all_pairs_is_that_of_each_pair(rng):
    X = rng.standard_normal((4, 2))
    C = np.stack([*covariances(rng, 4, 1e3, 3), X @ X.T, np.zeros((4, 4))])  # two of them singular
    found = pairwise_bures(C)
    # the same decompositions in stacks of another length: rounding
    np.testing.assert_allclose(found, [[bures(A, B) for B in C] for A in C], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all()
    assert found[0, 1] == pytest.approx(exact_bures(C[0], C[1]), rel=1e-10)
    assert pairwise_bures(C[:1]).tolist() == [[0.0]], "one expert has no pair"
    assert pairwise_bures(C.astype(np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match=r"expected C with no eigenvalue below 0; got -0\.1"):
        pairwise_bures(np.stack([np.eye(2), np.diag([1.0, -0.1])]))


def test_log_euclidean_refuses_singular_covariances_and_takes_a_floor_by_name(rng):
    X = rng.standard_normal((5, 2))
    A, B = X @ X.T, covariances(rng, 5, 10, 1)[0]
    with pytest.raises(ValueError, match=r"expected A positive definite; got a singular one, .*give `floor`"):
        log_euclidean(A, B)
    with pytest.raises(ValueError, match=r"expected B\[1\] positive definite"):
        log_euclidean(B, np.stack([B, A]))
    found = log_euclidean(A, B, floor=0.01)
    lifted = [M + 0.01 * np.trace(M) / 5 * np.eye(5) for M in (A, B)]
    assert found == pytest.approx(log_euclidean(*lifted), rel=1e-11)
    assert log_euclidean(B, 3 * B, floor=0.5) == pytest.approx(np.sqrt(5) * np.log(3), rel=1e-13)  # relative to each
    with pytest.raises(ValueError, match="expected floor to be a finite number above 0; got 0"):
        log_euclidean(A, B, floor=0.0)


@pytest.mark.parametrize("metric", COVARIANCE.values(), ids=COVARIANCE)
def test_what_is_no_covariance_is_refused(metric):
    good = np.eye(2)
    with pytest.raises(ValueError, match=r"expected B symmetric; got 1\.0 at \(0, 1\) and 0\.0 across the diagonal"):
        metric(good, np.array([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"expected A with no eigenvalue below 0; got -0\.1"):
        metric(np.diag([1.0, -0.1]), good)
    with pytest.raises(ValueError, match=r"expected A of shape \(\.\.\., d, d\); got \(2, 3\)"):
        metric(np.ones((2, 3)), good)
    with pytest.raises(ValueError, match="expected A to be finite"):
        metric(np.full((2, 2), np.nan), good)
    with pytest.raises(ValueError, match=r"covariances of one size; got \(2, 2\) and \(3, 3\)"):
        metric(good, np.eye(3))
