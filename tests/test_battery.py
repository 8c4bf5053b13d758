"""The battery and its command, with a framework of our own in place of others, and balance losses compared."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_balance import FORMS
from test_verify import as_float32, batch, everything

from npmoe.battery import frameworks, oracles
from npmoe.battery import run as battery
from npmoe.battery.cases import battery_cases, cases
from npmoe.battery.command import main
from npmoe.battery.table import GROUPS
from npmoe.calculus import tree
from npmoe.model.balance import Balance
from npmoe.model.moe import MoE
from npmoe.model.routing import top_k
from npmoe.verify import compare_balance

pytestmark = pytest.mark.underflow  # saturated cases, as users meet them

oracles_elementary = oracles.elementary(["gelu"])
FEW = ["gelu", "top2", "ties-top2", "block"]


def fake(*, fault=lambda layer: layer, version=lambda: "1.2.3", answers=None):
    """A framework that is NumPy, in float64 or float32."""

    def ours(layer, x, dy, arithmetic="float64", weights=None):
        layer = fault(layer)
        if arithmetic == "float32":
            layer = as_float32(layer)
        x, dy = x.astype(arithmetic), dy.astype(arithmetic)
        found = everything(layer, x, dy)
        J = found.pop("jacobian")
        return {"jacobian:reverse": J, "jacobian:forward": J, **found}

    def losses(balance, scores, chosen, arithmetic="float64"):
        value, ds = balance(scores.astype(arithmetic), chosen)
        return {"value": np.array(value).astype(arithmetic), "scores": ds}

    return SimpleNamespace(
        NAME="fake",
        version=version,
        arithmetics=lambda: ("float64", "float32"),
        answers=answers or ours,
        balance_answers=losses,
    )


@pytest.fixture
def install(monkeypatch):
    """Put a framework of our own in the place of all others, and fewer oracles: theirs is tests/test_oracles.py."""
    two = oracles.handful()[:2]
    monkeypatch.setattr(oracles, "handful", lambda: two)
    monkeypatch.setattr(oracles, "elementary", lambda: oracles_elementary[:1])

    def put(module):
        monkeypatch.setattr(frameworks, "FRAMEWORKS", {"fake": "nowhere"})
        monkeypatch.setattr(frameworks, "load", lambda name: {"fake": module}[name])
        monkeypatch.setattr("npmoe.battery.command.FRAMEWORKS", {"fake": "nowhere"})

    return put


def run(**options):
    return battery.run(["fake"], battery_cases(FEW), **options)


def test_a_framework_that_is_right(install):
    install(fake())
    found = run()
    assert found.ok, str(found)
    assert found.verdict == "agrees"
    assert {entry.arithmetic for entry in found.entries} == {"float64", "float32"}
    assert {entry.group for entry in found.entries} == set(GROUPS)
    assert found.off == ()
    assert {row.who for row in found.exact} == {"npmoe", "fake"}
    assert max(row.units for row in found.exact if row.group == "output") < 20
    assert len(found.second) == len(FEW)
    assert max(row.complex_step for row in found.second) < 100
    text = str(found)
    assert "fake 1.2.3" in text
    assert "Who is right in the last digits" in text
    assert text.endswith("agrees: every entry is as near as rounding usually brings it")
    assert json.loads(json.dumps(found.json(), allow_nan=False))["verdict"] == "agrees"


def test_a_fault_is_seen_placed_and_changes_the_verdict(install):
    def fault(layer):
        if not isinstance(layer, MoE):
            return layer
        W = layer.experts[1].W1.copy()
        W[2] *= 1 + 1e-5
        return replace(layer, experts=(layer.experts[0], replace(layer.experts[1], W1=W), *layer.experts[2:]))

    install(fake(fault=fault))
    found = run(arithmetics=["float64"])
    assert found.verdict == "differs"
    assert not found.ok
    off = {(entry.case, entry.answer) for entry in found.entries if entry.verdict == "differs"}
    assert ("top2", "jacobian:reverse") in off
    assert not any(case == "gelu" for case, _ in off)
    assert any("expert 1, W1, row 2: a relative change of 1.00e-05" in text for text in found.off), found.off


def test_a_framework_that_cannot_is_a_line_and_not_the_end(install):
    def answers(layer, x, dy, arithmetic, weights=None):
        raise NotImplementedError("no erf")

    install(fake(answers=answers))
    found = run(arithmetics=["float64"])
    assert found.verdict == "no answer"
    assert any(entry.remark == "NotImplementedError: no erf" for entry in found.entries)
    assert any(entry.verdict == "agrees" for entry in found.entries)  # the losses


def test_a_framework_that_is_missing_is_skipped_by_name(install, capsys, tmp_path):
    def version():
        raise ModuleNotFoundError("No module named 'fake'")

    install(fake(version=version))
    assert main(["--only", "gelu", "--output", str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert "fake was skipped, missing: No module named 'fake'" in told
    assert "no answer: an answer that was asked for is missing or cannot be compared" in told
    assert json.loads((tmp_path / "verify.json").read_text())["entries"] == []


def test_names_that_are_unknown():
    with pytest.raises(ValueError, match="expected a framework among torch, jax, autograd; got 'tensorflow'"):
        battery.run(["tensorflow"], ())
    with pytest.raises(ValueError, match="expected an arithmetic among float64"):
        battery.run([], (), arithmetics=["float8"])
    with pytest.raises(ValueError, match=r"expected names of cases among gelu, .*; got 'topp'"):
        battery_cases(["topp"])


def test_the_cases_are_those_of_the_files_and_a_block():
    names = {case.name for case in battery_cases()}
    assert names - {case.name for case in cases()} == {"block"}
    assert not any(name.endswith(("float32", "bfloat16")) for name in names)


@pytest.mark.parametrize("name", ["torch", "jax", "autograd"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_installed_agrees(name):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'npmoe[verify]'")
    few = ["top2"] if name == "jax" else ["gelu-tanh", "top2-kept", "top3-swiglu", "ties-top2", "block"]
    found = battery.run([name], battery_cases(few))
    assert found.verdict == "agrees", str(found)
    in_float64 = [entry for entry in found.entries if entry.arithmetic == "float64"]
    whole = [entry.units for entry in in_float64 if entry.group in ("output", "jacobian:reverse", "jacobian:forward")]
    assert max(whole) < 20  # a few eps of the row; the limits are wider


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_battery_as_a_command(install, capsys, tmp_path):
    install(fake())
    call = ["--framework", "fake", "--arithmetic", "float64", "--only", "gelu", "--output", str(tmp_path)]
    assert main(call) == 0
    told = capsys.readouterr()
    assert "agrees" in told.out
    assert str(tmp_path / "verify.html") in told.err
    data = json.loads((tmp_path / "verify.json").read_text())
    assert data["command"] == "python -m npmoe.verify --framework fake --arithmetic float64 --only gelu"
    assert "<h1" in (tmp_path / "verify.html").read_text()
    assert not list(tmp_path.glob(".*"))


def test_a_difference_is_exit_status_1_and_doubt_only_if_strict(install, tmp_path):
    call = ["--only", "gelu", "--arithmetic", "float64", "--output", str(tmp_path)]
    install(fake(fault=lambda layer: tree.map_leaves(lambda a: a * (1 + 1e-6), layer)))
    assert main(call) == 1
    install(fake(fault=lambda layer: tree.map_leaves(lambda a: a * (1 + 3e-15), layer)))
    assert main(call) == 0
    assert json.loads((tmp_path / "verify.json").read_text())["verdict"] == "doubtful"
    assert main([*call, "--strict"]) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            ["--framework", "tork"],
            "expected a framework among torch, jax, autograd or all; got 'tork'; did you mean torch?",
        ),
        (["--only", "topp"], "expected names of cases among gelu"),
        (["--framework", "torch", "--arithmetic", "float8"], "expected an arithmetic among float64"),
        (["check", "nowhere"], "nowhere"),
        (["released", "mixtrel"], "expected families among mixtral"),
    ],
)
def test_a_wrong_call_is_exit_status_2_and_says_what_was_expected(call, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(call) == 2
    told = capsys.readouterr()
    assert words in told.err + told.out
    assert list(tmp_path.iterdir()) == []


def test_dump_and_check_as_commands(capsys, tmp_path):
    folder = tmp_path / "golden"
    assert main(["dump", str(folder), "--only", "top2", "--raw"]) == 0
    assert capsys.readouterr().out.startswith("1 case in ")
    (folder / "answers").mkdir(exist_ok=True)
    with np.load(folder / "top2.npz") as case:
        right = {"output": case["want/output"], "jacobian": case["want/jacobian"]}
        wrong = case["want/expert_jacobian"]
    np.savez(folder / "answers" / "top2.npz", **right)
    assert main(["check", str(folder), "--json", str(tmp_path / "checked.json")]) == 0
    assert json.loads((tmp_path / "checked.json").read_text())["verdict"] == "agrees"
    np.savez(folder / "answers" / "top2.npz", jacobian=wrong)
    capsys.readouterr()
    assert main(["check", str(folder)]) == 1
    assert "the router's term is missing" in capsys.readouterr().out
    (folder / "answers" / "top2.npz").write_bytes(b"PK\x03\x04 and no more")
    assert main(["check", str(folder)]) == 1
    assert "top2" in capsys.readouterr().out


# ---- balance losses --------------------------------------------------------------------------------------------------

EXAMPLES = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def scored(seed, n=12, E=5, k=2):
    s = np.random.default_rng(seed).standard_normal((n, E)).astype(np.float32).astype(np.float64)
    return s, top_k(s, k)


@EXAMPLES
@given(seeds, st.sampled_from(FORMS), st.sampled_from(["float64", "float32"]))
def test_losses_agree_with_themselves_and_not_with_a_little_more(seed, loss, arithmetic):
    s, chosen = scored(seed)
    value, ds = loss(s, chosen)
    answers = {"value": np.array(value).astype(arithmetic), "scores": ds.astype(arithmetic)}
    report = compare_balance(loss, answers, s, chosen)
    assert (report.arithmetic, report.verdict) == (arithmetic, "agrees"), str(report)
    more = {"value": np.array(value * 1.001), "scores": ds * 1.001}
    assert compare_balance(loss, more, s, chosen).verdict == "differs"


def softmax_rows(s):
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@EXAMPLES
@given(seeds)
def test_a_double_softmax_is_caught_and_named(seed):
    s, chosen = scored(seed)
    p = softmax_rows(s)
    loss = Balance("switch", count="per choice")
    value, dp = loss(p, chosen)
    ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
    report = compare_balance(loss, {"value": np.array(value), "scores": ds}, s, chosen, name="layer 3")
    assert report.verdict == "differs"
    assert [clue.answer for clue in report.clues] == ["value", "scores"]
    assert all("the softmax is taken twice" in clue.says for clue in report.clues)
    assert str(report).startswith("layer 3: differs")


def test_another_convention_is_named():
    s, chosen = scored(0)
    value, ds = Balance("switch", count="per choice")(s, chosen)
    report = compare_balance(Balance("switch"), {"value": np.array(value), "scores": ds}, s, chosen)
    assert report.verdict == "differs"
    assert {clue.says for clue in report.clues} == {"another convention: count 'per choice'"}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"value": np.zeros(2)}, "expected value of shape (1,); got (2,)"),
        ({"scores": np.zeros((5, 12))}, "expected scores of shape (12, 5); got (5, 12)"),
        ({"loss": np.zeros(1)}, "expected the name of an answer, value or scores; got 'loss'"),
        ({"value": np.array(3)}, "expected an array of floats; got int64"),
    ],
)
def test_an_answer_to_a_loss_that_cannot_be_compared(answers, words):
    s, chosen = scored(0)
    report = compare_balance(Balance("switch"), answers, s, chosen)
    assert report.verdict == "no answer"
    assert words in str(report)


def test_the_batch_of_a_block_is_its_diagonal():
    J = np.arange(12.0).reshape(2, 3, 2)
    assert batch(J)[1, :, 1].tolist() == J[1].tolist()
    assert not batch(J)[0, :, 1].any()


def test_without_mpmath_the_rest_goes_on(install, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(battery, "find_spec", lambda name: None)
    install(fake())
    assert main(["--arithmetic", "float64", "--output", str(tmp_path)]) == 0
    assert "mpmath was skipped" in capsys.readouterr().out
    data = json.loads((tmp_path / "verify.json").read_text())
    assert data["exact"] == data["elementary"] == []
    assert len(data["entries"]) > 100
    assert (tmp_path / "verify.html").exists()
