"""The table of layers that golden files and the battery ask about.

n tokens, d width, h hidden, o output width, E experts, k experts a token.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.words import one_line
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.verify.rounding import ARITHMETICS

__all__ = ["Case", "battery_cases", "cases", "named"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE


@dataclass(frozen=True, eq=False)
class Case:
    """A layer at x (n, d), with the cotangent dy (n, o) and the weights (n,) of the mean Jacobian.

    `says` is what is special about it; `rounded` the arithmetic in which all its numbers are exact.
    """

    name: str
    says: str
    layer: Any
    x: Array
    dy: Array
    weights: Array
    rounded: str = "float64"

    def __repr__(self) -> str:
        return one_line(self)


def _gelu(rng: np.random.Generator, d: int, h: int, o: int, activation: str = "gelu") -> GeluExpert:
    draw = rng.standard_normal
    return GeluExpert(draw((h, d)) / d**0.5, draw(h) / 4, draw((o, h)) / h**0.5, draw(o) / 4, activation)


def _gelu_tanh(rng: np.random.Generator, d: int, h: int, o: int) -> GeluExpert:
    return _gelu(rng, d, h, o, "gelu_tanh")


def _swiglu(rng: np.random.Generator, d: int, h: int, o: int) -> SwigluExpert:
    draw = rng.standard_normal
    return SwigluExpert(draw((h, d)) / d**0.5, draw((h, d)) / d**0.5, draw((o, h)) / h**0.5)


def _mixture(
    rng: np.random.Generator, E: int, k: int, d: int, h: int, o: int, kind: Callable[..., Any] = _gelu, **options: Any
) -> MoE:
    experts = tuple(kind(rng, d, h, o) for _ in range(E))
    return MoE(rng.standard_normal((E, d)) / d**0.5, experts, k, **options)


def _tied(rng: np.random.Generator, kind: Callable[..., Any] = _gelu, **options: Any) -> MoE:
    """Scores are sums of small whole numbers, exact in any order; experts 0 and 2 always tie."""
    moe = _mixture(rng, 4, options.pop("k"), 3, 5, 2, kind, **options)
    router = np.array([[1.0, -2, 1], [0, 1, 1], [1, -2, 1], [-1, 1, 2]])
    return MoE(router, moe.experts, moe.k, moe.renormalize, moe.temperature)


#: Tokens for `_tied`: all experts tie; 0 and 2 first, last, in the middle; drawn at hand, not at random.
_TIES = np.array([[0.0, 0, 0], [2, -1, 0], [-1, 2, 0], [1, 0, -1], [1, 1, 1], [-2, -2, 1], [0, 0, 3]])

_Make = Callable[[np.random.Generator], tuple[Layer, Array]]


def _drawn(n: int, make: Callable[[np.random.Generator], Layer], scale: float = 1.0) -> _Make:
    """A layer and n tokens of normal numbers."""

    def both(rng: np.random.Generator) -> tuple[Layer, Array]:
        layer = make(rng)
        return layer, scale * rng.standard_normal((n, layer.widths[0]))

    return both


def _unvisited(rng: np.random.Generator) -> MoE:
    return _mixture(rng, 4, 2, 3, 5, 3, bias=np.array([0.5, -40.0, 0.0, -0.5]))


#: Name, what it is, how it is made: once as drawn, once rounded to float32, once to bfloat16.
_KINDS: tuple[tuple[str, str, _Make], ...] = (
    ("gelu", "exact GELU, o < d < h", _drawn(7, lambda r: _gelu(r, 5, 11, 3))),
    ("gelu-tanh", "tanh approximation of GELU", _drawn(7, lambda r: _gelu_tanh(r, 4, 9, 6))),
    ("silu", "a two-layer expert with SiLU", _drawn(5, lambda r: _gelu(r, 3, 8, 4, "silu"))),
    ("swiglu", "a gated expert", _drawn(7, lambda r: _swiglu(r, 5, 11, 3))),
    ("soft", "all experts, softmax over all", _drawn(6, lambda r: _mixture(r, 4, 4, 5, 7, 3))),
    ("top1-kept", "k = 1 of a softmax over all", _drawn(9, lambda r: _mixture(r, 4, 1, 5, 6, 5, renormalize=False))),
    ("top2", "k = 2, softmax over the chosen", _drawn(9, lambda r: _mixture(r, 6, 2, 4, 7, 5))),
    (
        "top2-kept",
        "k = 2 of a softmax over all, a bias and a temperature",
        _drawn(
            9,
            lambda r: _mixture(
                r, 5, 2, 4, 6, 3, renormalize=False, temperature=0.75, bias=np.array([0.25, -0.5, 0.0, 0.5, -0.25])
            ),
        ),
    ),
    ("top3-swiglu", "k = 3, gated experts", _drawn(9, lambda r: _mixture(r, 5, 3, 6, 8, 4, _swiglu))),
    (
        "top2-gelu-tanh",
        "k = 2, tanh approximation, a temperature",
        _drawn(8, lambda r: _mixture(r, 4, 2, 6, 9, 6, _gelu_tanh, temperature=2.0)),
    ),
)

#: Made once, with the arithmetic to which the numbers are rounded.
_SINGLES: tuple[tuple[str, str, _Make, str], ...] = (
    ("one-gelu", "all sizes 1", _drawn(1, lambda r: _gelu(r, 1, 1, 1)), "float64"),
    ("one-swiglu", "all sizes 1", _drawn(1, lambda r: _swiglu(r, 1, 1, 1)), "float64"),
    ("one-moe", "all sizes 1: one expert, whose gate is 1", _drawn(1, lambda r: _mixture(r, 1, 1, 1, 1, 1)), "float64"),
    ("narrow", "one hidden unit: Jacobians of rank 1", _drawn(5, lambda r: _gelu(r, 6, 1, 4)), "float64"),
    ("top1", "k = 1, renormalized: gates of 1", _drawn(8, lambda r: _mixture(r, 3, 1, 4, 5, 4)), "float64"),
    ("saturated", "slopes of 0 and 1", _drawn(6, lambda r: _gelu(r, 4, 8, 3), 60.0), "float64"),
    ("saturated-gelu-tanh", "slopes of 0 and 1", _drawn(6, lambda r: _gelu_tanh(r, 4, 8, 3), 60.0), "float64"),
    ("saturated-swiglu", "logistic functions of 0 and 1", _drawn(6, lambda r: _swiglu(r, 4, 8, 3), 60.0), "float64"),
    ("saturated-soft", "gates of 0 and 1", _drawn(6, lambda r: _mixture(r, 3, 3, 4, 5, 3), 60.0), "float64"),
    ("unvisited", "nobody visits expert 1", _drawn(6, _unvisited), "float64"),
    ("ties-top1", "exact ties, k = 1", lambda r: (_tied(r, k=1, renormalize=False), _TIES), "bfloat16"),
    ("ties-top2", "exact ties, k = 2", lambda r: (_tied(r, k=2), _TIES), "bfloat16"),
    ("ties-top3-swiglu", "exact ties, k = 3", lambda r: (_tied(r, _swiglu, k=3, temperature=2.0), _TIES), "bfloat16"),
    ("large", "d = 64, h = 128, 8 experts, 32 tokens", _drawn(32, lambda r: _mixture(r, 8, 2, 64, 128, 64)), "float32"),
    ("large-swiglu", "gated, o < d", _drawn(16, lambda r: _mixture(r, 8, 2, 64, 96, 24, _swiglu)), "bfloat16"),
)  # fmt: skip


def cases() -> tuple[Case, ...]:
    """All golden cases, each drawn from a seed that is the CRC-32 of its name; the rounded ones are those of its kind.

    Returns
    -------
    tuple of Case : experts and mixtures, sizes from 1 up; each kind once as drawn and once with all numbers rounded to
        float32 and to bfloat16, so that a candidate of that arithmetic reads them without error.

    Examples
    --------
    >>> [case.name for case in cases()][:4]
    ['gelu', 'gelu-float32', 'gelu-bfloat16', 'gelu-tanh']
    """
    drawn = [_rounded(_case(*kind), to) for kind in _KINDS for to in ("float64", "float32", "bfloat16")]
    return (*drawn, *(_rounded(_case(name, says, make), to, "") for name, says, make, to in _SINGLES))


def _case(name: str, says: str, make: _Make) -> Case:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    layer, x = make(rng)
    dy = rng.standard_normal((len(x), layer.widths[-1]))
    weights = rng.uniform(0.25, 2, len(x))
    weights[2::5] = 0.0  # a token that does not count
    return Case(name, says, layer, x, dy, weights)


def _rounded(case: Case, to: str, label: str | None = None) -> Case:
    """All numbers of a case as an arithmetic stores them."""
    if to == "float64":
        return case
    keep = ARITHMETICS[to].round
    name = case.name + (f"-{to}" if label is None else label)
    layer = tree.map_leaves(keep, case.layer)
    return Case(name, case.says, layer, keep(case.x), keep(case.dy), keep(case.weights), to)


def _block(rng: np.random.Generator) -> Any:
    """A mixture behind a norm, with a residual around both."""
    norm = RMSNorm(1 + rng.standard_normal(6) / 4)
    return Residual(Stack((norm, _mixture(rng, 4, 2, 6, 9, 6))))


def battery_cases(only: Sequence[str] | None = None) -> tuple[Case, ...]:
    """The cases of the battery: those of `cases` as drawn, and a block of norm, mixture and residual.

    Parameters
    ----------
    only : names, in which * stands for anything; all unless given.

    Raises
    ------
    ValueError : for a name that none of them has.

    Examples
    --------
    >>> [case.name for case in battery_cases(["ties-top?", "block"])]
    ['ties-top1', 'ties-top2', 'block']
    """
    block = _case("block", "a norm, a mixture and a residual", _drawn(6, _block))
    rounded = {f"{name}-{to}" for name, _, _ in _KINDS for to in ("float32", "bfloat16")}
    found = {case.name: case for case in (*cases(), block) if case.name not in rounded}
    return tuple(found[name] for name in named(found, only))


def named(known: Iterable[str], only: Sequence[str] | None) -> list[str]:
    """Names that are asked for, in the order of the table; * stands for anything."""
    names = list(known)
    if only is None:
        return names
    only = [only] if isinstance(only, str) else list(only)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"expected names of cases among {', '.join(names)}; got {pattern!r}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in only)]
