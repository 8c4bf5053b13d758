"""What is measured on one model of SC1 while it trains and when it has: config in, small arrays out.

n tokens, d width, E experts, s snapshots. Names of arrays:

steps, loss (s,)           where snapshots were taken, and the training loss there
norms (s, E, 8)            routed tokens, weighted by gates; columns as in `npmoe.probe.function.NORMS`
norms all (4, E, 8)        the same over all tokens, at the named steps
weight norms (s, E)        |W2| |W1|
layer (s, 2)               leading value of the whole layer's mean Jacobian, without and with the router's term
layer norms (4, 2, 8)      all norms of the whole layer at the named steps, without and with the router's term
mean sigma (s, E, r)       singular values of the mean Jacobians
rms cos (s,)               root mean square cosine between the experts' mean Jacobians
load (s, E)                share of tokens that visit each expert
router share (4, n)        of the whole Jacobian at each token, at the named steps
cosines, mean jacobians, curvature, token sigma, token energy, token energy sigma (2, E, ...)
                           untrained and at the end
pca, k90, ...              see `_routed`;  hidden k90, gaussian k90 (8,) see `_hidden`

A lean run (of a *train* reading) holds what the primary ways of measuring need, and leaves out the rest.

The named steps are 0, 250, half and the end, each no later than the end.
"""

from collections.abc import Iterator

import numpy as np

from npmoe.geometry.pca import n_eff
from npmoe.geometry.spectra import cosines, defined_mean, k_at, rms_cosine, share
from npmoe.model.train import fit
from npmoe.probe import function
from npmoe.probe.null import shuffled, thinned
from npmoe.probe.representation import WEIGHTINGS, routed_pca
from npmoe.probe.site import Site, site
from npmoe.reproduce.mixture import Config, batch, build, fresh_targets, generator

__all__ = ["EARLY", "GRID", "HIDDEN", "compute", "named_steps", "snapshot_steps"]

Array = np.ndarray
Arrays = dict[str, Array]

EARLY = 250  # "after about 250 iterations" (SC1, section on the norm over training)
#: Sizes n_eff to which Sites are thinned; other sizes are read off between them.
GRID = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
#: What SC1.6 may mean by the variance of a dense model, in the order of the arrays "hidden k90" and "gaussian k90".
HIDDEN = (
    "x", "before GELU", "after GELU", "output", "x uncentred", "32 rows", "training trajectory",
    "rows of the mean Jacobian",
)  # fmt: skip


def named_steps(config: Config) -> tuple[int, int, int, int]:
    """Untrained, early, half, end."""
    return 0, min(EARLY, config.steps), config.steps // 2, config.steps


def snapshot_steps(config: Config) -> list[int]:
    """The named steps and about `keep` log-spaced ones, ascending."""
    spaced = np.rint(np.geomspace(1, max(config.steps, 1), config.keep)).astype(int)
    return sorted({*named_steps(config), *(int(s) for s in spaced if s <= config.steps)})


def compute(config: Config) -> Arrays:
    """Train the model of a config and measure it; the work of one run."""
    data = batch(config)
    wanted, named = set(snapshot_steps(config)), set(named_steps(config))
    series: dict[str, list[Array]] = {}
    at_named: dict[str, list[Array]] = {}
    outputs, first, last = [], None, None
    for step, loss, model in fit(build(config), data.x, fresh_targets(config), config.steps, frozen=config.frozen):
        if step not in wanted:
            continue
        here = site(model, data.x)
        found = _snapshot(here, tokens=_tokens(config, step in named))
        _append(series, {**found, "steps": np.array(step), "loss": np.array(loss)})
        if step in named and not config.lean:
            _append(at_named, _named(here))
        if config.E == 1 and not config.lean:
            outputs.append(model.forward(data.x)[0].ravel())
        first, last = first or here, here
    assert first is not None
    assert last is not None
    out = {name: np.stack(values) for name, values in series.items()}
    out |= {name: np.stack(values) for name, values in _spread(at_named, config)}
    out |= _ends(first, last, config)
    out |= _routed(first, last, config)
    if config.E == 1:
        out |= _hidden(config, last, outputs)
    return out


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


def _ends(first: Site, last: Site, config: Config) -> Arrays:
    """What is compared between the untrained model and the trained one."""
    series: dict[str, list[Array]] = {}
    for here in (first, last):
        means = function.mean_jacobians(here)
        _append(series, {"cosines": cosines(means), "mean jacobians": means})
        if config.activation == "gelu":
            _append(series, {"curvature": function.curvature(here)})
        if not config.lean:
            sigma, energy, energy_sigma = function.token_spectra(here)
            _append(series, {"token sigma": sigma, "token energy": energy, "token energy sigma": energy_sigma})
    return {name: np.stack(values) for name, values in series.items()}


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


def _hidden(config: Config, here: Site, outputs: list[Array]) -> Arrays:
    """k@0.9 of all that "90 % of the variance" of a dense model may be of, and of Gaussians of the same shape."""
    expert = here.experts[0]  # type: ignore[index]
    y, trace = expert.forward(here.x)
    tables = {"x": here.x}
    if not config.lean:
        tables |= {
            "before GELU": expert.hidden(here.x),
            "after GELU": trace.a,
            "output": y,
            "x uncentred": here.x,
            "32 rows": here.x[: min(32, here.n)],
            "training trajectory": np.stack(outputs),
            "rows of the mean Jacobian": function.mean_jacobians(here)[0],
        }
    rng = generator(config.seed, "gaussian")
    k90, null = [], []
    for name, table in tables.items():
        center = name != "x uncentred"
        k90.append(_k90(table, center))
        # a Gaussian as wide as the trajectory's 32,768 columns has the same spectrum as one of 4,096, all but equal
        shape = len(table), min(table.shape[1], 4096)
        null.append(np.mean([_k90(rng.standard_normal(shape), center) for _ in range(config.draws)]))
    return {"hidden k90": np.array(k90), "gaussian k90": np.array(null)}


def _k90(table: Array, center: bool) -> float:
    """k@0.9 of the covariance of the rows of a table (n, any), from the smaller of its two Gram matrices."""
    if center:
        table = table - table.mean(axis=0)
    gram = table @ table.T if len(table) < table.shape[1] else table.T @ table
    return float(k_at(np.maximum(np.linalg.eigvalsh(gram), 0)))
