"""Other people's tensors, known by a shape and a dtype alone: trees of them by name, and their values in NumPy."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from npmoe.calculus import check

__all__ = ["FLOATS", "array_of", "by_plain_names", "cast", "dtype_name", "dtype_of", "flat", "kept", "like_old"]
__all__ += ["nested", "plain", "rebuilt", "under", "with_params"]

Array = np.ndarray

FLOATS = ("float16", "bfloat16", "float32", "float64", "float128")


def dtype_name(tensor: Any) -> str:
    """The name of a dtype of NumPy, JAX or torch, such as "float32" or "bfloat16"."""
    return str(getattr(tensor.dtype, "name", tensor.dtype)).removeprefix("torch.")


def dtype_of(dtype: Any) -> np.dtype[Any]:
    """NumPy's dtype of floats for one of NumPy, JAX or torch, or a name such as "float64" or "torch.float64".

    Examples
    --------
    >>> dtype_of("torch.float64"), dtype_of(np.float32)
    (dtype('float64'), dtype('float32'))
    """
    found, name = None, str(dtype).rsplit(".", 1)[-1]
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        if name in FLOATS and hasattr(np, name):  # NumPy has no bfloat16
            found = np.dtype(name)
    if found is None or found.kind != "f":
        got = repr(dtype) if found is None else str(found)
        raise TypeError(f"expected a dtype of floats that NumPy has, such as 'float64'; got {got}")
    return found


def is_tensor(value: Any) -> bool:
    """Whether it has a shape and a dtype, and is no class that describes them."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def flat(tree: Any, name: str = "", above: tuple[int, ...] = (), nothing: bool = False) -> Iterator[tuple[str, Any]]:
    """Tensors of a tree by name, the path with dots; Python's floats are some too, and None where `nothing` is.

    Examples
    --------
    >>> [name for name, _ in flat({"params": [np.ones(2), {"bias": 0.5, "name": "b"}]})]
    ['params.0', 'params.1.bias']
    """
    if is_tensor(tree) or (nothing and tree is None):
        yield name, tree
    elif isinstance(tree, float):
        yield name, np.asarray(tree)
    elif id(tree) not in above:  # or an object that knows its owner would never end
        names = set()
        for key, child in _children(tree):
            for path, tensor in flat(child, f"{name}.{key}" if name else str(key), (*above, id(tree)), nothing):
                if path in names:
                    raise ValueError(f"expected each name once in the tree; got {path!r} twice")
                names.add(path)
                yield path, tensor


def _children(tree: Any) -> list[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    if isinstance(tree, type):
        return []
    if is_dataclass(tree):
        return [(field.name, getattr(tree, field.name, None)) for field in fields(tree)]
    return [(key, child) for key, child in getattr(tree, "__dict__", {}).items() if not key.startswith("_")]


def plain(name: str) -> str:
    """A name without the "_orig_mod." that torch.compile puts before those of a module's tensors.

    Examples
    --------
    >>> plain("mlp._orig_mod.gate.weight")
    'mlp.gate.weight'
    """
    return re.sub(r"(?<![^.])_orig_mod\.", "", name)


def by_plain_names(tensors: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Tensors by their plain names; two of one name are an error."""
    found: dict[str, Any] = {}
    for name, tensor in tensors:
        if plain(name) in found:
            raise ValueError(f"expected each name once, without '_orig_mod.'; got {plain(name)!r} twice")
        found[plain(name)] = tensor
    return found


def with_params(prefix: str, names: Iterable[str], places: Iterable[str] = ()) -> str:
    """The prefix after the "params." of flax, where all names begin with it and neither prefix nor a place does.

    Examples
    --------
    >>> with_params("mlp.", ["params.mlp.kernel"])
    'params.mlp.'
    """
    said = prefix.startswith("params.") or any(place.startswith("params.") for place in places)
    named = list(names)
    return prefix if said or not named or not all(name.startswith("params.") for name in named) else f"params.{prefix}"


def under(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """Those whose names begin with a prefix, without it; none of them is an error."""
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        names = ", ".join(map(repr, list(tensors)[:8])) or "none"
        raise ValueError(f"expected tensors{f' whose names begin with {prefix!r}' if prefix else ''}; got {names}")
    return found


def array_of(tensor: Any) -> Array:
    """Values as a NumPy array, not a copy where it can be helped; 16 bits become float32, which is exact."""
    half = dtype_name(tensor) in ("bfloat16", "float16")
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        return np.asarray((tensor.float() if half else tensor).numpy())
    array = np.asarray(tensor)
    return array.astype(np.float32) if half else array.astype(array.dtype.newbyteorder("="), copy=False)


def cast(array: Array, dtype: Any) -> Array:
    """A copy in another dtype. To a shorter one numbers round, also to 0, and overflow: the caller looks for that."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


# Back


def like_old(name: str, old: Any, array: Array) -> Any:
    """`array` as a tensor of the kind and dtype of `old`: torch's own, else NumPy's; what overflows is refused."""
    torch = hasattr(old, "new_tensor")
    new = old.detach().new_tensor(array) if torch else cast(array, np.asarray(old).dtype)
    check.finite(f"{name} as {dtype_name(old)}", array_of(new))
    return new


def kept(old: Any) -> Any:
    """A copy of a tensor that can be written to; what else there is as it is."""
    if hasattr(old, "detach") and hasattr(old, "clone"):
        return old.detach().clone()
    return old.copy() if isinstance(old, np.ndarray) else old


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from names with dots.

    Examples
    --------
    >>> nested({"Dense_0.kernel": 1, "Dense_0.bias": 2})
    {'Dense_0': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise ValueError(f"expected {name!r} to be within a tree; got a tensor at {step!r}")
        if last in node:
            raise ValueError(f"expected {name!r} to be a tensor; got a tree there")
        node[last] = tensor
    return tree


def rebuilt(tree: Any, new: Mapping[str, Any], name: str = "") -> Any:
    """`tree` with the new tensors at their names: mappings become dicts, as objects do; lists and tuples stay."""
    if is_tensor(tree) or isinstance(tree, float):
        return new[name] if name in new else kept(tree)
    children = {key: rebuilt(child, new, f"{name}.{key}" if name else str(key)) for key, child in _children(tree)}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(**children)
    if isinstance(tree, list | tuple):
        return type(tree)(children.values())
    return children if children or isinstance(tree, Mapping) else tree
