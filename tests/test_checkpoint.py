"""Checkpoints on disk: what `transformers` computes from them, what is wrong with them, and ours for others to load."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import close, trees_close
from hypothesis import given, settings
from hypothesis import strategies as st

import npmoe
from npmoe import checkpoint
from npmoe.calculus import tree
from npmoe.checkpoint import tensors as reading
from npmoe.checkpoint.tensors import Tensors, packed
from npmoe.files import FileError
from npmoe.model.transformer import loss_and_gradient

SHARED = Path(__file__).parents[2] / "shared" / "data" / "checkpoints"
RELEASED = ("mixtral-a", "mixtral-b")  # one by one, and fused


def small(seed=0, dtype=np.float32, tied=False, groups=2, layers=2, V=31, E=4, h=12):
    rng = np.random.default_rng(seed)
    made = npmoe.init.transformer(
        rng, V=V, d=16, layers=layers, heads=4, h=h, E=E, k=2, groups=groups, rotary=1e4, norm="rms", expert="swiglu",
        tied=tied, dtype=np.float64,
    )  # fmt: skip
    return tree.cast(tree.map_leaves(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape), made), dtype)


# ---- what others computed --------------------------------------------------------------------------------------------


@pytest.fixture(params=RELEASED)
def released(request):
    folder = SHARED / request.param
    if not folder.exists():
        pytest.skip(f"no checkpoint at {folder}")
    with np.load(folder / "reference.npz") as found:
        return checkpoint.open(folder), dict(found)


def test_a_released_model_gives_its_reference(released):
    """Log-probabilities, logits, and at each mixture what enters, what leaves, scores, gates and choices."""
    c, reference = released
    assert (c.family, c.layers) == ("mixtral", (0, 1, 2, 3))
    ids = reference["ids"]
    logits = c.forward(ids).reshape(*ids.shape, -1).astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    following = np.take_along_axis(logp[:, :-1], ids[:, 1:, None], axis=2)[..., 0]
    assert np.abs(following - reference["next_logprob"]).max() < 1e-4
    assert np.abs(logits[0, :4] - reference["logits_first"]).max() < 1e-4
    sites, states = list(c.sites(ids)), list(c.model.states(ids))
    for i, (site, (_, y)) in enumerate(zip(sites, states, strict=True)):
        of = f"model.layers.{i}.mlp"
        for ours, theirs in ((site.x, "x"), (y, "y"), (site.router.scores(site.x), "router0")):
            want = reference[f"{theirs}/{of}"]
            assert np.abs(ours - want).max() < 2e-5 * np.abs(want).max(), (theirs, i)
        scores = np.sort(reference[f"router0/{of}"], axis=1)
        clear = scores[:, -2] - scores[:, -3] > 1e-5  # at a tie either may be chosen
        chosen, gates = reference[f"router2/{of}"], reference[f"router1/{of}"]
        np.testing.assert_array_equal(np.sort(site.chosen, axis=1)[clear], np.sort(chosen, axis=1)[clear])
        assert np.abs(np.take_along_axis(site.gates, chosen, axis=1) - gates)[clear].max() < 2e-5
        assert set(site.labels) >= {"token", "sequence", "layer"}


def test_every_tensor_of_a_released_model_is_used(released):
    c, _ = released
    assert c.coverage.unused == ()
    assert str(c.coverage).endswith(f"{len(c.tensors)} of {len(c.tensors)} tensors used")


def test_exact_frequencies_are_another_model(released):
    """The reference was computed with frequencies in bfloat16; `from_pretrained` keeps them in float32."""
    c, reference = released
    exact = checkpoint.open(c.folder, rotary="exact")
    site, other = next(c.sites(reference["ids"])), next(exact.sites(reference["ids"]))
    first = site.labels["position"] == 0
    close(other.x[first], site.x[first], 1e-5)
    assert np.abs(other.x - site.x).max() > 1e-4 * np.abs(site.x).max()


# ---- transformers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hf():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def theirs(hf, tied=False, groups=2):
    import torch

    torch.manual_seed(0)
    config = hf.MixtralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=groups, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        sliding_window=None, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    config._experts_implementation = "eager"  # version 5's batched experts take no float64
    model = hf.MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_transformers_saved_has_the_same_logits(tied, hf, tmp_path):
    import torch

    model = theirs(hf, tied)
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 31, (3, 7))
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy().reshape(21, 31)
    c = checkpoint.open(tmp_path)
    assert np.abs(c.forward(ids) - want).max() < 1e-5 * np.abs(want).max()
    assert c.coverage.unused == (("lm_head.weight",) if "lm_head.weight" in c.tensors and tied else ())


@contextmanager
def without_casts(hf):
    """The released code in float64 throughout. It casts to float32 in four places, each replaced here:

    MixtralRMSNorm.forward (hidden_states.to(torch.float32)); the router's softmax (router_logits.float());
    MixtralRotaryEmbedding.forward (inv_freq and positions in float32); eager_attention_forward (softmax in float32).
    """
    import torch
    from transformers.models.mixtral import modeling_mixtral as released

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids, *_, **__):
        c = self.config.head_dim or self.config.hidden_size // self.config.num_attention_heads
        rope = getattr(self.config, "rope_parameters", None)
        theta = rope["rope_theta"] if rope else self.config.rope_theta
        rate = theta ** (-torch.arange(0, c, 2, dtype=torch.float64) / c)
        angle = position_ids[..., None].to(torch.float64) * rate
        return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    softmax, to_float = torch.nn.functional.softmax, torch.Tensor.float
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released.MixtralRMSNorm, "forward", norm)
        patch.setattr(released.MixtralRotaryEmbedding, "forward", rotary)
        patch.setattr(torch.nn.functional, "softmax", lambda x, dim=-1, dtype=None, **_: softmax(x, dim=dim))
        patch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x))
        yield


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_logits_and_gradients_are_those_of_transformers_in_float64(groups, hf, tmp_path):
    import torch

    model = theirs(hf, groups=groups)
    model.save_pretrained(tmp_path)
    c = checkpoint.open(tmp_path, dtype="float64")
    model = model.double()
    ids = np.random.default_rng(1).integers(0, 31, (3, 9))
    with without_casts(hf):
        logits = model(torch.tensor(ids[:, :-1])).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 31), torch.tensor(ids[:, 1:]).reshape(-1))
        loss.backward()
    want = logits.detach().numpy().reshape(24, 31)
    close(c.forward(ids[:, :-1]), want, 1e-10)
    value, gradient = loss_and_gradient(c.model, ids[:, :-1], ids[:, 1:])
    close(value, loss.item(), 1e-12)
    # their gradients as a model of ours: written as weights are, and read as weights are
    saved = tmp_path / "gradients"
    state = {
        name.replace("mlp.gate", "block_sparse_moe.gate") if "mlp.gate" in name and "experts" not in name else name:
        p.grad.numpy() for name, p in model.named_parameters()
    }  # fmt: skip
    saved.mkdir()
    (saved / "model.safetensors").write_bytes(packed(state))
    (saved / "config.json").write_text((tmp_path / "config.json").read_text())
    trees_close(gradient, checkpoint.open(saved, dtype="float64").model, 1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_ours_loads_in_transformers_with_the_same_logits(tied, hf, tmp_path):
    import torch

    model = small(tied=tied)
    checkpoint.save_mixtral(model, tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = np.random.default_rng(2).integers(0, 31, (2, 8))
    with torch.no_grad():
        want = loaded(torch.tensor(ids)).logits.numpy().reshape(16, 31)
    assert np.abs(model.forward(ids) - want).max() < 1e-5 * np.abs(want).max()


def test_exact_frequencies_are_those_of_from_pretrained(released, hf):
    """What a user of transformers computes from a bfloat16 checkpoint is ``rotary="exact"``, not the default."""
    import torch

    c, reference = released
    model = hf.AutoModelForCausalLM.from_pretrained(c.folder, dtype=torch.float32).eval()
    ids = reference["ids"][:2]
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy().reshape(ids.size, -1)
    exact = checkpoint.open(c.folder, rotary="exact").forward(ids)
    assert np.abs(exact - want).max() < 2e-5 * np.abs(want).max()
    assert np.abs(c.forward(ids) - want).max() > 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_model_saved_in_another_dtype_loads_in_transformers(dtype, hf, tmp_path):
    import torch

    folder = checkpoint.save_mixtral(small(), tmp_path, dtype=dtype)
    assert hf.AutoConfig.from_pretrained(folder).dtype == getattr(torch, dtype)
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = np.random.default_rng(2).integers(0, 31, (2, 8))
    with torch.no_grad():
        want = loaded(torch.tensor(ids)).logits.numpy().reshape(16, 31)
    ours = checkpoint.open(folder, rotary="exact").forward(ids)
    assert np.abs(ours - want).max() < 1e-5 * np.abs(want).max()


# ---- out and in ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99), tied=st.booleans(), G=st.sampled_from([1, 2, 4]), E=st.integers(2, 5),
    h=st.integers(1, 5), V=st.integers(1, 33),
)  # fmt: skip
def test_what_is_saved_is_read_to_the_bit(seed, tied, G, E, h, V, tmp_path_factory):
    model = small(seed, tied=tied, groups=G, E=E, h=h, V=V)
    folder = tmp_path_factory.mktemp("model")
    c = checkpoint.open(checkpoint.save_mixtral(model, folder))
    trees_close(c.model, model, 0)
    trees_close(c.mixture(1), model.blocks[1].feed, 0)
    assert c.coverage.unused == ()
    double = checkpoint.open(folder, dtype="float64").model
    assert {leaf.dtype for leaf in tree.leaves(double)} == {np.dtype(np.float64)}
    trees_close(tree.cast(double, np.float32), model, 0)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4),
    kind=st.sampled_from(["float16", "float32", "float64"]),
)
def test_tensors_of_every_shape_come_back(shapes, kind, tmp_path_factory):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.standard_normal(shape).astype(kind) for i, shape in enumerate(shapes)}
    folder = tmp_path_factory.mktemp("tensors")
    (folder / "model.safetensors").write_bytes(packed(arrays))
    found = Tensors(folder, kind)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape  # also where it is (), or has no entries
        np.testing.assert_array_equal(found[name], array)


def test_the_format_is_that_of_the_package(tmp_path):
    save, load = (pytest.importorskip("safetensors.numpy").__dict__[name] for name in ("save_file", "load_file"))
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float64)}
    save(arrays, tmp_path / "model.safetensors")
    ours = Tensors(tmp_path, "float64")
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name], array)
    (tmp_path / "ours.safetensors").write_bytes(packed(arrays))
    theirs = load(tmp_path / "ours.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 3.0e38, 1e-38, 0.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    header = json.dumps({"t": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    np.testing.assert_array_equal(Tensors(tmp_path)["t"], (halves.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_model_saved_in_another_dtype_is_the_model_rounded(dtype, tmp_path):
    model = small()
    found = checkpoint.open(checkpoint.save_mixtral(model, tmp_path, dtype=dtype), rotary="exact").model
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 0.0}[dtype]  # half a unit in the last place
    for ours, theirs in zip(tree.leaves(found), tree.leaves(model), strict=True):
        assert (np.abs(ours - theirs) <= step * np.abs(theirs) + 2.0**-25).all()  # + half a subnormal of float16
    assert (dtype == "float64") == all((a == b).all() for a, b in zip(tree.leaves(found), tree.leaves(model)))  # noqa: B905


def test_bfloat16_is_rounded_as_torch_does():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(10_000) * 2.0 ** rng.integers(-130, 120, 10_000), [0.0, -0.0]])
    with np.errstate(under="ignore"):
        values = values.astype(np.float32)
    ties = np.arange(1 << 14, (1 << 14) + 512, dtype=np.uint32) << 16 | 0x8000  # half between two neighbours
    for x in (values, ties.view(np.float32)):
        want = torch.tensor(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(reading.bfloat16(x), want)


def test_a_tensor_that_the_index_does_not_name_is_told_of(tmp_path):
    one = checkpoint.open(checkpoint.save_mixtral(small(), tmp_path / "one"))
    arrays = {name: one.tensors[name] for name in one.tensors} | {"orphan": np.ones(2, np.float32)}
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(packed(arrays))
    (folder / "b.safetensors").write_bytes(packed({"lm_head.weight": np.zeros(3), "extra": np.ones(1)}))
    where = dict.fromkeys(one.tensors, "a.safetensors") | {"extra": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text((one.folder / "config.json").read_text())
    c = checkpoint.open(folder)
    assert set(c.coverage.unused) == {"orphan", "extra"}
    trees_close(c.model, one.model, 0)  # lm_head is the one of the file that the index says
    (folder / "b.safetensors").write_bytes(packed({"orphan": np.zeros(3), "extra": np.ones(1)}))
    with pytest.raises(FileError, match=r"b\.safetensors: expected each tensor once; 'orphan' is also in a\.safe"):
        checkpoint.open(folder)


def test_where_both_forms_are_there_the_one_that_is_not_read_is_told_of(tmp_path):
    model = small()
    c = checkpoint.open(checkpoint.save_mixtral(model, tmp_path))
    arrays = {name: c.tensors[name] for name in c.tensors}
    for i, block in enumerate(model.blocks):
        at = f"model.layers.{i}.mlp."
        arrays[at + "gate.weight"] = block.feed.router
        arrays[at + "experts.gate_up_proj"] = np.stack([np.vstack([f.Wg, f.Wu]) for f in block.feed.experts])
        arrays[at + "experts.down_proj"] = np.stack([f.Wd for f in block.feed.experts])
    (tmp_path / "model.safetensors").write_bytes(packed(arrays))
    unused = checkpoint.open(tmp_path).coverage.unused
    assert len(unused) == 2 * (1 + 3 * 4)
    assert all("block_sparse_moe.experts" in name or name.endswith("mlp.gate.weight") for name in unused)


def test_shards_and_fused_experts_are_the_same_model(tmp_path):
    model = small()
    one = checkpoint.open(checkpoint.save_mixtral(model, tmp_path / "one"))
    arrays = {name: one.tensors[name] for name in one.tensors}
    fused = {name: a for name, a in arrays.items() if "block_sparse_moe" not in name}
    for i, block in enumerate(model.blocks):
        at = f"model.layers.{i}.mlp."
        fused[at + "gate.weight"] = block.feed.router
        fused[at + "experts.gate_up_proj"] = np.stack([np.vstack([f.Wg, f.Wu]) for f in block.feed.experts])
        fused[at + "experts.down_proj"] = np.stack([f.Wd for f in block.feed.experts])
    folder = tmp_path / "shards"
    folder.mkdir()
    names, where = sorted(fused), {}
    for k in range(3):
        part = {name: fused[name] for name in names[k::3]}
        (folder / f"model-{k}.safetensors").write_bytes(packed(part))
        where |= dict.fromkeys(part, f"model-{k}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    c = checkpoint.open(folder)
    trees_close(c.model, model, 0)
    assert c.coverage.unused == ()
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"'model-1\.safetensors', which model\.safetensors\.index\.json names"):
        checkpoint.open(folder)


def test_nothing_is_read_before_it_is_needed(tmp_path, monkeypatch):
    checkpoint.save_mixtral(small(), tmp_path)
    read = []
    original = Tensors.__getitem__
    monkeypatch.setattr(Tensors, "__getitem__", lambda self, name: read.append(name) or original(self, name))
    c = checkpoint.open(tmp_path)
    assert str(c.coverage)
    assert read == []
    c.mixture(1)
    assert len(read) == 1 + 3 * 4
    assert all("layers.1.block_sparse_moe" in name for name in read)


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return checkpoint.save_mixtral(small(), tmp_path)


def edited(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "expected a model_type among mixtral in .*config.json; got 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"sliding_window": 128}, "a sliding window of 128 tokens"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scaled by 'yarn'"),
        ({"model_type": ["mixtral"]}, "expected a model_type among mixtral"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scaled by 'yarn'"),
        ({"rope_scaling": "linear"}, "scaled by 'linear'"),
        ({"partial_rotary_factor": 0.5}, "rotary positions on a part of each head"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
        ({"rope_theta": 5e5}, r"one rope_theta; got 500000\.0, and 10000\.0 in rope_parameters"),
        ({"hidden_size": "wide"}, "hidden_size as a whole number of at least 1; got 'wide'"),
        ({"hidden_size": []}, r"hidden_size as a whole number of at least 1; got '\[\]'"),
        ({"num_attention_heads": 0, "head_dim": "gone"}, "num_attention_heads as a whole number of at least 1"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok as a whole number of 1 to 4; got '5'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers as a whole number of at least 1; got '-1'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps as a number of at least 0; got 'small'"),
        ({"num_local_experts": "gone"}, "num_local_experts or num_experts in config.json"),
        ({"hidden_size": 24}, r"q_proj.weight' of shape \(16, 24\), by config.json; got \(16, 16\)"),
        ({"num_local_experts": 5}, r"of shape \(5, 16\), by config.json; got \(4, 16\)"),
        ({"num_hidden_layers": 3}, "expected a tensor 'model.layers.2"),
    ],
)
def test_a_config_of_another_model_is_named(folder, changes, words):
    edited(folder, **changes)
    with pytest.raises(ValueError, match=words):
        checkpoint.open(folder).model  # noqa: B018


def test_damaged_files_are_named(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content, words in (
        (whole[:-10], "is the file cut off"),
        (b"", "got 0 bytes"),
        (b"\x00" * 100, "expected a safetensors file"),
        (len(whole).to_bytes(8, "little") + whole[8:], "expected a safetensors file"),
        ((20).to_bytes(8, "little") + b"no json at all here!" + whole, "a header in JSON"),
        ((2).to_bytes(8, "little") + b"[]", "a header that names tensors"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=words):
            checkpoint.open(folder)
    path.write_bytes(whole + b"more")
    with pytest.raises(FileError, match=rf"expected {len(whole)} bytes, by its header; got {len(whole) + 4}: fetch"):
        checkpoint.open(folder)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for other in ([0, 4], [2, 6], [5, 9]):  # shares all bytes, some, leaves a gap
        header = json.dumps({"t": entry, "u": entry | {"data_offsets": other}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * other[1])
        with pytest.raises(FileError, match="'u': expected it to begin at byte"):
            checkpoint.open(folder)
    for entry, words in (
        ({"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "a dtype among"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "expected 3 numbers of F32; got 8 bytes"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}, "whole numbers"),
        ({"dtype": "F32", "shape": [2]}, "dtype, shape and data_offsets"),
        ([1], "dtype, shape and data_offsets"),
    ):
        header = json.dumps({"t": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 8)
        with pytest.raises(FileError, match=words):
            checkpoint.open(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none at"):
        checkpoint.open(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors or model\.safetensors\.index\.json"):
        checkpoint.open(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON"):
        checkpoint.open(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        checkpoint.open(folder)


def test_a_window_as_long_as_the_context_is_none(folder):
    edited(folder, sliding_window=4096, max_position_embeddings=4096)
    trees_close(checkpoint.open(folder).model, small(), 0)
    edited(folder, sliding_window=4095)
    with pytest.raises(ValueError, match="a sliding window of 4095 tokens"):
        checkpoint.open(folder)


def test_nothing_is_written_of_what_cannot_be(tmp_path):
    large = small()
    large = replace(large, norm=replace(large.norm, gamma=np.full(16, 1e5, np.float32)))
    for model, kwargs, words in (
        (small(), {"dtype": "int8"}, "dtype among float32, float64, bfloat16, float16; got 'int8'"),
        (small(), {"tokenizer": "{no"}, "the content of a tokenizer.json; got '{no'"),
        (large, {"dtype": "float16"}, r"model\.norm\.weight within the range of float16; its largest entry is 1e\+05"),
    ):
        with pytest.raises(ValueError, match=words):
            checkpoint.save_mixtral(model, tmp_path / "bad", **kwargs)
        assert not (tmp_path / "bad").exists()


def test_numbers_of_numpy_in_a_model_are_written(tmp_path):
    good = small()
    blocks = tuple(replace(b, feed=replace(b.feed, k=np.int64(2))) for b in good.blocks)
    c = checkpoint.open(checkpoint.save_mixtral(replace(good, blocks=blocks), tmp_path))
    trees_close(c.model, good, 0)


def test_without_tokenizers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'npmoe\[checkpoint\]'"):
        checkpoint.open(folder).tokenize("text")


def test_wrong_arguments_are_named(folder):
    with pytest.raises(ValueError, match="dtype among float32, float64; got 'float16'"):
        checkpoint.open(folder, dtype="float16")
    with pytest.raises(ValueError, match="rotary among checkpoint, exact"):
        checkpoint.open(folder, rotary="other")
    with pytest.raises(ValueError, match=r"mixture layer among 0\.\.1; got 2"):
        checkpoint.open(folder).mixture(2)


def test_what_the_layout_cannot_hold_is_named(tmp_path):
    rng = np.random.default_rng(0)
    gpt = npmoe.init.transformer(rng, V=11, d=8, layers=1, heads=2, h=4, E=3, k=2, longest=5)
    with pytest.raises(ValueError, match="learned positions; a LayerNorm; attention with biases; no rotary positions"):
        checkpoint.save_mixtral(gpt, tmp_path / "gpt")
    good = small()
    block = good.blocks[0]
    for feed, words in (
        (replace(block.feed, renormalize=False), "not renormalized"),
        (replace(block.feed, temperature=2.0), "a temperature of 2"),
        (replace(block.feed, bias=np.zeros(4, np.float32)), "a router with a bias"),
        (block.feed.experts[0], "a dense SwigluExpert"),
    ):
        with pytest.raises(ValueError, match=words):
            checkpoint.save_mixtral(replace(good, blocks=(replace(block, feed=feed), good.blocks[1])), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_tokenizer_reads_and_writes(released):
    pytest.importorskip("tokenizers")
    c, _ = released
    ids = c.tokenize("The quick brown fox")
    assert c.decode(ids) == "The quick brown fox"
    assert c.forward(ids).shape == (len(ids), 4096)
