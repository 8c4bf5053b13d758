"""The reproduction, killed at any moment and continued, leaves what an undisturbed one leaves; so does any executor."""

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
from npmoe.sweep import in_stages

PLAN = tiny(TINIEST).experiment.plan((), full=False, quick=False, seeds=2)
RUNS = len(in_stages(PLAN.configs(), reads))
# in the order in which they get their names, after format.json, the runs, and format.json once more
OUTPUTS = (
    *(f"figures/{name}.json" for name in FIGURES),
    "claims.csv",
    "results.json",
    *(f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")),
    "index.html",
)
FIRST = 1 + RUNS + 1  # number of the first output


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
    """Twenty moments: (folder, number of the file in a run from the beginning, executor, phase), ascending in a folder.

    Two folders are killed on and on; the files of a run that was done already are not written again, while the
    outputs are, from the first.
    """
    early = np.sort(rng.choice(np.arange(1, RUNS + 1), 9, replace=False))
    late = np.sort(rng.choice(np.arange(len(OUTPUTS)), 9, replace=False))
    executors = rng.permutation(["serial"] * 14 + ["threads"] * 3 + ["processes"] * 3)
    phases = rng.choice(["before", "half", "after"], 20)
    places = [(0, int(at)) for at in [0, *early[::2]]] + [(0, int(FIRST + at)) for at in late[::2]]
    places += [(1, int(at)) for at in early[1::2]] + [(1, int(FIRST + at)) for at in (*late[1::2], len(OUTPUTS) - 1)]
    return [(*place, str(e), str(p)) for place, e, p in zip(places, executors, phases, strict=True)]


def test_killed_at_twenty_moments_and_continued(script, tmp_path, undisturbed):
    rng = np.random.default_rng(11)
    phases, hit = set(), set()
    for folder, at, executor, phase in moments(rng):
        here = tmp_path / str(folder)
        done = len(list((here / "runs").glob("*.npz")))
        # format.json comes first, always; then the runs that are missing
        status, told = script(here, executor, phase, max(at - done, 1) if at else 0)
        assert status == -signal.SIGKILL, (at, told)
        left = files(here)
        stale = {name for name in left if name.endswith(".tmp")}
        whole = {name: data for name, data in left.items() if name not in stale}
        same(whole, {name: undisturbed.get(name) for name in whole})
        assert len(list((here / "runs").glob("*.npz"))) >= done
        phases.add(phase)
        hit.add("run" if at < FIRST else OUTPUTS[at - FIRST])
    assert phases == {"before", "half", "after"}
    assert hit >= {"run", "results.json", "index.html"}
    assert len(hit) >= 8
    for folder in ("0", "1"):
        same(finish(script, tmp_path / folder), undisturbed)
