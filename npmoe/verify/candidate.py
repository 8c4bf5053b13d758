"""What another implementation answers: asked on copies of the inputs, taken as arrays that know their arithmetic."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.verify.judge import listed
from npmoe.verify.report import Report
from npmoe.verify.rounding import ARITHMETICS

__all__ = ["Missing", "Typed", "again", "ask", "common", "typed"]

Array = np.ndarray


def ask(candidate: Callable[..., Any], x: Array, dy: Array | None) -> tuple[Any, list[str], tuple[str, ...]]:
    """What the candidate answers on copies of the inputs, what went wrong, and what it says of itself."""
    if not callable(candidate):
        raise TypeError(
            f"expected a candidate that can be called with x; got {type(candidate).__name__} "
            f"(answers that are already there go to npmoe.verify.compare_answers)"
        )
    given = [np.array(x)] + ([] if dy is None else [np.array(dy)])
    try:
        answer = candidate(*given)
        # a copy now: a candidate may hand out its own buffer
        answers = {k: typed(v) for k, v in answer.items()} if isinstance(answer, Mapping) else typed(answer)
    except Exception as error:  # whatever it is, the report says so; KeyboardInterrupt is none of it
        return None, [f"the candidate raised {type(error).__name__}: {error}{_line(error)}"], ()
    # `ask_torch` and `ask_jax` say more than numbers: `npmoe.verify.ask.common.Answers`
    problems = list(getattr(answer, "remarks", ()))
    for name, before, after in zip(("x", "dy"), (x, dy), given, strict=False):
        if before is not None and not np.array_equal(before, after, equal_nan=True):
            rows = np.flatnonzero((np.asarray(before) != after).any(axis=1))
            problems.append(
                f"the candidate changed its input {name}, in row{'s' * (len(rows) > 1)} {listed(rows)}; it had a copy, "
                f"yours is as it was"
            )
    return answers, problems, tuple(getattr(answer, "notes", ()))


def _line(error: BaseException) -> str:
    """Where an exception of the candidate came from."""
    trace, last = error.__traceback__, None
    while trace is not None:
        last, trace = trace, trace.tb_next
    return "" if last is None else f" ({last.tb_frame.f_code.co_filename}:{last.tb_lineno})"


def typed(value: Any) -> Any:
    """A NumPy array of what a framework returns as `Typed`, or `Missing`: a sentence that says why it is none."""
    if isinstance(value, Missing | Typed):
        return value
    try:
        if hasattr(value, "detach"):  # a tensor of PyTorch, which may require a gradient, lie elsewhere, be bfloat16
            value = value.detach().cpu()
            if str(value.dtype) in ("torch.bfloat16", "torch.float16"):
                return Typed(np.array(value.float()), str(value.dtype).removeprefix("torch."))
            value = value.numpy() if hasattr(value, "numpy") else value  # NumPy's copy of a tensor warns
        array = np.array(value)
    except Exception as error:  # a ragged list, a tensor that no array can hold
        return Missing(f"expected an array of floats; got none ({type(error).__name__}: {error})")
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which JAX uses
        return Typed(array.astype(np.float32), "bfloat16")
    if array.dtype.kind != "f":
        return Missing(f"expected an array of floats; got {array.dtype} of shape {array.shape}")
    if array.dtype.itemsize > 8:
        return Typed(array.astype(np.float64), "float64")
    return Typed(array, array.dtype.name)


class Missing(str):
    """Why there is no answer."""

    __slots__ = ()


class Typed(NamedTuple):
    """Numbers, and the arithmetic that they came in."""

    array: Array
    arithmetic: str

    def __repr__(self) -> str:
        return one_line(self)


def again(candidate: Callable[..., Any], x: Array, dy: Array | None, answers: Any, report: Report) -> list[str]:
    """A second call: answers that change from call to call are a fault of their own."""
    second, _, _ = ask(candidate, x, dy)
    pairs = [(answers, second)] if isinstance(answers, Typed) else []
    if isinstance(answers, dict) and isinstance(second, dict):
        pairs = [(a, second[name]) for name, a in answers.items() if name in second]
    if any(isinstance(a, Typed) and isinstance(b, Typed) and _otherwise(a, b) for a, b in pairs):
        return [
            "the candidate answered otherwise when it was called again: is there dropout, noise on the "
            "scores, or a state that changes (module.eval())?"
        ]
    return []


def _otherwise(a: Typed, b: Typed) -> bool:
    """Whether two answers are farther apart than sums in another order; both may be infinite in the same places."""
    if a.array.shape != b.array.shape:
        return True
    one, two = a.array.astype(np.float64), b.array.astype(np.float64)
    same, finite = (one == two) | (np.isnan(one) & np.isnan(two)), np.isfinite(one) & np.isfinite(two)
    eps = ARITHMETICS[a.arithmetic].eps
    limit = (1e3 if eps < 1e-6 else 32) * eps * np.abs(one[finite]).max(initial=0)
    return bool((~same & ~finite).any() or (np.abs(one[finite] - two[finite]) > limit).any())


def common(named: Mapping[str, Any]) -> str:
    """The roughest arithmetic of the answers."""
    order = ["float64", "float32", "float16", "bfloat16"]
    found = [value.arithmetic for value in named.values() if isinstance(value, Typed)]
    return max(found, key=order.index, default="float64")
