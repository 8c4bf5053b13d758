"""Random subspaces are uniform, planted pairs need room, and chance levels are those of a simulation."""
# ruff: noqa: E741  (k and l are dimensions, as in the module)

import numpy as np
import pytest

from npmoe.geometry.grassmann import overlap, principal_angles
from npmoe.geometry.random_subspaces import chance_overlap, chance_spread, planted, random_subspace, z_score

ANGLE = 1e-14  # what `principal_angles` promises; the most that was seen is 5e-15, 30 angles of which many are equal


# Bases


def test_random_subspaces_are_uniform(rng):
    """Mean projection (k/d) I, mean basis 0: the second is what the signs of LAPACK's R would spoil."""
    N, d, k = 4000, 5, 2
    Q = random_subspace(rng, d, k, (N,))
    # elements of Q have variance 1/d, those of Q Q^T no more than E (Q Q^T)_ii^2 <= 1; 5 standard errors of the mean
    np.testing.assert_allclose(Q.mean(axis=0), 0, atol=5 / np.sqrt(d * N))
    np.testing.assert_allclose((Q @ Q.mT).mean(axis=0), k / d * np.eye(d), atol=5 / np.sqrt(N))
    assert np.abs(np.linalg.qr(rng.standard_normal((N, d, k)))[0].mean(axis=0)).max() > 5 / np.sqrt(d * N)


def test_planted_refuses_what_has_no_room(rng):
    with pytest.raises(ValueError, match="expected d of at least 5 of subspaces of 3 and 2 dimensions with 2 angles"):
        planted(rng, 4, np.array([0.1, 0.2]), k=3)
    A, B = planted(rng, 4, np.array([0.0, 0.2]), k=3)
    np.testing.assert_allclose(principal_angles(A, B), [0, 0.2], rtol=0, atol=ANGLE)
    with pytest.raises(ValueError, match=r"as many angles as min\(k, l\) = 3; got 2"):
        planted(rng, 9, np.array([0.1, 0.2]), k=3, l=3)
    with pytest.raises(ValueError, match="expected k of at least 2 of 2 angles; got 1"):
        planted(rng, 9, np.array([0.1, 0.2]), k=1)
    for wrong in (-0.1, 1.6):
        with pytest.raises(ValueError, match=r"angles within \[0, pi/2\]"):
            planted(rng, 9, np.array([wrong]))


# Overlap


#: Deterministic overlap on one side (k = d), d = 1, d = 2, and dimensions that leave no room among them.
CHANCE = [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 4, 5), (2, 3, 4), (3, 3, 5), (4, 4, 12), (2, 9, 12), (3, 5, 5)]


@pytest.mark.parametrize(("k", "l", "d"), CHANCE)
def test_chance_overlap_and_spread_against_a_simulation(rng, k, l, d):
    N = 4000
    found = overlap(principal_angles(random_subspace(rng, d, k, (N,)), random_subspace(rng, d, l, (N,))))
    mean, spread = chance_overlap(k, l, d), chance_spread(k, l, d)
    assert chance_spread(l, k, d) == pytest.approx(spread, rel=1e-15)
    off = found - mean
    if spread == 0:
        assert d in (k, l)
        np.testing.assert_allclose(off, 0, atol=1e-13)
        with pytest.raises(ValueError, match=r"k and l below d, or the overlap is always 1; got k = "):
            z_score(1.0, k, l, d)
        return
    # five standard errors: of a mean, spread / sqrt N; of a variance, the spread of the squares / sqrt N
    assert abs(off.mean()) < 5 * spread / np.sqrt(N)
    assert abs((off**2).mean() - spread**2) < 5 * (off**2).std() / np.sqrt(N)
    z = z_score(found, k, l, d)
    assert abs(z.mean()) < 5 / np.sqrt(N)
    assert z_score(mean, k, l, d) == 0


def test_chance_spread_of_a_line_is_that_of_a_beta_distribution():
    """cos^2 between two lines is Beta(1/2, (d - 1)/2), whose variance any table has."""
    for d in range(2, 40):
        a, b = 0.5, (d - 1) / 2
        assert chance_spread(1, 1, d) ** 2 == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=1e-14)


def test_what_has_no_chance_level_is_refused():
    for function in (chance_overlap, chance_spread):
        with pytest.raises(ValueError, match=r"expected l within 1\.\.3 of a space of 3 dimensions; got 4"):
            function(1, 4, 3)
        with pytest.raises(ValueError, match="expected d of at least 1; got 0"):
            function(1, 1, 0)
    with pytest.raises(ValueError, match="number of angles of at least 1"):
        overlap(np.zeros((2, 0)))
