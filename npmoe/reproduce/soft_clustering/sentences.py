"""The claims of SC1 told in sentences, each effect in its own unit. T is as `ways` defines it."""

from math import exp

from npmoe.ledger.told import Telling, Told, signed
from npmoe.reproduce.soft_clustering.config import BASE

__all__ = ["TELLINGS"]


def _percent(T: float) -> float:
    """A log ratio as a change in per cent."""
    return 100 * (exp(T) - 1)


def _smaller(T: float) -> float:
    """A log ratio, dense over experts, as experts over dense."""
    return exp(-T)


def _cosine(T: float) -> float:
    """T = log(3 / (d rms)) as the root mean square cosine."""
    return 3 / (BASE.d * exp(T))


def _sc1_1(t: Told) -> str:
    change = t.amount
    return (
        f"Over the second half of training the dense model's Jacobian norm {signed(change.mean, 'grows', 'changes')} "
        f"by {change.text('%')}; that of a dense model as wide as all experts changes by "
        f"{t.null('dense as wide as all experts')} %. At the end it is {t.size.split(' (')[0]}; the paper says that it "
        "grows from about 5 to over 50."
    )


def _sc1_2(t: Told) -> str:
    return (
        f"After step 250 the dense model's norm changes {t.amount.text('times')} as much as the experts' norm, which "
        f"levels off. A dense model as wide as all experts gives {t.null('dense as wide as all experts')} times: it "
        "levels off as well."
    )


def _sc1_3(t: Told) -> str:
    return (
        f"The experts' mean Jacobians have a root-mean-square cosine of {t.amount.text()}. Experts that were trained "
        f"apart have {t.null('independent experts')}, untrained ones {t.null('untrained')}."
    )


def _sc1_4(t: Told) -> str:
    return (
        f"The experts' leading singular value is {t.amount.text('times')} the dense model's. The paper says that it is "
        "1.5 to 1.7 times smaller."
    )


def _sc1_5(t: Told) -> str:
    share = t.amount
    return (
        f"The first ten directions hold {share.size('percentage points')} {signed(share.mean, 'more', 'less')} of the "
        "energy of an expert's Jacobian than of the dense model's."
    )


def _sc1_6(t: Told) -> str:
    return (
        f"The dense model's inputs need {t.amount.text('components')} for 90 % of their variance; a Gaussian sample of "
        f"as many rows needs {t.null('Gaussian of as many rows')}. The paper says about 3."
    )


def _sc1_7(t: Told) -> str:
    return (
        f"An expert needs {t.amount.text('times')} as many components as the dense model for 90 % of the variance "
        f"({t.size}); with shuffled gates {t.null('shuffled gates')} times. The paper says more than 20 components."
    )


def _sc1_8(t: Told) -> str:
    fewer, thinned = t.amount, t.null("soft at top-2's n_eff")
    return (
        f"Top-2 experts need {fewer.size()} {signed(fewer.mean, 'fewer', 'more')} components than soft experts for "
        f"90 % of the variance; with shuffled gates {t.null('shuffled gates')} fewer, and soft experts on as few "
        f"effective tokens {thinned} fewer."
    )


def _sc1_9(t: Told) -> str:
    return (
        f"In the more aligned of the two regimes, soft and top-2, the mean Jacobians have a root-mean-square cosine of "
        f"{t.amount.text()}. Experts that were trained apart have {t.null('independent experts')}."
    )


def _weakens(setting: str) -> Telling:
    """How much the gap of SC1.4 shrinks in another setting."""

    def say(t: Told) -> str:
        change = t.amount
        return (
            f"{setting} the gap between experts and dense model in the leading singular value (SC1.4) becomes "
            f"{change.size('%')} {signed(change.mean, 'smaller', 'larger')}. The paper predicts that it weakens."
        )

    return Telling(say, _percent, "how much the gap of SC1.4 weakens, in %")


def _sc1_11(t: Told) -> str:
    return (
        f"The dense model's second derivatives are {t.amount.text('times')} as large as the experts'; untrained, "
        f"{t.null('untrained')} times. The paper measures slopes only."
    )


TELLINGS = {
    "SC1.1": Telling(_sc1_1, _percent, "change of the norm over the second half of training, in %"),
    "SC1.2": Telling(_sc1_2, exp, "change of the dense norm after step 250 over that of the experts, a ratio"),
    "SC1.3": Telling(_sc1_3, _cosine, "root-mean-square cosine between experts"),
    "SC1.4": Telling(_sc1_4, _smaller, "leading singular value, experts over dense"),
    "SC1.5": Telling(_sc1_5, lambda T: 100 * T, "share of the first ten directions, experts minus dense, in % points"),
    "SC1.6": Telling(_sc1_6, lambda T: 6 - T, "components for 90 % of the variance"),
    "SC1.7": Telling(_sc1_7, exp, "components, experts over dense"),
    "SC1.8": Telling(_sc1_8, lambda T: T, "components, soft minus top-2"),
    "SC1.9": Telling(_sc1_9, _cosine, "root-mean-square cosine between experts"),
    "SC1.10a": _weakens("With nearly uniform routing (temperature 4)"),
    "SC1.10b": _weakens("With a residual connection around the layer"),
    "SC1.10c": _weakens("On labelled clusters with a task each"),
    "SC1.10d": _weakens("In the second of two stacked layers"),
    "SC1.11": Telling(_sc1_11, exp, "norm of the second derivatives, dense over experts"),
}
