"""Claims, readings, nulls and the one rule that turns numbers into verdicts; results in and out."""

from npmoe.ledger.claims import Claim
from npmoe.ledger.readings import CORRELATION, COUNT, RATIO, SHARE, Beside, Null, Reading, Size, Statement
from npmoe.ledger.results import SCHEMA, differences, join, read_results, split
from npmoe.ledger.verdicts import FEWEST_SEEDS, VERDICTS, Interval, excess, holds, interval, judge, opposite
from npmoe.ledger.words import rule, why

__all__ = [
    "CORRELATION",
    "COUNT",
    "FEWEST_SEEDS",
    "RATIO",
    "SCHEMA",
    "SHARE",
    "VERDICTS",
    "Beside",
    "Claim",
    "Interval",
    "Null",
    "Reading",
    "Size",
    "Statement",
    "differences",
    "excess",
    "holds",
    "interval",
    "join",
    "judge",
    "opposite",
    "read_results",
    "rule",
    "split",
    "why",
]
