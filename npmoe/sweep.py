"""Many runs over any executor, each saved once: a killed sweep continues where it stopped.

A run is a frozen dataclass and a function of it that returns arrays. Workers compute and write nothing; the caller
writes each finished run to a temporary file and renames it, so that under its own name a file is whole or not there:

    runs/format.json             {"format": 1}: what this folder is
         .lock                   held while a sweep is at work
         {run id}.npz            the arrays and, as JSON, the config
         {run id}.npz.tmp        a run being written; left behind by a kill, removed by the next sweep
"""

import ast
import concurrent.futures as cf
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import threading
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows has no flock: there, nothing keeps two sweeps out of one folder
    fcntl = None  # type: ignore[assignment]

C = TypeVar("C")
Arrays = dict[str, np.ndarray]

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FORMAT = {"format": 1}
OURS = re.compile(r"\.lock|(format\.json|[0-9a-f]{16}\.npz)(\.tmp)?")


class SweepError(RuntimeError):
    """A sweep that cannot go on; whatever was finished before is kept."""


# What a run is called


def source_hash(*paths: Path) -> str:
    """Hash what Python source means: any change of code changes it, a reworded comment or docstring does not.

    Parameters
    ----------
    *paths : Path
        Files, or folders with all ``*.py`` below. Neither their order nor where the package lies matters. Another
        version of Python may read the same source as another tree, and so give another hash.

    Raises
    ------
    ValueError
        Where there is no Python source at all; a file that is missing or cannot be parsed raises its own error.
    """
    files = {file.resolve() for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
    if not files:
        raise ValueError(f"expected Python files, or folders that hold some; got {', '.join(map(str, paths))}")
    return hashlib.sha256(json.dumps(sorted((_name(f), _meaning(f)) for f in files)).encode()).hexdigest()


def _name(file: Path) -> str:
    """``npmoe/model/moe.py``, wherever the package lies."""
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    return file.relative_to(root).as_posix()


def _meaning(file: Path) -> str:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def run_id(config: Any, source: str) -> str:
    """Name a run by 16 hex digits of its config (class names and fields) and of the source that computes it.

    Raises
    ------
    TypeError
        Where the config is not a hashable (frozen) dataclass of JSON-able, finite values.
    """
    return hashlib.sha256(f"{_canonical(config)}\n{source}".encode()).hexdigest()[:16]


def _canonical(config: Any) -> str:
    try:
        hash(config)
        return json.dumps(_fields(config), default=_fields, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected a frozen dataclass of JSON-able values; got {config!r}: {error}") from error


def _fields(value: Any) -> dict[str, Any]:
    """One dataclass, not into the depth: nested ones come here in turn, each with the name of its class."""
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} is neither a dataclass nor JSON-able")
    return {"class": type(value).__qualname__} | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


# One run


def _run(compute: Callable[[C], Arrays], config: C) -> Arrays:
    """Compute one run under one BLAS thread, wherever it is."""
    with threadpool_limits(1):
        return _checked(compute(config))


def _checked(result: Any) -> Arrays:
    if not isinstance(result, dict):
        raise SweepError(f"expected compute to return a dict of arrays; got {type(result).__name__}")
    for name, array in result.items():
        if not (isinstance(name, str) and name and name.isprintable() and name != "config"):
            raise SweepError(f"expected the name of an array, other than 'config', which is taken; got {name!r}")
        if type(array) is not np.ndarray:  # not isinstance: a masked array would lose its mask in the file
            raise SweepError(f"expected an array as {name!r}; got {type(array).__name__}")
        if array.dtype.hasobject:
            raise SweepError(f"expected {name!r} to be of numbers or text; got dtype {array.dtype}")
    return result


def _finished(
    executor: cf.Executor | None, compute: Callable[[C], Arrays], configs: list[C], label: Callable[[C], str]
) -> Generator[tuple[C, Arrays], None, None]:
    """Yield each run as it finishes. Where one fails, those not begun are cancelled and those at work still come."""
    if executor is None:
        for config in configs:
            try:
                arrays = _run(compute, config)
            except Exception as error:
                error.add_note(f"in the run of {label(config)}")
                raise
            yield config, arrays
        return
    futures: dict[cf.Future[Arrays], C] = {}
    failure: BaseException | None = None
    try:
        with _no_sigint():
            futures.update((executor.submit(_run, compute, config), config) for config in configs)
        while futures:
            for future in cf.as_completed(futures):
                config = futures.pop(future)  # popped, so that no result lives longer than it takes to write it
                raised = cf.CancelledError("cancelled by its executor") if future.cancelled() else future.exception()
                if raised is None:
                    yield config, future.result()
                elif failure is None:
                    failure = raised
                    failure.add_note(f"in the run of {label(config)}")
                    futures = {f: c for f, c in futures.items() if not f.cancel()}
                    break  # and wait for these alone: not every executor reports what was cancelled
        if failure is not None:
            raise failure
    except cf.BrokenExecutor as error:
        raise SweepError(f"a worker died, for want of memory? The runs finished so far are kept. {error}") from error
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def _no_sigint() -> Iterator[None]:
    """Ctrl-C waits a moment; processes started meanwhile never hear it, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# One file


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as error:
        raise SweepError(f"cannot write {path}: {error}; the runs finished so far are kept") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _pack(arrays: Arrays, config: Any) -> bytes:
    """An npz whose bytes depend on nothing but what is in it: by name, in C order, and ZipInfo's date is 1980."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in sorted({**arrays, "config": np.array(_canonical(config))}.items()):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
    return packed.getvalue()


def _read(path: Path, config: C, label: Callable[[C], str]) -> Arrays:
    way_out = "--fresh computes it anew, or delete the file"
    try:
        with (
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):  # np.load(path) leaves bad zips open
            arrays = {name: archive[name] for name in archive.files}
        found = str(arrays.pop("config"))
    except Exception as error:  # there is no end to the ways in which a file can be broken
        raise SweepError(f"expected {path}, of {label(config)}, whole; cannot read it, {error!r}: {way_out}") from error
    if found != _canonical(config):
        raise SweepError(f"expected the run of {_canonical(config)} in {path}; it holds {found}: {way_out}")
    return arrays


# The folder


def claim(folder: Path) -> ExitStack:
    """Make, check, lock, tidy and mark the folder; leaving the context, or dying, gives it back."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_format(folder)
            lock = stack.enter_context((folder / ".lock").open("a"))
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob("*.tmp"):
                if OURS.fullmatch(path.name):
                    path.unlink()
        except BlockingIOError as error:
            raise SweepError(f"expected {folder} to be free; another sweep is at work there") from error
        except OSError as error:
            raise SweepError(f"expected a folder to write runs to; got {folder}: {error}") from error
        _write(
            folder / "format.json", json.dumps(FORMAT).encode()
        )  # each time, as a trial: rather now than after a run
        return stack.pop_all()


def _check_format(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    strangers = [name for name in names if not OURS.fullmatch(name)]
    if "format.json" in names:
        try:
            found = json.loads((folder / "format.json").read_bytes())
        except ValueError as error:
            raise SweepError(f"expected {FORMAT} in {folder / 'format.json'}; cannot read it: {error}") from error
        if found != FORMAT:
            raise SweepError(f"expected runs of {FORMAT} in {folder}; got {found}: choose another folder")
    elif strangers:
        raise SweepError(f"expected an empty folder or one of runs; {folder} holds {', '.join(strangers[:3])}")


# All of it


def sweep(
    configs: Iterable[C],
    compute: Callable[[C], Arrays],
    folder: Path,
    *,
    source: str,
    executor: cf.Executor | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    label: Callable[[C], str] = str,
) -> dict[C, Arrays]:
    """Compute the runs that are not in the folder yet, save each as it finishes, and return all that were asked for.

    Parameters
    ----------
    configs : iterable of frozen dataclasses
        The runs; one asked for twice runs once.
    compute : callable
        ``compute(config)`` returns a dict of arrays; for processes and clusters it must be picklable.
    folder : Path
        Where the runs are, one ``{run_id}.npz`` each.
    source : str
        What ``compute`` is, as `source_hash` gives it: two functions with one source would share their results.
    executor : Executor or None
        Where the runs are computed; None: here, one after another.
    fresh : bool
        Compute all of them anew; each old file stays until its successor is there.
    progress : bool or None
        Show progress on standard error; None: where that is a terminal.
    label : callable
        What a config is called in progress and errors.

    Returns
    -------
    dict
        From each config, in the order asked for, to its arrays as the file has them.

    Raises
    ------
    SweepError
        Where the folder, a file in it, a result or a worker is at fault. What ``compute`` raises comes as it is, with
        a note that names the run. In every case, finished runs are kept.

    Examples
    --------
    >>> import dataclasses, tempfile
    >>> @dataclasses.dataclass(frozen=True)
    ... class Walk:
    ...     seed: int
    >>> def compute(walk):
    ...     return {"path": np.random.default_rng(walk.seed).normal(size=100).cumsum()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = sweep([Walk(0), Walk(1)], compute, Path(folder), source="walks, first version")
    >>> runs[Walk(1)]["path"].shape
    (100,)
    """
    folder = Path(folder)
    paths = {config: folder / f"{run_id(config, source)}.npz" for config in configs}
    if len(set(paths.values())) < len(paths):
        raise SweepError("expected each config to have an id of its own; two read the same as JSON")
    # The number of OpenBLAS threads belongs to the process: in a pool of threads, the first run to end would set the
    # others free if the limit were not held out here too.
    with claim(folder), threadpool_limits(1):
        done = {c: _read(path, c, label) for c, path in paths.items() if not fresh and path.exists()}
        missing = [config for config in paths if config not in done]
        runs = closing(_finished(executor, compute, missing, label))
        hide = None if progress is None else not progress
        with runs as finished, tqdm(desc="runs", total=len(paths), initial=len(done), disable=hide) as bar:
            for config, arrays in finished:
                _write(paths[config], _pack(arrays, config))
                done[config] = _read(paths[config], config, label)
                bar.set_postfix_str(label(config), refresh=False)
                bar.update()
    return {config: done[config] for config in paths}


# The executors


@contextmanager
def executor(spec: str | None, jobs: int) -> Iterator[cf.Executor | None]:
    """Open the executor that a command line names.

    Parameters
    ----------
    spec : str or None
        "processes" (also None), "threads", "serial" (which yields None), or the address of a dask scheduler.
    jobs : int
        How many workers; a cluster has its own.

    Raises
    ------
    ValueError
        Where the spec is none of these, or jobs is less than one.
    ImportError
        Where an address is given and ``distributed`` is not installed.
    SweepError
        Where no scheduler answers at the address.
    """
    if jobs < 1:
        raise ValueError(f"expected one job or more; got {jobs}")
    if spec == "serial":
        yield None
    elif spec == "threads":
        with cf.ThreadPoolExecutor(jobs) as pool:
            yield pool
    elif spec is None or spec == "processes":
        with _processes(jobs) as pool:
            yield pool
    elif "://" in spec:
        with closing(_client(spec)) as client:
            yield client.get_executor()
    else:
        raise ValueError(f'expected "processes", "threads", "serial" or an address as tcp://host:8786; got {spec!r}')


@contextmanager
def _processes(jobs: int) -> Iterator[cf.Executor]:
    """Processes on a leash: a pipe whose other end closes when the caller gives up, and also when it is killed."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that BLAS threads hold
    leash, hand = spawn.Pipe(duplex=False)
    with leash, hand:
        pool = cf.ProcessPoolExecutor(jobs, spawn, _leashed, (leash,))
        try:
            yield pool
        except BaseException:
            # Nobody waits for runs that are no longer wanted: workers write nothing, and go as the hand opens. Told
            # once and before that, or Python 3.11 trips over futures that are cancelled already.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def _leashed(leash: Connection) -> None:
    """In each worker, first: Ctrl-C is the caller's to answer, and without a caller there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(leash,), daemon=True).start()


def _follow(leash: Connection) -> None:
    try:
        leash.poll(None)
    finally:
        os._exit(1)


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"expected distributed, to reach {address}: pip install npmoe[cluster]") from error
    try:
        return Client(address)
    except OSError as error:
        raise SweepError(f"expected a dask scheduler at {address}; {error}") from error
