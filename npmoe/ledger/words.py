"""Verdicts told in words: the rule as it was applied, and a claim of ``results.json`` in full."""

import math
from collections.abc import Sequence
from typing import Any

from npmoe.ledger.readings import Reading, Statement
from npmoe.ledger.verdicts import FEWEST_SEEDS, excess, interval, judge

__all__ = ["exact_measured", "exact_rule", "measured", "rule", "why"]


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


def measured(reading: Reading) -> str:
    """T with its interval and margin."""
    mean, low, high = map(_text, interval(reading.values))
    return f"T = {mean} [{low}, {high}], margin {reading.margin:.3g}"


def exact_rule(statements: Sequence[Statement]) -> str:
    """The rule for exact statements as it was applied, in words."""
    if not statements:
        return "No reading was run."
    text = "An exact statement: proved where no case on any Site violates it, refuted by one counter-example. "
    return text + " ".join(
        f"{s.name}{' (beside)' if s.beside else ''}: {s.violations:,} violations in {s.checked:,} cases."
        + (f" Counter-example: {s.example}." if s.example else "")
        for s in statements
    )


def exact_measured(statements: Sequence[Statement]) -> str:
    """Violations of exact statements and how near the nearest was."""
    decide = [s for s in statements if not s.beside]
    if not decide:
        return "not tested"
    worst = max(decide, key=lambda s: s.worst)
    return f"{sum(s.violations for s in decide):,} violations in {sum(s.checked for s in decide):,} cases; " + (
        f"left over right at most {worst.worst:.3g} ({worst.name})" if math.isfinite(worst.worst) else "see below"
    )


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
