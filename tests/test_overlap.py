"""Usage similarity: laws of the measures, chance levels by enumeration, permutation tests, matching, the top-k law."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from npmoe.geometry.overlap import (
    MEASURES,
    corrected,
    cv,
    entropy,
    entropy_share,
    gini,
    information_chance,
    jaccard,
    jaccard_chance,
    jain,
    mantel,
    match,
    matched_overlap,
    max_over_mean,
    measures,
    mutual_information,
    noise_floor,
    overlap_chance,
    partial_mantel,
    random_table,
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


def usage(rng, n, E, kind="spread"):
    """Rows of usage with some to every row: spread, over many decades, counts with zeros, or nearly equal rows."""
    rows = {
        "spread": lambda: rng.uniform(0.1, 1, (n, E)),
        "decades": lambda: 10.0 ** rng.uniform(-12, 3, (n, E)),
        "counts": lambda: rng.poisson(1, (n, E)).astype(float),
        "near": lambda: 1 + 1e-7 * rng.standard_normal((n, E)),
    }[kind]()
    rows[np.arange(n), rng.integers(E, size=n)] += 1
    return rows


kinds = st.sampled_from(["spread", "decades", "counts", "near"])


def rows_for(name, rng, n, E, kind="counts"):
    rows = usage(rng, n, E, kind)
    return rows > np.median(rows) if MEASURES[name].kind == "sets" else rows


def random_sets(rng, n, E, k):
    return rng.random((n, E)).argsort(axis=1) < k


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
        assert MEASURES[name].function(one, one[[1, 0, 2]]) == UPPER[name] or name == "weighted_jaccard"
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
    with pytest.raises(ValueError, match=r"expected a measure out of set_overlap, .*; got 'cosine'"):
        similarities("cosine", good)


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


# Balance


@EXAMPLES
@given(seeds, st.integers(1, 9), kinds)
def test_balance_by_definition_and_whatever_the_labels(seed, E, kind):
    rng = np.random.default_rng(seed)
    counts = usage(rng, 3, E, kind)
    p = counts / counts.sum(axis=1, keepdims=True)
    expected = {
        cv: counts.std(axis=1) / counts.mean(axis=1),
        max_over_mean: counts.max(axis=1) / counts.mean(axis=1),
        entropy: np.array([-sum(x * np.log(x) for x in row if x > 0) for row in p]),
        gini: np.abs(p[:, :, None] - p[:, None]).sum(axis=(1, 2)) / (2 * E),
        jain: counts.sum(axis=1) ** 2 / (E * (counts**2).sum(axis=1)),
    }
    for function, value in expected.items():
        np.testing.assert_allclose(function(counts), value, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(function(5 * counts[:, rng.permutation(E)]), function(counts), rtol=1e-7, atol=EXACT)
        assert np.isnan(function(np.zeros(E)))
    np.testing.assert_allclose(jain(counts), 1 / (1 + cv(counts) ** 2), rtol=EXACT)
    if E > 1:
        np.testing.assert_allclose(entropy_share(counts), entropy(counts) / np.log(E), rtol=EXACT)


@pytest.mark.parametrize("E", [2, 7])
def test_balance_at_its_ends(E):
    equal, one = np.ones(E), np.eye(E)[0]
    ends = {cv: (0, np.sqrt(E - 1)), max_over_mean: (1, E), entropy_share: (1, 0), gini: (0, 1 - 1 / E)}
    for function, (at_equal, at_one) in (ends | {jain: (1, 1 / E)}).items():
        assert function(equal) == pytest.approx(at_equal, abs=EXACT)
        assert function(one) == pytest.approx(at_one, abs=EXACT)
    assert np.isnan(entropy_share(np.ones(1)))


# Information


@EXAMPLES
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_mutual_information_is_a_sum_of_entropies(seed, m, E):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4, (m, E))
    table[0, 0] += 1
    parts = entropy(table.sum(axis=1)) + entropy(table.sum(axis=0)) - entropy(table.ravel())
    assert mutual_information(table) == pytest.approx(parts, abs=EXACT)
    assert mutual_information(table.T) == pytest.approx(parts, abs=EXACT)
    np.testing.assert_array_equal(mutual_information(np.stack([table, table])), [mutual_information(table)] * 2)


def test_information_chance_against_permuted_labels_one_by_one():
    """Three routes: the labels themselves permuted, tables drawn by their margins, and the approximation."""
    rng, draws = np.random.default_rng(0), 400
    rows, columns = rng.integers(4, size=600), rng.integers(5, size=600)

    def table(rows):
        out = np.zeros((4, 5), int)
        np.add.at(out, (rows, columns), 1)
        return out

    slow = [mutual_information(table(rng.permutation(rows))) for _ in range(draws)]
    fast = information_chance(table(rows), rng, draws)
    error = np.std(slow) / np.sqrt(draws)
    assert fast == pytest.approx(np.mean(slow), abs=5 * np.sqrt(2) * error)
    # the next term of the expansion is of the order 1/n^2 times the sum of 1/p: 20^2/(12 600^2), under 2 % here
    assert information_chance(table(rows)) == pytest.approx(np.mean(slow), abs=5 * error + 0.02 * fast)
    assert np.isnan(information_chance(np.zeros((2, 2), int)))
    assert np.isnan(mutual_information(np.zeros((2, 2), int)))


def test_random_tables_keep_their_margins_and_are_spread_as_permutations_are():
    rng = np.random.default_rng(0)
    rows, columns = np.array([3, 0, 5, 2]), np.array([4, 1, 5])
    drawn = np.array([random_table(rows, columns, rng) for _ in range(4000)])
    assert (drawn.sum(axis=2) == rows).all()
    assert (drawn.sum(axis=1) == columns).all()
    # an entry's mean is row column / n; its standard deviation is under 1.1: five standard errors
    np.testing.assert_allclose(drawn.mean(axis=0), np.outer(rows, columns) / 10, atol=5 * 1.1 / np.sqrt(4000))
    assert columns.tolist() == [4, 1, 5]  # the caller's array is left alone


# Correlation of matrices


def symmetric(rng, n):
    A = rng.standard_normal((n, n))
    return A + A.T


def naive_r(A, B, order=None):
    order = np.arange(len(A)) if order is None else order
    pairs = list(combinations(range(len(A)), 2))
    return np.corrcoef([A[order[i], order[j]] for i, j in pairs], [B[i, j] for i, j in pairs])[0, 1]


@EXAMPLES
@given(seeds, st.integers(4, 9))
def test_mantel_by_a_loop_over_pairs(seed, n):
    rng = np.random.default_rng(seed)
    A, B, C = (symmetric(rng, n) for _ in range(3))
    np.fill_diagonal(A, np.inf)  # similarities of a row with itself are no pairs
    found = mantel(A, B, np.random.default_rng(1), permutations=5)
    orders = [g.permutation(n) for g in [np.random.default_rng(1)] for _ in range(5)]
    assert found.r == pytest.approx(naive_r(A, B), abs=EXACT)
    null = [naive_r(A, B, order) for order in orders]
    np.testing.assert_allclose(found.null, null, rtol=0, atol=EXACT)
    assert found.p == (1 + sum(r >= found.r - EXACT for r in null)) / 6
    # the correlation of what is left of A and of B after a straight line in C
    a, b, c = (M[np.triu_indices(n, 1)] for M in (A, B, C))
    line = np.stack([np.ones_like(c), c], axis=1)
    rest = [v - line @ np.linalg.lstsq(line, v, rcond=None)[0] for v in (a, b)]
    assert partial_mantel(A, B, C, rng, 3).r == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-9)


@pytest.mark.parametrize("partial", [False, True])
def test_mantel_p_is_uniform_under_independence(partial):
    """300 independent pairs: P(p <= a) is a exactly, so a count is binomial; five standard deviations."""
    rng, draws = np.random.default_rng(2), 300
    control = [symmetric(rng, 8)] if partial else []
    function = partial_mantel if partial else mantel
    p = np.array([function(symmetric(rng, 8), symmetric(rng, 8), *control, rng, 19).p for _ in range(draws)])
    for a in (0.05, 0.25, 0.5, 0.75):
        assert abs((p <= a + EXACT).mean() - a) < 5 * np.sqrt(a * (1 - a) / draws)


def sequences(rng, S, length, d=3):
    """Two things of S sequences that have nothing to do with each other, but each drifts within a sequence."""
    walks = rng.standard_normal((2, S, length, d)).cumsum(axis=2).reshape(2, S * length, d)
    return [np.linalg.norm(w[:, None] - w, axis=-1) for w in walks], np.repeat(np.arange(S), length)


def test_blocks_keep_what_is_alike_within_a_sequence():
    """Neighbours are alike in both, whatever the sequences do: single tokens are not exchangeable, sequences are."""
    rng = np.random.default_rng(0)
    naive, whole = [], []
    for _ in range(20):
        (A, B), label = sequences(rng, 8, 10)
        naive.append(mantel(A, B, rng, 199).p)
        whole.append(mantel(A, B, rng, 199, blocks=label).p)
    assert np.mean(np.array(naive) < 0.01) > 0.5  # independent, and yet: an honest p is below 0.01 in 1 of 100
    # under the null 20 p-values below 0.05 number binomial(20, 0.05): 6 or more have a chance of 3e-4
    assert np.count_nonzero(np.array(whole) <= 0.05) <= 5
    assert np.mean(whole) == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / 20))


def test_blocks_may_stand_in_any_order_and_two_of_them_have_two_orders():
    rng = np.random.default_rng(0)
    (A, B), label = sequences(rng, 2, 5)
    found = mantel(A, B, rng, 99, blocks=label)
    assert len(np.unique(found.null.round(10))) == 2
    assert np.isclose(found.null, found.r).any()  # the permutation that changes nothing
    mixed = rng.permutation(10)
    order = mixed[np.argsort(label[mixed], kind="stable")]  # tokens of a sequence stay in their order of appearance
    back = mantel(A[np.ix_(mixed, mixed)], B[np.ix_(mixed, mixed)], rng, 99, blocks=label[mixed])
    assert back.r == pytest.approx(found.r, abs=EXACT)
    swapped = naive_r(A[np.ix_(order, order)], B[np.ix_(order, order)], np.roll(np.arange(10), 5))
    assert np.isclose(back.null, swapped).any()


def test_partial_mantel_sees_through_a_common_cause():
    rng = np.random.default_rng(0)
    z, noise = symmetric(rng, 30), [symmetric(rng, 30) for _ in range(2)]
    A, B = (z + 0.5 * e for e in noise)
    assert mantel(A, B, rng, 199).p == 1 / 200
    assert partial_mantel(A, B, z, rng, 199).p > 0.05
    assert partial_mantel(A, B, symmetric(rng, 30), rng, 199).p == 1 / 200


def test_constants_have_no_correlation():
    rng = np.random.default_rng(0)
    A, B = symmetric(rng, 6), symmetric(rng, 6)
    flat = np.full((6, 6), 0.1)
    for found in (
        mantel(A, flat, rng, 9),
        mantel(flat, A, rng, 9),
        partial_mantel(flat, A, B, rng, 9),
        partial_mantel(A, B, 1 - 2 * B, rng, 9),
    ):
        assert np.isnan([found.r, found.p]).all()
        assert np.isnan(found.null).all()
        assert found.null.shape == (9,)
    one, other = (f(A, B, *c, np.random.default_rng(1), 9) for f, c in ((mantel, []), (partial_mantel, [flat])))
    assert one.r == other.r
    np.testing.assert_array_equal(one.null, other.null)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.ones((3, 4))}, r"expected A to be a square matrix of at least 3 rows; got shape \(3, 4\)"),
        ({"B": np.eye(6)}, "expected matrices of one size; got 5, 6"),
        ({"B": np.triu(np.ones((5, 5)))}, "expected B to be symmetric; got differences of up to 1"),
        ({"B": np.full((5, 5), np.nan)}, r"expected B to be finite; got nan at \(0, 1\)"),
        ({"B": np.full((5, 5), np.inf)}, r"expected B to be finite; got inf"),
        ({"blocks": np.zeros(4)}, r"expected blocks of shape \(5,\), one label a row; got \(4,\)"),
        ({"blocks": np.array([0, 0, 1, 1, 1])}, r"expected sequences of one length.*; got \[.*2.*3.*\]"),
        ({"permutations": 0}, "expected permutations of at least 1; got 0"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(change, message):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        mantel(**({"A": symmetric(rng, 5), "B": symmetric(rng, 5), "rng": rng} | change))


# Halves


@EXAMPLES
@given(seeds, st.integers(2, 30), st.integers(2, 6))
def test_halves_are_halves_and_keep_groups_together(seed, n, G):
    rng = np.random.default_rng(seed)
    assert split_halves(n, rng).sum() == n // 2
    groups = rng.permutation(np.arange(n) % min(G, n))
    half = split_halves(n, rng, groups)
    sides = [set(half[groups == g]) for g in np.unique(groups)]
    assert all(len(side) == 1 for side in sides)
    assert sum(side == {True} for side in sides) == len(sides) // 2


def test_noise_floor_is_that_of_samples_and_groups_raise_it():
    rng, n, E = np.random.default_rng(0), 4000, 16
    P = np.eye(E)[rng.integers(E, size=n)]
    found = noise_floor(P, None, rng, draws=50).mean()
    # halves of n/2: a share's difference has variance 4 p (1 - p)/n, mean |difference| sqrt(2/pi) of its root
    p = 1 / E
    expected = E / 2 * np.sqrt(2 / np.pi) * np.sqrt(4 * p * (1 - p) / n)
    assert found == pytest.approx(expected, rel=0.1)  # 50 halves of one sample know it to about 5 %
    groups = np.arange(n) // 40
    topical = np.eye(E)[rng.integers(E, size=n // 40)[groups]]  # each group of 40 uses one expert
    assert noise_floor(topical, groups, rng, draws=20).mean() > 3 * noise_floor(topical, None, rng, draws=20).mean()
    for name in NAMES:
        assert noise_floor(P > 0, groups, rng, name, draws=2).shape == (2,)
    with pytest.raises(ValueError, match="a half that uses no expert"):
        noise_floor(np.eye(2)[[0, 0]] * [[1], [0]], None, rng)


# Matching


@EXAMPLES
@given(seeds, st.integers(1, 6))
def test_match_is_the_best_of_all_permutations(seed, E):
    rng = np.random.default_rng(seed)
    P, Q = rng.random((2, 10, E))
    best = max(sum(P[:, e] @ Q[:, o[e]] for e in range(E)) for o in permutations(range(E)))
    assert (P * Q[:, match(P, Q)]).sum() == pytest.approx(best, rel=EXACT)


@EXAMPLES
@given(seeds, st.integers(2, 12))
def test_a_planted_permutation_is_found(seed, E):
    rng = np.random.default_rng(seed)
    P = random_sets(rng, 200, E, max(1, E // 4))
    planted = rng.permutation(E)
    # distinct experts: with 100 tokens a half two have the same tokens with a chance of (1 - 3/E)^100 or so
    found = matched_overlap(P, P[:, planted], rng)
    np.testing.assert_array_equal(planted[found.permutation], np.arange(E))
    assert found.in_sample == found.held_out == 1
    chosen = matched_overlap(P, P[:, planted], None, split_halves(200, rng), "jaccard")
    assert chosen.held_out == 1
    assert matched_overlap(P * 0.5, P[:, planted] * 0.5, rng, measure="total_variation").held_out == 0


def test_pure_chance_matched_in_sample_looks_like_agreement():
    """E = 64, k = 8, as many tokens as a short question: 0.125 becomes 0.62 where fitted, and stays where not."""
    rng = np.random.default_rng(0)
    found = np.array(
        [
            matched_overlap(random_sets(rng, 40, 64, 8), random_sets(rng, 40, 64, 8), rng)[:3]  # 20 tokens a half
            for _ in range(60)
        ]
    )
    # a token's overlap has standard deviation sqrt(0.125 0.875/8 56/63) = 0.11; 60 x 20 tokens; five standard errors
    assert found[:, [0, 2]].mean(axis=0) == pytest.approx([0.125] * 2, abs=5 * 0.11 / np.sqrt(1200))
    assert found[:, 1].mean() == pytest.approx(0.62, abs=0.02)


def test_busy_experts_are_matched_held_out_too_and_the_permuted_null_says_so():
    rng, E, k, n = np.random.default_rng(0), 16, 4, 800
    lean = 1.5 * rng.standard_normal((2, E))
    P, Q = (np.argsort(-(s + rng.gumbel(size=(n, E))), axis=1).argsort(axis=1) < k for s in lean)  # no tokens shared
    found = matched_overlap(P, Q, rng)
    null = matched_overlap(P, Q[rng.permutation(n)], rng)
    assert found.held_out > k / E + 0.1
    # one token's overlap has a standard deviation of about 0.2, 400 are scored on each side: four standard errors
    assert found.held_out == pytest.approx(null.held_out, abs=4 * 0.2 * np.sqrt(2 / 400))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Q": np.ones((3, 4), bool)}, "expected usage of the same tokens|boolean index did not match"),
        ({"halves": np.array([1, 0, 0, 0])}, r"expected halves as booleans of shape \(4,\), the tokens; got int64"),
        ({"halves": np.ones(4, bool)}, "expected tokens in both halves; got an empty half"),
        ({"rng": None}, "expected rng or halves; got neither"),
        ({"measure": "cosine"}, "expected a measure out of"),
    ],
)
def test_matchings_of_what_does_not_fit_are_refused(change, message):
    good = {"P": np.ones((4, 4), bool), "Q": np.ones((4, 4), bool), "rng": np.random.default_rng(0)}
    with pytest.raises((ValueError, IndexError), match=message):
        matched_overlap(**(good | change))


@pytest.mark.parametrize("model", ["P", "Q"])
def test_a_token_without_experts_is_named_not_averaged_to_nan(model):
    both = dict(zip("PQ", usage(np.random.default_rng(0), 16, 4).reshape(2, 8, 4), strict=True))
    halves = np.arange(8) < 4
    both[model][5] = 0
    for name in ("total_variation", "jensen_shannon", "hellinger", "hilbert"):
        with pytest.raises(ValueError, match=f"expected tokens whose {name} is defined; .* at token 5"):
            matched_overlap(**both, rng=None, halves=halves, measure=name)
    assert matched_overlap(**both, rng=None, halves=halves, measure="weighted_jaccard").held_out > 0  # defined, 0
    sets = {name: rows > 0 for name, rows in both.items()}
    sets["P"][2] = sets["Q"][2] = False
    with pytest.raises(ValueError, match=r"set_overlap is defined; .* at token 2"):
        matched_overlap(**sets, rng=None, halves=halves)


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
