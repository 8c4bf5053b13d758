"""Statements of the ledger from what `exact` counted, over all Sites of all seeds."""

from collections.abc import Iterable

import numpy as np

from npmoe.ledger import Statement
from npmoe.reproduce.exact import BOUNDS

__all__ = ["ambiguity_statement", "bound_statement"]

Array = np.ndarray


def bound_statement(name: str, counted: Iterable[Array], beside: bool = False) -> Statement:
    """One of `BOUNDS` over all Sites of all seeds; `counted` are arrays as `bounds` gives them."""
    rows = np.array([table[list(BOUNDS).index(name)] for table in counted])
    checked, violations = rows[:, :2].sum(axis=0).astype(int)
    return Statement(name, BOUNDS[name], int(checked), int(violations), float(rows[:, 2].max()), beside=beside)


def ambiguity_statement(counted: Iterable[Array]) -> Statement:
    """The identity for every token of all Sites; `counted` are arrays as `ambiguity` gives them."""
    rows = np.array(list(counted))
    return Statement(
        "ambiguity",
        "|f - y|^2 = sum_e g_e |f_e - y|^2 - sum_e g_e |f_e - f|^2, for every token",
        int(rows[:, 3].sum()),
        int(rows[:, 4].sum()),
        float(rows[:, 5].max()),
    )
