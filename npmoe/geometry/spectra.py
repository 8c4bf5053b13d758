"""Spectra: energy curves, effective ranks, alignment, the Marchenko-Pastur law.

Say always whether of sigma, sigma^2 or covariance eigenvalues lambda: these functions take any non-negative spectrum
`values` (..., r) over the last axis, in any order, and leave that choice to the caller's line.
"""

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import parts

__all__ = [
    "cosines",
    "defined_mean",
    "energy",
    "entropy_rank",
    "k_at",
    "marchenko_pastur",
    "marchenko_pastur_k",
    "numerical_rank",
    "off_diagonal",
    "participation",
    "rms_cosine",
    "share",
    "stable_rank",
]

Array = np.ndarray

_PIECE = 1 << 22  # elements that `cosines` takes at a time: 32 MB in float64


def energy(values: Array) -> Array:
    """Cumulative shares of a spectrum, largest first, (..., r) -> (..., r); of an all-zero spectrum NaN.

    Raises
    ------
    ValueError : for negative values; NaN is let through as "undefined".

    Examples
    --------
    >>> energy(np.array([1.0, 3.0]))
    array([0.75, 1.  ])
    """
    values = _spectrum(values)
    cumulative = np.cumsum(np.sort(values, axis=-1)[..., ::-1], axis=-1)
    total = cumulative[..., -1:]
    return np.divide(cumulative, total, out=np.full_like(cumulative, np.nan), where=total > 0)


def share(values: Array, m: int) -> Array:
    """Share of the m largest in the sum (cum-var@m of a covariance's eigenvalues), (..., r) -> (...).

    Examples
    --------
    >>> share(np.array([1.0, 3.0, 4.0]), 2)
    np.float64(0.875)
    """
    return energy(values)[..., min(check.integer("m", m, 1), values.shape[-1]) - 1][()]


def k_at(values: Array, t: float = 0.9) -> Array:
    """Least k with a cumulative share of at least t (k@t), (..., r) -> (...) as floats; NaN where undefined.

    Examples
    --------
    >>> k_at(np.array([5.0, 4.0, 1.0]), 0.9)
    np.float64(2.0)
    """
    if not 0 < t <= 1:
        raise ValueError(f"expected a share t within (0, 1]; got {t}")
    cumulative = energy(values)
    # a few eps of slack: 0.5 + 0.4 is to count as 0.9
    k = (cumulative < t - 8 * np.finfo(cumulative.dtype).eps).sum(axis=-1) + 1.0
    return np.where(np.isnan(cumulative[..., -1]), np.nan, k)[()]


def entropy_rank(values: Array) -> Array:
    """Exponential of the entropy of the shares (Roy and Vetterli 2007, of sigma; also used of lambda).

    Examples
    --------
    >>> entropy_rank(np.array([1.0, 1.0, 0.0])).round(6)
    np.float64(2.0)
    """
    p = _shares(values)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.exp(-(p * logs).sum(axis=-1))


def participation(values: Array) -> Array:
    """(sum lambda)^2 / sum lambda^2.

    Examples
    --------
    >>> participation(np.array([2.0, 2.0, 0.0]))
    np.float64(2.0)
    """
    return 1 / (_shares(values) ** 2).sum(axis=-1)


def stable_rank(values: Array) -> Array:
    """sum lambda / max lambda; of sigma^2 that is |A|_F^2 / |A|_2^2.

    Examples
    --------
    >>> stable_rank(np.array([2.0, 1.0]))
    np.float64(1.5)
    """
    return 1 / _shares(values).max(axis=-1)


def numerical_rank(sigma: Array, size: int | None = None) -> Array:
    """How many singular values exceed max(sigma) eps max(rows, columns); `size` is that maximum, r unless given.

    Examples
    --------
    >>> numerical_rank(np.array([1.0, 1e-20]))
    np.int64(1)
    """
    sigma = _spectrum(sigma)
    eps = np.finfo(sigma.dtype).eps * (size or sigma.shape[-1])
    return (sigma > sigma.max(axis=-1, keepdims=True) * eps).sum(axis=-1)


def _spectrum(values: Array) -> Array:
    values = check.floating("values", values)
    if (values < 0).any():
        raise ValueError(f"expected a spectrum of non-negative values; got {np.nanmin(values)}")
    return values


def _shares(values: Array) -> Array:
    values = _spectrum(values)
    total = values.sum(axis=-1, keepdims=True)
    return np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)


def defined_mean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN only where all of it is (an expert without tokens has no rank).

    Examples
    --------
    >>> defined_mean(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    array([ 1., nan])
    """
    live = ~np.isnan(values)
    total = np.where(live, values, 0).sum(axis=-1)
    count = live.sum(axis=-1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)[()]


def cosines(A: Array) -> Array:
    """Cosines <A_a, A_b>_F / (|A_a| |A_b|) between matrices, (E, o, d) -> (E, E); NaN for a zero or NaN matrix.

    Examples
    --------
    >>> cosines(np.array([[[1.0, 0.0]], [[1.0, 1.0]]])).round(4)
    array([[1.    , 0.7071],
           [0.7071, 1.    ]])
    """
    A = check.unmasked("A", A)
    flat = A.reshape(len(A), -1)
    norm = np.sqrt(np.einsum("ei,ei->e", flat, flat, dtype=np.float64))[:, None]
    total = np.zeros((len(A), len(A)))
    for part in parts(flat.shape[1], _PIECE // max(1, len(A))):  # mean Jacobians of a large layer are gigabytes
        piece = flat[:, part]
        unit = np.divide(piece, norm, out=np.full_like(piece, np.nan), where=norm > 0)
        total += matmul(unit, unit.T)
    return total.astype(A.dtype, copy=False)


def off_diagonal(table: Array) -> Array:
    """What a symmetric table says of each pair of experts, (E, E, ...) -> (E (E - 1)/2, ...).

    Examples
    --------
    >>> off_diagonal(np.array([[1.0, 0.5], [0.5, 1.0]]))
    array([0.5])
    """
    return table[np.triu_indices(len(table), 1)]


def rms_cosine(cosines: Array) -> float:
    """Root mean square over all pairs of different matrices, from (E, E); NaN where no pair is defined.

    Examples
    --------
    >>> rms_cosine(np.array([[1.0, 0.5], [0.5, 1.0]]))
    0.5
    """
    pairs = off_diagonal(cosines)
    pairs = pairs[~np.isnan(pairs)]
    return float(np.sqrt(np.mean(pairs**2))) if pairs.size else float("nan")


def marchenko_pastur(lam: Array, ratio: float) -> Array:
    """Density at `lam` of the eigenvalues of the covariance of n rows of N(0, I_d), ratio = d / n, as both grow.

    For ratio > 1 the mass 1 - 1/ratio at 0 is not part of the density. Source: Marchenko and Pastur 1967.

    Examples
    --------
    >>> marchenko_pastur(np.array([0.1, 1.0, 3.0]), 0.25).round(4)
    array([0.    , 0.6164, 0.    ])
    """
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    inside = np.maximum((high - lam) * (lam - low), 0)
    return np.divide(np.sqrt(inside), 2 * np.pi * ratio * lam, out=np.zeros_like(lam), where=lam > 0)


def marchenko_pastur_k(t: float, d: int, n: float) -> float:
    """k@t (not rounded) that n rows of N(0, I_d) give by the Marchenko-Pastur law: the floor that sample size sets.

    Examples
    --------
    >>> round(marchenko_pastur_k(0.9, d=64, n=1e9), 1)
    57.6
    """
    ratio = check.integer("d", d, 1) / check.positive("n", n)
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # lam = middle + half-width cos(theta) takes the square-root edges out of the integrand
    theta = (np.arange(4000) + 0.5) * np.pi / 4000
    lam = (low + high) / 2 + (high - low) / 2 * np.cos(theta)  # descending
    mass = marchenko_pastur(lam, ratio) * np.sin(theta)
    mass *= min(1, 1 / ratio) / mass.sum()
    energy_share = np.cumsum(mass * lam) / (mass * lam).sum()
    return float(d * np.interp(t, energy_share, np.cumsum(mass)))
