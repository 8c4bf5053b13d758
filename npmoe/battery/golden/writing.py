"""Golden cases written: files of weights, inputs and right answers.

n tokens, d width, h hidden, o output width, E experts, k experts a token. The format is in FORMAT.md beside this
folder, which `dump` writes as well; docs/golden.md has a recipe each for PyTorch, JAX and C.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import npmoe
from npmoe.battery.cases import Case, cases, named
from npmoe.battery.golden.manifest import FORMAT, GIVEN, SCHEMA, read_manifest
from npmoe.calculus import tree
from npmoe.files import pack, write
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE
from npmoe.verify.reference import reference

__all__ = ["LIMITS", "dump"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE

#: Arithmetics whose limits stand in the files.
LIMITS = ("float64", "float32", "bfloat16")


def dump(folder: str | os.PathLike[str], *, raw: bool = False, only: Sequence[str] | None = None) -> Path:
    """Write the golden cases, a manifest and the description of the format.

    Parameters
    ----------
    folder : made if need be. Must be empty or hold a dump; answers in it stay as they are.
    raw : also each array as a file of bare numbers, and sizes as text, for programs without a reader of npz. A folder
        that has them gets them anew in any case.
    only : names of cases, or patterns such as "gelu*"; all unless given.

    Returns
    -------
    Path : the manifest. Everything is computed before the first file is written, each file appears whole or not at all,
        and a second dump by the same version on the same machine writes the same bytes.

    Raises
    ------
    ValueError : for a folder that holds something else, of which nothing is touched; for a name that no case has.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dump(folder, only=["one-*"])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['FORMAT.md', 'manifest.json', 'one-gelu.npz', 'one-moe.npz', 'one-swiglu.npz']
    """
    folder = Path(folder)
    before = _claimed(folder)
    raw = raw or bool(before.get("raw"))  # or a program would go on reading numbers of an older dump
    table = {case.name: case for case in cases()}
    texts: dict[str, bytes] = {}
    entries = []
    for name in named(table, only):
        arrays, undecided = _answers_of(table[name])
        packed = pack(arrays)
        texts[f"{name}.npz"] = packed
        entries.append(_entry(table[name], arrays, packed, undecided))
        if raw:
            texts |= {f"{name}/{key}{_ENDING[a.dtype.kind]}": a.tobytes() for key, a in arrays.items()}
            texts[f"{name}/sizes.txt"] = _sizes(entries[-1]["layer"]).encode()
    texts["FORMAT.md"] = files("npmoe.battery").joinpath("FORMAT.md").read_bytes()
    if raw:
        texts["cases.txt"] = "".join(f"{entry['name']}\n" for entry in entries).encode()
    manifest = {"format": FORMAT, "schema": SCHEMA, "npmoe": npmoe.__version__, "raw": raw, "cases": entries}
    # first: a dump that is broken off is known for one, and what is missing has a name
    write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    for file, content in texts.items():
        write(folder / file, content)
    if raw:
        for entry in entries:  # a place to write to, so that a C program need not make folders
            (folder / "answers" / entry["name"]).mkdir(parents=True, exist_ok=True)
    return folder / "manifest.json"


_ENDING = {"f": ".f64", "i": ".i64"}


def _claimed(folder: Path) -> dict[str, Any]:
    """The manifest of the dump that is in the folder, or nothing where it is empty."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise ValueError(f"expected a folder to write golden cases to; {folder} is a file")
    held = sorted(path.name for path in folder.iterdir() if path.name != ".manifest.json.tmp")
    if not held:
        return {}
    try:
        return read_manifest(folder)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"expected an empty folder, or one of golden cases with their manifest.json; {folder} holds "
            f"{', '.join(held[:3])}{' and more' if len(held) > 3 else ''}; nothing there was changed ({error})"
        ) from error


def _answers_of(case: Case) -> tuple[dict[str, Array], dict[str, list[int]]]:
    """All arrays of a case by their names in the file, and the rows that a tie leaves undecided by arithmetic."""
    leaves = dict(tree.named_leaves(case.layer))
    arrays = {f"in/{name}": a for name, a in [*leaves.items(), *((name, getattr(case, name)) for name in GIVEN)]}
    undecided = {}
    with np.errstate(under="ignore"):  # slopes and gates that vanish are meant
        for arithmetic in LIMITS:
            ref = reference(case.layer, case.x, dy=case.dy, weights=case.weights, arithmetic=arithmetic)
            undecided[arithmetic] = np.flatnonzero(ref.undecided).tolist()
            for name in ref.names():
                if arithmetic == LIMITS[0]:
                    arrays[f"want/{name}"] = ref.allowed(name).want
                if name not in leaves:
                    _, usual, most = ref.allowed(name)
                    rows = [a.reshape(len(a), -1).max(axis=1) for a in (usual, most)]
                    arrays[f"limit/{arithmetic}/{name}"] = np.stack(rows, axis=1)  # (rows, 2)
    if isinstance(case.layer, MoE):
        arrays["route/margin"] = ref.margin.gap
        arrays["route/chosen"] = case.layer.route(case.x)[1]
    return {name: _plain(a) for name, a in arrays.items()}, undecided


def _plain(a: Array) -> Array:
    """In C order, as little-endian float64 or int64."""
    return np.ascontiguousarray(a, "<f8" if a.dtype.kind == "f" else "<i8")


def _entry(case: Case, arrays: Mapping[str, Array], packed: bytes, undecided: dict[str, list[int]]) -> dict[str, Any]:
    """The manifest's lines on a case."""
    return {
        "name": case.name,
        "says": case.says,
        "file": f"{case.name}.npz",
        "bytes": len(packed),
        "sha256": hashlib.sha256(packed).hexdigest(),
        "layer": _facts(case),
        "rounded": case.rounded,
        "undecided": undecided,
        "arrays": {name: {"shape": list(a.shape), "dtype": a.dtype.str} for name, a in sorted(arrays.items())},
    }


def _facts(case: Case) -> dict[str, Any]:
    """Kind and sizes of a layer; of an expert by itself E and k are 0."""
    layer = case.layer
    moe = layer if isinstance(layer, MoE) else None
    expert = moe.experts[0] if moe else layer
    d, h, o = expert.widths
    return {
        "kind": type(layer).__name__,
        "expert": type(expert).__name__,
        "activation": getattr(expert, "activation", "silu"),
        "n": len(case.x),
        "d": d,
        "h": h,
        "o": o,
        "E": len(moe.experts) if moe else 0,
        "k": moe.k if moe else 0,
        "renormalize": bool(moe and moe.renormalize),
        "temperature": float(moe.temperature) if moe else 1.0,
        "bias": bool(moe and moe.bias is not None),
    }


def _sizes(facts: Mapping[str, Any]) -> str:
    """One key and value a line, in a fixed order: for fscanf."""
    return "".join(f"{key} {int(value) if isinstance(value, bool) else value}\n" for key, value in facts.items())
