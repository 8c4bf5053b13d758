"""Coverage: what of a foreign model was read into which leaf, and what was not."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npmoe.convert.known import Layout
from npmoe.convert.matching import Parsed, Row

__all__ = ["Coverage", "Unused", "coverage_of", "unread"]

Array = np.ndarray


class Unused(NamedTuple):
    """A tensor of which something was not read, and what: "all", an index such as "[:, 5:10]", or a count."""

    tensor: str
    shape: tuple[int, ...]
    part: str


@dataclass(frozen=True, eq=False)
class Coverage:
    """What of a model was read into which leaf, and what was not; as text a table.

    Parameters
    ----------
    rows : one for each leaf.
    unused : tensors of which not all was read.
    tensors : how many there are (under the prefix).
    shared : tensors of which something was read twice.
    name, layout : the layout, and its mapping with the optional leaves settled; `to_torch` takes it.
    prefix : of the tensors' names.
    """

    rows: tuple[Row, ...]
    unused: tuple[Unused, ...]
    tensors: int
    shared: tuple[str, ...]
    name: str
    layout: Layout
    prefix: str = ""

    @property
    def complete(self) -> bool:
        """Whether every element of every tensor was read."""
        return not self.unused

    def remarks(self) -> tuple[str, ...]:
        """What was not used, a sentence for each tensor by its whole name; none where all was.

        Examples
        --------
        >>> from npmoe.verify import from_torch
        >>> weights = {"w": np.ones((5, 4)), "v": np.ones((3, 5)), "norm": np.ones(3)}
        >>> from_torch(weights, {"W1": "w[:, 1:4]", "W2": "v"}).coverage.remarks()
        ('partly used: w (5, 4), not its [:, 0]', 'not used: norm (3,)')
        """
        return tuple(
            f"not used: {self.prefix}{tensor} {_sized(shape)}"
            if part == "all"
            else f"partly used: {self.prefix}{tensor} {_sized(shape)}, not {'its ' * part.startswith('[')}{part}"
            for tensor, shape, part in self.unused
        )

    def __str__(self) -> str:
        table = [("leaf", "shape", "place", "of shape")]
        for group in self._groups():
            row = group[0]
            leaf, place = row.leaf, row.place.at(row.e)
            if len(group) > 1:  # one line for all experts
                leaf, place = leaf.replace(f"experts.{row.e}.", "experts.{e}."), row.place.text
            table.append((leaf, _sized(row.shape), place, _sized(row.tensor_shape)))
        wide = [max(len(line[i]) for line in table) for i in range(4)]
        E = len({row.e for row in self.rows if row.e is not None})
        lines = [f"layout {self.name}" + (f", prefix {self.prefix}" if self.prefix else "")]
        lines[0] += f", e = 0..{E - 1}" if E else ""
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in table]
        if self.unused:
            lines.append("not used:")
            lines += [f"  {tensor} {_sized(shape)}: {part}" for tensor, shape, part in self.unused]
        lines += [f"read more than once: {name}" for name in self.shared]
        nothing = sum(part == "all" for *_, part in self.unused)
        part = len(self.unused) - nothing
        how = "all of each" if not part else f"{part} of them in part"
        return "\n".join([*lines, f"{self.tensors - nothing} of {self.tensors} tensors used, {how}"])

    def _groups(self) -> list[list[Row]]:
        """Rows with one place for all experts and equal shapes, together."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.place, row.leaf.rsplit(".")[-1], row.shape, row.tensor_shape), []).append(row)
        return list(groups.values())


def _sized(shape: tuple[int, ...]) -> str:
    return str(tuple(map(int, shape)))


def coverage_of(name: str, parsed: Parsed, rows: tuple[Row, ...], tensors: dict[str, Any], prefix: str) -> Coverage:
    read = {tensor: np.zeros(tuple(value.shape), bool) for tensor, value in tensors.items()}
    shared = {}
    for row in rows:
        part = row.place.view(read[row.tensor], row.e)
        if part.any():
            shared[row.tensor] = True
        part[...] = True
    unused = tuple(Unused(tensor, on.shape, unread(on)) for tensor, on in read.items() if not on.all())
    used = {row.place for row in rows}
    settled = {leaf: place.text for leaf, place in parsed.places.items() if place in used}
    return Coverage(rows, unused, len(tensors), tuple(shared), name, settled, prefix)


def unread(on: Array) -> str:
    """Which part of a tensor was not read: an index, where it is one."""
    if not on.any():
        return "all"
    left = np.argwhere(~on)  # (count, axes)
    along = [np.unique(column) for column in left.T]
    spans = [_span(found, N) for found, N in zip(along, on.shape, strict=True)]
    if len(left) == np.prod([len(found) for found in along]) and None not in spans:
        return f"[{', '.join(map(str, spans))}]"
    return f"{len(left)} of {on.size} elements"


def _span(found: Array, N: int) -> str | None:
    """Ascending numbers as a slice of an axis of length N, if they are one."""
    first, last, step = int(found[0]), int(found[-1]), int(found[1] - found[0]) if len(found) > 1 else 1
    if not np.array_equal(found, np.arange(first, last + 1, step)):
        return None
    if (first, last, step) == (0, N - 1, 1):
        return ":"
    return f"{first}:{last + 1}" + (f":{step}" if step > 1 else "") if len(found) > 1 else str(first)
