"""Verdicts told in words: the rule as it was applied, and a claim of ``results.json`` in full."""

import math
from collections.abc import Sequence
from typing import Any

from npmoe.ledger.plain import agreement, firm, smallest_effect, word, word_of
from npmoe.ledger.readings import Reading, Statement
from npmoe.ledger.verdicts import FEWEST_SEEDS, catching, excess, interval, judge

__all__ = ["exact_measured", "exact_rule", "measured", "rule", "why"]


def rule(reading: Reading, mute: bool = False) -> str:
    """The rule as it was applied to a reading, in words."""
    m = reading.margin
    seeds = len(reading.values)
    if mute:
        return "A quick run on a small model: its numbers show that the path works, and mean nothing."
    if seeds < FEWEST_SEEDS:
        return f"A verdict needs {FEWEST_SEEDS} seeds; here {'is' if seeds == 1 else 'are'} {seeds}."
    _, low, high = interval(reading.values)
    if math.isnan(low):
        return f"In some of {seeds} seeds T is not defined, so the claim is inconclusive."
    text = f"T over {seeds} seeds lies in [{low:.3g}, {high:.3g}], and the margin is {m:.3g} ({smallest_effect(m)}). "
    if high < -m:
        return text + "The interval is below minus the margin: contradicted."
    if not low > m:
        if low >= -m and high <= m:
            return text + "The interval lies within the margins: no effect."
        return text + "The interval crosses a margin: inconclusive."
    text += "T holds."
    for null in reading.nulls:
        beyond, own = excess(reading, null), interval(null.values)
        over = "T exceeds it" if beyond.low > m else "T does not exceed it"
        if beyond.high < 0:
            over += ", which has more of the effect"
        also = ", which holds too" if own.low > m else ""
        of = "control" if null.kind == "control" else "null model"
        text += (
            f" The {of} '{null.name}' has T0 in [{_text(own.low)}, {_text(own.high)}]{also}. The excess T - T0 lies in "
            f"[{_text(beyond.low)}, {_text(beyond.high)}]: {over}."
        )
    return text + f" Verdict: {word(judge(reading), [null.kind for null in catching(reading)])}."


def measured(reading: Reading) -> str:
    """T with its interval and the smallest effect of interest."""
    mean, low, high = map(_text, interval(reading.values))
    return f"T = {mean} [{low}, {high}], smallest effect of interest {smallest_effect(reading.margin)}"


def exact_rule(statements: Sequence[Statement]) -> str:
    """The rule for exact statements as it was applied, in words."""
    if not statements:
        return "Nothing was measured."
    text = "An exact statement is proved if no case on any model violates it, and refuted by one counter-example. "
    return text + " ".join(
        f"{s.name}{' (further)' if s.beside else ''}: {s.violations:,} violations in {s.checked:,} cases."
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
    verdict = [claim.get("word") or claim["verdict"], claim.get("because")]
    lines = [
        f"{claim['id']}: {claim['says']}",
        f"  the paper's number: {claim['paper_value']}",
        *([f"  found: {claim['sentence']}"] if claim.get("sentence") else []),
        f"  verdict: {'; '.join(filter(None, verdict))}",
        f"  size: {claim['size']['measured'] or 'none measured'} ({claim['size']['judgement']})",
    ]
    if claim["readings"]:
        lines.append(f"  T: {claim['statistic']}; smallest effect of interest {smallest_effect(claim['margin'])}")
    lines.append(f"  rule: {claim['rule']}")
    lines += [f"  {label}: {text}" for label, text in (("firmness", firm(claim)), ("note", claim.get("note"))) if text]
    if claim["readings"]:
        lines.append(f"  interpretations: {agreement(claim)}")
    for r in sorted(claim["readings"], key=lambda r: (not r["primary"], r["kind"], r["name"])):
        mark = "*" if r["primary"] else " "
        lines.append(
            f"  {mark} {r['name']} ({r['kind']}): T = {_text(r['mean'])} [{_text(r['low'])}, {_text(r['high'])}], "
            f"{word_of(r)}"
        )
        for n in r["nulls"]:
            of = "control" if n["kind"] == "control" else "null model"
            lines.append(
                f"      {of} {n['name']}: T0 = {_text(n['mean'])} [{_text(n['low'])}, {_text(n['high'])}], "
                f"excess [{_text(n['excess_low'])}, {_text(n['excess_high'])}]"
            )
    for s in claim.get("statements", ()):
        lines.append(
            f"    {s['name']}: {s['says']}: {s['verdict']}, {s['violations']:,} violations in {s['checked']:,}"
        )
    if claim["left_out"]:
        lines.append(f"  left out by this run: {', '.join(claim['left_out'])}")
    for b in claim["beside"]:
        lines.append(
            f"  further: {b['name']} = {_text(b['mean'])} [{_text(b['low'])}, {_text(b['high'])}]; {b['says']}"
        )
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3g}"
