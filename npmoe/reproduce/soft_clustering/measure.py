"""What is measured on the trained models of SC1: training runs in, small arrays out.

n tokens, d width, E experts, s snapshots. What was followed while the model trained (steps, loss, norms, mean sigma,
...; see `npmoe.reproduce.trained`) is handed on under its names; to that come:

cosines, mean jacobians, curvature, token sigma, token energy, token energy sigma (2, E, ...)
                           untrained and at the end
pca, k90, ...              see `_routed`;  hidden k90, gaussian k90 (8,) see `_hidden`

A lean run (of a *train* reading) holds what the primary ways of measuring need, and leaves out the rest.

A model thinned to the n_eff of another (`thin`) has n_eff (1,), the one aimed at; k90, cum10 (weighting,), means over
experts and draws; and a dense one sigma (2,), the leading value of its mean Jacobian, untrained and trained.
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
from npmoe.reproduce.soft_clustering.config import Measured, Thinned
from npmoe.reproduce.trained import ends

__all__ = ["GRID", "HIDDEN", "compute", "thin"]

Array = np.ndarray
Arrays = dict[str, Array]

#: Sizes to which the dense model is thinned for figure S1: plain Gaussian samples.
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
    out |= _routed(last, model)
    if model.E == 1:
        out |= _hidden(model, last, trained.get("outputs gram"))
    if model.E == 1 and not model.lean:
        out |= _by_size(last, model)
    return out


def thin(config: Thinned, read: Mapping[Config, Mapping[str, Array]]) -> Arrays:
    """Measure a model on as few effective tokens as another has; the work of one run."""
    model = config.model
    first, last = ends(model, read[model])
    target = float(n_eff(ends(config.to, read[config.to])[1].gates).mean())
    # of two mixtures the sparser may by chance have more: then nothing is left out
    target = min(target, float(n_eff(last.gates).mean()))
    rng = generator(model.seed, "thin")
    kept = [thinned(last, target, rng) for _ in range(model.draws)]
    k90, cum10 = np.mean([_ranks(site, _weightings(model)) for site in kept], axis=0)
    found = {"n_eff": np.array([target]), "k90": k90, "cum10": cum10}
    if model.E == 1 and not model.lean:
        sites = ([thinned(first, target, rng) for _ in range(model.draws)], kept)
        found["sigma"] = np.array([np.mean([_sigma(site) for site in end]) for end in sites])
    return found


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


def _weightings(config: Config) -> tuple[str, ...]:
    return WEIGHTINGS[:1] if config.lean else WEIGHTINGS


def _routed(here: Site, config: Config) -> Arrays:
    """Principal components of what each expert is given, and the same with shuffled gates.

    pca (weighting, E, d); k90, cum10 (weighting, E); of a mixture shuffled k90, cum10 (draw, weighting), means over
    experts.
    """
    weightings = _weightings(config)
    values = np.stack([routed_pca(here, weighting).eigenvalues for weighting in weightings])
    out = {"pca": values, "k90": k_at(values), "cum10": share(values, 10), "n_eff": n_eff(here.gates)}
    if here.E > 1:
        rng = generator(config.seed, "null")
        draws = [_ranks(shuffled(here, rng), weightings) for _ in range(config.draws)]
        out["shuffled k90"], out["shuffled cum10"] = np.stack(draws, axis=1)
    return out


def _by_size(here: Site, config: Config) -> Arrays:
    """k@0.9 of a dense model's inputs by their number, (g,) twice: sizes of `GRID` that there are, and all of them."""
    rng = generator(config.seed, "thin", part=1)
    sizes = [size for size in GRID if size < here.n]
    k90 = [np.mean([_ranks(thinned(here, size, rng), WEIGHTINGS[:1])[0, 0] for _ in range(config.draws)])
           for size in sizes]  # fmt: skip
    return {
        "sizes": np.array([*sizes, here.n], float),
        "k90 by size": np.array([*k90, _ranks(here, WEIGHTINGS[:1])[0, 0]]),
    }


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
        # where a Gaussian is large its k@0.9 hardly varies, and a draw takes long
        draws = config.draws if min(shape) <= 128 else min(config.draws, 2)
        null.append(np.mean([_k90(rng.standard_normal(shape), center) for _ in range(draws)]))
    return {"hidden k90": np.array(k90), "gaussian k90": np.array(null)}


def _k90(table: Array, center: bool) -> float:
    """k@0.9 of the covariance of the rows of a table (n, any), from the smaller of its two Gram matrices."""
    if center:
        table = table - table.mean(axis=0)
    return _k90_of(matmul(table, table.T) if len(table) < table.shape[1] else matmul(table.T, table))


def _k90_of(gram: Array) -> float:
    """k@0.9 from a Gram matrix."""
    return float(k_at(np.maximum(np.linalg.eigvalsh(gram), 0)))
