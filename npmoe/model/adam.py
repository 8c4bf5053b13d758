"""Adam over one flat vector (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Adam"]


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
        return AdamState(*np.zeros((3, size), dtype))

    def step(self, theta: np.ndarray, gradient: np.ndarray, state: "AdamState") -> np.ndarray:
        """A new vector of parameters; `theta` and `gradient` are read only, `state` is advanced in place.

        theta - lr mhat / (sqrt(vhat) + eps), mhat and vhat the moments over 1 - beta^t.
        """
        state.t += 1
        m, v, work = state.m, state.v, state.work
        m *= self.beta1
        np.multiply(gradient, 1 - self.beta1, out=work)
        m += work
        v *= self.beta2
        np.multiply(gradient, gradient, out=work)
        work *= 1 - self.beta2
        v += work
        np.sqrt(v, out=work)
        work *= 1 / np.sqrt(1 - self.beta2**state.t).item()
        work += self.eps
        np.divide(m, work, out=work)
        work *= self.lr / (1 - self.beta1**state.t)
        return theta - work


@dataclass
class AdamState:
    """First and second moments, a buffer of the same size, and the number of steps taken; private to one fit."""

    m: np.ndarray
    v: np.ndarray
    work: np.ndarray
    t: int = 0
