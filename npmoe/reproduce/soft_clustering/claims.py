"""The claims of SC1 as numbers T, with their readings, margins and nulls, as `docs/verdicts.md` fixes them.

T is oriented so that the claim says T > 0. A `Way` is a *measure* reading: T and its nulls on the models of one seed.
Each claim's first way is its primary; the primary way also reads the models of every *train* axis.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log
from typing import NamedTuple

import numpy as np

from npmoe.geometry.spectra import cosines, defined_mean, k_at, rms_cosine, share
from npmoe.probe.function import NORMS
from npmoe.probe.representation import WEIGHTINGS
from npmoe.reproduce.soft_clustering.config import Config, generator
from npmoe.reproduce.soft_clustering.measure import HIDDEN, named_steps

__all__ = ["CLAIMS", "RATIO", "Models", "Run", "Spec", "Way", "independent_cosines"]

Array = np.ndarray
RATIO, SHARE, COUNT = log(1.1), 0.02, 1.0  # margins: of log ratios, of shares, of counts of components
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


class Run:
    """One finished run: its config and arrays, read by name."""

    def __init__(self, config: Config, arrays: Mapping[str, Array]) -> None:
        self.config, self.arrays = config, arrays
        self._steps = arrays["steps"].tolist()

    def at(self, when: str) -> int:
        """Index of the snapshot at a named step: start, early, half or end."""
        return self._steps.index(named_steps(self.config)[_WHEN.index(when)])

    def series(self, norm: str) -> Array:
        """A norm over training, mean over experts, (s,); NaN where it was not taken."""
        table = self.arrays["weight norms"] if norm == "weights" else self.arrays["norms"][..., NORMS.index(norm)]
        return defined_mean(table)

    def norm(self, norm: str, when: str, of: str = "experts") -> float:
        """A norm at a named step, of the experts (routed tokens), of experts over all tokens, or of the whole layer."""
        if of == "experts":
            return float(self.series(norm)[self.at(when)])
        row, column = _WHEN.index(when), NORMS.index(norm)
        if of == "experts over all tokens":
            return float(defined_mean(self.arrays["norms all"][row, :, column]))
        router = {"layer without the router's term": 0, "layer with the router's term": 1}[of]
        return float(self.arrays["layer norms"][row, router, column])

    def mean_share(self, when: str, power: int) -> float:
        """Share of sigma^power of the mean Jacobians in the first ten, mean over experts."""
        return float(defined_mean(share(self.arrays["mean sigma"][self.at(when)] ** power, 10)))

    def token_share(self, end: int, power: int) -> float:
        """The same of each token's own spectrum, averaged; end 0 untrained, 1 trained."""
        name = "token energy" if power == 2 else "token energy sigma"
        return float(defined_mean(self.arrays[name][end, :, min(10, self.config.d) - 1]))

    def ranks(self, name: str, weighting: int) -> float:
        """Mean over experts of k90 or cum10 of the routed hidden states."""
        return float(defined_mean(self.arrays[name][weighting]))

    def thinned(self, name: str, weighting: int, n_eff: float) -> float:
        """k90 or cum10 of this model's Site thinned to a mean n_eff: between the sizes measured, linear in its log."""
        return _between(n_eff, self.arrays["thin n_eff"], self.arrays[f"thin {name}"][:, weighting])

    @property
    def n_eff(self) -> float:
        """Mean effective sample size over experts."""
        return float(np.mean(self.arrays["n_eff"]))

    def at_loss(self, norm: str, loss: float) -> float:
        """A norm where this model's training loss first reaches `loss`, log-linear between the nearest snapshots."""
        losses, values = self.arrays["loss"], self.series(norm)
        known = ~np.isnan(values)
        losses, values = losses[known], values[known]
        reached = np.flatnonzero(losses <= loss)
        if not reached.size:
            return float("nan")
        i = int(reached[0])
        if i == 0:
            return float(values[0])
        part = (np.log(losses[i - 1]) - np.log(loss)) / (np.log(losses[i - 1]) - np.log(losses[i]))
        return float(np.exp((1 - part) * np.log(values[i - 1]) + part * np.log(values[i])))


_WHEN = ("start", "early", "half", "end")


def _between(n_eff: float, sizes: Array, values: Array) -> float:
    return float(np.interp(np.log(n_eff), np.log(sizes), values))


class Models(NamedTuple):
    """The models of one seed: dense, the mixture ("MoE": top-2), soft, the wide dense control, and the cosines of
    experts taken from as many different seeds."""

    dense: Run
    moe: Run
    soft: Run | None = None
    wide: Run | None = None
    independent_moe: Array | None = None
    independent_soft: Array | None = None


def independent_cosines(runs: list[Run], seed: int) -> Array:
    """Cosines between mean Jacobians of experts of which no two come from one seed: expert e of run seed + e."""
    E = runs[0].config.E
    means = [runs[(seed + e) % len(runs)].arrays["mean jacobians"][1, e] for e in range(E)]
    return cosines(np.stack(means))


Statistic = Callable[[Models], float]


class Way(NamedTuple):
    """A *measure* reading: name, T in words, T, margin, and its nulls as (name, kind, T0)."""

    name: str
    statistic: str
    T: Statistic
    margin: float
    nulls: tuple[tuple[str, str, Statistic], ...] = ()


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


# ---- norms over training ---------------------------------------------------------------------------------------------


def _stack(when: str) -> Statistic:
    return lambda m: m.dense.norm("sigma stack", when)


def _final_loss(which: str) -> Statistic:
    return lambda m: float(_need(getattr(m, which)).arrays["loss"][-1])


def _growth(run: Run, norm: str, since: str, of: str = "experts") -> float:
    return log(run.norm(norm, "end", of) / run.norm(norm, since, of))


def _sc1_1() -> tuple[Way, ...]:
    def way(norm: str) -> Way:
        return Way(
            _NORM_WORDS[norm],
            f"log of the dense model's norm at the end over half-way; norm: {_NORM_WORDS[norm]}",
            lambda m: _growth(m.dense, norm, "half"),
            RATIO,
            (("dense as wide as all experts", "control", lambda m: _growth(_need(m.wide), norm, "half")),),
        )

    return tuple(way(norm) for norm in (*NORMS, "weights"))


def _need(run: Run | None) -> Run:
    assert run is not None, "the run was not asked for"
    return run


def _sc1_2() -> tuple[Way, ...]:
    def way(norm: str, of: str, which: str = "moe") -> Way:
        def T(m: Models) -> float:
            return abs(_growth(m.dense, norm, "early")) - abs(_growth(getattr(m, which), norm, "early", of))

        def T0(m: Models) -> float:
            return abs(_growth(m.dense, norm, "early")) - abs(_growth(_need(m.wide), norm, "early"))

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


def _settled(run: Run) -> float:
    """First snapshot step from which the norm stays within 10 % of its value at the end."""
    values = run.series(PRIMARY_NORM)
    off = np.flatnonzero(np.abs(np.log(values / values[-1])) > RATIO)
    return float(run.arrays["steps"][min(off[-1] + 1, len(values) - 1)] if off.size else 0)


# ---- alignment ---------------------------------------------------------------------------------------------------


def _decorrelation(cos: Array, d: int) -> float:
    return log(3 / (d * rms_cosine(cos)))


def _trained(run: Run, end: int = 1) -> Array:
    return run.arrays["cosines"][end]


def _pairs(cos: Array) -> Array:
    pairs = cos[np.triu_indices(len(cos), 1)]
    return pairs[~np.isnan(pairs)]


def _largest(cos: Array, d: int) -> float:
    return log(3 / (d * np.abs(_pairs(cos)).max()))


def _sc1_3() -> tuple[Way, ...]:
    def way(name: str, words: str, measure: Callable[[Array, int], float]) -> Way:
        return Way(
            name,
            f"log(3 / (d {words})) of the cosines between the experts' mean Jacobians",
            lambda m: measure(_trained(m.moe), m.moe.config.d),
            RATIO,
            (
                ("independent experts", "chance", lambda m: measure(_array(m.independent_moe), m.moe.config.d)),
                ("untrained", "chance", lambda m: measure(_trained(m.moe, 0), m.moe.config.d)),
            ),
        )

    return (
        way("root mean square over all pairs", "rms cos", _decorrelation),
        way("the pair most alike", "max |cos|", _largest),
    )


def _array(value: Array | None) -> Array:
    assert value is not None, "the runs of other seeds were not asked for"
    return value


def _sc1_9() -> tuple[Way, ...]:
    def soft(m: Models, end: int = 1) -> float:
        return _decorrelation(_trained(_need(m.soft), end), m.moe.config.d)

    def top(m: Models, end: int = 1) -> float:
        return _decorrelation(_trained(m.moe, end), m.moe.config.d)

    def apart_soft(m: Models) -> float:
        return _decorrelation(_array(m.independent_soft), m.moe.config.d)

    def apart_top(m: Models) -> float:
        return _decorrelation(_array(m.independent_moe), m.moe.config.d)

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


def _sc1_4() -> tuple[Way, ...]:
    wide = "dense as wide as all experts"

    def steps(norm: str, which: str = "moe") -> Way:
        def T(m: Models, when: str = "end") -> float:
            return log(m.dense.norm(norm, when) / getattr(m, which).norm(norm, when))

        control = (wide, "control", lambda m: log(m.dense.norm(norm, "end") / _need(m.wide).norm(norm, "end")))
        return _ratio(norm, which, "at equal steps", T, (("untrained", "chance", lambda m: T(m, "start")), control))

    def loss(norm: str, which: str = "moe") -> Way:
        def against(run: Run, m: Models) -> float:
            return log(m.dense.norm(norm, "end") / run.at_loss(norm, float(m.dense.arrays["loss"][-1])))

        def untrained(m: Models) -> float:
            return log(m.dense.norm(norm, "start") / getattr(m, which).norm(norm, "start"))

        nulls = (("untrained", "chance", untrained), (wide, "control", lambda m: against(_need(m.wide), m)))
        return _ratio(norm, which, "at equal loss", lambda m: against(getattr(m, which), m), nulls)

    def n_eff(which: str = "moe") -> Way:
        def T(m: Models, end: int = 1) -> float:
            run, dense = getattr(m, which), m.dense.arrays
            fewer = _between(run.n_eff, dense["thin n_eff"], dense["thin sigma"][end])
            return log(fewer / run.norm(PRIMARY_NORM, "end" if end else "start"))

        def control(m: Models) -> float:  # both see every token: their n_eff is equal as it is
            return log(m.dense.norm(PRIMARY_NORM, "end") / _need(m.wide).norm(PRIMARY_NORM, "end"))

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


def _sc1_5() -> tuple[Way, ...]:
    def mean(power: int, which: str = "moe") -> Way:
        def T(m: Models, when: str = "end") -> float:
            return getattr(m, which).mean_share(when, power) - m.dense.mean_share(when, power)

        return way("SVD of the mean", power, which, T, lambda m: T(m, "start"))

    def token(power: int, which: str = "moe") -> Way:
        def T(m: Models, end: int = 1) -> float:
            return getattr(m, which).token_share(end, power) - m.dense.token_share(end, power)

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
    rng = generator(m.dense.config.seed, "gaussian", part=1)
    gaps = np.sqrt(np.diff(m.dense.arrays["steps"]))[:, None]  # (s - 1, 1)
    k90 = []
    for _ in range(m.dense.config.draws):
        walk = np.cumsum(gaps * rng.standard_normal((len(gaps), 2048)), axis=0)
        walk = np.vstack([np.zeros_like(walk[:1]), walk])  # (s, 2048)
        walk -= walk.mean(axis=0)
        k90.append(k_at(np.maximum(np.linalg.eigvalsh(walk @ walk.T), 0)))
    return 6 - float(np.mean(k90))


def _sc1_6() -> tuple[Way, ...]:
    def way(i: int) -> Way:
        walk = (("random walk at the same steps", "chance", _walk),) if HIDDEN[i] == "training trajectory" else ()
        return Way(
            HIDDEN[i],
            f"6 minus k@0.9 (eigenvalues of the covariance) of the dense model's {HIDDEN[i]}",
            lambda m: 6 - float(m.dense.arrays["hidden k90"][i]),
            COUNT,
            (("Gaussian of as many rows", "chance", lambda m: 6 - float(m.dense.arrays["gaussian k90"][i])), *walk),
        )

    return tuple(way(i) for i in range(len(HIDDEN)))


_WEIGHTING_WORDS = {
    "gates": "covariance weighted by g",
    "sqrt rows": "rows sqrt(g) h",
    "scaled rows": "rows g h",
    "routed rows": "routed rows only",
}


def _sc1_7() -> tuple[Way, ...]:
    def way(w: int, which: str = "moe") -> Way:
        def against(k: float, m: Models) -> float:
            return log(k / m.dense.ranks("k90", 0))

        def n_eff(m: Models) -> float:
            return against(m.dense.thinned("k90", 0, getattr(m, which).n_eff), m)

        def shuffled(m: Models) -> float:
            return float(np.mean([against(k, m) for k in getattr(m, which).arrays["shuffled k90"][:, w]]))

        soft = "soft, " if which == "soft" else ""
        words = _WEIGHTING_WORDS[WEIGHTINGS[w]]
        return Way(
            f"{soft}{words}",
            f"log k@0.9 (covariance eigenvalues), {soft}experts over dense; {words}",
            lambda m: against(getattr(m, which).ranks("k90", w), m),
            RATIO,
            (
                ("shuffled gates", "chance", shuffled),
                ("dense at the same n_eff", "chance", n_eff),
            ),
        )

    return (*(way(w) for w in range(len(WEIGHTINGS))), way(0, "soft"))


def _sc1_8() -> tuple[Way, ...]:
    def way(name: str, w: int) -> Way:
        sign, margin = (1, COUNT) if name == "k90" else (-1, SHARE)

        def T(m: Models) -> float:
            return sign * (_need(m.soft).ranks(name, w) - m.moe.ranks(name, w))

        def shuffled(m: Models) -> float:
            of = f"shuffled {name}"
            return sign * float((_need(m.soft).arrays[of] - m.moe.arrays[of])[:, w].mean())

        def n_eff(m: Models) -> float:
            soft = _need(m.soft)
            return sign * (soft.ranks(name, w) - soft.thinned(name, w, m.moe.n_eff))

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


def _sc1_11() -> tuple[Way, ...]:
    def way(which: str) -> Way:
        def T(m: Models, end: int = 1) -> float:
            dense, experts = m.dense.arrays["curvature"], getattr(m, which).arrays["curvature"]
            return log(dense[end, 0] / defined_mean(experts[end]))

        soft = "soft, " if which == "soft" else ""
        statistic = f"log of the Hessian's norm (root mean square over tokens), dense over {soft}experts"
        return Way(f"{soft}experts" if soft else "top-2 experts", statistic, T, RATIO,
                   (("untrained", "chance", lambda m: T(m, 0)),))  # fmt: skip

    return way("moe"), way("soft")


CLAIMS = (
    Spec(
        "SC1.1",
        "The dense model's Jacobian norm grows throughout training.",
        "from about 5 to over 50",
        ("dense", "wide"),
        _sc1_1(),
        (lambda m: m.dense.norm(PRIMARY_NORM, "end"), (50, inf), "(norm at the end)"),
        "Descriptive: there is no chance null, only a control.",
        tuple(
            (
                f"leading value of the stacked Jacobians, {words}",
                f"the reading whose size is nearest to the paper's, {paper}",
                _stack(when),
            )
            for words, when, paper in (("untrained", "start", "about 5"), ("at the end", "end", "over 50"))
        ),
    ),
    Spec(
        "SC1.2",
        "The norm of the MoE, whole layer and each expert, rises early and then stays on a plateau.",
        "plateau after about 250 iterations",
        ("dense", "moe", "wide"),
        _sc1_2(),
        (lambda m: _settled(m.moe), (200, 300), "steps until within 10 % of the end"),
        "Judged on the experts. The control asks whether a dense model that can interpolate has the same plateau.",
        tuple(
            (
                f"training loss at the end, {words}",
                "the control and the mixture can fit the batch, the dense baseline cannot",
                _final_loss(which),
            )
            for words, which in (("dense", "dense"), ("top-2", "moe"), ("dense as wide as all experts", "wide"))
        ),
    ),
    Spec(
        "SC1.3",
        "Cosines between the experts' mean Jacobians are near zero at the end of training.",
        "-0.01 to 0.015",
        ("moe", "independent"),
        _sc1_3(),
        (lambda m: float(_pairs(_trained(m.moe)).mean()), (-0.01, 0.015), "(mean cosine)"),
        "Independent random experts are near zero too: with independent initialization this claim ends as 'so does the "
        "null' whatever training did. Only experts initialized alike can tell more.",
    ),
    Spec(
        "SC1.4",
        "The experts' leading singular values are smaller than the dense model's.",
        "1.5 to 1.7 times",
        ("dense", "moe", "wide"),
        _sc1_4(),
        (lambda m: m.dense.norm(PRIMARY_NORM, "end") / m.moe.norm(PRIMARY_NORM, "end"), (1.5, 1.7), "times"),
    ),
    Spec(
        "SC1.5",
        "The experts' Jacobian spectra hold their energy in fewer directions than the dense model's.",
        "figure only",
        ("dense", "moe"),
        _sc1_5(),
    ),
    Spec(
        "SC1.6",
        "The dense model reaches 90 % of the variance with few principal components.",
        "about 3",
        ("dense",),
        _sc1_6(),
        (lambda m: float(m.dense.arrays["hidden k90"][0]), (2.5, 3.5), "components"),
        "Without a layer in front the hidden states that enter the layer are the inputs themselves: a fact about the "
        "sample, not about the model.",
    ),
    Spec(
        "SC1.7",
        "MoE experts need many principal components for 90 % of the variance of what is routed to them.",
        "more than 20",
        ("dense", "moe"),
        _sc1_7(),
        (lambda m: m.moe.ranks("k90", 0), (20, inf), "components"),
        "The statistic compares with the dense model; that experts need more than 20 is judged as size.",
    ),
    Spec(
        "SC1.8",
        "Top-k routing concentrates what experts see in fewer components than soft routing.",
        "figure only",
        ("moe", "soft"),
        _sc1_8(),
    ),
    Spec(
        "SC1.9",
        "Experts are hardly aligned in both regimes, soft and top-k.",
        "figure only",
        ("moe", "soft", "independent"),
        _sc1_9(),
        note="As SC1.3: independent random experts are near zero too.",
        beside=(
            (
                "log rms cos, soft over top-2",
                "SC2.2 and GA.4 say that top-k is lower: above 0",
                lambda m: log(rms_cosine(_trained(_need(m.soft))) / rms_cosine(_trained(m.moe))),
            ),
        ),
    ),
    Spec(
        "SC1.11",
        "Ours: the paper measures slopes and speaks of curvature; are second derivatives of experts smaller as well?",
        "not measured",
        ("dense", "moe", "wide"),
        _sc1_11(),
        beside=(
            (
                "log of the Hessian's norm, dense over a dense model as wide as all experts",
                "above 0: width does to curvature what experts do",
                lambda m: log(m.dense.arrays["curvature"][1, 0] / _need(m.wide).arrays["curvature"][1, 0]),
            ),
        ),
    ),
)
