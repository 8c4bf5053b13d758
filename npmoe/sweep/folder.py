"""The folder of runs: claimed by one sweep at a time, each run in a file that is whole or not there.

runs/format.json             {"format": 1}: what this folder is
     .lock                   held while a sweep is at work
     {run id}.npz            the arrays, as JSON the config, and a checksum of both
     .{run id}.npz.tmp       a run being written; left behind by a kill, removed by the next sweep
     {run id}.npz.damaged    a run's file that could not be read, set aside; the run was computed again
"""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from npmoe import files
from npmoe.sweep.names import canonical

__all__ = ["TAKEN", "SweepError", "claim", "pack", "read_run", "write"]

C = TypeVar("C")
Arrays = dict[str, np.ndarray]

FORMAT = {"format": 1}
TAKEN = ("config", "digest")  # names in a run's file that no array may have
OURS = re.compile(r"\.lock|\.?(format\.json|[0-9a-f]{16}\.npz)(\.tmp|\.damaged\d*)?")


class SweepError(RuntimeError):
    """A sweep that cannot go on; whatever was finished before is kept."""


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
        write(folder / "format.json", json.dumps(FORMAT).encode())
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


def write(path: Path, content: bytes) -> None:
    try:
        files.write(path, content)
    except OSError as error:
        raise SweepError(f"{error.strerror}; the runs finished so far are kept") from error


def pack(arrays: Arrays, config: Any) -> bytes:
    whole = {**arrays, "config": np.array(canonical(config))}
    return files.pack({**whole, "digest": np.array(files.digest(whole))})


def read_run(path: Path, config: C, label: Callable[[C], str]) -> Arrays | None:
    """A run's arrays; None where its file is damaged or another run's, which is then set aside under another name."""
    try:
        arrays = files.read_arrays(path)
        if str(arrays.pop("digest", "")) != files.digest(arrays):
            raise files.FileError(f"{path}: expected the arrays that were written; got others")
        found = str(arrays.pop("config", ""))
        if found != canonical(config):
            raise files.FileError(
                f"{path}: expected the run of {canonical(config)}; got that of {found[:200] or 'none'}"
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
