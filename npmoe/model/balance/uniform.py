"""The balance loss E sum_e f_e P_e near uniform scores: its value and gradient to leading order.

n tokens, d width, E experts, k experts a token, B tokens a batch; P (E,) the mean over tokens of the softmax, f (E,)
the share of choices, mu (d,) the mean hidden state, C = I - 11^T/E, which centres over experts.
"""

from typing import NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.products import matmul
from npmoe.calculus.words import one_line
from npmoe.model.balance.losses import checked_batch

__all__ = ["UniformLaw", "batch_term", "uniform_law"]

Array = np.ndarray


class UniformLaw(NamedTuple):
    """The loss E sum_e f_e P_e to leading order near uniform scores.

    value : 1 + |C s|^2/E for f = P, s the mean score; of third order in the scores from the loss.
    centred (E,) : C s, the mean scores less their mean over experts.
    soft, held (E, d) : gradient on the router, (2/E) C s mu^T through f as well, (1/E) C s mu^T with f = P held fixed.
    hard (E, d) or None : (C f) mu^T with counts, f of sum 1.
    """

    value: float
    centred: Array
    soft: Array
    held: Array
    hard: Array | None

    def __repr__(self) -> str:
        return one_line(self)


def uniform_law(
    x: Array,
    router: Array | None = None,
    *,
    chosen: Array | None = None,
    bias: Array | None = None,
    temperature: float = 1.0,
) -> UniformLaw:
    """The balance loss E sum_e f_e P_e and its gradient on the router where the scores are small.

    To first order p_t = (1 + C s_t)/E; P differs from 1/E by C s/E, s the mean score (W mu + bias)/temperature, and
    E sum P^2 = 1 + E |P - 1/E|^2. Only the mean hidden state mu enters: balancing works against what tokens have in
    common, and the gradient has rank one.

    Parameters
    ----------
    x : array (n, d), hidden states; without a router the scores (n, E) themselves.
    router : array (E, d) or None; without it the three gradients are those of a bias, (E,).
    chosen : array (n, k), for the gradient with counts.
    bias, temperature : of the router, as in `MoE`.

    Raises
    ------
    ValueError, TypeError : for shapes that do not fit or NaN; for a bias without a router.

    Examples
    --------
    >>> law = uniform_law(np.array([[0.2, 0.0], [0.0, 0.0]]))
    >>> round(law.value, 4), law.soft
    (1.0025, array([ 0.05, -0.05]))
    """
    tau = check.positive("temperature", temperature)
    x = check.finite("x", check.shaped("x", x, ("n", "d")))
    if not len(x):
        raise ValueError("expected at least one token; got none, which have no mean")
    mu = x.mean(axis=0, dtype=np.float64)  # (d,)
    if router is None:
        if bias is not None:
            raise ValueError("expected a bias only together with a router; scores hold theirs already")
        s, E = mu / tau, len(mu)
    else:
        E, d = check.finite("router", check.shaped("router", router, ("E", "d"))).shape
        check.matrix("x", x, d, "this router")
        b = 0.0 if bias is None else check.finite("bias", check.shaped("bias", bias, (E,), "this router"))
        s = (matmul(router, mu) + b) / tau  # (E,)
    a = s - s.mean()  # (E,)

    def onward(ds: Array) -> Array:
        """Of every token the same gradient on the scores: times mu^T on the router."""
        return ds / tau if router is None else np.outer(ds / tau, mu)

    hard = None
    if chosen is not None:
        _, chosen = checked_batch(np.zeros((len(x), E)), chosen)
        hard = onward(np.bincount(chosen.ravel(), minlength=E) / chosen.size - 1 / E)
    return UniformLaw(float(1 + matmul(a, a) / E), a, onward(2 / E * a), onward(a / E), hard)


def batch_term(Sigma: Array, router: Array, B: int, between: Array | None = None, *, temperature: float = 1.0) -> float:
    """What the expected loss near uniform scores gains in batches of B tokens: tr(C W (Sigma/B) W^T C)/E.

    The mean of B independent tokens scatters by Sigma/B about mu, so that the expectation of |C W mu_B|^2 is
    |C W mu|^2 + tr(C W (Sigma/B) W^T C).
    Where all tokens of a batch are of one topic, give the covariance within topics as `Sigma` and that of the topics'
    centres as `between`, which does not shrink with B.

    Parameters
    ----------
    Sigma : array (d, d), covariance of a token, about the mean; with `between`, about its topic's centre.
    router : array (E, d).
    B : tokens a batch, 1 or more.
    between : array (d, d) or None.

    Examples
    --------
    >>> batch_term(np.eye(2), np.eye(2), 4), batch_term(np.eye(2), np.eye(2), 4, between=np.eye(2))
    (0.125, 0.625)
    """
    E, d = check.finite("router", check.shaped("router", router, ("E", "d"))).shape
    total = check.finite("Sigma", check.shaped("Sigma", Sigma, (d, d), "this router")) / check.integer("B", B, 1)
    if between is not None:
        total = total + check.finite("between", check.shaped("between", between, (d, d), "this router"))
    CW = (router - router.mean(axis=0)) / check.positive("temperature", temperature)  # (E, d)
    return float(np.einsum("ei,ij,ej->", CW, total, CW) / E)
