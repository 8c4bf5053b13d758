"""The command `python -m npmoe.verify`: frameworks held against closed forms, golden files, released models."""

import argparse
import difflib
import json
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from npmoe.battery.frameworks import FRAMEWORKS
from npmoe.files import write_json
from npmoe.verify.rounding import ARITHMETICS

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
ONLY = "cases by name, one or more; * stands for anything"
PROG = "python -m npmoe.verify"


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options, as `--help` shows them."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Check other implementations of mixture-of-experts layers against closed forms. Without a command, "
        "the same models are built in each framework, and every answer is checked in every arithmetic.",
        epilog="Exit status: 0 all differences are within rounding, 1 some are not (--strict: some may not be), "
        f"2 the call was wrong or nothing could be checked. For a command's own options: {prog} check --help.",
    )
    p.add_argument(
        "--framework",
        metavar="NAME",
        action="extend",
        nargs="+",
        help=f"{', '.join(FRAMEWORKS)} or all (default); those that are not installed are skipped by name",
    )
    p.add_argument(
        "--arithmetic",
        metavar="NAME",
        action="extend",
        nargs="+",
        help="float64, float32, bfloat16 (these three unless given) or float16",
    )
    p.add_argument("--only", metavar="CASE", action="extend", nargs="+", help=ONLY)
    p.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("out"), help="where verify.json and .html go (out)"
    )
    p.add_argument("--strict", action="store_true", help="exit 1 for doubtful answers as well")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    dump = commands.add_parser(
        "dump", help="write golden cases: weights, inputs and right answers", prog=f"{prog} dump"
    )
    dump.add_argument("folder", type=Path, metavar="DIR")
    dump.add_argument("--raw", action="store_true", help="also write a folder of plain .f64 files for each .npz, for C")
    dump.add_argument("--only", metavar="CASE", action="extend", nargs="+", help=ONLY)
    check = commands.add_parser(
        "check", help="judge the answers that your program wrote for them", prog=f"{prog} check"
    )
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--answers", type=Path, metavar="DIR", help="where the answers are (DIR/answers)")
    check.add_argument(
        "--arithmetic", metavar="NAME", help=f"{', '.join(ARITHMETICS)}: what they were computed in (their dtype)"
    )
    check.add_argument("--only", metavar="CASE", action="extend", nargs="+", help=ONLY)
    check.add_argument("--json", type=Path, metavar="FILE", help="the judgement as data")
    check.add_argument("--strict", action="store_true", help="exit 1 for doubtful answers as well")
    found = commands.add_parser(
        "released", help="check the mixtures of the installed transformers against ours", prog=f"{prog} released"
    )
    found.add_argument("family", nargs="*", help="such as mixtral; all unless given")
    found.add_argument("--json", type=Path, metavar="FILE", help="the findings as data")
    found.add_argument(
        "--read", type=Path, metavar="FILE", nargs="+", help="run nothing; say what such files of several releases hold"
    )
    return p


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Parse a call, carry it out, and return its exit status; `prog` is how it was called."""
    p = parser(prog)
    args = p.parse_args(argv)
    args.prog = prog
    try:
        return {None: _battery, "dump": _dump, "check": _check, "released": _released}[args.command](args)
    except (ValueError, TypeError, OSError) as error:
        _say(f"{p.prog}: {error}")
        return WRONG
    except KeyboardInterrupt:
        _say("\ninterrupted; what stood there before is as it was")
        return INTERRUPTED


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _battery(args: argparse.Namespace) -> int:
    from npmoe.battery.cases import battery_cases
    from npmoe.battery.run import run
    from npmoe.report.battery import write_battery  # here: SciPy and the pages take a second, which --help need not

    names = _frameworks(args.framework or ["all"])
    start = time.monotonic()
    # the small cases of mpmath are others than those that were asked for
    exact = args.only is None
    found = run(names, battery_cases(args.only), arithmetics=args.arithmetic, exact=exact, progress=_progress)
    data = found.json() | {"command": _call(args)}
    write_json(args.output / "verify.json", data)
    page = write_battery(data, args.output)
    print(found)
    _say(f"{page} ({time.monotonic() - start:.0f} s)")
    if not found.entries:
        return WRONG
    return DONE if found.ok and not (args.strict and found.verdict == "doubtful") else FAILED


def _frameworks(words: Sequence[str]) -> list[str]:
    """Names of frameworks, in the order of the table."""
    for word in words:
        if word not in (*FRAMEWORKS, "all"):
            near = difflib.get_close_matches(word, FRAMEWORKS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"expected a framework among {', '.join(FRAMEWORKS)} or all; got {word!r}{hint}")
    return [name for name in FRAMEWORKS if name in words or "all" in words]


def _call(args: argparse.Namespace) -> str:
    """The call that repeats a battery."""
    words = ["python", "-m", "npmoe.verify"]
    for option in ("framework", "arithmetic", "only"):
        if values := getattr(args, option):
            words += [f"--{option}", *values]
    return shlex.join(words)


def _progress(steps: Iterable[Any]) -> Iterable[Any]:
    """A bar on standard error, quiet where that is no terminal."""
    from tqdm import tqdm

    return tqdm(list(steps), desc="answers", unit="step", disable=None, leave=False)


def _dump(args: argparse.Namespace) -> int:
    from npmoe.battery import golden

    manifest = golden.dump(args.folder, raw=args.raw, only=args.only)
    cases = len(json.loads(manifest.read_text(encoding="utf-8"))["cases"])
    print(f"{cases} case{'s' * (cases != 1)} in {args.folder}, described in {args.folder / 'FORMAT.md'}")
    print(f"write answers into {args.folder / 'answers'}, then: {args.prog} check {shlex.quote(str(args.folder))}")
    return DONE


def _check(args: argparse.Namespace) -> int:
    from npmoe.battery import golden

    checked = golden.check(args.folder, args.answers, arithmetic=args.arithmetic, only=args.only)
    print(checked)
    if args.json:
        write_json(args.json, checked.json())
    return {"agrees": DONE, "undecided": DONE, "doubtful": FAILED if args.strict else DONE}.get(checked.verdict, FAILED)


def _released(args: argparse.Namespace) -> int:
    from npmoe.battery import released
    from npmoe.battery.released import releases

    if args.read:
        if args.family or args.json:
            raise ValueError("expected --read with files alone: it runs nothing, for no family and into no file")
        scans = releases.read(args.read)
        print(releases.summary(scans))
        return FAILED if any(f.verdict == "fault" for scan in scans for f in scan.findings) else DONE
    try:
        found = released.findings(args.family or None)
    except ImportError as error:  # of torch or transformers, with the words that say how to get them
        _say(str(error))
        return WRONG
    print(released.described(found))
    if args.json:
        releases.write(found, args.json)
    return FAILED if any(f.verdict == "fault" for f in found) else DONE
