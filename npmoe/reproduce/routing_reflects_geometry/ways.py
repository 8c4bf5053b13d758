"""Ways to measure the claims of MY as numbers T or exact statements, as `docs/verdicts.md` fixes them.

T is oriented so that the claim says T > 0. A claim's first way is its primary.
"""

from collections.abc import Callable, Sequence
from math import log

import numpy as np

from npmoe.ledger import CORRELATION, RATIO, SHARE, Statement
from npmoe.reproduce.exact import BOUNDS, NECESSARY
from npmoe.reproduce.experiment import Models, Statistic, Way
from npmoe.reproduce.routing_reflects_geometry.axes import CELLS, SITES, USUAL
from npmoe.reproduce.routing_reflects_geometry.measure import PAIRED
from npmoe.reproduce.routing_reflects_geometry.several import COMPARED, MODELS
from npmoe.reproduce.stated import ambiguity_statement, bound_statement

__all__ = ["END", "START", "TOLERANCE", "ambiguity", "collapsed", "compared", "effects", "in_practice", "informed"]
__all__ += ["necessary", "owed", "shared", "spread", "sufficient", "suppressed"]

Array = np.ndarray
START, END = 0, 1
TOLERANCE = 0.05 + SHARE  # "no greater" is read as: by less than 0.05, the whole interval


# ---- MY.1a and MY.1b: exact statements -------------------------------------------------------------------------------


def sufficient(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    """Bounds on how far the gates of two tokens may differ, counted on every Site."""
    counted = [m[role]["bounds"] for m in seeds for role in SITES]
    exact = tuple(bound_statement(name, counted) for name in BOUNDS if name not in NECESSARY)
    rows = np.array([table[list(BOUNDS).index("total variation, one set")] for table in counted])
    whole = np.array([table[0, 0] for table in counted])
    broken = Statement(
        "total variation, other sets",
        "the bound of soft gates, tested on top-k gates where the two tokens chose other sets: a step across a wall "
        "exchanges an expert at once",
        int((whole - rows[:, 0]).sum()),
        int(rows[:, 3].sum()),
        float("nan"),
        beside=True,
    )
    return (*exact, broken)


def necessary(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    """What equal gates say of two hidden states, and pairs that refute more than that."""
    runs = [(m, role, m[role]) for m in seeds for role in SITES]
    checked = int(sum(run["pairs"][0] for _, _, run in runs))
    same = int(sum(run["pairs"][1] for _, _, run in runs))
    m, role, least = min(runs, key=lambda item: np.nan_to_num(item[2]["pair"][1], nan=1.0))
    token, cosine, x, y, gap = least["pair"]
    example = (
        f"seed {m.seed}, {role}: token {int(token)} (|x| = {x:.3g}) and a y (|y| = {y:.3g}) with cosine {cosine:.3f} "
        f"choose the same experts, with gates that differ by {gap:.1g} at most"
    )
    refuted = Statement(
        "plain cosine",
        "only hidden states with a positive cosine are routed alike; tested on y = Pi x + v, v in ker(C W)",
        checked,
        same,
        float("inf"),
        example,
    )
    counted = [run["bounds"] for _, _, run in runs]
    return (refuted, *(bound_statement(name, counted, beside=True) for name in NECESSARY))


# ---- MY.1c: how much in practice ------------------------------------------------------------------------------------


def in_practice() -> tuple[Way, ...]:
    """How much of usage similarity the similarity of hidden states explains, in every reading of both."""

    def r(m: Models, i: int, name: str = "mantel") -> float:
        found = m["base"][name]
        return float(found[i, 0] if name == "mantel" else found[:, i].mean() if found.ndim == 2 else found[i])

    def lesser(name: str) -> Statistic:
        return lambda m: min(r(m, 0, name), r(m, 1, name))

    both = Way(
        "the lesser of tokens and sequences",
        "Mantel correlation of the cosine of hidden states with the overlap of masks (over pairs of tokens) and with "
        "the cosine of visit counts (over pairs of sequences), the lesser of the two",
        lesser("mantel"),
        CORRELATION,
        (
            ("random router", "chance", lesser("mantel random")),
            ("coordinates permuted", "chance", lesser("mantel permuted")),
            ("untrained", "chance", lesser("mantel start")),
        ),
    )

    def way(i: int) -> Way:
        hidden, measure, of, partial = PAIRED[i]
        held = ", topic held constant" if partial else ""
        return Way(
            f"{of}: {hidden}, {measure.replace('_', ' ')}{held}",
            f"Mantel correlation over pairs of {of}: {hidden} similarity of hidden states with "
            f"{measure.replace('_', ' ')} of usage{held}",
            lambda m: r(m, i),
            CORRELATION,
            (
                ("random router", "chance", lambda m: r(m, i, "mantel random")),
                ("coordinates permuted", "chance", lambda m: r(m, i, "mantel permuted")),
                ("untrained", "chance", lambda m: r(m, i, "mantel start")),
            ),
        )

    def share(m: Models, end: int = END) -> float:
        inside, chance = m["base"]["row share"][end]
        return log(inside / chance)

    seen = Way(
        "hidden variance that the router sees",
        "log of the share of hidden variance inside row(C W) over that of a random subspace, r/d",
        share,
        RATIO,
        (("untrained", "chance", lambda m: share(m, START)),),
    )
    return (both, *(way(i) for i in range(len(PAIRED))), seen)


# ---- MY.2: representation or router ---------------------------------------------------------------------------------


def effects(m: Models, name: str, column: int = END) -> tuple[float, float]:
    """Main effects of the inputs and of the router on information: half the difference of two means."""
    a, b, c, d = (float(m[cell][name][column]) for cell in CELLS)
    return ((a + b) - (c + d)) / 4, ((a + c) - (b + d)) / 4


def owed() -> tuple[Way, ...]:
    """How much more of the information between choice and topic is the inputs' than the router's."""

    def size(m: Models, name: str = "information") -> float:
        inputs, router = effects(m, name)
        return inputs - abs(router)

    def variance(m: Models, name: str = "information") -> float:
        inputs, router = effects(m, name)
        return inputs * abs(inputs) - router**2

    def within(m: Models, column: int = 2) -> float:
        a, b, c, d = (1 - float(m[cell]["usage"][END, column]) for cell in CELLS)
        return ((a + b) - (c + d)) / 4 - abs((a + c) - (b + d)) / 4

    return (
        Way(
            "size of the effects",
            "effect of the inputs (topics over isotropic) on the information between expert and topic, in shares of "
            "the topics' entropy, minus the size of that of the router (trained or frozen); half differences of means",
            size,
            SHARE,
            (("permuted topics", "chance", lambda m: size(m, "information null")),),
        ),
        Way(
            "variance",
            "the same in squares: variance of the information owed to inputs minus that owed to the router",
            variance,
            SHARE,
            (("permuted topics", "chance", lambda m: variance(m, "information null")),),
        ),
        Way(
            "entropy within topics",
            "as the first, for 1 minus the entropy of usage within a topic over log E",
            within,
            SHARE,
            (("permuted topics", "chance", lambda m: within(m, 3)),),
        ),
    )


def informed(cell: str) -> Statistic:
    """Information between choice and topic of one cell, as a share of the topics' entropy."""
    return lambda m: float(m[cell]["information"][END])


SWITCH, _, TASK, _, RANDOM = range(5)  # rows of the array "gradient"


# ---- MY.3 and MY.4: balance -----------------------------------------------------------------------------------------


def _response(m: Models, role: str, column: int) -> float:
    """|C W v|/|v| along random directions (2) or the data less its mean (3)."""
    return float(m[role]["size"][END] * m[role]["response"][END, column])


def suppressed() -> tuple[Way, ...]:
    """How much weaker the router responds along the mean hidden state with the balance loss."""

    def response(weight: float) -> Way:
        role = f"weight {weight:g}"

        def T(m: Models) -> float:
            return log(m["weight 0"]["response"][END, 0] / m[role]["response"][END, 0])

        def elsewhere(column: int) -> Statistic:
            return lambda m: log(_response(m, "weight 0", column) / _response(m, role, column))

        return Way(
            f"response, weight {weight:g}",
            f"log of |C W mu|, the router's response along the mean hidden state, without the loss over "
            f"weight {weight:g}",
            T,
            RATIO,
            (
                ("random directions of equal norm", "control", elsewhere(2)),
                ("response along the data less its mean", "chance", elsewhere(3)),
            ),
        )

    def along(m: Models, row: int) -> float:
        return float(m["weight 0"]["gradient"][0, row, 0]) - 1 / m["weight 0"].config.d

    def against(m: Models, row: int) -> float:
        return float(m["weight 0"]["gradient"][0, row, 1])

    def entropy(m: Models) -> float:
        return float(m["weight 0.01"]["usage"][END, 0] - m["weight 0"]["usage"][END, 0])

    def information(m: Models) -> float:
        return float(m["weight 0.01"]["information"][END] - m["weight 0"]["information"][END])

    def gradient(name: str, words: str, T: Callable[[Models, int], float], margin: float) -> Way:
        """A way that reads the Switch gradient, beside those of the task and of random cotangents."""
        nulls: tuple[tuple[str, str, Statistic], ...] = (
            ("gradient of the task", "chance", lambda m: T(m, TASK)),
            ("random cotangents", "chance", lambda m: T(m, RANDOM)),
        )
        return Way(name, words, lambda m: T(m, SWITCH), margin, nulls)

    return (
        response(USUAL),
        response(1e-3),
        response(1e-1),
        gradient(
            "gradient along the mean",
            "share of the Switch gradient on the untrained router that lies along the mean hidden state, less 1/d",
            along,
            SHARE,
        ),
        gradient(
            "gradient against the response",
            "cosine of G mu and C W mu, G the Switch gradient on the untrained router: a step against G shrinks the "
            "response along mu where it is positive",
            against,
            CORRELATION,
        ),
        Way(
            "diversity of use",
            "entropy of usage over log E, weight 0.01 minus weight 0",
            entropy,
            SHARE,
            (("untrained", "chance", lambda m: 0.0),),
        ),
        Way(
            "specialization kept",
            "information between expert and topic in shares of the topics' entropy, weight 0.01 minus weight 0",
            information,
            SHARE,
            (
                (
                    "permuted topics",
                    "chance",
                    lambda m: float(m["weight 0.01"]["information null"][END] - m["weight 0"]["information null"][END]),
                ),
            ),
        ),
    )


def collapsed() -> tuple[Way, ...]:
    """How much information is lost where each batch has one topic."""

    def information(m: Models, a: str, b: str) -> float:
        return float(m[a]["information"][END] - m[b]["information"][END])

    def entropy(m: Models, a: str, b: str) -> float:
        return float(m[b]["usage"][END, 2] - m[a]["usage"][END, 2])

    def way(name: str, words: str, T: object, weight: float) -> Way:
        mixed, one = f"mixed, weight {weight:g}", f"one topic, weight {weight:g}"
        again = f"mixed again, weight {weight:g}"
        return Way(
            f"{name}, weight {weight:g}",
            f"{words}, balance loss of weight {weight:g}",
            lambda m: T(m, mixed, one),  # type: ignore[operator]
            SHARE,
            (
                ("mixed batches in another order", "chance", lambda m: T(m, mixed, again)),  # type: ignore[operator]
                ("without a balance loss", "control", lambda m: T(m, "mixed, weight 0", "one topic, weight 0")),  # type: ignore[operator]
            ),
        )

    informed = (
        "information between expert and topic over the topics' entropy, batches of all topics minus batches of one"
    )
    spread = "entropy of usage within a topic over log E, batches of one topic minus batches of all"
    return (
        way("information", informed, information, USUAL),
        way("information", informed, information, 0.1),
        way("entropy within topics", spread, entropy, 0.01),
        way("entropy within topics", spread, entropy, 0.1),
    )


# ---- MY.10: several models -------------------------------------------------------------------------------------------

SAME, OTHER = COMPARED.index("same query"), COMPARED.index("other topics")


def shared() -> tuple[Way, ...]:
    """How much less the experts that different models use on one query overlap than on different ones."""

    def way(kind: str, other: str = "other topics", same: str = "same query") -> Way:
        i, j, k = MODELS.index(kind), COMPARED.index(same), COMPARED.index(other)
        numbered = same.endswith("as numbered")

        def T(m: Models, name: str = "models", j: int = j, k: int = k) -> float:
            row = m["models"][name][i]
            return TOLERANCE - float(row[j] - row[k])

        def permuted(m: Models) -> float:
            return T(m, "models", COMPARED.index("queries permuted"), COMPARED.index("other topics, queries permuted"))

        how = "experts as numbered" if numbered else "experts matched on the other half of the queries"
        # only for two models and other topics was the same statistic taken with queries permuted
        chance = (("queries permuted", "chance", permuted),) if other == "other topics" else ()
        return Way(
            f"{kind}, {other}",
            f"{TOLERANCE:g} minus how much more two models overlap on one query than on: {other}; {kind}, {how}",
            T,
            SHARE,
            (*chance, ("untrained", "chance", lambda m: T(m, "models start"))),
            full=True,
        )

    return (
        way(MODELS[0]),
        way(MODELS[0], "other topics, one model"),
        way(MODELS[0], "other queries of one topic"),
        way(MODELS[0], "other queries of one topic, one model"),
        way(MODELS[0], "queries permuted, as numbered", "same query, as numbered"),
        *(way(kind, other) for kind in MODELS[1:] for other in ("other topics", "other topics, one model")),
    )


def compared(name: str) -> Statistic:
    """The overlap of different models' experts on such pairs of queries."""
    return lambda m: float(m["models"]["models"][0, COMPARED.index(name)])


# ---- SC2.5 ----------------------------------------------------------------------------------------------------------


def ambiguity(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    """The ambiguity identity, counted for every token."""
    return (ambiguity_statement(m[role]["ambiguity"] for m in seeds for role in SITES),)


def spread(role: str) -> Statistic:
    """The experts' spread over their mean error."""
    return lambda m: float(m[role]["ambiguity"][2] / m[role]["ambiguity"][1])
