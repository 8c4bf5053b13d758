"""A page and a terminal that fill in while runs arrive: claims from their first seed on, verdicts from the fifth."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from npmoe.ledger import FEWEST_SEEDS
from npmoe.reproduce import run
from npmoe.reproduce.experiment import Across, Results, Trial
from npmoe.reproduce.paper import Paper

__all__ = ["Live"]

SOON, LATE = 3.0, 60.0  # seconds between two writes while a seed is at work, at first and later


class Live:
    """Tells of a paper's runs as they arrive; `run.make` calls it with those that are there.

    After every seed the paper's ledger, figures and page are written anew, unless the folder holds a page that is worth
    more. `say` gets one line at a time: each claim's sentence when its first seed is there, each verdict when it is
    known or changes.
    """

    def __init__(self, paper: Paper, plan: Trial, folder: Path, say: Callable[[str], None]) -> None:
        self.paper, self.plan, self.folder, self.say = paper, plan, folder, say
        self.start = time.monotonic()
        self.written, self.seeds = -LATE, -1
        self.words: dict[str, str] = {}  # each claim's word as it was last said
        self.known: set[Any] | None = None  # runs of which there is no news any more
        across = plan.experiment.roles
        roles = dict.fromkeys(role for spec in plan.specs() for role in spec.reads(plan.full))
        self.roles = [role for role in roles if not isinstance(across[role], Across)]

    def __call__(self, results: Results) -> None:
        """Write and say what is new."""
        self._news(results)
        seeds = self.plan.complete(results, self.roles)
        now = time.monotonic() - self.start
        if seeds > self.seeds or now - self.written > (SOON if seeds == 0 else LATE):
            self._tell(results, seeds, now)
            self.seeds, self.written = seeds, time.monotonic() - self.start

    def _news(self, results: Results) -> None:
        """What a run that has just been computed has to say; of those that were there at first nothing."""
        for config in set(results) - self.known if self.known is not None else ():
            text = self.paper.news(config, results[config])
            if text:
                self.say(f"  {text}")
        self.known = set(results)

    def _tell(self, results: Results, seeds: int, now: float) -> None:
        drawn = self.paper.figures(results, replace(self.plan, shown=seeds)) if seeds else {}
        found = run.results_of(self.paper, self.plan.claims(results), self.plan, drawn, progress=seeds)
        if run.lesser(self.folder, found) is None:
            run.write(self.folder, found, drawn, alone=True)
        for claim in found["claims"]:
            self._say(claim, now)
        if seeds > max(self.seeds, 0):
            self.say(f"{self.paper.id}: {seeds} of {self.plan.seeds} seeds after {now:.0f} s")

    def _say(self, claim: dict[str, Any], now: float) -> None:
        """A claim's sentence when it is first known, its word when it is another than before."""
        if not claim["readings"] and not claim["statements"]:
            return
        if claim["id"] not in self.words and not self.plan.quick:
            self.say(f"  {claim['id']}  {claim['sentence']}")
        word, seeds = claim["word"], len(_values(claim)) or claim.get("seeds") or 0
        if (seeds >= FEWEST_SEEDS or word == "refuted") and self.words.get(claim["id"]) != word:
            self.say(f"  {claim['id']}  {word}, by {seeds} seeds")
        self.words[claim["id"]] = word


def _values(claim: dict[str, Any]) -> list[Any]:
    return next((reading["values"] for reading in claim["readings"] if reading["primary"]), [])
