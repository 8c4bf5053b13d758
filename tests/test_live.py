"""A page that fills in: what is written and said while runs arrive, and in which order they come."""

import json
from dataclasses import replace

import pytest
from _reproduce_jobs import TINIEST, tiny

from npmoe.reproduce import __main__ as command
from npmoe.reproduce import live, run
from npmoe.reproduce.experiment import Across
from npmoe.reproduce.soft_clustering import axes

SEEDS = 6


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """A run of three claims with six seeds: the ledgers as they were written, and the lines as they were said."""
    monkeypatch.setattr(command, "PAPERS", (tiny(TINIEST),))
    monkeypatch.setattr(live, "SOON", 0.0)
    written, write = [], run.write

    def noted(folder, results, drawn, alone=False):
        page = write(folder, results, drawn, alone)
        ledger = json.loads((folder / "results.json").read_text())
        written.append((ledger["papers"][0]["progress"], {c["id"]: c for c in ledger["claims"]}, page.read_text()))
        return page

    monkeypatch.setattr(run, "write", noted)
    words = [
        "SC1.3",
        "SC1.6",
        "SC1.7",
        "--seeds",
        str(SEEDS),
        "--executor",
        "serial",
        "--output",
        str(tmp_path / "out"),
    ]
    assert command.main(words) == 0
    return written, capsys.readouterr().err.splitlines()


def seeds_in(claim):
    return len(next((r["values"] for r in claim["readings"] if r["primary"]), []))


def test_the_page_is_there_from_the_start_and_grows_seed_by_seed(told):
    written, _ = told
    progress = [seeds for seeds, _, _ in written]
    assert progress[0] == 0
    assert progress[-1] is None, "complete"
    assert progress[:-1] == sorted(progress[:-1])
    assert set(progress[:-1]) == set(range(SEEDS + 1)), "after every seed"
    assert {seeds_in(claim) for claim in written[0][1].values()} == {0}
    for seeds, claims, page in written[1:-1]:
        assert seeds_in(claims["SC1.7"]) >= seeds
        assert f"{seeds} of {SEEDS} seeds" in page
        verdict = claims["SC1.7"]["verdict"]
        assert (verdict == "no verdict") == (seeds_in(claims["SC1.7"]) < 5)
    assert {seeds_in(claim) for claim in written[-1][1].values()} == {SEEDS}
    assert "This page is filling in" not in written[-1][2]


def test_claims_are_said_with_their_first_seed_and_verdicts_from_the_fifth(told):
    _, lines = told
    first = next(i for i, line in enumerate(lines) if line.startswith("  SC1.6  "))
    one = next(i for i, line in enumerate(lines) if line.startswith(f"SC1: 1 of {SEEDS} seeds"))
    verdict = next(i for i, line in enumerate(lines) if line.startswith("  SC1.6  ") and line.endswith("by 5 seeds"))
    assert "the page: file://" in lines[0]
    assert 0 < first < one < verdict
    assert "1 seed so far; a verdict needs 5" in lines[first]
    assert not any(line.endswith(("by 1 seeds", "by 4 seeds")) for line in lines)


def test_a_complete_page_stays_until_its_successor_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PAPERS", (tiny(TINIEST),))
    words = ["SC1.6", "--executor", "serial", "--output", str(tmp_path / "out")]
    assert command.main(words) == 0
    written, write = [], run.write

    def noted(folder, results, drawn, alone=False):
        written.append(results["progress"])
        return write(folder, results, drawn, alone)

    monkeypatch.setattr(run, "write", noted)
    assert command.main([*words, "--fresh"]) == 0
    assert written == [None], "once, at the end"


def test_runs_come_seed_by_seed_and_roles_across_seeds_wait():
    made = replace(tiny(TINIEST).experiment).plan((), full=True, quick=False, seeds=5)
    parts = list(made._parts())
    across = [isinstance(axes.ROLES[role], Across) for role, _, _ in parts]
    trained_otherwise = [axis is not None for _, _, axis in parts]
    first = across.index(True)
    assert [seed for _, seed, _ in parts[:first]] == sorted(seed for _, seed, _ in parts[:first])
    assert trained_otherwise == sorted(trained_otherwise), "train readings last"
    assert not any(trained_otherwise[: first + 1])
