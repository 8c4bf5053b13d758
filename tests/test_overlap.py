"""Usage similarity: laws of the measures, chance levels by enumeration, the top-k law."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtri
from scipy.stats import multivariate_normal
from usages import kinds, random_sets, usage

from npmoe.geometry.association import information_chance, mantel, mutual_information, random_table
from npmoe.geometry.evenness import cv, entropy, gini, jain, max_over_mean
from npmoe.geometry.overlap import (
    MEASURES,
    corrected,
    jaccard,
    jaccard_chance,
    match,
    measures,
    noise_floor,
    overlap_chance,
    set_overlap,
    similarities,
    split_halves,
    top_p,
    topk_law,
    topk_simulated,
)

EXACT = 1e-12  # the same sum of a few dozen terms, in another order
EXAMPLES = settings(max_examples=40, deadline=None)
NAMES = list(MEASURES)
SETS = [name for name in NAMES if MEASURES[name].kind == "sets"]
DISTRIBUTIONS = [name for name in NAMES if MEASURES[name].kind == "distributions"]
UPPER = dict.fromkeys(NAMES, 1.0) | {"jensen_shannon": np.log(2), "hilbert": np.inf}

#: What satisfies the triangle inequality, as a function of two rows.
METRICS = {
    "total_variation": MEASURES["total_variation"].function,
    "hellinger": MEASURES["hellinger"].function,
    "sqrt_jensen_shannon": lambda P, Q: np.sqrt(MEASURES["jensen_shannon"].function(P, Q)),
    "hilbert": MEASURES["hilbert"].function,
    "jaccard_distance": lambda P, Q: 1 - jaccard(P > 0, Q > 0),
    "ruzicka_distance": lambda P, Q: 1 - MEASURES["weighted_jaccard"].function(P, Q),
}

seeds = st.integers(0, 2**32 - 1)
widths = st.integers(1, 9)


def rows_for(name, rng, n, E, kind="counts"):
    rows = usage(rng, n, E, kind)
    return rows > np.median(rows) if MEASURES[name].kind == "sets" else rows


# Measures


@EXAMPLES
@given(seeds, st.integers(1, 6), widths, kinds)
@pytest.mark.parametrize("name", NAMES)
def test_measures_are_symmetric_in_range_and_know_no_labels(name, seed, n, E, kind):
    rng = np.random.default_rng(seed)
    P, Q = rows_for(name, rng, n, E, kind), rows_for(name, rng, n, E, kind)
    function, _, sense = MEASURES[name]
    found = function(P, Q)
    assert found.shape == (n,)
    np.testing.assert_array_equal(found, function(Q, P))
    defined = found[~np.isnan(found)]
    assert ((defined >= 0) & (defined <= UPPER[name] + EXACT)).all()
    order = rng.permutation(E)
    np.testing.assert_allclose(function(P[:, order], Q[:, order]), found, rtol=1e-9, atol=EXACT)
    itself = function(P, P)
    np.testing.assert_allclose(itself[~np.isnan(itself)], 0 if sense == "distance" else 1, rtol=0, atol=0)
    # a stack equals its rows
    np.testing.assert_array_equal([function(p, q) for p, q in zip(P, Q, strict=True)], found)
    np.testing.assert_array_equal(function(P[:, None], Q[None]).diagonal(), found)


@EXAMPLES
@given(seeds, st.integers(1, 8), kinds)
@pytest.mark.parametrize("name", METRICS)
def test_the_metric_ones_satisfy_the_triangle_inequality(name, seed, E, kind):
    P, Q, R = usage(np.random.default_rng(seed), 90, E, kind).reshape(3, 30, E)
    d = METRICS[name]
    a, b, c = d(P, Q), d(Q, R), d(P, R)
    assert (c <= a + b + 1e-10 * (a + b) + EXACT).all()


def test_jensen_shannon_itself_is_no_metric():
    """The test above can fail."""
    P, Q, R = np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([0.0, 1.0])
    d = MEASURES["jensen_shannon"].function
    assert d(P, R) > d(P, Q) + d(Q, R) + 0.1


@EXAMPLES
@given(seeds, st.integers(2, 9), kinds)
def test_measures_of_distributions_by_their_definitions(seed, E, kind):
    P, Q = usage(np.random.default_rng(seed), 2, E, kind)
    p, q = P / P.sum(), Q / Q.sum()
    m = (p + q) / 2
    kl = [sum(x * np.log(x / y) for x, y in zip(r, m, strict=True) if x > 0) for r in (p, q)]
    same_support = ((P > 0) == (Q > 0)).all()
    logs = [np.log(x / y) for x, y in zip(P, Q, strict=True) if x > 0 and y > 0]
    expected = {
        "weighted_jaccard": sum(map(min, P, Q)) / sum(map(max, P, Q)),
        "total_variation": max(abs(sum((p - q)[list(s)])) for k in range(E + 1) for s in combinations(range(E), k)),
        "jensen_shannon": sum(kl) / 2,
        "hellinger": np.sqrt(max(0, 1 - np.sqrt(p * q).sum())),
        "hilbert": max(logs) - min(logs) if same_support else np.inf,
    }
    for name, value in expected.items():
        # the plain Hellinger formula loses half of the digits near 0, which is why it is not the one in use
        atol = 1e-7 if name == "hellinger" else 1e-13 * 30  # logarithms of ratios over 15 decades are up to 35
        np.testing.assert_allclose(MEASURES[name].function(P, Q), value, rtol=1e-9, atol=atol)


@EXAMPLES
@given(seeds, widths, kinds, st.sampled_from([1e-3, 7.0, 1e6]))
def test_scale_does_not_matter_where_the_definition_normalises(seed, E, kind, scale):
    P, Q = usage(np.random.default_rng(seed), 2, E, kind)
    for name in set(DISTRIBUTIONS) - {"weighted_jaccard"}:
        function = MEASURES[name].function
        np.testing.assert_allclose(function(scale * P, Q), function(P, Q), rtol=1e-6, atol=1e-13)
    found = MEASURES["weighted_jaccard"].function
    tv = MEASURES["total_variation"].function(P, Q)
    assert found(P / P.sum(), Q / Q.sum()) == pytest.approx((1 - tv) / (1 + tv), abs=EXACT)
    # counts are what they are worth as floats, and sets as 0 and 1 have Jaccard's
    whole = np.rint(np.minimum(100 * P, 1e6)).astype(int)
    assert found(whole, whole[::-1]) == found(whole.astype(float), whole[::-1].astype(float))
    if (P > 1).any():
        assert found(P > 1, Q > 1) == pytest.approx(jaccard(P > 1, Q > 1), rel=EXACT)


def test_a_small_difference_keeps_its_digits():
    """For p (1 +- u) the divergence is u^2/2 to first order; p log(p/m) would leave 1e-16 of rounding, as large."""
    u = 1e-8
    P, Q = np.array([1 + u, 1 - u]), np.array([1 - u, 1 + u])
    u = (P[0] - P[1]) / 2  # as it is stored
    assert MEASURES["jensen_shannon"].function(P, Q) == pytest.approx(u**2 / 2, rel=1e-7)
    assert MEASURES["hellinger"].function(P, Q) == pytest.approx(u / np.sqrt(2), rel=1e-7)


def test_sets_by_python_sets_and_what_has_no_value():
    rng = np.random.default_rng(0)
    A, B = rng.random((2, 200, 5)) < 0.4
    for a, b, o, j in zip(A, B, set_overlap(A, B), jaccard(A, B), strict=True):
        x, y = set(np.flatnonzero(a)), set(np.flatnonzero(b))
        if x | y:
            assert o == pytest.approx(len(x & y) / max(len(x), len(y)), rel=EXACT)
            assert j == pytest.approx(len(x & y) / len(x | y), rel=EXACT)
        else:
            assert np.isnan([o, j]).all()
    zero, one = np.zeros(3), np.array([0.0, 1.0, 0.0])
    for name in DISTRIBUTIONS:
        assert np.isnan(MEASURES[name].function(zero, zero))
        apart = 0 if MEASURES[name].sense == "similarity" else UPPER[name]
        assert MEASURES[name].function(one, one[[1, 0, 2]]) == apart
        assert np.isnan(MEASURES[name].function(one, zero)) or name == "weighted_jaccard"
    assert MEASURES["weighted_jaccard"].function(one, zero) == 0


def test_shares_that_vanish_are_no_accident():
    """Gates of a soft router are often denormal; underflow is an error in tests unless the code means it."""
    P, Q = np.array([1e-300, 1e10]), np.array([5e-324, 1.0])
    for name in DISTRIBUTIONS:
        assert np.isfinite(MEASURES[name].function(P, Q))
    assert entropy(P) == pytest.approx(0, abs=EXACT)


@EXAMPLES
@given(seeds, st.integers(1, 40), st.integers(1, 40), widths, kinds)
@pytest.mark.parametrize("name", NAMES)
def test_all_pairs_equal_pair_by_pair(name, seed, n, m, E, kind):
    rng = np.random.default_rng(seed)
    P, Q = rows_for(name, rng, n, E, kind), rows_for(name, rng, m, E, kind)
    function = MEASURES[name].function
    # summed in another order; the root in Hellinger's makes 1e-8 of 1e-16
    tolerance = {"rtol": 1e-9, "atol": 1e-9 if name == "hellinger" else EXACT}
    expected = function(P[:, None], Q[None])
    np.testing.assert_allclose(similarities(name, P, Q), expected, **tolerance)
    alone = similarities(name, P)
    np.testing.assert_allclose(alone, function(P[:, None], P[None]), **tolerance)
    np.testing.assert_array_equal(alone, alone.T)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_blocks_meet_without_gaps(name, monkeypatch):
    P, Q = usage(np.random.default_rng(0), 60, 3).reshape(2, 30, 3)
    whole = similarities(name, P, Q), similarities(name, P)
    monkeypatch.setattr(measures, "_PIECE", 3 * 7 * 7)  # blocks of 7 rows
    np.testing.assert_allclose(similarities(name, P, Q), whole[0], rtol=0, atol=EXACT)
    np.testing.assert_allclose(similarities(name, P), whole[1], rtol=0, atol=EXACT)


def test_float32_stays_float32():
    P, Q = usage(np.random.default_rng(0), 6, 4).astype(np.float32).reshape(2, 3, 4)
    for name in DISTRIBUTIONS:
        assert MEASURES[name].function(P, Q).dtype == similarities(name, P, Q).dtype == np.float32


def test_half_precision_is_counted_in_double():
    many = np.ones(70_000, np.float16)  # their sum is beyond float16
    assert entropy(many) == pytest.approx(np.log(70_000), rel=EXACT)
    assert (cv(np.full(3000, 60, np.float16)), gini(many)) == pytest.approx((0, 0), abs=EXACT)
    P, Q = np.random.default_rng(0).integers(0, 9, (2, 5, 4)) + 1
    for name in DISTRIBUTIONS:
        for found in (MEASURES[name].function, lambda *rows, name=name: similarities(name, *rows)):
            np.testing.assert_array_equal(found(P.astype(np.float16), Q.astype(np.float16)), found(P, Q))
    np.testing.assert_array_equal(top_p(P.astype(np.float16)), top_p(P))


@pytest.mark.parametrize(("dtype", "power"), [(np.float64, 1020), (np.float32, 124), (np.float64, -1060)])
def test_huge_and_tiny_usage_is_as_good_as_any(dtype, power):
    """A power of two changes no digit, and sums of these would overflow, or are denormal."""
    rng = np.random.default_rng(0)
    P, Q = rng.integers(0, 9, (2, 30, 12)).astype(dtype) + np.eye(30, 12, dtype=dtype)
    P[:, 0] += 1
    Q[:, 0] += 1
    huge, other = np.ldexp(P, power), np.ldexp(Q, power)
    for name in DISTRIBUTIONS:
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": EXACT, "atol": EXACT}
        np.testing.assert_allclose(MEASURES[name].function(huge, other), MEASURES[name].function(P, Q), **tolerance)
        np.testing.assert_allclose(similarities(name, huge, other), similarities(name, P, Q), **tolerance)
    for index in (cv, max_over_mean, entropy, gini, jain, top_p, mutual_information):
        np.testing.assert_array_equal(index(huge), index(P))
    np.testing.assert_array_equal(match(huge, other), match(P, Q))
    floors = [noise_floor(rows, None, np.random.default_rng(1), draws=3) for rows in (huge, P)]
    np.testing.assert_array_equal(*floors)


def test_a_small_pair_beside_a_huge_one_does_not_vanish():
    rows = np.array([[1e308, 1e308], [1e308, 0], [2e-300, 1e-300], [1e-300, 1e-300]])
    found = similarities("weighted_jaccard", rows)
    np.testing.assert_allclose(found[[0, 2, 0], [1, 3, 2]], [0.5, 2 / 3, 0], rtol=EXACT)
    assert jain(rows[0]) == 1
    D = np.abs(np.subtract.outer(*2 * (np.arange(6.0) ** 2,)))
    big = mantel(D * 1e306, D, np.random.default_rng(0), permutations=9)
    assert big.r == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_another_kind_are_refused(name):
    function, kind, _ = MEASURES[name]
    good = rows_for(name, np.random.default_rng(0), 2, 3)
    with pytest.raises(ValueError, match="expected as many experts in both; got 3 and 2"):
        function(good, good[:, :2])
    if kind == "sets":
        with pytest.raises(TypeError, match=r"expected B to be sets, booleans of shape .* got int64"):
            function(good, np.ones((2, 3), int))
    else:
        with pytest.raises(ValueError, match=r"expected Q to be finite; got nan at \(0, 1\)"):
            function(good, np.where([[0, 1, 0], [0, 0, 0]], np.nan, good))
        with pytest.raises(ValueError, match=r"expected P to be non-negative; got -1\.0"):
            function(good - good.max() - 1 + good.max() - good, good)
        with pytest.raises(TypeError, match=r"expected P to be usage, numbers of shape .* got complex128"):
            function(good + 0j, good)
    with pytest.raises(ValueError, match=r"expected P of shape \(n, E\) and Q of shape \(m, E\); got \(3,\)"):
        similarities(name, good[0])
    with pytest.raises(ValueError, match=r"expected a measure out of set_overlap, .*; got 'sine'"):
        similarities("sine", good)


# Sets of a share


@EXAMPLES
@given(st.lists(st.integers(0, 20), min_size=1, max_size=10).filter(any), st.integers(1, 20))
def test_top_p_is_the_smallest_set_of_that_share(counts, twentieths):
    counts = np.array(counts)
    chosen = top_p(counts, twentieths / 20)
    enough = [20 * sum(counts[list(s)]) >= twentieths * counts.sum() for s in [np.flatnonzero(chosen)]]
    assert enough == [True]
    smaller = combinations(range(len(counts)), int(chosen.sum()) - 1)
    assert not any(20 * sum(counts[list(s)]) >= twentieths * counts.sum() for s in smaller)
    # ties go to the lower index: whoever is in has more than whoever is out, or as much and a lower index
    inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    assert all((counts[i], -i) > (counts[j], -j) for i in inside for j in outside)
    np.testing.assert_array_equal(top_p(np.stack([counts, 2 * counts]) / 3, twentieths / 20), [chosen, chosen])


def test_top_p_of_nothing_is_empty_and_all_of_it_leaves_zeros_out():
    assert not top_p(np.zeros(3)).any()
    P = np.random.default_rng(0).random(5000) * (np.arange(5000) % 2)
    assert top_p(P, 1.0).sum() == 2500  # however the sum is rounded
    with pytest.raises(ValueError, match=r"share p within \(0, 1\]; got 0"):
        top_p(P, 0)


# Chance


@pytest.mark.parametrize("E", [1, 3, 5])
def test_chance_levels_by_enumeration(E):
    rows = np.array([[i in s for i in range(E)] for k in range(E + 1) for s in combinations(range(E), k)])
    sizes = rows.sum(axis=1)
    every = {name: similarities(name, rows) for name in SETS}
    a, b = np.meshgrid(np.arange(E + 1), np.arange(E + 1), indexing="ij")
    chance = jaccard_chance(a, b, E)
    for i in range(E + 1):
        for j in range(E + 1):
            block = every["jaccard"][np.ix_(sizes == i, sizes == j)]
            assert chance[i, j] == pytest.approx(block.mean(), abs=EXACT, nan_ok=True)
        if i:
            assert overlap_chance(i, E) == pytest.approx(every["set_overlap"][np.ix_(*[sizes == i] * 2)].mean())


def test_chance_levels_by_simulation_and_their_limit():
    rng, draws = np.random.default_rng(0), 20_000
    A, B = random_sets(rng, draws, 64, 8), random_sets(rng, draws, 64, 13)
    # a Jaccard of these sizes scatters by 0.06, an overlap by 0.1: five standard errors
    assert jaccard(A, B).mean() == pytest.approx(jaccard_chance(8, 13, 64), abs=5 * 0.06 / np.sqrt(draws))
    assert set_overlap(A, random_sets(rng, draws, 64, 8)).mean() == pytest.approx(0.125, abs=5 * 0.1 / np.sqrt(draws))
    q = 0.8
    for E in (100, 1000):
        size = round(q * E)
        assert jaccard_chance(size, size, E) == pytest.approx(q / (2 - q), abs=1 / E)
    assert jaccard_chance(np.array([[3], [4]]), np.array([1, 2, 3]), 6).shape == (2, 3)


def test_corrected_is_zero_at_chance_and_one_at_agreement():
    np.testing.assert_allclose(corrected([0.125, 1.0], 0.125), [0, 1])
    assert np.isnan(corrected(1.0, 1.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jaccard_chance(3, 9, 8), ValueError, r"expected b within 0\.\.8; got 9\.\.9"),
        (lambda: jaccard_chance(0.5, 1, 8), TypeError, "expected a to be sizes of sets, integers; got float64"),
        (lambda: overlap_chance(9, 8), ValueError, r"expected k within 1\.\.8 of 8 experts; got 9"),
        (lambda: topk_law(1.1, 0.5), ValueError, r"correlations rho within -1\.\.1"),
        (lambda: topk_law(np.nan, 0.5), ValueError, "got nan"),
        (lambda: topk_law(0.5, 0.0), ValueError, r"alpha = k/E within \(0, 1\]"),
        (lambda: topk_simulated(2.0, 8, 2, np.random.default_rng(0)), ValueError, "got 2.0"),
        (lambda: mutual_information(np.ones(3)), ValueError, r"expected table of shape \(\.\.\., m, E\); got \(3,\)"),
        (lambda: information_chance(np.ones((2, 2))), TypeError, "expected table to be counts, integers; got float64"),
        (lambda: random_table([1, 2], [2, 2], np.random.default_rng(0)), ValueError, "of one sum; got 3 and 4"),
        (lambda: split_halves(1, np.random.default_rng(0)), ValueError, "expected n of at least 2; got 1"),
        (lambda: split_halves(3, np.random.default_rng(0), np.zeros(3)), ValueError, "at least 2 groups .* got 1"),
        (
            lambda: split_halves(3, np.random.default_rng(0), np.zeros(2)),
            ValueError,
            r"expected groups of shape \(3,\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The law of top-k sets


@pytest.mark.parametrize("alpha", [1e-3, 0.125, 0.25, 0.499, 0.5, 0.501, 0.9])
def test_topk_law_by_three_routes(alpha):
    """Drezner's integral over the correlation, and SciPy's bivariate normal: neither is the formula in use."""
    t = -ndtri(alpha)
    rho = np.array([-0.999, -0.7, -0.2, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9])
    found = topk_law(rho, alpha)
    for r, law in zip(rho, found, strict=True):
        ends = (0, np.arcsin(r))
        area, _ = quad(lambda th: np.exp(-min(700, t * t / (1 + np.sin(th)))), *ends, epsabs=1e-13, epsrel=1e-12)
        # quad's own aim, over alpha
        assert law == pytest.approx((alpha**2 + area / (2 * np.pi)) / alpha, abs=1e-12 / alpha)
        if abs(r) < 0.99:
            cdf = multivariate_normal(cov=[[1, r], [r, 1]]).cdf([-t, -t])
            assert law == pytest.approx(cdf / alpha, abs=1e-7 / alpha)
    assert (np.diff(found) > -1e-15).all()


@pytest.mark.parametrize("alpha", [1e-12, 0.125, 0.3, 0.5, 0.7, 1.0])
def test_topk_law_is_exact_at_its_ends(alpha):
    assert topk_law(1.0, alpha) == 1
    assert topk_law(0.0, alpha) == alpha
    assert topk_law(-1.0, alpha) == max(0.0, 2 * alpha - 1) / alpha
    # and meets them: the values beside the ends come from the integral
    near = topk_law(np.array([1 - 1e-14, 1e-14, -1 + 1e-14]), alpha)
    # at 1 the law falls as sqrt((1 - rho)/pi) t or so, at -1 it rises more slowly
    np.testing.assert_allclose(near, [1, alpha, max(0.0, 2 * alpha - 1) / alpha], rtol=0, atol=2e-6)


def test_topk_law_broadcasts():
    found = topk_law(np.linspace(-1, 1, 5)[:, None], np.array([0.1, 0.5, 1.0]))
    assert found.shape == (5, 3)
    assert (found[:, 2] == 1).all()
    assert topk_law(0.5, 0.25).shape == ()


@pytest.mark.parametrize(("E", "k", "low", "high"), [(8, 2, 0.01, 0.03), (64, 8, 0.0, 0.014), (512, 64, 0.0, 0.003)])
def test_topk_law_against_simulation(E, k, low, high):
    """Too high for few experts, by what maths.md says; the gap closes as experts become many."""
    rho, draws = np.array([0.3, 0.5, 0.7, 0.9]), 40_000 * 8 // E + 5000
    law = topk_law(rho, k / E)
    gap = law - topk_simulated(rho, E, k, np.random.default_rng(0), draws)
    error = 5 * np.sqrt(law * (1 - law) / (k * draws))
    assert (gap > low - error).all(), gap
    assert (gap < high + error).all(), gap


def test_topk_simulated_at_its_ends_and_by_a_loop():
    rng = np.random.default_rng(0)
    assert topk_simulated(1.0, 9, 3, rng, 50) == 1
    assert topk_simulated(-1.0, 9, 4, rng, 50) == 0
    assert topk_simulated(0.3, 5, 5, rng, 50) == 1
    draws, E, k, rho = 3000, 6, 2, 0.6
    share = []
    for _ in range(draws):
        x, z = rng.standard_normal((2, E))
        y = rho * x + np.sqrt(1 - rho**2) * z
        share.append(len(set(np.argsort(x)[-k:]) & set(np.argsort(y)[-k:])) / k)
    found = topk_simulated(np.full((2, 1), rho), E, k, rng, draws)
    assert found.shape == (2, 1)
    assert np.std(share) <= np.sqrt(np.mean(share) * (1 - np.mean(share)) / k)  # the docstring's bound
    np.testing.assert_allclose(found, np.mean(share), atol=5 * np.std(share) * np.sqrt(2 / draws))
