"""Training: Adam as in the paper, and what `fit` promises about the models that it yields."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
import pytest
from cases import BY_NAME, ROUNDING, close, decided, gelu, linear, mixture, mixtures, norm
from test_laws import converges, direction, moved

from npmoe import MoE, Residual, Stack, fit, init
from npmoe.calculus import tree
from npmoe.calculus.scalar import softmax
from npmoe.model.adam import Adam
from npmoe.model.balance import Balance, pooled
from npmoe.model.train import mse


def task(rng, n=12, **options):
    """A mixture with a target of its own width."""
    moe = mixture(rng, 4, 3, 5, 2, o=2, **options)
    return moe, rng.standard_normal((n, 3)), rng.standard_normal((n, 2))


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- Adam ----------------------------------------------------------------------------------------------------------


def paper(theta, gradient, steps, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Kingma and Ba, arXiv 1412.6980, algorithm 1, word for word."""
    m = v = 0.0
    for t in range(1, steps + 1):
        g = gradient(theta)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        theta = theta - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return theta


def ours(theta, gradient, steps, **constants):
    adam = Adam(**constants)
    state = adam.start(theta.size, theta.dtype)
    for _ in range(steps):
        theta = adam.step(theta, gradient(theta), state)
    return theta


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("constants", [{}, {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3}], ids=["usual", "odd"])
def test_adam_is_the_papers(steps, constants, rng):
    """With gradients of 1e-8 to 1e8, where eps matters and where it does not."""
    theta, scale = rng.standard_normal(40), 10.0 ** np.linspace(-8, 8, 40)

    def gradient(at):
        return scale * np.sin(at + 1)

    close(ours(theta, gradient, steps, **constants), paper(theta, gradient, steps, **constants), ROUNDING)


def test_first_step_is_lr_whatever_the_gradient(rng):
    g = np.array([1e-3, -5.0, 1e6])
    close(ours(np.zeros(3), lambda _: g, 1, lr=0.1, eps=0.0), -0.1 * np.sign(g), ROUNDING)


def test_adam_reads_only_and_keeps_float32(rng):
    theta, g = rng.standard_normal((2, 5)).astype(np.float32)
    theta.flags.writeable = g.flags.writeable = False
    new = ours(theta, lambda _: g, 3)
    assert new.dtype == np.float32
    assert not np.shares_memory(new, theta)


# ---- what fit yields -----------------------------------------------------------------------------------------------


def test_steps_from_the_untrained_model_on(rng):
    moe, x, y = task(rng)
    runs = list(fit(moe, x, y, steps=7))
    assert [step for step, _, _ in runs] == list(range(8))
    first = runs[0][2]
    assert all(same_bits(a, b) for a, b in zip(tree.leaves(first), tree.leaves(moe), strict=True))
    assert (first.k, first.renormalize, first.temperature) == (moe.k, moe.renormalize, moe.temperature)
    assert len(list(fit(moe, x, y, steps=0))) == 1


@pytest.mark.parametrize(
    "name", ["gelu", "swiglu", "linear_gelu", "block", "two_blocks", "top2", "switch", "mixed_kinds"]
)
def test_loss_is_that_of_the_model_beside_it_and_falls(name, rng):
    model, x = BY_NAME[name].build()
    y = rng.standard_normal((len(x), model.widths[-1]))
    losses = []
    for _, loss, at in fit(model, x, y, steps=60, lr=3e-3):
        assert type(at) is type(model)
        close(loss, ((at.forward(x)[0] - y) ** 2).mean(), ROUNDING)
        losses.append(loss)
    assert losses[-1] < 0.9 * losses[0]


def test_first_step_goes_down_the_gradient(rng):
    """The second model, by the paper's first step from the gradient of the mean squared error."""
    moe, x, y = task(rng)
    out, trace = moe.forward(x)
    gradient = tree.flatten(moe.vjp(trace, 2 * (out - y) / y.size)[1])
    second = list(fit(moe, x, y, steps=1, lr=0.01))[1][2]
    close(tree.flatten(second), paper(tree.flatten(moe), lambda _: gradient, 1, lr=0.01), ROUNDING)


def test_no_model_ever_changes(rng):
    """Neither the one given nor any yielded: a run that is kept is a film, not a mirror."""
    moe, x, y = task(rng)
    given = tree.flatten(moe)
    seen = [(model, tree.flatten(model)) for _, _, model in fit(moe, x, y, steps=10, lr=0.1)]
    assert same_bits(tree.flatten(moe), given)
    assert all(same_bits(tree.flatten(model), then) for model, then in seen)
    assert len({then.tobytes() for _, then in seen}) == 11
    for (one, _), (two, _) in pairwise(seen):
        assert not any(np.shares_memory(a, b) for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True))
    assert not np.shares_memory(seen[0][0].router, moe.router)


def test_arguments_are_only_read(rng):
    moe, x, y = task(rng)
    for a in (x, y, *tree.leaves(moe)):
        a.flags.writeable = False
    assert len(list(fit(moe, x, y, steps=3))) == 4


def test_same_bits_twice_and_in_two_fits_at_once(rng):
    moe, x, y = task(rng)
    alone = [tree.flatten(model) for _, _, model in fit(moe, x, y, steps=5)]
    pairs = zip(fit(moe, x, y, steps=5), fit(moe, x, y, steps=5), strict=True)
    for (_, _, one), (_, _, two), want in ((*pair, want) for pair, want in zip(pairs, alone, strict=True)):
        assert same_bits(tree.flatten(one), want)
        assert same_bits(tree.flatten(two), want)


def test_a_shorter_fit_is_the_beginning_of_a_longer(rng):
    moe, x, y = task(rng)
    *_, (_, _, last) = fit(moe, x, y, steps=4)
    step, _, there = next(islice(fit(moe, x, y, steps=9), 4, None))
    assert step == 4
    assert same_bits(tree.flatten(last), tree.flatten(there))


def test_float32_stays_float32(rng):
    moe, x, y = task(rng)
    small = tree.map_leaves(lambda leaf: leaf.astype(np.float32), moe)
    *_, (_, loss, last) = fit(small, x.astype(np.float32), y.astype(np.float32), steps=3)
    assert {leaf.dtype for leaf in tree.leaves(last)} == {np.dtype(np.float32)}
    assert isinstance(loss, float)


def test_mse_is_the_mean_and_its_gradient(rng):
    prediction, y, step = rng.standard_normal((3, 5, 2))
    loss, dy = mse(prediction, y)
    close(loss, np.square(prediction - y).mean(), ROUNDING)
    converges(
        (dy * step).sum(), lambda h: (mse(prediction + h * step, y)[0] - mse(prediction - h * step, y)[0]) / (2 * h), 1
    )


# ---- targets drawn afresh ------------------------------------------------------------------------------------------


def test_callable_targets_are_asked_once_a_step_in_order(rng):
    moe, x, _ = task(rng)
    targets = rng.standard_normal((6, len(x), 2))
    asked = []

    def y(step):
        asked.append(step)
        return targets[step]

    for step, loss, model in fit(moe, x, y, steps=5):
        close(loss, ((model.forward(x)[0] - targets[step]) ** 2).mean(), ROUNDING)
        assert asked == list(range(step + 1))
    assert asked == list(range(6))


def test_callable_constant_is_the_constant(rng):
    moe, x, y = task(rng)
    for (_, a, one), (_, b, two) in zip(fit(moe, x, y, 4), fit(moe, x, lambda step: y, 4), strict=True):
        assert a == b
        assert same_bits(tree.flatten(one), tree.flatten(two))


@pytest.mark.parametrize("shape", [(2,), (1, 2), (12, 1), (2, 12)])
def test_callable_targets_are_not_stretched(shape, rng):
    """What NumPy would broadcast would train towards something else, silently."""
    moe, x, _ = task(rng)
    with pytest.raises(ValueError, match=r"expected y\(0\) of shape \(12, 2\)"):
        next(fit(moe, x, lambda step: np.zeros(shape), 3))


def minibatches(rng, model, sizes=(5, 3, 8, 1)):
    """Batches of different sizes, and functions of the step that give x and y, with a list of who was asked."""
    d, o = model.widths[0], model.widths[-1]
    batches = [(rng.standard_normal((n, d)), rng.standard_normal((n, o))) for n in sizes]
    asked = []

    def part(name, i):
        return lambda step: asked.append((name, step)) or batches[step][i]

    return batches, part("x", 0), part("y", 1), asked


def test_minibatches_are_asked_once_a_step_in_order(rng):
    moe, _, _ = task(rng)
    batches, x, y, asked = minibatches(rng, moe)
    for step, loss, model in fit(moe, x, y, steps=3):
        close(loss, ((model.forward(batches[step][0])[0] - batches[step][1]) ** 2).mean(), ROUNDING)
        assert asked == [(name, s) for s in range(step + 1) for name in "xy"]
    assert len(asked) == 8


def test_a_run_over_minibatches_is_one_batch_after_another(rng):
    """Adam on the gradient of each batch in turn, word for word; and a function of a constant is the constant."""
    moe, _, _ = task(rng)
    batches, x, y, _ = minibatches(rng, moe)
    turn = iter(batches)

    def gradient(theta):
        model = tree.unflatten(theta, moe)
        (out, trace), target = model.forward((batch := next(turn))[0]), batch[1]
        return tree.flatten(model.vjp(trace, 2 * (out - target) / target.size)[1])

    *_, (_, _, last) = fit(moe, x, y, steps=3)
    close(tree.flatten(last), paper(tree.flatten(moe), gradient, 3), 1e-12)  # three steps of rounding
    a, b = batches[0]
    for (_, one, _), (_, two, _) in zip(fit(moe, a, b, 4), fit(moe, lambda _: a, lambda _: b, 4), strict=True):
        assert one == two


@pytest.mark.parametrize(
    ("x", "y", "error", "says"),
    [
        (np.zeros((5, 4)), np.zeros((5, 2)), ValueError, r"x\(0\) of shape \(n, 3\).*got \(5, 4\)"),
        (np.full((5, 3), np.nan), np.zeros((5, 2)), ValueError, r"x\(0\) to be finite; got nan at \(0, 0\)"),
        (np.zeros((0, 3)), np.zeros((0, 2)), ValueError, r"at least one token to train on; got none in x\(0\)"),
        (np.zeros((5, 3)), np.zeros((4, 2)), ValueError, r"y\(0\) of shape \(5, 2\).*got \(4, 2\)"),
        (np.zeros((5, 3)), np.full((5, 2), np.nan), ValueError, r"y\(0\) to be finite; got nan at \(0, 0\)"),
    ],
)
def test_a_minibatch_is_checked_when_it_comes(x, y, error, says, rng):
    moe, _, _ = task(rng)
    run = fit(moe, lambda step: x, lambda step: y, 3)
    with pytest.raises(error, match=says):
        next(run)


def test_x_as_a_function_needs_y_as_one(rng):
    moe, x, y = task(rng)
    with pytest.raises(TypeError, match=r"expected y to be a function of the step, as x is.*got ndarray"):
        fit(moe, lambda step: x, y, 3)


# ---- frozen leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frozen", [["router"], ["experts.0"], ["experts.1.W1", "bias"], ["experts"], ["experts", "router", "bias"]]
)
def test_frozen_leaves_stay_to_the_last_bit(frozen, rng):
    """Also zeros of either sign and the smallest numbers that there are."""
    moe, x, y = task(rng, bias=np.array([0.0, -0.0, 5e-324, -1e-310]))
    *_, (_, _, last) = fit(moe, x, y, steps=8, lr=0.1, frozen=frozen)
    for (name, a), (_, b) in zip(tree.named_leaves(last), tree.named_leaves(moe), strict=True):
        still = any(name == part or name.startswith(part + ".") for part in frozen)
        assert same_bits(a, b) == still, name


def test_frozen_names_are_whole_names(rng):
    """Freezing expert 1 leaves experts 10 and 11 to learn."""
    moe, x = mixture(rng, 12, 3, 2, 12), rng.standard_normal((5, 3))
    *_, (_, _, last) = fit(moe, x, rng.standard_normal((5, 3)), steps=1, frozen=("experts.1",))
    moving = [not same_bits(a.W1, b.W1) for a, b in zip(last.experts, moe.experts, strict=True)]
    assert moving == [e != 1 for e in range(12)]


def test_frozen_parts_do_not_change_what_the_others_see_first(rng):
    moe, x, y = task(rng)
    free, held = (list(fit(moe, x, y, steps=1, frozen=names))[1][2] for names in ((), ("router",)))
    assert same_bits(tree.flatten(free.experts), tree.flatten(held.experts))


# ---- balance losses ------------------------------------------------------------------------------------------------


def switch(scores, chosen):
    """Fedus et al. 2021: E sum_e f_e P_e, with its gradient by the table in maths.md."""
    n, E = scores.shape
    p, f = softmax(scores), np.bincount(chosen.ravel(), minlength=E) / n
    return E * f @ p.mean(axis=0), E / n * p * (f - (p @ f)[:, None])


@pytest.mark.parametrize(
    "options", [{}, {"renormalize": False}, {"temperature": 0.5, "bias": np.array([0.1, 0, -0.3, 0])}]
)
def test_balance_gradient_is_that_of_the_sum(options, rng, monkeypatch):
    """What Adam is given, against finite differences of loss + balance over all parameters at once."""
    moe, x, y = task(rng, n=40, **options)
    falling = -np.sort(-moe.scores(x), axis=1)
    wide = falling[:, 1] - falling[:, 2] > 0.3
    x, y = x[wide], y[wide]
    gradients = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self, theta, g, state: gradients.append(g) or step(self, theta, g, state))
    list(fit(moe, x, y, steps=1, balance=switch))
    v, chosen = tree.map_leaves(direction, moe), moe.route(x)[1]

    def objective(h):
        at, _ = moved(moe, x, v, 0 * x, h)
        np.testing.assert_array_equal(np.sort(at.route(x)[1]), np.sort(chosen))  # no boundary is crossed
        return mse(at.forward(x)[0], y)[0] + switch(at.scores(x), chosen)[0]

    terms = gradients[0] * tree.flatten(v)
    converges(terms.sum(), lambda h: (objective(h) - objective(-h)) / (2 * h), np.linalg.norm(terms))


def test_balance_receives_the_scores_and_the_choice_of_every_model(rng):
    moe, x, y = task(rng, temperature=0.5)
    received = []

    def balance(scores, chosen):
        received.append((scores, chosen))
        return 0.0, np.zeros_like(scores)

    plain = [tree.flatten(model) for _, _, model in fit(moe, x, y, steps=3)]
    models = [model for _, _, model in fit(moe, x, y, steps=3, balance=balance)]
    assert len(received) == 3
    for model, want, (scores, chosen) in zip(models, plain, received, strict=False):
        np.testing.assert_array_equal(scores, model.scores(x))
        np.testing.assert_array_equal(chosen, model.route(x)[1])
        assert same_bits(tree.flatten(model), want)  # a balance of nothing changes nothing


def test_balance_is_trained_on_and_not_reported(rng):
    moe, x, y = task(rng, n=60, bias=np.array([2.0, 0, 0, -2.0]))
    first, *_, (_, loss, last) = fit(
        moe, x, y, steps=150, lr=1e-2, balance=lambda s, c: tuple(100 * a for a in switch(s, c))
    )
    close(loss, ((last.forward(x)[0] - y) ** 2).mean(), ROUNDING)
    spread = [np.ptp(np.bincount(m.route(x)[1].ravel(), minlength=4)) for m in (first[2], last)]
    assert spread[1] < spread[0] / 2


def stacked(rng):
    """Two mixtures, of different E and k, the second behind the first, a norm and a linear layer; one in a residual."""
    block = Residual(Stack((norm(rng, 4), mixture(rng, 3, 4, 3, 1, renormalize=False))))
    return Stack((linear(rng, 3, 4, "gelu"), block, mixture(rng, 4, 4, 3, 2, o=2, temperature=0.8), linear(rng, 2, 2)))


BALANCES = [
    switch,
    Balance("switch", weight=0.5, fraction="soft"),
    Balance("importance", gates="renormalized", weight=2.0),
    Balance("z"),
]


@pytest.mark.parametrize("balance", BALANCES, ids=lambda b: getattr(b, "kind", "by_hand"))
@pytest.mark.parametrize("make", [stacked, lambda rng: task(rng)[0]], ids=["stacked", "bare"])
def test_balance_gradient_reaches_every_layer_in_front(make, balance, rng, monkeypatch):
    """What Adam is given, against differences of loss + the balance of every mixture, over all parameters at once."""
    model = make(rng)
    x = decided(model, rng.standard_normal((300, 3)), room=0.4)[:20]
    y = rng.standard_normal((len(x), 2))
    gradients = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self, theta, g, state: gradients.append(g) or step(self, theta, g, state))
    list(fit(model, x, y, steps=1, balance=balance))
    v, chosen = tree.map_leaves(direction, model), [moe.route(inner)[1] for moe, inner in mixtures(model, x)]

    def objective(h):
        at, _ = moved(model, x, v, 0 * x, h)
        total = mse(at.forward(x)[0], y)[0]
        for (moe, inner), then in zip(mixtures(at, x), chosen, strict=True):
            np.testing.assert_array_equal(np.sort(moe.route(inner)[1]), np.sort(then))  # no boundary is crossed
            share = 1 / len(chosen) if isinstance(balance, Balance) else 1.0  # its `layers` says "mean"
            total += share * balance(moe.scores(inner), then)[0]
        return total

    terms = gradients[0] * tree.flatten(v)
    converges(terms.sum(), lambda h: (objective(h) - objective(-h)) / (2 * h), np.linalg.norm(terms))


def twins(rng):
    """Two mixtures of one E and k, so that they can be pooled."""
    return Stack((Residual(mixture(rng, 4, 3, 3, 2)), mixture(rng, 4, 3, 3, 2, o=2)))


@pytest.mark.parametrize("how", [{"layers": "mean"}, {"layers": "sum"}, {"pool": "pooled"}], ids=str)
def test_pool_and_layers_mean_in_training_what_they_say(how, rng, monkeypatch):
    """What Adam is given, against differences of loss + `pooled` of both mixtures, over all parameters at once."""
    model, balance = twins(rng), Balance("switch", weight=3.0, fraction="soft", **how)
    x = decided(model, rng.standard_normal((300, 3)), room=0.4)[:20]
    y = rng.standard_normal((len(x), 2))
    gradients = []
    monkeypatch.setattr(Adam, "step", lambda self, theta, g, state: gradients.append(g) or theta)
    list(fit(model, x, y, steps=2, balance=balance))
    assert same_bits(*gradients)  # each step has its own mixtures, not those of all steps
    v, chosen = tree.map_leaves(direction, model), [moe.route(inner)[1] for moe, inner in mixtures(model, x)]

    def objective(h):
        at, _ = moved(model, x, v, 0 * x, h)
        scores = [moe.scores(inner) for moe, inner in mixtures(at, x)]
        return mse(at.forward(x)[0], y)[0] + pooled(balance, scores, chosen)[0]

    terms = gradients[0] * tree.flatten(v)
    converges(terms.sum(), lambda h: (objective(h) - objective(-h)) / (2 * h), np.linalg.norm(terms))


@pytest.mark.parametrize("how", [{"layers": "mean"}, {"layers": "sum"}, {"pool": "pooled"}], ids=str)
def test_one_mixture_has_nothing_to_be_pooled_with(how, rng):
    moe, x, y = task(rng)
    balance = Balance(**how)
    plain = fit(moe, x, y, steps=3, balance=lambda scores, chosen: balance(scores, chosen))
    for (_, _, at), (_, _, want) in zip(fit(moe, x, y, steps=3, balance=balance), plain, strict=True):
        assert same_bits(tree.flatten(at), tree.flatten(want))


def test_what_cannot_be_pooled_and_a_mask_of_another_batch_are_named(rng):
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    with pytest.raises(ValueError, match="one number of experts"):
        list(fit(stacked(rng), x, y, 1, balance=Balance(pool="pooled")))
    for model in (twins(rng), task(rng)[0]):
        with pytest.raises(ValueError, match=r"mask of shape \(20,\); got \(19,\): a mask is that of one fixed batch"):
            list(fit(model, x, y, 1, balance=Balance(mask=np.ones(19))))


def test_a_gradient_that_stops_at_the_router_would_be_caught(rng, monkeypatch):
    """Planted: the balance loss added to the router alone differs from what Adam is given in the layers in front."""
    model = stacked(rng)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    gradients = []
    monkeypatch.setattr(Adam, "step", lambda self, theta, g, state: gradients.append(g) or theta)
    for balance in (None, switch):
        list(fit(model, x, y, steps=1, balance=balance))
    difference = tree.unflatten(gradients[1] - gradients[0], model)
    front, block, second, behind = difference.layers
    for layer in (front, block.layer.layers[0], block.layer.layers[1].router, second.router):
        assert np.abs(tree.flatten(layer)).max() > 1e-6
    assert not tree.flatten(behind).any()
    assert not tree.flatten(second.experts).any()


def test_every_mixture_shows_the_balance_its_own_scores(rng):
    model = stacked(rng)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    received = []

    def nothing(scores, chosen):
        received.append((scores, chosen))
        return 0.0, np.zeros_like(scores)

    plain = [tree.flatten(at) for _, _, at in fit(model, x, y, steps=2)]
    for (_, _, at), want in zip(fit(model, x, y, steps=2, balance=nothing), plain, strict=True):
        assert same_bits(tree.flatten(at), want)
        assert type(at) is Stack
    assert len(received) == 4
    for (moe, inner), (scores, chosen) in zip(reversed(list(mixtures(model, x))), received, strict=False):
        np.testing.assert_array_equal(scores, moe.scores(inner))
        np.testing.assert_array_equal(chosen, moe.route(inner)[1])


@pytest.mark.parametrize("shape", [(4,), (1, 4), (12, 1)])
def test_balance_gradient_is_not_stretched(shape, rng):
    moe, x, y = task(rng)
    with pytest.raises(ValueError, match=r"balance loss's gradient of shape \(12, 4\)"):
        list(fit(moe, x, y, 1, balance=lambda s, c: (0.0, np.zeros(shape))))


# ---- errors come at the call ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((12, 4))}, ValueError, r"x of shape \(n, 3\).*got \(12, 4\)"),
        ({"y": np.zeros((12, 3))}, ValueError, r"y of shape \(12, 2\).*got \(12, 3\)"),
        ({"y": np.zeros((11, 2))}, ValueError, r"y of shape \(12, 2\).*got \(11, 2\)"),
        ({"y": np.full((12, 2), np.nan)}, ValueError, r"y to be finite; got nan at \(0, 0\)"),
        ({"x": np.full((12, 3), np.inf)}, ValueError, r"x to be finite; got inf at \(0, 0\)"),
        ({"x": np.zeros((12, 3), int)}, TypeError, "x to be an array of floats; got int64"),
        ({"x": np.zeros((0, 3)), "y": np.zeros((0, 2))}, ValueError, "at least one token"),
        ({"steps": -1}, ValueError, "steps of at least 0; got -1"),
        ({"steps": 2.0}, TypeError, r"steps to be an integer; got 2\.0"),
        ({"lr": 0.0}, ValueError, r"lr .*above 0; got 0\.0"),
        ({"lr": -1e-3}, ValueError, r"lr .*above 0; got -0\.001"),
        ({"lr": math.nan}, ValueError, r"lr .*above 0; got nan"),
        ({"lr": "fast"}, TypeError, "lr to be a number; got 'fast'"),
        ({"frozen": ["router", "expert.0"]}, ValueError, r"frozen names .*router.*got 'expert\.0'"),
        ({"frozen": ["experts.1.W"]}, ValueError, r"got 'experts\.1\.W'"),
        ({"frozen": "router"}, TypeError, "sequence of names .*single string 'router'"),
    ],
    ids=lambda value: "-".join(f"{k}" for k in value) if isinstance(value, dict) else "",
)
def test_a_wrong_call_fails_at_the_call(change, error, says, rng):
    """Not at the first `next`, which may be far away."""
    moe, x, y = task(rng)
    arguments = {"x": x, "y": y, "steps": 3} | change
    with pytest.raises(error, match=says):
        fit(moe, **arguments)


def test_balance_needs_a_mixture(rng):
    for model in (gelu(rng, 3, 4, 2), Stack((linear(rng, 3, 3), Residual(gelu(rng, 3, 4, 3)), linear(rng, 3, 2)))):
        with pytest.raises(TypeError, match=rf"expected a MoE.*got {type(model).__name__}"):
            fit(model, np.zeros((5, 3)), np.zeros((5, 2)), 1, balance=switch)


def test_nothing_is_computed_before_it_is_asked_for(rng, monkeypatch):
    moe, x, y = task(rng)
    monkeypatch.setattr(MoE, "forward", lambda *_: pytest.fail("a model was run"))
    fit(moe, x, y, 1000)


# ---- where training starts -----------------------------------------------------------------------------------------

SPREAD = {  # of a weight (out, in) and its bias: largest magnitude, or None; standard deviation; the bias's largest
    "pytorch": lambda out, into: (1 / math.sqrt(into), 1 / math.sqrt(3 * into), 1 / math.sqrt(into)),
    "xavier": lambda out, into: (math.sqrt(6 / (into + out)), math.sqrt(2 / (into + out)), 0.0),
    "he": lambda out, into: (None, math.sqrt(2 / into), 0.0),
    "normal002": lambda out, into: (None, 0.02, 0.0),
}


@pytest.mark.parametrize("scheme", SPREAD)
def test_schemes_are_what_they_are_called(scheme):
    f = init.dense(np.random.default_rng(0), d=60, h=150, scheme=scheme)
    for W, b in ((f.W1, f.b1), (f.W2, f.b2)):
        largest, deviation, bias = SPREAD[scheme](*W.shape)
        assert abs(W.mean()) < 4 * deviation / math.sqrt(W.size)
        close(W.std(), deviation, 0.03)  # 9000 draws: three standard errors are 0.022
        assert largest is None or 0.99 * largest < np.abs(W).max() <= largest
        assert 0.9 * bias <= np.abs(b).max() <= bias
    assert set(init.SCHEMES) == set(SPREAD)


@pytest.mark.parametrize("draw", [init.gelu_moe, init.swiglu_moe], ids=lambda f: f.__name__)
def test_mixtures_are_drawn_from_the_generator_alone(draw):
    one, two, other = (draw(np.random.default_rng(seed), 3, 4, 5, 2, dtype=np.float32) for seed in (1, 1, 2))
    assert same_bits(tree.flatten(one), tree.flatten(two))
    assert not same_bits(tree.flatten(one), tree.flatten(other))
    assert {leaf.dtype for leaf in tree.leaves(one)} == {np.dtype(np.float32)}
    assert len({leaf.tobytes() for leaf in tree.leaves(one)}) == len(tree.leaves(one))


def test_experts_alike_share_numbers_and_no_memory(rng):
    moe = init.gelu_moe(rng, 3, 4, 5, 2, alike=True, bias=True, activation="silu", temperature=0.5, renormalize=False)
    assert all(same_bits(tree.flatten(f), tree.flatten(moe.experts[0])) for f in moe.experts)
    assert not np.shares_memory(moe.experts[0].W1, moe.experts[1].W1)
    assert (moe.temperature, moe.renormalize, moe.experts[1].activation, moe.bias.shape) == (
        0.5,
        False,
        "silu",
        (3,),
    )
    assert init.gelu_moe(rng, 3, 4, 5, 2).bias is None
    assert init.gelu_moe(rng, 3, 4, 5, 2, bias=True, dtype=np.float32).bias.dtype == np.float32


def test_a_bias_changes_nothing_else():
    """The same numbers with and without: an axis of a comparison is one thing."""
    with_, without = (init.gelu_moe(np.random.default_rng(0), 3, 4, 5, 2, bias=bias) for bias in (True, False))
    assert same_bits(tree.flatten(replace(with_, bias=None)), tree.flatten(without))


# ---- trees ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu", "two_blocks", "top3_biased", "mixed_kinds"])
def test_flat_and_back(name):
    model, _ = BY_NAME[name].build()
    vector = tree.flatten(model)
    back = tree.unflatten(vector, model)
    assert [n for n, _ in tree.named_leaves(back)] == [n for n, _ in tree.named_leaves(model)]
    assert all(same_bits(a, b) for a, b in zip(tree.leaves(back), tree.leaves(model), strict=True))
    assert all(np.shares_memory(leaf, vector) for leaf in tree.leaves(back))
    close(tree.dot(model, back), vector @ vector, ROUNDING)


def test_names_of_leaves(rng):
    moe = mixture(rng, 2, 3, 4, 1)
    assert [name for name, _ in tree.named_leaves(moe)] == [
        "router",
        *(f"experts.{e}.{leaf}" for e in (0, 1) for leaf in ("W1", "b1", "W2", "b2")),
    ]
    assert "bias" in dict(tree.named_leaves(replace(moe, bias=np.zeros(2))))


@pytest.mark.parametrize("name", ["gelu", "two_blocks", "top3_biased", "mixed_kinds"])
def test_a_cast_tree_differs_in_dtype_alone_and_copies_only_what_it_must(name):
    model, _ = BY_NAME[name].build()
    before = tree.flatten(model)
    small = tree.cast(model, np.float32)
    assert [n for n, _ in tree.named_leaves(small)] == [n for n, _ in tree.named_leaves(model)]
    assert type(small) is type(model)
    for leaf, given in zip(tree.leaves(small), tree.leaves(model), strict=True):
        assert same_bits(leaf, given.astype(np.float32))
    assert all(a is b for a, b in zip(tree.leaves(tree.cast(small, "float32")), tree.leaves(small), strict=True))
    assert same_bits(tree.flatten(model), before)


def test_a_cast_mixture_keeps_what_is_no_array(rng):
    moe = mixture(rng, 4, 3, 5, 3, renormalize=False, temperature=0.5)
    small = tree.cast(moe, np.float32)
    assert (small.k, small.renormalize, small.temperature) == (3, False, 0.5)
    assert small.experts[2].activation == moe.experts[2].activation


@dataclass(frozen=True)
class Counted:
    """Counts how often one is checked."""

    a: np.ndarray
    word: str = "kept"
    checks: list = field(default_factory=list)

    def __post_init__(self):
        self.checks.append(1)

    @cached_property
    def total(self):
        return self.a.sum()


@dataclass(frozen=True, slots=True)
class Slotted:
    a: np.ndarray
    word: str = "kept"


def test_a_tree_alike_has_the_new_values_unchecked_and_the_rest_of_the_old():
    like, a = Counted(np.ones(2), "mine"), np.arange(2.0)
    new = tree.alike(like, a=a)
    assert type(new) is Counted
    assert new.a is a
    assert new.word == "mine"
    assert len(like.checks) == 1, "it was checked when it was made, and its shapes are the same"
    np.testing.assert_array_equal(like.a, [1, 1])
    back = tree.unflatten(a, like)
    assert (back.a.tolist(), back.word, len(like.checks)) == ([0, 1], "mine", 1)


def test_a_tree_alike_takes_over_nothing_that_was_derived():
    like = Counted(np.ones(2))
    assert like.total == 2
    for new in (tree.alike(like, a=np.arange(4.0)[2:]), tree.unflatten(np.array([2.0, 3.0]), like)):
        assert new.total == 5
    for new in (
        tree.alike(Slotted(np.ones(2), "mine"), a=np.zeros(2)),
        tree.unflatten(np.zeros(2), Slotted(np.ones(2), "mine")),
    ):
        assert (new.a.tolist(), new.word) == ([0, 0], "mine")


def test_a_tree_with_fields_in_slots_is_rebuilt():
    @dataclass(frozen=True, slots=True)
    class Slotted:
        a: np.ndarray

    @dataclass(frozen=True)
    class Both(Slotted):
        b: np.ndarray
        n: int = 3

    found = tree.unflatten(np.arange(3.0), Both(np.zeros(2), np.zeros(1)))
    np.testing.assert_array_equal(tree.flatten(found), [0, 1, 2])
    assert found.n == 3
    with pytest.raises(TypeError, match="nowhere"):
        tree.alike(found, nowhere=1)
