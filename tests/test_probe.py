"""Every probe against brute force: dense Jacobians by the complex step through `forward`, singular values by LAPACK."""

from dataclasses import replace

import numpy as np
import pytest
from cases import MIXTURES, Case, close, gelu, mixture, rows, swiglu

from npmoe import MoE, Site, site
from npmoe.calculus import scalar
from npmoe.probe import function
from npmoe.probe.null import shuffled
from npmoe.probe.representation import WEIGHTINGS, routed_pca

# Both sides are sums of up to some hundred products, square roots of them, and for spectra a LAPACK routine each.
BRUTE = 1e-11
LANCZOS = 1e-6  # what `norms` is asked for; below 8 x 8 its values are exact

#: More than one piece of 128 tokens, and wide enough that Lanczos stops early.
LARGE = (
    Case("large", lambda rng: mixture(rng, 3, 14, 20, 2, o=12, temperature=0.5), n=140),
    Case("large_soft", lambda rng: mixture(rng, 2, 13, 9, 2, kind=swiglu), n=257),
)
EVERY = rows(*((case,) for case in MIXTURES + LARGE))
#: Where no two scores are equal, experts can be told apart by any number.
APART = rows(*((case,) for case in MIXTURES + LARGE if case.smooth and case.name != "experts_alike"))
#: Whose experts all are exact GELUs, the ones whose curvature is known.
CURVED = rows(*((case,) for case in MIXTURES if case.name not in ("mixed_kinds", "swiglu_mixture")))


def complex_step(forward, x):
    """J (n, o, d) of a function of rows; exact but for rounding."""
    return np.stack([forward(x + 1e-30j * axis).imag / 1e-30 for axis in np.eye(x.shape[1])], axis=2)


def jacobians(expert, x):
    return complex_step(lambda x: expert.forward(x)[0], x)


def eight(J, w):
    """All `NORMS` of a dense stack J (n, o, d) under weights w (n,)."""
    sigma, frob = np.linalg.svd(J, compute_uv=False)[:, 0], np.sqrt((J**2).sum(axis=(1, 2)))
    mean = np.einsum("n,nod->od", w, J) / w.sum()
    stack = (np.sqrt(w)[:, None, None] * J).reshape(-1, J.shape[2])
    values = [np.linalg.svd(mean, compute_uv=False)[0], (w @ sigma) / w.sum(), sigma[w > 0].max()]
    values += [np.linalg.svd(stack, compute_uv=False)[0], np.sqrt((mean**2).sum()), (w @ frob) / w.sum()]
    return np.array([*values, frob[w > 0].max(), np.sqrt((stack**2).sum())])


def weights_of(s, e, over):
    return s.gates[:, e] if over == "routed" else np.ones(s.n)


def same(found, expected, rtol=BRUTE, scale=None):
    """Equal where defined, and undefined at the same places."""
    expected = np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    close(np.nan_to_num(found), np.nan_to_num(expected), rtol, scale)


def per_expert(s, over, measure):
    """measure(J, w, e) for each expert that has weight, NaN of the same shape for the others."""
    found = {}
    for e in range(s.E):
        w = weights_of(s, e, over)
        if w.any():
            found[e] = measure(jacobians(s.experts[e], s.x), w, e)
    nothing = np.full_like(next(iter(found.values())), np.nan)
    return np.stack([found.get(e, nothing) for e in range(s.E)])


# Against brute force


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("over", ["routed", "all"])
def test_norms_and_mean_jacobians(over, case):
    s = site(*case.build())
    expected = per_expert(s, over, lambda J, w, e: eight(J, w))
    found = function.survey(s, over)
    for column, name in enumerate(function.NORMS):
        exact = min(s.experts[0].widths[0], s.experts[0].widths[2]) <= 8 or name not in ("sigma token", "sigma peak")
        same(found.norms[:, column], expected[:, column], BRUTE if exact else LANCZOS)
    same(found.means, per_expert(s, over, lambda J, w, e: np.tensordot(w / w.sum(), J, 1)))
    np.testing.assert_array_equal(function.norms(s, over), found.norms)
    np.testing.assert_array_equal(function.mean_jacobians(s, over), found.means)


def test_without_tokens_the_two_leading_values_per_token_are_left_out_and_nothing_else():
    s = site(*LARGE[0].build())
    full, lean = function.norms(s), function.norms(s, tokens=False)
    left_out = [name in ("sigma token", "sigma peak") for name in function.NORMS]
    assert np.isnan(lean).tolist() == [left_out] * s.E
    np.testing.assert_array_equal(lean[:, ~np.array(left_out)], full[:, ~np.array(left_out)])


@pytest.mark.parametrize("case", EVERY)
def test_norms_of_the_whole_layer_and_the_routers_share(case):
    moe, x = case.build()
    s, ones = site(moe, x), np.ones(len(x))
    whole = complex_step(lambda x: moe.forward(x)[0], x)
    experts = sum(s.gates[:, e, None, None] * jacobians(f, x) for e, f in enumerate(moe.experts))
    found = function.layer_norms(s)
    same(found.experts, eight(experts, ones))
    same(found.whole, eight(whole, ones))
    a, b = (np.sqrt((J**2).sum(axis=(1, 2))) for J in (experts, whole - experts))
    # the second term is a difference here: its rounding is that of the whole
    np.testing.assert_allclose(found.share, b / (a + b), rtol=0, atol=1e-10)
    rows, first, second = zip(*function.layer_jacobians(s, piece=4), strict=True)
    assert [n for r in rows for n in range(len(x))[r]] == list(range(len(x)))
    same(np.concatenate(first), experts)
    same(np.concatenate(first) + np.concatenate(second), whole)


@pytest.mark.parametrize("case", EVERY)
def test_the_routers_share_alone_is_the_one_beside_the_norms(case):
    s = site(*case.build())
    for here in (s, replace(s, router=None), shuffled(s, np.random.default_rng(0))):
        np.testing.assert_array_equal(function.router_share(here), function.layer_norms(here).share)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_router_has_no_share_where_its_gates_are_constant(rng, renormalize):
    moe = mixture(rng, 4, 3, 5, 1, renormalize=renormalize)
    found = function.layer_norms(site(moe, rng.standard_normal((9, 3))))
    assert (found.share == 0).all() == renormalize
    assert (found.experts == found.whole).all() == renormalize


def test_a_site_without_a_router_has_one_term():
    s = site(*LARGE[0].build())
    for null in (shuffled(s, np.random.default_rng(0)), replace(s, router=None)):
        found = function.layer_norms(null)
        assert (found.share == 0).all()
        np.testing.assert_array_equal(found.experts, found.whole)
        J = sum(null.gates[:, e, None, None] * jacobians(f, s.x) for e, f in enumerate(s.experts))
        same(found.experts, eight(J, np.ones(s.n)))


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("over", ["routed", "all"])
def test_token_spectra_are_the_means_of_the_svds(over, case):
    s = site(*case.build())

    def means(J, w, e):
        sigma = np.linalg.svd(J, compute_uv=False)
        shares = [np.cumsum(v, axis=1) / v.sum(axis=1, keepdims=True) for v in (sigma**2, sigma)]
        return np.stack([(w / w.sum()) @ v for v in (sigma, *shares)])

    expected = per_expert(s, over, means)
    for found, column in zip(function.token_spectra(s, over), range(3), strict=True):
        same(found, expected[:, column])


def test_a_jacobian_of_zeros_counts_with_its_zero_singular_values():
    flat = gelu(np.random.default_rng(0), 3, 4, 3)
    flat = replace(flat, W2=0 * flat.W2)
    s = site(flat, np.ones((2, 3)))
    assert (np.stack(function.token_spectra(s)) == 0).all()
    assert (function.norms(s) == 0).all()
    assert (function.layer_norms(s).whole == 0).all()


@pytest.mark.parametrize("case", CURVED)
@pytest.mark.parametrize("over", ["routed", "all"])
def test_curvature_is_the_root_mean_square_of_the_hessians_norm(over, case):
    s = site(*case.build())

    def rms(J, w, e):
        slopes = [complex_step(lambda x, i=i: s.experts[e].jacobian(x)[:, :, i], s.x) for i in range(s.x.shape[1])]
        return np.sqrt((w / w.sum()) @ (np.stack(slopes) ** 2).sum(axis=(0, 2, 3)))

    same(function.curvature(s, over), per_expert(s, over, rms), 1e-10)  # the closed form is a root of a difference


def test_weight_norms_bound_the_mean_jacobian(rng):
    moe = mixture(rng, 4, 5, 7, 2, o=3)
    s = site(moe, rng.standard_normal((9, 5)))
    found = function.weight_norms(s)
    leading = [np.linalg.svd(f.W2, compute_uv=False)[0] * np.linalg.svd(f.W1, compute_uv=False)[0] for f in moe.experts]
    same(found, leading)
    assert (function.norms(s)[:, function.NORMS.index("sigma peak")] < 1.13 * found).all()  # GELU's slope is below 1.13


# Slopes without values, which Jacobians read


def all_kinds_of_z():
    """More than one piece of the table, its edges, beyond it, and zeros of both signs; three dtypes."""
    z = np.concatenate([np.linspace(-12, 12, scalar._PIECE + 999), [0.0, -0.0, 9.0, -9.0, 40.0, -40.0, np.nan]])
    return {"float64": z, "float32": np.float32(z), "table": z[:60].reshape(3, 4, 5), "complex": z[:99] + 1e-30j}


@pytest.mark.underflow  # densities of what is 40 standard deviations away, and the complex step's square
@pytest.mark.parametrize("kind", all_kinds_of_z())
@pytest.mark.parametrize("activation", scalar.ACTIVATIONS)
def test_a_slope_alone_is_to_the_bit_that_beside_its_value(activation, kind):
    z = all_kinds_of_z()[kind]
    given, expected = z.copy(), scalar.ACTIVATIONS[activation](z)[1]
    slopes = [scalar.slope_of(activation, z)] + [scalar.gelu_slope(z)] * (activation == "gelu")
    for found in slopes:
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert z.tobytes() == given.tobytes()


# Laws that need no oracle


def relabelled(moe, order):
    bias = None if moe.bias is None else moe.bias[order]
    return MoE(moe.router[order], tuple(moe.experts[e] for e in order), moe.k, moe.renormalize, moe.temperature, bias)


def everything(s):
    """Results by name, the first axis the experts'."""
    spectra = function.token_spectra(s)
    found = {f"norms {over}": function.norms(s, over) for over in ("routed", "all")}
    found |= {f"pca {w}": routed_pca(s, w).eigenvalues for w in WEIGHTINGS}
    return found | spectra._asdict() | {"mean": function.mean_jacobians(s), "n_eff": routed_pca(s).n_eff}


@pytest.mark.parametrize("case", APART)
def test_relabelled_experts_permute_every_result(case):
    moe, x = case.build()
    order = np.random.default_rng(0).permutation(len(moe.experts))
    plain, moved = site(moe, x), site(relabelled(moe, order), x)
    expected = everything(plain)
    for name, found in everything(moved).items():
        same(found, expected[name][order])
    for found, whole in zip(function.layer_norms(moved), function.layer_norms(plain), strict=True):
        np.testing.assert_allclose(found, whole, rtol=BRUTE, atol=1e-10)


@pytest.mark.parametrize("case", EVERY)
def test_permuted_tokens_change_nothing(case):
    moe, x = case.build()
    order = np.random.default_rng(0).permutation(len(x))
    plain, moved = site(moe, x), site(moe, x[order])
    expected = everything(plain)
    for name, found in everything(moved).items():
        same(found, expected[name])
    before, after = function.layer_norms(plain), function.layer_norms(moved)
    same(after.whole, before.whole)
    np.testing.assert_allclose(after.share, before.share[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", EVERY)
def test_a_batch_seen_twice_changes_only_what_is_stacked(case):
    moe, x = case.build()
    once, twice = everything(site(moe, x)), everything(site(moe, np.concatenate([x, x])))
    grows = np.array([np.sqrt(2) if "stack" in name else 1 for name in function.NORMS])
    for name, found in twice.items():
        factor = grows if name.startswith("norms") else 2 if name == "n_eff" else 1
        same(found, once[name] * factor)


def test_gates_scaled_for_one_expert_change_only_what_is_stacked():
    s = site(*LARGE[0].build())
    scale = np.array([1.0, 0.01, 7.0])
    found, expected = (function.norms(t) for t in (replace(s, gates=s.gates * scale), s))
    for column, name in enumerate(function.NORMS):
        same(found[:, column], expected[:, column] * (np.sqrt(scale) if "stack" in name else 1))


def test_tokens_that_do_not_visit_an_expert_are_not_seen_in_its_results():
    s = site(*LARGE[0].build())
    expected = everything(s)
    for e in range(s.E):
        x = s.x.copy()
        others = np.setdiff1d(np.arange(s.n), s.rows(e))
        assert len(others)
        x[others] *= -1
        found = everything(replace(s, x=x))
        for name in ("norms routed", "pca gates", "pca routed rows", "sigma", "mean"):
            same(found[name][e], expected[name][e])
        assert np.abs(found["norms all"][e] - expected["norms all"][e]).max() > 1e-3


def test_no_token_anywhere_is_an_error_of_its_own(rng):
    moe = mixture(rng, 2, 3, 4, 1)
    with pytest.raises(
        ValueError, match="expected gates of the Site 'idle' of which some are positive; got zeros only"
    ):
        Site(x=np.ones((2, 3)), gates=np.zeros((2, 2)), experts=moe.experts, name="idle")
    with pytest.raises(ValueError, match="expected at least one token of the Site 'idle'; got none"):
        Site(x=np.ones((0, 3)), gates=np.zeros((0, 2)), experts=moe.experts, name="idle")
    # a gate on an expert that was not chosen reaches nobody
    s = Site(np.ones((2, 3)), np.array([[1.0, 0.0]] * 2), np.array([[1], [1]]), moe.experts, name="idle")
    for probe in (function.survey, function.mean_jacobians, function.token_spectra):
        with pytest.raises(ValueError, match="expected an expert that some token reaches; the Site 'idle' has none"):
            probe(s)


# Routed principal components


def cov(X, center, w=None):
    w = np.ones(len(X)) if w is None else w
    X = X - (w @ X / w.sum() if center else 0)
    return np.linalg.eigvalsh((X * w[:, None]).T @ X / w.sum())[::-1]


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_routed_pca_reads_the_text_in_four_ways(weighting, center, case):
    moe, x = case.build()
    s, h = site(moe, x), np.random.default_rng(1).standard_normal((len(x), 3))
    on = np.zeros((s.n, s.E), bool)
    np.put_along_axis(on, s.chosen, True, axis=1)
    for table in (x, h):
        expected = np.full((s.E, table.shape[1]), np.nan)
        for e in range(s.E):
            g = s.gates[:, e]
            if weighting == "gates" and g.any():
                expected[e] = cov(table, center, g)
            elif weighting == "routed rows" and on[:, e].any():
                expected[e] = cov(table[on[:, e]], center)
            elif weighting == "sqrt rows" and g.any():
                expected[e] = cov(np.sqrt(g)[:, None] * table, center)
            elif weighting == "scaled rows" and g.any():
                expected[e] = cov(g[:, None] * table, center)
        found = routed_pca(s, weighting, None if table is x else table, center).eigenvalues
        same(found, expected, scale=(table**2).max())  # one token's variance is a difference of equals


def test_another_weighting_is_refused():
    with pytest.raises(ValueError, match=r"expected a weighting among gates, sqrt rows, .*; got 'softmax'"):
        routed_pca(site(*MIXTURES[0].build()), "softmax")
