"""Experts: forward, vjp, linearize and what follows from them.

n tokens, d width, h hidden, o output width. A cotangent is ``d`` + the forward name; a derivative is spelled ``slope``.

A new kind of expert writes `forward`, `vjp` and `linearize`, inherits `Expert`, and has all the rest.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check, tree, words
from npmoe.calculus.factored import Factored
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import ACTIVATIONS, gelu_curvature, silu, slope_of
from npmoe.calculus.words import one_line

__all__ = ["Expert", "GeluExpert", "SwigluExpert"]

Array = np.ndarray


class Expert:
    """What every expert has once it can `linearize`: all of it is read off the factors."""

    def linearize(self, x: Array) -> Factored:
        """Jacobians at every token, in factors; each kind of expert writes its own."""
        raise TypeError(f"{type(self).__name__} has no linearize; an expert writes forward, vjp and linearize")

    def jacobian(self, x: Array) -> Array:
        """Jacobians at every token, x (n, d) -> (n, o, d) with J[n, o, i] = dy_no / dx_ni."""
        return self.linearize(x).dense()

    def jvp(self, x: Array, dx: Array) -> Array:
        """J(x_n) dx_n for every token: x, dx (n, d) -> (n, o)."""
        J = self.linearize(x)
        return J.apply(check.shaped("dx", dx, np.shape(x), "x"))

    def mean_jacobian(self, x: Array, weights: Array | None = None) -> Array:
        """Weighted mean of the Jacobians, (o, d), in closed form: one forward pass, no (n, o, d) array.

        Parameters
        ----------
        x : array (n, d).
        weights : array (n,), non-negative, not all zero; equal unless given.
        """
        return self.linearize(x).mean(weights)


class GeluTrace(NamedTuple):
    """What `GeluExpert.vjp` reads: x (n, d), hidden values a and slopes (n, h)."""

    x: Array
    a: Array
    slope: Array

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class GeluExpert(Expert):
    """Two-layer MLP, y = W2 gelu(W1 x + b1) + b2, with J(x) = W2 diag(gelu'(W1 x + b1)) W1.

    Parameters
    ----------
    W1, b1, W2, b2 : arrays (h, d), (h,), (o, h), (o,).
    activation : name in `npmoe.calculus.scalar.ACTIVATIONS`: "gelu" (exact), "gelu_tanh" or "silu".

    Raises
    ------
    ValueError, TypeError : if shapes do not fit together, arrays are not floats or the name is unknown.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> f = GeluExpert(*(rng.standard_normal(shape) for shape in [(5, 3), (5,), (2, 5), (2,)]))
    >>> x = rng.standard_normal((4, 3))
    >>> y, trace = f.forward(x)
    >>> dx, df = f.vjp(trace, np.ones_like(y))
    >>> bool(np.allclose(dx, f.jacobian(x).sum(axis=1)))
    True
    """

    W1: Array
    b1: Array
    W2: Array
    b2: Array
    activation: str = "gelu"

    def __post_init__(self) -> None:
        h, d = check.shaped("W1", self.W1, ("h", "d"), "GeluExpert").shape
        check.shaped("b1", self.b1, (h,), "GeluExpert")
        o, _ = check.shaped("W2", self.W2, ("o", h), "GeluExpert").shape
        check.shaped("b2", self.b2, (o,), "GeluExpert")
        check.widths("GeluExpert", d=d, h=h, o=o)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}; got {self.activation!r}")

    @property
    def widths(self) -> tuple[int, int, int]:
        """(d, h, o)."""
        return self.W1.shape[1], self.W1.shape[0], self.W2.shape[0]

    def hidden(self, x: Array) -> Array:
        """z = W1 x + b1, (n, h)."""
        return self._hidden(check.matrix("x", x, self.W1.shape[1], "this expert"))

    def _hidden(self, x: Array) -> Array:
        z = matmul(x, self.W1.T)  # (n, h)
        z += self.b1
        return z

    def forward(self, x: Array) -> tuple[Array, GeluTrace]:
        """x (n, d) -> y (n, o) and what `vjp` reads."""
        x = check.matrix("x", x, self.W1.shape[1], "this expert")
        a, slope = ACTIVATIONS[self.activation](self._hidden(x))  # (n, h), (n, h)
        y = matmul(a, self.W2.T)  # (n, o)
        y += self.b2
        return y, GeluTrace(x, a, slope)

    def vjp(self, trace: GeluTrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "GeluExpert"]:
        """dy (n, o) -> dx (n, d) and the gradient, itself a GeluExpert; dx is None where it is not wanted."""
        x, a, slope = trace
        dz = matmul(check.shaped("dy", dy, (len(x), len(self.W2)), "this trace"), self.W2)  # (n, h)
        dz *= slope
        W1, W2 = matmul(dz.T, x), matmul(dy.T, a)  # (h, d), (o, h)
        dself = tree.alike(self, W1=W1, b1=dz.sum(axis=0), W2=W2, b2=dy.sum(axis=0))
        return (matmul(dz, self.W1) if wrt_x else None), dself

    def linearize(self, x: Array) -> Factored:
        """J_n = W2 diag(slope_n) W1: backward reads the same product from the left, ``dy @ W2 * slope @ W1``."""
        slope = slope_of(self.activation, self.hidden(check.finite("x", check.floating("x", x))))
        return Factored(L=self.W2, S=slope[None], R=self.W1[None])

    def hessian_norm(self, x: Array) -> Array:
        """Norm of the second derivative at every token, sqrt(sum_oij (d2 f_o / dx_i dx_j)^2), x (n, d) -> (n,).

        The square is c^T [(W2^T W2) * (W1 W1^T)^2] c, squares element-wise, c = gelu''(z): one h x h matrix. Where
        the units' second derivatives cancel it is the root of a difference, exact to sqrt(eps) of their size.
        """
        if self.activation != "gelu":
            raise ValueError(f"expected the exact GELU, whose curvature is known; got {self.activation!r}")
        c = gelu_curvature(self.hidden(x))  # (n, h)
        M = matmul(self.W2.T, self.W2) * matmul(self.W1, self.W1.T) ** 2  # (h, h)
        return np.sqrt(np.maximum(np.einsum("nh,nh->n", matmul(c, M), c), 0))

    @words.never_raises
    def __repr__(self) -> str:
        kind = "" if self.activation == "gelu" else f", {self.activation}"
        return f"GeluExpert({words.sizes(self)}{kind}, {words.dtype_of(tree.leaves(self))})"


class SwigluTrace(NamedTuple):
    """What `SwigluExpert.vjp` reads: x (n, d); b = silu(a), its slope, u, and where u is not clipped, all (n, h)."""

    x: Array
    b: Array
    slope: Array
    u: Array
    inside: Array | None = None

    def __repr__(self) -> str:
        return one_line(self)


def _affine(x: Array, W: Array, b: Array | None) -> Array:
    """W x + b, (n, h)."""
    z = matmul(x, W.T)
    if b is not None:
        z += b
    return z


@dataclass(frozen=True, eq=False)
class SwigluExpert(Expert):
    """Gated MLP, y = Wd (silu(Wg x) * (Wu x)), Shazeer, arXiv 2002.05202, equation 6.

    J(x) = Wd [diag(silu'(a) u) Wg + diag(silu(a)) Wu], a = Wg x, u = Wu x. With the other parameters, as in gpt-oss,
    y = Wd (swish(min(a, limit)) * (clip(u, limit) + shift)) + bd, a = Wg x + bg, u = Wu x + bu, where swish(a) is
    a sig(beta a).

    Parameters
    ----------
    Wg, Wu, Wd : arrays (h, d), (h, d), (o, h).
    bg, bu, bd : arrays (h,), (h,), (o,), or None.
    limit : where a is cut off from above and u on both sides, or None. At the limit itself slopes are those inside.
    beta : positive number within the sigmoid.
    shift : what is added to u.

    Raises
    ------
    ValueError, TypeError : if the shapes do not fit together or the arrays are not floats.

    Examples
    --------
    >>> f = SwigluExpert(Wg=np.ones((2, 1)), Wu=np.ones((2, 1)), Wd=np.ones((1, 2)))
    >>> f.forward(np.ones((1, 1)))[0].round(4), f.jacobian(np.ones((1, 1))).round(4)
    (array([[1.4621]]), array([[[3.3175]]]))
    """

    Wg: Array
    Wu: Array
    Wd: Array
    bg: Array | None = field(default=None, kw_only=True)
    bu: Array | None = field(default=None, kw_only=True)
    bd: Array | None = field(default=None, kw_only=True)
    limit: float | None = field(default=None, kw_only=True)
    beta: float = field(default=1.0, kw_only=True)
    shift: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        h, d = check.shaped("Wg", self.Wg, ("h", "d"), "SwigluExpert").shape
        check.shaped("Wu", self.Wu, (h, d), "SwigluExpert")
        o, _ = check.shaped("Wd", self.Wd, ("o", h), "SwigluExpert").shape
        check.widths("SwigluExpert", d=d, h=h, o=o)
        for name, bias, size in (("bg", self.bg, h), ("bu", self.bu, h), ("bd", self.bd, o)):
            if bias is not None:
                check.shaped(name, bias, (size,), "SwigluExpert")
        check.positive("beta", self.beta)
        if self.limit is not None:
            check.positive("limit", self.limit)

    @property
    def plain(self) -> bool:
        """Without biases, limit, steepness and shift: the SwiGLU of the paper."""
        extra = self.bg is not None or self.bu is not None or self.bd is not None or self.limit is not None
        return not extra and self.beta == 1 and self.shift == 0

    @property
    def widths(self) -> tuple[int, int, int]:
        """(d, h, o)."""
        return self.Wg.shape[1], self.Wg.shape[0], self.Wd.shape[0]

    def forward(self, x: Array) -> tuple[Array, SwigluTrace]:
        """x (n, d) -> y (n, o) and what `vjp` reads."""
        x = check.matrix("x", x, self.Wg.shape[1], "this expert")
        b, slope = self._gate(_affine(x, self.Wg, self.bg))  # (n, h), (n, h)
        u, inside = self._up(_affine(x, self.Wu, self.bu))  # (n, h), (n, h) or None
        return _affine(b * u, self.Wd, self.bd), SwigluTrace(x, b, slope, u, inside)

    def _gate(self, a: Array) -> tuple[Array, Array]:
        """swish(min(a, limit)) and its slope."""
        if self.limit is None and self.beta == 1:
            return silu(a)
        cut = a if self.limit is None else np.where(a.real > self.limit, self.limit, a)
        b, slope = silu(self.beta * cut)  # beta swish(a) = silu(beta a)
        return b / self.beta, slope if self.limit is None else slope * (a.real <= self.limit)

    def _up(self, u: Array) -> tuple[Array, Array | None]:
        """clip(u) + shift, and where it is not clipped: None for everywhere."""
        if self.limit is None:
            return u if self.shift == 0 else u + self.shift, None
        inside = np.abs(u.real) <= self.limit
        return np.where(inside, u, np.sign(u.real) * self.limit) + self.shift, inside

    def vjp(self, trace: SwigluTrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "SwigluExpert"]:
        """dy (n, o) -> dx (n, d) and the gradient, itself a SwigluExpert; dx is None where it is not wanted."""
        x, b, slope, u, inside = trace
        dv = matmul(check.shaped("dy", dy, (len(x), len(self.Wd)), "this trace"), self.Wd)  # (n, h), v = b * u
        du = dv * b if inside is None else dv * b * inside
        da = dv * slope * u
        dself = tree.alike(self, Wg=matmul(da.T, x), Wu=matmul(du.T, x), Wd=matmul(dy.T, b * u))
        for name, bias, dz in (("bg", self.bg, da), ("bu", self.bu, du), ("bd", self.bd, dy)):
            if bias is not None:
                dself = tree.alike(dself, **{name: dz.sum(axis=0)})
        return (matmul(da, self.Wg) + matmul(du, self.Wu) if wrt_x else None), dself

    def linearize(self, x: Array) -> Factored:
        """Two terms with one L: S_1 = silu'(a) u with R_1 = Wg, S_2 = silu(a) with R_2 = Wu."""
        _, (_, b, slope, u, inside) = self.forward(check.finite("x", check.floating("x", x)))
        S = np.stack([slope * u, b if inside is None else b * inside])
        return Factored(L=self.Wd, S=S, R=np.stack([self.Wg, self.Wu]))

    @words.never_raises
    def __repr__(self) -> str:
        return f"SwigluExpert({words.sizes(self)}, {words.dtype_of(tree.leaves(self))})"
