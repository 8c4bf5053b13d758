"""Golden cases: files of weights, inputs and right answers, and the judgement of what another program answered.

n tokens, d width, h hidden, o output width, E experts, k experts a token. The format is in FORMAT.md beside this file,
which `dump` writes into the folder as well; docs/golden.md has a recipe each for PyTorch, JAX and C.
"""

import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import npmoe
from npmoe.battery.cases import Case, cases, named
from npmoe.calculus import tree
from npmoe.files import FileError, arrays_in, pack, read_array, read_json, write
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE
from npmoe.verify.compare import Report, compare_answers
from npmoe.verify.judge import worst
from npmoe.verify.reference import kind_of, reference, shapes
from npmoe.verify.rounding import ARITHMETICS
from npmoe.verify.text import number, table

__all__ = ["SCHEMA", "Checked", "check", "dump"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE

FORMAT, SCHEMA = "npmoe golden cases", 1

#: Arithmetics whose limits stand in the files.
LIMITS = ("float64", "float32", "bfloat16")

_NUMBERS = "fiubc"  # kinds of numbers that an answer may be of
_HEADER = 10_000
_GIVEN = ("x", "dy", "weights")  # inputs that are no parameters


# ---- dump ----------------------------------------------------------------------------------------------------------


def dump(folder: str | os.PathLike[str], *, raw: bool = False, only: Sequence[str] | None = None) -> Path:
    """Write the golden cases, a manifest and the description of the format.

    Parameters
    ----------
    folder : made if need be. Must be empty or hold a dump; answers in it stay as they are.
    raw : also each array as a file of bare numbers, and sizes as text, for programs without a reader of npz. A folder
        that has them gets them anew in any case.
    only : names of cases, or patterns such as "gelu*"; all unless given.

    Returns
    -------
    Path : the manifest. Everything is computed before the first file is written, each file appears whole or not at all,
        and a second dump by the same version on the same machine writes the same bytes.

    Raises
    ------
    ValueError : for a folder that holds something else, of which nothing is touched; for a name that no case has.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dump(folder, only=["one-*"])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['FORMAT.md', 'manifest.json', 'one-gelu.npz', 'one-moe.npz', 'one-swiglu.npz']
    """
    folder = Path(folder)
    before = _claimed(folder)
    raw = raw or bool(before.get("raw"))  # or a program would go on reading numbers of an older dump
    table = {case.name: case for case in cases()}
    texts: dict[str, bytes] = {}
    entries = []
    for name in named(table, only):
        arrays, undecided = _answers_of(table[name])
        packed = pack(arrays)
        texts[f"{name}.npz"] = packed
        entries.append(_entry(table[name], arrays, packed, undecided))
        if raw:
            texts |= {f"{name}/{key}{_ENDING[a.dtype.kind]}": a.tobytes() for key, a in arrays.items()}
            texts[f"{name}/sizes.txt"] = _sizes(entries[-1]["layer"]).encode()
    texts["FORMAT.md"] = files("npmoe.battery").joinpath("FORMAT.md").read_bytes()
    if raw:
        texts["cases.txt"] = "".join(f"{entry['name']}\n" for entry in entries).encode()
    manifest = {"format": FORMAT, "schema": SCHEMA, "npmoe": npmoe.__version__, "raw": raw, "cases": entries}
    # first: a dump that is broken off is known for one, and what is missing has a name
    write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    for file, content in texts.items():
        write(folder / file, content)
    if raw:
        for entry in entries:  # a place to write to, so that a C program need not make folders
            (folder / "answers" / entry["name"]).mkdir(parents=True, exist_ok=True)
    return folder / "manifest.json"


_ENDING = {"f": ".f64", "i": ".i64"}


def _claimed(folder: Path) -> dict[str, Any]:
    """The manifest of the dump that is in the folder, or nothing where it is empty."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise ValueError(f"expected a folder to write golden cases to; {folder} is a file")
    held = sorted(path.name for path in folder.iterdir() if path.name != ".manifest.json.tmp")
    if not held:
        return {}
    try:
        return _manifest(folder)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"expected an empty folder, or one of golden cases with their manifest.json; {folder} holds "
            f"{', '.join(held[:3])}{' and more' if len(held) > 3 else ''}; nothing there was changed ({error})"
        ) from error


def _manifest(folder: Path) -> dict[str, Any]:
    """manifest.json as data, if it is one of ours; of whichever schema."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected golden cases with a manifest at {path}; there is none")
    try:
        found = read_json(path)
    except FileError as error:
        raise ValueError(f"expected a manifest of golden cases in {path}; cannot read it: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("schema"), int):
        raise ValueError(f"expected a manifest of golden cases in {path}; it is something else")
    return found


def _answers_of(case: Case) -> tuple[dict[str, Array], dict[str, list[int]]]:
    """All arrays of a case by their names in the file, and the rows that a tie leaves undecided by arithmetic."""
    leaves = dict(tree.named_leaves(case.layer))
    arrays = {f"in/{name}": a for name, a in [*leaves.items(), *((name, getattr(case, name)) for name in _GIVEN)]}
    undecided = {}
    with np.errstate(under="ignore"):  # slopes and gates that vanish are meant
        for arithmetic in LIMITS:
            ref = reference(case.layer, case.x, dy=case.dy, weights=case.weights, arithmetic=arithmetic)
            undecided[arithmetic] = np.flatnonzero(ref.undecided).tolist()
            for name in ref.names():
                if arithmetic == LIMITS[0]:
                    arrays[f"want/{name}"] = ref.allowed(name).want
                if name not in leaves:
                    _, usual, most = ref.allowed(name)
                    rows = [a.reshape(len(a), -1).max(axis=1) for a in (usual, most)]
                    arrays[f"limit/{arithmetic}/{name}"] = np.stack(rows, axis=1)  # (rows, 2)
    if isinstance(case.layer, MoE):
        arrays["route/margin"] = ref.margin.gap
        arrays["route/chosen"] = case.layer.route(case.x)[1]
    return {name: _plain(a) for name, a in arrays.items()}, undecided


def _plain(a: Array) -> Array:
    """In C order, as little-endian float64 or int64."""
    return np.ascontiguousarray(a, "<f8" if a.dtype.kind == "f" else "<i8")


def _entry(case: Case, arrays: Mapping[str, Array], packed: bytes, undecided: dict[str, list[int]]) -> dict[str, Any]:
    """The manifest's lines on a case."""
    return {
        "name": case.name,
        "says": case.says,
        "file": f"{case.name}.npz",
        "bytes": len(packed),
        "sha256": hashlib.sha256(packed).hexdigest(),
        "layer": _facts(case),
        "rounded": case.rounded,
        "undecided": undecided,
        "arrays": {name: {"shape": list(a.shape), "dtype": a.dtype.str} for name, a in sorted(arrays.items())},
    }


def _facts(case: Case) -> dict[str, Any]:
    """Kind and sizes of a layer; of an expert by itself E and k are 0."""
    layer = case.layer
    moe = layer if isinstance(layer, MoE) else None
    expert = moe.experts[0] if moe else layer
    d, h, o = expert.widths
    return {
        "kind": type(layer).__name__,
        "expert": type(expert).__name__,
        "activation": getattr(expert, "activation", "silu"),
        "n": len(case.x),
        "d": d,
        "h": h,
        "o": o,
        "E": len(moe.experts) if moe else 0,
        "k": moe.k if moe else 0,
        "renormalize": bool(moe and moe.renormalize),
        "temperature": float(moe.temperature) if moe else 1.0,
        "bias": bool(moe and moe.bias is not None),
    }


def _sizes(facts: Mapping[str, Any]) -> str:
    """One key and value a line, in a fixed order: for fscanf."""
    return "".join(f"{key} {int(value) if isinstance(value, bool) else value}\n" for key, value in facts.items())


# ---- check ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Checked:
    """What `check` found; prints as a table, with the whole report of each case that is off.

    Attributes
    ----------
    reports : one for each case that was answered, named as the case.
    unread : (case, why) where answers are there and cannot be judged, or the golden file itself is damaged.
    unanswered : cases without any answer.
    foreign : files and keys that name no answer, in words; they change no verdict.
    asked : whether cases were asked for by name, so that one which is not answered counts.
    """

    reports: tuple[Report, ...]
    unread: tuple[tuple[str, str], ...] = ()
    unanswered: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    asked: bool = False

    @property
    def verdict(self) -> str:
        """The worst over all cases; one without an answer counts where it was asked for, or where all are."""
        missing = bool(self.unread) or (self.asked and bool(self.unanswered))
        return worst([report.verdict for report in self.reports] + ["no answer"] * missing)

    @property
    def ok(self) -> bool:
        """Whether all that was answered, and could be decided, agrees."""
        return self.verdict == "agrees"

    def __getitem__(self, name: str) -> Report:
        """The report of a case by name."""
        for report in self.reports:
            if report.name == name:
                return report
        raise KeyError(f"expected an answered case, {', '.join(r.name for r in self.reports) or 'none'}; got {name!r}")

    def __str__(self) -> str:
        counts = Counter(report.verdict for report in self.reports)
        held = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none"
        lines = [f"golden cases: {self.verdict}", f"  answered: {held}; not answered: {len(self.unanswered)}"]
        if self.reports:
            lines += ["", "  each case's worst answer, in units of eps times the largest entry of its row"]
            head = ["case", "verdict", "eps", "answers", "worst", "error", "usual limit", "worst case", "row"]
            lines += table(head, [_line(report) for report in self.reports])
        if self.unread:
            lines += ["", "  could not be judged", *(f"    {name}: {why}" for name, why in self.unread)]
        for report in self.reports:
            if report.verdict in ("doubtful", "differs", "no answer"):
                lines += ["", *(f"  {line}".rstrip() for line in str(report).splitlines())]
        if self.unanswered:
            lines += ["", f"  not answered: {', '.join(self.unanswered)}"]
        if self.foreign:
            lines += ["", "  not known, and left alone", *(f"    {what}" for what in self.foreign)]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "reports": [report.json() for report in self.reports],
            "unread": [{"case": name, "why": why} for name, why in self.unread],
            "unanswered": list(self.unanswered),
            "foreign": list(self.foreign),
        }


def _line(report: Report) -> list[str]:
    """A case in one line: the answer that is nearest to, or farthest beyond, its limit."""
    judged = [(part, part.rows(1)[0]) for part in report.parts if len(part.units)]
    cells = [report.name, report.verdict, f"{ARITHMETICS[report.arithmetic].eps:.2g}", str(len(judged))]
    if not judged:
        return [*cells, "-", "-", "-", "-", "-"]
    part, row = max(judged, key=lambda pair: np.nan_to_num(pair[0].ratio.max(), nan=np.inf))
    return [*cells, part.name, number(row.units), number(row.usual), number(row.worst), str(row.row)]


def check(
    folder: str | os.PathLike[str],
    answers: str | os.PathLike[str] | None = None,
    *,
    arithmetic: str | None = None,
    only: Sequence[str] | None = None,
) -> Checked:
    """Judge what a program in any language answered to the golden cases of a folder.

    Parameters
    ----------
    folder : where `dump` wrote.
    answers : folder of answers, ``folder/answers`` unless given. For a case NAME it holds NAME.npz with a key for each
        answer, or NAME/ANSWER.npy, .f64 or .f32: bare little-endian numbers in C order. All are optional.
    arithmetic : what the candidate computed in; unless given, the dtype of each answer.
    only : names of cases, or patterns; of these a missing answer counts.

    Returns
    -------
    Checked : weights and inputs come from the golden files, whose checksums are held against the manifest; nothing is
        unpickled, and no header is believed about how much memory an array takes. A file that cannot be read is a line
        of what is returned, and all others are judged.

    Raises
    ------
    FileNotFoundError : where there is no manifest, or no folder of answers.
    ValueError : for a manifest that is not one, or of another schema; an unknown arithmetic; a name that no case has.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dump(folder, only=["one-gelu"])
    ...     golden = np.load(f"{folder}/one-gelu.npz")
    ...     (Path(folder) / "answers").mkdir()
    ...     np.savez(f"{folder}/answers/one-gelu.npz", jacobian=golden["want/jacobian"])
    ...     golden.close()
    ...     check(folder).verdict
    'agrees'
    """
    folder = Path(folder)
    entries = _entries(folder)
    names = named(entries, only)
    root = folder / "answers" if answers is None else Path(answers)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of answers at {root}; there is none")
    if arithmetic is not None and arithmetic not in ARITHMETICS:
        raise ValueError(f"expected an arithmetic among {', '.join(ARITHMETICS)}; got {arithmetic!r}")
    ours = set(entries) | {f"{name}.npz" for name in entries}
    foreign = [path.name for path in sorted(root.iterdir()) if path.name not in ours and path.name[0] != "."]
    reports, unread, unanswered = [], [], []
    for name in names:
        try:
            layer, given = _golden(folder, entries[name])
        except Exception as error:  # there is no end to the ways in which a file can be broken
            unread.append((name, f"golden file {folder / entries[name]['file']}: {_says(error)}"))
            continue
        try:
            found, strange = _answered(root, name, shapes(reference(layer, given["x"], dy=given["dy"])))
        except Exception as error:
            unread.append((name, _says(error)))
            continue
        foreign += strange
        if found:
            with np.errstate(under="ignore", over="ignore"):  # what vanishes, and what the candidate blew up
                x, dy, weights = (given[key] for key in _GIVEN)
                report = compare_answers(layer, found, x, dy=dy, weights=weights, arithmetic=arithmetic, name=name)
            reports.append(report)
        elif strange:
            unread.append((name, f"expected answers such as output or jacobian; got only {', '.join(strange)}"))
        else:
            unanswered.append(name)
    return Checked(tuple(reports), tuple(unread), tuple(unanswered), tuple(foreign), only is not None)


def _says(error: Exception) -> str:
    return f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"


_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The cases of a manifest of our schema by name, each with the fields that are read here."""
    manifest, path = _manifest(folder), folder / "manifest.json"
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA} in {path}; got {manifest['schema']}: dump anew")
    try:
        entries = {entry["name"]: entry for entry in manifest["cases"]}
        for name, entry in entries.items():
            # a name is a name in this folder, not a way out of it
            if not _NAME.fullmatch(name) or entry["file"] != f"{name}.npz":
                raise ValueError(f"case {name!r} with file {entry['file']!r}")
            if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
                raise ValueError(f"case {name!r} without bytes and sha256")
            entry["layer"]["kind"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected cases with name, file, bytes, sha256 and layer in {path}; got {error}") from error
    return entries


def _golden(folder: Path, entry: Mapping[str, Any]) -> tuple[Layer, dict[str, Array]]:
    """Layer and inputs of a case, from a file that is what the manifest says."""
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError("expected a file as the manifest says; there is none (dump anew)")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"expected {entry['bytes']} bytes, as the manifest says; got {size} (dump anew)")
    content = path.read_bytes()
    if (got := hashlib.sha256(content).hexdigest()) != entry["sha256"]:
        raise ValueError(f"expected sha256 {entry['sha256'][:12]}..., as the manifest says; got {got[:12]}...")
    arrays = {}
    for key, value in arrays_in(io.BytesIO(content), path.name, len(content), "fi", lambda key: key.startswith("in/")):
        if isinstance(value, FileError):
            raise value
        if value is not None:
            arrays[key.removeprefix("in/")] = value
    given = {name: arrays.pop(name) for name in _GIVEN}
    return _layer(entry["layer"], arrays), given


def _layer(facts: Mapping[str, Any], leaves: dict[str, Array]) -> Layer:
    """A layer of arrays by the names of its leaves."""

    def expert(at: str) -> GeluExpert | SwigluExpert:
        if facts["expert"] == "SwigluExpert":
            return SwigluExpert(*(leaves.pop(at + name) for name in ("Wg", "Wu", "Wd")))
        W1, b1, W2, b2 = (leaves.pop(at + name) for name in ("W1", "b1", "W2", "b2"))
        return GeluExpert(W1, b1, W2, b2, facts["activation"])

    if facts["kind"] == "MoE":
        router, bias = leaves.pop("router"), leaves.pop("bias", None)
        experts = tuple(expert(f"experts.{e}.") for e in range(len(router)))
        layer: Layer = MoE(router, experts, facts["k"], facts["renormalize"], facts["temperature"], bias)
    else:
        layer = expert("")
    if leaves:
        raise ValueError(f"expected the parameters of a {facts['kind']}; got also {', '.join(sorted(leaves))}")
    return layer


# ---- answers -------------------------------------------------------------------------------------------------------


def _answered(root: Path, name: str, known: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Array | str], list[str]]:
    """Answers to a case by name, with a sentence in place of one that cannot be read; and what is not known."""
    n, o, d = known["jacobian"]
    known = {**known, "batch": (n, o, n, d)}
    # 16 bytes are the widest number there is, and an answer may come under several labels
    room = 8 * 16 * sum(map(math.prod, known.values()))
    found: dict[str, Array | str] = {}
    foreign = []
    if (path := root / f"{name}.npz").exists():
        with path.open("rb") as stream:
            wanted = lambda key: kind_of(key) in known and key != "batch"  # noqa: E731
            for key, value in arrays_in(stream, path.name, room, _NUMBERS, wanted):
                if value is None:
                    foreign.append(f"{path.name}: {key}")
                else:
                    found[key] = str(value) if isinstance(value, FileError) else _native(value)
    if (path := root / name).is_dir():
        for file in sorted(path.iterdir()):
            key, ending = file.name[:-4], file.name[-4:]
            if kind_of(key) not in known or key == "batch" or ending not in (".npy", ".f64", ".f32"):
                foreign += [f"{name}/{file.name}"] * (file.name[0] != ".")
            elif key in found:
                found[key] = f"expected one answer; got {file.name} beside another of that name"
            else:
                found[key] = _file(file, kind_of(key), known, room)
    return found, foreign


def _file(path: Path, kind: str, known: Mapping[str, tuple[int, ...]], room: int) -> Array | str:
    """The numbers of one file, or why there are none."""
    try:
        if path.suffix == ".npy":
            size = path.stat().st_size
            if size > room + 2 * _HEADER:
                return f"expected no more than {room} bytes of answers to this case; got {size} in {path.name}"
            with path.open("rb") as stream:
                return _native(read_array(stream, size, _NUMBERS))
        dtype = np.dtype({".f64": "<f8", ".f32": "<f4"}[path.suffix])
        size = path.stat().st_size
        for shape in [known[kind]] + [known["batch"]] * (kind == "jacobian"):
            if size == math.prod(shape) * dtype.itemsize:
                return np.fromfile(path, dtype).reshape(shape)
        want = math.prod(known[kind]) * dtype.itemsize
        return f"expected {want} bytes, {known[kind]} of {dtype.name}; got {size} in {path.name}"
    except Exception as error:
        return f"cannot read {path.name}: {_says(error)}"


def _native(array: Array) -> Array:
    """Numbers in the order of this machine's bytes."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
