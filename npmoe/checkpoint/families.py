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


def _whole(config: Mapping[str, Any], *keys: str, most: int | None = None) -> int:
    """The first of these as a whole number of at least 1."""
    value = _need(config, *keys)
    if type(value) is not int or value < 1 or (most is not None and value > most):
        span = "at least 1" if most is None else f"1 to {most}"
        raise ValueError(f"expected {' or '.join(keys)} as a whole number of {span}; got {str(value)[:60]!r}")
    return value


def _number(name: str, value: Any, zero: bool = False) -> float:
    if type(value) not in (int, float) or not (value >= 0 if zero else value > 0) or not value < float("inf"):
        raise ValueError(
            f"expected {name} as a {'number of at least 0' if zero else 'positive number'}; got {str(value)[:60]!r}"
        )
    return float(value)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions: version 5 has rope_parameters, version 4 rope_scaling, some files both."""
    said: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # where both speak, transformers takes the second
        found = config.get(key) or {}
        said |= found if isinstance(found, Mapping) else {"rope_type": found}
    return said


def _mixtral_sizes(config: Mapping[str, Any]) -> Sizes:
    d, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    thetas = [theta for theta in (config.get("rope_theta"), _rope(config).get("rope_theta")) if theta is not None]
    if not thetas:
        raise ValueError("expected rope_theta, or rope_parameters with it, in config.json; it has neither")
    if thetas[0] != thetas[-1]:  # versions 4 and 5 of transformers would take different ones
        raise ValueError(f"expected one rope_theta; got {thetas[0]}, and {thetas[-1]} in rope_parameters")
    E = _whole(config, "num_local_experts", "num_experts")
    return Sizes(
        V=_whole(config, "vocab_size"),
        d=d,
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        groups=_whole({"num_key_value_heads": heads} | _given(config), "num_key_value_heads"),
        head=_whole({"head_dim": d // heads} | _given(config), "head_dim"),
        h=_whole(config, "moe_intermediate_size", "intermediate_size"),
        E=E,
        k=_whole(config, "num_experts_per_tok", most=E),
        eps=_number("rms_norm_eps", _need(config, "rms_norm_eps"), zero=True),
        theta=_number("rope_theta", thetas[0]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what it leaves open."""
    return {key: value for key, value in config.items() if value is not None}


def _mixtral_refused(config: Mapping[str, Any]) -> list[str]:
    found = []
    if config.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act {config['hidden_act']!r} (silu is supported)")
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    if window is not None and not (type(window) is type(longest) is int and window >= longest):
        found.append(
            f"a sliding window of {window} tokens (none that is shorter than max_position_embeddings is supported)"
        )
    rope = _rope(config)
    kinds = {rope[key] for key in ("rope_type", "type") if isinstance(rope.get(key), str)} - {"default"}
    odd = [rope[key] for key in ("rope_type", "type") if not isinstance(rope.get(key, ""), str)]
    found += [f"rotary positions scaled by {kind!r} (none is supported)" for kind in [*sorted(kinds), *odd]]
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1)) not in (1, None):
        found.append("rotary positions on a part of each head (on the whole head is supported)")
    if config.get("quantization_config"):
        found.append("quantized weights (float64, float32, float16 and bfloat16 are supported)")
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
    if not isinstance(word, str) or word not in FAMILIES:
        raise ValueError(f"expected a model_type among {', '.join(FAMILIES)} in {where}; got {word!r}")
    family = FAMILIES[word]
    refused = family.refused(config)
    if refused:
        raise ValueError(f"expected a {word} model as npmoe computes it; {where} has {'; '.join(refused)}")
    return family
