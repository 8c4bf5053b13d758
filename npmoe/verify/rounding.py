"""Rounding carried along: each number with how far an arithmetic may have moved it, at worst or as a rule.

u unit roundoff, half of eps; m terms of a sum. At worst a product of matrices A (p, m) and B (m, q) is off by
g(m) |A| |B|, element by element, in any order of summation (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., section 3.5), and errors add. As a rule they are independent and of mean zero: variances add, and each number
carries a standard deviation. Neither looks at what a candidate answered: both can be stated before it answers.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.scalar import ACTIVATIONS
from npmoe.calculus.words import one_line

__all__ = ["ARITHMETICS", "Arithmetic", "Rounded", "Rounding"]

Array = np.ndarray

#: Units of u that an elementary function (exp, erf, tanh, logistic, root) and the few operations around it may cost,
#: at worst and as a rule. `npmoe.battery.oracles.elementary` measures ours; libraries state 1 to 4 ulp.
ELEMENTARY = 8.0, 2.0

_C, _B = (2 / np.pi) ** 0.5, 0.044715  # of the tanh approximation of GELU
_FLAT = {"gelu": 10.0, "gelu_tanh": 10.0, "silu": 42.0}  # beyond it a slope is 0 or 1 to 1e-16
_STEEPEST = 1.3  # slopes lie within -0.13 and 1.13: none is off by more, nor is a value by more of z's error


@dataclass(frozen=True)
class Arithmetic:
    """What one number costs: u of what is stored, u of the accumulator in a product, and what may be lost below all
    normal numbers.

    Products of half precision accumulate in float32, as those of all frameworks do; plain sums need not.
    """

    name: str
    unit: float
    sums: float
    tiny: float

    @property
    def eps(self) -> float:
        """Distance from 1 to the next number."""
        return 2 * self.unit

    def round(self, a: Array) -> Array:
        """`a` as this arithmetic stores it, kept in float64; ties to even.

        Examples
        --------
        >>> ARITHMETICS["bfloat16"].round(np.array([1 + 2**-8, 1 + 3 * 2**-8, 3.0]))
        array([1.      , 1.015625, 3.      ])
        """
        a = np.asarray(a, np.float64)
        if self.name == "float64":
            return a
        if self.name in ("float32", "float16"):
            with np.errstate(over="ignore", under="ignore"):
                return a.astype(self.name).astype(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            bits = a.astype(np.float32).view(np.uint32)
            # what is dropped is rounded to even; twice rounded numbers (float64, float32, bfloat16) are still nearest
            # but for ties of the first, which cost 2^-24 of a unit
            bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            kept = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
        return np.where(np.isfinite(a), kept, a)


#: By name. float64 comes first: it is what ours is computed in.
ARITHMETICS: dict[str, Arithmetic] = {
    "float64": Arithmetic("float64", 2.0**-53, 2.0**-53, 2.0**-1022),
    "float32": Arithmetic("float32", 2.0**-24, 2.0**-24, 2.0**-126),
    "float16": Arithmetic("float16", 2.0**-11, 2.0**-24, 2.0**-24),  # underflow is gradual
    "bfloat16": Arithmetic("bfloat16", 2.0**-8, 2.0**-24, 2.0**-126),
}


class Rounded(NamedTuple):
    """A value and its error, arrays of one shape: a bound at worst, a standard deviation as a rule."""

    value: Array
    error: Array

    def __repr__(self) -> str:
        return one_line(self)

    def at(self, index: Any) -> "Rounded":
        """The same part of both."""
        return Rounded(self.value[index], self.error[index])

    @property
    def T(self) -> "Rounded":
        """Transposed."""
        return Rounded(self.value.T, self.error.T)


@dataclass(frozen=True)
class Rounding:
    """The operations of one arithmetic on `Rounded` numbers.

    Parameters
    ----------
    arithmetic : what a number costs.
    usual : errors as standard deviations, whose squares add; else bounds, which add themselves.

    Examples
    --------
    >>> r = Rounding(ARITHMETICS["float32"])
    >>> a = r.product(r.exact(np.ones((1, 3))), r.exact(np.ones((3, 1))))
    >>> a.value, (a.error / 2.0**-24).round(3)  # three terms, and once more where the sum is stored
    (array([[3.]]), array([[12.]]))
    """

    arithmetic: Arithmetic
    usual: bool = False

    @property
    def u(self) -> float:
        """What one rounding costs: at most u; u / sqrt(3) is the deviation of one that is evenly spread over +-u."""
        return self.arithmetic.unit * self._spread

    @property
    def _spread(self) -> float:
        return 3**-0.5 if self.usual else 1.0

    @property
    def elementary(self) -> float:
        """What an elementary function costs."""
        return ELEMENTARY[self.usual] * self.u

    def growth(self, m: int, plain: bool = False) -> float:
        """g(m): what a sum of m products, or of m plain numbers, may be off by, relative to that of absolute values.

        At worst (1 + u)^m - 1, in any order; as a rule the root of m roundings.
        """
        u = self.arithmetic.unit if plain else self.arithmetic.sums
        return m**0.5 * u * self._spread if self.usual else float(np.expm1(min(m * u, 50.0)))

    def join(self, *errors: Array | float) -> Array:
        """Several errors of one number as one."""
        total = np.asarray(np.square(errors[0]) if self.usual else errors[0])
        for e in errors[1:]:
            total = total + (np.square(e) if self.usual else e)
        return np.sqrt(total) if self.usual else total

    def through(self, left: Array, right: Array) -> Array:
        """|left| @ |right|, where one of the two is an error: how a matrix product hands it on."""
        if self.usual:
            return np.sqrt(np.square(left) @ np.square(right))
        return np.abs(left) @ np.abs(right)

    def size(self, left: Array, right: Array, value: Array) -> Array:
        """What the rounding of a product's sums is relative to: the sum of absolute values at worst.

        As a rule partial sums of terms of either sign grow as the root of their number, those with a trend towards the
        sum itself: the root of the terms' squares, and the sum.
        """
        return self.through(left, right) + (np.abs(value) if self.usual else 0.0)

    def exact(self, a: Array) -> Rounded:
        """`a` without error."""
        a = np.asarray(a, np.float64)
        return Rounded(a, np.zeros_like(a))

    def given(self, a: Array | float) -> Rounded:
        """`a` as it is handed over: without error where the arithmetic can hold it, else rounded once."""
        a = np.asarray(a, np.float64)
        away = np.abs(self.arithmetic.round(a) - a)  # more than u |a| where a is too small, infinite where too large
        return Rounded(a, np.where(away == 0, 0.0, np.maximum(self.u * np.abs(a), away)))

    def stored(self, value: Array, error: Array) -> Rounded:
        """A result that is rounded once more where it is stored; what is too small may become 0."""
        total = self.join(error, self.u * np.abs(value)) + self.arithmetic.tiny * (value != 0)
        return Rounded(value, np.nan_to_num(total, nan=np.inf, posinf=np.inf))  # inf times 0: nothing is known

    def product(self, a: Rounded, b: Rounded) -> Rounded:
        """Matrix product, (..., m) @ (m, q)."""
        value = a.value @ b.value
        sums = self.growth(a.value.shape[-1]) * self.size(a.value, b.value, value)
        # (|A| + eA) eB + eA |B|: the second order counts where numbers are as rough as in bfloat16
        error = self.join(sums, self.through(np.abs(a.value) + a.error, b.error), self.through(a.error, b.value))
        return self.stored(value, error)

    def times(self, a: Rounded, b: Rounded) -> Rounded:
        """Element by element."""
        error = self.join(np.abs(a.value) * b.error, a.error * (np.abs(b.value) + b.error))
        return self.stored(a.value * b.value, error)

    def plus(self, a: Rounded, b: Rounded) -> Rounded:
        """Element by element."""
        return self.stored(a.value + b.value, self.join(a.error, b.error))

    def minus(self, a: Rounded, b: Rounded) -> Rounded:
        """Element by element."""
        return self.stored(a.value - b.value, self.join(a.error, b.error))

    def total(self, errors: Array, axis: int, keepdims: bool = False) -> Array:
        """Errors, or terms, along an axis as one."""
        if self.usual:
            return np.sqrt(np.square(errors).sum(axis=axis, keepdims=keepdims))
        return np.asarray(errors.sum(axis=axis, keepdims=keepdims))

    def sum(self, a: Rounded, axis: int, keepdims: bool = False) -> Rounded:
        """Sum over an axis, of plain numbers.

        As a rule, too, terms of one sign and size are rounded the same way again and again on the way up: of m u |sum|
        a twelfth, which at six deviations is a half.
        """
        m = a.value.shape[axis]
        value = a.value.sum(axis=axis, keepdims=keepdims)
        size = self.total(np.abs(a.value), axis, keepdims) + (np.abs(value) if self.usual else 0.0)
        trend = m * self.arithmetic.unit / 12 * np.abs(value) if self.usual else 0.0
        error = self.join(self.growth(m, plain=True) * size, self.total(a.error, axis, keepdims), trend)
        return self.stored(value, error)

    def scaled(self, a: Rounded, factor: float) -> Rounded:
        """Times a number that is itself rounded."""
        return self.stored(a.value * factor, abs(factor) * self.join(a.error, self.u * np.abs(a.value)))

    def activation(self, name: str, z: Rounded) -> tuple[Rounded, Rounded]:
        """Value and slope of an activation by name.

        What z may be off by moves the value by the slope and the slope by the curvature, here a difference of slopes;
        the second order is bounded by 1, above all second and third derivatives, and all of it by what a slope can be.
        To it comes what the function costs: a = z P with P within `elementary`; a slope that is made of 1 - tanh^2 or
        1 - sigmoid has what cancels there.
        """
        a, slope = ACTIVATIONS[name](z.value)
        away = 1e-4
        ahead, behind = (ACTIVATIONS[name](z.value + sign * away)[1] for sign in (1, -1))
        curvature = np.abs(ahead - behind) / (2 * away)
        size, ez = np.abs(z.value), z.error
        if name == "gelu_tanh":
            t = np.abs(np.tanh(_C * size * (1 + _B * size**2)))
            lever = size * _C * (1 + 3 * _B * size**2)
            if self.usual:  # a good tanh is 1 where it should be; one that stops short of it has this lever at any z
                lever = np.where(t < 1 - self.arithmetic.unit / 64, lever, 0.0)
        elif name == "silu":
            lever = np.abs(a)  # of 1 - sigmoid
            if self.usual:
                lever = np.where(np.exp(-np.maximum(z.value, 0.0)) > self.arithmetic.unit / 64, lever, 0.0)
        else:
            lever = np.zeros_like(size)  # |z|^3 N(z) is below 1
        flat = size - ez > _FLAT[name]
        moved = np.where(flat, 0.0, np.minimum((curvature + ez) * ez, _STEEPEST))
        by_slope = np.minimum((np.abs(slope) + np.where(flat, 0.0, ez)) * ez, _STEEPEST * ez)
        return (
            self.stored(a, self.join(by_slope, self.elementary * size)),
            self.stored(slope, self.join(moved, self.elementary * (1 + lever))),
        )

    def softmax(self, s: Rounded, on: Array | None = None) -> Rounded:
        """Softmax over the last axis, of the entries that are `on`; 0 elsewhere.

        If the logarithm of each entry is off by a_e at most, q_e rises at most to q e^a / (q e^a + sum' q_j e^-a_j),
        the sum over the others, and falls likewise: an entry near 1 is hardly moved. Sums and quotients are taken
        twice: renormalized gates may be a softmax over all that is divided by the sum of those kept.
        """
        E = s.value.shape[-1]
        on = np.ones(s.value.shape, bool) if on is None else on
        t = np.where(on, s.value, -np.inf)
        t = t - t.max(axis=-1, keepdims=True)
        others = 1.0 - np.eye(E)
        with np.errstate(under="ignore"):
            q = np.exp(t)
            q = q / q.sum(axis=-1, keepdims=True)
            a = self.join(s.error, self.u * np.abs(np.where(on, t, 0.0)), self.elementary)
            a = np.where(on, np.minimum(np.nan_to_num(a, nan=np.inf), 50.0), 0.0)  # beyond 50 nothing is known
            rest = q @ others  # 1 - q without its digits lost
            if self.usual:
                moved = q * np.hypot(rest * a, self.through(q * a, others))
            else:
                rise = rest * np.expm1(a) + -(q * np.expm1(-a)) @ others
                rise = rise / (q * np.exp(a) + (q * np.exp(-a)) @ others)
                fall = rest * -np.expm1(-a) + (q * np.expm1(a)) @ others
                fall = fall / (q * np.exp(-a) + (q * np.exp(a)) @ others)
                moved = q * np.maximum(rise, fall)
            sums = 2 * self.growth(E, plain=True) + 4 * self.u
            if not self.usual:  # exp(s - logsumexp(s)) rounds the second, which is as large as the scores
                sums = sums + self.u * np.abs(np.where(on, s.value, 0.0)).max(axis=-1, keepdims=True)
            moved = np.minimum(moved, 1.0)
            return self.stored(q, self.join(moved, sums * np.minimum(q + moved, 1.0)) * on)
