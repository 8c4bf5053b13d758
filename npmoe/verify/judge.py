"""One answer held against what is allowed: errors by row in units of eps, a status for each row, a verdict.

n rows: tokens, or rows of a parameter or of a mean Jacobian.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.verify.reference import Allowed
from npmoe.verify.rounding import Arithmetic

__all__ = ["FINE", "OPEN", "OTHER", "VERDICTS", "Part", "Row", "judge", "listed", "none", "statuses", "worst"]

Array = np.ndarray

#: From best to worst. A report has the worst of its parts'.
VERDICTS = {
    "agrees": "every entry is as near as rounding usually brings it",
    "undecided": "some rows lie on a tie, where the derivative is undefined, and differ there",
    "doubtful": "farther off than rounding usually is (a chance of 1e-6), though at worst it might be",
    "no answer": "an answer that was asked for is missing or cannot be compared",
    "differs": "farther off than any rounding could bring it",
}
FINE, OTHER, OPEN, FAR, WRONG = "agrees", "other choice", "undecided", "doubtful", "differs"


class Row(NamedTuple):
    """One row of an answer at the entry `at` that is nearest to its limit: error, also in units of eps times the row's
    largest entry, and what was allowed in these units."""

    row: int
    status: str
    error: float
    units: float
    usual: float
    worst: float
    at: tuple[int, ...]
    ours: float
    theirs: float


@dataclass(frozen=True, eq=False)
class Part:
    """One answer judged. Arrays are (rows,): tokens, or rows of a parameter or of the mean Jacobian.

    Attributes
    ----------
    name, verdict : of the answer; a verdict of VERDICTS.
    error, scale, units : largest error of the row, its largest entry, and their ratio in eps.
    ratio : error over what rounding usually allows, entry by entry, the largest of the row; above 1 it is too far.
    usual, worst, nearest : limits and error, in the units, of the entry where that ratio is largest.
    status : "agrees", "other choice" (agrees with another way in which a tie may fall), "undecided", "doubtful",
        "differs".
    remarks : sentences.
    """

    name: str
    verdict: str
    eps: float
    error: Array
    scale: Array
    units: Array
    usual: Array
    worst: Array
    nearest: Array
    ratio: Array
    status: Array
    where: Array
    ours: Array
    theirs: Array
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def largest(self) -> float:
        """Largest error in units of eps times its row's scale, over rows that a tie leaves decided."""
        decided = self.units[self.status != OPEN]
        return float(decided.max(initial=0.0))

    def rows(self, most: int = 5) -> list[Row]:
        """The worst rows, worst first."""
        order = np.argsort(-np.nan_to_num(self.ratio, nan=np.inf), kind="stable")[:most]
        return [
            Row(
                int(i),
                str(self.status[i]),
                float(abs(self.theirs[i] - self.ours[i])) if np.isfinite(self.theirs[i]) else np.inf,
                float(self.nearest[i]),
                float(self.usual[i]),
                float(self.worst[i]),
                tuple(int(j) for j in self.where[i]),
                float(self.ours[i]),
                float(self.theirs[i]),
            )
            for i in order
        ]


def worst(verdicts: list[str]) -> str:
    """The worst of several verdicts; of none, "no answer"."""
    return max(verdicts, key=list(VERDICTS).index, default="no answer")


def statuses(array: Array, allowed: Allowed) -> Array:
    """ "agrees", "doubtful" or "differs" for each row; NaN differs."""
    n = len(array)
    error = np.abs(array - allowed.want)
    status = np.full(n, FINE, dtype=object)
    status[~(error <= allowed.usual).reshape(n, -1).all(axis=1)] = FAR
    status[~(error <= allowed.worst).reshape(n, -1).all(axis=1)] = WRONG
    return status


def judge(
    arithmetic: Arithmetic,
    name: str,
    array: Array,
    allowed: Allowed,
    status: Array | None = None,
    remarks: tuple[str, ...] = (),
) -> Part:
    """A `Part` of an answer (n, ...); `status` where ties have been looked at, else `statuses`."""
    status = statuses(array, allowed) if status is None else status
    n = len(array)
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num(np.abs(array - allowed.want), nan=np.inf, posinf=np.inf).reshape(n, -1)
    want, got = allowed.want.reshape(n, -1), array.reshape(n, -1)
    usual, most = (a.reshape(n, -1) for a in (allowed.usual, allowed.worst))
    share = np.divide(error, usual, out=np.where(error > 0, np.inf, 0.0), where=usual > 0)
    at, rows = share.argmax(axis=1), np.arange(n)
    scale = np.abs(want).max(axis=1, initial=0)
    unit = arithmetic.eps * scale

    def units(a: Array) -> Array:
        """In units of eps times the row's scale; a row of zeros has none, and is off infinitely."""
        with np.errstate(over="ignore"):
            return np.divide(a, unit, out=np.where(a > 0, np.inf, 0.0), where=unit > 0)

    if (bad := np.flatnonzero(~np.isfinite(got).all(axis=1))).size:
        remarks = (*remarks, f"NaN or infinity in row{'s' * (bad.size > 1)} {listed(bad)}")
    where = np.stack(np.unravel_index(at, array.shape[1:]), axis=1) if array.ndim > 1 else np.zeros((n, 0), int)
    return Part(
        name,
        worst([FINE, *(FINE if s == OTHER else str(s) for s in status)]),
        arithmetic.eps,
        error.max(axis=1, initial=0),
        scale,
        units(error.max(axis=1, initial=0)),
        units(usual[rows, at]),
        units(most[rows, at]),
        units(error[rows, at]),
        share[rows, at],
        status,
        where,
        want[rows, at],
        got[rows, at],
        remarks,
    )


def none(arithmetic: Arithmetic, name: str, why: str) -> Part:
    """The part of an answer that could not be compared."""
    empty, nothing, nowhere = np.zeros(0), np.zeros(0, object), np.zeros((0, 0), int)
    seven = (empty, empty, empty, empty, empty, empty, empty)
    return Part(name, "no answer", arithmetic.eps, *seven, nothing, nowhere, empty, empty, (why,))


def listed(rows: Array, most: int = 6) -> str:
    """Numbers in words: the first few and how many more.

    Examples
    --------
    >>> listed(np.arange(8))
    '0, 1, 2, 3, 4, 5 and 2 more'
    """
    shown = ", ".join(str(int(i)) for i in rows[:most])
    return shown + (f" and {len(rows) - most} more" if len(rows) > most else "")
