"""The manifest of a folder of golden cases: what it must say, and the cases that it names."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.files import FileError, read_json
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE

__all__ = ["FORMAT", "GIVEN", "SCHEMA", "read_entries", "read_manifest"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE

FORMAT, SCHEMA = "npmoe golden cases", 1
GIVEN = ("x", "dy", "weights")  # inputs that are no parameters


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json as data, if it is one of ours; of whichever schema."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected golden cases with a manifest at {path}; there is none")
    try:
        found = read_json(path)
    except FileError as error:
        raise ValueError(f"expected a manifest of golden cases in {path}; cannot read it: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("schema"), int):
        raise ValueError(f"expected a manifest of golden cases in {path}; it is something else")
    return found


_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def read_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The cases of a manifest of our schema by name, each with the fields that are read here."""
    manifest, path = read_manifest(folder), folder / "manifest.json"
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA} in {path}; got {manifest['schema']}: dump anew")
    try:
        entries = {entry["name"]: entry for entry in manifest["cases"]}
        for name, entry in entries.items():
            # a name is a name in this folder, not a way out of it
            if not _NAME.fullmatch(name) or entry["file"] != f"{name}.npz":
                raise ValueError(f"case {name!r} with file {entry['file']!r}")
            if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
                raise ValueError(f"case {name!r} without bytes and sha256")
            entry["layer"]["kind"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected cases with name, file, bytes, sha256 and layer in {path}; got {error}") from error
    return entries
