"""Tensors by name out of a folder of `.safetensors` files, read when they are asked for.

A file is a number of bytes (u64, little-endian), a JSON header of that size that says where each tensor lies, and the
tensors. It is mapped into memory: what is not read is not loaded. What a header says is held against the file before
anything is read by it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.files import FileError, read_json

__all__ = ["DTYPES", "Place", "Tensors", "bfloat16", "packed"]

Array = np.ndarray

INDEX, ONE = "model.safetensors.index.json", "model.safetensors"
_HEADER = 100_000_000  # bytes: the bound of the format
#: dtypes of the format that hold weights; bfloat16 is the upper half of a float32.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, first and last byte in it, dtype of the format, and shape."""

    file: Path
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensors(Mapping[str, Array]):
    """The tensors of a checkpoint; ``tensors[name]`` reads one, as float32 or the dtype asked for.

    Parameters
    ----------
    folder : with one ``model.safetensors``, or several and their index.
    dtype : of what is read.

    Raises
    ------
    FileNotFoundError : where the folder or a file of it is missing.
    FileError : for a file that is no safetensors file, is cut off, or whose header cannot be true.
    """

    folder: Path
    dtype: str = "float32"

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each tensor lies, from the headers alone."""
        found: dict[str, Place] = {}
        files = self._files()
        elsewhere = {name: file for file, names in files.items() for name in names or ()}
        for file, names in files.items():
            there = _header(file)
            missing = sorted(names - set(there)) if names is not None else []
            if missing:
                raise FileError(
                    f"{file}: expected the tensors that {INDEX} names; it has no {missing[0]!r}: fetch both again"
                )
            # one that the index does not name is kept, so that the coverage tells of it
            there = {name: place for name, place in there.items() if elsewhere.get(name, file) == file}
            twice = sorted(set(there) & set(found))
            if twice:
                raise FileError(
                    f"{file}: expected each tensor once; {twice[0]!r} is also in {found[twice[0]].file.name}"
                )
            found |= there
        return found

    def _files(self) -> dict[Path, set[str] | None]:
        """Each file, with the tensors that the index says it has."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f"expected a folder with a checkpoint; there is none at {self.folder}")
        if (self.folder / ONE).exists():
            return {self.folder / ONE: None}
        if not (self.folder / INDEX).exists():
            raise FileNotFoundError(f"expected {ONE} or {INDEX} in {self.folder}; it has neither")
        index = read_json(self.folder / INDEX)
        where = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
            raise FileError(f"{self.folder / INDEX}: expected a weight_map from tensors to files; got none")
        files: dict[Path, set[str] | None] = {}
        for name in sorted(set(where.values())):
            if Path(name).name != name or not (self.folder / name).exists():
                raise FileNotFoundError(
                    f"expected the file {name!r}, which {INDEX} names, in {self.folder}; it is missing: fetch it again"
                )
            files[self.folder / name] = {tensor for tensor, file in where.items() if file == name}
        return files

    def __getitem__(self, name: str) -> Array:
        if name not in self.places:
            raise KeyError(name)
        place = self.places[name]
        raw = np.memmap(place.file, np.uint8, "r", place.start, (place.stop - place.start,))
        values = np.asarray(raw).view(DTYPES[place.dtype])
        if place.dtype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return values.reshape(place.shape).astype(self.dtype)  # a copy: the map is closed

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self.places[name].shape

    def __repr__(self) -> str:
        return f"Tensors({len(self)} in {self.folder.name!r}, read as {self.dtype})"


def _header(file: Path) -> dict[str, Place]:
    """Where the tensors of one file lie, checked against its size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little") if size >= 8 else -1
        if not 2 <= length <= min(size - 8, _HEADER):
            raise FileError(f"{file}: expected a safetensors file; got {size} bytes that begin with no header of one")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise FileError(f"{file}: expected a header in JSON; got something else") from error
    if not isinstance(header, dict):
        raise FileError(f"{file}: expected a header that names tensors; got {type(header).__name__}")
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            found[name] = _place(file, name, entry, 8 + length, size)
    _tiled(file, found, 8 + length, size)
    return found


def _tiled(file: Path, found: Mapping[str, Place], first: int, size: int) -> None:
    """The format's rule: tensors fill the file behind the header, without a gap and without sharing a byte."""
    at = first
    for name, place in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != at:
            raise FileError(f"{file}: {name[:80]!r}: expected it to begin at byte {at}; its header says {place.start}")
        at = place.stop
    if at != size:
        raise FileError(f"{file}: expected {at} bytes, by its header; got {size}: fetch the file again")


def _place(file: Path, name: str, entry: Any, first: int, size: int) -> Place:
    what = f"{file}: {name[:80]!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise FileError(f"{what}: expected dtype, shape and data_offsets; got something else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, offsets))
    if not whole or len(offsets) != 2 or len(shape) > 8:
        raise FileError(f"{what}: expected a shape and two offsets in whole numbers; got {shape} and {offsets}")
    if dtype not in DTYPES:
        raise FileError(f"{what}: expected a dtype among {', '.join(DTYPES)}; got {str(dtype)[:20]!r}")
    start, stop = first + offsets[0], first + offsets[1]
    if stop > size:
        raise FileError(
            f"{what}: expected it to end within the file's {size} bytes; it ends at {stop}: is the file cut off? "
            "Fetch it again"
        )
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise FileError(f"{what}: expected {math.prod(shape)} numbers of {dtype}; got {stop - start} bytes")
    return Place(file, start, stop, dtype, tuple(shape))


def bfloat16(values: Array) -> Array:
    """float32 rounded to bfloat16, ties to even, as the upper halves of their bits (uint16).

    Examples
    --------
    >>> [hex(bits) for bits in bfloat16(np.array([1.0, 1.00390625, 1.01171875], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)  # room for the carry
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def _stored(name: str, array: Array, dtype: str) -> Array:
    """A float array as its file holds it, in that dtype and little-endian."""
    if dtype not in _NAMES:
        raise TypeError(f"expected {name} as {', '.join(_NAMES)}; got {dtype}")
    with np.errstate(over="ignore", under="ignore"):  # what is too large is refused, what is too small becomes 0
        values = array.astype(np.float32 if dtype == "bfloat16" else dtype)
        if dtype == "bfloat16":
            values = bfloat16(values).reshape(array.shape)
    numbers = (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else values
    if not np.array_equal(np.isfinite(numbers), np.isfinite(array)):
        raise ValueError(f"expected {name} within the range of {dtype}; its largest entry is {np.abs(array).max():.3g}")
    return values.astype(DTYPES[_NAMES[dtype]], copy=False)


def packed(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None, dtype: str | None = None) -> bytes:
    """A safetensors file of float arrays, by name, in the order given.

    Parameters
    ----------
    dtype : "float16", "bfloat16", "float32" or "float64"; each array's own unless given.

    Raises
    ------
    TypeError : for arrays that are not float16, float32 or float64.
    ValueError : for numbers beyond the range of the dtype.

    Examples
    --------
    >>> len(packed({"x": np.zeros((2, 3), np.float32)})) % 8
    0
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, at = [], 0
    for name, array in arrays.items():
        array = np.asarray(array)
        own = array.dtype.newbyteorder("=").name
        if own not in ("float16", "float32", "float64"):
            raise TypeError(f"expected {name} as float16, float32 or float64; got {own}")
        kind = dtype or own
        content = _stored(name, array, kind).tobytes()
        header[name] = {"dtype": _NAMES[kind], "shape": list(array.shape), "data_offsets": [at, at + len(content)]}
        parts.append(content)
        at += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers begin at a multiple of eight
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
