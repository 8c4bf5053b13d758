"""Their side: classes of the installed `transformers` found, configured, filled with numbers and asked.

n tokens, d width.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from npmoe.battery.released.comparison import reason_of
from npmoe.battery.released.families import COMMON, EXPERTS, FAMILIES, WIDTH

__all__ = ["class_of", "config_of", "filled", "installed_version", "mixed_part", "quiet"]

Array = np.ndarray


@contextmanager
def quiet() -> Iterator[None]:
    """Their warnings and progress bars are not ours to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def installed_version() -> str:
    """Version of the installed transformers."""
    try:
        with quiet():
            importlib.import_module("torch")
            return str(importlib.import_module("transformers").__version__)
    except ImportError as error:
        raise ImportError(
            f"expected torch and transformers, whose layers are held against ours; got {reason_of(error)}; "
            f"they come with the extra: pip install 'npmoe[hf]'"
        ) from error


def class_of(family: str, kind: str, name: str) -> Any:
    """A class of a family by name, whatever its case: DeepseekV2MoE became DeepseekV2Moe."""
    module = importlib.import_module(f"transformers.models.{family}.{kind}_{family}")
    found = next((key for key in vars(module) if key.lower() == name.lower()), None)
    if found is None:
        raise LookupError(f"no {name} in this version")
    return getattr(module, found)


def config_of(family: str, experts: str = "eager", **options: Any) -> Any:
    entry = FAMILIES[family]
    given = (COMMON if entry.common else {}) | entry.options | options
    config = class_of(family, "configuration", entry.config)(**given)
    if family == "dbrx":
        config.ffn_config.hidden_size = WIDTH  # some versions refuse it as an option, others need it
    config._attn_implementation = "eager"
    config._experts_implementation = experts
    return config


def filled(module: Any, rng: np.random.Generator) -> Any:
    """All parameters drawn anew: matrices for outputs of size 1, norms near 1, and the rest small."""
    import torch

    with torch.no_grad():
        for name, p in module.named_parameters():
            z = rng.standard_normal(tuple(p.shape))
            if p.ndim > 1:
                z /= np.sqrt(p.shape[-1])
                z *= 2 if tuple(p.shape) == (EXPERTS, WIDTH) else 1  # routers: choices that rounding does not turn
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


def mixed_part(module: Any, x: Any) -> Any:
    """Output of the mixture alone, x (n, d) -> (n, d)."""
    y = module(x[None])
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape) - _beside(module, x)
