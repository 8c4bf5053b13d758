"""Synthetic data: the same from the same generator, with the moments and the ground truth that are promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.data.synthetic import (
    cluster_tasks,
    clusters,
    gaussian,
    sequences,
    subspace_clusters,
    teacher,
    topics,
)

# Moments of 4,000 x 8 entries: a mean scatters by 0.006, a variance by 0.008; five of these, rounded up.
N, D = 4000, 8
MOMENT = 0.04


def generator(seed=0):
    return np.random.default_rng(seed)


DRAWS = {
    "gaussian": lambda g: [gaussian(g, 9, 3)],
    "clusters": lambda g: clusters(g, 9, 3, m=2),
    "cluster_tasks": lambda g: [cluster_tasks(g, np.ones((6, 3)), np.arange(6) % 2)],
    "teacher": lambda g: [teacher(g, np.eye(3))],
    "subspace_clusters": lambda g: subspace_clusters(g, 9, 6, 3, 2, 0.5),
    "topics": lambda g: topics(g, 9, 3, m=2),
    "sequences": lambda g: sequences(g, 3, 4, 3, m=2, common=0.5, persistence=0.5),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_all_comes_from_the_generator(draw):
    first, again, other = (draw(generator(seed)) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert all(a.dtype == np.float64 for a in first if a.dtype.kind == "f")


def test_a_shorter_gaussian_batch_is_the_beginning_of_a_longer_one():
    np.testing.assert_array_equal(gaussian(generator(), 128, 4), gaussian(generator(), 512, 4)[:128])


def test_gaussian_rows_are_isotropic():
    x = gaussian(generator(), N, D)
    assert x.shape == (N, D)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=2 * MOMENT)  # of a column: sqrt(8) times the scatter
    np.testing.assert_allclose(x.T @ x / N, np.eye(D), atol=3 * MOMENT)
    assert (x**4).mean() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_spread_is_the_share_of_variance_within_clusters(spread):
    x, label, centres = clusters(generator(), N, D, m=400, spread=spread)
    assert ((x - centres[label]) ** 2).mean() == pytest.approx(spread, abs=MOMENT)
    # 400 centres of 8 entries: their mean square scatters by 0.025
    assert (centres**2).mean() == pytest.approx(1 - spread, abs=0.1)
    assert (x**2).mean() == pytest.approx(1, abs=0.1)
    if spread == 0:
        np.testing.assert_array_equal(x, centres[label])
    if spread == 1:
        assert (centres == 0).all()


@pytest.mark.parametrize(("n", "m"), [(8, 8), (9, 4), (3, 8), (1, 1)])
def test_labels_are_as_equal_in_number_as_can_be(n, m):
    _, label, centres = clusters(generator(), n, 2, m=m)
    counts = np.bincount(label, minlength=m)
    assert (len(counts), len(centres), counts.sum()) == (m, m, n)
    assert counts.max() - counts.min() <= 1


def test_labels_are_the_truth_and_tokens_come_in_no_order():
    x, label, centres = clusters(generator(), 400, 32, m=5, spread=0.05)
    nearest = ((x[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, label)
    assert (np.diff(label) != 0).mean() == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("spread", [-0.1, 1.1, np.nan])
def test_a_share_outside_its_range_is_refused(spread):
    with pytest.raises(ValueError, match=r"expected a spread within 0\.\.1"):
        clusters(generator(), 4, 2, spread=spread)


def test_each_task_is_one_linear_map_of_unit_gain_and_no_two_are_the_same():
    x, label = gaussian(generator(), N, D), np.arange(N) % 4
    y = cluster_tasks(generator(1), x, label)
    maps = []
    for c in range(4):
        A, residual, _, _ = np.linalg.lstsq(x[label == c], y[label == c])
        np.testing.assert_allclose(residual, 0, atol=1e-20)
        maps.append(A.T)
    # 64 entries of variance 1/8 each: the mean square of four maps scatters by 9 %
    assert np.mean(np.square(maps)) * D == pytest.approx(1, abs=0.3)
    assert min(np.abs(a - b).max() for i, a in enumerate(maps) for b in maps[:i]) > 0.5


def test_a_teacher_has_unit_mean_square_and_is_a_function_of_x_but_no_linear_one():
    x = gaussian(generator(), 2000, D)
    x[1] = x[0]
    y = teacher(generator(1), x)
    assert y.shape == x.shape
    assert (y**2).mean() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(y[1], y[0], rtol=1e-12)
    left = y - x @ np.linalg.lstsq(x, y)[0]
    assert 0.01 < (left**2).mean() < 0.5  # mostly linear: tanh of arguments about 1
    np.testing.assert_allclose(teacher(generator(1), -x), -y, rtol=1e-12)  # odd, as tanh is


# ---- clusters on subspaces at known angles ---------------------------------------------------------------------------


def principal_angles(A, B):
    """From both spectra, ascending: arccos alone loses half the digits near 0."""
    cos = np.linalg.svd(A.T @ B, compute_uv=False)
    sin = np.linalg.svd(B - A @ (A.T @ B), compute_uv=False)[::-1]
    return np.arctan2(sin, cos)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_planted_angles_are_exact_for_every_pair(m, r, room, seed, equal):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, np.pi / 2) if equal else rng.permutation([1e-6, 0.0, np.pi / 2, 0.7])[:r]
    data = subspace_clusters(rng, 5, m * r + room, m, r, angle)
    assert (data.bases.shape, data.angles.shape) == ((m, m * r + room, r), (m, m, r))
    for a in range(m):
        np.testing.assert_allclose(data.bases[a].T @ data.bases[a], np.eye(r), atol=1e-14)
        for b in range(m):
            np.testing.assert_allclose(principal_angles(data.bases[a], data.bases[b]), data.angles[a, b], atol=1e-14)
            if min(a, b) == 0 < max(a, b):
                np.testing.assert_array_equal(data.angles[a, b], np.sort(np.broadcast_to(angle, (r,))))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_tokens_lie_on_their_subspace_but_for_the_noise(noise):
    x, label, bases, _ = subspace_clusters(generator(), N, D, 3, 2, 0.6, noise=noise)
    own = np.einsum("ndr,nd->nr", bases[label], x)
    left = (x**2).sum(axis=1) - (own**2).sum(axis=1)
    # of 8 dimensions 2 are the subspace's own: the noise in the others is all that is left; scatter of 4000 x 6 squares
    assert left.mean() == pytest.approx(noise * (D - 2), abs=6 * MOMENT * max(noise, 1e-12))
    # on the subspace 4000 x 2 squares of size 4: a mean square scatters by 0.016, five of these
    assert (x**2).mean() == pytest.approx(1, abs=0.08)
    assert np.bincount(label).tolist() == [1334, 1333, 1333]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d": 5}, r"d of at least m r = 6.*got 5"),
        ({"angle": 1.6}, r"angles within 0\.\.pi/2, in radians; got 1\.6"),
        ({"angle": np.nan}, r"angles within 0\.\.pi/2"),
        ({"angle": np.zeros(3)}, r"array of shape \(2,\).*got \(3,\)"),
        ({"noise": -0.1}, r"noise within 0\.\.1"),
        ({"m": 0}, "m of at least 1"),
    ],
)
def test_subspaces_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        subspace_clusters(generator(), **({"n": 4, "d": 6, "m": 3, "r": 2, "angle": 0.5} | change))


# ---- topics that share a direction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("common", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_topics_have_the_moments_that_they_say(common, spread):
    x, label, centres, u, mean, between, within = topics(generator(), N, D, common=common, spread=spread)
    np.testing.assert_allclose(centres @ u, 0, atol=1e-13)
    np.testing.assert_allclose(centres.sum(axis=0), 0, atol=1e-13)
    assert u @ u == pytest.approx(D, rel=1e-14)
    assert (centres**2).mean() == pytest.approx(1 - spread, rel=1e-13)
    assert np.trace(between + within) / D == pytest.approx(1, rel=1e-13)
    np.testing.assert_array_equal(mean, common * u)
    np.testing.assert_allclose(between, np.cov(centres.T, bias=True), atol=1e-14)
    # 4000 tokens in 8 equal topics: of the mean and the covariances only the noise scatters
    noise = x - common * u - centres[label]
    error = np.sqrt(spread / N)
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=5 * error + 1e-13)
    np.testing.assert_allclose(noise.T @ noise / N, within, atol=5 * np.sqrt(2) * spread / np.sqrt(N) + 1e-13)
    # the cross term of centre and noise scatters by sqrt(2 spread (largest centre variance) / N)
    cross = 5 * np.sqrt(2 * spread * np.diag(between).max() / N)
    covariance = np.cov(x.T, bias=True)
    np.testing.assert_allclose(
        covariance, between + within, atol=5 * np.sqrt(2) * spread / np.sqrt(N) + 2 * cross + 1e-12
    )


def test_common_and_direction_change_nothing_else():
    """The same generator gives the same centres and noise: an axis of a comparison is one thing."""
    none, some = (topics(generator(), 40, D, common=common) for common in (0.0, 1.5))
    np.testing.assert_array_equal(none.centres, some.centres)
    np.testing.assert_allclose(some.x - none.x, np.tile(1.5 * some.direction, (40, 1)), atol=1e-14)
    along = topics(generator(), 40, D, direction=7 * some.direction)
    np.testing.assert_allclose(along.direction, some.direction, rtol=1e-14)
    np.testing.assert_allclose(along.x, topics(generator(), 40, D).x, atol=1e-13)
    axis = topics(generator(), 40, D, direction=np.eye(D)[2])
    np.testing.assert_allclose(axis.direction, np.sqrt(D) * np.eye(D)[2], rtol=1e-15)
    assert np.abs(axis.centres[:, 2]).max() < 1e-14


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spread": 1.1}, r"spread within 0\.\.1"),
        ({"m": 1}, "at least 2 topics in 2 dimensions"),
        ({"d": 1}, "at least 2 topics in 2 dimensions"),
        ({"common": np.inf}, "common to be finite"),
        ({"direction": np.zeros(4)}, "direction that is not zero"),
        ({"direction": np.ones(3)}, r"direction of shape \(4,\)"),
        ({"direction": np.full(4, np.nan)}, "direction to be finite"),
    ],
)
def test_topics_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        topics(generator(), **({"n": 4, "d": 4} | change))


# ---- sequences -------------------------------------------------------------------------------------------------------


def test_a_persistent_sequence_has_one_topic():
    data = sequences(generator(), 24, 10, D, m=6, common=0.7, spread=0.2)
    label = data.label.reshape(24, 10)
    assert (label == label[:, :1]).all()
    np.testing.assert_array_equal(np.bincount(label[:, 0]), 4)
    np.testing.assert_array_equal(data.sequence.reshape(24, 10), np.repeat(np.arange(24)[:, None], 10, axis=1))
    noise = data.x - 0.7 * data.direction - data.centres[data.label]
    assert (noise**2).mean() == pytest.approx(0.2, abs=5 * 0.2 * np.sqrt(2 / data.x.size))
    np.testing.assert_allclose(data.centres @ data.direction, 0, atol=1e-13)


@pytest.mark.parametrize("persistence", [0.0, 0.25, 0.8])
def test_topics_move_as_a_markov_chain(persistence):
    """Stays with the probability given, else goes to each of the others alike, within five standard errors."""
    m = 4
    label = sequences(generator(), 100, 200, 3, m=m, persistence=persistence).label.reshape(100, 200)
    moves = np.zeros((m, m))
    np.add.at(moves, (label[:, :-1], label[:, 1:]), 1)
    visits = moves.sum(axis=1, keepdims=True)
    want = np.full((m, m), (1 - persistence) / (m - 1))
    np.fill_diagonal(want, persistence)
    assert (np.abs(moves / visits - want) <= 5 * np.sqrt(want * (1 - want) / visits)).all()
    # with topics forgotten in a few steps, use is even to within the scatter of a chain of that memory
    memory = (1 + persistence) / (1 - persistence)
    np.testing.assert_allclose(
        np.bincount(label.ravel()) / label.size, 1 / m, atol=5 * np.sqrt(memory / 4 / label.size)
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"persistence": 1.5}, r"persistence within 0\.\.1"),
        ({"m": 1, "spread": 1.0, "persistence": 0.5}, "persistence of 1, since there is one topic only"),
        ({"length": 0}, "length of at least 1"),
    ],
)
def test_sequences_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        sequences(generator(), **({"n_sequences": 2, "length": 3, "d": 4} | change))


def test_one_topic_is_noise_alone():
    data = sequences(generator(), 2, 3, 4, m=1, spread=1.0)
    assert not data.label.any()
    assert not data.centres.any()
