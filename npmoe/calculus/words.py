"""What stands for an object at the prompt: one line that says what it is and how large, and never prints an array."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any

import numpy as np

__all__ = ["counted", "cut", "dtype_of", "experts", "kind", "never_raises", "one_line", "short", "sizes"]

MOST = 110  # characters of a line


def never_raises(words: Callable[[Any], str]) -> Callable[[Any], str]:
    """A ``__repr__`` that also stands for an object which is half made, or holds something else than it should."""

    @wraps(words)
    def said(self: Any) -> str:
        try:
            return words(self)
        except Exception:
            return f"{type(self).__name__}(...)"

    return said


@never_raises
def one_line(thing: Any) -> str:
    """A named tuple or dataclass in a line: its fields by name, arrays by shape and dtype.

    Examples
    --------
    >>> from typing import NamedTuple
    >>> class Found(NamedTuple):
    ...     values: np.ndarray
    ...     steps: int
    >>> one_line(Found(np.zeros((512, 64)), 3))
    'Found(values (512, 64) float64, steps 3)'
    """
    names = getattr(thing, "_fields", None) or tuple(f.name for f in fields(thing) if f.repr)
    parts = [f"{name} {short(getattr(thing, name))}" for name in names]
    return cut(f"{type(thing).__name__}({', '.join(parts)}", ")")


def short(value: Any) -> str:
    """A value in a few words.

    Examples
    --------
    >>> short(np.zeros((2, 3))), short((1, 2)), short({"a": 1}), short(0.123456), short("some words")
    ('(2, 3) float64', '2 x int', '1 x str', '0.1235', "'some words'")
    """
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.shape} {value.dtype}"
    if value is None or isinstance(value, bool | int | np.bool_ | np.integer):
        return str(value)
    if isinstance(value, float | np.floating) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
        return f"{float(value):.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:37]}...")
    if isinstance(value, Mapping | list | set | frozenset) or (
        isinstance(value, tuple) and not hasattr(value, "_fields")
    ):
        return counted([type(item).__name__ for item in value]) or "none"
    return type(value).__name__


def counted(names: Sequence[str]) -> str:
    """Equal names together, in the order in which they first come.

    Examples
    --------
    >>> counted(["GeluExpert", "GeluExpert", "SwigluExpert"])
    '2 x GeluExpert, 1 x SwigluExpert'
    """
    return ", ".join(f"{list(names).count(name)} x {name}" for name in dict.fromkeys(names))


def dtype_of(arrays: Sequence[Any]) -> str:
    """The dtype that all arrays have, or "mixed dtypes"."""
    found = {str(getattr(array, "dtype", type(array).__name__)) for array in arrays}
    return found.pop() if len(found) == 1 else "mixed dtypes"


def sizes(layer: Any) -> str:
    """The widths of a layer, such as 64-128-64; of one that is half made there may be none."""
    return "-".join(map(str, getattr(layer, "widths", ("?",))))


def kind(layer: Any) -> str:
    """Class and widths of a layer, such as "GeluExpert 64-128-64"."""
    return f"{type(layer).__name__} {sizes(layer)}"


def experts(found: Any, E: int) -> str:
    """What E experts are; of a lazy sequence none is fetched to be told."""
    if found is None:
        return f"{E} experts that were not recorded"
    return counted([kind(f) for f in found]) if isinstance(found, tuple | list) else f"{E} experts, lazy"


def cut(text: str, end: str) -> str:
    """A line of `MOST` characters at most, whatever is left out."""
    return text + end if len(text) + len(end) <= MOST else f"{text[: MOST - 3 - len(end)]}...{end}"
