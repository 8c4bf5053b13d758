"""SC1: F. Liu, "Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective".

`config`: what one run is; `axes`: which models are compared, and the *train* readings; `measure`: what is measured on
one model; `ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it; `figures`:
as data; `sentences`: each effect in its own unit.

`runs` is beside them: finished runs, read by name.
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
            "Claims of the kind 'near zero' hold for independent random experts as well: with independent "
            "initialization they end as 'so does the null' whatever training did."
        )
    if plan.full:
        notes.append(
            "The control, a dense model as wide as all experts, stands beside measure readings only: where a train "
            "reading lacks it, T may hold, but is not called reproduced."
        )
    return notes


SC1 = Paper(
    word="sc1",
    id="SC1",
    title="Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective",
    cite="F. Liu, arXiv 2601.11616 v1",
    heading="Mixture-of-Experts as Soft Clustering: each claim beside our number, its spread and chance",
    experiment=EXPERIMENT,
    computes={Config: train, Apart: apart, Measured: compute, Thinned: thin},
    figures=figures_of,
    tellings=TELLINGS,
    notes=_notes,
)
