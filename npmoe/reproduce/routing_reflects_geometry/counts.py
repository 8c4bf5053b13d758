"""What counts of choices alone can answer: how often each expert of a real model was chosen for each kind of text.

D kinds of text (domains), L layers, E experts, k chosen a token, B draws of a bootstrap. A file is an .npz with

    domains                (D,) names            layers               (L,) their numbers in the model
    <model>_counts         (D, L, E) choices     <model>_counts_top1  (D, L, E) first choices
    <model>_crosslayer     (D, L - 1, E, E) the j-th choice in one of these layers with the j-th in the next

for one or more models; the last two may be missing. Counts know kinds of text, not tokens: nothing here is the overlap
of two models on one token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.words import one_line
from npmoe.files import read_arrays
from npmoe.geometry import association, overlap
from npmoe.geometry.evenness import cv, entropy_share, gini, jain, max_over_mean
from npmoe.geometry.spectra import defined_mean

__all__ = [
    "Between",
    "Counts",
    "Estimate",
    "Evenness",
    "Links",
    "between",
    "evenness",
    "links",
    "read",
    "report",
    "table",
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
_MOST = 2**30  # bytes of counts
_ENDINGS = ("_counts_top1", "_counts", "_crosslayer")  # the longer first: one ends as the other begins


@dataclass(frozen=True)
class Counts:
    """One model's counts: (D, L, E), first choices likewise or None, tables (D, L - 1, E, E) or None.

    k is None where the file has no first choices: it cannot be told from sums alone.
    """

    model: str
    domains: tuple[str, ...]
    layers: tuple[int, ...]
    counts: Array
    top1: Array | None = None
    crosslayer: Array | None = None
    k: int | None = None

    def __repr__(self) -> str:
        return one_line(self)


# Reading


def read(path: Path | str) -> tuple[Counts, ...]:
    """All models of a file of counts, checked against each other.

    A token has one first choice and k choices, so the sums over experts of `counts` and `counts_top1` give k as their
    ratio, which must be one whole number for every kind of text and layer. Layers must agree in their sums, as they saw
    the same tokens; kinds of text may differ. No expert is chosen twice by a token. A table's margins are the counts.

    Raises
    ------
    FileNotFoundError : where there is no such file.
    ValueError : says file, key, what was expected and what came.

    Examples
    --------
    >>> read("nowhere.npz")
    Traceback (most recent call last):
    FileNotFoundError: expected a file of counts (.npz) at nowhere.npz; there is none
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of counts (.npz) at {path}; there is none")
    arrays = read_arrays(path, most=_MOST)
    models = sorted({key.removesuffix("_counts") for key in arrays if key.endswith("_counts")})
    known = {"domains", "layers", *(model + ending for model in models for ending in _ENDINGS)}
    foreign = sorted(set(arrays) - known)
    if foreign:
        raise ValueError(f"{path}: expected the keys {', '.join(sorted(known))}; got also {_few(foreign)}")
    for key in ("domains", "layers"):
        if key not in arrays:
            raise ValueError(f"{path}: expected the key {key}; got {_few(arrays)}")
    if not models:
        raise ValueError(f"{path}: expected a key <model>_counts; got {_few(arrays)}")
    domains, layers = _axis(path, "domains", arrays["domains"], "U"), _axis(path, "layers", arrays["layers"], "iu")
    return tuple(_model(path, arrays, model, tuple(map(str, domains)), tuple(map(int, layers))) for model in models)


def _few(keys: Iterable[str]) -> str:
    """Some keys of a file, which may have any number of any length."""
    found = sorted(keys)
    return ", ".join(key[:60] for key in found[:5]) + " and more" * (len(found) > 5) or "an empty file"


def _axis(path: Path, key: str, array: Array, kinds: str) -> Array:
    what = "names" if kinds == "U" else "whole numbers"
    if array.ndim != 1 or array.dtype.kind not in kinds or not len(array) or len(np.unique(array)) < len(array):
        raise ValueError(
            f"{path}: expected {key} to be different {what} along one axis; "
            f"got {array.dtype} of shape {array.shape}: {array.ravel()[:8].tolist()}"
        )
    return array


def _model(
    path: Path, arrays: dict[str, Array], model: str, domains: tuple[str, ...], layers: tuple[int, ...]
) -> Counts:
    D, L = len(domains), len(layers)
    counts = _whole(path, f"{model}_counts", arrays[f"{model}_counts"], (D, L, "E"))
    E = counts.shape[-1]

    def optional(ending: str, shape: tuple[int | str, ...]) -> Array | None:
        key = model + ending
        return _whole(path, key, arrays[key], shape) if key in arrays else None

    top1, tables = optional("_counts_top1", (D, L, E)), optional("_crosslayer", (D, L - 1, E, E))
    sums = counts.sum(axis=-1)  # (D, L)
    if not (sums == sums[:, :1]).all() or not sums.all():
        d = int(np.argwhere((sums != sums[:, :1]).any(axis=1) | (sums == 0).any(axis=1))[0, 0])
        raise ValueError(
            f"{path}: expected {model}_counts with one positive sum over experts for all layers of a kind of text; "
            f"got {sums[d].tolist()} for {domains[d]}"
        )
    k = None if top1 is None else _choices(path, model, counts, top1)
    if tables is not None:
        margins = (("rows", 3, counts[:, :-1]), ("columns", 2, counts[:, 1:]))
        for name, axis, expected in margins:
            got = tables.sum(axis=axis)
            if not (got == expected).all():
                d, step, e = np.argwhere(got != expected)[0]
                raise ValueError(
                    f"{path}: expected {model}_crosslayer whose {name} add up to {model}_counts; got "
                    f"{got[d, step, e]} for {expected[d, step, e]} at {domains[d]}, step {step}, expert {e}"
                )
    return Counts(model, domains, layers, counts, top1, tables, k)


def _whole(path: Path, key: str, array: Array, shape: tuple[int | str, ...]) -> Array:
    """`array` as non-negative whole numbers of that shape, in which a string stands for any length but 0."""
    fits = array.ndim == len(shape) and all(
        got > 0 if isinstance(want, str) else want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{path}: expected {key} of shape ({', '.join(map(str, shape))}); got {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected {key} to be counts, integers; got {array.dtype}")
    if (array < 0).any():
        where = tuple(int(i) for i in np.argwhere(array < 0)[0])
        raise ValueError(f"{path}: expected {key} to be non-negative; got {array[where]} at {where}")
    return array.astype(np.int64)


def _choices(path: Path, model: str, counts: Array, top1: Array) -> int:
    """k, the ratio of choices to first choices."""
    sums, tokens = counts.sum(axis=-1), top1.sum(axis=-1)  # (D, L)
    ratios = np.divide(sums, tokens, out=np.full(sums.shape, np.nan), where=tokens > 0)
    k = ratios.flat[0]
    if not (ratios == k).all() or k != np.rint(k):
        odd = next(r for r in ratios.flat if r != k or r != np.rint(r))
        raise ValueError(
            f"{path}: expected {model}_counts to add up to a whole number k of times {model}_counts_top1, the same "
            f"everywhere; got {odd:.6g} beside {k:.6g}"
        )
    for name, wrong in (
        (f"{model}_counts_top1 to be no more than {model}_counts", top1 > counts),
        (f"{model}_counts to be no more than there are tokens", counts > tokens[..., None]),
    ):
        if wrong.any():
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"{path}: expected {name}; got {top1[where]} first choices, {counts[where]} choices, "
                f"{tokens[where[:2]]} tokens at {where}"
            )
    return int(k)


# Answers


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


# Text


def _with(e: Estimate, at: Any, digits: int = 3) -> str:
    return f"{e.value[at]:.{digits}f} [{e.low[at]:.{digits}f}, {e.high[at]:.{digits}f}]"


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


_HEAD = "[95 %, a lower bound of the width; bias taken out to first order only, so a value may lie outside]"


def table(c: Counts, rng: np.random.Generator) -> list[str]:
    """One model's answers as lines of text."""
    D, _, E = c.counts.shape
    first = f"{c.model}: {E} experts, " + ("k not known (no first choices)" if c.k is None else f"top {c.k}")
    choices = c.counts.sum(axis=-1)[:, 0]
    size = f"{choices.min():,}" if np.ptp(choices) == 0 else f"{choices.min():,} to {choices.max():,}"
    lines = [f"{first}; {size} choices a layer for each of {', '.join(c.domains)}"]
    if D > 1:
        lines += ["", f"Usage by two kinds of text, mean over {D * (D - 1) // 2} pairs {_HEAD}"]
        lines += _between_lines(c, between(c, rng))
    lines += ["", f"Evenness of usage {_HEAD}", *_evenness_lines(c, evenness(c, rng))]
    if c.crosslayer is not None and len(c.layers) > 1:
        lines += ["", "Links between choices, canonical correlations", *_links_lines(c, links(c, rng))]
    return lines


def _between_lines(c: Counts, b: Between) -> list[str]:
    names = {"weighted_jaccard": "weighted Jaccard", "total_variation": "TV", "jensen_shannon": "JS (nats)"}
    head = ("layer", "experts", f"Jaccard top-{P}", "chance", "corrected", *names.values(), "information", "chance")
    rows: list[tuple[str, ...]] = [head]
    for i, layer in enumerate(c.layers):
        m = b.measures
        sizes = f"{b.sizes[:, i].min()}-{b.sizes[:, i].max()}"
        cells = [_with(m["jaccard"], i), f"{b.chance[i]:.3f}", _with(m["corrected"], i)]
        cells += [_with(m[name], i, 4) for name in names]
        rows.append((str(layer), sizes, *cells, f"{b.information[i]:.4f}", f"{b.information_chance[i]:.5f}"))
        same = [f"{b.same[name][i]:.5f}" for name in ("jaccard", "corrected", *names)]
        rows.append(("", "if alike", same[0], "", *same[1:], "", ""))
    return _lines(rows)


def _evenness_lines(c: Counts, b: Evenness) -> list[str]:
    rows: list[tuple[str, ...]] = [("layer", "text", *b.indices)]
    for i, layer in enumerate(c.layers):
        for d, domain in enumerate(c.domains):
            rows.append((str(layer), domain, *(_with(e, (d, i)) for e in b.indices.values())))
    return _lines(rows)


def _links_lines(c: Counts, found: Links) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("layers", "text", "first five", "by ranks", "chance, first", "largest of draws", "chi^2/n", "chance")
    ]
    for i in range(len(c.layers) - 1):
        for d, domain in enumerate(c.domains):
            sigma, chance = found.sigma[d, i], found.chance[d, i]
            rows.append(
                (
                    f"{c.layers[i]} to {c.layers[i + 1]}",
                    domain,
                    " ".join(f"{s:.3f}" for s in sigma[:5]),
                    f"{found.ranks[d, i]:.3f}",
                    f"{chance[0]:.4f}",
                    f"{found.null_max[d, i]:.4f}",
                    f"{(sigma**2).sum():.3f}",
                    f"{(chance**2).sum():.5f}",
                )
            )
    return _lines(rows)


SAYS = """\
What this says of MY.5 and MY.7, and what it does not. These are counts of choices by kind of text. They show how far
one model's usage differs between kinds of text, by depth, and whether that is more than sampling gives ("if alike": all
kinds with one usage, samples of these sizes) and less than unrelated sets of these sizes would ("chance"). MY.7 says
that deep layers use nearly the same experts for unrelated inputs. Sums over a kind of text hide how far single texts
differ, so a high overlap here agrees with MY.7 and does not show it. The other way round it holds: total variation and
Jensen-Shannon are convex, so single texts, or tokens, of two kinds differ on average at least as much as their sums do,
and a low overlap here counts against MY.7 in that model and layer. Which layers are deep is the model's affair: layer
15 is the last of OLMoE's 16, and the middle of Mixtral's 32. A top-p set of experts that are used almost equally hangs
on small differences: there read total variation, not Jaccard. MY.5 is about two models on one question: counts keep
neither questions nor tokens, and a matching of two models' experts cannot be fitted on one half of the tokens and
scored on the other, so nothing here is for or against it. The overlap of two tokens, or of one token in two models, is
never measured. Values are those of the counts, which sampling biases (total variation, Jensen-Shannon, CV, Gini and
max/mean upwards, weighted Jaccard downwards); intervals have that bias taken out to first order, so that a value may
lie outside its own (but for Jaccard of top-p sets, which moves in jumps: there it is the plain quantiles). First order
is not enough where kinds of text are all but alike (there read the value beside "if alike", not the interval), nor
where usage is all but even. The widths are lower bounds of the uncertainty: choices are drawn as if independent, which
the tokens of one text, and the k choices of a token, are not; and there is one sample of each kind of text. Links pair
the j-th choice with the j-th choice only, between the layers named, which need not be neighbours in the model."""


def report(path: Path | str, seed: int = 0) -> str:
    """What a file of counts answers, as text: a table a model, then what that says of MY.5 and MY.7 and what not.

    Raises
    ------
    FileNotFoundError, ValueError : as `read`.
    """
    models = read(path)
    streams = np.random.default_rng(seed).spawn(len(models))
    blocks = ["\n".join(table(c, rng)) for c, rng in zip(models, streams, strict=True)]
    return "\n\n".join([*blocks, SAYS])
