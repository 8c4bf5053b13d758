"""Initializations by name.

E experts, d width, h hidden, k experts a token. A scheme draws a weight (out, in) and a bias (out,):

============  =====================================================================================
pytorch       weights and biases uniform within 1/sqrt(in) (``torch.nn.Linear``'s default)
xavier        weights uniform within sqrt(6/(in + out)), biases zero (Glorot and Bengio 2010, eq. 16)
he            weights normal with variance 2/in, biases zero (He et al., arXiv 1502.01852, eq. 10)
normal002     weights normal(0, 0.02), biases zero (GPT-2)
============  =====================================================================================
"""

from collections.abc import Callable

import numpy as np

from npmoe.calculus import check, tree
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear
from npmoe.model.moe import MoE

__all__ = ["SCHEMES", "dense", "gelu_moe", "linear", "swiglu_moe"]

Array = np.ndarray
Rng = np.random.Generator


def _pytorch(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    bound = 1 / np.sqrt(into)
    return rng.uniform(-bound, bound, (out, into)), rng.uniform(-bound, bound, out)


def _xavier(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    bound = np.sqrt(6 / (into + out))
    return rng.uniform(-bound, bound, (out, into)), np.zeros(out)


def _he(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    return rng.normal(0, np.sqrt(2 / into), (out, into)), np.zeros(out)


def _normal002(rng: Rng, out: int, into: int) -> tuple[Array, Array]:
    return rng.normal(0, 0.02, (out, into)), np.zeros(out)


SCHEMES: dict[str, Callable[[Rng, int, int], tuple[Array, Array]]] = {
    "pytorch": _pytorch,
    "xavier": _xavier,
    "he": _he,
    "normal002": _normal002,
}


def _scheme(name: str) -> Callable[[Rng, int, int], tuple[Array, Array]]:
    if name not in SCHEMES:
        raise ValueError(f"expected a scheme among {', '.join(SCHEMES)}; got {name!r}")
    return SCHEMES[name]


def dense(
    rng: Rng, d: int, h: int, *, scheme: str = "pytorch", activation: str = "gelu", dtype: type = np.float64
) -> GeluExpert:
    """One feed-forward layer of width d and hidden width h.

    Examples
    --------
    >>> dense(np.random.default_rng(0), d=4, h=8).widths
    (4, 8, 4)
    """
    draw = _scheme(scheme)
    d, h = check.integer("d", d, 1), check.integer("h", h, 1)
    W1, b1 = draw(rng, h, d)
    W2, b2 = draw(rng, d, h)
    W1, b1, W2, b2 = (a.astype(dtype) for a in (W1, b1, W2, b2))
    return GeluExpert(W1, b1, W2, b2, activation)


def linear(
    rng: Rng, d: int, o: int, *, scheme: str = "pytorch", activation: str | None = None, dtype: type = np.float64
) -> Linear:
    """One linear layer d -> o.

    Examples
    --------
    >>> linear(np.random.default_rng(0), d=4, o=2).widths
    (4, 2)
    """
    W, b = _scheme(scheme)(rng, check.integer("o", o, 1), check.integer("d", d, 1))
    return Linear(W.astype(dtype), b.astype(dtype), activation)


def gelu_moe(
    rng: Rng,
    E: int,
    d: int,
    h: int,
    k: int,
    *,
    scheme: str = "pytorch",
    renormalize: bool = True,
    temperature: float = 1.0,
    bias: bool = False,
    alike: bool = False,
    activation: str = "gelu",
    dtype: type = np.float64,
) -> MoE:
    """Mixture of E two-layer GELU experts; the router has a bias only where asked.

    Parameters
    ----------
    alike : give every expert the first one's weights (copies: each trains for itself).

    Examples
    --------
    >>> moe = gelu_moe(np.random.default_rng(0), E=3, d=4, h=8, k=2, alike=True)
    >>> bool((moe.experts[0].W1 == moe.experts[2].W1).all())
    True
    """
    W, b = _scheme(scheme)(rng, check.integer("E", E, 1), check.integer("d", d, 1))
    experts = [dense(rng, d, h, scheme=scheme, activation=activation, dtype=dtype) for _ in range(E)]
    if alike:
        experts = [tree.map_leaves(np.copy, experts[0]) for _ in experts]
    return MoE(W.astype(dtype), tuple(experts), k, renormalize, temperature, b.astype(dtype) if bias else None)


def swiglu_moe(
    rng: Rng,
    E: int,
    d: int,
    h: int,
    k: int,
    *,
    scheme: str = "pytorch",
    renormalize: bool = True,
    temperature: float = 1.0,
    dtype: type = np.float64,
) -> MoE:
    """Mixture of E SwiGLU experts, without biases.

    Examples
    --------
    >>> swiglu_moe(np.random.default_rng(0), E=3, d=4, h=8, k=1).experts[0].widths
    (4, 8, 4)
    """
    draw = _scheme(scheme)
    d, h = check.integer("d", d, 1), check.integer("h", h, 1)
    W, _ = draw(rng, check.integer("E", E, 1), d)
    experts = tuple(
        SwigluExpert(*(draw(rng, out, into)[0].astype(dtype) for out, into in [(h, d), (h, d), (d, h)]))
        for _ in range(E)
    )
    return MoE(W.astype(dtype), experts, k, renormalize, temperature)
