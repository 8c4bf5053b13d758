"""Files: written whole or not at all, and arrays read from files that anyone may have written.

A file that is being written stands beside its place as ``.NAME.tmp``, is flushed to the disk and renamed, so that under
its own name it is whole or what it was before. What is read is trusted in nothing: declared sizes are held against the
file's own before memory is taken, nothing is unpickled, and whatever is wrong is one `FileError` that names file, key,
what was expected and what came.
"""

import ast
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows has no flock: there, nothing keeps two programs out of one folder
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LARGEST",
    "FileError",
    "WriteError",
    "alone_in",
    "arrays_in",
    "digest",
    "pack",
    "read_arrays",
    "read_json",
    "write",
]
__all__ += ["write_json"]

Array = np.ndarray

LARGEST = 2**32  # bytes of all arrays of a file, and of a JSON text, unless a reader says otherwise
_HEADER = 10_000  # characters of an array's header
_MEMBERS = 100_000  # arrays of a file
_DEFLATED = 1032  # bytes that one byte of a compressed member can become at most (zlib's own bound)
_CHUNK = 1 << 20
_KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "c": "complex numbers", "U": "text"}


class FileError(ValueError):
    """A file that is not what it should be: says which, what was expected and what came."""


class WriteError(OSError):
    """A file that cannot be written: says which and why, and what to do."""


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, into a folder that is made if it is not there; returns the path.

    Raises
    ------
    WriteError : where it cannot be written; what stood there before is as it was.
    """
    half = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(half, path)
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteError(
            error.errno,
            f"cannot write {path}: {why}. What was there before is as it was; once there is room and a right to write, "
            "the same command continues",
        ) from error
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)
    return path


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write plain data, in which every number is finite, as `write` does."""
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)
    return write(path, f"{text}\n".encode())


def pack(arrays: Mapping[str, Array]) -> bytes:
    """An npz whose bytes depend on nothing but what is in it: by name, in C order, not compressed, dated 1980."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in sorted(arrays.items()):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=array.nbytes >= 2**30) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
    return packed.getvalue()


def digest(arrays: Mapping[str, Array]) -> str:
    """A checksum of arrays and their names, in 64 hex digits: one that is missing, renamed or exchanged changes it."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other program which asks for it does; leaving, or dying, gives it back.

    Raises
    ------
    BlockingIOError : where another holds it.
    """
    with (folder / ".lock").open("a") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_json(path: Path, most: int = LARGEST) -> Any:
    """The data of a JSON file of so many bytes at most.

    Raises
    ------
    FileError : where it is larger, or no JSON.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise FileError(f"{path}: expected JSON of at most {most} bytes; got {size}")
        text = file.read(size)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: expected JSON; got {_cause(error)}") from error


def read_arrays(path: Path, most: int = LARGEST, kinds: str = "biufcU") -> dict[str, Array]:
    """All arrays of an npz file by name, of so many bytes together at most.

    Parameters
    ----------
    path : the file.
    most : bytes of all arrays together.
    kinds : of NumPy's dtypes that may occur: some of "b" booleans, "i" and "u" integers, "f" floats, "c" complex
        numbers, "U" text.

    Raises
    ------
    FileError : says file, key, what was expected and what came.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write(Path(folder) / "two.npz", pack({"x": np.eye(2), "name": np.array("two")}))
    ...     list(read_arrays(path))
    ['name', 'x']
    """
    found = {}
    with path.open("rb") as stream:
        for key, value in arrays_in(stream, str(path), most, kinds):
            if isinstance(value, FileError):
                raise value
            if value is not None:
                found[key] = value
    return found


def arrays_in(
    stream: IO[bytes],
    name: str,
    most: int = LARGEST,
    kinds: str = "biufcU",
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[tuple[str, "Array | FileError | None"]]:
    """Arrays of an npz by key; for one that cannot be read the error in its place, None for one that is not wanted.

    Parameters
    ----------
    stream : the file, open to be read in any order.
    name : what errors call it.
    most, kinds : as in `read_arrays`.
    wanted : which keys are read; all, unless it is given.

    Raises
    ------
    FileError : where it is no npz file at all.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    try:
        archive = zipfile.ZipFile(stream)
        members = archive.infolist()
    except Exception as error:  # there is no end to the ways in which a zip can be broken
        raise FileError(f"{name}: expected an npz file; got {_cause(error)}") from error
    with archive:
        if len(members) > _MEMBERS:
            raise FileError(f"{name}: expected an npz file of at most {_MEMBERS} arrays; got {len(members)}")
        times = Counter(member.filename for member in members)
        for member in {member.filename: member for member in members}.values():
            key = member.filename.removesuffix(".npy")
            if wanted is not None and (key == member.filename or not wanted(key)):
                yield key, None
                continue
            try:
                if key == member.filename:
                    raise FileError("expected an array, KEY.npy; got a file of another name")
                if times[member.filename] > 1:
                    raise FileError(f"expected one array; got {times[member.filename]} of that name")
                value = _member(archive, member, size, most, kinds)
                if value.nbytes > most:
                    raise FileError(f"expected at most {most} bytes of arrays; got one of {value.nbytes}")
                most -= value.nbytes
                yield key, value
            except FileError as error:
                yield key, FileError(f"{name}: {key[:60]!r}: {error}")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int, most: int, kinds: str) -> Array:
    """One array of an archive that lies in a file of `size` bytes."""
    packing = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATED}.get(member.compress_type)
    if packing is None or member.flag_bits & 1:
        raise FileError("expected a stored or deflated array; got one packed or locked in another way")
    if member.compress_size > size or member.file_size > packing * max(member.compress_size, 1):
        raise FileError(f"expected an array within a file of {size} bytes; got one that claims {member.file_size}")
    if member.file_size > most + _HEADER + 12:
        raise FileError(f"expected at most {most} bytes of arrays; got one of {member.file_size}")
    try:
        with archive.open(member) as stream:
            return read_array(stream, member.file_size, kinds)
    except FileError:
        raise
    except Exception as error:  # a torn zip, a checksum, a stream that is no stream
        raise FileError(f"expected an array; got {_cause(error)}") from error


def read_array(stream: IO[bytes], size: int, kinds: str = "biufcU") -> Array:
    """One array in NumPy's format out of the next `size` bytes, which it must fill to the last.

    Raises
    ------
    FileError : what was expected and what came.
    """
    shape, fortran, dtype, start = _header(stream)
    if dtype.kind not in kinds:
        expected = ", ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
        hint = " (NumPy has no bfloat16: write bfloat16 as float32)" * (dtype.kind == "V")
        raise FileError(f"expected {expected}; got {dtype}{hint}")
    count = math.prod(shape)
    if start + count * dtype.itemsize != size:
        raise FileError(
            f"expected {size - start} bytes of numbers, as there are; its header claims {shape} of {dtype}, "
            f"{count * dtype.itemsize} bytes"
        )
    content = np.empty(size - start, np.uint8)  # so many as the file has: checked above
    at = 0
    while at < len(content):
        piece = stream.read(min(_CHUNK, len(content) - at))
        if not piece:
            raise FileError(f"expected {len(content)} bytes of numbers; got {at}")
        content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    if stream.read(1):  # reading to the end also checks a zip's checksum
        raise FileError(f"expected {len(content)} bytes of numbers; got more")
    array = content.view(dtype) if dtype.itemsize and len(content) else np.zeros(count, dtype)
    _sane(content, array)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, dtype, and how many bytes magic and header take."""
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise FileError("expected an array in NumPy's format 1.0 to 3.0; got something else")
    wide = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(wide), "little")
    if length > _HEADER:
        raise FileError(f"expected a header of at most {_HEADER} bytes; got one that claims {length}")
    raw = stream.read(length)
    if len(raw) < length:
        raise FileError(f"expected a header of {length} bytes; got {len(raw)}")
    try:
        text = raw.decode("utf-8" if magic[6] == 3 else "latin-1")
        found = None if "\\" in text else ast.literal_eval(text.strip())
    except Exception as error:  # no syntax, too deep, no text: whatever it is
        raise FileError("expected a header that says descr, fortran_order and shape; got something else") from error
    keys = {"descr", "fortran_order", "shape"}
    if not isinstance(found, dict) or set(found) != keys or not isinstance(found["fortran_order"], bool):
        raise FileError("expected a header that says descr, fortran_order and shape; got something else")
    shape, descr = found["shape"], found["descr"]
    if not isinstance(shape, tuple) or len(shape) > 32 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise FileError(f"expected a shape of whole numbers; got {str(shape)[:60]}")
    return shape, found["fortran_order"], _dtype(descr), 8 + wide + length


def _dtype(descr: Any) -> "np.dtype[Any]":
    if descr == "|O":
        raise FileError("expected numbers or text; got Python objects, which are never unpickled")
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|][biufcUV]\d{1,9}", descr):
        raise FileError(f"expected numbers or text; got {str(descr)[:60]!r}")
    try:
        return np.dtype(descr)
    except (TypeError, ValueError) as error:
        raise FileError(f"expected numbers or text; got {descr!r}") from error


def _sane(content: Array, array: Array) -> None:
    """Refuse bytes that are no value of their kind."""
    if array.dtype.kind == "b" and (content > 1).any():
        raise FileError(f"expected booleans, bytes of 0 or 1; got {content.max()}")
    if array.dtype.kind == "U" and array.dtype.itemsize and array.size:
        points = content.view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        wrong = (points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))
        if wrong.any():
            raise FileError(f"expected text; got the number {points[wrong][0]}, which is no character")


def _cause(error: BaseException) -> str:
    """What went wrong underneath, in a few words."""
    text = " ".join(str(error).split())[:120]
    return f"something else ({text})" if text else f"something else ({type(error).__name__})"
