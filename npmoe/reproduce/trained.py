"""A controlled mixture trained once for all papers: what is followed while it trains, and its weights at the end.

A paper's own measures are runs that read this one (`ends` rebuilds the models from it), so that two papers which ask
for the same model share one training. `Apart` is a run made of several others: experts of which no two ever met.

n tokens, d width, E experts, s snapshots, p weights. Arrays of a training run by name:

steps, loss (s,)           where snapshots were taken, and the training loss there
norms (s, E, 8)            routed tokens, weighted by gates; columns as in `npmoe.probe.function.NORMS`
weight norms (s, E)        |W2| |W1|
layer (s, 2)               leading value of the whole layer's mean Jacobian, without and with the router's term
mean sigma (s, E, r)       singular values of the mean Jacobians
rms cos (s,)               root mean square cosine between the experts' mean Jacobians
load (s, E)                share of tokens that visit each expert
norms all (2, E, 8)        of a top-k mixture: the norms over all tokens, at steps 250 and the end
layer norms (2, 2, 8)      of a top-k mixture: all norms of the whole layer there, without and with the router's term
router share (4, n)        of a mixture: the router's share of the whole Jacobian at each token, at the named steps
outputs gram (s, s)        of a dense model: inner products of its centred outputs at the snapshots, a trajectory
weights (p,)               trained, in the dtype of training and the order of `npmoe.calculus.tree.leaves`

A lean run (of a *train* reading) leaves out what only the primary setting is read for: all steps but the named ones,
"norms all", "layer norms", "router share" and "outputs gram".

The named steps are 0, 250, half and the end, each no later than the end. Leading values per token, the only norms that
are not closed forms, are taken there and at every third of the other steps; they are NaN elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.products import matmul
from npmoe.geometry.spectra import cosines, rms_cosine
from npmoe.model.train import fit
from npmoe.probe import function
from npmoe.probe.site import Site, site
from npmoe.reproduce.mixture import Config, batch, build, feed

__all__ = ["EARLY", "Apart", "apart", "ends", "named_steps", "snapshot_steps", "train"]

Array = np.ndarray
Arrays = dict[str, Array]

EARLY = 250  # "after about 250 iterations" (SC1, section on the norm over training)


def named_steps(config: Config) -> tuple[int, int, int, int]:
    """Untrained, early, half, end."""
    return 0, min(EARLY, config.steps), config.steps // 2, config.steps


def snapshot_steps(config: Config) -> list[int]:
    """The named steps and about `keep` log-spaced ones, ascending; of a lean run the named ones."""
    return sorted({*named_steps(config), *_spaced(config)})


def _spaced(config: Config) -> list[int]:
    if config.lean:
        return []
    spaced = np.unique(np.rint(np.geomspace(1, max(config.steps, 1), config.keep)).astype(int))
    return [int(step) for step in spaced if step <= config.steps]


def _token_steps(config: Config) -> set[int]:
    """Where leading values per token are taken: of a soft mixture they cost as much as its training."""
    return {*named_steps(config), *(_spaced(config)[::3] if config.k <= 2 else ())}


def train(config: Config) -> Arrays:
    """Train the model of a config and follow it; the work of one run."""
    x, y = feed(config)
    seen = x.astype(np.float64)
    wanted, named, tokens = set(snapshot_steps(config)), set(named_steps(config)), _token_steps(config)
    series: dict[str, list[Array]] = {}
    at_named: dict[str, list[Array]] = {}
    at_late: dict[str, list[Array]] = {}
    outputs, last = [], None
    untrained = tree.cast(build(config), config.dtype)
    for step, loss, model in fit(untrained, x, y, config.steps, frozen=config.frozen):
        if step not in wanted:
            continue
        last = model
        here = site(tree.cast(model, np.float64), seen)
        found = _snapshot(here, tokens=step in tokens)
        _append(series, {**found, "steps": np.array(step), "loss": np.array(loss)})
        if step in named and not config.lean and config.E > 1:
            _append(at_named, {"router share": function.router_share(here)})
        if step in (named_steps(config)[1], config.steps) and not config.lean and config.k < config.E:
            _append(at_late, _over_all(here))
        if config.E == 1 and not config.lean:
            outputs.append(tree.cast(model, np.float64).forward(seen)[0].ravel())
    out = {name: np.stack(values) for name, values in series.items()}
    out |= {name: np.stack(values) for name, values in _spread(at_named, named_steps(config))}
    out |= {name: np.stack(values) for name, values in _spread(at_late, named_steps(config)[1::2])}
    if outputs:
        centred = np.stack(outputs) - np.mean(outputs, axis=0)  # (s, n d)
        out["outputs gram"] = matmul(centred, centred.T)
    return out | {"weights": tree.flatten(last)}


def ends(config: Config, trained: Mapping[str, Array]) -> tuple[Site, Site]:
    """The Sites of the untrained and the trained model, from what `train` returned."""
    data, first = batch(config), build(config)
    last = tree.unflatten(trained["weights"].astype(np.float64), first)
    return site(first, data.x), site(last, data.x)


def _append(series: dict[str, list[Array]], found: Arrays) -> None:
    for name, value in found.items():
        series.setdefault(name, []).append(value)


def _spread(found: dict[str, list[Array]], steps: Sequence[int]) -> Iterator[tuple[str, list[Array]]]:
    """One entry for each of these steps, also where two of them are the same step."""
    distinct = sorted(set(steps))
    for name, values in found.items():
        yield name, [values[distinct.index(step)] for step in steps]


def _snapshot(here: Site, tokens: bool) -> Arrays:
    """What is followed over training."""
    norms, means = function.survey(here, tokens=tokens)
    live = ~np.isnan(means[:, 0, 0])
    sigma = np.full((here.E, min(means.shape[1:])), np.nan)
    sigma[live] = np.linalg.svd(means[live], compute_uv=False)
    layer = np.einsum("e,eod->od", here.gates[:, live].sum(axis=0), means[live]) / here.n
    whole = layer if here.router is None else here.router.moe.mean_jacobian(here.x)
    return {
        "norms": norms,
        "weight norms": function.weight_norms(here),
        "layer": np.linalg.norm(np.stack([layer, whole]), 2, axis=(1, 2)),
        "mean sigma": sigma,
        "rms cos": np.array(rms_cosine(cosines(means))),
        "load": np.array([len(here.rows(e)) for e in range(here.E)]) / here.n,
    }


def _over_all(here: Site) -> Arrays:
    """Norms of a top-k mixture that are not an expert's over its own tokens."""
    experts, whole, _ = function.layer_norms(here)
    return {"norms all": function.norms(here, over="all"), "layer norms": np.stack([experts, whole])}


# ---- experts that never met ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Apart:
    """Expert e of the e-th of these training runs, which are of different seeds: what chance alone aligns."""

    runs: tuple[Config, ...]

    def reads(self) -> tuple[Config, ...]:
        """The training runs."""
        return self.runs

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"independent experts of {', '.join(dict.fromkeys(run.label for run in self.runs))}"


def apart(config: Apart, read: Mapping[Config, Mapping[str, Array]]) -> Arrays:
    """The trained experts' mean Jacobians, (E, d, d)."""
    means = [function.mean_jacobians(ends(run, read[run])[1])[e] for e, run in enumerate(config.runs)]
    return {"mean jacobians": np.stack(means)}
