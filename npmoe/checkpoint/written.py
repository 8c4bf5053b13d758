"""A model of ours under the names of a released family, for other programs to load."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.checkpoint.families import MIXTRAL
from npmoe.checkpoint.tensors import packed
from npmoe.files import write, write_json
from npmoe.model.expert import SwigluExpert
from npmoe.model.layers import RMSNorm
from npmoe.model.moe import MoE
from npmoe.model.transformer import Transformer

__all__ = ["save_mixtral"]

Array = np.ndarray

DTYPES = ("float32", "float64", "bfloat16", "float16")


def save_mixtral(
    model: Transformer,
    folder: str | Path,
    tokenizer: str | None = None,
    dtype: str = "float32",
    *,
    longest: int = 4096,
) -> Path:
    """Write a model of Mixtral's architecture as ``transformers`` reads it: config.json and model.safetensors.

    Parameters
    ----------
    model : RMSNorm, rotary positions by a base, no biases, top-k SwiGLU experts with renormalized gates.
    folder : where; made if it is not there. Each file appears whole or not at all.
    tokenizer : content of a tokenizer.json to lay beside them.
    dtype : "float32", "float64", "bfloat16" or "float16": in which weights are written. `open` rounds the rotary
        frequencies of a file in half precision as well; ``rotary="exact"`` keeps the model's own.
    longest : ``max_position_embeddings``; rotary positions have no bound of their own.

    Returns
    -------
    Path : the folder.

    Raises
    ------
    ValueError : for what this layout cannot hold, a weight beyond the range of the dtype, or a tokenizer that is no
        JSON; names it. Nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> import npmoe
    >>> from npmoe.checkpoint import open, save_mixtral
    >>> model = npmoe.init.transformer(
    ...     np.random.default_rng(0), V=11, d=8, layers=2, heads=4, h=6, E=4, k=2, groups=2, rotary=1e4, norm="rms",
    ...     expert="swiglu", tied=False, dtype=np.float32,
    ... )
    >>> with tempfile.TemporaryDirectory() as where:
    ...     again = open(save_mixtral(model, where)).model
    >>> bool((again.forward(np.arange(5)) == model.forward(np.arange(5))).all())
    True
    """
    wrong = list(dict.fromkeys(_wrong(model)))
    if wrong:
        raise ValueError(f"expected a model that Mixtral's layout can hold; this one has {'; '.join(wrong)}")
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype among {', '.join(DTYPES)}; got {dtype!r}")
    folder = Path(folder)
    # all of it is made before any is written
    config, weights = _config(model, longest, dtype), packed(dict(_tensors(model)), {"format": "pt"}, dtype)
    if tokenizer is not None:
        write(folder / "tokenizer.json", _json(tokenizer))
    write(folder / "model.safetensors", weights)
    write_json(folder / "config.json", config)
    return folder


def _json(tokenizer: str) -> bytes:
    try:
        json.loads(tokenizer)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected tokenizer as the content of a tokenizer.json; got {str(tokenizer)[:40]!r}: read the file first"
        ) from error
    return tokenizer.encode()


def _wrong(model: Transformer) -> Iterator[str]:
    """What Mixtral's layout has no place for."""
    first = model.blocks[0] if model.blocks else None
    if first is None:
        yield "no blocks"
        return
    if model.embedding.positions is not None:
        yield "learned positions"
    for norm in (model.norm, *(n for b in model.blocks for n in (b.norm1, b.norm2))):
        if not isinstance(norm, RMSNorm):
            yield f"a {type(norm).__name__}"
        elif norm.eps != getattr(model.norm, "eps", None):
            yield "norms of different eps"
    for block in model.blocks:
        a, feed = block.attention, block.feed
        if any(b is not None for b in (a.bq, a.bk, a.bv, a.bo)):
            yield "attention with biases"
        if a.rotary is None or isinstance(a.rotary, tuple):
            yield "no rotary positions by a base"
        if (a.heads, a.groups, a.rotary, a.widths) != (
            first.attention.heads, first.attention.groups, first.attention.rotary, first.attention.widths,
        ):  # fmt: skip
            yield "blocks of different attention"
        if not isinstance(feed, MoE):
            yield f"a dense {type(feed).__name__}"
            continue
        if not all(isinstance(f, SwigluExpert) for f in feed.experts):
            yield f"experts of the kind {', '.join(sorted({type(f).__name__ for f in feed.experts}))}"
        elif isinstance(first.feed, MoE) and (len(feed.experts), feed.k, feed.experts[0].widths) != (
            len(first.feed.experts), first.feed.k, first.feed.experts[0].widths,
        ):  # fmt: skip
            yield "blocks of different mixtures"
        if len({f.widths for f in feed.experts}) > 1:
            yield "experts of different widths"
        if not feed.renormalize and feed.k < len(feed.experts):
            yield "gates that are not renormalized"
        if feed.temperature != 1:
            yield f"a temperature of {feed.temperature:g}"
        if feed.bias is not None:
            yield "a router with a bias"


def _tensors(model: Transformer) -> Iterator[tuple[str, Array]]:
    names = MIXTRAL.names
    yield names.embedding, model.embedding.W
    for i, block in enumerate(model.blocks):
        a, feed = block.attention, block.feed
        yield names.norm1.format(i=i), block.norm1.gamma
        yield names.norm2.format(i=i), block.norm2.gamma
        yield from zip((name.format(i=i) for name in names.attention), (a.Wq, a.Wk, a.Wv, a.Wo), strict=True)
        yield names.router[0].format(i=i), feed.router
        for e, f in enumerate(feed.experts):
            yield names.gate.format(i=i, e=e), f.Wg
            yield names.up.format(i=i, e=e), f.Wu
            yield names.down.format(i=i, e=e), f.Wd
    yield names.norm, model.norm.gamma
    if model.head is not None:
        yield names.head, model.head


def _config(model: Transformer, longest: int, dtype: str) -> dict[str, Any]:
    """config.json, as versions 4 and 5 of ``transformers`` read it."""
    block, (d, V) = model.blocks[0], model.widths
    a, feed = block.attention, block.feed
    theta: Any = a.rotary  # a number: `_wrong` has seen to it
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": V,
        "hidden_size": d,
        "intermediate_size": feed.experts[0].widths[1],
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": int(a.heads),
        "num_key_value_heads": int(a.groups),
        "head_dim": a.head,
        "num_local_experts": len(feed.experts),
        "num_experts_per_tok": int(feed.k),
        "rms_norm_eps": float(model.norm.eps),
        "hidden_act": "silu",
        "max_position_embeddings": longest,
        "sliding_window": None,
        "rope_theta": float(theta),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(theta)},
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.head is None,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
