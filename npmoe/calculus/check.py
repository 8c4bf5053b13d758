"""Checks at the public seams: each error says what was expected, what came, and of which thing."""

from typing import Any

import numpy as np

__all__ = ["finite", "floating", "integer", "matrix", "positive", "shaped", "unmasked", "weights", "widths"]


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else repr(type(value).__name__)


def unmasked(name: str, value: Any) -> np.ndarray:
    """`value` as an array.

    Raises
    ------
    TypeError : for a masked array, whose mask nothing here would look at.

    Examples
    --------
    >>> unmasked("x", np.ma.masked_invalid([1.0, np.nan]))
    Traceback (most recent call last):
    TypeError: expected x without a mask; got a masked array: leave masked rows out, or fill them
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"expected {name} without a mask; got a masked array: leave masked rows out, or fill them")
    return np.asarray(value)


def floating(name: str, value: Any) -> np.ndarray:
    """`value` as an array of floats (complex is let through: the complex step needs it).

    Raises
    ------
    TypeError : if it is not an array of floats; integers are not converted behind the user's back.
    """
    array = unmasked(name, value)
    if array.dtype.kind not in "fc":
        raise TypeError(f"expected {name} to be an array of floats; got {_kind(value)}")
    return array


def shaped(name: str, value: Any, shape: tuple[int | str, ...], of: str = "") -> np.ndarray:
    """`value` as floats of the given shape, in which a string stands for any length.

    Examples
    --------
    >>> shaped("b1", np.zeros(3), (4,), "GeluExpert")
    Traceback (most recent call last):
    ValueError: expected b1 of shape (4,) of GeluExpert; got (3,)
    """
    array = floating(name, value)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        text = "(" + ", ".join(map(str, shape)) + (",)" if len(shape) == 1 else ")")
        raise ValueError(f"expected {name} of shape {text}{f' of {of}' if of else ''}; got {array.shape}")
    return array


def matrix(name: str, value: Any, width: int, of: str) -> np.ndarray:
    """`value` as floats of shape (n, width), where `of` says whose width that is.

    Examples
    --------
    >>> matrix("x", np.zeros((64, 512)), 64, "this expert")
    Traceback (most recent call last):
    ValueError: expected x of shape (n, 64), the width of this expert; got (64, 512)
    """
    array = floating(name, value)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"expected {name} of shape (n, {width}), the width of {of}; got {array.shape}")
    return array


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """`array` itself, if it holds neither NaN nor infinity; else a ValueError that says where the first is."""
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"expected {name} to be finite; got {array[where]} at {where} of shape {array.shape}")
    return array


def weights(name: str, value: Any, n: int) -> np.ndarray:
    """`value` as n non-negative, finite weights that are not all zero.

    Examples
    --------
    >>> weights("weights", np.zeros(3), 3)
    Traceback (most recent call last):
    ValueError: expected weights with a positive sum; got 3 zeros
    """
    array = finite(name, shaped(name, value, (n,)))
    if (array < 0).any():
        raise ValueError(f"expected {name} to be non-negative; got {array.min()} at {int(array.argmin())}")
    if not (array > 0).any():
        raise ValueError(f"expected {name} with a positive sum; got {n} zeros")
    return array


def integer(name: str, value: Any, low: int, high: int | None = None, of: str = "") -> int:
    """`value` as an int within low..high.

    Examples
    --------
    >>> integer("k", 9, 1, 8, "a mixture of 8 experts")
    Traceback (most recent call last):
    ValueError: expected k within 1..8 of a mixture of 8 experts; got 9
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"expected {name} to be an integer; got {value!r}")
    if value < low or (high is not None and value > high):
        span = f"within {low}..{high}" if high is not None else f"of at least {low}"
        raise ValueError(f"expected {name} {span}{f' of {of}' if of else ''}; got {value}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0.

    Examples
    --------
    >>> positive("lr", -1.0)
    Traceback (most recent call last):
    ValueError: expected lr to be a finite number above 0; got -1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"expected {name} to be a number; got {value!r}")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"expected {name} to be a finite number above 0; got {value}")
    return float(value)


def widths(of: str, **sizes: int) -> None:
    """Raise a ValueError unless all named widths of a layer are at least 1."""
    if min(sizes.values()) < 1:
        got = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"expected widths of at least 1 of {of}; got {got}")
