"""The mixture as an ensemble: its error taken apart into its experts' errors and their spread.

n tokens, o output width, E experts, those that every token visits unrouted among them.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.words import one_line
from npmoe.probe.scores import hidden_states, sums_to_one
from npmoe.probe.site import Site

__all__ = ["Ambiguity", "ambiguity"]

Array = np.ndarray


class Ambiguity(NamedTuple):
    """error (n,) = |f - y|^2, individual (n,) = sum_e g_e |f_e - y|^2, spread (n,) = sum_e g_e |f_e - f|^2, and the
    identity's largest error relative to individual + spread."""

    error: Array
    individual: Array
    spread: Array
    relative: float

    def __repr__(self) -> str:
        return one_line(self)


def ambiguity(site: Site, y: Array) -> Ambiguity:
    """Error of the mixture taken apart: |f - y|^2 = sum_e g_e |f_e - y|^2 - sum_e g_e |f_e - f|^2, for each token.

    Exact for gates that sum to 1 (Krogh and Vedelsby 1995): the mixture is better than its experts by just how much
    they differ.

    Parameters
    ----------
    y : array (n, o), targets.

    Raises
    ------
    ValueError : for gates that do not sum to 1, a Site without experts, or targets of another shape.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> s = npmoe.site(npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2), rng.standard_normal((9, 3)))
    >>> a = ambiguity(s, rng.standard_normal((9, 3)))
    >>> bool(np.allclose(a.error, a.individual - a.spread))
    True
    """
    site.need("ambiguity", "experts")
    experts = site.experts or ()
    if not sums_to_one(site.gates).all():
        total = site.gates.sum(axis=1)
        at = int(np.abs(total - 1).argmax())
        raise ValueError(
            f"ambiguity needs gates that sum to 1; those of the Site {site.name!r} sum to {total[at]} at token {at}"
        )
    gates, x = np.asarray(site.gates, np.float64), hidden_states(site)
    gates = gates / gates.sum(axis=1, keepdims=True)  # float32 gates sum to 1 in their own dtype alone
    outputs = [(rows, experts[e].forward(x[rows])[0]) for e in range(site.E) for rows in [site.rows(e)]]
    y = check.finite("y", check.shaped("y", y, (site.n, outputs[0][1].shape[1]), "the targets of this Site"))
    f = np.zeros(y.shape)
    for e, (rows, out) in enumerate(outputs):
        f[rows] += gates[rows, e, None] * out
    individual, spread = np.zeros(site.n), np.zeros(site.n)
    for e, (rows, out) in enumerate(outputs):
        individual[rows] += gates[rows, e] * ((out - y[rows]) ** 2).sum(axis=1)
        spread[rows] += gates[rows, e] * ((out - f[rows]) ** 2).sum(axis=1)
    error = ((f - y) ** 2).sum(axis=1)
    size = individual + spread
    off = np.divide(np.abs(error - (individual - spread)), size, out=np.zeros(site.n), where=size > 0)
    return Ambiguity(error, individual, spread, float(off.max()))
