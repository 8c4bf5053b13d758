"""What a program in any language answered, read from its files in whichever of three forms.

n tokens, d width, o output width.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from npmoe.files import FileError, arrays_in, read_array
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE
from npmoe.verify.reference import kind_of

__all__ = ["read_answers", "said_by"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE

_NUMBERS = "fiubc"  # kinds of numbers that an answer may be of
_HEADER = 10_000


def said_by(error: Exception) -> str:
    return f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"


def read_answers(
    root: Path, name: str, known: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Array | str], list[str]]:
    """Answers to a case by name, with a sentence in place of one that cannot be read; and what is not known."""
    n, o, d = known["jacobian"]
    known = {**known, "batch": (n, o, n, d)}
    # 16 bytes are the widest number there is, and an answer may come under several labels
    room = 8 * 16 * sum(map(math.prod, known.values()))
    found: dict[str, Array | str] = {}
    foreign = []
    if (path := root / f"{name}.npz").exists():
        with path.open("rb") as stream:
            wanted = lambda key: kind_of(key) in known and key != "batch"  # noqa: E731
            for key, value in arrays_in(stream, path.name, room, _NUMBERS, wanted):
                if value is None:
                    foreign.append(f"{path.name}: {key}")
                else:
                    found[key] = str(value) if isinstance(value, FileError) else _native(value)
    if (path := root / name).is_dir():
        for file in sorted(path.iterdir()):
            key, ending = file.name[:-4], file.name[-4:]
            if kind_of(key) not in known or key == "batch" or ending not in (".npy", ".f64", ".f32"):
                foreign += [f"{name}/{file.name}"] * (file.name[0] != ".")
            elif key in found:
                found[key] = f"expected one answer; got {file.name} beside another of that name"
            else:
                found[key] = _file(file, kind_of(key), known, room)
    return found, foreign


def _file(path: Path, kind: str, known: Mapping[str, tuple[int, ...]], room: int) -> Array | str:
    """The numbers of one file, or why there are none."""
    try:
        if path.suffix == ".npy":
            size = path.stat().st_size
            if size > room + 2 * _HEADER:
                return f"expected no more than {room} bytes of answers to this case; got {size} in {path.name}"
            with path.open("rb") as stream:
                return _native(read_array(stream, size, _NUMBERS))
        dtype = np.dtype({".f64": "<f8", ".f32": "<f4"}[path.suffix])
        size = path.stat().st_size
        for shape in [known[kind]] + [known["batch"]] * (kind == "jacobian"):
            if size == math.prod(shape) * dtype.itemsize:
                return np.fromfile(path, dtype).reshape(shape)
        want = math.prod(known[kind]) * dtype.itemsize
        return f"expected {want} bytes, {known[kind]} of {dtype.name}; got {size} in {path.name}"
    except Exception as error:
        return f"cannot read {path.name}: {said_by(error)}"


def _native(array: Array) -> Array:
    """Numbers in the order of this machine's bytes."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
