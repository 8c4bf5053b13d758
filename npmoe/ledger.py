"""Claims, readings, nulls and the one rule that turns numbers into verdicts; results in and out.

The rule stands in ``docs/verdicts.md`` and was committed before the first recorded run. It knows no paper.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

__all__ = ["FEWEST_SEEDS", "VERDICTS", "Claim", "Interval", "Null", "Reading", "Size", "Statement", "interval", "judge"]
__all__ += ["why"]

SCHEMA = 1
RATIO, SHARE, COUNT, CORRELATION = math.log(1.1), 0.02, 1.0, 0.1  # margins: of log ratios, shares, counts, correlations
FEWEST_SEEDS = 5
VERDICTS = (
    "reproduced", "so does the null", "reversed", "not reproduced", "undecided", "proved", "refuted", "not tested",
    "no verdict",
)  # fmt: skip


class Interval(NamedTuple):
    """Mean over seeds and its two-sided 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """mean +- t(0.975, S-1) sd / sqrt(S) over S seeds; NaN where a seed is undefined or there are under two.

    Examples
    --------
    >>> interval([1.0, 2.0, 3.0]).low.__round__(3)
    -0.484
    """
    v = np.asarray(values, dtype=float)
    if v.size < 2 or not np.isfinite(v).all():
        mean = float(v.mean()) if v.size and np.isfinite(v).all() else math.nan
        return Interval(mean, math.nan, math.nan)
    mean = float(v.mean())
    half = float(student.ppf(0.975, v.size - 1) * v.std(ddof=1) / math.sqrt(v.size))
    return Interval(mean, mean - half, mean + half)


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


def holds(values: Sequence[float], margin: float) -> bool:
    """T holds: the interval, over at least five seeds, lies above the margin."""
    return len(values) >= FEWEST_SEEDS and interval(values).low > margin


def opposite(values: Sequence[float], margin: float) -> bool:
    """T is opposite: the interval, over at least five seeds, lies below minus the margin."""
    return len(values) >= FEWEST_SEEDS and interval(values).high < -margin


def excess(reading: Reading, null: Null) -> Interval:
    """Interval of T - T0, paired by seed; NaN where a seed's difference is not finite."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is "undefined", not an error
        return interval(np.subtract(reading.values, null.values))


def judge(reading: Reading) -> str:
    """The verdict on one reading (rules 4 to 6).

    reproduced: T holds and is beyond every null (the interval of T - T0 lies above m). so does the null: T holds, and
    some null's T0 holds too without T being beyond it. reversed: T is opposite. not reproduced: T is absent, its
    interval within [-m, m]. undecided: all else. Under five seeds: no verdict.

    Examples
    --------
    >>> judge(Reading("r", "measure", "T", 0.1, (1.0, 1.1, 0.9, 1.0, 1.0), (Null("n", "chance", (0.0,) * 5),)))
    'reproduced'
    """
    m = reading.margin
    if len(reading.values) < FEWEST_SEEDS:
        return "no verdict"
    _, low, high = interval(reading.values)
    if low > m:
        caught = [null for null in reading.nulls if not excess(reading, null).low > m]
        if not caught:
            return "reproduced"
        return "so does the null" if any(holds(null.values, m) for null in caught) else "undecided"
    if high < -m:
        return "reversed"
    return "not reproduced" if low >= -m and high <= m else "undecided"


class Size(NamedTuple):
    """The paper's number, judged apart: what we measured for it, a seed at a time, and the paper's range or bound."""

    values: tuple[float, ...]
    paper: tuple[float, float]
    unit: str

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
    statements : of an exact claim, which has no readings: it is proved where none that decides is ever violated.

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
            return next((word for word in ("refuted", "not tested") if word in found), "proved")
        if self.primary is None:
            return "not tested"
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
            text += f" ({', '.join(f'{n.kind}: {n.name}' for n in _catching(primary))})"
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
            "size": _size_json(self),
            "agreement": self.agreement,
            "headline": self.headline,
            "rule": rule(primary, self.mute) if primary else _exact_rule(self.statements),
            "measured": _measured(primary) if primary else _exact_measured(self.statements),
            "note": self.note,
            "beside": [
                {"name": b.name, "says": b.says, "values": _floats(b.values), **_interval_json(interval(b.values))}
                for b in self.beside
            ],
            "left_out": list(self.left_out),
            "repeat": f"python -m npmoe.reproduce {self.id}{self.options}",
            "readings": [_reading_json(reading, self.mute) for reading in self.readings],
            "statements": [_statement_json(s) for s in self.statements],
        }


def _catching(reading: Reading) -> list[Null]:
    m = reading.margin
    return [n for n in reading.nulls if holds(n.values, m) and not excess(reading, n).low > m]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


def _floats(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _interval_json(found: Interval) -> dict[str, float | None]:
    return {"mean": _number(found.mean), "low": _number(found.low), "high": _number(found.high)}


def _size_json(claim: Claim) -> dict[str, str]:
    if claim.size is None or claim.mute or not all(map(math.isfinite, claim.size.values)):
        return {"measured": "", "paper": claim.paper_value, "judgement": "not given"}
    low, high = min(claim.size.values), max(claim.size.values)
    measured = f"{low:.3g} to {high:.3g} {claim.size.unit}".strip()
    return {"measured": measured, "paper": claim.paper_value, "judgement": claim.size.judgement()}


def _reading_json(reading: Reading, mute: bool) -> dict[str, Any]:
    nulls = []
    for null in reading.nulls:
        beyond = excess(reading, null)
        nulls.append(
            {
                "name": null.name,
                "kind": null.kind,
                "values": _floats(null.values),
                **_interval_json(interval(null.values)),
                "excess_low": _number(beyond.low),
                "excess_high": _number(beyond.high),
            }
        )
    return {
        "name": reading.name,
        "primary": reading.primary,
        "kind": reading.kind,
        "statistic": reading.statistic,
        "margin": reading.margin,
        "values": _floats(reading.values),
        **_interval_json(interval(reading.values)),
        "nulls": nulls,
        "verdict": "no verdict" if mute else judge(reading),
    }


def _measured(reading: Reading) -> str:
    mean, low, high = map(_text, interval(reading.values))
    return f"T = {mean} [{low}, {high}], margin {reading.margin:.3g}"


def _statement_json(s: Statement) -> dict[str, Any]:
    return {
        **s._asdict(),
        "checked": int(s.checked),
        "violations": int(s.violations),
        "worst": _number(s.worst),
        "verdict": s.verdict,
    }


def _exact_measured(statements: Sequence[Statement]) -> str:
    decide = [s for s in statements if not s.beside]
    if not decide:
        return "not tested"
    worst = max(decide, key=lambda s: s.worst)
    return f"{sum(s.violations for s in decide):,} violations in {sum(s.checked for s in decide):,} cases; " + (
        f"left over right at most {worst.worst:.3g} ({worst.name})" if math.isfinite(worst.worst) else "see below"
    )


def _exact_rule(statements: Sequence[Statement]) -> str:
    if not statements:
        return "No reading was run."
    text = "An exact statement: proved where no case on any Site violates it, refuted by one counter-example. "
    return text + " ".join(
        f"{s.name}{' (beside)' if s.beside else ''}: {s.violations:,} violations in {s.checked:,} cases."
        + (f" Counter-example: {s.example}." if s.example else "")
        for s in statements
    )


def rule(reading: Reading, mute: bool = False) -> str:
    """The rule as it was applied to a reading, in words."""
    m = reading.margin
    seeds = len(reading.values)
    if mute or seeds < FEWEST_SEEDS:
        return f"A quick run of {seeds} seeds on a small model: its numbers show that the path works, and mean nothing."
    _, low, high = interval(reading.values)
    if math.isnan(low):
        return f"In some of {seeds} seeds T is not defined, so the claim is undecided."
    text = f"T over {seeds} seeds lies in [{low:.3g}, {high:.3g}], the margin is {m:.3g}: "
    if high < -m:
        return text + "the interval is below minus the margin, so the claim is reversed."
    if not low > m:
        if low >= -m and high <= m:
            return text + "the interval lies within the margins, so the effect is absent: not reproduced."
        return text + "the interval crosses a margin, so the claim is undecided."
    text += "T holds."
    for null in reading.nulls:
        beyond, own = excess(reading, null), interval(null.values)
        over = "beyond it" if beyond.low > m else "not beyond it"
        if beyond.high < 0:
            over += ", and that null has more of it"
        also = "; that null holds too" if own.low > m else ""
        text += (
            f" Against the {null.kind} null '{null.name}' (T0 in [{_text(own.low)}, {_text(own.high)}]{also}) the "
            f"excess lies in [{_text(beyond.low)}, {_text(beyond.high)}]: {over}."
        )
    return text + f" Verdict: {judge(reading)}."


def why(claim: dict[str, Any]) -> str:
    """A claim of ``results.json`` told in full, as ``--why`` prints it."""
    lines = [
        f"{claim['id']}: {claim['says']}",
        f"  paper: {claim['paper_value']}",
        f"  verdict: {claim['headline']}",
        f"  size: {claim['size']['measured'] or 'none measured'} ({claim['size']['judgement']})",
        *([f"  T: {claim['statistic']}, margin {_text(claim['margin'])}"] if claim["readings"] else []),
        f"  rule: {claim['rule']}",
    ]
    if claim.get("note"):
        lines.append(f"  note: {claim['note']}")
    counts = claim["agreement"]
    lines.append(f"  readings: holds in {counts['holds']} of {counts['of']}, reversed in {counts['reversed']}")
    for r in sorted(claim["readings"], key=lambda r: (not r["primary"], r["kind"], r["name"])):
        mark = "*" if r["primary"] else " "
        lines.append(
            f"  {mark} {r['name']} ({r['kind']}): T = {_text(r['mean'])} [{_text(r['low'])}, {_text(r['high'])}], "
            f"{r['verdict']}"
        )
        for n in r["nulls"]:
            lines.append(
                f"      {n['kind']} null {n['name']}: T0 = {_text(n['mean'])} [{_text(n['low'])}, {_text(n['high'])}], "
                f"excess [{_text(n['excess_low'])}, {_text(n['excess_high'])}]"
            )
    for s in claim.get("statements", ()):
        lines.append(
            f"    {s['name']}: {s['says']}: {s['verdict']}, {s['violations']:,} violations in {s['checked']:,}"
        )
    if claim["left_out"]:
        lines.append(f"  left out by this run: {', '.join(claim['left_out'])}")
    for b in claim["beside"]:
        lines.append(f"  beside: {b['name']} = {_text(b['mean'])} [{_text(b['low'])}, {_text(b['high'])}]; {b['says']}")
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3g}"


def read_results(path: Path) -> dict[str, Any]:
    """A ledger of results from a JSON file.

    Raises
    ------
    ValueError : if the file is not JSON or of another schema; the message names the file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected results as JSON in {path}; got a file that does not parse ({error})") from None
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        got = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise ValueError(f"expected results of schema {SCHEMA} in {path}; got {got!r}")
    claims = results.get("claims")
    if not isinstance(claims, list) or not all(isinstance(c, dict) and {"id", "verdict"} <= set(c) for c in claims):
        raise ValueError(f"expected claims with id and verdict in {path}; it has none or others")
    return results


def join(parts: Sequence[dict[str, Any]], ties: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The ledgers of several papers as one: all claims in one list, and each paper's own head with the ids of its.

    `ties` are questions to which claims of several papers speak, {"says", "claims"}; those of one paper alone are left
    out.

    Examples
    --------
    >>> one = {"word": "a", "npmoe": "0", "environment": {}, "claims": [{"id": "A.1", "verdict": "undecided"}]}
    >>> join([one])["papers"][0]["claims"]
    ['A.1']
    """
    ids = [{claim["id"] for claim in part["claims"]} for part in parts]
    return {
        "schema": SCHEMA,
        "npmoe": parts[-1]["npmoe"],
        "environment": parts[-1]["environment"],
        "papers": [{**part, "claims": [claim["id"] for claim in part["claims"]]} for part in parts],
        "ties": [tie for tie in ties if sum(bool(of & set(tie["claims"])) for of in ids) > 1],
        "claims": [claim for part in parts for claim in part["claims"]],
    }


def split(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The ledgers of single papers that `join` made one.

    Raises
    ------
    ValueError : for a ledger whose papers name claims that it does not have.
    """
    by_id = {claim["id"]: claim for claim in results["claims"]}
    heads = results.get("papers")
    if not isinstance(heads, list) or not all(isinstance(h, dict) and isinstance(h.get("claims"), list) for h in heads):
        raise ValueError(
            "expected a ledger with papers, each with its claims; it has none, as those of earlier versions, or others"
        )
    missing = [id for head in heads for id in head["claims"] if id not in by_id]
    if missing:
        raise ValueError(f"expected each paper's claims among the ledger's; missing {', '.join(map(str, missing))}")
    return [{**head, "claims": [by_id[id] for id in head["claims"]]} for head in heads]


def differences(results: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Where verdicts differ from the recorded ones, a line each; only claims that were run are compared.

    A run of fewer seeds is held against what the recorded numbers of those seeds give: fewer seeds have wider
    intervals, and may end otherwise without any number being another.

    Examples
    --------
    >>> one, two = ({"claims": [{"id": "A", "verdict": v}]} for v in ("reversed", "undecided"))
    >>> differences(one, two)
    ['A: recorded undecided, now reversed']
    """
    known = {claim["id"]: claim for claim in recorded["claims"]}
    lines = []
    for claim in results["claims"]:
        if claim["id"] not in known:
            lines.append(f"{claim['id']}: not recorded, now {claim['verdict']}")
            continue
        before = _verdict_on(known[claim["id"]], len((_primary_of(claim) or {"values": ()})["values"]))
        if before != claim["verdict"]:
            lines.append(f"{claim['id']}: recorded {before}, now {claim['verdict']}")
    return lines


def _primary_of(claim: dict[str, Any]) -> dict[str, Any] | None:
    return next((r for r in claim.get("readings", ()) if r["primary"]), None)


def _verdict_on(claim: dict[str, Any], seeds: int) -> str:
    """The recorded verdict, or where it was recorded with more seeds, that of its first few."""
    primary = _primary_of(claim)
    if primary is None or not 0 < seeds < len(primary["values"]):
        return claim["verdict"]

    def first(values: list[float | None]) -> tuple[float, ...]:
        return tuple(math.nan if value is None else value for value in values[:seeds])

    nulls = tuple(Null(n["name"], n["kind"], first(n["values"])) for n in primary["nulls"])
    return judge(Reading("primary", "measure", "", primary["margin"], first(primary["values"]), nulls))
