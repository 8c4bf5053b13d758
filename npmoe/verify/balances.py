"""Balance losses held against ours: value and gradient on the scores, and what rounding may do to them.

n tokens, E experts, k experts a token; p (n, E) = softmax of the scores, P (E,) its mean, f (E,) shares of choices.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.scalar import softmax, softmax_vjp
from npmoe.model.balance import Balance
from npmoe.model.routing import mask
from npmoe.verify.candidate import common, typed
from npmoe.verify.diagnose import Clue
from npmoe.verify.judge import Part, judge, none
from npmoe.verify.reference import CHANCE, Allowed
from npmoe.verify.report import Report
from npmoe.verify.rounding import ARITHMETICS, Arithmetic, Rounded, Rounding

__all__ = ["compare_balance", "describe"]

Array = np.ndarray


def compare_balance(
    balance: Balance,
    answers: Mapping[str, Any],
    scores: Array,
    chosen: Array,
    *,
    arithmetic: str | None = None,
    name: str = "balance",
) -> Report:
    """Hold a balance loss, "value" and its gradient "scores" (n, E), against `balance` at the scores.

    Parameters
    ----------
    balance : the loss in our convention; `npmoe.model.balance.conventions` finds it from a number.
    answers : dict with "value", a number, "scores" (n, E), or both.
    scores : array (n, E).
    chosen : array (n, k) of experts.
    arithmetic : the candidate's; unless given, the dtype of its answers.

    Returns
    -------
    Report : as `npmoe.verify.compare` gives; it says so where the numbers are those of a softmax taken twice.

    Raises
    ------
    ValueError, TypeError : as `Balance`, for scores and chosen.

    Examples
    --------
    >>> scores = np.random.default_rng(0).standard_normal((8, 4))
    >>> chosen = np.argsort(-scores, axis=1)[:, :2]
    >>> p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    >>> value, _ = Balance("switch")(p, chosen)  # of probabilities, where scores belong
    >>> report = compare_balance(Balance("switch"), {"value": value}, scores, chosen)
    >>> report.verdict, report.clues[0].says
    ('differs', 'the softmax is taken twice: the loss was given probabilities, not scores')
    """
    scores = check.finite("scores", check.shaped("scores", scores, ("n", "E"), "a balance loss")).astype(np.float64)
    named = {str(key): typed(value) for key, value in answers.items()}
    of = arithmetic or common(named)
    if of not in ARITHMETICS:
        raise ValueError(f"expected an arithmetic among {', '.join(ARITHMETICS)}; got {of!r}")
    parts = tuple(_part(balance, key, value, scores, chosen, ARITHMETICS[of]) for key, value in named.items())
    wrong = [part.name for part in parts if part.verdict in ("doubtful", "differs")]
    clues = [clue for key in wrong for clue in _clues(balance, key, named[key].array, scores, chosen, ARITHMETICS[of])]
    n = len(scores)
    return Report(
        name, describe(balance), of, parts, np.full(n, np.inf), np.zeros(n), np.zeros(n, bool), None, (), tuple(clues)
    )


def describe(balance: Balance) -> str:
    """The switches of a loss that are not its defaults, in words.

    Examples
    --------
    >>> describe(Balance("switch", count="per choice"))
    'switch, count per choice'
    """
    plain = Balance(balance.kind)
    changed = [f.name for f in fields(balance) if f.name not in ("kind", "mask")]
    changed = [name for name in changed if getattr(balance, name) != getattr(plain, name)]
    return ", ".join([balance.kind, *(f"{name} {getattr(balance, name)}" for name in changed)])


def _part(balance: Balance, name: str, answer: Any, scores: Array, chosen: Array, arithmetic: Arithmetic) -> Part:
    if isinstance(answer, str):
        return none(arithmetic, name, answer)
    if name not in ("value", "scores"):
        return none(arithmetic, name, f"expected the name of an answer, value or scores; got {name!r}")
    allowed = _allowed(balance, name, scores, chosen, arithmetic)
    array = answer.array.astype(np.float64)
    if name == "value" and array.size == 1:
        array = array.reshape(1)
    if array.shape != allowed.want.shape:
        return none(arithmetic, name, f"expected {name} of shape {allowed.want.shape}; got {array.shape}")
    return judge(arithmetic, name, array, allowed)


def _allowed(balance: Balance, name: str, scores: Array, chosen: Array, arithmetic: Arithmetic) -> Allowed:
    value, dscores = balance(scores, chosen)
    want = np.array([value]) if name == "value" else dscores
    at = ("value", "scores").index(name)
    errors = [
        [np.reshape(_rounded(balance, r.given(scores), chosen, r)[at].error, want.shape) for r in _both(a)]
        for a in (arithmetic, ARITHMETICS["float64"])
    ]
    (worst, usual), (worst_ours, usual_ours) = errors
    deviations = np.sqrt(2 * np.log(2 * want.size / CHANCE))
    worst = worst + worst_ours
    return Allowed(want, np.minimum(deviations * np.hypot(usual, usual_ours), worst), worst)


def _both(arithmetic: Arithmetic) -> tuple[Rounding, Rounding]:
    return Rounding(arithmetic), Rounding(arithmetic, usual=True)


def _clues(
    balance: Balance, name: str, array: Array, scores: Array, chosen: Array, arithmetic: Arithmetic
) -> list[Clue]:
    """Common faults that would give these numbers, of those that would not give ours."""
    ours = _allowed(balance, name, scores, chosen, arithmetic)
    got = np.reshape(array, ours.want.shape)

    def fits(want: Array, limit: Array) -> bool:
        near = 2 * np.maximum(limit, ours.usual)
        return bool((np.abs(got - want) <= near).all() and (np.abs(ours.want - want) > 2 * near).any())

    p = softmax(scores)
    twice = _allowed(balance, name, p, chosen, arithmetic)
    onward = [twice.want]
    if name == "scores":  # to the scores, or no farther than to the probabilities
        onward.append(softmax_vjp(p, twice.want))
    if any(fits(want, np.full_like(want, twice.usual.max())) for want in onward):
        return [Clue("looks like", name, "the softmax is taken twice: the loss was given probabilities, not scores")]
    switches: dict[str, tuple[str, ...]] = {"count": ("per token", "per choice"), "scale": ("E", "E/k", "1", "1/E")}
    for switch, options in switches.items():
        for option in options:
            changed: dict[str, Any] = {switch: option}
            other = _allowed(replace(balance, **changed), name, scores, chosen, arithmetic)
            if fits(other.want, other.usual):
                return [Clue("looks like", name, f"another convention: {switch} {option!r}")]
    return []


# ---- the losses on numbers that carry their rounding ---------------------------------------------------------------


def _rounded(balance: Balance, s: Rounded, chosen: Array, r: Rounding) -> tuple[Rounded, Rounded]:
    """Value (1,) and gradient (n, E)."""
    n = len(s.value)
    w = np.full(n, 1 / n) if balance.mask is None else np.asarray(balance.mask, np.float64) / np.sum(balance.mask)
    weights = Rounded(w[None], 2 * r.u * w[None])  # (1, n)
    with np.errstate(under="ignore"):
        value, ds = _LOSSES[balance.kind](balance, s, chosen, weights, r)
        return r.scaled(value, balance.weight), r.scaled(ds, balance.weight)


def _softmax_vjp(q: Rounded, dq: Rounded, r: Rounding, off: Array | float = 0.0) -> Rounded:
    """Backward; `off` is what a softmax over all has where q is 0, and what cancels there leaves its rounding."""
    ds = r.times(q, r.minus(dq, r.sum(r.times(q, dq), 1, keepdims=True)))
    leak = 2 * r.growth(q.value.shape[1], plain=True) + 6 * r.u
    cancels = (q.value * np.abs(dq.value)).sum(axis=1, keepdims=True)
    return Rounded(ds.value, r.join(ds.error, leak * off * cancels))


def _product(balance: Balance, s: Rounded, chosen: Array, w: Rounded, r: Rounding) -> tuple[Rounded, Rounded]:
    E, k = s.value.shape[1], chosen.shape[1]
    p = r.softmax(s)
    P = r.product(w, p)  # (1, E)
    first = balance.kind == "gshard" if balance.first_choice is None else balance.first_choice
    total = k if balance.count == "per choice" and not (first and balance.fraction == "hard") else 1
    if balance.fraction == "hard":
        counted = chosen[:, :1] if first else chosen
        share = np.repeat(w.value[0], counted.shape[1]) * (total / counted.shape[1])
        shares = np.bincount(counted.ravel(), weights=share, minlength=E)[None]
        f = Rounded(shares, (r.growth(counted.size, plain=True) + 2 * r.u) * shares)
    else:
        f = r.scaled(P, total)
    name = balance.scale or ("1/E" if balance.kind == "gshard" else "E")
    scale = {"E": float(E), "E/k": E / k, "1": 1.0, "1/E": 1 / E}[name]
    dP = r.scaled(f, scale * (2 if balance.fraction == "soft" else 1))
    ds = r.times(Rounded(w.value.T, w.error.T), _softmax_vjp(p, dP, r))
    return r.scaled(r.sum(r.times(f, P), 1), scale), ds


def _importance(balance: Balance, s: Rounded, chosen: Array, w: Rounded, r: Rounding) -> tuple[Rounded, Rounded]:
    E = s.value.shape[1]
    on = np.ones(s.value.shape, bool) if balance.gates == "soft" else mask(chosen, E)
    renormalized = balance.gates == "renormalized"
    q = r.softmax(s, on if renormalized else None)
    off = ~on * softmax(s.value) if renormalized else 0.0
    importance = r.product(w, Rounded(on * q.value, on * q.error))  # (1, E)
    total = r.sum(importance, 1, keepdims=True)
    inverse = Rounded(1 / total.value, total.error / total.value**2 + r.u / total.value)
    share = r.times(importance, inverse)
    away = r.plus(share, r.exact(np.full((1, E), -1 / E)))
    scale = E * E / (E - 1) if balance.variance == "sample" and E > 1 else float(E)
    dr = r.scaled(away, 2 * scale)
    inner = r.minus(dr, r.sum(r.times(dr, share), 1, keepdims=True))
    dimportance = r.times(inner, inverse)
    back = r.times(Rounded(w.value.T, w.error.T), dimportance)  # (n, E)
    # the variance may be taken of importances that are sums over tokens, about a mean of its own
    value = r.scaled(r.sum(r.times(away, away), 1), scale)
    again = np.abs(share.value * (away.value if r.usual else share.value)).sum(axis=1)  # E x^2 - (E x)^2 at worst
    again = 4 * r.u * scale * again
    dq = Rounded(on * back.value, on * back.error)
    return Rounded(value.value, r.join(value.error, again)), _softmax_vjp(q, dq, r, off)


def _z(balance: Balance, s: Rounded, chosen: Array, w: Rounded, r: Rounding) -> tuple[Rounded, Rounded]:
    top = s.value.max(axis=1, keepdims=True)
    away = s.value - top
    p = r.softmax(s)
    lse = np.log(np.exp(away).sum(axis=1, keepdims=True)) + top  # (n, 1)
    # d lse = sum p ds; the logarithm of a sum that is good to some u, and the maximum added to it
    moved = r.total(p.value * r.join(s.error, r.u * np.abs(away)), 1, keepdims=True)
    error = r.join(moved, r.elementary * np.ones_like(lse), r.growth(s.value.shape[1], plain=True) * np.ones_like(lse))
    L = r.stored(lse, error)
    value = r.product(w, r.times(L, L))  # (1, 1)
    ds = r.times(r.times(r.scaled(L, 2.0), p), Rounded(w.value.T, w.error.T))
    return Rounded(value.value[0], value.error[0]), ds


_LOSSES = {"switch": _product, "gshard": _product, "importance": _importance, "z": _z}
