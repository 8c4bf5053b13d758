"""The claims of SC1: what each says, which models it reads, its ways (the first is primary), its size, and words."""

from dataclasses import dataclass
from math import inf, log

from npmoe.geometry.spectra import rms_cosine
from npmoe.reproduce.experiment import Statistic, Way
from npmoe.reproduce.soft_clustering import ways
from npmoe.reproduce.soft_clustering.ways import final_loss, need, pairs, settled, stack, trained

__all__ = ["CLAIMS", "Spec"]


@dataclass(frozen=True)
class Spec:
    """A claim before any run: what it says, which models it reads, its ways (the first is primary), its size."""

    id: str
    says: str
    paper_value: str
    reads: tuple[str, ...]
    ways: tuple[Way, ...]
    size: tuple[Statistic, tuple[float, float], str] | None = None
    note: str = ""
    beside: tuple[tuple[str, str, Statistic], ...] = ()


CLAIMS = (
    Spec(
        "SC1.1",
        "The dense model's Jacobian norm grows throughout training.",
        "from about 5 to over 50",
        ("dense", "wide"),
        ways.sc1_1(),
        (lambda m: m.dense.norm(ways.PRIMARY_NORM, "end"), (50, inf), "(norm at the end)"),
        "Descriptive: there is no chance null, only a control.",
        tuple(
            (
                f"leading value of the stacked Jacobians, {words}",
                f"the reading whose size is nearest to the paper's, {paper}",
                stack(when),
            )
            for words, when, paper in (("untrained", "start", "about 5"), ("at the end", "end", "over 50"))
        ),
    ),
    Spec(
        "SC1.2",
        "The norm of the MoE, whole layer and each expert, rises early and then stays on a plateau.",
        "plateau after about 250 iterations",
        ("dense", "moe", "wide"),
        ways.sc1_2(),
        (lambda m: settled(m.moe), (200, 300), "steps until within 10 % of the end"),
        "Judged on the experts. The control asks whether a dense model that can interpolate has the same plateau.",
        tuple(
            (
                f"training loss at the end, {words}",
                "the control and the mixture can fit the batch, the dense baseline cannot",
                final_loss(which),
            )
            for words, which in (("dense", "dense"), ("top-2", "moe"), ("dense as wide as all experts", "wide"))
        ),
    ),
    Spec(
        "SC1.3",
        "Cosines between the experts' mean Jacobians are near zero at the end of training.",
        "-0.01 to 0.015",
        ("moe", "independent"),
        ways.sc1_3(),
        (lambda m: float(pairs(trained(m.moe)).mean()), (-0.01, 0.015), "(mean cosine)"),
        "Independent random experts are near zero too: with independent initialization this claim ends as 'so does the "
        "null' whatever training did. Only experts initialized alike can tell more.",
    ),
    Spec(
        "SC1.4",
        "The experts' leading singular values are smaller than the dense model's.",
        "1.5 to 1.7 times",
        ("dense", "moe", "wide"),
        ways.sc1_4(),
        (lambda m: m.dense.norm(ways.PRIMARY_NORM, "end") / m.moe.norm(ways.PRIMARY_NORM, "end"), (1.5, 1.7), "times"),
    ),
    Spec(
        "SC1.5",
        "The experts' Jacobian spectra hold their energy in fewer directions than the dense model's.",
        "figure only",
        ("dense", "moe"),
        ways.sc1_5(),
    ),
    Spec(
        "SC1.6",
        "The dense model reaches 90 % of the variance with few principal components.",
        "about 3",
        ("dense",),
        ways.sc1_6(),
        (lambda m: float(m.dense.arrays["hidden k90"][0]), (2.5, 3.5), "components"),
        "Without a layer in front the hidden states that enter the layer are the inputs themselves: a fact about the "
        "sample, not about the model.",
    ),
    Spec(
        "SC1.7",
        "MoE experts need many principal components for 90 % of the variance of what is routed to them.",
        "more than 20",
        ("dense", "moe"),
        ways.sc1_7(),
        (lambda m: m.moe.ranks("k90", 0), (20, inf), "components"),
        "The statistic compares with the dense model; that experts need more than 20 is judged as size.",
    ),
    Spec(
        "SC1.8",
        "Top-k routing concentrates what experts see in fewer components than soft routing.",
        "figure only",
        ("moe", "soft"),
        ways.sc1_8(),
    ),
    Spec(
        "SC1.9",
        "Experts are hardly aligned in both regimes, soft and top-k.",
        "figure only",
        ("moe", "soft", "independent"),
        ways.sc1_9(),
        note="As SC1.3: independent random experts are near zero too.",
        beside=(
            (
                "log rms cos, soft over top-2",
                "SC2.2 and GA.4 say that top-k is lower: above 0",
                lambda m: log(rms_cosine(trained(need(m.soft))) / rms_cosine(trained(m.moe))),
            ),
        ),
    ),
    Spec(
        "SC1.11",
        "Ours: the paper measures slopes and speaks of curvature; are second derivatives of experts smaller as well?",
        "not measured",
        ("dense", "moe", "wide"),
        ways.sc1_11(),
        beside=(
            (
                "log of the Hessian's norm, dense over a dense model as wide as all experts",
                "above 0: width does to curvature what experts do",
                lambda m: log(m.dense.arrays["curvature"][1, 0] / need(m.wide).arrays["curvature"][1, 0]),
            ),
        ),
    ),
)
