"""What a paper is to the command: its name, its claims by id, and how a plan becomes runs, claims and figures.

A paper is a folder beside this file that ends in one `Paper`; `npmoe.reproduce.papers` lists them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import npmoe
from npmoe.ledger import Claim
from npmoe.sweep import source_hash

__all__ = ["Paper", "Plan", "Results", "core_and", "options_of", "usual_seeds"]

Results = Mapping[Any, Mapping[str, np.ndarray]]


class Plan(Protocol):
    """What to run: the claims asked for, the mode, the seeds."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Claims asked for, in the paper's order."""

    @property
    def full(self) -> bool:
        """Every *train* reading as well."""

    @property
    def quick(self) -> bool:
        """A small model, whose verdicts mean nothing."""

    @property
    def seeds(self) -> int:
        """How many."""

    @property
    def options(self) -> str:
        """The options of a call that asks for this plan, such as " --full"."""

    def configs(self) -> list[Any]:
        """Every run that is needed, each once."""

    def readings(self) -> list[tuple[str, str, list[str], list[str]]]:
        """(id, says, readings that are run, readings that are left out) of each claim, without running any."""


@dataclass(frozen=True)
class Paper:
    """A paper and its reproduction.

    Parameters
    ----------
    word : how a call names it, such as "sc1".
    id, title, cite : as on the page.
    heading : the title of the page.
    ids : its claims, in the paper's order.
    plan : (ids, full=, quick=, seeds=) -> a plan.
    compute : a run's config -> arrays; picklable.
    label : a run's config -> words for the progress bar.
    claims, figures : (results, plan) -> claims; figures as data, by file name.
    notes : (claims, plan) -> sentences above the table.
    sources : files and folders whose code decides a run's numbers.
    """

    word: str
    id: str
    title: str
    cite: str
    heading: str
    ids: tuple[str, ...]
    plan: Callable[..., Any]
    compute: Callable[[Any], dict[str, np.ndarray]]
    label: Callable[[Any], str]
    claims: Callable[[Results, Any], list[Claim]]
    figures: Callable[[Results, Any], dict[str, Any]]
    notes: Callable[[list[Claim], Any], list[str]]
    sources: tuple[Path, ...]

    @property
    def source(self) -> str:
        """Hash of the code that computes a run."""
        return source_hash(*self.sources)

    def named(self, word: str) -> tuple[str, ...]:
        """The claims that one word of a call means: the paper, a claim, or claims told apart by a letter ("MY.1")."""
        if word.lower() == self.word:
            return self.ids
        upper = word.upper()
        return tuple(id for id in self.ids if id.upper() == upper or (id[:-1].upper() == upper and id[-1].isalpha()))

    def in_order(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Ids in the paper's order, each once."""
        wanted = set(ids)
        return tuple(id for id in self.ids if id in wanted)


def core_and(*parts: str) -> tuple[Path, ...]:
    """What decides a run's numbers: all that computes, and the parts of `npmoe/reproduce` that are named."""
    root = Path(npmoe.__file__).parent
    core = ("calculus", "model", "geometry", "probe", "data")
    return (*(root / part for part in core), *(root / "reproduce" / part for part in parts))


def usual_seeds(full: bool, quick: bool) -> int:
    """How many seeds a call has that names no number."""
    return 2 if quick else 8 if full else 5


def options_of(full: bool, quick: bool, seeds: int) -> str:
    """The options of a call in this mode and with so many seeds, such as " --full --seeds 9"."""
    mode = " --quick" if quick else " --full" if full else ""
    return mode + (f" --seeds {seeds}" if seeds != usual_seeds(full, quick) else "")
