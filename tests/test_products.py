"""Products: NumPy's numbers, flags that mean nothing forgotten, true ones told; and no other product in npmoe."""

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npmoe
from npmoe.calculus import products
from npmoe.calculus.products import matmul
from npmoe.probe.function import survey

PACKAGE = Path(npmoe.__file__).parent
#: Where ``@`` is not a product of our arrays: numbers that carry their rounding, and tensors of other frameworks.
OTHERS = ("verify/rounding.py", "verify/bounds.py", "battery/", "verify/ask/")


@pytest.mark.underflow  # a normal draw may be less than float16 has
@given(
    st.sampled_from(
        [
            ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)),
            ((2, 1, 3, 4), (3, 4, 5)), ((1, 1), (1, 1)), ((0, 4), (4, 5)), ((3, 0), (0, 5)),
        ]
    ),
    st.sampled_from(["f2", "f4", "f8", "i8", "?"]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_product_is_numpys_to_the_bit(shapes, dtype, seed):
    rng = np.random.default_rng(seed)
    A, B = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    want = A @ B
    found = matmul(A, B)
    assert (found.dtype, found.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(found, want)
    if want.shape:
        out = np.empty_like(want)
        assert matmul(A, B, out=out) is out
        np.testing.assert_array_equal(out, want)


def nervous(product):
    """A matmul that raises a flag which means nothing, as BLAS does, beside a right product."""

    def flagging(A, B, out=None):
        found = product(A, B, out=out)
        np.sqrt(np.float64(-1.0))  # "invalid value", under whatever rules are in force
        return found

    return flagging


@pytest.fixture
def nerves(monkeypatch):
    class Numpy:
        matmul = staticmethod(nervous(np.matmul))

        def __getattr__(self, name):
            return getattr(np, name)

    monkeypatch.setattr(products, "np", Numpy())


@pytest.mark.usefixtures("nerves")
def test_a_flag_that_means_nothing_is_forgotten(rng):
    A, B = rng.standard_normal((6, 5)).astype("f"), rng.standard_normal((5, 1)).astype("f")
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(matmul(A, B), A @ B)
        out = np.full((6, 1), np.nan, "f")
        np.testing.assert_array_equal(matmul(A, B, out=out), A @ B)
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        matmul(A, B)


@pytest.mark.usefixtures("nerves")
def test_a_layer_does_not_feel_it(rng):
    moe = npmoe.init.gelu_moe(rng, E=3, d=4, h=5, k=2)
    x = rng.standard_normal((7, 4))
    with np.errstate(all="raise"):
        y, trace = moe.forward(x)
        moe.vjp(trace, y)
        moe.jacobian(x)
        survey(npmoe.site(moe, x))


BIG = 1e200
FALSE_AND_TRUE = [
    ("finite numbers beyond the largest", [[BIG, 1.0]], [[BIG], [1.0]], "overflow"),
    ("which another order of adding would hide", [[1e308, 1e308, -1e308]], [[1.0], [1.0], [1.0]], "overflow"),
    ("infinities of two signs", [[np.inf, -np.inf]], [[1.0], [1.0]], "invalid"),
    ("infinity times zero", [[np.inf, 1.0]], [[0.0], [1.0]], "invalid"),
    ("infinity that is passed on", [[np.inf, 1.0]], [[2.0], [1.0]], None),
    ("NaN that is passed on", [[np.nan, 1.0]], [[0.0], [1.0]], None),
    ("NaN beside an overflow", [[np.nan, 1.0], [BIG, 1.0]], [[BIG], [1.0]], "overflow"),
]


@pytest.mark.parametrize(
    ("A", "B", "flag"), [row[1:] for row in FALSE_AND_TRUE], ids=[row[0] for row in FALSE_AND_TRUE]
)
@pytest.mark.parametrize("nerve", [False, True])
def test_true_accidents_are_told_as_the_caller_asked(A, B, flag, nerve, request):
    if nerve:
        request.getfixturevalue("nerves")
    A, B = np.array(A), np.array(B)
    if flag is None:
        with np.errstate(all="raise"):
            assert not np.isfinite(matmul(A, B)).all()
        return
    with np.errstate(all="raise"), pytest.raises(FloatingPointError, match=flag):
        matmul(A, B)
    with np.errstate(all="warn"), pytest.warns(RuntimeWarning, match=flag):
        assert not np.isfinite(matmul(A, B)).all()
    with np.errstate(all="ignore"):
        assert not np.isfinite(matmul(A, B, out=np.empty((len(A), 1)))).all()


def test_all_entries_are_weighed_and_stacks_too(monkeypatch):
    monkeypatch.setattr(products, "_PIECE", 4)
    A = np.full((5, 40, 3), np.nan)
    A[4, 39] = np.inf, -np.inf, 0
    with np.errstate(all="raise"), pytest.raises(FloatingPointError, match="invalid"):
        matmul(A, np.ones((3, 2)))
    A[4, 39] = np.inf, np.inf, 1
    with np.errstate(all="raise"):
        matmul(A, np.ones((3, 2)))


def test_a_term_that_vanishes_beside_others_is_no_accident():
    with np.errstate(all="raise"):
        assert matmul(np.array([[1e-200, 1.0]]), np.array([[1e-200], [1.0]])) == 1


def test_this_suite_catches_true_accidents_of_layers_and_of_its_own(rng):
    f = npmoe.init.dense(rng, d=3, h=4)
    huge = npmoe.GeluExpert(f.W1 * BIG, f.b1, f.W2, f.b2)
    with pytest.raises(FloatingPointError, match="overflow"):
        huge.forward(np.full((2, 3), BIG))
    with pytest.raises(FloatingPointError, match="invalid"):
        np.array([np.inf]) - np.array([np.inf])
    with pytest.raises(FloatingPointError, match="divide by zero"):
        np.ones(1) / np.zeros(1)
    with pytest.raises(FloatingPointError, match="underflow"):
        np.array([1e-200]) * np.array([1e-200])
    assert np.isnan(np.array([[np.inf, -np.inf]]) @ np.ones((2, 1)))  # its own product, which BLAS may flag or not


def products_of(path):
    """Lines of a file with ``@`` or with NumPy's matmul."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_product = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult)
        if is_product or (isinstance(node, ast.Attribute) and node.attr == "matmul"):
            yield node.lineno


def test_every_product_of_the_package_goes_through_it():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name != "calculus/products.py" and not name.startswith(OTHERS):
            found += [f"{name}:{line}" for line in products_of(path)]
    assert found == []
