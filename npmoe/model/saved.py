"""A model in a file: every tree of layers as an npz of its arrays and one text that says what they are.

    model.npz    the leaves by their names, such as experts.3.W1, with their dtype and bits
                 model, a text in JSON: {"format": "npmoe model", "version": 1, "tree": ...}
                 digest, a checksum of all of these

In the tree a layer is {"class": its name, field: value, ...}, an array {"array": its name}, a tuple a list. Classes are
known by the table `LAYERS` alone: nothing is imported or run because a file says so, and nothing is unpickled.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.files import FileError, digest, pack, read_arrays, write
from npmoe.model.attention import Attention
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.gate import Gate, Groups
from npmoe.model.layers import LayerNorm, Linear, Residual, RMSNorm, Stack
from npmoe.model.moe import MoE
from npmoe.model.transformer import Block, Embedding, Transformer

__all__ = ["LAYERS", "load", "save"]

Array = np.ndarray

#: The layers that a file may hold, by name; a new kind of layer is a new entry.
LAYERS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(GeluExpert, SwigluExpert, MoE, Linear, RMSNorm, LayerNorm, Residual, Stack),
        *(Attention, Embedding, Block, Transformer, Gate, Groups),
    )
}
FORMAT, VERSION = "npmoe model", 1
_TEXT, _DIGEST = "model", "digest"  # keys of the text, and of a checksum of all else


def save(model: Any, path: str | os.PathLike[str]) -> Path:
    """Write a layer, with all layers inside it, to a file that `load` reads; returns the path.

    The file appears whole or not at all, and equal models give equal bytes.

    Parameters
    ----------
    model : a layer of this package: a mixture, an expert, a stack, ...; also a gradient, which is one.
    path : of the file, by custom ``.npz``.

    Raises
    ------
    TypeError : for a layer of another class, or experts that are no tuple; nothing is written.
    WriteError : where the file cannot be written; what stood there stays.

    Examples
    --------
    >>> import tempfile
    >>> import npmoe
    >>> moe = npmoe.init.gelu_moe(np.random.default_rng(0), E=4, d=3, h=5, k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = npmoe.load(npmoe.save(moe, f"{folder}/moe.npz"))
    >>> x = np.ones((2, 3))
    >>> bool((again.forward(x)[0] == moe.forward(x)[0]).all())
    True
    """
    arrays: dict[str, Array] = {}
    tree = _described(model, "", arrays)
    if not isinstance(tree, dict) or "class" not in tree:
        raise TypeError(f"expected a layer among {', '.join(LAYERS)}; got {type(model).__name__}")
    text = json.dumps({"format": FORMAT, "version": VERSION, "tree": tree}, allow_nan=False)
    whole = {**arrays, _TEXT: np.array(text)}
    return write(Path(path), pack({**whole, _DIGEST: np.array(digest(whole))}))


def load(path: str | os.PathLike[str]) -> Any:
    """The model that `save` wrote to a file.

    Raises
    ------
    FileNotFoundError : where there is no file.
    FileError : for a file that is no saved model, is damaged, or was written by a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved model at {path}; there is none")
    arrays = read_arrays(path, kinds="fcU")
    seal = arrays.pop(_DIGEST, None)
    whole = seal is not None and str(seal) == digest(arrays)
    tree = _tree(path, arrays.pop(_TEXT, None))
    if not whole:
        raise FileError(f"{path}: expected the arrays that npmoe.save wrote; got others, or a damaged file")
    try:
        model = _made(tree, "", arrays)
        model.widths  # noqa: B018  what holds something else than layers has none
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise FileError(f"{path}: expected a model as npmoe.save writes it; {error}") from error
    if arrays:
        raise FileError(f"{path}: expected the arrays of the model; got also {', '.join(sorted(arrays)[:3])}")
    return model


def _described(value: Any, at: str, arrays: dict[str, Array]) -> Any:
    """A value as plain data, its arrays put aside by name."""
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray or value.dtype.kind not in "fc":
            raise TypeError(f"expected an array of floats at {at}; got {type(value).__name__} of {value.dtype}")
        arrays[at] = value
        return {"array": at}
    if isinstance(value, tuple):
        return [_described(child, _joined(at, str(i)), arrays) for i, child in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    kind = type(value)
    if LAYERS.get(kind.__name__) is not kind:
        known = ", ".join(LAYERS)
        hint = ": make a tuple of them first" if hasattr(value, "__len__") else ""
        raise TypeError(f"expected layers among {known}; got {kind.__name__} at {at or 'the top'}{hint}")
    inside = {name: _described(getattr(value, name), _joined(at, name), arrays) for name in _names(kind)}
    return {"class": kind.__name__, **inside}


def _joined(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _names(kind: type) -> Iterator[str]:
    return (field.name for field in fields(kind))


def _tree(path: Path, text: Array | None) -> Any:
    """What the text of a file says, if it is of a version that is known."""
    what = f"{path}: expected a model as npmoe.save writes it"
    if text is None or text.dtype.kind != "U" or text.ndim:
        raise FileError(f"{what}; got a file without a text {_TEXT!r}")
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what}; its text is no JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileError(f"{what}; its text says something else")
    if found.get("version") != VERSION:
        raise FileError(
            f"{what}, version {VERSION}; got version {str(found.get('version'))[:20]}: is npmoe up to date?"
        )
    tree = found.get("tree")
    if not isinstance(tree, dict) or "class" not in tree:
        raise FileError(f"{what}; got no layer")
    return tree


def _made(value: Any, at: str, arrays: dict[str, Array]) -> Any:
    """The value that plain data describe; each array is used once."""
    if isinstance(value, list):
        return tuple(_made(child, _joined(at, str(i)), arrays) for i, child in enumerate(value))
    if not isinstance(value, dict):
        return value
    if set(value) == {"array"}:
        if value["array"] != at or at not in arrays:
            raise ValueError(f"expected an array {at}; got {str(value['array'])[:60]!r}, or none")
        return arrays.pop(at)
    kind = LAYERS.get(str(value.get("class")))
    if kind is None:
        raise ValueError(
            f"expected layers among {', '.join(LAYERS)}; got {str(value.get('class'))[:60]!r} at {at or 'the top'}"
        )
    names = [*_names(kind)]
    if set(value) != {"class", *names}:
        raise ValueError(
            f"expected {', '.join(names)} of {kind.__name__} at {at or 'the top'}; got {', '.join(value)[:200]}"
        )
    return kind(**{name: _made(value[name], _joined(at, name), arrays) for name in names})
