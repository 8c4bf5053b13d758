"""`python -m npmoe.reproduce`: every claim beside our number, its spread over seeds and what null models give."""

import argparse
import difflib
import os
import shlex
import shutil
import sys
import textwrap
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npmoe.ledger import FEWEST_SEEDS, compared, differences, read_results, split, why
from npmoe.reproduce import run
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.live import Live
from npmoe.reproduce.markdown import results_page
from npmoe.reproduce.paper import Paper, reads
from npmoe.reproduce.papers import PAPERS
from npmoe.reproduce.routing_reflects_geometry import counts
from npmoe.reproduce.run import say
from npmoe.sweep import SweepError, executor, in_order

TAB = "    "
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
        description="Test the claims of papers on the geometry of mixture-of-experts layers. Each claim is measured "
        "over several seeds and compared with null models; results go to a page that fills in from the first seed on.",
        epilog="Exit status: 0 done, 1 a check that was asked for failed, 2 the call was wrong or a run failed, 130 "
        "interrupted. "
        "A run that was interrupted continues where it stopped when it is called again.",
    )
    alone = " ".join(paper.word for paper in PAPERS if paper.alone)
    usual = ", ".join(paper.word for paper in PAPERS if not paper.alone)
    what = f"papers ({_words()}), claims (SC1.3 GA.2) or all; default {usual}" + f" ({alone} by name)" * bool(alone)
    p.add_argument("what", nargs="*", metavar="PAPER|CLAIM", help=what)
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--full", action="store_true", help="every interpretation, eight seeds: an hour or so")
    mode.add_argument("--quick", action="store_true", help="half a minute, on a small model; its verdicts mean nothing")
    p.add_argument("--seeds", type=_positive, metavar="N", help="number of seeds (5; 8 with --full; 2 with --quick)")
    p.add_argument("--jobs", type=_positive, metavar="N", default=os.cpu_count() or 1, help="runs at once (all cores)")
    p.add_argument(
        "--executor",
        metavar="WHERE",
        default="processes",
        help="processes (default), threads, serial, or a dask scheduler such as tcp://host:8786",
    )
    mode.add_argument(
        "--recorded", action="store_true", help="the recorded results as pages, without computing anything"
    )
    p.add_argument("--output", type=Path, metavar="DIR", help="where results go (out; recorded with --recorded)")
    p.add_argument("--open", action="store_true", help="open the page in a browser as soon as it is there")
    p.add_argument("--fresh", action="store_true", help="compute again what is there already")
    p.add_argument("--check", action="store_true", help="exit 1 if a firm verdict differs from the recorded one")
    p.add_argument("--record", action="store_true", help="with --full: record these results in the package")
    p.add_argument(
        "--why",
        action="store_true",
        help="print each claim in full: statistic, interpretations, null models, and the rule as applied",
    )
    p.add_argument(
        "--counts", type=Path, metavar="FILE", help="with my: answer what routing counts of real models can, and stop"
    )
    p.add_argument(
        "--corpus", type=Path, metavar="PATH", help="with sc2: WikiText's files, a text file or a folder of them"
    )
    p.add_argument("--list", action="store_true", help="list claims and interpretations, and run nothing")
    p.add_argument("--markdown", action="store_true", help="with --recorded: print the results as Markdown, and stop")
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
    for word in what or [paper.word for paper in PAPERS if not paper.alone]:
        found = {paper.word: paper.ids if word.lower() == "all" else paper.named(word) for paper in PAPERS}
        if not any(found.values()):
            ids = [id for paper in PAPERS for id in paper.ids]
            near = difflib.get_close_matches(word.upper(), [*ids, *(paper.id for paper in PAPERS)], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"expected {_words()}, all, or a claim among {', '.join(ids)}; got {word!r}{hint}")
        for paper, ids_of in found.items():
            wanted[paper] |= set(ids_of)
    return [(paper, paper.in_order(wanted[paper.word])) for paper in PAPERS if wanted[paper.word]]


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Parse a call, carry it out, and return its exit status; `prog` is how it was called."""
    p = parser(prog)
    args = p.parse_args(argv)
    args.output = args.output or Path("recorded" if args.recorded else "out")
    try:
        asked = claims_of(args.what or ["all"] * args.recorded)
        if args.counts:
            return _counts(args, asked)
        if args.markdown and not args.recorded:
            raise ValueError("expected --markdown with --recorded, whose results it prints")
        if args.recorded:
            _nothing_to_run(args)
            return _recorded(args, asked)
        if args.corpus and not any(paper.text for paper, _ in asked):
            raise ValueError("expected --corpus with a paper that reads text, such as sc2")
        made = [
            (paper, paper.plan(ids, full=args.full, quick=args.quick, seeds=args.seeds, corpus=args.corpus))
            for paper, ids in asked
        ]
        for paper, plan in made:
            if args.record and not (args.full and plan.ids == paper.ids and plan.seeds >= RECORDED_SEEDS):
                raise ValueError(
                    f"expected --record with --full, whole papers and {RECORDED_SEEDS} seeds or more; less is no ledger"
                )
        if args.check and (args.quick or any(plan.seeds < FEWEST_SEEDS for _, plan in made)):
            raise ValueError(
                f"expected --check with {FEWEST_SEEDS} seeds or more and without --quick; there are no verdicts else"
            )
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
        if args.counts or args.recorded or args.list:
            say("\ninterrupted")
            return INTERRUPTED
        # --fresh would begin anew
        words = [word for word in (argv if argv is not None else sys.argv[1:]) if word != "--fresh"]
        say(f"\ninterrupted; finished runs are in {args.output / 'runs'}.")
        say(f"This call continues there: {prog} {shlex.join(words)}")
        return INTERRUPTED


def _nothing_to_run(args: argparse.Namespace) -> None:
    """Raise a ValueError for options that ask for a run, where none is made."""
    options = ("check", "record", "fresh", "list", "seeds", "corpus")
    odd = [f"--{name}" for name in options if getattr(args, name)]
    if odd:
        raise ValueError(f"expected --recorded without {', '.join(odd)}: it computes nothing")


def _counts(args: argparse.Namespace, asked: Asked) -> int:
    if args.what and [paper.word for paper, _ in asked] != ["my"]:
        raise ValueError(f"expected --counts with my, whose claims counts concern; got {' '.join(args.what)}")
    print(counts.report(args.counts))
    return DONE


def _recorded(args: argparse.Namespace, asked: Asked) -> int:
    """Pages, figures and table of the recorded ledger, without computing anything."""
    found = run.recorded([paper.word for paper, _ in asked])
    if args.markdown:
        print(results_page(found))
        return DONE
    _ours(args.output)
    mine = [part["word"] for part in run.parts(args.output) if not part.get("recorded")]
    if mine:
        raise ValueError(
            f"expected a folder without results of your own; {args.output} has some of {', '.join(mine)}. "
            "Choose another --output"
        )
    for results, drawn in found:
        page = run.write(args.output, results, drawn)
    ids = {id for _, ids in asked for id in ids}
    claims = [claim for results, _ in found for claim in results["claims"] if claim["id"] in ids]
    print("\n\n".join(why(claim) for claim in claims) if args.why else summary(claims))
    say(f"{page} (recorded with {found[0][0]['seeds']} seeds; nothing was computed)")
    _open(args, page)
    return DONE


def _carry_out(args: argparse.Namespace, made: list[tuple[Paper, Trial]]) -> int:
    # what would be an error after an hour is one now
    known = _ledger() if args.check else None
    run.parts(args.output)
    _ours(args.output)
    with executor(args.executor, args.jobs):
        pass  # one that cannot be had is named now, before anything is written
    if args.quick:
        say("quick: a small model and few seeds; its verdicts mean nothing.")
    start, commit = time.monotonic(), run.commit()  # the code that runs is the code of now
    _begin(args, made)
    found = [_paper(args, paper, plan) for paper, plan in made]
    claims = [claim for results, _ in found for claim in results["claims"]]
    print("\n\n".join(why(claim) for claim in claims) if args.why else summary(claims))
    if args.record:
        how = {"seconds": round(time.monotonic() - start), "jobs": args.jobs, "commit": commit}
        for results, drawn in found:
            say(f"recorded in {run.record(results, drawn, how)}")
    return DONE if known is None else _check([results for results, _ in found], known)


def _ours(folder: Path) -> None:
    stranger = run.foreign(folder)
    if stranger:
        raise ValueError(
            f"expected an empty folder or one of earlier results; {folder} holds {stranger} and no results.json. "
            "Choose another --output, or move it away"
        )


def _begin(args: argparse.Namespace, made: list[tuple[Paper, Trial]]) -> None:
    """A page of every paper that has none, before the first run."""
    page = args.output / "index.html"
    for paper, plan in made:
        empty = run.results_of(paper, plan.claims({}), plan, {}, progress=0)
        kept = run.lesser(args.output, empty)
        if kept is None:
            page = run.write(args.output, empty, {})
        else:
            say(f"{paper.id}: the page that is there stays until this run has more to say ({kept})")
    if page.exists():
        say(f"the page: {page.resolve().as_uri()}")
        _open(args, page)


def _open(args: argparse.Namespace, page: Path) -> None:
    if args.open and not webbrowser.open(page.resolve().as_uri()):
        say("no browser was found to open it with")


def _paper(args: argparse.Namespace, paper: Paper, plan: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one paper, write its page, and return its ledger and its figures."""
    start = time.monotonic()
    live = Live(paper, plan, args.output, say)
    claims, drawn = run.make(
        paper, plan, args.output, jobs=args.jobs, where=args.executor, fresh=args.fresh, arrived=live
    )
    results = run.results_of(paper, claims, plan, drawn)
    kept = run.lesser(args.output, results)
    if kept:
        say(f"the page is left as it is: {kept}; give another --output to have one of this call")
    else:
        page = run.write(args.output, results, drawn)
        say(f"{paper.id}: {page} ({time.monotonic() - start:.0f} s)")
    return results, drawn


def _ledger() -> dict[str, Any]:
    if not run.RECORDED.exists():
        raise ValueError(f"expected a recorded ledger in {run.RECORDED}; there is none, so there is nothing to check")
    return read_results(run.RECORDED)


def _check(ours: list[dict[str, Any]], known: dict[str, Any]) -> int:
    claims = [claim for results in ours for claim in results["claims"]]
    found = differences({"claims": claims}, known)
    firm = [d for d in found if not d.borderline]
    for d in found:
        print(f"{'borderline' if d.borderline else 'differs'}: {d.id} was recorded as {d.recorded}, now {d.now}")
    recorded = {claim["id"]: claim for claim in known["claims"]}
    count = sum(compared(claim, recorded.get(claim["id"])) for claim in claims)
    print(f"{count - len(found)} of {count} verdicts as recorded")
    texts = {part["word"]: part.get("text") for part in split(known)}
    for results in ours:
        text, then = results.get("text"), texts.get(results["word"])
        if text and then and text != then:
            print(f"{results['word']} was recorded on {then}, and this call read {text}: verdicts may differ by that.")
    if found and not firm:
        print("Every difference is in a verdict that one seed more or less would change.")
    return FAILED if firm else DONE


def summary(claims: list[dict[str, Any]]) -> str:
    """Each claim with its verdict and its sentence, as wide as the terminal."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    blocks = []
    for claim in claims:
        parts = [claim["word"], claim["because"]]
        if claim.get("firmness") and not claim["firmness"]["stands"]:
            parts.append("borderline")
        head = f"{claim['id']}  {'; '.join(part for part in parts if part)}"
        blocks.append(
            "\n".join([head, *textwrap.wrap(claim["sentence"], width - 4, initial_indent=TAB, subsequent_indent=TAB)])
        )
    return "\n".join(blocks)


def listing(made: Trial) -> str:
    """Claims with the readings that a call would run and those that it would leave out; runs nothing."""
    lines = []
    for id, says, run_now, left_out in made.readings():
        lines.append(f"{id}: {says}")
        lines += [f"  {'*' if i == 0 else ' '} {name}" for i, name in enumerate(run_now)]
        if left_out:
            lines.append(f"    with --full also: {', '.join(left_out)}")
    return "\n".join(
        [*lines, f"{len(in_order(made.configs(), reads))} runs, {made.seeds} seeds; * is the primary interpretation"]
    )


if __name__ == "__main__":
    sys.exit(main())
