"""What is measured on one trained model of SC1: the training run in, small arrays out.

n tokens, d width, E experts, s snapshots. What was followed while the model trained (steps, loss, norms, mean sigma,
...; see `npmoe.reproduce.trained`) is handed on under its names; to that come:

cosines, mean jacobians, curvature, token sigma, token energy, token energy sigma (2, E, ...)
                           untrained and at the end
pca, k90, ...              see `_routed`;  hidden k90, gaussian k90 (8,) see `_hidden`

A lean run (of a *train* reading) holds what the primary ways of measuring need, and leaves out the rest.
"""

from collections.abc import Mapping

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.geometry.pca import n_eff
from npmoe.geometry.spectra import cosines, defined_mean, k_at, share
from npmoe.probe import function
from npmoe.probe.null import shuffled, thinned
from npmoe.probe.representation import WEIGHTINGS, routed_pca
from npmoe.probe.site import Site
from npmoe.reproduce.mixture import Config, generator
from npmoe.reproduce.soft_clustering.config import Measured
from npmoe.reproduce.trained import ends

__all__ = ["GRID", "HIDDEN", "compute"]

Array = np.ndarray
Arrays = dict[str, Array]

#: Sizes n_eff to which Sites are thinned; other sizes are read off between them.
GRID = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
#: What SC1.6 may mean by the variance of a dense model, in the order of the arrays "hidden k90" and "gaussian k90".
HIDDEN = (
    "x", "before GELU", "after GELU", "output", "x uncentred", "32 rows", "training trajectory",
    "rows of the mean Jacobian",
)  # fmt: skip


def compute(config: Measured, read: Mapping[Config, Mapping[str, Array]]) -> Arrays:
    """Measure the model of a config; the work of one run."""
    model, trained = config.model, read[config.model]
    first, last = ends(model, trained)
    out = {name: array for name, array in trained.items() if name not in ("weights", "outputs gram")}
    out |= _ends(first, last, model)
    out |= _routed(first, last, model)
    if model.E == 1:
        out |= _hidden(model, last, trained.get("outputs gram"))
    return out


def _ends(first: Site, last: Site, config: Config) -> Arrays:
    """What is compared between the untrained model and the trained one."""
    found = []
    for here in (first, last):
        means = function.mean_jacobians(here)
        found.append({"cosines": cosines(means), "mean jacobians": means})
        if config.activation == "gelu":
            found[-1]["curvature"] = function.curvature(here)
        if not config.lean:
            sigma, energy, energy_sigma = function.token_spectra(here)
            found[-1] |= {"token sigma": sigma, "token energy": energy, "token energy sigma": energy_sigma}
    return {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}


def _routed(first: Site, here: Site, config: Config) -> Arrays:
    """Principal components of what each expert is given, and the same for the nulls.

    pca (weighting, E, d); k90, cum10 (weighting, E); shuffled k90, cum10 (draw, weighting): means over experts;
    thin n_eff (g,), thin k90, thin cum10 (g, weighting): the Site thinned to each size of `GRID` that it can give, and
    last itself; for a dense model also thin sigma (2, g), the leading value of the mean Jacobian untrained and trained.
    """
    weightings = WEIGHTINGS[:1] if config.lean else WEIGHTINGS
    values = np.stack([routed_pca(here, weighting).eigenvalues for weighting in weightings])
    out = {"pca": values, "k90": k_at(values), "cum10": share(values, 10), "n_eff": n_eff(here.gates)}
    rng = generator(config.seed, "null")
    draws = [_ranks(shuffled(here, rng), weightings) for _ in range(config.draws)]
    out["shuffled k90"], out["shuffled cum10"] = np.stack(draws, axis=1)

    most = float(n_eff(here.gates).mean())
    sizes = [size for size in GRID if size < most]
    rng = generator(config.seed, "thin")
    ranks, sigma = [], []
    for size in [*sizes, None]:
        sites = [here] if size is None else [thinned(here, size, rng) for _ in range(config.draws)]
        ranks.append(np.mean([_ranks(s, weightings) for s in sites], axis=0))
        if here.E == 1:
            ends = [
                [end] if size is None else [thinned(end, size, rng) for _ in range(config.draws)]
                for end in (first, here)
            ]
            sigma.append([np.mean([_sigma(s) for s in sites]) for sites in ends])
    out["thin n_eff"] = np.array([*sizes, most], float)
    out["thin k90"], out["thin cum10"] = np.stack(ranks, axis=1)
    if here.E == 1:
        out["thin sigma"] = np.array(sigma).T
    return out


def _ranks(here: Site, weightings: tuple[str, ...]) -> Array:
    """Means over experts of k@0.9 and cum-var@10, (2, weighting); experts without tokens are left out."""
    values = np.stack([routed_pca(here, weighting).eigenvalues for weighting in weightings])
    return np.stack([defined_mean(k_at(values)), defined_mean(share(values, 10))])


def _sigma(here: Site) -> float:
    """Mean over experts of the leading value of the mean Jacobian."""
    means = function.mean_jacobians(here)
    return float(np.linalg.norm(means[~np.isnan(means[:, 0, 0])], 2, axis=(1, 2)).mean())


def _hidden(config: Config, here: Site, outputs: Array | None) -> Arrays:
    """k@0.9 of all that "90 % of the variance" of a dense model may be of, and of Gaussians of the same shape.

    `outputs` (s, s): inner products of the outputs over training, of which a trajectory's components are made.
    """
    expert = here.experts[0]  # type: ignore[index]
    y, trace = expert.forward(here.x)
    tables = {"x": here.x}
    if outputs is not None:
        tables |= {
            "before GELU": expert.hidden(here.x),
            "after GELU": trace.a,
            "output": y,
            "x uncentred": here.x,
            "32 rows": here.x[: min(32, here.n)],
            "training trajectory": outputs,
            "rows of the mean Jacobian": function.mean_jacobians(here)[0],
        }
    rng = generator(config.seed, "gaussian")
    k90, null = [], []
    for name, table in tables.items():
        center = name != "x uncentred"
        trajectory = name == "training trajectory"
        k90.append(_k90_of(table) if trajectory else _k90(table, center))
        # a Gaussian as wide as the trajectory's 32,768 columns has the same spectrum as one of 4,096, all but equal
        shape = len(table), min(y.size if trajectory else table.shape[1], 4096)
        null.append(np.mean([_k90(rng.standard_normal(shape), center) for _ in range(config.draws)]))
    return {"hidden k90": np.array(k90), "gaussian k90": np.array(null)}


def _k90(table: Array, center: bool) -> float:
    """k@0.9 of the covariance of the rows of a table (n, any), from the smaller of its two Gram matrices."""
    if center:
        table = table - table.mean(axis=0)
    return _k90_of(matmul(table, table.T) if len(table) < table.shape[1] else matmul(table.T, table))


def _k90_of(gram: Array) -> float:
    """k@0.9 from a Gram matrix."""
    return float(k_at(np.maximum(np.linalg.eigvalsh(gram), 0)))
