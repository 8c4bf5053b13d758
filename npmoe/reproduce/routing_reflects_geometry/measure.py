"""What is measured on the mixtures of one run of MY: config in, small arrays out.

n tokens, d width, E experts, k experts a token, S sequences, m topics, M models. Ends: untrained and trained.

bounds (9, 4)                   checked, violations, worst, broken of each statement of `BOUNDS`, random and near pairs
pairs (3,)                      null-space pairs: how many; of these with the same set and gates; their largest cosine
pair cosines (n,)               of all of them
pair (5,)                       the pair with the smallest cosine: its token, cosine, |x|, |y|, largest gate difference
batch (2, 2, 3, b)              with detail: see `_gains`
mantel (len(PAIRED), 2)         with detail: r and p of hidden and usage similarity, readings `PAIRED`
mantel random, mantel permuted (draws, len(PAIRED))   with random routers, and with the router's coordinates permuted
mantel start (len(PAIRED),)     untrained
by cosine (3, b)                hidden cosine in bins: its mean, the mean overlap of sets, pairs
law (4, b), law random (4, b)   correlation of scores in bins: its mean, the mean overlap of sets, pairs, simulated
row share (2, 2)                both ends: share of hidden variance in row(C W), and what random subspaces have
information (2,), information null (2,)   of choice and topic over log m, both ends; the mean over permuted topics
usage (2, 3)                    entropy over log E, largest over mean, entropy within topics over log E; both ends
response (2, 4)                 the router's response along the mean hidden state, as `mean_response` has it; both ends
size (2,)                       |C W|_F at both ends
gradient (2, 3)                 of the Switch loss along the mean hidden state, see `_gradient`
ambiguity (7,)                  mean error, individual, spread; tokens, violations of the identity, its largest error
over
                                what rounding allows; rms cosine of the experts' mean Jacobians
radius (3,)                     quantiles 5, 50, 95 % of the certified radius over |x|; NaN where soft
wall (4, q), wall ends (3,)     with detail: see `_wall`
loss ()                         at the end, of the last batch
models (...)                    see `_models`; only where there are several
"""

from dataclasses import replace
from typing import Any

import numpy as np

from npmoe.geometry import overlap
from npmoe.geometry.spectra import cosines, rms_cosine
from npmoe.model.balance import Balance, batch_term
from npmoe.model.train import fit
from npmoe.probe import function, usage
from npmoe.probe.site import Site, site
from npmoe.reproduce.routing_reflects_geometry.config import (
    Batch,
    Config,
    balance_of,
    batch,
    build,
    feed,
    generator,
)

__all__ = ["BATCHES", "BOUNDS", "GRID", "PAIRED", "TOP", "compute"]

Array = np.ndarray
Arrays = dict[str, Array]

BOUNDS = (
    "lipschitz, soft gates",
    "lipschitz by sigma_1, soft gates",
    "total variation, soft gates",
    "lipschitz, one set",
    "total variation, one set",
    "hilbert, soft gates",
    "row part, soft gates",
    "radius, inside",
    "radius, beyond",
)
#: Readings of "similar hidden states, similar usage": hidden similarity, usage similarity, of tokens or of sequences,
#: and whether the topic is held constant. The first is primary.
PAIRED = (
    ("cosine", "set_overlap", "tokens", False),
    ("cosine", "set_overlap", "tokens", True),
    ("centred cosine", "set_overlap", "tokens", False),
    ("euclidean", "set_overlap", "tokens", False),
    ("row cosine", "set_overlap", "tokens", False),
    ("cosine", "total_variation", "tokens", False),
    ("cosine", "jensen_shannon", "tokens", False),
    ("cosine", "jaccard", "sequences", False),
    ("cosine", "weighted_jaccard", "sequences", False),
)
TOKENS = 512  # of which pairs are taken for Mantel's test
TOP = 0.8  # share of usage that a sequence's set of experts holds
BATCHES = (8, 16, 32, 64, 128, 256, 512)
GRID = tuple(10.0 ** np.arange(-3, 1.26, 0.25))  # lengths of steps across a wall, over the radius


def compute(config: Config) -> Arrays:
    """Train the mixtures of a config and measure them; the work of one run."""
    data = batch(config)
    if config.models > 1:
        return _models(config, data)
    first, last, loss = _trained(config, data)
    start, end = _site(first, data), _site(last, data)
    found = {
        **_bounds(end, config),
        **_pairs(end, config),
        **_information(start, end, config),
        **_ambiguity(end, data),
        "response": np.array([usage.mean_response(s) for s in (start, end)]),
        "size": np.array([np.linalg.norm(usage.centred(s)) for s in (start, end)]),
        "gradient": _gradient(first, data),
        "row share": np.array([usage.row_share(s) for s in (start, end)]),
        "loss": np.array(loss),
    }
    if config.detail:
        found |= {**_mantel(start, end, config), **_wall(end, config), "batch": _gains(first, data, config)}
    return found


def _trained(config: Config, data: Batch, model: int = 0) -> tuple[Any, Any, float]:
    """The mixture untrained and trained, and its last loss."""
    x, y = feed(config, data)
    frozen = ("router",) if config.router == "frozen" else ()
    first = last = build(config, model)
    loss = float("nan")
    for step in fit(first, x, y, config.steps, balance=balance_of(config), frozen=frozen):
        _, loss, last = step
    return first, last, loss


def _site(moe: Any, data: Batch) -> Site:
    return replace(site(moe, data.x), labels={"topic": data.topic, "sequence": data.sequence})


# ---- exact statements -----------------------------------------------------------------------------------------------


def _bounds(here: Site, config: Config) -> Arrays:
    rng = generator(config.seed, "pairs")
    size = np.linalg.norm(here.x, axis=1, keepdims=True)
    partners = [here.x[rng.permutation(here.n)]]
    # steps from a thousandth of |x| to ten times it: near pairs are where a bound is nearly reached
    for step in (1e-3, 1e-1, 1.0, 10.0):
        way = rng.standard_normal(here.x.shape)
        partners.append(here.x + step * size * way / np.linalg.norm(way, axis=1, keepdims=True))
    total = np.zeros((len(BOUNDS), 4))
    for i, other in enumerate(partners):
        found = usage.bounds(here, other, rng)
        for row, name in zip(total, BOUNDS, strict=True):
            if i and name.startswith("radius"):
                continue  # these speak of tokens, not of pairs
            s = found.named(name)
            row += (s.checked, s.violations, 0, s.broken)
            row[2] = max(row[2], s.worst)
    return {"bounds": total}


def _pairs(here: Site, config: Config) -> Arrays:
    """Pairs in the router's null space: the same routing at the smallest cosine that can be had, but for a tenth."""
    rng = generator(config.seed, "pairs", 1)
    seen = here.x @ usage.row_basis(here)
    size = np.linalg.norm(here.x, axis=1)
    hidden = np.sqrt(np.maximum(size**2 - (seen**2).sum(axis=1), 0))
    y = usage.null_pair(here, np.arange(here.n), -0.9 * hidden / size, rng)
    gates, chosen = here.router.moe.route(y)  # type: ignore[union-attr]
    apart = np.abs(gates - here.gates).max(axis=1)
    # the scores of y are those of x but for their rounding, which the gates halve
    scale = np.abs(here.router.effective).sum(axis=1).max() * np.maximum(np.abs(y), np.abs(here.x)).max(axis=1)  # type: ignore[union-attr]
    equal = (np.sort(chosen, axis=1) == np.sort(here.chosen, axis=1)).all(axis=1)  # type: ignore[arg-type]
    equal &= apart <= 4 * config.d * np.finfo(float).eps * scale
    cosine = (here.x * y).sum(axis=1) / (size * np.linalg.norm(y, axis=1))
    at = int(np.where(equal, cosine, np.inf).argmin())
    return {
        "pair cosines": cosine,
        "pairs": np.array([here.n, equal.sum(), cosine[equal].max(initial=-1)]),
        "pair": np.array([at, cosine[at], size[at], np.linalg.norm(y[at]), apart[at]]),
    }


# ---- how much in practice -------------------------------------------------------------------------------------------


def _some(here: Site, config: Config) -> Site:
    """Whole sequences, spread over the batch, of at most `TOKENS` tokens."""
    few = max(2, min(config.sequences, TOKENS // config.length))
    wanted = np.unique(here.labels["sequence"])[np.linspace(0, config.sequences - 1, few).astype(int)]
    return _rows(here, np.flatnonzero(np.isin(here.labels["sequence"], wanted)))


def _rows(here: Site, rows: Array) -> Site:
    return replace(
        here,
        x=here.x[rows],
        gates=here.gates[rows],
        chosen=None if here.chosen is None else here.chosen[rows],
        labels={name: label[rows] for name, label in here.labels.items()},
    )


def _similar(here: Site, few: Site, reading: tuple[str, str, str, bool]) -> tuple[Array, Array, Array | None]:
    """Hidden similarity, usage similarity, and what is held constant."""
    kind, measure, of, partial = reading
    if of == "sequences":
        hidden = usage.hidden_similarity(here, kind, "sequence")
        return hidden, usage.similarity(here, measure, "sequence", p=TOP), None
    topic = few.labels["topic"]
    held = (topic[:, None] == topic).astype(float) if partial else None
    return usage.hidden_similarity(few, kind), usage.similarity(few, measure), held


def _r(here: Site, few: Site, reading: tuple[str, str, str, bool], config: Config, permutations: int) -> Array:
    """r and p of a reading; sequences are permuted as wholes."""
    rng = generator(config.seed, "null", 1)
    A, B, C = _similar(here, few, reading)
    blocks = few.labels["sequence"] if reading[2] == "tokens" else None
    if C is None:
        found = overlap.mantel(A, B, rng, permutations, blocks)
    else:
        found = overlap.partial_mantel(A, B, C, rng, permutations, blocks)
    return np.array([found.r, found.p])


def _mantel(start: Site, end: Site, config: Config) -> Arrays:
    def all_of(here: Site, permutations: int = 1) -> Array:
        few = _some(here, config)
        return np.array([_r(here, few, reading, config, permutations) for reading in PAIRED])

    rng = generator(config.seed, "null")
    moe = end.router.moe  # type: ignore[union-attr]
    W = moe.router
    size = np.linalg.norm(W - W.mean(axis=0))
    nulls: dict[str, list[Array]] = {"mantel random": [], "mantel permuted": []}
    for _ in range(config.draws):
        other = rng.standard_normal(W.shape)
        other *= size / np.linalg.norm(other - other.mean(axis=0))  # as sharp, and looking elsewhere
        for name, router in (("mantel random", other), ("mantel permuted", W[:, rng.permutation(config.d)])):
            null = replace(site(replace(moe, router=router), end.x), labels=end.labels)
            nulls[name].append(all_of(null)[:, 0])
    return {
        "mantel": all_of(end, config.permutations),
        "mantel start": all_of(start)[:, 0],
        **{name: np.array(values) for name, values in nulls.items()},
        "law": _law(_some(end, config), config),
        "by cosine": _by_cosine(_some(end, config)),
        "law random": _law(_some(null, config), config),
    }


def _binned(at: Array, values: Array, edges: Array, fewest: int = 20) -> tuple[Array, Array]:
    """Means of `at`, of values, and counts in bins, (3, b), NaN where there are few; and which bins have enough."""
    bins = np.clip(np.digitize(at, edges) - 1, 0, len(edges) - 2)
    count = np.bincount(bins, minlength=len(edges) - 1)
    out = np.full((3, len(edges) - 1), np.nan)
    some = count >= fewest
    for row, weights in zip(out, (at, values, None), strict=True):
        total = np.bincount(bins, weights, len(edges) - 1)[some]
        row[some] = total if weights is None else total / count[some]
    return out, some


def _by_cosine(here: Site) -> Array:
    i, j = np.triu_indices(here.n, 1)
    cosine = np.clip(usage.hidden_similarity(here, "cosine")[i, j], -1, 1)
    return _binned(cosine, usage.similarity(here, "set_overlap")[i, j], np.linspace(-1, 1, 21))[0]


def _law(here: Site, config: Config) -> Array:
    """Overlap of two tokens' sets against the correlation of their scores, in bins: mean correlation, mean overlap,
    pairs, and what simulated normal scores of that correlation have, (4, b)."""
    s = usage.centred(here) @ here.x.T  # (E, n)
    s = s.T / np.linalg.norm(s, axis=0)[:, None]
    i, j = np.triu_indices(here.n, 1)
    rho = np.clip((s @ s.T)[i, j], -1, 1)
    both = usage.similarity(here, "set_overlap")[i, j]
    found, some = _binned(rho, both, np.linspace(-1, 1, 21))
    drawn = np.full(len(some), np.nan)
    rng = generator(config.seed, "null", 2)
    drawn[some] = overlap.topk_simulated(found[0, some], config.E, config.k, rng, 4000)
    return np.vstack([found, drawn])


# ---- specialization -------------------------------------------------------------------------------------------------


def _table(here: Site, topic: Array, E: int) -> Array:
    """How often tokens of each topic chose each expert, (m, E)."""
    chosen = np.asarray(here.chosen)
    _, at = np.unique(topic, return_inverse=True)
    table = np.zeros((at.max() + 1, E), np.int64)
    np.add.at(table, (np.repeat(at, chosen.shape[1]), chosen.ravel()), 1)
    return table


def _information(start: Site, end: Site, config: Config) -> Arrays:
    """Information between expert and topic in shares of log m, and its null: whole sequences given other topics."""
    found: dict[str, list[Any]] = {"information": [], "information null": [], "usage": []}
    for here in (start, end):
        topic = here.labels["topic"]
        most = np.log(config.topics)
        table = _table(here, topic, config.E)
        found["information"].append(float(overlap.mutual_information(table)) / most)
        rng = generator(config.seed, "null", 3)
        blocks = topic.reshape(config.sequences, config.length)
        null = [
            float(overlap.mutual_information(_table(here, blocks[rng.permutation(len(blocks))].ravel(), config.E)))
            for _ in range(config.draws)
        ]
        found["information null"].append(np.mean(null) / most)
        counts = table.sum(axis=0)
        within = np.average([overlap.entropy_share(row) for row in table], weights=table.sum(axis=1))
        found["usage"].append([overlap.entropy_share(counts), overlap.max_over_mean(counts), within])
    return {name: np.array(values) for name, values in found.items()}


# ---- balance --------------------------------------------------------------------------------------------------------


def _share_along(moe: Any, x: Array, mu: Array, balance: Balance) -> float:
    """Share of the balance loss's gradient on the router that lies along mu."""
    _, ds = balance(moe.scores(x), moe.route(x)[1])
    G = ds.T @ x  # (E, d)
    total = float((G**2).sum())
    along = G @ mu / np.linalg.norm(mu)
    return float(along @ along) / total if total > 0 else float("nan")


def _small(moe: Any, scale: float) -> Any:
    """The mixture with scores `scale` times as large."""
    return replace(moe, router=scale * moe.router)


def _gradient(moe: Any, data: Batch) -> Array:
    """Share of the Switch loss's gradient along the mean hidden state, (2, 3): on the untrained router, and with
    scores a tenth as large, where the law holds; with counts, with counts on x less its mean, and with f = P."""
    mu = data.x.mean(axis=0)
    hard, soft = Balance(), Balance(fraction="soft")
    cases = ((data.x, hard), (data.x - mu, hard), (data.x, soft))
    return np.array([[_share_along(_small(moe, scale), x, mu, loss) for x, loss in cases] for scale in (1.0, 0.1)])


def _gains(moe: Any, data: Batch, config: Config) -> Array:
    """What batches add to the balance loss of an untrained router, (2, 2, 3, b): scores as they are and a tenth as
    large; batches of all topics and of one; predicted, measured, standard error; sizes `BATCHES`."""
    rng = generator(config.seed, "null", 4)
    loss = Balance(fraction="soft")
    return np.array(
        [
            [_batches(_small(moe, scale), data, loss, mixed, rng, config) for mixed in (True, False)]
            for scale in (1.0, 0.1)
        ]
    )


def _batches(moe: Any, data: Batch, loss: Balance, mixed: bool, rng: np.random.Generator, config: Config) -> Array:
    n = len(data.x)
    Sigma = np.cov(data.x.T, bias=True)
    topics, at = np.unique(data.topic, return_inverse=True)
    # a topic is drawn first, all alike, and then its tokens
    between = np.cov(np.stack([data.x[at == t].mean(axis=0) for t in range(len(topics))]).T, bias=True)
    within = np.mean([np.cov(data.x[at == t].T, bias=True) for t in range(len(topics))], axis=0)
    scores, chosen = moe.scores(data.x), moe.route(data.x)[1]
    whole = loss(scores, chosen)[0]
    out = np.zeros((3, len(BATCHES)))
    for i, B in enumerate(BATCHES):
        out[0, i] = batch_term(Sigma, moe.router, B) if mixed else batch_term(within, moe.router, B, between=between)
        values = []
        for _ in range(10 * config.draws):
            pool = np.arange(n) if mixed else np.flatnonzero(at == rng.integers(len(topics)))
            some = rng.choice(pool, B)  # with replacement: tokens of a batch are independent
            values.append(loss(scores[some], chosen[some])[0] - whole)
        out[1:, i] = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    return out


def _ambiguity(here: Site, data: Batch) -> Arrays:
    """Error taken apart; the identity's violations and its largest error over what rounding allows: sums of d squares
    and k weights, of which each is rounded a few times, (d + k + 8) eps of the larger terms."""
    found = usage.ambiguity(here, data.y)
    k = here.E if here.chosen is None else here.chosen.shape[1]
    allowed = (data.y.shape[1] + k + 8) * np.finfo(float).eps * (found.individual + found.spread)
    off = np.abs(found.error - (found.individual - found.spread)) / allowed
    means = cosines(np.nan_to_num(function.mean_jacobians(here)))
    parts = [found.error.mean(), found.individual.mean(), found.spread.mean()]
    return {"ambiguity": np.array([*parts, here.n, (off > 1).sum(), off.max(), rms_cosine(means)])}


# ---- walls ----------------------------------------------------------------------------------------------------------


def _wall(here: Site, config: Config) -> Arrays:
    """Across the nearest wall: medians over tokens at each length of step over the radius.

    wall (4, q): |f(x + eps u) - f(x)|/eps over |J u|, towards the wall and in random directions, and the quantiles 5
    and 95 % of the first. wall ends (3,): median of |jump|/|f|, of |jump|/(radius |J|_2), and the share of tokens with
    a wall. radius (3,): quantiles 5, 50, 95 % of the radius over |x|.
    """
    few = _some(here, config)
    if config.k == config.E:
        nothing = np.full((4, len(GRID)), np.nan)
        return {"wall": nothing, "wall ends": np.full(3, np.nan), "radius": np.full(3, np.nan)}
    found = usage.wall(few, generator(config.seed, "pairs", 2), GRID)
    towards, random = found.towards / found.slope[:, None], found.random / found.slope_random[:, None]
    f = np.linalg.norm(few.router.moe.forward(few.x)[0], axis=1)  # type: ignore[union-attr]
    jump = np.linalg.norm(found.jump, axis=1)
    walled = np.isfinite(found.radius)
    radius = found.radius[walled] / np.linalg.norm(few.x, axis=1)[walled]
    return {
        "wall": np.stack([np.nanmedian(towards, axis=0), np.nanmedian(random, axis=0),
                          *np.nanquantile(towards, [0.05, 0.95], axis=0)]),
        "wall ends": np.array([np.median((jump / f)[walled]),
                               np.median(jump[walled] / (found.radius * found.norm)[walled]), walled.mean()]),
        "radius": np.quantile(radius, [0.05, 0.5, 0.95]),
    }  # fmt: skip


# ---- several models on the same data --------------------------------------------------------------------------------


def _models(config: Config, data: Batch) -> Arrays:
    """Overlap of the experts that models use, at both ends (2, ...), means over pairs of models, on held-out sequences.

    models, models start (r, 6) for the readings of `MODELS`: the same query, unmatched and matched; matched on the very
    sequences that are scored; different queries, across models (matched) and within one; queries permuted before
    matching. sizes (2,): mean size of a query's set over E, and the Jaccard that random sets of these sizes have.
    """
    ends = [_trained(config, data, model)[:2] for model in range(config.models)]
    found = {}
    for name, end in (("models start", 0), ("models", 1)):
        sites = [_site(pair[end], data) for pair in ends]
        found[name] = _compared(sites, config)
    sets = overlap.top_p(np.concatenate([_frequencies(s) for s in sites]), TOP)
    sizes = sets.sum(axis=1)
    chance = overlap.jaccard_chance(sizes[:, None], sizes[None], config.E).mean()
    return {**found, "sizes": np.array([sizes.mean() / config.E, chance])}


MODELS = ("jaccard of sets", "weighted jaccard of usage", "overlap of tokens' sets")


def _frequencies(here: Site) -> Array:
    return usage.frequencies(here)[1]


def _compared(sites: list[Site], config: Config) -> Array:
    rows = []
    for a, one in enumerate(sites):
        for b, other in enumerate(sites):
            if a < b:
                rng = generator(config.seed, "match", a * len(sites) + b)
                rows.append(_pair(one, other, rng))
    return np.mean(rows, axis=0)


def _pair(one: Site, other: Site, rng: np.random.Generator) -> Array:
    """One pair of models by each reading of `MODELS`, (3, 6)."""
    sequence = one.labels["sequence"]
    half = overlap.split_halves(len(sequence), rng, sequence)
    P, Q = usage.usage(one), usage.usage(other)
    order = overlap.match(P[half], Q[half])
    # the null: what each token of the second model chose is given to the tokens of other sequences, then matched
    ids = np.unique(sequence)
    places = np.arange(len(sequence)).reshape(len(ids), -1)
    mixed = np.concatenate([_permuted(places[_of(ids, sequence, side)], rng) for side in (half, ~half)])
    moved = np.empty(len(sequence), int)
    moved[np.concatenate([np.flatnonzero(half), np.flatnonzero(~half)])] = mixed
    null_order = overlap.match(P[half], Q[moved][half])
    return np.array([_scores(P, Q, half, order, moved, null_order, sequence, kind) for kind in MODELS])


def _of(ids: Array, sequence: Array, side: Array) -> Array:
    return np.isin(ids, np.unique(sequence[side]))


def _permuted(places: Array, rng: np.random.Generator) -> Array:
    """Tokens of sequences (s, length) with no sequence in its own place."""
    return np.roll(places[rng.permutation(len(places))], 1, axis=0).ravel() if len(places) > 1 else places.ravel()


def _scores(
    P: Array, Q: Array, half: Array, order: Array, moved: Array, null_order: Array, sequence: Array, kind: str
) -> list[float]:
    def table(U: Array, rows: Array) -> Array:
        if kind == MODELS[2]:
            return U[rows] > 0
        groups, at = np.unique(sequence[rows], return_inverse=True)
        total = np.zeros((len(groups), U.shape[1]))
        np.add.at(total, at, U[rows])
        total /= total.sum(axis=1, keepdims=True)
        return overlap.top_p(total, TOP) if kind == MODELS[0] else total

    measure = {MODELS[0]: "jaccard", MODELS[1]: "weighted_jaccard", MODELS[2]: "set_overlap"}[kind]
    rest = ~half
    A, raw, matched = table(P, rest), table(Q, rest), table(Q[:, order], rest)
    fitted = table(P, half), table(Q[:, order], half)
    null = table(Q[moved][:, null_order], rest)

    def same(X: Array, Y: Array) -> float:
        return float(overlap.MEASURES[measure].function(X, Y).mean())

    def different(X: Array, Y: Array) -> float:
        """Mean over pairs of different queries; tokens of one sequence are one query."""
        pairs = overlap.similarities(measure, X, Y)
        of = sequence[rest] if kind == MODELS[2] else np.arange(len(X))
        return float(pairs[of[:, None] != of].mean())

    return [same(A, raw), same(A, matched), same(*fitted), different(A, matched), different(A, A), same(A, null)]
