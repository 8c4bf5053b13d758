"""The claims of MY told in sentences, each effect in its own unit. T is as `ways` defines it."""

from math import exp

from npmoe.ledger.told import Telling, Told, signed
from npmoe.reproduce.routing_reflects_geometry.ways import TOLERANCE

__all__ = ["TELLINGS"]


def _points(T: float) -> float:
    """A share in per cent."""
    return 100 * T


def _counted(t: Told) -> tuple[int, int]:
    """Cases and violations of the statements that decide."""
    decide = [s for s in t.claim["statements"] if not s["beside"]]
    return sum(s["checked"] for s in decide), sum(s["violations"] for s in decide)


def _my_1a(t: Told) -> str:
    checked, violations = _counted(t)
    return (
        f"Nearby hidden states are routed alike, within exact bounds: {violations:,} violations in {checked:,} cases "
        "on all trained models."
    )


def _my_1b(t: Told) -> str:
    checked, violations = _counted(t)
    return (
        f"The converse is false. In {violations:,} of {checked:,} pairs made in closed form, two hidden states with a "
        "negative cosine choose the same experts with the same gate values."
    )


def _my_1c(t: Told) -> str:
    return (
        f"Similarity of hidden states and similarity of expert usage have a Mantel correlation of {t.amount.text()}; "
        f"with a random router {t.null('random router')}."
    )


def _my_2(t: Told) -> str:
    more = t.amount
    return (
        "Clustered inputs add more to the information between expert and topic than training the router does, by "
        f"{more.text('percentage points')} of the topics' entropy."
        if more.mean >= 0
        else "Training the router adds more to the information between expert and topic than clustered inputs do, by "
        f"{more.size('percentage points')} of the topics' entropy."
    )


def _my_3(t: Told) -> str:
    return (
        f"With a balance loss of weight 0.01 the router responds to the mean hidden state {t.amount.text('times')} "
        f"less; to random directions {t.null('random directions of equal norm')} times less."
    )


def _my_4(t: Told) -> str:
    lost = t.amount
    return (
        f"Batches of one topic {signed(lost.mean, 'lose', 'gain')} {lost.size('percentage points')} of the information "
        f"between expert and topic; without a balance loss the number is {t.null('without a balance loss')}. The paper "
        "makes this remark without an experiment."
    )


def _my_10(t: Told) -> str:
    more = t.amount
    return (
        f"Two models whose experts are matched share {signed(more.mean, 'more', 'fewer')} experts on one query than on "
        f"different queries: their Jaccard overlap differs by {more.text()}."
    )


def _sc2_5(t: Told) -> str:
    checked, violations = _counted(t)
    return (
        f"The mixture's error is exactly its experts' error less their spread: {violations:,} violations in "
        f"{checked:,} cases."
    )


TELLINGS = {
    "MY.1a": Telling(_my_1a),
    "MY.1b": Telling(_my_1b),
    "MY.1c": Telling(_my_1c, lambda T: T, "Mantel correlation"),
    "MY.2": Telling(_my_2, _points, "inputs' effect minus the router's, in % of the topics' entropy"),
    "MY.3": Telling(_my_3, exp, "response without the balance loss over that with it"),
    "MY.4": Telling(_my_4, _points, "information lost with one topic a batch, in % of the topics' entropy"),
    "MY.10": Telling(_my_10, lambda T: TOLERANCE - T, "Jaccard overlap, same query minus other queries"),
    "SC2.5": Telling(_sc2_5),
}
