"""The claims of SC1 told in sentences, each effect in its own unit. T is as `ways` defines it."""

from math import exp

from npmoe.ledger.told import Amount, Telling, Told, percent, signed
from npmoe.reproduce.soft_clustering.config import BASE

__all__ = ["TELLINGS"]


FEW_TOKENS = "soft at top-2's n_eff"


def _smaller(T: float) -> float:
    """A log ratio, dense over experts, as experts over dense."""
    return exp(-T)


def _cosine(T: float) -> float:
    """T = log(3 / (d rms)) as the root mean square cosine."""
    return 3 / (BASE.d * exp(T))


def _grows(change: Amount) -> str:
    size = change.size("%")
    return f"{'changes' if size == '0 %' else signed(change.mean, 'grows', 'shrinks')} by {size}"


def _sc1_1(t: Told) -> str:
    return (
        f"Over the second half of training the dense model's Jacobian norm {_grows(t.amount)}; that of a dense model "
        f"as wide as all experts {_grows(t.null('dense as wide as all experts'))}. At the end the dense model's norm "
        f"is {t.size.split(' (')[0]}; the paper says that it grows from about 5 to over 50."
    )


def _sc1_2(t: Told) -> str:
    settled = t.size.removesuffix(" steps until within 10 % of the end")
    return (
        f"After step 250 the factor by which the dense model's norm changes is {t.amount.text('times')} that of the "
        f"experts' norm, and {t.null('dense as wide as all experts').text('times')} that of a dense model as wide as "
        f"all experts. The experts' norm stays within 10 % of its end after {settled or 'an unknown number of'} steps; "
        "the paper says after about 250."
    )


def _sc1_3(t: Told) -> str:
    return (
        f"The experts' mean Jacobians have a root-mean-square cosine of {t.amount.text()}. Experts that were trained "
        f"apart have {t.null('independent experts').text()}, untrained ones {t.null('untrained').text()}."
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
        f"as many rows needs {t.null('Gaussian of as many rows').text()}. The paper says about 3."
    )


def _sc1_7(t: Told) -> str:
    return (
        f"An expert needs {t.amount.text('times')} as many components as the dense model for 90 % of the variance "
        f"({t.size}); with shuffled gates {t.null('shuffled gates').text('times')}. The paper says more than 20 "
        "components."
    )


def _sc1_8(t: Told) -> str:
    def fewer(found: Amount) -> str:
        return f"{found.size()} {signed(found.mean, 'fewer', 'more')}"

    return (
        f"Top-2 experts need {fewer(t.amount)} components than soft experts for 90 % of the variance; with shuffled "
        f"gates {fewer(t.null('shuffled gates'))}. Soft experts on as few effective tokens need "
        f"{fewer(t.null(FEW_TOKENS))}."
    )


def _sc1_9(t: Told) -> str:
    return (
        f"In the more aligned of the two regimes, soft and top-2, the mean Jacobians have a root-mean-square cosine of "
        f"{t.amount.text()}. Experts that were trained apart have {t.null('independent experts').text()}."
    )


def _weakens(setting: str) -> Telling:
    """How the factor between experts and dense model, whichever is larger, changes in another setting.

    T = |log factor| in the primary setting less |log factor| in the other, so that exp(T) is a ratio of two factors.
    """

    def say(t: Told) -> str:
        ratio, change = t.amount, "shrinks: it is divided"
        if ratio.mean < 1:
            ratio, change = ratio.map(lambda r: 1 / r), "grows: it is multiplied"
        return (
            f"{setting} the factor between the leading singular values of experts and dense model (SC1.4) {change} by "
            f"{ratio.text()}. The paper predicts that it shrinks."
        )

    return Telling(say, exp, "factor of SC1.4 in the primary setting over that in this one")


def _sc1_11(t: Told) -> str:
    return (
        f"The dense model's second derivatives are {t.amount.text('times')} as large as the experts'; untrained, "
        f"{t.null('untrained').text('times')}. The paper measures slopes only."
    )


TELLINGS = {
    "SC1.1": Telling(_sc1_1, percent, "change of the norm over the second half of training, in %"),
    "SC1.2": Telling(_sc1_2, exp, "factor by which the dense norm changes after step 250, over that of the experts"),
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
