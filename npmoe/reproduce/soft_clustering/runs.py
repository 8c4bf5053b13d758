"""Finished runs of SC1, read by name: one model (`Run`), and the models of one seed (`Models`)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from npmoe.geometry.spectra import cosines, defined_mean, share
from npmoe.probe.function import NORMS
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.soft_clustering.measure import named_steps

__all__ = ["Models", "Run", "between", "independent_cosines"]

Array = np.ndarray
_WHEN = ("start", "early", "half", "end")


class Run:
    """One finished run: its config and arrays, read by name."""

    def __init__(self, config: Config, arrays: Mapping[str, Array]) -> None:
        self.config, self.arrays = config, arrays
        self._steps = arrays["steps"].tolist()

    def at(self, when: str) -> int:
        """Index of the snapshot at a named step: start, early, half or end."""
        return self._steps.index(named_steps(self.config)[_WHEN.index(when)])

    def series(self, norm: str) -> Array:
        """A norm over training, mean over experts, (s,); NaN where it was not taken."""
        table = self.arrays["weight norms"] if norm == "weights" else self.arrays["norms"][..., NORMS.index(norm)]
        return defined_mean(table)

    def norm(self, norm: str, when: str, of: str = "experts") -> float:
        """A norm at a named step, of the experts (routed tokens), of experts over all tokens, or of the whole layer."""
        if of == "experts":
            return float(self.series(norm)[self.at(when)])
        row, column = _WHEN.index(when), NORMS.index(norm)
        if of == "experts over all tokens":
            return float(defined_mean(self.arrays["norms all"][row, :, column]))
        router = {"layer without the router's term": 0, "layer with the router's term": 1}[of]
        return float(self.arrays["layer norms"][row, router, column])

    def mean_share(self, when: str, power: int) -> float:
        """Share of sigma^power of the mean Jacobians in the first ten, mean over experts."""
        return float(defined_mean(share(self.arrays["mean sigma"][self.at(when)] ** power, 10)))

    def token_share(self, end: int, power: int) -> float:
        """The same of each token's own spectrum, averaged; end 0 untrained, 1 trained."""
        name = "token energy" if power == 2 else "token energy sigma"
        return float(defined_mean(self.arrays[name][end, :, min(10, self.config.d) - 1]))

    def ranks(self, name: str, weighting: int) -> float:
        """Mean over experts of k90 or cum10 of the routed hidden states."""
        return float(defined_mean(self.arrays[name][weighting]))

    def thinned(self, name: str, weighting: int, n_eff: float) -> float:
        """k90 or cum10 of this model's Site thinned to a mean n_eff: between the sizes measured, linear in its log."""
        return between(n_eff, self.arrays["thin n_eff"], self.arrays[f"thin {name}"][:, weighting])

    @property
    def n_eff(self) -> float:
        """Mean effective sample size over experts."""
        return float(np.mean(self.arrays["n_eff"]))

    def at_loss(self, norm: str, loss: float) -> float:
        """A norm where this model's training loss first reaches `loss`, log-linear between the nearest snapshots."""
        losses, values = self.arrays["loss"], self.series(norm)
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


def between(n_eff: float, sizes: Array, values: Array) -> float:
    """A value at a size between those measured, linear in the logarithm of the size."""
    return float(np.interp(np.log(n_eff), np.log(sizes), values))


class Models(NamedTuple):
    """The models of one seed: dense, the mixture ("MoE": top-2), soft, the wide dense control, and the cosines of
    experts taken from as many different seeds."""

    dense: Run
    moe: Run
    soft: Run | None = None
    wide: Run | None = None
    independent_moe: Array | None = None
    independent_soft: Array | None = None


def independent_cosines(runs: list[Run], seed: int) -> Array:
    """Cosines between mean Jacobians of experts of which no two come from one seed: expert e of run seed + e."""
    E = runs[0].config.E
    means = [runs[(seed + e) % len(runs)].arrays["mean jacobians"][1, e] for e in range(E)]
    return cosines(np.stack(means))
