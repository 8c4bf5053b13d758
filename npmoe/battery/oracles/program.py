"""One scalar program, loops over numbers, that evaluates a layer at one token in a `Field`, a table of a few functions.

n tokens, d width, h hidden, o output width, E experts, k experts a token; F a field, p the parameters by
name. No derivative is written down anywhere in this folder.
"""

import cmath
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, tree
from npmoe.calculus.words import one_line
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import LayerNorm, Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE

__all__ = ["FLOAT", "Choices", "Field", "Number", "Program", "Run", "complex_field", "dot_of", "evaluate", "gates_of"]
__all__ += ["gelu", "gelu_tanh", "lifted_to", "moved_by", "mpmath_field", "parameters_of", "piece_of", "run_layer"]
__all__ += ["run_mixture", "scores_of", "silu", "softmax_of", "tokens_of"]

Array = np.ndarray

Number = Any  # an element of a field: mpf, complex or float
Program = Callable[[list[Number]], list[Number]]  # a token's numbers -> its outputs


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


def mpmath_field(digits: int) -> tuple[Field, Any]:
    """As `_digits`, with an error that says what to install."""
    check.integer("digits", digits, 30, of="an exact answer, of which two thirds are right in a derivative")
    try:
        import mpmath  # noqa: F401
    except ImportError as error:
        raise ImportError("exact answers need mpmath; install it with: pip install 'npmoe[verify]'") from error
    return _digits(digits)


@cache
def complex_field() -> Field:
    from scipy.special import erf  # here, not above: loading it takes longer than loading NumPy

    def of(z: complex) -> complex:
        return complex(erf(z))

    return Field(complex, lambda z: z.real, cmath.exp, cmath.log, of, cmath.tanh, cmath.sqrt, sum, complex(math.pi))


FLOAT = Field(float, lambda z: z, math.exp, math.log, math.erf, math.tanh, math.sqrt, math.fsum, math.pi)


class Choices:
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


class Run(NamedTuple):
    """What is the same in all of one evaluation: the field, the parameters by name, the choices."""

    F: Field
    p: dict[str, Array]
    choices: Choices

    def __repr__(self) -> str:
        return one_line(self)


def dot_of(F: Field, w: Iterable[Number], x: Iterable[Number]) -> Number:
    return F.sum(w_i * x_i for w_i, x_i in zip(w, x, strict=True))


def gelu(F: Field, z: Number) -> Number:
    """z Phi(z) with Phi(z) = (1 + erf(z / sqrt 2)) / 2, Hendrycks and Gimpel, arXiv 1606.08415, section 2."""
    return z * (1 + F.erf(z / F.sqrt(F.number(2)))) / 2


def gelu_tanh(F: Field, z: Number) -> Number:
    """z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2, ibid.; the decimal number itself, not the float next to it."""
    b = F.number(44715) / F.number(10**6)
    return z * (1 + F.tanh(F.sqrt(2 / F.pi) * (z + b * z * z * z))) / 2


def silu(F: Field, z: Number) -> Number:
    """z / (1 + exp(-z)), Shazeer, arXiv 2002.05202, equation 5; the exponential is taken where it cannot overflow."""
    if F.real(z) >= 0:
        return z / (1 + F.exp(-z))
    return z * F.exp(z) / (1 + F.exp(z))


_SCALARS: dict[str | None, Callable[[Field, Number], Number]]
_SCALARS = {None: lambda F, z: z, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def softmax_of(F: Field, scores: dict[int, Number]) -> dict[int, Number]:
    """exp(s_e) / sum_j exp(s_j) over the experts given; the shift by a constant is for floats, which overflow."""
    top = max(F.real(s) for s in scores.values())
    e_s = {e: F.exp(s - top) for e, s in scores.items()}
    total = F.sum(e_s.values())
    return {e: value / total for e, value in e_s.items()}


def _affine(run: Run, W: str, b: str, x: list[Number]) -> list[Number]:
    """sum_i W_ji x_i + b_j for each row j."""
    return [dot_of(run.F, row, x) + run.p[b][j] for j, row in enumerate(run.p[W])]


def _gelu_expert(f: GeluExpert, name: str, x: list[Number], run: Run) -> list[Number]:
    phi = _SCALARS[f.activation]
    a = [phi(run.F, z) for z in _affine(run, f"{name}W1", f"{name}b1", x)]  # h numbers
    return _affine(run, f"{name}W2", f"{name}b2", a)


def _swiglu_expert(f: SwigluExpert, name: str, x: list[Number], run: Run) -> list[Number]:
    """Wd (silu(Wg x) * (Wu x)), Shazeer, arXiv 2002.05202, equation 6."""
    F, p = run.F, run.p
    v = []  # h numbers
    for gate, up in zip(p[f"{name}Wg"], p[f"{name}Wu"], strict=True):
        v.append(silu(F, dot_of(F, gate, x)) * dot_of(F, up, x))
    return [dot_of(F, row, v) for row in p[f"{name}Wd"]]


def _linear(layer: Linear, name: str, x: list[Number], run: Run) -> list[Number]:
    phi = _SCALARS[layer.activation]
    return [phi(run.F, z) for z in _affine(run, f"{name}W", f"{name}b", x)]


def _rms_norm(layer: RMSNorm, name: str, x: list[Number], run: Run) -> list[Number]:
    """gamma x / sqrt(mean x^2 + eps), Zhang and Sennrich, arXiv 1910.07467, equation 4."""
    F = run.F
    r = F.sqrt(dot_of(F, x, x) / len(x) + F.number(float(layer.eps)))
    return [gamma * x_i / r for gamma, x_i in zip(run.p[f"{name}gamma"], x, strict=True)]


def _layer_norm(layer: LayerNorm, name: str, x: list[Number], run: Run) -> list[Number]:
    """gamma (x - mean) / sqrt(var x + eps) + beta, Ba et al., arXiv 1607.06450, equation 4."""
    F = run.F
    mean = F.sum(x) / len(x)
    centred = [x_i - mean for x_i in x]
    sigma = F.sqrt(dot_of(F, centred, centred) / len(x) + F.number(float(layer.eps)))
    rows = zip(run.p[f"{name}gamma"], run.p[f"{name}beta"], centred, strict=True)
    return [gamma * x_i / sigma + beta for gamma, beta, x_i in rows]


def _residual(layer: Residual, name: str, x: list[Number], run: Run) -> list[Number]:
    return [x_i + y_i for x_i, y_i in zip(x, run_layer(layer.layer, f"{name}layer.", x, run), strict=True)]


def _stack(layer: Stack, name: str, x: list[Number], run: Run) -> list[Number]:
    for i, inner in enumerate(layer.layers):
        x = run_layer(inner, f"{name}layers.{i}.", x, run)
    return x


def scores_of(moe: MoE, name: str, x: list[Number], run: Run) -> list[Number]:
    """(w_e . x + b_e) / temperature for each expert."""
    F, bias = run.F, run.p.get(f"{name}bias")
    scores = []
    for e, w in enumerate(run.p[f"{name}router"]):
        s = dot_of(F, w, x)
        if bias is not None:
            s = s + bias[e]
        scores.append(s / F.number(float(moe.temperature)))
    return scores


def gates_of(moe: MoE, name: str, x: list[Number], run: Run) -> dict[int, Number]:
    """Gates of the chosen: a softmax over the chosen, or over all experts, of which the chosen are kept."""
    s = scores_of(moe, name, x, run)
    chosen = run.choices.take([run.F.real(s_e) for s_e in s], moe.k)
    q = softmax_of(run.F, {e: s[e] for e in (chosen if moe.renormalize else range(len(s)))})
    return {e: q[e] for e in chosen}


def run_mixture(
    moe: MoE, name: str, x: list[Number], run: Run, router_reads: list[Number] | None = None
) -> list[Number]:
    """sum_e g_e f_e(x); where the router reads something else than the experts, each can be moved alone."""
    g = gates_of(moe, name, x if router_reads is None else router_reads, run)
    f = {e: run_layer(moe.experts[e], f"{name}experts.{e}.", x, run) for e in g}  # o numbers each
    return [run.F.sum(g[e] * f[e][i] for e in g) for i in range(moe.widths[1])]


_PROGRAMS: dict[type, Callable[..., list[Number]]] = {
    GeluExpert: _gelu_expert,
    SwigluExpert: _swiglu_expert,
    MoE: run_mixture,
    Linear: _linear,
    RMSNorm: _rms_norm,
    LayerNorm: _layer_norm,
    Residual: _residual,
    Stack: _stack,
}


def run_layer(layer: Any, name: str, x: list[Number], run: Run) -> list[Number]:
    """d numbers -> o numbers, by the program of the layer's type; `name` is its path in the tree, with a dot."""
    for kind, program in _PROGRAMS.items():
        if isinstance(layer, kind):
            return program(layer, name, x, run)
    known = ", ".join(kind.__name__ for kind in _PROGRAMS)
    raise TypeError(f"expected a layer among {known}; got {type(layer).__name__}, for which there is no scalar program")


def lifted_to(F: Field, array: Any) -> Array:
    """An array of the field's elements; floats of any precision go over exactly."""
    array = np.asarray(array)
    return np.array([F.number(float(v)) for v in array.ravel()], object).reshape(array.shape)


def parameters_of(F: Field, layer: Any) -> dict[str, Array]:
    return {name: lifted_to(F, check.finite(name, leaf)) for name, leaf in tree.named_leaves(layer)}


def tokens_of(layer: Any, x: Any) -> Array:
    """x (n, d), checked."""
    if not isinstance(layer, tuple(_PROGRAMS)):
        run_layer(layer, "", [], Run(FLOAT, {}, Choices()))  # says so
    x = check.floating("x", x)
    if x.dtype.kind == "c":
        raise TypeError(f"expected real x; got {x.dtype}")
    return check.finite("x", check.matrix("x", x, layer.widths[0], f"this {type(layer).__name__}"))


def evaluate(layer: Any, F: Field, p: dict[str, Array], x: Sequence[Number]) -> tuple[list[Number], list]:
    """Outputs of one token and who was chosen."""
    choices = Choices()
    return run_layer(layer, "", list(x), Run(F, p, choices)), choices.taken


def piece_of(layer: Any, F: Field, p: dict[str, Array], x: Sequence[Number]) -> Program:
    """The layer as a function of one token with the choices of the token x held."""
    _, taken = evaluate(layer, F, p, x)
    return lambda moved: run_layer(layer, "", moved, Run(F, p, Choices(taken)))


def moved_by(x: Sequence[Number], i: int, step: Number) -> list[Number]:
    return [x_j + step if j == i else x_j for j, x_j in enumerate(x)]
