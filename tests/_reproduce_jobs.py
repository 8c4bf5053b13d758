"""The reproduction at a tiny size; as a script, a server of runs of its command that get themselves killed.

Each line of standard input, FOLDER EXECUTOR [PHASE FILES N], is a run in a process and a group of its own, forked from
here so that twenty of them do not import everything twenty times; its exit status is a line of standard output. A PHASE
kills the group at the Nth time that one of these FILES (a pattern) gets its name: just "before", "after", or "half",
where what was to get the name is not even whole.
"""

import importlib
import os
import signal
import sys
from dataclasses import replace
from fnmatch import fnmatch

from npmoe.reproduce import __main__ as command
from npmoe.reproduce.mixture import PRIMARY
from npmoe.reproduce.paper import reads
from npmoe.reproduce.soft_clustering import SC1
from npmoe.sweep import in_order

# d and h above the ten directions that SC1.5 and cum-var@10 count
TINY = replace(PRIMARY, E=3, d=12, h=14, n=32, steps=12, keep=5, draws=2)
TINIEST = replace(PRIMARY, E=3, d=4, h=5, n=12, steps=3, keep=3, draws=1)
FIGURES = ("3D", "router-share")  # two of thirteen are enough files


def tiny(base):
    """SC1 from a tiny config; verdicts count as if it were a real one."""
    return replace(SC1, experiment=replace(SC1.experiment, base=base))


def computed(compute, made):
    """The results of a plan without files: {config: arrays}, those of the runs that are read as well."""
    found = {}
    for config in in_order(made.configs(), reads):
        read = {other: found[other] for other in reads(config)}
        found[config] = compute(config, read) if read else compute(config)
    return found


def few(figures):
    def chosen(results, plan):
        found = figures(results, plan)
        return {name: found[name] for name in FIGURES if name in found}

    return chosen


def arm(phase, files, at):
    rename, calls = os.replace, iter(range(10**6))

    def replace_or_die(source, target):
        mine = fnmatch(os.path.basename(target), files) and next(calls) == at
        if mine and phase == "half":
            os.truncate(source, os.stat(source).st_size // 2)
        if mine and phase != "after":
            os.killpg(0, signal.SIGKILL)
        rename(source, target)
        if mine:
            os.killpg(0, signal.SIGKILL)

    os.replace = replace_or_die


def carry_out(folder, executor, *moment):
    os.setsid()
    os.dup2(2, 1)  # standard output is the server's
    if moment:
        phase, files, at = moment
        arm(phase, files, int(at))
    return command.main(["--seeds", "2", "--jobs", "2", "--executor", executor, "--output", folder])


if __name__ == "__main__":
    importlib.import_module("npmoe.report")

    command.PAPERS = (replace(tiny(TINIEST), figures=few(SC1.figures)),)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 99
            try:
                status = carry_out(*line.rstrip("\n").split("\t"))
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
