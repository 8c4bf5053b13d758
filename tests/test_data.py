"""Synthetic data: the same from the same generator, with the moments and the ground truth that are promised."""

import numpy as np
import pytest

from npmoe.data.synthetic import cluster_tasks, clusters, gaussian, teacher

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
