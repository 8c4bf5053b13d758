"""The judgement of what another program answered to golden cases."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.battery.cases import named
from npmoe.battery.golden.answered import read_answers, said_by
from npmoe.battery.golden.manifest import GIVEN, SCHEMA, read_entries
from npmoe.calculus.words import one_line
from npmoe.files import FileError, arrays_in
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.moe import MoE
from npmoe.verify.compare import Report, compare_answers
from npmoe.verify.judge import worst
from npmoe.verify.reference import reference, shapes
from npmoe.verify.rounding import ARITHMETICS
from npmoe.verify.text import number, table

__all__ = ["Checked", "check"]

Array = np.ndarray
Layer = GeluExpert | SwigluExpert | MoE


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

    def __repr__(self) -> str:
        return one_line(self)

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
    >>> from npmoe.battery.golden import dump
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
    entries = read_entries(folder)
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
            unread.append((name, f"golden file {folder / entries[name]['file']}: {said_by(error)}"))
            continue
        try:
            found, strange = read_answers(root, name, shapes(reference(layer, given["x"], dy=given["dy"])))
        except Exception as error:
            unread.append((name, said_by(error)))
            continue
        foreign += strange
        if found:
            with np.errstate(under="ignore", over="ignore"):  # what vanishes, and what the candidate blew up
                x, dy, weights = (given[key] for key in GIVEN)
                report = compare_answers(layer, found, x, dy=dy, weights=weights, arithmetic=arithmetic, name=name)
            reports.append(report)
        elif strange:
            unread.append((name, f"expected answers such as output or jacobian; got only {', '.join(strange)}"))
        else:
            unanswered.append(name)
    return Checked(tuple(reports), tuple(unread), tuple(unanswered), tuple(foreign), only is not None)


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
    given = {name: arrays.pop(name) for name in GIVEN}
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
