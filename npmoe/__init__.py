"""Mixture-of-experts layers in NumPy with hand-written derivatives, and the geometry of their experts."""

from npmoe.model import init
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.layers import Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.model.saved import load, save
from npmoe.model.train import fit
from npmoe.probe.site import Site, site

__version__ = "0.1.0"

__all__ = ["GeluExpert", "Linear", "MoE", "RMSNorm", "Residual", "Site", "Stack", "SwigluExpert", "fit", "init", "load"]
__all__ += ["save", "site"]
