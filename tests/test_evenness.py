"""Evenness of usage: by definition, whatever the labels, and at its ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usages import kinds, usage

from npmoe.geometry.evenness import cv, entropy, entropy_share, gini, jain, max_over_mean

EXACT = 1e-12  # the same sum of a few dozen terms, in another order
EXAMPLES = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


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
