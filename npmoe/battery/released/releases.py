"""Findings in several releases of `transformers`: each in a file, and what the files say together.

A file is JSON: {"format", "schema", "npmoe", "torch", "transformers", "findings": [...]}, a finding with the names of
`npmoe.battery.released.Finding`. Numbers that are not finite are written as words.
"""

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import npmoe
from npmoe.battery.released.comparison import Finding
from npmoe.battery.released.families import FAMILIES
from npmoe.files import FileError, read_json, write_json

K = TypeVar("K", bound=Hashable)

__all__ = ["SCHEMA", "Scan", "read", "spans", "summary", "write"]

FORMAT, SCHEMA = "npmoe findings in transformers", 1

_EPS32 = 2.0**-23
_NUMBERS = ("expected", "got", "error", "tolerance")
_DERIVATIVES = ("output", "gradient", "jacobian")  # what is compared block by block, however it is computed


class Scan(NamedTuple):
    """The findings in one release.

    version : of transformers.
    torch : its version, "" where the file does not say.
    findings : in the order in which they were made.
    """

    version: str
    torch: str
    findings: tuple[Finding, ...]


# ---- a file --------------------------------------------------------------------------------------------------------


def write(found: Sequence[Finding], path: Path) -> Path:
    """Findings in one release into a file, whole or not at all.

    Parameters
    ----------
    found : of one version, as `npmoe.battery.released.findings` gives them.
    path : of the file; its folder is made.

    Raises
    ------
    ValueError : for none, or for findings in two versions.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from npmoe.battery.released import finding
    >>> with TemporaryDirectory() as folder:
    ...     (scan,) = read([write([finding("output", "mixtral", "5.0.0", 1.0, 1.0)], Path(folder, "5.0.0.json"))])
    >>> scan.version, scan.findings[0].verdict
    ('5.0.0', 'agrees')
    """
    versions = sorted({f.version for f in found})
    if len(versions) != 1:
        raise ValueError(f"expected findings in one version; got {', '.join(versions) or 'none'}")
    data = {"format": FORMAT, "schema": SCHEMA, "npmoe": npmoe.__version__, "torch": _torch()}
    data |= {"transformers": versions[0], "findings": [_plain(f) for f in found]}
    return write_json(path, data)


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _plain(found: Finding) -> dict[str, Any]:
    """A finding for JSON, which has neither NaN nor infinities."""
    row = found._asdict()
    return row | {key: str(row[key]) for key in _NUMBERS if row[key] is not None and not math.isfinite(row[key])}


def read(paths: Iterable[Path]) -> tuple[Scan, ...]:
    """Findings from files, a `Scan` for each release, oldest first.

    Parameters
    ----------
    paths : of files that `write` made; those of one release may each hold some of its families.

    Raises
    ------
    OSError : for a file that cannot be read.
    ValueError : for a file that is truncated, something else or of another schema, and where two files hold the same
        family of the same release; it names the file.
    """
    scans: dict[str, Scan] = {}
    held: dict[tuple[str, str], Path] = {}
    for path in map(Path, paths):
        scan = _scan(path)
        for family in dict.fromkeys(f.family for f in scan.findings):
            if (first := held.setdefault((scan.version, family), path)) is not path:
                raise ValueError(
                    f"expected a family of a release once; {family} of {scan.version} is in {first} and {path}"
                )
        before = scans.get(scan.version, scan._replace(findings=()))
        scans[scan.version] = scan._replace(findings=before.findings + scan.findings)
    return tuple(sorted(scans.values(), key=lambda scan: _order(scan.version)))


def _scan(path: Path) -> Scan:
    """One file, each of its findings looked at."""
    try:
        data = read_json(path)
    except FileError as error:
        raise ValueError(f"expected findings in JSON in {path}; cannot read it: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"expected findings, written with released --json, in {path}; it is something else")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA} in {path}; got {data.get('schema')!r}: write it anew")
    version, rows = data.get("transformers"), data.get("findings")
    if not isinstance(version, str) or not _VERSION.match(version):
        raise ValueError(f"expected a version of transformers in {path}; got {version!r}")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"expected a list of findings in {path}; got {_shown(rows)}")
    findings = tuple(_finding(row, version, f"finding {i} of {path}") for i, row in enumerate(rows))
    return Scan(version, str(data.get("torch", "")), findings)


def _finding(row: Any, version: str, place: str) -> Finding:
    """A finding of a file, if it is one: of the file's version, with all names, numbers where it ran and only there."""
    if not isinstance(row, dict) or set(row) != set(Finding._fields):
        raise ValueError(f"expected {', '.join(Finding._fields)} in {place}; got {_shown(row)}")
    if any(not isinstance(row[key], str) for key in Finding._fields if key not in _NUMBERS):
        raise ValueError(f"expected words in {place} for all but {', '.join(_NUMBERS)}")
    found = Finding(**row | {key: _number(row[key], f"{key} in {place}") for key in _NUMBERS})
    if found.version != version:
        raise ValueError(f"expected version {version}, as the file's, in {place}; got {found.version}")
    ran = found.verdict in ("agrees", "fault")
    if not ran and not found.verdict.startswith("not run"):
        raise ValueError(f"expected a verdict of agrees, fault or not run in {place}; got {found.verdict!r}")
    if ran == (found.error is None) or found.tolerance is None:
        shown = f"{found.error}, tolerance {found.tolerance} ({found.verdict})"
        raise ValueError(f"expected a tolerance, and an error where it ran alone, in {place}; got {shown}")
    return found


def _shown(value: Any) -> str:
    """What came in the place of something else, short enough for an error."""
    return ", ".join(value) if isinstance(value, dict) else repr(value)[:60]


def _number(value: Any, name: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if value in ("nan", "inf", "-inf"):
        return float(value)
    raise ValueError(f"expected a number for {name}; got {value!r}")


# ---- versions ------------------------------------------------------------------------------------------------------

_VERSION = re.compile(r"(\d+(?:\.\d+)*)(.*)")


def _order(version: str) -> tuple[tuple[int, ...], bool, str]:
    """What versions are sorted by; a candidate such as 5.0.0rc1 comes before its release."""
    found = _VERSION.match(version)
    assert found, version  # looked at where it was read
    numbers, rest = found.groups()
    return tuple(map(int, numbers.split("."))), re.match(r"\.?(dev|a|b|rc)", rest) is None, rest


def spans(some: Iterable[str], every: Sequence[str]) -> str:
    """Versions in words, "a to b" for three or more that are neighbours among all that were run.

    Parameters
    ----------
    some : versions.
    every : all versions, oldest first.

    Examples
    --------
    >>> spans({"1", "2", "3", "5"}, ["1", "2", "3", "4", "5", "6"])
    '1 to 3, 5'
    """
    inside = set(some)
    runs: list[list[str]] = [[]]
    for version in every:
        if version in inside:
            runs[-1].append(version)
        elif runs[-1]:
            runs.append([])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs if run)


# ---- what they say together ----------------------------------------------------------------------------------------


def summary(scans: Sequence[Scan]) -> str:
    """All releases in words: totals, counts and largest errors, faults with the releases that have them, and what did
    not run.

    Parameters
    ----------
    scans : as `read` gives them, at least one.

    Raises
    ------
    ValueError : for none.
    """
    if not scans:
        raise ValueError("expected findings in at least one release; got none")
    return "\n".join(_summary(scans))


def _summary(scans: Sequence[Scan]) -> Iterator[str]:
    every = [scan.version for scan in scans]
    found = [f for scan in scans for f in scan.findings]
    blocks = [f for f in found if _compared(f).partition(":")[0] in _DERIVATIVES]
    yield f"transformers, {len(every)} release{'s' * (len(every) != 1)}: {', '.join(every)}"
    torch = sorted({scan.torch for scan in scans if scan.torch})
    if torch:
        yield f"torch {', '.join(torch)}"
    yield f"all: {_counts(found)}"
    yield f"outputs, gradients and Jacobians of blocks: {_counts(blocks)}"
    yield from ["", "Comparisons by what was compared; errors are those of the ones that agree", ""]
    yield from _largest("compared", found, _compared, "family", lambda f: f.family)
    yield from ["", "Comparisons by family", ""]
    yield from _largest("family", found, lambda f: f.family, "compared", lambda f: f.id)
    yield from ["", "Faults, and the releases that have them", ""]
    yield from _faults(found, every)
    yield from ["", "What they look like", ""]
    yield from _symptoms(found, every)
    yield from ["", "What did not run", ""]
    yield from _reasons(found, every)


def _compared(found: Finding) -> str:
    """What was compared, without the switch: "output" of "output (norm_topk_prob True)"."""
    return found.id.partition(" (norm_topk_prob")[0]


def _counts(found: Sequence[Finding]) -> str:
    ran = [f for f in found if f.error is not None]
    fault = sum(f.verdict == "fault" for f in ran)
    return f"{len(ran)} comparisons, {len(ran) - fault} agree, {fault} at fault; {len(found) - len(ran)} not run"


def _largest(
    head: str, found: Sequence[Finding], key: Callable[[Finding], str], other: str, where: Callable[[Finding], str]
) -> list[str]:
    """A row for each value of `key`: counts, and the largest error of those that agree, with the release that has it
    first."""
    rows = [[head, "agree", "fault", "not run", "largest error", "eps32", other, "release"]]
    for name, group in _grouped(found, key).items():
        fine = [f for f in group if f.verdict == "agrees"]
        fault = sum(f.verdict == "fault" for f in group)
        row = [name, str(len(fine)), str(fault), str(len(group) - len(fine) - fault)]
        most = max(fine, key=lambda f: f.error or 0.0, default=None)
        if most is not None and most.error is not None:
            row += [f"{most.error:.1e}", f"{most.error / _EPS32:.1f}", where(most), most.version]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return _table(rows)


def _faults(found: Sequence[Finding], every: Sequence[str]) -> list[str]:
    """A row for each family and releases at fault; what has the same releases in all columns shares a row."""
    same: dict[tuple[str, str, str, str], list[str]] = {}
    for (family, id), group in _grouped(found, lambda f: (f.family, f.id)).items():
        seen, fine = ({f.version for f in group if f.verdict == verdict} for verdict in ("fault", "agrees"))
        if seen:
            rest = set(every) - seen - fine  # with a reason, or no such comparison in this release
            key = (family, spans(seen, every), spans(fine, every), spans(rest, every))
            same.setdefault(key, []).append(id)
    rows = [["family", "what", "at fault in", "agrees in", "not run in"]]
    rows += [[family, _ids(ids), *(cell or "-" for cell in cells)] for (family, *cells), ids in same.items()]
    return _table(rows) if same else ["none"]


def _symptoms(found: Sequence[Finding], every: Sequence[str]) -> list[str]:
    """A line for each family, comparison and symptom in words, with its releases."""
    lines = []
    faults = [f for f in found if f.verdict == "fault"]
    for (family, id), group in _grouped(sorted(faults, key=_place), lambda f: (f.family, f.id)).items():
        for (symptom, error), alike in _grouped(group, lambda f: (f.symptom, f"{f.error:.2g}")).items():
            span = spans([f.version for f in alike], every)
            lines.append(f"{family}, {id}: {span}: {symptom} (error {error})")
    return lines or ["nothing"]


def _place(found: Finding) -> int:
    """Where the family stands in the table of families; one that is not in it any more, at the end."""
    return [*FAMILIES].index(found.family) if found.family in FAMILIES else len(FAMILIES)


def _reasons(found: Sequence[Finding], every: Sequence[str]) -> list[str]:
    """A line for each family and reason."""
    same: dict[tuple[str, str, str], list[str]] = {}
    idle = _grouped([f for f in found if f.error is None], lambda f: (f.family, f.id, f.verdict))
    for (family, id, verdict), group in idle.items():
        same.setdefault((family, spans([f.version for f in group], every), verdict), []).append(id)
    lines = [f"{family}, {_ids(ids)}: {span}: {verdict}" for (family, span, verdict), ids in same.items()]
    return lines or ["nothing"]


def _ids(ids: Sequence[str]) -> str:
    """Names with what they share said once: "balance, :masked".

    Examples
    --------
    >>> _ids(["balance", "balance:masked", "dispatch"])
    'balance, :masked, dispatch'
    """
    said = [ids[0]]
    for before, id in pairwise(ids):
        cut = id.removeprefix(before.partition(":")[0])
        said.append(cut if cut.startswith(":") else id)
    return ", ".join(said)


def _grouped(found: Iterable[Finding], key: Callable[[Finding], K]) -> dict[K, list[Finding]]:
    """Findings by a key, in the order in which the keys come first."""
    groups: dict[K, list[Finding]] = {}
    for f in found:
        groups.setdefault(key(f), []).append(f)
    return groups


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, all to the left."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
