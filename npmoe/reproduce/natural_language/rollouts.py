"""Texts that the models write themselves, and how they are routed: the claims of MY on prompts and rollouts.

L layers; Q questions, A authors, S samples.

predicts (L,), predicts null (draw, L)    Mantel correlation of both over pairs of prompts; continuations reassigned
predicts pooled (L,)                      of prompts with prompts and continuations together
pruned (2, 4)                             mean loss on prompts and on continuations: whole, and with the most used
                                          experts kept in the last layer, in the first, and in the last two
pruned random (draw, 2)                   with as many random experts of the last layer kept
shown ids (S', t + c), shown prompt ()    a few prompts and what the model wrote after them
shown experts (L, S', t + c, k)           the experts of each token there, the largest gate first
authors (L, 4)                            Jaccard of top-P sets, mean over pairs: one question one author, one question
                                          other authors, other questions one author, other in both
authors null (draw, L, 4)                 questions permuted among the texts of each author
authors swapped (draw, L, 4)              authors permuted among the texts on each question
authors chance (L,)                       exact Jaccard of two random sets of these sizes
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from npmoe.geometry import association
from npmoe.geometry.overlap import jaccard, jaccard_chance, similarities, top_p
from npmoe.model.language import evaluate, sample
from npmoe.model.transformer import Transformer
from npmoe.probe import usage
from npmoe.probe.language import sites
from npmoe.reproduce.natural_language.config import Authors, Config, Stage
from npmoe.reproduce.natural_language.text import prepared
from npmoe.reproduce.natural_language.trained import generator, model_at

__all__ = ["KEPT", "TOP", "authors", "least", "prompts_of", "rollouts"]

Array = np.ndarray
Arrays = dict[str, Array]

TOP = 0.8  # share that a top-P set holds, as MY has it
KEPT = 3 / 8  # of the experts, as the paper keeps 12 of 32
SAMPLES = 2
SHOWN = 2  # texts for a page


def _sizes(config: Config) -> tuple[int, int, int]:
    """Prompts, tokens of a prompt, tokens of a continuation: a quarter and a half of a sequence."""
    return min(64, max(8, config.tokens // 32)), max(4, config.T // 4), max(6, config.T // 2)


def least(config: Config) -> int:
    """Held-out tokens that the measures of a model need: two neighbouring sequences, and its prompts."""
    P, t, _ = _sizes(config)
    return max(2 * config.T + 1, P * t)


def prompts_of(config: Config, count: int, length: int) -> Array:
    """Pieces of the held-out text, (count, length), others for each seed: no two overlap."""
    ids = prepared(config).heldout.ids
    starts = generator(config.seed, "prompts").choice(len(ids) // length, count, replace=False)
    return np.stack([ids[s * length : (s + 1) * length] for s in np.sort(starts)])


def _visits(model: Transformer, ids: Array, first: int, last: int | None = None) -> Array:
    """Shares of visits at these positions of each sequence, (L, sequences, E)."""
    found = []
    for site in sites(model, ids):
        on = usage.usage(site).reshape(*ids.shape, -1)[:, first:last]
        found.append(on.sum(axis=1) / on.sum(axis=(1, 2))[:, None])
    return np.array(found)


def rollouts(config: Config, arrays: Mapping[str, Array]) -> Arrays:
    """Prompts and what a model writes after them: does one predict the other, and which bears pruning better?"""
    model = model_at(config, arrays)
    P, t, c = _sizes(config)
    prompts = prompts_of(config, P, t)
    texts = sample(model, prompts, c, generator(config.seed, "rollouts"))
    of_prompt, of_rollout = _visits(model, texts, 1, t), _visits(model, texts, t)
    rng = generator(config.seed, "rollouts", 1)
    order = [rng.permutation(P) for _ in range(config.draws)]
    return {
        "predicts": _predicts(of_prompt, of_rollout),
        "predicts null": np.array([_predicts(of_prompt, of_rollout[:, o]) for o in order]),
        "predicts pooled": _predicts(of_prompt, _visits(model, texts, 1)),
        **_pruning(model, texts, t, of_prompt, config),
        **_shown(model, texts[:: max(1, P // SHOWN)][:SHOWN], t, config),
    }


def _shown(model: Transformer, texts: Array, t: int, config: Config) -> Arrays:
    order = [
        np.argsort(-site.gates, axis=1, kind="stable")[:, : config.k].reshape(*texts.shape, config.k)
        for site in sites(model, texts)
    ]
    return {"shown ids": texts, "shown experts": np.array(order), "shown prompt": np.array(t)}


def _predicts(one: Array, other: Array) -> Array:
    """Mantel correlation over pairs of prompts of the cosines of visits, (L,)."""
    rng = np.random.default_rng(0)  # one permutation, which nothing reads
    return np.array(
        [association.mantel(similarities("cosine", P), similarities("cosine", Q), rng, 1).r
         for P, Q in zip(one, other, strict=True)]
    )  # fmt: skip


def _pruning(model: Transformer, texts: Array, t: int, of_prompt: Array, config: Config) -> Arrays:
    """Losses with the most used experts kept: chosen by what one half of the prompts uses, judged on the other half."""
    L, keep = len(model.blocks), max(config.k, round(KEPT * config.E))
    order = np.argsort(-of_prompt[:, ::2].mean(axis=1), axis=1, kind="stable")  # (L, E)
    others = texts[1::2]
    parts = ((), (L - 1,), (0,), range(max(0, L - 2), L))
    found = [_losses(_kept(model, {i: order[i, :keep] for i in part}), others, t) for part in parts]
    rng = generator(config.seed, "rollouts", 2)
    random = [
        _losses(_kept(model, {L - 1: rng.permutation(config.E)[:keep]}), others, t)
        for _ in range(max(1, config.draws // 4))
    ]
    return {"pruned": np.array(found).T, "pruned random": np.array(random)}


def _kept(model: Transformer, experts: Mapping[int, Array]) -> Transformer:
    """The model with only these experts of some blocks left to choose from."""
    blocks = list(model.blocks)
    for i, kept in experts.items():
        bias = np.full(len(blocks[i].feed.experts), -1e4)  # scores are of order one: never chosen, and still finite
        bias[kept] = 0.0
        blocks[i] = replace(blocks[i], feed=replace(blocks[i].feed, bias=bias))
    return replace(model, blocks=tuple(blocks))


def _losses(model: Transformer, texts: Array, t: int) -> tuple[float, float]:
    """Mean loss on the prompts' tokens and on the continuations'."""
    with np.errstate(under="ignore"):  # gates of what was pruned
        losses = evaluate(model, texts[:, :-1], texts[:, 1:])
    return float(losses[:, : t - 1].mean()), float(losses[:, t - 1 :].mean())


def authors(config: Authors, read: Mapping[Stage, Mapping[str, Array]]) -> Arrays:
    """Texts of several authors to the same questions, all read by the first; the work of one run."""
    reader = config.models[0]
    models = [model_at(model, read[stage]) for model, stage in zip(config.models, config.reads(), strict=True)]
    P, t, c = _sizes(reader)
    questions = prompts_of(reader, min(24, P), t)
    texts, question, author = [], [], []
    for number, (model, of) in enumerate(zip(models, config.models, strict=True)):
        for s in range(SAMPLES):
            # the stream is the reader's and the author's: no text is read by two readers
            rng = generator(reader.seed, "rollouts", 10 + SAMPLES * of.seed + s)
            texts.append(sample(model, questions, c, rng))
            question.append(np.arange(len(questions)))
            author.append(np.full(len(questions), number))
    q, a = np.concatenate(question), np.concatenate(author)
    sets = top_p(_visits(models[0], np.concatenate(texts), t), TOP)  # (L, Q A S, E)
    rng = generator(reader.seed, "rollouts", 9)
    sizes = sets.sum(axis=2)
    i, j = np.triu_indices(len(q), 1)
    return {
        "authors": _by_kind(sets, q, a),
        "authors null": np.array([_by_kind(sets, _permuted(q, a, rng), a) for _ in range(reader.draws)]),
        "authors swapped": np.array([_by_kind(sets, q, _permuted(a, q, rng)) for _ in range(reader.draws)]),
        "authors chance": np.array([jaccard_chance(size[i], size[j], sets.shape[2]).mean() for size in sizes]),
    }


def _permuted(label: Array, within: Array, rng: np.random.Generator) -> Array:
    """Labels permuted among the texts that are alike in another."""
    out = label.copy()
    for value in np.unique(within):
        rows = np.flatnonzero(within == value)
        out[rows] = label[rng.permutation(rows)]
    return out


def _by_kind(sets: Array, q: Array, a: Array) -> Array:
    """Mean Jaccard over pairs of texts, by whether question and author are the same, (L, 4)."""
    i, j = np.triu_indices(len(q), 1)
    kinds = [(q[i] == q[j]) == same_q for same_q in (True, True, False, False)]
    of_author = [(a[i] == a[j]) == same_a for same_a in (True, False, True, False)]
    found = np.array([jaccard(of[i], of[j]) for of in sets])  # (L, pairs)
    return np.array([found[:, k & o].mean(axis=1) if (k & o).any() else np.full(len(sets), np.nan)
                     for k, o in zip(kinds, of_author, strict=True)]).T  # fmt: skip
