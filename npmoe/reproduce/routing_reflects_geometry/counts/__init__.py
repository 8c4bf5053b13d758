"""What counts of choices alone can answer: how often each expert of a real model was chosen for each kind of text.

A file of counts is read by `reading`, its questions are answered in `answers`, and `text` says it in words. Counts know
kinds of text, not tokens: nothing here is the overlap of two models on one token.
"""

from npmoe.reproduce.routing_reflects_geometry.counts.answers import (
    INDICES,
    MEASURES,
    Between,
    Estimate,
    Evenness,
    Links,
    between,
    evenness,
    links,
)
from npmoe.reproduce.routing_reflects_geometry.counts.reading import Counts, read
from npmoe.reproduce.routing_reflects_geometry.counts.text import report, table

__all__ = [
    "INDICES",
    "MEASURES",
    "Between",
    "Counts",
    "Estimate",
    "Evenness",
    "Links",
    "between",
    "evenness",
    "links",
    "read",
    "report",
    "table",
]
