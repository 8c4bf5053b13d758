"""Many runs over any executor, each saved once: a killed sweep continues where it stopped.

A run is a frozen dataclass and a function of it that returns arrays. Workers compute and write nothing; the caller
writes each finished run to a temporary file and renames it, so that under its own name a file is whole or not there.
"""

import concurrent.futures as cf
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from npmoe.news import listening
from npmoe.sweep.at_work import finished
from npmoe.sweep.executors import executor
from npmoe.sweep.folder import SweepError, claim, pack, read_run, write
from npmoe.sweep.names import canonical, reached, run_id, source_hash
from npmoe.sweep.stages import in_order, missing

__all__ = ["SweepError", "claim", "executor", "in_order", "reached", "run_id", "source_hash", "sweep"]

C = TypeVar("C")
Arrays = dict[str, np.ndarray]


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
    arrived: Callable[[dict[C, Arrays]], None] | None = None,
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
    arrived : callable
        Called with the runs asked for that are there: before the first is computed, and after each. It must not keep
        the sweep waiting for long, and does not own what it is given. What it raises ends the sweep.

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
    asked = {config: None for config in configs if canonical(config)}  # which raises where it is no config
    needed = {config: tuple(dict.fromkeys(reads(config))) for config in in_order(asked, reads)}
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
            arrays = read_run(paths[config], config, label)
            if arrays is None:
                return False
            done.add(config)
            if config in asked:
                kept[config] = arrays
            return True

        def again(config: C) -> Arrays:
            """A run that was there a moment ago."""
            arrays = kept.get(config) or read_run(paths[config], config, label)
            if arrays is None:
                raise SweepError(f"expected {paths[config]} as it was written; the same command computes it again")
            return arrays

        def others(config: C) -> tuple[dict[C, Arrays], ...]:
            found = {other: again(other) for other in needed[config]}
            return (found,) if found else ()

        todo = missing(asked, needed, there)
        if arrived is not None and todo:
            arrived(kept)
        runs = closing(finished(executor, compute, todo, lambda c: done.issuperset(needed[c]), others, label))
        hide = None if progress is None else not progress
        total = len(done) + len(todo)
        with (
            runs as arriving,
            tqdm(desc="runs", total=total, initial=len(done), disable=hide, dynamic_ncols=True) as bar,
            listening(bar.set_postfix_str),
        ):
            for config, arrays in arriving:
                write(paths[config], pack(arrays, config))
                done.add(config)
                if config in asked:
                    kept[config] = again(config)
                    if arrived is not None:
                        arrived(kept)
                bar.set_postfix_str(label(config), refresh=False)
                bar.update()
    return {config: kept[config] for config in asked}
