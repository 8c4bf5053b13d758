"""Results as JSON, out and in: readings, statements and sizes written; ledgers read, joined, split and compared."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npmoe.files import FileError, read_json
from npmoe.ledger.firmness import firmness
from npmoe.ledger.plain import word
from npmoe.ledger.readings import Beside, Null, Reading, Size, Statement
from npmoe.ledger.verdicts import Interval, catching, excess, interval, judge

__all__ = [
    "SCHEMA",
    "Difference",
    "beside_json",
    "differences",
    "firmness_json",
    "join",
    "read_results",
    "reading_json",
    "reading_of",
    "size_json",
    "split",
    "statement_json",
]

SCHEMA = 1


# Out


def reading_json(reading: Reading, mute: bool) -> dict[str, Any]:
    """A reading with its interval, its nulls and its verdict; of a quick run (mute) there is none."""
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


def statement_json(s: Statement) -> dict[str, Any]:
    """An exact statement with its verdict."""
    return {
        **s._asdict(),
        "checked": int(s.checked),
        "violations": int(s.violations),
        "worst": _number(s.worst),
        "verdict": s.verdict,
    }


def size_json(size: Size | None, paper: str) -> dict[str, str]:
    """The paper's number and ours, as far as we have one."""
    if size is None or not all(map(math.isfinite, size.values)):
        return {"measured": "", "paper": paper, "judgement": "not given"}
    low, high = min(size.values), max(size.values)
    low_to_high = " to ".join(f"{end:,.0f}" if abs(end) >= 1000 else f"{end:.3g}" for end in (low, high))
    measured = f"{low_to_high} {size.unit}".strip()
    return {"measured": measured, "paper": paper, "judgement": size.judgement()}


def firmness_json(reading: Reading) -> dict[str, Any] | None:
    """How firm the primary reading's verdict is; None with too few seeds."""
    found = firmness(reading)
    return None if found is None else found._asdict()


def beside_json(b: Beside) -> dict[str, Any]:
    """A number beside a claim, with its interval."""
    return {"name": b.name, "says": b.says, "values": _floats(b.values), **_interval_json(interval(b.values))}


def _interval_json(found: Interval) -> dict[str, float | None]:
    return {"mean": _number(found.mean), "low": _number(found.low), "high": _number(found.high)}


def _floats(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


# In


def read_results(path: Path) -> dict[str, Any]:
    """A ledger of results from a JSON file.

    Raises
    ------
    ValueError : if the file is not JSON or of another schema; the message names the file.
    """
    try:
        results = read_json(path)
    except FileError as error:
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


class Difference(NamedTuple):
    """A claim whose verdict is another than the recorded one, in plain words, and whether one of the two is borderline:
    it would be another without some one seed."""

    id: str
    recorded: str
    now: str
    borderline: bool


def differences(results: dict[str, Any], recorded: dict[str, Any]) -> list[Difference]:
    """Where verdicts differ from the recorded ones; only claims that were run are compared.

    A run of fewer seeds is held against what the recorded numbers of those seeds give: fewer seeds have wider
    intervals, and may end otherwise without any number being another.

    Examples
    --------
    >>> one, two = ({"claims": [{"id": "A", "verdict": v}]} for v in ("reversed", "undecided"))
    >>> differences(one, two)
    [Difference(id='A', recorded='inconclusive', now='contradicted', borderline=False)]
    """
    known = {claim["id"]: claim for claim in recorded["claims"]}
    found = []
    for claim in results["claims"]:
        if claim["id"] not in known:
            found.append(Difference(claim["id"], "not recorded", word(claim["verdict"]), False))
            continue
        if not compared(claim, known[claim["id"]]):
            continue
        now = _primary_of(claim)
        before = _first_seeds(known[claim["id"]], len(now["values"]) if now else 0)
        here = None if now is None or claim.get("mute") else reading_of(now)
        recorded_word = _word(known[claim["id"]]["verdict"] if before is None else judge(before), before)
        word_now = _word(claim["verdict"], here)
        if recorded_word != word_now:
            firm = [firmness(reading) for reading in (before, here) if reading]
            shaky = any(f is not None and not f.stands for f in firm)
            found.append(Difference(claim["id"], recorded_word, word_now, shaky))
    return found


def compared(claim: dict[str, Any], recorded: dict[str, Any] | None) -> bool:
    """Whether a claim of this run can be held against what was recorded of it: one that was never recorded can.

    One of ``--full`` alone cannot, where this run has left it out; nor one without a verdict yet.
    """
    if recorded is None:
        return True
    if _primary_of(claim) is None and not claim.get("statements") and _primary_of(recorded) is not None:
        return False
    return claim["verdict"] != "no verdict"


def _word(verdict: str, reading: Reading | None) -> str:
    """A verdict in plain words, which tell chance from a control by the reading."""
    return word(verdict, [] if reading is None else [null.kind for null in catching(reading)])


def _primary_of(claim: dict[str, Any]) -> dict[str, Any] | None:
    return next((r for r in claim.get("readings", ()) if r["primary"]), None)


def _first_seeds(claim: dict[str, Any], seeds: int) -> Reading | None:
    """The recorded primary reading on so many of its seeds as the run has, or all; None where either has none."""
    primary = _primary_of(claim)
    if primary is None or not seeds or not primary["values"]:
        return None
    return reading_of(primary, min(seeds, len(primary["values"])))


def reading_of(found: dict[str, Any], seeds: int | None = None) -> Reading:
    """A reading as it was before `reading_json` wrote it, of all seeds or the first few."""

    def first(values: list[float | None]) -> tuple[float, ...]:
        return tuple(math.nan if value is None else value for value in values[:seeds])

    nulls = tuple(Null(n["name"], n["kind"], first(n["values"])) for n in found["nulls"])
    return Reading(
        found["name"],
        found["kind"],
        found["statistic"],
        found["margin"],
        first(found["values"]),
        nulls,
        found["primary"],
    )
