"""The figures of MY as data: what to draw in the grammar of `npmoe.report`, not how."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from npmoe.geometry import overlap
from npmoe.reproduce import draw
from npmoe.reproduce.draw import Mark
from npmoe.reproduce.experiment import Models, Trial
from npmoe.reproduce.paper import Results
from npmoe.reproduce.routing_reflects_geometry.axes import CELLS, WEIGHTS
from npmoe.reproduce.routing_reflects_geometry.measure import BATCHES, GRID, PAIRED
from npmoe.reproduce.routing_reflects_geometry.ways import END

__all__ = ["figures"]

Array = np.ndarray


def figures(results: Results, plan: Trial) -> dict[str, dict[str, Any]]:
    """Every figure that the finished runs allow, by file name."""
    drawn: list[tuple[str, tuple[str, ...], Callable[[list[Models]], Mark]]] = [
        ("my-similarity", ("base",), _similarity),
        ("my-law", ("base",), _law),
        ("my-mantel", ("base",), _mantel),
        ("my-wall", ("base",), _wall),
        ("my-two-by-two", CELLS, _two_by_two),
        ("my-balance", tuple(f"weight {w:g}" for w in WEIGHTS), _balance),
        ("my-batch", ("base",), _batch),
        ("my-models", ("models",), _models),
    ]
    found = {}
    for name, roles, figure in drawn:
        if all(plan.found(results, role, seed) for role in roles for seed in plan.counted):
            found[name] = figure(plan.seeds_of(results, roles))
    if "MY.10" in plan.ids:
        found["my-matching"] = _matching(64, 8)
    if plan.full and "MY.4" in plan.ids and _all_batches(results, plan):
        found["my-batch-size"] = _batch_size(results, plan)
    return found


def _similarity(seeds: list[Models]) -> Mark:
    """Similarity of hidden states against overlap of sets, and the pairs that refute "necessary"."""
    tables = np.stack([m["base"]["by cosine"] for m in seeds])  # (S, 3, b)
    cosines = np.concatenate([m["base"]["pair cosines"] for m in seeds])[::8]
    cosines = cosines[~np.isnan(cosines)]
    d, E, k = (getattr(seeds[0]["base"].config, name) for name in ("d", "E", "k"))
    return draw.figure(
        "M1",
        "Similar hidden states, similar routing; and the converse",
        "Mean overlap of the chosen sets of two tokens against the cosine of their hidden states, trained top-2 "
        "mixtures, "
        "mean and range over seeds. The crosses (every eighth) are pairs made in closed form: the same gates to the "
        "last bits, at "
        f"negative cosines. A router of {E} experts sees at most {E - 1} of {d} dimensions; along the others a hidden "
        "state may move as it likes.",
        "ours",
        ("MY.1b", "MY.1c"),
        [
            draw.panel(
                "pairs of tokens",
                draw.axis("cosine of the hidden states"),
                draw.axis("overlap of the chosen sets"),
                [
                    _curve("pairs of tokens", "top2", tables[:, :2]),
                    draw.points("pairs in the router's null space", "null", cosines, np.ones(len(cosines))),
                    draw.level("chance, k/E", k / E, "other"),
                ],
            )
        ],
    )


def _curve(name: str, role: str, tables: Array) -> Mark:
    """A band through bins that all seeds have, from (S, 2, b): where they lie, and values."""
    known = ~np.isnan(tables).any(axis=(0, 1))
    return draw.band(name, role, tables[:, 0, known].mean(axis=0), tables[:, 1, known])


def _law(seeds: list[Models]) -> Mark:
    panels = []
    E, k = seeds[0]["base"].config.E, seeds[0]["base"].config.k
    grid = np.linspace(-0.95, 0.95, 60)
    law = overlap.topk_law(grid, k / E)
    for name, title, role in (("law", "trained router", "top2"), ("law random", "random router", "untrained")):
        tables = np.stack([m["base"][name] for m in seeds])  # (S, 6, b)
        marks = [
            _curve(f"{title}: pairs of tokens", role, tables[:, :2]),
            _curve("Gaussian hidden states of the same covariance", "null", tables[:, 3:5]),
            draw.line("the law for many experts", "other", grid, law),
        ]
        panels.append(
            draw.panel(title, draw.axis("correlation of the two tokens' scores"), draw.axis("overlap of sets"), marks)
        )
    return draw.figure(
        "M2",
        "Overlap of top-k sets against the correlation of scores",
        f"Pairs of tokens sorted by the correlation of their {E} scores, mean and range over seeds, with Gaussian "
        "hidden "
        "states of the same mean and covariance through the same router, and the law for bivariate normal scores of "
        "many "
        "experts. Sorting by a correlation that is itself an estimate moves pairs between bins; both curves are sorted "
        "alike, and differ by what is not Gaussian in the hidden states.",
        "ours",
        ("MY.1c",),
        panels,
    )


def _mantel(seeds: list[Models]) -> Mark:
    panels = []
    for of in ("tokens", "sequences"):
        strips = []
        for i, (hidden, measure, what, partial) in enumerate(PAIRED):
            if what != of:
                continue
            name = f"{hidden}, {measure.replace('_', ' ')}" + (", topic held" if partial else "")
            strips.append(draw.strip(name, "top2", [float(m["base"]["mantel"][i, 0]) for m in seeds]))
            random = [float(m["base"]["mantel random"][:, i].mean()) for m in seeds]
            strips.append(draw.strip(name, "null", random))
            strips.append(
                draw.strip(name, "control", [float(m["base"]["mantel permuted"][:, i].mean()) for m in seeds])
            )
        panels.append(draw.panel(f"pairs of {of}", draw.axis("similarity of"), draw.axis("Mantel correlation"), strips))
    return draw.figure(
        "M3",
        "How much of usage do hidden states explain?",
        "Mantel correlation of hidden similarity and usage similarity, one dot a seed: trained routers (triangles), "
        "random "
        "routers of the same sharpness (crosses), and the trained ones with their coordinates permuted (plus signs). A "
        "random router reflects geometry as well: what training adds is the distance from it.",
        "ours",
        ("MY.1c",),
        panels,
    )


def _wall(seeds: list[Models]) -> Mark:
    tables = np.stack([m["base"]["wall"] for m in seeds])  # (S, 4, q)
    low, high = tables[:, 2].mean(axis=0), tables[:, 3].mean(axis=0)
    edge = {"kind": "vline", "x": 1.0, "name": "certified radius"}
    marks = [
        {"kind": "ribbon", "name": "5 to 95 % of tokens, towards the wall", "role": "top2", "x": draw.clean(GRID),
         "low": draw.clean(low), "high": draw.clean(high)},
        draw.band("towards the wall, median token", "top2", GRID, tables[:, 0]),
        draw.band("in random directions, median token", "null", GRID, tables[:, 1]),
        edge,
    ]  # fmt: skip
    return draw.figure(
        "M4",
        "What happens at a routing wall",
        "Difference quotients of the whole trained top-2 layer over what its Jacobian says, |f(x + eps u) - f(x)|/(eps "
        "|J u|), for steps in units of the certified radius. Up to the radius only curvature parts the quotient from "
        "the Jacobian; beyond it one "
        "expert is exchanged at once, and the quotient is the jump over eps, which no Jacobian knows of.",
        "ours",
        ("MY.1a",),
        [
            draw.panel(
                "across the nearest wall",
                draw.axis("step over the certified radius", "log"),
                draw.axis("difference quotient over |J u|", "log"),
                marks,
            )
        ],
    )


def _two_by_two(seeds: list[Models]) -> Mark:
    def strips(column: Callable[[Any], float], null: Callable[[Any], float] | None) -> list[Mark]:
        marks = []
        for cell in CELLS:
            role = "top2" if cell.startswith("trained") else "untrained"
            marks.append(draw.strip(cell, role, [column(m[cell]) for m in seeds]))
            if null is not None:
                marks.append(draw.strip(cell, "null", [null(m[cell]) for m in seeds]))
        return marks

    return draw.figure(
        "M5",
        "Two by two: is it the inputs or the router that specializes?",
        "Information between expert and topic, and 1 minus the entropy of usage within a topic, one dot a seed; "
        "crosses: "
        "the same with topics of sequences permuted. If specialization were a property of the representation alone, "
        "freezing a random router would change nothing.",
        "ours",
        ("MY.2",),
        [
            draw.panel(
                "information",
                draw.axis("router, inputs"),
                draw.axis("share of the topics' entropy"),
                strips(lambda run: float(run["information"][END]), lambda run: float(run["information null"][END])),
            ),
            draw.panel(
                "concentration within topics",
                draw.axis("router, inputs"),
                draw.axis("1 - entropy over log E"),
                strips(lambda run: 1 - float(run["usage"][END, 2]), None),
            ),
        ],
    )


def _balance(seeds: list[Models]) -> Mark:
    at = [f"weight {w:g}" for w in WEIGHTS]
    x = [w or 1e-4 for w in WEIGHTS]  # weight 0 has its place at the left end of the log axis

    def table(value: Callable[[Any], float]) -> Array:
        return np.array([[value(m[role]) for role in at] for m in seeds])

    def size(run: Any, column: int) -> float:
        """|C W v|/|v|: |C W|_F times one of the ratios of `mean_response`."""
        return float(run["size"][END] * run["response"][END, column])

    weight = draw.axis("weight of the Switch loss (left end: 0)", "log")
    responses = [
        draw.band("along the mean hidden state", "top2", x, table(lambda run: size(run, 1))),
        draw.band("along the data less its mean", "soft", x, table(lambda run: size(run, 3))),
        draw.band("along random directions", "null", x, table(lambda run: size(run, 2))),
    ]
    uses = [
        draw.band("entropy of usage over log E", "experts", x, table(lambda run: float(run["usage"][END, 0]))),
        draw.band("information, share of H(topic)", "dense", x, table(lambda run: float(run["information"][END]))),
        draw.band("information, topics permuted", "null", x, table(lambda run: float(run["information null"][END]))),
    ]
    gradients = []
    for name, row, role in (("Switch", 0, "top2"), ("Switch, f = P", 1, "soft"), ("the task", 2, "null"),
                            ("random cotangents", 4, "control")):  # fmt: skip
        gradients.append(draw.strip(f"{name}: share", role, [float(m[at[0]]["gradient"][0, row, 0]) for m in seeds]))
        gradients.append(draw.strip(f"{name}: cosine", role, [float(m[at[0]]["gradient"][0, row, 1]) for m in seeds]))
    small = [float(m[at[0]]["gradient"][1, 1, 1]) for m in seeds]
    gradients.append(draw.strip("f = P, scores a tenth: cosine", "soft", small))
    gradients.append(draw.level("the law as scores vanish", 1.0, "other"))
    return draw.figure(
        "M6",
        "What the load-balancing loss suppresses",
        "Left: the router's response |C W v|/|v| along the mean hidden state, along the data's own spread, and along "
        "random directions. Middle: use and specialization. Right: gradients on the untrained router, their share "
        "along the "
        "mean hidden state mu, and the cosine of G mu with C W mu, by which a step against G shrinks the response.",
        "ours",
        ("MY.3",),
        [
            draw.panel("the router's response", weight, draw.axis("|C W v| / |v|", "log"), responses),
            draw.panel("use and specialization", weight, draw.axis("share"), uses),
            draw.panel("gradients", draw.axis("gradient of"), draw.axis("share, cosine"), gradients),
        ],
    )


def _batch(seeds: list[Models]) -> Mark:
    gains = np.stack([m["base"]["batch"] for m in seeds])  # (S, scale, mixed, 3, b)
    panels = []
    for scale, title in ((1, "scores a tenth as large"), (0, "scores of an untrained router")):
        marks = []
        for mixed, name, role in ((0, "batches of all topics", "top2"), (1, "batches of one topic", "dense")):
            marks.append(draw.band(name, role, BATCHES, gains[:, scale, mixed, 1]))
            marks.append(draw.line(f"{name}, predicted", "other", BATCHES, gains[:, scale, mixed, 0].mean(axis=0)))
        panels.append(
            draw.panel(
                title, draw.axis("tokens in a batch", "log"), draw.axis("gain of the expected loss", "log"), marks
            )
        )
    return draw.figure(
        "M7",
        "What a batch adds to the balance loss",
        "Mean excess of the loss over batches above that of all data (f = P), mean and range over seeds, next to "
        "tr(C W (Sigma/B) W^T C)/E. With independent tokens it falls as 1/B; with one topic a batch, the differences "
        "between topics are penalised at any batch size.",
        "ours",
        ("MY.4",),
        panels,
    )


def _models(seeds: list[Models]) -> Mark:
    looks = (
        ("same, as numbered", "untrained"), ("same, matched", "top2"), ("same, fitted on itself", "paper"),
        ("other topic", "soft"), ("same topic", "dense"), ("other topic, one model", "soft"),
        ("same topic, one model", "dense"), ("permuted, as numbered", "null"), ("permuted, matched", "null"),
        ("permuted, other topic", "null"),
    )  # fmt: skip
    panels = []
    for title, key in (("trained", "models"), ("untrained", "models start")):
        marks = [
            draw.strip(name, role, [float(m["models"][key][0, column]) for m in seeds])
            for column, (name, role) in enumerate(looks)
        ]
        marks.append(draw.level("60 %", 0.6, "paper"))
        panels.append(draw.panel(title, draw.axis("pairs"), draw.axis("Jaccard at top-p 0.8"), marks))
    return draw.figure(
        "M8",
        "Do different models use the same experts on one query?",
        "Three models a seed, trained on the same sequences from different initializations. Experts are matched on one "
        "half of the queries and scored on the other; a query is a topic and a part of its own. MY says that one "
        "query's overlap across models is no greater than that of different queries, about 60 %.",
        "ours",
        ("MY.10",),
        panels,
    )


@cache
def _matching(E: int, k: int) -> Mark:
    """How matching alone makes "60 %": pure chance, fitted and scored on the same tokens."""
    rng = np.random.default_rng(0)
    sizes = np.unique(np.geomspace(8, 2048, 15).astype(int))
    fitted, held = np.zeros((2, 5, len(sizes)))
    for i, n in enumerate(sizes):
        for draw_ in range(5):
            P, Q = (rng.random((2 * n, E)).argsort(axis=1) < k for _ in range(2))
            halves = np.arange(2 * n) < n
            found = overlap.matched_overlap(P, Q, None, halves)
            fitted[draw_, i], held[draw_, i] = found.in_sample, found.held_out
    return draw.figure(
        "M9",
        "How matching alone makes 60 per cent",
        f"Two models of {E} experts that choose {k} at random, with nothing in common; their experts matched so as to "
        "agree "
        "most. Scored on the tokens that it was fitted on, the overlap is as large as one likes: it depends on how few "
        "tokens there are. Scored on other tokens it is chance, k/E.",
        "ours",
        ("MY.10",),
        [
            draw.panel(
                "random choices, 5 draws",
                draw.axis("tokens that the matching is fitted on", "log"),
                draw.axis("overlap of the matched sets"),
                [
                    draw.band("scored on the same tokens", "paper", sizes, fitted),
                    draw.band("scored on the other half", "top2", sizes, held),
                    draw.level("chance, k/E", k / E),
                    draw.level("60 %", 0.6, "other"),
                ],
            )
        ],
    )


def _all_batches(results: Results, plan: Trial) -> bool:
    """Whether the train readings of MY.4 are there."""
    spec = next(spec for spec in plan.specs() if spec.id == "MY.4")
    axes = [axis for axis in plan.axes(spec) if "batch" in axis.change]
    return all(plan.complete(results, spec.roles, axis) >= len(plan.counted) for axis in axes)


def _batch_size(results: Results, plan: Trial) -> Mark:
    spec = next(spec for spec in plan.specs() if spec.id == "MY.4")
    axes = {axis.change["batch"]: axis for axis in plan.axes(spec) if "batch" in axis.change}
    sizes = sorted({32, *axes})
    panels = []
    for title, column in (("information, share of H(topic)", None), ("entropy within topics over log E", 2)):
        marks = []
        for kind, style in (("mixed", "top2"), ("one topic", "dense")):
            for weight in (0.01, 0.0):
                role = f"{kind}, weight {weight:g}"
                runs = [
                    [plan.models(results, (role,), seed, axes.get(B))[role] for B in sizes] for seed in plan.counted
                ]
                values = [
                    [float(r["information"][END] if column is None else r["usage"][END, column]) for r in row]
                    for row in runs
                ]
                marks.append(draw.band(role, style, sizes, np.array(values)))
        panels.append(draw.panel(title, draw.axis("tokens in a batch", "log"), draw.axis(title), marks))
    return draw.figure(
        "M10",
        "Specialization against batch size and diversity",
        "After as many steps: batches of all topics, or of one random topic a step; with a balance loss of weight "
        "0.01, and without.",
        "ours",
        ("MY.4",),
        panels,
    )
