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
START, END = 0, -1  # of what is measured at the ends of all stages
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


def _at_loss(run: Run, values: Array, loss: float) -> Array:
    """Values (s + 1, ...) where this model's held-out loss first reaches `loss`, linear between the ends of stages."""
    losses = run["loss"]
    reached = np.flatnonzero(losses <= loss)
    if not reached.size:
        return np.full(values.shape[1:], np.nan)
    i = int(reached[0])
    if i == 0:
        return values[0]
    part = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    return (1 - part) * values[i - 1] + part * values[i]


def _level(*runs: Run) -> float:
    """The largest of the last losses, which all of them reach."""
    return max(float(run["loss"][-1]) for run in runs)


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
            of = NORMS.index("sigma token")
            norms = [np.log(m[role]["layer norms"][:, :, EXPERTS, of]) for role in ("dense", which)]  # (s + 1, L)
            level = _level(m["dense"], m[which])
            dense, there = (_at_loss(m[r], values, level) for r, values in zip(("dense", which), norms, strict=True))
            return _mean(dense - there)

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
            dense, own = (m[role]["norms"][end, :, :, NORMS.index("frob token")] for role in ("dense", which))
            return _mean(np.log(dense[:, 0]) - np.log(defined_mean(own)))

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


BLOCKS = (None, 0, 1, 2)  # the mean over blocks, and each of them


def _where(layer: int | None) -> str:
    return "mean over blocks" if layer is None else f"block {layer}"


def _of(values: Array, layer: int | None) -> float:
    """The mean over blocks of values (L,), or one of them."""
    return _mean(values if layer is None else values[layer])


def curvature() -> tuple[Way, ...]:
    """How much smaller the experts' second derivatives are."""

    def logs(run: Run) -> Array:
        return np.log(defined_mean(run["curvature"]))  # (s + 1, L)

    def way(which: str, layer: int | None = None, equal: bool = False) -> Way:
        def T(m: Models, end: int = END) -> float:
            dense, own = m["dense"], m[which]
            if equal and end == END:
                level = _level(dense, own)
                return _of(_at_loss(dense, logs(dense), level) - _at_loss(own, logs(own), level), layer)
            return _of(logs(dense)[end] - logs(own)[end], layer)

        of = "top-2" if which == "top2" else "soft"
        words = [f"{of} experts"] + ["at equal held-out loss"] * equal + [_where(layer)] * (layer is not None)
        return Way(
            ", ".join(words),
            f"log of the Hessian's norm (root mean square over tokens), dense over {which} experts, {_where(layer)}"
            + ", at equal held-out loss" * equal,
            T,
            RATIO,
            (("untrained", "chance", lambda m: T(m, START)),),
            ("dense", which),
        )

    blocks = (way("top2", layer) for layer in BLOCKS[1:])
    return way("top2"), way("soft"), way("top2", equal=True), *blocks


# ---- SC2.2 to SC2.4 --------------------------------------------------------------------------------------------------


def alignment() -> tuple[Way, ...]:
    """How much less aligned top-2 experts' mean Jacobians are than soft ones'."""

    def logs(tables: Array) -> Array:
        return np.array([log(rms_cosine(table)) for table in tables])  # (L,)

    def way(layer: int | None, equal: bool = False) -> Way:
        def over(a: Array, b: Array) -> float:
            return _of(logs(a) - logs(b), layer)

        def T(m: Models, end: int = END) -> float:
            soft, top2 = m["soft"], m["top2"]
            if equal and end == END:
                level = _level(soft, top2)
                there = [_at_loss(run, np.array([logs(at) for at in run["cosines"]]), level) for run in (soft, top2)]
                return _of(there[0] - there[1], layer)
            return over(soft["cosines"][end], top2["cosines"][end])

        def null(m: Models) -> float:
            pairs = zip(m["soft"]["shuffled cosines"], m["top2"]["shuffled cosines"], strict=True)
            return _mean([over(a, b) for a, b in pairs])

        return Way(
            _where(layer) + ", at equal held-out loss" * equal,
            f"log of the rms cosine of the experts' mean Jacobians, soft over top-2, {_where(layer)}"
            + ", at equal held-out loss" * equal,
            T,
            RATIO,
            (("shuffled gates", "chance", null), ("untrained", "chance", lambda m: T(m, START))),
        )

    return (*(way(layer) for layer in BLOCKS), way(None, equal=True))


def _ranks(run: Run, name: str = "k90", w: int = 0, at: int = END) -> Array:
    """Mean over experts of a measure of components, (L,)."""
    return defined_mean(run[name][at, w])


def _ranks_at(run: Run, level: float, name: str = "k90", w: int = 0) -> Array:
    """The same where the model's held-out loss first is `level`, (L,)."""
    return _at_loss(run, defined_mean(run[name][:, w]), level)


def higher_rank() -> tuple[Way, ...]:
    """How many more components hold what an expert is given than what the dense model is given."""

    def way(which: str, w: int = 0, layer: int | None = None, equal: bool = False) -> Way:
        def over(ranks: Array, dense: Array) -> float:
            return _of(np.log(ranks) - np.log(dense), layer)

        def T(m: Models) -> float:
            if equal:
                level = _level(m[which], m["dense"])
                return over(_ranks_at(m[which], level, w=w), _ranks_at(m["dense"], level, w=w))
            return over(_ranks(m[which], w=w), _ranks(m["dense"], w=w))

        def null(m: Models) -> float:
            return _mean([over(k, _ranks(m["dense"], w=w)) for k in m[which]["shuffled k90"][:, w]])

        nulls: tuple[tuple[str, str, Statistic], ...] = (("shuffled gates", "chance", null),)
        if which == "top2":
            few = "dense at the n_eff of top2"
            thin: Statistic = lambda m: over(m[few]["k90"], _ranks(m["dense"], w=w))  # noqa: E731
            nulls = (*nulls, ("dense at the same n_eff", "chance", thin))
        words = [f"{'top-2' if which == 'top2' else 'soft'}, {WEIGHTINGS[w]}"]
        words += ["at equal held-out loss"] * equal + [_where(layer)] * (layer is not None)
        return Way(
            ", ".join(words),
            f"log k@0.9 (covariance eigenvalues), {which} experts over dense, weighting: {WEIGHTINGS[w]}, "
            f"{_where(layer)}" + ", at equal held-out loss" * equal,
            T,
            RATIO,
            nulls,
        )

    return (
        *(way("top2", w) for w in range(len(WEIGHTINGS))),
        way("soft"),
        way("top2", equal=True),
        *(way("top2", layer=layer) for layer in BLOCKS[1:]),
    )


def concentrated() -> tuple[Way, ...]:
    """How many more components soft experts need than top-2 experts."""

    def way(name: str, w: int, layer: int | None = None, equal: bool = False) -> Way:
        sign, margin = (1, COUNT) if name == "k90" else (-1, SHARE)

        def T(m: Models) -> float:
            if equal:
                level = _level(m["soft"], m["top2"])
                return _of(sign * (_ranks_at(m["soft"], level, name, w) - _ranks_at(m["top2"], level, name, w)), layer)
            return _of(sign * (_ranks(m["soft"], name, w) - _ranks(m["top2"], name, w)), layer)

        def null(m: Models) -> float:
            of = f"shuffled {name}"
            return _of(sign * (m["soft"][of][:, w] - m["top2"][of][:, w]).mean(axis=0), layer)

        nulls: tuple[tuple[str, str, Statistic], ...] = (("shuffled gates", "chance", null),)
        if name == "k90" and w == 0:
            few = "soft at the n_eff of top2"
            thin: Statistic = lambda m: _of(_ranks(m["soft"]) - m[few]["k90"], layer)  # noqa: E731
            nulls = (*nulls, ("soft at top-2's n_eff", "chance", thin))
        measure = "k@0.9" if name == "k90" else "cum-var@10"
        words = [f"{measure}, {WEIGHTINGS[w]}"]
        words += ["at equal held-out loss"] * equal + [_where(layer)] * (layer is not None)
        return Way(
            ", ".join(words),
            f"{measure} (covariance eigenvalues), {'soft minus top-2' if sign > 0 else 'top-2 minus soft'}, "
            f"weighting: {WEIGHTINGS[w]}, {_where(layer)}" + ", at equal held-out loss" * equal,
            T,
            margin,
            nulls,
        )

    return (
        *(way(name, w) for name in ("k90", "cum10") for w in range(len(WEIGHTINGS))),
        way("k90", 0, equal=True),
        *(way("k90", 0, layer) for layer in BLOCKS[1:]),
    )


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
