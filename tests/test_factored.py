"""Every operation of `Factored` against the same on dense matrices, over drawn sizes and structure.

Hypothesis draws sizes, structure, scale and a seed; NumPy draws the numbers.
Letters: n tokens, d width, h hidden, o output width, t terms; J dense (n, o, d).
"""

import tracemalloc

import numpy as np
import pytest
from cases import ROUNDING, SINGLE, close
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.calculus import factored
from npmoe.calculus.factored import Factored

RTOL = {np.float64: ROUNDING, np.float32: SINGLE}

# ---- what is drawn -------------------------------------------------------------------------------------------------


def _few_directions(L, S, R):
    L[:] = np.outer(L[:, 0], L[0])  # every Jacobian has rank one


def _idle_units(L, S, R):
    L[:, ::2], R[:, 1::2] = 0, 0


def _twins(L, S, R):
    R[:, 1:] = R[:, :1]  # all hidden units look the same way


def _dead_tokens(L, S, R):
    S[:, ::2] = 0


def _all_zero(L, S, R):
    L[:] = 0


def _fading(L, S, R):
    S *= 10.0 ** -np.arange(S.shape[1])[None, :, None]  # each token ten times smaller than the one before


STRUCTURES = (_few_directions, _idle_units, _twins, _dead_tokens, _all_zero, _fading)


def plain(rng, o, h, d, t, n, dtype=np.float64):
    draw = rng.standard_normal
    return Factored(*(a.astype(dtype) for a in (draw((o, h)), draw((t, n, h)), draw((t, h, d)))))


@st.composite
def stacks(draw, dtype, least=0):
    """A stack of at least `least` tokens: h < d and h > d, one and two terms, deficient and far from 1 in scale."""
    o, h, d = (draw(st.integers(1, 10)) for _ in "ohd")
    t, n = draw(st.integers(1, 2)), draw(st.integers(least, 5))
    L, S, R = (
        np.array(a) for a in vars(plain(np.random.default_rng(draw(st.integers(0, 999))), o, h, d, t, n)).values()
    )
    for structure in draw(st.lists(st.sampled_from(STRUCTURES), max_size=1)):
        structure(L, S, R)
    most = 40 if dtype is np.float64 else 4  # squares of the product of all three must be numbers of the dtype
    scales = (10.0 ** draw(st.sampled_from((0, -most, most))) for _ in "LSR")
    return Factored(*((a * scale).astype(dtype) for a, scale in zip((L, S, R), scales, strict=True)))


def dense(J):
    """The definition, in float64."""
    L, S, R = (a.astype(np.float64) for a in (J.L, J.S, J.R))
    return np.einsum("oh,tnh,thd->nod", L, S, R)


def sizes(J):
    """The same sum of absolute values: the scale of what rounding does, where terms cancel."""
    return dense(Factored(*map(np.abs, (J.L, J.S, J.R))))


def vectors(J):
    """What operations need besides: v (n, d), u (n, o), weights w (n,) and a second stack K of other hidden width."""
    (o, h), (t, n, _), d = J.L.shape, J.S.shape, J.R.shape[2]
    rng, dtype = np.random.default_rng([o, h, t, n, d]), J.L.dtype.type
    v, u = (rng.standard_normal((n, width)).astype(dtype) for width in (d, o))
    return v, u, (rng.random(n) + 0.1).astype(dtype), plain(rng, o, h + 1, d, 1, n, dtype)


# Each twice: of the factors, and of the dense stack. What is not used of v, u, w, K is passed over.
OPERATIONS = {
    "dense": (lambda J, *_: J.dense(), lambda J, *_: J),
    "apply": (lambda J, v, *_: J.apply(v), lambda J, v, *_: np.einsum("nod,nd->no", J, v)),
    "apply_transpose": (lambda J, v, u, *_: J.apply_transpose(u), lambda J, v, u, *_: np.einsum("nod,no->nd", J, u)),
    "second_moment": (lambda J, *_: J.second_moment(), lambda J, *_: np.einsum("noi,noj->ij", J, J)),
    "weighted_second_moment": (
        lambda J, v, u, w, K: J.second_moment(w),
        lambda J, v, u, w, K: np.einsum("n,noi,noj->ij", w, J, J),
    ),
    "inner": (lambda J, v, u, w, K: J.inner(K), lambda J, v, u, w, K: (J * K).sum(axis=(1, 2))),
    # squared: the root of a difference has half the digits where terms cancel
    "squared_norm": (lambda J, *_: J.frobenius() ** 2, lambda J, *_: (J * J).sum(axis=(1, 2))),
    "mean": (lambda J, *_: J.mean(), lambda J, *_: J.mean(axis=0)),
    "weighted_mean": (lambda J, v, u, w, K: J.mean(w), lambda J, v, u, w, K: np.einsum("n,nod->od", w / w.sum(), J)),
}


def agrees(J, operation):
    """The factors give what the dense stack gives; of each number, rounding scales as the sum of absolute values."""
    of_factors, of_dense = operation
    v, u, w, K = vectors(J)
    want = of_dense(dense(J), *(a.astype(np.float64) for a in (v, u, w)), dense(K))
    scale = of_dense(sizes(J), *(np.abs(a.astype(np.float64)) for a in (v, u, w)), sizes(K))
    close(of_factors(J, v, u, w, K), want, RTOL[J.L.dtype.type], scale)


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_operation(name, data):
    agrees(data.draw(stacks(np.float64, least="mean" in name or "weighted" in name)), OPERATIONS[name])


@pytest.mark.underflow  # what is 1e-40 of the largest number vanishes in float32, as it should
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=40)
@given(data=st.data())
def test_operation_in_float32(name, data):
    agrees(data.draw(stacks(np.float32, least="mean" in name or "weighted" in name)), OPERATIONS[name])


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("n", "h"), [(1, 50), (3, 50), (200, 4)], ids=["fewest", "few", "many"])
def test_operation_by_every_route(name, n, h):
    """Few tokens are multiplied out, many go through the Khatri-Rao product."""
    for t in (1, 2):
        agrees(plain(np.random.default_rng(n), 6, h, 5, t, n), OPERATIONS[name])


# ---- spectra -------------------------------------------------------------------------------------------------------


def spectrum(J):
    """Singular values of the dense stack, and the scale of their rounding, (n, 1)."""
    scale = np.linalg.norm(sizes(J), axis=(1, 2))[:, None]
    return np.linalg.svd(dense(J), compute_uv=False), scale


@given(stacks(np.float64))
def test_singular_values(J):
    sigma, scale = spectrum(J)
    close(J.singular_values(), sigma, ROUNDING, scale)
    assert (np.diff(J.singular_values(), axis=1) <= 0).all()


@given(stacks(np.float64))
def test_core_has_the_same_spectrum_and_is_small(J):
    core, ((o, h), (t, n, _), d) = J.core(), (J.L.shape, J.S.shape, J.R.shape[2])
    assert core.L.shape == (min(o, h), h)
    assert core.R.shape == (t, h, min(d, t * h))
    sigma, scale = spectrum(J)
    few = np.linalg.svd(core.dense(), compute_uv=False)
    close(few, sigma[:, : few.shape[1]], ROUNDING, scale)
    close(sigma[:, few.shape[1] :], np.zeros((n, sigma.shape[1] - few.shape[1])), ROUNDING, scale)


@pytest.mark.underflow  # what is left when a rank is used up
@given(stacks(np.float64))
def test_leading_value(J):
    sigma, scale = spectrum(J)
    leading = J.leading()
    close(leading.values, sigma[:, 0], ROUNDING, scale[:, 0])  # at most 10 steps: all of the spectrum is seen
    assert leading.steps <= sigma.shape[1]


def _some_easy(L, S, R):
    """Every other token, large, has one live unit and is done at once; the rest are small and take their time."""
    S = S * 1e-15
    S[:, ::2] = np.eye(S.shape[2])[: S[0, ::2].shape[0]]
    return L, S, R


def _isometries(L, S, R):
    """Most singular values are exactly 1 and few are less: the basis is nearly used up after as many steps."""
    orthonormal = [np.linalg.qr(a)[0] for a in (L[:30, :28], R[0, :30, :23])]
    return orthonormal[0].T, np.ones((1, 12, 30)), orthonormal[1][None]


def _second_is_the_means(L, S, R):
    """One token leads along a vector that the others neglect, and its second is theirs: the mean would hide it."""
    S = np.full((1, 60, 64), 0.1)
    S[0, :, 1] = 1
    S[0, 7] = [1.003, 1, *np.linspace(0, 0.9, 62)]
    return np.eye(64), S, np.eye(64)[None]


LARGE = {
    "second_is_the_means": _second_is_the_means,
    "random": lambda L, S, R: (L, S, R),
    "two_terms": lambda L, S, R: (L, np.concatenate([S, S[::-1, ::-1]]), np.concatenate([R, R[:, ::-1]])),
    "rank_two": lambda L, S, R: (L[:, :2] @ L[:2], S, R),
    "decaying": lambda L, S, R: (L * 0.5 ** np.arange(L.shape[1]), S, R),
    "all_equal": lambda L, S, R: (np.linalg.qr(L.T)[0].T, np.ones_like(S), np.linalg.qr(R[0])[0][None]),
    "fading_tokens": lambda L, S, R: (L, S * 10.0 ** -np.arange(S.shape[1])[:, None], R),
    "isometries": _isometries,
    "some_easy": _some_easy,
    "zero_tokens": lambda L, S, R: (L, S * (np.arange(S.shape[1]) % 2)[:, None], R),
}


@pytest.mark.underflow
@pytest.mark.parametrize("structure", LARGE)
@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-12])
def test_leading_value_keeps_its_word(structure, tol):
    """The value is within tol from below, and its residual bounds the distance to a singular value."""
    draw = np.random.default_rng(7).standard_normal
    J = Factored(*LARGE[structure](draw((40, 96)), draw((1, 12, 96)), draw((1, 96, 32))))
    sigma, _ = spectrum(J)
    values, residual, steps = J.leading(tol)
    top = sigma[:, 0]
    assert (values <= top * (1 + ROUNDING)).all()
    assert (values >= top * (1 - tol)).all()
    assert (residual <= np.sqrt(tol) / 10).all()
    assert (np.abs(sigma - values[:, None]).min(axis=1) <= (residual + ROUNDING) * top).all()
    assert 1 <= steps <= 32


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_leading_value_of_few_steps_owns_up(steps):
    """Stopped early it is too small, and the residual, which is exact, says by how much it may be."""
    J = plain(np.random.default_rng(3), 40, 96, 32, 1, 12)
    sigma, _ = spectrum(J)
    values, residual, taken = J.leading(1e-12, steps=steps)
    assert taken == steps
    assert (values < sigma[:, 0]).all()
    assert (residual > 0).all()
    assert (np.abs(sigma - values[:, None]).min(axis=1) <= residual * values).all()


@pytest.mark.underflow
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_scale_is_no_matter(size):
    """Norms and spectra of factors whose squares no double holds, in whichever factor the scale sits."""
    J = plain(np.random.default_rng(5), 6, 9, 5, 2, 4)
    one_factor = [(size, 1, 1), (1, size, 1), (1, 1, size)]
    two_factors = [(size, 1 / size, 1), (size, 1, 1 / size), (1, size, 1 / size)]
    for L, S, R in one_factor + two_factors:
        scaled = Factored(J.L * L, J.S * S, J.R * R)
        close(scaled.frobenius(), J.frobenius() * L * S * R, ROUNDING)
        close(scaled.leading().values, J.leading().values * L * S * R, ROUNDING)
        close(scaled.singular_values(), J.singular_values() * L * S * R, ROUNDING)


def test_norm_where_nothing_cancels():
    J = plain(np.random.default_rng(1), 6, 9, 5, 2, 4)
    J = Factored(*map(np.abs, (J.L, J.S, J.R)))
    close(J.frobenius(), np.linalg.norm(dense(J), axis=(1, 2)), ROUNDING, scale=0)


# ---- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [slice(1, 4), slice(None, None, -2), np.array([4, 0, 0]), np.array([True, False, True, False, True]), slice(0)],
    ids=["slice", "stepped", "repeated", "mask", "none"],
)
def test_indexing(rows):
    J = plain(np.random.default_rng(2), 3, 4, 5, 2, 5)
    assert len(J[rows]) == len(np.arange(5)[rows])
    close(J[rows].dense(), dense(J)[rows], ROUNDING)


@pytest.mark.parametrize("elements", [1, 30, 10**6], ids=["one_token_each", "two_tokens_each", "all_at_once"])
def test_pieces_leave_nothing_out(monkeypatch, elements):
    """Streamed results do not depend on how much is looked at at a time."""
    J = plain(np.random.default_rng(2), 3, 4, 5, 2, 7)
    sigma, leading = J.singular_values(), J.leading().values
    monkeypatch.setattr(factored, "_PIECE", elements)
    runs = list(J.pieces())
    np.testing.assert_array_equal(np.concatenate([np.arange(7)[rows] for rows, _ in runs]), np.arange(7))
    close(np.concatenate([piece.dense() for _, piece in runs]), dense(J), ROUNDING)
    assert len(runs) == {1: 7, 30: 4, 10**6: 1}[elements]
    close(J.singular_values(), sigma, ROUNDING)
    close(J.leading().values, leading, ROUNDING)


def test_no_tokens():
    J = plain(np.random.default_rng(2), 3, 4, 5, 2, 0)
    assert len(J) == 0
    assert J.dense().shape == (0, 3, 5)
    assert J.singular_values().shape == (0, 3)
    assert J.leading().values.shape == J.leading().residual.shape == J.frobenius().shape == (0,)
    assert not J.second_moment().any()
    assert list(J.pieces()) == []


def test_no_weight_too_small():
    """Subnormal weights, whose sum loses digits, weigh as their ratios say."""
    J = plain(np.random.default_rng(2), 3, 4, 5, 2, 2)
    tiny = np.finfo(float).smallest_subnormal
    close(J.mean(np.array([tiny, 3 * tiny])), J.mean(np.array([1.0, 3.0])), ROUNDING)


def test_sums_over_tokens_are_float64():
    """float32 slopes of which the large ones cancel: added in float32 nothing is left of the small ones."""
    S = np.tile(np.array([1e8, 1, -1e8], np.float32), 999)[None, :, None]
    one = np.ones((1, 1), np.float32)
    J = Factored(one, S, one[None])
    close(J.mean(), [[1 / 3]], np.finfo(np.float32).eps)
    close(J.second_moment(), [[999 * (2 * 1e16 + 1)]], ROUNDING)
    assert J.second_moment().dtype == np.float64
    assert J.mean().dtype == np.float32


def test_few_tokens_take_little_memory():
    """One Jacobian of a wide layer: the Khatri-Rao product that serves many tokens would take 64 MB here."""
    J = plain(np.random.default_rng(2), 128, 512, 128, 1, 1)
    tracemalloc.start()
    J.dense()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_nothing_is_written_to():
    J = plain(np.random.default_rng(2), 3, 4, 5, 2, 6)
    for a in (J.L, J.S, J.R, *vectors(J)[:3]):
        a.flags.writeable = False
    for of_factors, _ in OPERATIONS.values():
        of_factors(J, *vectors(J))
    J.singular_values(), J.leading(), J.core(), J.frobenius()
