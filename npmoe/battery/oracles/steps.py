"""The program in complex numbers and in floats: the complex step, and central differences by Richardson's scheme.

n tokens, d width, h hidden, o output width, E experts, k experts a token; p the parameters by name.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from npmoe.battery.oracles.program import (
    FLOAT,
    complex_field,
    evaluate,
    lifted_to,
    moved_by,
    parameters_of,
    piece_of,
    tokens_of,
)
from npmoe.calculus import check

__all__ = ["complex_step", "richardson", "room"]

Array = np.ndarray

_IMAGINARY = 1e-30  # squared it is lost beside 1: no truncation, and no difference of near numbers either


def complex_step(layer: Any, x: Array) -> Array:
    """Jacobians at every token by the complex step, Im f(x + ih e_i) / h with h = 1e-30, (n, o, d).

    Source: Squire and Trapp, SIAM Review 40 (1998), 110. Its error is that of the forward program: a few eps of the
    Jacobian's scale.

    Parameters
    ----------
    layer : as in `output`.
    x : array (n, d).

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> complex_step(Linear(np.array([[2.0]]), np.array([0.0]), "gelu"), np.array([[0.0]])).item()
    1.0
    """
    x = tokens_of(layer, x)
    F = complex_field()
    p, J = parameters_of(F, layer), np.empty((len(x), layer.widths[-1], x.shape[1]))
    for n, row in enumerate(lifted_to(F, x)):
        program = piece_of(layer, F, p, row)
        for i in range(x.shape[1]):
            J[n, :, i] = [y.imag / _IMAGINARY for y in program(moved_by(row, i, _IMAGINARY * 1j))]
    return J


_ROWS = 10  # steps h, h/2, ..., h/512
_HALVINGS = 24  # of the first step, on the way to one that stays inside the piece


def _sets(taken: Iterable[tuple[int, ...]]) -> list[frozenset[int]]:
    """Chosen sets: their order does not matter to the output."""
    return [frozenset(chosen) for chosen in taken]


def room(layer: Any, x: Array, h: float = 0.25) -> Array:
    """Largest step h / 2^m such that neither x + step e_i nor x - step e_i changes who is chosen, (n, d).

    Parameters
    ----------
    layer : as in `output`.
    x : array (n, d).
    h : largest step tried.

    Returns
    -------
    array (n, d) : 0 where none of 24 halvings is enough, as at a tie.

    Notes
    -----
    The tokens of one chosen set are convex for a mixture that reads x itself, so that all smaller steps stay inside.
    Behind other layers they need not be; `richardson` looks at each of its points.

    Examples
    --------
    >>> from npmoe.model.expert import SwigluExpert
    >>> identity = SwigluExpert(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    >>> from npmoe.model.moe import MoE
    >>> moe = MoE(np.array([[1.0], [-1.0]]), (identity, identity), k=1)
    >>> room(moe, np.array([[0.1], [0.0]])).ravel().tolist()
    [0.0625, 0.0]
    """
    x, h = tokens_of(layer, x), check.positive("h", h)
    p, found = parameters_of(FLOAT, layer), np.zeros(x.shape)
    for n, row in enumerate(lifted_to(FLOAT, x)):
        for i in range(x.shape[1]):
            found[n, i] = _room(layer, p, list(row), i, h)
    return found


def _room(layer: Any, p: dict[str, Array], x: list[float], i: int, h: float) -> float:
    """`room` of one number of one token."""
    here = _sets(evaluate(layer, FLOAT, p, x)[1])
    for _ in range(_HALVINGS + 1):
        if all(_sets(evaluate(layer, FLOAT, p, moved_by(x, i, side))[1]) == here for side in (h, -h)):
            return h
        h /= 2
    return 0.0


def richardson(layer: Any, x: Array, h: float = 0.25) -> tuple[Array, Array]:
    """Jacobians at every token by central differences in float64, extrapolated to step 0, with an error estimate.

    Source: Richardson 1927; Ridders, Advances in Engineering Software 4 (1982), 75, for taking the entry of Neville's
    table that differs least from its neighbours.

    Parameters
    ----------
    layer : as in `output`.
    x : array (n, d).
    h : first step, in units of the token's root mean square, taken within 0.001..1: behind a norm that is the scale on
        which a small token's output changes. Made smaller where it would leave the piece of the routing (`room`).

    Returns
    -------
    jacobian, error : arrays (n, o, d). The error is the difference of the entry taken from those it was made of, and
        no less than the rounding of that row's difference, eps max |y| / step. It is an estimate: over the layers of
        the tests the true error is up to twice as large. Where no step stays inside the piece, as at a tie, the two are
        NaN and infinite.

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> J, error = richardson(Linear(np.array([[2.0]]), np.array([0.0]), "gelu"), np.array([[0.0]]))
    >>> bool(abs(J.item() - 1) <= error.item() < 1e-12)
    True
    """
    x = tokens_of(layer, x)
    sizes = np.clip(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2, axis=1)), 1e-3, 1)  # (n,)
    first = (check.positive("h", h) * sizes).tolist()
    p, shape = parameters_of(FLOAT, layer), (len(x), layer.widths[-1], x.shape[1])
    J, error = np.full(shape, np.nan), np.full(shape, np.inf)
    for n, row in enumerate(lifted_to(FLOAT, x)):
        for i in range(x.shape[1]):
            step = _room(layer, p, list(row), i, first[n])
            J[n, :, i], error[n, :, i] = _extrapolated(layer, p, list(row), i, step, shape[1])
    return J, error


def _extrapolated(layer: Any, p: dict[str, Array], x: list[float], i: int, h: float, o: int) -> tuple[Array, Array]:
    """Neville's table T[j][m] = T[j][m-1] + (T[j][m-1] - T[j-1][m-1]) / (4^m - 1) for all o outputs at once."""
    best, error = np.full(o, np.nan), np.full(o, np.inf)
    here = _sets(evaluate(layer, FLOAT, p, x)[1])
    before: list[Array] = []
    for j in range(_ROWS if h else 0):
        above, below = x[i] + h * 0.5**j, x[i] - h * 0.5**j
        values = []
        for side in (above, below):
            y, taken = evaluate(layer, FLOAT, p, [*x[:i], side, *x[i + 1 :]])
            if _sets(taken) != here:  # behind another layer the piece need not be convex
                return np.full(o, np.nan), np.full(o, np.inf)
            values.append(np.array(y))
        row = [(values[0] - values[1]) / (above - below)]  # the step that was taken, after rounding
        rounding = np.finfo(float).eps * np.abs(values).max() * 2 / (above - below)
        for m in range(1, j + 1):
            row.append(row[m - 1] + (row[m - 1] - before[m - 1]) / (4**m - 1))
            apart = np.maximum(np.abs(row[m] - row[m - 1]), np.abs(row[m] - before[m - 1]))
            apart = np.maximum(apart, rounding)
            better = apart < error
            best, error = np.where(better, row[m], best), np.where(better, apart, error)
        before = row
    return best, error
