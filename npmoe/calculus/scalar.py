"""Scalar maps with their slopes, and the softmax with its vjp.

An activation returns its value and its slope together, ``a, slope = gelu(z)``: the expensive part is
shared. The exact (erf) GELU and its tanh approximation are two pairs, never mixed.

Letters: z argument, a value, Phi and N the standard normal distribution and its density, p probabilities.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

__all__ = ["ACTIVATIONS", "gelu", "gelu_curvature", "gelu_tanh", "logsumexp", "logsumexp_vjp", "normal", "silu"]
__all__ += ["softmax", "softmax_vjp"]

Array = np.ndarray

_PIECE = 1 << 15  # elements: in training, pieces of this size beat smaller and larger ones
_EDGE = 9.0  # Phi(-9) = 1e-19: beyond it Phi is 0 or 1 to the last bit that matters
_CELLS = 256  # table cells in a unit of z
_GRID = np.arange(-_EDGE * _CELLS, _EDGE * _CELLS + 1) / _CELLS
_PHI = ndtr(_GRID)
_PHI[0], _PHI[-1] = 0.0, 1.0  # exact ends, so that z * Phi(z) does not drift for large -z
_TABLE = {np.dtype(kind): _PHI.astype(kind) for kind in (np.float64, np.float32)}
_INV_SQRT_2PI = float(1 / np.sqrt(2 * np.pi))  # a NumPy scalar would turn float32 into float64


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
    With ``scipy.special.erf`` this takes about twice as long (``python -m bench --only gelu``). Here Phi
    comes from a table at the nearest grid point z0 and the midpoint rule with its first correction,
    ``Phi(z) - Phi(z0) = N(m) (u + (m^2 - 1) u^3 / 24) + O(u^5 / 1920)``, u = z - z0, m = z0 + u/2,
    |u| <= 1/512: the remainder is under 2e-17. It pays only in pieces that stay in the cache.

    Examples
    --------
    >>> Phi, N = normal(np.array([0.0, 1.0]))
    >>> Phi.round(4), N.round(4)
    (array([0.5   , 0.8413]), array([0.3989, 0.242 ]))
    """
    if np.iscomplexobj(z):  # the complex step of the tests; a table has no imaginary direction
        return ndtr(z), _INV_SQRT_2PI * np.exp(-z * z / 2)
    z = np.asarray(z)
    z = z if z.dtype in (np.float32, np.float64) else z.astype(np.float64)
    Phi, N = np.empty_like(z, order="C"), np.empty_like(z, order="C")
    flat, flat_Phi, flat_N = np.ascontiguousarray(z).reshape(-1), Phi.reshape(-1), N.reshape(-1)
    size = min(_PIECE, flat.size)
    # one set of buffers for all pieces: a fresh temporary a pass costs more than the arithmetic on it
    u, m, base = np.empty((3, size), z.dtype)
    cell = np.empty(size, np.int32)
    for start in range(0, flat.size, _PIECE):
        end = min(start + _PIECE, flat.size)
        work = (buffer[: end - start] for buffer in (u, m, base, cell))
        # z^2 may be infinite, and exp(-z^2/2) may vanish: N is then 0, as it should be
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            _normal_piece(flat[start:end], flat_Phi[start:end], flat_N[start:end], *work)
    return Phi, N


def _normal_piece(z: Array, Phi: Array, N: Array, u: Array, m: Array, base: Array, cell: Array) -> None:
    """Write Phi(z) and N(z) into `Phi` and `N`; the other four are buffers of the same size (see `normal`)."""
    one = z.dtype.type
    _density(z, N)
    np.clip(z, one(-_EDGE), one(_EDGE), out=m)
    np.multiply(m, one(_CELLS), out=u)
    np.rint(u, out=u)
    np.copyto(cell, u, casting="unsafe")  # a NaN gets some cell; it stays NaN through u
    cell += np.int32(_EDGE * _CELLS)
    _TABLE[z.dtype].take(cell, mode="clip", out=base)  # Phi(z0)
    u *= one(-1 / _CELLS)
    u += m  # z - z0, exact
    np.multiply(u, one(-0.5), out=Phi)
    m += Phi  # the midpoint
    _density(m, Phi)
    Phi *= u
    m *= m
    m -= one(1)
    u *= u
    m *= u
    m *= one(1 / 24)
    m += one(1)
    Phi *= m
    Phi += base


def _density(z: Array, out: Array) -> None:
    """Write N(z) = exp(-z^2/2) / sqrt(2 pi) into `out`."""
    np.multiply(z, z, out=out)
    out *= z.dtype.type(-0.5)
    np.exp(out, out=out)
    out *= z.dtype.type(_INV_SQRT_2PI)


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
