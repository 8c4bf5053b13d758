"""Balance losses on scores and choices, each with its gradient, and the switches in which frameworks differ.

n tokens, d width, E experts, k experts a token, L layers; p (n, E) = softmax of the scores, P (E,) its mean over
tokens, f (E,) the share of choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import logsumexp, logsumexp_vjp, softmax, softmax_vjp
from npmoe.calculus.words import one_line
from npmoe.model.routing import mask as on_mask

__all__ = ["OPTIONS", "Balance", "RouterGradient", "checked_batch", "checked_layers", "gradients", "pooled", "scale_of"]

Array = np.ndarray

#: The switches of a `Balance`, each with all its values.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "kind": ("switch", "gshard", "importance", "z"),
    "count": ("per token", "per choice"),
    "scale": (None, "E", "E/k", "1", "1/E"),
    "first_choice": (None, False, True),
    "fraction": ("hard", "soft", "held"),
    "gates": ("soft", "renormalized", "kept"),
    "variance": ("population", "sample"),
    "pool": ("per layer", "pooled"),
    "layers": ("mean", "sum"),
}


@dataclass(frozen=True, eq=False)
class Balance:
    """A balance loss: callable on scores (n, E) and chosen (n, k), gives its value and its gradient on the scores.

    Parameters
    ----------
    kind : "switch", scale * sum_e f_e P_e (Fedus et al., arXiv 2101.03961, equations 4 to 6); "gshard", the same form
        with its own scale and count (Lepikhin et al., arXiv 2006.16668, algorithm 1); "importance", CV^2 of the summed
        gates (Shazeer et al., arXiv 1701.06538, equation 7); "z", the mean of lse^2 (Zoph et al., arXiv 2202.08906,
        equation 5). The other switches act on the kinds named with them and leave the rest alone.
    weight : number that multiplies value and gradient: the coefficient, for frameworks that include it.
    count : switch, gshard. "per token": f sums to 1; "per choice": f sums to k (Mixtral's in Hugging Face).
    scale : switch, gshard. "E", "E/k", "1" or "1/E"; None is the kind's own, E of switch and 1/E of gshard.
    first_choice : switch, gshard. f counts only the first of the k choices. None is the kind's own: gshard does,
        switch does not (in the paper k = 1, where it is the same).
    fraction : switch, gshard. "hard": f counts choices and has no gradient. "soft": f = P, and the gradient runs
        through both; "held": f = P, held fixed. There is no choice to count then, and `first_choice` says nothing.
    gates : importance. "soft", softmax over all E; "renormalized", over the chosen; "kept", over all E, of which only
        the chosen are summed.
    variance : importance. "population" divides by E; "sample" by E - 1, as PyTorch's `var` does unless told.
    pool, layers : what `pooled` does with several layers: "per layer", of which `layers` takes the "mean" or the
        "sum"; or "pooled", f and P (or the importance) over the tokens of all layers before the product.
    mask : array (n,) of booleans, integers or non-negative weights: which tokens count (not padding); None, all do. It
        goes with batches of these n tokens, and in `fit` therefore with one fixed batch.

    Raises
    ------
    ValueError, TypeError : for a switch that is unknown; when called, for NaN in the scores, choices that are not k
        different experts of 0..E-1, shapes that do not fit, a mask that leaves no token, or (importance, "kept") gates
        of the chosen that all vanish.

    Examples
    --------
    >>> scores, chosen = np.log([[1.0, 3.0], [1.0, 1.0]]), np.array([[1], [0]])
    >>> value, dscores = Balance("switch")(scores, chosen)
    >>> value, dscores.shape
    (1.0, (2, 2))
    >>> round(Balance("switch", weight=0.01, fraction="soft")(scores, chosen)[0], 6)
    0.010625
    """

    kind: str = "switch"
    weight: float = 1.0
    count: str = "per token"
    scale: str | None = None
    first_choice: bool | None = None
    fraction: str = "hard"
    gates: str = "soft"
    variance: str = "population"
    pool: str = "per layer"
    layers: str = "mean"
    mask: Array | None = None

    def __repr__(self) -> str:
        return one_line(self)

    def __post_init__(self) -> None:
        for name, options in OPTIONS.items():
            got = getattr(self, name)
            if not any(got is option or (isinstance(got, str) and got == option) for option in options):
                known = ", ".join(map(repr, options))
                raise ValueError(f"expected {name} of this balance loss among {known}; got {got!r}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float | np.integer | np.floating):
            raise TypeError(f"expected weight of this balance loss to be a number; got {self.weight!r}")
        if not np.isfinite(self.weight):
            raise ValueError(f"expected weight of this balance loss to be finite; got {self.weight}")

    def __call__(self, scores: Array, chosen: Array) -> tuple[float, Array]:
        """scores (n, E), chosen (n, k), best first -> value, dvalue/dscores (n, E) of the scores' dtype."""
        scores, chosen = checked_batch(scores, chosen)
        s = scores.astype(np.result_type(scores, np.float64), copy=False)  # the value is summed in double precision
        w = _shares(self.mask, len(s))
        with np.errstate(under="ignore"):  # probabilities of saturated scores vanish, and what is multiplied by them
            value, ds = _LOSSES[self.kind](self, s, chosen, w)
            value, ds = self.weight * value, (self.weight * ds).astype(scores.dtype, copy=False)
        # complex in, complex out: the complex step of the tests
        return (value if s.dtype.kind == "c" else float(value)), ds


def checked_batch(scores: Any, chosen: Any) -> tuple[Array, Array]:
    """Scores (n, E) and chosen (n, k) that belong together."""
    scores = check.finite("scores", check.shaped("scores", scores, ("n", "E"), "a balance loss"))
    n, E = scores.shape
    if not n or not E:
        raise ValueError(f"expected scores of at least one token and one expert; got shape {scores.shape}")
    chosen = check.unmasked("chosen", chosen)
    if chosen.dtype.kind not in "iu":
        raise TypeError(f"expected chosen to be an array of integers; got {chosen.dtype}")
    if chosen.ndim != 2 or len(chosen) != n or not 1 <= chosen.shape[1] <= E:
        raise ValueError(f"expected chosen of shape ({n}, k), k within 1..{E}, of these scores; got {chosen.shape}")
    if chosen.min() < 0 or chosen.max() >= E:
        raise ValueError(f"expected chosen within 0..{E - 1} of {E} experts; got {chosen.min()} to {chosen.max()}")
    ordered = np.sort(chosen, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        row = int(np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))[0])
        raise ValueError(f"expected k different experts a token; got {chosen[row].tolist()} of token {row}")
    return scores, chosen


def _shares(mask: Any, n: int) -> Array:
    """What each token counts, (n,), of sum 1."""
    if mask is None:
        return np.full(n, 1 / n)
    mask = check.unmasked("mask", mask)
    if mask.shape != (n,):
        raise ValueError(
            f"expected mask of shape ({n},); got {mask.shape}: a mask is that of one fixed batch, a number for each of "
            f"its tokens, and does not go with batches of another size"
        )
    # counts and attention masks are whole numbers
    w = check.weights("mask", mask.astype(np.float64) if mask.dtype.kind in "biu" else mask, n).astype(np.float64)
    w = w / w.max()  # the sum of subnormal weights must not be 0
    return w / w.sum()


_VANISHED = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)  # a sum below it has lost digits to underflow


# ---- the losses ----------------------------------------------------------------------------------------------------


def scale_of(balance: Balance, E: int, k: int) -> float:
    """The factor in front of sum_e f_e P_e."""
    scale = balance.scale or ("1/E" if balance.kind == "gshard" else "E")
    return {"E": float(E), "E/k": E / k, "1": 1.0, "1/E": 1 / E}[scale]


def _product(balance: Balance, s: Array, chosen: Array, w: Array) -> tuple[float, Array]:
    """scale * sum_e f_e P_e; with f held fixed ds_tj = scale w_t p_tj (f_j - sum_e f_e p_te)."""
    E, k = s.shape[1], chosen.shape[1]
    p = softmax(s)  # (n, E)
    P = matmul(w, p)  # (E,)
    first = balance.kind == "gshard" if balance.first_choice is None else balance.first_choice
    total = k if balance.count == "per choice" and not (first and balance.fraction == "hard") else 1  # what f sums to
    if balance.fraction == "hard":
        counted = chosen[:, :1] if first else chosen  # (n, 1) or (n, k)
        share = np.repeat(w, counted.shape[1]) * (total / counted.shape[1])
        f = np.bincount(counted.ravel(), weights=share, minlength=E)  # (E,)
    else:
        f = total * P
    scale = scale_of(balance, E, k)
    dP = scale * f * (2 if balance.fraction == "soft" else 1)  # (E,)
    return scale * matmul(f, P), w[:, None] * softmax_vjp(p, dP)


def _importance(balance: Balance, s: Array, chosen: Array, w: Array) -> tuple[float, Array]:
    """CV^2 of the importances I = sum_t g_t, as E sum_e (r_e - 1/E)^2, r = I / sum I, which loses no digits near 0."""
    E = s.shape[1]
    on = np.ones(s.shape, bool) if balance.gates == "soft" else on_mask(chosen, E)  # (n, E)
    q = softmax(np.where(on, s, -np.inf) if balance.gates == "renormalized" else s)  # (n, E)
    importance = matmul(w, on * q)  # (E,)
    total = importance.sum()
    if total.real < _VANISHED:
        raise ValueError(
            f"expected chosen experts whose gates do not all vanish; got gates of sum {total.real:.3g}, 'kept' of a "
            f"softmax over all {E}: the choice is not of these scores, and CV^2 of their importance is 0/0"
        )
    r = importance / total
    away = r - 1 / E
    scale = E * E / (E - 1) if balance.variance == "sample" and E > 1 else float(E)
    dr = 2 * scale * away  # (E,)
    # the sum moves as well where the gates are "kept"; else this adds a constant, which softmax_vjp does not see
    dimportance = (dr - matmul(dr, r)) / total
    return scale * matmul(away, away), softmax_vjp(q, on * (w[:, None] * dimportance))


def _z(balance: Balance, s: Array, chosen: Array, w: Array) -> tuple[float, Array]:
    """Mean of lse_t^2; ds_tj = 2 w_t lse_t p_tj. Alone among these it moves if a constant is added to the scores."""
    lse = logsumexp(s)  # (n,)
    return matmul(w, lse**2), logsumexp_vjp(s, 2 * w * lse)


_LOSSES = {"switch": _product, "gshard": _product, "importance": _importance, "z": _z}


# ---- several layers, and onward ------------------------------------------------------------------------------------


def checked_layers(scores: Sequence[Array], chosen: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Scores and choices of each layer, checked."""
    if isinstance(scores, np.ndarray) and scores.ndim == 2:
        raise ValueError(f"expected a sequence of scores (n, E), one for each layer; got one of shape {scores.shape}")
    if not len(scores) or len(scores) != len(chosen):
        raise ValueError(
            f"expected scores and chosen of as many layers, at least one; got {len(scores)} and {len(chosen)}"
        )
    return [checked_batch(s, c) for s, c in zip(scores, chosen, strict=True)]


def pooled(balance: Balance, scores: Sequence[Array], chosen: Sequence[Array]) -> tuple[float, list[Array]]:
    """Loss of several layers, by ``balance.pool``, and the gradient for each.

    "pooled" is the loss of one batch that holds the tokens of all layers. Groups of tokens, such as sequences of which
    each has a loss of its own, are given in the same way.

    Parameters
    ----------
    scores : L arrays (n_l, E).
    chosen : L arrays (n_l, k).

    Returns
    -------
    value, dscores : a number and L arrays (n_l, E). ``balance.mask`` holds for each layer.

    Raises
    ------
    ValueError, TypeError : as `Balance`; for no layer, or as many scores as there are not choices; pooled, for layers
        that differ in E or k.

    Examples
    --------
    >>> scores, chosen = list(np.log([[[1.0, 3.0]], [[3.0, 1.0]]])), list(np.array([[[1]], [[0]]]))
    >>> pooled(Balance("switch"), scores, chosen)[0], pooled(Balance("switch", pool="pooled"), scores, chosen)[0]
    (1.5, 1.0)
    """
    pairs = checked_layers(scores, chosen)
    L = len(pairs)
    if balance.pool == "per layer":
        share = 1 / L if balance.layers == "mean" else 1.0
        values, dscores = zip(*(balance(s, c) for s, c in pairs), strict=True)
        with np.errstate(under="ignore"):  # gradients that are nearly 0
            return sum(values) * share, [ds * ds.real.dtype.type(share) for ds in dscores]
    sizes = {(s.shape[1], c.shape[1]) for s, c in pairs}
    if len(sizes) > 1:
        raise ValueError(f"expected layers of one number of experts and of choices to pool; got (E, k) of {sizes}")
    if balance.mask is not None:
        for s, _ in pairs:
            _shares(balance.mask, len(s))  # of each layer by itself: a mask of L n tokens would fit the whole
        balance = replace(balance, mask=np.tile(balance.mask, L))
    value, ds = balance(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
    return value, np.split(ds, np.cumsum([len(s) for s, _ in pairs])[:-1])


class RouterGradient(NamedTuple):
    """A balance loss's gradient for router (E, d), hidden states x (n, d) and the router's bias (E,)."""

    router: Array
    x: Array
    bias: Array

    def __repr__(self) -> str:
        return one_line(self)


def gradients(result: tuple[float, Array] | Array, x: Array, router: Array, temperature: float = 1.0) -> RouterGradient:
    """Onward from the scores to the router and the hidden states, where scores = (x W^T + bias) / temperature.

    Parameters
    ----------
    result : what a `Balance` gives, or its second half, dscores (n, E).
    x : array (n, d), what the router reads.
    router : array (E, d).
    temperature : what the scores were divided by, as in `MoE`.

    Examples
    --------
    >>> x, router = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    >>> dW, dx, db = gradients(Balance("z")(x @ router.T, np.array([[0], [1]])), x, router)
    >>> dW.shape, dx.shape, db.shape
    ((2, 1), (2, 1), (2,))
    """
    E, d = check.shaped("router", router, ("E", "d")).shape
    x = check.finite("x", check.matrix("x", x, d, "this router"))
    ds = result[1] if isinstance(result, tuple) else result
    ds = check.shaped("dscores", ds, (len(x), E), "these tokens and this router")
    ds = ds / ds.real.dtype.type(check.positive("temperature", temperature))  # (n, E)
    return RouterGradient(matmul(ds.T, x), matmul(ds, router), ds.sum(axis=0))
