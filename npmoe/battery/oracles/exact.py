"""The program in mpmath: outputs, Jacobians, gradients and balance losses at any number of digits.

n tokens, d width, h hidden, o output width, E experts, k experts a token; F a field, p the parameters by name.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from npmoe.battery.oracles.program import (
    Choices,
    Field,
    Number,
    Program,
    Run,
    dot_of,
    evaluate,
    gates_of,
    lifted_to,
    moved_by,
    mpmath_field,
    parameters_of,
    piece_of,
    run_layer,
    run_mixture,
    scores_of,
    softmax_of,
    tokens_of,
)
from npmoe.calculus import check
from npmoe.calculus.words import one_line
from npmoe.model.balance import Balance
from npmoe.model.moe import MoE

__all__ = ["Exact", "answers", "balance", "gradients", "jacobian", "output", "rounded_to_floats", "terms", "ulps"]

Array = np.ndarray


class Exact(NamedTuple):
    """A number of many digits as two: its float64, correctly rounded, and what is left, exact - value, as float64."""

    value: Array
    rest: Array

    def __repr__(self) -> str:
        return one_line(self)


def rounded_to_floats(numbers: Any) -> Exact:
    """Object array (or one number) of mpf, in two float64 arrays of its shape."""
    numbers = np.asarray(numbers, object)
    value = np.array([float(m) for m in numbers.ravel()]).reshape(numbers.shape)
    rest = np.array([float(m - v) for m, v in zip(numbers.ravel(), value.ravel().tolist(), strict=True)])
    return Exact(value, rest.reshape(numbers.shape))


def _central(program: Program, x: Sequence[Number], step: Any) -> Array:
    """Central differences of all outputs in all inputs, (o, d)."""
    columns = []
    for i in range(len(x)):
        above, below = program(moved_by(x, i, step)), program(moved_by(x, i, -step))
        columns.append([(a - b) / (2 * step) for a, b in zip(above, below, strict=True)])
    return np.array(columns, object).T


def _mp_output(layer: Any, x: Array, digits: int) -> Array:
    F, _ = mpmath_field(digits)
    p, o = parameters_of(F, layer), layer.widths[-1]
    return np.array([evaluate(layer, F, p, row)[0] for row in lifted_to(F, x)], object).reshape(len(x), o)


def _mp_jacobian(layer: Any, x: Array, digits: int) -> Array:
    F, step = mpmath_field(digits)
    p, shape = parameters_of(F, layer), (len(x), layer.widths[-1], x.shape[1])
    J = [_central(piece_of(layer, F, p, row), row, step) for row in lifted_to(F, x)]
    return np.array(J, object).reshape(shape)


def output(layer: Any, x: Array, *, digits: int = 50) -> Exact:
    """The layer's output in mpmath, from the numbers that its arrays hold.

    Parameters
    ----------
    layer : GeluExpert, SwigluExpert, MoE, Linear, RMSNorm, LayerNorm, Residual or Stack.
    x : array (n, d).
    digits : decimal digits of the arithmetic, 30 or more.

    Returns
    -------
    Exact : value and rest, (n, o) each.

    Raises
    ------
    ImportError : without mpmath, which is in the extra ``npmoe[verify]``.
    ValueError, TypeError : for a layer without a scalar program, shapes that do not fit, NaN, or fewer digits.

    Notes
    -----
    Scores are compared at full digits. Where two differ by less than float64 can tell, a mixture in float64 may choose
    another expert, and rightly so.

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> y = output(Linear(np.array([[0.1]]), np.array([0.2])), np.array([[1.0]]))
    >>> y.value.item(), y.rest.item()
    (0.30000000000000004, -2.7755575615628914e-17)
    """
    return rounded_to_floats(_mp_output(layer, tokens_of(layer, x), digits))


def jacobian(layer: Any, x: Array, *, digits: int = 50) -> Exact:
    """Jacobians at every token in mpmath, by central differences of the forward program.

    Parameters
    ----------
    layer, x, digits : as in `output`.

    Returns
    -------
    Exact : value and rest, (n, o, d) each.

    Notes
    -----
    The step is h = 10^(-digits/3), rounded down to a power of two. The error of a central difference is
    h^2 |f'''| / 6 by truncation, 10^-33 of the derivatives' scale with 50 digits, and 10^-digits |f| / h by rounding,
    10^-33 as well: 16 digits beyond float64.

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> jacobian(Linear(np.array([[0.1]]), np.array([0.2])), np.array([[1.0]])).value.item()
    0.1
    """
    return rounded_to_floats(_mp_jacobian(layer, tokens_of(layer, x), digits))


def terms(layer: MoE, x: Array, *, digits: int = 50) -> dict[str, Exact]:
    """The two terms of a mixture's Jacobian, each (n, o, d): the experts' input moved alone, and the router's.

    Returns
    -------
    dict : "expert_jacobian", the gates held, and "router_jacobian", the experts' outputs held.

    Examples
    --------
    >>> from npmoe.model.expert import SwigluExpert
    >>> identity = SwigluExpert(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    >>> moe = MoE(np.ones((1, 1)), (identity,), k=1)
    >>> found = terms(moe, np.ones((1, 1)))
    >>> found["expert_jacobian"].value.round(4).item(), found["router_jacobian"].value.item()
    (1.6587, 0.0)
    """
    if not isinstance(layer, MoE):
        raise TypeError(f"expected a MoE, whose Jacobian has two terms; got {type(layer).__name__}")
    x = tokens_of(layer, x)
    F, step = mpmath_field(digits)
    p, shape = parameters_of(F, layer), (len(x), layer.widths[1], x.shape[1])

    def term(row: list[Number], of_router: bool) -> Array:
        """(o, d) of one token."""
        _, taken = evaluate(layer, F, p, row)

        def program(moved: list[Number]) -> list[Number]:
            experts_read, router_reads = (row, moved) if of_router else (moved, row)
            return run_mixture(layer, "", experts_read, Run(F, p, Choices(taken)), router_reads)

        return _central(program, row, step)

    rows = [list(row) for row in lifted_to(F, x)]
    return {
        name: rounded_to_floats(np.array([term(row, of_router) for row in rows], object).reshape(shape))
        for name, of_router in (("expert_jacobian", False), ("router_jacobian", True))
    }


def gradients(layer: Any, x: Array, dy: Array, *, digits: int = 50) -> dict[str, Exact]:
    """Gradient of sum(dy * y) in x and in every parameter, by central differences in mpmath.

    Parameters
    ----------
    layer, x, digits : as in `output`.
    dy : array (n, o).

    Returns
    -------
    dict : "gradient" (n, d) and, by the names of `npmoe.calculus.tree.named_leaves`, one entry of each leaf's shape.
        Step and error are those of `jacobian`.

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> layer = Linear(np.array([[2.0]]), np.array([0.0]))
    >>> found = gradients(layer, np.array([[3.0]]), np.array([[1.0]]))
    >>> {name: exact.value.tolist() for name, exact in found.items()}
    {'gradient': [[2.0]], 'W': [[3.0]], 'b': [1.0]}
    """
    x = tokens_of(layer, x)
    dy = check.finite("dy", check.shaped("dy", dy, (len(x), layer.widths[-1]), "these tokens"))
    return _gradients(layer, x, dy, _mp_jacobian(layer, x, digits), digits)


def _gradients(layer: Any, x: Array, dy: Array, J: Array, digits: int) -> dict[str, Exact]:
    """As `gradients`, with the Jacobian (n, o, d) at hand."""
    F, step = mpmath_field(digits)
    X, dY, p = lifted_to(F, x), lifted_to(F, dy), parameters_of(F, layer)
    taken = [evaluate(layer, F, p, row)[1] for row in X]

    def loss(p: dict[str, Array]) -> Number:
        """sum(dy * y) over all tokens, the choices held."""
        outputs = (
            run_layer(layer, "", list(row), Run(F, p, Choices(held))) for row, held in zip(X, taken, strict=True)
        )
        return F.sum(dot_of(F, dy_n, y) for dy_n, y in zip(dY, outputs, strict=True))

    found = {"gradient": np.empty(x.shape, object)}
    for n, i in np.ndindex(x.shape):
        found["gradient"][n, i] = dot_of(F, dY[n], J[n, :, i])
    for name, leaf in p.items():
        found[name] = np.empty(leaf.shape, object)
        for index in np.ndindex(leaf.shape):
            sides = []
            for side in (step, -step):
                moved = leaf.copy()
                moved[index] = leaf[index] + side
                sides.append(loss({**p, name: moved}))
            found[name][index] = (sides[0] - sides[1]) / (2 * step)
    return {name: rounded_to_floats(values) for name, values in found.items()}


def answers(
    layer: Any, x: Array, dy: Array, weights: Array | None = None, *, digits: int = 50, parameters: bool = True
) -> dict[str, Exact]:
    """All that there is to ask of a layer, by the names that the comparisons use.

    Parameters
    ----------
    layer, x, digits : as in `output`.
    dy : array (n, o).
    weights : array (n,), non-negative, of the mean Jacobian; equal unless given.
    parameters : whether the parameters' gradients are wanted; they take most of the time.

    Returns
    -------
    dict : "output", "jacobian", "mean_jacobian" (o, d), "gradient"; each parameter's gradient by its name; and of a
        MoE "gates" and "scores" (n, E), "expert_jacobian" and "router_jacobian".

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> layer = Linear(np.array([[2.0]]), np.array([0.0]))
    >>> list(answers(layer, np.array([[3.0]]), np.array([[1.0]])))
    ['output', 'jacobian', 'mean_jacobian', 'gradient', 'W', 'b']
    """
    x = tokens_of(layer, x)
    if not len(x):
        raise ValueError("expected at least one token; got none, which have no mean Jacobian")
    dy = check.finite("dy", check.shaped("dy", dy, (len(x), layer.widths[-1]), "these tokens"))
    w = np.ones(len(x)) if weights is None else check.weights("weights", weights, len(x))
    F, _ = mpmath_field(digits)
    J, W = _mp_jacobian(layer, x, digits), lifted_to(F, w)
    mean = np.empty(J.shape[1:], object)
    for index in np.ndindex(mean.shape):
        mean[index] = dot_of(F, W, J[(slice(None), *index)]) / F.sum(W)
    found = {
        "output": output(layer, x, digits=digits),
        "jacobian": rounded_to_floats(J),
        "mean_jacobian": rounded_to_floats(mean),
    }
    if isinstance(layer, MoE):
        found |= terms(layer, x, digits=digits) | _routing(layer, x, digits)
    gradient = _gradients(layer, x, dy, J, digits) if parameters else {}
    return found | gradient


def _routing(layer: MoE, x: Array, digits: int) -> dict[str, Exact]:
    """Scores and gates, (n, E) each; a gate that is not chosen is 0."""
    F, _ = mpmath_field(digits)
    p, E = parameters_of(F, layer), len(layer.experts)
    scores, gates = np.empty((len(x), E), object), np.full((len(x), E), F.number(0), object)
    for n, row in enumerate(lifted_to(F, x)):
        run = Run(F, p, Choices())
        scores[n] = scores_of(layer, "", list(row), run)
        for e, gate in gates_of(layer, "", list(row), run).items():
            gates[n, e] = gate
    return {"gates": rounded_to_floats(gates), "scores": rounded_to_floats(scores)}


def ulps(got: Array, exact: Exact, scale: Any = None) -> Array:
    """How far `got` is from `exact`, in units of the last place of `got`'s dtype.

    Parameters
    ----------
    got : array of floats.
    exact : values of the same shape.
    scale : None, and the unit is the spacing of floats at each exact value; or an array that broadcasts, such as the
        largest entry of each row, and the unit is eps times it.

    Returns
    -------
    array of float64, like `got`: 0 where both are 0, infinite where the unit is 0 and the values differ, NaN where
    `got` is not finite.

    Examples
    --------
    >>> from npmoe.model.layers import Linear
    >>> tenth = output(Linear(np.array([[0.1]]), np.array([0.2])), np.array([[1.0]]))
    >>> ulps(np.array([[0.1 + 0.2]]), tenth).item(), ulps(np.array([[0.3]]), tenth).item()
    (0.5, 0.5)
    """
    got = check.floating("got", got)
    if got.shape != exact.value.shape:
        raise ValueError(f"expected as many numbers as exact ones, {exact.value.shape}; got {got.shape}")
    with np.errstate(all="ignore"):  # spacings of subnormal numbers; 0/0 and infinities are put right below
        if scale is None:
            unit = np.spacing(np.abs(exact.value).astype(got.dtype)).astype(np.float64)
        else:
            unit = float(np.finfo(got.dtype).eps) * np.abs(np.asarray(scale, np.float64))
        off = np.abs((got.astype(np.float64) - exact.value) - exact.rest)
        found = off / unit
    return np.where(off == 0, 0.0, np.where(np.isfinite(got), found, np.nan))


def balance(loss: Balance, scores: Array, chosen: Array, *, digits: int = 50) -> tuple[Exact, Exact]:
    """A balance loss and its gradient on the scores in mpmath, from the words of the papers that `Balance` names.

    Parameters
    ----------
    loss : any kind and all switches that act on one layer, without a mask.
    scores : array (n, E), chosen : array (n, k) of integers, best first.
    digits : as in `output`.

    Returns
    -------
    value, dscores : Exact of shapes () and (n, E).

    Raises
    ------
    ValueError : for a mask, which has no program here, and as `Balance`.

    Examples
    --------
    >>> value, dscores = balance(Balance("switch"), np.zeros((2, 2)), np.array([[0], [0]]))
    >>> value.value.item(), dscores.value.tolist()
    (1.0, [[0.25, -0.25], [0.25, -0.25]])
    """
    if loss.mask is not None:
        raise ValueError("expected a balance loss without a mask; got one, for which there is no scalar program")
    scores = check.finite("scores", check.shaped("scores", scores, ("n", "E"), "a balance loss"))
    loss(scores, chosen)  # its own checks of the choices
    F, step = mpmath_field(digits)
    S, picks = lifted_to(F, scores), [[int(e) for e in row] for row in np.asarray(chosen)]
    held = _fractions(loss, F, S, picks)
    dscores = np.empty(S.shape, object)
    for index in np.ndindex(S.shape):
        sides = []
        for side in (step, -step):
            moved = S.copy()
            moved[index] = S[index] + side
            sides.append(_loss(loss, F, moved, picks, held))
        dscores[index] = (sides[0] - sides[1]) / (2 * step)
    return rounded_to_floats(_loss(loss, F, S, picks, held)), rounded_to_floats(dscores)


def _probabilities(F: Field, S: Array) -> list[dict[int, Number]]:
    """Softmax over all E, a token at a time."""
    return [softmax_of(F, dict(enumerate(row))) for row in S]


def _fractions(loss: Balance, F: Field, S: Array, picks: list[list[int]]) -> list[Number]:
    """f_e: the share of choices that fall on expert e, or the mean probability."""
    n, E = S.shape
    if loss.fraction != "hard":
        p, sums_to = _probabilities(F, S), len(picks[0]) if loss.count == "per choice" else 1
        return [sums_to * F.sum(p_t[e] for p_t in p) / n for e in range(E)]
    first = loss.kind == "gshard" if loss.first_choice is None else loss.first_choice
    counted = [row[:1] if first else row for row in picks]
    sums_to = len(counted[0]) if loss.count == "per choice" else 1
    return [F.number(sum(row.count(e) for row in counted)) * sums_to / (n * len(counted[0])) for e in range(E)]


def _loss(loss: Balance, F: Field, S: Array, picks: list[list[int]], held: list[Number]) -> Number:
    """The loss of scores S (n, E); `held` are the f_e at the unperturbed scores."""
    n, E = S.shape
    weight = F.number(float(loss.weight))
    if loss.kind == "z":  # mean of lse^2, Zoph et al., arXiv 2202.08906, equation 5
        return weight * F.sum(F.log(F.sum(F.exp(s) for s in row)) ** 2 for row in S) / n
    if loss.kind == "importance":  # CV^2 of the summed gates, Shazeer et al., arXiv 1701.06538, equation 7
        total = [F.number(0)] * E
        for row, pick in zip(S, picks, strict=True):
            among = pick if loss.gates == "renormalized" else range(E)
            q = softmax_of(F, {e: row[e] for e in among})
            for e in range(E) if loss.gates == "soft" else pick:
                total[e] = total[e] + q[e]
        mean = F.sum(total) / E
        spread = F.sum((t - mean) ** 2 for t in total) / (E - 1 if loss.variance == "sample" and E > 1 else E)
        return weight * spread / mean**2
    # scale sum_e f_e P_e: Fedus et al., arXiv 2101.03961, equation 4; Lepikhin et al., arXiv 2006.16668, algorithm 1
    p = _probabilities(F, S)
    P = [F.sum(p_t[e] for p_t in p) / n for e in range(E)]
    f = _fractions(loss, F, S, picks) if loss.fraction == "soft" else held
    named = loss.scale or ("1/E" if loss.kind == "gshard" else "E")
    one = F.number(1)
    scale = {"E": one * E, "E/k": one * E / len(picks[0]), "1": one, "1/E": one / E}[named]
    return weight * scale * dot_of(F, f, P)
