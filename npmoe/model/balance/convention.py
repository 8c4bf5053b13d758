"""Which convention is it: the balance losses whose value, on given scores and choices, is a given number.

n tokens, E experts, k experts a token; f and P as in `npmoe.model.balance.losses`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.scalar import softmax
from npmoe.calculus.words import one_line
from npmoe.model.balance.losses import OPTIONS, Balance, checked_layers, pooled, scale_of

__all__ = ["Conventions", "Match", "conventions"]

Array = np.ndarray


class Match(NamedTuple):
    """One convention: its switches, their words, its value, how far the number is from it relative to its size."""

    balance: Balance
    words: str
    value: float
    difference: float

    def __repr__(self) -> str:
        return one_line(self)


class Conventions(NamedTuple):
    """number, tolerance, how many were tried, the matches, nearest first, and the nearest of all; prints as a table."""

    number: float
    tolerance: float
    tried: int
    matches: tuple[Match, ...]
    nearest: Match

    def __repr__(self) -> str:
        return f"Conventions({self.number:.6g}: {len(self.matches)} of {self.tried} match)"

    def __str__(self) -> str:
        found = f"{len(self.matches)} match" if self.matches else "none matches; the nearest"
        rows = [f"{self.number:.10g}: of {self.tried} conventions {found} (within {self.tolerance:.1e})"]
        rows += [f"  {m.value:<16.10g} {m.difference:8.1e}  {m.words}" for m in self.matches or (self.nearest,)]
        return "\n".join(rows)


def conventions(
    number: float,
    scores: Array | Sequence[Array],
    chosen: Array | Sequence[Array],
    *,
    weights: Sequence[float] = (1.0,),
    mask: Array | None = None,
    tolerance: float | None = None,
) -> Conventions:
    """Which convention a number, another framework's loss on the same scores and choices, follows.

    All kinds and all values of the switches that make a value of their own are tried; so is a known fault, a softmax of
    what is a softmax already. Where several agree on this input (for k = 1, say) all of them are told: another input
    can tell them apart.

    Parameters
    ----------
    number : the other framework's value.
    scores, chosen : arrays (n, E) and (n, k), or lists of one each for every layer; then pools are tried as well.
    weights : coefficients that the number may include.
    mask : array (n,), tokens that count; tried both with and without.
    tolerance : of the difference relative to the value; of CV^2 and of lse^2 relative to the value and 1 together, as
        their rounding is. None: that of a sum of all tokens in the scores' dtype. Give it where the other side
        computed in lower precision than the scores' dtype says.

    Raises
    ------
    ValueError, TypeError : as `Balance`; for a number that is not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores = rng.standard_normal((100, 8))
    >>> chosen = np.argsort(-scores, axis=1)[:, :2]
    >>> theirs = Balance("switch", weight=0.01, count="per choice")(scores, chosen)[0]
    >>> print(conventions(theirs, scores, chosen, weights=(1.0, 0.01)))  # doctest: +ELLIPSIS
    0.02...: of 108 conventions 1 match (within ...)
      0.02...  switch: f hard, per choice (sums to k), scale E; times 0.01
    """
    if isinstance(number, bool) or not isinstance(number, int | float | np.integer | np.floating):
        raise TypeError(f"expected a number to find the convention of; got {number!r}")
    number = float(number)
    if not np.isfinite(number):
        raise ValueError(f"expected a finite number to find the convention of; got {number}")
    single = isinstance(scores, np.ndarray) and scores.ndim == 2
    pairs = checked_layers([scores], [chosen]) if single else checked_layers(scores, chosen)  # type: ignore[list-item,arg-type]
    if tolerance is None:
        tolerance = _rounding([s for s, _ in pairs])
    check.positive("tolerance", tolerance)
    found = [
        Match(balance, words, value, abs(number - value) / (max(abs(number), abs(value)) or 1.0))
        for balance, words, value in _candidates(pairs, weights, mask)
    ]
    found.sort(key=lambda match: match.difference)  # stable: ties stay in the order of the table
    matches = tuple(m for m in found if abs(number - m.value) <= tolerance * _size(m.value, m.balance))
    return Conventions(number, float(tolerance), len(found), matches, found[0])


def _rounding(scores: list[Array]) -> float:
    """Relative error of a loss computed in the scores' dtype.

    exp(s - max) is off by eps |s - max|, the softmax's sum by E eps at most; the mean over n tokens by sqrt(n) eps,
    four standard errors of a random walk of roundings; and a few more operations.
    """
    span = max(float(np.ptp(s.real, axis=1).max()) for s in scores)
    size = max(float(np.abs(s).max()) for s in scores)
    n, E = sum(len(s) for s in scores), scores[0].shape[1]
    eps = max(float(np.finfo(s.dtype).eps) for s in scores)
    return eps * (8 + span + size + E + 4 * np.sqrt(n))


def _size(value: float, balance: Balance) -> float:
    """What the rounding of a value is relative to: CV^2 and lse^2 are what is left of numbers of size 1."""
    return abs(value) + (abs(balance.weight) if balance.kind in ("importance", "z") else 0.0)


def _forms(E: int, k: int) -> Iterator[tuple[Balance, list[tuple[str | None, float]], str]]:
    """Each loss of its own, with the scales that it may have."""
    scales: list[tuple[str | None, float]] = [
        (scale, scale_of(Balance(scale=scale), E, k)) for scale in OPTIONS["scale"][1:]
    ]
    sums = {"per token": "per token (sums to 1)", "per choice": "per choice (sums to k)"}
    for count, words in sums.items():
        yield Balance(count=count, scale="1"), scales, f"switch: f hard, {words}"
    yield Balance("gshard", scale="1"), scales, "switch, gshard: f hard, first choice only"
    for count, words in sums.items():
        yield Balance(count=count, scale="1", fraction="soft"), scales, f"switch: f soft, {words}"
    for gates in OPTIONS["gates"]:
        for variance in OPTIONS["variance"]:
            form = Balance("importance", gates=gates, variance=variance)
            yield form, [(None, 1.0)], f"importance: gates {gates}, {variance} variance"
    yield Balance("z"), [(None, 1.0)], "z: mean of lse^2"


def _candidates(
    pairs: list[tuple[Array, Array]], weights: Sequence[float], mask: Array | None
) -> Iterator[tuple[Balance, str, float]]:
    """Every convention with its words and its value on these layers."""
    E, k = pairs[0][0].shape[1], pairs[0][1].shape[1]
    pools = [("per layer", "mean", "")]
    if len(pairs) > 1:
        pools = [("per layer", "mean", "; mean of layers"), ("per layer", "sum", "; sum of layers")]
        pools += [("pooled", "mean", "; layers pooled")]
    masks = [(None, "")] if mask is None else [(mask, "; masked"), (None, "; mask ignored")]
    with np.errstate(under="ignore"):  # probabilities of saturated scores vanish
        inputs = [([s for s, _ in pairs], ""), ([softmax(s) for s, _ in pairs], "; FAULT: softmax taken twice")]
    chosen = [c for _, c in pairs]
    for scores, fault in inputs:
        for tokens, masked in masks:
            for pool, layers, layered in pools:
                for form, scales, words in _forms(E, k):
                    form = replace(form, pool=pool, layers=layers, mask=tokens)
                    value, _ = pooled(form, scores, chosen)
                    for (scale, factor), weight in ((a, b) for a in scales for b in weights):
                        text = words + (f", scale {scale}" if scale else "") + layered + masked
                        text += (f"; times {weight:g}" if weight != 1 else "") + fault
                        yield replace(form, scale=scale, weight=weight), text, value * factor * weight
