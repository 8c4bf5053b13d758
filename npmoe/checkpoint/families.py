"""The families of released models, each a row of facts: sizes, names of tensors, and what is not supported.

V words, d width, h hidden width of an expert, E experts, H heads, G groups of keys and values. `checkpoint` knows no
family beside these rows; a new one is a new row and a test against its own code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["FAMILIES", "Family", "Names", "Sizes", "family_of"]


class Sizes(NamedTuple):
    """What config.json says of a model's shape."""

    V: int
    d: int
    layers: int
    heads: int
    groups: int
    head: int
    h: int
    E: int
    k: int
    eps: float
    theta: float
    tied: bool


class Names(NamedTuple):
    """What tensors are called; ``{i}`` is a block, ``{e}`` an expert. Where experts are fused, gate and up are one."""

    embedding: str
    norm: str
    head: str
    norm1: str
    norm2: str
    attention: tuple[str, str, str, str]  # q, k, v, o
    router: tuple[str, ...]  # one of these
    gate: str
    up: str
    down: str
    fused_gate_up: str
    fused_down: str


@dataclass(frozen=True)
class Family:
    """One family: how its sizes are read, what its tensors are called, and what in a config would be another model."""

    name: str
    sizes: Callable[[Mapping[str, Any]], Sizes]
    names: Names
    refused: Callable[[Mapping[str, Any]], list[str]]


def _need(config: Mapping[str, Any], *keys: str) -> Any:
    """The first of these that the config has."""
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    raise ValueError(f"expected {' or '.join(keys)} in config.json; it has neither" if keys[1:] else
                     f"expected {keys[0]} in config.json; it is missing")  # fmt: skip


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def _mixtral_sizes(config: Mapping[str, Any]) -> Sizes:
    d, heads = int(_need(config, "hidden_size")), int(_need(config, "num_attention_heads"))
    theta = config.get("rope_theta") or _rope(config).get("rope_theta")
    if theta is None:
        raise ValueError("expected rope_theta, or rope_parameters with it, in config.json; it has neither")
    return Sizes(
        V=int(_need(config, "vocab_size")),
        d=d,
        layers=int(_need(config, "num_hidden_layers")),
        heads=heads,
        groups=int(config.get("num_key_value_heads") or heads),
        head=int(config.get("head_dim") or d // heads),
        h=int(_need(config, "moe_intermediate_size", "intermediate_size")),
        E=int(_need(config, "num_local_experts", "num_experts")),
        k=int(_need(config, "num_experts_per_tok")),
        eps=float(_need(config, "rms_norm_eps")),
        theta=float(theta),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _mixtral_refused(config: Mapping[str, Any]) -> list[str]:
    found = []
    if config.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act {config['hidden_act']!r} (silu is supported)")
    if config.get("sliding_window") is not None:
        found.append(f"a sliding window of {config['sliding_window']} tokens (none is supported)")
    kind = _rope(config).get("rope_type", _rope(config).get("type", "default"))
    if kind != "default":
        found.append(f"rotary positions scaled by {kind!r} (none is supported)")
    if config.get("attention_bias"):
        found.append("attention with biases")
    return found


_BLOCK = "model.layers.{i}."
MIXTRAL = Family(
    "mixtral",
    _mixtral_sizes,
    Names(
        embedding="model.embed_tokens.weight",
        norm="model.norm.weight",
        head="lm_head.weight",
        norm1=_BLOCK + "input_layernorm.weight",
        norm2=_BLOCK + "post_attention_layernorm.weight",
        attention=tuple(f"{_BLOCK}self_attn.{name}_proj.weight" for name in "qkvo"),  # type: ignore[arg-type]
        router=(_BLOCK + "block_sparse_moe.gate.weight", _BLOCK + "mlp.gate.weight"),
        gate=_BLOCK + "block_sparse_moe.experts.{e}.w1.weight",
        up=_BLOCK + "block_sparse_moe.experts.{e}.w3.weight",
        down=_BLOCK + "block_sparse_moe.experts.{e}.w2.weight",
        fused_gate_up=_BLOCK + "mlp.experts.gate_up_proj",
        fused_down=_BLOCK + "mlp.experts.down_proj",
    ),
    _mixtral_refused,
)

FAMILIES = {family.name: family for family in (MIXTRAL,)}


def family_of(config: Mapping[str, Any], where: object) -> Family:
    """The family that a config names.

    Raises
    ------
    ValueError : for one that is not in the table, or a fact in it that is not supported; says which.
    """
    word = config.get("model_type")
    if word not in FAMILIES:
        raise ValueError(f"expected a model_type among {', '.join(FAMILIES)} in {where}; got {word!r}")
    family = FAMILIES[word]
    refused = family.refused(config)
    if refused:
        raise ValueError(f"expected a {word} model as npmoe computes it; {where} has {'; '.join(refused)}")
    return family
