"""Finished runs of SC1, read by name: norms at named steps, shares of energy, components, norms at other losses."""

import numpy as np

from npmoe.geometry.spectra import defined_mean, share
from npmoe.probe.function import NORMS
from npmoe.reproduce.experiment import Run
from npmoe.reproduce.trained import named_steps

__all__ = ["at_loss", "mean_n_eff", "mean_share", "norm", "ranks", "series", "token_share"]

Array = np.ndarray
_WHEN = ("start", "early", "half", "end")


def _at(run: Run, when: str) -> int:
    """Index of the snapshot at a named step: start, early, half or end."""
    steps: list[int] = run["steps"].tolist()
    return steps.index(named_steps(run.config)[_WHEN.index(when)])


def series(run: Run, norm: str) -> Array:
    """A norm over training, mean over experts, (s,); NaN where it was not taken."""
    return defined_mean(run["weight norms"] if norm == "weights" else run["norms"][..., NORMS.index(norm)])


def norm(run: Run, norm: str, when: str, of: str = "experts") -> float:
    """A norm at a named step, of the experts (routed tokens); early or at the end also of experts over all tokens and
    of the whole layer."""
    if of == "experts":
        return float(series(run, norm)[_at(run, when)])
    row, column = ("early", "end").index(when), NORMS.index(norm)
    if of == "experts over all tokens":
        return float(defined_mean(run["norms all"][row, :, column]))
    router = {"layer without the router's term": 0, "layer with the router's term": 1}[of]
    return float(run["layer norms"][row, router, column])


def mean_share(run: Run, when: str, power: int) -> float:
    """Share of sigma^power of the mean Jacobians in the first ten, mean over experts."""
    return float(defined_mean(share(run["mean sigma"][_at(run, when)] ** power, 10)))


def token_share(run: Run, end: int, power: int) -> float:
    """The same of each token's own spectrum, averaged; end 0 untrained, 1 trained."""
    name = "token energy" if power == 2 else "token energy sigma"
    return float(defined_mean(run[name][end, :, min(10, run.config.d) - 1]))


def ranks(run: Run, name: str, weighting: int) -> float:
    """Mean over experts of k90 or cum10 of the routed hidden states; of a thinned model, also over draws."""
    return float(defined_mean(run[name][weighting]))


def mean_n_eff(run: Run) -> float:
    """Mean effective sample size over experts."""
    return float(np.mean(run["n_eff"]))


def at_loss(run: Run, norm: str, loss: float) -> float:
    """A norm where this model's training loss first reaches `loss`, log-linear between the nearest snapshots."""
    losses, values = run["loss"], series(run, norm)
    known = ~np.isnan(values)
    losses, values = losses[known], values[known]
    reached = np.flatnonzero(losses <= loss)
    if not reached.size:
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return float(values[0])
    part = (np.log(losses[i - 1]) - np.log(loss)) / (np.log(losses[i - 1]) - np.log(losses[i]))
    return float(np.exp((1 - part) * np.log(values[i - 1]) + part * np.log(values[i])))
