"""`npmoe`: what it says alone, its words, and each command under both of its names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import npmoe
from npmoe import __main__ as command


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_alone_it_says_in_a_dozen_lines_what_one_can_do(words, capsys):
    assert command.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 100
    for word in command.COMMANDS:
        assert any(line.startswith(f"  npmoe {word} ") for line in lines)


def test_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"npmoe {npmoe.__version__}\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [("reprodce", "did you mean reproduce?"), ("Verify", "did you mean verify?"), ("thesis", "got 'thesis'\n")],
)
def test_a_word_that_is_none(word, said, capsys):
    assert command.main([word]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "expected a command among reproduce, language, verify" in told.err


@pytest.mark.parametrize("word", command.COMMANDS)
def test_a_command_is_called_as_the_user_called_it(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([word, "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: npmoe {word}")
    assert "python -m" not in told


def test_what_goes_wrong_is_told_under_that_name(capsys, tmp_path):
    assert command.main(["reproduce", "SC1.99", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("npmoe reproduce: expected sc1 ga my sc2, all, or a claim")
    assert command.main(["verify", "check", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("npmoe verify: expected golden cases with a manifest")


def test_a_command_that_lists_runs_nothing(capsys, tmp_path):
    assert command.main(["reproduce", "GA.1", "--list", "--output", str(tmp_path / "out")]) == 0
    assert "GA.1: Experts are functionally decorrelated" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_in_a_process_of_its_own_and_without_what_it_does_not_need(tmp_path):
    code = "import sys; from npmoe.__main__ import main; main([]); print(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(npmoe.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = set(found.stdout.splitlines()[-1].split())
    assert "npmoe.model.moe" in loaded
    assert not loaded & {"scipy", "matplotlib", "jinja2", "tqdm", "torch", "jax"}


def test_a_reader_that_has_gone_is_no_accident():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        ended = subprocess.run([sys.executable, "-m", "npmoe"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")
