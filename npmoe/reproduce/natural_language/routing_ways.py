"""Ways to measure the claims of MY on a language model as numbers T: on held-out text, on prompts and on rollouts.

T is oriented so that the claim says T > 0, and is a mean over blocks unless a way names one.
"""

from collections.abc import Sequence

import numpy as np

from npmoe.ledger import CORRELATION, RATIO, SHARE, Statement
from npmoe.reproduce.exact import BOUNDS, NECESSARY
from npmoe.reproduce.experiment import Models, Run, Statistic, Way
from npmoe.reproduce.natural_language.measure import EXPLAINS
from npmoe.reproduce.stated import bound_statement

__all__ = ["EQUAL", "TOLERANCE", "author_chance", "author_overlap", "by_block", "collapsed", "explained", "followed"]
__all__ += ["in_practice", "increase", "no_higher", "pruning", "same_token", "sufficient", "suppressed", "unpredicted"]
__all__ += ["unrelated"]

Array = np.ndarray
START, END = 0, 1


def _mean(values: object) -> float:
    return float(np.mean(np.asarray(values)))


# ---- on held-out text ------------------------------------------------------------------------------------------------


def sufficient(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    """Bounds on how far the gates of two tokens may differ, in both directions, counted on every mixture."""
    counted = [m[role]["bounds"] for m in seeds for role in ("top2", "soft") if "bounds" in m[role].arrays]
    names = [name for name in BOUNDS if name not in NECESSARY]
    return (
        *(bound_statement(name, counted) for name in names),
        *(bound_statement(name, counted, beside=True) for name in NECESSARY),
    )


TOKENS, SEQUENCES = 0, 1


def in_practice() -> tuple[Way, ...]:
    """How much of usage similarity the similarity of hidden states explains."""

    def way(of: int | None, layer: int | None) -> Way:
        def read(table: Array) -> float:
            column = table[:, 1 if layer is None else layer]  # the middle of three layers
            return float(column.min() if of is None else column[of])

        def drawn(name: str) -> Statistic:
            return lambda m: _mean([read(table) for table in m["top2"][name]])

        what = {None: "the lesser of tokens and sequences", TOKENS: "tokens", SEQUENCES: "sequences"}[of]
        where = "middle block" if layer is None else f"block {layer}"
        return Way(
            f"{what}, {where}",
            f"Mantel correlation of the cosine of hidden states with mask overlap (tokens) and with the cosine of "
            f"visit counts (sequences), {what}, {where}, first tokens left out",
            lambda m: read(m["top2"]["mantel"]),
            CORRELATION,
            (
                ("random router", "chance", drawn("mantel random")),
                ("coordinates permuted", "chance", drawn("mantel permuted")),
                ("untrained", "chance", lambda m: read(m["top2"]["mantel start"])),
            ),
        )

    return (way(None, None), *(way(of, layer) for of in (TOKENS, SEQUENCES) for layer in range(3)))


def suppressed() -> tuple[Way, ...]:
    """How much weaker the router responds along the mean hidden state with the balance loss."""

    def response(m: Models, role: str, column: int) -> Array:
        run = m[role]
        return run["response"][END, :, 0] if column == 0 else run["size"][END] * run["response"][END, :, column]

    def T(m: Models, column: int = 0) -> float:
        return _mean(np.log(response(m, "top2", column)) - np.log(response(m, "balanced", column)))

    return (
        Way(
            "response, weight 0.01",
            "log of |C W mu|, the router's response along the mean hidden state, without the loss over weight 0.01, "
            "mean over blocks",
            T,
            RATIO,
            (
                ("random directions of equal norm", "control", lambda m: T(m, 2)),
                ("response along the data less its mean", "chance", lambda m: T(m, 3)),
            ),
            ("top2", "balanced"),
            "measure",
            True,
        ),
    )


def _beyond(run: Run, what: str, end: int = END) -> Array:
    """What a label explains of the choice beyond chance, (L,)."""
    i = EXPLAINS.index(what)
    return run["explained"][end, i] - run["explained null"][end, i]


def followed() -> tuple[Way, ...]:
    """How much more of the choice tokens explain than topics do."""

    def way(layer: int | None) -> Way:
        def T(m: Models, end: int = END) -> float:
            gap = _beyond(m["labelled"], "token", end) - _beyond(m["labelled"], "topic", end)
            return _mean(gap if layer is None else gap[layer])

        where = "mean over blocks" if layer is None else f"block {layer}"
        return Way(
            f"token minus topic, {where}",
            f"information of the token on the choice less that of the topic, each less what chance gives, over the "
            f"choice's entropy, {where}",
            T,
            SHARE,
            (("untrained", "chance", lambda m: T(m, START)),),
        )

    return (way(None), *(way(i) for i in range(3)))


def collapsed() -> tuple[Way, ...]:
    """How much less of the choice topics explain where each batch was of one topic."""
    topic = EXPLAINS.index("topic")

    def of(m: Models, mixed: str, one: str, array: str = "explained") -> float:
        with np.errstate(divide="ignore", invalid="ignore"):  # a choice that is always the same has no information
            return _mean(np.log(m[mixed][array][END, topic]) - np.log(m[one][array][END, topic]))

    def balanced(m: Models, array: str = "explained") -> float:
        return of(m, "labelled balanced", "one topic balanced", array)

    return (
        Way(
            "information of topics, weight 0.01",
            "log of the information of topics on the choice, batches of all topics over batches of one, balance loss "
            "of weight 0.01, mean over blocks",
            balanced,
            RATIO,
            (
                ("topics permuted", "chance", lambda m: balanced(m, "explained null")),
                ("without a balance loss", "control", lambda m: of(m, "labelled", "one topic")),
            ),
            ("labelled", "labelled balanced", "one topic", "one topic balanced"),
            "measure",
            True,
        ),
    )


def unrelated() -> tuple[Way, ...]:
    """How much more alike unrelated sequences are routed in the last block than in the first."""

    def T(m: Models, name: str = "unrelated") -> float:
        jaccard = m["top2"][name]
        return float(jaccard[-1] - jaccard[0])

    return (
        Way(
            "last block minus first",
            "Jaccard of the smallest sets of experts that hold 80 % of a sequence's usage, pairs of sequences from "
            "different documents, last block minus first",
            T,
            0.05,
            (("two halves of one sequence", "control", lambda m: T(m, "unrelated floor")),),
        ),
    )


def same_token() -> tuple[Way, ...]:
    """How much more experts equal tokens share in the first block than in the last."""

    def way(minus: bool) -> Way:
        def T(m: Models, end: int = END, name: str = "same token") -> float:
            overlap = m["top2"][name][end]
            if minus:
                overlap = overlap - m["top2"]["other token"][end]
            return float(overlap[0] - overlap[-1])

        nulls: tuple[tuple[str, str, Statistic], ...] = (("untrained", "chance", lambda m: T(m, START)),)
        if not minus:
            nulls = (("different tokens", "chance", lambda m: T(m, name="other token")), *nulls)
        beyond = ", less that of different tokens" if minus else ""
        return Way(
            f"first block minus last{beyond}",
            f"share of experts in common of equal tokens in different sequences{beyond}, first block minus last",
            T,
            SHARE,
            nulls,
        )

    return way(False), way(True)


# ---- MY on prompts and rollouts --------------------------------------------------------------------------------------

TOLERANCE = 0.2  # of a correlation: "does not predict" is read as less than 0.1, the whole interval
EQUAL = 0.04  # of a Jaccard: "no higher" is read as by less than 0.02, the whole interval


def unpredicted() -> tuple[Way, ...]:
    """How little the similarity of two prompts' routing says of that of their continuations."""

    def way(layer: int | None) -> Way:
        def read(r: Array) -> float:
            return TOLERANCE - float(r.mean() if layer is None else r[layer])

        where = "mean over blocks" if layer is None else f"block {layer}"
        return Way(
            where,
            "0.2 minus the Mantel correlation, over pairs of prompts, of the cosine of the prompts' visits with that "
            f"of their own continuations' visits, {where}",
            lambda m: read(m["top2"]["predicts"]),
            CORRELATION,
            (
                (
                    "continuations reassigned",
                    "chance",
                    lambda m: _mean([read(r) for r in m["top2"]["predicts null"]]),
                ),
            ),
        )

    return (way(None), *(way(i) for i in range(3)))


def pruning() -> tuple[Way, ...]:
    """How much more pruning the last two blocks costs on rollouts than on prompts."""

    def cost(found: Array, whole: Array) -> float:
        """Relative increase of the loss, rollouts minus prompts; a ratio of the two has no sense where one is "
        "negative."""
        prompts, own = found / whole - 1
        return float(own - prompts)

    def kept(m: Models, column: int) -> float:
        table = m["top2"]["pruned"]
        return cost(table[:, column], table[:, 0])

    def random(m: Models) -> float:
        return _mean([cost(found, m["top2"]["pruned"][:, 0]) for found in m["top2"]["pruned random"]])

    return (
        Way(
            "increase of loss, rollouts minus prompts",
            "relative increase of the loss on the model's own continuations minus that on prompts, with the 3/8 of the "
            "experts kept that prompts use most, in the last two blocks",
            lambda m: kept(m, 1),
            SHARE,
            (
                ("a random 3/8", "chance", random),
                ("the first two blocks", "control", lambda m: kept(m, 2)),
            ),
        ),
    )


def increase(row: int) -> Statistic:
    """Increase of the loss by pruning, in per cent: 0 prompts, 1 rollouts."""
    return lambda m: 100 * float(m["top2"]["pruned"][row, 1] / m["top2"]["pruned"][row, 0] - 1)


ONE, OTHERS, QUESTIONS, NEITHER = range(4)  # columns of the array "authors"


def no_higher() -> tuple[Way, ...]:
    """How much less different authors' answers to one question share than answers to different questions."""

    def way(layer: int | None) -> Way:
        def read(table: Array) -> float:
            gap = table[:, QUESTIONS] - table[:, OTHERS]
            return EQUAL + float(gap.mean() if layer is None else gap[layer])

        where = "mean over blocks" if layer is None else f"block {layer}"
        return Way(
            f"other questions against other authors, {where}",
            "0.04 plus the Jaccard of top-80 % sets of answers of one author to different questions, less that of "
            f"answers of different authors to one question, {where}",
            lambda m: read(m["authors"]["authors"]),
            SHARE,
            (("questions permuted", "chance", lambda m: _mean([read(t) for t in m["authors"]["authors null"]])),),
        )

    return (way(None), *(way(i) for i in range(3)))


def author_overlap(column: int) -> Statistic:
    """Jaccard of one kind of pair, mean over blocks."""
    return lambda m: _mean(m["authors"]["authors"][:, column])


def author_chance(m: Models) -> float:
    """Jaccard of random sets of these sizes, mean over blocks."""
    return _mean(m["authors"]["authors chance"])


# ---- numbers beside the claims ---------------------------------------------------------------------------------------


def explained(role: str, what: str, array: str, layer: int) -> Statistic:
    """What a label explains of a model's choice in one layer."""
    return lambda m: float(m[role][array][END, EXPLAINS.index(what), layer])


def by_block(name: str, layer: int) -> Statistic:
    """One number of an array (L,) of the top-2 model."""
    return lambda m: float(m["top2"][name][layer])
