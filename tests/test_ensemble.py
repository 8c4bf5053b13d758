"""The error of a mixture is that of its experts less their spread."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routed import EPS, EXAMPLES, KINDS, drawn, seeds

from npmoe.probe import ensemble


@pytest.mark.underflow
@EXAMPLES
@given(st.sampled_from(sorted(name for name, row in KINDS.items() if row[3])), seeds)
def test_the_error_of_a_convex_mixture_is_its_experts_less_their_spread(kind, seed):
    s, rng = drawn(kind, seed)
    y = rng.standard_normal(s.x.shape)
    found = ensemble.ambiguity(s, y)
    np.testing.assert_allclose(found.error, ((s.router.moe.forward(s.x)[0] - y) ** 2).sum(axis=1), rtol=1e-9)
    outputs = np.stack([f.forward(s.x)[0] for f in s.experts], axis=1)  # (n, E, o)
    np.testing.assert_allclose(
        found.individual, (s.gates * ((outputs - y[:, None]) ** 2).sum(axis=2)).sum(axis=1), rtol=1e-9
    )
    np.testing.assert_allclose(
        found.error, found.individual - found.spread, rtol=0, atol=1e-12 * found.individual.max()
    )
    assert found.relative < 100 * EPS
    assert (found.spread >= 0).all()


def test_ambiguity_refuses_gates_that_do_not_sum_to_1_and_takes_float32(rng):
    s, _ = drawn("switch", 0)
    with pytest.raises(ValueError, match="gates that sum to 1"):
        ensemble.ambiguity(s, s.x)
    s, _ = drawn("top2", 0)
    small = replace(s, gates=s.gates.astype(np.float32))
    assert ensemble.ambiguity(small, s.x).relative < 100 * EPS
    with pytest.raises(ValueError, match="expected y of shape"):
        ensemble.ambiguity(s, s.x[:, :2])
    with pytest.raises(ValueError, match="needs experts"):
        ensemble.ambiguity(replace(s, experts=None), s.x)
