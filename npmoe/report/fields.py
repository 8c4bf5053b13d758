"""Fields of JSON that others may have written, checked: what was expected, what came, in which file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = {
    str: "text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file of schema 1, NaN and infinities as None. Raises ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"expected {what} in {path}; there is no such file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected {what}, whole and in JSON, in {path}; got {error} (was it cut off?)") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected {what}, an object with schema 1, in {path}; got {shown(found)}")
    if found.get("schema") != 1:
        raise ValueError(f"expected schema 1 of {what} in {path}; got {shown(found.get('schema'))}")
    return found


def need(found: dict[str, Any], key: str, kind: type, where: str, at: str, among: tuple[str, ...] = ()) -> Any:
    """The field `key` of kind `kind`, which has to be there, and one of `among` where given."""
    if key not in found:
        raise ValueError(
            f"expected {where} to have {key!r}, {WORDS[kind]}; it has {', '.join(found) or 'nothing'} {at}"
        )
    value = found[key]
    fits = isinstance(value, int | float) and not isinstance(value, bool) if kind is float else isinstance(value, kind)
    if not fits or (kind is int and isinstance(value, bool)):
        raise ValueError(f"expected {where}, {key} to be {WORDS[kind]}; got {shown(value)} {at}")
    if among and value not in among:
        raise ValueError(f"expected {where}, {key} one of {', '.join(among)}; got {value!r} {at}")
    return value


def optional(found: dict[str, Any], key: str, kind: type, empty: Any, where: str, at: str) -> Any:
    """As `need`, but a missing or null field is filled in."""
    if found.get(key) is None:
        found[key] = empty
        return empty
    return need(found, key, kind, where, at)


def check_numbers(found: Any, where: str, at: str, length: int | None = None) -> None:
    """Check a list of numbers, null where undefined."""
    good = isinstance(found, list) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in found
    )
    if not good:
        raise ValueError(f"expected {where} to be a list of numbers (null where undefined); got {shown(found)} {at}")
    if length is not None and len(found) != length:
        raise ValueError(f"expected {where} to have {length} numbers, one for each x or column; got {len(found)} {at}")


def shown(value: Any) -> str:
    """A value as JSON, cut short, for an error."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
