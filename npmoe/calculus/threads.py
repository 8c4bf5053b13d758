"""Threads over experts and over pieces of tokens: the one place where work is done side by side.

One expert's arrays fit into a core's cache, all experts' do not: a thread an expert, each with a BLAS of one thread, is
faster than one big product with a threaded BLAS. There are as many threads as BLAS itself may use, so whatever limits
BLAS (``OPENBLAS_NUM_THREADS``, `threadpoolctl`, a worker of `npmoe.sweep`) limits these too.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import cache, lru_cache
from itertools import count
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

__all__ = ["LONG", "each", "one_blas_thread", "parts"]

T = TypeVar("T")

_inside: ContextVar[bool] = ContextVar("inside", default=False)  # a part of work that is already shared out
_lock, _depth = Lock(), 0  # BLAS has one setting a process: the first to come saves it, the last restores
_before: list[tuple[Any, int]] = []  # each library, and the threads that it had


def _blas() -> list[Any]:
    """The libraries that are loaded: SciPy brings one of its own, when some function first imports it."""
    return _blas_among(len(sys.modules))


@lru_cache(maxsize=1)
def _blas_among(modules: int) -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="npmoe")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has the pool but none of its threads


@contextmanager
def one_blas_thread() -> Iterator[int]:
    """Keep BLAS to one thread inside; what it had before is how many threads `each` may use, and what is yielded.

    Threads of BLAS spin for a while after each product, and would take the cores from ours: work that calls `each`
    many times in a row does so inside of this.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _before[:] = [(lib, lib.num_threads) for lib in _blas()]
            for lib, _ in _before:
                lib.set_num_threads(1)
        _depth += 1
    try:
        yield min((threads for _, threads in _before), default=1)
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for lib, threads in _before:
                    lib.set_num_threads(threads)


LONG = 1 << 14  # elements: NumPy goes through as many in two or three microseconds


def each(function: Callable[..., T], *arguments: Iterable[Any], elements: int = LONG) -> list[T]:
    """``list(map(function, *arguments))``, side by side; the results come in order, whoever was first.

    The same bits as one after another: each call runs under one BLAS thread, in a thread or not; only a single call,
    or one inside another, is left the BLAS it finds. Arguments are fetched in order, one at a time and when a thread
    is free for them, so a lazy sequence never has more of them alive than there are threads. Where a call raises, no
    other begins, and the first error in order is raised.

    Parameters
    ----------
    elements : of a typical array in one call. Each of NumPy's calls lets go of the interpreter and takes it again,
        which costs two threads 3 to 5 microseconds when both want it: where arrays are so small that this is more than
        the arithmetic, the calls run one after another.

    Examples
    --------
    >>> each(pow, [2, 3, 4], [1, 2, 3])
    [2, 9, 64]
    """
    most = min((len(values) for values in arguments if isinstance(values, Sized)), default=None)
    if _inside.get() or (most is not None and most < 2):
        return list(map(function, *arguments))
    with one_blas_thread() as threads:
        threads = 1 if elements < LONG else min(threads, most or threads)
        if threads < 2:
            return list(map(function, *arguments))
        streams, turn, fetch = [iter(values) for values in arguments], count(), Lock()
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}

        def work() -> None:
            _inside.set(True)
            while not errors:
                task: list[Any] = []  # let go of the last before the next is made
                with fetch:
                    i = next(turn)
                    try:
                        task.extend(map(next, streams))
                    except BaseException as error:
                        errors[i] = error
                if len(task) < len(streams):
                    return
                try:
                    results[i] = function(*task)
                except BaseException as error:
                    errors[i] = error

        # a context of its own for each: NumPy's errstate is part of it
        others: list[Future[None]] = []
        try:
            with suppress(RuntimeError):  # the interpreter is on its way out, and takes no more threads
                others += [_pool().submit(copy_context().run, work) for _ in range(threads - 1)]
            copy_context().run(work)
        except BaseException as error:  # an interrupt: what is under way is finished, nothing else begins
            errors[-1] = error
        finally:
            wait(others)
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(results))]


def parts(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` (at least 1) that cover range(n).

    Examples
    --------
    >>> list(parts(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, size)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
