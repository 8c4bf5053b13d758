"""The Sites of a language model: where each of its feed-forward layers reads its tokens.

n tokens, d width, L blocks; n = B T, sequences one after another.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from npmoe.model.moe import MoE
from npmoe.model.transformer import Transformer
from npmoe.probe.site import Before, Site, mixture_site

__all__ = ["labels_of", "sites"]

Array = np.ndarray


def sites(model: Transformer, ids: Any, labels: Mapping[str, Array] | None = None) -> Iterator[Site]:
    """One Site for each block's feed-forward, in order: a mixture, or a dense layer as one expert with gates of one.

    Parameters
    ----------
    model : `Transformer`.
    ids : integers (T,) or (B, T).
    labels : further labels (n,) by name, such as topics. Every Site has "token", "sequence", "position" and "layer".

    Yields
    ------
    Site : x is what router and experts read; ``before`` holds the norm in front, the state (n, d) that enters it, and
        that a residual runs past, so that the block's Jacobian is I + J_feed J_norm. Only one block's arrays are alive
        at a time.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> model = npmoe.init.transformer(rng, V=11, d=8, layers=2, heads=2, h=16, E=4, k=2, longest=5)
    >>> [site.name for site in sites(model, rng.integers(0, 11, (3, 5)))]
    ['block 0', 'block 1']
    """
    ids = model.ids(ids)
    given = labels_of(ids) | dict(labels or {})
    for i, (block, (h, _)) in enumerate(zip(model.blocks, model.states(ids), strict=True)):
        x, _ = block.norm2.forward(h)
        before = Before(block.norm2, h, True)
        here = given | {"layer": np.full(ids.size, i)}
        if isinstance(block.feed, MoE):
            yield mixture_site(block.feed, x, before, here, f"block {i}")
        else:
            yield Site(x, np.ones((len(x), 1), x.dtype), None, (block.feed,), None, before, 0, here, f"block {i}")


def labels_of(ids: Array) -> dict[str, Array]:
    """The labels that ids (B, T) give by themselves: token, sequence, position, each (n,)."""
    B, T = ids.shape
    return {
        "token": ids.ravel(),
        "sequence": np.repeat(np.arange(B), T),
        "position": np.tile(np.arange(T), B),
    }
