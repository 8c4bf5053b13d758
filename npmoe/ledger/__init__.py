"""Claims, readings, nulls and the one rule that turns numbers into verdicts; results in and out."""

from npmoe.ledger.claims import Claim
from npmoe.ledger.firmness import Firmness, firmness
from npmoe.ledger.readings import CORRELATION, COUNT, RATIO, SHARE, Beside, Null, Reading, Size, Statement
from npmoe.ledger.results import SCHEMA, Difference, compared, differences, join, read_results, reading_of, split
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
    "Difference",
    "Firmness",
    "Interval",
    "Null",
    "Reading",
    "Size",
    "Statement",
    "compared",
    "differences",
    "excess",
    "firmness",
    "holds",
    "interval",
    "join",
    "judge",
    "opposite",
    "read_results",
    "reading_of",
    "rule",
    "split",
    "why",
]
