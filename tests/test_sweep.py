"""What a sweep promises: the same bytes however it ran or died, and nothing lost, whatever it is given."""

import concurrent.futures as cf
import dataclasses
import doctest
import inspect
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import _sweep_jobs
import numpy as np
import pytest
from _sweep_jobs import SOURCE, TOYS, Toy, another, compute, dying, failing, threads
from threadpoolctl import threadpool_limits

import npmoe
import npmoe.sweep
from npmoe import news
from npmoe.reproduce.papers import PAPERS
from npmoe.sweep import SweepError, executor, in_order, reached, run_id, source_hash, stages, sweep


def toys(folder, configs=TOYS[:3], function=compute, **options):
    return sweep(configs, function, folder, **{"source": SOURCE, **options})


def files(folder):
    """Every file below by its bytes: what must be equal, or must not have been touched."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def path_of(folder, toy):
    return folder / f"{run_id(toy, SOURCE)}.npz"


def refuse(toy):
    raise AssertionError(f"{toy} was to be loaded, not computed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "runs"
    toys(folder, TOYS)
    return files(folder)


# The same bytes, always


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_same_bytes_from_every_executor_and_in_reverse(tmp_path, undisturbed, kind):
    with executor(kind, 2) as pool:
        runs = toys(tmp_path, TOYS[::-1], executor=pool)
    assert list(runs) == TOYS[::-1]
    assert files(tmp_path) == undisturbed
    assert set(undisturbed) == {".lock", "format.json"} | {path_of(tmp_path, toy).name for toy in TOYS}


def test_fresh_resumed_and_partly_resumed_runs_are_equal(tmp_path):
    first = toys(tmp_path, TOYS[:2])
    resumed = toys(tmp_path, TOYS[:2], refuse)
    longer = toys(tmp_path, TOYS[:3])
    assert set(first[TOYS[0]]) == set(compute(TOYS[0]))
    for toy in TOYS[:2]:
        for name, array in compute(toy).items():
            for runs in (first, resumed, longer):
                np.testing.assert_array_equal(runs[toy][name], array, strict=True)
            assert list(first[toy]) == list(resumed[toy])
            assert first[toy][name].flags.c_contiguous == resumed[toy][name].flags.c_contiguous


def test_file_is_plain_npz_with_its_config(tmp_path):
    toys(tmp_path)
    with np.load(path_of(tmp_path, TOYS[1]), allow_pickle=False) as archive:
        assert archive["config"].shape == ()
        assert json.loads(str(archive["config"])) == {"class": "Toy", "seed": 1, "sizes": [3, 4]}
        np.testing.assert_array_equal(archive["x"], compute(TOYS[1])["x"])
    with zipfile.ZipFile(path_of(tmp_path, TOYS[1])) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_bytes_depend_on_values_alone(tmp_path):
    def otherwise(toy):
        return {name: np.asarray(array, order="F") for name, array in reversed(compute(toy).items())}

    toys(tmp_path / "one")
    toys(tmp_path / "other", function=otherwise)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_config_asked_for_twice_runs_once(tmp_path):
    calls = []
    runs = toys(tmp_path, [TOYS[0], Toy(0), TOYS[0]], lambda toy: calls.append(toy) or compute(toy))
    assert calls == [TOYS[0]]
    assert list(runs) == [TOYS[0]]
    assert toys(tmp_path, []) == {}


def test_fresh_replaces_what_was_asked_for_and_nothing_else(tmp_path):
    toys(tmp_path)
    before = files(tmp_path)
    runs = toys(tmp_path, TOYS[:1], another, fresh=True)
    np.testing.assert_array_equal(runs[TOYS[0]]["x"], np.zeros(1))
    changed = {name for name, data in files(tmp_path).items() if data != before[name]}
    assert changed == {path_of(tmp_path, TOYS[0]).name}


def test_fresh_keeps_the_old_file_until_the_new_one_is_there(tmp_path):
    toys(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ZeroDivisionError):
        toys(tmp_path, TOYS[1:2], failing, fresh=True)
    assert files(tmp_path) == before


def test_docstring_example_runs():
    assert sum(doctest.testmod(module).failed for module in (npmoe.sweep, stages)) == 0
    assert sum(doctest.testmod(module).attempted for module in (npmoe.sweep, stages)) > 3


# Killed


def script(folder, kind, *moment):
    command = [sys.executable, _sweep_jobs.__file__, folder, kind, *moment]
    return subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"PYTHONPATH": str(Path(npmoe.__file__).parents[1])},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=120,
    )


def test_killed_at_twenty_moments_and_continued(tmp_path, undisturbed):
    rng = np.random.default_rng(20)
    kinds = ["serial"] * 12 + ["threads"] * 4 + ["processes"] * 4
    sweeps = [tmp_path / "sweep0"]
    phases = set()
    for kind in rng.permutation(kinds):
        folder = sweeps[-1]
        missing = [at for at, toy in enumerate(TOYS) if not path_of(folder, toy).exists()]
        phase = rng.choice(["compute", "write", "before", "after"])
        at = rng.choice(missing) if phase == "compute" else rng.integers(min(len(missing), 5))
        killed = script(folder, kind, phase, at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        stale = [name for name in files(folder) if name.endswith(".tmp")]
        assert len(stale) in {"compute": (0, 1), "write": (1,), "before": (1,), "after": (0,)}[phase]
        whole = {name: data for name, data in files(folder).items() if name not in stale}
        assert whole.items() <= undisturbed.items()
        phases.add(phase)
        if len(whole) == len(undisturbed):
            sweeps.append(tmp_path / f"sweep{len(sweeps)}")
    for folder in sweeps:
        folder.mkdir(exist_ok=True)
        (folder / f"{'0' * 16}.npz.tmp").write_bytes(b"planted, as by a sweep of other runs that was killed")
        toys(folder, TOYS)
        assert files(folder) == undisturbed
    assert phases == {"compute", "write", "before", "after"}


def test_workers_of_a_killed_caller_go_too(tmp_path, undisturbed):
    # script() returns when the last of those that hold its standard output is gone
    assert script(tmp_path, "processes", "orphan", 2).returncode == -signal.SIGKILL
    toys(tmp_path, TOYS)
    assert files(tmp_path) == undisturbed


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_interrupt_leaves_whole_files_and_no_noise(tmp_path, undisturbed, kind):
    interrupted = script(tmp_path, kind, "interrupt", 2)
    assert (interrupted.returncode, interrupted.stdout, interrupted.stderr) == (0, "interrupted\n", "")
    left = files(tmp_path)
    assert left.items() <= undisturbed.items()
    assert len(left) == 2 + 2  # the third was being written


def test_interrupt_cancels_what_is_pending(tmp_path):
    class Patient(cf.Executor):
        futures = []  # noqa: RUF012

        def submit(self, function, /, *args):
            self.futures.append(cf.Future())
            if len(self.futures) == 1:
                self.futures[0].set_result(function(*args))
            return self.futures[-1]

    def interrupting(toy):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toys(tmp_path, executor=Patient(), label=interrupting, progress=False)
    assert [future.cancelled() for future in Patient.futures] == [False, True, True]
    with pytest.raises(KeyboardInterrupt):
        toys(tmp_path / "serial", function=interrupting)
    assert set(files(tmp_path / "serial")) == {".lock", "format.json"}


# Runs that fail


def test_failing_run_is_named_and_costs_no_other(tmp_path):
    with pytest.raises(ZeroDivisionError, match="no such seed") as caught:
        toys(tmp_path, TOYS[:3], failing, label=lambda toy: f"toy {toy.seed}")
    assert caught.value.__notes__ == ["in the run of toy 1"]
    assert set(files(tmp_path)) == {".lock", "format.json", path_of(tmp_path, TOYS[0]).name}


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_failing_run_elsewhere_is_named_and_costs_no_other(tmp_path, kind):
    with pytest.raises(ZeroDivisionError) as caught, executor(kind, 1) as pool:
        toys(tmp_path, TOYS[:2], failing, executor=pool)
    assert f"in the run of {TOYS[1]}" in caught.value.__notes__
    assert path_of(tmp_path, TOYS[0]).exists()
    assert not path_of(tmp_path, TOYS[1]).exists()


def test_runs_at_work_while_one_fails_are_saved_and_those_not_begun_cancelled(tmp_path):
    class Slow(cf.Executor):
        """Run 0 fails while run 1 is at work and run 2 waits; run 1 ends when run 2 is cancelled."""

        futures = []  # noqa: RUF012

        def submit(self, function, /, *args):
            future = cf.Future()
            self.futures.append(future)
            if len(self.futures) == 1:
                future.set_exception(ZeroDivisionError("first"))
            if len(self.futures) == 2:
                future.set_running_or_notify_cancel()
            if len(self.futures) == 3:
                future.add_done_callback(lambda _: self.futures[1].set_result(compute(TOYS[1])))
            return future

        def cancelled(self):
            return [future.cancelled() for future in self.futures]

    slow = Slow()
    with pytest.raises(ZeroDivisionError, match="first"):
        toys(tmp_path, executor=slow)
    assert slow.cancelled() == [False, False, True]
    assert set(files(tmp_path)) == {".lock", "format.json", path_of(tmp_path, TOYS[1]).name}


def test_run_cancelled_by_its_executor_is_not_passed_over(tmp_path):
    class Lost(cf.Executor):
        def submit(self, function, /, *args):
            future = cf.Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(cf.CancelledError):
        toys(tmp_path, executor=Lost())


def test_dead_worker_is_reported_and_finished_runs_are_kept(tmp_path):
    with pytest.raises(SweepError, match=r"a worker died.* are kept"), executor("processes", 1) as pool:
        toys(tmp_path, TOYS[:4], dying, executor=pool)
    assert not path_of(tmp_path, TOYS[1]).exists()
    assert set(toys(tmp_path, TOYS[:4])) == set(TOYS[:4])


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (np.ones(3), "dict of arrays; got ndarray"),
        (None, "dict of arrays; got NoneType"),
        ({"x": [1.0]}, "'x'; got list"),
        ({"x": 1.0}, "'x'; got float"),
        ({"x": np.ones(1), "y": np.array([None])}, "'y' .*got dtype object"),
        ({"x": np.array([(1, None)], dtype=[("a", int), ("b", object)])}, "'x' .*got dtype"),
        ({"x": np.ma.masked_less(np.arange(3), 1)}, "'x'; got MaskedArray"),
        ({1: np.ones(1)}, "name of an array.* got 1"),
        ({"": np.ones(1)}, "name of an array.* got ''"),
        ({"x\0": np.ones(1)}, "name of an array"),
        ({"config": np.ones(1)}, "other than config and digest"),
    ],
)
def test_result_that_is_no_dict_of_arrays(tmp_path, result, said):
    with pytest.raises(SweepError, match=said) as caught:
        toys(tmp_path, TOYS[:1], lambda toy: result)
    assert caught.value.__notes__ == [f"in the run of {TOYS[0]}"]
    assert set(files(tmp_path)) == {".lock", "format.json"}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.array("text"),
        np.arange(6, dtype=">i2").reshape(2, 3).T,
        np.ones(4, "f4")[::2],
        np.array(1j),
    ],
    ids=["empty", "text", "transposed", "strided", "complex"],
)
def test_arrays_of_every_kind_come_back(tmp_path, array):
    np.testing.assert_array_equal(toys(tmp_path, TOYS[:1], lambda toy: {"a": array})[TOYS[0]]["a"], array, strict=True)


# Files that are not what they should be


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """One bit of one number: the corruption that only a checksum sees."""
    data = bytearray(path.read_bytes())
    data[data.index(compute(TOYS[1])["x"].tobytes()) + 5] ^= 1
    path.write_bytes(data)


def scribble(path):
    path.write_bytes(b"not a run")


def single(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def unmarked(path):
    np.savez(path, x=np.ones(3))


def pickled(path):
    with np.load(path, allow_pickle=False) as archive:
        config = archive["config"]
    np.savez(path, x=np.array([None]), config=config)


def foreign(path):
    path.write_bytes(path_of(path.parent, TOYS[0]).read_bytes())


@pytest.mark.parametrize("damage", [truncate, empty, flip, scribble, single, unmarked, pickled, foreign])
def test_damaged_run_is_set_aside_told_in_one_line_and_computed_again(tmp_path, capsys, damage):
    toys(tmp_path)
    sound, path = files(tmp_path), path_of(tmp_path, TOYS[1])
    damage(path)
    bad = path.read_bytes()
    for times in range(2):  # a second one does not take the place of the first
        calls = []
        toys(
            tmp_path,
            function=lambda toy, calls=calls: calls.append(toy) or compute(toy),
            label=lambda t: f"toy {t.seed}",
        )
        assert calls == [TOYS[1]]
        out, err = capsys.readouterr()
        aside = f"{path.name}.damaged{times or ''}"
        (line,) = err.splitlines()
        assert line.startswith(f"the run of toy 1 is computed again; its file is kept as {aside}: {path}: ")
        assert out == ""
        assert (tmp_path / aside).read_bytes() == bad
        assert {name: data for name, data in files(tmp_path).items() if "damaged" not in name} == sound
        path.write_bytes(bad)


def test_damaged_run_that_another_reads_is_computed_again(tmp_path, capsys):
    total = Sum((TOYS[0], TOYS[1]))
    totals(tmp_path, [total])
    sound = files(tmp_path)
    path_of(tmp_path, total).unlink()
    truncate(path_of(tmp_path, TOYS[1]))
    calls = []
    totals(tmp_path, [total], function=lambda config, *read: calls.append(config) or summed(config, *read))
    assert calls == [TOYS[1], total]
    assert {name: data for name, data in files(tmp_path).items() if "damaged" not in name} == sound
    assert "is computed again" in capsys.readouterr().err


def test_full_disk_is_reported_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    toys(tmp_path, TOYS[:1])
    before = files(tmp_path)
    monkeypatch.setattr(os, "fsync", _sweep_jobs.counted(os.fsync, 1, before=full))
    with pytest.raises(
        SweepError,
        match=r"cannot write .*npz: No space left.*the same command continues; the runs finished so far are kept",
    ):
        toys(tmp_path, TOYS[:2])
    assert files(tmp_path) == before


# Folders that are not what they should be


@pytest.mark.parametrize("below", ["file", "file/runs"])
def test_folder_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SweepError, match=f"expected a folder .* got {tmp_path / below}"):
        toys(tmp_path / below, function=refuse)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes where it likes")
def test_folder_without_permission(tmp_path):
    toys(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SweepError, match=str(tmp_path)):
            toys(tmp_path, TOYS, refuse)
    finally:
        tmp_path.chmod(0o700)


def test_folder_that_cannot_be_written_is_found_before_anything_runs(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(30, "Read-only file system")

    toys(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(SweepError, match=f"cannot write {tmp_path}.*Read-only"):
        toys(tmp_path, TOYS, refuse)
    assert files(tmp_path) == before


@pytest.mark.parametrize("mark", ['{"format": 2}', "{}", "[1]", "{", "\xff"])
def test_folder_of_another_format_is_left_alone(tmp_path, mark):
    (tmp_path / "format.json").write_text(mark, encoding="latin-1")
    (tmp_path / f"{'0' * 16}.npz.tmp").write_text("another version's")
    before = files(tmp_path)
    with pytest.raises(SweepError, match=r"expected .*\{'format': 1\} in .*(got|cannot read)") as caught:
        toys(tmp_path, function=refuse)
    assert str(tmp_path) in str(caught.value)
    assert files(tmp_path) == before


def test_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SweepError, match=rf"{tmp_path} holds thesis\.tex"):
        toys(tmp_path, function=refuse)
    assert files(tmp_path) == {"thesis.tex": b"precious"}


def test_unmarked_folder_of_our_own_names_is_taken(tmp_path):
    toys(tmp_path)
    before = files(tmp_path)
    (tmp_path / "format.json").unlink()
    toys(tmp_path, function=refuse)
    assert files(tmp_path) == before


def test_strangers_in_a_marked_folder_are_let_be(tmp_path):
    toys(tmp_path)
    (tmp_path / "notes.tmp").write_text("precious")
    toys(tmp_path, TOYS[:4])
    assert files(tmp_path)["notes.tmp"] == b"precious"


def test_second_sweep_in_one_folder_is_refused_at_once(tmp_path):
    def intruding(toy):
        with pytest.raises(SweepError, match=f"expected {tmp_path} to be free"):
            toys(tmp_path, function=refuse)
        return compute(toy)

    toys(tmp_path, TOYS[:1], intruding)
    toys(tmp_path, TOYS[:1], refuse)


# Names of runs


def test_run_id_is_stable_and_depends_on_class_fields_and_source():
    @dataclasses.dataclass(frozen=True)
    class Other:
        seed: int
        sizes: tuple[int, ...] = (3, 4)

    @dataclasses.dataclass(frozen=True)
    class Holder:
        held: Toy | Other

    ids = [run_id(Toy(0), "a"), run_id(Toy(1), "a"), run_id(Toy(0, (4, 3)), "a"), run_id(Toy(0), "b")]
    ids += [run_id(Other(0), "a"), run_id(Holder(Toy(0)), "a"), run_id(Holder(Other(0)), "a")]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "db5b9cf7b8468e79"  # a change here throws away everyone's results: raise FORMAT


class Plain:
    """Hashable, and no dataclass."""


@dataclasses.dataclass
class Thawed:
    seed: int = 0


@pytest.mark.parametrize("config", [Plain(), Toy, 3, Thawed(), Toy({1}), Toy([1]), Toy(float("nan")), Toy(Plain())])
def test_config_that_is_no_frozen_dataclass_of_json(tmp_path, config):
    with pytest.raises(TypeError, match="expected a frozen dataclass of JSON-able values; got"):
        sweep([config], refuse, tmp_path / "runs", source=SOURCE)
    assert not (tmp_path / "runs").exists()


def test_two_configs_with_one_id(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Twin:
        seed: int

    first, Twin.__qualname__ = Twin(0), "Twin"
    second = dataclasses.make_dataclass("Twin", ["seed"], frozen=True)(0)
    with pytest.raises(SweepError, match="two read the same"):
        toys(tmp_path, [first, second], refuse)


CODE = '''
"""Module."""
class A:
    """Class."""
    def f(self, x):
        """Function."""
        return x + 1  # comment
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Module.", "Reworded.", True),
        ("Class.", "Reworded.", True),
        ("Function.", "Reworded.\n\n        At length.", True),
        ("# comment", "# reworded", True),
        ("x + 1", "(x\n            + 1)", True),
        ('        """Function."""\n', "", True),
        ("x + 1", "x + 2", False),
        ("x + 1", "x - 1", False),
        ("x + 1", "x + 1.0", False),
        ("return", "return  'Function.',", False),
        ("def f", "def g", False),
    ],
)
def test_source_hash_changes_with_meaning_alone(tmp_path, old, new, same):
    assert old in CODE
    file = tmp_path / "code.py"
    file.write_text(CODE)
    before = source_hash(file)
    file.write_text(CODE.replace(old, new))
    assert (source_hash(file) == before) is same


def package(root, files):
    """A package below root; the source of each module by its dotted name."""
    for name, source in files.items():
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for folder in {path.parent for path in root.rglob("*.py")}:
        for above in (folder, *folder.parents):
            if above == root:
                break
            (above / "__init__.py").touch()
    return root


def test_source_hash_knows_names_not_places(tmp_path):
    here, there = (package(tmp_path / place, {"p.a": "x = 1", "p.room.b": "x = 2"}) for place in ("here", "there"))
    before = source_hash(here / "p" / "a.py", here / "p" / "room" / "b.py")
    assert before == source_hash(there / "p" / "room" / "b.py", there / "p" / "a.py", there / "p" / "a.py")
    assert before != source_hash(here / "p" / "a.py")
    (there / "p" / "room" / "b.py").rename(there / "p" / "room" / "c.py")
    assert before != source_hash(there / "p" / "a.py", there / "p" / "room" / "c.py")


def test_source_hash_of_nothing(tmp_path):
    for function in (source_hash, reached):
        with pytest.raises(ValueError, match="expected Python files; got none"):
            function()
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "missing.py")


LAB = {
    "p.run": "import numpy, p.first\nfrom p.model import moe\nfrom .near import f\nfrom p.ledger import Rule",
    "p.first": "from p.model.deep import g as h",
    "p.model.moe": "def f():\n    from ..geometry.pca import k_at",
    "p.model.deep": "",
    "p.model.other": "import p.run",
    "p.geometry.pca": "from . import spectra",
    "p.geometry.spectra": "from p.run import compute  # a circle",
    "p.near": "if True:\n    import p.late",
    "p.late": "",
    "p.ledger.__init__": "from p.ledger.rule import Rule",
    "p.ledger.rule": "class Rule: pass",
    "p.ledger.words": "",
}


def test_what_a_run_reaches_are_the_modules_that_are_imported_one_from_another(tmp_path):
    root = package(tmp_path, LAB)
    found = {path.relative_to(root / "p").as_posix() for path in reached(root / "p" / "run.py")}
    assert found == {
        "run.py", "first.py", "model/moe.py", "model/deep.py", "geometry/pca.py", "geometry/spectra.py", "near.py",
        "late.py", "ledger/__init__.py", "ledger/rule.py",
    }  # fmt: skip


def test_an_unrelated_module_renames_no_run_and_a_used_formula_does(tmp_path):
    root = package(tmp_path, LAB)

    def name():
        return run_id(Toy(0), source_hash(*reached(root / "p" / "run.py")))

    before = name()
    (root / "p" / "model" / "attention.py").write_text("import p.model.moe\nx = 1")
    (root / "p" / "model" / "other.py").write_text("x = 2")
    (root / "p" / "model" / "__init__.py").write_text("from p.model import attention")
    assert name() == before
    for used in ("late", "geometry/spectra", "ledger/rule"):
        file = root / "p" / f"{used}.py"
        source = file.read_text()
        file.write_text(f"{source}\nx = 3")
        assert name() != before, used
        file.write_text(f"{source}\n# reworded")
        assert name() == before


def test_the_runs_of_papers_reach_what_computes_them_and_neither_rule_nor_page():
    root = Path(npmoe.__file__).parent
    for paper in PAPERS:
        for function in paper.computes.values():
            found = {path.relative_to(root).as_posix() for path in reached(Path(inspect.getfile(function)))}
            assert {"calculus/scalar.py", "model/moe.py"} <= found
            assert ("probe/site.py" in found) == (function.__name__ != "stage"), "a stage trains and measures nothing"
            assert not {path for path in found if path.startswith(("ledger", "report", "sweep", "verify", "battery"))}
            judging = {"claims", "ways", "axes", "runs", "figures", "experiment", "paper", "papers", "run"}
            assert not judging & {Path(path).stem for path in found}


# Runs that read other runs


@dataclasses.dataclass(frozen=True)
class Sum:
    """The sum of other runs, toys or sums."""

    of: tuple

    def reads(self):
        return self.of


def summed(config, read=None):
    if isinstance(config, Sum):
        assert set(read) == set(config.of)
        return {"x": sum(read[other]["x"].sum() for other in config.of) + np.zeros(1)}
    assert read is None
    return compute(config)


def totals(folder, configs, **options):
    return toys(folder, configs, options.pop("function", summed), reads=lambda c: getattr(c, "of", ()), **options)


@pytest.mark.parametrize("kind", ["serial", "threads"])
def test_a_run_reads_others_which_are_computed_first_and_once(tmp_path, kind):
    asked = [Sum((TOYS[0], TOYS[1])), Sum((Sum((TOYS[0], TOYS[1])), TOYS[2])), TOYS[2]]
    with executor(kind, 3) as pool:
        found = totals(tmp_path, asked, executor=pool)
    assert list(found) == asked, "what was asked for, and no more"
    x = [compute(toy)["x"].sum() for toy in TOYS[:3]]
    np.testing.assert_allclose([found[config]["x"][0] for config in asked[:2]], [x[0] + x[1], sum(x)], rtol=1e-14)
    assert len(list(tmp_path.glob("*.npz"))) == 5
    before = files(tmp_path)
    totals(tmp_path, asked, function=refuse)
    assert files(tmp_path) == before


def test_what_a_finished_run_has_read_is_not_wanted_again(tmp_path):
    total = Sum((TOYS[0], TOYS[1]))
    totals(tmp_path, [total])
    names = {toy: tmp_path / f"{run_id(toy, SOURCE)}.npz" for toy in (*TOYS[:2], total)}
    for toy in TOYS[:2]:
        names[toy].unlink()
    totals(tmp_path, [total], function=refuse)
    names[total].unlink()
    calls = []
    totals(tmp_path, [total], function=lambda config, *read: calls.append(config) or summed(config, *read))
    assert calls == [*TOYS[:2], total]
    names[total].unlink()
    names[TOYS[1]].unlink()
    calls.clear()
    totals(tmp_path, [total], function=lambda config, *read: calls.append(config) or summed(config, *read))
    assert calls == [TOYS[1], total]


def test_where_a_run_fails_those_that_read_it_are_not_begun(tmp_path):
    def broken(config, *read):
        if config == TOYS[1]:
            raise ValueError("expected better weather")
        assert not read
        return compute(config)

    with pytest.raises(ValueError, match="better weather"), executor("threads", 1) as pool:
        totals(tmp_path, [Sum((TOYS[0], TOYS[1])), TOYS[2]], function=broken, executor=pool)
    assert (tmp_path / f"{run_id(TOYS[0], SOURCE)}.npz").exists()


def test_a_run_that_comes_to_read_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a run that reads others than itself; got 2"):
        in_order([2], lambda n: [n % 3 + 1])
    with pytest.raises(ValueError, match="reads others than itself"):
        toys(tmp_path / "runs", TOYS[:1], refuse, reads=lambda toy: [toy])
    assert not (tmp_path / "runs").exists()


def test_each_kind_of_run_may_have_a_source_of_its_own(tmp_path):
    total = Sum((TOYS[0],))
    totals(tmp_path, [total], source=lambda config: type(config).__name__)
    names = {f"{run_id(TOYS[0], 'Toy')}.npz", f"{run_id(total, 'Sum')}.npz"}
    assert {path.name for path in tmp_path.glob("*.npz")} == names


# Executors, BLAS threads, progress


@pytest.mark.parametrize("spec", ["", "process", "localhost:8786"])
def test_unknown_executor(spec):
    with pytest.raises(ValueError, match=f"expected .*processes.*tcp://.*; got {spec!r}"), executor(spec, 2):
        pass
    with pytest.raises(ValueError, match="expected one job or more; got 0"), executor("threads", 0):
        pass


def test_cluster_without_distributed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install npmoe\[cluster\]"), executor("tcp://host:8786", 2):
        pass


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_each_run_has_one_blas_thread_and_leaves_the_limit_as_it_was(tmp_path, kind):
    with threadpool_limits(2, user_api="blas"):
        before = threads(None)["blas"]
        assert len(before) > 0
        with executor(kind, 2) as pool:
            runs = toys(tmp_path, TOYS[:4], threads, executor=pool)
        np.testing.assert_array_equal(threads(None)["blas"], before)
    for arrays in runs.values():
        assert set(arrays["blas"]) == {1}


def test_run_that_ends_does_not_free_the_threads_of_one_that_goes_on(tmp_path):
    begun, ended = threading.Event(), threading.Event()

    def overlapping(toy):
        if toy == TOYS[0]:
            assert begun.wait(60)
        else:
            begun.set()
            assert ended.wait(60)
        return threads(toy)

    with threadpool_limits(2, user_api="blas"), executor("threads", 2) as pool:
        runs = toys(tmp_path, TOYS[:2], overlapping, executor=pool, label=lambda toy: ended.set() or "the first to end")
    assert [set(runs[toy]["blas"]) for toy in TOYS[:2]] == [{1}, {1}]


@pytest.mark.parametrize(("progress", "shown"), [(None, False), (False, False), (True, True)])
def test_progress_is_shown_where_it_is_wanted(tmp_path, capsys, progress, shown):
    toys(tmp_path, TOYS[:1])
    toys(tmp_path, TOYS[:3], progress=progress, label=lambda toy: f"toy {toy.seed}")
    out, err = capsys.readouterr()
    assert out == ""
    assert bool(err) is shown
    if shown:
        assert "3/3" in err
        assert "toy 2" in err


def saying(toy):
    news.tell(f"half of {toy.seed}")
    return {"x": np.zeros(1)}


def test_what_a_run_says_stands_beside_the_bar_and_a_silent_one_is_as_before(tmp_path, capsys):
    sweep(TOYS[:2], saying, tmp_path, source=SOURCE, progress=True)
    told = capsys.readouterr().err
    assert "half of 0" in told
    assert "half of 1" in told
    sweep(TOYS[:2], saying, tmp_path, source="another", progress=False)
    assert capsys.readouterr().err == ""
    news.tell("lost")  # nobody listens any more
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_workers_are_heard_by_the_caller(where):
    heard = queue.SimpleQueue()
    with executor(where, 2) as pool, news.listening(heard.put):
        pool.submit(news.tell, "far").result()
        assert heard.get(timeout=600) == "far"
