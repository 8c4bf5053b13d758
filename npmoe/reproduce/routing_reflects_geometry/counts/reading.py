"""A file of counts of choices, read and checked against itself.

D kinds of text (domains), L layers, E experts, k chosen a token. A file is an .npz with

    domains                (D,) names            layers               (L,) their numbers in the model
    <model>_counts         (D, L, E) choices     <model>_counts_top1  (D, L, E) first choices
    <model>_crosslayer     (D, L - 1, E, E) the j-th choice in one of these layers with the j-th in the next

for one or more models; the last two may be missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.files import read_arrays

__all__ = ["Counts", "read"]

Array = np.ndarray

_MOST = 2**30  # bytes of counts
_ENDINGS = ("_counts_top1", "_counts", "_crosslayer")  # the longer first: one ends as the other begins


@dataclass(frozen=True)
class Counts:
    """One model's counts: (D, L, E), first choices likewise or None, tables (D, L - 1, E, E) or None.

    k is None where the file has no first choices: it cannot be told from sums alone.
    """

    model: str
    domains: tuple[str, ...]
    layers: tuple[int, ...]
    counts: Array
    top1: Array | None = None
    crosslayer: Array | None = None
    k: int | None = None

    def __repr__(self) -> str:
        return one_line(self)


def read(path: Path | str) -> tuple[Counts, ...]:
    """All models of a file of counts, checked against each other.

    A token has one first choice and k choices, so the sums over experts of `counts` and `counts_top1` give k as their
    ratio, which must be one whole number for every kind of text and layer. Layers must agree in their sums, as they saw
    the same tokens; kinds of text may differ. No expert is chosen twice by a token. A table's margins are the counts.

    Raises
    ------
    FileNotFoundError : where there is no such file.
    ValueError : says file, key, what was expected and what came.

    Examples
    --------
    >>> read("nowhere.npz")
    Traceback (most recent call last):
    FileNotFoundError: expected a file of counts (.npz) at nowhere.npz; there is none
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of counts (.npz) at {path}; there is none")
    arrays = read_arrays(path, most=_MOST)
    models = sorted({key.removesuffix("_counts") for key in arrays if key.endswith("_counts")})
    known = {"domains", "layers", *(model + ending for model in models for ending in _ENDINGS)}
    foreign = sorted(set(arrays) - known)
    if foreign:
        raise ValueError(f"{path}: expected the keys {', '.join(sorted(known))}; got also {_few(foreign)}")
    for key in ("domains", "layers"):
        if key not in arrays:
            raise ValueError(f"{path}: expected the key {key}; got {_few(arrays)}")
    if not models:
        raise ValueError(f"{path}: expected a key <model>_counts; got {_few(arrays)}")
    domains, layers = _axis(path, "domains", arrays["domains"], "U"), _axis(path, "layers", arrays["layers"], "iu")
    return tuple(_model(path, arrays, model, tuple(map(str, domains)), tuple(map(int, layers))) for model in models)


def _few(keys: Iterable[str]) -> str:
    """Some keys of a file, which may have any number of any length."""
    found = sorted(keys)
    return ", ".join(key[:60] for key in found[:5]) + " and more" * (len(found) > 5) or "an empty file"


def _axis(path: Path, key: str, array: Array, kinds: str) -> Array:
    what = "names" if kinds == "U" else "whole numbers"
    if array.ndim != 1 or array.dtype.kind not in kinds or not len(array) or len(np.unique(array)) < len(array):
        raise ValueError(
            f"{path}: expected {key} to be different {what} along one axis; "
            f"got {array.dtype} of shape {array.shape}: {array.ravel()[:8].tolist()}"
        )
    return array


def _model(
    path: Path, arrays: dict[str, Array], model: str, domains: tuple[str, ...], layers: tuple[int, ...]
) -> Counts:
    D, L = len(domains), len(layers)
    counts = _whole(path, f"{model}_counts", arrays[f"{model}_counts"], (D, L, "E"))
    E = counts.shape[-1]

    def optional(ending: str, shape: tuple[int | str, ...]) -> Array | None:
        key = model + ending
        return _whole(path, key, arrays[key], shape) if key in arrays else None

    top1, tables = optional("_counts_top1", (D, L, E)), optional("_crosslayer", (D, L - 1, E, E))
    sums = counts.sum(axis=-1)  # (D, L)
    if not (sums == sums[:, :1]).all() or not sums.all():
        d = int(np.argwhere((sums != sums[:, :1]).any(axis=1) | (sums == 0).any(axis=1))[0, 0])
        raise ValueError(
            f"{path}: expected {model}_counts with one positive sum over experts for all layers of a kind of text; "
            f"got {sums[d].tolist()} for {domains[d]}"
        )
    k = None if top1 is None else _choices(path, model, counts, top1)
    if tables is not None:
        margins = (("rows", 3, counts[:, :-1]), ("columns", 2, counts[:, 1:]))
        for name, axis, expected in margins:
            got = tables.sum(axis=axis)
            if not (got == expected).all():
                d, step, e = np.argwhere(got != expected)[0]
                raise ValueError(
                    f"{path}: expected {model}_crosslayer whose {name} add up to {model}_counts; got "
                    f"{got[d, step, e]} for {expected[d, step, e]} at {domains[d]}, step {step}, expert {e}"
                )
    return Counts(model, domains, layers, counts, top1, tables, k)


def _whole(path: Path, key: str, array: Array, shape: tuple[int | str, ...]) -> Array:
    """`array` as non-negative whole numbers of that shape, in which a string stands for any length but 0."""
    fits = array.ndim == len(shape) and all(
        got > 0 if isinstance(want, str) else want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{path}: expected {key} of shape ({', '.join(map(str, shape))}); got {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected {key} to be counts, integers; got {array.dtype}")
    if (array < 0).any():
        where = tuple(int(i) for i in np.argwhere(array < 0)[0])
        raise ValueError(f"{path}: expected {key} to be non-negative; got {array[where]} at {where}")
    return array.astype(np.int64)


def _choices(path: Path, model: str, counts: Array, top1: Array) -> int:
    """k, the ratio of choices to first choices."""
    sums, tokens = counts.sum(axis=-1), top1.sum(axis=-1)  # (D, L)
    ratios = np.divide(sums, tokens, out=np.full(sums.shape, np.nan), where=tokens > 0)
    k = ratios.flat[0]
    if not (ratios == k).all() or k != np.rint(k):
        odd = next(r for r in ratios.flat if r != k or r != np.rint(r))
        raise ValueError(
            f"{path}: expected {model}_counts to add up to a whole number k of times {model}_counts_top1, the same "
            f"everywhere; got {odd:.6g} beside {k:.6g}"
        )
    for name, wrong in (
        (f"{model}_counts_top1 to be no more than {model}_counts", top1 > counts),
        (f"{model}_counts to be no more than there are tokens", counts > tokens[..., None]),
    ):
        if wrong.any():
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"{path}: expected {name}; got {top1[where]} first choices, {counts[where]} choices, "
                f"{tokens[where[:2]]} tokens at {where}"
            )
    return int(k)
