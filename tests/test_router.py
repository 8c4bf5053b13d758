"""What a router sees: row and null spaces, pairs with the same gates, the response along the mean."""

from dataclasses import replace

import numpy as np
import pytest
from cases import mixture
from hypothesis import given
from hypothesis import strategies as st
from routed import BLIND, EXAMPLES, ROUNDING, blind, drawn, kinds, seeds, sets

from npmoe import site
from npmoe.probe import router, scores, statements, usage, walls

# The matrix that is taken


def test_all_that_need_no_kernel_take_a_thin_decomposition(monkeypatch):
    """Of a router (E, d) with d large the d directions of a full one would take d^2 numbers."""
    s, rng = drawn("top2", 0)
    svd, full = np.linalg.svd, []

    def watched(a, full_matrices=True, compute_uv=True, **options):
        full.append(full_matrices and compute_uv and a.ndim == 2 and a.shape[0] < a.shape[1])
        return svd(a, full_matrices=full_matrices, compute_uv=compute_uv, **options)

    monkeypatch.setattr(np.linalg, "svd", watched)
    statements.bounds(s, s.x)
    router.row_basis(s)
    router.row_share(s)
    router.mean_response(s)
    usage.hidden_similarity(s, "row cosine")
    router.null_pair(s, [0], 0.5, rng)
    assert full
    assert not any(full)
    router.null_basis(s)
    assert any(full)


class Known:
    """A router that gives W over the temperature itself, and no temperature."""

    bias = None

    def __init__(self, router):
        self.matrix, self.effective = router.matrix * np.nan, router.effective


def test_the_routers_own_effective_matrix_is_taken():
    s, _ = drawn("soft cold", 0)
    np.testing.assert_array_equal(router.centred(replace(s, router=Known(s.router))), router.centred(s))


# What the router can see


@EXAMPLES
@given(kinds, seeds)
def test_row_and_null_basis_take_the_space_apart(kind, seed):
    s, _ = drawn(kind, seed)
    E, d = s.E, s.x.shape[1]
    CW, Q, N = router.centred(s), router.row_basis(s), router.null_basis(s)
    assert Q.shape == (d, min(E - 1, d))
    assert N.shape[1] == d - Q.shape[1] >= d - E + 1
    both = np.concatenate([Q, N], axis=1)
    np.testing.assert_allclose(both.T @ both, np.eye(d), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(CW @ N, 0, atol=ROUNDING * max(1, np.abs(CW).max()))
    C = np.eye(E) - 1 / E
    np.testing.assert_allclose(CW, C @ s.router.matrix / s.router.moe.temperature, rtol=0, atol=ROUNDING * 10)
    s.router.gates(s.x + 3 * N.sum(axis=1))
    np.testing.assert_allclose(s.router.gates(s.x + 3 * N.sum(axis=1)), s.gates, rtol=0, atol=ROUNDING)


def test_equal_rows_lower_the_rank(rng):
    s, _ = drawn("top2", 0)
    rows = s.router.matrix.copy()
    rows[5], rows[6] = rows[1], rows[1]
    twin = site(replace(s.router.moe, router=rows), s.x)
    assert router.row_basis(twin).shape == (12, 5)
    alike = site(replace(s.router.moe, router=np.ones((8, 12))), s.x)
    assert router.row_basis(alike).shape == (12, 0)
    assert np.isinf(walls.radius(alike).radius).all()
    assert statements.bounds(alike, rng.standard_normal(s.x.shape)).violations == 0


@EXAMPLES
@given(kinds, seeds)
def test_row_share_is_that_of_two_parts(kind, seed):
    s, _ = drawn(kind, seed)
    for center in (True, False):
        x = s.x - s.x.mean(axis=0) if center else s.x
        share, chance = router.row_share(s, center)
        outside = ((x @ router.null_basis(s)) ** 2).sum() / (x**2).sum()
        assert share + outside == pytest.approx(1, rel=1e-12)
        assert chance == router.row_basis(s).shape[1] / s.x.shape[1]


def test_row_share_without_variance_is_undefined_and_of_planted_ones_is_0_and_1(rng):
    s, _ = drawn("top2", 0)
    inside = replace(s, x=rng.standard_normal((s.n, 7)) @ router.row_basis(s).T)
    outside = replace(s, x=rng.standard_normal((s.n, 5)) @ router.null_basis(s).T)
    assert router.row_share(inside).share == pytest.approx(1)
    assert router.row_share(outside).share == pytest.approx(0, abs=1e-20)
    assert np.isnan(router.row_share(replace(s, x=np.ones_like(s.x))).share)


# The same routing at another cosine


@pytest.mark.underflow
@EXAMPLES
@given(blind, seeds, st.floats(0.001, 1), st.booleans())
def test_null_pairs_have_the_gates_of_x_and_the_cosine_asked(kind, seed, where, by_rows):
    """Anywhere in the attainable range but its open end, of which `where` is the distance as a share."""
    s, rng = drawn(kind, seed)
    low = -np.linalg.norm(s.x @ router.null_basis(s), axis=1) / np.linalg.norm(s.x, axis=1)
    want = low + where * (1 - low)
    y = router.null_pair(s, np.arange(s.n) if by_rows else s.x, want, rng)
    cosine = (s.x * y).sum(axis=1) / np.linalg.norm(s.x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(cosine, want, rtol=0, atol=1e-10)
    # gates differ by the rounding of the scores of a y that may be long
    allowed = scores.score_rounding(s, s.x) + scores.score_rounding(s, y) + 1e-14
    assert (np.abs(s.router.gates(y) - s.gates).max(axis=1) <= allowed).all()
    np.testing.assert_array_equal(sets(s, y), sets(s, s.x))
    if where == 1:
        np.testing.assert_allclose(y, s.x, rtol=0, atol=1e-6)  # a cosine of 1 - eps is 2e-8 of |x| away


@EXAMPLES
@given(blind, seeds)
def test_no_other_cosine_can_be_had(kind, seed):
    """By search: partners of all lengths and directions never leave the range, and come near its ends."""
    s, rng = drawn(kind, seed, n=1)
    N = router.null_basis(s)
    x, z = s.x[0], s.x[0] @ N
    row, b = x - N @ z, np.linalg.norm(z)
    v = rng.standard_normal((3000, N.shape[1])) * 10.0 ** rng.uniform(-3, 6, (3000, 1))
    v = np.concatenate([v, -z * 10.0 ** np.linspace(-3, 6, 50)[:, None], z[None]])
    y = row + v @ N.T
    cosine = y @ x / np.linalg.norm(x) / np.linalg.norm(y, axis=1)
    low = -b / np.linalg.norm(x)
    assert cosine.min() >= low - 1e-12
    assert cosine.min() == pytest.approx(low, abs=1e-4)
    assert cosine.max() == pytest.approx(1, abs=1e-12)
    for wrong in (low - 1e-9, 1 + 1e-9, np.nan):
        with pytest.raises(ValueError, match=r"expected a cosine within \(.*, 1\]"):
            router.null_pair(s, [0], wrong, rng)


def test_null_pairs_at_the_edges(rng):
    s, _ = drawn("top2", 0)
    N, Q = router.null_basis(s), router.row_basis(s)
    inside = s.x @ Q @ Q.T  # nothing in the kernel but rounding: cosines above 0 only
    y = router.null_pair(s, inside, 0.25, rng)
    np.testing.assert_allclose((inside * y).sum(1) / np.linalg.norm(inside, axis=1) / np.linalg.norm(y, axis=1), 0.25)
    with pytest.raises(ValueError, match="expected a cosine within"):
        router.null_pair(s, inside, -0.1, rng)
    with pytest.raises(ValueError, match="other than 0"):
        router.null_pair(s, np.zeros((1, 12)), 0.5, rng)
    blindly, _ = drawn("one expert", 0)  # it sees nothing: the whole range
    for cosine in (-1.0, -0.5, 0.0, 1.0):
        y = router.null_pair(blindly, blindly.x, cosine, rng)
        found = (blindly.x * y).sum(1) / np.linalg.norm(blindly.x, axis=1) / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(found, cosine, atol=1e-14)
    with pytest.raises(ValueError, match=r"within \[-1, 1\]"):
        router.null_pair(blindly, [0], -1.1, rng)
    kernel = rng.standard_normal((6, 5)) @ N.T  # inside the kernel up to rounding: the whole range as well
    for cosine in (-1.0, -0.5, 0.0, 1.0):
        y = router.null_pair(s, kernel, cosine, rng)
        np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(kernel, axis=1), rtol=1e-12)
        found = (kernel * y).sum(1) / np.linalg.norm(kernel, axis=1) / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(found, cosine, rtol=0, atol=1e-14)
        # all scores are tied, so that rounding chooses the set: the soft gates are to agree
        soft = [statements._soft(s.router.scores(v)) for v in (y, kernel)]
        np.testing.assert_allclose(*soft, rtol=0, atol=ROUNDING)
    full, _ = drawn("more experts than d", 0)
    np.testing.assert_array_equal(router.null_pair(full, [0, 3], 1.0, rng), full.x[[0, 3]])
    with pytest.raises(ValueError, match="of 1: the router's null space is empty"):
        router.null_pair(full, [0], 0.5, rng)
    thin = site(mixture(rng, 1, 1, 2, 1), np.array([[2.0], [3.0]]))
    np.testing.assert_allclose(router.null_pair(thin, [0, 1], [1.0, -1.0], rng), [[2], [-3]])
    with pytest.raises(ValueError, match="cosine -1 or 1"):
        router.null_pair(thin, [0], 0.5, rng)
    assert N.shape == (12, 5)


# The response along the mean


@EXAMPLES
@given(kinds, seeds)
def test_mean_response_beside_its_two_nulls(kind, seed):
    s, rng = drawn(kind, seed)
    found = router.mean_response(s)
    if s.E == 1:
        assert found.response == 0
        assert np.isnan(found.relative)
        return
    CW, mu, d = router.centred(s), s.x.mean(axis=0), s.x.shape[1]
    assert found.response == pytest.approx(np.linalg.norm(CW @ mu), rel=1e-9)
    # over a whole orthonormal basis, the root mean square is exact for random directions
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    ratio = np.linalg.norm(CW @ basis, axis=0) / np.linalg.norm(CW)
    assert found.chance == pytest.approx(np.sqrt((ratio**2).mean()), rel=1e-12)
    assert 0 <= found.relative <= 1
    assert router.mean_response(replace(s, x=3 * s.x)).relative == pytest.approx(found.relative, rel=1e-9)
    hidden = replace(s, x=s.x + 1e3 * (router.null_basis(s).sum(axis=1) if kind in BLIND else 0))
    assert router.mean_response(hidden).centred == pytest.approx(found.centred, rel=1e-6)
    if kind in BLIND:
        assert router.mean_response(hidden).relative < 0.02
