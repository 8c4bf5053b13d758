"""Runs at work on an executor, handed out as what they read becomes ready, and given back as they finish."""

import concurrent.futures as cf
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from npmoe.sweep.folder import TAKEN, SweepError

__all__ = ["finished"]

C = TypeVar("C")
Arrays = dict[str, np.ndarray]

UNDER_WAY = 256  # runs that are handed to a cluster at a time, with what they read
SPARE = 2  # beyond one a worker: enough that none waits, few enough that runs come in the order asked for


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


def finished(
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
    workers = getattr(pool, "_max_workers", None)  # of the standard library's executors
    most_at_once = UNDER_WAY if workers is None else workers + SPARE

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
                    for config in begin(most_at_once - len(futures)):
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
