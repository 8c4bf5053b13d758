"""Adam over one flat vector (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""

import math
from dataclasses import dataclass

import numpy as np

from npmoe.calculus.threads import each, parts
from npmoe.calculus.words import one_line

__all__ = ["Adam"]

_PIECE = 1 << 16  # elements: few enough for the cache, enough for two threads


@dataclass(frozen=True)
class Adam:
    """The constants of Adam; `start` and `step` work on flat vectors.

    Examples
    --------
    >>> adam = Adam(lr=0.1)
    >>> theta, state = np.array([1.0]), adam.start(1)
    >>> adam.step(theta, np.array([5.0]), state).round(6)
    array([0.9])
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def start(self, size: int, dtype: type | np.dtype = np.float64) -> "AdamState":
        """Moments of zero for `size` parameters."""
        return AdamState(*np.zeros((2, size), dtype))

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: "AdamState") -> np.ndarray:
        """A new vector of parameters; `theta` and `gradient` are read only, `state` is advanced in place.

        theta - lr mhat / (sqrt(vhat) + eps), mhat and vhat the moments over 1 - beta^t.
        """
        state.t += 1
        # with m' = m / (1 - beta1) and v' = v / (1 - beta2) neither is scaled on its way in, which spares three passes
        root = math.sqrt((1 - self.beta2) / (1 - self.beta2**state.t))  # sqrt(vhat) = root sqrt(v')
        rate = self.lr * (1 - self.beta1) / (1 - self.beta1**state.t) / root
        new = np.empty_like(theta)

        def move(piece: slice) -> None:
            m, v, work, g = state.m[piece], state.v[piece], new[piece], gradient[piece]
            np.multiply(g, g, out=work)
            v *= self.beta2
            v += work
            m *= self.beta1
            m += g
            np.sqrt(v, out=work)
            work += self.eps / root
            np.divide(m, work, out=work)
            work *= -rate
            work += theta[piece]

        each(move, list(parts(theta.size, _PIECE)))
        return new


@dataclass
class AdamState:
    """First and second moments over 1 - beta1 and 1 - beta2, and the number of steps taken; private to one fit."""

    m: np.ndarray
    v: np.ndarray
    t: int = 0

    def __repr__(self) -> str:
        return one_line(self)
