"""From a plan to a folder: runs, ledger, table, figures as data, page."""

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_info

import npmoe
from npmoe import files
from npmoe.ledger import Claim, join, read_results, split
from npmoe.reproduce.experiment import Results, Trial
from npmoe.reproduce.paper import Paper, reads
from npmoe.reproduce.papers import PAPERS, TIES
from npmoe.sweep import claim, executor, sweep

__all__ = ["RECORDED", "foreign", "lesser", "make", "parts", "record", "results_of", "write"]

MODES = ("quick", "default", "full")
RECORDED = Path(__file__).parent / "recorded.json"


def make(
    paper: Paper, plan: Trial, folder: Path, *, jobs: int, where: str, fresh: bool
) -> tuple[list[Claim], dict[str, Any]]:
    """Run what a plan needs, or load it from `folder`/runs, and return its claims and its figures as data.

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
            )
    return plan.claims(results), paper.figures(results, plan)


def results_of(paper: Paper, claims: list[Claim], plan: Trial, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger of one paper as JSON. It holds no times: the same call gives the same bytes on one machine."""
    whole = plan.ids == paper.ids
    return {
        "word": paper.word,
        "npmoe": npmoe.__version__,
        "mode": MODES[0] if plan.quick else MODES[2] if plan.full else MODES[1],
        "seeds": plan.seeds,
        "command": f"python -m npmoe.reproduce {paper.word if whole else ' '.join(plan.ids)}{plan.options}",
        "title": paper.heading,
        "paper": {"id": paper.id, "title": paper.title, "cite": paper.cite},
        "environment": environment(),
        "source": paper.source[:16],  # of the code that computed the runs
        "notes": [*_notes(claims), *paper.notes(claims, plan)],
        "figures": sorted(drawn),
        "claims": [claim.as_json() for claim in claims],
    }


def _notes(claims: list[Claim]) -> list[str]:
    """What holds for every paper's page."""
    notes = [
        "A verdict is that of the primary reading, fixed before the first recorded run; all other readings are shown."
    ]
    judged = sum(claim.primary is not None for claim in claims)
    if judged > 4:
        notes.append(f"With {judged} primaries judged at 95 %, {0.025 * judged:.1g} false 'holds' are to be expected.")
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

    Raises
    ------
    ValueError : if what stands there is not a ledger that this version reads.
    """
    path = folder / "results.json"
    old = next((part for part in parts(folder) if part["word"] == new["word"]), None)
    if old is None:
        return None
    mode = str(old.get("mode"))
    if MODES.index(new["mode"]) < (MODES.index(mode) if mode in MODES else len(MODES)):
        return f"{path} is of a {mode} run and this one was {new['mode']}"
    seeds = [int(results.get("seeds") or 0) for results in (old, new)]
    if new["mode"] == mode and seeds[0] > seeds[1]:
        return f"{path} has {seeds[0]} seeds and this call {seeds[1]}"
    missing = {claim["id"] for claim in old["claims"]} - {claim["id"] for claim in new["claims"]}
    if missing and mode != "quick":
        return f"{path} has claims that this call did not ask for ({', '.join(sorted(missing))})"
    return None


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


def write(folder: Path, results: dict[str, Any], drawn: dict[str, Any]) -> Path:
    """results.json, claims.csv, figures and pages, each written aside and renamed; returns the front page.

    `results` is the ledger of one paper; what stands there of other papers stays.
    """
    from npmoe.report import write_report

    with claim(folder / "runs"):  # two calls that end at once must not take each other's files
        return _write(folder, results, drawn, write_report)


def _write(folder: Path, results: dict[str, Any], drawn: dict[str, Any], page: Callable[[Path], Path]) -> Path:
    before = {part["word"]: part for part in parts(folder)}
    others = {word: _whole(folder, part) for word, part in before.items() if word != results["word"]}
    taken = {name: word for word, part in others.items() for name in part["figures"]}
    twice = sorted(set(drawn) & set(taken))
    if twice:
        raise ValueError(f"expected names of figures that no other paper has; got {twice[0]!r}, of {taken[twice[0]]}")
    ledger = join(in_order({**others, results["word"]: results}), TIES)
    for name in set(before.get(results["word"], {}).get("figures", ())) - set(drawn):
        for suffix in (".json", ".svg", ".png"):
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


def record(results: dict[str, Any]) -> Path:
    """Make a full run's ledger of one paper the recorded one, which the package carries; other papers stay."""
    before = {part["word"]: part for part in _split(RECORDED)} if RECORDED.exists() else {}
    files.write_json(RECORDED, join(in_order({**before, results["word"]: results})))
    return RECORDED


def _table(results: dict[str, Any]) -> str:
    """One row a reading."""
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


def say(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)
