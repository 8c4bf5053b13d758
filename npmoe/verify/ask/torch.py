"""All there is to ask an nn.Module that is not ours, by PyTorch's autograd: `candidate`.

n tokens, d width, o output width. The module, its flags and its ``.grad`` stay as they are: it is called with copies of
its parameters and buffers.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.verify.ask import common
from npmoe.verify.ask.common import Answers
from npmoe.verify.candidate import Typed
from npmoe.verify.judge import listed

__all__ = ["NAME", "arithmetics", "array_of", "candidate", "pulled", "tensor_of"]

Array = np.ndarray

NAME = "torch"


def arithmetics() -> tuple[str, ...]:
    """The arithmetics in which PyTorch can be asked."""
    return "float64", "float32", "bfloat16", "float16"


def tensor_of(torch: Any, array: Any, arithmetic: str) -> Any:
    """An array as a tensor."""
    # a copy of our own: PyTorch takes no negative strides, and warns of arrays that must not be written to
    return torch.from_numpy(np.array(array, order="C")).to(getattr(torch, arithmetic))


def array_of(torch: Any, tensor: Any) -> Array:
    """A tensor as an array; NumPy has no bfloat16, and float32 holds every number of 16 bits exactly."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def candidate(
    module: Any,
    converted: Any = None,
    arithmetic: str | None = None,
    *,
    batched: bool = False,
    answers: Iterable[str] = common.NAMES,
) -> Callable[..., Answers]:
    """Answers of an nn.Module that is not ours: a function of x (n, d) and, for gradients, dy (n, o).

    Parameters
    ----------
    module : any nn.Module, also one whose Python follows the data; it is left as it is, its ``.grad`` too. One of
        torch.compile runs as it was written.
    converted : what `npmoe.verify.from_torch` made of it. Its ``read`` gives gradients by our names; without it the
        parameters' gradients are left out.
    arithmetic : in which all of it is run; unless given each parameter keeps its own, and x comes in that of most of
        them.
    batched : whether it wants (1, n, d). Of a tuple of outputs the first counts.
    answers : some of "output", "gradient", "jacobian", "parameters".

    Returns
    -------
    ask : ``ask(x, dy=None)`` gives `npmoe.verify.ask.common.Answers`, each a `npmoe.verify.candidate.Typed`: array and
        the roughest arithmetic on the way to it. They are "output", "jacobian:reverse" and, where the batch is `small`,
        "jacobian:batch"; with dy also "gradient" and the parameters' gradients. In a larger batch one backward pass
        gives a row of every token's Jacobian, once passes for halves of the batch have shown that no token feels
        another; where one does, each token is asked alone, and ``remarks`` says so.

    Raises
    ------
    ModuleNotFoundError : where PyTorch is not installed.
    TypeError, ValueError : if it is no nn.Module; when asked, if the output is not (n, o), has no gradient, differs
        between two calls (dropout, noise), or has more Jacobians than fit.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"expected an nn.Module; got {type(module).__name__}")
    if arithmetic is not None:
        common.known(sys.modules[__name__], arithmetic)
    read, want = common.reader(converted), common.wanted(answers)

    def ask(x: Array, dy: Array | None = None) -> Answers:
        x = check.finite("x", check.shaped("x", x, ("n", "d"), "a candidate"))
        # what surrounds us must not take the gradients away
        with torch.inference_mode(False), torch.enable_grad(), _uncompiled(torch):
            return _asked(torch, _Run(torch, module, x, arithmetic, batched), x, dy, converted, read, want)

    return ask


def _uncompiled(torch: Any) -> Any:
    """What was compiled runs as it was written: no compiler follows parameters that are exchanged."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else nullcontext()


class _Run:
    """A module with copies of its parameters and buffers, in one arithmetic or each in its own."""

    def __init__(self, torch: Any, module: Any, x: Array, arithmetic: str | None, batched: bool) -> None:
        self.torch, self.module, self.batched = torch, module, batched
        self.name = type(getattr(module, "_orig_mod", module)).__name__
        most = _most(module)
        self.dtype = arithmetic or most or x.dtype.name
        common.known(sys.modules[__name__], self.dtype)
        new = None if arithmetic in (None, most) else getattr(torch, self.dtype)  # a float32 router stays one
        state = [*module.named_parameters(), *module.named_buffers()]
        self.device = state[0][1].device if state else torch.device("cpu")
        move = {n: t.detach().to(new) if new and t.is_floating_point() else t.detach() for n, t in state}
        self.state = {n: t.clone() for n, t in move.items()}
        floats = [n for n, t in module.named_parameters() if t.is_floating_point()]
        self.own = {n: self.state[n].requires_grad_() for n in floats}
        self.arithmetic = common.roughest([self.dtype, *(str(t.dtype).split(".")[-1] for t in self.own.values())])

    def put(self, x: Array) -> Any:
        """x (n, d) as a tensor of theirs."""
        return tensor_of(self.torch, x, self.dtype).to(self.device)

    def direct(self, given: Any) -> tuple[Any, str]:
        """Output (n, o), and words that say so where it was the first of several."""
        wide = (given[None] if self.batched else given,)
        y, words = common.first_of(self.torch.func.functional_call(self.module, dict(self.state), wide), self.name)
        y = y[0] if self.batched and y.ndim == 3 else y
        if y.ndim != 2 or len(y) != len(given):
            raise ValueError(
                f"expected an output of shape ({len(given)}, o) of {self.name}; got {tuple(y.shape)}{words}"
            )
        return y, words

    def __call__(self, x: Any) -> Any:
        return self.direct(x.clone())[0]  # a module may write into what it is given

    def values(self, x: Array) -> Array:
        """Output for another batch, as an array."""
        with self.torch.no_grad():
            return array_of(self.torch, self(self.put(x)))

    def first(self, X: Any) -> tuple[Any, list[str], str]:
        """Output, what is wrong beside it, and words about its shape; a hint where it wants another shape."""
        given = X.clone()
        try:
            y, words = self.direct(given)
        except Exception as error:
            if not self.batched and self._wants_batches(X):
                error.args = (f"{error} (it takes (batch, seq, d): say batched=True)",)
            raise
        changed = (given.detach() != X.detach()).any(dim=1).cpu().numpy()
        remarks = []
        if changed.any():
            remarks = [f"{self.name} changes its input x in place, in rows {listed(np.flatnonzero(changed))}"]
        return y, remarks, words

    def _wants_batches(self, X: Any) -> bool:
        try:
            y, _ = common.first_of(
                self.torch.func.functional_call(self.module, dict(self.state), (X.clone()[None],)), self.name
            )
            return y.ndim == 3
        except Exception:
            return False


def _most(module: Any) -> str | None:
    """The arithmetic that most parameters are in, by their elements."""
    counts: dict[str, int] = {}
    for tensor in module.parameters():
        name = str(tensor.dtype).split(".")[-1]
        if name in arithmetics():
            counts[name] = counts.get(name, 0) + tensor.numel()
    return max(counts, key=lambda name: counts[name], default=None)


def _asked(torch: Any, run: _Run, x: Array, dy: Array | None, converted: Any, read: Any, want: Any) -> Answers:
    X = run.put(x).requires_grad_()
    y, remarks, words = run.first(X)
    arithmetic = common.roughest([run.arithmetic, str(y.dtype).split(".")[-1]])
    out = array_of(torch, y)
    common.same_twice(out, array_of(torch, run(X)), arithmetic)
    if not y.requires_grad and want != {"output"}:
        raise ValueError(
            f"expected an output of {run.name} with a gradient; it is detached from x and from all parameters"
        )
    found: dict[str, Array] = {}
    notes = list(common.noted(converted))
    o = getattr(getattr(converted, "layer", None), "widths", out.shape)[-1]
    if words and out.shape[1] != o:
        remarks.append(f"of what {run.name} returns, {words.removeprefix(', ')} was taken, of shape {out.shape}")
    try:
        remarks += common.together(run.values, x, out, arithmetic)[0]
    except Exception as error:  # a module may want just so many tokens
        notes.append(f"{run.name} could not be asked on another batch: {type(error).__name__}: {error}")
    if "jacobian" in want:
        jacobians, says = _jacobians(torch, run, y, X)
        found |= jacobians
        remarks += says if not remarks else ()
    found |= {"output": out} if "output" in want else {}
    if dy is not None and want & {"gradient", "parameters"}:
        known = check.shaped("dy", dy, out.shape, f"this output{words}")
        own = run.own if read is not None and "parameters" in want else {}
        dY = tensor_of(torch, known, str(y.dtype).split(".")[-1]).to(run.device)
        gradients = {name: array_of(torch, g) for name, g in pulled(torch, run, own, X, dY).items()}
        found |= {"gradient": gradients["gradient"]} if "gradient" in want else {}
        if own:
            found |= common.leaves_of(read({name: gradients[name] for name in own}))
    return Answers({name: Typed(array, arithmetic) for name, array in found.items()}, remarks, notes)


def _jacobians(torch: Any, run: _Run, y: Any, X: Any) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Backward passes, one by one: vmap would not follow a module that reads its numbers."""
    (n, o), d = y.shape, X.shape[1]
    common.fits(n, o, d)
    rows = torch.autograd.functional.jacobian
    if common.small(n, o, d):
        J = array_of(torch, rows(run, X.detach()))  # (n, o, n, d)
        return {"jacobian:reverse": common.own_rows(J), "jacobian:batch": J}, ()
    pulled = partial(torch.autograd.grad, y, X, retain_graph=True, allow_unused=True, materialize_grads=True)

    def pull(dy: Array) -> Array:
        cotangent = tensor_of(torch, dy, str(y.dtype).split(".")[-1]).to(run.device)
        return array_of(torch, pulled(cotangent)[0])

    def alone(i: int) -> Array:
        return array_of(torch, rows(run, X.detach()[i : i + 1])[0, :, 0])  # (o, d)

    J, says = common.columns(pull, alone, (n, o), d)
    return {"jacobian:reverse": J}, says


def pulled(torch: Any, call: Callable[[Any], Any], parameters: Mapping[str, Any], x: Any, dy: Any) -> dict[str, Any]:
    """Output, and gradients of sum(dy * y) in x and the parameters by their names; zero where y does not depend."""
    x = x.detach().requires_grad_()
    y = call(x)
    inputs = [x, *parameters.values()]
    gradients = torch.autograd.grad(y, inputs, dy, allow_unused=True, materialize_grads=True)
    return {"output": y.detach(), **dict(zip(["gradient", *parameters], gradients, strict=True))}
