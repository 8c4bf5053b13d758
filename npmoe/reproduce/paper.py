"""What a paper is to the command: its name, its experiment, how its runs are computed, and its figures.

A paper is a folder beside this file that ends in one `Paper`; `npmoe.reproduce.papers` lists them.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.ledger import Claim, reading_of, rule
from npmoe.ledger.plain import because, word, word_of
from npmoe.ledger.results import firmness_json
from npmoe.ledger.told import Telling, effect_of, sentence_of
from npmoe.ledger.words import measured
from npmoe.reproduce.experiment import Experiment, Results, Trial
from npmoe.sweep import reached, source_hash

__all__ = ["Paper"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Paper:
    """A paper and its reproduction.

    Parameters
    ----------
    word : how a call names it, such as "sc1".
    id, title, cite : as on the page.
    heading : the title of the page.
    experiment : its claims, and the runs that they read.
    computes : for each class of config the function that computes such a run, at the top of a module. A config with a
        method ``reads`` names the runs that this one reads; ``config.label`` is what progress and errors call it.
    figures : (results, plan) -> figures as data, by file name.
    tellings : how each claim is told in its own unit, by its id.
    notes : (claims, plan) -> sentences above the table.
    text : of a paper whose models read text: the path that a call names, or None -> the field ``text`` of its configs.
    fit : plan -> the plan, without the claims that cannot be tested here; raises ValueError where nothing can.
    alone : it runs by its name, or with "all", and not where a call names nothing.
    news : (config, arrays) -> what the terminal says when this run is there, "" for nothing; for long runs.
    """

    word: str
    id: str
    title: str
    cite: str
    heading: str
    experiment: Experiment
    computes: Mapping[type, Callable[..., Arrays]]
    figures: Callable[[Results, Trial], dict[str, Any]]
    tellings: Mapping[str, Telling]
    notes: Callable[[list[Claim], Trial], list[str]]
    text: Callable[[Path | None], Any] | None = None
    fit: Callable[[Trial], Trial] = lambda plan: plan
    alone: bool = False
    news: Callable[[Any, Mapping[str, np.ndarray]], str] = lambda config, arrays: ""

    def plan(
        self, ids: Iterable[str], *, full: bool, quick: bool, seeds: int | None, corpus: Path | None = None
    ) -> Trial:
        """The plan of a call; of a paper that reads text, of this text.

        Raises
        ------
        ValueError : for a corpus where no text is read, or one that cannot be read.
        """
        plan = self.experiment.plan(tuple(ids), full=full, quick=quick, seeds=seeds)
        return self.fit(plan if self.text is None else replace(plan, changes=(("text", self.text(corpus)),)))

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def ids(self) -> tuple[str, ...]:
        """Its claims, in the paper's order."""
        return self.experiment.ids

    @property
    def compute(self) -> Callable[..., Arrays]:
        """Compute any run of it, given the runs that it reads; picklable."""
        return partial(_compute, dict(self.computes))

    def source_of(self, config: Any) -> str:
        """Hash of the code that a run is computed by: the module of its function, and all that this imports."""
        return _source((_file(self.computes[type(config)]),))

    @property
    def source(self) -> str:
        """Hash of the code that computes all of its runs."""
        return _source(tuple(_file(compute) for compute in self.computes.values()))

    def named(self, word: str) -> tuple[str, ...]:
        """The claims that one word of a call means: the paper, a claim, or claims told apart by a letter ("MY.1").

        Of a paper that runs `alone`, a letter is not enough: its claims have a name of their own, or the paper's.
        """
        if word.lower() == self.word:
            return self.ids
        upper = word.upper()
        own = tuple(id for id in self.ids if id.upper() == upper)
        if own or (self.alone and not any(id.upper() == upper + "A" for id in self.ids)):
            return own
        return tuple(id for id in self.ids if id[:-1].upper() == upper and id[-1].isalpha())

    def told(self, claim: dict[str, Any]) -> dict[str, Any]:
        """A claim of ``results.json`` with its sentence, its effect in its own unit and its verdict in plain words."""
        telling = self.tellings.get(claim["id"])
        readings = [{**reading, "word": word_of(reading)} for reading in claim["readings"]]
        primary = next((reading for reading in readings if reading["primary"]), None)
        return {
            **claim,
            "word": primary["word"] if primary else word(claim["verdict"]),
            "because": because(claim),
            "rule": rule(reading_of(primary), claim.get("mute", False)) if primary else claim["rule"],
            "measured": measured(reading_of(primary)) if primary else claim["measured"],
            "firmness": firmness_json(reading_of(primary)) if primary and not claim.get("mute") else None,
            "sentence": sentence_of(claim, telling),
            "effect": effect_of(claim, telling),
            "readings": readings,
        }

    def in_order(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Ids in the paper's order, each once."""
        wanted = set(ids)
        return tuple(id for id in self.ids if id in wanted)


def _compute(computes: Mapping[type, Callable[..., Arrays]], config: Any, *read: Mapping[Any, Arrays]) -> Arrays:
    return computes[type(config)](config, *read)


def reads(config: Any) -> tuple[Any, ...]:
    """The runs that a run reads; none for a config that names none."""
    return tuple(config.reads()) if hasattr(config, "reads") else ()


def _file(function: Callable[..., Any]) -> Path:
    return Path(inspect.getfile(function))


@cache
def _source(files: tuple[Path, ...]) -> str:
    return source_hash(*reached(*files))
