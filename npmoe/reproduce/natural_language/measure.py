"""What is measured on the language models of SC2: stages in, small arrays out.

L layers, E experts, k experts a token, s stages, n held-out tokens. Ends: untrained and trained. What has s + 1 rows is
measured at the ends of all stages, 0 among them.

steps (s + 1,), loss (s + 1,)         steps, and held-out loss there
layer norms (s + 1, L, 2, 8)          of the whole feed-forward, without and with the router's term, `function.NORMS`
norms (s + 1, L, E, 8)                of each expert on its own tokens; leading values per token are NaN
cosines (s + 1, L, E, E)              between the experts' mean Jacobians
curvature (s + 1, L, E)               root mean square of the Hessian's norm; of GELU experts alone
k90, cum10 (s + 1, weighting, L, E)   principal components of what experts are given
shuffled k90, cum10 (draw, weighting, L), shuffled cosines (draw, L, E, E)
share (L, E)                          of all choices, or of the gates' sum
response (2, L, 4), size (2, L)       the router's response along the mean hidden state: see `router.mean_response`
lengths (2, L, 2)                     of the mean hidden state, and root mean square of the others' less it
row share (L,)                        of hidden variance, within what the router sees
mantel, mantel start (2, L), mantel random, mantel permuted (draw, 2, L)
                                      tokens: hidden cosine against mask overlap; sequences: against visit counts
unrelated, unrelated floor (L, 2)     Jaccard of top-P sets of different sequences, and of two halves of one sequence;
                                      beside each that of random sets of these sizes
same token, other token (2, L)        mask overlap of equal tokens in other sequences, of different tokens; both ends
explained, explained null (2, 5, L)   share of the experts' masks that each of `EXPLAINS` explains, both ends; by
                                      chance. Topics are NaN where the text has none
mask entropy (2, L)                   sum over experts of the entropy of their masks, in nats
bounds (9, 4)                         of all layers, as `exact.bounds` counts them
ambiguity (L, 7)                      of the feed-forward's output towards zero, as `exact.ambiguity` counts it
baselines (3,)                        of a dense model: unigram, Kneser-Ney bigram and trigram, nats per held-out token
predicts, pruned, ...                 on prompts and rollouts: see `npmoe.reproduce.natural_language.rollouts`

A model thinned to the n_eff of another (`thin`) has k90 (L,) and n_eff (L,), the one aimed at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from npmoe.data.text import kneser_ney, unigram, windows
from npmoe.geometry import association
from npmoe.geometry.overlap import jaccard, jaccard_chance, top_p
from npmoe.geometry.pca import n_eff
from npmoe.geometry.spectra import cosines, defined_mean, k_at, share
from npmoe.model.language import evaluate
from npmoe.probe import function, router, usage
from npmoe.probe.language import sites
from npmoe.probe.null import permuted_router, random_router, shuffled, thinned
from npmoe.probe.representation import WEIGHTINGS, routed_pca
from npmoe.probe.site import Site
from npmoe.reproduce import exact
from npmoe.reproduce.natural_language.config import Config, Measured, Stage, Thinned
from npmoe.reproduce.natural_language.rollouts import TOP, rollouts
from npmoe.reproduce.natural_language.text import prepared
from npmoe.reproduce.natural_language.trained import build, generator, held_out, model_at

__all__ = ["EXPLAINS", "compute", "found_sites", "thin"]

Array = np.ndarray
Arrays = dict[str, Array]

PAIRED = 320  # tokens of which all pairs are compared
EXPLAINS = ("token", "position", "document", "topic", "topic beyond the token")


def found_sites(config: Config, arrays: Mapping[str, Array] | None) -> list[Site]:
    """The Sites of a model on held-out text: n tokens, sequence after sequence, two neighbours from each place."""
    ids, labels = _windows(config)
    # spread over all of the text: the first sequences would be of one document
    starts = np.linspace(0, len(ids) - 2, max(1, min(config.tokens // config.T, len(ids)) // 2)).astype(int)
    rows = np.unique(np.concatenate([starts, starts + 1]))
    return list(sites(model_at(config, arrays), ids[rows], {name: of[rows].ravel() for name, of in labels.items()}))


def _windows(config: Config) -> tuple[Array, Arrays]:
    """All of the held-out text: ids (m, T), and the document and topic of each token, (m, T) each."""
    text = prepared(config).heldout
    ids, _ = windows(text, config.T)
    document = text.document[: ids.size].reshape(ids.shape)
    _, topic = np.unique(text.topics, return_inverse=True)
    return ids, {"document": document, "topic": topic[document]}


def compute(config: Measured, read: Mapping[Stage, Mapping[str, Array]]) -> Arrays:
    """Measure the model of a config; the work of one run."""
    of = config.model
    stages = config.reads()
    followed = [found_sites(of, None), *(found_sites(of, read[stage]) for stage in stages)]
    first, last = followed[0], followed[-1]
    surveys = [[function.survey(site, tokens=False) for site in here] for here in followed]
    out = {
        "steps": np.array([0, *(stage.until for stage in stages)]),
        "loss": np.array([_untrained(of), *(float(read[stage]["held"].mean()) for stage in stages)]),
        "layer norms": np.array([[_layer(site, of) for site in here] for here in followed]),
        "norms": np.array([[survey.norms for survey in here] for here in surveys]),
        "cosines": np.array([[cosines(survey.means) for survey in here] for here in surveys]),
        **_curvature(followed, of),
        **_representation(followed),
    }
    if of.E > 1:
        out |= _shuffled(last, of) | _routing(first, last, of)
    if 1 < of.E != of.k:
        out |= _choice(of, read[stages[-1]]) | rollouts(of, read[stages[-1]])
    if of.E == 1:
        out |= _baselines(of)
    return out


def _untrained(config: Config) -> float:
    """Held-out loss before training, on the tokens that `held` losses are of."""
    return float(evaluate(build(config), *held_out(config)).mean())


def _layer(site: Site, config: Config) -> Array:
    some = np.unique(np.linspace(0, site.n - 1, min(config.spectra, site.n)).astype(int))  # from all sequences
    experts, whole, _ = function.layer_norms(site.take(some))
    return np.stack([experts, whole])


def _curvature(followed: list[list[Site]], config: Config) -> Arrays:
    if config.kind != "gpt":  # the Hessian has a closed form for GELU experts
        return {}
    return {"curvature": np.array([[function.curvature(site) for site in here] for here in followed])}


def _representation(followed: list[list[Site]]) -> Arrays:
    values = np.array(
        [[[routed_pca(site, w).eigenvalues for site in here] for w in WEIGHTINGS] for here in followed]
    )  # (s + 1, weighting, L, E, d)
    return {"k90": k_at(values), "cum10": share(values, 10)}


def _shuffled(last: list[Site], config: Config) -> Arrays:
    """Alignment and components with shuffled gates."""
    rng = generator(config.seed, "null")
    aligned = [[cosines(function.mean_jacobians(shuffled(site, rng))) for site in last] for _ in range(config.draws)]
    rng = generator(config.seed, "null", 1)
    draws = []
    for _ in range(config.draws):
        null = [shuffled(site, rng) for site in last]
        eigenvalues = np.array([[routed_pca(site, w).eigenvalues for site in null] for w in WEIGHTINGS])
        draws.append([defined_mean(k_at(eigenvalues)), defined_mean(share(eigenvalues, 10))])
    k90, cum10 = np.moveaxis(np.array(draws), 1, 0)
    return {"shuffled cosines": np.array(aligned), "shuffled k90": k90, "shuffled cum10": cum10}


def thin(config: Thinned, read: Mapping[Stage, Mapping[str, Array]]) -> Arrays:
    """Components of a model's routed states on as few effective tokens as another has; the work of one run."""
    one, other = config.reads()
    rng = generator(config.model.seed, "thin")
    k90, aimed = [], []
    pairs = zip(found_sites(config.model, read[one]), found_sites(config.to, read[other]), strict=True)
    for site, to in pairs:
        target = min(float(n_eff(to.gates).mean()), float(n_eff(site.gates).mean()))
        drawn = [thinned(replace(site, before=None), target, rng) for _ in range(config.model.draws)]
        k90.append(np.mean([defined_mean(k_at(routed_pca(kept).eigenvalues)) for kept in drawn]))
        aimed.append(target)
    return {"k90": np.array(k90), "n_eff": np.array(aimed)}


# ---- routing ---------------------------------------------------------------------------------------------------------


def _routing(first: list[Site], last: list[Site], config: Config) -> Arrays:
    E = config.E
    sets = [usage.usage(site, "sets" if config.k < E else "gates") for site in last]
    out = {"share": np.array([P.sum(axis=0) / P.sum() for P in sets])}
    responses = [[router.mean_response(site) for site in here] for here in (first, last)]
    out["response"] = np.array([[tuple(r) for r in here] for here in responses])
    out["size"] = np.array([[_size(site) for site in here] for here in (first, last)])
    out["lengths"] = np.array([[_lengths(site) for site in here] for here in (first, last)])
    out["row share"] = np.array([router.row_share(site).share for site in last])
    counted = np.array([exact.bounds(site, generator(config.seed, "pairs", 2)) for site in last])  # (L, 9, 4)
    out["bounds"] = counted.sum(axis=0)
    out["bounds"][:, 2] = counted[:, :, 2].max(axis=0)
    out["ambiguity"] = np.array([exact.ambiguity(site, np.zeros_like(site.x)) for site in last])
    if config.k == E:
        return out
    out |= _mantel(first, last, config)
    out["unrelated"], out["unrelated floor"] = np.array([_unrelated(site) for site in last]).swapaxes(0, 1)
    pairs = _pairs_of_tokens(last[0], config)
    same = np.array([[_overlaps(site, pairs) for site in here] for here in (first, last)])  # (2, L, 2)
    out["same token"], out["other token"] = same[..., 0], same[..., 1]
    return out


def _size(site: Site) -> float:
    W = site.router.effective  # type: ignore[union-attr]
    return float(np.linalg.norm(W - W.mean(axis=0)))


def _lengths(site: Site) -> tuple[float, float]:
    mu = site.x.mean(axis=0)
    return float(np.linalg.norm(mu)), float(np.sqrt(((site.x - mu) ** 2).sum(axis=1).mean()))


def _mantel(first: list[Site], last: list[Site], config: Config) -> Arrays:
    """Correlations over pairs of tokens and of sequences, (2, L) each; the first token of a sequence is left out."""
    rng = generator(config.seed, "pairs")
    later = np.flatnonzero(last[0].labels["position"] > 0)
    rows = np.sort(rng.choice(later, min(PAIRED, len(later)), replace=False))
    null = generator(config.seed, "null", 2)

    def of(here: list[Site]) -> Array:
        return np.array([_correlations(site, rows, later) for site in here]).T

    random, permuted = [], []
    for _ in range(config.draws):
        random.append(of([random_router(site, null) for site in last]))
        permuted.append(of([permuted_router(site, null) for site in last]))
    return {
        "mantel": of(last),
        "mantel start": of(first),
        "mantel random": np.array(random),
        "mantel permuted": np.array(permuted),
    }


def _correlations(site: Site, rows: Array, later: Array) -> tuple[float, float]:
    few, kept = site.take(rows), site.take(later)
    rng = np.random.default_rng(0)  # one permutation, which nothing reads
    tokens = association.mantel(usage.hidden_similarity(few), usage.similarity(few, "set_overlap"), rng, 1)
    sequences = association.mantel(
        usage.hidden_similarity(kept, "cosine", "sequence"), usage.similarity(kept, "cosine", "sequence"), rng, 1
    )
    return tokens.r, sequences.r


def _unrelated(site: Site) -> tuple[tuple[float, float], tuple[float, float]]:
    """Jaccard of top-P sets of sequences from different documents, and of two halves of a sequence: mean over pairs,
    and that of random sets of as many experts."""
    T = int(site.labels["position"].max()) + 1
    later = site.take(site.labels["position"] > 0)
    _, P = usage.frequencies(later, "sequence")
    document = site.labels["document"].reshape(-1, T)
    sets = top_p(P, TOP)
    i, j = np.triu_indices(len(P), 1)
    apart = document[i, 0] != document[j, 0]
    apart &= (document[i, -1] != document[j, 0]) & (document[i, 0] != document[j, -1])
    odd = later.labels["position"] % 2
    halves = [usage.frequencies(later.take(odd == side), "sequence")[1] for side in (0, 1)]
    return _overlap(sets[i[apart]], sets[j[apart]]), _overlap(*(top_p(half, TOP) for half in halves))


def _overlap(one: Array, other: Array) -> tuple[float, float]:
    """Mean Jaccard over pairs of sets, and that of random sets of these sizes; NaN without pairs."""
    if not len(one):
        return float("nan"), float("nan")
    chance = jaccard_chance(one.sum(axis=1), other.sum(axis=1), one.shape[1])
    return float(jaccard(one, other).mean()), float(np.mean(chance))


def _pairs_of_tokens(site: Site, config: Config) -> tuple[Array, Array, Array, Array]:
    """Pairs of equal tokens in different sequences, and as many pairs of different tokens in different sequences."""
    rng = generator(config.seed, "pairs", 1)
    token, sequence, position = (site.labels[name] for name in ("token", "sequence", "position"))
    later = np.flatnonzero(position > 0)
    i, j = rng.choice(later, (2, 200_000))
    apart = sequence[i] != sequence[j]
    equal = np.flatnonzero(apart & (token[i] == token[j]))
    # no word in more than its share of pairs: the most frequent would be all that is seen
    _, first = np.unique(np.stack([token[i[equal]], sequence[i[equal]]]), axis=1, return_index=True)
    equal = np.sort(equal[first])
    other = np.flatnonzero(apart & (token[i] != token[j]))[: len(equal)]
    return i[equal], j[equal], i[other], j[other]


def _overlaps(site: Site, pairs: tuple[Array, Array, Array, Array]) -> tuple[float, float]:
    on = usage.usage(site)
    k = site.chosen.shape[1]  # type: ignore[union-attr]
    i, j, a, b = pairs
    return float((on[i] * on[j]).sum(axis=1).mean() / k), float((on[a] * on[b]).sum(axis=1).mean() / k)


def _choice(config: Config, arrays: Mapping[str, Array]) -> Arrays:
    """What explains the choice of experts on many sequences, at both ends, and what would by chance."""
    rng = generator(config.seed, "null", 3)
    draws = range(max(1, config.draws // 4))
    found, null, entropy = [], [], []
    for at in (None, arrays):
        choices = list(_choices(config, at))
        found.append([_explained(chosen, labels, config.E) for chosen, labels in choices])
        entropy.append([_masks_entropy(chosen, config.E) for chosen, _ in choices])
        null.append([np.mean([_by_chance(*choice, config.E, rng) for _ in draws], axis=0) for choice in choices])
    out = {"explained": np.array(found).swapaxes(1, 2), "explained null": np.array(null).swapaxes(1, 2)}
    if not config.text.topics:
        for table in out.values():
            table[:, EXPLAINS.index("topic") :] = np.nan
    return out | {"mask entropy": np.array(entropy)}


def _choices(config: Config, arrays: Mapping[str, Array] | None) -> Iterator[tuple[Array, Arrays]]:
    """Chosen experts (n, k) and labels of each layer, on sequences that are spread over the held-out text."""
    ids, labels = _windows(config)
    rows = np.unique(np.linspace(0, len(ids) - 1, min(config.choices, len(ids))).astype(int))
    more = {name: of[rows].ravel() for name, of in labels.items()}
    for site in sites(model_at(config, arrays), ids[rows], more):
        yield np.asarray(site.chosen), {name: np.asarray(of) for name, of in site.labels.items()}


def _explained(chosen: Array, labels: Arrays, E: int) -> list[float]:
    """The share of the experts' masks that each of `EXPLAINS` explains."""
    found = [_information(labels[name], chosen, E) for name in ("token", "position", "document", "topic")]
    both = labels["token"].astype(np.int64) * (int(labels["topic"].max()) + 1) + labels["topic"]
    return [*found, _information(both, chosen, E) - found[0]]


def _by_chance(chosen: Array, labels: Arrays, E: int, rng: np.random.Generator) -> list[float]:
    """The same by chance: choices of tokens permuted; for documents the choices turned round, as one long text; for
    topics the documents' topics permuted among documents.

    Choices of neighbours are alike, so that permuted tokens would be too small a chance for documents and topics.
    """
    any_token = _explained(chosen[rng.permutation(len(chosen))], labels, E)
    turned = np.roll(chosen, int(rng.integers(1, len(chosen))), axis=0)
    _, first, document = np.unique(labels["document"], return_index=True, return_inverse=True)
    topic = rng.permutation(labels["topic"][first])[document]
    any_topic = _explained(chosen, labels | {"topic": topic}, E)
    return [*any_token[:2], _information(labels["document"], turned, E), *any_topic[3:]]


def _information(label: Array, chosen: Array, E: int) -> float:
    """sum_e I(label; mask_e) / sum_e H(mask_e): 1 where the label tells exactly which experts are chosen."""
    _, at, count = np.unique(label, return_inverse=True, return_counts=True)
    table = np.bincount((at[:, None] * E + chosen).ravel(), minlength=len(count) * E).reshape(len(count), E)
    whole = _masks_entropy(chosen, E)
    left = float((_entropy(table / count[:, None]) * count[:, None]).sum()) / len(chosen)
    return (whole - left) / whole if whole > 0 else float("nan")


def _masks_entropy(chosen: Array, E: int) -> float:
    """The sum over experts of the entropy of being chosen, in nats."""
    return float(_entropy(np.bincount(chosen.ravel(), minlength=E) / len(chosen)).sum())


def _entropy(p: Array) -> Array:
    """Of a yes or no of probability p, element by element."""
    q = np.stack([p, 1 - p])
    return -(q * np.log(np.where(q > 0, q, 1))).sum(axis=0)


# ---- baselines -------------------------------------------------------------------------------------------------------


def _baselines(config: Config) -> Arrays:
    """Unigram, and Kneser-Ney bigram and trigram, on the very tokens that the model is judged on."""
    data = prepared(config)
    V = len(data.vocabulary.words)
    ids = data.heldout.ids[: held_out(config)[1].size + 1]
    return {
        "baselines": np.array(
            [
                unigram(data.train.ids, ids, V),
                kneser_ney(data.train.ids, ids, V, 2),
                kneser_ney(data.train.ids, ids, V, 3),
            ]
        ),
    }
