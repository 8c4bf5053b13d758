"""Exact statements counted on a Site, in one way for all papers: bounds on routing, and the ambiguity identity.

A run keeps what was counted as numbers; `stated` makes statements of the ledger from them.
"""

import numpy as np

from npmoe.geometry.spectra import cosines, rms_cosine
from npmoe.probe import ensemble, function, statements
from npmoe.probe.scores import sums_to_one
from npmoe.probe.site import Site

__all__ = ["AMBIGUITY", "BOUNDS", "NECESSARY", "ambiguity", "bounds"]

Array = np.ndarray

BOUNDS = {
    "lipschitz, soft gates": "|g(x) - g(y)| <= 1/2 |C W (x - y)|",
    "lipschitz by sigma_1, soft gates": "|g(x) - g(y)| <= 1/2 sigma_1(C W) |x - y|",
    "total variation, soft gates": "TV(g(x), g(y)) <= tanh(span(W (x - y))/4)",
    "lipschitz, one set": "the first bound for the gates in use, where both tokens chose one set",
    "total variation, one set": "the third bound for the gates in use, where both tokens chose one set",
    "hilbert, soft gates": "Hilbert distance of g(x) and g(y) = span(W (x - y)): gates and C W x determine one another",
    "row part, soft gates": "|Pi (x - y)| <= |C (log g(x) - log g(y))| / sigma_min+(C W), Pi on row(C W)",
    "radius, inside": "no step of 0.999 r(x), along the nearest wall's normal or at random, changes the chosen set",
    "radius, beyond": "a step of (1 + 1e-6) r(x) along that normal changes it",
}
NECESSARY = ("hilbert, soft gates", "row part, soft gates")  # from gates to hidden states; the others go the other way
AMBIGUITY = ("error", "individual", "spread", "checked", "violations", "worst", "rms cosine")  # see `ambiguity`


def bounds(here: Site, rng: np.random.Generator) -> Array:
    """Checked, violations, worst, broken of each of `BOUNDS`, (9, 4): on random pairs, and on near and far steps."""
    size = np.linalg.norm(here.x, axis=1, keepdims=True)
    partners = [here.x[rng.permutation(here.n)]]
    # steps from a thousandth of |x| to ten times it: near pairs are where a bound is nearly reached
    for step in (1e-3, 1e-1, 1.0, 10.0):
        way = rng.standard_normal(here.x.shape)
        partners.append(here.x + step * size * way / np.linalg.norm(way, axis=1, keepdims=True))
    total = np.zeros((len(BOUNDS), 4))
    for i, other in enumerate(partners):
        found = statements.bounds(here, other, rng)
        for row, name in zip(total, BOUNDS, strict=True):
            if i and name.startswith("radius"):
                continue  # these speak of tokens, not of pairs
            s = found.named(name)
            row += (s.checked, s.violations, 0, s.broken)
            row[2] = max(row[2], s.worst)
    return total


def ambiguity(here: Site, y: Array) -> Array:
    """The error towards y (n, o) taken apart, (7,), as `AMBIGUITY` names it: three means over tokens; tokens checked,
    violations of the identity and its largest error over what rounding allows; alignment of mean Jacobians.

    Rounding: sums of d squares and k weights, of which each is rounded a few times, (d + k + 8) eps of the larger
    terms. The identity needs gates that sum to 1: where they do not, nothing is checked.
    """
    if not sums_to_one(here.gates).all():
        return np.array([np.nan] * 3 + [0.0] * 3 + [np.nan])
    found = ensemble.ambiguity(here, y)
    k = here.E if here.chosen is None else here.chosen.shape[1]
    allowed = (y.shape[1] + k + 8) * np.finfo(float).eps * (found.individual + found.spread)
    off = np.abs(found.error - (found.individual - found.spread)) / allowed
    means = cosines(np.nan_to_num(function.mean_jacobians(here)))
    parts = [found.error.mean(), found.individual.mean(), found.spread.mean()]
    return np.array([*parts, here.n, (off > 1).sum(), off.max(), rms_cosine(means)])
