"""Rows of usage, checked and prepared: what the measures of overlap, of evenness and of association read.

E experts. A set of experts is a row of booleans (..., E); a usage is a row of non-negative numbers (..., E): counts,
gates or frequencies, integers or floats.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npmoe.calculus import check

__all__ = ["as_rows", "as_sets", "as_shares", "as_usage", "both_as", "ratio", "scaled", "vanishing"]

Array = np.ndarray

# a share that vanishes is none: e^-800 over a sum is 0, and that is meant
vanishing = np.errstate(under="ignore")


def as_sets(name: str, value: Any) -> Array:
    """`value` as sets, booleans (..., E)."""
    array = check.unmasked(name, value)
    if array.dtype != bool or array.ndim < 1:
        raise TypeError(
            f"expected {name} to be sets, booleans of shape (..., E); got {array.dtype} of shape {array.shape}"
        )
    return array


def as_usage(name: str, value: Any) -> Array:
    """`value` as non-negative floats (..., E); counts and masks become float64, where all of them are exact.

    So does anything below float32: float16 ends at 65 504, and sums of a few thousand shares are rounded away.
    """
    array = check.unmasked(name, value)
    if array.dtype.kind not in "buif" or array.ndim < 1:
        raise TypeError(
            f"expected {name} to be usage, numbers of shape (..., E); got {array.dtype} of shape {array.shape}"
        )
    exact = array.dtype.kind == "f" and array.dtype.itemsize >= 4
    array = check.finite(name, array if exact else array.astype(np.float64))
    if (array < 0).any():
        raise ValueError(f"expected {name} to be non-negative; got {array.min()}")
    return array


def as_rows(name: str, value: Any) -> Array:
    """`value` as usage of exactly two axes, (n, E)."""
    usage = as_usage(name, value)
    if usage.ndim != 2:
        raise ValueError(f"expected {name} of shape (n, E); got {usage.shape}")
    return usage


@vanishing
def scaled(usage: Array, axis: int | None = -1) -> Array:
    """Usage over the power of two next above its maximum along the axis: sums do not overflow, no digit changes."""
    _, exponent = np.frexp(usage.max(axis=axis, keepdims=True, initial=0))
    return np.ldexp(usage, -exponent)


@vanishing
def as_shares(name: str, value: Any) -> Array:
    """`value` as usage (..., E) whose rows sum to 1; NaN for a row of zeros."""
    usage = scaled(as_usage(name, value))
    total = usage.sum(axis=-1, keepdims=True)
    return np.divide(usage, total, out=np.full_like(usage, np.nan), where=total > 0)


def both_as(prepare: Callable[[str, Any], Array], P: Any, Q: Any, names: str = "PQ") -> tuple[Array, Array]:
    """Two usages, each prepared in the same way, of as many experts."""
    one, two = prepare(names[0], P), prepare(names[1], Q)
    if one.shape[-1] != two.shape[-1]:
        raise ValueError(f"expected as many experts in both; got {one.shape[-1]} and {two.shape[-1]}")
    return one, two


def ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where below is 0."""
    out = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan, np.result_type(above, below))
    return np.divide(above, below, out=out, where=below > 0)
