"""Attention, blocks, the language model and its training: derivatives, second routes to every number, and resuming."""

from dataclasses import replace

import numpy as np
import pytest
from cases import COMPLEX_STEP, ROUNDING, SINGLE, TRANSPOSE, close, trees_close
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import npmoe
from npmoe import Attention, Embedding, Transformer
from npmoe.calculus import tree
from npmoe.calculus.scalar import logsumexp
from npmoe.model import crossentropy
from npmoe.model.attention import rotate
from npmoe.model.balance import Balance, pooled
from npmoe.model.crossentropy import head_loss, head_loss_vjp
from npmoe.model.language import Progress, Recipe, _drawn, evaluate, sample, train
from npmoe.model.transformer import loss, loss_and_gradient

STEP = 1e-30


def attention(rng, d=6, H=4, G=2, c=2, rotary=None, biased=True):
    draw = rng.standard_normal
    biases = [draw(H * c), draw(G * c), draw(G * c), draw(d)] if biased else [None] * 4
    return Attention(draw((H * c, d)), draw((G * c, d)), draw((G * c, d)), draw((d, H * c)), H, G, rotary, *biases)


ATTENTIONS = {
    "one_head": lambda rng: attention(rng, 5, 1, 1, 3),
    "heads": lambda rng: attention(rng, 6, 3, 3, 2, biased=False),
    "groups": lambda rng: attention(rng, 6, 4, 2, 2),
    "one_group": lambda rng: attention(rng, 3, 4, 1, 1),
    "rotary": lambda rng: attention(rng, 6, 4, 2, 4, rotary=100.0),
    "rotary_wide": lambda rng: attention(rng, 2, 1, 1, 8, rotary=1e4, biased=False),
}

MODELS = {
    "gpt": {"longest": 9, "E": 4, "k": 2, "h": 9},
    "mixtral": {"E": 4, "k": 2, "h": 9, "groups": 2, "rotary": 1e4, "norm": "rms", "expert": "swiglu", "tied": False},
    "dense": {"longest": 7, "h": 6, "tied": False},
    "soft": {"longest": 7, "h": 6, "E": 3, "k": 3},
    "switch": {"longest": 7, "h": 6, "E": 3, "k": 1, "renormalize": False, "temperature": 0.7},
    "no_positions": {"h": 5, "E": 2, "k": 1, "renormalize": False, "norm": "rms"},
}


def model_of(name, rng, layers=2, V=11):
    """A model whose weights, norms and biases are all far from where they start."""
    made = npmoe.init.transformer(rng, V=V, d=8, layers=layers, heads=4, **MODELS[name])
    return tree.map_leaves(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), made)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def direction(of, rng):
    return tree.map_leaves(lambda leaf: rng.standard_normal(leaf.shape), of)


def moved(of, v, step):
    return tree.map_leaves(lambda leaf, to: leaf + step * to, of, v)


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 12])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_vjp_of_attention_is_the_complex_step(name, length, rng):
    layer = ATTENTIONS[name](rng)
    x = rng.standard_normal((12, layer.widths[0]))
    v, dx = direction(layer, rng), rng.standard_normal(x.shape)
    y, trace = layer.forward(x, length)
    w = rng.standard_normal(y.shape)
    xbar, bar = layer.vjp(trace, w)
    with np.errstate(under="ignore"):
        Jv = moved(layer, v, 1j * STEP).forward(x + 1j * STEP * dx, length)[0].imag / STEP
    terms = np.concatenate([tree.flatten(bar) * tree.flatten(v), (xbar * dx).ravel()])
    close((w * Jv).sum(), terms.sum(), COMPLEX_STEP, scale=np.linalg.norm(terms))
    nothing, same = layer.vjp(trace, w, wrt_x=False)
    assert nothing is None
    trees_close(same, bar, 0)


def test_a_direction_sees_a_wrong_gradient(rng):
    """The law above must be able to fail: each leaf of the gradient is spoilt in turn."""
    layer = ATTENTIONS["rotary"](rng)
    x = rng.standard_normal((6, 6))
    v = direction(layer, rng)
    y, trace = layer.forward(x)
    w = rng.standard_normal(y.shape)
    bar = layer.vjp(trace, w)[1]
    with np.errstate(under="ignore"):
        Jv = moved(layer, v, 1j * STEP).forward(x.astype(complex))[0].imag / STEP
    right = (w * Jv).sum()
    for name, leaf in tree.named_leaves(bar):
        wrong = tree.dot(tree.alike(bar, **{name: 1.01 * leaf}), v)
        assert abs(wrong - right) > 1e-6 * abs(right), name


@pytest.mark.parametrize("name", ATTENTIONS)
def test_jacobian_of_attention_is_causal_and_transposes(name, rng):
    layer = ATTENTIONS[name](rng)
    x = rng.standard_normal((4, layer.widths[0]))
    J = layer.jacobian(x)
    later = np.triu(np.ones((4, 4), bool), 1)
    assert not J.swapaxes(1, 2)[later].any(), "a token that depends on later ones"
    assert all(J[t, :, s].any() for t, s in zip(*np.nonzero(~later), strict=True))
    y, trace = layer.forward(x)
    w = rng.standard_normal(y.shape)
    close(layer.vjp(trace, w)[0], np.einsum("to,tosi->si", w, J), TRANSPOSE)


def by_hand(layer, x):
    """One sequence, head by head and token by token, as the paper has it."""
    c, q = layer.head, layer.heads // layer.groups
    zero = np.zeros(1)
    Q, K, V = (
        x @ W.T + (zero if b is None else b)
        for W, b in ((layer.Wq, layer.bq), (layer.Wk, layer.bk), (layer.Wv, layer.bv))
    )
    out = []
    for h in range(layer.heads):
        g = h // q
        Qh, Kg, Vg = Q[:, h * c : h * c + c], K[:, g * c : g * c + c], V[:, g * c : g * c + c]
        if layer.rotary:  # pairs (i, i + c/2) as complex numbers
            turn = np.exp(1j * np.outer(np.arange(len(x)), layer.rotary ** (-2 * np.arange(c // 2) / c)))
            Qh, Kg = (
                np.hstack([z.real, z.imag]) for z in ((A[:, : c // 2] + 1j * A[:, c // 2 :]) * turn for A in (Qh, Kg))
            )
        rows = []
        for t in range(len(x)):
            s = Kg[: t + 1] @ Qh[t] / np.sqrt(c)
            p = np.exp(s - s.max())
            rows.append(p @ Vg[: t + 1] / p.sum())
        out.append(np.array(rows))
    return np.hstack(out) @ layer.Wo.T + (zero if layer.bo is None else layer.bo)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_the_formula_written_out(name, rng):
    layer = ATTENTIONS[name](rng)
    x = rng.standard_normal((10, layer.widths[0]))
    close(layer.forward(x, 5)[0], np.vstack([by_hand(layer, x[:5]), by_hand(layer, x[5:])]), 1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), G=st.integers(1, 3), q=st.integers(1, 3), c=st.integers(1, 3), T=st.integers(1, 6))
def test_grouped_heads_are_heads_with_repeated_keys(seed, G, q, c, T):
    rng = np.random.default_rng(seed)
    grouped = attention(rng, 4, G * q, G, 2 * c, rotary=50.0)

    def repeated(a):
        return np.repeat(a.reshape(G, 2 * c, -1), q, axis=0).reshape(G * q * 2 * c, *a.shape[1:])

    many = {name: repeated(getattr(grouped, name)) for name in ("Wk", "Wv", "bk", "bv")}
    x = rng.standard_normal((2 * T, 4))
    close(replace(grouped, groups=G * q, **many).forward(x, T)[0], grouped.forward(x, T)[0], 1e-12)


@pytest.mark.parametrize("cuts", [(1,) * 6, (2, 4), (5, 1), (6,)])
def test_reading_on_from_a_cache_is_reading_at_once(cuts, rng):
    layer = ATTENTIONS["rotary"](rng)
    x, cache, found = rng.standard_normal((3, 6, 6)), None, []
    for start, size in zip(np.cumsum((0, *cuts)), cuts, strict=False):
        y, cache = layer.extend(x[:, start : start + size], cache)
        found.append(y)
    close(np.concatenate(found, axis=1).reshape(18, 6), layer.forward(x.reshape(18, 6), 6)[0], ROUNDING)


def test_rotary_products_depend_on_differences_alone(rng):
    a, b = rng.standard_normal((2, 1, 8))
    products = [float((rotate(a, 1e4, p) * rotate(b, 1e4, p + 5)).sum()) for p in (0, 3, 100)]
    close(np.array(products), np.full(3, products[0]), 1e-12)
    close(np.linalg.norm(rotate(a, 1e4, 77)), np.linalg.norm(a), ROUNDING)
    close(rotate(rotate(a, 1e4, 9), 1e4, 9, -1), a, ROUNDING)


def test_frequencies_may_stand_in_the_place_of_their_base(rng):
    by_base = ATTENTIONS["rotary"](rng)
    by_hand = replace(by_base, rotary=tuple(float(100.0 ** (-2 * i / 4)) for i in range(2)))
    x = rng.standard_normal((6, 6))
    close(by_hand.forward(x)[0], by_base.forward(x)[0], ROUNDING)
    assert not np.allclose(replace(by_base, rotary=(1.0, 0.3)).forward(x)[0], by_base.forward(x)[0])
    with pytest.raises(ValueError, match="expected 2 rotary frequencies for heads of width 4; got 3"):
        replace(by_base, rotary=(1.0, 0.1, 0.01))


def test_bad_attention_is_named(rng):
    good = attention(rng)
    with pytest.raises(ValueError, match="groups that divide heads"):
        replace(good, groups=3)
    with pytest.raises(ValueError, match="even width"):
        replace(attention(rng, c=3), rotary=10.0)
    with pytest.raises(ValueError, match="whole number of sequences of 5 tokens; got 12"):
        good.forward(rng.standard_normal((12, 6)), 5)
    with pytest.raises(ValueError, match=r"expected Wk of shape \(4, 6\)"):
        replace(good, Wk=good.Wk[:3])


# ---- blocks and the whole model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_vjp_of_a_block_is_the_complex_step(name, rng):
    block = model_of(name, rng).blocks[0]
    h, v = rng.standard_normal((6, 8)), direction(block, rng)
    dh = rng.standard_normal(h.shape)
    y, trace = block.forward(h, 3)
    w = rng.standard_normal(y.shape)
    hbar, bar = block.vjp(trace, w)
    with np.errstate(under="ignore"):
        Jv = moved(block, v, 1j * STEP).forward(h + 1j * STEP * dh, 3)[0].imag / STEP
    terms = np.concatenate([tree.flatten(bar) * tree.flatten(v), (hbar * dh).ravel()])
    close((w * Jv).sum(), terms.sum(), COMPLEX_STEP, scale=np.linalg.norm(terms))
    assert block.vjp(trace, w, wrt_x=False)[0] is None


def mean_loss(model, ids, targets):
    """Mean cross-entropy from all logits at once, for complex numbers too."""
    logits = model.forward(ids)
    return (logsumexp(logits) - logits[np.arange(len(logits)), targets.ravel()]).mean()


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_the_loss_is_the_complex_step(name, rng):
    model = model_of(name, rng)
    ids, targets = rng.integers(0, 11, (2, 3, 5))
    value, gradient = loss_and_gradient(model, ids, targets)
    close(value, mean_loss(model, ids, targets), 1e-13)
    close(loss(model, ids, targets).mean(), value, 1e-13)
    for name_of, leaf in tree.named_leaves(model):  # leaf by leaf: a wrong one has nowhere to hide
        v = tree.map_leaves(np.zeros_like, model)
        along = rng.standard_normal(leaf.shape)
        v = tree.unflatten(
            np.concatenate([along.ravel() if n == name_of else z.ravel() for n, z in tree.named_leaves(v)]), v
        )
        with np.errstate(under="ignore"):
            exact = mean_loss(moved(model, v, 1j * STEP), ids, targets).imag / STEP
        terms = tree.flatten(gradient) * tree.flatten(v)
        close(exact, terms.sum(), 1e-11, scale=max(np.linalg.norm(terms), 1e-3))


def test_the_loss_falls_along_its_gradient_as_its_norm_says(rng):
    """A central difference along the gradient, whose error falls as h^2."""
    model = model_of("soft", rng)
    ids, targets = rng.integers(0, 11, (2, 4, 6))
    gradient = loss_and_gradient(model, ids, targets)[1]
    square = tree.dot(gradient, gradient)
    errors = []
    for h in (1e-2, 5e-3, 2.5e-3):
        up, down = (loss(moved(model, gradient, sign * h), ids, targets).mean() for sign in (1, -1))
        errors.append(abs((up - down) / (2 * h) - square))
    assert np.allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2, atol=0.1), errors


@pytest.mark.parametrize(
    "balances", [(Balance("switch", weight=0.3),), (Balance("z", weight=0.1), Balance("importance"))]
)
def test_balance_losses_reach_router_and_what_lies_in_front(balances, rng):
    model = model_of("gpt", rng)
    ids, targets = rng.integers(0, 11, (2, 4, 5))
    gradient = loss_and_gradient(model, ids, targets, balances)[1]
    v = direction(model, rng)

    def whole(m):
        sites = list(
            zip(
                m.blocks,
                (block.norm2.forward(h)[0] for block, (h, _) in zip(m.blocks, m.states(ids), strict=True)),
                strict=True,
            )
        )
        scores, chosen = [b.feed.scores(x) for b, x in sites], [b.feed.routing(x).chosen for b, x in sites]
        return mean_loss(m, ids, targets) + sum(pooled(balance, scores, chosen)[0] for balance in balances)

    with np.errstate(under="ignore"):
        exact = whole(moved(model, v, 1j * STEP)).imag / STEP
    terms = tree.flatten(gradient) * tree.flatten(v)
    close(exact, terms.sum(), 1e-11, scale=np.linalg.norm(terms))


@pytest.mark.parametrize("name", MODELS)
def test_a_token_changes_nothing_in_front_of_it(name, rng):
    model = model_of(name, rng)
    ids = rng.integers(0, 11, (2, 6))
    other = ids.copy()
    other[:, 3] = (other[:, 3] + 1) % 11
    a, b = (model.forward(i).reshape(2, 6, -1) for i in (ids, other))
    close(a[:, :3], b[:, :3], ROUNDING)  # not to the bit: experts see other numbers of rows
    assert not np.allclose(a[:, 3], b[:, 3])


@pytest.mark.parametrize("name", MODELS)
def test_one_sequence_is_its_row_of_a_batch(name, rng):
    model = model_of(name, rng)
    ids, targets = rng.integers(0, 11, (2, 5, 4))
    logits = model.forward(ids).reshape(5, 4, -1)
    for row, of in zip(ids, logits, strict=True):
        close(model.forward(row), of, 1e-12)
    value, gradient = loss_and_gradient(model, ids, targets)  # in two halves, of 3 and 2 sequences
    singles = [loss_and_gradient(model, ids[i : i + 1], targets[i : i + 1]) for i in range(5)]
    close(np.mean([v for v, _ in singles]), value, 1e-13)
    total = sum(tree.flatten(g) for _, g in singles) / 5
    close(total, tree.flatten(gradient), 1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_float32_stays_float32_and_near(name, rng):
    small = tree.cast(model_of(name, rng), np.float32)
    model = tree.cast(small, np.float64)
    ids, targets = rng.integers(0, 11, (2, 3, 5))
    assert small.forward(ids).dtype == np.float32
    value, gradient = loss_and_gradient(small, ids, targets)
    assert {leaf.dtype for leaf in tree.leaves(gradient)} == {np.dtype(np.float32)}
    exact, exact_gradient = loss_and_gradient(model, ids, targets)
    close(value, exact, SINGLE)
    close(tree.flatten(gradient), tree.flatten(exact_gradient), 10 * SINGLE)  # two blocks, each some layers deep


def test_a_model_writes_to_nothing(rng):
    def locked(array):
        copy = array.copy()
        copy.flags.writeable = False
        return copy

    model = tree.map_leaves(locked, model_of("gpt", rng))
    ids, targets = map(locked, rng.integers(0, 11, (2, 3, 5)))
    first, second = loss_and_gradient(model, ids, targets), loss_and_gradient(model, ids, targets)
    assert first[0] == second[0]
    trees_close(second[1], first[1], 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), V=st.integers(1, 7), piece=st.integers(1, 60))
def test_losses_do_not_depend_on_the_pieces(seed, n, V, piece):
    rng = np.random.default_rng(seed)
    h, W, targets = 3 * rng.standard_normal((n, 4)), 3 * rng.standard_normal((V, 4)), rng.integers(0, V, n)
    s = h @ W.T
    p = np.exp(s - logsumexp(s)[:, None])
    p[np.arange(n), targets] -= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossentropy, "_PIECE", piece)
        losses, dh, dW = head_loss_vjp(h, W, targets, 0.25)
        close(head_loss(h, W, targets), losses, 1e-12, scale=1.0)
    close(losses, logsumexp(s) - s[np.arange(n), targets], 1e-12, scale=max(1, np.abs(s).max()))
    close(dh, 0.25 * p @ W, 1e-12, scale=max(1, np.abs(W).max()))
    close(dW, 0.25 * p.T @ h, 1e-12, scale=max(1, np.abs(h).max() * n))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), B=st.integers(1, 5), T=st.integers(1, 6), V=st.integers(1, 9))
def test_words_that_occur_more_than_once_add_up(seed, B, T, V):
    rng = np.random.default_rng(seed)
    layer = Embedding(rng.standard_normal((V, 3)), rng.standard_normal((8, 3)))
    ids, dh = rng.integers(0, V, (B, T)), rng.standard_normal((B * T, 3))
    want = np.zeros((V, 3))
    np.add.at(want, ids.ravel(), dh)
    gradient = layer.vjp(ids, dh)
    close(gradient.W, want, 1e-13)
    close(gradient.positions[:T], dh.reshape(B, T, 3).sum(axis=0), 1e-13)
    assert not gradient.positions[T:].any()


def test_bad_models_and_ids_are_named(rng):
    model = model_of("gpt", rng)
    with pytest.raises(ValueError, match=r"ids within 0\.\.10, the words of this model; got 0\.\.11"):
        model.forward(np.array([0, 11]))
    with pytest.raises(ValueError, match="ids as integers"):
        model.forward(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at most 9 tokens a sequence"):
        model.forward(np.zeros(10, int))
    with pytest.raises(ValueError, match=r"targets within 0\.\.10"):
        loss_and_gradient(model, np.zeros((1, 3), int), np.full((1, 3), 11))
    with pytest.raises(ValueError, match="expected blocks of width 8"):
        replace(model, blocks=(*model.blocks, npmoe.init.transformer(rng, V=11, d=4, layers=1, heads=2, h=3).blocks[0]))
    with pytest.raises(ValueError, match=r"head of shape \(11, 8\)"):
        Transformer(model.embedding, model.blocks, model.norm, np.zeros((10, 8)))
    with pytest.raises(ValueError, match="width that heads divide"):
        npmoe.init.transformer(rng, V=11, d=7, layers=1, heads=2, h=3)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same(name, rng, tmp_path):
    model = model_of(name, rng)
    again = npmoe.load(npmoe.save(model, tmp_path / "lm.npz"))
    trees_close(again, model, 0)
    np.testing.assert_array_equal(again.forward(np.arange(6)), model.forward(np.arange(6)))


# ---- Sites -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_sites_hold_what_the_model_computes(name, rng):
    model = model_of(name, rng)
    ids = rng.integers(0, 11, (3, 5))
    found = list(npmoe.sites(model, ids, {"topic": np.repeat([0, 1, 1], 5)}))
    assert len(found) == 2
    for i, (site, block, (h, y)) in enumerate(zip(found, model.blocks, model.states(ids), strict=True)):
        parts = [site.gates[:, e, None] * f.forward(site.x)[0] for e, f in enumerate(site.experts)]
        close(sum(parts), y, 1e-12)
        np.testing.assert_array_equal(site.before.x, h)
        assert set(site.labels) == {"token", "sequence", "position", "layer", "topic"}
        assert set(site.labels["layer"]) == {i}
        # the block's Jacobian in the state that enters the feed-forward: I + J_feed J_norm
        columns = [block.feedforward.forward(h + 1j * STEP * e)[0].imag / STEP for e in np.eye(8)]
        J = np.eye(8) + block.feed.jacobian(site.x) @ site.before.norm.jacobian(site.before.x)
        close(J, np.stack(columns, axis=2), 1e-11)
        close(block.feedforward.jacobian(h), J, ROUNDING)


# ---- training --------------------------------------------------------------------------------------------------------


def batches_of(seed=0, B=4, T=6, V=11):
    def batch(step):
        rng = np.random.default_rng([seed, step])
        text = (rng.integers(0, V, (B, 1)) + np.arange(T + 1) * rng.integers(1, 3, (B, 1))) % V
        return text[:, :-1], text[:, 1:]

    return batch


def small(rng, name="gpt"):
    return tree.cast(npmoe.init.transformer(rng, V=11, d=8, layers=2, heads=4, **MODELS[name]), np.float32)


RECIPE = Recipe(steps=30, lr=1e-2, warmup=5, decay=0.1, balances=(Balance("switch", weight=0.01),))


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 30))
def test_a_resumed_run_has_the_same_bytes(cut):
    model = small(np.random.default_rng(3))
    whole = list(train(model, batches_of(), RECIPE))
    first = list(train(model, batches_of(), RECIPE, until=cut))
    progress = first[-1].progress
    assert all(step.progress is None for step in first[:-1])
    rest = list(train(model, batches_of(), RECIPE, Progress(*progress)))
    assert [s.loss for s in whole] == [s.loss for s in first[:-1]] + [s.loss for s in rest]
    assert whole[-1].progress.theta.tobytes() == rest[-1].progress.theta.tobytes()
    assert whole[-1].progress.v.tobytes() == rest[-1].progress.v.tobytes()


def test_no_model_that_was_yielded_changes():
    model = small(np.random.default_rng(3))
    before = tree.flatten(model).copy()
    seen = [(step.model, tree.flatten(step.model).copy()) for step in train(model, batches_of(), RECIPE)]
    assert all((tree.flatten(m) == copy).all() for m, copy in seen)
    np.testing.assert_array_equal(tree.flatten(model), before)


def test_one_step_is_adam_by_hand():
    """Clipped gradient, warm-up, bias correction and decoupled decay of matrices, written out in float64."""
    rng = np.random.default_rng(5)
    model = tree.map_leaves(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape), tree.cast(small(rng), float))
    recipe = Recipe(steps=3, lr=0.01, warmup=2, decay=0.5, clip=0.05)
    steps = list(train(model, batches_of(), recipe))
    theta, m, v = tree.flatten(model), 0.0, 0.0
    matrix = np.concatenate([np.full(leaf.size, leaf.ndim > 1) for leaf in tree.leaves(model)])
    for t, (step, lr) in enumerate(zip(steps[:-1], (0.005, 0.01, 0.01), strict=True), 1):
        g = tree.flatten(loss_and_gradient(tree.unflatten(theta, model), *batches_of()(t - 1))[1])
        assert step.norm == pytest.approx(np.linalg.norm(g), rel=1e-10)
        assert np.linalg.norm(g) > 0.05, "clipping is at work"
        g = g * 0.05 / np.linalg.norm(g)
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        move = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
        theta = theta - lr * move - lr * 0.5 * theta * matrix
        close(tree.flatten(steps[t].model), theta, 1e-9)


def test_the_rate_rises_and_falls():
    recipe = Recipe(steps=100, lr=2.0, warmup=10, floor=0.25)
    rates = [recipe.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[100] == pytest.approx(0.5)
    assert rates[55] == pytest.approx((2.0 + 0.5) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_training_learns_what_follows_from_the_words_before():
    model = small(np.random.default_rng(1))
    steps = list(train(model, batches_of(B=16), Recipe(steps=150, lr=1e-2)))
    ids, targets = batches_of(seed=9, B=16)(0)
    late = evaluate(steps[-1].model, ids, targets)[:, 2:]  # two words tell how the sequence goes on
    assert late.mean() < 0.8 < 2 < evaluate(model, ids, targets).mean()


def test_bad_training_is_named(rng):
    model = small(rng, "dense")
    with pytest.raises(TypeError, match="expected a model with mixtures"):
        train(model, batches_of(), RECIPE)
    with pytest.raises(ValueError, match="expected progress of a model of"):
        train(model, batches_of(), Recipe(steps=3), Progress(0, *np.zeros((3, 4), np.float32)))
    broken = tree.map_leaves(lambda leaf: np.full_like(leaf, np.nan), model)
    with pytest.raises(FloatingPointError, match="finite loss and gradient at step 0"):
        next(train(broken, batches_of(), Recipe(steps=3)))
    for wrong in ({"lr": 0.0}, {"clip": 0.0}, {"floor": 2.0}, {"decay": -1.0}, {"warmup": -1}):
        with pytest.raises(ValueError, match="expected"):
            Recipe(steps=3, **wrong)


def test_evaluation_does_not_depend_on_how_many_are_read_at_once(rng):
    model = model_of("gpt", rng)
    ids, targets = rng.integers(0, 11, (2, 7, 5))
    found = [evaluate(model, ids, targets, sequences) for sequences in (1, 3, 16)]
    for other in found:
        close(other, loss(model, ids, targets).reshape(7, 5), 1e-12)


# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_likeliest_continuation_is_read_off_the_logits(name, rng):
    model = model_of(name, rng)
    ids = rng.integers(0, 11, (2, 3))
    got = sample(model, ids, 4, rng, temperature=0)
    want = ids
    for _ in range(4):
        logits = model.forward(want).reshape(2, want.shape[1], -1)[:, -1]
        want = np.concatenate([want, logits.argmax(axis=1)[:, None]], axis=1)
    np.testing.assert_array_equal(got, want)


def test_draws_follow_the_probabilities_of_the_likeliest_words(rng):
    """20,000 draws from three logits; with top_p the last word is never drawn."""
    p = np.array([0.5, 0.3, 0.2])
    logits = np.tile(np.log(p), (20000, 1))
    shares = np.bincount(_drawn(logits, rng, 1.0, 1.0), minlength=3) / 20000
    assert np.abs(shares - p).max() < 5 * np.sqrt(0.25 / 20000)
    few = np.bincount(_drawn(logits, rng, 1.0, 0.8), minlength=3) / 20000
    assert few[2] == 0
    assert abs(few[0] - 0.625) < 5 * np.sqrt(0.25 / 20000)
    assert (_drawn(logits, rng, 1.0, 1e-9) == 0).all()
    cold = np.bincount(_drawn(logits, rng, 0.5, 1.0), minlength=3) / 20000
    assert np.abs(cold - p**2 / (p**2).sum()).max() < 5 * np.sqrt(0.25 / 20000)


def test_bad_sampling_is_named(rng):
    model = model_of("gpt", rng)
    for wrong, words in (({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")):
        with pytest.raises(ValueError, match=words):
            sample(model, np.array([1]), 2, rng, **wrong)
    with pytest.raises(ValueError, match="at most 9 tokens"):
        sample(model, np.array([1, 2]), 20, rng)


def test_halves_of_a_batch_do_not_depend_on_the_machine(rng):
    """Two parts, whatever the number of threads: one thread gives the same bits."""
    model = small(rng)
    ids, targets = rng.integers(0, 11, (2, 5, 6))
    with threadpool_limits(1):
        one = loss_and_gradient(model, ids, targets)
    two = loss_and_gradient(model, ids, targets)
    assert one[0] == two[0]
    trees_close(one[1], two[1], 0)
