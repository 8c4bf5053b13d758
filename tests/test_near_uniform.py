"""The balance loss near uniform scores: the law to its order, and the batch term by drawing batches."""

import numpy as np
import pytest
from cases import ROUNDING, close

from npmoe.calculus.scalar import softmax
from npmoe.model.balance import Balance, batch_term, gradients, uniform_law
from npmoe.model.routing import top_k


@pytest.mark.parametrize("options", [{}, {"bias": np.array([0.3, -0.2, 0.1, 0.0, 0.4]), "temperature": 0.5}])
def test_the_law_is_right_to_its_order(options, rng):
    """Scores of size h: the value is off by h^3, the soft gradients by h^2, that of counts, itself of order 1, by h."""
    x, W = rng.standard_normal((50, 3)) + 0.5, rng.standard_normal((5, 3))
    tau, b = options.get("temperature", 1.0), options.get("bias", np.zeros(5))
    chosen = top_k((x @ W.T + b) / tau, 2)
    errors = []
    for h in 0.02 * 0.5 ** np.arange(5):
        s = h * (x @ W.T + b) / tau
        law = uniform_law(x, h * W, chosen=chosen, bias=h * b, temperature=tau)
        found = {fraction: Balance(fraction=fraction)(s, chosen) for fraction in ("soft", "held", "hard")}
        row = [abs(found["soft"][0] - law.value)]
        row += [
            np.abs(gradients(found[name], x, h * W, tau).router - want).max()
            for name, want in (("soft", law.soft), ("held", law.held), ("hard", law.hard))
        ]
        errors.append(row)
    orders = np.log2(np.array(errors)[:-1] / np.array(errors)[1:])
    np.testing.assert_allclose(orders[-1], [3, 2, 2, 1], atol=0.1)  # what is left is the next order: 0.02/16 of it
    assert np.linalg.matrix_rank(law.soft) == 1
    scores = uniform_law(x @ (h * W).T / tau, chosen=chosen)
    if not options:
        close(scores.value, law.value, ROUNDING)
        close(np.outer(scores.soft, x.mean(axis=0)), law.soft, ROUNDING)
        close(np.outer(scores.hard, x.mean(axis=0)), law.hard, ROUNDING)


def test_centred_tokens_feel_nothing_to_first_order(rng):
    x, W = rng.standard_normal((50, 3)), rng.standard_normal((5, 3))
    law = uniform_law(x - x.mean(axis=0), W)
    close(law.soft, np.zeros_like(W), ROUNDING, scale=1.0)
    assert law.value == pytest.approx(1, abs=1e-15)


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("B", [1, 4, 16])
@pytest.mark.parametrize("one_topic", [False, True])
def test_the_batch_term_by_drawing_batches(B, one_topic, rng):
    """Within four standard errors of 3000 batches, and the next order: the scores' size times what is predicted."""
    d, E, R, m = 4, 5, 3000, 6
    W = 0.01 * rng.standard_normal((E, d))
    root, mu, centres = rng.standard_normal((d, d)), 0.3 * rng.standard_normal(d), rng.standard_normal((m, d))
    centres -= centres.mean(axis=0)
    topic = np.repeat(rng.integers(m, size=(R, 1)), B, axis=1) if one_topic else rng.integers(m, size=(R, B))
    x = mu + centres[topic] + rng.standard_normal((R, B, d)) @ root.T
    within, between = root @ root.T, centres.T @ centres / m
    if one_topic:
        term = batch_term(within, W, B, between=between)
        assert batch_term(within + between, W, B) < term or B == 1
    else:
        term = batch_term(within + between, W, B)
    P = softmax(x @ W.T).mean(axis=1)  # (R, E)
    value, error = mean_and_error(E * (P**2).sum(axis=1))
    assert Balance(fraction="soft")(x[0] @ W.T, np.zeros((B, 1), int))[0] == pytest.approx(
        E * (P[0] ** 2).sum(), rel=1e-13
    )
    predicted = uniform_law(mu[None], W).value - 1 + term
    size = np.abs((x @ W.T).std())
    assert abs(value - 1 - predicted) < 4 * error + 2 * size * predicted
    assert 4 * error + 2 * size * predicted < 0.5 * term  # the test could have failed without the term
