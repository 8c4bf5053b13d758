"""Places: a string that says where in somebody else's tensors one of our weights stands.

    place  =  tensor name, then at most one index in brackets, then at most one ".T"
    index  =  items between commas: `e` (this expert), an integer, a slice of integers, `:half` or `half:`

A tensor name may hold ``{e}``, the number of the expert. Nothing of a place is ever evaluated as Python.

d width, h hidden, E experts, N length of an axis of their tensor, m length of the same axis of our leaf.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

__all__ = ["HALVES", "Place", "Want", "parse", "shape_of"]

Array = np.ndarray
Item = int | slice | str  # an integer, a slice, or one of "e", ":half", "half:"

HALVES = (":half", "half:")

_PLACE = re.compile(r"(?P<name>[^\[\]\s]+?)(?:\[(?P<index>[^\[\]]*)\])?(?P<T>\.T)?")
_SLICE = re.compile(r"(-?\d+)?\s*:\s*(-?\d+)?(?:\s*:\s*(-?\d+)?)?")
_GRAMMAR = (
    'expected a place such as "gate.weight", "experts.{e}.w1.weight", "w_in[e].T", "gate_up[e, :half]" or '
    '"gate_up[e, :, 0::2].T"'
)


@dataclass(frozen=True)
class Place:
    """A parsed place: the tensor's name, the items of the index, and whether the result is transposed.

    Examples
    --------
    >>> place = parse("experts.gate_up_proj[e, :, 0::2].T")
    >>> place.name, place.transposed, place.shape((8, 64, 10))
    ('experts.gate_up_proj', True, (5, 64))
    """

    text: str
    name: str
    items: tuple[Item, ...] = field(default=(), compare=False)  # the text says it all, and slices have no hash
    transposed: bool = False

    @property
    def of_experts(self) -> bool:
        """Whether it stands elsewhere for every expert."""
        return "{e}" in self.name or "e" in self.items

    def turned(self) -> "Place":
        """The same place transposed once more.

        Examples
        --------
        >>> parse("w_in[e]").turned().text, parse("w_in[e].T").turned().text
        ('w_in[e].T', 'w_in[e]')
        """
        return parse(self.text.removesuffix(".T") if self.transposed else f"{self.text}.T")

    def tensor(self, e: int | None = None) -> str:
        """The name of the tensor, that of expert e where it depends on it."""
        return self.name if e is None else self.name.replace("{e}", str(e))

    def at(self, e: int | None = None) -> str:
        """The place as text, that of expert e where it depends on it."""
        if e is None:
            return self.text
        index = "[" + ", ".join(str(e) if item == "e" else _text(item) for item in self.items) + "]"
        return self.tensor(e) + (index if self.items else "") + (".T" if self.transposed else "")

    def key(self, shape: tuple[int, ...], e: int | None = None) -> tuple[int | slice, ...]:
        """The index itself for a tensor of this shape.

        Raises
        ------
        ValueError : for more items than axes, an item outside its axis, or half of an odd length.
        """
        of = f"tensor {self.tensor(e)!r} of shape {shape}"
        if len(self.items) > len(shape):
            raise ValueError(f"expected at most {len(shape)} items in the index of {self.text!r}, of {of}")
        return tuple(
            _resolved(item, N, e, f"axis {a} of {of}")
            for a, (item, N) in enumerate(zip(self.items, shape, strict=False))
        )

    def shape(self, shape: tuple[int, ...], e: int | None = 0) -> tuple[int, ...]:
        """The shape of what stands at this place of a tensor of this shape."""
        key = self.key(shape, e)
        taken = tuple(len(range(N)[k]) for k, N in zip(key, shape, strict=False) if isinstance(k, slice))
        taken += shape[len(key) :]
        if not self.transposed:
            return taken
        if len(taken) != 2:
            raise ValueError(
                f"expected two axes before the .T of {self.text!r}; got shape {taken} out of tensor "
                f"{self.tensor(e)!r} of shape {shape}"
            )
        return taken[::-1]

    def view(self, array: Array, e: int | None = None) -> Array:
        """What stands at this place, as a view of the tensor."""
        part = array[self.key(array.shape, e)]
        return part.T if self.transposed else part


def _text(item: Item) -> str:
    if not isinstance(item, slice):
        return str(item)
    start, stop, step = ("" if number is None else str(number) for number in (item.start, item.stop, item.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")


def _resolved(item: Item, N: int, e: int | None, axis: str) -> int | slice:
    """An item for an axis of length N; unlike NumPy's, a slice that reaches beyond the axis is an error."""
    if item in HALVES:
        if N % 2:
            raise ValueError(f"expected an even length to take half of {axis}; got {N}")
        return slice(0, N // 2) if item == ":half" else slice(N // 2, N)
    if isinstance(item, slice):
        if not all(-N <= end <= N for end in (item.start, item.stop) if end is not None):
            raise ValueError(f"expected a slice within 0..{N}, {axis}; got {_text(item)}")
        return item
    number = e if item == "e" else item
    if not isinstance(number, int):
        raise ValueError(f"expected the number of an expert for the e along {axis}; got none")
    if not -N <= number < N:
        raise ValueError(f"expected an index within 0..{N - 1}, {axis}; got {number}")
    return number


def parse(text: str) -> Place:
    """A place from its text.

    Raises
    ------
    TypeError, ValueError : if it is not a string, or not a place.

    Examples
    --------
    >>> parse("w_in[e].T")
    Place(text='w_in[e].T', name='w_in', items=('e',), transposed=True)
    >>> parse("w_in[f(0)]")
    Traceback (most recent call last):
    ValueError: expected in 'w_in[f(0)]' an index of e, integers, slices of integers, :half or half:; got 'f(0)'
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a place as a string; got {type(text).__name__}")
    found = _PLACE.fullmatch(text.strip())
    if found is None or set(found["name"].replace("{e}", "")) & set("{}"):
        raise ValueError(f"{_GRAMMAR}; got {text!r}")
    items = () if found["index"] is None else tuple(_item(part.strip(), text) for part in found["index"].split(","))
    if items.count("e") > 1:
        raise ValueError(f"expected e at most once in the index of a place; got {text!r}")
    return Place(text.strip(), found["name"], items, found["T"] is not None)


def _item(part: str, text: str) -> Item:
    squeezed = re.sub(r"\s*:\s*", ":", part)
    if part == "e" or squeezed in HALVES:
        return squeezed
    if re.fullmatch(r"-?\d+", part):
        return int(part)
    if (found := _SLICE.fullmatch(part)) and found[3] not in ("0", "-0"):
        return slice(*(None if number is None else int(number) for number in found.groups()))
    raise ValueError(f"expected in {text!r} an index of e, integers, slices of integers, :half or half:; got {part!r}")


# Back: the shape of a tensor from what is to stand at its places


class Want(NamedTuple):
    """A leaf of this shape is to stand at this place of expert e."""

    place: Place
    shape: tuple[int, ...]
    e: int | None


def shape_of(name: str, wants: Iterable[Want], E: int) -> tuple[int, ...]:
    """The smallest shape of a tensor in which all that is wanted has its place.

    Raises
    ------
    ValueError : if there is none.

    Examples
    --------
    >>> gate, up = parse("w[e, 0::2]"), parse("w[e, 1::2]")
    >>> shape_of("w", [Want(gate, (5, 3), 0), Want(up, (5, 3), 0)], E=4)
    (4, 10, 3)
    """
    axes = {_axes(want.place, want.shape) for want in wants}  # experts that want the same count once
    counts = {len(wanted) for wanted in axes}
    if len(counts) > 1:
        raise ValueError(f"expected one number of axes of tensor {name!r} from all its places; got {sorted(counts)}")
    return tuple(
        _length(f"axis {a} of tensor {name!r}", set(along), E) for a, along in enumerate(zip(*axes, strict=True))
    )


def _axes(place: Place, shape: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """For each axis of the tensor the item along it, as text, and the length m that is to come out (0 of an index)."""
    if place.transposed and len(shape) != 2:
        raise ValueError(f"expected a leaf with two axes for the .T of {place.text!r}; got shape {shape}")
    lengths = list(shape[::-1] if place.transposed else shape)
    wanted: list[tuple[str, int]] = []
    for item in place.items:
        through = isinstance(item, slice) or item in HALVES
        if through and not lengths:
            raise ValueError(f"expected no more slices in {place.text!r} than the {len(shape)} axes of its leaf")
        wanted.append((_text(item), lengths.pop(0) if through else 0))
    return tuple(wanted + [(":", m) for m in lengths])


def _length(axis: str, along: set[tuple[str, int]], E: int) -> int:
    """The smallest length of an axis with which every item along it has its length m."""
    items = [(_item(text, text), m) for text, m in along]
    exact = {E if item == "e" else 2 * m if item in HALVES else m for item, m in items if _is_exact(item)}
    reach = 2 + max(
        m * abs(item.step or 1) + _ends(item) if isinstance(item, slice) else _ends(item) for item, m in items
    )
    for N in sorted(exact) if exact else range(reach):
        if all(_gives(item, N, E) == m for item, m in items):
            return N
    raise ValueError(
        f"expected a length of {axis} that fits all of {', '.join(sorted(t for t, _ in along))}; there is none"
    )


def _is_exact(item: Item) -> bool:
    return item == "e" or item in HALVES or item == slice(None)


def _ends(item: Item) -> int:
    numbers = (item.start, item.stop) if isinstance(item, slice) else (item,)
    return sum(abs(number) for number in numbers if isinstance(number, int))


def _gives(item: Item, N: int, E: int) -> int | None:
    """The length that an item takes of an axis of length N, 0 of an index; None if it does not fit."""
    try:
        key = _resolved(item, N, E - 1 if item == "e" else None, "")
    except ValueError:
        return None
    return len(range(N)[key]) if isinstance(key, slice) else 0
