"""What may stand around a mixture: a linear layer, norms, a residual, one layer after another.

n tokens, d width, o output width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, tree, words
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import ACTIVATIONS
from npmoe.calculus.words import one_line

__all__ = ["LayerNorm", "Linear", "RMSNorm", "Residual", "Stack"]

Array = np.ndarray


class LinearTrace(NamedTuple):
    """What `Linear.vjp` reads: x (n, d) and the slope (n, o), or None without an activation."""

    x: Array
    slope: Array | None

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class Linear:
    """y = phi(W x + b), with phi the identity or an activation by name.

    Parameters
    ----------
    W, b : arrays (o, d), (o,).
    activation : None or a name in `npmoe.calculus.scalar.ACTIVATIONS`.

    Raises
    ------
    ValueError, TypeError : if the shapes do not fit together, arrays are not floats or the name is unknown.

    Examples
    --------
    >>> Linear(np.array([[2.0]]), np.array([1.0])).forward(np.array([[3.0]]))[0]
    array([[7.]])
    """

    W: Array
    b: Array
    activation: str | None = None

    def __post_init__(self) -> None:
        o, _ = check.shaped("W", self.W, ("o", "d"), "Linear").shape
        check.shaped("b", self.b, (o,), "Linear")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation among None, {', '.join(ACTIVATIONS)}; got {self.activation!r}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, o)."""
        return self.W.shape[1], self.W.shape[0]

    def forward(self, x: Array) -> tuple[Array, LinearTrace]:
        """x (n, d) -> y (n, o) and what `vjp` reads."""
        x = check.matrix("x", x, self.W.shape[1], "this layer")
        z = matmul(x, self.W.T) + self.b  # (n, o)
        if self.activation is None:
            return z, LinearTrace(x, None)
        a, slope = ACTIVATIONS[self.activation](z)
        return a, LinearTrace(x, slope)

    def vjp(self, trace: LinearTrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "Linear"]:
        """dy (n, o) -> dx (n, d) and the gradient, itself a Linear."""
        dy = check.shaped("dy", dy, (len(trace.x), len(self.W)), "this trace")
        dz = dy if trace.slope is None else dy * trace.slope  # (n, o)
        return (matmul(dz, self.W) if wrt_x else None), Linear(matmul(dz.T, trace.x), dz.sum(axis=0), self.activation)

    def jacobian(self, x: Array) -> Array:
        """(n, o, d)."""
        slope = self.forward(x)[1].slope
        ones = np.ones((len(x), self.W.shape[0]), self.W.dtype) if slope is None else slope
        return ones[:, :, None] * self.W

    @words.never_raises
    def __repr__(self) -> str:
        kind = f", {self.activation}" if self.activation else ""
        return f"Linear({words.sizes(self)}{kind}, {words.dtype_of(tree.leaves(self))})"


class RMSNormTrace(NamedTuple):
    """What `RMSNorm.vjp` reads: x (n, d) and 1/r (n, 1)."""

    x: Array
    inverse: Array

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """y = gamma x / r, r^2 = mean x^2 + eps; J = diag(gamma) (I - x x^T / (d r^2)) / r.

    Source: Zhang and Sennrich, arXiv 1910.07467, equation 4.

    Parameters
    ----------
    gamma : array (d,).
    eps : number of at least 0.

    Examples
    --------
    >>> RMSNorm(np.ones(2), eps=0.0).forward(np.array([[3.0, 4.0]]))[0].round(4)
    array([[0.8485, 1.1314]])
    """

    gamma: Array
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check.shaped("gamma", self.gamma, ("d",), "RMSNorm")
        if not self.eps >= 0:
            raise ValueError(f"expected eps of at least 0 of RMSNorm; got {self.eps}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, d)."""
        return len(self.gamma), len(self.gamma)

    def forward(self, x: Array) -> tuple[Array, RMSNormTrace]:
        """x (n, d) -> y (n, d) and what `vjp` reads."""
        x = check.matrix("x", x, len(self.gamma), "this norm")
        inverse = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(self.eps))  # (n, 1)
        return x * inverse * self.gamma, RMSNormTrace(x, inverse)

    def vjp(self, trace: RMSNormTrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "RMSNorm"]:
        """dy (n, d) -> dx (n, d) and the gradient, itself an RMSNorm."""
        x, inverse = trace
        dy = check.shaped("dy", dy, x.shape, "this trace")
        dgamma = (dy * x * inverse).sum(axis=0)
        dhat = dy * self.gamma * inverse  # (n, d)
        dx = dhat - x * (inverse**2 * (dhat * x).mean(axis=1, keepdims=True)) if wrt_x else None
        return dx, RMSNorm(dgamma, self.eps)

    def jacobian(self, x: Array) -> Array:
        """(n, d, d)."""
        x, inverse = self.forward(x)[1]
        inverse = inverse[:, :, None]
        outer = x[:, :, None] * x[:, None, :] * inverse**2 / x.shape[1]
        return self.gamma[:, None] * (np.eye(x.shape[1], dtype=x.dtype) - outer) * inverse

    @words.never_raises
    def __repr__(self) -> str:
        return f"RMSNorm({len(self.gamma)}, eps {self.eps:.2g}, {self.gamma.dtype})"


class LayerNormTrace(NamedTuple):
    """What `LayerNorm.vjp` reads: xhat = (x - mean) / sigma (n, d) and 1/sigma (n, 1)."""

    xhat: Array
    inverse: Array

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """y = gamma xhat + beta, xhat = (x - mean x) / sigma, sigma^2 = var x + eps.

    J = diag(gamma) (C - xhat xhat^T / d) / sigma, C = I - 11^T/d. Source: Ba et al., arXiv 1607.06450, equation 4.

    Parameters
    ----------
    gamma, beta : arrays (d,).
    eps : number of at least 0.

    Examples
    --------
    >>> LayerNorm(np.ones(2), np.zeros(2), eps=0.0).forward(np.array([[3.0, 5.0]]))[0]
    array([[-1.,  1.]])
    """

    gamma: Array
    beta: Array
    eps: float = 1e-5

    def __post_init__(self) -> None:
        d = len(check.shaped("gamma", self.gamma, ("d",), "LayerNorm"))
        check.shaped("beta", self.beta, (d,), "LayerNorm")
        if not self.eps >= 0:
            raise ValueError(f"expected eps of at least 0 of LayerNorm; got {self.eps}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, d)."""
        return len(self.gamma), len(self.gamma)

    def forward(self, x: Array) -> tuple[Array, LayerNormTrace]:
        """x (n, d) -> y (n, d) and what `vjp` reads."""
        x = check.matrix("x", x, len(self.gamma), "this norm")
        xhat = x - _mean(x)  # (n, d)
        inverse = 1 / np.sqrt(_mean_of_products(xhat, xhat) + x.real.dtype.type(self.eps))  # (n, 1)
        xhat *= inverse
        y = xhat * self.gamma
        y += self.beta
        return y, LayerNormTrace(xhat, inverse)

    def vjp(self, trace: LayerNormTrace, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "LayerNorm"]:
        """dy (n, d) -> dx (n, d) and the gradient, itself a LayerNorm."""
        xhat, inverse = trace
        dy = check.shaped("dy", dy, xhat.shape, "this trace")
        dself = tree.alike(self, gamma=np.einsum("nd,nd->d", dy, xhat), beta=dy.sum(axis=0))
        if not wrt_x:
            return None, dself
        dx = dy * self.gamma  # (n, d), the cotangent of xhat
        shared = _mean_of_products(dx, xhat)  # (n, 1)
        dx -= _mean(dx)
        dx -= xhat * shared
        dx *= inverse
        return dx, dself

    def jacobian(self, x: Array) -> Array:
        """(n, d, d)."""
        xhat, inverse = self.forward(x)[1]
        d = xhat.shape[1]
        centring = np.eye(d, dtype=xhat.dtype) - xhat.dtype.type(1 / d)
        J = centring - xhat[:, :, None] * xhat[:, None, :] / d
        return self.gamma[:, None] * J * inverse[:, :, None]

    @words.never_raises
    def __repr__(self) -> str:
        return f"LayerNorm({len(self.gamma)}, eps {self.eps:.2g}, {self.gamma.dtype})"


def _mean(a: Array) -> Array:
    """Mean over the width, (n, 1): `numpy.mean` of many short rows takes twice as long."""
    mean = np.add.reduce(a, axis=1, keepdims=True)
    mean /= a.shape[1]
    return mean


def _mean_of_products(a: Array, b: Array) -> Array:
    """Mean over the width of a b, (n, 1), without an array (n, d) in between."""
    mean = np.einsum("nd,nd->n", a, b)[:, None]
    mean /= a.shape[1]
    return mean


@dataclass(frozen=True, eq=False)
class Residual:
    """y = x + f(x), J = I + J_f, for a layer f whose widths are equal.

    Examples
    --------
    >>> Residual(Linear(np.eye(1), np.zeros(1))).forward(np.array([[2.0]]))[0]
    array([[4.]])
    """

    layer: Any

    def __post_init__(self) -> None:
        d, o = self.widths
        if d != o:
            raise ValueError(f"expected a layer of equal widths inside a residual; got width {d} and output {o}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, d)."""
        return self.layer.widths[0], self.layer.widths[-1]

    def forward(self, x: Array) -> tuple[Array, Any]:
        """x (n, d) -> y (n, d) and the inner layer's trace."""
        y, trace = self.layer.forward(x)
        return x + y, trace

    def vjp(self, trace: Any, dy: Array, wrt_x: bool = True) -> tuple[Array | None, "Residual"]:
        """dy (n, d) -> dx (n, d) and the gradient, itself a Residual."""
        dx, dlayer = self.layer.vjp(trace, dy, wrt_x)
        return (None if dx is None else dx + dy), Residual(dlayer)

    def jacobian(self, x: Array) -> Array:
        """(n, d, d)."""
        return np.eye(x.shape[1], dtype=x.dtype) + self.layer.jacobian(x)

    @words.never_raises
    def __repr__(self) -> str:
        return words.cut(f"Residual({self.layer!r}", ")")


@dataclass(frozen=True, eq=False)
class Stack:
    """Layers one after another, y = f_m(... f_1(x)), J = J_m ... J_1.

    Examples
    --------
    >>> double = Linear(2 * np.eye(1), np.zeros(1))
    >>> Stack((double, double)).jacobian(np.ones((1, 1)))
    array([[[4.]]])
    """

    layers: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not self.layers:
            raise ValueError(f"expected a tuple of at least one layer; got {self.layers!r}")
        for first, second in zip(self.layers, self.layers[1:], strict=False):
            if first.widths[-1] != second.widths[0]:
                raise ValueError(
                    f"expected each layer to read what the one in front gives; got {type(first).__name__} of output "
                    f"{first.widths[-1]} in front of {type(second).__name__} of width {second.widths[0]}"
                )

    @property
    def widths(self) -> tuple[int, int]:
        """(d, o)."""
        return self.layers[0].widths[0], self.layers[-1].widths[-1]

    def forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        """x (n, d) -> y (n, o) and the layers' traces."""
        traces = []
        for layer in self.layers:
            x, trace = layer.forward(x)
            traces.append(trace)
        return x, tuple(traces)

    def vjp(self, trace: tuple[Any, ...], dy: Array, wrt_x: bool = True) -> tuple[Array | None, "Stack"]:
        """dy (n, o) -> dx (n, d) and the gradient, itself a Stack."""
        gradients = []
        for i in reversed(range(len(self.layers))):
            dy, dlayer = self.layers[i].vjp(trace[i], dy, wrt_x or i > 0)
            gradients.append(dlayer)
        return dy, Stack(tuple(reversed(gradients)))

    def jacobian(self, x: Array) -> Array:
        """(n, o, d)."""
        J = self.layers[0].jacobian(x)
        for before, layer in zip(self.layers, self.layers[1:], strict=False):
            x, _ = before.forward(x)
            J = matmul(layer.jacobian(x), J)
        return J

    @words.never_raises
    def __repr__(self) -> str:
        return words.cut(f"Stack({', '.join(map(repr, self.layers))}", ")")
