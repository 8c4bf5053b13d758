"""`python -m bench`: every row side by side, and how cost grows; a table, JSON and a figure."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import npmoe
from bench import figure, floor, layers, scaling, table
from bench.rows import DTYPES, EXTRA, ROWS, WORK, missing
from npmoe.calculus.memory import keep_heap

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run what was asked for, print it, and write it down."""
    every = {**ROWS, **EXTRA}
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time npmoe beside PyTorch, JAX and SciPy; each pair is first checked for equal numbers.",
        epilog=f"rows: {', '.join(every)}",
    )
    parser.add_argument("--only", metavar="ROW", help="one row, or one of: growth, floor, layers")
    parser.add_argument("--dtype", choices=["float64", "float32"], help="one of the two; both unless given")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the numbers go; bench/results/latest.json if all rows run"
    )
    args = parser.parse_args()
    if args.only and args.only not in [*every, "growth", "floor", "layers"]:
        parser.error(f"expected --only to name a row ({', '.join(every)}), growth, floor or layers; got {args.only!r}")
    if args.only in every and args.dtype not in (None, *DTYPES.get(args.only, ("float64", "float32"))):
        parser.error(f"expected --dtype among {DTYPES[args.only]} for the row {args.only!r}; got {args.dtype!r}")
    keep_heap()  # as `fit` does; for every way alike, for there is one allocator a process
    for peer in missing() if args.only not in ("growth", "floor", "layers") else ():
        print(f"{peer} is not installed: its ways are left out (pip install -e '.[bench]')", file=sys.stderr)

    results: dict[str, Any] = {"machine": machine(), "date": datetime.date.today().isoformat(), "versions": versions()}
    print(f"{results['machine']}; single times of a shared machine vary, ratios of one run count")
    results["rows"] = _rows([args.only] if args.only in every else [] if args.only else list(every), args.dtype)
    results["growth"] = _growth() if args.only in (None, "growth") else []
    results["floor"] = _floor() if args.only in (None, "floor") else {}
    results["layers"] = _layers() if args.only == "layers" else []

    # a row, or one dtype of all, is for the screen
    whole = {None: "latest.json", "layers": "layers.json"}.get(args.only) if args.dtype is None else None
    path = args.json or (RESULTS / whole if whole else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"numbers: {path}")
    if whole and path is not None:
        path.with_suffix(".md").write_text(table.markdown(results))
    if args.only is None and whole and path is not None:
        figure.draw(results, path.with_suffix(".svg"))
        print(f"figure: {path.with_suffix('.svg')}")
    return 0


def _rows(names: list[str], dtype: str | None) -> list[dict[str, Any]]:
    if names:
        print(f"\n{'row':27}{'dtype':9}{'size':30}{'npmoe ms':>10}{'MB':>8}", end="")
        print(f"{'ratio':>8}{'10 to 90 %':>18}{'best ms':>12}{'MB':>8}")
    found = []
    for name in names:
        for one in DTYPES.get(name, ("float64", "float32")):
            if dtype in (None, one) or not one:
                row = {**ROWS, **EXTRA}[name](one)
                print(row.shown(), flush=True)
                found.append(row._asdict())
    return found


def _growth() -> list[dict[str, Any]]:
    print(f"\n{'how cost grows':24}{'axis':6}{'sizes':28}{'slope':>8}{'arithmetic':>12}   milliseconds")
    found = []
    for name in WORK:
        for one in scaling.growths(name):
            times = ", ".join(f"{ms:.3g}" for ms in one.ms)
            sizes = ", ".join(map(str, one.sizes))
            print(f"{one.name:24}{one.axis:6}{sizes:28}{one.slope:8.2f}{one.allowed:12}   {times}", flush=True)
            found.append(one._asdict())
    return found


def _floor() -> dict[str, float]:
    found = floor.floors()
    print("\nfloor: what parts of the rows take on their own, milliseconds")
    print("\n".join(f"{what:90}{ms:12.4f}" for what, ms in found.items()), flush=True)
    return found


def _layers() -> list[dict[str, Any]]:
    found = []
    for name in layers.SHAPES:
        layer = layers.survey(name)
        print("\n" + "\n".join(f"{key:56}{value}" for key, value in layer.items()), flush=True)
        found.append(layer)
    return found


def machine() -> str:
    """The processor's name where the system tells it, and how many cores there are."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Of npmoe and of everything that is compared."""
    found = {"npmoe": npmoe.__version__}
    for package in ("numpy", "scipy", "torch", "jax"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
