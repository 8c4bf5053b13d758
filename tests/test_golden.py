"""Golden cases: what is written, the round trip through programs that do not import npmoe, and files that are broken.

n tokens, d width, o output width, E experts, k experts a token.
"""

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from npmoe import GeluExpert, MoE, SwigluExpert
from npmoe.battery.cases import cases
from npmoe.battery.golden import check, dump
from npmoe.battery.golden.manifest import FORMAT
from npmoe.calculus import tree
from npmoe.verify.rounding import ARITHMETICS

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "docs" / "recipes"
#: Small ones of each kind, enough for most tests.
FEW = ("gelu", "swiglu-bfloat16", "top2", "ties-top2", "one-moe")

pytestmark = pytest.mark.underflow  # saturated slopes and gates vanish, and are meant to

TABLE = {case.name: case for case in cases()}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A dump of a few cases, raw files too; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("golden") / "dump"
    with np.errstate(under="ignore"):
        dump(folder, raw=True, only=FEW)
    return folder


@pytest.fixture
def folder(dumped, tmp_path):
    return Path(shutil.copytree(dumped, tmp_path / "dump"))


def wanted(folder, name):
    """The right answers of a case, as they stand in its file."""
    with np.load(folder / f"{name}.npz") as case:
        return {key.removeprefix("want/"): case[key] for key in case.files if key.startswith("want/")}


def answer(folder, name, answers=None):
    """Write answers, the right ones unless given, and say where."""
    path = folder / "answers" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **(wanted(folder, name) if answers is None else answers))
    return path


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the table -----------------------------------------------------------------------------------------------------


def test_the_table_has_what_the_issue_names():
    layers = [case.layer for case in TABLE.values()]
    mixtures = [layer for layer in layers if isinstance(layer, MoE)]
    assert len(TABLE) == len(cases())
    assert {type(layer) for layer in layers} == {GeluExpert, SwigluExpert, MoE}
    assert {layer.activation for layer in layers if isinstance(layer, GeluExpert)} == {"gelu", "gelu_tanh", "silu"}
    assert {(m.k == len(m.experts), m.renormalize) for m in mixtures if m.k < len(m.experts)} == {
        (False, True),
        (False, False),
    }
    assert any(m.k == len(m.experts) > 1 for m in mixtures)
    assert {1, 2, 3} <= {m.k for m in mixtures}
    assert any(m.bias is not None for m in mixtures)
    assert any(m.temperature != 1 for m in mixtures)
    assert any(isinstance(m.experts[0], SwigluExpert) for m in mixtures)
    assert any(layer.widths[0] != layer.widths[-1] for layer in layers)
    assert min(len(case.x) for case in TABLE.values()) == 1
    assert Counter(case.rounded for case in TABLE.values()).keys() == {"float64", "float32", "bfloat16"}
    unvisited = TABLE["unvisited"]
    assert 1 not in unvisited.layer.route(unvisited.x)[1]


@pytest.mark.parametrize("case", TABLE.values(), ids=lambda case: case.name)
def test_a_case_is_drawn_from_its_name_and_exact_in_its_arithmetic(case):
    again = next(other for other in cases() if other.name == case.name)
    for a, b in zip(
        tree.leaves((case.layer, case.x, case.dy, case.weights)),
        tree.leaves((again.layer, again.x, again.dy, again.weights)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(ARITHMETICS[case.rounded].round(a), a)
    assert case.dy.shape == (len(case.x), case.layer.widths[-1])
    assert case.weights.shape == (len(case.x),)
    assert case.weights.any()


@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith("ties")])
def test_ties_are_exact_in_any_order_of_summation(name):
    case = TABLE[name]
    forward, back = (case.x[:, order] @ case.layer.router[:, order].T for order in (slice(None), slice(None, None, -1)))
    np.testing.assert_array_equal(forward, back)
    assert np.array_equal(forward, np.round(forward))
    falling = -np.sort(-forward, axis=1)
    k = case.layer.k
    tied = falling[:, k - 1] == falling[:, k]
    assert tied.any()
    assert not tied.all()


# ---- dump ----------------------------------------------------------------------------------------------------------


def test_a_second_dump_has_the_same_bytes_and_leaves_answers_alone(folder):
    answer(folder, "gelu")
    before = everything(folder)
    dump(folder, raw=True, only=FEW)
    assert everything(folder) == before
    dump(folder, only=FEW)  # raw files that are there do not go stale
    assert everything(folder) == before


def test_files_hold_plain_little_endian_numbers_and_the_manifest_tells_them(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["schema"]) == (FORMAT, 1)
    assert [entry["name"] for entry in manifest["cases"]] == [name for name in TABLE if name in FEW]
    for entry in manifest["cases"]:
        with np.load(folder / entry["file"], allow_pickle=False) as case:
            assert {key: {"shape": list(a.shape), "dtype": a.dtype.str} for key, a in case.items()} == entry["arrays"]
            assert {a.dtype.str for a in case.values()} <= {"<f8", "<i8"}
            for key, a in case.items():
                raw = folder / entry["name"] / f"{key}{'.f64' if a.dtype == float else '.i64'}"
                assert raw.read_bytes() == a.tobytes()
        with zipfile.ZipFile(folder / entry["file"]) as archive:
            assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        sizes = dict(line.split() for line in (folder / entry["name"] / "sizes.txt").read_text().splitlines())
        assert list(sizes) == list(entry["layer"])
        assert int(sizes["n"]) == entry["layer"]["n"]
    assert (folder / "cases.txt").read_text().split() == [entry["name"] for entry in manifest["cases"]]
    assert (folder / "FORMAT.md").read_text() == (ROOT / "npmoe" / "battery" / "FORMAT.md").read_text()


def test_the_words_on_the_format_name_every_key(folder):
    words = (folder / "FORMAT.md").read_text()
    with np.load(folder / "top2.npz") as case:
        keys = [key for key in case.files if not key.startswith("limit/")]
    leaves = {name for name, _ in tree.named_leaves(TABLE["top2"].layer)}
    for key in keys:
        assert f"`{key}`" in words or key.partition("/")[2] in leaves, key
    manifest = json.loads((folder / "manifest.json").read_text())
    for field in [*manifest, *manifest["cases"][0], *manifest["cases"][0]["layer"]]:
        assert f"`{field}`" in words, field


def test_undecided_tokens_and_limits(folder):
    entries = {entry["name"]: entry for entry in json.loads((folder / "manifest.json").read_text())["cases"]}
    with np.load(folder / "ties-top2.npz") as case:
        tied = np.flatnonzero(case["route/margin"] == 0).tolist()
        assert entries["ties-top2"]["undecided"] == dict.fromkeys(("float64", "float32", "bfloat16"), tied)
        limits = [case[f"limit/{name}/jacobian"] for name in ("float64", "float32", "bfloat16")]
        assert limits[0].shape == (len(case["in/x"]), 2)
    usual, worst = np.stack(limits).transpose(2, 0, 1)  # (arithmetics, n)
    assert (usual <= worst).all()
    assert (np.diff(worst, axis=0) > 0).all()  # the rougher the more
    assert len(tied) > 0


@pytest.mark.parametrize("held", ["thesis.txt", "gelu.npz", "manifest.json"])
def test_a_folder_with_something_else_is_left_as_it_is(tmp_path, held):
    (tmp_path / held).write_text("[1, 2]")
    with pytest.raises(ValueError, match=rf"holds {re.escape(held)}; nothing there was changed"):
        dump(tmp_path, only=["one-gelu"])
    assert everything(tmp_path) == {Path(held): b"[1, 2]"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        dump(tmp_path / "file")


@pytest.mark.parametrize("at", range(1, 5))
def test_a_dump_that_is_broken_off_leaves_whole_files_and_can_be_taken_up(tmp_path, monkeypatch, at):
    replace, calls = os.replace, []

    def stops(source, target):
        calls.append(target)
        if len(calls) == at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        dump(tmp_path / "a", only=["one-gelu", "one-swiglu"])
    monkeypatch.undo()
    left = everything(tmp_path / "a")
    dump(tmp_path / "a", only=["one-gelu", "one-swiglu"])
    whole = everything(tmp_path / "a")
    assert len(left) == at - 1
    assert all(whole[path] == content for path, content in left.items())


@pytest.mark.parametrize("verb", [dump, check])
def test_names_that_no_case_has_are_refused(folder, verb):
    with pytest.raises(ValueError, match=r"expected names of cases among .*gelu.*; got 'gleu'"):
        verb(folder, only=["gelu", "gleu"])


# ---- the round trip, through programs that do not know npmoe -------------------------------------------------------

PLAIN = r'''
"""All answers in plain NumPy: reads DIR, writes DIR/answers."""
import json, math, pathlib, sys
import numpy as np

def phi(z):
    return np.vectorize(lambda t: math.erfc(-t / 2**0.5) / 2)(z)

def act(name, z):
    if name == "gelu":
        return z * phi(z), phi(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    assert name == "silu", name
    p = 1 / (1 + np.exp(-z))
    return z * p, p * (1 + z * (1 - p))

def expert(w, at, name, x):
    """y (n, o), J (n, o, d), and gradients of each leaf for a cotangent."""
    if at + "Wg" in w:
        Wg, Wu, Wd = (w[at + key] for key in ("Wg", "Wu", "Wd"))
        (b, slope), u = act("silu", x @ Wg.T), x @ Wu.T
        J = np.einsum("oh,nh,hd->nod", Wd, slope * u, Wg) + np.einsum("oh,nh,hd->nod", Wd, b, Wu)
        def grads(dy):
            dv = dy @ Wd
            return {"Wg": (dv * slope * u).T @ x, "Wu": (dv * b).T @ x, "Wd": dy.T @ (b * u)}
        return (b * u) @ Wd.T, J, grads
    W1, b1, W2, b2 = (w[at + key] for key in ("W1", "b1", "W2", "b2"))
    a, slope = act(name, x @ W1.T + b1)
    def grads(dy):
        dz = dy @ W2 * slope
        return {"W1": dz.T @ x, "b1": dz.sum(0), "W2": dy.T @ a, "b2": dy.sum(0)}
    return a @ W2.T + b2, np.einsum("oh,nh,hd->nod", W2, slope, W1), grads

def answers(w, of, x, dy, weights):
    found = {}
    if of["kind"] != "MoE":
        y, J, grads = expert(w, "", of["activation"], x)
        found.update(grads(dy))
    else:
        t, E = of["temperature"], of["E"]
        s = (x @ w["router"].T + w.get("bias", 0)) / t
        chosen = np.argsort(s if LAST else -s, axis=1, kind="stable")
        chosen = chosen[:, ::-1][:, : of["k"]] if LAST else chosen[:, : of["k"]]  # ties to the last, or to the first
        on = np.zeros_like(s, bool)
        np.put_along_axis(on, chosen, True, 1)
        q = np.exp(s - s.max(1, keepdims=True)) * (on if of["renormalize"] else 1)
        q /= q.sum(1, keepdims=True)
        g = q * on
        dg = g[:, :, None] * (w["router"][None] - (q @ w["router"])[:, None]) / t
        all_ = [expert(w, f"experts.{e}.", of["activation"], x) for e in range(E)]
        F = np.stack([f for f, _, _ in all_], axis=2)
        first = sum(g[:, e, None, None] * all_[e][1] for e in range(E))
        second = np.einsum("noe,ned->nod", F, dg)
        y, J = np.einsum("noe,ne->no", F, g), first + second
        dgates = np.einsum("no,noe->ne", dy, F) * on
        ds = q * (dgates - (q * dgates).sum(1, keepdims=True)) / t
        found.update(scores=s, gates=g, expert_jacobian=first, router_jacobian=second, router=ds.T @ x)
        if "bias" in w:
            found["bias"] = ds.sum(0)
        for e in range(E):
            found.update({f"experts.{e}.{key}": a for key, a in all_[e][2](g[:, e, None] * dy).items()})
    mean = np.einsum("n,nod->od", weights, J) / weights.sum()
    return {**found, "output": y, "jacobian": J, "gradient": np.einsum("no,nod->nd", dy, J), "mean_jacobian": mean}

LAST = "last" in sys.argv
folder = pathlib.Path(sys.argv[1])
(folder / "answers").mkdir(exist_ok=True)
for case in json.loads((folder / "manifest.json").read_text())["cases"]:
    with np.load(folder / case["file"]) as arrays:
        w = {key[3:]: arrays[key] for key in arrays if key.startswith("in/")}
    x, dy, weights = (w.pop(key) for key in ("x", "dy", "weights"))
    np.savez(folder / "answers" / case["file"], **answers(w, case["layer"], x, dy, weights))
assert not any(name.partition(".")[0] == "npmoe" for name in sys.modules)
'''


def plain(folder, tmp_path, *options):
    """Let the program answer, in a process and a working folder without npmoe."""
    program = tmp_path / "plain.py"
    program.write_text(PLAIN)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, program, folder, *options], check=True, cwd=tmp_path, env=environment, timeout=120)


def test_a_program_that_does_not_import_npmoe_answers_all_and_is_judged(folder, tmp_path):
    plain(folder, tmp_path)
    found = check(folder)
    assert found.ok, str(found)
    assert len(found.reports) == len(FEW)
    assert found.unanswered == found.unread == found.foreign == ()
    for report in found.reports:  # every answer that there is was judged
        assert {part.name for part in report.parts} == set(wanted(folder, report.name))
        for part in report.parts:
            assert (part.ratio <= 1).all()
    assert "5 agrees" in str(found)
    assert json.loads(json.dumps(found.json()))["verdict"] == "agrees"


def test_a_program_that_resolves_ties_otherwise_agrees_as_well(folder, tmp_path):
    plain(folder, tmp_path, "last")
    report = check(folder)["ties-top2"]
    assert report.ok, str(report)
    assert "other choice" in report["output"].status
    want = wanted(folder, "ties-top2")["output"]
    with np.load(folder / "answers" / "ties-top2.npz") as theirs:
        assert np.abs(theirs["output"] - want).max() > 1e-3  # it did choose otherwise


@pytest.mark.parametrize("name", FEW)
def test_limits_in_the_file_let_right_answers_through(folder, tmp_path, name):
    """What a program in C can do by itself: its error, row by row, against the first number of `limit`."""
    plain(folder, tmp_path)
    with np.load(folder / f"{name}.npz") as case, np.load(folder / "answers" / f"{name}.npz") as theirs:
        for key in [key for key in case.files if key.startswith("limit/float64/")]:
            kind = key.rpartition("/")[2]
            error = np.abs(theirs[kind] - case[f"want/{kind}"])
            assert (error.reshape(len(error), -1).max(axis=1) <= case[key][:, 0]).all(), kind


def recipe_c(folder, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    program = tmp_path / "answers"
    options = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, RECIPES / "answers.c", "-o", program, "-lm"], check=True, timeout=60)
    subprocess.run([program], check=True, cwd=folder, timeout=60)


def test_the_recipe_in_c(tmp_path):
    folder = tmp_path / "dump"
    dump(folder, raw=True, only=["*gelu*", "narrow", "saturated"])
    recipe_c(folder, tmp_path)
    found = check(folder)
    assert found.ok, str(found)
    assert {report.name for report in found.reports} == {
        name for name, case in TABLE.items() if isinstance(case.layer, GeluExpert) and case.layer.activation == "gelu"
    }
    # an error in it shows: the tanh approximation is not the exact GELU
    size = (folder / "answers/gelu/jacobian.f64").stat().st_size
    shutil.copy(folder / "gelu-tanh/want/jacobian.f64", folder / "answers/gelu-tanh/jacobian.f64")
    J = np.fromfile(folder / "answers/gelu/jacobian.f64", "<f8")
    (folder / "answers/gelu/jacobian.f64").write_bytes((J * (1 + 1e-12)).tobytes())
    assert size == J.nbytes
    found = check(folder)
    assert (found["gelu"].verdict, found["gelu-tanh"].verdict) == ("differs", "agrees")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_the_recipe_in_a_framework(folder, library, dtype):
    pytest.importorskip(library)
    program = RECIPES / f"{library}_answers.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, program, folder, dtype], check=True, cwd=folder, env=environment, timeout=300)
    found = check(folder)
    assert found.ok, str(found)
    assert len(found.reports) == len(FEW)
    assert {report.arithmetic for report in found.reports} == {dtype}


def test_the_page_shows_the_recipes_as_they_are():
    page = (ROOT / "docs" / "golden.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python no-run|c)\n(.*?)^```$", page, re.M | re.S)
    assert blocks == [(RECIPES / name).read_text() for name in ("fifteen_torch.py", "fifteen_jax.py", "fifteen.c")]
    assert f"writes {len(TABLE)} cases" in page
    for name in ("torch_answers.py", "jax_answers.py", "fifteen_torch.py", "fifteen_jax.py"):
        assert "import npmoe" not in (RECIPES / name).read_text().replace("not import npmoe", "")


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_fifteen_lines_in_python(folder, library):
    pytest.importorskip(library)
    dump(folder, only=["gelu*"], raw=False)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = RECIPES / f"fifteen_{library}.py"
    subprocess.run([sys.executable, program], check=True, cwd=folder, env=environment, timeout=300)
    found = check(folder)
    assert found.ok, str(found)
    assert {"gelu", "gelu-float32", "gelu-bfloat16"} <= {report.name for report in found.reports}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) is installed")
def test_fifteen_lines_in_c(tmp_path):
    dump(tmp_path / "golden", only=["gelu"], raw=True)
    program = tmp_path / "fifteen"
    subprocess.run(["cc", "-O2", RECIPES / "fifteen.c", "-o", program, "-lm"], check=True, timeout=60)
    subprocess.run([program], check=True, cwd=tmp_path / "golden", timeout=60)
    report = check(tmp_path / "golden")["gelu"]
    assert report.ok
    assert report["jacobian"].largest < 10


# ---- what was answered, and how ------------------------------------------------------------------------------------


def test_planted_faults_are_caught_and_placed(folder):
    answers = wanted(folder, "top2")
    answers["jacobian"][3] = answers["expert_jacobian"][3]
    answers["experts.4.b1"][2] += 1e-9
    answer(folder, "top2", answers)
    answer(folder, "gelu")
    found = check(folder)
    assert found.verdict == "differs"
    assert [report.verdict for report in found.reports] == ["agrees", "differs"]
    report = found["top2"]
    assert np.flatnonzero(report["jacobian"].status == "differs").tolist() == [3]
    assert np.flatnonzero(report["experts.4.b1"].status != "agrees").tolist() == [2]
    text = str(found)
    assert "the router's term is missing" in text
    assert "not answered: swiglu-bfloat16, one-moe, ties-top2" in text
    assert text.count("worst rows") == 2


def test_float32_answers_are_judged_as_such_unless_told_otherwise(folder):
    single = {key: a.astype(np.float32) for key, a in wanted(folder, "gelu").items()}
    answer(folder, "gelu", single)
    assert check(folder)["gelu"].arithmetic == "float32"
    assert check(folder).ok
    assert check(folder, arithmetic="float64").verdict == "differs"
    answer(folder, "gelu", {key: ARITHMETICS["bfloat16"].round(a).astype("f4") for key, a in single.items()})
    assert check(folder).verdict == "differs"
    assert check(folder, arithmetic="bfloat16").ok
    with pytest.raises(ValueError, match="expected an arithmetic among"):
        check(folder, arithmetic="float8")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_either_byte_order_and_layout_are_read(folder, dtype, order):
    answer(folder, "gelu", {key: np.array(a, dtype, order=order) for key, a in wanted(folder, "gelu").items()})
    assert check(folder).ok


def test_compressed_answers_and_labels_and_batch_jacobians(folder):
    J = wanted(folder, "gelu")["jacobian"]
    n, o, d = J.shape
    batch = np.zeros((n, o, n, d))
    batch[np.arange(n), :, np.arange(n)] = J
    np.savez_compressed(folder / "answers" / "gelu.npz", **{"jacobian:forward": J, "jacobian:batch": batch})
    (folder / "answers" / "gelu" / "jacobian.f64").write_bytes(batch.tobytes())
    np.save(folder / "answers" / "gelu" / "output.npy", wanted(folder, "gelu")["output"])
    report = check(folder)["gelu"]
    assert report.ok
    assert {part.name for part in report.parts} == {"jacobian:forward", "jacobian:batch", "jacobian", "output"}


@pytest.mark.parametrize(("ending", "dtype"), [(".f64", "<f8"), (".f32", "<f4")])
def test_bare_numbers_must_have_their_size(folder, ending, dtype):
    want = wanted(folder, "gelu")
    path = folder / "answers" / "gelu" / f"jacobian{ending}"
    path.write_bytes(want["jacobian"].astype(dtype).tobytes())
    assert check(folder).ok
    path.write_bytes(path.read_bytes()[:-1])
    (path.parent / f"output{ending}").write_bytes(want["output"].astype(dtype).tobytes())
    report = check(folder)["gelu"]
    assert (report["output"].verdict, report["jacobian"].verdict) == ("agrees", "no answer")
    size = want["jacobian"].size * np.dtype(dtype).itemsize
    assert f"expected {size} bytes" in report["jacobian"].remarks[0]
    assert f"got {size - 1}" in report["jacobian"].remarks[0]


def test_one_answer_in_two_places_is_none(folder):
    answer(folder, "gelu")
    np.save(folder / "answers" / "gelu" / "output.npy", wanted(folder, "gelu")["output"])
    assert "beside another of that name" in check(folder)["gelu"]["output"].remarks[0]


def test_answers_may_lie_elsewhere(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.move(answer(folder, "gelu"), tmp_path / "mine" / "gelu.npz")
    assert check(folder).verdict == "no answer"
    assert check(folder, tmp_path / "mine").ok


def test_a_case_without_an_answer_counts_where_it_was_asked_for(folder):
    assert check(folder).verdict == "no answer"
    answer(folder, "gelu")
    assert check(folder).verdict == "agrees"
    assert set(check(folder).unanswered) == set(FEW) - {"gelu"}
    assert check(folder, only=["gelu"]).verdict == "agrees"
    assert check(folder, only=["gelu", "top2"]).verdict == "no answer"
    shutil.rmtree(folder / "answers")
    with pytest.raises(FileNotFoundError, match="expected a folder of answers at"):
        check(folder)


def test_foreign_keys_and_files_are_listed_and_change_nothing(folder):
    answers = wanted(folder, "gelu") | {"jacobain": np.zeros(3), "want/output": np.zeros(3), "batch": np.zeros(2)}
    answer(folder, "gelu", answers)
    (folder / "answers" / "notes.txt").write_text("")
    (folder / "answers" / "gelu" / "J.f64").write_bytes(b"")
    found = check(folder)
    assert found.ok
    expected = {"gelu.npz: jacobain", "gelu.npz: want/output", "gelu.npz: batch", "notes.txt", "gelu/J.f64"}
    assert set(found.foreign) == expected
    answer(folder, "top2", {"J": np.zeros(3)})
    found = check(folder)
    assert found.verdict == "no answer"
    assert found.unread[0][0] == "top2"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_differs(folder, bad):
    answers = wanted(folder, "gelu")
    answers["jacobian"][1, 0, 2] = bad
    answer(folder, "gelu", answers)
    report = check(folder)["gelu"]
    assert report.verdict == "differs"
    assert np.flatnonzero(report["jacobian"].status == "differs").tolist() == [1]
    json.dumps(report.json(), allow_nan=False)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3)), "expected jacobian of shape"),
        (np.zeros((7, 5, 3)), "its axes are in another order"),
        (np.zeros((0, 3, 5)), "expected jacobian of shape"),
        (np.zeros(()), "expected jacobian of shape"),
        (np.zeros((7, 3, 5), int), "expected an array of floats; got int64"),
        (np.zeros((7, 3, 5), complex), "expected an array of floats; got complex128"),
        (np.full((7, 3, 5), "a"), "expected floats, integers"),
        (np.zeros((7, 3, 5), "V2"), "write bfloat16 as float32"),
        (np.zeros((7, 3, 5), [("a", "f8")]), "expected numbers or text"),
        (np.zeros((700, 300, 50)), "bytes of arrays; got one of 84000128"),
    ],
)
def test_arrays_of_another_kind_or_shape_are_no_answer(folder, array, says):
    answer(folder, "gelu", {"jacobian": array, "output": wanted(folder, "gelu")["output"]})
    report = check(folder)["gelu"]
    assert report["output"].verdict == "agrees"
    assert report["jacobian"].verdict == "no answer"
    assert says in report["jacobian"].remarks[0]


# ---- files that are broken, or mean harm ---------------------------------------------------------------------------


def test_a_torn_npz_at_any_length_costs_one_case(folder):
    path = answer(folder, "gelu")
    answer(folder, "top2")
    whole = path.read_bytes()
    for length in [0, 1, 4, 21, 22, 100, len(whole) // 2, len(whole) - 23, len(whole) - 22, len(whole) - 1]:
        path.write_bytes(whole[:length])
        found = check(folder)
        assert found.verdict == "no answer"
        assert [report.verdict for report in found.reports] == ["agrees"], length
        assert found.unread[0][0] == "gelu"
        assert "expected an npz file" in found.unread[0][1]
        assert "could not be judged" in str(found)


def test_a_flipped_byte_is_seen_by_the_checksum_of_its_array(folder):
    path = answer(folder, "gelu")
    whole = bytearray(path.read_bytes())
    at = whole.find(wanted(folder, "gelu")["jacobian"].tobytes())
    whole[at + 11] ^= 1
    path.write_bytes(whole)
    report = check(folder)["gelu"]
    assert report["output"].verdict == "agrees"
    assert "CRC" in report["jacobian"].remarks[0]


class Trap:
    """What unpickling would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_ever_unpickled(folder, tmp_path):
    trap = Trap(tmp_path / "sprung")
    answer(folder, "gelu", {"jacobian": np.array([trap], object), "output": wanted(folder, "gelu")["output"]})
    np.save(folder / "answers" / "gelu" / "gradient.npy", np.array([trap], object), allow_pickle=True)
    (folder / "answers" / "gelu" / "b1.npy").write_bytes(pickle.dumps(trap))
    (folder / "answers" / "top2.npz").write_bytes(pickle.dumps(trap))
    found = check(folder)
    assert not trap.path.exists()
    assert "never unpickled" in found["gelu"]["jacobian"].remarks[0]
    assert "never unpickled" in found["gelu"]["gradient"].remarks[0]
    assert found["gelu"]["b1"].verdict == "no answer"
    assert found["gelu"]["output"].verdict == "agrees"
    assert [name for name, _ in found.unread] == ["top2"]
    pickle.loads(pickle.dumps(trap))  # the trap does spring
    assert trap.path.exists()


def header(shape, descr="<f8", data=b""):
    """An npy file whose header says what it likes."""
    words = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    words += b" " * (-(len(words) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words + data


@pytest.mark.parametrize(
    "npy",
    [
        header((10**12,)),
        header((2**40, 2**40)),
        header((-1, -(10**12))),
        header((7, 3, 5)),
        header((7, 3, 5), data=bytes(8 * 7 * 3 * 5 + 1)),
        header((0, 10**30)),
        header((1,) * 99, data=bytes(8)),
        header((7, 3, 5), descr="<f99"),
        header((7.5,)),
        header("abc"),
        b"\x93NUMPY\x03\x00" + bytes(20),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"not an array",
        b"",
    ],
    ids=range(14),
)
@pytest.mark.parametrize("packed", [True, False])
def test_headers_are_not_believed(folder, npy, packed):
    answers = folder / "answers"
    np.save(answers / "gelu" / "output.npy", wanted(folder, "gelu")["output"])
    if packed:
        with zipfile.ZipFile(answers / "gelu.npz", "w") as archive:
            archive.writestr("jacobian.npy", npy)
    else:
        (answers / "gelu" / "jacobian.npy").write_bytes(npy)
    report = check(folder)["gelu"]
    assert report["output"].verdict == "agrees"
    assert report["jacobian"].verdict == "no answer"


def test_a_bomb_is_not_unpacked(folder):
    """Zeros that pack a thousandfold, at the right name: with a header that says so, and with one that does not."""
    n = 1 << 22
    with zipfile.ZipFile(folder / "answers" / "gelu.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for label in "abcd":
            archive.writestr(f"jacobian:{label}.npy", header((n,), data=bytes(8 * n)))
        archive.writestr("jacobian.npy", header((7, 3, 5), data=bytes(8 * n)))
    tracemalloc.start()
    report = check(folder)["gelu"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6, f"{peak} bytes"
    assert all("bytes of arrays; got one of 33554" in part.remarks[0] for part in report.parts)


def test_a_name_twice_in_a_zip_is_no_answer(folder):
    content = io.BytesIO()
    np.save(content, wanted(folder, "gelu")["output"])
    path = folder / "answers" / "gelu.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("output.npy", content.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("output.npy", content.getvalue())
    assert "got 2 of that name" in check(folder)["gelu"]["output"].remarks[0]


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b"\x93NUMPY", bytes(1000)])
def test_a_file_that_is_no_zip(folder, content):
    (folder / "answers" / "gelu.npz").write_bytes(content)
    answer(folder, "top2")
    found = check(folder)
    assert [name for name, _ in found.unread] == ["gelu"]
    assert found["top2"].ok


def test_a_folder_in_place_of_a_file(folder):
    (folder / "answers" / "gelu.npz").mkdir()
    (folder / "answers" / "top2" / "output.npy").mkdir()
    found = check(folder)
    assert [name for name, _ in found.unread] == ["gelu"]
    assert found["top2"]["output"].verdict == "no answer"


@pytest.mark.parametrize("how", ["flipped", "short", "gone", "other"])
def test_a_golden_file_that_changed_is_named_and_not_used(folder, how):
    answer(folder, "gelu")
    answer(folder, "top2")
    path = folder / "gelu.npz"
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif how == "short":
        path.write_bytes(content[:-7])
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(folder / "top2.npz", path)
    found = check(folder)
    assert found.verdict == "no answer"
    assert found["top2"].ok
    ((name, why),) = found.unread
    assert name == "gelu"
    assert str(path) in why
    assert "as the manifest says" in why


def edited(folder, **changes):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(manifest))
    return manifest


def test_a_manifest_that_is_none(folder):
    answer(folder, "gelu")
    path = folder / "manifest.json"
    whole = path.read_text()
    edited(folder, schema=2)
    with pytest.raises(ValueError, match=r"expected schema 1 in .*; got 2"):
        check(folder)
    edited(folder, format="something else")
    with pytest.raises(ValueError, match="it is something else"):
        check(folder)
    for text in ("", "{", whole[:200], "[]", "3", "[" * 100_000, '{"format": "npmoe golden cases"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a manifest of golden cases"):
            check(folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected a manifest of golden cases"):
        check(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is none"):
        check(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc"},
        {"file": "../gelu.npz"},
        {"file": "/etc/passwd"},
        {"name": 3},
        {"bytes": None},
        {"sha256": 7},
        {"layer": None},
    ],
)
def test_a_manifest_that_leads_elsewhere(folder, change):
    answer(folder, "gelu")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0] |= change
    edited(folder, cases=manifest["cases"])
    with pytest.raises(ValueError, match="expected cases with name, file"):
        check(folder)
    edited(folder, cases=None)
    with pytest.raises(ValueError, match="expected cases with name, file"):
        check(folder)


@pytest.mark.parametrize("change", [{"kind": "MoE"}, {"expert": "SwigluExpert"}, {"activation": "relu"}])
def test_a_manifest_that_tells_of_another_layer_costs_that_case(folder, change):
    answer(folder, "gelu")
    answer(folder, "top2")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0]["layer"] |= change
    edited(folder, cases=manifest["cases"])
    found = check(folder)
    assert [name for name, _ in found.unread] == ["gelu"]
    assert found["top2"].ok
