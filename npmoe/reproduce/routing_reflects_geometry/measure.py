"""What is measured on the mixtures of one run of MY: config in, small arrays out.

n tokens, d width, E experts, k experts a token, S sequences, m topics, M models. Ends: untrained and trained.

bounds (9, 4)                   checked, violations, worst, broken of each of `exact.BOUNDS`, random and near pairs
pairs (2,)                      how many null-space pairs; how many with one set and equal gates at a cosine <= 0
pair cosines (n,)               null-space pairs: cosines of those with the same set and gates, else NaN
pair (5,)                       the pair with the smallest cosine: its token, cosine, |x|, |y|, largest gate difference
batch (2, 2, 3, b)              with detail: see `_gains`
mantel (len(PAIRED), 2)         with detail: r and p of hidden and usage similarity, readings `PAIRED`
mantel random, mantel permuted (draws, len(PAIRED))   with random routers, and with the router's coordinates permuted
mantel start (len(PAIRED),)     untrained
by cosine (3, b)                hidden cosine in bins: its mean, the mean overlap of sets, pairs
law (6, b), law random (6, b)   correlation of scores in bins, with the trained and a random router: see `_law`
row share (2, 2)                both ends: share of hidden variance in row(C W), and what random subspaces have
information (2,), information null (2,)   of choice and topic over H(topic), both ends; the mean over permuted topics
usage (2, 4)                    entropy over log E, largest over mean, entropy within topics over log E, and with topics
                                permuted; both ends
response (2, 4)                 the router's response along the mean hidden state, as `mean_response` has it; both ends
size (2,)                       |C W|_F at both ends
gradient (2, 5, 2)              of the Switch loss and others along the mean hidden state, see `_gradient`
ambiguity (7,)                  mean error, individual, spread; tokens, violations of the identity, its largest
                                error over what rounding allows; rms cosine of the experts' mean Jacobians
radius (3,)                     quantiles 5, 50, 95 % of the certified radius over |x|; NaN where soft
wall (4, q), wall ends (3,)     with detail: see `_wall`
loss ()                         at the end, of the last batch
models, models start, sizes     see `several.compare`; only where there are several
"""

from dataclasses import replace
from typing import Any

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.products import matmul
from npmoe.geometry import association, evenness
from npmoe.model.balance import Balance, batch_term
from npmoe.model.train import fit, mse
from npmoe.probe import router, usage, walls
from npmoe.probe.null import permuted_router, random_router
from npmoe.probe.site import Site, site
from npmoe.reproduce import exact
from npmoe.reproduce.routing_reflects_geometry import several
from npmoe.reproduce.routing_reflects_geometry.config import (
    Batch,
    Config,
    balance_of,
    batch,
    build,
    feed,
    generator,
)

__all__ = ["BATCHES", "GRID", "PAIRED", "compute"]

Array = np.ndarray
Arrays = dict[str, Array]

#: Readings of "similar hidden states, similar usage": hidden similarity, usage similarity, of tokens or of sequences,
#: and whether the topic is held constant. The first is that of
#: tokens (MY's overlap of binary masks), the second of sequences (MY's cosine of visit counts); together primary.
PAIRED = (
    ("cosine", "set_overlap", "tokens", False),
    ("cosine", "cosine", "sequences", False),
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
BATCHES = (8, 16, 32, 64, 128, 256, 512)
GRID = tuple(10.0 ** np.arange(-3, 1.26, 0.25))  # lengths of steps across a wall, over the radius


def compute(config: Config) -> Arrays:
    """Train the mixtures of a config and measure them; the work of one run."""
    data = batch(config)
    if config.models > 1:
        ends = [_trained(config, data, model)[:2] for model in range(config.models)]
        untrained, trained = ([_site(pair[i], data) for pair in ends] for i in (0, 1))
        return several.compare(untrained, trained, config)
    first, last, loss = _trained(config, data)
    start, end = _site(first, data), _site(last, data)
    found = {
        "bounds": exact.bounds(end, generator(config.seed, "pairs")),
        **_pairs(end, config),
        **_information(start, end, config),
        "ambiguity": exact.ambiguity(end, data.y),
        "response": np.array([router.mean_response(s) for s in (start, end)]),
        "size": np.array([np.linalg.norm(router.centred(s)) for s in (start, end)]),
        "gradient": _gradient(first, data, config),
        "row share": np.array([router.row_share(s) for s in (start, end)]),
        "loss": np.array(loss),
    }
    if config.detail:
        found |= {**_mantel(start, end, config), **_wall(end, config), "batch": _gains(first, data, config)}
    return found


def _trained(config: Config, data: Batch, model: int = 0) -> tuple[Any, Any, float]:
    """The mixture untrained and trained, and its last loss."""
    x, y = feed(config, data)
    frozen = ("router",) if config.router == "frozen" else ()
    first = build(config, model)
    last, loss = tree.cast(first, config.dtype), float("nan")
    for step in fit(last, x, y, config.steps, balance=balance_of(config), frozen=frozen):
        _, loss, last = step
    return first, tree.cast(last, np.float64), loss


def _site(moe: Any, data: Batch) -> Site:
    return replace(site(moe, data.x), labels={"topic": data.topic, "sequence": data.sequence})


# ---- exact statements -----------------------------------------------------------------------------------------------


def _pairs(here: Site, config: Config) -> Arrays:
    """Pairs in the router's null space: the same routing at the smallest cosine that can be had, but for a tenth."""
    if not router.null_basis(here).shape[1]:  # as many experts as dimensions: nothing is hidden from the router
        return {"pair cosines": np.full(here.n, np.nan), "pairs": np.zeros(2), "pair": np.full(5, np.nan)}
    rng = generator(config.seed, "pairs", 1)
    seen = matmul(here.x, router.row_basis(here))
    size = np.linalg.norm(here.x, axis=1)
    hidden = np.sqrt(np.maximum(size**2 - (seen**2).sum(axis=1), 0))
    y = router.null_pair(here, np.arange(here.n), -0.9 * hidden / size, rng)
    gates, chosen = here.router.moe.route(y)  # type: ignore[union-attr]
    apart = np.abs(gates - here.gates).max(axis=1)
    # the scores of y are those of x but for their rounding, which the gates halve
    scale = np.abs(here.router.effective).sum(axis=1).max() * np.maximum(np.abs(y), np.abs(here.x)).max(axis=1)  # type: ignore[union-attr]
    equal = (np.sort(chosen, axis=1) == np.sort(here.chosen, axis=1)).all(axis=1)  # type: ignore[arg-type]
    equal &= apart <= 4 * config.d * np.finfo(float).eps * scale
    cosine = np.where(equal, (here.x * y).sum(axis=1) / (size * np.linalg.norm(y, axis=1)), np.nan)
    at = int(np.where(equal, cosine, np.inf).argmin())
    return {
        "pair cosines": cosine,
        "pairs": np.array([here.n, (cosine <= 0).sum()]),
        "pair": np.array([at, cosine[at], size[at], np.linalg.norm(y[at]), apart[at]]),
    }


# ---- how much in practice -------------------------------------------------------------------------------------------


def _some(here: Site, config: Config) -> Site:
    """Whole sequences, spread over the batch, of at most `TOKENS` tokens."""
    few = max(2, min(config.sequences, TOKENS // config.length))
    wanted = np.unique(here.labels["sequence"])[np.linspace(0, config.sequences - 1, few).astype(int)]
    return here.take(np.flatnonzero(np.isin(here.labels["sequence"], wanted)))


class _Similarities:
    """Tables of similarity that the readings of `PAIRED` share: of hidden states kept over Sites of the same tokens."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kept: dict[tuple[str, str], Array] = {}

    def correlations(self, here: Site, permutations: int = 1) -> Array:
        """r and p of each reading of `PAIRED`; sequences are permuted as wholes."""
        few = _some(here, self.config)
        made: dict[tuple[str, str], Array] = {}
        return np.array([self._r(here, few, made, reading, permutations) for reading in PAIRED])

    def _r(self, here: Site, few: Site, made: dict[tuple[str, str], Array], reading: Any, permutations: int) -> Any:
        kind, measure, of, partial = reading
        rng = generator(self.config.seed, "null", 1)
        hidden = made if kind == "row cosine" else self.kept  # which is the router's
        if (kind, of) not in hidden:
            label = "sequence" if of == "sequences" else None
            hidden[kind, of] = usage.hidden_similarity(here if label else few, kind, label)
        if (measure, of) not in made:
            made[measure, of] = (
                usage.similarity(here, measure, "sequence", p=several.TOP)
                if of == "sequences"
                else usage.similarity(few, measure)
            )
        A, B = hidden[kind, of], made[measure, of]
        blocks = few.labels["sequence"] if of == "tokens" else None
        if not partial:
            found = association.mantel(A, B, rng, permutations, blocks)
        else:
            topic = few.labels["topic"]
            held = (topic[:, None] == topic).astype(float)
            found = association.partial_mantel(A, B, held, rng, permutations, blocks)
        return found.r, found.p


def _mantel(start: Site, end: Site, config: Config) -> Arrays:
    all_of = _Similarities(config).correlations

    rng = generator(config.seed, "null")
    nulls: dict[str, list[Array]] = {"mantel random": [], "mantel permuted": []}
    random = end
    for _ in range(config.draws):
        random, permuted = random_router(end, rng), permuted_router(end, rng)
        for name, null in (("mantel random", random), ("mantel permuted", permuted)):
            nulls[name].append(all_of(null)[:, 0])
    return {
        "mantel": all_of(end, config.permutations),
        "mantel start": all_of(start)[:, 0],
        **{name: np.array(values) for name, values in nulls.items()},
        "law": _law(_some(end, config), config),
        "by cosine": _by_cosine(_some(end, config)),
        "law random": _law(_some(random, config), config),
    }


def _binned(at: Array, values: Array, edges: Array, fewest: int = 20) -> Array:
    """Means of `at`, of values, and counts in bins, (3, b), NaN where there are few."""
    bins = np.clip(np.digitize(at, edges) - 1, 0, len(edges) - 2)
    count = np.bincount(bins, minlength=len(edges) - 1)
    out = np.full((3, len(edges) - 1), np.nan)
    some = count >= fewest
    for row, weights in zip(out, (at, values, None), strict=True):
        total = np.bincount(bins, weights, len(edges) - 1)[some]
        row[some] = total if weights is None else total / count[some]
    return out


def _by_cosine(here: Site) -> Array:
    i, j = np.triu_indices(here.n, 1)
    cosine = np.clip(usage.hidden_similarity(here, "cosine")[i, j], -1, 1)
    return _binned(cosine, usage.similarity(here, "set_overlap")[i, j], np.linspace(-1, 1, 21))


def _law(here: Site, config: Config) -> Array:
    """Overlap of two tokens' sets against the correlation of their scores, in bins, (6, b): mean correlation, mean
    overlap and pairs; and the same of Gaussian hidden states of the same mean and covariance through this router.

    A correlation of so few scores is an estimate, and sorting by it biases the overlap in each bin: both sides are
    sorted alike.
    """
    rng = generator(config.seed, "null", 2)
    covariance = np.cov(here.x.T)
    values, vectors = np.linalg.eigh(covariance)
    noise = rng.standard_normal((here.n, config.d)) * np.sqrt(np.maximum(values, 0))
    plain = site(here.router.moe, here.x.mean(axis=0) + matmul(noise, vectors.T))  # type: ignore[union-attr]
    return np.vstack([_by_correlation(s) for s in (here, plain)])


def _by_correlation(here: Site) -> Array:
    s = matmul(here.x, router.centred(here).T).T  # (E, n)
    s = (s / np.linalg.norm(s, axis=0)).T
    i, j = np.triu_indices(here.n, 1)
    rho = np.clip(matmul(s, s.T)[i, j], -1, 1)
    return _binned(rho, usage.similarity(here, "set_overlap")[i, j], np.linspace(-1, 1, 21))


# ---- specialization -------------------------------------------------------------------------------------------------


def _table(here: Site, topic: Array, E: int) -> Array:
    """How often tokens of each topic chose each expert, (m, E)."""
    chosen = np.asarray(here.chosen)
    _, at = np.unique(topic, return_inverse=True)
    table = np.zeros((at.max() + 1, E), np.int64)
    np.add.at(table, (np.repeat(at, chosen.shape[1]), chosen.ravel()), 1)
    return table


def _information(start: Site, end: Site, config: Config) -> Arrays:
    """Information between expert and topic in shares of the topics' entropy; and with topics of whole sequences
    permuted."""
    found: dict[str, list[Any]] = {"information": [], "information null": [], "usage": []}
    for here in (start, end):
        topic = here.labels["topic"]
        share = np.unique(topic, return_counts=True)[1] / here.n
        most = float(-(share * np.log(share)).sum())  # the topics' own entropy
        table = _table(here, topic, config.E)
        rng = generator(config.seed, "null", 3)
        blocks = topic.reshape(config.sequences, config.length)
        null = [_table(here, blocks[rng.permutation(len(blocks))].ravel(), config.E) for _ in range(config.draws)]
        found["information"].append(float(association.mutual_information(table)) / most)
        found["information null"].append(np.mean([association.mutual_information(t) for t in null]) / most)
        counts = table.sum(axis=0)
        within = [_within(table), float(np.mean([_within(t) for t in null]))]
        found["usage"].append([evenness.entropy_share(counts), evenness.max_over_mean(counts), *within])
    return {name: np.array(values) for name, values in found.items()}


def _within(table: Array) -> float:
    """Entropy of usage within a topic over log E, mean over tokens."""
    return float(np.average(evenness.entropy_share(table), weights=table.sum(axis=1)))


# ---- balance --------------------------------------------------------------------------------------------------------


def _along(G: Array, W: Array, mu: Array) -> list[float]:
    """Share of a gradient on the router that lies along mu, and the cosine of G mu with C W mu: a step against G
    shrinks the response along mu where it is positive."""
    total, response = float((G**2).sum()), matmul(W - W.mean(axis=0), mu)
    along = matmul(G, mu)
    size = float(np.linalg.norm(along) * np.linalg.norm(response))
    share = float(matmul(along, along)) / float(matmul(mu, mu)) / total if total > 0 else float("nan")
    return [share, float(matmul(along, response)) / size if size > 0 else float("nan")]


def _small(moe: Any, scale: float) -> Any:
    """The mixture with scores `scale` times as large."""
    return replace(moe, router=scale * moe.router)


def _gradient(moe: Any, data: Batch, config: Config) -> Array:
    """Gradients on the untrained router, (2, 5, 2): scores as they are and a tenth as large; of the Switch loss, of the
    Switch loss with f = P, of the task, of the Switch loss with its cotangents handed to other tokens, of random
    cotangents; their share along the mean hidden state and the cosine of G mu with C W mu (`_along`)."""
    rng = generator(config.seed, "null", 5)
    mu = data.x.mean(axis=0)
    rows = []
    for scale in (1.0, 0.1):
        model = _small(moe, scale)
        scores, chosen = model.scores(data.x), model.route(data.x)[1]
        hard, soft = (balance(scores, chosen)[1] for balance in (Balance(), Balance(fraction="soft")))
        prediction, trace = model.forward(data.x)
        task = model.vjp(trace, mse(prediction, data.y)[1], wrt_x=False)[1].router
        random = rng.standard_normal(scores.shape)
        others = [
            matmul(hard.T, data.x),
            matmul(soft.T, data.x),
            task,
            matmul(hard[rng.permutation(len(hard))].T, data.x),
            matmul(random.T, data.x),
        ]
        rows.append([_along(G, model.router, mu) for G in others])
    return np.array(rows)


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
    topics, at, count = np.unique(data.topic, return_inverse=True, return_counts=True)
    # a topic is drawn first, by its size, and then its tokens
    means = np.stack([data.x[at == t].mean(axis=0) for t in range(len(topics))])
    between = np.cov(means.T, bias=True, fweights=count)
    within = Sigma - between
    scores, chosen = moe.scores(data.x), moe.route(data.x)[1]
    whole = loss(scores, chosen)[0]
    out = np.zeros((3, len(BATCHES)))
    for i, B in enumerate(BATCHES):
        out[0, i] = batch_term(Sigma, moe.router, B) if mixed else batch_term(within, moe.router, B, between=between)
        values = []
        for _ in range(10 * config.draws):
            pool = np.arange(n) if mixed else np.flatnonzero(at == at[rng.integers(n)])
            some = rng.choice(pool, B)  # with replacement: tokens of a batch are independent
            values.append(loss(scores[some], chosen[some])[0] - whole)
        out[1:, i] = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    return out


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
    found = walls.wall(few, generator(config.seed, "pairs", 2), GRID)
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
