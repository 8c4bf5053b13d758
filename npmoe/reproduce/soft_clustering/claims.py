"""The claims of SC1: what each says, which models it reads, its ways (the first is primary), its size, and words."""

from math import inf, log
from typing import Any

from npmoe.geometry.spectra import rms_cosine
from npmoe.reproduce.experiment import Axis, Experiment, Models, Spec, Way
from npmoe.reproduce.soft_clustering import runs, ways
from npmoe.reproduce.soft_clustering.axes import MODELS, ROLES, SETTINGS, axes_of, role_in
from npmoe.reproduce.soft_clustering.config import BASE, QUICK, Measured
from npmoe.reproduce.soft_clustering.ways import final_loss, pairs, settled, stack, trained

__all__ = ["CLAIMS", "EXPERIMENT"]


def _claim(
    id: str, says: str, paper_value: str, roles: tuple[str, ...], measured: tuple[Way, ...], *more: Any, **named: Any
) -> Spec:
    """A claim with all the train axes that concern what it reads."""
    return Spec(id, says, paper_value, roles, measured, axes_of(id, roles), *more, **named)


_EFFECTS = (
    _claim(
        "SC1.1",
        "The dense model's Jacobian norm grows throughout training.",
        "from about 5 to over 50",
        ("dense",),
        ways.sc1_1(),
        (lambda m: runs.norm(m["dense"], ways.PRIMARY_NORM, "end"), (50, inf), "(norm at the end)"),
        "There is no null model for growth over training, only a control.",
        tuple(
            (
                f"leading value of the stacked Jacobians, {words}",
                f"of all norms the one whose size comes nearest to the paper's, {paper}",
                stack(when),
            )
            for words, when, paper in (("untrained", "start", "about 5"), ("at the end", "end", "over 50"))
        ),
        once=("wide",),
    ),
    _claim(
        "SC1.2",
        "The norm of the MoE, whole layer and each expert, rises early and then stays on a plateau.",
        "plateau after about 250 iterations",
        ("dense", "top2"),
        ways.sc1_2(),
        (lambda m: settled(m["top2"]), (200, 300), "steps until within 10 % of the end"),
        "Judged on the experts' norm. The control shows whether a dense model that can fit the batch levels off too.",
        tuple(
            (
                f"training loss at the end, {words}",
                "the control and the mixture can fit the batch, the dense baseline cannot",
                final_loss(which),
            )
            for words, which in (("dense", "dense"), ("top-2", "top2"), ("dense as wide as all experts", "wide"))
        ),
        once=("wide", "soft"),
    ),
    _claim(
        "SC1.3",
        "Cosines between the experts' mean Jacobians are near zero at the end of training.",
        "-0.01 to 0.015",
        ("top2", "independent top2"),
        ways.sc1_3(),
        (lambda m: float(pairs(trained(m["top2"])).mean()), (-0.01, 0.015), "(mean cosine)"),
        "Independent random experts have cosines near zero as well. So with independent initialization this claim can "
        "at best be matched by chance, whatever training does. Only experts that start alike can tell more.",
    ),
    _claim(
        "SC1.4",
        "The experts' leading singular values are smaller than the dense model's.",
        "1.5 to 1.7 times",
        ("dense", "top2"),
        ways.sc1_4(),
        (
            lambda m: runs.norm(m["dense"], ways.PRIMARY_NORM, "end") / runs.norm(m["top2"], ways.PRIMARY_NORM, "end"),
            (1.5, 1.7),
            "times",
        ),
        once=("wide", "soft", "dense at the n_eff of top2", "dense at the n_eff of soft"),
    ),
    _claim(
        "SC1.5",
        "The experts' Jacobian spectra hold their energy in fewer directions than the dense model's.",
        "figure only",
        ("dense", "top2"),
        ways.sc1_5(),
        once=("soft",),
    ),
    _claim(
        "SC1.6",
        "The dense model reaches 90 % of the variance with few principal components.",
        "about 3",
        ("dense",),
        ways.sc1_6(),
        (lambda m: float(m["dense"]["hidden k90"][0]), (2.5, 3.5), "components"),
        "Without a layer in front, the hidden states that enter the layer are the inputs themselves. The number then "
        "describes the sample, not the model.",
    ),
    _claim(
        "SC1.7",
        "MoE experts need many principal components for 90 % of the variance of what is routed to them.",
        "more than 20",
        ("dense", "top2", "dense at the n_eff of top2"),
        ways.sc1_7(),
        (lambda m: runs.ranks(m["top2"], "k90", 0), (20, inf), "components"),
        "The statistic compares experts with the dense model. Whether they need more than 20 is judged apart, as size.",
        once=("soft", "dense at the n_eff of soft"),
    ),
    _claim(
        "SC1.8",
        "Top-k routing concentrates what experts see in fewer components than soft routing does.",
        "figure only",
        ("top2", "soft", "soft at the n_eff of top2"),
        ways.sc1_8(),
    ),
    _claim(
        "SC1.9",
        "Experts are hardly aligned in both regimes, soft and top-k.",
        "figure only",
        ("top2", "soft", "independent top2", "independent soft"),
        ways.sc1_9(),
        note="As for SC1.3, independent random experts have cosines near zero as well.",
        beside=(
            (
                "log rms cos, soft over top-2",
                "above 0 if top-k is less aligned, as SC2.2 and GA.4 say",
                lambda m: log(rms_cosine(trained(m["soft"])) / rms_cosine(trained(m["top2"]))),
            ),
        ),
    ),
    _claim(
        "SC1.11",
        "Ours: experts' second derivatives are smaller as well (the paper speaks of curvature and measures slopes).",
        "not measured",
        ("dense", "top2"),
        ways.sc1_11(),
        beside=(
            (
                "log of the Hessian's norm, dense over a dense model as wide as all experts",
                "above 0 if a wider dense model has smaller second derivatives too",
                lambda m: log(m["dense"]["curvature"][1, 0] / m["wide"]["curvature"][1, 0]),
            ),
        ),
        once=("wide", "soft"),
    ),
)


# ---- SC1.10: the paper's own predictions -----------------------------------------------------------------------------

_PREDICTED = {
    "a": "Predicted in section 4: the effects weaken when routing is nearly uniform.",
    "b": "Predicted in section 4: the effects weaken with a residual connection or a shared norm.",
    "c": "Predicted in section 4: the effects weaken for predefined tasks.",
    "d": "Predicted in section 4: the effects weaken in stacked layers.",
}


def _weakening(setting: Axis, effect: Spec, full: bool) -> Way:
    """How much an effect shrinks from the primary setting to another; for sharper routing, how much it grows."""
    way, sharper = effect.ways[0], setting.name == "temperature 1/4"
    compared = tuple(role for role in effect.roles if role in MODELS)  # T of the effect; its nulls are not read

    def T(m: Models) -> float:
        there = Models(m.seed, {role: m[role_in(setting, role)] for role in compared})
        here, other = abs(way.T(m)), abs(way.T(there))
        return other - here if sharper else here - other

    words = f"{setting.name} minus primary" if sharper else f"primary minus {setting.name}"
    return Way(
        f"{setting.name}, {effect.id}",
        f"|T| of {effect.id} ({way.statistic}): {words}",
        T,
        way.margin,
        (("the primary in the setting's place", "chance", lambda m: 0.0),),
        (*compared, *(role_in(setting, role) for role in compared)),
        "train",
        full,
    )


def _prediction(letter: str) -> Spec:
    """A claim of SC1.10: each effect in each of its settings, of which the first is primary.

    SC1.5 comes with the runs that SC1.4 needs; SC1.8 needs soft mixtures, and other settings models of their own.
    """
    effects = [spec for spec in _EFFECTS if spec.id in ("SC1.4", "SC1.5", "SC1.8")]
    return Spec(
        f"SC1.10{letter}",
        _PREDICTED[letter],
        "no number",
        (),
        tuple(
            _weakening(setting, effect, full=i > 0 or effect.id == "SC1.8")
            for i, setting in enumerate(SETTINGS[letter])
            for effect in effects
        ),
        note="This compares sizes of effects, whatever their sign. Where SC1.4 is contradicted, it is the opposite "
        "effect that weakens or grows. Read it together with SC1.4, SC1.5 and SC1.8.",
    )


#: In the paper's order; what is ours comes last.
CLAIMS = (*_EFFECTS[:-1], *map(_prediction, SETTINGS), _EFFECTS[-1])

EXPERIMENT = Experiment(BASE, QUICK, ROLES, CLAIMS, Measured, lean={"lean": True})
