"""Other people's weights as our layers, and back: `from_torch`, `from_jax`, `to_torch`, `to_jax`.

A layout says where each of our weights stands in their tensors (`places`). `known` lists the layouts that have a name,
`matching` lays one over a model's tensors, `choice` finds the one that fits, and `advice` says what to do where none
does. `layouts` reads and writes along it, and `coverage` says what of a model was read and what was not. A model is
known here by its tensors alone, whatever has a shape and a dtype (`tensors`): no framework is imported.
"""

from npmoe.convert.coverage import Coverage
from npmoe.convert.layouts import Converted, from_jax, from_torch, to_jax, to_torch

__all__ = ["Converted", "Coverage", "from_jax", "from_torch", "to_jax", "to_torch"]
