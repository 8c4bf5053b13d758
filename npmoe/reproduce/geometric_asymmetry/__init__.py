"""GA: F. Liu, "Geometric Asymmetry in MoE Specialization: Functional Decorrelation and Representational Overlap".

`config`: what one run is; `axes`: which models are compared, and the *train* readings; `measure`: what is measured on
one model; `ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it; `figures`:
as data.
"""

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.geometric_asymmetry.claims import EXPERIMENT
from npmoe.reproduce.geometric_asymmetry.config import Measured
from npmoe.reproduce.geometric_asymmetry.figures import figures as figures_of
from npmoe.reproduce.geometric_asymmetry.measure import compute
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.paper import Paper
from npmoe.reproduce.trained import Apart, apart, train

__all__ = ["GA"]


def _notes(claims: list[Claim], plan: Trial) -> list[str]:
    return [
        "Only the abstract of this paper was at hand: models, statistics and nulls are ours, on the controlled "
        "mixture of SC1, and the paper gives no numbers to compare sizes with.",
    ]


GA = Paper(
    word="ga",
    id="GA",
    title="Geometric Asymmetry in MoE Specialization: Functional Decorrelation and Representational Overlap",
    cite="F. Liu, arXiv 2605.16349",
    heading="Geometric asymmetry in mixtures of experts: each claim beside our number, its spread and chance",
    experiment=EXPERIMENT,
    computes={Config: train, Apart: apart, Measured: compute},
    figures=figures_of,
    notes=_notes,
)
