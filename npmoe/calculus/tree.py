"""A model is a tree: frozen dataclasses and tuples whose leaves are arrays; everything else is data.

A gradient is a tree of the same shape, so Adam, a gradient check and saving are each one walk.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

__all__ = ["alike", "cast", "dot", "flatten", "leaves", "map_leaves", "named_leaves", "unflatten", "unflattener"]

Tree = TypeVar("Tree")


def named_leaves(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Leaves with their path, such as ``("experts.3.W1", array)``, in a fixed order.

    Examples
    --------
    >>> [name for name, _ in named_leaves((np.zeros(2), np.ones(1)))]
    ['0', '1']
    """
    if isinstance(tree, np.ndarray):
        yield name, tree
        return
    keys = range(len(tree)) if isinstance(tree, tuple) else _names(type(tree))
    for key, child in zip(keys, _children(tree), strict=True):
        yield from named_leaves(child, f"{name}.{key}" if name else str(key))


def _fields(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields; what is neither a dataclass nor a tuple nor an array has no children."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


_names: Callable[[type], tuple[str, ...]] = cache(_fields)


def _children(tree: Any) -> tuple[Any, ...]:
    return tree if isinstance(tree, tuple) else tuple(getattr(tree, name) for name in _names(type(tree)))


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays of a tree, in the order of `named_leaves`."""
    if isinstance(tree, np.ndarray):
        return [tree]
    return [leaf for child in _children(tree) for leaf in leaves(child)]


def map_leaves(function: Callable[..., np.ndarray], tree: Tree, *others: Tree) -> Tree:
    """A tree like `tree` with ``function(leaf, *leaves of the others at its place)`` at each leaf.

    Examples
    --------
    >>> map_leaves(np.add, (np.ones(2),), (np.ones(2),))
    (array([2., 2.]),)
    """
    if isinstance(tree, np.ndarray):
        return function(tree, *others)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        return tuple(map_leaves(function, *children) for children in zip(tree, *others, strict=True))  # type: ignore[return-value]
    if names := _names(type(tree)):
        return replace(
            tree, **{name: map_leaves(function, *(getattr(t, name) for t in (tree, *others))) for name in names}
        )  # type: ignore[type-var]
    return tree


def cast(tree: Tree, dtype: Any) -> Tree:
    """The tree with every leaf in a dtype; one that has it already is not copied.

    Examples
    --------
    >>> cast((np.ones(2),), np.float32)
    (array([1., 1.], dtype=float32),)
    """
    return map_leaves(lambda leaf: leaf.astype(dtype, copy=False), tree)


def dot(a: Tree, b: Tree) -> float:
    """Inner product of two trees of one shape.

    Examples
    --------
    >>> dot((np.ones(2), np.ones(3)), (np.ones(2), np.ones(3)))
    5.0
    """
    return float(sum(np.vdot(x, y).real for x, y in zip(leaves(a), leaves(b), strict=True)))


def flatten(tree: Any) -> np.ndarray:
    """All leaves as one new flat vector.

    Examples
    --------
    >>> flatten((np.ones((1, 2)), np.zeros(1)))
    array([1., 1., 0.])
    """
    found = leaves(tree)
    return np.concatenate([leaf.ravel() for leaf in found]) if found else np.zeros(0)


def unflatten(vector: np.ndarray, like: Tree) -> Tree:
    """The tree of the shape of `like` whose leaves are views of the flat `vector`.

    Raises
    ------
    ValueError : if the vector has not as many elements as the tree.

    Examples
    --------
    >>> unflatten(np.arange(3.0), like=(np.ones((1, 2)), np.zeros(1)))
    (array([[0., 1.]]), array([2.]))
    """
    return unflattener(like)(vector)


def unflattener(like: Tree) -> Callable[[np.ndarray], Tree]:
    """`unflatten` for many vectors and one tree, whose shape is looked at once."""
    found = leaves(like)
    ends = np.cumsum([leaf.size for leaf in found], dtype=int).tolist()
    size = ends[-1] if ends else 0
    places = [(end - leaf.size, end, leaf.shape) for leaf, end in zip(found, ends, strict=True)]
    build = _builder(like)

    def unflattened(vector: np.ndarray) -> Tree:
        if vector.shape != (size,):
            raise ValueError(f"expected a flat vector of {size} elements, as many as the tree has; got {vector.shape}")
        return build(iter([vector[start:end].reshape(shape) for start, end, shape in places]))

    return unflattened


def alike(like: Tree, **values: Any) -> Tree:
    """A dataclass of the class of `like` with other values of the same shapes, which are not checked again.

    A gradient has the shapes of its model: in training, checking them at every step would take longer than Adam.
    """
    kept = getattr(like, "__dict__", {})
    # one that keeps more than its fields, or some in slots, is made anew; so is one with a name that is none of them
    if len(kept) != len(_names(type(like))) or not values.keys() <= kept.keys():
        return replace(like, **values)  # type: ignore[type-var]
    new = object.__new__(type(like))
    vars(new).update(kept, **values)
    return new


Views = Iterator[np.ndarray]


def _builder(like: Any) -> Callable[[Views], Any]:
    """A function that makes `like` with the next views in the places of its leaves."""
    if isinstance(like, np.ndarray):
        return next
    if isinstance(like, tuple):
        children = [_builder(child) for child in like]
        return lambda views: tuple([child(views) for child in children])
    if not (names := _names(type(like))):
        return lambda views: like
    fields_of = [(name, _builder(getattr(like, name))) for name in names]
    return lambda views: alike(like, **{name: child(views) for name, child in fields_of})
