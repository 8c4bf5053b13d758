"""Advice where no layout fits, or several do: what each lacks, a prefix that would help, a mapping to start from.

d width, h hidden, o output width, E experts.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import permutations, product
from typing import Any

from npmoe.convert.known import LEAVES, of_each_expert
from npmoe.convert.matching import Parsed, found_names, missing, names_read, parsed_layout, shapes_fit, turned_to_fit
from npmoe.convert.tensors import dtype_name

__all__ = ["advice", "listed"]


def listed(tensors: Mapping[str, Any], most: int = 40) -> str:
    """The first tensors of a model: name, shape and dtype."""
    lines = [f"  {name}  {tuple(t.shape)}  {dtype_name(t)}" for name, t in list(tensors.items())[:most]]
    more = [f"  ... and {len(tensors) - most} more"] if len(tensors) > most else []
    return "\n".join([f"The {len(tensors)} tensors:", *lines, *more])


def advice(
    members: dict[str, Parsed], tensors: Mapping[str, Any], faults: dict[str, str], fits: list[str], mixture: bool
) -> str:
    """What each near layout lacks or, of several that fit, what differs; a prefix that would help, and a mapping."""
    if fits:
        said = ["Name the layout, or give a mapping; the shapes fit all of these, which differ in:"]
        return "\n".join([*said, *_differences(members, fits), *_shown(members[fits[0]], tensors, f"of {fits[0]!r}")])
    allowed = [name for name, parsed in members.items() if parsed.moe or not mixture] or list(members)
    near = sorted(allowed, key=lambda name: (-names_read(members[name], tensors), len(missing(members[name], tensors))))
    order = [name for name in faults if name in allowed]
    order += [name for name in near if name not in order][: max(0, 3 - len(order))]
    lines = ["Near layouts:"]
    for name in order:
        lacks = ", ".join(map(repr, missing(members[name], tensors)))
        lines.append(f"  {name}: {faults.get(name, f'lacks {lacks}')}")
    start, of = members[order[0]], f"of {order[0]!r}"
    if helps := _prefix({name: members[name] for name in allowed}, tensors):
        prefix, member = helps
        lines.append(f"With prefix={prefix!r} the names are those of {member!r}.")
        start, of = members[member], f"of {member!r}"
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if not missing(start, tensors):
        if turned := turned_to_fit(start, tensors):
            start, of = turned[0], f"{of}, turned so that the shapes fit"
    elif guesses := _guesses(tensors, mixture):
        start = guesses[0]
        of = f"by the shapes alone{f', one of {len(guesses)} that fit' if len(guesses) > 1 else ''}: see which is which"
    return "\n".join([*lines, *_shown(start, tensors, of)])


def _shown(parsed: Parsed, tensors: Mapping[str, Any], of: str) -> list[str]:
    """A mapping as lines that are Python."""
    lines = [f"A mapping to start from, {'that ' * of.startswith('of')}{of} (write your own tensors' names into it):"]
    lines.append("layout = {")
    for leaf, place in parsed.places.items():
        key = f"{leaf}?" if leaf in parsed.optional else leaf
        lines.append(f'    "{key}": "{place.text}",' + ("" if any(found_names(place, tensors)) else "  # not found"))
    return [*lines, "}"]


def _differences(members: dict[str, Parsed], fits: list[str]) -> list[str]:
    """Of each layout the places that are not those of all."""
    leaves = list(dict.fromkeys(leaf for name in fits for leaf in members[name].places))
    texts = {name: [getattr(members[name].places.get(leaf), "text", "none") for leaf in leaves] for name in fits}
    differ = [i for i in range(len(leaves)) if len({row[i] for row in texts.values()}) > 1]
    return [f"  {name}: {', '.join(f'{leaves[i]} = {texts[name][i]}' for i in differ)}" for name in fits]


# A guess by shapes, to be shown and never to be used


def _guesses(tensors: Mapping[str, Any], mixture: bool) -> list[Parsed]:
    """Layouts that the shapes of a few tensors allow, the likeliest first: most biases, all weights turned alike, and
    then the order of the tensors."""
    shapes = {name: tuple(map(int, tensor.shape)) for name, tensor in tensors.items()}
    found: dict[tuple[int, ...], Parsed] = {}
    whole = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    for E in sorted({length for shape in whole.values() for length in shape}):
        stacks = _stacks(shapes, E)
        if sum(len(shape) == 2 for shape in stacks.values()) not in (2, 3):  # nothing of an expert, or a whole model
            continue
        for router, turn in product(whole, (False, True)):
            rows, d = whole[router][::-1] if turn else whole[router]
            if rows == E:
                rest = {place: shape for place, shape in stacks.items() if place.split("[")[0] != router}
                biases = [name for name, shape in shapes.items() if shape == (E,)]
                outer = {"router": router + ".T" * turn} | dict(zip(["bias"], biases, strict=False))
                for rank, inner in _arranged(rest, d):
                    layout = outer | of_each_expert(inner, "")
                    found.setdefault((-len(layout), *rank, len(found)), parsed_layout(layout))
    if not found and not mixture:
        dense = {name: shape for name, shape in shapes.items() if len(shape) in (1, 2)}
        for d in sorted({length for shape in whole.values() for length in shape}):
            for rank, inner in _arranged(dense, d):
                found.setdefault((-len(inner), *rank, len(found)), parsed_layout(inner))
    best = [found[rank] for rank in sorted(found) if rank[:2] == min(found)[:2]]
    return [parsed for parsed in best if shapes_fit(parsed, tensors)]


def _stacks(shapes: Mapping[str, tuple[int, ...]], E: int) -> dict[str, tuple[int, ...]]:
    """Places of what there is once for each of E experts, a vector or a matrix, and its shape."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if len(shape) == 3 and shape[:2] == (E, 1):
            found[f"{name}[e, 0]"] = shape[2:]
        elif len(shape) in (2, 3) and shape[0] == E:
            found[f"{name}[e]"] = shape[1:]
        for number in re.finditer(r"\d+", name):
            before, after = name[: number.start()], name[number.end() :]
            if number[0] != "0" or f"{before}{E}{after}" in shapes:
                continue
            if all(shapes.get(f"{before}{e}{after}") == shape for e in range(E)):
                found[f"{before}{{e}}{after}"] = shape
    return found


def _arranged(places: Mapping[str, tuple[int, ...]], d: int) -> Iterator[tuple[tuple[int, int], dict[str, str]]]:
    """Two or three matrices and some biases as experts of width d, each with a rank; the least is likeliest."""
    matrices = [place for place, shape in places.items() if len(shape) == 2]
    kind = {2: "gelu", 3: "swiglu"}.get(len(matrices))
    if kind is None:
        return
    names = [leaf for leaf, axes in LEAVES[kind].items() if len(axes) == 2]
    for rank, order in enumerate(permutations(matrices)):
        for turns in product((False, True), repeat=len(order)):
            shapes = [places[place][::-1] if turn else places[place] for place, turn in zip(order, turns, strict=True)]
            (h, width), (o, last) = shapes[0], shapes[-1]
            if width != d or last != h or any(shape != (h, d) for shape in shapes[:-1]):
                continue
            inner = {leaf: place + ".T" * turn for leaf, place, turn in zip(names, order, turns, strict=True)}
            left = [place for place, shape in places.items() if len(shape) == 1]
            for leaf, length in (("b1", h), ("b2", o)) if kind == "gelu" else ():
                if fit := [place for place in left if places[place] == (length,)]:
                    inner[leaf] = fit[0]
                    left.remove(fit[0])
            yield (len(set(turns)), rank), {leaf: inner[leaf] for leaf in LEAVES[kind] if leaf in inner}


def _prefix(members: dict[str, Parsed], tensors: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first prefix under which the names are those of a layout, and which."""
    before: dict[str, dict[str, None]] = {}  # what a name ends with -> what stands before it
    for name in tensors:
        for known in (name, *(f"{name[: n.start()]}{{e}}{name[n.end() :]}" for n in re.finditer(r"\d+", name))):
            for dot in re.finditer(r"\.", known):
                before.setdefault(known[dot.end() :], {})[known[: dot.end()]] = None
    required = {
        name: [place.name for leaf, place in parsed.places.items() if leaf not in parsed.optional]
        for name, parsed in members.items()
    }
    for prefix in dict.fromkeys(name[: dot.end()] for name in tensors for dot in re.finditer(r"\.", name)):
        have = [name for name, ends in required.items() if all(prefix in before.get(end, ()) for end in ends)]
        if have:
            below = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            return prefix, max(have, key=lambda name: names_read(members[name], below))
    return None
