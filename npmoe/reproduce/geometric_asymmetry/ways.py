"""Ways to measure the claims of GA as numbers T, with margins and nulls, as `docs/verdicts.md` fixes them.

T is oriented so that the claim says T > 0. A claim's first way is its primary.

Only the abstract was at hand: the protocol is ours, on the controlled mixture of SC1. z is a number in units of what
chance alone spreads: cosines of random d x d matrices have mean 0 and spread 1/d; overlaps of random r-dimensional
subspaces have mean r/d and the spread that `npmoe.geometry.random_subspaces.chance_spread` derives.
"""

from math import log

import numpy as np

from npmoe.geometry import random_subspaces
from npmoe.geometry.spectra import cosines, off_diagonal, rms_cosine
from npmoe.ledger import RATIO
from npmoe.reproduce.experiment import Models, Statistic, Way
from npmoe.reproduce.geometric_asymmetry.measure import MEASURES, RANK, RANKS, ranks_of, singular_overlaps

__all__ = ["END", "START", "asymmetric", "column_of", "decorrelated", "distinct", "farther", "functional_z"]
__all__ += ["independent", "overlap_of", "overlapping", "representational_z", "sharper"]

Array = np.ndarray
START, END = 0, 1


def column_of(r: int) -> int:
    """Where a dimension stands in tables (E, E, R)."""
    return RANKS.index(r)


def _mean(table: Array) -> float:
    """Mean over pairs of experts that are defined."""
    return float(np.nanmean(off_diagonal(table)))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.nanmean(np.square(values))))


def overlap_of(table: Array, r: int = RANK) -> float:
    """Mean overlap over pairs at dimension r, from (E, E, R)."""
    return _mean(table[..., column_of(r)])


def functional_z(cos: Array, d: int) -> float:
    """Root mean square of the cosines between mean Jacobians in units of chance, which spreads them by 1/d."""
    return d * rms_cosine(cos)


def representational_z(table: Array, d: int, r: int = RANK) -> float:
    """Root mean square over pairs of the overlaps' z, from (E, E, R)."""
    k = ranks_of(d)[column_of(r)]
    return _rms(random_subspaces.z_score(off_diagonal(table[..., column_of(r)]), k, k, d))


def independent(m: Models) -> Array:
    """Mean Jacobians of top-2 experts of which no two come from one seed, (E, d, d)."""
    return m["independent top2"]["mean jacobians"]


def _width(m: Models) -> int:
    return int(m["top2"].config.d)


# ---- GA.1: functional decorrelation ---------------------------------------------------------------------------------


def decorrelated() -> tuple[Way, ...]:
    """How far below three spreads of chance the alignment of the experts' functions is."""

    def cosine(role: str) -> Way:
        def T(m: Models, end: int = END) -> float:
            return log(3 / functional_z(m[role]["cosines"][end], m[role].config.d))

        def apart(m: Models) -> float:
            return log(3 / functional_z(cosines(independent(m)), m[role].config.d))

        words = {"top2": "top-2", "soft": "soft"}[role]
        return Way(
            f"mean Jacobians, {words}",
            f"log(3 / z), z the rms cosine of the {words} experts' mean Jacobians in units of chance (1/d)",
            T,
            RATIO,
            (("independent top-2 experts", "chance", apart), ("untrained", "chance", lambda m: T(m, START))),
        )

    def directions(side: str, r: int) -> Way:
        def T(m: Models, end: int = END) -> float:
            return log(3 / representational_z(m["top2"][side][end], _width(m), r))

        def apart(m: Models) -> float:
            return log(3 / representational_z(singular_overlaps(independent(m))[side], _width(m), r))

        return Way(
            f"leading {side} singular directions, r = {r}",
            f"log(3 / z), z the rms over pairs of the overlap of the mean Jacobians' {r} leading {side} singular "
            "directions, less chance (r/d), in units of its exact spread",
            T,
            RATIO,
            (("independent top-2 experts", "chance", apart), ("untrained", "chance", lambda m: T(m, START))),
        )

    subspaces = tuple(directions(side, r) for r in (8, 4, 16) for side in ("left", "right"))
    return (cosine("top2"), cosine("soft"), *subspaces)


# ---- GA.2: what experts are given ------------------------------------------------------------------------------------


def _pair_overlap(m: Models, role: str, name: str, r: int | str) -> list[float]:
    """Overlap over its chance level of what real gates give, or of each draw of a null."""
    run, d = m[role], _width(m)
    prefix = f"{name} " if name else ""
    if r == "k@0.9":
        tables = run[f"{prefix}overlap k90"] if name else run["overlap k90"][None]
        return [_mean(table) for table in tables]
    tables = run[f"{prefix}overlap"] if name else run["overlap"][END:]
    chance = ranks_of(d)[column_of(int(r))] / d
    return [overlap_of(table, int(r)) / chance for table in tables]


def _fewer(m: Models, name: str, column: int) -> float:
    """A mean over pairs of soft experts on as few effective tokens as top-2 ones have."""
    return float(m["soft at the n_eff of top2"][name][column])


_DIMENSIONS: tuple[int | str, ...] = (8, 4, 16, "k@0.9")
_APART = "sets of that size drawn apart"
_HALVES = "two halves of one expert"
_SAME = "soft at the same n_eff"


def distinct() -> tuple[Way, ...]:
    """How much less the experts' subspaces overlap than with the same gates on other tokens."""

    def way(role: str, r: int | str) -> Way:
        def T(m: Models, name: str = "") -> float:
            chance = np.mean(_pair_overlap(m, role, "shuffled", r))
            return float(np.mean([-log(o / chance) for o in _pair_overlap(m, role, name, r)]))

        def same(m: Models) -> float:
            column, d = column_of(int(r)), _width(m)
            chance = np.mean(_pair_overlap(m, role, "shuffled", r))
            return -log(_fewer(m, "overlap", column) / (ranks_of(d)[column] / d) / chance)

        def halves(m: Models) -> float:  # both sides of the ratio on half of the tokens
            column = column_of(int(r))
            return -log(m[role]["halves"][0, column] / m[role]["shuffled halves"][:, 0, column].mean())

        soft = "soft, " if role == "soft" else ""
        nulls: tuple[tuple[str, str, Statistic], ...] = (
            ("shuffled gates", "chance", lambda m: T(m, "shuffled")),
            (_APART, "chance", lambda m: T(m, "apart")),
        )
        if r != "k@0.9":
            nulls = (*nulls, (_HALVES, "chance", halves))
        return Way(
            f"{soft}r = {r}",
            f"-log of the overlap (mean cos^2) of the {soft or 'top-2 '}experts' principal subspaces over that with "
            f"shuffled gates, r = {r}",
            T,
            RATIO,
            nulls if soft or r == "k@0.9" else (*nulls, (_SAME, "chance", same)),
        )

    def by(measure: str) -> Way:
        i = MEASURES.index(measure)

        def T(m: Models, name: str = "") -> float:
            run = m["top2"]
            chance = np.mean([_mean(table) for table in run["shuffled distances"][:, i]])
            tables = run[f"{name} distances"][:, i] if name else run["distances"][i : i + 1]
            return float(np.mean([log(_mean(table) / chance) for table in tables]))

        return Way(
            f"distance: {measure}",
            f"log of the mean {measure} distance between the top-2 experts' {_what(measure)} over that with shuffled "
            "gates",
            T,
            RATIO,
            (("shuffled gates", "chance", lambda m: T(m, "shuffled")), (_APART, "chance", lambda m: T(m, "apart"))),
        )

    def from_others(role: str, r: int) -> Way:
        """An expert against others and against itself."""
        column = column_of(r)

        def shuffled(m: Models) -> float:
            within, between = np.moveaxis(m[role]["shuffled halves"][:, :, column], 1, 0)
            return float(np.log(within / between).mean())

        soft = "soft, " if role == "soft" else ""
        return Way(
            f"{soft}within over between experts, r = {r}",
            f"log of the overlap of two halves of one {soft or 'top-2 '}expert's tokens over that of halves of two "
            f"experts, r = {r}, at equal n_eff",
            lambda m: log(m[role]["halves"][0, column] / m[role]["halves"][1, column]),
            RATIO,
            (("shuffled gates", "chance", shuffled),),
        )

    measures = [name for name in MEASURES if name != "martin"]  # infinite as soon as one angle is a right one
    apart = [from_others("top2", r) for r in RANKS] + [from_others("soft", RANK)]
    return (*(way("top2", r) for r in _DIMENSIONS), *map(by, measures), way("soft", RANK), *apart)


def _what(measure: str) -> str:
    return "covariances" if measure in ("bures", "log-euclidean") else f"principal subspaces, r = {RANK}"


def overlapping() -> tuple[Way, ...]:
    """How much more they overlap than random subspaces."""

    def way(role: str, r: int | str) -> Way:
        def T(m: Models, name: str = "") -> float:
            return float(np.mean([log(o) for o in _pair_overlap(m, role, name, r)]))

        soft = "soft, " if role == "soft" else ""
        return Way(
            f"{soft}r = {r}",
            f"log of the overlap (mean cos^2) of the {soft or 'top-2 '}experts' principal subspaces over that of "
            f"random subspaces (r/d), r = {r}",
            T,
            RATIO,
            (
                ("shuffled gates", "chance", lambda m: T(m, "shuffled")),
                (_APART, "chance", lambda m: T(m, "apart")),
                ("random subspaces", "chance", lambda m: 0.0),
            ),
        )

    return (*(way("top2", r) for r in _DIMENSIONS), way("soft", RANK))


# ---- GA.3: both together --------------------------------------------------------------------------------------------


def asymmetric() -> tuple[Way, ...]:
    """Representational overlap over functional alignment, each in units of its own chance."""

    def way(role: str, r: int) -> Way:
        def function(cos: Array, m: Models) -> float:
            return functional_z(cos, m[role].config.d)

        def T(m: Models) -> float:
            run = m[role]
            return log(representational_z(run["overlap"][END], _width(m), r) / function(run["cosines"][END], m))

        def shuffled(m: Models) -> float:
            run = m[role]
            pairs = zip(run["shuffled overlap"], run["shuffled cosines"], strict=True)
            return float(np.mean([log(representational_z(o, _width(m), r) / function(c, m)) for o, c in pairs]))

        def apart(m: Models) -> float:
            cos = cosines(independent(m))
            return log(representational_z(m[role]["overlap"][END], _width(m), r) / function(cos, m))

        def untrained(m: Models) -> float:
            run = m[role]
            return log(representational_z(run["overlap"][START], _width(m), r) / function(run["cosines"][START], m))

        soft = "soft, " if role == "soft" else ""
        return Way(
            f"{soft}r = {r}",
            f"log of the representational z (overlap of principal subspaces, r = {r}) over the functional z (cosines "
            f"of mean Jacobians), {soft}rms over pairs, each in units of its own chance",
            T,
            RATIO,
            (
                ("shuffled gates", "chance", shuffled),
                ("independent top-2 experts", "chance", apart),
                ("untrained", "chance", untrained),
            ),
        )

    return (*(way("top2", r) for r in (8, 4, 16)), way("soft", RANK))


# ---- GA.4: sparsity -------------------------------------------------------------------------------------------------


def sharper() -> tuple[Way, ...]:
    """How much less aligned top-2 experts' functions are than soft ones'."""

    def T(m: Models, end: int = END) -> float:
        return log(rms_cosine(m["soft"]["cosines"][end]) / rms_cosine(m["top2"]["cosines"][end]))

    def shuffled(m: Models) -> float:
        pairs = zip(m["soft"]["shuffled cosines"], m["top2"]["shuffled cosines"], strict=True)
        return float(np.mean([log(rms_cosine(a) / rms_cosine(b)) for a, b in pairs]))

    def side(which: str) -> Way:
        def ratio(m: Models, soft: Array, top2: Array) -> float:
            return log(representational_z(soft, _width(m)) / representational_z(top2, _width(m)))

        def z(m: Models, end: int = END) -> float:
            return ratio(m, m["soft"][which][end], m["top2"][which][end])

        def null(m: Models) -> float:
            pairs = zip(m["soft"][f"shuffled {which}"], m["top2"][f"shuffled {which}"], strict=True)
            return float(np.mean([ratio(m, a, b) for a, b in pairs]))

        return Way(
            f"leading {which} singular directions",
            f"log of z of the overlap of the mean Jacobians' {RANK} leading {which} singular directions, soft over "
            "top-2",
            z,
            RATIO,
            (("shuffled gates", "chance", null), ("untrained", "chance", lambda m: z(m, START))),
        )

    return (
        Way(
            "mean Jacobians",
            "log of the rms cosine of the experts' mean Jacobians, soft over top-2",
            T,
            RATIO,
            (("shuffled gates", "chance", shuffled), ("untrained", "chance", lambda m: T(m, START))),
        ),
        side("left"),
        side("right"),
    )


def farther() -> tuple[Way, ...]:
    """How much farther apart top-2 experts' subspaces are than soft ones'."""

    def by(measure: str) -> Way:
        i = MEASURES.index(measure)

        def T(m: Models) -> float:
            return log(_mean(m["top2"]["distances"][i]) / _mean(m["soft"]["distances"][i]))

        def shuffled(m: Models) -> float:
            pairs = zip(m["top2"]["shuffled distances"][:, i], m["soft"]["shuffled distances"][:, i], strict=True)
            return float(np.mean([log(_mean(a) / _mean(b)) for a, b in pairs]))

        def same(m: Models) -> float:
            return log(_fewer(m, "distances", i) / _mean(m["soft"]["distances"][i]))

        return Way(
            f"{measure} distance",
            f"log of the mean {measure} distance between the experts' {_what(measure)}, top-2 over soft",
            T,
            RATIO,
            (("shuffled gates", "chance", shuffled), (_SAME, "chance", same)),
        )

    return tuple(by(name) for name in ("chordal", *(name for name in MEASURES if name not in ("chordal", "martin"))))
