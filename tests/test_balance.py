"""Balance losses: gradients, what does not change them, and the conventions told apart."""

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from cases import COMPLEX_STEP, ROUNDING, close
from hypothesis import given, settings
from hypothesis import strategies as st
from test_laws import converges

from npmoe.calculus.scalar import logsumexp, softmax
from npmoe.model.balance import Balance, conventions, gradients, pooled, uniform_law
from npmoe.model.routing import top_k

EXAMPLES = settings(max_examples=40, deadline=None)
FORMS = [
    *(Balance(count=count, scale=scale) for count in ("per token", "per choice") for scale in ("E", "E/k", "1", "1/E")),
    Balance("switch", first_choice=True, scale="E/k"),
    Balance("gshard"),
    Balance("gshard", first_choice=False, count="per choice"),
    *(Balance(fraction="soft", count=count) for count in ("per token", "per choice")),
    *(
        Balance("importance", gates=g, variance=v)
        for g in ("soft", "renormalized", "kept")
        for v in ("population", "sample")
    ),
    Balance("z", weight=0.3),
]
HELD = Balance(fraction="held")  # f = P as a constant: the gradient is not that of the value
forms, seeds = st.sampled_from(FORMS), st.integers(0, 2**32 - 1)


@st.composite
def batches(draw, least=1):
    """Scores and choices of any size, also one expert, one token, all chosen; and the generator that drew them."""
    E = draw(st.integers(least, 6))
    n, k, seed = draw(st.integers(1, 9)), draw(st.integers(1, E)), draw(seeds)
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, E)) * draw(st.sampled_from([0.01, 1.0, 3.0]))
    return scores, top_k(scores, k), rng


def planted(n=60, E=6, k=2, seed=0):
    """Scores that lean to some experts, so that no two conventions agree by accident."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, E)) + np.linspace(1, -1, E)
    return scores, top_k(scores, k)


# ---- values --------------------------------------------------------------------------------------------------------


def counts(chosen, E):
    return np.array([(chosen == e).sum() for e in range(E)]) / len(chosen)


@EXAMPLES
@given(batches())
def test_values_are_the_papers_and_the_frameworks(batch):
    """Each written out by itself, from the paper or as the framework does it."""
    s, chosen, _ = batch
    (n, E), k = s.shape, chosen.shape[1]
    p = softmax(s)
    P, f = p.mean(axis=0), counts(chosen, E)
    one_hot = np.eye(E)[chosen]  # (n, k, E)
    gates = np.where(one_hot.sum(axis=1) > 0, p, 0)
    renormalized = gates / gates.sum(axis=1, keepdims=True)
    per_expert = (p.sum(axis=0) * one_hot.sum(axis=(0, 1))).sum()

    def cv2(g, ddof=0):
        return g.sum(axis=0).var(ddof=ddof) / g.sum(axis=0).mean() ** 2 if E > 1 else 0.0

    table = [
        (Balance("switch"), E * (f / k) @ P),
        (Balance("switch", count="per choice"), (one_hot.mean(axis=0) * P[None]).sum() * E),  # Hugging Face, Mixtral
        (Balance("switch", scale="E/k", count="per choice"), per_expert * E / (k * n * n)),  # Megatron
        (Balance("gshard"), (counts(chosen[:, :1], E) * P).sum() / E),
        (Balance("switch", fraction="soft"), E * (P**2).sum()),
        (Balance("importance"), cv2(p)),
        (Balance("importance", gates="renormalized"), cv2(renormalized)),
        (Balance("importance", gates="kept", variance="sample"), cv2(gates, ddof=1)),
        (Balance("z"), (logsumexp(s) ** 2).mean()),
    ]
    for balance, want in table:
        # CV^2 of nearly equal numbers is itself small: its rounding is that of 1
        close(balance(s, chosen)[0], want, ROUNDING, scale=max(abs(want), 1.0))
        assert replace(balance, weight=0.25)(s, chosen)[0] == 0.25 * balance(s, chosen)[0]


@EXAMPLES
@given(batches(), st.integers(0, 5))
def test_the_table_of_gradients(batch, column):
    """Column j of dL/ds by the formulas of the table, token by token."""
    s, chosen, _ = batch
    (n, E), j = s.shape, column % s.shape[1]
    p, f = softmax(s), counts(chosen, E)
    centred = p[:, j] * (f[j] - p @ f)
    importance = p.sum(axis=0)
    G = 2 * (importance - importance.mean()) / (E * importance.mean() ** 2)
    for balance, want in [
        (Balance("switch", count="per choice"), E / n * centred),
        (Balance("gshard", count="per choice", first_choice=False), centred / n / E),
        (Balance("importance"), p[:, j] * (G[j] - p @ G)),
        (Balance("z"), 2 / n * logsumexp(s) * p[:, j]),
    ]:
        close(balance(s, chosen)[1][:, j], want, ROUNDING, scale=1.0)


def test_the_optimum_is_where_use_is_even():
    """One, k, 1/E^2, zero: each loss at equal use, and above it nearby for every loss that has its minimum there."""
    E, k = 4, 2
    chosen = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    even = np.zeros((4, E))
    for balance, want in [
        (Balance("switch"), 1.0),
        (Balance("switch", count="per choice"), k),
        (Balance("switch", count="per choice", scale="E/k"), 1.0),
        (Balance("gshard"), 1 / E**2),
        (Balance("switch", fraction="soft"), 1.0),
        (Balance("importance"), 0.0),
        (Balance("importance", gates="renormalized"), 0.0),
    ]:
        value, ds = balance(even, chosen)
        assert value == pytest.approx(want, abs=1e-15)
        close(ds, np.zeros_like(ds), ROUNDING, scale=1.0)
    for seed in range(20):
        s = np.random.default_rng(seed).standard_normal((4, E))
        assert Balance("switch", fraction="soft")(s, chosen)[0] > 1
        assert Balance("switch", count="per choice")(s, top_k(s, E))[0] == pytest.approx(E)  # all chosen: no choice


@EXAMPLES
@given(batches())
def test_cv_of_soft_importance_is_the_soft_product_less_one(batch):
    s, chosen, _ = batch
    (cv2, dcv2), (soft, dsoft) = Balance("importance")(s, chosen), Balance(fraction="soft")(s, chosen)
    P = softmax(s).mean(axis=0)
    close(cv2, len(P) * (P**2).sum() - 1, ROUNDING, scale=len(P))
    close(cv2, soft - 1, ROUNDING, scale=len(P))
    close(dcv2, dsoft, ROUNDING, scale=1.0)


# ---- gradients -----------------------------------------------------------------------------------------------------


@EXAMPLES
@given(forms, batches())
def test_gradient_by_the_complex_step(balance, batch):
    s, chosen, rng = batch
    v = rng.standard_normal(s.shape)
    value, ds = balance(s, chosen)
    shifted, _ = balance(s + 1e-30j * v, chosen)
    close(shifted.imag / 1e-30, (ds * v).sum(), COMPLEX_STEP, scale=np.abs(ds * v).sum() + abs(value))


@pytest.mark.parametrize(
    "balance", FORMS, ids=lambda b: f"{b.kind}-{b.count}-{b.scale}-{b.fraction}-{b.gates}-{b.variance}"
)
def test_gradient_by_differences_of_order_two(balance, rng):
    s, chosen = planted()
    v, (_, ds) = rng.standard_normal(s.shape), balance(s, chosen)
    central = lambda h: (balance(s + h * v, chosen)[0] - balance(s - h * v, chosen)[0]) / (2 * h)  # noqa: E731
    converges((ds * v).sum(), central, np.linalg.norm(ds * v))


def test_planted_faults_in_a_gradient_are_seen(rng):
    """The softmax's second term dropped, the factor k forgotten, f's own gradient forgotten."""
    s, chosen = planted()
    v, p, f = rng.standard_normal(s.shape), softmax(s), counts(chosen, 6)
    hard, soft = Balance(count="per choice"), Balance(fraction="soft")
    exact = {b: b(s + 1e-30j * v, chosen)[0].imag / 1e-30 for b in (hard, soft)}
    for balance, wrong in [
        (hard, 6 / len(s) * p * f),
        (hard, Balance()(s, chosen)[1]),
        (soft, HELD(s, chosen)[1]),
    ]:
        assert abs((wrong * v).sum() / exact[balance] - 1) > 0.1
        close((balance(s, chosen)[1] * v).sum(), exact[balance], COMPLEX_STEP, scale=1.0)


def test_a_held_fraction_has_half_the_gradient_of_a_soft_one():
    s, chosen = planted()
    (a, half), (b, whole) = HELD(s, chosen), Balance(fraction="soft")(s, chosen)
    assert a == b
    np.testing.assert_array_equal(2 * half, whole)


@EXAMPLES
@given(forms, batches(), st.floats(-50, 50))
def test_a_constant_added_to_a_tokens_scores_changes_nothing_but_z(balance, batch, c):
    s, chosen, _ = batch
    (value, ds), (again, ds_again) = balance(s, chosen), balance(s + c, chosen)
    if balance.kind == "z":
        close(again / 0.3, ((logsumexp(s) + c) ** 2).mean(), ROUNDING, scale=(abs(c) + 10) ** 2)
    else:
        tolerance = ROUNDING * (1 + abs(c))  # s + c has lost eps |c|
        close(again, value, tolerance, scale=10.0)
        close(ds_again, ds, tolerance, scale=10.0)
        close(ds.sum(axis=1), np.zeros(len(ds)), ROUNDING, scale=10.0)


@EXAMPLES
@given(forms, batches())
def test_tokens_and_experts_may_be_renamed(balance, batch):
    s, chosen, rng = batch
    value, ds = balance(s, chosen)
    order = rng.permutation(len(s))
    again, permuted = balance(s[order], chosen[order])
    close(again, value, ROUNDING, scale=max(1, abs(value)))
    close(permuted, ds[order], ROUNDING, scale=1.0)
    names = rng.permutation(s.shape[1])
    again, renamed = balance(s[:, names], np.argsort(names)[chosen])
    close(again, value, ROUNDING, scale=max(1, abs(value)))
    close(renamed, ds[:, names], ROUNDING, scale=1.0)


@EXAMPLES
@given(st.sampled_from([*FORMS, HELD]), batches())
def test_a_masked_token_is_a_removed_one_and_a_weight_a_repeated_one(balance, batch):
    s, chosen, rng = batch
    keep = rng.random(len(s)) < 0.6
    keep[rng.integers(len(s))] = True
    value, ds = replace(balance, mask=keep)(s, chosen)
    want, dwant = balance(s[keep], chosen[keep])
    close(value, want, ROUNDING, scale=max(1, abs(want)))
    close(ds[keep], dwant, ROUNDING, scale=1.0)
    assert not ds[~keep].any()
    times = rng.integers(1, 4, len(s))
    value, ds = replace(balance, mask=times.astype(float))(s, chosen)
    want, dwant = balance(np.repeat(s, times, axis=0), np.repeat(chosen, times, axis=0))
    close(value, want, ROUNDING, scale=max(1, abs(want)))
    close(ds, np.add.reduceat(dwant, np.cumsum(times) - times), ROUNDING, scale=1.0)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int8, bool])
def test_an_attention_mask_of_integers_is_one_of_booleans(kind, rng):
    s, chosen = planted()
    keep = rng.random(len(s)) < 0.7
    value, ds = Balance(mask=keep.astype(kind))(s, chosen)
    want, dwant = Balance(mask=keep.astype(float))(s, chosen)
    assert value == want
    np.testing.assert_array_equal(ds, dwant)
    with pytest.raises(ValueError, match="mask to be non-negative; got -1"):
        Balance(mask=np.where(keep, 1, -1))(s, chosen)


@pytest.mark.parametrize("balance", [*FORMS, HELD], ids=str)
def test_saturated_scores_vanish_without_an_error(balance):
    """Every floating-point error raises here; of two experts the second has a probability of 0."""
    value, ds = balance(np.array([[0.0, -800.0]]), np.array([[0]]))
    assert np.isfinite(value)
    assert np.isfinite(ds).all()


def test_kept_gates_that_all_vanish_are_refused():
    for far in (-700.0, -1000.0):  # the sum 1e-304 is not 0, but 1 over it has no room for a gradient
        with pytest.raises(ValueError, match="chosen experts whose gates do not all vanish"):
            Balance("importance", gates="kept")(np.array([[0, far], [0, far]]), np.array([[1], [1]]))
    value, ds = Balance("importance", gates="kept")(np.array([[0, -1000.0], [0, -600.0]]), np.array([[1], [1]]))
    assert value == 1.0
    assert np.isfinite(ds).all()


@pytest.mark.parametrize("balance", FORMS[:1] + FORMS[-3:], ids=lambda b: b.kind + b.gates)
def test_float32_comes_back_as_float32(balance):
    s, chosen = planted()
    value, ds = balance(s.astype(np.float32), chosen)
    assert (type(value), ds.dtype) == (float, np.float32)
    close(value, balance(s, chosen)[0], 1e-6)
    close(ds, balance(s, chosen)[1], 1e-5)


def test_onward_to_router_bias_and_hidden_states(rng):
    """Through the scores of a mixture, temperature and bias and all."""
    x, W, b = rng.standard_normal((30, 5)), rng.standard_normal((4, 5)), rng.standard_normal(4)
    dx, dW, db = rng.standard_normal(x.shape), rng.standard_normal(W.shape), rng.standard_normal(4)
    tau, chosen = 0.7, top_k(x @ W.T, 2)
    balance = Balance("importance", gates="kept")

    def value(h):
        return balance(((x + h * dx) @ (W + h * dW).T + b + h * db) / tau, chosen)

    result = value(0)
    found = gradients(result, x, W, tau)
    terms = [(found.x * dx).sum(), (found.router * dW).sum(), (found.bias * db).sum()]
    close(value(1e-30j)[0].imag / 1e-30, sum(terms), COMPLEX_STEP, scale=np.abs(terms).sum())
    for a, b in zip(found, gradients(result[1], x, W, tau), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- several layers ------------------------------------------------------------------------------------------------


def layers(rng, L=3, n=20, E=5, k=2):
    scores = [rng.standard_normal((n, E)) + 0.3 * rng.standard_normal(E) for _ in range(L)]
    return scores, [top_k(s, k) for s in scores]


@pytest.mark.parametrize(
    "balance", FORMS[:2] + FORMS[9:], ids=lambda b: f"{b.kind}-{b.count}-{b.fraction}-{b.gates}-{b.variance}"
)
@pytest.mark.parametrize(
    "how", [{}, {"layers": "sum"}, {"pool": "pooled"}], ids=lambda how: "-".join(how.values()) or "mean"
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_several_layers(balance, how, masked, rng):
    scores, chosen = layers(rng)
    balance = replace(balance, mask=rng.random(20) < 0.7 if masked else None, **how)
    vs = [rng.standard_normal(s.shape) for s in scores]
    value, ds = pooled(balance, scores, chosen)
    terms = np.array([(a * b).sum() for a, b in zip(ds, vs, strict=True)])
    shifted, _ = pooled(balance, [s + 1e-30j * v for s, v in zip(scores, vs, strict=True)], chosen)
    close(shifted.real, value, ROUNDING)
    close(shifted.imag / 1e-30, terms.sum(), COMPLEX_STEP, scale=np.abs(terms).sum() + value)


def test_pooled_is_the_mean_before_the_product_and_per_layer_after(rng):
    scores, chosen = layers(rng)
    fs = [counts(c, 5) for c in chosen]
    Ps = [softmax(s).mean(axis=0) for s in scores]
    before = 5 * np.mean(fs, axis=0) @ np.mean(Ps, axis=0)
    after = [5 * f @ P for f, P in zip(fs, Ps, strict=True)]
    hf = Balance(count="per choice")
    close(pooled(replace(hf, pool="pooled"), scores, chosen)[0], before, ROUNDING)
    close(pooled(hf, scores, chosen)[0], np.mean(after), ROUNDING)
    close(pooled(replace(hf, layers="sum"), scores, chosen)[0], sum(after), ROUNDING)
    assert abs(before - np.mean(after)) > 1e-3
    for how in ({}, {"layers": "sum"}, {"pool": "pooled"}):  # one layer, or one layer repeated: nothing to pool
        one = replace(hf, **how)
        close(pooled(one, scores[:1], chosen[:1])[0], after[0], ROUNDING)
        close(pooled(replace(one, layers="mean"), scores[:1] * 3, chosen[:1] * 3)[0], after[0], ROUNDING)


# ---- conventions ---------------------------------------------------------------------------------------------------


def switches(balance, *names):
    return tuple(getattr(balance, name) for name in names)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "how", [{}, {"layers": "sum"}, {"pool": "pooled"}], ids=lambda how: "-".join(how.values()) or "mean"
)
def test_every_planted_convention_is_found(how, dtype, rng):
    """And all that match are the planted one, or the same formula by another name: f of sum k over k is f of sum 1."""
    scores, chosen = layers(rng, n=40, E=7, k=2)  # E/k, k, E and L make products that all differ
    scores = [(s + np.linspace(1, -1, 7)).astype(dtype) for s in scores]
    chosen = [top_k(s, 2) for s in scores]
    mask = rng.random(40) < 0.8
    for balance, weight in zip(FORMS, cycle((1.0, 0.01)), strict=False):
        balance = replace(balance, weight=weight, mask=mask, **how)
        number, _ = pooled(balance, scores, chosen)
        found = conventions(dtype(number), scores, chosen, weights=(1.0, 0.01), mask=mask)
        assert found.matches, str(found)
        for match in found.matches:
            assert "FAULT" not in match.words
            assert "mask ignored" not in match.words
            close(pooled(match.balance, scores, chosen)[0], number, found.tolerance, scale=abs(number) + weight)
            # Of a mean over tokens alone, pooling after or before makes no difference
            if balance.kind != "z":
                assert switches(match.balance, "pool") == switches(balance, "pool")
        same = {m.words for m in found.matches if m.balance.weight == weight}
        assert len(same) <= 2, same


def test_what_coincides_is_told():
    """With k = 1 per choice is per token is the first choice, and E/k is E."""
    s, _ = planted()
    chosen = top_k(s, 1)
    found = conventions(Balance()(s, chosen)[0], s, chosen)
    words = [match.words for match in found.matches]
    assert len(words) == 6
    assert all(any(part in w for w in words) for part in ("per token", "per choice", "first choice", "scale E/k"))
    assert "6 match" in str(found)
    assert str(found).count("\n") == 6


def test_planted_faults_are_told_apart():
    s, chosen = planted()
    twice = conventions(Balance(count="per choice")(softmax(s), chosen)[0], s, chosen)
    assert twice.matches
    assert all("softmax taken twice" in match.words for match in twice.matches)
    P, f = softmax(s).mean(axis=0), counts(chosen, 6)
    dropped = conventions(float(f @ P), s, chosen)
    assert [switches(m.balance, "count", "scale") for m in dropped.matches] == [("per choice", "1")]
    cv2 = conventions(6 * float(P @ P), s, chosen)  # the 1 forgotten: that is the soft product
    assert switches(cv2.matches[0].balance, "kind", "fraction") == ("switch", "soft")
    wrong = conventions(1.01 * Balance()(s, chosen)[0], s, chosen)
    assert not wrong.matches
    assert wrong.nearest.balance.kind == "switch"
    assert wrong.nearest.difference == pytest.approx(0.01, rel=0.02)
    assert "none matches; the nearest" in str(wrong)


def test_a_number_of_lower_precision_needs_a_tolerance_of_its_own():
    s, chosen = planted()
    number = Balance("z")(s, chosen)[0] * (1 + 2**-9)  # as bfloat16 would round
    assert not conventions(number, s, chosen).matches
    assert [m.balance.kind for m in conventions(number, s, chosen, tolerance=2**-8).matches] == ["z"]


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"kind": "swich"}, ValueError, "kind of this balance loss among 'switch', .*got 'swich'"),
        ({"count": "k"}, ValueError, "count .*'per token', 'per choice'; got 'k'"),
        ({"scale": 1}, ValueError, "scale .*got 1"),
        ({"first_choice": 1}, ValueError, "first_choice .*None, False, True; got 1"),
        ({"weight": np.nan}, ValueError, "weight .*finite; got nan"),
        ({"weight": "1"}, TypeError, "weight .*number; got '1'"),
    ],
)
def test_an_unknown_switch_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        Balance(**change)


@pytest.mark.parametrize(
    ("scores", "chosen", "mask", "error", "says"),
    [
        (np.zeros(3), [[0]], None, ValueError, r"scores of shape \(n, E\).*got \(3,\)"),
        (np.array([[0.0, np.nan]]), [[0]], None, ValueError, r"scores to be finite; got nan at \(0, 1\)"),
        (np.zeros((0, 2)), np.zeros((0, 1), int), None, ValueError, "at least one token"),
        (np.zeros((2, 3)), [[0]], None, ValueError, r"chosen of shape \(2, k\).*got \(1, 1\)"),
        (np.zeros((1, 3)), [[0.0]], None, TypeError, "chosen .*integers; got float64"),
        (np.zeros((1, 3)), [[3]], None, ValueError, r"chosen within 0\.\.2"),
        (np.zeros((1, 3)), [[-1]], None, ValueError, r"chosen within 0\.\.2"),
        (np.zeros((1, 3)), [[1, 1]], None, ValueError, r"different experts a token; got \[1, 1\] of token 0"),
        (np.zeros((2, 3)), [[0], [1]], np.zeros(2, bool), ValueError, "mask with a positive sum"),
        (np.zeros((2, 3)), [[0], [1]], np.ones(3), ValueError, r"mask of shape \(2,\); got \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(scores, chosen, mask, error, says):
    with pytest.raises(error, match=says):
        Balance(mask=mask)(scores, np.array(chosen))


def test_layers_that_do_not_fit_are_refused(rng):
    scores, chosen = layers(rng)
    with pytest.raises(ValueError, match="sequence of scores"):
        pooled(Balance(), scores[0], chosen)
    with pytest.raises(ValueError, match="as many layers, at least one; got 3 and 2"):
        pooled(Balance(), scores, chosen[:2])
    with pytest.raises(ValueError, match="as many layers, at least one; got 0 and 0"):
        pooled(Balance(), [], [])
    with pytest.raises(ValueError, match="one number of experts"):
        pooled(Balance(pool="pooled"), [scores[0], scores[1][:, :4]], [chosen[0], top_k(scores[1][:, :4], 2)])
    with pytest.raises(ValueError, match=r"mask of shape \(20,\); got \(60,\)"):
        pooled(Balance(pool="pooled", mask=np.ones(60)), scores, chosen)
    with pytest.raises(ValueError, match="as many layers, at least one; got 3 and 1"):
        conventions(1.0, scores, chosen[:1])
    with pytest.raises(ValueError, match="finite number"):
        conventions(np.nan, scores, chosen)
    with pytest.raises(ValueError, match="bias only together with a router"):
        uniform_law(scores[0], bias=np.zeros(5))
