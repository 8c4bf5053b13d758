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
from npmoe.ledger import SCHEMA, Claim, read_results
from npmoe.reproduce import soft_clustering
from npmoe.reproduce.soft_clustering.config import Config
from npmoe.reproduce.soft_clustering.figures import figures
from npmoe.reproduce.soft_clustering.measure import compute
from npmoe.reproduce.soft_clustering.plan import IDS, Plan, all_claims
from npmoe.sweep import claim, executor, source_hash, sweep

__all__ = ["RECORDED", "foreign", "lesser", "make", "record", "results_of", "write"]

MODES = ("quick", "default", "full")
RECORDED = Path(__file__).parent / "recorded.json"


def make(plan: Plan, folder: Path, *, jobs: int, where: str, fresh: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Run what a plan needs, or load it from `folder`/runs, and return its claims and its figures as data.

    Raises
    ------
    SweepError : where the folder cannot be used; see `npmoe.sweep.sweep`.
    """
    configs = plan.configs()
    with executor(where, min(jobs, len(configs))) as pool:
        results = sweep(
            configs,
            compute,
            folder / "runs",
            source=source_hash(*soft_clustering.SOURCES),
            executor=pool,
            fresh=fresh,
            label=_label,
        )
    return all_claims(results, plan), figures(results, plan)


def _label(config: Config) -> str:
    kind = "dense" if config.E == 1 else "soft" if config.k == config.E else f"top-{config.k}"
    return f"{kind}, seed {config.seed}"


def results_of(claims: list[Claim], plan: Plan, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as JSON. It holds no times: the same call gives the same bytes on one machine."""
    mode = MODES[0] if plan.quick else MODES[2] if plan.full else MODES[1]
    whole = plan.ids == IDS
    return {
        "schema": SCHEMA,
        "npmoe": npmoe.__version__,
        "mode": mode,
        "seeds": plan.seeds,
        "command": f"python -m npmoe.reproduce {'sc1' if whole else ' '.join(plan.ids)}{plan.options}",
        "title": "Mixture-of-Experts as Soft Clustering: each claim beside our number, its spread and chance",
        "paper": {
            "id": "SC1",
            "title": "Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective",
            "cite": "F. Liu, arXiv 2601.11616 v1",
        },
        "environment": environment(),
        "source": source_hash(*soft_clustering.SOURCES)[:16],  # of the code that computed the runs
        "notes": _notes(claims, plan),
        "figures": sorted(drawn),
        "claims": [claim.as_json() for claim in claims],
    }


def _notes(claims: list[Claim], plan: Plan) -> list[str]:
    notes = ["A verdict is that of the primary reading, fixed before any run; all other readings are shown."]
    if len(claims) > 4:
        false = 0.025 * len(claims)
        notes.append(f"With {len(claims)} primaries judged at 95 %, {false:.1g} false 'holds' are to be expected.")
    if any(claim.id in ("SC1.3", "SC1.9") for claim in claims):
        notes.append(
            "Claims of the kind 'near zero' hold for independent random experts as well: with independent "
            "initialization they end as 'so does the null' whatever training did."
        )
    if plan.full:
        notes.append(
            "The control, a dense model as wide as all experts, stands beside measure readings only: where a train "
            "reading lacks it, T may hold, but is not called reproduced."
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
    """Why the page that stands in a folder must not be replaced by a new one, or None.

    Raises
    ------
    ValueError : if what stands there is not a ledger that this version reads.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    old = read_results(path)
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


def write(folder: Path, results: dict[str, Any], drawn: dict[str, Any]) -> Path:
    """results.json, claims.csv, figures and the page, each written aside and renamed; returns the page."""
    from npmoe.report import write_report

    with claim(folder / "runs"):  # two calls that end at once must not take each other's files
        return _write(folder, results, drawn, write_report)


def _write(folder: Path, results: dict[str, Any], drawn: dict[str, Any], page: Callable[[Path], Path]) -> Path:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    before = set(read_results(path).get("figures", ())) if path.exists() else set()
    for name in before - set(drawn):
        for suffix in (".json", ".svg", ".png"):
            (folder / "figures" / f"{name}{suffix}").unlink(missing_ok=True)
    # first the ledger, which says what else in this folder is ours
    _replace(path, _dump(results))
    for name, figure in drawn.items():
        _replace(folder / "figures" / f"{name}.json", json.dumps(figure, ensure_ascii=False, allow_nan=False) + "\n")
    _replace(folder / "claims.csv", _table(results))
    return page(folder)


def foreign(folder: Path) -> str | None:
    """What stands in a folder under a name that `write` would use, where no ledger says that it is ours; or None."""
    if (folder / "results.json").exists():
        return None
    return next((name for name in ("index.html", "claims.csv", "figures") if (folder / name).exists()), None)


def record(results: dict[str, Any]) -> Path:
    """Make a full run's ledger the recorded one, which the package carries; claims of other papers stay."""
    ours = {claim["id"] for claim in results["claims"]}
    others = []
    if RECORDED.exists():
        others = [claim for claim in read_results(RECORDED)["claims"] if claim["id"] not in ours]
    _replace(RECORDED, _dump({**results, "claims": [*results["claims"], *others]}))
    return RECORDED


def _dump(results: dict[str, Any]) -> str:
    return json.dumps(results, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.tmp")  # one name for all calls: what a kill leaves, the next call takes over
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


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
