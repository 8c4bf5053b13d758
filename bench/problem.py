"""What every comparison starts from: the same weights and the same batch, as plain arrays.

n tokens, d width, h hidden, E experts, k experts a token.
"""

from typing import NamedTuple

import numpy as np

import npmoe

__all__ = ["Problem", "problem"]

Array = np.ndarray


class Problem(NamedTuple):
    """A mixture of two-layer exact-GELU experts and a batch; all arrays of one dtype, C-contiguous.

    scores = x router^T; top-k of the scores; gates = softmax over the chosen (k = E: over all);
    y_n = sum_e gates_ne (W2_e gelu(W1_e x_n + b1_e) + b2_e).
    """

    x: Array  # (n, d)
    y: Array  # (n, d), targets of the mean squared error, mean over n and d
    router: Array  # (E, d)
    W1: Array  # (E, h, d)
    b1: Array  # (E, h)
    W2: Array  # (E, d, h)
    b2: Array  # (E, d)
    gates: Array  # (n, E), the mixture's gates at x; zero where an expert is not chosen
    k: int

    def moe(self) -> npmoe.MoE:
        """The same mixture as one of ours."""
        experts = (npmoe.GeluExpert(*weights) for weights in zip(self.W1, self.b1, self.W2, self.b2, strict=True))
        return npmoe.MoE(self.router, tuple(experts), self.k)


def problem(
    k: int, *, n: int = 512, d: int = 64, h: int = 128, E: int = 8, dtype: str = "float64", seed: int = 0
) -> Problem:
    """A problem of SC1's kind: Gaussian x and y, PyTorch's default initialization.

    Examples
    --------
    >>> problem(2, n=5, d=3, h=4, E=2).W1.shape
    (2, 4, 3)
    """
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n, d)).astype(dtype)
    moe = npmoe.init.gelu_moe(rng, E, d, h, k, dtype=np.dtype(dtype).type)
    stacked = {name: np.stack([getattr(f, name) for f in moe.experts]) for name in ("W1", "b1", "W2", "b2")}
    return Problem(x, y, moe.router, **stacked, gates=moe.route(x)[0], k=k)
