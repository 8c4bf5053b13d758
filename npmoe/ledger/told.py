"""Claims told as sentences in their own units: what a paper's `sentences` are written with.

A `Telling` says how T becomes a number that people use, what that number is of, and the sentence around it. All of it
works on a claim of ``results.json``, so that a recorded ledger can be told again in better words.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from npmoe.ledger.plain import word
from npmoe.ledger.verdicts import FEWEST_SEEDS

__all__ = ["Amount", "Telling", "Told", "effect_of", "percent", "sentence_of", "signed"]


class Amount(NamedTuple):
    """A mean over seeds with its 95 % interval, None where there is none.

    `decimals` are those of what it stands beside; left out, as many as the interval's width warrants.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    decimals: int | None = None

    def map(self, of: Callable[[float], float]) -> "Amount":
        """The amount in another unit; `of` rises or falls throughout."""
        if self.low is None or self.high is None:
            return Amount(of(self.mean), decimals=self.decimals)
        low, high = sorted((of(self.low), of(self.high)))
        return Amount(of(self.mean), low, high, self.decimals)

    def text(self, unit: str = "", ci: bool = True) -> str:
        """The number, its unit and its interval: "1.47 times (95 % CI 1.40 to 1.53)".

        Examples
        --------
        >>> Amount(1.4683, 1.402, 1.531).text("times"), Amount(6.08, 5.91, 6.25).text(ci=False)
        ('1.47 times (95 % CI 1.40 to 1.53)', '6.1')
        """
        if not math.isfinite(self.mean):
            return "an undefined number"
        digits = self._decimals() if self.decimals is None else self.decimals
        shown = f"{_fixed(self.mean, digits)}{' ' + unit if unit else ''}"
        if not ci or self.low is None or self.high is None:
            return shown
        return f"{shown} (95 % CI {_fixed(self.low, digits)} to {_fixed(self.high, digits)})"

    def size(self, unit: str = "") -> str:
        """The amount without its sign, for sentences that say "more" or "less" in a word."""
        return (self if self.mean >= 0 else self.map(lambda value: -value)).text(unit)

    def _decimals(self) -> int:
        """As many decimals as the interval's width warrants; without one, three significant digits."""
        if self.low is None or self.high is None or not self.high > self.low:
            size = abs(self.mean)
            return 2 if size == 0 else max(0, 2 - math.floor(math.log10(size)))
        return max(0, -math.floor(math.log10((self.high - self.low) / 3)))


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


@dataclass(frozen=True)
class Told:
    """A claim of ``results.json`` as sentences read it: amounts in the claim's own unit."""

    claim: Mapping[str, Any]
    of: Callable[[float], float]

    @property
    def primary(self) -> Mapping[str, Any]:
        """The primary reading."""
        return next(r for r in self.claim["readings"] if r["primary"])

    @property
    def amount(self) -> Amount:
        """What was measured; of few seeds without an interval, which would be wide and mean little."""
        found = _amount(self.primary).map(self.of)
        return found if len(self.primary["values"]) >= FEWEST_SEEDS else Amount(found.mean)

    @property
    def refuted(self) -> bool:
        """A counter-example to an exact claim is there."""
        return bool(self.claim["verdict"] == "refuted")

    @property
    def counted(self) -> tuple[int, int]:
        """Cases and violations of the statements that decide an exact claim."""
        decide = [s for s in self.claim["statements"] if not s["beside"]]
        return sum(s["checked"] for s in decide), sum(s["violations"] for s in decide)

    @property
    def violations(self) -> str:
        """The same in words: "0 violations in 1,200 cases"."""
        checked, violations = self.counted
        return f"{violations:,} violation{'s' * (violations != 1)} in {checked:,} cases"

    def null(self, name: str) -> Amount:
        """What a null model gives, without an interval, to the decimals of what it stands beside."""
        found = next(null for null in self.primary["nulls"] if null["name"] == name)
        mean = math.nan if found["mean"] is None else self.of(found["mean"])
        return Amount(mean, decimals=self.amount._decimals())

    @property
    def size(self) -> str:
        """The number that stands for the paper's, over the seeds: "40.1 to 41.2 components"."""
        low, to, rest = str(self.claim["size"]["measured"]).partition(" to ")
        high, _, unit = rest.partition(" ")
        return f"{low} {unit}".strip() if low == high else f"{low}{to}{rest}"

    def beside(self, name: str) -> Amount:
        """A number beside the claim."""
        return _amount(next(b for b in self.claim["beside"] if b["name"] == name))


def _amount(found: Mapping[str, Any]) -> Amount:
    mean = math.nan if found["mean"] is None else found["mean"]
    return Amount(mean, found["low"], found["high"])


class Telling(NamedTuple):
    """How a claim is told.

    say : the sentence, from a `Told`.
    of : from T to the claim's own unit; rises or falls throughout.
    what : what that number is, with its unit: the label of an axis.
    """

    say: Callable[[Told], str]
    of: Callable[[float], float] = lambda T: T
    what: str = ""


def percent(T: float) -> float:
    """A log ratio as a change in per cent."""
    return 100 * (math.exp(T) - 1)


def signed(value: float, more: str, less: str) -> str:
    """One of two words by a number's sign."""
    return more if value >= 0 else less


def sentence_of(claim: Mapping[str, Any], telling: Telling | None) -> str:
    """A claim's sentence; of one without numbers, why."""
    if not claim["readings"] and not claim["statements"]:
        return str(claim["note"]).split(". ")[0].rstrip(".") + "." if claim["note"] else "Not tested."
    if claim.get("mute"):
        return "A quick run on a small model: its numbers only show that the path works."
    primary = next((r for r in claim["readings"] if r["primary"]), None)
    if telling is None or (primary is not None and primary["mean"] is None):
        return "The effect is undefined in some seeds." if primary is not None else str(claim["measured"])
    text = telling.say(Told(claim, telling.of))
    seeds = len(primary["values"]) if primary else claim.get("seeds", FEWEST_SEEDS)
    if seeds < FEWEST_SEEDS and claim["verdict"] != "refuted":  # one counter-example is enough
        text += f" ({seeds} seed{'s' if seeds > 1 else ''} so far; a verdict needs {FEWEST_SEEDS}.)"
    return text[:1].upper() + text[1:]


def effect_of(claim: Mapping[str, Any], telling: Telling | None) -> dict[str, Any] | None:
    """A claim's effect in its own unit, with each seed, each null, and where the claim would put it; None without T."""
    primary = next((r for r in claim["readings"] if r["primary"]), None)
    if claim.get("mute") or telling is None or not telling.what or primary is None or primary["mean"] is None:
        return None
    of, margin = telling.of, primary["margin"]

    def each(values: Sequence[float | None]) -> list[float]:
        return [of(value) for value in values if value is not None]

    amount = _amount(primary).map(of)
    return {
        "what": telling.what,
        "mean": amount.mean,
        "low": amount.low,
        "high": amount.high,
        "values": each(primary["values"]),
        "none": of(0.0),  # T = 0: between the claim and its opposite
        "claimed": of(margin),  # where the claim begins to hold; beyond it, on the side away from `none`
        "opposite": of(-margin),
        "word": word(primary["verdict"]),
        "nulls": [
            {"name": n["name"], "kind": n["kind"], "values": each(n["values"])}
            for n in primary["nulls"]
            if n["mean"] is not None
        ],
    }
