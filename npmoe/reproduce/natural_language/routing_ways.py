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

__all__ = ["EQUAL", "TOLERANCE", "author_chance", "author_overlap", "by_block", "collapsed", "distinct", "explained"]
__all__ += ["followed", "in_practice", "increase", "no_higher", "pruning", "same_token", "sufficient", "suppressed"]
__all__ += ["unpredicted", "unrelated"]

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
            return lambda m: read(m["top2"][name].mean(axis=0))  # the lesser of the means: harder to exceed

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


RESPONSE, RELATIVE, CHANCE, CENTRED = range(4)  # columns of the array "response"


def suppressed() -> tuple[Way, ...]:
    """How much weaker the router responds along the mean hidden state with the balance loss."""

    def response(run: Run, column: int) -> Array:
        found = run["response"][END, :, column]
        if column in (RESPONSE, RELATIVE):
            return found
        # along other directions: of the length of the mean hidden state, and of what the data are without it
        return found * run["size"][END] * run["lengths"][END, :, column - CHANCE]

    def way(name: str, words: str, column: int) -> Way:
        def T(m: Models, of: int = column) -> float:
            return _mean(np.log(response(m["top2"], of)) - np.log(response(m["balanced"], of)))

        return Way(
            name,
            f"log of {words}, without the loss over weight 0.01, mean over blocks",
            T,
            RATIO,
            (
                ("random directions of equal norm", "control", lambda m: T(m, CHANCE)),
                ("response along the data less its mean", "chance", lambda m: T(m, CENTRED)),
            )
            if column == RESPONSE
            else (),
            ("top2", "balanced"),
            "measure",
            True,
        )

    return (
        way("response, weight 0.01", "|C W mu|, the router's response along the mean hidden state", RESPONSE),
        way("relative response, weight 0.01", "|C W mu| over |C W| |mu|, the router's turn to it", RELATIVE),
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
            f"share of the experts' masks that the token explains less what the topic explains, each less what chance "
            f"gives, {where}",
            T,
            SHARE,
            (("untrained", "chance", lambda m: T(m, START)),),
        )

    return (way(None), *(way(i) for i in range(3)))


LOST = 0.1  # of the information of topics: the smallest part whose loss would matter


def collapsed() -> tuple[Way, ...]:
    """How much of what topics say of the choice is lost where each batch was of one topic."""

    def lost(m: Models, mixed: str, one: str) -> float:
        # in nats: a model that uses few experts has less to explain, and its shares would be larger
        before, after = (_mean(_beyond(m[role], "topic") * m[role]["mask entropy"][END]) for role in (mixed, one))
        return 1 - after / before

    return (
        Way(
            "information of topics, weight 0.01",
            "share of what topics say of the choice beyond chance that batches of one topic lose, balance loss of "
            "weight 0.01, mean over blocks",
            lambda m: lost(m, "labelled balanced", "one topic balanced"),
            LOST,
            (("without a balance loss", "control", lambda m: lost(m, "labelled", "one topic")),),
            ("labelled", "labelled balanced", "one topic", "one topic balanced"),
            "measure",
            True,
        ),
    )


def unrelated() -> tuple[Way, ...]:
    """How much more alike unrelated sequences are routed in the last block than in the first."""

    def T(m: Models, name: str = "unrelated", beyond: bool = True) -> float:
        jaccard, chance = m["top2"][name].T
        return float(np.diff((jaccard - beyond * chance)[[0, -1]])[0])

    def way(beyond: bool) -> Way:
        less = ", less that of random sets of as many experts"
        return Way(
            "last block minus first" + ", as it is" * (not beyond),
            "Jaccard of the smallest sets of experts that hold 80 % of a sequence's usage, pairs of sequences from "
            f"different documents{less * beyond}, last block minus first",
            lambda m: T(m, beyond=beyond),
            0.05,
            (("two halves of one sequence", "control", lambda m: T(m, "unrelated floor", beyond)),),
        )

    return way(True), way(False)


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

    def way(layer: int | None, name: str = "predicts") -> Way:
        def read(r: Array) -> float:
            return TOLERANCE - float(r.mean() if layer is None else r[layer])

        where = "mean over blocks" if layer is None else f"block {layer}"
        pooled = name == "predicts pooled"
        return Way(
            where + ", prompt and continuation pooled" * pooled,
            "0.2 minus the Mantel correlation, over pairs of prompts, of the cosine of the prompts' visits with that "
            f"of {'prompts and continuations together' if pooled else 'their own continuations'}, {where}",
            lambda m: read(m["top2"][name]),
            CORRELATION,
            (
                (
                    "continuations reassigned",
                    "chance",
                    lambda m: _mean([read(r) for r in m["top2"]["predicts null"]]),
                ),
            )
            if not pooled  # a pool has the prompt in common with it
            else (),
        )

    return (way(None), *(way(i) for i in range(3)), way(None, "predicts pooled"))


def pruning() -> tuple[Way, ...]:
    """How much more pruning the last block costs on rollouts than on prompts."""

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

    def way(name: str, where: str, column: int, nulls: tuple[tuple[str, str, Statistic], ...]) -> Way:
        return Way(
            name,
            "relative increase of the loss on the model's own continuations minus that on prompts, with the 3/8 of the "
            f"experts kept that other prompts use most, in {where}",
            lambda m: kept(m, column),
            SHARE,
            nulls,
        )

    return (
        way(
            "increase of loss, rollouts minus prompts",
            "the last block",
            1,
            (("a random 3/8", "chance", random), ("the first block", "control", lambda m: kept(m, 2))),
        ),
        way("the last two blocks", "the last two blocks", 3, ()),
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


def distinct() -> tuple[Way, ...]:
    """How much more the answers of one author to one question share than those of different authors."""

    def read(table: Array) -> float:
        return float((table[:, ONE] - table[:, OTHERS]).mean())

    return (
        Way(
            "one author against others",
            "Jaccard of top-80 % sets of two answers of one author to one question, less that of answers of different "
            "authors to it, mean over blocks",
            lambda m: read(m["authors"]["authors"]),
            SHARE,
            (("authors permuted", "chance", lambda m: _mean([read(t) for t in m["authors"]["authors swapped"]])),),
        ),
    )


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
    """One number of an array (L,) or (L, ...) of the top-2 model; of several the first."""
    return lambda m: float(m["top2"][name][layer].flat[0])
