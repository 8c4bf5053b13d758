"""The layout that is meant: by its name, by a mapping of one's own, or the one that fits a model's tensors best."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from npmoe.convert.advice import advice, listed
from npmoe.convert.known import LAYOUTS, Layout
from npmoe.convert.matching import Parsed, Row, missing, names_read, parsed_layout, rows_of

__all__ = ["chosen", "family"]


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
    touched = {name: names_read(parsed, tensors) for name, parsed in members.items() if not missing(parsed, tensors)}
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
        f"{listed(tensors)}\n{advice(members, tensors, faults, [name for name, *_ in fits], mixture)}"
    )
