"""For other people's test suites: assert that a layer of theirs has the derivatives of the closed form."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npmoe.verify.compare import Report, compare, compare_answers

__all__ = ["assert_jacobian_close"]


def assert_jacobian_close(
    candidate: Callable[..., Any] | Mapping[str, Any] | np.ndarray,
    layer: Any,
    x: np.ndarray,
    *,
    dy: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    what: str | None = None,
    arithmetic: str | None = None,
    step: float = 0.0,
    name: str = "layer",
    strict: bool = True,
) -> Report:
    """Assert that a candidate answers what `layer` does at x, as near as rounding allows; returns the `Report`.

    Parameters
    ----------
    candidate : a callable, or its answer: the Jacobians (n, o, d) or (n, o, n, d), the output (n, o), with dy the
        gradient (n, d), or a dict of several (see `npmoe.verify.compare`).
    layer : a layer of npmoe with the same weights.
    x : array (n, d).
    dy : array (n, o), the cotangent of gradients.
    weights : array (n,), of the mean Jacobian.
    what, arithmetic, step, name : as in `npmoe.verify.compare`.
    strict : whether "doubtful" fails: farther off than rounding usually is (a chance of 1e-6 for the whole comparison,
        where errors are independent), but not than it might be at worst.

    Raises
    ------
    AssertionError : with the report as its message: worst rows, routing margins, and what the difference looks like.
    ValueError, TypeError : for arguments that do not fit the layer, and `what` beside a dict, which has its own names.

    Notes
    -----
    Tokens on a routing tie pass where the candidate agrees with one of the choices that tie, and where no choice can be
    told apart they are left out; a comparison of which nothing is left fails.

    Examples
    --------
    >>> import npmoe
    >>> f = npmoe.init.dense(np.random.default_rng(0), d=3, h=5)
    >>> x = np.random.default_rng(1).standard_normal((4, 3))
    >>> assert_jacobian_close(f.jacobian, f, x).verdict
    'agrees'
    >>> assert_jacobian_close(lambda x: 1.001 * f.jacobian(x), f, x)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: layer: differs
    ...
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    options: dict[str, Any] = {"dy": dy, "weights": weights, "arithmetic": arithmetic, "step": step, "name": name}
    if callable(candidate):
        report = compare(layer, candidate, x, what=what, **options)
    elif isinstance(candidate, Mapping):
        if what is not None:
            raise ValueError(f"expected `what` for an answer without a name; got {what!r} beside a dict of answers")
        report = compare_answers(layer, candidate, x, **options)
    else:
        report = compare(layer, lambda *_: candidate, x, what=what, **options)
    decided = any((part.status != "undecided").any() for part in report.parts)
    fine = {"agrees", "undecided"} | (set() if strict else {"doubtful"})
    if report.verdict not in fine or not decided or report.problems:
        raise AssertionError(str(report))
    return report
