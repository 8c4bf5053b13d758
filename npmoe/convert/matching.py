"""A layout laid over a model's tensors: its parsed places, and the rows they make, one for each leaf.

n tokens, d width, h hidden, o output width, E experts, N length of an axis of their tensor, m of ours.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import combinations
from typing import Any, NamedTuple

from npmoe.convert.known import BIASES, EXPERT, LEAVES, Layout
from npmoe.convert.places import Place, parse
from npmoe.convert.tensors import FLOATS, dtype_name

__all__ = [
    "Parsed",
    "Row",
    "found_names",
    "missing",
    "names_read",
    "parsed_layout",
    "rows_of",
    "shapes_fit",
    "turned_to_fit",
]


class Parsed(NamedTuple):
    """Places of our leaves; `{e}` stands for each expert in the leaves of a mixture."""

    kind: str
    moe: bool
    places: dict[str, Place]
    optional: frozenset[str]

    @property
    def templates(self) -> dict[str, tuple[str, ...]]:
        """All leaves that such a layer has, mapped or not, in the order of `named_leaves`."""
        inner = {(EXPERT if self.moe else "") + leaf: axes for leaf, axes in LEAVES[self.kind].items()}
        return {"router": ("E", "d"), **inner, "bias": ("E",)} if self.moe else inner


def parsed_layout(layout: Layout) -> Parsed:
    """The layout's places, after checks that its leaves make one layer of ours."""
    if not isinstance(layout, Mapping):
        raise TypeError(
            f"expected a layout as a name among LAYOUTS or a mapping of leaves to places; got {type(layout).__name__}"
        )
    if strange := [key for key in layout if not isinstance(key, str)]:
        raise TypeError(f"expected names of leaves as keys of a layout; got {strange[0]!r}")
    optional = frozenset(key[:-1] for key in layout if key.endswith("?"))
    places = {key.removesuffix("?"): parse(place) for key, place in layout.items()}
    if len(places) < len(layout):
        raise ValueError(f"expected each leaf once in a layout; got {', '.join(layout)}")
    moe = any(leaf.startswith(EXPERT) or leaf in ("router", "bias") for leaf in places)
    kind = "swiglu" if any(leaf.removeprefix(EXPERT) in LEAVES["swiglu"] for leaf in places) else "gelu"
    found = Parsed(kind, moe, places, optional)
    if strange := [leaf for leaf in places if leaf not in found.templates]:
        raise ValueError(f"expected leaves among {', '.join(found.templates)}; got {strange[0]!r}")
    for leaf in found.templates:
        may_lack = leaf.removeprefix(EXPERT) in BIASES
        if leaf not in places and not may_lack:
            raise ValueError(f"expected a place for {leaf} in the layout; got places for {', '.join(places) or 'none'}")
        if leaf in optional and not may_lack:
            raise ValueError(f"expected only biases to be optional; got '{leaf}?'")
        if leaf in places and places[leaf].of_experts and not leaf.startswith(EXPERT):
            raise ValueError(f"expected a place without e for {leaf}, which is of no expert; got {places[leaf].text!r}")
    return found


class Row(NamedTuple):
    """One of our leaves, its shape, and where it stands: expert e's place in a tensor of this name and shape."""

    leaf: str
    shape: tuple[int, ...]
    place: Place
    e: int | None
    tensor: str
    tensor_shape: tuple[int, ...]


class _Sizes(dict[str, tuple[int, str]]):
    """Letter -> its value and the leaf that set it; what a later leaf has must agree."""

    def hold(self, row: Row, axes: tuple[str, ...]) -> None:
        """Check the shape of a row's leaf; h is each expert's own."""
        letters = [f"h of expert {row.e}" if letter == "h" and row.e is not None else letter for letter in axes]
        known = [self[letter][0] if letter in self else letter for letter in letters]
        if len(row.shape) != len(axes) or any(
            isinstance(m, int) and m != N for m, N in zip(known, row.shape, strict=True)
        ):
            want = ", ".join(str(axis if isinstance(m, str) else m) for m, axis in zip(known, axes, strict=True))
            because = [
                f"{axis} = {self[x][0]} of {self[x][1]}" for x, axis in zip(letters, axes, strict=True) if x in self
            ]
            raise ValueError(
                f"expected {row.leaf} of shape ({want}{',' if len(axes) == 1 else ''})"
                f"{', ' + ' and '.join(because) if because else ''}; got {row.shape} from {row.place.at(row.e)!r} "
                f"of tensor {row.tensor!r} of shape {row.tensor_shape}"
            )
        for letter, N in zip(letters, row.shape, strict=True):
            self.setdefault(letter, (N, row.leaf))


def rows_of(parsed: Parsed, tensors: Mapping[str, Any]) -> tuple[Row, ...]:
    """Where every leaf stands, in the order of `named_leaves`, all shapes checked; no element is read."""
    try:
        return _rows(parsed, tensors)
    except ValueError as fault:
        if not missing(parsed, tensors) and (helps := turned_to_fit(parsed, tensors)):
            raise ValueError(f"{fault}; perhaps {' or '.join(_change(parsed, other) for other in helps)}") from None
        raise


def turned_to_fit(parsed: Parsed, tensors: Mapping[str, Any]) -> list[Parsed]:
    """The layout with the fewest places turned so that all shapes fit, in each way that there is."""
    matrices = [leaf for leaf, axes in parsed.templates.items() if len(axes) == 2]
    for count in range(1, len(matrices) + 1):
        found = []
        for which in combinations(matrices, count):
            other = parsed._replace(places=parsed.places | {leaf: parsed.places[leaf].turned() for leaf in which})
            try:
                _rows(other, tensors)
            except (ValueError, TypeError):
                continue
            found.append(other)
        if found:
            return found
    return []


def _change(old: Parsed, new: Parsed) -> str:
    """Which places are to be turned, in words."""
    changed = [leaf for leaf in old.places if old.places[leaf] != new.places[leaf]]
    if len(changed) == 1 and old.places[changed[0]].transposed:
        leaf = changed[0]
        return f"{old.places[leaf].text!r} is turned: with {new.places[leaf].text!r} for {leaf} all shapes fit"
    return f"{' and '.join(f'{new.places[x].text!r} for {x}' for x in changed)} was meant: with that all shapes fit"


def _rows(parsed: Parsed, tensors: Mapping[str, Any]) -> tuple[Row, ...]:
    """`rows_of` with no advice in its errors."""
    sizes = _Sizes()

    def row(template: str, e: int | None) -> Row:
        place = parsed.places[template]
        name = place.tensor(e)
        if name not in tensors:
            raise ValueError(f"expected a tensor {name!r} for {template}; {_near(name, tensors)}")
        shape = tuple(map(int, tensors[name].shape))
        if dtype_name(tensors[name]) not in FLOATS:
            raise TypeError(
                f"expected tensor {name!r} to be of 16, 32 or 64 bit floats; got {dtype_name(tensors[name])}"
            )
        if "e" in place.items and shape[place.items.index("e") :][:1] != (E,):
            raise ValueError(
                f"expected {E} experts along axis {place.items.index('e')} of tensor {name!r}, as many as the router "
                f"has rows; got shape {shape}"
            )
        found = Row(template.replace("{e}", str(e)), place.shape(shape, e), place, e, name, shape)
        sizes.hold(found, parsed.templates[template])
        return found

    def present(template: str) -> bool:
        place = parsed.places.get(template)
        return place is not None and (template not in parsed.optional or any(found_names(place, tensors)))

    if not parsed.moe:
        return tuple(row(leaf, None) for leaf in parsed.templates if present(leaf))
    router = row("router", None)
    E = router.shape[0]
    inner = [template for template in parsed.templates if template.startswith(EXPERT) and present(template)]
    experts = tuple(row(template, e) for e in range(E) for template in inner)
    for template in inner:
        if "{e}" in parsed.places[template].name and (more := parsed.places[template].tensor(E)) in tensors:
            raise ValueError(f"expected {E} experts, as many as the router has rows; got another, tensor {more!r}")
    return (router, *experts, *([row("bias", None)] if present("bias") else []))


def found_names(place: Place, tensors: Mapping[str, Any]) -> Iterator[str]:
    """Names of all tensors that a place may stand in, for whatever experts."""
    if "{e}" not in place.name:
        yield from (place.name,) if place.name in tensors else ()
        return
    pattern = re.compile(re.escape(place.name).replace(re.escape("{e}"), r"\d+"))
    start = place.name.split("{e}")[0]
    yield from (name for name in tensors if name.startswith(start) and pattern.fullmatch(name))


def _near(name: str, tensors: Mapping[str, Any]) -> str:
    near = get_close_matches(name, tensors, n=3, cutoff=0.5)
    if near:
        return f"got none of that name; near: {', '.join(map(repr, near))}"
    return f"got none of that name among {', '.join(map(repr, list(tensors)[:8]))}{', ...' if len(tensors) > 8 else ''}"


def missing(parsed: Parsed, tensors: Mapping[str, Any]) -> list[str]:
    """Names of places that a layout requires and no tensor has."""
    required = (place for leaf, place in parsed.places.items() if leaf not in parsed.optional)
    return sorted({place.name for place in required if not any(found_names(place, tensors))})


def names_read(parsed: Parsed, tensors: Mapping[str, Any]) -> int:
    """How many tensors a layout names, required or not."""
    return len({name for place in parsed.places.values() for name in found_names(place, tensors)})


def shapes_fit(parsed: Parsed, tensors: Mapping[str, Any]) -> bool:
    """Whether every leaf of a layout is there, of a shape that goes with the others."""
    try:
        return bool(_rows(parsed, tensors))
    except (ValueError, TypeError):
        return False
