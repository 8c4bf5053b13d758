"""Files written whole or not at all: what stood there before stays until the new one is complete."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["write", "write_json"]


def write(path: Path, content: bytes) -> Path:
    """`content` into a file, whose folders are made if they are not there; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.tmp")
    try:
        half.write_bytes(content)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    return path


def write_json(path: Path, data: dict[str, Any]) -> Path:
    """Plain data, in which every number is finite, as `write` does."""
    return write(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
