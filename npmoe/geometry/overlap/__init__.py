"""Usage similarity: eight measures of how far two usages agree, what chance gives of each, and matching of experts."""

from npmoe.geometry.overlap.chance import corrected, jaccard_chance, overlap_chance, topk_law, topk_simulated
from npmoe.geometry.overlap.matching import Matched, match, matched_overlap, noise_floor, split_halves
from npmoe.geometry.overlap.measures import (
    MEASURES,
    Measure,
    cosine,
    hellinger,
    hilbert,
    jaccard,
    jensen_shannon,
    set_overlap,
    similarities,
    top_p,
    total_variation,
    weighted_jaccard,
)

__all__ = [
    "MEASURES",
    "Matched",
    "Measure",
    "corrected",
    "cosine",
    "hellinger",
    "hilbert",
    "jaccard",
    "jaccard_chance",
    "jensen_shannon",
    "match",
    "matched_overlap",
    "noise_floor",
    "overlap_chance",
    "set_overlap",
    "similarities",
    "split_halves",
    "top_p",
    "topk_law",
    "topk_simulated",
    "total_variation",
    "weighted_jaccard",
]
