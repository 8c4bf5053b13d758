"""The comparisons: each a function that returns a `Row`. Their sizes are SC1's: E = 8, d = 64, h = 128, N = 512."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import erf
from threadpoolctl import threadpool_limits

import npmoe
from bench.timing import Row, compare
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.scalar import gelu

__all__ = ["ROWS"]

Array = np.ndarray
E, D, H, N = 8, 64, 128, 512


def _close(rtol: float) -> Callable[[Any, Any], None]:
    def equal(a: Array, b: Array) -> None:
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))

    return equal


def _batch() -> tuple[npmoe.GeluExpert, Array]:
    rng = np.random.default_rng(0)
    return npmoe.init.dense(rng, D, H), rng.standard_normal((N, D))


def gelu_against_erf() -> Row:
    """Value and slope of GELU: npmoe's table against scipy's erf, one thread."""
    keep_heap()
    z = np.random.default_rng(0).standard_normal((N, H))

    def with_erf() -> Array:
        Phi = (1 + erf(z / np.sqrt(2))) / 2
        return np.stack([z * Phi, Phi + z * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)])

    return compare("gelu", lambda: np.stack(gelu(z)), {"scipy erf": with_erf}, size=f"{N} x {H}", equal=_close(1e-14),
                   rounds=101)  # fmt: skip


def jacobian_stack() -> Row:
    """All Jacobians of an expert as one product, against one product a token, one thread."""
    f, x = _batch()

    def one_by_one() -> Array:
        _, trace = f.forward(x)
        return np.stack([(f.W2 * slope) @ f.W1 for slope in trace.slope])

    with threadpool_limits(1):
        return compare("expert jacobians", lambda: f.jacobian(x), {"a product a token": one_by_one},
                       size=f"{N} of {D} x {D}", equal=_close(1e-13))  # fmt: skip


def mean_jacobian() -> Row:
    """The mean Jacobian in closed form, against forming all and averaging, one thread."""
    f, x = _batch()
    with threadpool_limits(1):
        return compare("mean jacobian", lambda: f.mean_jacobian(x), {"form and average": lambda: f.jacobian(x).mean(0)},
                       size=f"{N} of {D} x {D}", equal=_close(1e-13))  # fmt: skip


def leading_values() -> Row:
    """Leading singular values by Lanczos on the factors to 1e-6, against forming and decomposing, one thread."""
    f, x = _batch()
    J = f.linearize(x)

    def decompose() -> Array:
        return np.linalg.svd(J.dense(), compute_uv=False)[:, 0]

    with threadpool_limits(1):
        return compare("leading values", lambda: J.leading().values, {"form and decompose": decompose},
                       size=f"{N} of {D} x {D}", equal=_close(1e-6), rounds=7)  # fmt: skip


def sparse_step() -> Row:
    """A training step of the top-2 mixture against one of the soft mixture: sparse work for sparse routing."""

    def steps(k: int) -> Callable[[], None]:
        rng = np.random.default_rng(0)
        moe = npmoe.init.gelu_moe(rng, E, D, H, k)
        x, y = rng.standard_normal((2, N, D))
        training = npmoe.fit(moe, x, y, steps=10**6)
        next(training)
        return lambda: next(training) and None

    with threadpool_limits(1):
        return compare("train top2", steps(2), {"npmoe soft": steps(E)}, size=f"E = {E}, d = {D}, h = {H}, N = {N}",
                       rounds=101)  # fmt: skip


ROWS: dict[str, Callable[[], Row]] = {
    "gelu": gelu_against_erf,
    "expert jacobians": jacobian_stack,
    "mean jacobian": mean_jacobian,
    "leading values": leading_values,
    "train top2": sparse_step,
}
