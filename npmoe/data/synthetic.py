"""Synthetic inputs and targets with ground truth, all from a generator.

n tokens, d width.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Clusters", "cluster_tasks", "clusters", "gaussian", "teacher"]

Array = np.ndarray
Rng = np.random.Generator


def gaussian(rng: Rng, n: int, d: int) -> Array:
    """Isotropic rows, N(0, I_d), (n, d).

    Examples
    --------
    >>> gaussian(np.random.default_rng(0), 2, 3).shape
    (2, 3)
    """
    return rng.standard_normal((n, d))


class Clusters(NamedTuple):
    """x (n, d), label (n,) and the centres (m, d) that the rows scatter about."""

    x: Array
    label: Array
    centres: Array


def clusters(rng: Rng, n: int, d: int, m: int = 8, spread: float = 0.5) -> Clusters:
    """m labelled clusters: x = c_label + noise, scaled to unit mean square entries.

    Parameters
    ----------
    spread : share of the variance that lies within clusters, 0..1; 1 is the isotropic Gaussian.

    Examples
    --------
    >>> x, label, centres = clusters(np.random.default_rng(0), 6, 3, m=2)
    >>> x.shape, sorted(set(label.tolist())), centres.shape
    ((6, 3), [0, 1], (2, 3))
    """
    if not 0 <= spread <= 1:
        raise ValueError(f"expected a spread within 0..1, the share of variance within clusters; got {spread}")
    centres = np.sqrt(1 - spread) * rng.standard_normal((m, d))
    label = rng.permutation(np.arange(n) % m)  # as equal in size as n allows
    x = centres[label] + np.sqrt(spread) * rng.standard_normal((n, d))
    return Clusters(x, label, centres)


def cluster_tasks(rng: Rng, x: Array, label: Array) -> Array:
    """Targets of predefined tasks: y = A_label x, one random map of unit gain for each label, (n, d)."""
    y = np.zeros_like(x)
    d = x.shape[1]
    for c in np.unique(label):
        A = rng.standard_normal((d, d)) / np.sqrt(d)
        y[label == c] = x[label == c] @ A.T
    return y


def teacher(rng: Rng, x: Array) -> Array:
    """Targets of a random one-hidden-layer teacher, y = A tanh(B x), scaled to unit mean square entries, (n, d).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = teacher(rng, rng.standard_normal((50, 4)))
    >>> bool(np.isclose((y**2).mean(), 1))
    True
    """
    d = x.shape[1]
    y = np.tanh(x @ rng.standard_normal((d, d)) / np.sqrt(d)) @ rng.standard_normal((d, d))
    return y / np.sqrt((y**2).mean())
