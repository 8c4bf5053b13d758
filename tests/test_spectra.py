"""Spectra: effective ranks by exact fractions and against each other, the Marchenko-Pastur law, cosines."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

import npmoe
from npmoe.geometry.pca import n_eff
from npmoe.geometry.spectra import (
    cosines,
    defined_mean,
    energy,
    entropy_rank,
    k_at,
    marchenko_pastur,
    marchenko_pastur_k,
    numerical_rank,
    participation,
    rms_cosine,
    share,
    stable_rank,
)
from npmoe.probe.representation import routed_pca

EXACT = 1e-12  # the same sum of a few dozen terms, in another order
EXAMPLES = settings(max_examples=60, deadline=None)
RANKS = (stable_rank, participation, entropy_rank, numerical_rank)

seeds = st.integers(0, 2**32 - 1)


@st.composite
def spectra(draw):
    """Singular values: spread, decaying over 8 decades, tied, or with zeros; in any order and at any scale."""
    r = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["spread", "decay", "ties", "zeros"]))
    sigma = {
        "spread": rng.uniform(0.1, 1, r),
        "decay": 10.0 ** rng.uniform(-8, 0, r),
        "ties": rng.integers(1, 3, r).astype(float),
        "zeros": rng.uniform(0.1, 1, r) * (rng.random(r) < 0.5),
    }[kind]
    sigma[rng.integers(r)] = 1
    return sigma * 10.0 ** draw(st.sampled_from([-60, 0, 60]))


# Effective ranks


@EXAMPLES
@given(spectra())
def test_effective_ranks_are_ordered(sigma):
    ranks = np.array(
        [
            stable_rank(sigma**2),
            participation(sigma**2),
            entropy_rank(sigma**2),
            entropy_rank(sigma),
            np.count_nonzero(sigma),
        ]
    )
    assert ranks[0] >= 1 - EXACT
    assert (np.diff(ranks) >= -EXACT * ranks[-1]).all(), ranks


@pytest.mark.parametrize(
    ("rank", "value"), [(stable_rank, 2), (participation, 8 / 3), (entropy_rank, 2**1.5), (numerical_rank, 3)]
)
def test_ranks_of_one_half_and_two_quarters(rank, value):
    spectrum = np.array([0.25, 0.5, 0.25, 0.0])
    assert rank(spectrum) == pytest.approx(value, rel=EXACT)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("r", [1, 2, 7])
def test_every_rank_of_r_equal_values_is_r(rank, r):
    assert rank(np.full(r, 0.3)) == pytest.approx(r, rel=EXACT)


@EXAMPLES
@given(spectra(), seeds)
def test_ranks_know_neither_order_nor_scale_and_a_stack_equals_its_rows(sigma, seed):
    moved = 3 * np.random.default_rng(seed).permutation(sigma)
    for rank in (*RANKS, k_at, lambda v: share(v, 2)):
        np.testing.assert_allclose(rank(moved), rank(sigma), rtol=EXACT)
        np.testing.assert_allclose(rank(np.stack([sigma, moved])), [rank(sigma)] * 2, rtol=EXACT)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(5, 5, 5), (9, 4, 2), (3, 40, 1), (30, 20, 7)])
def test_numerical_rank_finds_a_planted_rank_as_numpy_does(rows, columns, rank):
    rng = np.random.default_rng(rows)
    A = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    sigma = np.linalg.svd(A, compute_uv=False)
    assert numerical_rank(sigma, max(A.shape)) == rank == np.linalg.matrix_rank(A)


# Cumulative shares


@EXAMPLES
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(1, 20), st.integers(1, 14))
def test_energy_k_at_and_share_are_those_of_exact_fractions(values, twentieths, m):
    total, t = sum(values), Fraction(twentieths, 20)
    falling = sorted(values, reverse=True)
    shares = [Fraction(sum(falling[: k + 1]), total) for k in range(len(falling))]
    spectrum = np.array(values, float)
    np.testing.assert_allclose(energy(spectrum), [float(s) for s in shares], rtol=EXACT)
    assert k_at(spectrum, float(t)) == 1 + next(k for k, s in enumerate(shares) if s >= t)  # also where a share *is* t
    assert share(spectrum, m) == pytest.approx(float(shares[min(m, len(values)) - 1]), rel=EXACT)


@pytest.mark.parametrize(
    ("values", "scale", "k"), [([7, 1, 2], 3, 2), ([7, 8, 3, 2], 3, 3), ([6, 3, 1, 6, 2, 5, 3, 4], 10, 6)]
)
def test_k_at_counts_nine_tenths_that_rounding_puts_just_below(values, scale, k):
    spectrum = np.array(values) / scale
    assert sum(sorted(values)[-k:]) * 10 == sum(values) * 9
    assert energy(spectrum)[k - 1] < 0.9  # what a plain comparison would see
    assert k_at(spectrum, 0.9) == k
    assert k_at(spectrum.astype(np.float32), 0.9) == k


def test_undefined_spectra_are_nan_and_leave_their_neighbours_alone():
    table = np.array([[1.0, 3.0], [0.0, 0.0], [np.nan, np.nan]])
    for function in (k_at, lambda v: share(v, 1), stable_rank, participation, entropy_rank):
        found = function(table)
        assert np.isnan(found).tolist() == [False, True, True]
        assert found[0] == function(table[0])


def test_defined_mean_is_the_mean_of_what_is_defined():
    table = np.random.default_rng(0).standard_normal((3, 5))
    table[0, 1] = table[1] = np.nan
    found = defined_mean(table)
    assert found[0] == pytest.approx(table[0, [0, 2, 3, 4]].mean(), rel=EXACT)
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[2] == pytest.approx(table[2].mean(), rel=EXACT)
    assert defined_mean(table[2]) == found[2]


@pytest.mark.parametrize("function", [energy, k_at, *RANKS])
def test_what_is_no_spectrum_is_refused(function):
    with pytest.raises(ValueError, match=r"non-negative values; got -1\.0"):
        function(np.array([2.0, -1.0]))
    with pytest.raises(TypeError, match="expected values to be an array of floats"):
        function(np.array([1, 2]))


def test_shares_that_are_none_are_refused():
    for t in (0, -0.5, 1.01, np.nan):
        with pytest.raises(ValueError, match=r"share t within \(0, 1\]"):
            k_at(np.ones(2), t)
    with pytest.raises(ValueError, match="expected m of at least 1; got 0"):
        share(np.ones(2), 0)


# The Marchenko-Pastur law


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9, 2.0, 5.0])
def test_marchenko_pastur_has_mass_mean_and_second_moment(ratio):
    """Mass min(1, 1/ratio), mean 1, second moment 1 + ratio: the trace and its square, known without the law."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2

    def moment(power):
        return quad(lambda lam: lam**power * marchenko_pastur(np.array([lam]), ratio)[0], low, high)[0]

    # quad's own aim is 1.5e-8; the square roots at the edges cost it some digits
    assert [moment(p) for p in (0, 1, 2)] == pytest.approx([min(1, 1 / ratio), 1, 1 + ratio], rel=1e-6)
    assert (marchenko_pastur(np.array([-1.0, 0.0, low * 0.99, high * 1.01]), ratio) == 0).all()


@pytest.mark.parametrize("n", [100, 200, 800])
@pytest.mark.parametrize("t", [0.5, 0.9])
def test_marchenko_pastur_k_against_a_simulation(n, t):
    d = 200
    rows = np.random.default_rng(n).standard_normal((8, n, d))
    lam = np.linalg.eigvalsh(rows.transpose(0, 2, 1) @ rows)[:, ::-1]
    cumulative = np.pad(np.cumsum(np.maximum(lam, 0), axis=1), ((0, 0), (1, 0)))
    k = [np.interp(t, c / c[-1], np.arange(d + 1)) for c in cumulative]
    # at d = 200 one draw scatters by up to 0.33 about the law, and d is not infinite: up to 0.17
    assert np.mean(k) == pytest.approx(marchenko_pastur_k(t, d, n), abs=0.6)


@pytest.mark.parametrize(("N", "soft", "top2"), [(32, 20, 6), (64, 31, 12), (512, 52, 42)])
def test_sample_size_alone_gives_the_k_of_maths_md(N, soft, top2):
    """Isotropic inputs, untrained gates, d = 64, E = 8: k@0.9 follows n_eff, as the law has it."""
    found, law = np.zeros((2, 4)), np.zeros((2, 4))
    for draw in range(4):
        for row, k in enumerate((8, 2)):
            rng = np.random.default_rng(draw)
            moe = npmoe.init.gelu_moe(rng, E=8, d=64, h=1, k=k)
            s = npmoe.site(moe, rng.standard_normal((N, 64)))
            found[row, draw] = k_at(routed_pca(s).eigenvalues).mean()
            law[row, draw] = np.mean([marchenko_pastur_k(0.9, 64, n) for n in n_eff(s.gates)])
    # the text rounds to whole components; four draws of eight experts know the mean to about 0.3
    assert found.mean(axis=1) == pytest.approx([soft, top2], abs=1)
    # a mean is taken out and weights are unequal, which the plain law does not know: up to 2.5 at N = 64
    np.testing.assert_allclose(law.mean(axis=1), found.mean(axis=1), atol=3)


# Alignment


@pytest.mark.parametrize(("E", "o", "d"), [(1, 2, 3), (2, 1, 1), (5, 3, 4)])
def test_cosines_by_brute_force(E, o, d):
    A = np.random.default_rng(E).standard_normal((E, o, d))
    found = cosines(A)
    for a in range(E):
        for b in range(E):
            expected = (A[a] * A[b]).sum() / np.sqrt((A[a] ** 2).sum() * (A[b] ** 2).sum())
            assert found[a, b] == pytest.approx(expected, abs=EXACT)
    pairs = [found[a, b] for a in range(E) for b in range(a)]
    expected = np.sqrt(sum(c * c for c in pairs) / len(pairs)) if pairs else np.nan
    assert rms_cosine(found) == pytest.approx(expected, rel=EXACT, nan_ok=True)


def test_cosines_know_signs_and_no_scales():
    A = np.random.default_rng(0).standard_normal((3, 2, 4))
    factors = np.array([-1e-8, 1.0, 1e8])
    np.testing.assert_allclose(
        cosines(A * factors[:, None, None]), cosines(A) * np.outer(np.sign(factors), np.sign(factors)), rtol=EXACT
    )


def test_an_undefined_matrix_has_no_cosine_and_enters_no_mean():
    A = np.random.default_rng(0).standard_normal((4, 2, 2))
    rest = rms_cosine(cosines(A[:2]))
    A[2], A[3] = 0, np.nan
    found = cosines(A)
    assert np.isnan(found[2:]).all()
    assert np.isnan(found[:, 2:]).all()
    assert rms_cosine(found) == rest
    assert np.isnan(rms_cosine(cosines(A[2:])))


def test_random_matrices_have_rms_cosine_one_over_d():
    d = 16
    found = rms_cosine(cosines(np.random.default_rng(0).standard_normal((40, d, d))))
    assert found * d == pytest.approx(1, rel=0.1)  # 780 pairs: 2.5 % is one standard deviation
