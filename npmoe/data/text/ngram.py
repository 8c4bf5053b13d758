"""Baselines that a language model has to beat: how well counts alone predict the same ids.

V words; w a word, h the k - 1 words in front of it, h' the same without the first. Interpolated Kneser-Ney (Kneser and
Ney 1995; Chen and Goodman 1999, section 3), with one discount D_k for each order k:

    p_k(w | h) = max(c_k(h w) - D_k, 0) / c_k(h .)  +  D_k n_k(h) / c_k(h .)  p_{k-1}(w | h')
    p_k(w | h) = p_{k-1}(w | h')  where h was never seen,  p_0(w) = 1 / V
    D_k = n1 / (n1 + 2 n2)

At the highest order c_k(h w) is how often h w occurs in the training ids. At every lower one it is how many different
words occur in front of h w. c_k(h .) is its sum over w, and n_k(h) the number of w with h w seen. n1 and n2 are how
many k-grams have c_k of 1 and of 2.

Where no k-gram has c_k = 1, the formula gives D_k = 0, and words never seen would have probability 0. There D_k is 1/2.

The first held-out token is not scored, since a language model does not predict it either. The second and further ones
have the history that there is: the second token is scored by p_2, and from the third on by p_3.
"""

from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check

__all__ = ["kneser_ney", "surprisal", "unigram"]

Array = np.ndarray


def unigram(train_ids: Array, heldout_ids: Array, V: int) -> float:
    """Mean of -log p(w) over the held-out tokens after the first, in nats, where p knows how frequent each word is.

    Unseen words share the discount D_1 of the formulas above; c_1 are plain counts.

    Examples
    --------
    >>> round(float(np.exp(unigram(np.arange(800) % 8, np.arange(80) % 8, V=8))), 6)
    8.0
    """
    return float(surprisal(train_ids, heldout_ids, V, 1).mean())


def kneser_ney(train_ids: Array, heldout_ids: Array, V: int, order: int) -> float:
    """Mean of -log p(w | the order - 1 words in front of it) over the held-out tokens after the first, in nats.

    Parameters
    ----------
    train_ids, heldout_ids : integers within 0..V-1; at least `order` to train, at least two held out.
    V : number of words.
    order : 2 for pairs of words, 3 for triples; more where V**order fits 63 bits.

    Examples
    --------
    >>> text = np.arange(900) % 9  # each word follows from the one before
    >>> round(kneser_ney(text, text[:90], V=9, order=2), 2)
    0.0
    """
    check.integer("order", order, 2)
    return float(surprisal(train_ids, heldout_ids, V, order).mean())


def surprisal(train_ids: Array, heldout_ids: Array, V: int, order: int) -> Array:
    """-log p of each held-out token after the first, (N - 1,), in nats; of order 1 by `unigram`, else `kneser_ney`."""
    check.integer("V", V, 1)
    check.integer("order", order, 1)
    if V**order >= 2**63:
        raise ValueError(
            f"expected V**order below 2**63, so that {order} words fit one integer; got {V}**{order}: lower the order"
        )
    train = _ids("train_ids", train_ids, V, order)
    heldout = _ids("heldout_ids", heldout_ids, V, 2)
    p = np.full(len(heldout), 1 / V)
    for k in range(1, min(order, len(heldout)) + 1):
        # the k-gram that ends at token i, for i = k - 1, k, ...: tokens before have no history so long
        p[k - 1 :] = _interpolated(p[k - 1 :], _packed(heldout, k, V), _counted(train, k, order, V), V)
    return -np.log(p[1:])


def _ids(name: str, value: Any, V: int, least: int) -> Array:
    ids = check.unmasked(name, value)
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or len(ids) < least:
        raise ValueError(f"expected {name} as at least {least} integers (N,); got {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= V:
        raise ValueError(f"expected {name} within 0..{V - 1}; got {ids.min()}..{ids.max()}")
    return ids.astype(np.int64)


def _packed(ids: Array, k: int, V: int) -> Array:
    """All k-grams (N - k + 1,), each as the digits of one number in base V."""
    n = len(ids) - k + 1
    keys = np.zeros(n, np.int64)
    for j in range(k):
        keys = keys * V + ids[j : j + n]
    return keys


class _Grams(NamedTuple):
    """The k-grams of a text, sorted, with their c_k; its histories, sorted, with their c_k(h .) and n_k(h); and D_k."""

    keys: Array
    counts: Array
    histories: Array
    totals: Array
    followers: Array
    discount: float


def _counted(train: Array, k: int, order: int, V: int) -> _Grams:
    if k == order:
        keys, counts = np.unique(_packed(train, k, V), return_counts=True)
    else:  # a (k + 1)-gram without its first word, once for each first word
        keys, counts = np.unique(np.unique(_packed(train, k + 1, V)) % V**k, return_counts=True)
    histories, first, followers = np.unique(keys // V, return_index=True, return_counts=True)
    n1, n2 = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    discount = n1 / (n1 + 2 * n2) if n1 else 0.5
    return _Grams(keys, counts, histories, np.add.reduceat(counts, first), followers, discount)


def _interpolated(lower: Array, keys: Array, grams: _Grams, V: int) -> Array:
    """p_k of the k-grams `keys` out of p_{k-1}, `lower`."""
    D = grams.discount
    count = _looked_up(grams.keys, grams.counts, keys)
    total = _looked_up(grams.histories, grams.totals, keys // V)
    followers = _looked_up(grams.histories, grams.followers, keys // V)
    mixed = (np.maximum(count - D, 0) + D * followers * lower) / np.maximum(total, 1)
    return np.where(total > 0, mixed, lower)


def _looked_up(keys: Array, values: Array, wanted: Array) -> Array:
    """The value of each wanted key out of sorted keys, 0 where it is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
