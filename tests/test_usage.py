"""Usage and hidden states as similarities, and bad input to all that reads a router."""

from dataclasses import replace

import numpy as np
import pytest
from cases import gelu, mixture
from hypothesis import given
from routed import EXAMPLES, ROUNDING, Liar, blind, drawn, kinds, seeds

import npmoe
from npmoe import Site, site
from npmoe.geometry import overlap
from npmoe.probe import ensemble, router, statements, usage, walls
from npmoe.probe.null import shuffled

# Similarities


@EXAMPLES
@given(kinds, seeds)
def test_usage_frequencies_are_means_within_groups(kind, seed):
    s, _ = drawn(kind, seed)
    on = usage.usage(s)
    assert (on.sum(axis=1) == s.chosen.shape[1]).all()
    assert (on[s.gates > 0] == 1).all()
    np.testing.assert_array_equal(usage.usage(s, "gates"), s.gates)
    for which, values in (("sets", on), ("gates", s.gates)):
        groups, share = usage.frequencies(s, "sequence", which)
        assert groups.tolist() == [0, 1, 2]
        for g, row in zip(groups, share, strict=True):
            total = values[s.labels["sequence"] == g].sum(axis=0)
            np.testing.assert_allclose(row, total / total.sum(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("measure", sorted(overlap.MEASURES))
def test_similarities_are_those_of_overlap_and_largest_with_oneself(measure):
    s, _ = drawn("soft" if measure == "hilbert" else "top2", 0)
    of_sets = overlap.MEASURES[measure].kind == "sets"
    rows = usage.usage(s, "sets") > 0 if of_sets else s.gates
    found = usage.similarity(s, measure)
    sign = 1 if overlap.MEASURES[measure].sense == "similarity" else -1
    pairs = [[sign * overlap.MEASURES[measure].function(a, b) for b in rows] for a in rows]
    np.testing.assert_allclose(found, pairs, rtol=0, atol=ROUNDING)
    assert (found <= found.diagonal()[:, None] + ROUNDING).all()
    _, share = usage.frequencies(s, kind="gates" if measure == "hilbert" else "sets")
    groups = usage.similarity(s, measure, "sequence")
    rows = overlap.top_p(share) if of_sets else share
    np.testing.assert_allclose(groups, sign * overlap.similarities(measure, rows), rtol=0, atol=ROUNDING)


@EXAMPLES
@given(blind, seeds)
def test_hidden_similarities(kind, seed):
    s, rng = drawn(kind, seed)
    s = replace(s, x=s.x + 2)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in s.x] for a in s.x]
    np.testing.assert_allclose(usage.hidden_similarity(s), cosine, rtol=0, atol=ROUNDING)
    away = usage.hidden_similarity(s, "euclidean")
    np.testing.assert_allclose(-away, [[np.linalg.norm(a - b) for b in s.x] for a in s.x], rtol=0, atol=ROUNDING)
    seen = usage.hidden_similarity(replace(s, x=s.x @ router.centred(s).T, router=None), "cosine")
    np.testing.assert_allclose(usage.hidden_similarity(s, "row cosine"), seen, rtol=0, atol=ROUNDING)
    # what routing cannot see does not move the row kinds, and moves the cosine
    blinded = replace(s, x=s.x + rng.standard_normal((s.n, router.null_basis(s).shape[1])) @ router.null_basis(s).T)
    for which in ("row cosine", "row euclidean"):
        a, b = usage.hidden_similarity(s, which), usage.hidden_similarity(blinded, which)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert np.abs(usage.hidden_similarity(blinded) - cosine).max() > 1e-3
    means = np.stack([s.x[s.labels["sequence"] == g].mean(axis=0) for g in range(3)])
    grouped = usage.hidden_similarity(s, "euclidean", "sequence")
    np.testing.assert_allclose(grouped, -np.linalg.norm(means[:, None] - means, axis=2), rtol=0, atol=ROUNDING)
    shifted = usage.hidden_similarity(replace(s, x=s.x - 5), "centred cosine")
    np.testing.assert_allclose(usage.hidden_similarity(s, "centred cosine"), shifted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("measure", sorted(overlap.MEASURES))
def test_a_group_without_gates_has_no_similarity(measure):
    s, _ = drawn("soft" if measure == "hilbert" else "top2", 0)
    gates = s.gates * (s.labels["sequence"] != 1)[:, None]
    silent = replace(s, gates=gates)
    share = usage.frequencies(silent, kind="gates")[1]
    assert np.isnan(share).all(axis=1).tolist() == [False, True, False]
    found = usage.similarity(silent, measure, "sequence", "gates")
    want = usage.similarity(s, measure, "sequence", "gates")
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[::2, ::2], want[::2, ::2])


def test_behind_a_norm_the_cosine_is_that_of_what_the_norm_reads(rng):
    gamma = rng.uniform(0.2, 3, 12)
    moe = mixture(rng, 8, 12, 4, 2)
    raw = rng.standard_normal((20, 12))
    s = site(npmoe.Stack((npmoe.RMSNorm(gamma), moe)), raw)
    read = usage.hidden_similarity(replace(s, x=raw), "cosine")
    np.testing.assert_allclose(usage.hidden_similarity(s, "norm cosine"), read, rtol=0, atol=ROUNDING)
    assert np.abs(usage.hidden_similarity(s) - read).max() > 0.1
    assert np.ptp(np.linalg.norm(s.x, axis=1)) > 0.1  # one length only for a constant gamma
    gamma[3] = 0
    part = site(npmoe.Stack((npmoe.RMSNorm(gamma), moe)), raw)
    rest = usage.hidden_similarity(replace(s, x=np.delete(raw, 3, axis=1), router=None), "cosine")
    np.testing.assert_allclose(usage.hidden_similarity(part, "norm cosine"), rest, rtol=0, atol=ROUNDING)
    for without in (site(moe, raw), site(npmoe.Residual(moe), raw)):
        with pytest.raises(ValueError, match=r"expected before of the Site .* gamma.*got no norm"):
            usage.hidden_similarity(without, "norm cosine")


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: walls.radius(replace(s, router=None)), "radius needs router"),
        (lambda s: statements.bounds(shuffled(s, np.random.default_rng(0)), s.x), "bounds needs router"),
        (lambda s: router.centred(replace(s, router=None)), "centred needs router"),
        (lambda s: walls.wall(replace(s, experts=None), np.random.default_rng(0)), "wall needs experts"),
        (lambda s: walls.wall(s, np.random.default_rng(0), [0.0]), "steps eps above 0"),
        (lambda s: statements.bounds(s, s.x[1:]), "expected other of shape"),
        (lambda s: statements.bounds(s, s.x * np.nan), "expected other to be finite"),
        (lambda s: statements.bounds(s, np.array([[0, 99]])), "within 0..19; got 0..99"),
        (lambda s: statements.bounds(s, np.array([0, 1])), r"of shape \(m, 2\)"),
        (lambda s: statements.bounds(s, s.x).named("magic"), "expected a statement among"),
        (lambda s: usage.usage(s, "none"), "'sets' or 'gates'; got 'none'"),
        (lambda s: usage.frequencies(s, "topic"), r"expected a label .* \('sequence'\); got 'topic'"),
        (lambda s: usage.similarity(s, "magic"), "expected a measure"),
        (lambda s: usage.hidden_similarity(s, "magic"), "expected a kind of hidden similarity"),
        (lambda s: router.centred(replace(s, router=Liar(s.router, matrix=np.ones((3, 3))))), "router matrix of shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn("top2", 0)[0])


def test_a_recorded_trace_has_usage_but_no_router():
    trace = Site(x=np.eye(3), gates=np.full((3, 2), 0.5))
    assert (usage.usage(trace) == 1).all()
    with pytest.raises(ValueError, match="mean_response needs router"):
        router.mean_response(trace)
    f = gelu(np.random.default_rng(0), 3, 4, 3)
    assert ensemble.ambiguity(replace(trace, experts=(f, f)), np.eye(3)).spread.max() < 1e-25
