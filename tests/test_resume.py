"""The reproduction, killed at any moment and continued, leaves what an undisturbed one leaves; so does any executor."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import _reproduce_jobs
import numpy as np
import pytest
from _reproduce_jobs import FIGURES, TINIEST, tiny

import npmoe
from npmoe.reproduce.paper import reads
from npmoe.sweep import in_order

PLAN = tiny(TINIEST).experiment.plan((), full=False, quick=False, seeds=2)
RUNS = len(in_order(PLAN.configs(), reads))
OUTPUTS = (
    *(f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("json", "svg")),
    "claims.csv",
    "results.json",
    "index.html",
)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A run of the command in a process of its own: folder, executor, and maybe a moment to die -> exit status."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-W", "error", _reproduce_jobs.__file__],
            env=os.environ | {"PYTHONPATH": str(Path(npmoe.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def ask(*words):
        server.stdin.write("\t".join(map(str, words)) + "\n")
        server.stdin.flush()
        status = server.stdout.readline()
        assert status, log.read_text()
        return int(status), log.read_text()

    yield ask
    server.stdin.close()
    assert server.wait(60) == 0
    server.stdout.close()


def files(folder):
    """Every file below by its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(found, expected):
    assert sorted(found) == sorted(expected)  # no temporary file either
    assert [name for name in found if found[name] != expected[name]] == []


def finish(script, folder, executor="serial"):
    status, told = script(folder, executor)
    assert status == 0, told
    return files(folder)


@pytest.fixture(scope="module")
def undisturbed(script, tmp_path_factory):
    return finish(script, tmp_path_factory.mktemp("undisturbed"))


def test_undisturbed_run_leaves_all_that_the_design_names(undisturbed):
    assert len([name for name in undisturbed if name.endswith(".npz")]) == RUNS
    others = {name for name in undisturbed if not name.endswith(".npz")}
    assert others == {*OUTPUTS, "runs/format.json", "runs/.lock"}


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_same_bytes_from_every_executor(script, tmp_path, undisturbed, executor):
    same(finish(script, tmp_path, executor), undisturbed)


def moments(rng):
    """Twenty moments: (folder, files, how many of these get their names first, executor, phase).

    Two folders are killed on and on. Ledger, figures and page are written before the first run, after each seed and at
    the end, so that the first of them comes in every call.
    """
    files = (
        ["*.npz"] * 10
        + ["format.json", "3D.json", "3D.svg", "claims.csv", "results.json", "index.html"]
        + ["*.npz"] * 4
    )
    at = [int(rng.integers(RUNS // 8)) if name == "*.npz" else 0 for name in files]
    order = [0, *(1 + rng.permutation(19))]
    executors = rng.permutation(["serial"] * 14 + ["threads"] * 3 + ["processes"] * 3)
    phases = rng.choice(["before", "half", "after"], 20)
    return [(i % 2, files[n], at[n], str(executors[i]), str(phases[i])) for i, n in enumerate(order)]


def whole(name, data, undisturbed):
    """Whether a file is whole: a run's is that of an undisturbed call, any other may be of a page that fills in."""
    if name.endswith(".npz"):
        return data == undisturbed[name]
    if name.endswith(".json"):
        return bool(json.loads(data))
    ends = {".html": b"</html>\n", ".svg": b"</svg>\n", ".csv": b"\n", ".lock": b""}
    return data.endswith(ends[Path(name).suffix or Path(name).name])


def test_killed_at_twenty_moments_and_continued(script, tmp_path, undisturbed):
    rng = np.random.default_rng(11)
    phases, hit = set(), set()
    for folder, name, at, executor, phase in moments(rng):
        here = tmp_path / str(folder)
        done = len(list((here / "runs").glob("*.npz")))
        status, told = script(here, executor, phase, name, at)
        if status == 0:  # as many runs were not left, or no figure was drawn yet
            continue
        assert status == -signal.SIGKILL, (name, at, told)
        left = {name: data for name, data in files(here).items() if not name.endswith(".tmp")}
        assert [name for name, data in left.items() if not whole(name, data, undisturbed)] == []
        assert set(left) <= set(undisturbed)
        assert len(list((here / "runs").glob("*.npz"))) >= done
        phases.add(phase)
        hit.add(name)
    assert phases == {"before", "half", "after"}
    assert hit >= {"*.npz", "format.json", "claims.csv", "results.json", "index.html"}
    for folder in ("0", "1"):
        same(finish(script, tmp_path / folder), undisturbed)
