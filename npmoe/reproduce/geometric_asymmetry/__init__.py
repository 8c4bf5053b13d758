"""GA: F. Liu, "Geometric Asymmetry in MoE Specialization: Functional Decorrelation and Representational Overlap".

`config`: what one run is; `axes`: which models are compared, and the *train* readings; `measure`: what is measured on
one model; `ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it; `figures`:
as data; `sentences`: each effect in its own unit.
"""

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.geometric_asymmetry.claims import EXPERIMENT
from npmoe.reproduce.geometric_asymmetry.config import Measured, Thinned
from npmoe.reproduce.geometric_asymmetry.figures import figures as figures_of
from npmoe.reproduce.geometric_asymmetry.measure import compute, thin
from npmoe.reproduce.geometric_asymmetry.sentences import TELLINGS
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.paper import Paper
from npmoe.reproduce.trained import Apart, apart, train

__all__ = ["GA"]


def _notes(claims: list[Claim], plan: Trial) -> list[str]:
    return [
        "Only the abstract of this paper was at hand. Models, statistics and null models are ours, on the controlled "
        "mixture of SC1. The paper gives no numbers to compare sizes with.",
    ]


GA = Paper(
    word="ga",
    id="GA",
    title="Geometric Asymmetry in MoE Specialization: Functional Decorrelation and Representational Overlap",
    cite="F. Liu, arXiv 2605.16349",
    heading="Geometric asymmetry in mixtures of experts: what holds up",
    experiment=EXPERIMENT,
    computes={Config: train, Apart: apart, Measured: compute, Thinned: thin},
    figures=figures_of,
    tellings=TELLINGS,
    notes=_notes,
)
