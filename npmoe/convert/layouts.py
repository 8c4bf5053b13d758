"""Layouts: which weights of a foreign model are which of ours, as data that is read both ways.

A layout maps names of our leaves to places in their tensors (`npmoe.convert.places`), as in `LAYOUTS`. `from_torch` and
`from_jax` read along it into a layer and say what of the model they read; `to_torch` and `to_jax` write along it. No
framework is imported: a tensor is whatever has a shape and a dtype.

n tokens, d width, h hidden, o output width, E experts, k experts a token.

A layout of one's own, for a mixture whose gate and up rows alternate as in gpt-oss (only the places are meant: its
activation is not SwiGLU), weights (E, d, 2h) and (E, h, d) for ``x @ w``:

>>> interleaved = {
...     "router": "router.weight",
...     "bias?": "router.bias",
...     "experts.{e}.Wg": "experts.gate_up_proj[e, :, 0::2].T",
...     "experts.{e}.Wu": "experts.gate_up_proj[e, :, 1::2].T",
...     "experts.{e}.Wd": "experts.down_proj[e].T",
... }
>>> shapes = {"router.weight": (4, 3), "experts.gate_up_proj": (4, 3, 10), "experts.down_proj": (4, 5, 3)}
>>> moe, coverage = from_torch({name: np.ones(shape) for name, shape in shapes.items()}, interleaved, k=2)
>>> moe.experts[0].widths, coverage.complete
((3, 5, 3), True)
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.tree import named_leaves
from npmoe.calculus.words import one_line
from npmoe.convert.choice import chosen, family
from npmoe.convert.coverage import Coverage, Unused, coverage_of, unread
from npmoe.convert.known import LAYOUTS, LEAVES, Layout
from npmoe.convert.matching import Parsed, Row, found_names, missing, parsed_layout, rows_of
from npmoe.convert.places import Place, Want, shape_of
from npmoe.convert.tensors import (
    array_of,
    by_plain_names,
    cast,
    dtype_of,
    flat,
    kept,
    like_old,
    nested,
    plain,
    rebuilt,
    under,
    with_params,
)
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE

__all__ = ["LAYOUTS", "Converted", "Coverage", "Row", "Unused", "from_jax", "from_torch", "to_jax", "to_torch"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE


class Converted(NamedTuple):
    """A layer of ours, and what of the model it holds."""

    layer: Any
    coverage: Coverage

    def __repr__(self) -> str:
        return one_line(self)

    def read(self, arrays: Any) -> dict[str, Array]:
        """Arrays in their names and shapes (gradients, say) by the names of our leaves.

        Parameters
        ----------
        arrays : a mapping or tree of the names that the model had; None stands for zeros, as torch has it for the
            gradient of an expert without tokens. What the layout does not name is passed over. Names may have or lack
            the "_orig_mod." of torch.compile, and all of them the leading "params." of flax.

        Raises
        ------
        ValueError, TypeError : for a name that lacks, another shape, or a tensor that several leaves share, whose
            gradient is a sum that nobody can take apart.

        Examples
        --------
        >>> weights = {"fc1.weight": np.ones((5, 3)), "fc2.weight": np.ones((3, 5))}
        >>> from_torch(weights).read({"fc1.weight": np.zeros((5, 3)), "fc2.weight": None})["W2"].shape
        (3, 5)
        """
        coverage = self.coverage
        if coverage.shared:
            raise ValueError(f"expected each element to be of one leaf; got {coverage.shared[0]!r}, which leaves share")
        named = by_plain_names(flat(arrays, nothing=True))
        ways = (coverage.prefix, f"params.{coverage.prefix}", coverage.prefix.removeprefix("params."))
        prefix = next((way for way in ways if any(way + row.tensor in named for row in coverage.rows)), ways[0])
        given = under(prefix, named)
        full: dict[str, Array] = {}
        for _, _, _, _, name, shape in coverage.rows:
            if name not in given:
                raise ValueError(f"expected an array for tensor {prefix + name!r}; got {', '.join(given) or 'none'}")
            if name not in full:
                full[name] = np.zeros(shape) if given[name] is None else array_of(given[name])
            check.shaped(f"the array for tensor {prefix + name!r}", full[name], shape)
        return {row.leaf: np.array(row.place.view(full[row.tensor], row.e), order="C") for row in coverage.rows}


def from_torch(
    source: Any,
    layout: str | Layout | None = None,
    *,
    k: int | None = None,
    renormalize: bool = True,
    temperature: float = 1.0,
    activation: str | None = None,
    prefix: str = "",
    dtype: Any = None,
) -> Converted:
    """A layer with the weights of a torch module or its state dict, and what of it they cover.

    Parameters
    ----------
    source : anything with ``state_dict()``, or a mapping of names to tensors. All are copied; halves become float32.
        The "_orig_mod." that torch.compile puts into names is left out.
    layout : name in `LAYOUTS`, a family of them ("linear"), or a mapping of our leaves to places; found by the names
        of the tensors unless given. A "?" at the end of a leaf's name marks one that may lack. Biases that are not
        mapped are zero, that of the router None.
    k : experts a token; required of a mixture, refused of a dense expert.
    renormalize, temperature : as of `MoE`.
    activation : as of `GeluExpert` ("gelu" unless given); a gated expert has "silu" and no other.
    prefix : what the names begin with, such as "model.layers.0.mlp."; all others are left alone.
    dtype : of the layer's arrays, one of NumPy's or of the same name ("float64", torch.float64); as they are unless
        given.

    Raises
    ------
    ValueError, TypeError : for a layout that is none or does not fit, several that fit, tensors that are not floats or
        not finite, and k where it does not belong; each says what was expected of which tensor.

    Examples
    --------
    >>> layer, coverage = from_torch({"fc1.weight": np.ones((5, 3)), "fc2.weight": np.ones((3, 5))})
    >>> print(coverage)
    layout linear/fc1-fc2/dense
    leaf  shape   place       of shape
    W1    (5, 3)  fc1.weight  (5, 3)
    W2    (3, 5)  fc2.weight  (3, 5)
    2 of 2 tensors used, all of each
    """
    tree = _instance(source).state_dict() if hasattr(source, "state_dict") else _instance(source)
    if not isinstance(tree, Mapping):
        raise TypeError(f"expected a module with state_dict() or a mapping of tensors; got {type(source).__name__}")
    tensors = by_plain_names(flat(tree))
    return _converted(tensors, layout, k, renormalize, temperature, activation, plain(prefix), dtype)


def _instance(source: Any) -> Any:
    if isinstance(source, type):
        raise TypeError(
            f"expected an instance, such as {source.__name__}(...), whose tensors can be read; got the class "
            f"{source.__name__} itself"
        )
    return source


def from_jax(
    source: Any,
    layout: str | Layout | None = None,
    *,
    k: int | None = None,
    renormalize: bool = True,
    temperature: float = 1.0,
    activation: str | None = None,
    prefix: str = "",
    dtype: Any = None,
) -> Converted:
    """A layer with the weights of a tree of arrays, and what of it they cover; otherwise as `from_torch`.

    Parameters
    ----------
    source : nested mappings, lists, tuples, dataclasses or objects of arrays. A leaf's name is its path with dots, such
        as "params.Dense_0.kernel"; a flat mapping of such names is one too. A "params." that all names begin with, as
        in flax, need not be said: it becomes part of the prefix, unless prefix or layout name it.

    Examples
    --------
    >>> dense = {"kernel": np.ones((3, 5)), "bias": np.ones(5)}, {"kernel": np.ones((5, 2)), "bias": np.ones(2)}
    >>> layer, coverage = from_jax({"params": {"Dense_0": dense[0], "Dense_1": dense[1]}})
    >>> layer.widths, coverage.name, coverage.prefix
    ((3, 5, 2), 'flax/dense-gelu', 'params.')
    """
    tensors = dict(flat(_instance(source)))
    prefix = with_params(prefix, tensors, _places(layout))
    return _converted(tensors, layout, k, renormalize, temperature, activation, prefix, dtype)


def _places(layout: str | Layout | None) -> list[str]:
    """The places of a mapping of one's own, those that are strings; others are refused later, by name."""
    return [place for place in layout.values() if isinstance(place, str)] if isinstance(layout, Mapping) else []


def _converted(
    named: dict[str, Any],
    layout: str | Layout | None,
    k: int | None,
    renormalize: bool,
    temperature: float,
    activation: str | None,
    prefix: str,
    dtype: Any,
) -> Converted:
    dtype = None if dtype is None else dtype_of(dtype)
    tensors = under(prefix, named)
    name, parsed, rows = chosen(layout, tensors, mixture=k is not None)
    if parsed.moe and k is None:
        raise ValueError("expected k, the number of experts a token, which no tensor says; got none")
    if not parsed.moe and k is not None:
        raise ValueError(f"expected no k for a dense expert, which has no router; got k = {k!r}")
    if parsed.kind == "swiglu" and activation not in (None, "silu"):
        raise ValueError(f"expected the activation of a gated expert to be silu; got {activation!r}")
    full = {row.tensor: array_of(tensors[row.tensor]) for row in rows}
    leaves = {row.leaf: _leaf(row, full[row.tensor], dtype) for row in rows}

    def expert(under: str) -> GeluExpert | SwigluExpert:
        found = {leaf: leaves.get(under + leaf) for leaf in LEAVES[parsed.kind]}
        if parsed.kind == "swiglu":
            return SwigluExpert(**found)  # type: ignore[arg-type]
        for bias, W in (("b1", "W1"), ("b2", "W2")):
            if found[bias] is None:
                found[bias] = np.zeros(len(found[W]), found[W].dtype)  # type: ignore[arg-type, union-attr]
        return GeluExpert(**found, activation="gelu" if activation is None else activation)  # type: ignore[arg-type]

    layer: Layer
    if parsed.moe:
        experts = tuple(expert(f"experts.{e}.") for e in range(len(leaves["router"])))
        layer = MoE(leaves["router"], experts, k, renormalize, temperature, leaves.get("bias"))  # type: ignore[arg-type]
    else:
        layer = expert("")
    return Converted(layer, coverage_of(name, parsed, rows, tensors, prefix))


def _leaf(row: Row, tensor: Array, dtype: Any) -> Array:
    """A copy of what stands at a row's place, finite before and after it is made `dtype`."""
    label = f"{row.leaf}, {row.place.at(row.e)!r},"
    leaf = check.finite(label, np.array(row.place.view(tensor, row.e), order="C"))
    return leaf if dtype is None else check.finite(f"{label} as {np.dtype(dtype)}", cast(leaf, dtype))


# Back


def to_torch(layer: Layer, layout: str | Layout, *, like: Any = None, prefix: str = "") -> dict[str, Any]:
    """The weights of a layer by the names of a layout, the reverse of `from_torch` to the bit.

    Parameters
    ----------
    layer : GeluExpert, SwigluExpert, or a MoE of experts of one of these kinds.
    layout : as of `from_torch`; ``coverage.layout`` is the one that was found, with its optional leaves settled.
    like : a module or state dict whose other tensors, shapes, dtypes and kind of tensor are kept; it may be wider than
        the layout. Without, shapes follow from the places, arrays are NumPy's, and optional biases are written, the
        router's where the layer has one.
    prefix : as of `from_torch`.

    Raises
    ------
    ValueError, TypeError : if the layer is of another kind than the layout, shapes differ from those of `like`, two
        leaves share an element, nothing says what an element is, a bias that is not zero has no place, or a number
        overflows in the dtype of `like`.

    Examples
    --------
    >>> layer, coverage = from_torch({"fc1.weight": np.ones((5, 3)), "fc2.weight": np.ones((3, 5))})
    >>> {name: tensor.shape for name, tensor in to_torch(layer, coverage.layout).items()}
    {'fc1.weight': (5, 3), 'fc2.weight': (3, 5)}
    """
    tree = _instance(like).state_dict() if hasattr(like, "state_dict") else _instance(like)
    if tree is not None and not isinstance(tree, Mapping):
        raise TypeError(f"expected like to be a module with state_dict() or a mapping; got {type(like).__name__}")
    new = _written(layer, layout, None if tree is None else by_plain_names(flat(tree)), plain(prefix))
    if tree is None:
        return new
    return {name: new[plain(name)] if plain(name) in new else kept(old) for name, old in tree.items()}


def to_jax(layer: Layer, layout: str | Layout, *, like: Any = None, prefix: str = "") -> Any:
    """The weights of a layer as a tree of NumPy arrays, the reverse of `from_jax`; otherwise as `to_torch`.

    Parameters
    ----------
    like : a tree whose other leaves, shapes and dtypes are kept. Mappings and objects come back as dicts, lists and
        tuples as they are. Without, the names' dots make a tree of dicts.

    Examples
    --------
    >>> layer = from_jax({"W1": np.ones((5, 3)), "W2": np.ones((3, 5))}, "npmoe").layer
    >>> to_jax(layer, "flax/dense-gelu", prefix="params.")["params"]["Dense_0"]["kernel"].shape
    (3, 5)
    """
    if like is None:
        return nested(_written(layer, layout, None, prefix))
    tensors = dict(flat(_instance(like)))
    return rebuilt(like, _written(layer, layout, tensors, with_params(prefix, tensors, _places(layout))))


def _written(layer: Layer, layout: str | Layout, like: dict[str, Any] | None, prefix: str) -> dict[str, Any]:
    """The tensors that the layout names, full names, with the layer's weights in them."""
    old = None if like is None else under(prefix, like)
    leaves = dict(named_leaves(layer))
    parsed = _settled(_for_layer(layer, layout, old), leaves, old)
    if old is None:
        E = len(leaves["router"]) if parsed.moe else 0
        wants: dict[str, list[Want]] = {}
        for path, place, e in _expanded(parsed, E):
            wants.setdefault(place.tensor(e), []).append(Want(place, leaves[path].shape, e))
        dtype = np.result_type(*leaves.values())
        tensors = {name: np.zeros(shape_of(name, wanted, E), dtype) for name, wanted in wants.items()}
    else:
        tensors = old
    rows = rows_of(parsed, tensors)
    full: dict[str, Array] = {}
    by: dict[str, Array] = {}  # which elements are written
    for row in rows:
        name, leaf = row.tensor, leaves.get(row.leaf)
        if leaf is None or leaf.shape != row.shape:
            raise ValueError(
                f"expected {row.leaf} of shape {row.shape}, of the place {row.place.at(row.e)!r} in tensor {name!r} of "
                f"shape {row.tensor_shape}; got {'none' if leaf is None else leaf.shape}"
            )
        array = full[name] if name in full else np.array(array_of(tensors[name]))
        full[name] = array.astype(np.result_type(array, leaf), copy=False)
        written = by.setdefault(name, np.zeros(row.tensor_shape, bool))
        if row.place.view(written, row.e).any():
            raise ValueError(f"expected one leaf at each element of tensor {name!r}; got {row.leaf} over another")
        row.place.view(written, row.e)[...] = True
        row.place.view(full[name], row.e)[...] = leaf
    for name, written in by.items():
        if old is None and not written.all():
            raise ValueError(
                f"expected places for all of tensor {name!r} of shape {written.shape}, or like= with the rest; got "
                f"none for {unread(written)}"
            )
    return {prefix + name: array if old is None else like_old(name, old[name], array) for name, array in full.items()}


def _for_layer(layer: Layer, layout: str | Layout, old: Mapping[str, Any] | None) -> Parsed:
    """The layout that is meant for this layer: of a family the member of its kind."""
    kinds = {GeluExpert: "gelu", SwigluExpert: "swiglu"}
    moe = isinstance(layer, MoE)
    experts = layer.experts if isinstance(layer, MoE) else (layer,)
    within = {kinds.get(type(expert), "") for expert in experts}
    if len(within) > 1 or "" in within:
        got = ", ".join(sorted({type(expert).__name__ for expert in experts}))
        raise TypeError(f"expected GeluExpert or SwigluExpert, or a MoE of one of these; got {'MoE of ' * moe}{got}")
    for part in (layer, *experts):
        if not getattr(part, "plain", True):
            raise TypeError(f"expected a layer that these layouts can hold, with plain gates and experts; got {part!r}")
    if layout is None:
        raise TypeError(f"expected a layout as a name among {', '.join(LAYOUTS)} or a mapping; got None")
    members = family(layout) if isinstance(layout, str) else {"your own": parsed_layout(layout)}
    fits = {name: p for name, p in members.items() if (p.moe, {p.kind}) == (moe, within)}
    what = f"{'a mixture' if moe else 'a dense expert'} of kind {within.pop()!r}"
    if not fits:
        raise ValueError(f"expected a layout for {what}; got {', '.join(members)}")
    if len(fits) > 1 and old is not None:
        fits = {name: p for name, p in fits.items() if not missing(p, old)} or fits
        shapes = {leaf: array.shape for leaf, array in named_leaves(layer)}
        fits = {name: p for name, p in fits.items() if _has(p, old, shapes)} or fits
    if len(fits) > 1:
        raise ValueError(f"expected one layout for {what}; got {layout!r}, which may be any of {', '.join(fits)}")
    return next(iter(fits.values()))


def _has(parsed: Parsed, old: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the leaves that these tensors have in a layout are of the layer's own shapes."""
    try:
        return all(shapes.get(row.leaf, row.shape) == row.shape for row in rows_of(parsed, old))
    except (ValueError, TypeError):
        return False


def _settled(parsed: Parsed, leaves: dict[str, Array], old: Mapping[str, Any] | None) -> Parsed:
    """The layout with those leaves that are to be written; `leaves` gets the router's bias where a place wants one."""
    places = {}
    for template in parsed.templates:
        place = parsed.places.get(template)
        mine = [leaf for leaf in leaves if template == leaf or _template(leaf) == template]
        lacks = place is None
        if place is not None and template in parsed.optional:
            lacks = not mine if old is None else not any(found_names(place, old))
        if lacks:
            if over := [leaf for leaf in mine if leaves[leaf].any()]:
                raise ValueError(
                    f"expected a place for {over[0]}, which is not zero; got none in the layout or in like"
                )
            continue
        if not mine:  # a router without bias for a model with one
            leaves[template] = np.zeros_like(leaves["router"][:, 0])
        places[template] = place
    return parsed._replace(places=places, optional=frozenset())  # type: ignore[arg-type]


def _template(leaf: str) -> str:
    """ "experts.3.W1" -> "experts.{e}.W1"."""
    first, *rest = leaf.split(".")
    return ".".join([first, "{e}", *rest[1:]]) if rest else leaf


def _expanded(parsed: Parsed, E: int) -> Iterator[tuple[str, Place, int | None]]:
    """(leaf, place, e) for all leaves of all experts."""
    for template, place in parsed.places.items():
        for e in range(E) if "{e}" in template else (None,):
            yield template.replace("{e}", str(e)), place, e
