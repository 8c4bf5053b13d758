"""What a run is called: a hash of its config, and of all the source that what it computes can reach."""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["canonical", "reached", "run_id", "source_hash"]

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def reached(*files: Path) -> tuple[Path, ...]:
    """The files, and all of their own package that they import, followed to the end: what their results depend on.

    Import statements count wherever they stand, also inside a function; what `importlib` loads by name does not. Of
    ``from a.b import c`` that is the module ``a.b.c``, or ``a.b`` where c is a name in it. A package on the way
    (``a/__init__.py``) is passed through, not read: what it gathers for others is nothing to the module below it.

    Raises
    ------
    ValueError
        Without files; a file that is missing or cannot be parsed raises its own error.
    """
    if not files:
        raise ValueError("expected Python files; got none")
    todo, found = [file.resolve() for file in files], set()
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _imported(file)
    return tuple(sorted(found))


def _imported(file: Path) -> Iterator[Path]:
    """The files of its own package that a file names in its import statements."""
    root = _root(file)
    here = file.relative_to(root).with_suffix("").parts[:-1]  # the package that relative imports start from
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        for name in names:
            module = _module(root, name) or _module(root, name[:-1])
            if module:
                yield module


def _module(root: Path, name: tuple[str, ...]) -> Path | None:
    """The file of a module, or of a package its __init__, below the folder that holds the package; None elsewhere."""
    path = root.joinpath(*name)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if name else ()
    return next((file for file in candidates if file.is_file()), None)


def source_hash(*files: Path) -> str:
    """Hash what Python source means: any change of code changes it, a reworded comment or docstring does not.

    Parameters
    ----------
    *files : Path
        Neither their order nor where the package lies matters. Another version of Python may read the same source as
        another tree, and so give another hash.

    Raises
    ------
    ValueError
        Without files; a file that is missing or cannot be parsed raises its own error.
    """
    if not files:
        raise ValueError("expected Python files; got none")
    named = {(_name(file), _meaning(file)) for file in map(Path.resolve, files)}
    return hashlib.sha256(json.dumps(sorted(named)).encode()).hexdigest()


def _root(file: Path) -> Path:
    """The folder that holds the outermost package of a file."""
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    return root


def _name(file: Path) -> str:
    """``npmoe/model/moe.py``, wherever the package lies."""
    return file.relative_to(_root(file)).as_posix()


def _meaning(file: Path) -> str:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def run_id(config: Any, source: str) -> str:
    """Name a run by 16 hex digits of its config (class names and fields) and of the source that computes it.

    Raises
    ------
    TypeError
        Where the config is not a hashable (frozen) dataclass of JSON-able, finite values.
    """
    return hashlib.sha256(f"{canonical(config)}\n{source}".encode()).hexdigest()[:16]


def canonical(config: Any) -> str:
    try:
        hash(config)
        return json.dumps(_fields(config), default=_fields, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected a frozen dataclass of JSON-able values; got {config!r}: {error}") from error


def _fields(value: Any) -> dict[str, Any]:
    """One dataclass, not into the depth: nested ones come here in turn, each with the name of its class."""
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} is neither a dataclass nor JSON-able")
    return {"class": type(value).__qualname__} | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
