"""Products of matrices whose floating-point flags can be trusted.

BLAS raises flags that mean nothing: kernels work on padding and on lanes that they throw away, and what stands there
may overflow or be no number (numpy issues #13173, #24067; on Apple's M4 every product, #29820). NumPy's ``@`` makes a
warning of them, or an error for whoever asked for errors, beside a product that is right to the last bit. So a flag of
a product counts here only if the product is not finite; then the caller's own rules decide, as for any other operation.
"""

from typing import Any

import numpy as np

__all__ = ["matmul"]

Array = np.ndarray

_PIECE = 1 << 16  # terms that are weighed at a time


def matmul(A: Array, B: Array, out: Array | None = None) -> Any:
    """A @ B, with the flags that its numbers deserve: overflow of finite numbers, NaN out of infinities.

    Where nothing is flagged nothing else is done, and the product is that of `numpy.matmul` to the bit. Underflow is
    not flagged: a term that vanishes beside others is no accident, and BLAS tells nothing of a sum that does.

    Parameters
    ----------
    A, B : arrays (..., n, m) and (..., m, o), or vectors, as `numpy.matmul` takes them.
    out : array (..., n, o), written in place.

    Raises
    ------
    FloatingPointError : or a RuntimeWarning, as `numpy.errstate` says, where finite numbers have a product that is not
        finite, or infinities meet zeros or each other.

    Examples
    --------
    >>> matmul(np.eye(2), np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[1., 2.],
           [3., 4.]])
    >>> with np.errstate(over="raise"):
    ...     matmul(np.full((1, 2), 1e200), np.full((2, 1), 1e200))
    Traceback (most recent call last):
    FloatingPointError: overflow encountered in multiply
    """
    try:
        return _watched(A, B, out)
    except FloatingPointError:
        product = _quiet(A, B) if out is None else out  # a product that was written was written before it was flagged
    if not np.isfinite(product).all():
        _flag(np.asarray(A), np.asarray(B), product)
    return product


@np.errstate(over="raise", invalid="raise", divide="raise", under="ignore")
def _watched(A: Array, B: Array, out: Array | None) -> Any:
    return np.matmul(A, B, out=out)


@np.errstate(all="ignore")
def _quiet(A: Array, B: Array) -> Any:
    return np.matmul(A, B)


def _flag(A: Array, B: Array, product: Array) -> None:
    """Flag what a product that is not finite deserves, by operations on single numbers, whose flags are true."""
    if np.isfinite(A).all() and np.isfinite(B).all():
        # in whatever order BLAS added: finite numbers, and a sum beyond them
        np.multiply(np.finfo(product.dtype).max, product.dtype.type(2))
        return
    A, B = (A[None] if A.ndim == 1 else A), (B[:, None] if B.ndim == 1 else B)
    shape = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    A, B = np.broadcast_to(A, shape + A.shape[-2:]), np.broadcast_to(B, shape + B.shape[-2:])
    *stack, rows, columns = np.nonzero(~np.isfinite(product.reshape(*shape, A.shape[-2], B.shape[-1])))
    few = max(1, _PIECE // A.shape[-1])
    for i in range(0, len(rows), few):
        part = slice(i, i + few)
        at = tuple(index[part] for index in stack)
        terms = A[(*at, rows[part])] * B.mT[(*at, columns[part])]  # (few, m)
        np.add.reduce(terms, axis=-1)
