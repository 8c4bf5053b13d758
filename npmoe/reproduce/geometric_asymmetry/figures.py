"""The figures of GA as data: what to draw in the grammar of `npmoe.report`, not how."""

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage

from npmoe.data import synthetic
from npmoe.geometry import random_subspaces
from npmoe.geometry.spectra import cosines, off_diagonal, rms_cosine
from npmoe.model import init
from npmoe.probe.null import shuffled
from npmoe.probe.representation import overlaps, subspaces
from npmoe.probe.site import Site, site
from npmoe.reproduce import draw
from npmoe.reproduce.draw import Mark
from npmoe.reproduce.experiment import Axis, Models, Trial
from npmoe.reproduce.geometric_asymmetry.measure import MEASURES, RANK, ranks_of
from npmoe.reproduce.geometric_asymmetry.ways import (
    END,
    START,
    column_of,
    functional_z,
    independent,
    representational_z,
)
from npmoe.reproduce.mixture import generator
from npmoe.reproduce.paper import Results

__all__ = ["figures"]

Array = np.ndarray
_NAMES = {"top2": "top-2 experts", "soft": "soft experts"}


def figures(results: Results, plan: Trial) -> dict[str, dict[str, Any]]:
    """Every figure that the finished runs allow, by file name."""
    if not any(spec.roles for spec in plan.specs()):
        return {}
    mixtures = ("top2", "soft")
    seeds = plan.seeds_of(results, mixtures)
    found = {
        "ga-overlap": _overlap(seeds),
        "ga-distances": _distances(seeds[0], "top2", "G3"),
        "ga-distances-soft": _distances(seeds[0], "soft", "G3b"),
        "ga-sparsity": _sparsity(seeds),
    }
    if len(plan.counted) == plan.seeds:  # needs no run, and is not worth drawing again after every seed
        found["ga-planted"] = _planted(plan)
    if all(plan.found(results, "independent top2", seed) for seed in plan.counted):
        found["ga-plane"] = _plane(plan.seeds_of(results, (*mixtures, "independent top2")))
    if plan.full:
        found |= _sweeps(results, plan)
    return found


def _plane(seeds: list[Models]) -> Mark:
    """Functional against representational z, one point a layer and seed."""
    d = seeds[0]["top2"].config.d
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for m in seeds:
        for role, name in _NAMES.items():
            run = m[role]
            for end, words, style in ((END, name, role), (START, f"{name}, untrained", "untrained")):
                at = functional_z(run["cosines"][end], d), representational_z(run["overlap"][end], d)
                groups.setdefault((words, style), []).append(at)
            draws = zip(run["shuffled cosines"], run["shuffled overlap"], strict=True)
            null = np.mean([(functional_z(c, d), representational_z(o, d)) for c, o in draws], axis=0)
            groups.setdefault((f"{name}, gates shuffled", "null"), []).append((null[0], null[1]))
        apart = functional_z(cosines(independent(m)), d)
        groups.setdefault(("function of experts that never met", "control"), []).append(
            (apart, representational_z(m["top2"]["overlap"][END], d))
        )
    marks = [draw.points(name, role, *map(list, zip(*places, strict=True))) for (name, role), places in groups.items()]
    marks += [{"kind": "vline", "x": 1.0, "name": "chance"}, draw.level("chance", 1.0)]
    return draw.figure(
        "G1",
        "Functional against representational alignment, both in units of chance",
        "One point a mixture and seed. To the right: how aligned the experts' mean Jacobians are. Upward: how much "
        "their "
        "principal subspaces (r = 8) overlap. Chance is 1 on both axes: random matrices and random subspaces. GA says "
        "that "
        "mixtures lie above and to the left. Shuffled gates show how much of the height comes from sample size and "
        "from tokens that experts share.",
        "ours",
        ("GA.1", "GA.3"),
        [
            draw.panel(
                "one point a mixture and seed",
                draw.axis("functional z (rms)", "log"),
                draw.axis("representational z (rms)", "log"),
                marks,
            )
        ],
    )


def _overlap(seeds: list[Models]) -> Mark:
    d = seeds[0]["top2"].config.d
    r = np.arange(1, d)
    panels = []

    def over_chance(curves: list[Array]) -> Array:
        return np.stack(curves)[:, : d - 1] / (r / d)

    for role, name in _NAMES.items():
        real = over_chance([m[role]["overlap curve"][END] for m in seeds])
        start = over_chance([m[role]["overlap curve"][START] for m in seeds])
        nulls = [
            (words, style, over_chance([m[role][f"{key} overlap curve"] for m in seeds]))
            for key, words, style in (
                ("shuffled", "gates shuffled", "null"),
                ("apart", "sets of that size drawn apart", "control"),
            )
        ]
        marks = [
            draw.band(name, role, r, real),
            draw.band("untrained", "untrained", r, start),
            *(draw.band(words, style, r, values) for words, style, values in nulls),
            draw.level("random subspaces", 1.0, "other"),
        ]
        panels.append(draw.panel(name, draw.axis("r", "log"), draw.axis("overlap over r/d", "log"), marks))
    return draw.figure(
        "G2",
        "How much do the experts' principal subspaces overlap?",
        "Mean cos^2 of the principal angles between the leading r-dimensional subspaces of two experts, over what "
        "random "
        "subspaces give. Below the curve of shuffled gates, routing keeps experts apart; on it, the overlap is what "
        "any sample of that size and weighting has.",
        "ours",
        ("GA.2a", "GA.2b"),
        panels,
    )


def _distances(m: Models, role: str, id: str) -> Mark:
    """Distances between experts of one seed, raw and as z-scores of shuffled gates, in the order of a dendrogram."""
    i = MEASURES.index("chordal")
    run = m[role]
    raw, null = run["distances"][i], run["shuffled distances"][:, i]
    E = len(raw)
    order = _dendrogram(raw)
    labels = [str(e) for e in order]
    off = ~np.eye(E, dtype=bool)
    spread = null.std(axis=0, ddof=1) if len(null) > 1 else np.ones_like(raw)
    z = np.divide(raw - null.mean(axis=0), spread, out=np.full_like(raw, np.nan), where=off & (spread > 0))
    cos = run["cosines"][END]
    at = np.ix_(order, order)

    def panel(title: str, table: Array, center: float, name: str) -> Mark:
        shown = np.where(off, table, np.nan)[at]
        known = np.abs(shown[~np.isnan(shown)] - center)
        limit = float(known.max()) if known.size and known.max() > 0 else 1.0
        return draw.panel(
            title, draw.axis("expert"), draw.axis("expert"), [draw.matrix(name, shown, labels, limit, center)]
        )

    middle = float(np.nanmean(off_diagonal(raw)))
    d = m[role].config.d
    return draw.figure(
        id,
        f"Distances between the {_NAMES[role]}, pair by pair",
        "Seed 0, experts in the order of the dendrogram (average linkage) of the chordal distances between their "
        "principal subspaces, r = 8. Left: the distances. Middle: the same in standard deviations from shuffled gates; "
        "above 0, farther apart than the same gates on other tokens. Right: cosines of their mean Jacobians in units "
        "of chance, 1/d, in the same order: if function followed representation, near pairs would be aligned.",
        "ours",
        ("GA.2a", "GA.3"),
        [
            panel("chordal distance", raw, middle, "distance"),
            panel("in spreads of shuffled gates", z, 0.0, "z"),
            panel("cosine of mean Jacobians times d", cos * d, 0.0, "z"),
        ],
    )


def _dendrogram(distances: Array) -> list[int]:
    """Experts in the order of the leaves of an average-linkage tree; those without tokens last."""
    live = np.flatnonzero(~np.isnan(distances).all(axis=0))
    if len(live) < 3:
        return list(range(len(distances)))
    pairs = off_diagonal(distances[np.ix_(live, live)])
    order = live[leaves_list(linkage(pairs, "average"))]
    return [*order.tolist(), *sorted(set(range(len(distances))) - set(order.tolist()))]


def _points_of(seeds: list[Models], role: str) -> dict[str, list[float]]:
    """What the sparsity figures show of one role, a value a seed."""
    d = seeds[0][role].config.d
    chordal = MEASURES.index("chordal")
    top = np.sqrt(min(RANK, d - 1))
    found: dict[str, list[float]] = {"function": [], "function null": [], "distance": [], "distance null": []}
    for m in seeds:
        run = m[role]
        found["function"].append(d * rms_cosine(run["cosines"][END]))
        found["function null"].append(float(np.mean([d * rms_cosine(c) for c in run["shuffled cosines"]])))
        found["distance"].append(float(np.nanmean(off_diagonal(run["distances"][chordal]))) / top)
        null = [np.nanmean(off_diagonal(t[chordal])) for t in run["shuffled distances"]]
        found["distance null"].append(float(np.mean(null)) / top)
    return found


def _planted(plan: Trial) -> Mark:
    """Overlap between experts where the truth is known: clusters on subspaces at planted angles."""
    E, d, n = plan.base.E, plan.base.d, plan.base.n
    r = d // E  # as many dimensions as so many subspaces have room for
    angles = np.linspace(0, np.pi / 2, 10)
    names = ("routed by cluster", "untrained router, top-2", "routed by cluster, gates shuffled")
    found = np.zeros((3, len(plan.counted), len(angles)))
    truth = np.zeros(len(angles))
    for seed in plan.counted:
        for i, angle in enumerate(angles):
            rng = generator(seed, "x", 1 + i)
            data = synthetic.subspace_clusters(rng, n, d, E, r, float(angle), noise=0.05)
            truth[i] = float(np.mean(off_diagonal(np.cos(data.angles) ** 2)))
            routed = Site(data.x, np.eye(E)[data.label], data.label[:, None])
            router = site(init.gelu_moe(generator(seed, "moe", 1), E, d, 1, 2), data.x)
            for row, here in zip(found, (routed, router, shuffled(routed, rng)), strict=True):
                row[seed, i] = float(np.nanmean(off_diagonal(overlaps(subspaces(here).axes)[..., r - 1])))
    x = np.degrees(angles)
    marks = [
        draw.band(name, role, x, row)
        for name, role, row in zip(names, ("top2", "untrained", "null"), found, strict=True)
    ]
    marks.append(draw.line("planted: mean cos^2 of the angles", "other", x, truth))
    return draw.figure(
        "G8",
        "Does the measure find what was planted?",
        f"{E} clusters, each on a subspace of {r} dimensions, at a planted angle to the first cluster's; 5 % of the "
        "variance is noise all round. Overlap of the principal subspaces of what experts are given, mean over pairs "
        "and range over seeds. Tokens are routed by cluster, by an untrained top-2 router, and by cluster with the "
        "gates handed to other tokens.",
        "ours",
        ("GA.2a", "GA.2b"),
        [
            draw.panel(
                "planted angles",
                draw.axis("angle to the first cluster's subspace, degrees"),
                draw.axis(f"overlap, r = {r}"),
                marks,
            )
        ],
    )


_FUNCTION = draw.axis("rms cosine of mean Jacobians, times d")
_DISTANCE = draw.axis("mean chordal distance, over its largest")


def _sparsity(seeds: list[Models]) -> Mark:
    panels = []
    for what, axis in (("function", _FUNCTION), ("distance", _DISTANCE)):
        strips = []
        for role, name in _NAMES.items():
            found = _points_of(seeds, role)
            strips.append(draw.strip(name, role, found[what]))
            strips.append(draw.strip(f"{name}, gates shuffled", "null", found[f"{what} null"]))
        panels.append(draw.panel(axis["label"], draw.axis("mixture"), axis, strips))
    return draw.figure(
        "G4",
        "Top-2 and soft: function and representation",
        "One dot a seed. Left: alignment of the experts' mean Jacobians; 1 is chance. Right: mean chordal distance "
        "between "
        "principal subspaces, r = 8. Beside each the same with its gates shuffled: what sparsity does by giving "
        "experts fewer tokens, whichever they are.",
        "ours",
        ("GA.4a", "GA.4b"),
        panels,
    )


def _sweep(id: str, title: str, caption: str, x: Mark, groups: list[tuple[str, str, list[float], list[Any]]]) -> Mark:
    """A figure of function and distance along an axis; groups of (name, role, x, a dict of values at each x)."""
    panels = []
    for what, axis in (("function", _FUNCTION), ("distance", _DISTANCE)):
        marks = []
        for name, role, at, found in groups:
            marks.append(draw.band(name, role, at, np.array([f[what] for f in found]).T))
            marks.append(
                draw.band(f"{name}, gates shuffled", "null", at, np.array([f[f"{what} null"] for f in found]).T)
            )
        panels.append(draw.panel(axis["label"], x, axis, marks))
    return draw.figure(id, title, caption, "ours", ("GA.4a", "GA.4b"), panels)


def _finished(results: Results, plan: Trial, role: str, axis: Axis | None) -> list[Models]:
    """The runs of a role on an axis, of every seed; none where some were not asked for."""
    if any(plan.found(results, role, seed, axis) is None for seed in plan.counted):
        return []
    return plan.seeds_of(results, (role,), axis)


def _sweeps(results: Results, plan: Trial) -> dict[str, Mark]:
    """Sweeps one axis at a time, from the runs of ``--full``."""
    axes = {axis.name: axis for spec in plan.specs() for axis in plan.axes(spec)}
    found = {
        "ga-sweep-k": _sweep_k(results, plan, axes),
        "ga-sweep-temperature": _sweep_temperature(results, plan, axes),
        "ga-inputs": _inputs(results, plan, axes),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _sweep_k(results: Results, plan: Trial, axes: dict[str, Axis]) -> Mark | None:
    E = plan.base.E
    ks = [(1, "top2", axes.get("top-1 in the place of top-2")), (2, "top2", None),
          (4, "top2", axes.get("top-4 in the place of top-2")), (E, "soft", None)]  # fmt: skip
    runs = [(k, role, _finished(results, plan, role, axis)) for k, role, axis in ks if axis is not None or k in (2, E)]
    points = [(float(k), _points_of(seeds, role)) for k, role, seeds in runs if seeds]
    if len(points) < 3:
        return None
    return _sweep(
        "G5",
        "Sparsity swept: k experts a token, at temperature 1",
        "Mean and range over seeds. The null at each k has the same gates on other tokens.",
        draw.axis("k", "log"),
        [("experts", "experts", [k for k, _ in points], [v for _, v in points])],
    )


def _sweep_temperature(results: Results, plan: Trial, axes: dict[str, Axis]) -> Mark | None:
    E = plan.base.E
    groups = []
    for k, name, style in ((2, "k = 2", "top2"), (E, f"k = {E}", "soft")):
        both = axes.get(f"temperature 1/4 against 4, both k = {k}")
        if both is None:
            continue
        at = [(0.25, "top2", both), (1.0, style, None), (4.0, "soft", both)]
        runs = [(t, role, _finished(results, plan, role, axis)) for t, role, axis in at]
        points = [(t, _points_of(seeds, role)) for t, role, seeds in runs if seeds]
        groups.append((name, style, [t for t, _ in points], [v for _, v in points]))
    if not groups:
        return None
    return _sweep(
        "G6",
        "Sharpness swept: the router's temperature",
        "Mean and range over seeds; a low temperature makes soft gates nearly sparse.",
        draw.axis("temperature", "log"),
        groups,
    )


def _inputs(results: Results, plan: Trial, axes: dict[str, Axis]) -> Mark:
    inputs = [
        ("Gaussian", None),
        ("clusters", axes.get("clustered inputs")),
        ("clusters, a task each", axes.get("clustered inputs, a task for each cluster")),
    ]
    panels = []
    d, column = plan.base.d, column_of(RANK)
    r = ranks_of(d)[column]
    for role, name in _NAMES.items():
        strips = []
        for short, axis in inputs:
            if axis is None and short != "Gaussian":
                continue
            runs = [m[role] for m in _finished(results, plan, role, axis)]
            if not runs:
                continue
            overlap = [float(np.nanmean(off_diagonal(run["overlap"][END][..., column]))) for run in runs]
            null = [float(np.nanmean([off_diagonal(t[..., column]) for t in run["shuffled overlap"]])) for run in runs]
            strips += [draw.strip(short, role, overlap), draw.strip(f"{short}, gates shuffled", "null", null)]
        chance = draw.level("random subspaces", random_subspaces.chance_overlap(r, r, d), "other")
        panels.append(draw.panel(name, draw.axis("inputs"), draw.axis(f"overlap, r = {r}"), [*strips, chance]))
    return draw.figure(
        "G7",
        "Does routing keep apart what the inputs hold apart?",
        "Overlap of the experts' principal subspaces, one dot a seed, with the same gates handed to other tokens: "
        "where the two differ, it is routing that keeps experts apart.",
        "ours",
        ("GA.2a", "GA.2b"),
        panels,
    )
