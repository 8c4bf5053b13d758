"""Other implementations held against the closed forms: `compare`, converters, golden files, the battery.

`docs/verify.md` derives what is allowed and shows how to check a layer in five minutes.
"""

from collections.abc import Callable, Iterable
from typing import Any

from npmoe.convert import Converted, Coverage, from_jax, from_torch, to_jax, to_torch
from npmoe.verify.balances import compare_balance
from npmoe.verify.compare import Report, compare, compare_answers

__all__ = ["Converted", "Coverage", "Report", "ask_jax", "ask_torch", "compare", "compare_answers", "compare_balance"]
__all__ += ["from_jax", "from_torch", "to_jax", "to_torch"]

_Ask = Callable[..., dict[str, Any]]


_ALL = ("output", "gradient", "jacobian", "parameters")


def ask_torch(
    module: Any,
    converted: Converted | None = None,
    *,
    arithmetic: str | None = None,
    batched: bool = False,
    answers: Iterable[str] = _ALL,
) -> _Ask:
    """A candidate for `compare` that asks an nn.Module all there is to ask, by PyTorch's own autograd.

    Parameters
    ----------
    module : an nn.Module of x (n, d), or with `batched` of (1, n, d); it is left as it is.
    converted : what `from_torch` made of it, for its parameters' gradients by our names; left out without it.
    arithmetic : in which all of it is run; unless given each parameter keeps its own, and x comes in that of most.
    answers : some of "output", "gradient", "jacobian", "parameters"; of a wide layer the Jacobians take longest, a
        backward pass for each output.

    Returns
    -------
    ask : ``ask(x)`` gives output and Jacobians, ``ask(x, dy)`` also gradients, as a dict of
        `npmoe.verify.candidate.Typed`, arrays that know their arithmetic. Its ``remarks`` say what is wrong beside
        numbers: tokens that depend on each other, a changed input.

    Raises
    ------
    ModuleNotFoundError : where PyTorch is not installed.
    TypeError, ValueError : if it is no nn.Module, `converted` not what `from_torch` returns, or no such answer known.
    """
    from npmoe.verify.ask import torch

    return torch.candidate(module, converted, arithmetic, batched=batched, answers=answers)


def ask_jax(
    function: Callable[..., Any],
    parameters: Any,
    converted: Converted | None = None,
    *,
    arithmetic: str | None = None,
    answers: Iterable[str] = _ALL,
) -> _Ask:
    """A candidate for `compare` that asks function(parameters, x) all there is to ask, by JAX's own derivatives.

    Parameters
    ----------
    function : of a pytree of arrays and x (n, d).
    parameters : the pytree.
    converted : what `from_jax` made of it, for its parameters' gradients by our names; left out without it.
    arithmetic : in which all of it is run; unless given each leaf keeps its own, and x comes in that of most.
    answers : some of "output", "gradient", "jacobian", "parameters".

    Returns
    -------
    ask : as that of `ask_torch`.

    Raises
    ------
    ModuleNotFoundError : where JAX is not installed.
    TypeError, ValueError : if `converted` is not what `from_jax` returns, or no such answer or arithmetic known.
    """
    from npmoe.verify.ask import jax

    return jax.candidate(function, parameters, converted, arithmetic, answers=answers)
