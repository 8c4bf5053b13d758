"""Scalar maps with their slopes, and the softmax with its vjp.

An activation returns its value and its slope together, ``a, slope = gelu(z)``: the expensive part is
shared. The exact (erf) GELU and its tanh approximation are two pairs, never mixed.

Letters: z argument, a value, Phi and N the standard normal distribution and its density, p probabilities.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check

__all__ = [
    "ACTIVATIONS",
    "gelu",
    "gelu_curvature",
    "gelu_slope",
    "gelu_tanh",
    "logsumexp",
    "logsumexp_vjp",
    "normal",
    "silu",
]
__all__ += ["sigmoid", "slope_of", "softmax", "softmax_vjp"]

Array = np.ndarray

_PIECE = 1 << 16  # elements: few enough for the cache, enough for two threads not to fight over the interpreter
_EDGE = 9  # Phi(-9) = 1e-19: beyond it Phi is 0 or 1 to the last bit that matters
_CELLS = 2048  # table cells in a unit of z
_INV_SQRT_2PI = float(1 / np.sqrt(2 * np.pi))  # a NumPy scalar would turn float32 into float64


class _Table(NamedTuple):
    """Phi on a grid of step 1/_CELLS in one dtype, and how the nearest node of z is found in it.

    z + shift has no bits finer than the step, so that it is rounded to a node; its own bits, less `first`, count the
    nodes from the left edge.
    """

    Phi: Array
    shift: np.floating
    integer: type
    first: int


@cache
def _table(dtype: np.dtype) -> _Table:
    grid = [i / _CELLS for i in range(-_EDGE * _CELLS, _EDGE * _CELLS + 1)]
    Phi = np.array([math.erfc(-z * math.sqrt(0.5)) / 2 for z in grid])
    Phi[0], Phi[-1] = 0.0, 1.0  # exact ends, so that z * Phi(z) does not drift for large -z
    integer = {8: np.int64, 4: np.int32}[dtype.itemsize]
    shift = dtype.type(1.5 * 2.0 ** np.finfo(dtype).nmant / _CELLS)
    return _Table(Phi.astype(dtype), shift, integer, int(shift.view(integer)) - _EDGE * _CELLS)


def normal(z: Array) -> tuple[Array, Array]:
    """Standard normal distribution Phi(z) and density N(z), element by element.

    Parameters
    ----------
    z : array of float64, float32 or a complex type, any shape.

    Returns
    -------
    Phi, N : arrays of the shape and dtype of `z`. For real `z` the absolute error is below 2 eps.

    Notes
    -----
    With ``scipy.special.erf`` this takes more than twice as long (``python -m bench --only gelu``). Here Phi
    comes from a table at the nearest grid point z0 and Taylor's formula about z, with u = z - z0, |u| <= 1/4096:
    ``Phi(z) - Phi(z0) = N(z) (u + z u^2/2 + (z^2 - 1) u^3/6) + O(N u^4 (z^3 - 3 z) / 24)``, of which the remainder is
    under 8.2e-17. In float32 the first term is enough: the second is under 8e-9. It pays only in pieces that stay in
    the cache.

    Examples
    --------
    >>> Phi, N = normal(np.array([0.0, 1.0]))
    >>> Phi.round(4), N.round(4)
    (array([0.5   , 0.8413]), array([0.3989, 0.242 ]))
    """
    z = check.unmasked("z", z)
    if np.iscomplexobj(z):  # the complex step of the tests; a table has no imaginary direction
        from scipy.special import ndtr  # here, not above: loading it takes longer than loading NumPy

        return ndtr(z), _INV_SQRT_2PI * np.exp(-z * z / 2)
    z = z if z.dtype in (np.float32, np.float64) else z.astype(np.float64)
    Phi, N = np.empty_like(z, order="C"), np.empty_like(z, order="C")
    flat, flat_Phi, flat_N = np.ascontiguousarray(z).reshape(-1), Phi.reshape(-1), N.reshape(-1)
    size = min(_PIECE, flat.size)
    # one set of buffers for all pieces: a fresh temporary a pass costs more than the arithmetic on it
    u, work = np.empty((2, size), z.dtype)
    node = np.empty(size, np.int64)
    # z^2 may be infinite, and exp(-z^2/2) may vanish: N is then 0, as it should be
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if 0 < size == flat.size:
            _normal_piece(flat, flat_Phi, flat_N, u, work, node)
            return Phi, N
        for start in range(0, flat.size, _PIECE):
            end = min(start + _PIECE, flat.size)
            buffers = (buffer[: end - start] for buffer in (u, work, node))
            _normal_piece(flat[start:end], flat_Phi[start:end], flat_N[start:end], *buffers)
    return Phi, N


def _normal_piece(z: Array, Phi: Array, N: Array, u: Array, work: Array, node: Array) -> None:
    """Write Phi(z) and N(z) into `Phi` and `N`; the other three are buffers of the same size (see `normal`)."""
    one, table = z.dtype.type, _table(z.dtype)
    np.multiply(z, z, out=N)
    # a maximum spares the long pass of a clip where, as nearly always, all lie within the table; a NaN stays NaN
    m = z if np.maximum.reduce(N) <= _EDGE**2 else np.clip(z, one(-_EDGE), one(_EDGE))
    N *= one(-0.5)
    np.exp(N, out=N)
    N *= one(_INV_SQRT_2PI)
    np.add(m, table.shift, out=u)
    np.subtract(u.view(table.integer), table.first, out=node)  # a NaN gets some node; it stays NaN through u
    u -= table.shift  # z0
    np.subtract(m, u, out=u)  # exact
    table.Phi.take(node, mode="clip", out=Phi)
    if z.dtype == np.float64:
        np.multiply(m, m, out=work)
        work -= 1
        work *= u
        work *= 1 / 3
        work += m
        work *= u
        work *= 0.5
        work += 1
        u *= work
    u *= N
    Phi += u


def gelu(z: Array) -> tuple[Array, Array]:
    """Exact GELU, a = z Phi(z), and its slope, Phi(z) + z N(z).

    Source: Hendrycks and Gimpel, arXiv 1606.08415, section 2; the slope is the product rule.

    Parameters
    ----------
    z : array, any shape.

    Returns
    -------
    a, slope : arrays like `z`.

    Examples
    --------
    >>> a, slope = gelu(np.array([0.0, 2.0]))
    >>> a.round(4), slope.round(4)
    (array([0.    , 1.9545]), array([0.5   , 1.0852]))
    """
    Phi, slope = normal(z)
    slope *= z
    slope += Phi
    Phi *= z
    return Phi, slope


def gelu_slope(z: Array) -> Array:
    """The slope of `gelu` alone, Phi(z) + z N(z), to the bit, for whoever does not need the value.

    Examples
    --------
    >>> gelu_slope(np.array([0.0, 2.0])).round(4)
    array([0.5   , 1.0852])
    """
    Phi, slope = normal(z)
    slope *= z
    slope += Phi
    return slope


def gelu_curvature(z: Array) -> Array:
    """Second derivative of the exact GELU, (2 - z^2) N(z), an array like `z`.

    Examples
    --------
    >>> gelu_curvature(np.array([0.0, 2.0**0.5])).round(4) + 0.0
    array([0.7979, 0.    ])
    """
    with np.errstate(over="ignore", under="ignore"):  # exp(-1000) is 0, and nothing changes beyond
        z2 = z * z if np.iscomplexobj(z) else np.minimum(z * z, 2e3)
        return (2 - z2) * _INV_SQRT_2PI * np.exp(-z2 / 2)


def gelu_tanh(z: Array) -> tuple[Array, Array]:
    """The tanh approximation of GELU and *its own* slope (up to 8.7e-4 away from the exact one's).

    a = z (1 + t) / 2, t = tanh(c (z + b z^3)), c = sqrt(2/pi), b = 0.044715
    (Hendrycks and Gimpel, arXiv 1606.08415, section 2); slope = (1 + t)/2 + z (1 - t^2) c (1 + 3 b z^2) / 2.

    Examples
    --------
    >>> a, slope = gelu_tanh(np.array([0.0, 2.0]))
    >>> a.round(4), slope.round(4)
    (array([0.    , 1.9546]), array([0.5   , 1.0861]))
    """
    c, b = np.sqrt(2 / np.pi).item(), 0.044715
    with np.errstate(over="ignore"):
        z2 = z * z if np.iscomplexobj(z) else np.minimum(z * z, 1e4)  # tanh is +-1 long before z = 100
    t = np.tanh(c * z * (1 + b * z2))
    half = (1 + t) / 2
    return z * half, half + z * (1 - t * t) * (c / 2 * (1 + 3 * b * z2))


def sigmoid(z: Array) -> Array:
    """1/(1 + exp(-z)), to the last bits on both sides.

    Examples
    --------
    >>> sigmoid(np.array([0.0, -800.0, 800.0]))
    array([0.5, 0. , 1. ])
    """
    with np.errstate(under="ignore"):
        small = np.exp(-np.abs(z.real) - (1j * np.where(z.real < 0, -1, 1) * z.imag if np.iscomplexobj(z) else 0))
    return np.where(z.real < 0, small, 1) / (1 + small)


def silu(z: Array) -> tuple[Array, Array]:
    """SiLU, a = z sig(z), and its slope, sig(z) (1 + z (1 - sig(z))).

    Source: the gate of SwiGLU, Shazeer, arXiv 2002.05202, equation 5 (Swish with beta = 1).

    Examples
    --------
    >>> a, slope = silu(np.array([0.0, 2.0]))
    >>> a.round(4), slope.round(4)
    (array([0.    , 1.7616]), array([0.5   , 1.0908]))
    """
    sig = (1 + np.tanh(z / 2)) / 2  # tanh saturates where exp(-z) would overflow
    a = z * sig
    return a, sig + a * (1 - sig)


#: Activations by name: a kind of expert carries the name, never the function, so that it can be saved.
ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def slope_of(activation: str, z: Array) -> Array:
    """The slope alone of one of `ACTIVATIONS`, an array like `z`; what a Jacobian reads."""
    function = ACTIVATIONS[activation]
    return gelu_slope(z) if function is gelu else function(z)[1]


def softmax(s: Array) -> Array:
    """Softmax over the last axis; entries at -inf get exactly 0.

    Examples
    --------
    >>> softmax(np.array([0.0, -np.inf, 0.0]))
    array([0.5, 0. , 0.5])
    """
    # .real: the shift is a constant, and a complex step must not take its direction from it
    p = np.exp(s - s.real.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def softmax_vjp(p: Array, dp: Array) -> Array:
    """Cotangent of the scores, p (dp - <p, dp>), from p = softmax(s); shapes (..., E)."""
    return p * (dp - (p * dp).sum(axis=-1, keepdims=True))


def logsumexp(s: Array) -> Array:
    """Log of the sum of exponentials over the last axis, (..., E) -> (...).

    Examples
    --------
    >>> logsumexp(np.array([1000.0, 1000.0])).round(4)
    np.float64(1000.6931)
    """
    top = s.real.max(axis=-1, keepdims=True)
    return np.log(np.exp(s - top).sum(axis=-1)) + top[..., 0]


def logsumexp_vjp(s: Array, dy: Array) -> Array:
    """Cotangent of the scores, softmax(s) dy; dy has the shape of ``logsumexp(s)``."""
    return softmax(s) * dy[..., None]
