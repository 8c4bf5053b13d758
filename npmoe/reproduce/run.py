"""From a plan to a folder: runs, ledger, table, figures as data, pages; and the recorded ledger, in and out."""

import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_info
from tqdm import tqdm

import npmoe
from npmoe import files
from npmoe.files import read_json
from npmoe.ledger import FEWEST_SEEDS, Claim, join, read_results, split
from npmoe.reproduce.experiment import Results, Trial
from npmoe.reproduce.findings import findings
from npmoe.reproduce.paper import Paper, reads
from npmoe.reproduce.papers import PAPERS, TIES
from npmoe.sweep import claim, executor, sweep

__all__ = ["RECORDED", "commit", "foreign", "lesser", "make", "parts", "record", "recorded", "results_of", "write"]

MODES = ("quick", "default", "full")
RECORDED = Path(__file__).parent / "recorded.json"


def make(
    paper: Paper,
    plan: Trial,
    folder: Path,
    *,
    jobs: int,
    where: str,
    fresh: bool,
    arrived: Callable[[Results], None] | None = None,
) -> tuple[list[Claim], dict[str, Any]]:
    """Run what a plan needs, or load it from `folder`/runs, and return its claims and its figures as data.

    `arrived` is told of the runs that are there, before the first is computed and after each.

    Raises
    ------
    SweepError : where the folder cannot be used; see `npmoe.sweep.sweep`.
    """
    configs = plan.configs()
    results: Results = {}
    if configs:  # a claim that nothing here can test needs no run
        with executor(where, min(jobs, len(configs))) as pool:
            results = sweep(
                configs,
                paper.compute,
                folder / "runs",
                source=paper.source_of,
                reads=reads,
                executor=pool,
                fresh=fresh,
                label=lambda run: run.label,
                arrived=arrived,
            )
    return plan.claims(results), paper.figures(results, plan)


def results_of(
    paper: Paper, claims: list[Claim], plan: Trial, drawn: Mapping[str, Any], progress: int | None = None
) -> dict[str, Any]:
    """The ledger of one paper as JSON. It holds no times: the same call gives the same bytes on one machine.

    `progress` is how many seeds are there where more are to come.
    """
    whole = plan.ids == paper.ids
    return {
        "word": paper.word,
        "npmoe": npmoe.__version__,
        "mode": MODES[0] if plan.quick else MODES[2] if plan.full else MODES[1],
        "seeds": plan.seeds,
        "progress": progress,
        "command": f"python -m npmoe.reproduce {paper.word if whole else ' '.join(plan.ids)}{plan.options}",
        "title": paper.heading,
        "paper": {"id": paper.id, "title": paper.title, "cite": paper.cite},
        "environment": environment(),
        "source": paper.source[:16],  # of the code that computed the runs
        **({"text": plan.base.text.name} if paper.text else {}),
        "notes": [*_notes(claims), *paper.notes(claims, plan)],
        "figures": sorted(drawn),
        "claims": [paper.told(claim.as_json()) for claim in claims],
    }


def _notes(claims: list[Claim]) -> list[str]:
    """What holds for every paper's page."""
    notes = [
        "A claim's verdict is that of its primary interpretation, which was fixed before the first recorded run. All "
        "other interpretations are shown, and none is chosen afterwards."
    ]
    judged = sum(claim.primary is not None for claim in claims)
    if judged > 4:
        notes.append(
            f"With {judged} claims tested at the 95 % level, about {0.025 * judged:.1g} would be supported by chance."
        )
    return notes


def environment() -> dict[str, Any]:
    """What numbers may depend on: versions, machine, BLAS."""
    blas = sorted({f"{lib['internal_api']} {lib.get('version') or ''}".strip() for lib in threadpool_info()})
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "blas": ", ".join(blas),
    }


def lesser(folder: Path, new: dict[str, Any]) -> str | None:
    """Why a paper's page that stands in a folder must not be replaced by a new one, or None.

    A page without numbers gives way to any other, one of a quick run to any that is not, and an interrupted one to a
    complete one. Otherwise the page of the fuller mode, of more seeds or of claims that were not asked for stays.

    Raises
    ------
    ValueError : if what stands there is not a ledger that this version reads.
    """
    path = folder / "results.json"
    old = next((part for part in parts(folder) if part["word"] == new["word"]), None)
    if old is None or old.get("recorded"):
        return None
    mode = str(old.get("mode"))
    there, here = _seeds_there(old), _seeds_there(new)
    if there == 0 or (mode == "quick" and new["mode"] != "quick"):
        return None  # nothing is lost
    if there >= FEWEST_SEEDS > here and new["mode"] != "quick":
        return f"{path} has verdicts, of {there} seeds, and this call none, of {here}"
    if mode != "quick" and new["mode"] == "quick":
        return f"{path} is of a {mode} run and this one was quick"
    if old.get("progress") is None and new.get("progress") is not None:
        return f"{path} is of a run that is complete"
    whole = old.get("progress") is not None and new.get("progress") is None
    if MODES.index(new["mode"]) < (MODES.index(mode) if mode in MODES else len(MODES)) and not whole:
        return f"{path} is of a {mode} run and this one was {new['mode']}"
    if there > here and not whole and (new["mode"] == mode or new.get("progress") is not None):
        return f"{path} has {there} seeds and this call {here}"
    missing = {claim["id"] for claim in old["claims"]} - {claim["id"] for claim in new["claims"]}
    if missing and mode != "quick":
        return f"{path} has claims that this call did not ask for ({', '.join(sorted(missing))})"
    return None


def _seeds_there(results: Mapping[str, Any]) -> int:
    """The seeds that a ledger has numbers of."""
    if not any(claim.get("readings") or claim.get("statements") for claim in results["claims"]):
        return 0
    progress = results.get("progress")
    return int(results.get("seeds") or 0) if progress is None else int(progress)


def parts(folder: Path) -> list[dict[str, Any]]:
    """The ledgers of single papers that stand in a folder; none where it has no results.

    Raises
    ------
    ValueError : if what stands there is not a ledger that this version reads; names the file.
    """
    path = folder / "results.json"
    return _split(path) if path.exists() else []


def _split(path: Path) -> list[dict[str, Any]]:
    try:
        return split(read_results(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{error} (in {path})") from None


def write(folder: Path, results: dict[str, Any], drawn: dict[str, Any], alone: bool = False) -> Path:
    """results.json, claims.csv, figures and pages, each written aside and renamed; returns the front page.

    `results` is the ledger of one paper; what stands there of other papers stays. `alone` says that the caller has the
    folder of runs to itself already.
    """
    from npmoe.report import write_report

    # two calls that end at once must not take each other's files
    with nullcontext() if alone else claim(folder / "runs"):
        return _write(folder, results, drawn, write_report)


def _write(folder: Path, results: dict[str, Any], drawn: dict[str, Any], page: Callable[[Path], Path]) -> Path:
    before = {part["word"]: part for part in parts(folder)}
    others = {word: _whole(folder, part) for word, part in before.items() if word != results["word"]}
    taken = {name: word for word, part in others.items() for name in part["figures"]}
    twice = sorted(set(drawn) & set(taken))
    if twice:
        raise ValueError(f"expected names of figures that no other paper has; got {twice[0]!r}, of {taken[twice[0]]}")
    ledger = join(in_order({**others, results["word"]: results}), TIES)
    ledger["findings"] = findings(ledger["claims"])
    for name in set(before.get(results["word"], {}).get("figures", ())) - set(drawn):
        for suffix in (".json", ".svg", ".html", ".png"):  # of earlier versions too
            (folder / "figures" / f"{name}{suffix}").unlink(missing_ok=True)
    # first the ledger, which says what else in this folder is ours
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "results.json", ledger)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        text = json.dumps(figure, ensure_ascii=False, allow_nan=False) + "\n"
        files.write(folder / "figures" / f"{name}.json", text.encode())
    files.write(folder / "claims.csv", _table(ledger).encode())
    return page(folder)


def _whole(folder: Path, part: dict[str, Any]) -> dict[str, Any]:
    """Another paper's ledger without the figures that a killed call of it did not come to write."""
    there = [name for name in part.get("figures", ()) if (folder / "figures" / f"{name}.json").exists()]
    return {**part, "figures": there}


def in_order(found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Ledgers of single papers in the order of `PAPERS`."""
    words = [paper.word for paper in PAPERS]
    return [found[word] for word in sorted(found, key=lambda word: words.index(word) if word in words else len(words))]


def foreign(folder: Path) -> str | None:
    """What stands in a folder under a name that `write` would use, where no ledger says that it is ours; or None."""
    if (folder / "results.json").exists():
        return None
    pages = (f"{paper.word}.html" for paper in PAPERS)
    return next((name for name in ("index.html", "claims.csv", "figures", *pages) if (folder / name).exists()), None)


# ---- the recorded ledger ---------------------------------------------------------------------------------------------


def record(results: dict[str, Any], drawn: Mapping[str, Any], made: Mapping[str, Any]) -> Path:
    """Make a full run's ledger of one paper the recorded one, which the package carries; other papers stay.

    `made` says how long it took and from which commit. A line holds one paper's head, one claim or one figure.
    """
    before = {part["word"]: _own(part) for part in _split(RECORDED)} if RECORDED.exists() else {}
    figures = read_json(RECORDED).get("figures", {}) if RECORDED.exists() else {}
    of_others = {name for word, part in before.items() if word != results["word"] for name in part["figures"]}
    figures = {name: figure for name, figure in figures.items() if name in of_others} | dict(drawn)
    whole = join(in_order({**before, results["word"]: {**results, "made": dict(made)}}))
    files.write(RECORDED, _by_lines({**whole, "figures": figures}).encode())
    return RECORDED


def _own(part: dict[str, Any]) -> dict[str, Any]:
    """A recorded paper without the claims that have moved to another since, which has them recorded itself."""
    elsewhere = {id for paper in PAPERS if paper.word != part["word"] for id in paper.ids}
    return {**part, "claims": [claim for claim in part["claims"] if claim["id"] not in elsewhere]}


def _by_lines(ledger: dict[str, Any]) -> str:
    """JSON with a line for each paper, claim and figure: small, and a change shows where it is."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    parts = []
    for key, value in ledger.items():
        if key in ("papers", "claims"):
            inside = ",\n".join(line(item) for item in value)
            parts.append(f"{line(key)}:[\n{inside}\n]")
        elif key == "figures":
            inside = ",\n".join(f"{line(name)}:{line(figure)}" for name, figure in sorted(value.items()))
            parts.append(f"{line(key)}:{{\n{inside}\n}}")
        else:
            parts.append(f"{line(key)}:{line(value)}")
    return "{" + ",\n".join(parts) + "}\n"


def recorded(words: Iterable[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The recorded ledgers of some papers, told in today's words, each with its figures as data.

    Raises
    ------
    ValueError : where there is no recorded ledger, or none that this version reads.
    """
    if not RECORDED.exists():
        raise ValueError(f"expected a recorded ledger in {RECORDED}; there is none")
    figures = read_json(RECORDED).get("figures", {})
    papers = {paper.word: paper for paper in PAPERS}
    found = []
    for part in _split(RECORDED):
        if part["word"] in words and part["word"] in papers:
            paper = papers[part["word"]]
            claims = [paper.told(claim) for claim in _own(part)["claims"] if claim["id"] in paper.ids]
            drawn = {name: figures[name] for name in part["figures"] if name in figures}
            head = {**part, "claims": claims, "figures": sorted(drawn), "recorded": True, "progress": None}
            found.append((head, drawn))
    return found


def _table(results: dict[str, Any]) -> str:
    """One row a reading (``claims.csv``)."""
    out = io.StringIO()
    columns = ("claim", "reading", "primary", "kind", "statistic", "margin", "mean", "low", "high", "verdict", "nulls")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(columns)
    for of in results["claims"]:
        for r in of["readings"]:
            nulls = "; ".join(f"{n['kind']} {n['name']}: {n['mean']} [{n['low']}, {n['high']}]" for n in r["nulls"])
            row = {**r, "claim": of["id"], "reading": r["name"], "nulls": nulls}
            table.writerow([row[column] for column in columns])
    return out.getvalue()


def commit() -> str:
    """The commit that the package's source is of, with "+" where it was changed since; empty outside of git."""
    here = Path(npmoe.__file__).parent
    try:
        name, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", ":(glob)**/*.py"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return name.strip() + "+" * bool(changed.strip())


def say(text: str) -> None:
    """One line on standard error, above a progress bar where there is one."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
