"""Which tensors of a model a layout names: its parsed places, the rows they make, and the layout that fits.

n tokens, d width, h hidden, o output width, E experts, N length of an axis of their tensor, m of ours.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import combinations, permutations, product
from types import MappingProxyType
from typing import Any, NamedTuple

from npmoe.convert.places import Place, parse
from npmoe.convert.tensors import FLOATS, dtype_name

__all__ = [
    "LAYOUTS",
    "LEAVES",
    "Parsed",
    "Row",
    "chosen",
    "family",
    "found_names",
    "missing",
    "parsed_layout",
    "rows_of",
]

Layout = Mapping[str, str]

#: Leaves of each kind of expert with the alphabet's letters for their axes, in the order of the classes' own fields.
LEAVES: dict[str, dict[str, tuple[str, ...]]] = {
    "gelu": {"W1": ("h", "d"), "b1": ("h",), "W2": ("o", "h"), "b2": ("o",)},
    "swiglu": {"Wg": ("h", "d"), "Wu": ("h", "d"), "Wd": ("o", "h")},
}
_EXPERT = "experts.{e}."
_BIASES = ("b1", "b2", "bias")


# The layouts by name


def _gelu(first: str, second: str, weight: str = "weight", bias: str = "bias", turn: str = "") -> dict[str, str]:
    places = {"W1": f"{first}.{weight}{turn}", "b1?": f"{first}.{bias}"}
    return places | {"W2": f"{second}.{weight}{turn}", "b2?": f"{second}.{bias}"}


def _swiglu(gate: str, up: str, down: str, leaf: str = ".weight") -> dict[str, str]:
    return {"Wg": f"{gate}{leaf}", "Wu": f"{up}{leaf}", "Wd": f"{down}{leaf}"}


def _experts(places: Layout, under: str = "experts.{e}.") -> dict[str, str]:
    return {_EXPERT + leaf: under + place for leaf, place in places.items()}


def _router(name: str, weight: str = ".weight", bias: str = ".bias") -> dict[str, str]:
    return {"router": name + weight, "bias?": name + bias}


def _fused(router: str, gate_up: str = "experts.gate_up_proj", down: str = "experts.down_proj") -> dict[str, str]:
    """Gate above up in one tensor (E, 2h, d), down (E, d, h)."""
    places = {"Wg": f"{gate_up}[e, :half]", "Wu": f"{gate_up}[e, half:]", "Wd": f"{down}[e]"}
    return _router(router) | _experts(places, "")


def _table() -> dict[str, dict[str, str]]:
    own_gelu = {f"{leaf}?" if leaf in _BIASES else leaf: leaf for leaf in LEAVES["gelu"]}
    own_swiglu = {leaf: leaf for leaf in LEAVES["swiglu"]}
    own_router = {"router": "router", "bias?": "bias"}
    table = {
        "npmoe/gelu": own_router | _experts(own_gelu),
        "npmoe/swiglu": own_router | _experts(own_swiglu),
        "npmoe/dense-gelu": own_gelu,
        "npmoe/dense-swiglu": own_swiglu,
    }
    # A list of modules, each of Linear layers
    for pair in (("fc1", "fc2"), ("w1", "w2"), ("0", "2"), ("net.0", "net.2"), ("up_proj", "down_proj")):
        for router in ("router", "gate"):
            table[f"linear/{'-'.join(pair)}/{router}"] = _router(router) | _experts(_gelu(*pair))
        table[f"linear/{'-'.join(pair)}/dense"] = _gelu(*pair)
    mixtral, qwen = _swiglu("w1", "w3", "w2"), _swiglu("gate_proj", "up_proj", "down_proj")
    table |= {
        "linear/w1-w3-w2/router": _router("router") | _experts(mixtral),
        "linear/w1-w3-w2/dense": mixtral,
        "linear/gate_proj-up_proj-down_proj/router": _router("router") | _experts(qwen),
        "linear/gate_proj-up_proj-down_proj/dense": qwen,
        # transformers 4
        "mixtral": _router("gate") | _experts(mixtral),
        "qwen2_moe": _router("gate") | _experts(qwen),
        "olmoe": _router("gate") | _experts(qwen),
        "granitemoe": _fused("router.layer", "input_linear.weight", "output_linear.weight"),
        # transformers 5: Mixtral, Qwen, OLMoE; Granite
        "fused/gate": _fused("gate"),
        "fused/router": _fused("router"),
    }
    # Arrays with the experts along the first axis: W1 (E, h, d) as ours, or (E, d, h) for x @ W1
    for name, turn in (("stacked", ""), ("jax", ".T")):
        turned = {"router": f"router{turn}", "bias?": "bias"}
        gelu = {"W1": f"W1[e]{turn}", "b1?": "b1[e]", "W2": f"W2[e]{turn}", "b2?": "b2[e]"}
        table[f"{name}/gelu"] = turned | _experts(gelu, "experts.")
        table[f"{name}/swiglu"] = turned | _experts(_swiglu("Wg", "Wu", "Wd", f"[e]{turn}"), "experts.")
    # The same without "experts."; no convention says which axis of W or of the router is which, so that all are tried
    # and the shapes tell, or nobody does
    stacks = {"gelu": ("W1", "b1?", "W2", "b2?"), "swiglu": ("Wg", "Wu", "Wd")}
    for kind, leaves in stacks.items():
        for name, of_router, turn in (
            ("", "", ""),
            ("-turned", "", ".T"),
            ("-turned-router", ".T", ""),
            ("-all-turned", ".T", ".T"),
        ):
            inner = {leaf: leaf.removesuffix("?") + "[e]" + ("" if "?" in leaf else turn) for leaf in leaves}
            table[f"flat/{kind}{name}"] = {"router": f"router{of_router}", "bias?": "bias"} | _experts(inner, "")
        dense = {leaf: leaf.removesuffix("?") + ("" if "?" in leaf else ".T") for leaf in leaves}
        table[f"flat/dense-{kind}-turned"] = dense
    kernels = ("Dense_0", "Dense_1", "kernel", "bias", ".T")
    stacked = {"W1": "Dense_0.kernel[e].T", "b1?": "Dense_0.bias[e]", "W2": "Dense_1.kernel[e].T"}
    stacked |= {"b2?": "Dense_1.bias[e]"}
    named = _swiglu("gate_proj", "up_proj", "down_proj", ".kernel.T")
    kernel = _router("router", ".kernel.T")
    return table | {
        "flax/gelu": kernel | _experts(_gelu(*kernels), "experts_{e}."),
        "flax/gelu-vmap": kernel | _experts(stacked, "experts."),
        "flax/swiglu": kernel | _experts(named, "experts_{e}."),
        "flax/dense-gelu": _gelu(*kernels),
        "flax/dense-swiglu": named,
        "equinox/dense-gelu": _gelu("layers.0", "layers.1"),
    }


#: Name -> layout. The part before a "/" names a family: ``layout="linear"`` chooses among its members by the names.
LAYOUTS: Mapping[str, Layout] = MappingProxyType({name: MappingProxyType(part) for name, part in _table().items()})


# A layout as places


class Parsed(NamedTuple):
    """Places of our leaves; `{e}` stands for each expert in the leaves of a mixture."""

    kind: str
    moe: bool
    places: dict[str, Place]
    optional: frozenset[str]

    @property
    def templates(self) -> dict[str, tuple[str, ...]]:
        """All leaves that such a layer has, mapped or not, in the order of `named_leaves`."""
        inner = {(_EXPERT if self.moe else "") + leaf: axes for leaf, axes in LEAVES[self.kind].items()}
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
    moe = any(leaf.startswith(_EXPERT) or leaf in ("router", "bias") for leaf in places)
    kind = "swiglu" if any(leaf.removeprefix(_EXPERT) in LEAVES["swiglu"] for leaf in places) else "gelu"
    found = Parsed(kind, moe, places, optional)
    if strange := [leaf for leaf in places if leaf not in found.templates]:
        raise ValueError(f"expected leaves among {', '.join(found.templates)}; got {strange[0]!r}")
    for leaf in found.templates:
        may_lack = leaf.removeprefix(_EXPERT) in _BIASES
        if leaf not in places and not may_lack:
            raise ValueError(f"expected a place for {leaf} in the layout; got places for {', '.join(places) or 'none'}")
        if leaf in optional and not may_lack:
            raise ValueError(f"expected only biases to be optional; got '{leaf}?'")
        if leaf in places and places[leaf].of_experts and not leaf.startswith(_EXPERT):
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
        if not missing(parsed, tensors) and (helps := _turns(parsed, tensors)):
            raise ValueError(f"{fault}; perhaps {' or '.join(_change(parsed, other) for other in helps)}") from None
        raise


def _turns(parsed: Parsed, tensors: Mapping[str, Any]) -> list[Parsed]:
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
    inner = [template for template in parsed.templates if template.startswith(_EXPERT) and present(template)]
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


# Which layout


def family(name: str) -> dict[str, Parsed]:
    """The layouts of this name: one, or those of a family."""
    if name in LAYOUTS:
        return {name: parsed_layout(LAYOUTS[name])}
    found = {other: parsed_layout(part) for other, part in LAYOUTS.items() if other.startswith(f"{name}/")}
    if not found:
        near = get_close_matches(name, [*LAYOUTS, *(other.split("/")[0] for other in LAYOUTS)], n=1, cutoff=0.5)
        hint = f", perhaps {near[0]!r} was meant" if near else ""
        raise ValueError(f"expected a layout among {', '.join(LAYOUTS)}, or a family of them; got {name!r}{hint}")
    return found


def chosen(
    layout: str | Layout | None, tensors: Mapping[str, Any], mixture: bool = False
) -> tuple[str, Parsed, tuple[Row, ...]]:
    """The layout's name, its places and the rows of a model; without a name the one that fits these tensors best.

    `mixture` is whether one is expected, which matters to the advice where none fits.
    """
    if layout is not None and not isinstance(layout, str):
        return "of your own", (parsed := parsed_layout(layout)), rows_of(parsed, tensors)
    members = {name: parsed_layout(part) for name, part in LAYOUTS.items()} if layout is None else family(layout)
    if len(members) == 1:
        (name, parsed), *_ = members.items()
        return name, parsed, rows_of(parsed, tensors)
    touched = {name: _touched(parsed, tensors) for name, parsed in members.items() if not missing(parsed, tensors)}
    most = max(touched.values(), default=0)
    # those that read most names, and no others: a layout which leaves out `w3` is no second choice for one whose shapes
    # are wrong
    fits, faults, seen = [], {}, []
    for name in (name for name, count in touched.items() if count == most):
        try:
            rows = rows_of(members[name], tensors)
        except (ValueError, TypeError) as fault:
            faults[name] = str(fault)
            continue
        if rows not in seen:  # qwen2_moe is olmoe
            seen.append(rows)
            fits.append((name, members[name], rows))
    if len(fits) == 1 or (fits and mixture and not any(parsed.moe for _, parsed, _ in fits)):
        return fits[0]  # a mixture is expected, and whichever dense layout this is, the caller refuses it
    said = f"{', '.join(name for name, *_ in fits)} fit equally" if fits else "none fits"
    raise ValueError(
        f"expected a model that one layout fits; {said}{f' of the family {layout!r}' if layout else ''}.\n"
        f"{_listed(tensors)}\n{_advice(members, tensors, faults, [name for name, *_ in fits], mixture)}"
    )


def missing(parsed: Parsed, tensors: Mapping[str, Any]) -> list[str]:
    required = (place for leaf, place in parsed.places.items() if leaf not in parsed.optional)
    return sorted({place.name for place in required if not any(found_names(place, tensors))})


def _touched(parsed: Parsed, tensors: Mapping[str, Any]) -> int:
    return len({name for place in parsed.places.values() for name in found_names(place, tensors)})


def _listed(tensors: Mapping[str, Any], most: int = 40) -> str:
    lines = [f"  {name}  {tuple(t.shape)}  {dtype_name(t)}" for name, t in list(tensors.items())[:most]]
    more = [f"  ... and {len(tensors) - most} more"] if len(tensors) > most else []
    return "\n".join([f"The {len(tensors)} tensors:", *lines, *more])


def _advice(
    members: dict[str, Parsed], tensors: Mapping[str, Any], faults: dict[str, str], fits: list[str], mixture: bool
) -> str:
    """What each near layout lacks or, of several that fit, what differs; a prefix that would help, and a mapping."""
    if fits:
        said = ["Name the layout, or give a mapping; the shapes fit all of these, which differ in:"]
        return "\n".join([*said, *_differences(members, fits), *_shown(members[fits[0]], tensors, f"of {fits[0]!r}")])
    allowed = [name for name, parsed in members.items() if parsed.moe or not mixture] or list(members)
    near = sorted(allowed, key=lambda name: (-_touched(members[name], tensors), len(missing(members[name], tensors))))
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
        if turned := _turns(start, tensors):
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
                    layout = outer | _experts(inner, "")
                    found.setdefault((-len(layout), *rank, len(found)), parsed_layout(layout))
    if not found and not mixture:
        dense = {name: shape for name, shape in shapes.items() if len(shape) in (1, 2)}
        for d in sorted({length for shape in whole.values() for length in shape}):
            for rank, inner in _arranged(dense, d):
                found.setdefault((-len(inner), *rank, len(found)), parsed_layout(inner))
    best = [found[rank] for rank in sorted(found) if rank[:2] == min(found)[:2]]
    return [parsed for parsed in best if _fits(parsed, tensors)]


def _fits(parsed: Parsed, tensors: Mapping[str, Any]) -> bool:
    try:
        return bool(_rows(parsed, tensors))
    except (ValueError, TypeError):
        return False


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
            return prefix, max(have, key=lambda name: _touched(members[name], below))
    return None
