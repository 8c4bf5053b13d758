"""MY: X. Wang, S. Hayou, E. Nalisnick, "The Myth of Expert Specialization in MoEs: Why Routing Reflects Geometry, Not
Necessarily Domain Expertise".

`config`: what one run is; `axes`: which models are compared, and the *train* readings; `measure`: what is measured on
one model; `ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it; `figures`:
as data; `sentences`: each effect in its own unit.

Beside them: `several`, what is measured on several models at once; `counts`, what routing counts of real models alone
can answer.
"""

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.paper import Paper
from npmoe.reproduce.routing_reflects_geometry.claims import EXPERIMENT
from npmoe.reproduce.routing_reflects_geometry.config import Config
from npmoe.reproduce.routing_reflects_geometry.figures import figures as figures_of
from npmoe.reproduce.routing_reflects_geometry.measure import compute
from npmoe.reproduce.routing_reflects_geometry.sentences import TELLINGS

__all__ = ["MY"]


def _notes(claims: list[Claim], plan: Trial) -> list[str]:
    return [
        "The paper studies pretrained language models. Its definitions are known to us from the notes of two readers "
        "of its full text. The setting here is ours: small mixtures trained on sequences with topics.",
        "Exact statements hold for every router of this kind, pretrained ones too. Sizes, and what training does, were "
        "measured on small models and need not carry over.",
    ]


MY = Paper(
    word="my",
    id="MY",
    title="The Myth of Expert Specialization in MoEs: Why Routing Reflects Geometry, Not Necessarily Domain Expertise",
    cite="X. Wang, S. Hayou, E. Nalisnick, arXiv 2604.09780",
    heading="Does routing reflect geometry? What holds up",
    experiment=EXPERIMENT,
    computes={Config: compute},
    figures=figures_of,
    tellings=TELLINGS,
    notes=_notes,
)
