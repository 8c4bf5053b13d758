"""Layouts: what is read along a place is what stands there, back is the same bits, and each error names its tensor."""

import sys
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmoe
from npmoe.calculus.tree import leaves, named_leaves
from npmoe.convert.layouts import LAYOUTS, from_jax, from_torch, to_jax, to_torch
from npmoe.convert.matching import parsed_layout
from npmoe.convert.places import Want, parse, shape_of
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE

# Weights are copied, never computed: every comparison of them is to the bit. Outputs of two implementations agree to a
# few eps of float64 times the number of terms in a sum.
RTOL = 1e-12
EXAMPLES = settings(max_examples=25, deadline=None)

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 6)


def expert(rng, kind, d, h, o):
    if kind == "swiglu":
        return SwigluExpert(*(rng.standard_normal(shape) for shape in [(h, d), (h, d), (o, h)]))
    return GeluExpert(*(rng.standard_normal(shape) for shape in [(h, d), (h,), (o, h), (o,)]))


def layer_for(name, rng, E, d, h, o, bias=True):
    """A layer of the kind that a layout is for."""
    parsed = parsed_layout(LAYOUTS[name])
    if not parsed.moe:
        return expert(rng, parsed.kind, d, h, o)
    experts = tuple(expert(rng, parsed.kind, d, h, o) for _ in range(E))
    return MoE(rng.standard_normal((E, d)), experts, k=1, bias=rng.standard_normal(E) if bias else None)


def options(layer, **more):
    return ({"k": layer.k} if isinstance(layer, MoE) else {}) | more


def same_layers(a, b):
    for (name, x), (other, y) in zip(named_leaves(a), named_leaves(b), strict=True):
        assert name == other
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


class Module:
    """All that `from_torch` asks of a module."""

    def __init__(self, tensors):
        self.tensors = tensors

    def state_dict(self):
        return self.tensors


class Tensor:
    """All that is asked of a torch tensor; its own methods are few, so that any other would be an AttributeError."""

    def __init__(self, array, dtype):
        self.array, self.dtype, self.shape = np.asarray(array), dtype, np.shape(array)

    def detach(self):
        return self

    cpu = clone = detach

    def float(self):
        return Tensor(self.array.astype(np.float32), "torch.float32")

    def numpy(self):
        if self.dtype in ("torch.bfloat16",):
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array

    def new_tensor(self, array):
        assert type(array) is np.ndarray
        held = {"torch.bfloat16": np.float32, "torch.float16": np.float16}.get(self.dtype, self.dtype.split(".")[-1])
        with np.errstate(over="ignore"):
            return Tensor(array.astype(held), self.dtype)


# Places


@pytest.mark.parametrize(
    ("text", "shape", "e", "key"),
    [
        ("w", (2, 3), None, np.s_[...]),
        ("w.T", (2, 3), None, np.s_[...]),
        ("w[e]", (4, 2, 3), 2, np.s_[2]),
        ("w[e].T", (4, 2, 3), 2, np.s_[2]),
        ("w[ e , :half ]", (4, 6, 3), 1, np.s_[1, :3]),
        ("w[e, half:]", (4, 6, 3), 1, np.s_[1, 3:]),
        ("w[e,:,0::2].T", (4, 3, 6), 3, np.s_[3, :, 0::2]),
        ("w[e, :, 1::2]", (4, 3, 6), 3, np.s_[3, :, 1::2]),
        ("w[-1, 1:3]", (4, 3), None, np.s_[-1, 1:3]),
        ("w[:, e, ::-1]", (3, 4, 5), 0, np.s_[:, 0, ::-1]),
        ("a.{e}.b[0]", (4, 3), 7, np.s_[0]),
    ],
)
def test_a_place_reads_what_numpy_reads(text, shape, e, key, rng):
    array, place = rng.standard_normal(shape), parse(text)
    expected = array[key].T if text.endswith(".T") else array[key]
    np.testing.assert_array_equal(place.view(array, e), expected)
    assert place.shape(shape, e) == expected.shape
    np.testing.assert_array_equal(parse(place.at(e)).view(array), expected)


@EXAMPLES
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_the_shape_that_is_inferred_is_the_least_that_has_room(m, other, step, start):
    place = parse(f"w[{start}::{step}]")
    shape = shape_of("w", [Want(place, (m, other), None)], E=1)
    assert place.shape(shape) == (m, other)
    assert shape == (start + (m - 1) * step + 1, other)


def test_interleaved_places_need_one_more_than_each_alone():
    even, odd = parse("w[0::2]"), parse("w[1::2]")
    assert shape_of("w", [Want(even, (5,), None)], 1) == (9,)
    assert shape_of("w", [Want(even, (5,), None), Want(odd, (5,), None)], 1) == (10,)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "expected a place such as \"gate.weight\", .* got ''"),
        ("w w", ValueError, "expected a place such as .* got 'w w'"),
        ("w[e", ValueError, "expected a place such as .* got"),
        ("w[e][0]", ValueError, "expected a place such as .* got"),
        ("w.T[e]", ValueError, None),
        ("w{f}", ValueError, "expected a place such as .* got 'w{f}'"),
        ("w[]", ValueError, r"expected in 'w\[\]' an index of e, integers, slices of integers, :half or half:; got ''"),
        ("w[f]", ValueError, "got 'f'"),
        ("w[e+1]", ValueError, r"got 'e\+1'"),
        ("w[half]", ValueError, "got 'half'"),
        ("w[::0]", ValueError, "got '::0'"),
        ("w[e, e]", ValueError, "expected e at most once"),
        ("w[__import__('os').system('exit')]", ValueError, 'got "__import__'),
        (3, TypeError, "expected a place as a string; got int"),
    ],
)
def test_what_is_no_place_is_said(text, error, message):
    if message is None:  # a name may hold ".T"
        assert parse(text).name == "w.T"
        return
    with pytest.raises(error, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        (
            "w[e, 0, 0]",
            (4, 3),
            r"expected at most 2 items in the index of 'w\[e, 0, 0\]', of tensor 'w' of shape \(4, 3\)",
        ),
        ("w[:half]", (3,), r"expected an even length to take half of axis 0 of tensor 'w' of shape \(3,\); got 3"),
        ("w[0:9]", (3,), r"expected a slice within 0..3, axis 0 of tensor 'w' of shape \(3,\); got 0:9"),
        ("w[3]", (3,), r"expected an index within 0..2, axis 0 of tensor 'w' of shape \(3,\); got 3"),
        ("w[e].T", (4, 3), r"expected two axes before the .T of 'w\[e\].T'; got shape \(3,\) out of tensor 'w'"),
    ],
)
def test_a_place_that_does_not_fit_its_tensor_is_said(text, shape, message):
    with pytest.raises(ValueError, match=message):
        parse(text).shape(shape)


def test_a_shape_that_cannot_be_is_said():
    half, whole = parse("w[:half]"), parse("w[:]")
    with pytest.raises(ValueError, match="expected a length of axis 0 of tensor 'w' that fits all of :, :half; there"):
        shape_of("w", [Want(half, (3,), None), Want(whole, (3,), None)], 1)
    with pytest.raises(
        ValueError, match=r"expected one number of axes of tensor 'w' from all its places; got \[1, 2\]"
    ):
        shape_of("w", [Want(half, (3,), None), Want(half, (3, 2), None)], 1)
    with pytest.raises(ValueError, match=r"expected a leaf with two axes for the .T of 'w.T'; got shape \(3,\)"):
        shape_of("w", [Want(parse("w.T"), (3,), None)], 1)
    with pytest.raises(ValueError, match=r"expected no more slices in 'w\[:, :\]' than the 1 axes of its leaf"):
        shape_of("w", [Want(parse("w[:, :]"), (3,), None)], 1)
    with pytest.raises(ValueError, match="expected the number of an expert for the e along axis 0 of tensor 'w'"):
        parse("w[e]").key((3,))


# There and back, over all layouts


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=8, deadline=None)  # of each of three dozen layouts
@given(seeds, sizes, sizes, sizes, sizes, st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_back_and_there_is_the_same_layer(name, seed, E, d, h, o, bias, dtype):
    layer = layer_for(name, np.random.default_rng(seed), E, d, h, o, bias)
    layer = npmoe.calculus.tree.map_leaves(lambda leaf: leaf.astype(dtype), layer)
    theirs = to_torch(layer, name)
    found, coverage = from_torch(theirs, name, **options(layer))
    same_layers(found, layer)
    assert coverage.complete
    assert coverage.tensors == len(theirs)
    again = to_torch(found, coverage.layout)  # the leaves that may lack are settled in it
    assert list(again) == list(theirs)
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(again[tensor], array)
        assert again[tensor].dtype == dtype
    tree = to_jax(layer, name, prefix="params.")
    same_layers(from_jax(tree, name, prefix="params.", **options(layer)).layer, layer)
    assert list(tree) == ["params"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_found_by_the_names(name, rng):
    layer = layer_for(name, rng, E=4, d=3, h=5, o=2)  # o = d would leave dense gated weights open to be turned
    found, coverage = from_torch(Module(to_torch(layer, name)), **options(layer))
    same_layers(found, layer)
    assert coverage.complete
    assert LAYOUTS[coverage.name] == LAYOUTS[name]  # qwen2_moe is olmoe
    family, *_ = name.split("/")
    same_layers(from_torch(to_torch(layer, name), family, **options(layer)).layer, layer)


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if any("?" in leaf for leaf in layout)])
def test_what_may_lack_may_lack(name, rng):
    layer = layer_for(name, rng, E=4, d=3, h=5, o=3)
    optional = [place for leaf, place in LAYOUTS[name].items() if leaf.endswith("?")]
    names = {parse(place).tensor(e) for place in optional for e in range(4)}
    theirs = {tensor: array for tensor, array in to_torch(layer, name).items() if tensor not in names}
    found, coverage = from_torch(theirs, name, **options(layer))
    assert getattr(found, "bias", None) is None
    for leaf, array in named_leaves(found):
        assert array.any() != (leaf.rsplit(".")[-1] in ("b1", "b2"))
    again = to_torch(found, coverage.layout)
    assert again.keys() == theirs.keys()
    assert to_torch(found, name, like=theirs).keys() == theirs.keys()


def test_the_weights_are_copies(rng):
    theirs = {"fc1.weight": rng.standard_normal((5, 3)), "fc2.weight": rng.standard_normal((3, 5))}
    layer = from_torch(theirs).layer
    back = to_torch(layer, "linear/fc1-fc2/dense", like=theirs)
    for leaf in leaves(layer):
        assert not any(np.shares_memory(leaf, array) for array in [*theirs.values(), *back.values()])


def test_a_layout_places_each_weight_where_the_model_reads_it(rng):
    """Two routes: mixtures written down as their own code computes them."""
    E, d, h, x = 3, 4, 5, rng.standard_normal((7, 4))
    up, down = rng.standard_normal((E, 2 * h, d)), rng.standard_normal((E, d, h))
    gate = rng.standard_normal((E, d))

    def mixed(outputs):
        p = np.exp(x @ gate.T)
        return np.einsum("ne,eno->no", p / p.sum(axis=1, keepdims=True), outputs)

    def silu(a):
        return a / (1 + np.exp(-a))

    z = np.einsum("nd,ehd->enh", x, up)
    expected = mixed(np.einsum("enh,eoh->eno", silu(z[..., :h]) * z[..., h:], down))
    fused = {"gate.weight": gate, "experts.gate_up_proj": up, "experts.down_proj": down}
    layer, coverage = from_torch(fused, k=E)
    assert coverage.name == "fused/gate"
    np.testing.assert_allclose(layer.forward(x)[0], expected, rtol=RTOL)
    # the same mixture, of which gate and up alternate, for x @ w
    alternating = np.empty((E, d, 2 * h))
    alternating[..., 0::2], alternating[..., 1::2] = (part.transpose(0, 2, 1) for part in (up[:, :h], up[:, h:]))
    wild = {
        "router": "gating.w.T",
        "experts.{e}.Wg": "w_in[e, :, 0::2].T",
        "experts.{e}.Wu": "w_in[e, :, 1::2].T",
        "experts.{e}.Wd": "w_out[e].T",
    }
    theirs = {"gating.w": gate.T, "w_in": alternating, "w_out": down.transpose(0, 2, 1)}
    other, coverage = from_torch(Module(theirs), wild, k=E)
    same_layers(other, layer)
    assert coverage.complete
    for name, array in to_torch(other, wild).items():
        np.testing.assert_array_equal(array, theirs[name])
    # planted: gate and up exchanged, and a square weight that is not transposed, fit in shape but not in value
    swapped = wild | {"experts.{e}.Wg": wild["experts.{e}.Wu"], "experts.{e}.Wu": wild["experts.{e}.Wg"]}
    turned = {"gate.weight": gate, "experts.gate_up_proj": up[:, : 2 * d], "experts.down_proj": down[:, :, :d]}
    whole, wrong = (
        from_torch(turned, k=E).layer,
        dict(LAYOUTS["fused/gate"]) | {"experts.{e}.Wd": "experts.down_proj[e].T"},
    )
    for fault, right in (
        (from_torch(theirs, swapped, k=E).layer, layer),
        (from_torch(turned, wrong, k=E).layer, whole),
    ):
        assert np.abs(fault.forward(x)[0] - right.forward(x)[0]).max() > 0.01


WILD = {
    "router": "gate.weight",
    "bias": "gate.bias",
    "experts.{e}.W1": "w_in[e].T",
    "experts.{e}.b1": "b_in[e, 0]",
    "experts.{e}.W2": "w_out[e].T",
    "experts.{e}.b2": "b_out[e, 0]",
}


def wild(rng, E=3, d=4, h=5, o=2):
    shapes = {"gate.weight": (E, d), "gate.bias": (E,), "w_in": (E, d, h), "b_in": (E, 1, h)}
    return {name: rng.standard_normal(s) for name, s in (shapes | {"w_out": (E, h, o), "b_out": (E, 1, o)}).items()}


def test_a_mixture_of_no_known_layout_is_read_by_a_mapping(rng):
    theirs, x = wild(rng), rng.standard_normal((6, 4))
    layer, coverage = from_torch(theirs, WILD, k=3, temperature=2.0, activation="silu")
    a = np.einsum("nd,edh->enh", x, theirs["w_in"]) + theirs["b_in"]
    outputs = np.einsum("enh,eho->eno", a / (1 + np.exp(-a)), theirs["w_out"]) + theirs["b_out"]
    p = np.exp((x @ theirs["gate.weight"].T + theirs["gate.bias"]) / 2)
    expected = np.einsum("ne,eno->no", p / p.sum(axis=1, keepdims=True), outputs)
    np.testing.assert_allclose(layer.forward(x)[0], expected, rtol=RTOL, atol=RTOL)
    assert coverage.complete
    assert str(coverage).splitlines() == [
        "layout of your own, e = 0..2",
        "leaf            shape   place        of shape",
        "router          (3, 4)  gate.weight  (3, 4)",
        "experts.{e}.W1  (5, 4)  w_in[e].T    (3, 4, 5)",
        "experts.{e}.b1  (5,)    b_in[e, 0]   (3, 1, 5)",
        "experts.{e}.W2  (2, 5)  w_out[e].T   (3, 5, 2)",
        "experts.{e}.b2  (2,)    b_out[e, 0]  (3, 1, 2)",
        "bias            (3,)    gate.bias    (3,)",
        "6 of 6 tensors used, all of each",
    ]
    for name, array in to_torch(layer, WILD).items():
        np.testing.assert_array_equal(array, theirs[name])


@EXAMPLES
@given(seeds, sizes, sizes, sizes, sizes)
def test_gradients_in_their_names_are_read_along_the_same_places(seed, E, d, h, o):
    rng = np.random.default_rng(seed)
    converted = from_torch(
        {f"m.{name}": array for name, array in wild(rng, E, d, h, o).items()}, WILD, k=1, prefix="m."
    )
    gradients = wild(rng, E, d, h, o)
    found = converted.read({f"m.{name}": array for name, array in gradients.items()} | {"elsewhere": np.ones(1)})
    expected = dict(named_leaves(from_torch(gradients, WILD, k=1).layer))
    assert found.keys() == expected.keys()
    for leaf, array in expected.items():
        np.testing.assert_array_equal(found[leaf], array)


def test_read_takes_none_for_zeros_and_refuses_what_cannot_be_told(rng):
    theirs = wild(rng)
    converted = from_torch(theirs, WILD, k=1)
    assert not converted.read(theirs | {"w_in": None})["experts.1.W1"].any()
    with pytest.raises(ValueError, match=r"expected an array for tensor 'b_in'; got w_in, gate\.weight"):
        converted.read({"w_in": theirs["w_in"], "gate.weight": theirs["gate.weight"]})
    with pytest.raises(ValueError, match=r"expected the array for tensor 'w_in' of shape \(3, 4, 5\); got \(3, 5, 4\)"):
        converted.read(theirs | {"w_in": theirs["w_in"].transpose(0, 2, 1)})
    tied = {"W1": "w", "W2": "w.T"}
    converted = from_torch({"w": rng.standard_normal((5, 3))}, tied)
    assert "read more than once: w" in str(converted.coverage)
    with pytest.raises(ValueError, match="expected each element to be of one leaf; got 'w', which leaves share"):
        converted.read({"w": np.ones((5, 3))})


# Coverage


def test_what_is_not_used_is_listed_in_whole_and_in_part(rng):
    theirs = {
        "w": rng.standard_normal((6, 7)),
        "v": rng.standard_normal((3, 9)),
        "norm": np.ones(3),
        "steps": np.array(7),
        "z": rng.standard_normal((2, 2)),
    }
    _, coverage = from_torch(theirs, {"W1": "w[0:5, 0:4]", "W2": "v[:, 0::2]", "b2": "z[0, 0:1]"} | {"b2": "norm"})
    parts = {name: part for name, _, part in coverage.unused}
    assert parts == {"w": "22 of 42 elements", "v": "[:, 1:8:2]", "steps": "all", "z": "all"}
    assert not coverage.complete
    assert str(coverage).splitlines()[-5:] == [
        "  w (6, 7): 22 of 42 elements",
        "  v (3, 9): [:, 1:8:2]",
        "  steps (): all",
        "  z (2, 2): all",
        "3 of 5 tensors used, 2 of them in part",
    ]


@pytest.mark.parametrize(
    ("place", "part"),
    [("w[:half]", "[3:6, :]"), ("w[half:]", "[0:3, :]"), ("w[0::2]", "[1:6:2, :]"), ("w[1:4]", "12 of 24 elements")],
)
def test_the_part_of_a_fused_tensor_that_nobody_reads_is_an_index(place, part, rng):
    _, coverage = from_torch({"w": rng.standard_normal((6, 4)), "v": np.ones((2, 3))}, {"W1": place, "W2": "v"})
    assert coverage.unused[0].part == part


def test_a_shared_expert_beside_a_mixture_is_seen_not_to_be_used(rng):
    layer = layer_for("qwen2_moe", rng, 4, 3, 5, 3)
    theirs = to_torch(layer, "qwen2_moe") | {"shared_expert.up_proj.weight": np.ones((5, 3))}
    found, coverage = from_torch(theirs, k=2)
    assert coverage.name == "qwen2_moe"
    assert not coverage.complete
    assert str(coverage).endswith(
        "not used:\n  shared_expert.up_proj.weight (5, 3): all\n14 of 15 tensors used, all of each"
    )
    same_layers(found, layer)


# Trees, tensors, dtypes


class Linear(NamedTuple):
    kernel: np.ndarray
    bias: np.ndarray


class Thing:
    """An object with attributes of arrays, that knows itself."""

    def __init__(self, **parts):
        self.__dict__.update(parts, owner=self, width=3, function=len, _private=np.ones(1))


def test_trees_of_all_kinds_have_the_same_names(rng):
    layer = layer_for("flax/dense-gelu", rng, 1, 3, 5, 2)
    d0, d1 = (Linear(W.T, b) for W, b in [(layer.W1, layer.b1), (layer.W2, layer.b2)])
    for tree in (
        {"Dense_0": d0, "Dense_1": d1},
        Thing(Dense_0=d0, Dense_1=Thing(kernel=d1.kernel, bias=d1.bias)),
        {"Dense_0.kernel": d0.kernel, "Dense_0.bias": d0.bias, "Dense_1": d1._asdict()},
    ):
        found, coverage = from_jax(tree)
        same_layers(found, layer)
        assert coverage.name == "flax/dense-gelu"
    stack = {"layers": [Thing(weight=layer.W1, bias=layer.b1), Thing(weight=layer.W2, bias=layer.b2)]}
    same_layers(from_jax(stack, "equinox").layer, layer)
    with pytest.raises(ValueError, match=r"expected each name once in the tree; got 'a.b' twice"):
        from_jax({"a.b": np.ones(1), "a": {"b": np.ones(1)}})


def test_like_keeps_the_tree_of_jax(rng):
    layer = layer_for("flax/dense-gelu", rng, 1, 3, 5, 2)
    like = {
        "params": {
            "Dense_0": Linear(np.ones((3, 5), np.float32), np.ones(5)),
            "Dense_1": Linear(np.ones((5, 2)), np.ones(2)),
        }
    }
    like |= {"rest": [np.arange(3), (1, "name")]}
    tree = to_jax(layer, "flax", like=like, prefix="params.")
    assert type(tree["params"]["Dense_0"]) is Linear
    np.testing.assert_array_equal(tree["params"]["Dense_0"].kernel, layer.W1.T.astype(np.float32))
    assert tree["params"]["Dense_0"].kernel.dtype == np.float32
    assert tree["rest"][0].tolist() == [0, 1, 2]
    assert tree["rest"][1] == (1, "name")
    assert (like["params"]["Dense_1"].bias == 1).all()


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16", "torch.float32", "torch.float64"])
def test_halves_become_float32_exactly_and_go_back(dtype, rng):
    """bfloat16 is a float32 of which 16 bits are zero."""
    held = {"torch.float64": np.float64, "torch.float16": np.float16}.get(dtype, np.float32)
    theirs = {name: array.astype(held) for name, array in wild(rng).items()}
    if dtype == "torch.bfloat16":
        theirs = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in theirs.items()}
    like = {name: Tensor(array, dtype) for name, array in theirs.items()} | {"steps": Tensor(3, "torch.int64")}
    layer, coverage = from_torch(Module(like), WILD, k=2)
    assert coverage.unused == (("steps", (), "all"),)
    assert {leaf.dtype for leaf in leaves(layer)} == {np.dtype(np.float64 if dtype == "torch.float64" else np.float32)}
    np.testing.assert_array_equal(layer.experts[1].W1, theirs["w_in"][1].T)
    back = to_torch(layer, WILD, like=Module(like))
    assert list(back) == list(like)
    for name, array in theirs.items():
        assert back[name].dtype == dtype
        np.testing.assert_array_equal(back[name].array, array)
    same_layers(from_torch(like, WILD, k=2, dtype="float64").layer, npmoe.calculus.tree.map_leaves(np.float64, layer))


def test_like_keeps_what_no_place_names_and_is_not_written_to(rng):
    like = {f"mlp.{name}": array for name, array in wild(rng).items()} | {"other": np.arange(3)}
    layer = from_torch(wild(rng), WILD, k=1).layer
    part = {leaf: place for leaf, place in WILD.items() if leaf != "bias"}
    before = {name: array.copy() for name, array in like.items()}
    with pytest.raises(ValueError, match="expected a place for bias, which is not zero; got none in the layout or in"):
        to_torch(layer, part, like=like, prefix="mlp.")
    back = to_torch(MoE(layer.router, layer.experts, 1), part, like=like, prefix="mlp.")
    np.testing.assert_array_equal(back["mlp.gate.bias"], like["mlp.gate.bias"])
    np.testing.assert_array_equal(back["mlp.w_in"][0].T, layer.experts[0].W1)
    assert back["other"].tolist() == [0, 1, 2]
    for name, array in like.items():
        np.testing.assert_array_equal(array, before[name])
    # a router without a bias sets that of a model which has one to zero
    assert not to_torch(MoE(layer.router, layer.experts, 1), WILD, like=like, prefix="mlp.")["mlp.gate.bias"].any()


def test_no_framework_is_loaded_by_the_module():
    assert "npmoe.convert.layouts" in sys.modules
    for name in ("layouts", "known", "matching", "choice", "advice", "places", "tensors", "coverage"):
        assert not {"torch", "jax"} & set(vars(sys.modules[f"npmoe.convert.{name}"]))


# Errors: each was read once


def without(mapping, *keys):
    return {key: value for key, value in mapping.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda t, w: (t, without(w, "experts.{e}.W2")),
            ValueError,
            "expected a place for experts.{e}.W2 in the layout; got",
        ),
        (
            lambda t, w: (t, without(w, "router")),
            ValueError,
            "expected a place for router in the layout; got places for bias",
        ),
        (lambda t, w: (t, {}), ValueError, "expected a place for W1 in the layout; got places for none"),
        (
            lambda t, w: (t, w | {"gamma": "g"}),
            ValueError,
            "expected leaves among router, experts.{e}.W1, .*; got 'gamma'",
        ),
        (
            lambda t, w: (t, w | {"experts.{e}.Wg": "g"}),
            ValueError,
            r"expected leaves among .*Wd, bias; got 'experts.{e}.W1'",
        ),
        (lambda t, w: (t, w | {"bias?": "gate.bias"}), ValueError, "expected each leaf once in a layout; got router"),
        (
            lambda t, w: (t, without(w, "router") | {"router?": "gate.weight"}),
            ValueError,
            r"expected only biases to be optional; got 'router\?'",
        ),
        (
            lambda t, w: (t, w | {"router": "gate.weight[e]"}),
            ValueError,
            r"expected a place without e for router, which is of no expert; got 'gate.weight\[e\]'",
        ),
        (lambda t, w: (t, w | {3: "w"}), TypeError, "expected names of leaves as keys of a layout; got 3"),
        (
            lambda t, w: (t, 3),
            TypeError,
            "expected a layout as a name among LAYOUTS or a mapping of leaves to places; got int",
        ),
        (lambda t, w: (t, w | {"bias": "gate.[bias"}), ValueError, "expected a place such as"),
        (
            lambda t, w: (t, "mixtrall"),
            ValueError,
            "expected a layout among .*; got 'mixtrall', perhaps 'mixtral' was meant",
        ),
        (
            lambda t, w: (t, "mixtral"),
            ValueError,
            "expected a tensor 'experts.0.w1.weight' for experts.{e}.W.; got none of",
        ),
        (
            lambda t, w: (t, w | {"bias": "gate.biass"}),
            ValueError,
            "expected a tensor 'gate.biass' for bias; got none of that name; near: 'gate.bias'",
        ),
        (
            lambda t, w: (t, w | {"bias": "zzz"}),
            ValueError,
            "expected a tensor 'zzz' for bias; got none of that name among 'gate",
        ),
        (
            lambda t, w: (t | {"gate.weight": t["w_in"]}, w),
            ValueError,
            r"expected router of shape \(E, d\); got \(3, 4, 5\) from 'gate.weight' of tensor 'gate.weight' of shape",
        ),
        (
            lambda t, w: (t, w | {"experts.{e}.W1": "w_in[e]"}),
            ValueError,
            r"expected experts.0.W1 of shape \(h, 4\), d = 4 of router; got \(4, 5\) from 'w_in\[0\]' of tensor 'w_in'",
        ),
        (
            lambda t, w: (t | {"b_in": np.ones((3, 1, 6))}, w),
            ValueError,
            r"expected experts.0.b1 of shape \(5,\), h = 5 of experts.0.W1; got \(6,\) from 'b_in\[0, 0\]' of tensor",
        ),
        (
            lambda t, w: (t | {"b_in": np.ones((4, 1, 5))}, w),
            ValueError,
            r"expected 3 experts along axis 0 of tensor 'b_in', as many as the router has rows; got shape \(4, 1, 5\)",
        ),
        (
            lambda t, w: (t | {"gate.bias": np.ones(2)}, w),
            ValueError,
            r"expected bias of shape \(3,\), E = 3 of router; got \(2,\)",
        ),
        (
            lambda t, w: (t | {"w_in": t["w_in"].astype(int)}, w),
            TypeError,
            "expected tensor 'w_in' to be of 16, 32 or 64 bit floats; got int64",
        ),
        (
            lambda t, w: (t | {"w_in": t["w_in"] + 0j}, w),
            TypeError,
            "expected tensor 'w_in' to be .* floats; got complex128",
        ),
        (
            lambda t, w: (t, w | {"experts.{e}.b1": "b_in[e, 1]"}),
            ValueError,
            "expected an index within 0..0, axis 1 of tensor 'b_in'",
        ),
        (
            lambda t, w: (t | {"w_out": np.where(t["w_out"] == t["w_out"][1, 2, 0], np.nan, t["w_out"])}, w),
            ValueError,
            r"expected experts.1.W2, 'w_out\[1\].T', to be finite; got nan at \(0, 2\) of shape \(2, 5\)",
        ),
        (
            lambda t, w: (t | {"gate.bias": np.full(3, np.inf)}, w),
            ValueError,
            "expected bias, 'gate.bias', to be finite; got inf",
        ),
        (lambda t, w: ([t], w), TypeError, r"expected a module with state_dict\(\) or a mapping of tensors; got list"),
        (lambda t, w: ({}, w), ValueError, "expected tensors; got none"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message, rng):
    theirs, layout = change(wild(rng), WILD)
    with pytest.raises(error, match=message):
        from_torch(theirs, layout, k=1)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({}, ValueError, "expected k, the number of experts a token, which no tensor says; got none"),
        ({"k": 4}, ValueError, "expected k within 1..3 of a mixture of 3 experts; got 4"),
        ({"k": 1, "activation": "relu"}, ValueError, "expected an activation among gelu, .*; got 'relu'"),
        ({"k": 1, "temperature": 0.0}, ValueError, "expected temperature to be a finite number above 0"),
        ({"k": 1, "renormalize": 1}, TypeError, "expected renormalize to be True or False"),
        ({"k": 1, "dtype": int}, TypeError, "expected a dtype of floats that NumPy has, such as 'float64'; got int64"),
        ({"k": 1, "dtype": "torch.int64"}, TypeError, "expected a dtype of floats .*; got 'torch.int64'"),
        ({"k": 1, "dtype": "torch.bfloat16"}, TypeError, "expected a dtype of floats .*; got '?(torch.)?bfloat16"),
        ({"k": 1, "dtype": "x.f"}, TypeError, "expected a dtype of floats .*; got 'x.f'"),
        ({"k": 1, "prefix": "mlp."}, ValueError, "expected tensors whose names begin with 'mlp.'; got 'gate.weight'"),
    ],
)
def test_keywords_that_do_not_fit_are_named(more, error, message, rng):
    with pytest.raises(error, match=message):
        from_torch(wild(rng), WILD, **more)


def test_a_number_too_large_for_the_dtype_is_named(rng):
    big = {"W1": np.full((5, 3), 1e30), "W2": np.ones((3, 5))}
    with pytest.raises(ValueError, match="expected W1, 'W1', as float16 to be finite; got inf"):
        from_torch(big, "npmoe", dtype="float16")
    layer = from_torch(big, "npmoe").layer
    for half in (np.ones((5, 3), np.float16), Tensor(np.ones((5, 3), np.float16), "torch.float16")):
        with pytest.raises(ValueError, match="expected W1 as float16 to be finite; got inf"):
            to_torch(layer, "npmoe", like=big | {"W1": half})


def test_a_dense_expert_has_no_k_and_a_gated_one_no_other_activation(rng):
    with pytest.raises(ValueError, match="expected no k for a dense expert, which has no router; got k = 2"):
        from_torch({"W1": np.ones((5, 3)), "W2": np.ones((3, 5))}, k=2)
    gated = to_torch(layer_for("mixtral", rng, 4, 3, 5, 3), "mixtral")
    with pytest.raises(ValueError, match="expected the activation of a gated expert to be silu; got 'gelu_tanh'"):
        from_torch(gated, k=2, activation="gelu_tanh")
    assert from_torch(gated, k=2, activation="silu").coverage.name == "mixtral"


def test_experts_beyond_the_routers_rows_are_named(rng):
    theirs = to_torch(layer_for("mixtral", rng, 4, 3, 5, 3), "mixtral")
    fewer = theirs | {"gate.weight": theirs["gate.weight"][:3], "gate.bias": np.ones(3)}
    with pytest.raises(
        ValueError, match=r"expected 3 experts, as many as the router has rows; got another, tensor 'exp"
    ):
        from_torch(fewer, "mixtral", k=1)
    more = theirs | {"gate.weight": np.ones((5, 3)), "gate.bias": np.ones(5)}
    with pytest.raises(ValueError, match=r"expected a tensor 'experts.4.w1.weight' for experts.{e}.Wg; got none"):
        from_torch(more, "mixtral", k=1)


def shown_layout(caught):
    """What is shown runs, and is a layout."""
    text, namespace = str(caught.value), {}
    exec(text[text.index("layout = {") :], namespace)
    parsed_layout(namespace["layout"])
    return namespace["layout"]


def test_where_none_fits_the_tensors_and_a_mapping_to_start_from_are_shown(rng):
    with pytest.raises(ValueError, match="expected a model that one layout fits; none fits") as caught:
        from_torch({name: array.astype(np.float32) for name, array in wild(rng).items()})
    text = str(caught.value)
    assert "  w_in  (3, 4, 5)  float32\n" in text
    assert "The 6 tensors:" in text
    assert "Near layouts:" in text
    assert "lacks 'experts." in text
    assert '"router": "gate.weight",\n' in text
    assert "by the shapes alone: see which is which" in text
    assert shown_layout(caught) == WILD
    # no shapes of three axes and no router: the nearest layout, with what is not there
    with pytest.raises(ValueError, match="one layout fits; none fits") as caught:
        from_torch({"gate.weight": np.ones((3, 4)), "extra": np.ones((9, 9, 9, 9))}, k=1)
    assert parsed_layout(shown_layout(caught)).moe
    assert "# not found" in str(caught.value)


def test_where_two_fit_both_are_named():
    square = {"router": np.ones((4, 4)), "experts.W1": np.ones((4, 4, 4)), "experts.W2": np.ones((4, 4, 4))}
    with pytest.raises(ValueError, match="one layout fits; stacked/gelu, jax/gelu fit equally") as caught:
        from_torch(square, k=1)
    assert "Name the layout, or give a mapping; the shapes fit all of these, which differ in:" in str(caught.value)
    assert "  jax/gelu: router = router.T, experts.{e}.W1 = experts.W1[e].T, exp" in str(caught.value)
    assert from_torch(square, "jax", k=1).coverage.name == "jax/gelu"


def test_a_layout_of_wrong_shapes_does_not_fall_back_on_one_that_leaves_tensors_out(rng):
    theirs = to_torch(layer_for("mixtral", rng, 4, 3, 5, 3), "mixtral")
    theirs["experts.1.w3.weight"] = np.ones((6, 3))
    with pytest.raises(ValueError, match=r"mixtral: expected experts.1.Wu of shape \(5, 3\), h = 5 of experts.1.Wg"):
        from_torch(theirs, k=1)


def test_a_prefix_that_would_help_is_told(rng):
    theirs = to_torch(layer_for("mixtral", rng, 4, 3, 5, 3), "mixtral", prefix="model.layers.0.mlp.")
    with pytest.raises(
        ValueError, match=r"With prefix='model.layers.0.mlp.' the names are those of 'mixtral'"
    ) as caught:
        from_torch(theirs, k=1)
    assert "# not found" not in str(caught.value)
    assert from_torch(theirs, k=1, prefix="model.layers.0.mlp.").coverage.complete


def test_long_lists_of_tensors_are_cut():
    with pytest.raises(ValueError, match=r"The 60 tensors:(?s:.*)\n  \.\.\. and 20 more"):
        from_torch({f"t{i}": np.ones(1) for i in range(60)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda m, w: (m, w | {"experts.{e}.W2": "w_in[e]"}, None),
            ValueError,
            "expected a length of axis|expected one leaf",
        ),
        (
            lambda m, w: (m, w | {"experts.{e}.b1": "b_in"}, None),
            ValueError,
            "expected one leaf at each element of tensor 'b_in'; got experts.1.b1 over",
        ),
        (
            lambda m, w: (m, w | {"experts.{e}.b1": "b_in[e, 0::2]"}, None),
            ValueError,
            r"expected places for all of tensor 'b_in' of shape \(3, 9\), or like= .*; got none for \[:, 1:8:2\]",
        ),
        (
            lambda m, w: (m, without(w, "experts.{e}.b1"), None),
            ValueError,
            "expected a place for experts.0.b1, which is not zero",
        ),
        (
            lambda m, w: (m.experts[0], w, None),
            ValueError,
            "expected a layout for a dense expert of kind 'gelu'; got your own",
        ),
        (lambda m, w: (m, "mixtral", None), ValueError, "expected a layout for a mixture of kind 'gelu'; got mixtral"),
        (
            lambda m, w: (m, "linear", None),
            ValueError,
            "expected one layout for a mixture of kind 'gelu'; got 'linear', which may be any of",
        ),
        (lambda m, w: (m, None, None), TypeError, "expected a layout as a name among .* or a mapping; got None"),
        (
            lambda m, w: (npmoe.calculus.check, w, None),
            TypeError,
            "expected GeluExpert or SwigluExpert, or a MoE of one of these; got module",
        ),
        (lambda m, w: (m, w, 3), TypeError, r"expected like to be a module with state_dict\(\) or a mapping; got int"),
        (lambda m, w: (m, w, {"gate.weight": m.router}), ValueError, "expected a tensor 'w_in' for experts.{e}.W1"),
        (
            lambda m, w: (m, w, to_torch(m, w) | {"gate.weight": np.ones((2, 4))}),
            ValueError,
            r"expected 2 experts along axis 0 of tensor 'w_in'",
        ),
        (
            lambda m, w: (m, w, wild(np.random.default_rng(0), h=6)),
            ValueError,
            r"expected experts.0.W1 of shape \(6, 4\), of the place 'w_in\[0\].T' in tensor 'w_in' .*; got \(5, 4\)",
        ),
    ],
)
def test_what_cannot_be_written_is_named(change, error, message, rng):
    layer, layout, like = change(from_torch(wild(rng), WILD, k=1).layer, WILD)
    with pytest.raises(error, match=message):
        to_torch(layer, layout, like=like)


def test_a_mixture_of_two_kinds_has_no_layout(rng):
    layer = MoE(np.ones((2, 3)), (expert(rng, "gelu", 3, 5, 2), expert(rng, "swiglu", 3, 5, 2)), k=1)
    with pytest.raises(
        TypeError, match="expected GeluExpert or SwigluExpert, or a MoE of one of these; got MoE of GeluE"
    ):
        to_torch(layer, "npmoe")


def test_names_that_make_no_tree_are_refused(rng):
    layer = expert(rng, "gelu", 3, 5, 2)
    with pytest.raises(ValueError, match=r"expected 'w\.bias' to be within a tree; got a tensor at 'w'"):
        to_jax(layer, {"W1": "w", "b1": "w.bias", "W2": "v", "b2": "c"})
    with pytest.raises(ValueError, match="expected 'w' to be a tensor; got a tree there"):
        to_jax(layer, {"W1": "w.kernel", "b1": "w", "W2": "v", "b2": "c"})


# Flat stacks, and what the shapes alone tell


def flat_stack(rng, turned=False, router_turned=False, E=3, d=4, h=5, o=2):
    """A mixture and its weights as "router", "W1" (E, h, d) or (E, d, h) ..., and no other name."""
    layer = layer_for("flat/gelu", rng, E, d, h, o, bias=False)
    turn = (lambda a: a.swapaxes(-1, -2)) if turned else (lambda a: a)
    tensors = {"router": layer.router.T if router_turned else layer.router}
    for leaf in ("W1", "b1", "W2", "b2"):
        stack = np.stack([getattr(f, leaf) for f in layer.experts])
        tensors[leaf] = turn(stack) if leaf.startswith("W") else stack
    return layer, tensors


@EXAMPLES
@given(seeds, sizes, sizes, sizes, sizes, st.booleans(), st.booleans())
def test_flat_stacks_are_told_apart_by_shape_or_not_at_all(seed, E, d, h, o, turned, router_turned):
    layer, tensors = flat_stack(np.random.default_rng(seed), turned, router_turned, E, d, h, o)
    right = (
        "flat/gelu"
        + {(0, 0): "", (1, 0): "-turned", (0, 1): "-turned-router", (1, 1): "-all-turned"}[(turned, router_turned)]
    )
    same_layers(from_torch(tensors, right, k=1).layer, layer)
    if d == E or d == h == o:
        with pytest.raises(ValueError, match=f"fit equally(?s:.*)  {right}: "):
            from_torch(tensors, k=1)
    else:
        found, coverage = from_torch(tensors, k=1)
        assert coverage.name == right
        same_layers(found, layer)


def test_square_flat_stacks_are_not_guessed(rng):
    _, tensors = flat_stack(rng, E=3, d=4, h=4, o=4)
    with pytest.raises(ValueError, match="one layout fits; flat/gelu, flat/gelu-turned fit equally") as caught:
        from_torch(tensors, k=2)
    assert "  flat/gelu-turned: experts.{e}.W1 = W1[e].T, experts.{e}.W2 = W2[e].T\n" in str(caught.value)
    assert from_torch(tensors, shown_layout(caught), k=2).coverage.complete


def test_dense_weights_that_fit_both_ways_are_not_guessed(rng):
    W1, W2 = rng.standard_normal((5, 3)), rng.standard_normal((3, 5))
    with pytest.raises(ValueError, match="npmoe/dense-gelu, flat/dense-gelu-turned fit equally") as caught:
        from_torch({"W1": W1, "W2": W2})
    assert "  flat/dense-gelu-turned: W1 = W1.T, W2 = W2.T\n" in str(caught.value)
    np.testing.assert_array_equal(from_torch({"W1": W1, "W2": W2}, "npmoe").layer.W1, W1)
    np.testing.assert_array_equal(from_torch({"W1": W1, "W2": W2}, "flat").layer.W1, W1.T)
    # a bias tells
    assert from_torch({"W1": W1, "W2": W2, "b1": np.ones(5)}).layer.widths == (3, 5, 3)
    assert from_torch({"W1": W1, "W2": W2, "b1": np.ones(3)}).layer.widths == (5, 3, 5)
    # and so do other widths
    assert from_torch({"W1": W1, "W2": W2[:2]}).layer.widths == (3, 5, 2)
    assert from_torch({"W1": W1.T, "W2": W2[:2].T}).layer.widths == (3, 5, 2)


def test_the_shapes_of_like_tell_which_of_a_family_is_meant(rng):
    layer, tensors = flat_stack(rng, turned=True)
    for name, array in to_torch(layer, "flat", like=tensors).items():
        np.testing.assert_array_equal(array, tensors[name])


def renamed(tensors, names):
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("turned", [False, True])
def test_a_mapping_to_start_from_is_of_a_mixture_and_fits(turned, rng):
    layer, tensors = flat_stack(rng, turned, router_turned=turned)
    per_expert = {"W1": list(tensors["W1"]), "W2": list(tensors["W2"])}
    blocks = [{"first": [W1, b1], "last": [W2, b2]} for W1, b1, W2, b2 in zip(*list(tensors.values())[1:], strict=True)]
    for theirs in (
        renamed(tensors, {"router": "wg", "W1": "w1", "W2": "w2", "b1": "c1", "b2": "c2"}),
        {
            "wg": tensors["router"],
            "up": per_expert["W1"],
            "b1": tensors["b1"],
            "z": per_expert["W2"],
            "y": tensors["b2"],
        },
        {"route": tensors["router"], "blocks": blocks},
    ):
        with pytest.raises(ValueError, match="none fits") as caught:
            from_jax(theirs, k=2)
        assert "npmoe/dense" not in str(caught.value)
        shown = shown_layout(caught)
        found, coverage = from_jax(theirs, shown, k=2)
        assert coverage.complete
        same_layers(found, MoE(layer.router, layer.experts, 2))


def test_a_mapping_to_start_from_says_where_shapes_do_not_tell(rng):
    gated = {name: rng.standard_normal((3, 5, 4)) for name in ("a", "b")} | {"c": rng.standard_normal((3, 4, 5))}
    with pytest.raises(ValueError, match="by the shapes alone, one of 2 that fit: see which is which") as caught:
        from_torch({"wg": np.ones((3, 4))} | gated, k=1)
    assert shown_layout(caught)["experts.{e}.Wg"] == "a[e]"
    # names that are known, one of them turned
    named = {"router": np.ones((3, 4)), "experts.W1": np.ones((3, 4, 5)), "experts.W2": np.ones((3, 2, 5))}
    with pytest.raises(ValueError, match="that of 'stacked/gelu', turned so that the shapes fit") as caught:
        from_torch(named, k=1)
    assert shown_layout(caught)["experts.{e}.W1"] == "experts.W1[e].T"
    # without k a dense one
    with pytest.raises(ValueError, match="by the shapes alone") as caught:
        from_torch({"one": np.ones((5, 3)), "c": np.ones(5), "two": np.ones((2, 5))})
    assert shown_layout(caught) == {"W1": "one", "b1": "c", "W2": "two"}


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (
            {"router": "gate.weight.T"},
            r"expected 4 experts along axis 0 of tensor 'w_in', .*; perhaps 'gate.weight.T' is turned: "
            r"with 'gate.weight' for router all shapes fit$",
        ),
        (
            {"experts.{e}.W1": "w_in[e]"},
            r"; perhaps 'w_in\[e\].T' for experts.{e}.W1 was meant: with that all shapes fit$",
        ),
        (
            {"experts.{e}.W1": "w_in[e]", "experts.{e}.W2": "w_out[e]"},
            r"; perhaps 'w_in\[e\].T' for experts.{e}.W1 and 'w_out\[e\].T' for experts.{e}.W2 was meant",
        ),
    ],
)
def test_a_place_that_is_turned_is_told(wrong, hint, rng):
    with pytest.raises(ValueError, match=hint):
        from_torch(wild(rng), WILD | wrong, k=1)


def test_no_turn_is_proposed_that_does_not_help(rng):
    with pytest.raises(ValueError, match=r"expected experts\.0\.b1 of shape") as caught:
        from_torch(wild(rng) | {"b_in": np.ones((3, 1, 6))}, WILD, k=1)
    assert "perhaps" not in str(caught.value)


def test_what_is_not_used_is_said_in_sentences(rng):
    theirs = {f"m.{name}": array for name, array in wild(rng).items()}
    part = without(WILD, "bias") | {"experts.{e}.b1": "b_in[e, 0]"}
    assert from_torch(theirs, WILD, k=1, prefix="m.").coverage.remarks() == ()
    assert from_torch(theirs, part, k=1, prefix="m.").coverage.remarks() == ("not used: m.gate.bias (3,)",)
    wide = {"w": np.ones((6, 7)), "v": np.ones((3, 9))}
    assert from_torch(wide, {"W1": "w[0:5, 0:4]", "W2": "v[:, 0::2]"}).coverage.remarks() == (
        "partly used: w (6, 7), not 22 of 42 elements",
        "partly used: v (3, 9), not its [:, 1:8:2]",
    )


def test_a_class_is_not_an_instance(rng):
    for read in (from_torch, from_jax):
        with pytest.raises(TypeError, match=r"expected an instance, such as Module\(...\), .*; got the class Module"):
            read(Module)
    layer = from_torch(wild(rng), WILD, k=1).layer
    for write in (to_torch, to_jax):
        with pytest.raises(TypeError, match="expected an instance, such as Module"):
            write(layer, WILD, like=Module)


class Named:
    """All that is known of a dtype of torch."""

    def __str__(self):
        return "torch.float32"


@pytest.mark.parametrize("dtype", [Named(), "torch.float32", np.float32, "float32", np.dtype("float32")])
def test_dtypes_of_others_are_known_by_name(dtype, rng):
    layer = from_torch(wild(rng), WILD, k=1, dtype=dtype).layer
    assert {leaf.dtype for leaf in leaves(layer)} == {np.dtype(np.float32)}


def test_names_of_a_compiled_module_are_those_of_the_module(rng):
    theirs = wild(rng)
    for compiled in (
        {f"_orig_mod.{name}": array for name, array in theirs.items()},
        {name.replace("gate.", "gate._orig_mod."): array for name, array in theirs.items()},
    ):
        converted = from_torch(Module(compiled), WILD, k=1)
        same_layers(converted.layer, from_torch(theirs, WILD, k=1).layer)
        assert converted.coverage.complete
        for arrays in (theirs, compiled):
            assert converted.read(arrays).keys() == dict(named_leaves(converted.layer)).keys()
            assert from_torch(theirs, WILD, k=1).read(arrays).keys() == converted.read(arrays).keys()
        back = to_torch(converted.layer, WILD, like=Module(compiled))
        assert list(back) == list(compiled)
        for name, array in back.items():
            np.testing.assert_array_equal(array, compiled[name])
    inside = {f"mlp._orig_mod.{name}": array for name, array in theirs.items()}
    for prefix in ("mlp.", "mlp._orig_mod."):
        assert from_torch(inside, WILD, k=1, prefix=prefix).coverage.complete
    with pytest.raises(ValueError, match=r"expected each name once, without '_orig_mod\.'; got 'w_in' twice"):
        from_torch(theirs | {"_orig_mod.w_in": theirs["w_in"]}, WILD, k=1)


def test_the_params_of_flax_need_not_be_said(rng):
    layer = layer_for("flax/gelu", rng, 3, 4, 5, 2)
    tree = to_jax(layer, "flax/gelu", prefix="params.")
    for arrays, prefix in ((tree, ""), (tree, "params."), (tree["params"], "")):
        converted = from_jax(arrays, prefix=prefix, k=1)
        same_layers(converted.layer, layer)
        for gradients in (tree, tree["params"]):
            found = converted.read(gradients)
            for leaf, array in named_leaves(layer):
                np.testing.assert_array_equal(found[leaf], array)
        again = to_jax(layer, converted.coverage.layout, like=arrays)
        same_layers(from_jax(again, k=1).layer, layer)
    within = {"params": {"mlp": tree["params"]}}
    assert from_jax(within, prefix="mlp.", k=1).coverage.prefix == "params.mlp."
    # a layout that names it, and other collections beside it, are left alone
    dense = {"params": {"a": np.ones((5, 3)), "b": np.ones((2, 5))}}
    assert from_jax(dense, {"W1": "params.a", "W2": "params.b"}).coverage.prefix == ""
    assert from_jax(dense, {"W1": "a", "W2": "b"}).coverage.prefix == "params."
    with pytest.raises(ValueError, match=r"With prefix='params\.' the names are those of 'flax/gelu'"):
        from_jax(tree | {"batch_stats": {"mean": np.ones(1)}}, k=1)


# The frameworks themselves


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch by itself, as torch.compile loads more of it
def test_a_compiled_module_of_torch_and_its_dtypes():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    model = nn.Module()
    model.fc1, model.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)
    compiled = torch.compile(model)
    assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
    converted = from_torch(compiled, dtype=torch.float64)
    assert {leaf.dtype for leaf in leaves(converted.layer)} == {np.dtype(np.float64)}
    for named in (model, compiled):
        found = converted.read(dict(named.named_parameters()))
        np.testing.assert_array_equal(found["W1"], converted.layer.W1)
    compiled.load_state_dict(to_torch(converted.layer, "linear", like=compiled))
    with pytest.raises(TypeError, match=r"expected a dtype of floats .*; got torch\.int64"):
        from_torch(model, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"expected an instance, such as Linear\(...\)"):
        from_torch(nn.Linear)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_module_of_torch_there_and_back(dtype):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Module()
    model.gate = nn.Linear(4, 3, bias=True)
    model.experts = nn.ModuleList(
        nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4, bias=False)) for _ in range(3)
    )
    model.norm = nn.BatchNorm1d(4)
    model = model.to(getattr(torch, dtype))
    layer, coverage = from_torch(model, k=3)
    assert coverage.name == "linear/0-2/gate"
    assert {row.tensor for row in coverage.unused} == {name for name in model.state_dict() if name.startswith("norm.")}
    back = to_torch(layer, coverage.layout, like=model)
    for name, tensor in model.state_dict().items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
        assert back[name].data_ptr() != tensor.data_ptr()
    model.load_state_dict(to_torch(layer, "linear", like=model))
    if dtype == "float64":
        x = torch.randn(6, 4, dtype=torch.float64)
        gates = torch.softmax(model.gate(x), dim=1)
        y = sum(gates[:, e, None] * f(x) for e, f in enumerate(model.experts))
        with np.errstate(under="ignore"):
            found, trace = layer.forward(x.numpy())
            _, gradient = layer.vjp(trace, np.ones_like(found))
        np.testing.assert_allclose(found, y.detach().numpy(), rtol=RTOL, atol=RTOL)
        y.sum().backward()
        read = from_torch(model, k=3).read({name: p.grad for name, p in model.named_parameters()})
        expected = dict(named_leaves(gradient))
        assert read.keys() == expected.keys() - {f"experts.{e}.b2" for e in range(3)}
        for leaf, array in read.items():
            np.testing.assert_allclose(array, expected[leaf], rtol=1e-10, atol=1e-12, err_msg=leaf)


def test_tensors_of_jax_there_and_back():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    layer = layer_for("flax/gelu-vmap", rng, E=3, d=4, h=5, o=4)
    for dtype in ("float32", "bfloat16", "float16"):
        tree = jax.tree.map(lambda a, dtype=dtype: jax.numpy.asarray(a, dtype), to_jax(layer, "flax/gelu-vmap"))
        found, coverage = from_jax(tree, k=3)
        assert coverage.complete
        assert coverage.name == "flax/gelu-vmap"
        assert {leaf.dtype for leaf in leaves(found)} == {np.dtype(np.float32)}
        back = to_jax(found, coverage.name, like=tree)
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        for new, old in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
            assert new.dtype == old.dtype
            np.testing.assert_array_equal(new, np.asarray(old))
        read = from_jax(tree, k=3).read(tree)
        for leaf, array in named_leaves(found):
            np.testing.assert_array_equal(read[leaf], array)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen2_moe", "granitemoe"])
def test_layers_of_transformers_are_found(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "vocab_size": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    small |= {("num_local_experts" if kind in ("mixtral", "granitemoe") else "num_experts"): 4}
    if kind == "qwen2_moe":
        small |= {"shared_expert_intermediate_size": 16}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **small))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    block = next(m for name, m in model.named_modules() if name.endswith(("mlp", "block_sparse_moe")))
    layer, coverage = from_torch(block, k=2, renormalize=kind in ("mixtral", "granitemoe"), dtype="float64")
    assert coverage.complete == (kind != "qwen2_moe")
    if kind != "qwen2_moe":  # whose shared expert is not ours
        x = torch.randn(1, 5, 8)
        with torch.no_grad():
            y = block(x)
        y = (y[0] if isinstance(y, tuple) else y).reshape(5, 8).numpy()
        with np.errstate(under="ignore"):
            found, _ = layer.forward(x[0].double().numpy())
        # theirs is computed in float32: 1e-5 of the largest number of each token
        assert np.abs(found - y).max() < 1e-5 * np.abs(found).max()
