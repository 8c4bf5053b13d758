"""A model is a tree: frozen dataclasses and tuples whose leaves are arrays; everything else is data.

A gradient is a tree of the same shape, so Adam, a gradient check and saving are each one walk.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

__all__ = ["dot", "flatten", "leaves", "map_leaves", "named_leaves", "unflatten"]

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
    for key, child in _children(tree):
        yield from named_leaves(child, f"{name}.{key}" if name else str(key))


def _children(tree: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(tree, tuple):
        yield from enumerate(tree)
    elif is_dataclass(tree):
        for field in fields(tree):
            yield field.name, getattr(tree, field.name)


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays of a tree, in the order of `named_leaves`."""
    return [leaf for _, leaf in named_leaves(tree)]


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
    if is_dataclass(tree):
        new = {
            field.name: map_leaves(function, *(getattr(t, field.name) for t in (tree, *others)))
            for field in fields(tree)
        }
        return replace(tree, **new)  # type: ignore[type-var]
    return tree


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
    size = sum(leaf.size for leaf in leaves(like))
    if vector.shape != (size,):
        raise ValueError(f"expected a flat vector of {size} elements, as many as the tree has; got {vector.shape}")
    start = 0

    def take(leaf: np.ndarray) -> np.ndarray:
        nonlocal start
        view = vector[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
        return view

    return map_leaves(take, like)
