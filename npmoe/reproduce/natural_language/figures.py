"""The figures of SC2 as data: what to draw in the grammar of `npmoe.report`, not how."""

from typing import Any

import numpy as np

from npmoe.geometry.spectra import defined_mean, rms_cosine
from npmoe.probe.function import NORMS
from npmoe.reproduce import draw
from npmoe.reproduce.draw import Mark
from npmoe.reproduce.experiment import Models, Results, Run, Trial
from npmoe.reproduce.natural_language.config import Config
from npmoe.reproduce.natural_language.measure import EXPLAINS
from npmoe.reproduce.natural_language.text import prepared

__all__ = ["figures"]

Array = np.ndarray
_NAMES = {"dense": "dense", "top2": "top-2 experts", "soft": "soft experts"}


def figures(results: Results, plan: Trial) -> dict[str, dict[str, Any]]:
    """Every figure that the finished runs allow, by file name."""
    if not all(plan.found(results, role, seed) for role in _NAMES for seed in plan.counted):
        return {}
    seeds = plan.seeds_of(results, tuple(_NAMES))
    return {
        "sc2-loss": _loss(seeds, plan.base.text.name),
        "sc2-sensitivity": _sensitivity(seeds),
        "sc2-experts": _experts(seeds),
        "sc2-usage": _usage(seeds),
        **_topics(results, plan),
        "sc2-text": _text(seeds[0], plan.base),
    }


def _blocks(seeds: list[Models]) -> list[int]:
    return list(range(seeds[0]["top2"]["share"].shape[0]))


def _loss(seeds: list[Models], text: str) -> Mark:
    marks = []
    for role, name in _NAMES.items():
        steps = seeds[0][role]["steps"]
        marks.append(draw.band(name, role, steps, np.array([np.exp(m[role]["loss"]) for m in seeds])))
    names = ("unigram", "Kneser-Ney bigram", "Kneser-Ney trigram")
    baselines = np.exp(np.mean([m["dense"]["baselines"] for m in seeds], axis=0))
    marks += [draw.level(name, float(y)) for name, y in zip(names, baselines, strict=True)]
    return draw.figure(
        "sc2-loss",
        "Held-out perplexity",
        f"At the ends of the stages of training on {text}, beside count-based models on the same tokens. "
        "Untrained models give every word the same probability.",
        "ours",
        ("SC2.1",),
        [draw.panel("over training", draw.axis("training step"), draw.axis("perplexity", "log"), marks)],
    )


def _sensitivity(seeds: list[Models]) -> Mark:
    column = NORMS.index("sigma token")

    def over_training(block: int | None) -> list[Mark]:
        marks = []
        for role, name in _NAMES.items():
            values = np.array([m[role]["layer norms"][:, :, 0, column] for m in seeds])  # (seeds, s + 1, L)
            values = values.mean(axis=2) if block is None else values[..., block]
            marks.append(draw.band(name, role, seeds[0][role]["steps"], values))
        return marks

    axes = draw.axis("training step"), draw.axis("leading singular value", "log")
    panels = [draw.panel("mean over blocks", *axes, over_training(None))]
    panels += [draw.panel(f"block {i}", *axes, over_training(i)) for i in _blocks(seeds)]
    return draw.figure(
        "sc2-sensitivity",
        "Sensitivity of the feed-forward at a token of text",
        "The leading singular value of the whole feed-forward's Jacobian, without the router's term, mean over "
        "held-out tokens, over training.",
        "ours, for SC2's claim",
        ("SC2.1",),
        panels,
    )


def _experts(seeds: list[Models]) -> Mark:
    blocks = _blocks(seeds)
    aligned, ranks = [], []
    for role in ("top2", "soft"):
        name = _NAMES[role]
        aligned.append(
            draw.band(name, role, blocks, np.array([[rms_cosine(c) for c in m[role]["cosines"][-1]] for m in seeds]))
        )
        ranks.append(draw.band(name, role, blocks, np.array([defined_mean(m[role]["k90"][-1, 0]) for m in seeds])))
    start = np.array([[rms_cosine(c) for c in m["top2"]["cosines"][0]] for m in seeds])
    aligned.append(draw.band("top-2, untrained", "untrained", blocks, start))
    ranks.append(draw.band("dense", "dense", blocks, np.array([defined_mean(m["dense"]["k90"][-1, 0]) for m in seeds])))
    null = np.array([m["top2"]["shuffled k90"][:, 0].mean(axis=0) for m in seeds])
    ranks.append(draw.band("top-2, shuffled gates", "null", blocks, null))
    block = draw.axis("block")
    return draw.figure(
        "sc2-experts",
        "Experts by block: alignment and components",
        "Left: root mean square cosine between the experts' mean Jacobians. Right: components that hold 90 % of the "
        "variance of what an expert is given.",
        "ours, for SC2's claims",
        ("SC2.2", "SC2.3", "SC2.4"),
        [
            draw.panel("alignment", block, draw.axis("rms cosine", "log"), aligned),
            draw.panel("components", block, draw.axis("k@0.9"), ranks),
        ],
    )


def _explained(runs: list[Run], what: tuple[str, ...], blocks: list[int], end: int = 1) -> list[Mark]:
    """What labels explain of the choice by block, each beside its chance."""
    marks = []
    for name, role in zip(what, ("top2", "soft", "dense"), strict=True):
        i = EXPLAINS.index(name)
        marks.append(draw.band(name, role, blocks, np.array([run["explained"][end, i] for run in runs])))
        null = np.array([run["explained null"][end, i] for run in runs])
        marks.append(draw.band(f"{name}, by chance", "null", blocks, null))
    return marks


def _topics(results: Results, plan: Trial) -> dict[str, Mark]:
    """What tokens and topics explain, where the text has topics and the models were asked for."""
    found = [plan.found(results, "labelled", seed) for seed in plan.counted]
    runs = [run for run in found if run is not None and run.config.text.topics]
    if not runs or len(runs) < len(found):
        return {}
    blocks = list(range(runs[0]["share"].shape[0]))
    axes = draw.axis("block"), draw.axis("share of the choice", "log")
    what = ("token", "topic", "topic beyond the token")
    figure = draw.figure(
        "sc2-topics",
        "Tokens and topics",
        "How much of the choice of experts the token, the topic of its document, and the topic beyond the token "
        f"explain on {runs[0].config.text.name}, before and after training. Chance permutes the choices of tokens, or "
        "the topics of documents.",
        "ours",
        ("MY.11", "MY.4b"),
        [
            draw.panel(name, *axes, _explained(runs, what, blocks, end))
            for end, name in enumerate(("untrained", "trained"))
        ],
    )
    return {"sc2-topics": figure}


def _text(models: Models, base: Config) -> Mark:
    """Texts of the first seed's top-2 model, with the experts of each token."""
    run, words = models["top2"], prepared(base).vocabulary.words
    prompt, experts = int(run["shown prompt"]), run["shown experts"]  # experts (L, S', T, k)
    panels = [
        draw.text(f"Text {i + 1}, block {block}", [words[t] for t in ids], experts[block, i], prompt, base.E)
        for i, ids in enumerate(run["shown ids"])
        for block in range(len(experts))
    ]
    return draw.figure(
        "sc2-text",
        "Experts of each token",
        f"Pieces of held-out text, and what the top-2 model of seed {models.seed} writes after them.",
        "ours",
        ("MY.6", "MY.8"),
        panels,
    )


def _usage(seeds: list[Models]) -> Mark:
    blocks = _blocks(seeds)
    explained = _explained([m["top2"] for m in seeds], ("token", "position", "document"), blocks)
    same = [
        draw.band("equal tokens", "top2", blocks, np.array([m["top2"]["same token"][1] for m in seeds])),
        draw.band(
            "equal tokens, untrained", "untrained", blocks, np.array([m["top2"]["same token"][0] for m in seeds])
        ),
        draw.band("different tokens", "null", blocks, np.array([m["top2"]["other token"][1] for m in seeds])),
    ]
    mantel = [
        draw.band(name, role, blocks, np.array([m["top2"]["mantel"][i] for m in seeds]))
        for i, (name, role) in enumerate((("tokens", "top2"), ("sequences", "soft")))
    ]
    mantel.append(
        draw.band(
            "tokens, random router",
            "null",
            blocks,
            np.array([m["top2"]["mantel random"][:, 0].mean(axis=0) for m in seeds]),
        )
    )
    block = draw.axis("block")
    return draw.figure(
        "sc2-usage",
        "What the choice of experts follows, by block",
        "Left: how much of the experts' masks the token, its position and its document explain, next to chance. "
        "Middle: experts that equal tokens in different sequences share. Right: correlation of hidden states with "
        "usage.",
        "ours, for MY's claims",
        ("MY.1d", "MY.7", "MY.8"),
        [
            draw.panel("what explains the choice", block, draw.axis("share of the choice"), explained),
            draw.panel("the same token elsewhere", block, draw.axis("share of experts in common"), same),
            draw.panel("hidden states and usage", block, draw.axis("Mantel correlation"), mantel),
        ],
    )
