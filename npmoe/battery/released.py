"""The mixtures of the installed `transformers`, held against our closed forms: outputs, derivatives, balance, dispatch.

n tokens, d width, h hidden, E experts, k experts a token. Layers and models are tiny, drawn at random from a seed and
converted here by hand; nothing is downloaded. A verdict comes from numbers alone, never from the version.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.scalar import softmax
from npmoe.model.balance import Balance, conventions, pooled
from npmoe.model.expert import SwigluExpert
from npmoe.model.moe import MoE
from npmoe.model.routing import mask as on_mask
from npmoe.model.routing import route, top_k

__all__ = [
    "FAMILIES",
    "Collapse",
    "Finding",
    "collapse",
    "described",
    "finding",
    "findings",
    "mixture",
    "report",
    "table",
]

Array = np.ndarray

#: Largest relative difference that is rounding: softmaxes and sums are in float32 even where the weights are float64.
#: A softmax is off by (span of the scores, up to 16 here, and E) eps, a mean over some 100 rows by 100 eps at worst, a
#: gradient by two such factors: under 300 eps. Faults found so far are larger by a factor of 1000 and more.
TOLERANCE = 300 * float(np.finfo(np.float32).eps)

_d, _h, _E, _k = 16, 12, 6, 2  # E x d is no other matrix's shape in these models, so that routers are known by it
_ROWS = 4  # tokens of a block


class Finding(NamedTuple):
    """One comparison.

    id : what was compared: "output", "gradient", "jacobian", "output:<experts>" (other implementations of the experts),
        "balance", "balance:masked", "balance:collapsed", "balance:gradient", "dispatch", "groups".
    family, version : of `transformers`.
    symptom : what the numbers show, in words.
    expected, got : ours and theirs: the value of a loss, else the largest entry; None where it did not run.
    error : largest difference over the largest expected entry.
    tolerance : of the error.
    verdict : "agrees", "fault" or "not run: reason".
    repeat : the command.
    """

    id: str
    family: str
    version: str
    symptom: str
    expected: float | None
    got: float | None
    error: float | None
    tolerance: float
    verdict: str
    repeat: str


def _repeat(family: str) -> str:
    return f"python -m npmoe.verify released {family}"


def finding(
    id: str,
    family: str,
    version: str,
    expected: Any,
    got: Any,
    symptom: str = "",
    tolerance: float = TOLERANCE,
) -> Finding:
    """Finding of two arrays (or numbers) that should be one.

    Parameters
    ----------
    id, family, version : what was compared, and whose it is.
    expected, got : arrays of one shape, ours and theirs.
    symptom : words for the case that they differ; without them the difference itself.
    tolerance : of the largest difference, relative to the largest expected entry.

    Raises
    ------
    ValueError : for arrays of two shapes.

    Examples
    --------
    >>> finding("output", "mixtral", "0", [1.0, 2.0], [1.0, 2.0]).verdict
    'agrees'
    >>> finding("output", "mixtral", "0", [1.0, 2.0], [1.0, 2.5])[3:7]
    ('differs by 0.25 of the largest entry', 2.0, 2.5, 0.25)
    """
    ours, theirs = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"expected {id} of {family} of shape {ours.shape}; got {theirs.shape}")
    size = float(np.abs(ours).max())
    error = float(np.abs(ours - theirs).max()) / (size or 1.0)
    agrees = error <= tolerance  # NaN is a fault
    if not agrees and not symptom:
        symptom = f"differs by {error:.3g} of the largest entry"
    single = ours.ndim == 0
    values = (float(ours), float(theirs)) if single else (size, float(np.abs(theirs).max()))
    verdict = "agrees" if agrees else "fault"
    return Finding(id, family, version, "" if agrees else symptom, *values, error, tolerance, verdict, _repeat(family))


def _not_run(id: str, family: str, version: str, reason: str) -> Finding:
    return Finding(id, family, version, "", None, None, None, TOLERANCE, f"not run: {reason}", _repeat(family))


def _reason(error: Exception) -> str:
    """First line of an error, short enough for a table."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:90]


# ---- what a softmax taken twice costs ------------------------------------------------------------------------------


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


# ---- the families --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """Names of a family in `transformers`.

    block : class of the mixture, or "" where it is none of our layers; its case may differ between versions.
    config, model : classes of the configuration and of the model that reports a balance loss ("": it reports none).
    options : of the configuration, beside `_COMMON`.
    renormalize : whether the k gates are made to sum to 1; both, where the configuration has a switch.
    """

    block: str
    config: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    renormalize: tuple[bool, ...] = (True,)
    common: bool = True


_COMMON: dict[str, Any] = {
    "hidden_size": _d,
    "intermediate_size": _h,
    "moe_intermediate_size": _h,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "num_local_experts": _E,
    "num_experts": _E,
    "num_experts_per_tok": _k,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BOTH = (True, False)
_FULL = {"layer_types": ["full_attention"] * 2, "head_dim": 8}
_DBRX = {
    "d_model": _d,
    "n_heads": 2,
    "n_layers": 2,
    "vocab_size": 32,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 100.0},
    "ffn_config": {
        "ffn_hidden_size": _h,
        "moe_num_experts": _E,
        "moe_top_k": _k,
        "moe_normalize_expert_weights": 1.0,
        "ffn_act_fn": {"name": "silu"},
    },
}
_SHARED = {"shared_expert_intermediate_size": _h, "decoder_sparse_step": 1, "mlp_only_layers": []}
_ERNIE = {"moe_num_experts": _E, "moe_k": _k, "moe_num_shared_experts": 1, "moe_layer_start_index": 0}
_ERNIE |= {"moe_layer_interval": 1, "moe_layer_end_index": 1}
_JAMBA = {"attn_layer_period": 1, "attn_layer_offset": 0, "expert_layer_period": 1, "expert_layer_offset": 0}
_JAMBA |= {"use_mamba_kernels": False}
_DEEPSEEK = {"n_routed_experts": _E, "n_shared_experts": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0}

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
_DISPATCHED = {"nllb_moe": (2, True), "switch_transformers": (1, False)}  # k, renormalize
_GROUPED = ("deepseek_v3", "glm4_moe", "dots1")


# ---- conversion, by hand -------------------------------------------------------------------------------------------

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


def _state(module: Any) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


# ---- their side ----------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Their warnings and progress bars are not ours to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _version() -> str:
    """Version of the installed transformers."""
    try:
        with _quiet():
            importlib.import_module("torch")
            return str(importlib.import_module("transformers").__version__)
    except ImportError as error:
        raise ImportError(
            f"expected torch and transformers, whose layers are held against ours; got {_reason(error)}; "
            f"they come with the extra: pip install 'npmoe[hf]'"
        ) from error


def _get(family: str, kind: str, name: str) -> Any:
    """A class of a family by name, whatever its case: DeepseekV2MoE became DeepseekV2Moe."""
    module = importlib.import_module(f"transformers.models.{family}.{kind}_{family}")
    found = next((key for key in vars(module) if key.lower() == name.lower()), None)
    if found is None:
        raise LookupError(f"no {name} in this version")
    return getattr(module, found)


def _config(family: str, experts: str = "eager", **options: Any) -> Any:
    entry = FAMILIES[family]
    given = (_COMMON if entry.common else {}) | entry.options | options
    config = _get(family, "configuration", entry.config)(**given)
    if family == "dbrx":
        config.ffn_config.hidden_size = _d  # some versions refuse it as an option, others need it
    config._attn_implementation = "eager"
    config._experts_implementation = experts
    return config


def _fill(module: Any, rng: np.random.Generator) -> Any:
    """All parameters drawn anew: matrices for outputs of size 1, norms near 1, and the rest small."""
    import torch

    with torch.no_grad():
        for name, p in module.named_parameters():
            z = rng.standard_normal(tuple(p.shape))
            if p.ndim > 1:
                z /= np.sqrt(p.shape[-1])
                z *= 2 if tuple(p.shape) == (_E, _d) else 1  # routers: choices that rounding does not turn
            else:
                z = 0.1 * z + ("norm" in name)
            p.copy_(torch.as_tensor(z))
        for name, b in (*module.named_buffers(), *module.named_parameters()):
            if name.endswith("e_score_correction_bias"):
                b.zero_()
    return module.eval()


def _beside(module: Any, x: Any) -> Any:
    """What a block adds to its mixture: shared experts, gated or not, and JetMoE's bias."""
    import torch

    beside = torch.zeros_like(x)
    for name in ("shared_expert", "shared_experts", "shared_mlp"):
        shared = getattr(module, name, None)
        if shared is not None:
            gate = getattr(module, "shared_expert_gate", None)
            beside = beside + (shared(x) if gate is None else torch.sigmoid(gate(x)) * shared(x))
    bias = getattr(module, "bias", None)
    return beside if bias is None else beside + bias


def _mixed(module: Any, x: Any) -> Any:
    """Output of the mixture alone, x (n, d) -> (n, d)."""
    y = module(x[None])
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape) - _beside(module, x)


# ---- blocks --------------------------------------------------------------------------------------------------------


def _blocks(family: str, version: str) -> Iterator[Finding]:
    """Outputs, gradients and Jacobians of a block, router term included."""
    import torch

    entry = FAMILIES[family]
    for renormalize in entry.renormalize:
        rng = np.random.default_rng(0)
        switch: dict[str, Any] = {"norm_topk_prob": renormalize} if len(entry.renormalize) > 1 else {}
        words = f" (norm_topk_prob {renormalize})" if switch else ""
        config = _config(family, **switch)
        module = _fill(_get(family, "modeling", entry.block)(config), rng)
        ours = mixture(_state(module), _k, renormalize)
        x, dy = rng.standard_normal((2, _ROWS, _d))
        y, trace = ours.forward(x)
        dx, _ = ours.vjp(trace, dy)

        def output(dtype: Any, module: Any = module, x: Array = x) -> Any:
            return _mixed(module, torch.as_tensor(x, dtype=dtype))

        dtype, yt = _precise(module, output)
        xt = torch.tensor(x, dtype=dtype, requires_grad=True)
        (dxt,) = torch.autograd.grad(_mixed(module, xt), xt, torch.as_tensor(dy, dtype=dtype))
        J = torch.autograd.functional.jacobian(lambda x, m=module: _mixed(m, x), xt)  # (n, d, n, d)
        whole = np.zeros((_ROWS, _d, _ROWS, _d))
        whole[np.arange(_ROWS), :, np.arange(_ROWS)] = ours.jacobian(x)  # tokens do not see each other
        yield finding("output" + words, family, version, y, yt.detach().numpy())
        yield finding("gradient" + words, family, version, dx, dxt.numpy())
        yield finding("jacobian" + words, family, version, whole, J.numpy())
        for name in _implementations(module):
            config._experts_implementation = name
            try:
                single = module.float()
                xs = torch.tensor(x, dtype=torch.float32, requires_grad=True)
                ys = _mixed(single, xs)
                (dxs,) = torch.autograd.grad(ys, xs, torch.as_tensor(dy, dtype=torch.float32))
                yield finding(f"output:{name}" + words, family, version, y, ys.detach().numpy())
                yield finding(f"gradient:{name}" + words, family, version, dx, dxs.numpy())
            except Exception as error:
                yield _not_run(f"output:{name}" + words, family, version, _reason(error))


def _precise(module: Any, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What `run` gives in float64, or in float32 where a cast in the code allows no other; and which it was."""
    import torch

    try:
        module.double()
        return torch.float64, run(torch.float64)
    except RuntimeError:
        module.float()
        return torch.float32, run(torch.float32)


def _implementations(module: Any) -> list[str]:
    """Other ways in which version 5 computes the experts of this block, of those that run on a CPU."""
    if not hasattr(getattr(module, "experts", None), "gate_up_proj"):
        return []
    try:
        known = importlib.import_module("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS
    except (ImportError, AttributeError):
        return []
    return [name for name in ("batched_mm", "grouped_mm") if name in known]


# ---- the balance loss, as the model reports it ---------------------------------------------------------------------


class _Reported(NamedTuple):
    """A model's balance loss, what its routers saw and hold, and its gradient on the last of them."""

    value: float
    x: list[Array]  # (n, d) each
    routers: list[Array]  # (E, d) each
    biases: list[Array]  # (E,) each
    corrections: list[Array]  # (E,) each, added to the probabilities for the choice alone; mostly none
    gradient: Array  # (E, d)

    @property
    def scores(self) -> list[Array]:
        """(n, E) of each router, from what it saw."""
        return [x @ W.T + b for x, W, b in zip(self.x, self.routers, self.biases, strict=True)]


def _routers(model: Any) -> list[Any]:
    """Modules that hold a matrix (E, d): in these models a router's alone."""
    found = [m for m in model.modules() if tuple(getattr(getattr(m, "weight", None), "shape", ())) == (_E, _d)]
    if not found:
        raise LookupError("no router found in this version")
    return found


def _reported(family: str, state: str, masked: Array | None) -> _Reported:
    """Run a model of two layers on random tokens; `state` is "", "collapsed" or "corrected"."""
    import torch

    rng = np.random.default_rng(1)
    model = _fill(_get(family, "modeling", FAMILIES[family].model)(_config(family)), rng)
    routers = _routers(model)
    corrections = [p for name, p in model.named_parameters() if name.endswith("e_score_correction_bias")]
    if state == "collapsed":
        _collapse(model, routers)
    if state == "corrected":
        if not corrections:
            raise LookupError("no correction bias in this version")
        for p in corrections:
            p.data.copy_(torch.as_tensor(0.3 * rng.standard_normal(tuple(p.shape))))
    seen: list[tuple[Any, Any]] = []
    hooks = [
        m.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].detach().double().reshape(-1, _d).numpy())))
        for m in routers
    ]
    tokens = torch.as_tensor(rng.integers(3, 32, (3, 12)))
    given = {} if masked is None else {"attention_mask": torch.as_tensor(masked)}

    def run(_: Any) -> Any:
        seen.clear()
        return model(input_ids=tokens, output_router_logits=True, use_cache=False, **given).aux_loss

    _, aux = _precise(model, run)
    for hook in hooks:
        hook.remove()
    if aux is None:
        raise LookupError("no balance loss is reported in this version")
    last = seen[-1][0]
    gradient = torch.zeros_like(last.weight)
    if isinstance(aux, torch.Tensor):  # else the integer 0: no router's scores were found
        (gradient,) = torch.autograd.grad(aux, last.weight)
    return _Reported(
        float(aux),
        [x for _, x in seen],
        [m.weight.detach().double().numpy() for m, _ in seen],
        [_bias(m) for m, _ in seen],
        [p.detach().double().numpy().reshape(-1) for p in corrections],
        gradient.double().numpy(),
    )


def _bias(router: Any) -> Array:
    bias = getattr(router, "bias", None)
    return np.zeros(_E) if bias is None else bias.detach().double().numpy()


def _collapse(model: Any, routers: Sequence[Any]) -> None:
    """All tokens share a direction that the first two rows of every router read: scores near 12, 6 and 0."""
    import torch

    with torch.no_grad():
        direction = torch.as_tensor(np.where(np.arange(_d) % 2, 1.0, -1.0))  # of mean 0: it survives a LayerNorm
        model.get_input_embeddings().weight.add_(30 * direction)
        for router in routers:
            router.weight.mul_(0.0)
            router.weight[0] += 12 / _d * direction
            router.weight[1] += 6 / _d * direction


def _balance(family: str, version: str) -> Iterator[Finding]:
    """The reported loss in Mixtral's convention: f counts choices, P the softmax of the scores, all layers pooled."""
    loss = Balance(count="per choice", pool="pooled")
    padded = np.ones((3, 12), np.int64)
    padded[1, 9:], padded[2, 5:] = 0, 0
    cases: list[tuple[str, str, Array | None]] = [("balance", "", None), ("balance:masked", "", padded)]
    cases += [("balance:collapsed", "collapsed", None)]
    if family == "ernie4_5_moe":  # the one with a bias on its softmax, for the choice alone
        cases += [("balance:corrected", "corrected", None)]
    for id, state, masked in cases:
        try:
            told = _reported(family, state, masked)
        except Exception as error:
            yield _not_run(id, family, version, _reason(error))
            continue
        weights = None if masked is None else masked.reshape(-1)
        scores = told.scores
        uncorrected = [top_k(s, _k) for s in scores]
        chosen = uncorrected
        if told.corrections:
            chosen = [top_k(softmax(s) + b, _k) for s, b in zip(scores, told.corrections, strict=True)]
        which = Balance(loss.kind, count=loss.count, pool=loss.pool, mask=weights)
        value, ds = pooled(which, scores, chosen)
        words = _explained(told.value, which, scores, chosen, uncorrected)
        yield finding(id, family, version, value, told.value, f"{told.value:.5g} for {value:.5g}: {words}")
        if id == "balance":
            dW = ds[-1].T @ told.x[-1]  # (E, d)
            ratio = np.linalg.norm(told.gradient) / np.linalg.norm(dW)
            words = f"gradient on the last router {ratio:.3g} times as long"
            yield finding("balance:gradient", family, version, dW, told.gradient, words)


def _explained(value: float, loss: Balance, scores: list[Array], chosen: list[Array], uncorrected: list[Array]) -> str:
    """What a reported balance loss is, if it is not ours: the faults that we know, then the conventions."""
    gates = [route(s, _k).gates for s in scores]
    other = np.mean([on_mask(a, _E)[on_mask(b, _E)].mean() for a, b in zip(chosen, uncorrected, strict=True)])
    faults = {
        f"f counts the k largest scores, of which {1 - other:.1%} are not the choices made": (scores, uncorrected),
        "the loss of probabilities: softmax taken twice": ([softmax(s) for s in scores], chosen),
        "the loss of the k gates, zero elsewhere: softmax taken of gates": (gates, chosen),
        "every other router, attention's, counted twice": (
            [s for i, s in enumerate(scores) for _ in range(2 - i % 2)],
            [c for i, c in enumerate(chosen) for _ in range(2 - i % 2)],
        ),
    }
    fits = [w for w, (s, c) in faults.items() if abs(pooled(loss, s, c)[0] - value) <= TOLERANCE * abs(value)]
    if not value:
        return "no loss at all, and no gradient"
    if fits:
        return ", or ".join(fits)
    found = conventions(value, scores, chosen, mask=loss.mask, tolerance=TOLERANCE)
    return found.matches[0].words if found.matches else "no convention that we know"


# ---- dispatch ------------------------------------------------------------------------------------------------------


def _dispatch(family: str, version: str) -> Iterator[Finding]:
    """sum_e g_e f_e(x), their experts called one by one: they have ReLU, and are none of our layers.

    Experts that answer with a unit vector each, where they have a bias, read off which gate each of them gets.
    """
    import torch

    k, renormalize = _DISPATCHED[family]
    E, n = 8, 40
    sizes: dict[str, Any] = {
        "d_model": _d,
        "num_experts": E,
        "expert_capacity": n,
        "router_bias": False,
        "vocab_size": 32,
    }
    sizes |= {"nllb_moe": {"moe_token_dropout": 0.0}}.get(family, {"d_ff": _h})
    rng = np.random.default_rng(2)
    config = _get(family, "configuration", FAMILIES[family].config)(**sizes)
    args = (config, _h) if family == "nllb_moe" else (config,)
    module = _fill(_get(family, "modeling", FAMILIES[family].block)(*args), rng)  # routers of float32
    with torch.no_grad():
        x = torch.as_tensor(rng.standard_normal((n, _d)), dtype=torch.float32)
        W = module.router.classifier.weight.mul_(3.0).double().numpy()
        routing = route(x.double().numpy() @ W.T, k, renormalize)
        experts = [module.experts[f"expert_{e}"] for e in range(E)]
        f = np.stack([expert(x).double().numpy() for expert in experts], axis=1)  # (n, E, d)
        y = np.einsum("ne,ned->nd", routing.gates, f)
        padding = {"padding_mask": None} if family == "nllb_moe" else {}  # None is no default in version 4
        got = _first(module(x[None], **padding)).reshape(n, _d).double().numpy()
        symptom = ""
        if hasattr(experts[0], "fc2"):
            called = np.zeros(E, np.int64)  # rows that each expert is called on
            for e, expert in enumerate(experts):
                expert.fc2.weight.zero_()
                expert.fc2.bias.copy_(torch.eye(_d)[e])
                expert.register_forward_pre_hook(partial(_count, called, e))
            effective = _first(module(x[None], **padding)).reshape(n, _d)[:, :E].double().numpy()  # (n, E)
            symptom = _dispatched(routing.chosen, effective, called)
        yield finding("dispatch", family, version, y, got, symptom)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _count(called: Array, e: int, expert: Any, args: tuple[Any, ...]) -> None:
    """A hook: the rows (..., d) of one call of expert e, added to called (E,)."""
    called[e] += args[0].numel() // _d


def _dispatched(chosen: Array, effective: Array, called: Array) -> str:
    """Where the first of the choices (n, k) went, in words, by the gates that experts received (n, E), and the rows
    that each of them was called on (E,)."""
    first, E = chosen[:, 0], effective.shape[1]
    largest = effective.argmax(axis=1)
    top = np.bincount(largest, minlength=E).argmax()
    reached = int((effective > 0).any(axis=0).sum())
    return (
        f"{(largest == first).mean():.1%} of first choices reach their expert, {(largest == top).mean():.1%} go to "
        f"expert {top}; {reached} of {E} experts are used, {len(np.unique(first))} are somebody's first choice; "
        f"experts are called on {called.sum()} rows, {called.max()} of them expert {called.argmax()}'s, for "
        f"{chosen.size} choices"
    )


# ---- groups --------------------------------------------------------------------------------------------------------


def _groups(family: str, version: str) -> Iterator[Finding]:
    """Group-limited routing: a constant added to every correction bias changes no choice.

    DeepSeek-V3, arXiv 2412.19437, equations 12 to 16: sigmoid scores; experts outside the best groups are out, whatever
    the sign of score + bias.
    """
    import torch

    E, groups, kept = 8, 4, 2
    rng = np.random.default_rng(3)
    sizes: dict[str, Any] = {
        "n_routed_experts": E,
        "num_local_experts": E,
        "num_experts": E,
        "n_group": groups,
        "topk_group": kept,
    }
    sizes |= {"n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
    module = _fill(_get(family, "modeling", FAMILIES[family].block)(_config(family, **sizes)), rng)
    x = rng.standard_normal((40, _d))
    bias = 0.1 * rng.standard_normal(E)
    state = _state(module)
    experts = mixture({k: v for k, v in state.items() if "shared" not in k}, _k).experts
    p = 1 / (1 + np.exp(-x @ state["gate.weight"].T))  # (n, E)
    by_group = (p + bias).reshape(len(x), groups, -1)
    best = top_k(np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2), kept)  # (n, kept)
    open_ = np.repeat(on_mask(best, groups), E // groups, axis=1)  # (n, E)
    chosen = top_k(np.where(open_, p + bias, -np.inf), _k)  # (n, k)
    g = np.where(on_mask(chosen, E), p, 0.0)
    g /= g.sum(axis=1, keepdims=True)
    f = np.stack([expert.forward(x)[0] for expert in experts], axis=1)  # (n, E, d)
    y = np.einsum("ne,ned->nd", g, f)
    for shift in (0.0, -1.0):
        with torch.no_grad():
            module.gate.e_score_correction_bias.copy_(torch.as_tensor(bias + shift))
            got = _mixed(module, torch.as_tensor(x, dtype=torch.float32)).double().numpy()
        wrong = (np.abs(got - y).max(axis=1) > TOLERANCE * np.abs(y).max()).mean()
        words = f"bias shifted by {shift:g}: {wrong:.1%} of tokens go to other experts"
        yield finding(f"groups (bias {shift:+g})" if shift else "groups", family, version, y, got, words)


# ---- all of it -----------------------------------------------------------------------------------------------------


def findings(families: Iterable[str] | None = None) -> list[Finding]:
    """Hold the installed `transformers` against our closed forms.

    Parameters
    ----------
    families : names among `FAMILIES`; None, all.

    Returns
    -------
    list of `Finding`; a family that this version lacks is "not run", with the reason.

    Raises
    ------
    ImportError : without torch or transformers.
    ValueError : for an unknown family.

    Examples
    --------
    >>> findings(["mistral"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: expected families among mixtral, qwen2_moe, ...; got 'mistral'
    """
    names = list(FAMILIES) if families is None else list(families)
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"expected families among {', '.join(FAMILIES)}; got {name!r}")
    version = _version()
    found: list[Finding] = []
    with _quiet():
        for name in names:
            for what, check in _checks(name):
                try:
                    found += check(name, version)
                except Exception as error:  # a class that this version lacks, or has with other arguments
                    found.append(_not_run(what, name, version, _reason(error)))
    return found


def _checks(family: str) -> Iterator[tuple[str, Callable[[str, str], Iterator[Finding]]]]:
    """What is compared for a family, by name."""
    if family in _DISPATCHED:
        yield "dispatch", _dispatch
    elif family in _GROUPED:
        yield "groups", _groups
    else:
        if FAMILIES[family].block:
            yield "output", _blocks
        if FAMILIES[family].model:
            yield "balance", _balance


def table(found: Sequence[Finding]) -> str:
    """Findings as text, a line each; the error also in units of float32's eps.

    Examples
    --------
    >>> print(table([finding("balance", "mixtral", "0", 6.0, 2.9)]))
    family   what         expected         got    error   eps32  verdict
    mixtral  balance             6         2.9  5.2e-01   4e+06  fault
    """
    wide = max([len(f.family) for f in found] + [6])
    what = max([len(f.id) for f in found] + [10])
    rows = [f"{'family':{wide}}  {'what':{what}} {'expected':>10}  {'got':>10}    error   eps32  verdict"]
    for f in found:
        if f.error is None or f.expected is None or f.got is None:
            rows.append(f"{f.family:{wide}}  {f.id:{what}} {'':>10}  {'':>10}  {'':>7} {'':>7}  {f.verdict}")
            continue
        ulp = f.error / float(np.finfo(np.float32).eps)
        numbers = f"{f.expected:>10.5g}  {f.got:>10.5g}  {f.error:.1e} {ulp:>7.1g}"
        rows.append(f"{f.family:{wide}}  {f.id:{what}} {numbers}  {f.verdict}")
    return "\n".join(rows)


def described(found: Sequence[Finding]) -> str:
    """A head, the table, and each fault in words with its command.

    Examples
    --------
    >>> print(described([finding("balance", "mixtral", "5.0.0", 6.0, 2.9, "2.9 for 6: softmax taken twice")]))
    transformers 5.0.0: 0 agree, 1 at fault, 0 not run
    <BLANKLINE>
    family   what         expected         got    error   eps32  verdict
    mixtral  balance             6         2.9  5.2e-01   4e+06  fault
    <BLANKLINE>
    Faults:
      mixtral, balance: 2.9 for 6: softmax taken twice
        python -m npmoe.verify released mixtral
    """
    faults = [f for f in found if f.verdict == "fault"]
    agree = sum(f.verdict == "agrees" for f in found)
    rest = len(found) - agree - len(faults)
    version = ", ".join(dict.fromkeys(f.version for f in found))
    lines = [f"transformers {version}: {agree} agree, {len(faults)} at fault, {rest} not run", "", table(found)]
    if faults:
        lines += ["", "Faults:"]
        lines += [f"  {f.family}, {f.id}: {f.symptom}\n    {f.repeat}" for f in faults]
    return "\n".join(lines)


def report(families: Iterable[str] | None = None) -> str:
    """What was found in the installed `transformers`, as text; without it, the words that say how to get it."""
    try:
        return described(findings(families))
    except ImportError as error:
        return str(error)
