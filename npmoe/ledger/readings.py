"""What was measured: readings of a claim with their nulls, the paper's size, exact statements, numbers beside."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from npmoe.calculus.words import one_line

__all__ = ["CORRELATION", "COUNT", "RATIO", "SHARE", "Beside", "Null", "Reading", "Size", "Statement"]

RATIO, SHARE, COUNT, CORRELATION = math.log(1.1), 0.02, 1.0, 0.1  # margins: of log ratios, shares, counts, correlations


@dataclass(frozen=True)
class Null:
    """What chance (or a control) gives for the same statistic, one T0 a seed.

    Parameters
    ----------
    name : what it is.
    kind : "chance" or "control"; both count in the rule, and each is named for what it is.
    values : T0, one for each seed of the reading.
    """

    name: str
    kind: str
    values: tuple[float, ...]

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class Reading:
    """One way to read a claim, with its numbers.

    Parameters
    ----------
    name : short and unique within the claim.
    kind : "measure" (how it is measured) or "train" (how the model is made).
    statistic : T in words; the claim says T > 0.
    margin : m, under which an effect would not matter.
    values : T, one for each seed.
    nulls : each with as many values.
    primary : whether this is the claim's primary reading.

    Raises
    ------
    ValueError : for a kind that is neither, a margin that is not positive, or nulls of another number of seeds.
    """

    name: str
    kind: str
    statistic: str
    margin: float
    values: tuple[float, ...]
    nulls: tuple[Null, ...] = ()
    primary: bool = False

    def __repr__(self) -> str:
        return one_line(self)

    def __post_init__(self) -> None:
        if self.kind not in ("measure", "train"):
            raise ValueError(f"expected reading {self.name!r} of kind measure or train; got {self.kind!r}")
        if not self.margin > 0:
            raise ValueError(f"expected a margin above 0 for reading {self.name!r}; got {self.margin}")
        for null in self.nulls:
            if null.kind not in ("chance", "control"):
                raise ValueError(f"expected null {null.name!r} of kind chance or control; got {null.kind!r}")
            if len(null.values) != len(self.values):
                raise ValueError(
                    f"expected null {null.name!r} of reading {self.name!r} to have {len(self.values)} values, one a "
                    f"seed; got {len(null.values)}"
                )


class Size(NamedTuple):
    """The paper's number, judged apart: what we measured for it, a seed at a time, and the paper's range or bound."""

    values: tuple[float, ...]
    paper: tuple[float, float]
    unit: str

    def __repr__(self) -> str:
        return one_line(self)

    def judgement(self) -> str:
        """Inside our seeds' range (within the paper's bound, where it gives one), within a factor 1.5, or outside."""
        if not self.values or not all(map(math.isfinite, self.values)):
            return "not given"
        low, high = min(self.values), max(self.values)
        a, b = self.paper
        if a <= high and b >= low:
            return "inside our seeds' range" if math.isfinite(a) and math.isfinite(b) else "within the paper's bound"
        # the two numbers that are nearest to one another
        ours, theirs = (high, a) if a > high else (low, b)
        if ours * theirs > 0 and max(ours / theirs, theirs / ours) <= 1.5:
            return "within a factor 1.5"
        return "outside"


class Statement(NamedTuple):
    """An exact statement (an identity, a bound), held against every case there was.

    name : short, unique within the claim.
    says : the statement in words or as a formula.
    checked, violations : over how many cases it was held, and in how many it is false.
    worst : the largest ratio of its left side over its right one, or of an identity's error over what rounding allows.
    example : the counter-example, printed; empty where there is none.
    beside : whether it only stands beside the claim and does not decide it.
    """

    name: str
    says: str
    checked: int
    violations: int
    worst: float
    example: str = ""
    beside: bool = False

    @property
    def verdict(self) -> str:
        """Proved, refuted, or not tested where there was no case."""
        return "not tested" if not self.checked else "refuted" if self.violations else "proved"


class Beside(NamedTuple):
    """A number that the page shows beside a claim, for comparison; it enters no verdict."""

    name: str
    says: str
    values: tuple[float, ...]

    def __repr__(self) -> str:
        return one_line(self)
