"""Toy runs for the tests of sweep, which processes can import; as a script, a sweep that gets itself killed.

    python _sweep_jobs.py FOLDER EXECUTOR [PHASE N]

kills, at the Nth time that the sweep comes to PHASE, the whole group of processes ("orphan": the caller alone;
"interrupt": Ctrl-C for all of them).
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from npmoe.sweep import executor, sweep

SOURCE = "toy"


@dataclasses.dataclass(frozen=True)
class Toy:
    seed: int
    sizes: tuple[int, ...] = (3, 4)


TOYS = [Toy(seed) for seed in range(12)]


def compute(toy):
    if os.environ.get("SWEEP_KILL") == f"compute {toy.seed}":
        os.killpg(0, signal.SIGKILL)
    x = np.random.default_rng(toy.seed).normal(size=toy.sizes)
    return {"x": x, "Gram": (x @ x.T).T, "file": np.array([toy.seed]), "all/of it": np.array(x.sum())}


def another(toy):
    return {"x": np.zeros(1)}


def failing(toy):
    if toy.seed == 1:
        raise ZeroDivisionError("no such seed")
    return compute(toy)


def dying(toy):
    if toy.seed == 1:
        os._exit(3)
    return compute(toy)


def threads(toy):
    return {"blas": np.array([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"])}


def counted(function, at, before=None, after=None):
    """The function, with something done before or after its call number ``at``."""
    calls = iter(range(10**6))

    def wrapped(*args):
        mine = next(calls) == at
        if mine and before:
            before(*args)
        result = function(*args)
        if mine and after:
            after(*args)
        return result

    return wrapped


def arm(phase, at):
    def kill(*_):
        os.killpg(0, signal.SIGKILL)

    def kill_in_the_middle(descriptor):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        kill()

    def interrupt(*_):
        os.killpg(0, signal.SIGINT)

    def orphan(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if phase == "compute":
        os.environ["SWEEP_KILL"] = f"compute {TOYS[at].seed}"
    elif phase == "write":
        os.fsync = counted(os.fsync, at + 1, before=kill_in_the_middle)  # + 1: the first file written is format.json
    elif phase == "before":
        os.replace = counted(os.replace, at + 1, before=kill)
    elif phase == "after":
        os.replace = counted(os.replace, at + 1, after=kill)
    elif phase == "interrupt":
        os.fsync = counted(os.fsync, at + 1, before=interrupt)
    elif phase == "orphan":
        os.fsync = counted(os.fsync, at + 1, before=orphan)


if __name__ == "__main__":
    folder, kind, *moment = sys.argv[1:]
    # a shell starts what runs in its background with SIGINT ignored, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if moment:
        arm(moment[0], int(moment[1]))
    try:
        with executor(kind, 2) as pool:
            sweep(TOYS, compute, Path(folder), source=SOURCE, executor=pool)
    except KeyboardInterrupt:
        print("interrupted")
