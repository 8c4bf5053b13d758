"""What the counts of one model say: how alike kinds of text are, how even usage is, how layers are linked.

D kinds of text, L layers, E experts, k chosen a token, B draws of a bootstrap.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.words import one_line
from npmoe.geometry import association, overlap
from npmoe.geometry.evenness import cv, entropy_share, gini, jain, max_over_mean
from npmoe.geometry.spectra import defined_mean
from npmoe.reproduce.routing_reflects_geometry.counts.reading import Counts

__all__ = [
    "INDICES",
    "MEASURES",
    "Between",
    "Estimate",
    "Evenness",
    "Links",
    "P",
    "between",
    "evenness",
    "links",
]

Array = np.ndarray

P = 0.8  # the share of MY.5's top-p sets
MEASURES = ("jaccard", "corrected", "weighted_jaccard", "total_variation", "jensen_shannon")
_RANGES = {  # of the measures that have a basic interval
    "weighted_jaccard": (0.0, 1.0),
    "total_variation": (0.0, 1.0),
    "jensen_shannon": (0.0, np.log(2)),
}
INDICES = {
    "CV": cv,
    "max/mean": max_over_mean,
    "entropy/log E": entropy_share,
    "Gini": gini,
    "Jain": jain,
}


class Estimate(NamedTuple):
    """A number and its 95 % interval by a parametric bootstrap, arrays of one shape.

    The value is that of the counts as they are, which sampling biases: total variation of few choices is too large, and
    so on. The interval is the basic one, 2 value - quantiles, within what the number can be: it takes the bias out to
    first order, so that the value may lie outside. What remains is of second order where usage is far from the ends
    of the number's range. At an end it is not: of two kinds that share one usage the interval of total variation stays
    above 0, and `Between.same` says what they would give. Jaccard of top-p sets, also corrected, moves in jumps, whose
    errors a reflection turns the wrong way: it keeps the quantiles.

    The width is a lower bound of the uncertainty: choices are drawn as if they were independent, which tokens of one
    text are not, and the texts stand for no other texts.
    """

    value: Array
    low: Array
    high: Array

    def __repr__(self) -> str:
        return one_line(self)


class Between(NamedTuple):
    """Usage of two kinds of text, mean over pairs, by measure: (L,) each.

    chance : Jaccard of random sets of these very sizes. same : each measure if all kinds of text shared one usage, from
    samples of these sizes. information : nats that the kind of text tells of a choice; information_chance : if labels
    were permuted. sizes (D, L) : experts in the top-p sets.
    """

    measures: dict[str, Estimate]
    same: dict[str, Array]
    chance: Array
    information: Array
    information_chance: Array
    sizes: Array

    def __repr__(self) -> str:
        return one_line(self)


class Evenness(NamedTuple):
    """How evenly experts are used, by name of the index: (D, L) each."""

    indices: dict[str, Estimate]

    def __repr__(self) -> str:
        return one_line(self)


class Links(NamedTuple):
    """How choices in one layer are linked to those in the next.

    sigma (D, L - 1, E) : canonical correlations, descending. chance (D, L - 1, E) : their means, each at its rank, over
    tables of the same margins with independent choices. null_max (D, L - 1) : the largest first one among those.
    ranks (D, L - 1) : the first one that a table would have if choices were independent, and first choices fell on
    other experts than the rest, as the counts say; NaN where first choices are not known.
    """

    sigma: Array
    chance: Array
    null_max: Array
    ranks: Array

    def __repr__(self) -> str:
        return one_line(self)


def between(c: Counts, rng: np.random.Generator, draws: int = 200, p: float = P) -> Between:
    """How alike kinds of text use the experts, at each depth.

    Jaccard of `top_p` sets with its chance for sets of these sizes, the same corrected for it pair by pair, weighted
    Jaccard and total variation of shares, Jensen-Shannon divergence in nats; of all D (D - 1)/2 pairs the mean.

    Raises
    ------
    ValueError : for a single kind of text.

    Examples
    --------
    >>> c = Counts("m", ("a", "b"), (0,), np.array([[[6, 2]], [[2, 6]]]))
    >>> between(c, np.random.default_rng(0)).measures["total_variation"].value
    array([0.5])
    """
    if len(c.domains) < 2:
        raise ValueError(f"expected at least 2 kinds of text to compare in {c.model}; got {', '.join(c.domains)}")
    found, chance = _compared(c.counts, p)
    drawn, _ = _compared(_drawn(c.counts, c.counts, rng, draws), p)
    pooled = np.broadcast_to(c.counts.sum(axis=0), c.counts.shape)
    same, _ = _compared(_drawn(pooled, c.counts, rng, draws), p)
    by_layer = c.counts.swapaxes(0, 1)  # (L, D, E)
    return Between(
        {name: _interval(found[name], drawn[name], _RANGES.get(name)) for name in MEASURES},
        {name: same[name].mean(axis=0) for name in MEASURES},
        chance,
        association.mutual_information(by_layer),
        np.array([association.information_chance(counts) for counts in by_layer]),
        overlap.top_p(c.counts, p).sum(axis=-1),
    )


def _compared(counts: Array, p: float) -> tuple[dict[str, Array], Array]:
    """Each measure's mean over pairs of kinds of text, (..., D, L, E) -> (..., L); and the mean chance of Jaccard."""
    i, j = np.triu_indices(counts.shape[-3], 1)
    sets = overlap.top_p(counts, p)  # (..., D, L, E)
    sizes = sets.sum(axis=-1)
    chance = overlap.jaccard_chance(sizes[..., i, :], sizes[..., j, :], counts.shape[-1])  # (..., pairs, L)
    together = overlap.jaccard(sets[..., i, :, :], sets[..., j, :, :])
    shares = counts / counts.sum(axis=-1, keepdims=True)
    one, two = shares[..., i, :, :], shares[..., j, :, :]
    found = {"jaccard": together, "corrected": overlap.corrected(together, chance)}
    found |= {name: overlap.MEASURES[name].function(one, two) for name in MEASURES[2:]}

    def mean(values: Array) -> Array:
        return defined_mean(values.swapaxes(-1, -2))  # a chance of 1, sets of all experts, has no corrected value

    return {name: mean(values) for name, values in found.items()}, mean(chance)


def _drawn(shares: Array, counts: Array, rng: np.random.Generator, draws: int) -> Array:
    """Counts of as many choices with these shares, as if choices were independent, (D, L, E) -> (B, D, L, E)."""
    shares = shares / shares.sum(axis=-1, keepdims=True)
    size = (check.integer("draws", draws, 2), *counts.shape[:-1])
    return rng.multinomial(counts.sum(axis=-1), shares, size=size)


def _interval(value: Array, drawn: Array, span: tuple[float, float] | None) -> Estimate:
    """Basic interval of the value (...) from draws (B, ...), within the span; without one the draws' quantiles.

    Drawn from the counts, a number errs as the counts' number does of the truth, about: so errors are taken off the
    value. Quantiles themselves would have the bias twice. Source: Davison and Hinkley 1997, section 5.2.
    """
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    if span is None:
        return Estimate(value, low, high)
    return Estimate(value, np.clip(2 * value - high, *span), np.clip(2 * value - low, *span))


def evenness(c: Counts, rng: np.random.Generator, draws: int = 200) -> Evenness:
    """How evenly experts are used, for each kind of text and layer: CV, max/mean, entropy / log E, Gini, Jain.

    Examples
    --------
    >>> c = Counts("m", ("a",), (0,), np.array([[[3, 1]]]))
    >>> evenness(c, np.random.default_rng(0)).indices["max/mean"].value
    array([[1.5]])
    """
    drawn = _drawn(c.counts, c.counts, rng, draws)
    E = c.counts.shape[-1]
    ranges = {
        "CV": (0.0, np.sqrt(E - 1)),
        "max/mean": (1.0, E),
        "entropy/log E": (0.0, 1.0),
        "Gini": (0.0, 1 - 1 / E),
        "Jain": (1 / E, 1.0),
    }
    return Evenness({name: _interval(index(c.counts), index(drawn), ranges[name]) for name, index in INDICES.items()})


def links(c: Counts, rng: np.random.Generator, draws: int = 20) -> Links:
    """The spectrum that links choices in one layer to those in the next, for each kind of text.

    Singular values of D_r^-1/2 (P - r c^T) D_c^-1/2, P the table over its sum, r and c its margins: the canonical
    correlations of correspondence analysis (Benzecri; Greenacre 1984), all within 0..1, whose squares add up to
    chi^2/n. Chance: tables of the same margins drawn by permuted labels.

    A table pairs the j-th choice of a token in one layer with the j-th in the next, and no others: it is one reading of
    "linked", and its sum counts choices, k a token, that are not independent. A table adds up the k ranks: where first
    choices fall on other experts than later ones in both layers, it is linked even if each rank's choices are
    independent. `ranks` is how much of that first choices against the rest give (for k = 2 that is all of it).

    Raises
    ------
    ValueError : where the file had no such tables.

    Examples
    --------
    >>> both = np.array([[[4, 4]] * 2])
    >>> c = Counts("m", ("a",), (0, 1), both[0][None], crosslayer=np.array([[[[4, 0], [0, 4]]]]))
    >>> links(c, np.random.default_rng(0)).sigma.round(6)
    array([[[1., 0.]]])
    """
    if c.crosslayer is None:
        raise ValueError(f"expected tables of {c.model} from one layer to the next; the file has none")
    check.integer("draws", draws, 1)
    N = c.crosslayer
    drawn = np.empty((draws, *N.shape[:3]))  # (B, D, L - 1, E)
    for d, step in np.ndindex(*N.shape[:2]):
        rows, columns = N[d, step].sum(axis=1), N[d, step].sum(axis=0)
        tables = np.array([association.random_table(rows, columns, rng) for _ in range(draws)])
        drawn[:, d, step] = _canonical(tables)
    return Links(_canonical(N), drawn.mean(axis=0), drawn[..., 0].max(axis=0), _by_rank(c))


def _by_rank(c: Counts) -> Array:
    """First canonical correlation of the tables' expectation if each rank's choices were independent, (D, L - 1)."""
    if c.top1 is None:
        return np.full((len(c.domains), len(c.layers) - 1), np.nan)
    rest = c.counts - c.top1
    expected = np.zeros((len(c.domains), len(c.layers) - 1, *c.counts.shape[-1:] * 2))
    for part in (c.top1, rest):
        total = np.maximum(1, part.sum(axis=-1))[:, :-1, None, None]  # k = 1 has no rest
        expected += part[:, :-1, :, None] * part[:, 1:, None, :] / total
    return _canonical(expected)[..., 0]


def _canonical(tables: Array) -> Array:
    """Canonical correlations of contingency tables, (..., E, E) -> (..., E)."""
    joint = tables / tables.sum(axis=(-2, -1), keepdims=True)
    independent = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    # an expert that was never chosen is linked to nothing: its row and column stay 0
    scaled = np.divide(joint - independent, np.sqrt(independent), out=np.zeros_like(joint), where=independent > 0)
    return np.linalg.svd(scaled, compute_uv=False)
