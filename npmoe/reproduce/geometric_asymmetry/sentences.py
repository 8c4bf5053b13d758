"""The claims of GA told in sentences, each effect in its own unit. T is as `ways` defines it."""

from math import exp

from npmoe.ledger.told import Amount, Telling, Told, percent, signed

__all__ = ["TELLINGS"]


def _in_chance(T: float) -> float:
    """T = log(3 / z) as z, a number in units of chance."""
    return 3 * exp(-T)


def _ga_1(t: Told) -> str:
    return (
        f"The mean Jacobians of top-2 experts are aligned {t.amount.text('times')} as strongly as random matrices. "
        f"Experts that were trained apart are aligned {t.null('independent top-2 experts').text('times')} as strongly, "
        f"untrained ones {t.null('untrained').text('times')}."
    )


def _ga_2a(t: Told) -> str:
    change = t.amount
    return (
        f"The principal subspaces of what top-2 experts see overlap {change.size('%')} "
        f"{signed(change.mean, 'more', 'less')} than when the same gates are given to other tokens."
    )


def _ga_2b(t: Told) -> str:
    return (
        f"The principal subspaces of what top-2 experts see overlap {t.amount.text('times')} as much as random "
        f"subspaces; with shuffled gates {t.null('shuffled gates').text('times')}."
    )


def _ga_3(t: Told) -> str:
    return (
        f"Each in its own units of chance, the overlap of what experts see lies {t.amount.text('times')} as far from "
        f"chance as the alignment of their functions; with shuffled gates {t.null('shuffled gates').text('times')}."
    )


def _ga_4a(t: Told) -> str:
    return (
        f"The mean Jacobians of soft experts are aligned {t.amount.text('times')} as strongly as those of top-2 "
        f"experts; with shuffled gates {t.null('shuffled gates').text('times')}."
    )


def _ga_4b(t: Told) -> str:
    def farther(found: Amount) -> str:
        return f"{found.size('%')} {signed(found.mean, 'farther', 'less far')} apart"

    return (
        f"The subspaces of what top-2 experts see are {farther(t.amount)} than those of soft experts; with shuffled "
        f"gates they are {farther(t.null('shuffled gates'))}."
    )


TELLINGS = {
    "GA.1": Telling(_ga_1, _in_chance, "alignment of mean Jacobians over that of random matrices"),
    "GA.2a": Telling(_ga_2a, lambda T: percent(-T), "overlap of subspaces over that with shuffled gates, change in %"),
    "GA.2b": Telling(_ga_2b, exp, "overlap of subspaces over that of random subspaces"),
    "GA.3": Telling(_ga_3, exp, "distance from chance, overlap of subspaces over alignment of functions"),
    "GA.4a": Telling(_ga_4a, exp, "alignment of mean Jacobians, soft over top-2"),
    "GA.4b": Telling(_ga_4b, percent, "distance of subspaces, top-2 over soft, difference in %"),
}
