"""Ways to measure the claims of SC2 as numbers T, with margins and nulls. Those of MY on text are `routing_ways`.

T is oriented so that the claim says T > 0, and is a mean over blocks unless a way names one. `docs/verdicts.md` fixes
statistics, margins and primaries.
"""

from collections.abc import Sequence
from math import log

import numpy as np

from npmoe.geometry.spectra import defined_mean, rms_cosine
from npmoe.ledger import COUNT, RATIO, SHARE, Statement
from npmoe.probe.function import NORMS
from npmoe.probe.representation import WEIGHTINGS
from npmoe.reproduce.experiment import Models, Run, Statistic, Way
from npmoe.reproduce.stated import ambiguity_statement

__all__ = ["aligned", "alignment", "ambiguity", "baseline", "concentrated", "curvature", "diversity", "higher_rank"]
__all__ += ["perplexity", "sensitivity"]

Array = np.ndarray
START, END = 0, 1
EXPERTS, WHOLE = 0, 1
_NORM = {
    "sigma token": "leading singular value per token, mean",
    "frob token": "Frobenius norm per token, mean",
    "sigma mean": "leading singular value of the mean Jacobian",
    "sigma stack": "leading singular value of the stacked Jacobians",
}


def _mean(values: object) -> float:
    return float(np.mean(np.asarray(values)))


# ---- SC2.1: sensitivity ----------------------------------------------------------------------------------------------


def _layer_norm(run: Run, norm: str, at: int = -1, term: int = EXPERTS) -> Array:
    """A norm of the whole feed-forward at the end of a stage, (L,)."""
    return run["layer norms"][at, :, term, NORMS.index(norm)]


def _at_loss(run: Run, norm: str, loss: float) -> Array:
    """The norm where this model's held-out loss first reaches `loss`, linear between the ends of stages, (L,)."""
    losses = run["loss"]
    reached = np.flatnonzero(losses <= loss)
    if not reached.size:
        return np.full(run["layer norms"].shape[1], np.nan)
    i = int(reached[0])
    if i == 0:
        return _layer_norm(run, norm, 0)
    part = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    a, b = np.log(_layer_norm(run, norm, i - 1)), np.log(_layer_norm(run, norm, i))
    return np.exp((1 - part) * a + part * b)


def sensitivity() -> tuple[Way, ...]:
    """How much smaller a mixture's feed-forward Jacobians are than those of a dense model."""

    def steps(norm: str, which: str = "top2", term: int = EXPERTS, layer: int | None = None, against: str = "dense",
              full: bool = False) -> Way:  # fmt: skip
        def T(m: Models, at: int = -1) -> float:
            ratio = np.log(_layer_norm(m[against], norm, at)) - np.log(_layer_norm(m[which], norm, at, term))
            return _mean(ratio if layer is None else ratio[layer])

        of = "dense as wide as all experts" if against == "wide" else "dense"
        words = [f"{of} over {'top-2' if which == 'top2' else 'soft'}", "at equal steps", _NORM[norm]]
        words += ["with the router's term"] * (term == WHOLE) + ([] if layer is None else [f"block {layer}"])
        return Way(
            ", ".join(words),
            f"log of the feed-forward's Jacobian norm ({_NORM[norm]}), {of} over {which}, "
            f"{'mean over blocks' if layer is None else f'block {layer}'}, at equal steps",
            T,
            RATIO,
            (("untrained", "chance", lambda m: T(m, 0)),),
            (against, which),
            "measure",
            full,
        )

    def loss(which: str) -> Way:
        def T(m: Models) -> float:
            level = max(float(m[role]["loss"][-1]) for role in ("dense", which))  # which both reach
            dense, there = (_at_loss(m[role], "sigma token", level) for role in ("dense", which))
            return _mean(np.log(dense) - np.log(there))

        return Way(
            f"dense over {'top-2' if which == 'top2' else 'soft'}, at equal held-out loss, {_NORM['sigma token']}",
            f"as the first, each model where its held-out loss first is the larger one of the dense and the {which} "
            "model's at their ends",
            T,
            RATIO,
            (("untrained", "chance", lambda m: steps("sigma token", which).nulls[0][2](m)),),
            ("dense", which),
        )

    def experts(which: str) -> Way:
        def T(m: Models, end: int = END) -> float:
            at = 0 if end == START else -1
            own = defined_mean(m[which]["norms"][end, :, :, NORMS.index("frob token")])
            return _mean(np.log(_layer_norm(m["dense"], "frob token", at)) - np.log(own))

        return Way(
            f"dense over the experts of {'top-2' if which == 'top2' else 'soft'} by themselves, Frobenius norm per "
            "token",
            f"log of the Frobenius norm per token, dense over each {which} expert on its own tokens, mean over blocks",
            T,
            RATIO,
            (("untrained", "chance", lambda m: T(m, START)),),
            ("dense", which),
        )

    return (
        steps("sigma token"),
        steps("sigma token", "soft"),
        steps("sigma token", term=WHOLE),
        *(steps("sigma token", layer=i) for i in range(3)),
        *(steps(norm, which) for norm in ("frob token", "sigma mean", "sigma stack") for which in ("top2", "soft")),
        loss("top2"),
        loss("soft"),
        experts("top2"),
        experts("soft"),
        steps("sigma token", against="wide", full=True),
    )


def curvature() -> tuple[Way, ...]:
    """How much smaller the experts' second derivatives are."""

    def way(which: str) -> Way:
        def T(m: Models, end: int = END) -> float:
            dense, own = m["dense"]["curvature"][end, :, 0], defined_mean(m[which]["curvature"][end])
            return _mean(np.log(dense) - np.log(own))

        return Way(
            f"{'top-2' if which == 'top2' else 'soft'} experts",
            f"log of the Hessian's norm (root mean square over tokens), dense over {which} experts, mean over blocks",
            T,
            RATIO,
            (("untrained", "chance", lambda m: T(m, START)),),
            ("dense", which),
        )

    return way("top2"), way("soft")


# ---- SC2.2 to SC2.4 --------------------------------------------------------------------------------------------------


def alignment() -> tuple[Way, ...]:
    """How much less aligned top-2 experts' mean Jacobians are than soft ones'."""

    def way(layer: int | None) -> Way:
        def over(a: Array, b: Array) -> float:
            ratios = [log(rms_cosine(x) / rms_cosine(y)) for x, y in zip(a, b, strict=True)]
            return _mean(ratios if layer is None else ratios[layer])

        def T(m: Models, end: int = END) -> float:
            return over(m["soft"]["cosines"][end], m["top2"]["cosines"][end])

        def null(m: Models) -> float:
            pairs = zip(m["soft"]["shuffled cosines"], m["top2"]["shuffled cosines"], strict=True)
            return _mean([over(a, b) for a, b in pairs])

        where = "mean over blocks" if layer is None else f"block {layer}"
        return Way(
            where,
            f"log of the rms cosine of the experts' mean Jacobians, soft over top-2, {where}",
            T,
            RATIO,
            (("shuffled gates", "chance", null), ("untrained", "chance", lambda m: T(m, START))),
        )

    return (way(None), *(way(i) for i in range(3)))


def _ranks(run: Run, name: str = "k90", w: int = 0) -> Array:
    """Mean over experts of k@0.9 or cum-var@10, (L,)."""
    return defined_mean(run[name][w])


def higher_rank() -> tuple[Way, ...]:
    """How many more components experts need than the dense model."""

    def way(which: str, w: int) -> Way:
        def over(k: Array, m: Models) -> float:
            return _mean(np.log(k) - np.log(_ranks(m["dense"])))

        def null(m: Models) -> float:
            return _mean([over(k, m) for k in m[which]["shuffled k90"][:, w]])

        nulls: tuple[tuple[str, str, Statistic], ...] = (("shuffled gates", "chance", null),)
        if which == "top2":
            few = ("dense at the same n_eff", "chance", lambda m: over(m["dense at the n_eff of top2"]["k90"], m))
            nulls = (*nulls, few)
        return Way(
            f"{'top-2' if which == 'top2' else 'soft'}, {WEIGHTINGS[w]}",
            f"log k@0.9 (covariance eigenvalues), {which} experts over dense, weighting: {WEIGHTINGS[w]}, mean over "
            "blocks",
            lambda m: over(_ranks(m[which], w=w), m),
            RATIO,
            nulls,
        )

    return (*(way("top2", w) for w in range(len(WEIGHTINGS))), way("soft", 0))


def concentrated() -> tuple[Way, ...]:
    """How many more components soft experts need than top-2 experts."""

    def way(name: str, w: int) -> Way:
        sign, margin = (1, COUNT) if name == "k90" else (-1, SHARE)

        def T(m: Models) -> float:
            return _mean(sign * (_ranks(m["soft"], name, w) - _ranks(m["top2"], name, w)))

        def null(m: Models) -> float:
            of = f"shuffled {name}"
            return _mean(sign * (m["soft"][of][:, w] - m["top2"][of][:, w]))

        nulls: tuple[tuple[str, str, Statistic], ...] = (("shuffled gates", "chance", null),)
        if name == "k90" and w == 0:
            few = "soft at the n_eff of top2"
            thin: Statistic = lambda m: _mean(_ranks(m["soft"]) - m[few]["k90"])  # noqa: E731
            nulls = (*nulls, ("soft at top-2's n_eff", "chance", thin))
        measure = "k@0.9" if name == "k90" else "cum-var@10"
        return Way(
            f"{measure}, {WEIGHTINGS[w]}",
            f"{measure} (covariance eigenvalues), {'soft minus top-2' if sign > 0 else 'top-2 minus soft'}, "
            f"weighting: {WEIGHTINGS[w]}, mean over blocks",
            T,
            margin,
            nulls,
        )

    return tuple(way(name, w) for name in ("k90", "cum10") for w in range(len(WEIGHTINGS)))


# ---- SC2.5 -----------------------------------------------------------------------------------------------------------


def ambiguity(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    """The ambiguity identity, counted for every token of every mixture."""
    return (ambiguity_statement(row for m in seeds for role in ("top2", "soft") for row in m[role]["ambiguity"]),)


def diversity(role: str) -> Statistic:
    """The spread of the experts' outputs over their mean square, mean over blocks."""
    return lambda m: _mean(m[role]["ambiguity"][:, 2] / m[role]["ambiguity"][:, 1])


def aligned(role: str) -> Statistic:
    """The rms cosine of the experts' mean Jacobians, mean over blocks."""
    return lambda m: _mean(m[role]["ambiguity"][:, 6])


# ---- numbers beside the claims ---------------------------------------------------------------------------------------


def perplexity(role: str) -> Statistic:
    """Held-out perplexity of a model at its end."""
    return lambda m: float(np.exp(m[role]["loss"][-1]))


def baseline(i: int) -> Statistic:
    """Perplexity of a baseline on the same tokens: unigram, Kneser-Ney bigram, trigram."""
    return lambda m: float(np.exp(m["dense"]["baselines"][i]))
