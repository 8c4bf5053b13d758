"""The claims of MY told in sentences, each effect in its own unit. T is as `ways` defines it."""

from math import exp

from npmoe.ledger.told import Amount, Telling, Told, signed
from npmoe.reproduce.routing_reflects_geometry.ways import TOLERANCE

__all__ = ["TELLINGS"]


def _points(T: float) -> float:
    """A share in per cent."""
    return 100 * T


def _my_1a(t: Told) -> str:
    counted = f"{t.violations} on trained models."
    if t.refuted:
        return f"Nearby hidden states are not always routed alike within the bounds: {counted}"
    return f"Nearby hidden states are routed alike, within exact bounds: {counted}"


def _my_1b(t: Told) -> str:
    checked, violations = t.counted
    opening = "The converse is false" if t.refuted else "No counter-example to the converse was found"
    return (
        f"{opening}. In {violations:,} of {checked:,} pairs made in closed form, two hidden states without a positive "
        "cosine choose the same experts with the same gate values."
    )


def _my_1c(t: Told) -> str:
    return (
        f"Similarity of hidden states and similarity of expert usage have a Mantel correlation of {t.amount.text()}; "
        f"with a random router {t.null('random router').text()}."
    )


def _my_2(t: Told) -> str:
    more = t.amount
    return (
        "Clustered inputs change the information between expert and topic more than training the router does, by "
        f"{more.text('percentage points')} of the topics' entropy."
        if more.mean >= 0
        else "Training the router changes the information between expert and topic more than clustered inputs do, by "
        f"{more.size('percentage points')} of the topics' entropy."
    )


def _my_3(t: Told) -> str:
    return (
        "With a balance loss of weight 0.01 the router responds to the mean hidden state "
        f"{t.amount.text('times')} as strongly as without one; to random directions "
        f"{t.null('random directions of equal norm').text('times')} as strongly."
    )


def _my_4(t: Told) -> str:
    def less(found: Amount) -> str:
        return f"{found.size('percentage points')} {signed(found.mean, 'less', 'more')}"

    return (
        f"With batches of one topic, experts and topics share {less(t.amount)} information, as a share of the topics' "
        f"entropy, than with batches of all topics; without a balance loss {less(t.null('without a balance loss'))}. "
        "The paper makes this remark without an experiment."
    )


def _my_10(t: Told) -> str:
    more = t.amount
    return (
        f"Two models whose experts are matched share {signed(more.mean, 'more', 'fewer')} experts on one query than on "
        f"different queries: their Jaccard overlap differs by {more.text()}."
    )


def _sc2_5(t: Told) -> str:
    word = "is not always" if t.refuted else "is exactly"
    return f"The mixture's error {word} its experts' error less their spread: {t.violations}."


TELLINGS = {
    "MY.1a": Telling(_my_1a),
    "MY.1b": Telling(_my_1b),
    "MY.1c": Telling(_my_1c, lambda T: T, "Mantel correlation"),
    # T has half differences of means, as an analysis of variance has; people mean the whole ones
    "MY.2": Telling(_my_2, lambda T: 200 * T, "inputs' effect minus the size of the router's, in % of topics' entropy"),
    "MY.3": Telling(_my_3, lambda T: exp(-T), "response with the balance loss over that without it"),
    "MY.4": Telling(_my_4, _points, "information lost with one topic a batch, in % of the topics' entropy"),
    "MY.10": Telling(_my_10, lambda T: TOLERANCE - T, "Jaccard overlap, same query minus other queries"),
    "SC2.5": Telling(_sc2_5),
}
