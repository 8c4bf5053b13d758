"""SC1: F. Liu, "Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective".

`axes`: the *train* readings of `npmoe.reproduce.mixture`; `measure`: what is measured on it; `runs`: what was
measured, read by name;
`ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it;
`plan`: which runs are needed, and how they become claims; `figures`: the paper's figures as data.
"""

from npmoe.ledger import Claim
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.paper import Paper, core_and
from npmoe.reproduce.soft_clustering.figures import figures as figures_of
from npmoe.reproduce.soft_clustering.measure import compute
from npmoe.reproduce.soft_clustering.plan import IDS, Plan, all_claims
from npmoe.reproduce.soft_clustering.plan import plan as plan_of

__all__ = ["SC1"]


def _label(config: Config) -> str:
    kind = "dense" if config.E == 1 else "soft" if config.k == config.E else f"top-{config.k}"
    return f"{kind}, seed {config.seed}"


def _notes(claims: list[Claim], plan: Plan) -> list[str]:
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
    ids=IDS,
    plan=plan_of,
    compute=compute,
    label=_label,
    claims=all_claims,
    figures=figures_of,
    notes=_notes,
    sources=core_and("mixture.py", "soft_clustering/measure.py"),
)
