"""What asking a model of any framework shares: answers, in what arithmetic, and whether tokens feel each other.

n tokens, d width, o output width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from npmoe.calculus import tree
from npmoe.verify.judge import listed
from npmoe.verify.rounding import ARITHMETICS

__all__ = ["LARGEST", "NAMES", "SMALL", "Answers", "columns", "first_of", "fits", "known", "leaves_of", "noted", "off"]
__all__ += ["own_rows", "reader", "roughest", "same_twice", "small", "splits", "together", "wanted"]

Array = np.ndarray

#: What can be asked; the last three are derivatives, "gradient" and "parameters" of sum(dy * y).
NAMES = ("output", "gradient", "jacobian", "parameters")

LARGEST = 5 * 10**7  # elements of the tokens' Jacobians: 400 MB in float64

SMALL = 10**6  # elements of a batch's Jacobian, most of which are zeros: 8 MB in float64

_ORDER = ("float64", "float32", "float16", "bfloat16")


class Answers(dict[str, Any]):
    """Answers by name, and what is to be said of them.

    Attributes
    ----------
    remarks : what is wrong beside the numbers, in sentences: tokens that feel each other, a changed input.
    notes : what should be known, and is no fault: tensors that a mapping does not use.

    Examples
    --------
    >>> Answers({"output": np.zeros((2, 3))}, ["row 1 depends on row 0"]).remarks
    ('row 1 depends on row 0',)
    """

    def __init__(self, found: Mapping[str, Any], remarks: Iterable[str] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(found)
        self.remarks, self.notes = tuple(remarks), tuple(notes)


def known(framework: Any, arithmetic: str) -> None:
    """Raise a ValueError unless the framework has this arithmetic."""
    if arithmetic not in framework.arithmetics():
        offered = ", ".join(framework.arithmetics())
        raise ValueError(f"expected an arithmetic of {framework.NAME} among {offered}; got {arithmetic!r}")


def wanted(answers: Iterable[str]) -> frozenset[str]:
    """The answers that are asked, all of them known.

    Examples
    --------
    >>> sorted(wanted(("output", "jacobian")))
    ['jacobian', 'output']
    """
    found = frozenset((answers,) if isinstance(answers, str) else answers)
    if not found or found - set(NAMES):
        other = ", ".join(map(repr, sorted(found - set(NAMES), key=str))) or "none"
        raise ValueError(f"expected answers among {', '.join(NAMES)}; got {other}")
    return found


def reader(converted: Any) -> Callable[[dict[str, Array]], Any] | None:
    """How gradients by their names become gradients by ours; None without a mapping."""
    if converted is None:
        return None
    if not callable(getattr(converted, "read", None)):
        raise TypeError(
            f"expected what from_torch or from_jax returned (it has .layer and .coverage); "
            f"got {type(converted).__name__}"
        )
    read: Callable[[dict[str, Array]], Any] = converted.read
    return read


def noted(converted: Any) -> tuple[str, ...]:
    """What of the model the mapping leaves out, in a sentence."""
    coverage = getattr(converted, "coverage", None)
    return () if coverage is None or coverage.complete else tuple(coverage.remarks())


def first_of(y: Any, whose: str) -> tuple[Any, str]:
    """The array that a model returns, the first of a tuple, and words that say so."""
    many = isinstance(y, tuple | list) and len(y)
    first, words = (y[0], f", the first of {len(y)}") if many else (y, "")
    if not hasattr(first, "ndim"):
        kind = type(first).__name__ + (f" of {', '.join(map(str, first))}" if isinstance(first, dict) else "")
        raise TypeError(f"expected an output (n, o) of {whose}, or a tuple that begins with it; got {kind}{words}")
    return first, words


def roughest(names: Iterable[str]) -> str:
    """The roughest arithmetic of several: where one is used on the way, no answer is better than it.

    Examples
    --------
    >>> roughest(["float32", "bfloat16", "float32"])
    'bfloat16'
    """
    return max((name for name in names if name in _ORDER), key=_ORDER.index, default="float32")


def leaves_of(read: Any) -> dict[str, Array]:
    """Arrays by name of what a reader of a candidate's parameters gave: such a mapping already, or a layer."""
    return dict(read) if isinstance(read, Mapping) else dict(tree.named_leaves(read))


def small(n: int, o: int, d: int) -> bool:
    """Whether a batch's Jacobian (n, o, n, d) is small enough to be made as a whole."""
    return n * o * n * d < SMALL


def own_rows(J: Array) -> Array:
    """Each token's Jacobian in its own input, (n, o, n, d) -> (n, o, d).

    Examples
    --------
    >>> own_rows(np.arange(4.0).reshape(2, 1, 2, 1)).ravel()
    array([0., 3.])
    """
    return np.einsum("nond->nod", J)


def fits(n: int, o: int, d: int) -> None:
    """Raise a ValueError where the tokens' Jacobians would not fit."""
    if n * o * d > LARGEST:
        raise ValueError(
            f"expected Jacobians of at most {LARGEST:.0e} numbers; got {n} tokens of ({o}, {d}), {n * o * d:.1e}: ask "
            f'fewer tokens, or answers=("output", "gradient", "parameters")'
        )


# ---- rows of one batch, held against the same rows of another --------------------------------------------------------


def off(a: Array, b: Array) -> Array:
    """By how much rows (n, o) differ, (n,); infinite where one of two is finite or none is the same."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0, np.abs(a - b))
    return np.where(np.isnan(apart), np.inf, apart).max(axis=1, initial=0)


def _limit(y: Array, arithmetic: str) -> Array:
    """What sums in another order may do to rows (n, o), with much to spare, (n,)."""
    eps = ARITHMETICS[arithmetic].eps
    size = np.abs(np.where(np.isfinite(y), y, 0)).max(axis=1, initial=0)
    return (1e3 if eps < 1e-6 else 32) * eps * size


def same_twice(y: Array, again: Array, arithmetic: str) -> None:
    """Raise a ValueError where two calls with one input answer otherwise."""
    apart = off(y, again)
    if (apart > _limit(y, arithmetic)).any():
        raise ValueError(
            f"expected the same output twice; got two that differ by {apart.max():.3g}: is it in training mode, is "
            f"there noise, or a state that changes?"
        )


def together(values: Callable[[Array], Array], x: Array, y: Array, arithmetic: str) -> tuple[tuple[str, ...], Array]:
    """Whether rows of y = values(x), (n, d) -> (n, o), stay as they are among other rows of x: words, and which not.

    Each half of the batch is asked, and all of it in reversed order. A row that jumps as far when x itself moves by a
    few eps lies on a tie, or cancels, and is not counted.
    """
    n = len(x)
    moved = np.zeros(n)
    size = _limit(y, arithmetic)
    if n < 2:
        return (), moved > 0
    for rows in (*np.array_split(np.arange(n), 2), np.arange(n)[::-1]):
        found = values(x[rows])
        moved[rows] = np.maximum(moved[rows], off(y[rows], found))
        size[rows] = np.maximum(size[rows], _limit(found, arithmetic))
    felt = moved > size
    if not felt.any():
        return (), felt
    step = (32 if ARITHMETICS[arithmetic].eps < 1e-6 else 4) * ARITHMETICS[arithmetic].eps
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape)
    jumps = np.maximum(*(off(y, values(x * (1 + way * step * signs))) for way in (1, -1)))
    felt &= moved > 10 * jumps
    if not felt.any():
        return (), felt
    i = int(np.where(felt, moved, -1).argmax())
    rows = np.flatnonzero(felt)
    which = f"rows {listed(rows)} of the output depend" if len(rows) > 1 else f"row {i} of the output depends"
    return (
        f"{which} on other tokens of the batch ({f'row {i}' if len(rows) > 1 else 'it'} changes by {moved[i]:.3g} when "
        f"they are left out or stand in another order): capacity, a norm over tokens, a softmax over the wrong axis?",
    ), felt


def splits(n: int) -> Iterator[Array]:
    """Halves of n rows, (n,) of bool, so that of any two rows one half has the first and not the second.

    Examples
    --------
    >>> [half.tolist() for half in splits(2)]
    [[False, True], [True, False]]
    """
    for bit in range((n - 1).bit_length()):
        half = (np.arange(n) >> bit & 1).astype(bool)
        yield half
        yield ~half


def columns(
    pull: Callable[[Array], Array], alone: Callable[[int], Array], y: tuple[int, int], d: int
) -> tuple[Array, tuple[str, ...]]:
    """Jacobians (n, o, d) of all tokens by o pulls, where no pull says that tokens depend on each other.

    Parameters
    ----------
    pull : a cotangent (n, o) -> gradient (n, d).
    alone : a token's number -> its Jacobian (o, d) without the others.
    y : n and o.
    d : width.
    """
    n, o = y
    dy = np.random.default_rng(0).standard_normal((n, o))
    for half in splits(n):
        leak = pull(dy * half[:, None])[~half]
        if leak.any():
            row = int(np.flatnonzero(~half)[np.abs(np.nan_to_num(leak)).max(axis=1).argmax()])
            words = (
                f"the gradient of other tokens' outputs in row {row} of x is not zero: tokens depend on each other; "
            )
            words += "the Jacobian is each token's without the others"
            finite = np.isfinite(leak).all()  # 0 times infinity says nothing
            return np.stack([alone(i) for i in range(n)]), (words,) if finite else ()
    # tokens are independent: one cotangent for all of them
    J = None
    for c in range(o):
        one = np.zeros((n, o))
        one[:, c] = 1
        found = pull(one)  # (n, d)
        J = np.empty((n, o, d), found.dtype) if J is None else J
        J[:, c] = found
    return (np.empty((n, 0, d)) if J is None else J), ()
