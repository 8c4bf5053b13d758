"""Where the time of `make reproduce` goes: CPU seconds of one seed by part, each run on its own, on one core.

    python -m bench.budget [PAPER ...]

The numbers are in the budget of ``docs/speed.md``. Nothing else may run meanwhile.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from threadpoolctl import threadpool_limits

from npmoe.reproduce.paper import Paper, reads
from npmoe.reproduce.papers import PAPERS
from npmoe.sweep import in_order

Arrays = dict[str, Any]


def seed_of(config: Any) -> int | None:
    """The seed of a run; None where it is made of several."""
    seed = getattr(config, "seed", None)
    return seed if seed is not None else getattr(getattr(config, "model", None), "seed", None)


def part_of(config: Any) -> str:
    """What a run is called in the budget: its label without the seed, and whether it measures little."""
    label = str(config.label).replace(f", seed {seed_of(config)}", "")
    model = getattr(config, "model", config)
    if getattr(model, "E", 0) == 1:
        label = label.replace("dense", f"dense (h = {model.h})", 1)
    return f"{label}, lean" if getattr(config, "lean", False) else label


def budget(paper: Paper, done: dict[Any, Arrays], seeds: int = 5) -> dict[str, list[float]]:
    """CPU seconds of each run of the first seed, by part; `done` holds runs that other papers had computed."""
    plan = paper.experiment.plan(paper.ids, full=False, quick=False, seeds=seeds)
    found: dict[str, list[float]] = {}
    for config in in_order(plan.configs(), reads):
        if seed_of(config) != 0 or config in done:
            continue
        others = {other: done[other] for other in reads(config)}
        start = time.process_time()
        done[config] = paper.compute(config, *([others] if others else []))
        found.setdefault(part_of(config), []).append(time.process_time() - start)
    return found


def main(words: Sequence[str]) -> None:
    """Print a table a paper."""
    done: dict[Any, Arrays] = {}
    with threadpool_limits(1):
        for paper in PAPERS:
            if words and paper.word not in words:
                continue
            found = budget(paper, done)
            print(f"{paper.id}: {sum(map(sum, found.values())):.1f} s a seed")
            for part, seconds in found.items():
                print(f"  {sum(seconds):6.2f} s  {len(seconds):2d} x {part}")


if __name__ == "__main__":
    main(sys.argv[1:])
