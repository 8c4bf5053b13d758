"""GA: F. Liu, "Geometric Asymmetry in MoE Specialization: Functional Decorrelation and Representational Overlap".

`measure`: what is measured on one mixture; `claims`: statistics, margins, nulls, axes; `figures`: as data. Models are
those of `npmoe.reproduce.mixture`; how runs become claims stands in `npmoe.reproduce.experiment`.
"""

from npmoe.ledger import Claim
from npmoe.reproduce.experiment import Trial
from npmoe.reproduce.geometric_asymmetry.claims import EXPERIMENT
from npmoe.reproduce.geometric_asymmetry.figures import figures as figures_of
from npmoe.reproduce.geometric_asymmetry.measure import compute
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.paper import Paper, core_and

__all__ = ["GA"]


def _label(config: Config) -> str:
    return f"{'soft' if config.k == config.E else f'top-{config.k}'}, seed {config.seed}"


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
    ids=EXPERIMENT.ids,
    plan=EXPERIMENT.plan,
    compute=compute,
    label=_label,
    claims=lambda results, plan: plan.claims(results),
    figures=figures_of,
    notes=_notes,
    sources=core_and("mixture.py", "geometric_asymmetry/measure.py"),
)
