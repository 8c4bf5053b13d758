"""What an explanation must fit: an answer beside what a faulty layer would have given, row by row, up to rounding.

n tokens, d width, o output width, E experts. An explanation is named only if it fits every token, those that agree as
well as those that are off.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.verify.judge import FINE, Part
from npmoe.verify.margins import margins
from npmoe.verify.reference import Reference, kind_of
from npmoe.verify.rounding import Rounding

__all__ = [
    "EXPLAINED",
    "FAR",
    "LOOSE",
    "Seen",
    "asked",
    "fit",
    "in_several",
    "left_by",
    "rows_of",
    "rows_off",
    "seen_of",
]
__all__ += ["tried", "unit", "worst_first"]

Array = np.ndarray

FAR, _NEAR = 6, 10  # rows on which faults are tried first: those that are farthest off, and some that agree
EXPLAINED = 0.1  # of the squared difference, at most this share may be left
LOOSE = 1e-3  # of it; where a fault that has a name leaves more, changes are looked at too


class Seen(NamedTuple):
    """An answer (n, ...) whose rows are tokens; `off` are the rows that an explanation must explain, and `used` those
    that it must fit, both (n,) booleans. Rows on a tie are in neither while there are others."""

    name: str
    ref: Reference
    got: Array
    want: Array
    usual: Array
    ratio: Array
    off: Array
    used: Array

    def __repr__(self) -> str:
        return one_line(self)


def rows_of(array: Array, part: Part) -> Array:
    """The answer as (n, ...): of a batch Jacobian the diagonal blocks."""
    n = len(part.status)
    if kind_of(part.name) == "jacobian" and array.ndim == 4:
        return array[np.arange(n), :, np.arange(n)].astype(np.float64)
    return array.astype(np.float64)


def rows_off(part: Part) -> Array:
    """Rows that are off."""
    return np.flatnonzero((part.status == "differs") | (part.status == "doubtful"))


def seen_of(ref: Reference, part: Part, array: Array) -> Seen:
    allowed, off = ref.allowed(part.name), np.isin(np.arange(len(part.status)), rows_off(part))
    used = off | (part.status == FINE)
    if (off & ~ref.undecided).any() or not off.any():
        off, used = off & ~ref.undecided, used & ~ref.undecided
    return Seen(part.name, ref, rows_of(array, part), allowed.want, allowed.usual, part.ratio, off, used)


def unit(seen: Seen, rows: Array, made: Array) -> Array:
    """What rounding usually does to an explanation's numbers: about what it does to ours, the more the larger."""
    want, usual = seen.want[rows], seen.usual[rows]
    axes = tuple(range(1, want.ndim))

    def largest(a: Array) -> Array:
        return np.abs(a).max(axis=axes, keepdims=True, initial=0)

    grown = np.maximum(1, np.divide(largest(made), largest(want), out=np.ones_like(largest(want)), where=want.any()))
    # a gate that is zero in ours has no rounding of its own
    return grown * np.where(usual > 0, usual, largest(usual)) + 1e-13 * (np.abs(want) + np.abs(made)) + 1e-300


def left_by(seen: Seen, rows: Array, made: Array | None) -> Array | None:
    """How far an explanation's numbers are from the answer, in units of what is usual; None if they are no answer."""
    if made is None or made.shape != seen.got[rows].shape or not np.isfinite(made).all():
        return None
    return np.abs(made - seen.got[rows]) / unit(seen, rows, made)


def fit(seen: Seen, rows: Array, layer: Any) -> float | None:
    """Sum of squares of what a layer leaves unexplained in these rows; None if it does not explain them."""
    made = asked(seen, rows, layer)
    left = left_by(seen, rows, made)
    if left is None or made is None:
        return None
    near = np.asarray(
        (left <= 2).reshape(len(rows), -1).all(axis=1)
    )  # the faulty map rounds about as the right one does
    if not near.all():
        # a token that a faulty router leaves on a tie may go either way
        if 2 * near.sum() < len(near) or not near[seen.off[rows]].any():
            return None
        if not (near | _tied(seen.ref, layer, rows)).all():
            return None
        rows, made, left = rows[near], made[near], left[near]
    was = np.abs(seen.want[rows] - seen.got[rows]) / unit(seen, rows, made)
    square = float((left * left).sum())
    return square if square <= EXPLAINED * float((was * was).sum()) else None


def _tied(ref: Reference, layer: Any, rows: Array) -> Any:
    """Rows that a layer with a fault routes by less than rounding; none of one that is only a wrong derivative."""
    r = Rounding(ref.arithmetic)
    try:
        margin = margins(layer, r.given(ref.x[rows]), r)
    except (TypeError, AttributeError):  # a layer with a wrong derivative is none whose rounding is known
        return np.zeros(len(rows), bool)
    return np.asarray(margin.gap <= margin.noise)


def asked(seen: Seen, rows: Array, layer: Any) -> Array | None:
    ref = seen.ref
    return _answer_of(layer, kind_of(seen.name), ref.x[rows], None if ref.dy is None else ref.dy[rows])


def _answer_of(layer: Any, kind: str, x: Array, dy: Array | None) -> Array | None:
    """What a layer answers, for answers whose rows are tokens; None where it has no such answer."""
    try:
        if kind == "output":
            return layer.forward(x)[0]
        if kind == "gradient":
            return None if dy is None else layer.vjp(layer.forward(x)[1], dy)[0]
        if kind == "gates":
            return layer.route(x)[0]
        return getattr(layer, kind)(x)
    except (ValueError, TypeError, AttributeError):  # a fault that these sizes do not allow, or another kind of layer
        return None


def tried(seen: Seen, order: Array) -> Array:
    """The rows on which an explanation is tried before it must fit all: some that are off, some that agree."""
    fine = np.flatnonzero(seen.used & ~seen.off)
    spread = np.linspace(0, len(fine) - 1, min(_NEAR, len(fine))).astype(int)
    return np.concatenate([order[:FAR], fine[spread]])


def worst_first(seen: Seen) -> Array:
    """The rows that are off, worst first."""
    off = np.flatnonzero(seen.off)
    return off[np.argsort(-np.nan_to_num(seen.ratio[off], nan=np.inf), kind="stable")]


def in_several(seen: Seen, rows: Array, alone: Iterable[Any]) -> bool:
    """Whether a fault that is said to be in every expert makes a difference in two of them at least.

    `alone` are layers that have it in one expert each.
    """
    several = 0
    for layer in alone:
        made = asked(seen, rows, layer)
        if made is not None and (np.abs(made - seen.want[rows]) > 2 * unit(seen, rows, made)).any():
            several += 1
            if several == 2:
                return True
    return False
