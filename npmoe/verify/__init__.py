"""Other implementations held against the closed forms: `compare`, converters, golden files, the battery.

`docs/verify.md` derives what is allowed and shows how to check a layer in five minutes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npmoe.verify.balances import compare_balance
from npmoe.verify.compare import Report, compare, compare_answers
from npmoe.verify.layouts import Converted, Coverage, from_jax, from_torch, to_jax, to_torch

__all__ = ["Converted", "Coverage", "Report", "ask_jax", "ask_torch", "compare", "compare_answers", "compare_balance"]
__all__ += ["from_jax", "from_torch", "to_jax", "to_torch"]

_Ask = Callable[..., dict[str, np.ndarray]]


def ask_torch(
    module: Any, converted: Converted | None = None, *, arithmetic: str | None = None, batched: bool = False
) -> _Ask:
    """A candidate for `compare` that asks an nn.Module all there is to ask, by PyTorch's own autograd.

    Parameters
    ----------
    module : an nn.Module of x (n, d), or with `batched` of (1, n, d); it is left as it is.
    converted : what `from_torch` made of it, for its parameters' gradients by our names.
    arithmetic : in which it is run; that of its parameters unless given.

    Returns
    -------
    ask : ``ask(x)`` gives output and Jacobians, ``ask(x, dy)`` also gradients, as a dict of arrays.

    Raises
    ------
    ModuleNotFoundError : where PyTorch is not installed.
    TypeError : if it is no nn.Module.
    """
    from npmoe.verify.frameworks import with_torch

    return with_torch.candidate(module, None if converted is None else converted.read, arithmetic, batched=batched)


def ask_jax(
    function: Callable[..., Any], parameters: Any, converted: Converted | None = None, *, arithmetic: str | None = None
) -> _Ask:
    """A candidate for `compare` that asks function(parameters, x) all there is to ask, by JAX's own derivatives.

    Parameters
    ----------
    function : of a pytree of arrays and x (n, d).
    parameters : the pytree.
    converted : what `from_jax` made of it, for its parameters' gradients by our names.
    arithmetic : in which it is run; that of its parameters unless given.

    Returns
    -------
    ask : ``ask(x)`` gives output and Jacobians, ``ask(x, dy)`` also gradients, as a dict of arrays.

    Raises
    ------
    ModuleNotFoundError : where JAX is not installed.
    """
    from npmoe.verify.frameworks import with_jax

    return with_jax.candidate(function, parameters, None if converted is None else converted.read, arithmetic)
