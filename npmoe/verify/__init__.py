"""Other implementations held against the closed forms: `compare`, converters, golden files, the battery."""

from npmoe.verify.balances import compare_balance
from npmoe.verify.compare import Report, compare, compare_answers
from npmoe.verify.layouts import Converted, Coverage, from_jax, from_torch, to_jax, to_torch

__all__ = ["Converted", "Coverage", "Report", "compare", "compare_answers", "compare_balance", "from_jax", "from_torch"]
__all__ += ["to_jax", "to_torch"]
