"""Files written whole or not at all, and files of strangers: a result or one sentence, in bounded memory."""

import io
import os
import zipfile

import mutate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npmoe import files
from npmoe.files import FileError, WriteError, arrays_in, pack, read_arrays, read_json, write, write_json


@pytest.mark.parametrize("kind", mutate.KINDS)
def test_damaged_files_end_in_a_result_or_in_a_sentence(tmp_path, kind):
    """Some of what `python tests/mutate.py` does two thousand times."""
    found, most = mutate.tried(kind, tmp_path, 60, seed=1)
    assert set(found) <= {"read", "refused"}, found
    assert found["refused"] > 30
    assert most < mutate.BOUND


@pytest.mark.parametrize("change", [mutate.bomb, mutate.shape, mutate.kind, mutate.double, mutate.nonsense])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_header_claims_is_not_believed(tmp_path, change, seed):
    rng = np.random.default_rng(seed)
    path = write(tmp_path / "a.npz", change(rng, pack({"x": np.ones((30, 4)), "name": np.array("abc")})))
    said = f"{path}: expected some array; got one that fits"  # for a header that says the same in other words
    try:
        read_arrays(path, most=10**6)
    except FileError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "expected" in said
    assert "fits" not in said or change in (mutate.shape, mutate.kind)


def plain(dtype):
    return hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text("abcXY.0_ ", min_size=1, max_size=8).filter(lambda name: not name.endswith(".npy")),
        st.sampled_from(["<f8", ">f4", "<f2", "<i8", ">u2", "|b1", "<c16", "<U3"]).flatmap(plain),
        max_size=4,
    )
)
def test_arrays_come_back_to_the_bit(found):
    got = dict(arrays_in(io.BytesIO(pack(found)), "packed"))
    assert set(got) == set(found)
    for name, array in found.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_numpy_reads_what_is_packed_and_the_other_way_round(tmp_path, rng):
    x = np.asfortranarray(rng.standard_normal((3, 4)))
    write(tmp_path / "ours.npz", pack({"x": x}))
    with np.load(tmp_path / "ours.npz") as found:
        np.testing.assert_array_equal(found["x"], x)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "theirs.npz", x=x, y=np.arange(3))
        np.testing.assert_array_equal(read_arrays(tmp_path / "theirs.npz")["x"], x)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": np.zeros(3)}, "expected integers; got float64"),
        ({"x": np.zeros(3, "V2")}, "got |V2 .NumPy has no bfloat16: write bfloat16 as float32"),
        ({"x": np.zeros(3, [("a", "f8")])}, "expected numbers or text"),
        ({"x": np.zeros(3, "S2")}, "expected numbers or text"),
        ({"x": np.zeros(1000, int)}, "expected at most 100 bytes of arrays; got one of 8000"),
    ],
)
def test_what_a_reader_does_not_want(tmp_path, content, said):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(FileError, match=f"a.npz: .x.: .*{said}".replace("|", "[|]")):
        read_arrays(tmp_path / "a.npz", most=100, kinds="iu")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(FileError, match="Python objects, which are never unpickled"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_refused(tmp_path, how):
    content = io.BytesIO()
    np.save(content, np.ones(3))
    (tmp_path / "a.npz").write_bytes(mutate.packed([("x.npy", content.getvalue())], how))
    with pytest.raises(FileError, match="expected a stored or deflated array"):
        read_arrays(tmp_path / "a.npz")


def test_text_and_booleans_that_are_none(tmp_path):
    sound = pack({"on": np.array([True, False]), "name": np.array("ab")})
    for old, new, said in (
        (b"\x01\x00", b"\x07\x00", "got 7"),
        ("ab".encode("utf-32-le"), b"\xff" * 8, "no character"),
    ):
        found = mutate.members(sound)
        broken = {
            name: content[: -len(old)] + new if content.endswith(old) else content for name, content in found.items()
        }
        (tmp_path / "a.npz").write_bytes(mutate.packed(broken.items()))
        with pytest.raises(FileError, match=said):
            read_arrays(tmp_path / "a.npz")


def test_json_of_strangers(tmp_path):
    path = tmp_path / "a.json"
    for text, said in ((b"{", "got something else"), (b"\xff\xfe", "expected JSON"), (b"[" * 10**6, "expected JSON")):
        path.write_bytes(text)
        with pytest.raises(FileError, match=said):
            read_json(path)
    path.write_text("[1]" + " " * 100)
    with pytest.raises(FileError, match="at most 50 bytes; got 103"):
        read_json(path, most=50)
    assert read_json(write_json(path, {"é": [1.5, None]})) == {"é": [1.5, None]}


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch, step):
    path = write(tmp_path / "deep" / "a.txt", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(WriteError) as caught:
        write(path, b"new")
    said = str(caught.value)
    assert f"cannot write {path}: No space left on device." in said
    assert "the same command continues" in said
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_bytes_depend_on_names_and_numbers_alone():
    x = np.arange(12.0).reshape(3, 4)
    one = pack({"a": x, "b": x.T})
    assert one == pack({"b": np.asfortranarray(x.T), "a": np.asfortranarray(x)})
    assert one != pack({"a": x.T, "b": x})
    assert files.digest({"a": x}) != files.digest({"b": x})
    assert files.digest({"a": x}) != files.digest({"a": x.reshape(4, 3)})
    assert files.digest({"a": x}) == files.digest({"a": np.asfortranarray(x)})


def test_a_folder_is_held_by_one_alone(tmp_path):
    with files.alone_in(tmp_path), pytest.raises(BlockingIOError), files.alone_in(tmp_path):
        pass
    with files.alone_in(tmp_path):
        pass
