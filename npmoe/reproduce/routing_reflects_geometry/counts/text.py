"""The answers of a file of counts in words: a table a model, and what they say of the paper's claims."""

from pathlib import Path
from typing import Any

import numpy as np

from npmoe.reproduce.routing_reflects_geometry.counts.answers import (
    Between,
    Estimate,
    Evenness,
    Links,
    P,
    between,
    evenness,
    links,
)
from npmoe.reproduce.routing_reflects_geometry.counts.reading import Counts, read

__all__ = ["report", "table"]


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
on small differences: there read total variation, not Jaccard. MY.5 compares texts that several authors wrote on one
question: counts keep neither questions nor authors, so nothing here is for or against it. The overlap of two tokens is
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
