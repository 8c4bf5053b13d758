"""Usage similarity: seven measures of how far two usages agree, what chance gives of each, and matching of experts."""

# evenness and association are files of their own; their names are found here too, where they were before
from npmoe.geometry.association import (
    Mantel,
    information_chance,
    mantel,
    mutual_information,
    partial_mantel,
    random_table,
)
from npmoe.geometry.evenness import cv, entropy, entropy_share, gini, jain, max_over_mean
from npmoe.geometry.overlap.chance import corrected, jaccard_chance, overlap_chance, topk_law, topk_simulated
from npmoe.geometry.overlap.matching import Matched, match, matched_overlap, noise_floor, split_halves
from npmoe.geometry.overlap.measures import (
    MEASURES,
    Measure,
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
    "Mantel",
    "Matched",
    "Measure",
    "corrected",
    "cv",
    "entropy",
    "entropy_share",
    "gini",
    "hellinger",
    "hilbert",
    "information_chance",
    "jaccard",
    "jaccard_chance",
    "jain",
    "jensen_shannon",
    "mantel",
    "match",
    "matched_overlap",
    "max_over_mean",
    "mutual_information",
    "noise_floor",
    "overlap_chance",
    "partial_mantel",
    "random_table",
    "set_overlap",
    "similarities",
    "split_halves",
    "top_p",
    "topk_law",
    "topk_simulated",
    "total_variation",
    "weighted_jaccard",
]
