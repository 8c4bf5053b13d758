"""Many runs over any executor, each saved once: a killed sweep continues where it stopped.

A run is a frozen dataclass and a function of it that returns arrays. Workers compute and write nothing; the caller
writes each finished run to a temporary file and renames it, so that under its own name a file is whole or not there:

    runs/format.json             {"format": 1}: what this folder is
         .lock                   held while a sweep is at work
         {run id}.npz            the arrays, as JSON the config, and a checksum of both
         .{run id}.npz.tmp       a run being written; left behind by a kill, removed by the next sweep
         {run id}.npz.damaged    a run's file that could not be read, set aside; the run was computed again
"""

import ast
import concurrent.futures as cf
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from npmoe import files

C = TypeVar("C")
Arrays = dict[str, np.ndarray]

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FORMAT = {"format": 1}
TAKEN = ("config", "digest")  # names in a run's file that no array may have
UNDER_WAY = 256  # runs that are handed to an executor at a time, with what they read
OURS = re.compile(r"\.lock|\.?(format\.json|[0-9a-f]{16}\.npz)(\.tmp|\.damaged\d*)?")


class SweepError(RuntimeError):
    """A sweep that cannot go on; whatever was finished before is kept."""


# What a run is called


def reached(*files: Path) -> tuple[Path, ...]:
    """The files, and all of their own package that they import, followed to the end: what their results depend on.

    Import statements count wherever they stand, also inside a function; what `importlib` loads by name does not. Of
    ``from a.b import c`` that is the module ``a.b.c``, or ``a.b`` where c is a name in it. A package on the way
    (``a/__init__.py``) is passed through, not read: what it gathers for others is nothing to the module below it.

    Raises
    ------
    ValueError
        Without files; a file that is missing or cannot be parsed raises its own error.
    """
    if not files:
        raise ValueError("expected Python files; got none")
    todo, found = [file.resolve() for file in files], set()
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _imported(file)
    return tuple(sorted(found))


def _imported(file: Path) -> Iterator[Path]:
    """The files of its own package that a file names in its import statements."""
    root = _root(file)
    here = file.relative_to(root).with_suffix("").parts[:-1]  # the package that relative imports start from
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        for name in names:
            module = _module(root, name) or _module(root, name[:-1])
            if module:
                yield module


def _module(root: Path, name: tuple[str, ...]) -> Path | None:
    """The file of a module, or of a package its __init__, below the folder that holds the package; None elsewhere."""
    path = root.joinpath(*name)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if name else ()
    return next((file for file in candidates if file.is_file()), None)


def source_hash(*files: Path) -> str:
    """Hash what Python source means: any change of code changes it, a reworded comment or docstring does not.

    Parameters
    ----------
    *files : Path
        Neither their order nor where the package lies matters. Another version of Python may read the same source as
        another tree, and so give another hash.

    Raises
    ------
    ValueError
        Without files; a file that is missing or cannot be parsed raises its own error.
    """
    if not files:
        raise ValueError("expected Python files; got none")
    named = {(_name(file), _meaning(file)) for file in map(Path.resolve, files)}
    return hashlib.sha256(json.dumps(sorted(named)).encode()).hexdigest()


def _root(file: Path) -> Path:
    """The folder that holds the outermost package of a file."""
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    return root


def _name(file: Path) -> str:
    """``npmoe/model/moe.py``, wherever the package lies."""
    return file.relative_to(_root(file)).as_posix()


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


def _run(compute: Callable[..., Arrays], config: C, *read: dict[C, Arrays]) -> Arrays:
    """Compute one run under one BLAS thread, wherever it is."""
    with threadpool_limits(1):
        return _checked(compute(config, *read))


def _checked(result: Any) -> Arrays:
    if not isinstance(result, dict):
        raise SweepError(f"expected compute to return a dict of arrays; got {type(result).__name__}")
    for name, array in result.items():
        if not (isinstance(name, str) and name and name.isprintable() and name not in TAKEN):
            raise SweepError(
                f"expected the name of an array, other than {' and '.join(TAKEN)}, which are taken; got {name!r}"
            )
        if type(array) is not np.ndarray:  # not isinstance: a masked array would lose its mask in the file
            raise SweepError(f"expected an array as {name!r}; got {type(array).__name__}")
        if array.dtype.hasobject:
            raise SweepError(f"expected {name!r} to be of numbers or text; got dtype {array.dtype}")
    return result


def _finished(
    pool: cf.Executor | None,
    compute: Callable[..., Arrays],
    missing: Iterable[C],
    ready: Callable[[C], bool],
    read: Callable[[C], tuple[dict[C, Arrays], ...]],
    label: Callable[[C], str],
) -> Generator[tuple[C, Arrays], None, None]:
    """Yield each run as it finishes; one that reads others begins when they are `ready`, with what `read` gives it.

    Where one fails, those not begun are cancelled and those at work still come.
    """
    waiting = dict.fromkeys(missing)

    def begin(most: int) -> list[C]:
        """The next runs, in order; those that read others as they were written, a few at a time."""
        found = [config for config in waiting if ready(config)][:most]
        for config in found:
            del waiting[config]
        return found

    if pool is None:
        while waiting:
            (config,) = begin(1)
            try:
                arrays = _run(compute, config, *read(config))
            except Exception as error:
                error.add_note(f"in the run of {label(config)}")
                raise
            yield config, arrays
        return
    futures: dict[cf.Future[Arrays], C] = {}
    failure: BaseException | None = None
    try:
        while futures or (waiting and failure is None):
            if failure is None:
                with _no_sigint():
                    for config in begin(UNDER_WAY - len(futures)):
                        futures[pool.submit(_run, compute, config, *read(config))] = config
            for future in cf.as_completed(futures):
                config = futures.pop(future)  # popped, so that no result lives longer than it takes to write it
                raised = cf.CancelledError("cancelled by its executor") if future.cancelled() else future.exception()
                if raised is None:
                    yield config, future.result()
                    if waiting:
                        break  # something may have become ready
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


def _write(path: Path, content: bytes) -> None:
    try:
        files.write(path, content)
    except OSError as error:
        raise SweepError(f"{error.strerror}; the runs finished so far are kept") from error


def _pack(arrays: Arrays, config: Any) -> bytes:
    whole = {**arrays, "config": np.array(_canonical(config))}
    return files.pack({**whole, "digest": np.array(files.digest(whole))})


def _read(path: Path, config: C, label: Callable[[C], str]) -> Arrays | None:
    """A run's arrays; None where its file is damaged or another run's, which is then set aside under another name."""
    try:
        arrays = files.read_arrays(path)
        if str(arrays.pop("digest", "")) != files.digest(arrays):
            raise files.FileError(f"{path}: expected the arrays that were written; got others")
        found = str(arrays.pop("config", ""))
        if found != _canonical(config):
            raise files.FileError(
                f"{path}: expected the run of {_canonical(config)}; got that of {found[:200] or 'none'}"
            )
    except files.FileError as error:
        aside = _set_aside(path)
        print(
            f"the run of {label(config)} is computed again; its file is kept as {aside.name}: {error}", file=sys.stderr
        )
        return None
    except OSError as error:
        raise SweepError(f"expected to read {path}, of {label(config)}; {error}") from error
    return arrays


def _set_aside(path: Path) -> Path:
    """Give a damaged file another name, which no other has."""
    names = (path.with_name(f"{path.name}.damaged{i or ''}") for i in itertools.count())
    aside = next(name for name in names if not name.exists())
    os.replace(path, aside)
    return aside


# The folder


def claim(folder: Path) -> ExitStack:
    """Make, check, lock, tidy and mark the folder; leaving the context, or dying, gives it back."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_format(folder)
            stack.enter_context(files.alone_in(folder))
            for path in folder.glob("*.tmp"):
                if OURS.fullmatch(path.name):
                    path.unlink()
        except BlockingIOError as error:
            raise SweepError(f"expected {folder} to be free; another sweep is at work there") from error
        except OSError as error:
            raise SweepError(f"expected a folder to write runs to; got {folder}: {error}") from error
        # each time, as a trial: rather now than after a run
        _write(folder / "format.json", json.dumps(FORMAT).encode())
        return stack.pop_all()


def _check_format(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    strangers = [name for name in names if not OURS.fullmatch(name)]
    if "format.json" in names:
        try:
            found = files.read_json(folder / "format.json", most=10_000)
        except files.FileError as error:
            raise SweepError(f"expected {FORMAT} in {folder / 'format.json'}; cannot read it: {error}") from error
        if found != FORMAT:
            raise SweepError(f"expected runs of {FORMAT} in {folder}; got {found}: choose another folder")
    elif strangers:
        raise SweepError(f"expected an empty folder or one of runs; {folder} holds {', '.join(strangers[:3])}")


# All of it


def in_stages(configs: Iterable[C], reads: Callable[[C], Iterable[C]]) -> list[C]:
    """The configs and all that they read, each once: first those that read nothing, then those that read these, and on.

    Raises
    ------
    ValueError
        Where a run would have to be there before itself.

    Examples
    --------
    >>> in_stages([3, 1, 0], lambda n: [n - 1] if n else [])
    [0, 1, 2, 3]
    """
    stage: dict[C, int] = {}

    def place(config: C, above: tuple[C, ...] = ()) -> int:
        if config in above:
            raise ValueError(
                f"expected a run that reads others than itself; got {config!r}, which comes to need itself"
            )
        if config not in stage:
            found = [place(other, (*above, config)) for other in reads(config)]
            stage[config] = 1 + max(found, default=-1)
        return stage[config]

    for config in configs:
        place(config)
    return sorted(stage, key=stage.__getitem__)  # stable: in the order asked for within a stage


def _nothing(config: Any) -> tuple[()]:
    return ()


def sweep(
    configs: Iterable[C],
    compute: Callable[..., Arrays],
    folder: Path,
    *,
    source: str | Callable[[C], str],
    reads: Callable[[C], Iterable[C]] = _nothing,
    executor: cf.Executor | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    label: Callable[[C], str] = str,
) -> dict[C, Arrays]:
    """Compute the runs that are not in the folder yet, save each as it finishes, and return all that were asked for.

    A run may read other runs, which are then computed first, in the same sweep: two runs that need one trained model
    both read the run that trains it.

    Parameters
    ----------
    configs : iterable of frozen dataclasses
        The runs; one asked for twice runs once.
    compute : callable
        ``compute(config)`` returns a dict of arrays; for processes and clusters it must be picklable. Of a run that
        reads others it is ``compute(config, {other: its arrays})``.
    folder : Path
        Where the runs are, one ``{run_id}.npz`` each.
    source : str or callable
        What ``compute`` is, as `source_hash` gives it, or such a hash for each config: two functions with one source
        would share their results.
    reads : callable
        From a config to those whose results its definition needs; they need not be asked for.
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
    ValueError
        Where a run reads itself, by whatever way round.

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
    asked = {config: None for config in configs if _canonical(config)}  # which raises where it is no config
    needed = {config: tuple(dict.fromkeys(reads(config))) for config in in_stages(asked, reads)}
    names = {config: source(config) if callable(source) else source for config in needed}
    paths = {config: folder / f"{run_id(config, names[config])}.npz" for config in needed}
    if len(set(paths.values())) < len(paths):
        raise SweepError("expected each config to have an id of its own; two read the same as JSON")
    # The number of OpenBLAS threads belongs to the process: in a pool of threads, the first run to end would set the
    # others free if the limit were not held out here too.
    with claim(folder), threadpool_limits(1):
        kept: dict[C, Arrays] = {}  # what was asked for; the rest is read again when something needs it
        done = set()

        def there(config: C) -> bool:
            if fresh or not paths[config].exists():
                return False
            arrays = _read(paths[config], config, label)
            if arrays is None:
                return False
            done.add(config)
            if config in asked:
                kept[config] = arrays
            return True

        def again(config: C) -> Arrays:
            """A run that was there a moment ago."""
            arrays = kept.get(config) or _read(paths[config], config, label)
            if arrays is None:
                raise SweepError(f"expected {paths[config]} as it was written; the same command computes it again")
            return arrays

        def read(config: C) -> tuple[dict[C, Arrays], ...]:
            found = {other: again(other) for other in needed[config]}
            return (found,) if found else ()

        missing = _missing(asked, needed, there)
        runs = closing(_finished(executor, compute, missing, lambda c: done.issuperset(needed[c]), read, label))
        hide = None if progress is None else not progress
        total = len(done) + len(missing)
        with runs as finished, tqdm(desc="runs", total=total, initial=len(done), disable=hide) as bar:
            for config, arrays in finished:
                _write(paths[config], _pack(arrays, config))
                done.add(config)
                if config in asked:
                    kept[config] = again(config)
                bar.set_postfix_str(label(config), refresh=False)
                bar.update()
    return {config: kept[config] for config in asked}


def _missing(asked: Iterable[C], needed: dict[C, tuple[C, ...]], there: Callable[[C], bool]) -> list[C]:
    """The runs to be computed, in stages: those asked for that are not there, and of what these read the same."""
    found: dict[C, bool] = {}

    def look(config: C) -> None:
        if config not in found:
            found[config] = not there(config)
            for other in needed[config] if found[config] else ():
                look(other)

    for config in asked:
        look(config)
    return [config for config in needed if found.get(config)]


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
