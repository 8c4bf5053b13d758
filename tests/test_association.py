"""Association: mutual information with its chance, Mantel tests by a loop, under independence and with blocks."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.geometry.association import information_chance, mantel, mutual_information, partial_mantel, random_table
from npmoe.geometry.evenness import entropy

EXACT = 1e-12  # the same sum of a few dozen terms, in another order
EXAMPLES = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


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
