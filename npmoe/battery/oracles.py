"""Oracles: derivatives of the forward map alone, by three routes that share no closed form with the package.

One scalar program, loops over numbers, evaluates a layer at one token in a `Field`, a table of a few functions. mpmath
runs it at any number of digits, complex numbers run it for the complex step, and floats run it for central differences
with Richardson's extrapolation. No derivative is written down anywhere in this file.

n tokens, d width, h hidden, o output width, E experts, k experts a token; F a field, p the parameters by name.

Top-k is piecewise. Who is chosen is decided at the unperturbed token, from the field's own scores, ties to the lower
index, and with mpmath and the complex step is held while the token moves: the derivative is that of the piece the token
is in. `richardson` chooses anew at each point, and takes only steps that stay inside the piece.
"""

import cmath
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, scalar, tree
from npmoe.model.balance import Balance
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE

__all__ = ["Case", "Elementary", "Exact", "Field", "OwnError", "answers", "balance", "complex_step", "elementary"]
__all__ += ["gradients", "handful", "jacobian", "output", "own_error", "richardson", "room", "terms", "ulps"]

Array = np.ndarray
Number = Any  # an element of a field: mpf, complex or float
Program = Callable[[list[Number]], list[Number]]  # a token's numbers -> its outputs


# ---- fields --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """The few functions that the scalar program needs of an arithmetic.

    Parameters
    ----------
    number : from a Python int or float to an element.
    real : what of an element orders the experts, a constant of the derivative.
    exp, log, erf, tanh, sqrt : functions of one element.
    sum : of an iterable of elements.
    pi : an element.
    """

    number: Callable[[float], Number]
    real: Callable[[Number], Any]
    exp: Callable[[Number], Number]
    log: Callable[[Number], Number]
    erf: Callable[[Number], Number]
    tanh: Callable[[Number], Number]
    sqrt: Callable[[Number], Number]
    sum: Callable[[Iterable[Number]], Number]
    pi: Number


@cache
def _digits(digits: int) -> tuple[Field, Any]:
    """mpmath at so many decimal digits, and its step 2^-m, just under 10^(-digits/3)."""
    from mpmath import MPContext

    mp = MPContext()  # our own: the precision of the caller's `mpmath.mp` stays as it is
    mp.dps = digits
    step = mp.ldexp(1, -math.ceil(digits / 3 * math.log2(10)))  # a power of two: x + h and x - h are exact
    return Field(mp.mpf, lambda z: z, mp.exp, mp.log, mp.erf, mp.tanh, mp.sqrt, mp.fsum, +mp.pi), step


def _mp(digits: int) -> tuple[Field, Any]:
    """As `_digits`, with an error that says what to install."""
    check.integer("digits", digits, 30, of="an exact answer, of which two thirds are right in a derivative")
    try:
        import mpmath  # noqa: F401
    except ImportError as error:
        raise ImportError("exact answers need mpmath; install it with: pip install 'npmoe[verify]'") from error
    return _digits(digits)


@cache
def _complex() -> Field:
    from scipy.special import erf  # here, not above: loading it takes longer than loading NumPy

    def of(z: complex) -> complex:
        return complex(erf(z))

    return Field(complex, lambda z: z.real, cmath.exp, cmath.log, of, cmath.tanh, cmath.sqrt, sum, complex(math.pi))


_FLOAT = Field(float, lambda z: z, math.exp, math.log, math.erf, math.tanh, math.sqrt, math.fsum, math.pi)


# ---- the scalar program --------------------------------------------------------------------------------------------


class _Choices:
    """Who was chosen by each mixture, in the order in which the program comes to them.

    Given what was `held`, the same experts are taken again, whatever the scores say now.
    """

    def __init__(self, held: Sequence[tuple[int, ...]] | None = None) -> None:
        self.taken: list[tuple[int, ...]] = []
        self._held = held

    def take(self, scores: list[Any], k: int) -> tuple[int, ...]:
        """The k best of one token; Python's sort is stable, so that ties go to the lower index."""
        if self._held is not None:
            chosen = self._held[len(self.taken)]
        else:
            chosen = tuple(sorted(range(len(scores)), key=lambda e: -scores[e])[:k])
        self.taken.append(chosen)
        return chosen


class _Run(NamedTuple):
    """What is the same in all of one evaluation: the field, the parameters by name, the choices."""

    F: Field
    p: dict[str, Array]
    choices: _Choices


def _dot(F: Field, w: Iterable[Number], x: Iterable[Number]) -> Number:
    return F.sum(w_i * x_i for w_i, x_i in zip(w, x, strict=True))


def _gelu(F: Field, z: Number) -> Number:
    """z Phi(z) with Phi(z) = (1 + erf(z / sqrt 2)) / 2, Hendrycks and Gimpel, arXiv 1606.08415, section 2."""
    return z * (1 + F.erf(z / F.sqrt(F.number(2)))) / 2


def _gelu_tanh(F: Field, z: Number) -> Number:
    """z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2, ibid.; the decimal number itself, not the float next to it."""
    b = F.number(44715) / F.number(10**6)
    return z * (1 + F.tanh(F.sqrt(2 / F.pi) * (z + b * z * z * z))) / 2


def _silu(F: Field, z: Number) -> Number:
    """z / (1 + exp(-z)), Shazeer, arXiv 2002.05202, equation 5; the exponential is taken where it cannot overflow."""
    if F.real(z) >= 0:
        return z / (1 + F.exp(-z))
    return z * F.exp(z) / (1 + F.exp(z))


_SCALARS: dict[str | None, Callable[[Field, Number], Number]]
_SCALARS = {None: lambda F, z: z, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}


def _softmax(F: Field, scores: dict[int, Number]) -> dict[int, Number]:
    """exp(s_e) / sum_j exp(s_j) over the experts given; the shift by a constant is for floats, which overflow."""
    top = max(F.real(s) for s in scores.values())
    e_s = {e: F.exp(s - top) for e, s in scores.items()}
    total = F.sum(e_s.values())
    return {e: value / total for e, value in e_s.items()}


def _affine(run: _Run, W: str, b: str, x: list[Number]) -> list[Number]:
    """sum_i W_ji x_i + b_j for each row j."""
    return [_dot(run.F, row, x) + run.p[b][j] for j, row in enumerate(run.p[W])]


def _gelu_expert(f: GeluExpert, name: str, x: list[Number], run: _Run) -> list[Number]:
    phi = _SCALARS[f.activation]
    a = [phi(run.F, z) for z in _affine(run, f"{name}W1", f"{name}b1", x)]  # h numbers
    return _affine(run, f"{name}W2", f"{name}b2", a)


def _swiglu_expert(f: SwigluExpert, name: str, x: list[Number], run: _Run) -> list[Number]:
    """Wd (silu(Wg x) * (Wu x)), Shazeer, arXiv 2002.05202, equation 6."""
    F, p = run.F, run.p
    v = []  # h numbers
    for gate, up in zip(p[f"{name}Wg"], p[f"{name}Wu"], strict=True):
        v.append(_silu(F, _dot(F, gate, x)) * _dot(F, up, x))
    return [_dot(F, row, v) for row in p[f"{name}Wd"]]


def _linear(layer: Linear, name: str, x: list[Number], run: _Run) -> list[Number]:
    phi = _SCALARS[layer.activation]
    return [phi(run.F, z) for z in _affine(run, f"{name}W", f"{name}b", x)]


def _rms_norm(layer: RMSNorm, name: str, x: list[Number], run: _Run) -> list[Number]:
    """gamma x / sqrt(mean x^2 + eps), Zhang and Sennrich, arXiv 1910.07467, equation 4."""
    F = run.F
    r = F.sqrt(_dot(F, x, x) / len(x) + F.number(float(layer.eps)))
    return [gamma * x_i / r for gamma, x_i in zip(run.p[f"{name}gamma"], x, strict=True)]


def _residual(layer: Residual, name: str, x: list[Number], run: _Run) -> list[Number]:
    return [x_i + y_i for x_i, y_i in zip(x, _layer(layer.layer, f"{name}layer.", x, run), strict=True)]


def _stack(layer: Stack, name: str, x: list[Number], run: _Run) -> list[Number]:
    for i, inner in enumerate(layer.layers):
        x = _layer(inner, f"{name}layers.{i}.", x, run)
    return x


def _scores(moe: MoE, name: str, x: list[Number], run: _Run) -> list[Number]:
    """(w_e . x + b_e) / temperature for each expert."""
    F, bias = run.F, run.p.get(f"{name}bias")
    scores = []
    for e, w in enumerate(run.p[f"{name}router"]):
        s = _dot(F, w, x)
        if bias is not None:
            s = s + bias[e]
        scores.append(s / F.number(float(moe.temperature)))
    return scores


def _gates(moe: MoE, name: str, x: list[Number], run: _Run) -> dict[int, Number]:
    """Gates of the chosen: a softmax over the chosen, or over all experts, of which the chosen are kept."""
    s = _scores(moe, name, x, run)
    chosen = run.choices.take([run.F.real(s_e) for s_e in s], moe.k)
    q = _softmax(run.F, {e: s[e] for e in (chosen if moe.renormalize else range(len(s)))})
    return {e: q[e] for e in chosen}


def _mixture(moe: MoE, name: str, x: list[Number], run: _Run, router_reads: list[Number] | None = None) -> list[Number]:
    """sum_e g_e f_e(x); where the router reads something else than the experts, each can be moved alone."""
    g = _gates(moe, name, x if router_reads is None else router_reads, run)
    f = {e: _layer(moe.experts[e], f"{name}experts.{e}.", x, run) for e in g}  # o numbers each
    return [run.F.sum(g[e] * f[e][i] for e in g) for i in range(moe.widths[1])]


_PROGRAMS: dict[type, Callable[..., list[Number]]] = {
    GeluExpert: _gelu_expert,
    SwigluExpert: _swiglu_expert,
    MoE: _mixture,
    Linear: _linear,
    RMSNorm: _rms_norm,
    Residual: _residual,
    Stack: _stack,
}


def _layer(layer: Any, name: str, x: list[Number], run: _Run) -> list[Number]:
    """d numbers -> o numbers, by the program of the layer's type; `name` is its path in the tree, with a dot."""
    for kind, program in _PROGRAMS.items():
        if isinstance(layer, kind):
            return program(layer, name, x, run)
    known = ", ".join(kind.__name__ for kind in _PROGRAMS)
    raise TypeError(f"expected a layer among {known}; got {type(layer).__name__}, for which there is no scalar program")


# ---- what the program is run on ------------------------------------------------------------------------------------


def _lifted(F: Field, array: Any) -> Array:
    """An array of the field's elements; floats of any precision go over exactly."""
    array = np.asarray(array)
    return np.array([F.number(float(v)) for v in array.ravel()], object).reshape(array.shape)


def _parameters(F: Field, layer: Any) -> dict[str, Array]:
    return {name: _lifted(F, check.finite(name, leaf)) for name, leaf in tree.named_leaves(layer)}


def _tokens(layer: Any, x: Any) -> Array:
    """x (n, d), checked."""
    if not isinstance(layer, tuple(_PROGRAMS)):
        _layer(layer, "", [], _Run(_FLOAT, {}, _Choices()))  # says so
    x = check.floating("x", x)
    if x.dtype.kind == "c":
        raise TypeError(f"expected real x; got {x.dtype}")
    return check.finite("x", check.matrix("x", x, layer.widths[0], f"this {type(layer).__name__}"))


def _evaluate(layer: Any, F: Field, p: dict[str, Array], x: Sequence[Number]) -> tuple[list[Number], list]:
    """Outputs of one token and who was chosen."""
    choices = _Choices()
    return _layer(layer, "", list(x), _Run(F, p, choices)), choices.taken


def _piece(layer: Any, F: Field, p: dict[str, Array], x: Sequence[Number]) -> Program:
    """The layer as a function of one token with the choices of the token x held."""
    _, taken = _evaluate(layer, F, p, x)
    return lambda moved: _layer(layer, "", moved, _Run(F, p, _Choices(taken)))


def _moved(x: Sequence[Number], i: int, step: Number) -> list[Number]:
    return [x_j + step if j == i else x_j for j, x_j in enumerate(x)]


# ---- mpmath --------------------------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """A number of many digits as two: its float64, correctly rounded, and what is left, exact - value, as float64."""

    value: Array
    rest: Array


def _rounded(numbers: Any) -> Exact:
    """Object array (or one number) of mpf, in two float64 arrays of its shape."""
    numbers = np.asarray(numbers, object)
    value = np.array([float(m) for m in numbers.ravel()]).reshape(numbers.shape)
    rest = np.array([float(m - v) for m, v in zip(numbers.ravel(), value.ravel().tolist(), strict=True)])
    return Exact(value, rest.reshape(numbers.shape))


def _central(program: Program, x: Sequence[Number], step: Any) -> Array:
    """Central differences of all outputs in all inputs, (o, d)."""
    columns = []
    for i in range(len(x)):
        above, below = program(_moved(x, i, step)), program(_moved(x, i, -step))
        columns.append([(a - b) / (2 * step) for a, b in zip(above, below, strict=True)])
    return np.array(columns, object).T


def _mp_output(layer: Any, x: Array, digits: int) -> Array:
    F, _ = _mp(digits)
    p, o = _parameters(F, layer), layer.widths[-1]
    return np.array([_evaluate(layer, F, p, row)[0] for row in _lifted(F, x)], object).reshape(len(x), o)


def _mp_jacobian(layer: Any, x: Array, digits: int) -> Array:
    F, step = _mp(digits)
    p, shape = _parameters(F, layer), (len(x), layer.widths[-1], x.shape[1])
    J = [_central(_piece(layer, F, p, row), row, step) for row in _lifted(F, x)]
    return np.array(J, object).reshape(shape)


def output(layer: Any, x: Array, *, digits: int = 50) -> Exact:
    """The layer's output in mpmath, from the numbers that its arrays hold.

    Parameters
    ----------
    layer : GeluExpert, SwigluExpert, MoE, Linear, RMSNorm, Residual or Stack.
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
    >>> y = output(Linear(np.array([[0.1]]), np.array([0.2])), np.array([[1.0]]))
    >>> y.value.item(), y.rest.item()
    (0.30000000000000004, -2.7755575615628914e-17)
    """
    return _rounded(_mp_output(layer, _tokens(layer, x), digits))


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
    >>> jacobian(Linear(np.array([[0.1]]), np.array([0.2])), np.array([[1.0]])).value.item()
    0.1
    """
    return _rounded(_mp_jacobian(layer, _tokens(layer, x), digits))


def terms(layer: MoE, x: Array, *, digits: int = 50) -> dict[str, Exact]:
    """The two terms of a mixture's Jacobian, each (n, o, d): the experts' input moved alone, and the router's.

    Returns
    -------
    dict : "expert_jacobian", the gates held, and "router_jacobian", the experts' outputs held.

    Examples
    --------
    >>> identity = SwigluExpert(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    >>> moe = MoE(np.ones((1, 1)), (identity,), k=1)
    >>> found = terms(moe, np.ones((1, 1)))
    >>> found["expert_jacobian"].value.round(4).item(), found["router_jacobian"].value.item()
    (1.6587, 0.0)
    """
    if not isinstance(layer, MoE):
        raise TypeError(f"expected a MoE, whose Jacobian has two terms; got {type(layer).__name__}")
    x = _tokens(layer, x)
    F, step = _mp(digits)
    p, shape = _parameters(F, layer), (len(x), layer.widths[1], x.shape[1])

    def term(row: list[Number], of_router: bool) -> Array:
        """(o, d) of one token."""
        _, taken = _evaluate(layer, F, p, row)

        def program(moved: list[Number]) -> list[Number]:
            experts_read, router_reads = (row, moved) if of_router else (moved, row)
            return _mixture(layer, "", experts_read, _Run(F, p, _Choices(taken)), router_reads)

        return _central(program, row, step)

    rows = [list(row) for row in _lifted(F, x)]
    return {
        name: _rounded(np.array([term(row, of_router) for row in rows], object).reshape(shape))
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
    >>> layer = Linear(np.array([[2.0]]), np.array([0.0]))
    >>> found = gradients(layer, np.array([[3.0]]), np.array([[1.0]]))
    >>> {name: exact.value.tolist() for name, exact in found.items()}
    {'gradient': [[2.0]], 'W': [[3.0]], 'b': [1.0]}
    """
    x = _tokens(layer, x)
    dy = check.finite("dy", check.shaped("dy", dy, (len(x), layer.widths[-1]), "these tokens"))
    return _gradients(layer, x, dy, _mp_jacobian(layer, x, digits), digits)


def _gradients(layer: Any, x: Array, dy: Array, J: Array, digits: int) -> dict[str, Exact]:
    """As `gradients`, with the Jacobian (n, o, d) at hand."""
    F, step = _mp(digits)
    X, dY, p = _lifted(F, x), _lifted(F, dy), _parameters(F, layer)
    taken = [_evaluate(layer, F, p, row)[1] for row in X]

    def loss(p: dict[str, Array]) -> Number:
        """sum(dy * y) over all tokens, the choices held."""
        outputs = (_layer(layer, "", list(row), _Run(F, p, _Choices(held))) for row, held in zip(X, taken, strict=True))
        return F.sum(_dot(F, dy_n, y) for dy_n, y in zip(dY, outputs, strict=True))

    found = {"gradient": np.empty(x.shape, object)}
    for n, i in np.ndindex(x.shape):
        found["gradient"][n, i] = _dot(F, dY[n], J[n, :, i])
    for name, leaf in p.items():
        found[name] = np.empty(leaf.shape, object)
        for index in np.ndindex(leaf.shape):
            sides = []
            for side in (step, -step):
                moved = leaf.copy()
                moved[index] = leaf[index] + side
                sides.append(loss({**p, name: moved}))
            found[name][index] = (sides[0] - sides[1]) / (2 * step)
    return {name: _rounded(values) for name, values in found.items()}


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
    >>> layer = Linear(np.array([[2.0]]), np.array([0.0]))
    >>> list(answers(layer, np.array([[3.0]]), np.array([[1.0]])))
    ['output', 'jacobian', 'mean_jacobian', 'gradient', 'W', 'b']
    """
    x = _tokens(layer, x)
    if not len(x):
        raise ValueError("expected at least one token; got none, which have no mean Jacobian")
    dy = check.finite("dy", check.shaped("dy", dy, (len(x), layer.widths[-1]), "these tokens"))
    w = np.ones(len(x)) if weights is None else check.weights("weights", weights, len(x))
    F, _ = _mp(digits)
    J, W = _mp_jacobian(layer, x, digits), _lifted(F, w)
    mean = np.empty(J.shape[1:], object)
    for index in np.ndindex(mean.shape):
        mean[index] = _dot(F, W, J[(slice(None), *index)]) / F.sum(W)
    found = {"output": output(layer, x, digits=digits), "jacobian": _rounded(J), "mean_jacobian": _rounded(mean)}
    if isinstance(layer, MoE):
        found |= terms(layer, x, digits=digits) | _routing(layer, x, digits)
    gradient = _gradients(layer, x, dy, J, digits) if parameters else {}
    return found | gradient


def _routing(layer: MoE, x: Array, digits: int) -> dict[str, Exact]:
    """Scores and gates, (n, E) each; a gate that is not chosen is 0."""
    F, _ = _mp(digits)
    p, E = _parameters(F, layer), len(layer.experts)
    scores, gates = np.empty((len(x), E), object), np.full((len(x), E), F.number(0), object)
    for n, row in enumerate(_lifted(F, x)):
        run = _Run(F, p, _Choices())
        scores[n] = _scores(layer, "", list(row), run)
        for e, gate in _gates(layer, "", list(row), run).items():
            gates[n, e] = gate
    return {"gates": _rounded(gates), "scores": _rounded(scores)}


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


# ---- complex step --------------------------------------------------------------------------------------------------

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
    >>> complex_step(Linear(np.array([[2.0]]), np.array([0.0]), "gelu"), np.array([[0.0]])).item()
    1.0
    """
    x = _tokens(layer, x)
    F = _complex()
    p, J = _parameters(F, layer), np.empty((len(x), layer.widths[-1], x.shape[1]))
    for n, row in enumerate(_lifted(F, x)):
        program = _piece(layer, F, p, row)
        for i in range(x.shape[1]):
            J[n, :, i] = [y.imag / _IMAGINARY for y in program(_moved(row, i, _IMAGINARY * 1j))]
    return J


# ---- central differences with Richardson's extrapolation -----------------------------------------------------------

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
    >>> identity = SwigluExpert(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    >>> moe = MoE(np.array([[1.0], [-1.0]]), (identity, identity), k=1)
    >>> room(moe, np.array([[0.1], [0.0]])).ravel().tolist()
    [0.0625, 0.0]
    """
    x, h = _tokens(layer, x), check.positive("h", h)
    p, found = _parameters(_FLOAT, layer), np.zeros(x.shape)
    for n, row in enumerate(_lifted(_FLOAT, x)):
        for i in range(x.shape[1]):
            found[n, i] = _room(layer, p, list(row), i, h)
    return found


def _room(layer: Any, p: dict[str, Array], x: list[float], i: int, h: float) -> float:
    """`room` of one number of one token."""
    here = _sets(_evaluate(layer, _FLOAT, p, x)[1])
    for _ in range(_HALVINGS + 1):
        if all(_sets(_evaluate(layer, _FLOAT, p, _moved(x, i, side))[1]) == here for side in (h, -h)):
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
    >>> J, error = richardson(Linear(np.array([[2.0]]), np.array([0.0]), "gelu"), np.array([[0.0]]))
    >>> bool(abs(J.item() - 1) <= error.item() < 1e-12)
    True
    """
    x = _tokens(layer, x)
    sizes = np.clip(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2, axis=1)), 1e-3, 1)  # (n,)
    first = (check.positive("h", h) * sizes).tolist()
    p, shape = _parameters(_FLOAT, layer), (len(x), layer.widths[-1], x.shape[1])
    J, error = np.full(shape, np.nan), np.full(shape, np.inf)
    for n, row in enumerate(_lifted(_FLOAT, x)):
        for i in range(x.shape[1]):
            step = _room(layer, p, list(row), i, first[n])
            J[n, :, i], error[n, :, i] = _extrapolated(layer, p, list(row), i, step, shape[1])
    return J, error


def _extrapolated(layer: Any, p: dict[str, Array], x: list[float], i: int, h: float, o: int) -> tuple[Array, Array]:
    """Neville's table T[j][m] = T[j][m-1] + (T[j][m-1] - T[j-1][m-1]) / (4^m - 1) for all o outputs at once."""
    best, error = np.full(o, np.nan), np.full(o, np.inf)
    here = _sets(_evaluate(layer, _FLOAT, p, x)[1])
    before: list[Array] = []
    for j in range(_ROWS if h else 0):
        above, below = x[i] + h * 0.5**j, x[i] - h * 0.5**j
        values = []
        for side in (above, below):
            y, taken = _evaluate(layer, _FLOAT, p, [*x[:i], side, *x[i + 1 :]])
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


# ---- balance losses ------------------------------------------------------------------------------------------------


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
    F, step = _mp(digits)
    S, picks = _lifted(F, scores), [[int(e) for e in row] for row in np.asarray(chosen)]
    held = _fractions(loss, F, S, picks)
    dscores = np.empty(S.shape, object)
    for index in np.ndindex(S.shape):
        sides = []
        for side in (step, -step):
            moved = S.copy()
            moved[index] = S[index] + side
            sides.append(_loss(loss, F, moved, picks, held))
        dscores[index] = (sides[0] - sides[1]) / (2 * step)
    return _rounded(_loss(loss, F, S, picks, held)), _rounded(dscores)


def _probabilities(F: Field, S: Array) -> list[dict[int, Number]]:
    """Softmax over all E, a token at a time."""
    return [_softmax(F, dict(enumerate(row))) for row in S]


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
            q = _softmax(F, {e: row[e] for e in among})
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
    return weight * scale * _dot(F, f, P)


# ---- a handful of cases --------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A small layer with its tokens x (n, d) and a cotangent dy (n, o)."""

    name: str
    layer: Any
    x: Array
    dy: Array


def handful() -> list[Case]:
    """Nine small cases, one of each kind of layer and routing: n 2 or 3, d up to 4, h up to 5, E up to 4.

    No token is nearer to a boundary of the routing than 1/64 in any of its numbers (`room`).

    Examples
    --------
    >>> [case.name for case in handful()][:4]
    ['gelu', 'gelu_tanh', 'swiglu', 'soft']
    """
    rng = np.random.default_rng(20260727)
    draw = rng.standard_normal

    def mlp(d: int, h: int, o: int, activation: str = "gelu") -> GeluExpert:
        return GeluExpert(draw((h, d)), draw(h), draw((o, h)), draw(o), activation)

    def gated(d: int, h: int, o: int) -> SwigluExpert:
        return SwigluExpert(draw((h, d)), draw((h, d)), draw((o, h)))

    def mixture(E: int, d: int, h: int, k: int, kind: Callable[..., Any] = mlp, **options: Any) -> MoE:
        return MoE(draw((E, d)), tuple(kind(d, h, d) for _ in range(E)), k, **options)

    layers: dict[str, Any] = {
        "gelu": mlp(4, 5, 3),
        "gelu_tanh": mlp(3, 5, 4, "gelu_tanh"),
        "swiglu": gated(4, 5, 3),
        "soft": mixture(3, 3, 4, 3),
        "top2": mixture(4, 3, 4, 2),
        "top2_not_renormalized": mixture(4, 3, 4, 2, gated, renormalize=False),
        "switch": mixture(4, 3, 5, 1, renormalize=False),
        "top3_biased_cold": mixture(4, 3, 3, 3, bias=draw(4), temperature=0.7),
        "block": Stack(
            (Residual(Stack((RMSNorm(draw(3)), mixture(3, 3, 3, 2)))), Linear(draw((2, 3)), draw(2), "silu"))
        ),
    }
    cases = []
    for name, layer in layers.items():
        n, (d, o) = 2 if isinstance(layer, MoE | Stack) else 3, (layer.widths[0], layer.widths[-1])
        x, dy = draw((n, d)), draw((n, o))
        while (room(layer, x, 1 / 64) < 1 / 64).any():
            x = draw((n, d))
        cases.append(Case(name, layer, x, dy))
    return cases


# ---- our own error -------------------------------------------------------------------------------------------------


class OwnError(NamedTuple):
    """The package's own error: largest in units of eps times the row's largest entry, in ulps, and where the first is.

    A row is what the last axis runs over.
    """

    case: str
    quantity: str
    by_row: float
    by_element: float
    where: str


def own_error(digits: int = 50, cases: Sequence[Case] | None = None, dtype: Any = np.float64) -> list[OwnError]:
    """How far the package's closed forms are from the exact answers, for each case and quantity.

    Parameters
    ----------
    digits : as in `output`.
    cases : `handful()` unless given.
    dtype : in which the package computes; parameters, x and dy are rounded to it before anything is compared.

    Returns
    -------
    list of OwnError : a row for each name of `answers`; parameters of one name, such as W1 of all experts, share one.

    Examples
    --------
    >>> case = handful()[0]
    >>> found = own_error(cases=[case])
    >>> [row.quantity for row in found][:4], max(row.by_row for row in found) < 16
    (['output', 'jacobian', 'mean_jacobian', 'gradient'], True)
    """
    rows: list[OwnError] = []
    for name, layer, x, dy in handful() if cases is None else cases:
        layer = tree.map_leaves(lambda leaf: leaf.astype(dtype), layer)
        x, dy = np.asarray(x, dtype), np.asarray(dy, dtype)
        ours = _own_answers(layer, x, dy)
        worst: dict[str, OwnError] = {}
        for quantity, exact in answers(layer, x, dy, digits=digits).items():
            group = quantity.rpartition(".")[2]
            found = _worst(name, group, quantity, ours[quantity], exact)
            old = worst.get(group)
            if old is not None:
                kept = old if old.by_row >= found.by_row else found
                found = kept._replace(by_element=max(old.by_element, found.by_element))
            worst[group] = found
        rows += worst.values()
    return rows


def _own_answers(layer: Any, x: Array, dy: Array) -> dict[str, Array]:
    """What the package's closed forms say, by the same names as `answers`."""
    y, trace = layer.forward(x)
    dx, gradient = layer.vjp(trace, dy)
    J = layer.jacobian(x)
    mean = layer.mean_jacobian(x) if hasattr(layer, "mean_jacobian") else J.mean(axis=0)
    found = {"output": y, "jacobian": J, "mean_jacobian": mean, "gradient": dx, **dict(tree.named_leaves(gradient))}
    if isinstance(layer, MoE):
        found |= {"expert_jacobian": layer.expert_jacobian(x), "router_jacobian": layer.router_jacobian(x)}
        found |= {"gates": layer.route(x)[0], "scores": layer.scores(x)}
    return found


def _worst(case: str, group: str, quantity: str, got: Array, exact: Exact) -> OwnError:
    """The row of one quantity."""
    by_row = ulps(got, exact, np.abs(exact.value).max(axis=-1, keepdims=True))
    at = np.unravel_index(int(np.argmax(by_row)), by_row.shape)
    where = f"{quantity}[{', '.join(str(int(i)) for i in at)}]"
    return OwnError(case, group, float(by_row.max()), float(ulps(got, exact).max()), where)


# ---- elementary functions ------------------------------------------------------------------------------------------


class Elementary(NamedTuple):
    """Largest error of one function in one dtype, in eps, each time with the argument at which it is.

    "mixed" is relative to the exact value where that is above 1, else absolute.
    """

    name: str
    dtype: str
    absolute: float
    absolute_at: float
    mixed: float
    mixed_at: float
    relative: float
    relative_at: float


_TAIL = 120  # digits: Phi(-12) is 1e-33, and its derivative has to be right relative to that


def _slope(function: Callable[[Field, Number], Number]) -> Callable[[Field, Number], Number]:
    """The derivative as a central difference at the field's own step."""

    def slope(F: Field, z: Number) -> Number:
        step = _mp(_TAIL)[1]
        return (function(F, z + step) - function(F, z - step)) / (2 * step)

    return slope


def _Phi(F: Field, z: Number) -> Number:
    return (1 + F.erf(z / F.sqrt(F.number(2)))) / 2


def _first_probability(F: Field, z: Number) -> Number:
    """Softmax of (z, 0, -z/2), its first entry."""
    return _softmax(F, {0: z, 1: F.number(0), 2: -z / 2})[0]


def _erf(z: Array) -> Array:
    from scipy.special import erf

    return erf(z)


#: What is measured by name: the function of arrays, and the same in a field.
_ELEMENTARY: dict[str, tuple[Callable[[Array], Array], Callable[[Field, Number], Number]]] = {
    "exp (NumPy)": (np.exp, lambda F, z: F.exp(z)),
    "tanh (NumPy)": (np.tanh, lambda F, z: F.tanh(z)),
    "erf (SciPy)": (_erf, lambda F, z: F.erf(z)),
    "normal": (lambda z: scalar.normal(z)[0], _Phi),
    "normal density": (lambda z: scalar.normal(z)[1], _slope(_Phi)),
    "gelu": (lambda z: scalar.gelu(z)[0], _gelu),
    "gelu slope": (lambda z: scalar.gelu(z)[1], _slope(_gelu)),
    "gelu_tanh": (lambda z: scalar.gelu_tanh(z)[0], _gelu_tanh),
    "gelu_tanh slope": (lambda z: scalar.gelu_tanh(z)[1], _slope(_gelu_tanh)),
    "silu": (lambda z: scalar.silu(z)[0], _silu),
    "silu slope": (lambda z: scalar.silu(z)[1], _slope(_silu)),
    "softmax": (
        lambda z: scalar.softmax(np.stack([z, np.zeros_like(z), -z / 2], axis=-1))[:, 0],
        _first_probability,
    ),
}


def elementary(names: Sequence[str] | None = None) -> list[Elementary]:
    """Largest errors of the scalar functions in float64 and float32 on some 200 arguments in [-12, 12] and tiny ones.

    Parameters
    ----------
    names : among "exp (NumPy)", "tanh (NumPy)", "erf (SciPy)", what the platform gives; "normal" and "normal density",
        "gelu", "gelu_tanh", "silu" and each of the three with " slope"; "softmax", the first entry of that of
        (z, 0, -z/2). All unless given.

    Returns
    -------
    list of Elementary : a row for each name and dtype. Errors are against mpmath at the argument as rounded to the
        dtype; the absolute error is in units of eps, the relative one in units of eps times the exact value. In a tail
        that is smaller than what the function promises the relative error is large: 1/eps says that no digit is right.

    Examples
    --------
    >>> [(row.name, row.dtype, row.absolute < 2) for row in elementary(["normal"])]
    [('normal', 'float64', True), ('normal', 'float32', True)]
    """
    names = list(_ELEMENTARY) if names is None else list(names)
    unknown = [name for name in names if name not in _ELEMENTARY]
    if unknown:
        raise ValueError(f"expected names among {', '.join(_ELEMENTARY)}; got {unknown[0]!r}")
    return [_measured(name, dtype) for name in names for dtype in (np.float64, np.float32)]


def _grid(dtype: Any) -> Array:
    """Uneven numbers: a multiple of 1/8 would sit on a node of every table."""
    tiny = np.array([1e-30, 1e-18, 1e-12, 1e-8, 1e-5, 1e-3])
    return np.concatenate([np.linspace(-12, 12, 193) + 1 / 977, tiny, -tiny]).astype(dtype)


def _measured(name: str, dtype: Any) -> Elementary:
    """The row of one function in one dtype."""
    ours, in_field = _ELEMENTARY[name]
    F, _ = _mp(_TAIL)
    z = _grid(dtype)
    exact = _rounded(np.array([in_field(F, v) for v in _lifted(F, z)], object))
    with np.errstate(under="ignore"):  # squares of tiny arguments
        got = ours(z)
    row: list[float] = []
    for scale in (1.0, np.maximum(1.0, np.abs(exact.value)), exact.value):
        error = ulps(got, exact, scale)
        at = int(error.argmax())
        row += [float(error[at]), float(z[at])]
    return Elementary(name, np.dtype(dtype).name, *row)
