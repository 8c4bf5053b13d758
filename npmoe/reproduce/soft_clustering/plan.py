"""Which runs the claims of SC1 need, and how finished runs become claims.

A setting is a way to make the models: the primary, or one axis away from it. Four configs a seed: dense, moe (top-2),
soft, and wide, the dense control with as many parameters as all experts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npmoe.ledger import Beside, Claim, Null, Reading, Size
from npmoe.reproduce.experiment import Way
from npmoe.reproduce.mixture import PRIMARY, Config, dense_of
from npmoe.reproduce.paper import options_of, usual_seeds
from npmoe.reproduce.soft_clustering import claims as sc1
from npmoe.reproduce.soft_clustering.axes import AXES, Axis
from npmoe.reproduce.soft_clustering.claims import Spec
from npmoe.reproduce.soft_clustering.runs import Models, Run, independent_cosines

__all__ = ["IDS", "LATER", "Plan", "Setting", "all_claims", "donors", "plan"]

Array = np.ndarray
Results = Mapping[Config, Mapping[str, Array]]

#: Settings of SC1.10, the paper's own predictions of where the effects weaken; the first of each letter is primary.
LATER = {
    "a": (Axis("temperature 4", {"temperature": 4.0}, "moe"), Axis("temperature 1/4", {"temperature": 0.25}, "moe")),
    "b": (Axis("residual", {"around": "residual"}), Axis("shared norm in front", {"around": "norm"})),
    "c": (Axis("labelled clusters with a task each", {"inputs": "clusters", "targets": "tasks"}),),
    "d": (Axis("two layers", {"layers": 2}),),
}
_LATER_SAYS = {
    "a": "Its section 4 predicts that the effects weaken where routing is nearly uniform.",
    "b": "Its section 4 predicts that the effects weaken with a residual or a shared norm.",
    "c": "Its section 4 predicts that the effects weaken for predefined tasks.",
    "d": "Its section 4 predicts that the effects weaken in stacked layers.",
}
IDS = (*(spec.id for spec in sc1.CLAIMS[:-1]), *(f"SC1.10{letter}" for letter in LATER), "SC1.11")


@dataclass(frozen=True)
class Setting:
    """The four configs of one way to make the models, without their seed."""

    name: str
    dense: Config
    moe: Config
    soft: Config
    wide: Config

    def configs(self, seed: int, reads: Iterable[str]) -> list[Config]:
        """The runs that one seed of the models in `reads` needs."""
        return [replace(getattr(self, name), seed=seed) for name in reads if name != "independent"]


def setting(axis: Axis | None, base: Config = PRIMARY) -> Setting:
    """The setting of an axis, or the primary one.

    Runs of an axis are lean. What an axis does not concern is the primary's own run.
    """

    def four(change: dict[str, Any], lean: bool) -> dict[str, Config]:
        moe = replace(base, **change, lean=lean)
        return {
            "dense": dense_of(moe),
            "moe": moe,
            "soft": replace(moe, k=moe.E, renormalize=True),
            "wide": dense_of(moe, h=base.E * base.h),
        }

    primary = four({}, base.lean)
    if axis is None:
        return Setting("primary", **primary)
    changed = four(axis.change, lean=True)
    if axis.concerns == "dense":
        changed = {**primary, "dense": changed["dense"]}
    elif axis.concerns == "moe":
        changed = {**changed, "dense": primary["dense"], "wide": primary["wide"]}
        if "k" in axis.change:
            changed["soft"] = primary["soft"]
    # the same model is not trained twice for being measured in full elsewhere
    known = {replace(config, lean=True): config for config in primary.values()}
    return Setting(axis.name, **{name: known.get(config, config) for name, config in changed.items()})


def _axes_of(spec: Spec, base: Config) -> list[Axis]:
    """The *train* axes that a claim has a reading for."""
    return [axis for axis in AXES if _reads(spec, axis) and _defined(spec, axis, base)]


def _reads(spec: Spec, axis: Axis) -> bool:
    mixture = {"moe", "soft"} & set(spec.reads)
    return {"dense": "dense" in spec.reads, "moe": bool(mixture), "both": True}[axis.concerns]


def _defined(spec: Spec, axis: Axis, base: Config) -> bool:
    """Left out: T is 0 by construction, not defined, or the primary's T again."""
    return not (
        (spec.id == "SC1.2" and axis.change.get("steps", base.steps) <= 250)  # no change after step 250
        or (spec.id in ("SC1.8", "SC1.9") and axis.change.get("k") == base.E)  # soft against soft
        or axis.change.get("k", 1) > base.E
        or (spec.id == "SC1.6" and not {"n", "front", "shared_batch"} & set(axis.change))  # x is what it was
        or (spec.id == "SC1.11" and "activation" in axis.change)  # the closed form is the exact GELU's
    )


def donors(seeds: int, E: int) -> range:
    """Seeds that give experts for the null of independent experts: at least as many as there are experts."""
    return range(max(seeds, E))


@dataclass(frozen=True)
class Plan:
    """What to run: the claims asked for, the mode, the seeds, and the config that the axes start from."""

    ids: tuple[str, ...]
    full: bool
    seeds: int
    base: Config = PRIMARY
    quick: bool = False

    @property
    def options(self) -> str:
        """The options of a call that asks for this plan."""
        return options_of(self.full, self.quick, self.seeds)

    def specs(self) -> list[Spec]:
        """The claims asked for that are not of SC1.10."""
        return [spec for spec in sc1.CLAIMS if spec.id in self.ids]

    def letters(self) -> list[str]:
        """Those of SC1.10."""
        return [letter for letter in LATER if f"SC1.10{letter}" in self.ids]

    def configs(self) -> list[Config]:
        """Every run that is needed, each once, those of the primary first."""
        found: dict[Config, None] = {}
        for chosen, reads in self._parts():
            for seed in range(self.seeds):
                found |= dict.fromkeys(chosen.configs(seed, reads))
            if "independent" in reads:
                for seed in donors(self.seeds, self.base.E)[self.seeds :]:
                    found |= dict.fromkeys(_donor_configs(chosen, seed, reads))
        return list(found)

    def readings(self) -> list[tuple[str, str, list[str], list[str]]]:
        """(id, says, readings that are run, readings that are left out) of each claim, without running any."""
        found = {}
        for spec in self.specs():
            measure = [way.name for way in spec.ways]
            train = [axis.name for axis in _axes_of(spec, self.base)]
            found[spec.id] = (spec.says, measure + train, []) if self.full else (spec.says, measure, train)
        for letter in self.letters():
            named = [(f"{axis.name}, {effect.id}", default) for axis, effect, default in _later_readings(letter)]
            run = [name for name, default in named if default or self.full]
            left = [name for name, kind in named if name not in run]
            found[f"SC1.10{letter}"] = (_LATER_SAYS[letter], run, left)
        return [(id, *found[id]) for id in IDS if id in found]

    def _parts(self) -> list[tuple[Setting, tuple[str, ...]]]:
        """Settings and the models that are read of each."""
        primary = setting(None, self.base)
        parts = [(primary, _all_reads(spec)) for spec in self.specs()]
        for spec in self.specs():
            if self.full:
                parts += [(setting(axis, self.base), _without_control(spec)) for axis in _axes_of(spec, self.base)]
        for letter in self.letters():
            for axis, effect, default in _later_readings(letter):
                if default or self.full:
                    parts += [(primary, effect.reads), (setting(axis, self.base), effect.reads)]
        return parts


def _all_reads(spec: Spec) -> tuple[str, ...]:
    """What all ways of a claim read: some have the soft mixture in the place of the top-2 one."""
    return tuple(dict.fromkeys((*spec.reads, *(("soft",) if "moe" in spec.reads and spec.id != "SC1.3" else ()))))


def _without_control(spec: Spec) -> tuple[str, ...]:
    """What a *train* reading reads: the wide control stands beside measure readings only, or it would cost an hour."""
    return tuple(name for name in spec.reads if name != "wide")


def _donor_configs(chosen: Setting, seed: int, reads: Iterable[str]) -> list[Config]:
    """Donors of experts beyond the seeds that are measured; only their mean Jacobians are wanted."""
    return [replace(c, lean=True) for c in chosen.configs(seed, [r for r in reads if r in ("moe", "soft")])]


# ---- from runs to claims -----------------------------------------------------------------------------------------


def models(results: Results, chosen: Setting, seed: int, plan: Plan) -> Models:
    """The models of one seed, as far as they were run."""

    def run(which: str) -> Run | None:
        config = replace(getattr(chosen, which), seed=seed)
        return Run(config, results[config]) if config in results else None

    def independent(which: str) -> Array | None:
        configs = [replace(getattr(chosen, which), seed=s) for s in donors(plan.seeds, plan.base.E)]
        configs = [c if i < plan.seeds else replace(c, lean=True) for i, c in enumerate(configs)]
        if any(c not in results for c in configs):
            return None
        return independent_cosines([Run(c, results[c]) for c in configs], seed)

    found = {which: run(which) for which in ("dense", "moe", "soft", "wide")}
    return Models(**found, independent_moe=independent("moe"), independent_soft=independent("soft"))  # type: ignore[arg-type]


def all_claims(results: Results, plan: Plan) -> list[Claim]:
    """The claims asked for, in the paper's order."""
    primary = [models(results, setting(None, plan.base), seed, plan) for seed in range(plan.seeds)]
    cache: dict[str, list[Models]] = {}

    def of(axis: Axis) -> list[Models]:
        if axis.name not in cache:
            cache[axis.name] = [models(results, setting(axis, plan.base), s, plan) for s in range(plan.seeds)]
        return cache[axis.name]

    found = {spec.id: _claim(spec, primary, of, plan) for spec in plan.specs()}
    found |= {f"SC1.10{letter}": _later(letter, primary, of, plan) for letter in plan.letters()}
    return [found[id] for id in IDS if id in found]


def _values(T: Callable[[Models], float], seeds: list[Models]) -> tuple[float, ...]:
    return tuple(float(T(m)) for m in seeds)


def _reading(way: Way, seeds: list[Models], name: str, kind: str, primary: bool) -> Reading:
    # the control is not run for train readings: without it T may hold, but not be called reproduced
    missing = (float("nan"),) * len(seeds)
    nulls = tuple(
        Null(n, k, _values(T0, seeds)) if kind == "measure" or k == "chance" else Null(f"{n} (not run)", k, missing)
        for n, k, T0 in way.nulls
    )
    return Reading(name, kind, way.statistic, way.margin, _values(way.T, seeds), nulls, primary)


def _claim(spec: Spec, primary: list[Models], of: Callable[[Axis], list[Models]], plan: Plan) -> Claim:
    readings = [_reading(way, primary, way.name, "measure", i == 0) for i, way in enumerate(spec.ways)]
    axes = _axes_of(spec, plan.base)
    if plan.full:
        for axis in axes:
            readings.append(_reading(spec.ways[0], of(axis), axis.name, "train", False))
    return Claim(
        spec.id,
        spec.says,
        spec.paper_value,
        tuple(readings),
        None if spec.size is None else Size(_values(spec.size[0], primary), spec.size[1], spec.size[2]),
        () if plan.full else tuple(axis.name for axis in axes),
        tuple(Beside(name, says, _values(T, primary)) for name, says, T in spec.beside),
        spec.note,
        plan.quick,
        plan.options,
    )


def _effect(id: str) -> Spec:
    return next(spec for spec in sc1.CLAIMS if spec.id == id)


def _later_readings(letter: str) -> list[tuple[Axis, Spec, bool]]:
    """(setting, effect, whether the default runs it) of each reading of a claim of SC1.10; the first is primary.

    SC1.5 comes with the runs that SC1.4 needs; SC1.8 needs soft mixtures, and other settings need models of their own.
    """
    readings = []
    for i, axis in enumerate(LATER[letter]):
        for id in ("SC1.4", "SC1.5", "SC1.8"):
            spec = replace(_effect(id), reads=_without_control(_effect(id)))
            readings.append((axis, spec, i == 0 and id != "SC1.8"))
    return readings


def _later(letter: str, primary: list[Models], of: Callable[[Axis], list[Models]], plan: Plan) -> Claim:
    """How much an effect shrinks from the primary setting to another; for sharper routing, how much it grows."""
    chosen = _later_readings(letter)
    run = [(axis, effect) for axis, effect, default in chosen if default or plan.full]
    return Claim(
        f"SC1.10{letter}",
        _LATER_SAYS[letter],
        "no number",
        tuple(_weakening(axis, effect, primary, of(axis), i == 0) for i, (axis, effect) in enumerate(run)),
        None,
        tuple(f"{axis.name}, {effect.id}" for axis, effect, default in chosen if not (default or plan.full)),
        (),
        "Sizes of effects, whatever their sign: where the primary has an effect reversed, it is the reversal that "
        "weakens or grows. Read this beside SC1.4, SC1.5 and SC1.8.",
        plan.quick,
        plan.options,
    )


def _weakening(axis: Axis, effect: Spec, primary: list[Models], there: list[Models], first: bool) -> Reading:
    """|T| of an effect in the primary minus |T| in another setting (the other way round for sharper routing)."""
    way = effect.ways[0]
    sharper = axis.name == "temperature 1/4"
    here, other = np.abs(_values(way.T, primary)), np.abs(_values(way.T, there))
    T = other - here if sharper else here - other
    words = f"{axis.name} minus primary" if sharper else f"primary minus {axis.name}"
    nulls = (Null("the primary in the setting's place", "chance", (0.0,) * len(primary)),)
    statistic = f"|T| of {effect.id} ({way.statistic}): {words}"
    name = f"{axis.name}, {effect.id}"
    return Reading(name, "train", statistic, way.margin, tuple(map(float, T)), nulls, first)


def plan(ids: Iterable[str], *, full: bool, quick: bool, seeds: int | None) -> Plan:
    """The plan of a call: five seeds by default, eight in full; a quick one has two and a small model.

    Raises
    ------
    ValueError : for a claim that SC1 does not have.
    """
    wanted = tuple(ids) or IDS
    for id in wanted:
        if id not in IDS:
            raise ValueError(f"expected a claim among {', '.join(IDS)}; got {id!r}")
    if quick:
        base = replace(PRIMARY, E=4, n=96, d=16, h=32, steps=60, keep=12, draws=3)
        return Plan(wanted, full, seeds or usual_seeds(full, quick), base, quick=True)
    return Plan(wanted, full, seeds or usual_seeds(full, quick))
