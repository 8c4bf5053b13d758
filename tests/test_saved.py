"""Models in files: the same layers, bits and answers come back; what is none is refused in a sentence."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cases import ALL, gelu, mixture

import npmoe
from npmoe.calculus import tree
from npmoe.files import FileError, digest, pack, read_arrays, write
from npmoe.model.saved import LAYERS


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_every_layer_comes_back(tmp_path, case):
    layer, x = case.build()
    path = npmoe.save(layer, tmp_path / "layer.npz")
    again = npmoe.load(path)
    assert type(again) is type(layer)
    for (name, a), (same, b) in zip(tree.named_leaves(layer), tree.named_leaves(again), strict=True):
        assert name == same
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    with np.errstate(under="ignore"):  # gates that vanish
        np.testing.assert_array_equal(again.forward(x)[0], layer.forward(x)[0])
        np.testing.assert_array_equal(again.jacobian(x), layer.jacobian(x))
    before = path.read_bytes()
    assert npmoe.save(again, path).read_bytes() == before, "equal models, equal bytes"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", ">f8", "<c16"])
def test_dtype_and_bits_are_kept(tmp_path, rng, dtype):
    norm = npmoe.RMSNorm(np.array([1.5, -0.0, np.nan, np.inf, 0.1]).astype(dtype))
    with np.errstate(invalid="ignore"):
        again = npmoe.load(npmoe.save(norm, tmp_path / "norm.npz"))
    assert again.gamma.dtype == np.dtype(dtype)
    assert again.gamma.tobytes() == norm.gamma.tobytes()


def test_a_gradient_is_a_model_too(tmp_path, rng):
    moe = mixture(rng, 4, 3, 5, 2, bias=np.ones(4), temperature=0.7)
    x = rng.standard_normal((6, 3))
    y, trace = moe.forward(x)
    _, gradient = moe.vjp(trace, y)
    again = npmoe.load(npmoe.save(gradient, tmp_path / "g.npz"))
    np.testing.assert_array_equal(again.router, gradient.router)
    assert again.temperature == 0.7


def test_a_model_that_was_trained_goes_on_as_if_it_had_not_been_away(tmp_path, rng):
    moe, (x, y) = mixture(rng, 3, 4, 5, 2), rng.standard_normal((2, 12, 4))
    *_, (_, _, here) = npmoe.fit(moe, x, y, steps=4)
    again = npmoe.load(npmoe.save(here, tmp_path / "m.npz"))
    for one, other in zip(npmoe.fit(here, x, y, steps=3), npmoe.fit(again, x, y, steps=3), strict=True):
        assert one[1] == other[1]


@dataclass(frozen=True)
class Mine(npmoe.model.expert.Expert):
    W: np.ndarray

    @property
    def widths(self):
        return 3, 3, 3

    def forward(self, x):
        return x @ self.W.T, x

    def vjp(self, trace, dy, wrt_x=True):
        return dy @ self.W, Mine(dy.T @ trace)

    def linearize(self, x):
        raise ValueError


def test_what_is_no_layer_of_ours_is_refused_and_nothing_is_written(tmp_path, rng):
    own = npmoe.MoE(rng.standard_normal((2, 3)), (Mine(np.eye(3)), Mine(np.eye(3))), k=1)
    for model, said in (
        (own, r"expected layers among GeluExpert, .*; got Mine at experts\.0"),
        (np.eye(3), "expected a layer among GeluExpert, .*; got ndarray"),
        ((gelu(rng, 3, 4, 3),), "expected a layer among GeluExpert, .*; got tuple"),
        ([gelu(rng, 3, 4, 3)], "got list at the top: make a tuple of them first"),
    ):
        with pytest.raises(TypeError, match=said):
            npmoe.save(model, tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())


def rewritten(path, change):
    """The file with its text changed and its checksum put right."""
    arrays = read_arrays(path)
    arrays.pop("digest")
    text = json.loads(str(arrays["model"]))
    change(text, arrays)
    arrays["model"] = np.array(json.dumps(text))
    write(path, pack({**arrays, "digest": np.array(digest(arrays))}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text, _: text.update(version=2), "version 1; got version 2: is npmoe up to date"),
        (lambda text, _: text.update(format="thesis"), "its text says something else"),
        (lambda text, _: text["tree"].update({"class": "os.system"}), "expected layers among .*got 'os.system'"),
        (lambda text, _: text["tree"].pop("k"), "expected router, experts, k, .* of MoE"),
        (lambda text, _: text["tree"].update(more=1), "of MoE at the top; got .*more"),
        (lambda text, _: text["tree"].update(k=99), "expected k within 1..4"),
        (lambda text, _: text["tree"].update(router={"array": "experts.0.W1"}), "expected an array router"),
        (lambda text, _: text["tree"]["experts"].pop(), "expected a tuple of 4 experts"),
        (lambda text, _: text["tree"]["experts"].append(3), "expected"),
        (lambda _, arrays: arrays.update(extra=np.ones(2)), "expected the arrays of the model; got also extra"),
        (lambda _, arrays: arrays.pop("router"), "expected an array router"),
        (lambda text, _: text.update(tree=[]), "got no layer"),
        (
            lambda text, _: text.update(tree={"class": "Residual", "layer": 3.0}),
            "expected a model as npmoe.save writes",
        ),
    ],
)
def test_a_file_that_says_something_else(tmp_path, rng, change, said):
    path = npmoe.save(mixture(rng, 4, 3, 5, 2), tmp_path / "m.npz")
    rewritten(path, change)
    with pytest.raises(FileError, match=said) as caught:
        npmoe.load(path)
    assert str(path) in str(caught.value)


def test_exchanged_arrays_are_seen(tmp_path, rng):
    moe = mixture(rng, 3, 4, 4, 2)
    path = npmoe.save(moe, tmp_path / "m.npz")
    arrays = read_arrays(path)
    arrays["experts.0.W1"], arrays["experts.1.W1"] = arrays["experts.1.W1"], arrays["experts.0.W1"]
    write(path, pack(arrays))
    with pytest.raises(FileError, match=r"expected the arrays that npmoe\.save wrote"):
        npmoe.load(path)


def test_no_file_and_no_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a saved model at .*none\.npz; there is none"):
        npmoe.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(FileError, match="got a file without a text 'model'"):
        npmoe.load(tmp_path / "other.npz")


def test_the_table_has_every_layer_of_the_package():
    assert set(LAYERS) == {
        *("GeluExpert", "Linear", "MoE", "RMSNorm", "LayerNorm", "Residual", "Stack", "SwigluExpert"),
        *("Attention", "Embedding", "Block", "Transformer", "Gate", "Groups"),
    }
    assert replace(npmoe.RMSNorm(np.ones(2)), eps=1e-5).eps == 1e-5
