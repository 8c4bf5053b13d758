"""The executors that a command line names: processes, threads, none, or a cluster."""

import concurrent.futures as cf
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from npmoe.news import listen, tell
from npmoe.sweep.folder import SweepError

__all__ = ["executor"]


_LINE = 500  # bytes: with its length in front below 512, which POSIX writes to a pipe in one piece


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
    heard, mouth = spawn.Pipe(duplex=False)
    threading.Thread(target=_pass_on, args=(heard,), daemon=True).start()
    with leash, hand, mouth:  # the last copy of the mouth closes with the last worker, and ends the thread
        pool = cf.ProcessPoolExecutor(jobs, spawn, _leashed, (leash, mouth))
        try:
            yield pool
        except BaseException:
            # Nobody waits for runs that are no longer wanted: workers write nothing, and go as the hand opens. Told
            # once and before that, or Python 3.11 trips over futures that are cancelled already.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def _leashed(leash: Connection, mouth: Connection) -> None:
    """In each worker, first: Ctrl-C is the caller's to answer, and without a caller there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(leash,), daemon=True).start()
    listen(lambda text: _say(mouth, text))


def _say(mouth: Connection, text: str) -> None:
    """Into the pipe that all workers share: so short that it is written at once, whole, without a lock."""
    with suppress(OSError):
        mouth.send_bytes(text.encode()[:_LINE])


def _pass_on(heard: Connection) -> None:
    """In the caller: what workers say, to whoever listens here, until there is nobody to say anything."""
    with heard, suppress(EOFError, OSError):
        while True:
            text = heard.recv_bytes().decode(errors="ignore")
            with suppress(Exception):  # a listener's trouble must not fill the pipe, in which workers would be stuck
                tell(text)


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
