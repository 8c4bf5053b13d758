"""Radii by bisection and brute force, and the layer's jump at a wall in closed form and by differences."""

from dataclasses import replace

import numpy as np
import pytest
from cases import mixture
from hypothesis import given
from hypothesis import strategies as st
from routed import EXAMPLES, WALLED, changed, drawn, seeds, walled

from npmoe import site
from npmoe.probe import scores, statements, walls

# The radius


@EXAMPLES
@given(walled, seeds, st.booleans())
def test_bisection_along_the_normal_finds_the_radius(kind, seed, trained):
    s, _ = drawn(kind, seed, trained=trained)
    found = walls.radius(s)
    low, high = np.zeros(s.n), 2 * found.radius
    u = walls.wall_point(s, found._replace(radius=np.ones(s.n)), 0.0) - s.x  # unit normals
    for _ in range(60):
        middle = (low + high) / 2
        over = changed(s, s.x + middle[:, None] * u)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    # a bisection sees scores: their rounding over the distance of the two rows
    W = s.router.effective
    apart = np.linalg.norm(W[found.inside] - W[found.outside], axis=1)
    np.testing.assert_array_less(np.abs(high - found.radius), 2 * scores.score_rounding(s, s.x) / apart + 1e-12)
    assert changed(s, walls.wall_point(s, found, 0.01)).all()
    assert not changed(s, walls.wall_point(s, found, -0.01)).any()


@EXAMPLES
@given(walled, seeds)
def test_radius_by_brute_force_and_its_pair(kind, seed):
    s, _ = drawn(kind, seed)
    found, W, scores = walls.radius(s), s.router.effective, s.router.scores(s.x)
    for i in range(s.n):
        T = set(s.chosen[i].tolist())
        distance = {
            (e, j): (scores[i, e] - scores[i, j]) / np.linalg.norm(W[e] - W[j]) for e in T for j in set(range(s.E)) - T
        }
        pair = min(distance, key=distance.get)
        assert found.radius[i] == pytest.approx(distance[pair], rel=1e-9)
        assert (found.inside[i], found.outside[i]) == pair


@pytest.mark.underflow  # far out gates vanish
@EXAMPLES
@given(walled, seeds, st.floats(1e-3, 1e3))
def test_without_a_bias_cells_are_cones(kind, seed, t):
    s, _ = drawn(kind, seed)
    moe = replace(s.router.moe, bias=None)
    s = site(moe, s.x)
    assert not changed(s, s.x * t).any()
    np.testing.assert_allclose(walls.radius(site(moe, s.x * t)).radius, t * walls.radius(s).radius, rtol=1e-9)


def test_with_a_bias_they_are_not():
    s, _ = drawn("two experts", 0)
    assert changed(s, s.x * 1e-6).any()


@EXAMPLES
@given(walled, seeds)
def test_radius_does_not_depend_on_temperature_nor_on_a_common_row(kind, seed):
    s, rng = drawn(kind, seed)
    bias = s.router.bias
    warm = replace(s.router.moe, temperature=7.0, router=s.router.matrix + rng.standard_normal(s.x.shape[1]))
    shifted = replace(warm, bias=None if bias is None else bias + 3)
    np.testing.assert_allclose(walls.radius(site(shifted, s.x)).radius, walls.radius(s).radius, rtol=1e-9)


@pytest.mark.parametrize("bias", [None, np.array([0.0, 0.5, 0.5, 0.0]), np.array([0.0, 0.2, 0.5, 0.0])])
def test_equal_rows_never_change_their_order(bias, rng):
    """Experts 1 and 2 share their row: of a set that holds one of them, the other is no danger, at any bias."""
    W = rng.integers(-3, 4, (4, 5)).astype(float)
    W[2] = W[1]
    s = site(mixture(rng, 4, 5, 3, 1, bias=bias), rng.integers(-9, 9, (200, 5)).astype(float))  # exact scores
    s = site(replace(s.router.moe, router=W), s.x)
    found = walls.radius(s)
    one, other = (2, 1) if bias is not None and bias[2] > bias[1] else (1, 2)
    assert (s.chosen == one).any()
    assert not (s.chosen == other).any()
    assert not ((found.inside == one) & (found.outside == other)).any()
    finite = np.isfinite(found.radius) & (found.radius > 0)
    assert changed(s, walls.wall_point(s, found, 1e-6))[finite].all()
    alike = site(replace(s.router.moe, router=np.tile(W[:1], (4, 1))), s.x)
    assert np.isinf(walls.radius(alike).radius).all()
    assert (walls.radius(alike).inside == -1).all()
    assert np.isnan(walls.wall_point(alike, walls.radius(alike))).all()


def test_a_tie_lies_on_the_wall(rng):
    moe = replace(mixture(rng, 3, 2, 3, 1), router=np.array([[1.0, 0], [0, 1], [-1, -1]]))
    found = walls.radius(site(moe, np.array([[2.0, 2.0], [2.0, 1.0]])))
    assert found.radius.tolist() == [0, pytest.approx(np.sqrt(0.5))]
    assert (found.inside.tolist(), found.outside.tolist()) == ([0, 0], [1, 1])


def test_nearly_equal_rows_do_not_cancel(rng):
    """Rows 1e-9 apart, by a power of two: their difference is exact, the scores' would lose half the digits."""
    W = rng.integers(-3, 4, (3, 4)).astype(float)
    W[1] = W[0]
    W[1, 2] += 2.0**-30
    W[2] = -W[0]
    x = rng.standard_normal((50, 4))
    x = x[x @ W[0] / np.linalg.norm(W[0]) > 1.1 * np.abs(x[:, 2])]  # the third expert is further away
    found = walls.radius(site(replace(mixture(rng, 3, 4, 3, 1), router=W), x))
    assert len(x) > 3
    np.testing.assert_allclose(found.radius, np.abs(x[:, 2]), rtol=1e-12)


def test_soft_routing_has_no_wall():
    s, _ = drawn("soft", 0)
    assert np.isinf(walls.radius(s).radius).all()
    assert statements.bounds(s, s.x).named("radius, inside").checked == 0


def test_pieces_of_tokens_make_no_difference(monkeypatch):
    s, _ = drawn("top3 warm", 0)
    whole = walls.radius(s)
    monkeypatch.setattr(walls, "_PIECE", 50)
    for a, b in zip(walls.radius(s), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_choice_that_is_not_of_the_largest_scores_is_refused():
    s, _ = drawn("top2", 0)
    with pytest.raises(ValueError, match=r"expected chosen .* 2 largest scores; got .* at token"):
        walls.radius(replace(s, chosen=(s.chosen + 1) % s.E))


# The wall


def crossing(kind, seed):
    """A Site of tokens with one wall well apart from the next, and steps far below the radius."""
    s, rng = drawn(kind, seed, n=60)
    found = walls.radius(s)
    keep = found.radius > 1e-2
    return site(s.router.moe, s.x[keep]), rng


@pytest.mark.parametrize("kind", sorted(WALLED))
def test_below_the_radius_quotients_tend_to_the_jacobian_with_first_order(kind):
    s, rng = crossing(kind, 7)
    eps = np.array([1e-3, 1e-4])
    w = walls.wall(s, rng, eps)
    for quotient, slope in ((w.towards, w.slope), (w.random, w.slope_random)):
        error = np.abs(quotient - slope[:, None])
        clear = error[:, 1] > 1e-8 * (slope + 1)  # not yet rounding, eps/step = 1e-11 at the least
        order = np.log10(error[clear, 0] / error[clear, 1])
        assert clear.mean() > 0.3
        np.testing.assert_allclose(np.median(order), 1, atol=0.01)
        np.testing.assert_allclose(quotient[:, 1], slope, rtol=1e-2, atol=1e-2)
        assert (slope <= w.norm * (1 + 1e-12)).all()
    moe, J = s.router.moe, s.router.moe.jacobian(s.x)
    np.testing.assert_allclose(w.norm, np.linalg.norm(J, 2, axis=(1, 2)), rtol=1e-12)
    assert w.jump.shape == (s.n, moe.widths[1])


@pytest.mark.parametrize("kind", sorted(WALLED))
def test_the_jump_in_closed_form_is_the_limit_of_differences(kind):
    s, rng = crossing(kind, 8)
    found, w = walls.radius(s), walls.wall(s, rng, [0.5])
    f = s.router.moe.forward
    errors = []
    for beyond in (1e-4, 1e-6):
        across = f(walls.wall_point(s, found, beyond))[0] - f(walls.wall_point(s, found, -beyond))[0]
        errors.append(np.linalg.norm(across - w.jump, axis=1))
    # twice the step times the slope: falls by 100, to 1e-6 of the slope
    assert np.median(errors[0] / errors[1]) == pytest.approx(100, rel=0.02)
    assert (errors[1] < 1e-4 * (1 + w.norm)).all()
    assert np.linalg.norm(w.jump, axis=1).max() > 0.1


def test_just_beyond_the_wall_quotients_are_the_jump_over_the_step():
    s, rng = crossing("top1", 9)
    found = walls.radius(s)
    w = walls.wall(s, rng, [0.999, 1.0 + 1e-9])
    before, after = w.towards.T * w.eps.T
    jump = np.linalg.norm(w.jump, axis=1)
    assert (np.abs(after - before) <= jump * (1 + 1e-6) + 2e-3 * found.radius * w.norm.max()).all()
    sharp = jump > 10 * found.radius * w.slope
    assert sharp.any()
    np.testing.assert_allclose(w.towards[sharp, 1], (jump / found.radius)[sharp], rtol=0.3)
    assert (w.towards[sharp, 1] > 5 * w.towards[sharp, 0]).all()


def test_soft_routing_does_not_jump(rng):
    s, _ = drawn("soft", 0)
    w = walls.wall(s, rng, [1e-5])
    assert (w.jump == 0).all()
    assert np.isnan(w.towards).all()
    assert np.isnan(w.slope).all()
    np.testing.assert_allclose(w.random[:, 0], w.slope_random, rtol=1e-3, atol=1e-3)


def test_equal_experts_make_no_jump(rng):
    s, _ = drawn("top2", 0)
    same = site(replace(s.router.moe, experts=(s.experts[0],) * 8), s.x)
    np.testing.assert_allclose(walls.wall(same, rng, [1.0]).jump, 0, atol=1e-13)
