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
norms all (4, E, 8)        the norms over all tokens, at the named steps
layer norms (4, 2, 8)      all norms of the whole layer at the named steps, without and with the router's term
router share (4, n)        of the whole Jacobian at each token, at the named steps
outputs gram (s, s)        of a dense model: inner products of its centred outputs at the snapshots, a trajectory
weights (p,)               trained, in the order of `npmoe.calculus.tree.leaves`

A lean run (of a *train* reading) leaves out what only the primary setting is read for: the named steps and the outputs.

The named steps are 0, 250, half and the end, each no later than the end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.products import matmul
from npmoe.geometry.spectra import cosines, rms_cosine
from npmoe.model.train import fit
from npmoe.probe import function
from npmoe.probe.site import Site, site
from npmoe.reproduce.mixture import Config, batch, build, fresh_targets

__all__ = ["EARLY", "Apart", "apart", "ends", "named_steps", "snapshot_steps", "train"]

Array = np.ndarray
Arrays = dict[str, Array]

EARLY = 250  # "after about 250 iterations" (SC1, section on the norm over training)


def named_steps(config: Config) -> tuple[int, int, int, int]:
    """Untrained, early, half, end."""
    return 0, min(EARLY, config.steps), config.steps // 2, config.steps


def snapshot_steps(config: Config) -> list[int]:
    """The named steps and about `keep` log-spaced ones, ascending."""
    spaced = np.rint(np.geomspace(1, max(config.steps, 1), config.keep)).astype(int)
    return sorted({*named_steps(config), *(int(s) for s in spaced if s <= config.steps)})


def train(config: Config) -> Arrays:
    """Train the model of a config and follow it; the work of one run."""
    data = batch(config)
    wanted, named = set(snapshot_steps(config)), set(named_steps(config))
    series: dict[str, list[Array]] = {}
    at_named: dict[str, list[Array]] = {}
    outputs, last = [], None
    for step, loss, model in fit(build(config), data.x, fresh_targets(config), config.steps, frozen=config.frozen):
        if step not in wanted:
            continue
        here, last = site(model, data.x), model
        found = _snapshot(here, tokens=_tokens(config, step in named))
        _append(series, {**found, "steps": np.array(step), "loss": np.array(loss)})
        if step in named and not config.lean:
            _append(at_named, _named(here))
        if config.E == 1 and not config.lean:
            outputs.append(model.forward(data.x)[0].ravel())
    out = {name: np.stack(values) for name, values in series.items()}
    out |= {name: np.stack(values) for name, values in _spread(at_named, config)}
    if outputs:
        centred = np.stack(outputs) - np.mean(outputs, axis=0)  # (s, n d)
        out["outputs gram"] = matmul(centred, centred.T)
    return out | {"weights": tree.flatten(last)}


def ends(config: Config, trained: Mapping[str, Array]) -> tuple[Site, Site]:
    """The Sites of the untrained and the trained model, from what `train` returned."""
    data, first = batch(config), build(config)
    last = tree.unflatten(trained["weights"], first)
    return site(first, data.x), site(last, data.x)


def _append(series: dict[str, list[Array]], found: Arrays) -> None:
    for name, value in found.items():
        series.setdefault(name, []).append(value)


def _tokens(config: Config, named: bool) -> bool:
    """Whether to take leading values per token: at every snapshot they cost a soft mixture as much as training."""
    return named or (not config.lean and config.k <= 2)


def _spread(at_named: dict[str, list[Array]], config: Config) -> Iterator[tuple[str, list[Array]]]:
    """One entry for each of the four named steps, also where two of them are the same step."""
    steps = named_steps(config)
    distinct = sorted(set(steps))
    for name, values in at_named.items():
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


def _named(here: Site) -> Arrays:
    """What is measured at the four named steps only."""
    experts, whole, share = function.layer_norms(here)
    return {
        "norms all": function.norms(here, over="all"),
        "layer norms": np.stack([experts, whole]),
        "router share": share,
    }


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
