"""Ways to measure the claims of SC1 as numbers T, with margins and nulls, as `docs/verdicts.md` fixes them.

T is oriented so that the claim says T > 0. A way is a *measure* reading: T and its nulls on the models of one seed.
Each claim's first way is its primary; the primary way also reads the models of every *train* axis.
"""

from collections.abc import Callable
from math import log

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.geometry.spectra import cosines, defined_mean, k_at, rms_cosine
from npmoe.ledger import COUNT, RATIO, SHARE
from npmoe.probe.function import NORMS
from npmoe.probe.representation import WEIGHTINGS
from npmoe.reproduce.experiment import Models, Run, Statistic, Way
from npmoe.reproduce.mixture import generator
from npmoe.reproduce.soft_clustering import runs
from npmoe.reproduce.soft_clustering.measure import HIDDEN

Array = np.ndarray
PRIMARY_NORM = "sigma mean"

_NORM_WORDS = {
    "sigma mean": "leading value of the mean Jacobian",
    "sigma token": "leading value per token, mean",
    "sigma peak": "leading value per token, maximum",
    "sigma stack": "leading value of the stacked Jacobians",
    "frob mean": "Frobenius norm of the mean Jacobian",
    "frob token": "Frobenius norm per token, mean",
    "frob peak": "Frobenius norm per token, maximum",
    "frob stack": "Frobenius norm of the stacked Jacobians",
    "weights": "product of the weights' spectral norms",
}


# ---- norms over training ---------------------------------------------------------------------------------------------


def stack(when: str) -> Statistic:
    """Leading value of the dense model's stacked Jacobians at a named step."""
    return lambda m: runs.norm(m["dense"], "sigma stack", when)


def final_loss(which: str) -> Statistic:
    """Training loss of one of the models at the end."""
    return lambda m: float(m[which]["loss"][-1])


def _growth(run: Run, norm: str, since: str, of: str = "experts") -> float:
    return log(runs.norm(run, norm, "end", of) / runs.norm(run, norm, since, of))


def sc1_1() -> tuple[Way, ...]:
    """Growth of the dense norm over the second half of training, for each norm."""

    def way(norm: str) -> Way:
        return Way(
            _NORM_WORDS[norm],
            f"log of the dense model's norm at the end over half-way; norm: {_NORM_WORDS[norm]}",
            lambda m: _growth(m["dense"], norm, "half"),
            RATIO,
            (("dense as wide as all experts", "control", lambda m: _growth(m["wide"], norm, "half")),),
        )

    return tuple(way(norm) for norm in (*NORMS, "weights"))


def sc1_2() -> tuple[Way, ...]:
    """How much more the dense norm changes after step 250 than that of the mixture, for each norm."""

    def way(norm: str, of: str, which: str = "top2") -> Way:
        def T(m: Models) -> float:
            return abs(_growth(m["dense"], norm, "early")) - abs(_growth(m[which], norm, "early", of))

        def T0(m: Models) -> float:
            return abs(_growth(m["dense"], norm, "early")) - abs(_growth(m["wide"], norm, "early"))

        soft = "soft, " if which == "soft" else ""
        return Way(
            f"{soft}{of}: {_NORM_WORDS[norm]}",
            f"how much the dense norm changes after step 250, in logs, over how much that of the {soft}{of} does; "
            f"norm: {_NORM_WORDS[norm]}",
            T,
            RATIO,
            (("dense as wide as all experts", "control", T0),),
        )

    over = ("experts over all tokens", "layer without the router's term", "layer with the router's term")
    return (
        *(way(norm, "experts") for norm in (*NORMS, "weights")),
        *(way(norm, of) for of in over for norm in NORMS),
        way(PRIMARY_NORM, "experts", "soft"),
    )


def settled(run: Run) -> float:
    """First snapshot step from which the norm stays within 10 % of its value at the end."""
    values = runs.series(run, PRIMARY_NORM)
    off = np.flatnonzero(np.abs(np.log(values / values[-1])) > RATIO)
    return float(run["steps"][min(off[-1] + 1, len(values) - 1)] if off.size else 0)


# ---- alignment ---------------------------------------------------------------------------------------------------


def _decorrelation(cos: Array, d: int) -> float:
    return log(3 / (d * rms_cosine(cos)))


def trained(run: Run, end: int = 1) -> Array:
    """Cosines between a mixture's mean Jacobians; end 0 untrained, 1 trained."""
    return run["cosines"][end]


def pairs(cos: Array) -> Array:
    """The cosines of all pairs of different experts that are defined."""
    pairs = cos[np.triu_indices(len(cos), 1)]
    return pairs[~np.isnan(pairs)]


def _apart(m: Models, of: str) -> Array:
    """Cosines of the experts' mean Jacobians where no two experts come from one seed."""
    return cosines(m[f"independent {of}"]["mean jacobians"])


def _largest(cos: Array, d: int) -> float:
    return log(3 / (d * np.abs(pairs(cos)).max()))


def sc1_3() -> tuple[Way, ...]:
    """How far below 3/d the cosines between the experts' mean Jacobians are."""

    def way(name: str, words: str, measure: Callable[[Array, int], float]) -> Way:
        return Way(
            name,
            f"log(3 / (d {words})) of the cosines between the experts' mean Jacobians",
            lambda m: measure(trained(m["top2"]), m["top2"].config.d),
            RATIO,
            (
                ("independent experts", "chance", lambda m: measure(_apart(m, "top2"), m["top2"].config.d)),
                ("untrained", "chance", lambda m: measure(trained(m["top2"], 0), m["top2"].config.d)),
            ),
        )

    return (
        way("root mean square over all pairs", "rms cos", _decorrelation),
        way("the pair most alike", "max |cos|", _largest),
    )


def sc1_9() -> tuple[Way, ...]:
    """The same for both regimes, the lesser of them."""

    def soft(m: Models, end: int = 1) -> float:
        return _decorrelation(trained(m["soft"], end), m["top2"].config.d)

    def top(m: Models, end: int = 1) -> float:
        return _decorrelation(trained(m["top2"], end), m["top2"].config.d)

    def apart_soft(m: Models) -> float:
        return _decorrelation(_apart(m, "soft"), m["top2"].config.d)

    def apart_top(m: Models) -> float:
        return _decorrelation(_apart(m, "top2"), m["top2"].config.d)

    def way(name: str, words: str, T: Statistic, apart: Statistic, untrained: Statistic) -> Way:
        nulls = (("independent experts", "chance", apart), ("untrained", "chance", untrained))
        return Way(name, f"log(3 / (d rms cos)) of the mean Jacobians, {words}", T, RATIO, nulls)

    return (
        way(
            "both regimes",
            "the lesser of soft and top-2",
            lambda m: min(soft(m), top(m)),
            lambda m: min(apart_soft(m), apart_top(m)),
            lambda m: min(soft(m, 0), top(m, 0)),
        ),
        way("soft", "soft", soft, apart_soft, lambda m: soft(m, 0)),
        way("top-2", "top-2", top, apart_top, lambda m: top(m, 0)),
    )


# ---- spectra -----------------------------------------------------------------------------------------------------


def sc1_4() -> tuple[Way, ...]:
    """Leading values, dense over experts: of the mean Jacobian and per token, at equal steps, loss and n_eff."""
    wide = "dense as wide as all experts"

    def steps(norm: str, which: str = "top2") -> Way:
        def T(m: Models, when: str = "end") -> float:
            return log(runs.norm(m["dense"], norm, when) / runs.norm(m[which], norm, when))

        control = (
            wide,
            "control",
            lambda m: log(runs.norm(m["dense"], norm, "end") / runs.norm(m["wide"], norm, "end")),
        )
        return _ratio(norm, which, "at equal steps", T, (("untrained", "chance", lambda m: T(m, "start")), control))

    def loss(norm: str, which: str = "top2") -> Way:
        def against(run: Run, m: Models) -> float:
            return log(runs.norm(m["dense"], norm, "end") / runs.at_loss(run, norm, float(m["dense"]["loss"][-1])))

        def untrained(m: Models) -> float:
            return log(runs.norm(m["dense"], norm, "start") / runs.norm(m[which], norm, "start"))

        nulls = (("untrained", "chance", untrained), (wide, "control", lambda m: against(m["wide"], m)))
        return _ratio(norm, which, "at equal loss", lambda m: against(m[which], m), nulls)

    def n_eff(which: str = "top2") -> Way:
        def T(m: Models, end: int = 1) -> float:
            fewer = float(m[f"dense at the n_eff of {which}"]["sigma"][end])
            return log(fewer / runs.norm(m[which], PRIMARY_NORM, "end" if end else "start"))

        def control(m: Models) -> float:  # both see every token: their n_eff is equal as it is
            return log(runs.norm(m["dense"], PRIMARY_NORM, "end") / runs.norm(m["wide"], PRIMARY_NORM, "end"))

        nulls = (("untrained", "chance", lambda m: T(m, 0)), (wide, "control", control))
        return _ratio(PRIMARY_NORM, which, "at equal n_eff", T, nulls)

    return (
        steps("sigma mean"),
        steps("sigma token"),
        loss("sigma mean"),
        loss("sigma token"),
        n_eff(),
        steps("sigma mean", "soft"),
        steps("sigma token", "soft"),
        loss("sigma mean", "soft"),
        n_eff("soft"),
    )


def _ratio(norm: str, which: str, at: str, T: Statistic, nulls: tuple[tuple[str, str, Statistic], ...]) -> Way:
    kind = {"sigma mean": "SVD of the mean", "sigma token": "mean of the SVDs"}[norm]
    soft = "soft, " if which == "soft" else ""
    statistic = f"log of the leading value, dense over {soft}experts, {at}; {kind}"
    return Way(f"{soft}{kind}, {at}", statistic, T, RATIO, nulls)


def sc1_5() -> tuple[Way, ...]:
    """Share of the energy in the first ten directions, experts minus dense."""

    def mean(power: int, which: str = "top2") -> Way:
        def T(m: Models, when: str = "end") -> float:
            return runs.mean_share(m[which], when, power) - runs.mean_share(m["dense"], when, power)

        return way("SVD of the mean", power, which, T, lambda m: T(m, "start"))

    def token(power: int, which: str = "top2") -> Way:
        def T(m: Models, end: int = 1) -> float:
            return runs.token_share(m[which], end, power) - runs.token_share(m["dense"], end, power)

        return way("mean of the SVDs", power, which, T, lambda m: T(m, 0))

    def way(kind: str, power: int, which: str, T: Statistic, untrained: Statistic) -> Way:
        soft = "soft, " if which == "soft" else ""
        of = "sigma^2" if power == 2 else "sigma"
        statistic = f"share of {of} in the first ten directions, {soft}experts minus dense; {kind}"
        return Way(f"{soft}{of}, {kind}", statistic, T, SHARE, (("untrained", "chance", untrained),))

    return mean(2), mean(1), token(2), token(1), mean(2, "soft"), token(2, "soft")


# ---- principal components ----------------------------------------------------------------------------------------


def _walk(m: Models) -> float:
    """6 minus k@0.9 of random walks seen at the snapshots' steps: smooth, as a trajectory is, and otherwise chance."""
    rng = generator(m["dense"].config.seed, "gaussian", part=1)
    gaps = np.sqrt(np.diff(m["dense"]["steps"]))[:, None]  # (s - 1, 1)
    k90 = []
    for _ in range(m["dense"].config.draws):
        walk = np.cumsum(gaps * rng.standard_normal((len(gaps), 2048)), axis=0)
        walk = np.vstack([np.zeros_like(walk[:1]), walk])  # (s, 2048)
        walk -= walk.mean(axis=0)
        k90.append(k_at(np.maximum(np.linalg.eigvalsh(matmul(walk, walk.T)), 0)))
    return 6 - float(np.mean(k90))


def sc1_6() -> tuple[Way, ...]:
    """How few components hold 90 % of the variance of all that a dense model's variance may be of."""

    def way(i: int) -> Way:
        walk = (("random walk at the same steps", "chance", _walk),) if HIDDEN[i] == "training trajectory" else ()
        return Way(
            HIDDEN[i],
            f"6 minus k@0.9 (eigenvalues of the covariance) of the dense model's {HIDDEN[i]}",
            lambda m: 6 - float(m["dense"]["hidden k90"][i]),
            COUNT,
            (("Gaussian of as many rows", "chance", lambda m: 6 - float(m["dense"]["gaussian k90"][i])), *walk),
        )

    return tuple(way(i) for i in range(len(HIDDEN)))


_WEIGHTING_WORDS = {
    "gates": "covariance weighted by g",
    "sqrt rows": "rows sqrt(g) h",
    "scaled rows": "rows g h",
    "routed rows": "routed rows only",
}


def sc1_7() -> tuple[Way, ...]:
    """Components that experts need over those of the dense model, for each weighting."""

    def way(w: int, which: str = "top2") -> Way:
        def against(k: float, m: Models) -> float:
            return log(k / runs.ranks(m["dense"], "k90", 0))

        def n_eff(m: Models) -> float:
            return against(runs.ranks(m[f"dense at the n_eff of {which}"], "k90", 0), m)

        def shuffled(m: Models) -> float:
            return float(np.mean([against(k, m) for k in m[which]["shuffled k90"][:, w]]))

        soft = "soft, " if which == "soft" else ""
        words = _WEIGHTING_WORDS[WEIGHTINGS[w]]
        return Way(
            f"{soft}{words}",
            f"log k@0.9 (covariance eigenvalues), {soft}experts over dense; {words}",
            lambda m: against(runs.ranks(m[which], "k90", w), m),
            RATIO,
            (
                ("shuffled gates", "chance", shuffled),
                ("dense at the same n_eff", "chance", n_eff),
            ),
        )

    return (*(way(w) for w in range(len(WEIGHTINGS))), way(0, "soft"))


def sc1_8() -> tuple[Way, ...]:
    """Components that soft experts need more than top-2 experts, for each weighting."""

    def way(name: str, w: int) -> Way:
        sign, margin = (1, COUNT) if name == "k90" else (-1, SHARE)

        def T(m: Models) -> float:
            return sign * (runs.ranks(m["soft"], name, w) - runs.ranks(m["top2"], name, w))

        def shuffled(m: Models) -> float:
            of = f"shuffled {name}"
            return sign * float((m["soft"][of] - m["top2"][of])[:, w].mean())

        def n_eff(m: Models) -> float:
            return sign * (runs.ranks(m["soft"], name, w) - runs.ranks(m["soft at the n_eff of top2"], name, w))

        words = _WEIGHTING_WORDS[WEIGHTINGS[w]]
        measure = "k@0.9" if name == "k90" else "cum-var@10"
        return Way(
            f"{measure}, {words}",
            f"{measure} (covariance eigenvalues), {'soft minus top-2' if sign > 0 else 'top-2 minus soft'}; {words}",
            T,
            margin,
            (("shuffled gates", "chance", shuffled), ("soft at top-2's n_eff", "chance", n_eff)),
        )

    return tuple(way(name, w) for name in ("k90", "cum10") for w in range(len(WEIGHTINGS)))


# ---- curvature ---------------------------------------------------------------------------------------------------


def sc1_11() -> tuple[Way, ...]:
    """Norm of the second derivatives, dense over experts."""

    def way(which: str) -> Way:
        def T(m: Models, end: int = 1) -> float:
            dense, experts = m["dense"]["curvature"], m[which]["curvature"]
            return log(dense[end, 0] / defined_mean(experts[end]))

        soft = "soft, " if which == "soft" else ""
        statistic = f"log of the Hessian's norm (root mean square over tokens), dense over {soft}experts"
        return Way(f"{soft}experts" if soft else "top-2 experts", statistic, T, RATIO,
                   (("untrained", "chance", lambda m: T(m, 0)),))  # fmt: skip

    return way("top2"), way("soft")
