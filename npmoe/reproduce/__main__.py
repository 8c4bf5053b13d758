"""`python -m npmoe.reproduce`: every claim beside our number, its spread over seeds and what chance alone gives."""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npmoe.ledger import differences, read_results, why
from npmoe.reproduce import run
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.paper import Paper, reads
from npmoe.reproduce.papers import PAPERS
from npmoe.reproduce.routing_reflects_geometry import counts
from npmoe.reproduce.run import say
from npmoe.sweep import SweepError, in_stages

Asked = list[tuple[Paper, tuple[str, ...]]]
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
RECORDED_SEEDS = 8


def _words() -> str:
    return " ".join(paper.word for paper in PAPERS)


PROG = "python -m npmoe.reproduce"


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options, as `--help` shows them."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Reproduce a paper's claims: each beside our number, its spread over seeds and what chance gives.",
        epilog="Exit status: 0 done, 1 a check that was asked for failed, 2 the call was wrong. "
        "A killed run continues where it stopped when it is called again.",
    )
    what = f"papers ({_words()}) or claims (SC1.3 GA.2); default all"
    p.add_argument("what", nargs="*", metavar="PAPER|CLAIM", help=what)
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--full", action="store_true", help="every train reading as well, eight seeds: two hours or more")
    mode.add_argument("--quick", action="store_true", help="under a minute, on a small model; verdicts mean nothing")
    p.add_argument("--seeds", type=_positive, metavar="N", help="number of seeds (5; 8 with --full; 2 with --quick)")
    p.add_argument("--jobs", type=_positive, metavar="N", default=os.cpu_count() or 1, help="runs at once (all cores)")
    p.add_argument(
        "--executor",
        metavar="WHERE",
        default="processes",
        help="processes (default), threads, serial, or a dask scheduler such as tcp://host:8786",
    )
    p.add_argument("--output", type=Path, metavar="DIR", default=Path("out"), help="where results go (out)")
    p.add_argument("--fresh", action="store_true", help="compute again what is there already")
    p.add_argument("--check", action="store_true", help="exit 1 where a verdict differs from the recorded ledger")
    p.add_argument("--record", action="store_true", help="with --full: make this the recorded ledger")
    p.add_argument("--why", action="store_true", help="print statistic, margin, readings, nulls and the rule applied")
    p.add_argument(
        "--counts", type=Path, metavar="FILE", help="with my: answer what routing counts of real models can, and stop"
    )
    p.add_argument("--list", action="store_true", help="list claims and readings, and run nothing")
    return p


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return value


def claims_of(what: Sequence[str]) -> Asked:
    """Papers with the claims that the words of a call name, in order.

    Raises
    ------
    ValueError : for a word that is neither a paper nor a claim; says which is near.
    """
    wanted: dict[str, set[str]] = {paper.word: set() for paper in PAPERS}
    for word in what or wanted:
        found = {paper.word: paper.named(word) for paper in PAPERS}
        if not any(found.values()):
            ids = [id for paper in PAPERS for id in paper.ids]
            near = difflib.get_close_matches(word.upper(), [*ids, *(paper.id for paper in PAPERS)], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"expected {_words()} or a claim among {', '.join(ids)}; got {word!r}{hint}")
        for paper, ids_of in found.items():
            wanted[paper] |= set(ids_of)
    return [(paper, paper.in_order(wanted[paper.word])) for paper in PAPERS if wanted[paper.word]]


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Parse a call, carry it out, and return its exit status; `prog` is how it was called."""
    p = parser(prog)
    args = p.parse_args(argv)
    try:
        asked = claims_of(args.what)
        if args.counts:
            return _counts(args, asked)
        made = [
            (paper, paper.experiment.plan(ids, full=args.full, quick=args.quick, seeds=args.seeds))
            for paper, ids in asked
        ]
        for paper, plan in made:
            if args.record and not (args.full and plan.ids == paper.ids and plan.seeds >= RECORDED_SEEDS):
                raise ValueError(
                    f"expected --record with --full, whole papers and {RECORDED_SEEDS} seeds or more; less is no ledger"
                )
        if args.check and args.quick:
            raise ValueError("expected --check without --quick, whose verdicts mean nothing")
        if args.list:
            print("\n\n".join(listing(plan) for _, plan in made))
            return DONE
        return _carry_out(args, made)
    except (ValueError, SweepError, OSError, ImportError) as error:
        say(f"{p.prog}: {error}")
        for note in getattr(error, "__notes__", ()):
            say(f"  {note}")
        return WRONG
    except KeyboardInterrupt:
        call = " ".join([prog, *(argv if argv is not None else sys.argv[1:])])
        say(f"\ninterrupted; finished runs are in {args.output / 'runs'}. The same call continues there: {call}")
        return INTERRUPTED


def _counts(args: argparse.Namespace, asked: Asked) -> int:
    if args.what and [paper.word for paper, _ in asked] != ["my"]:
        raise ValueError(f"expected --counts with my, whose claims counts concern; got {' '.join(args.what)}")
    print(counts.report(args.counts))
    return DONE


def _carry_out(args: argparse.Namespace, made: list[tuple[Paper, Trial]]) -> int:
    # what would be an error after an hour is one now
    recorded = _recorded() if args.check else None
    run.parts(args.output)
    stranger = run.foreign(args.output)
    if stranger:
        raise ValueError(
            f"expected an empty folder or one of earlier results; {args.output} holds {stranger} and no results.json. "
            "Choose another --output, or move it away"
        )
    if args.quick:
        say("quick: a small model and few seeds; its verdicts mean nothing.")
    found = [_paper(args, paper, plan) for paper, plan in made]
    claims = [claim for results in found for claim in results["claims"]]
    print("\n\n".join(why(claim) for claim in claims) if args.why else summary(claims))
    if args.record:
        for results in found:
            say(f"recorded in {run.record(results)}")
    return DONE if recorded is None else _check(claims, recorded)


def _paper(args: argparse.Namespace, paper: Paper, plan: Trial) -> dict[str, Any]:
    """Run one paper, write its page, and return its ledger."""
    start = time.monotonic()
    claims, drawn = run.make(paper, plan, args.output, jobs=args.jobs, where=args.executor, fresh=args.fresh)
    results = run.results_of(paper, claims, plan, drawn)
    kept = run.lesser(args.output, results)
    if kept:
        say(f"the page is left as it is: {kept}; give another --output to have one of this call")
    else:
        page = run.write(args.output, results, drawn)
        say(f"{paper.id}: {page} ({time.monotonic() - start:.0f} s)")
    return results


def _recorded() -> dict[str, Any]:
    if not run.RECORDED.exists():
        raise ValueError(f"expected a recorded ledger in {run.RECORDED}; there is none, so there is nothing to check")
    return read_results(run.RECORDED)


def _check(claims: list[dict[str, Any]], recorded: dict[str, Any]) -> int:
    lines = differences({"claims": claims}, recorded)
    for line in lines:
        print(f"differs: {line}")
    print(f"{len(claims) - len(lines)} of {len(claims)} verdicts as recorded")
    return FAILED if lines else DONE


def summary(claims: list[dict[str, Any]]) -> str:
    """The ledger as a table of lines: claim, verdict, agreement of the readings."""
    rows = [("claim", "verdict", "T [interval]", "readings")]
    for claim in claims:
        primary = next((r for r in claim["readings"] if r["primary"]), None)
        numbers = "exact" if claim["statements"] else "not run"
        if primary:
            mean, low, high = ("?" if primary[k] is None else f"{primary[k]:.2f}" for k in ("mean", "low", "high"))
            numbers = f"{mean} [{low}, {high}]"
        counts = claim["agreement"]
        agree = f"holds in {counts['holds']} of {counts['of']}, reversed in {counts['reversed']}" if primary else ""
        rows.append((claim["id"], claim["headline"], numbers, agree))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def listing(made: Trial) -> str:
    """Claims with the readings that a call would run and those that it would leave out; runs nothing."""
    lines = []
    for id, says, run_now, left_out in made.readings():
        lines.append(f"{id}: {says}")
        lines += [f"  {'*' if i == 0 else ' '} {name}" for i, name in enumerate(run_now)]
        if left_out:
            lines.append(f"    with --full also: {', '.join(left_out)}")
    return "\n".join(
        [*lines, f"{len(in_stages(made.configs(), reads))} runs, {made.seeds} seeds; * is the primary reading"]
    )


if __name__ == "__main__":
    sys.exit(main())
