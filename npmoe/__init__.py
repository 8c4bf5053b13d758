"""Mixture-of-experts layers in NumPy with hand-written derivatives, and the geometry of their experts."""

from npmoe.model import init
from npmoe.model.attention import Attention
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import LayerNorm, Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.model.saved import load, save
from npmoe.model.train import fit
from npmoe.model.transformer import Block, Embedding, Transformer
from npmoe.probe.language import sites
from npmoe.probe.site import Site, site

__version__ = "0.1.0"

__all__ = ["Attention", "Block", "Embedding", "GeluExpert", "LayerNorm", "Linear", "MoE", "RMSNorm", "Residual", "Site"]
__all__ += ["Stack", "SwigluExpert", "Transformer", "fit", "init", "load", "save", "site", "sites"]

_LATER = ("checkpoint", "testing", "verify")  # rooms that are loaded when they are first named


def __getattr__(name: str) -> object:
    """``npmoe.checkpoint``, ``npmoe.testing`` and ``npmoe.verify`` without an import of their own."""
    if name in _LATER:
        from importlib import import_module

        return import_module(f"npmoe.{name}")
    raise AttributeError(f"module 'npmoe' has no attribute {name!r}")
