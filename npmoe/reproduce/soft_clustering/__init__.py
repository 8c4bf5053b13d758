"""SC1: F. Liu, "Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective".

`config`: what one run is; `axes`: which models are compared, and the *train* readings; `measure`: what is measured on
one model; `ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it; `figures`:
as data; `sentences`: each effect in its own unit.

`runs` reads finished runs by name.
"""

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.paper import Paper
from npmoe.reproduce.soft_clustering.claims import EXPERIMENT
from npmoe.reproduce.soft_clustering.config import Measured, Thinned
from npmoe.reproduce.soft_clustering.figures import figures as figures_of
from npmoe.reproduce.soft_clustering.measure import compute, thin
from npmoe.reproduce.soft_clustering.sentences import TELLINGS
from npmoe.reproduce.trained import Apart, apart, train

__all__ = ["SC1"]


def _notes(claims: list[Claim], plan: Trial) -> list[str]:
    notes = []
    if any(claim.id in ("SC1.3", "SC1.9") for claim in claims):
        notes.append(
            "Independent random experts have cosines near zero as well. So with independent initialization, claims of "
            "that kind (SC1.3, SC1.9) can at best be matched by chance, whatever training does."
        )
    if plan.full:
        notes.append(
            "The control, a dense model as wide as all experts, was run in the primary setting only. Interpretations "
            "that train the models differently lack it, and are never called reproduced without it."
        )
    return notes


SC1 = Paper(
    word="sc1",
    id="SC1",
    title="Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective",
    cite="F. Liu, arXiv 2601.11616 v1",
    heading="Mixture-of-Experts as Soft Clustering: what holds up",
    experiment=EXPERIMENT,
    computes={Config: train, Apart: apart, Measured: compute, Thinned: thin},
    figures=figures_of,
    tellings=TELLINGS,
    notes=_notes,
)
