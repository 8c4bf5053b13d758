"""The figures of SC1 redrawn, and three of ours, as data: what to draw in the grammar of `npmoe.report`, not how.

The paper's panels are redrawn by what its text says of them: 1A and 1B norms over training, 1C cosines, 1D spectra, 2A
and 2B principal components of dense and experts, 3A to 3D soft against top-2. Their layout is ours.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from npmoe.geometry.spectra import cosines, defined_mean, energy, marchenko_pastur_k, off_diagonal
from npmoe.reproduce import draw
from npmoe.reproduce.draw import Mark
from npmoe.reproduce.experiment import Models, Results, Run, Trial
from npmoe.reproduce.soft_clustering import runs
from npmoe.reproduce.soft_clustering.axes import AXES, MIXTURES, SETTINGS, role_in
from npmoe.reproduce.trained import named_steps

__all__ = ["figures"]

Array = np.ndarray
_NAMES = {"dense": "dense", "top2": "top-2 experts", "soft": "soft experts", "wide": "dense, as wide as all experts"}
_STEPS = {"label": "training step", "scale": "log"}


def figures(results: Results, plan: Trial) -> dict[str, dict[str, Any]]:
    """Every figure that the finished runs allow, by file name."""
    shown = (*_NAMES, "dense at the n_eff of top2", "dense at the n_eff of soft")
    if not all(plan.found(results, role, seed) for role in shown for seed in plan.counted):
        return {}  # a call for a few claims alone has not run what the figures show
    apart = [plan.found(results, "independent top2", seed) for seed in plan.counted]
    seeds = plan.seeds_of(results, shown)
    found = {
        "1A": _norms_dense(seeds),
        "1B": _norms_moe(seeds),
        "1C": _cosines(seeds, apart),
        "1D": _spectra(seeds),
        "2A": _components_dense(seeds),
        "2B": _components(seeds, "2B", ("top2",), "What experts see"),
        "3A": _components(seeds, "3A", ("soft",), "What experts see: soft"),
        "3B": _components(seeds, "3B", ("top2", "soft"), "What experts see: top-2 and soft"),
        "3C": _matrix(seeds, "3C", "soft"),
        "3D": _matrix(seeds, "3D", "top2"),
        "sample-size": _sample_size(results, plan, seeds),
        "router-share": _router_share(seeds),
        "curvature": _curvature(seeds),
    }
    return {name: figure for name, figure in found.items() if figure}


def _runs(seeds: list[Models], role: str) -> list[Run]:
    return [m[role] for m in seeds]


def _over_training(seeds: list[Models], role: str, norm: str, name: str | None = None) -> Mark:
    """A norm over training as a band over seeds."""
    every = _runs(seeds, role)
    steps = every[0]["steps"]
    values = np.stack([runs.series(run, norm) for run in every])
    known = (steps > 0) & ~np.isnan(values).any(axis=0)
    return draw.band(name or _NAMES[role], role, steps[known], values[:, known])


def _loss(seeds: list[Models], roles: Iterable[str]) -> Mark:
    marks = []
    for role in roles:
        every = _runs(seeds, role)
        steps = every[0]["steps"]
        values = np.stack([run["loss"] for run in every])
        marks.append(draw.band(_NAMES[role], role, steps[steps > 0], values[:, steps > 0]))
    return draw.panel("training loss", _STEPS, draw.axis("mean squared error", "log"), marks)


def _norms_dense(seeds: list[Models]) -> Mark:
    roles = ("dense", "wide")
    panels = [
        draw.panel(title, _STEPS, draw.axis(label, "log"), [_over_training(seeds, role, norm) for role in roles])
        for title, label, norm in (
            ("mean Jacobian (primary)", "leading singular value", "sigma mean"),
            ("per token, mean", "leading singular value", "sigma token"),
            ("all tokens stacked", "leading singular value", "sigma stack"),
        )
    ]
    return draw.figure(
        "1A",
        "The dense model's Jacobian norm over training",
        "Three interpretations of 'the norm', and the training loss. The paper's norm grows from about 5 "
        "to over 50. The control is a dense model with as many hidden units as all experts together.",
        "paper figure 1A",
        ("SC1.1",),
        [*panels, _loss(seeds, roles)],
    )


def _norms_moe(seeds: list[Models]) -> Mark:
    step = named_steps(seeds[0]["top2"].config)[1]
    early = {"kind": "vline", "x": float(step), "name": f"step {step}"}
    mean = [_over_training(seeds, role, "sigma mean") for role in ("top2", "soft", "dense")]
    steps = seeds[0]["top2"]["steps"]
    layer = [
        draw.band(name, role, steps[steps > 0], np.stack([m["top2"]["layer"][steps > 0, i] for m in seeds]))
        for i, (name, role) in enumerate([("without the router's term", "experts"), ("with it", "other")])
    ]
    token = [_over_training(seeds, role, "sigma token") for role in ("top2", "dense")]
    value = draw.axis("leading singular value", "log")
    return draw.figure(
        "1B",
        "The mixture's Jacobian norm over training",
        "Does the norm stop growing where the mixture begins to interpolate? Compare it with the loss. The paper "
        "reports a plateau after about 250 steps.",
        "paper figure 1B",
        ("SC1.2",),
        [
            draw.panel("experts' mean Jacobians (primary)", _STEPS, value, [*mean, early]),
            draw.panel("experts, per token", _STEPS, value, [*token, early]),
            draw.panel("whole top-2 layer, mean Jacobian", _STEPS, value, [*layer, early]),
            _loss(seeds, ("top2", "soft", "dense", "wide")),
        ],
    )


def _cosines(seeds: list[Models], apart: list[Run | None]) -> Mark:
    groups = [
        ("trained", "top2", np.concatenate([off_diagonal(m["top2"]["cosines"][1]) for m in seeds])),
        ("untrained", "untrained", np.concatenate([off_diagonal(m["top2"]["cosines"][0]) for m in seeds])),
    ]
    if all(apart):
        never_met = [off_diagonal(cosines(run["mean jacobians"])) for run in apart if run is not None]
        groups.append(("experts of different seeds", "null", np.concatenate(never_met)))
    limit = 1.05 * max(float(np.nanmax(np.abs(values))) for _, _, values in groups)
    edges = np.linspace(-limit, limit, 41)
    bounds = [{"kind": "vline", "x": x, "name": "the paper's range"} for x in (-0.01, 0.015)]
    rms = []
    for role in ("top2", "soft"):
        steps = seeds[0][role]["steps"]
        values = np.stack([run["rms cos"][steps > 0] for run in _runs(seeds, role)])
        rms.append(draw.band(_NAMES[role], role, steps[steps > 0], values))
    chance = {"kind": "level", "name": "1/d, two random matrices", "role": "null", "y": 1 / seeds[0]["top2"].config.d}
    return draw.figure(
        "1C",
        "Cosines between the experts' mean Jacobians",
        "All pairs of top-2 experts of all seeds, trained, untrained, and experts that never met. Near zero is what "
        "two random matrices give.",
        "paper figure 1C",
        ("SC1.3", "SC1.9"),
        [
            draw.panel(
                "all pairs",
                draw.axis("cosine"),
                draw.axis("pairs"),
                [*(draw.histogram(name, role, values, edges) for name, role, values in groups), *bounds],
            ),
            draw.panel("over training", _STEPS, draw.axis("root mean square cosine", "log"), [*rms, chance]),
        ],
    )


def _spectra(seeds: list[Models]) -> Mark:
    r = seeds[0]["top2"]["mean sigma"].shape[-1]
    index = np.arange(1, r + 1)

    def band(role: str, snapshot: int, power: int | None, name: str, style: str) -> Mark:
        values = []
        for run in _runs(seeds, role):
            sigma = run["mean sigma"][snapshot]  # (E, r)
            values.append(defined_mean((sigma if power is None else energy(sigma**power)).T))
        return draw.band(name, style, index, np.stack(values))

    def bands(power: int | None) -> list[Mark]:
        return [
            *(band(role, -1, power, _NAMES[role], role) for role in ("dense", "top2", "soft")),
            band("top2", 0, power, "untrained experts", "untrained"),
        ]

    tokens = []
    for role in ("dense", "top2", "soft"):
        values = np.stack([defined_mean(run["token energy"][1].T) for run in _runs(seeds, role)])
        mark = draw.band(_NAMES[role], role, index, values)
        tokens.append(mark)
    order = draw.axis("index")
    return draw.figure(
        "1D",
        "Singular values of the Jacobians",
        "Left: spectra of the mean Jacobians. Middle: their energy, cumulative shares of sigma squared. Right: the "
        "same for each token's own Jacobian, averaged. A curve that lies higher holds its energy in fewer directions.",
        "paper figure 1D",
        ("SC1.4", "SC1.5"),
        [
            draw.panel("mean Jacobian", order, draw.axis("singular value", "log"), bands(None)),
            draw.panel("energy of the mean Jacobian", order, draw.axis("cumulative share of sigma^2"), bands(2)),
            draw.panel("energy per token", order, draw.axis("cumulative share of sigma^2"), tokens),
        ],
    )


def _cumulative(seeds: list[Models], role: str) -> Mark:
    """Cumulative variance, mean over experts, as a band over seeds."""
    values = np.stack([defined_mean(energy(run["pca"][0]).T) for run in _runs(seeds, role)])
    x = np.arange(1, values.shape[1] + 1)
    return draw.band(_NAMES[role], role, x, values)


def _level() -> Mark:
    return {"kind": "level", "name": "90 % of the variance", "role": "other", "y": 0.9}


def _components_dense(seeds: list[Models]) -> Mark:
    names = ("x", "before GELU", "after GELU", "output", "x uncentred", "32 rows", "trajectory", "Jacobian rows")
    strips = []
    for i, name in enumerate(names):
        k90 = [float(m["dense"]["hidden k90"][i]) for m in seeds]
        strips.append(draw.strip(name, "dense", k90))
        null = [float(m["dense"]["gaussian k90"][i]) for m in seeds]
        strips.append(draw.strip(name, "null", null))
    paper = {"kind": "level", "name": "paper: about 3", "role": "paper", "y": 3.0}
    return draw.figure(
        "2A",
        "How many components hold 90 % of a dense model's variance",
        "Left: cumulative variance of what enters the dense layer. Right: k@0.9 of everything that the text may mean, "
        "with Gaussians of as many rows. The paper says about three.",
        "paper figure 2A",
        ("SC1.6",),
        [
            draw.panel("what enters the layer", draw.axis("components"), draw.axis("cumulative variance"),
                   [_cumulative(seeds, "dense"), _level()]),
            draw.panel("other interpretations", draw.axis("variance of"), draw.axis("k@0.9", "log"), [*strips, paper]),
        ],
    )  # fmt: skip


def _components(seeds: list[Models], id: str, roles: Sequence[str], title: str) -> Mark:
    marks = [_cumulative(seeds, role) for role in (*roles, "dense")]
    null = [
        {
            "kind": "points",
            "name": f"{_NAMES[role]}, gates shuffled",
            "role": "null",
            "x": draw.clean([float(run["shuffled k90"][:, 0].mean()) for run in _runs(seeds, role)]),
            "y": [0.9] * len(seeds),
        }
        for role in roles
    ]
    strips = []
    for role in roles:
        k90 = [runs.ranks(run, "k90", 0) for run in _runs(seeds, role)]
        shuffled = [float(run["shuffled k90"][:, 0].mean()) for run in _runs(seeds, role)]
        strips.append(draw.strip(role, role, k90))
        strips.append(draw.strip(f"{role} shuffled", "null", shuffled))
        same = [runs.ranks(m[f"dense at the n_eff of {role}"], "k90", 0) for m in seeds]
        name = f"dense at the n_eff of {role}"
        strips.append(draw.strip(name, "control", same))
    claims = {"2B": ("SC1.7",), "3A": ("SC1.8",), "3B": ("SC1.7", "SC1.8")}[id]
    return draw.figure(
        id,
        title,
        "Cumulative variance of the hidden states weighted by an expert's gates, mean over experts. The null models "
        "are the same gates given to other tokens, and the dense model on as few effective tokens.",
        f"paper figure {id}",
        claims,
        [
            draw.panel(
                "routed hidden states",
                draw.axis("components"),
                draw.axis("cumulative variance"),
                [*marks, *null, _level()],
            ),
            draw.panel("k@0.9 a seed", draw.axis("model"), draw.axis("k@0.9"), strips),
        ],
    )


def _matrix(seeds: list[Models], id: str, role: str) -> Mark:
    cos = _runs(seeds, role)[0]["cosines"]
    labels = [str(e) for e in range(len(cos[1]))]
    off = ~np.eye(len(labels), dtype=bool)
    limit = float(np.nanmax(np.abs(cos[:, off])))

    def panel(title: str, table: Array) -> Mark:
        mark = draw.matrix("cosine", np.where(off, table, np.nan), labels, limit)
        return draw.panel(title, draw.axis("expert"), draw.axis("expert"), [mark])

    name = _NAMES[role]
    return draw.figure(
        id,
        f"Alignment of {name}, pair by pair",
        f"Cosines between the mean Jacobians of the {name} of seed 0, trained and untrained, on one colour scale.",
        f"paper figure {id}",
        ("SC1.9",),
        [panel("trained", cos[1]), panel("untrained", cos[0])],
    )


def _sample_size(results: Results, plan: Trial, seeds: list[Models]) -> Mark:
    """k@0.9 of every expert against its n_eff, over all settings that were run on isotropic inputs."""
    points: dict[str, tuple[list[float], list[float]]] = {"top2": ([], []), "soft": ([], []), "null": ([], [])}
    for run in _isotropic(results, plan):
        role = "soft" if run.config.k == run.config.E else "top2"
        points[role][0].extend(run["n_eff"].tolist())
        points[role][1].extend(run["k90"][0].tolist())
        points["null"][0].append(runs.mean_n_eff(run))
        points["null"][1].append(float(run["shuffled k90"][:, 0].mean()))
    names = {"top2": "top-k experts", "soft": "soft experts", "null": "gates shuffled (mean of experts)"}
    marks: list[Mark] = [draw.points(names[role], role, x, y) for role, (x, y) in points.items()]
    sizes = seeds[0]["dense"]["sizes"]
    plain = np.stack([m["dense"]["k90 by size"] for m in seeds])
    marks.append(
        draw.band("plain Gaussian of n_eff rows", "dense", sizes, plain)
    )  # fmt: skip
    grid = np.geomspace(sizes[0], sizes[-1], 40)
    theory = [marchenko_pastur_k(0.9, plan.base.d, n) for n in grid]
    marks.append(draw.line("Marchenko-Pastur law", "other", grid, theory))
    return draw.figure(
        "S1",
        "How much of Figures 2 and 3 is sample size?",
        "k@0.9 of what each expert sees, against its effective number of tokens n_eff, over the batch sizes, k and "
        "temperatures that were run, with the same gates given to other tokens (shuffled) and plain Gaussian samples "
        "of n_eff rows. Where real and shuffled gates agree, the number of components says nothing about what is "
        "routed where. The distance from the curve is what unequal weights do beyond n_eff.",
        "ours",
        ("SC1.7", "SC1.8"),
        [draw.panel("every expert", draw.axis("n_eff", "log"), draw.axis("k@0.9 of x weighted by g"), marks)],
    )


def _isotropic(results: Results, plan: Trial) -> list[Run]:
    """The mixtures that were run on isotropic inputs, of other sizes, k and temperatures, each once."""
    axes = [None, *(axis for axis in AXES if set(axis.change) <= {"n", "k"} and axis.change.get("k", 1) <= plan.base.E)]
    warm = [role_in(setting, role) for setting in SETTINGS["a"] for role in MIXTURES]
    asked = [(role, axis) for axis in axes for role in MIXTURES] + [(role, None) for role in warm]
    found = [plan.found(results, role, seed, axis) for role, axis in asked for seed in plan.counted]
    return list({run.config: run for run in found if run is not None}.values())


def _router_share(seeds: list[Models]) -> Mark:
    steps = named_steps(seeds[0]["top2"].config)
    panels = []
    for role in ("top2", "soft"):
        shares = np.stack([run["router share"] for run in _runs(seeds, role)])  # (seed, 4, n)
        quantiles = np.quantile(shares, [0.05, 0.5, 0.95], axis=(0, 2))  # (3, 4)
        x = draw.clean(np.array(steps, float))
        marks = [
            {"kind": "ribbon", "name": "5 to 95 % of tokens", "role": "null", "x": x, "low": draw.clean(quantiles[0]),
             "high": draw.clean(quantiles[2])},
            {"kind": "line", "name": "median token", "role": role, "x": x, "y": draw.clean(quantiles[1])},
        ]  # fmt: skip
        panels.append(
            draw.panel(_NAMES[role], draw.axis("training step"), draw.axis("share of the Frobenius norm"), marks)
        )
    return draw.figure(
        "S2",
        "The term that the papers drop",
        "The router's term of the whole Jacobian, sum of f_e dg_e^T, as a share of both terms' norms, at every token, "
        "over all seeds: untrained, at step 250, half-way and at the end.",
        "ours",
        ("SC1.2",),
        panels,
    )


def _curvature(seeds: list[Models]) -> Mark:
    strips = []
    for role in ("dense", "top2", "soft"):
        for end, when in enumerate(("untrained", "trained")):
            values = [float(defined_mean(run["curvature"][end])) for run in _runs(seeds, role)]
            style = role if end else "untrained"
            strips.append(draw.strip(f"{role}, {when}", style, values))
    return draw.figure(
        "S3",
        "Curvature itself",
        "Norm of the second derivatives (root mean square over tokens, closed form) of dense model and experts.",
        "ours",
        ("SC1.11",),
        [draw.panel("Hessian's norm", draw.axis("model"), draw.axis("Hessian norm", "log"), strips)],
    )
