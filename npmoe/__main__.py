"""`npmoe`, and `python -m npmoe`: the commands that there are, each in a module of its own."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import npmoe

__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """A word of the command line: the module whose ``main(argv, prog)`` it calls, and what that does."""

    module: str
    does: str
    example: str


#: A new command is a row here.
COMMANDS = {
    "reproduce": Command(
        "npmoe.reproduce.__main__",
        "test papers' claims over several seeds, against null models",
        "npmoe reproduce SC1.8 --why",
    ),
    "language": Command(
        "npmoe.language.command",
        "train a mixture-of-experts language model on text, and let it write",
        "npmoe language train --steps 200",
    ),
    "verify": Command(
        "npmoe.verify.__main__",
        "check other frameworks' gradients and Jacobians, and your own files",
        "npmoe verify dump golden",
    ),
}
DONE, WRONG, NO_READER = 0, 2, 141  # the last as a shell has it where SIGPIPE ended a command


def text() -> str:
    """What one can do, in a dozen lines."""
    wide = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"npmoe {npmoe.__version__}: mixture-of-experts layers in NumPy, with analytic Jacobians",
            "",
            *(f"  npmoe {word:{wide}}  {command.does}" for word, command in COMMANDS.items()),
            "",
            *(f"  {command.example}" for command in COMMANDS.values()),
            "  npmoe COMMAND --help        all options of a command",
            '  python -c "import npmoe"   the library: npmoe.MoE, npmoe.fit, npmoe.site, npmoe.save, ...',
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line, and return its exit status."""
    try:
        status = _carried_out(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what we print has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return NO_READER
    return status


def _carried_out(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(text())
        return DONE
    if words[0] in ("-V", "--version"):
        print(f"npmoe {npmoe.__version__}")
        return DONE
    word = words[0]
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"npmoe: expected a command among {', '.join(COMMANDS)}; got {word!r}{hint}", file=sys.stderr)
        return WRONG
    # loaded only now: a command may need SciPy, pages or a framework
    return int(import_module(COMMANDS[word].module).main(words[1:], prog=f"npmoe {word}"))


if __name__ == "__main__":
    sys.exit(main())
