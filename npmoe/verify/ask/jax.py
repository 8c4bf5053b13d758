"""All there is to ask a function of a pytree and x that is not ours, by JAX's derivatives: `candidate`.

n tokens, d width, o output width. float64 and full products are switched on in a context, so that the user's own
settings stay as they were.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.verify.ask import common
from npmoe.verify.ask.common import Answers
from npmoe.verify.candidate import Typed

__all__ = ["NAME", "arithmetics", "array_of", "candidate", "settings"]

Array = np.ndarray

NAME = "jax"


def arithmetics() -> tuple[str, ...]:
    """The arithmetics in which JAX can be asked."""
    return "float64", "float32", "bfloat16", "float16"


@contextmanager
def settings(jax: Any, arithmetic: str) -> Iterator[None]:
    """float64 only where it is asked for: with it on, a NumPy number would draw float32 along."""
    with jax.enable_x64(arithmetic == "float64"), jax.default_matmul_precision("highest"):
        yield


def array_of(array: Any) -> Array:
    """A JAX array as one of NumPy; float32 holds every number of 16 bits exactly."""
    return np.array(array.astype("float32") if array.dtype.itemsize == 2 else array)


def candidate(
    function: Callable[[Any, Any], Any],
    params: Any,
    converted: Any = None,
    arithmetic: str | None = None,
    *,
    answers: Iterable[str] = common.NAMES,
) -> Callable[..., Answers]:
    """Answers of a function that is not ours: a function of x (n, d) and, for gradients, dy (n, o).

    Parameters
    ----------
    function : ``function(params, x)`` gives y (n, o), or a tuple of which y is the first.
    params : any pytree of arrays; its leaves are named by their path, as "experts.0.W1".
    converted : what `npmoe.verify.from_jax` made of it. Its ``read`` gives gradients by our names; without it the
        parameters' gradients are left out.
    arithmetic : in which all of it is run; unless given each leaf keeps its own, and x comes in that of most of them.
    answers : some of "output", "gradient", "jacobian", "parameters".

    Returns
    -------
    ask : ``ask(x, dy=None)`` gives `npmoe.verify.ask.common.Answers`, each a `npmoe.verify.candidate.Typed`: array and
        the roughest arithmetic on the way to it. They are "output", "jacobian:reverse" and, where the batch is `small`,
        "jacobian:batch"; with dy also "gradient" and the parameters' gradients. In a larger batch one pull gives a row
        of every token's Jacobian, once pulls of halves of the batch have shown that no token feels another; where one
        does, each token is asked alone, and ``remarks`` says so.

    Raises
    ------
    ModuleNotFoundError : where JAX is not installed.
    ValueError, TypeError : for an arithmetic that JAX has not; when asked, if the output is not (n, o), differs between
        two calls, or has more Jacobians than fit.
    """
    import jax

    read, want = common.reader(converted), common.wanted(answers)
    most, kinds = _arithmetics(jax, params)
    chosen = arithmetic or most
    common.known(sys.modules[__name__], chosen)
    wide = "float64" if chosen == "float64" or (arithmetic is None and "float64" in kinds) else chosen

    def ask(x: Array, dy: Array | None = None) -> Answers:
        x = check.finite("x", check.shaped("x", x, ("n", "d"), "a candidate"))
        with settings(jax, wide):
            cast = partial(_cast, jax, chosen, arithmetic is not None and arithmetic != most)
            p = jax.tree_util.tree_map(cast, params)
            known = [chosen, *_arithmetics(jax, p)[1]]
            return _asked(jax, function, p, x, dy, chosen, known, converted, read, want)

    return ask


def _arithmetics(jax: Any, params: Any) -> tuple[str, list[str]]:
    """The arithmetic that most numbers of a pytree are in, and all that occur."""
    counts: dict[str, int] = {}
    for leaf in jax.tree_util.tree_leaves(params):
        name = str(getattr(leaf, "dtype", ""))  # Python's numbers have none, and take that of the others
        if name in arithmetics():
            counts[name] = counts.get(name, 0) + leaf.size
    return max(counts, key=lambda name: counts[name], default="float32"), list(counts)


def _cast(jax: Any, arithmetic: str, every: bool, leaf: Any) -> Any:
    array = jax.numpy.asarray(leaf)
    own = not every and hasattr(leaf, "dtype")
    return array if own or not jax.numpy.issubdtype(array.dtype, jax.numpy.floating) else array.astype(arithmetic)


def _called(function: Callable[[Any, Any], Any], p: Any, x: Any) -> Any:
    """Output (n, o)."""
    y, words = common.first_of(function(p, x), "the candidate")
    if y.ndim != 2 or len(y) != len(x):
        raise ValueError(f"expected an output of shape ({len(x)}, o) of the candidate; got {tuple(y.shape)}{words}")
    return y


def _first(jax: Any, call: Callable[[Any], Any], X: Any, plain: Callable[[Any], Any]) -> Any:
    """Output; a hint where the function wants another shape."""
    try:
        return call(X)
    except Exception as error:
        try:
            deep = common.first_of(plain(X[None]), "the candidate")[0].ndim == 3
        except Exception:
            deep = False
        if deep:
            error.args = (f"{error} (it takes (batch, seq, d): wrap it, lambda p, x: function(p, x[None])[0])",)
        raise


def _asked(
    jax: Any,
    function: Callable[[Any, Any], Any],
    p: Any,
    x: Array,
    dy: Array | None,
    chosen: str,
    known: list[str],
    converted: Any,
    read: Any,
    want: frozenset[str],
) -> Answers:
    call = partial(_called, function, p)
    X = jax.numpy.asarray(x, chosen)
    y = _first(jax, call, X, partial(function, p))
    arithmetic, out = common.roughest([*known, str(y.dtype)]), array_of(y)
    common.same_twice(out, array_of(call(X)), arithmetic)
    found: dict[str, Array] = {}
    remarks: list[str] = []
    notes = list(common.noted(converted))
    words, o = (
        common.first_of(function(p, X), "")[1],
        getattr(getattr(converted, "layer", None), "widths", out.shape)[-1],
    )
    if words and out.shape[1] != o:
        remarks.append(f"of what the candidate returns{words} was taken, of shape {out.shape}")
    try:
        values = lambda rows: array_of(call(jax.numpy.asarray(rows, chosen)))  # noqa: E731
        remarks += common.together(values, x, out, arithmetic)[0]
    except Exception as error:  # a function may want just so many tokens
        notes.append(f"the candidate could not be asked on another batch: {type(error).__name__}: {error}")
    if "jacobian" in want:
        jacobians, says = _jacobians(jax, call, y, X)
        found |= jacobians
        remarks += says if not remarks else ()
    found |= {"output": out} if "output" in want else {}
    if dy is not None and want & {"gradient", "parameters"}:
        # a function may promote what it returns: dy is of y's kind, not of x's
        dY = jax.numpy.asarray(check.shaped("dy", dy, out.shape, f"this output{words}"), y.dtype)
        dp, dx = jax.vjp(partial(_called, function), p, X)[1](dY)
        found |= {"gradient": array_of(dx)} if "gradient" in want else {}
        if read is not None and "parameters" in want:
            found |= common.leaves_of(read(_by_path(jax, dp)))
    return Answers({name: Typed(array, arithmetic) for name, array in found.items()}, remarks, notes)


def _by_path(jax: Any, tree: Any) -> dict[str, Array]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): array_of(g)
        for path, g in paths
        if g.dtype != jax.dtypes.float0  # that of whole numbers: there is none
    }


def _jacobians(jax: Any, call: Callable[[Any], Any], y: Any, X: Any) -> tuple[dict[str, Array], tuple[str, ...]]:
    (n, o), d = y.shape, X.shape[1]
    common.fits(n, o, d)
    if common.small(n, o, d):
        J = array_of(jax.jacrev(call)(X))  # (n, o, n, d)
        return {"jacobian:reverse": common.own_rows(J), "jacobian:batch": J}, ()
    back = jax.vjp(call, X)[1]
    compiled = jax.jit(lambda back, dy: back(dy)[0])  # the pull is linear: Python that follows the data is behind it

    def pull(dy: Array) -> Array:
        return array_of(compiled(back, jax.numpy.asarray(dy, y.dtype)))

    def alone(i: int) -> Array:
        return array_of(jax.jacrev(call)(X[i : i + 1])[0, :, 0])  # (o, d)

    J, says = common.columns(pull, alone, (n, o), d)
    return {"jacobian:reverse": J}, says
