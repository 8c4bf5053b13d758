"""What a softmax taken twice costs in a balance loss.

E experts, k experts a token.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus.scalar import softmax
from npmoe.model.balance import Balance

__all__ = ["Collapse", "collapse"]

Array = np.ndarray


class Collapse(NamedTuple):
    """Loss of a balanced router, of a collapsed one, and of the collapsed one where the softmax is taken twice."""

    balanced: float
    scores: float
    probabilities: float


def collapse(E: int, k: int) -> Collapse:
    """What Hugging Face's balance loss is where all tokens go to the same k of E experts, each with gate 1/k.

    On scores it is E sum_e f_e P_e = E, f = 1 and P = 1/k on the k chosen. A second softmax makes of P = 1/k
    e^(1/k) / (k e^(1/k) + E - k), hardly more than 1/E, so that the loss stays next to k, its value when balanced.

    Parameters
    ----------
    E, k : experts, and experts a token.

    Examples
    --------
    >>> [round(value, 3) for value in collapse(128, 8)]
    [8.0, 128.0, 8.99]
    """
    loss = Balance(count="per choice")
    scores = np.where(np.arange(E) < k, 0.0, -1e4)[None]  # (1, E)
    chosen = np.arange(k)[None]  # (1, k)
    with np.errstate(under="ignore"):
        return Collapse(float(k), loss(scores, chosen)[0], loss(softmax(scores), chosen)[0])
