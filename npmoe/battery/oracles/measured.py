"""What is measured with the oracles: our own error on a handful of cases, and that of elementary functions.

n tokens, d width, h hidden, o output width, E experts, k experts a token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npmoe.battery.oracles.exact import Exact, answers, rounded_to_floats, ulps
from npmoe.battery.oracles.program import Field, Number, gelu, gelu_tanh, lifted_to, mpmath_field, silu, softmax_of
from npmoe.battery.oracles.steps import room
from npmoe.calculus import scalar, tree
from npmoe.calculus.words import one_line
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE

__all__ = ["Case", "Elementary", "OwnError", "elementary", "handful", "own_error"]

Array = np.ndarray


class Case(NamedTuple):
    """A small layer with its tokens x (n, d) and a cotangent dy (n, o)."""

    name: str
    layer: Any
    x: Array
    dy: Array

    def __repr__(self) -> str:
        return one_line(self)


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
        step = mpmath_field(_TAIL)[1]
        return (function(F, z + step) - function(F, z - step)) / (2 * step)

    return slope


def _Phi(F: Field, z: Number) -> Number:
    return (1 + F.erf(z / F.sqrt(F.number(2)))) / 2


def _first_probability(F: Field, z: Number) -> Number:
    """Softmax of (z, 0, -z/2), its first entry."""
    return softmax_of(F, {0: z, 1: F.number(0), 2: -z / 2})[0]


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
    "gelu": (lambda z: scalar.gelu(z)[0], gelu),
    "gelu slope": (lambda z: scalar.gelu(z)[1], _slope(gelu)),
    "gelu_tanh": (lambda z: scalar.gelu_tanh(z)[0], gelu_tanh),
    "gelu_tanh slope": (lambda z: scalar.gelu_tanh(z)[1], _slope(gelu_tanh)),
    "silu": (lambda z: scalar.silu(z)[0], silu),
    "silu slope": (lambda z: scalar.silu(z)[1], _slope(silu)),
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
    F, _ = mpmath_field(_TAIL)
    z = _grid(dtype)
    exact = rounded_to_floats(np.array([in_field(F, v) for v in lifted_to(F, z)], object))
    with np.errstate(under="ignore"):  # squares of tiny arguments
        got = ours(z)
    row: list[float] = []
    for scale in (1.0, np.maximum(1.0, np.abs(exact.value)), exact.value):
        error = ulps(got, exact, scale)
        at = int(error.argmax())
        row += [float(error[at]), float(z[at])]
    return Elementary(name, np.dtype(dtype).name, *row)
