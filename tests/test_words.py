"""What stands at the prompt: one line, no digits of arrays, for every public object, whole or half made."""

import importlib
import inspect
import pkgutil
import re
from collections import namedtuple
from dataclasses import make_dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
from cases import CASES, gelu, linear, mixture, norm, swiglu

import npmoe
from npmoe import verify
from npmoe.calculus.words import MOST, one_line, short
from npmoe.geometry import evenness, grassmann, overlap, spectra
from npmoe.geometry.association import mantel
from npmoe.geometry.pca import principal_axes, weighted_pca
from npmoe.model.balance import Balance, conventions, gradients, uniform_law
from npmoe.model.routing import route
from npmoe.probe import function, usage
from npmoe.probe.router import mean_response


def test_layers_say_what_they_are(rng):
    moe = npmoe.init.gelu_moe(rng, E=8, d=64, h=128, k=2)
    assert repr(moe) == "MoE(8 x GeluExpert 64-128-64, top 2, renormalized, float64)"
    soft = replace(moe, k=8, temperature=0.5, bias=np.zeros(8))
    assert repr(soft) == "MoE(8 x GeluExpert 64-128-64, soft, temperature 0.5, with a bias, float64)"
    two = npmoe.MoE(np.ones((3, 4), "f"), (swiglu(rng, 4, 5, 4), gelu(rng, 4, 6, 4), swiglu(rng, 4, 5, 4)), 1, False)
    words = "2 x SwigluExpert 4-5-4, 1 x GeluExpert 4-6-4, top 1, not renormalized, mixed dtypes"
    assert repr(two) == f"MoE({words})"
    assert repr(gelu(rng, 3, 4, 5)) == "GeluExpert(3-4-5, float64)"
    assert repr(replace(gelu(rng, 3, 4, 5), activation="silu")) == "GeluExpert(3-4-5, silu, float64)"
    assert repr(linear(rng, 3, 4, "gelu")) == "Linear(3-4, gelu, float64)"
    assert repr(norm(rng, 4)).startswith("RMSNorm(4, eps ")
    assert repr(npmoe.Residual(moe)) == f"Residual({moe!r})"
    assert repr(npmoe.Stack((linear(rng, 3, 4), gelu(rng, 4, 5, 4)))) == (
        "Stack(Linear(3-4, float64), GeluExpert(4-5-4, float64))"
    )


def test_a_site_and_its_jacobians(rng):
    moe, x = npmoe.init.gelu_moe(rng, E=4, d=6, h=5, k=2), rng.standard_normal((9, 6))
    here = replace(npmoe.site(moe, x, name="toy"), labels={"topic": np.zeros(9)})
    assert repr(here) == "Site('toy': 9 tokens of width 6, 4 x GeluExpert 6-5-6, top 2, labels topic, float64)"
    trace = npmoe.Site(x, here.gates)
    assert repr(trace) == "Site(9 tokens of width 6, 4 experts that were not recorded, no router, float64)"
    assert repr(moe.experts[0].linearize(x)) == "Factored(9 Jacobians of 6 x 6, 1 term of 5 hidden, float64)"
    assert repr(function.survey(here)) == "Survey(norms (4, 8) float64, means (4, 6, 6) float64)"


class Lazy:
    """Experts of which none may be fetched to be told about."""

    def __len__(self):
        return 4

    def __getitem__(self, e):
        raise AssertionError("an expert was fetched")


def test_lazy_experts_are_not_fetched_to_be_told(rng):
    here = npmoe.Site(np.ones((2, 3)), np.full((2, 4), 0.25), experts=Lazy())
    assert "4 experts, lazy" in repr(here)


def test_survey_has_its_norms_by_name(rng):
    moe, x = npmoe.init.gelu_moe(rng, E=4, d=6, h=5, k=2), rng.standard_normal((9, 6))
    found = function.survey(npmoe.site(moe, x))
    table = found.table()
    assert tuple(table) == function.NORMS
    for i, name in enumerate(function.NORMS):
        np.testing.assert_array_equal(table[name], found.norms[:, i])
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(table)
    assert frame.shape == (4, 8)
    assert list(frame.columns) == list(function.NORMS)


def made(rng):
    """One of nearly every public class."""
    moe, x = mixture(rng, 3, 4, 5, 2), rng.standard_normal((7, 4))
    y, trace = moe.forward(x)
    _, gradient = moe.vjp(trace, y)
    here = npmoe.site(moe, x)
    scores, chosen = moe.scores(x), moe.route(x)[1]
    report = verify.compare(moe, lambda x: moe.jacobian(x), x)
    state, again = mantel(np.eye(5), np.eye(5) + 1, rng, 9), weighted_pca(x, np.ones((7, 1)))
    yield from (moe, trace, trace.routing, gradient, here, here.router, report, *report.parts, state, again)
    yield from (moe.experts[0].forward(x)[1], swiglu(rng, 3, 4, 3).forward(np.ones((2, 3)))[1], route(scores, 2))
    yield from (function.survey(here), function.token_spectra(here), function.layer_norms(here), mean_response(here))
    yield from (principal_axes(x, np.ones((7, 1))), usage.radius(here), *usage.bounds(here, x[::-1], rng))
    yield from (Balance("switch"), gradients(Balance("switch")(scores, chosen), x, moe.router))
    yield from (uniform_law(moe.router, x), *conventions(1.0, [scores], [chosen]).matches)
    yield from (case.build()[0] for case in CASES)


def test_every_public_object_is_one_line_without_arrays(rng):
    with np.errstate(under="ignore"):
        things = list(made(rng))
    assert len(things) > 60
    for thing in things:
        said = repr(thing)
        assert "\n" not in said, said
        assert len(said) <= MOST + 60, said
        assert said.startswith(type(thing).__name__), said
        assert "array(" not in said
        assert not re.search(r"[0-9]\.[0-9]{6}", said), said


def test_no_public_tuple_or_dataclass_of_arrays_prints_them():
    """By their annotations: whoever holds an Array has a line of its own."""
    bare = []
    for found in pkgutil.walk_packages(npmoe.__path__, "npmoe."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name, kind in vars(module).items():
            if not isinstance(kind, type) or kind.__module__ != found.name or name.startswith("_"):
                continue
            fields = getattr(kind, "__annotations__", {})
            if any("Array" in str(hint) or "ndarray" in str(hint) for hint in fields.values()) and not own_line(kind):
                bare.append(f"{found.name}.{name}")
    assert bare == []


def own_line(kind):
    """Whether its ``__repr__`` is written here: not made by `dataclasses`, nor by `collections` for a named tuple."""
    said = inspect.unwrap(kind.__repr__, stop=lambda f: "npmoe" in getattr(f, "__code__", f).co_filename)
    return "npmoe" in said.__code__.co_filename


def test_that_test_knows_its_own():
    made_by_us, not_by_us = npmoe.Site, namedtuple("Bare", "x")
    assert own_line(made_by_us)
    assert not own_line(not_by_us)
    assert not own_line(make_dataclass("Bare", ["x"]))


def test_half_made_objects_do_not_raise():
    for kind in (npmoe.MoE, npmoe.GeluExpert, npmoe.SwigluExpert, npmoe.Stack, npmoe.RMSNorm, npmoe.Site):
        assert repr(object.__new__(kind)) == f"{kind.__name__}(...)"


class Many(NamedTuple):
    words: str
    numbers: tuple
    table: dict
    array: np.ndarray

    def __repr__(self):
        return one_line(self)


def test_long_fields_are_cut():
    said = repr(Many("word " * 100, tuple(range(1000)), {i: str(i) for i in range(99)}, np.zeros((3, 3))))
    assert said.startswith("Many(words 'word word")
    assert "numbers 1000 x int, table 99 x int" in said
    assert len(said) <= MOST
    assert short(np.float32(0.1)) == "0.1"


# ---- masked arrays ---------------------------------------------------------------------------------------------------


def masked(array):
    return np.ma.masked_array(array, mask=np.zeros(np.shape(array), bool))


def seams(rng):
    """What takes arrays from the outside, with one of them masked."""
    moe, x = mixture(rng, 3, 4, 5, 2), rng.standard_normal((7, 4))
    y, trace = moe.forward(x)
    gates, chosen = moe.route(x)
    P = rng.random((6, 4))
    return {
        "forward": lambda: moe.forward(masked(x)),
        "vjp": lambda: moe.vjp(trace, masked(y)),
        "jacobian": lambda: moe.experts[0].jacobian(masked(x)),
        "mean": lambda: moe.experts[0].mean_jacobian(x, masked(np.ones(7))),
        "weights of a layer": lambda: replace(moe, router=masked(moe.router)),
        "route": lambda: route(masked(moe.scores(x)), 2),
        "site x": lambda: npmoe.Site(masked(x), gates),
        "site gates": lambda: npmoe.Site(x, masked(gates)),
        "site chosen": lambda: npmoe.Site(x, gates, masked(chosen)),
        "fit": lambda: next(iter(npmoe.fit(moe, masked(x), y, steps=1))),
        "fit y": lambda: next(iter(npmoe.fit(moe, x, masked(y), steps=1))),
        "balance": lambda: Balance("switch")(masked(moe.scores(x)), chosen),
        "balance chosen": lambda: Balance("switch")(moe.scores(x), masked(chosen)),
        "pca": lambda: weighted_pca(masked(x), np.ones((7, 1))),
        "pca weights": lambda: weighted_pca(x, masked(np.ones((7, 1)))),
        "overlap": lambda: overlap.total_variation(masked(P), P),
        "sets": lambda: overlap.jaccard(masked(P > 0.5), P > 0.5),
        "evenness": lambda: evenness.gini(masked(P)),
        "mantel": lambda: mantel(masked(np.eye(5)), np.eye(5), rng, 9),
        "subspaces": lambda: grassmann.principal_angles(masked(np.eye(4)[:, :2]), np.eye(4)[:, :2]),
        "spectra": lambda: spectra.k_at(masked(np.ones(5))),
        "cosines": lambda: spectra.cosines(masked(rng.standard_normal((3, 2, 2)))),
        "compare": lambda: verify.compare(moe, moe.jacobian, masked(x)),
    }


@pytest.mark.parametrize("name", seams(np.random.default_rng(0)))
def test_a_masked_array_is_refused_with_a_sentence(name, rng):
    with pytest.raises(
        TypeError, match=r"expected .* without a mask; got a masked array: leave masked rows out, or fill"
    ):
        seams(rng)[name]()
