"""The families as data: how their tiny models are configured, and how a state becomes one of our mixtures, by hand.

d width, h hidden, E experts, k experts a token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npmoe.model.expert import SwigluExpert
from npmoe.model.moe import MoE

__all__ = ["CHOSEN", "COMMON", "DISPATCHED", "EXPERTS", "FAMILIES", "GROUPED", "HIDDEN", "WIDTH", "mixture", "state_of"]

Array = np.ndarray

WIDTH, HIDDEN, EXPERTS, CHOSEN = (
    16,
    12,
    6,
    2,
)  # E x d is no other matrix's shape in these models, so that routers are known by it


@dataclass(frozen=True)
class _Family:
    """Names of a family in `transformers`.

    block : class of the mixture, or "" where it is none of our layers; its case may differ between versions.
    config, model : classes of the configuration and of the model that reports a balance loss ("": it reports none).
    options : of the configuration, beside `COMMON`.
    renormalize : whether the k gates are made to sum to 1; both, where the configuration has a switch.
    """

    block: str
    config: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    renormalize: tuple[bool, ...] = (True,)
    common: bool = True


COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "moe_intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "num_local_experts": EXPERTS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BOTH = (True, False)
_FULL = {"layer_types": ["full_attention"] * 2, "head_dim": 8}
_DBRX = {
    "d_model": WIDTH,
    "n_heads": 2,
    "n_layers": 2,
    "vocab_size": 32,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 100.0},
    "ffn_config": {
        "ffn_hidden_size": HIDDEN,
        "moe_num_experts": EXPERTS,
        "moe_top_k": CHOSEN,
        "moe_normalize_expert_weights": 1.0,
        "ffn_act_fn": {"name": "silu"},
    },
}
_SHARED = {"shared_expert_intermediate_size": HIDDEN, "decoder_sparse_step": 1, "mlp_only_layers": []}
_ERNIE = {"moe_num_experts": EXPERTS, "moe_k": CHOSEN, "moe_num_shared_experts": 1, "moe_layer_start_index": 0}
_ERNIE |= {"moe_layer_interval": 1, "moe_layer_end_index": 1}
_JAMBA = {"attn_layer_period": 1, "attn_layer_offset": 0, "expert_layer_period": 1, "expert_layer_offset": 0}
_JAMBA |= {"use_mamba_kernels": False}
_DEEPSEEK = {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0}
FAMILIES: dict[str, _Family] = {
    "mixtral": _Family("MixtralSparseMoeBlock", "MixtralConfig", "MixtralForCausalLM"),
    "qwen2_moe": _Family("Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", _SHARED, _BOTH),
    "qwen3_moe": _Family(
        "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", _SHARED | {"head_dim": 8}, _BOTH
    ),
    "qwen3_next": _Family("Qwen3NextSparseMoeBlock", "Qwen3NextConfig", "Qwen3NextForCausalLM", _SHARED | _FULL, _BOTH),
    "olmoe": _Family("OlmoeSparseMoeBlock", "OlmoeConfig", "OlmoeForCausalLM", {}, _BOTH),
    "flex_olmo": _Family("FlexOlmoSparseMoeBlock", "FlexOlmoConfig", "FlexOlmoForCausalLM", {}, _BOTH),
    "minimax": _Family("MiniMaxSparseMoeBlock", "MiniMaxConfig", "MiniMaxForCausalLM", _FULL),
    "granitemoe": _Family("GraniteMoeMoE", "GraniteMoeConfig", "GraniteMoeForCausalLM"),
    "jetmoe": _Family("JetMoeMoE", "JetMoeConfig", "JetMoeForCausalLM", {"kv_channels": 8, "num_attention_heads": 4}),
    "jamba": _Family("JambaSparseMoeBlock", "JambaConfig", "JambaForCausalLM", _JAMBA, (False,)),
    "dbrx": _Family("DbrxFFN", "DbrxConfig", "DbrxForCausalLM", _DBRX, common=False),
    "ernie4_5_moe": _Family("Ernie4_5_MoeSparseMoeBlock", "Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM", _ERNIE),
    "deepseek_v2": _Family("DeepseekV2Moe", "DeepseekV2Config", "", _DEEPSEEK, (False,)),
    "phimoe": _Family("", "PhimoeConfig", "PhimoeForCausalLM"),
    "gpt_oss": _Family("", "GptOssConfig", "GptOssForCausalLM", _FULL),
    "nllb_moe": _Family("NllbMoeSparseMLP", "NllbMoeConfig", "", {}),
    "switch_transformers": _Family("SwitchTransformersSparseMLP", "SwitchTransformersConfig", "", {}),
    "deepseek_v3": _Family("DeepseekV3MoE", "DeepseekV3Config", ""),
    "glm4_moe": _Family("Glm4MoeMoE", "Glm4MoeConfig", ""),
    "dots1": _Family("Dots1MoE", "Dots1Config", ""),
}
DISPATCHED = {"nllb_moe": (2, True), "switch_transformers": (1, False)}  # k, renormalize
GROUPED = ("deepseek_v3", "glm4_moe", "dots1")
_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight")


def _fused(state: dict[str, Array], e: int) -> SwigluExpert:
    """Version 5: gate_up_proj (E, 2h, d), gate rows first, and down_proj (E, d, h)."""
    gate, up = np.split(state["experts.gate_up_proj"][e], 2)
    return SwigluExpert(gate, up, state["experts.down_proj"][e])


def _numbered(state: dict[str, Array], e: int) -> SwigluExpert:
    """Mixtral in version 4: w1 is the gate, w3 up, w2 down."""
    return SwigluExpert(*(state[f"experts.{e}.{name}.weight"] for name in ("w1", "w3", "w2")))


def _named(state: dict[str, Array], e: int) -> SwigluExpert:
    """Qwen, OLMoE, DeepSeek in version 4."""
    return SwigluExpert(*(state[f"experts.{e}.{name}_proj.weight"] for name in ("gate", "up", "down")))


def _parallel(state: dict[str, Array], e: int) -> SwigluExpert:
    """Granite, JetMoE: input_linear (E, 2h, d), gate rows first, and output_linear (E, d, h)."""
    gate, up = np.split(state["input_linear.weight"][e], 2)
    return SwigluExpert(gate, up, state["output_linear.weight"][e])


def _stacked(state: dict[str, Array], e: int) -> SwigluExpert:
    """DBRX: w1, v1, w2 (E h, d), the last of them transposed."""
    E = len(state["router.layer.weight"])
    w1, v1, w2 = (np.split(state[f"experts.mlp.{name}"], E)[e] for name in ("w1", "v1", "w2"))
    return SwigluExpert(w1, v1, w2.T)


_LAYOUTS: dict[str, Callable[[dict[str, Array], int], SwigluExpert]] = {
    "experts.gate_up_proj": _fused,
    "experts.0.w1.weight": _numbered,
    "experts.0.gate_proj.weight": _named,
    "input_linear.weight": _parallel,
    "experts.mlp.w1": _stacked,
}


def mixture(state: dict[str, Array], k: int, renormalize: bool = True) -> MoE:
    """Our layer from the tensors of a mixture of `transformers`, of version 4 or 5.

    Parameters
    ----------
    state : names within the block, such as "gate.weight" and "experts.0.w1.weight", and arrays.
    k, renormalize : as in `MoE`.

    Raises
    ------
    ValueError : for names that are none of the known layouts.

    Examples
    --------
    >>> state = {"gate.weight": np.ones((2, 3)), "experts.gate_up_proj": np.ones((2, 8, 3))}
    >>> moe = mixture(state | {"experts.down_proj": np.ones((2, 3, 4))}, k=1)
    >>> len(moe.experts), moe.experts[0].widths
    (2, (3, 4, 3))
    """
    router = next((state[name] for name in _ROUTERS if name in state), None)
    layout = next((read for name, read in _LAYOUTS.items() if name in state), None)
    if router is None or layout is None:
        raise ValueError(
            f"expected a router among {', '.join(_ROUTERS)} and experts among {', '.join(_LAYOUTS)}; "
            f"got {', '.join(sorted(state)[:8])}"
        )
    experts = tuple(layout(state, e) for e in range(len(router)))
    return MoE(router, experts, k, renormalize)


def state_of(module: Any) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}
