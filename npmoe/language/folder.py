"""What a trained language model is on disk, and how training goes on from there.

    settings.json     sizes, recipe and text: a run goes on only with the same ones
    vocabulary.json   words or byte pairs, as `npmoe.data.text` writes them
    progress.npz      steps taken, parameters, Adam's moments, the losses so far, and a checksum
    model.npz         the model, as `npmoe.load` reads it

Each is written whole or not at all, so a killed run goes on from the last progress, to the same bytes as if it had not
been killed.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.data.text import BytePair, Vocabulary
from npmoe.files import FileError, digest, pack, read_arrays, read_json, write, write_json
from npmoe.model.language import Progress
from npmoe.model.saved import load
from npmoe.model.transformer import Transformer

__all__ = ["Kept", "begin", "keep", "opened", "progress_of", "settings_of"]

Array = np.ndarray


class Kept(NamedTuple):
    """A model with its vocabulary and settings."""

    model: Transformer
    vocabulary: Vocabulary | BytePair
    settings: dict[str, Any]

    def __repr__(self) -> str:
        return one_line(self)


def settings_of(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that a folder holds, or None."""
    path = folder / "settings.json"
    return dict(read_json(path)) if path.exists() else None


def begin(folder: Path, settings: dict[str, Any], vocabulary: Vocabulary | BytePair) -> None:
    """Set a folder up for a run, or see that it holds the same one.

    Raises
    ------
    ValueError : where it holds another; says which settings differ.
    """
    there = settings_of(folder)
    if there is not None:
        keys = sorted(key for key in {*there, *settings} if there.get(key) != settings.get(key))
        if keys:
            shown = ", ".join(f"{key} {there.get(key)!r}, not {settings.get(key)!r}" for key in keys[:4])
            raise ValueError(
                f"expected the settings of the run in {folder}; it has {shown}. Choose another --output, or repeat the "
                "call of that run to go on with it"
            )
        return
    write_json(folder / "vocabulary.json", vocabulary.to_json())
    write_json(folder / "settings.json", settings)


def keep(folder: Path, progress: Progress, losses: Array) -> None:
    """Write where training stands."""
    arrays = {"step": np.array(progress.step), "theta": progress.theta, "m": progress.m, "v": progress.v}
    arrays["losses"] = losses
    write(folder / "progress.npz", pack({**arrays, "digest": np.array(digest(arrays))}))


def progress_of(folder: Path) -> tuple[Progress, Array] | None:
    """Where training stood when it was last written, and the losses up to there; None at the start.

    Raises
    ------
    FileError : for a damaged file.
    """
    path = folder / "progress.npz"
    if not path.exists():
        return None
    arrays = read_arrays(path)
    seal = arrays.pop("digest", None)
    if set(arrays) != {"step", "theta", "m", "v", "losses"} or seal is None or str(seal) != digest(arrays):
        raise FileError(f"{path}: expected progress as training writes it; got a damaged file. Remove it to begin anew")
    return Progress(int(arrays["step"]), arrays["theta"], arrays["m"], arrays["v"]), arrays["losses"]


def opened(folder: Path) -> Kept:
    """The trained model of a folder.

    Raises
    ------
    FileNotFoundError : where there is none, or none yet.
    ValueError : for a damaged one.
    """
    for name in ("settings.json", "vocabulary.json", "model.npz"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"expected a trained language model in {folder}; it has no {name}. Train one: "
                f"npmoe language train --output {folder}"
            )
    words = read_json(folder / "vocabulary.json")
    byte_pairs = isinstance(words, dict) and words.get("kind") == "byte pairs"
    vocabulary = (BytePair if byte_pairs else Vocabulary).from_json(words)
    return Kept(load(folder / "model.npz"), vocabulary, dict(read_json(folder / "settings.json")))
