"""Ways to measure the claims of SC2, and those of MY that need a language model, as numbers T with margins and nulls.

T is oriented so that the claim says T > 0, and is a mean over layers unless a way names one. `docs/verdicts.md` fixes
statistics, margins and primaries.
"""

from math import log

import numpy as np

from npmoe.geometry.spectra import defined_mean, rms_cosine
from npmoe.ledger import CORRELATION, COUNT, RATIO, SHARE
from npmoe.probe.function import NORMS
from npmoe.probe.representation import WEIGHTINGS
from npmoe.reproduce.experiment import Models, Run, Statistic, Way

__all__ = ["alignment", "author_chance", "author_overlap", "baseline", "beside", "by_block", "concentrated"]
__all__ += [
    "curvature",
    "higher_rank",
    "in_practice",
    "increase",
    "no_higher",
    "perplexity",
    "pruning",
    "same_token",
    "sensitivity",
]
__all__ += ["suppressed", "unpredicted", "unrelated"]

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
            there = _at_loss(m[which], "sigma token", float(m["dense"]["loss"][-1]))
            return _mean(np.log(_layer_norm(m["dense"], "sigma token")) - np.log(there))

        return Way(
            f"dense over {'top-2' if which == 'top2' else 'soft'}, at equal held-out loss, {_NORM['sigma token']}",
            f"as the first, where the {which} model's held-out loss first is the dense model's at its end",
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


# ---- MY on a language model ------------------------------------------------------------------------------------------

TOKENS, SEQUENCES = 0, 1


def in_practice() -> tuple[Way, ...]:
    """How much of usage similarity the similarity of hidden states explains."""

    def way(of: int | None, layer: int | None) -> Way:
        def read(table: Array) -> float:
            column = table[:, 1 if layer is None else layer]  # the middle of three layers
            return float(column.min() if of is None else column[of])

        def drawn(name: str) -> Statistic:
            return lambda m: _mean([read(table) for table in m["top2"][name]])

        what = {None: "the lesser of tokens and sequences", TOKENS: "tokens", SEQUENCES: "sequences"}[of]
        where = "middle block" if layer is None else f"block {layer}"
        return Way(
            f"{what}, {where}",
            f"Mantel correlation of the cosine of hidden states with mask overlap (tokens) and with the cosine of "
            f"visit counts (sequences), {what}, {where}, first tokens left out",
            lambda m: read(m["top2"]["mantel"]),
            CORRELATION,
            (
                ("random router", "chance", drawn("mantel random")),
                ("coordinates permuted", "chance", drawn("mantel permuted")),
                ("untrained", "chance", lambda m: read(m["top2"]["mantel start"])),
            ),
        )

    return (way(None, None), *(way(of, layer) for of in (TOKENS, SEQUENCES) for layer in range(3)))


def suppressed() -> tuple[Way, ...]:
    """How much weaker the router responds along the mean hidden state with the balance loss."""

    def response(m: Models, role: str, column: int) -> Array:
        run = m[role]
        return run["response"][END, :, 0] if column == 0 else run["size"][END] * run["response"][END, :, column]

    def T(m: Models, column: int = 0) -> float:
        return _mean(np.log(response(m, "top2", column)) - np.log(response(m, "balanced", column)))

    return (
        Way(
            "response, weight 0.01",
            "log of |C W mu|, the router's response along the mean hidden state, without the loss over weight 0.01, "
            "mean over blocks",
            T,
            RATIO,
            (
                ("random directions of equal norm", "control", lambda m: T(m, 2)),
                ("response along the data less its mean", "chance", lambda m: T(m, 3)),
            ),
            ("top2", "balanced"),
            "measure",
            True,
        ),
    )


def unrelated() -> tuple[Way, ...]:
    """How much more alike unrelated sequences are routed in the last block than in the first."""

    def T(m: Models, name: str = "unrelated") -> float:
        jaccard = m["top2"][name]
        return float(jaccard[-1] - jaccard[0])

    return (
        Way(
            "last block minus first",
            "Jaccard of the smallest sets of experts that hold 80 % of a sequence's usage, pairs of sequences from "
            "different documents, last block minus first",
            T,
            0.05,
            (("two halves of one sequence", "control", lambda m: T(m, "unrelated floor")),),
        ),
    )


def same_token() -> tuple[Way, ...]:
    """How much more experts equal tokens share in the first block than in the last."""

    def way(minus: bool) -> Way:
        def T(m: Models, end: int = END, name: str = "same token") -> float:
            overlap = m["top2"][name][end]
            if minus:
                overlap = overlap - m["top2"]["other token"][end]
            return float(overlap[0] - overlap[-1])

        nulls: tuple[tuple[str, str, Statistic], ...] = (("untrained", "chance", lambda m: T(m, START)),)
        if not minus:
            nulls = (("different tokens", "chance", lambda m: T(m, name="other token")), *nulls)
        beyond = ", less that of different tokens" if minus else ""
        return Way(
            f"first block minus last{beyond}",
            f"share of experts in common of equal tokens in different sequences{beyond}, first block minus last",
            T,
            SHARE,
            nulls,
        )

    return way(False), way(True)


# ---- MY on prompts and rollouts --------------------------------------------------------------------------------------

TOLERANCE = 0.2  # of a correlation: "does not predict" is read as less than 0.1, the whole interval
EQUAL = 0.04  # of a Jaccard: "no higher" is read as by less than 0.02, the whole interval


def unpredicted() -> tuple[Way, ...]:
    """How little the similarity of two prompts' routing says of that of their continuations."""

    def way(layer: int | None) -> Way:
        def read(r: Array) -> float:
            return TOLERANCE - float(r.mean() if layer is None else r[layer])

        where = "mean over blocks" if layer is None else f"block {layer}"
        return Way(
            where,
            "0.2 minus the Mantel correlation, over pairs of prompts, of the cosine of the prompts' visits with that "
            f"of their own continuations' visits, {where}",
            lambda m: read(m["top2"]["predicts"]),
            CORRELATION,
            (
                (
                    "continuations reassigned",
                    "chance",
                    lambda m: _mean([read(r) for r in m["top2"]["predicts null"]]),
                ),
            ),
        )

    return (way(None), *(way(i) for i in range(3)))


def pruning() -> tuple[Way, ...]:
    """How much more pruning the last two blocks costs on rollouts than on prompts."""

    def cost(found: Array, whole: Array) -> float:
        """Relative increase of the loss, rollouts minus prompts; a ratio of the two has no sense where one is "
        "negative."""
        prompts, own = found / whole - 1
        return float(own - prompts)

    def kept(m: Models, column: int) -> float:
        table = m["top2"]["pruned"]
        return cost(table[:, column], table[:, 0])

    def random(m: Models) -> float:
        return _mean([cost(found, m["top2"]["pruned"][:, 0]) for found in m["top2"]["pruned random"]])

    return (
        Way(
            "increase of loss, rollouts minus prompts",
            "relative increase of the loss on the model's own continuations minus that on prompts, with the 3/8 of the "
            "experts kept that prompts use most, in the last two blocks",
            lambda m: kept(m, 1),
            SHARE,
            (
                ("a random 3/8", "chance", random),
                ("the first two blocks", "control", lambda m: kept(m, 2)),
            ),
        ),
    )


def increase(row: int) -> Statistic:
    """Increase of the loss by pruning, in per cent: 0 prompts, 1 rollouts."""
    return lambda m: 100 * float(m["top2"]["pruned"][row, 1] / m["top2"]["pruned"][row, 0] - 1)


ONE, OTHERS, QUESTIONS, NEITHER = range(4)  # columns of the array "authors"


def no_higher() -> tuple[Way, ...]:
    """How much less different authors' answers to one question share than answers to different questions."""

    def way(layer: int | None) -> Way:
        def read(table: Array) -> float:
            gap = table[:, QUESTIONS] - table[:, OTHERS]
            return EQUAL + float(gap.mean() if layer is None else gap[layer])

        where = "mean over blocks" if layer is None else f"block {layer}"
        return Way(
            f"other questions against other authors, {where}",
            "0.04 plus the Jaccard of top-80 % sets of answers of one author to different questions, less that of "
            f"answers of different authors to one question, {where}",
            lambda m: read(m["authors"]["authors"]),
            SHARE,
            (("questions permuted", "chance", lambda m: _mean([read(t) for t in m["authors"]["authors null"]])),),
        )

    return (way(None), *(way(i) for i in range(3)))


def author_overlap(column: int) -> Statistic:
    """Jaccard of one kind of pair, mean over blocks."""
    return lambda m: _mean(m["authors"]["authors"][:, column])


def author_chance(m: Models) -> float:
    """Jaccard of random sets of these sizes, mean over blocks."""
    return _mean(m["authors"]["authors chance"])


# ---- numbers beside the claims ---------------------------------------------------------------------------------------


def perplexity(role: str) -> Statistic:
    """Held-out perplexity of a model at its end."""
    return lambda m: float(np.exp(m[role]["loss"][-1]))


def baseline(i: int) -> Statistic:
    """Perplexity of a baseline on the same tokens: unigram, Kneser-Ney bigram, trigram."""
    return lambda m: float(np.exp(m["dense"]["baselines"][i]))


def beside(name: str, i: int, layer: int) -> Statistic:
    """One number of a table (rows, L) of the top-2 model."""
    return lambda m: float(m["top2"][name][i, layer])


def by_block(name: str, layer: int) -> Statistic:
    """One number of an array (L,) of the top-2 model."""
    return lambda m: float(m["top2"][name][layer])
