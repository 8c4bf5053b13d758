"""The claims of GA: what each says, which models it reads, its ways (the first is primary), and words.

Only the abstract was at hand: the protocol is ours, on the controlled mixture of SC1.
"""

import numpy as np

from npmoe.reproduce.experiment import Experiment, Spec
from npmoe.reproduce.geometric_asymmetry import ways
from npmoe.reproduce.geometric_asymmetry.axes import ALONE, BESIDE, ROLES
from npmoe.reproduce.geometric_asymmetry.config import BASE, QUICK, Measured

__all__ = ["EXPERIMENT", "SPECS"]

BOTH = ("top2", "soft")
FEW = "soft at the n_eff of top2"

SPECS = (
    Spec(
        "GA.1",
        "Experts are functionally decorrelated: alignment of their Jacobians is consistently near zero.",
        "near zero",
        (*BOTH, "independent top2"),
        ways.decorrelated(),
        ALONE,
        note="Independent random experts are hardly aligned either. So with independent initialization this claim can "
        "at best be matched by chance, whatever training does. Only experts that start alike can tell more; untrained, "
        "they are fully aligned.",
    ),
    Spec(
        "GA.2a",
        "Routed representations occupy distinct subspaces.",
        "distinct",
        (*BOTH, FEW),
        ways.distinct(),
        ALONE,
        note="Distinct means: less overlap than the same gates give when they are handed to other tokens. T is "
        "measured against these shuffled gates. Random subspaces are no null model here, because the principal "
        "directions of any sample overlap more. An expert is also compared with itself: two random halves of its "
        "tokens. Martin's distance is left out, since it is infinite at a right angle. Top-1 gates are not "
        "renormalized, or the router would have no gradient.",
        beside=(
            (
                "overlap, r = 8",
                "mean cos^2 of the principal angles; random subspaces have r/d",
                lambda m: ways.overlap_of(m["top2"]["overlap"][ways.END]),
            ),
            (
                "overlap with shuffled gates",
                "the same statistic; what sample size and shared tokens alone give",
                lambda m: float(np.mean([ways.overlap_of(t) for t in m["top2"]["shuffled overlap"]])),
            ),
        ),
    ),
    Spec(
        "GA.2b",
        "The subspaces overlap partially.",
        "partially overlapping",
        BOTH,
        ways.overlapping(),
        ALONE,
        note="Overlapping means: more overlap than random subspaces of that dimension.",
    ),
    Spec(
        "GA.3",
        "Functional decorrelation and representational overlap coexist: a structural asymmetry.",
        "figure only",
        (*BOTH, "independent top2"),
        ways.asymmetric(),
        ALONE,
        note="Both are in units of what chance gives. Routing causes the asymmetry only if it exceeds that of shuffled "
        "gates and of experts that were trained apart.",
    ),
    Spec(
        "GA.4a",
        "Sparsity sharpens functional separation: top-k below soft.",
        "no number",
        BOTH,
        ways.sharper(),
        BESIDE,
    ),
    Spec(
        "GA.4b",
        "Sparsity enlarges the divergence of subspaces: top-k above soft.",
        "no number",
        (*BOTH, FEW),
        ways.farther(),
        BESIDE,
    ),
    Spec(
        "GA.5",
        "The same holds in pretrained transformers (Mistral and Qwen families).",
        "no number",
        note="Not tested: it needs pretrained checkpoints, which npmoe does not read yet.",
    ),
)

EXPERIMENT = Experiment(BASE, QUICK, ROLES, SPECS, Measured, lean={"lean": True})
