"""Evenness of usage: how equally the experts are used, by one number.

Counts (..., E) of E experts -> (...); they may be gates or frequencies as well. A row of zeros has none, NaN.
"""

import numpy as np

from npmoe.geometry.rows import as_shares, ratio, vanishing

__all__ = ["cv", "entropy", "entropy_share", "gini", "jain", "max_over_mean"]

Array = np.ndarray


def cv(counts: Array) -> Array:
    """Coefficient of variation of usage, standard deviation (over E, not E - 1) by mean, (..., E) -> (...).

    Examples
    --------
    >>> cv(np.array([2, 0]))
    np.float64(1.0)
    """
    shares = as_shares("counts", counts) * np.shape(counts)[-1]  # their mean is 1
    return np.sqrt(((shares - 1) ** 2).mean(axis=-1))[()]


def max_over_mean(counts: Array) -> Array:
    """Usage of the busiest expert over the mean, within 1..E, (..., E) -> (...).

    Examples
    --------
    >>> max_over_mean(np.array([3, 1]))
    np.float64(1.5)
    """
    shares = as_shares("counts", counts)
    return (shares.max(axis=-1) * shares.shape[-1])[()]


@vanishing
def entropy(counts: Array) -> Array:
    """Entropy of usage in nats, (..., E) -> (...).

    Examples
    --------
    >>> entropy(np.array([1, 1, 0])).round(4)
    np.float64(0.6931)
    """
    shares = as_shares("counts", counts)
    logs = np.log(shares, out=np.zeros_like(shares), where=~(shares <= 0))  # NaN stays NaN
    return np.abs(-(shares * logs).sum(axis=-1))[()]  # abs: 0, not -0


def entropy_share(counts: Array) -> Array:
    """Entropy of usage over log E, what equal usage has, (..., E) -> (...); NaN for a single expert.

    Examples
    --------
    >>> entropy_share(np.array([1, 1, 0, 0])).round(4)
    np.float64(0.5)
    """
    return ratio(entropy(counts), np.log(np.shape(counts)[-1]))[()]


def gini(counts: Array) -> Array:
    """Gini coefficient sum_ab |c_a - c_b| / (2 E sum c), within 0..1 - 1/E, (..., E) -> (...).

    Examples
    --------
    >>> gini(np.array([4, 0, 0, 0]))
    np.float64(0.75)
    """
    shares = np.sort(as_shares("counts", counts), axis=-1)
    E = shares.shape[-1]
    return (shares * (2 * np.arange(E) + 1 - E)).sum(axis=-1)[()] / E


@vanishing
def jain(counts: Array) -> Array:
    """Jain's index (sum c)^2 / (E sum c^2) = 1/(1 + cv^2), within 1/E..1, (..., E) -> (...). Jain et al. 1984.

    Examples
    --------
    >>> jain(np.array([4, 0, 0, 0]))
    np.float64(0.25)
    """
    shares = as_shares("counts", counts)
    return (1 / (shares.shape[-1] * (shares**2).sum(axis=-1)))[()]
