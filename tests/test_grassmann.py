"""Subspaces: planted angles come back, distances by their laws and a second route, bases that are none are refused."""
# ruff: noqa: E741  (k and l are dimensions, as in the module)

import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.geometry import bases, grassmann
from npmoe.geometry.bases import orthonormal
from npmoe.geometry.grassmann import (
    DISTANCES,
    METRICS,
    distance,
    overlap,
    pairwise,
    pairwise_angles,
    principal_angles,
)
from npmoe.geometry.random_subspaces import planted, random_subspace

ANGLE = 1e-14  # what `principal_angles` promises; the most that was seen is 5e-15, 30 angles of which many are equal
# a distance is no steeper than sqrt(q) in its angles, Martin's apart: it has the slope tan theta
DISTANCE = 1e-13
EXAMPLES = settings(max_examples=40, deadline=None)
HALF = np.pi / 2

#: Equal and unequal dimensions, lines, the whole space on one side, more dimensions than the space has room for.
SHAPES = [(1, 1, 1), (2, 1, 1), (3, 1, 3), (5, 5, 5), (6, 2, 3), (7, 4, 5), (9, 3, 3), (20, 4, 9), (64, 16, 8)]
#: Angles that a method loses: by the cosines those near 0, by the sines those near pi/2.
HARD = [0.0, HALF, 1e-12, 1.2, 1e-8, HALF - 1e-9, 0.3, np.pi / 4, 1e-5, 1e-15, HALF - 1e-12]

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(SHAPES)
dimensions = st.sampled_from(DISTANCES)


def pair(seed, d, k, l):
    rng = np.random.default_rng(seed)
    return rng, random_subspace(rng, d, k), random_subspace(rng, d, l)


def apart(A, B, name):
    """The distance of two bases of any dimensions."""
    return distance(principal_angles(A, B), name, missing=abs(A.shape[-1] - B.shape[-1]))


def tame(theta):
    """Angles at which Martin's distance is finite and not steep."""
    return np.minimum(theta, 1.2)


# Angles


def worst_of(angles, seed):
    """The largest error of a way to find angles, over pairs of bases with hard angles planted in all shapes."""
    rng, worst = np.random.default_rng(seed), 0.0
    for d, k, l in SHAPES:
        q, room = min(k, l), d - max(k, l)
        for _ in range(4):
            theta = rng.choice(HARD, q) if rng.random() < 0.7 else rng.uniform(0, HALF, q)
            theta[room:] = 0  # dimensions that the space has no room for are shared
            A, B = planted(rng, d, theta, k, l)
            worst = max(worst, np.abs(angles(A, B) - np.sort(theta)).max())
    return worst


@EXAMPLES
@given(seeds)
def test_planted_angles_come_back(seed):
    assert worst_of(principal_angles, seed) < ANGLE


@pytest.mark.parametrize("q", [4, 8, 20, 30])
def test_repeated_angles_come_back(rng, q):
    """Where values repeat and some are 0, LAPACK's singular values without vectors err by up to 1e-14 themselves."""
    for _ in range(1200 // q):
        theta = np.sort(rng.choice(HARD, q))
        A, B = planted(rng, 2 * q, theta)
        np.testing.assert_allclose(principal_angles(A, B), theta, rtol=0, atol=ANGLE)


def by_cosines(A, B):
    return np.arccos(np.minimum(np.linalg.svd(A.T @ B, compute_uv=False), 1))


def by_sines(A, B):
    if A.shape[1] < B.shape[1]:
        A, B = B, A
    return np.arcsin(np.minimum(np.linalg.svd(B - A @ (A.T @ B), compute_uv=False)[::-1], 1))


def mismatched(A, B):
    """A planted fault: the sines in the order of the cosines."""
    if A.shape[1] < B.shape[1]:
        A, B = B, A
    AtB = A.T @ B
    return np.sort(np.arctan2(np.linalg.svd(B - A @ AtB)[1], np.linalg.svd(AtB)[1]))


@pytest.mark.parametrize(("faulty", "least"), [(by_cosines, 1e-9), (by_sines, 1e-9), (mismatched, 0.1)])
def test_a_faulty_way_to_angles_would_be_caught(faulty, least):
    assert worst_of(faulty, 0) > least  # 1e5 times the tolerance


@pytest.mark.parametrize(("d", "k", "l"), [(300, 40, 40), (300, 20, 120), (1500, 8, 8)])
def test_planted_angles_come_back_in_wide_spaces(rng, d, k, l):
    theta = rng.uniform(0, HALF, min(k, l))
    theta[:8] = HARD[:8]
    A, B = planted(rng, d, theta, k, l)
    assert np.abs(principal_angles(A, B) - np.sort(theta)).max() < ANGLE


def test_scipy_loses_a_small_angle_beside_a_large_one():
    """SciPy 1.17.1 picks between arcsin and arccos by a mask that stands in the other order than the angles.

    Where all angles are on one side of pi/4 that does no harm. Beside 1.2 a planted 1e-8 comes from the arccos: as 0
    in 125 of these 200 pairs, and else as one of the few numbers that arccos has near 0, 1.5e-8 to 3.7e-8.
    """
    theta = np.array([1e-8, 1.2])
    theirs, ours = [], []
    for seed in range(200):
        A, B = planted(np.random.default_rng(seed), 8, theta)
        theirs.append(scipy.linalg.subspace_angles(A, B)[::-1])
        ours.append(principal_angles(A, B))
    assert np.abs(np.array(ours) - theta).max() < ANGLE
    if scipy.__version__ == "1.17.1":  # another version may have put it right, and another BLAS rounds otherwise
        small = np.array(theirs)[:, 0]
        assert (np.abs(small - theta[0]) > 0.4e-8).all()  # not one of 200 is right in its first digit
        assert 20 < (small == 0).sum() < 180


@EXAMPLES
@given(seeds, shapes)
def test_angles_are_scipys_where_scipy_is_right(seed, shape):
    _, A, B = pair(seed, *shape)
    theirs = scipy.linalg.subspace_angles(A, B)[::-1]
    # its arccos errs by eps / theta, its arcsin by eps / (pi/2 - theta), and at either end by sqrt(eps)
    ours = principal_angles(A, B)
    error = 1e-14 / np.maximum(np.minimum(ours, HALF - ours), 1e-14**0.5)
    assert (np.abs(ours - theirs) <= 10 * error).all()


def exact_angles(A, B):
    """Principal angles of what the columns span, with 50 digits."""
    with mpmath.workdps(50):
        A, B = (mpmath.qr(mpmath.matrix(X.tolist()), mode="skinny")[0] for X in (A, B))
        AtB = A.T * B
        square = AtB.T * AtB if AtB.cols <= AtB.rows else AtB * AtB.T
        found = [mpmath.acos(mpmath.sqrt(max(min(c, 1), 0))) for c in mpmath.eigsy(square, eigvals_only=True)]
        return np.sort([float(theta) for theta in found])


@pytest.mark.parametrize(("k", "l"), [(3, 3), (3, 4), (4, 3)])
def test_angles_agree_with_fifty_digits(rng, k, l):
    A, B = planted(rng, 7, np.array([1e-8, 0.7, 1.5]), k, l)
    np.testing.assert_allclose(principal_angles(A, B), exact_angles(A, B), rtol=0, atol=ANGLE)
    A, B = random_subspace(rng, 7, k), random_subspace(rng, 7, l)
    np.testing.assert_allclose(principal_angles(A, B), exact_angles(A, B), rtol=0, atol=ANGLE)


@EXAMPLES
@given(seeds, shapes)
def test_angles_are_symmetric_ascending_and_know_neither_rotation_nor_basis(seed, shape):
    rng, A, B = pair(seed, *shape)
    d, k, l = shape
    theta = principal_angles(A, B)
    assert theta.shape == (min(k, l),)
    assert (theta >= 0).all()
    assert (theta <= HALF).all()
    assert (np.diff(theta) >= 0).all()
    Q = random_subspace(rng, d, d)
    moved = [(B, A), (Q @ A, Q @ B), (A @ random_subspace(rng, k, k), B), (A, -B @ random_subspace(rng, l, l))]
    for pair_ in moved:
        np.testing.assert_allclose(principal_angles(*pair_), theta, rtol=0, atol=ANGLE)


@EXAMPLES
@given(seeds, shapes)
def test_what_has_no_room_is_shared_and_complements_have_the_same_angles_between_the_ends(seed, shape):
    _, A, B = pair(seed, *shape)
    d, k, l = shape
    theta = principal_angles(A, B)
    shared = max(0, k + l - d)
    assert (theta[:shared] < ANGLE).all()
    if max(k, l) < d:
        others = principal_angles(*(scipy.linalg.null_space(X.T) for X in (A, B)))
        inner, others = (t[(t > 1e-6) & (t < HALF - 1e-6)] for t in (theta, others))  # 0 and pi/2 are counted otherwise
        np.testing.assert_allclose(inner, others, rtol=0, atol=ANGLE)


def test_leading_axes_broadcast(rng):
    A, B = random_subspace(rng, 6, 2, (4, 1)), random_subspace(rng, 6, 3, (5,))
    theta = principal_angles(A, B)
    assert theta.shape == (4, 5, 2)
    for a in range(4):
        for b in range(5):
            np.testing.assert_allclose(theta[a, b], principal_angles(A[a, 0], B[b]), rtol=0, atol=ANGLE)


def test_a_deviation_within_the_tolerance_does_not_reach_the_angles(rng):
    theta = np.array([1e-12, 1e-8, 0.3, 1.2, 1.5])
    A, B = planted(rng, 64, theta, l=9)
    for X in (A, B):
        # the columns of A + A N span what those of A do
        X += X @ (1e-11 * rng.uniform(-1, 1, (X.shape[1], X.shape[1])))
    assert np.abs(A.T @ A - np.eye(5)).max() > 1e-12
    np.testing.assert_allclose(principal_angles(A, B), theta, rtol=0, atol=ANGLE)
    single = [X.astype(np.float32) for X in (A, B)]
    # rounding of 64 x 9 elements to 6e-8 turns the subspaces by about that
    np.testing.assert_allclose(principal_angles(*single), theta, rtol=0, atol=1e-6)
    assert principal_angles(*single).dtype == np.float64


def test_single_precision_is_orthonormalised_to_the_last_bit(rng):
    line = np.array([[1 + 1e-5], [0], [0]], np.float32)  # the same line, whatever its length
    assert principal_angles(line, np.array([[1.0], [1], [0]]) / np.sqrt(2))[0] == pytest.approx(np.pi / 4, abs=ANGLE)
    theta = np.array([1e-12, 0.3, 1.2, 1.5])
    A, B = planted(rng, 64, theta, l=9)
    # all columns a little long, and leaning alike, by less than float32 admits; the span stays in float32's digits
    for X in (A, B):
        k = X.shape[1]
        loose = X @ (np.eye(k) + 0.9e-5 * np.ones((k, k)))
        cast = loose.astype(np.float32)
        assert np.abs(cast.T @ cast - np.eye(k)).max() > 1e-5
        back = bases.as_basis("X", cast)
        np.testing.assert_allclose(back.T @ back, np.eye(k), rtol=0, atol=2e-15)
        exact = np.linalg.qr(cast.astype(float))[0]
        np.testing.assert_allclose(principal_angles(cast, B), principal_angles(exact, B), rtol=0, atol=ANGLE)


def test_half_precision_columns_that_all_lean_one_way_are_refused():
    lean = 0.009  # below what float16 admits an element; 400 of them make dependent columns of norm 4.6
    A = np.linalg.cholesky(np.eye(400) * (1 - lean) + lean).T.astype(np.float16)
    with pytest.raises(ValueError, match="expected A with orthonormal columns"):
        principal_angles(A, A)


def test_what_is_no_basis_is_refused(rng):
    A = random_subspace(rng, 5, 2)
    with pytest.raises(ValueError, match=r"expected B with orthonormal columns, .* to 3\.7e-11; got a deviation of 3 "):
        principal_angles(A, 2 * A)
    with pytest.raises(ValueError, match="deviation of 1 "):
        principal_angles(np.repeat(A[:, :1], 2, axis=1), A)
    with pytest.raises(ValueError, match=r"one width d; got \(5, 2\) and \(4, 2\)"):
        principal_angles(A, random_subspace(rng, 4, 2))
    with pytest.raises(ValueError, match=r"expected A to be finite; got nan at \(0, 0\)"):
        principal_angles(np.full((5, 2), np.nan), A)
    with pytest.raises(TypeError, match="expected A to be an array of floats"):
        principal_angles(np.eye(2, dtype=int), np.eye(2))
    with pytest.raises(TypeError, match="expected B to be real; got complex128"):
        principal_angles(np.eye(2), np.eye(2) + 0j)
    for wrong in (np.ones(3), np.ones((3, 0))):
        with pytest.raises(ValueError, match=r"expected A of shape \(\.\.\., d, k\)"):
            principal_angles(wrong, A)


# Bases


@EXAMPLES
@given(seeds, shapes, st.sampled_from([1e-150, 1.0, 1e150]))
def test_orthonormal_spans_what_the_columns_do_whatever_their_size(seed, shape, scale):
    d, k, _ = shape
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((3, d, k))
    Q = orthonormal(columns * scale ** rng.integers(0, 2, k))
    assert Q.shape == columns.shape
    np.testing.assert_allclose(Q.mT @ Q - np.eye(k), 0, atol=ANGLE)
    left = columns - Q @ (Q.mT @ columns)
    assert np.abs(left).max() < 1e-13 * np.abs(columns).max()
    np.testing.assert_allclose(Q[1], orthonormal(columns[1]) * np.sign(np.sum(Q[1] * orthonormal(columns[1]), 0)))


def test_dependent_columns_are_refused_with_their_rank(rng):
    A = rng.standard_normal((4, 6, 3))
    A[2, :, 2] = A[2, :, 0] - 1e-3 * A[2, :, 1]
    with pytest.raises(ValueError, match=r"3 independent columns of A\[2\]; got rank 2, d = 6"):
        orthonormal(A)
    with pytest.raises(ValueError, match="3 independent columns of A; got rank 2, d = 2"):
        orthonormal(rng.standard_normal((2, 3)))
    with pytest.raises(ValueError, match="2 independent columns of A; got rank 1, d = 6"):
        orthonormal(np.stack([A[0, :, 0], np.zeros(6)], axis=1))
    assert orthonormal(A[0].astype(np.float32)).dtype == np.float32


# Distances


def second_route(A, B):
    """Distances for equal dimensions from projections, Procrustes' rotation and determinants, not from angles."""
    P, Q = A @ A.T, B @ B.T
    U, _, Vt = np.linalg.svd(B.T @ A)
    turned = B @ (U @ Vt)
    det = abs(np.linalg.det(A.T @ B))
    return {
        "geodesic": np.linalg.norm(scipy.linalg.logm((np.eye(len(P)) - 2 * Q) @ (np.eye(len(P)) - 2 * P))) / 8**0.5,
        "chordal": np.linalg.norm(P - Q) / np.sqrt(2),
        "procrustes": np.linalg.norm(A - turned),
        "asimov": np.arcsin(np.linalg.norm(P - Q, 2)),
        "projection": np.linalg.norm(P - Q, 2),
        "spectral": np.linalg.norm(A - turned, 2),
        "binet-cauchy": np.sqrt(1 - det**2),
        "fubini-study": np.arccos(det),
        "martin": np.sqrt(-2 * np.log(det)),
    }


@EXAMPLES
@given(seeds, st.integers(1, 4))
def test_distances_by_a_second_route(seed, k):
    """The geodesic one from the logarithm of the product of two reflections, which turns by twice each angle."""
    rng = np.random.default_rng(seed)
    A, B = planted(rng, 2 * k + 1, rng.uniform(0.1, 1.2, k))  # away from 0 and pi/2, where these routes lose digits
    expected = second_route(A, B)
    assert tuple(expected) == DISTANCES
    for name in DISTANCES:
        assert apart(A, B, name) == pytest.approx(expected[name], rel=1e-11), name


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_of_small_angles_keep_their_digits(name):
    """Each is |theta| or max theta to first order: a formula with 1 - cos in it would give 0 at 1e-9."""
    for small in (1e-3, 1e-7, 1e-9, 1e-12, 1e-30):
        theta = np.array([0.5, 1.0, 2.0]) * small
        with mpmath.workdps(90):
            t = [mpmath.mpf(float(x)) for x in theta]
            product = mpmath.fprod(mpmath.cos(x) for x in t)
            expected = {
                "geodesic": mpmath.sqrt(sum(x**2 for x in t)),
                "chordal": mpmath.sqrt(sum(mpmath.sin(x) ** 2 for x in t)),
                "procrustes": 2 * mpmath.sqrt(sum(mpmath.sin(x / 2) ** 2 for x in t)),
                "asimov": t[-1],
                "projection": mpmath.sin(t[-1]),
                "spectral": 2 * mpmath.sin(t[-1] / 2),
                "binet-cauchy": mpmath.sqrt(1 - product**2),
                "fubini-study": mpmath.acos(product),
                "martin": mpmath.sqrt(-mpmath.log(product**2)),
            }[name]
        assert distance(theta, name) == pytest.approx(float(expected), rel=1e-14)


def test_the_textbook_forms_lose_the_small_angles():
    theta = np.array([1e-9, 1e-9])
    assert np.arccos(np.prod(np.cos(theta))) == 0
    assert np.sqrt(1 - np.prod(np.cos(theta) ** 2)) == 0
    for name in ("fubini-study", "binet-cauchy", "martin"):
        assert distance(theta, name) == pytest.approx(np.sqrt(2) * 1e-9, rel=1e-14)


@pytest.mark.parametrize("name", DISTANCES)
def test_one_angle_gives_one_curve_all_along(name):
    theta = np.array([0.0, 1e-12, 1e-8, 0.1, np.pi / 4, 1.0, 1.5, HALF - 1e-9])
    expected = {
        "chordal": np.sin(theta),
        "projection": np.sin(theta),
        "binet-cauchy": np.sin(theta),
        "procrustes": 2 * np.sin(theta / 2),
        "spectral": 2 * np.sin(theta / 2),
        "martin": np.sqrt(-np.log1p(-(np.sin(np.minimum(theta, 1)) ** 2))),
    }.get(name, theta)
    if name == "martin":
        expected[theta > 1] = np.sqrt(-2 * np.log(np.sin(HALF - theta[theta > 1])))
    # HALF - 1e-9 is rounded to 1e-16, which moves the logarithm of its cosine by 1e-7
    np.testing.assert_allclose(distance(theta[:, None], name), expected, rtol=1e-7 if name == "martin" else 1e-14)


@EXAMPLES
@given(seeds, shapes, dimensions)
def test_distances_are_symmetric_vanish_only_alike_and_know_neither_rotation_nor_basis(seed, shape, name):
    rng = np.random.default_rng(seed)
    d, k, l = shape
    q, room = min(k, l), d - max(k, l)
    theta = rng.uniform(0.01, 1.2, q)
    theta[room:] = 0
    A, B = planted(rng, d, theta, k, l)
    found = apart(A, B, name)
    assert apart(A, A, name) < DISTANCE
    assert (found > 0.009) == (k != l or theta.any())
    Q = random_subspace(rng, d, d)
    R, S = random_subspace(rng, k, k), random_subspace(rng, l, l)
    for X, Y in [(B, A), (Q @ A, Q @ B), (A @ R, B), (A, B @ S), (Q @ A @ R, Q @ B @ S)]:
        np.testing.assert_allclose(apart(X, Y, name), found, rtol=0, atol=DISTANCE)


@EXAMPLES
@given(seeds, st.integers(1, 6), st.integers(0, 3), dimensions)
def test_distances_grow_with_each_angle_and_with_each_missing_one(seed, q, missing, name):
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0, HALF, q)
    i = rng.integers(q)
    path = np.repeat(theta[None], 30, axis=0)  # (30, q)
    path[:, i] = np.linspace(0, HALF, 30)
    values = distance(path, name, missing)
    if name in METRICS:
        assert (np.diff(values) >= -1e-15 * values[-1]).all()
    else:
        assert (values[:-1] <= values[1:]).all()  # infinity less infinity is none
    assert (distance(theta, name, missing + 1) >= distance(theta, name, missing) * (1 - 1e-15)).all()
    np.testing.assert_allclose(distance(rng.permutation(theta), name, missing), distance(theta, name, missing))


def test_distances_take_stacks_single_precision_and_nan(rng):
    theta = rng.uniform(0, 1.5, (3, 2, 4))
    for name in DISTANCES:
        for missing in (0, 2):
            found = distance(theta, name, missing)
            assert found.shape == (3, 2)
            assert found[2, 1] == distance(theta[2, 1], name, missing)
        holed = theta.copy()
        holed[1, 0, 2] = np.nan
        assert np.argwhere(np.isnan(distance(holed, name))).tolist() == [[1, 0]]
        assert np.isfinite(distance(np.array([HALF], np.float32), name)) == (name != "martin")
    assert distance(np.array([1e-200]), "fubini-study") == 0  # the one place where an angle vanishes
    assert distance(np.array([1e-200]), "geodesic") == 1e-200


def test_what_is_no_distance_is_refused():
    with pytest.raises(ValueError, match=r"out of geodesic, .*, martin; got 'cosine'"):
        distance(np.zeros(1), "cosine")
    with pytest.raises(ValueError, match="out of geodesic"):
        pairwise([np.eye(2)], "cosine")
    for wrong in (-1e-3, 1.5709):
        with pytest.raises(ValueError, match=rf"angles within \[0, pi/2\], in radians; got {wrong}"):
            distance(np.array([0.1, wrong]), "asimov")
    with pytest.raises(ValueError, match="expected missing of at least 0; got -1"):
        distance(np.zeros(1), "asimov", missing=-1)


# Unequal dimensions, and who is a metric


def test_missing_angles_give_the_constants_of_the_table():
    theta = np.array([0.2, 0.9])
    for m in (1, 3):
        expected = {
            "geodesic": np.sqrt((theta**2).sum() + m * np.pi**2 / 4),
            "chordal": np.sqrt((np.sin(theta) ** 2).sum() + m),
            "procrustes": np.sqrt(4 * (np.sin(theta / 2) ** 2).sum() + 2 * m),
            "asimov": HALF,
            "projection": 1,
            "spectral": np.sqrt(2),
            "binet-cauchy": 1,
            "fubini-study": HALF,
            "martin": np.inf,
        }
        for name in DISTANCES:
            assert distance(theta, name, m) == pytest.approx(expected[name], rel=1e-15), name


@EXAMPLES
@given(seeds, shapes, dimensions)
def test_missing_angles_are_those_of_subspaces_filled_up_in_new_dimensions(seed, shape, name):
    """Fill each subspace up to p dimensions from one list of p new directions: both then have one dimension.

    The wider takes none, the narrower the first p - q, at right angles to all else: so many angles of pi/2. Filled up
    to m > p, both have the first m - p in common: angles of 0. So a metric on subspaces of one dimension is one over
    all of them, and this is the constant of each, Procrustes' 2 (p - q) included.
    """
    _, A, B = pair(seed, *shape)
    _, k, l = shape
    m = max(k, l) + 2

    def filled(X):
        return scipy.linalg.block_diag(X, np.eye(m)[:, : m - X.shape[1]])

    expected = distance(tame(principal_angles(A, B)), name, missing=abs(k - l))
    whole = principal_angles(filled(A), filled(B))
    assert (np.sort(whole)[: m - max(k, l)] < ANGLE).all()
    right = whole > HALF - ANGLE
    assert right.sum() >= abs(k - l)
    np.testing.assert_allclose(distance(np.where(right, whole, tame(whole)), name), expected, rtol=0, atol=DISTANCE)


def triples(rng, d, dims):
    """Three bases: independent, or along one path, or two near each other; dims of each drawn from `dims`."""
    bases = [random_subspace(rng, d, rng.choice(dims)) for _ in range(3)]
    kind = rng.integers(3)
    if kind == 1:  # along the one-parameter group of a rotation, where the triangle is (nearly) flat
        skew = rng.standard_normal((d, d)) * 10.0 ** rng.uniform(-4, 0)
        step = scipy.linalg.expm((skew - skew.T) / 4)
        bases = [np.linalg.matrix_power(step, i) @ bases[0][:, : b.shape[1]] for i, b in enumerate(bases)]
    elif kind == 2:
        bases[1] = orthonormal(bases[0] + 10.0 ** rng.uniform(-12, -1) * rng.standard_normal(bases[0].shape))
    return bases


def excess(bases, name):
    """The most by which a side is longer than the two others together: above 0, the triangle inequality is broken."""
    sides = np.array([apart(bases[i], bases[j], name) for i, j in ((0, 1), (0, 2), (1, 2))])
    return (2 * sides - sides.sum()).max()


@pytest.mark.parametrize("mixed", [False, True])
@EXAMPLES
@given(seeds, st.integers(1, 6), st.sampled_from(METRICS))
def test_the_triangle_inequality_within_one_dimension_and_over_all(mixed, seed, d, name):
    rng = np.random.default_rng(seed)
    dims = np.arange(1, d + 1) if mixed else [rng.integers(1, d + 1)]
    for _ in range(5):
        assert excess(triples(rng, d, dims), name) < DISTANCE


def lines(*angles):
    return [np.array([[np.cos(a)], [np.sin(a)]]) for a in angles]


def test_martin_is_no_metric():
    assert set(DISTANCES) - set(METRICS) == {"martin"}
    assert excess(lines(0, 0.7, 1.4), "martin") > 0.3
    assert apart(*lines(0, HALF), "martin") == np.inf
    assert apart(*lines(0, np.pi / 4), "martin") == pytest.approx(np.log(2) ** 0.5, rel=1e-14)
    flat = {name: excess(lines(0, 0.7, 1.4), name) for name in METRICS}
    assert max(flat.values()) < DISTANCE
    assert abs(flat["geodesic"]) < DISTANCE  # and this one is a straight line


def test_martin_of_orthogonal_subspaces_is_infinite_however_they_are_turned(rng):
    for _ in range(50):
        A, B = planted(rng, 9, np.array([0.3, HALF]))
        assert apart(A, B, "martin") == np.inf


@pytest.mark.parametrize("name", METRICS)
def test_without_missing_angles_there_is_no_triangle_inequality(name):
    """Two lines at right angles are each in the plane: both at 0 from it, if nothing were missing."""
    x, y, plane = np.eye(3)[:, :1], np.eye(3)[:, 1:2], np.eye(3)[:, :2]
    assert distance(principal_angles(x, plane), name) == 0
    assert distance(principal_angles(y, plane), name) == 0
    assert distance(principal_angles(x, y), name) >= 1
    assert excess([x, y, plane], name) < DISTANCE


# All pairs


@pytest.mark.parametrize("piece", [1, 100, 1 << 21])
def test_pairs_are_those_of_one_at_a_time(rng, monkeypatch, piece):
    monkeypatch.setattr(grassmann, "_PIECE", piece)
    bases = random_subspace(rng, 7, 3, (5,))
    theta = pairwise_angles(bases)
    assert theta.shape == (5, 5, 3)
    np.testing.assert_array_equal(theta, theta.transpose(1, 0, 2))
    assert (theta[range(5), range(5)] == 0).all()
    for name in METRICS:
        table = pairwise(bases, name)
        np.testing.assert_array_equal(table, table.T)
        assert (np.diag(table) == 0).all()
        np.testing.assert_allclose(table, distance(theta, name), rtol=0, atol=DISTANCE)
        for a in range(5):
            for b in range(a):
                np.testing.assert_allclose(theta[a, b], principal_angles(bases[a], bases[b]), rtol=0, atol=ANGLE)
                np.testing.assert_allclose(table[a, b], apart(bases[a], bases[b], name), rtol=0, atol=DISTANCE)


@pytest.mark.parametrize("name", DISTANCES)
def test_pairs_of_any_dimensions(rng, name):
    bases = [random_subspace(rng, 6, k) for k in (2, 6, 1, 2, 3, 1)]
    table = pairwise(bases, name)
    np.testing.assert_array_equal(table, table.T)
    assert (np.diag(table) == 0).all()
    for a in range(6):
        for b in range(6):
            if a != b:
                np.testing.assert_allclose(table[a, b], apart(bases[a], bases[b], name), rtol=1e-12)
    order = rng.permutation(6)
    np.testing.assert_allclose(pairwise([bases[e] for e in order], name), table[np.ix_(order, order)], rtol=1e-12)


def test_pairs_of_one_of_none_and_of_wrong_ones(rng):
    A = random_subspace(rng, 4, 2)
    assert pairwise([A], "geodesic").tolist() == [[0]]
    assert pairwise([], "geodesic").shape == (0, 0)
    assert pairwise_angles(A[None]).shape == (1, 1, 2)
    with pytest.raises(ValueError, match=r"expected bases\[1\] with orthonormal columns"):
        pairwise([A, 2 * A], "geodesic")
    with pytest.raises(ValueError, match=r"expected bases of one width d; got \[\(4, 2\), \(5, 5\)\]"):
        pairwise([A, np.eye(5)], "geodesic")
    with pytest.raises(ValueError, match=r"expected bases of shape \(E, d, r\)"):
        pairwise_angles(A)


@pytest.mark.parametrize("none", [[1], [0, 3], [0, 1, 2, 3, 4]])
def test_a_basis_that_is_nan_throughout_has_nan_angles_and_leaves_the_others_alone(rng, none):
    whole = random_subspace(rng, 6, 2, (5,))
    bases = whole.copy()
    bases[none] = np.nan
    expected, table = pairwise_angles(whole), pairwise(list(whole), "geodesic")
    for array in (expected, table):
        array[none], array[:, none] = np.nan, np.nan
    np.testing.assert_array_equal(pairwise_angles(bases), expected)
    np.testing.assert_array_equal(pairwise(list(bases), "geodesic"), table)
    np.testing.assert_array_equal(pairwise(bases, "geodesic"), table)


def test_a_basis_that_is_nan_in_part_is_refused_by_its_own_number(rng):
    bases = random_subspace(rng, 6, 2, (5,))
    bases[1] = np.nan
    bases[3, 4, 0] = np.nan
    with pytest.raises(ValueError, match=r"expected bases to be finite; got nan at \(3, 4, 0\)"):
        pairwise_angles(bases)
    with pytest.raises(ValueError, match=r"expected bases\[3\] to be finite; got nan at \(4, 0\)"):
        pairwise(list(bases), "geodesic")
    mixed = pairwise([np.eye(3)[:, :1], np.full((3, 2), np.nan), np.eye(3)[:, :2]], "chordal")
    np.testing.assert_array_equal(np.isnan(mixed), [[False, True, False], [True] * 3, [False, True, False]])
    with pytest.raises(ValueError, match=r"one width d; got \[\(3, 1\), \(4, 2\)\]"):
        pairwise([np.eye(3)[:, :1], np.full((4, 2), np.nan)], "chordal")


# Overlap


@EXAMPLES
@given(seeds, shapes)
def test_overlap_is_the_trace_of_two_projections(seed, shape):
    _, A, B = pair(seed, *shape)
    found = overlap(principal_angles(A, B))
    assert found == pytest.approx(np.trace(A @ A.T @ B @ B.T) / min(shape[1:]), abs=1e-13)
    assert -1e-15 <= found <= 1 + 1e-15
