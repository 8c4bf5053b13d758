"""Claims: each with its readings, one of them primary, or its exact statements; its verdict, and how it is written."""

from dataclasses import dataclass
from typing import Any

from npmoe.calculus.words import one_line
from npmoe.ledger.readings import Beside, Reading, Size, Statement
from npmoe.ledger.results import beside_json, firmness_json, reading_json, size_json, statement_json
from npmoe.ledger.verdicts import FEWEST_SEEDS, catching, holds, judge, opposite
from npmoe.ledger.words import exact_measured, exact_rule, measured, rule

__all__ = ["Claim"]


@dataclass(frozen=True)
class Claim:
    """A claim with its readings, one of them primary.

    Parameters
    ----------
    id, says, paper_value : as on the page.
    readings : all that were run. Empty, and no statements: not tested.
    size : the paper's number against ours, or None where it gives none.
    left_out : names of readings that this run left out.
    beside : numbers shown for comparison, which enter no verdict.
    note : what a reader has to know to read the verdict.
    mute : a quick run, whose numbers mean nothing: there is no verdict.
    options : what to add to the command to have these numbers again, such as " --full".
    statements : of an exact claim, which has no readings: it is proved where none that decides is ever violated on the
        models of five seeds or more, and refuted by one violation.
    seeds : how many seeds readings and statements are of.
    pending : the claim is tested, and its first seed is still to come.

    Raises
    ------
    ValueError : if there are readings but not exactly one primary, two of one name, or readings beside statements.
    """

    id: str
    says: str
    paper_value: str
    readings: tuple[Reading, ...]
    size: Size | None = None
    left_out: tuple[str, ...] = ()
    beside: tuple[Beside, ...] = ()
    note: str = ""
    mute: bool = False
    options: str = ""
    statements: tuple[Statement, ...] = ()
    seeds: int = FEWEST_SEEDS
    pending: bool = False

    def __repr__(self) -> str:
        return one_line(self)

    def __post_init__(self) -> None:
        if self.readings and self.statements:
            raise ValueError(f"expected readings or exact statements of {self.id}; got both")
        names = [reading.name for reading in self.readings]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"expected readings of {self.id} with different names; got {', '.join(twice)} twice")
        if self.readings and sum(reading.primary for reading in self.readings) != 1:
            raise ValueError(f"expected exactly one primary reading of {self.id}")

    @property
    def primary(self) -> Reading | None:
        """The primary reading, or None where the claim was not tested."""
        return next((reading for reading in self.readings if reading.primary), None)

    @property
    def verdict(self) -> str:
        """That of the primary reading, never the best; of exact statements, the worst of those that decide."""
        if self.statements:
            if self.mute:
                return "no verdict"
            found = {s.verdict for s in self.statements if not s.beside}
            worst = next((word for word in ("refuted", "not tested") if word in found), "proved")
            return "no verdict" if worst == "proved" and self.seeds < FEWEST_SEEDS else worst
        if self.primary is None:
            return "no verdict" if self.pending else "not tested"
        return "no verdict" if self.mute else judge(self.primary)

    @property
    def agreement(self) -> dict[str, int]:
        """In how many readings T holds, and in how many it is opposite."""
        if self.mute:
            return {"holds": 0, "reversed": 0, "of": len(self.readings)}
        return {
            "holds": sum(holds(r.values, r.margin) for r in self.readings),
            "reversed": sum(opposite(r.values, r.margin) for r in self.readings),
            "of": len(self.readings),
        }

    @property
    def headline(self) -> str:
        """The verdict, what kind of null caught it, and whether it depends on the reading."""
        text, primary = self.verdict, self.primary
        if self.statements:
            decide = [s for s in self.statements if not s.beside]
            return (
                f"{text}: {sum(s.violations for s in decide):,} violations in {sum(s.checked for s in decide):,} cases"
            )
        if text == "so does the null" and primary is not None:
            text += f" ({', '.join(f'{n.kind}: {n.name}' for n in catching(primary))})"
        if self.agreement["holds"] and self.agreement["reversed"]:
            text += "; depends on the reading"
        return text

    def as_json(self) -> dict[str, Any]:
        """The claim as it stands in ``results.json``."""
        primary = self.primary
        return {
            "id": self.id,
            "says": self.says,
            "paper_value": self.paper_value,
            "statistic": primary.statistic if primary else "",
            "unit": self.size.unit if self.size else "",
            "margin": primary.margin if primary else None,
            "verdict": self.verdict,
            "size": size_json(None if self.mute else self.size, self.paper_value),
            "agreement": self.agreement,
            "headline": self.headline,
            "rule": rule(primary, self.mute) if primary else exact_rule(self.statements),
            "measured": measured(primary) if primary else exact_measured(self.statements),
            "note": self.note,
            "beside": [beside_json(b) for b in self.beside],
            "left_out": list(self.left_out),
            "mute": self.mute,
            "seeds": self.seeds,
            "repeat": f"python -m npmoe.reproduce {self.id}{self.options}",
            "firmness": None if self.mute or primary is None else firmness_json(primary),
            "readings": [reading_json(reading, self.mute) for reading in self.readings],
            "statements": [statement_json(s) for s in self.statements],
        }
