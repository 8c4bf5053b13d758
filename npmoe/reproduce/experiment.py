"""A paper as an experiment: which runs its claims need, and how finished runs become claims.

A *role* is one model of a comparison ("top2", "weight 0.1"): a change of the base config. An *axis* is one *train*
reading: a further change, of all roles or of those that it names. A claim reads roles; its first way of measuring is
primary, and is the one that every axis is read with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus.words import one_line
from npmoe.ledger import Beside, Claim, Null, Reading, Size, Statement

__all__ = [
    "Across",
    "Axis",
    "Experiment",
    "Models",
    "Pair",
    "Results",
    "Role",
    "Run",
    "Spec",
    "Statistic",
    "Trial",
    "Way",
]

Array = np.ndarray
Arrays = Mapping[str, Array]
Results = Mapping[Any, Arrays]  # finished runs by their configs


class Axis(NamedTuple):
    """One *train* reading: its name, what it changes, in which roles (all, unless some are named), and what in each."""

    name: str
    change: Mapping[str, Any]
    roles: tuple[str, ...] = ()
    each: Mapping[str, Mapping[str, Any]] = {}


class Across(NamedTuple):
    """A role made of the runs of another role: `run` gives its config from theirs, of the seed and those after it.

    It takes `count` (of the base) seeds, and comes round to the first where it has reached the last.
    """

    role: str
    run: Callable[[tuple[Any, ...]], Any]
    count: Callable[[Any], int]


class Pair(NamedTuple):
    """A role made of the models of two others in one seed: `run` gives its config from theirs."""

    role: str
    other: str
    run: Callable[[Any, Any], Any]


Role = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | Across | Pair


@dataclass(frozen=True)
class Run:
    """One finished run: the config of its model and its arrays by name."""

    config: Any
    arrays: Arrays = field(repr=False)

    def __repr__(self) -> str:
        return one_line(self)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]


@dataclass(frozen=True)
class Models:
    """The finished runs of one seed, by role."""

    seed: int
    runs: Mapping[str, Run]

    def __repr__(self) -> str:
        return one_line(self)

    def __getitem__(self, role: str) -> Run:
        return self.runs[role]


Statistic = Callable[[Any], float]  # of the models of one seed


class Way(NamedTuple):
    """A reading of the primary runs: name, T in words, T, margin, and its nulls as (name, kind, T0).

    `roles` are those that it reads where these are not its claim's. One with `full` is a reading of ``--full`` alone.
    A comparison with models made otherwise is of the kind "train", any other is a *measure* reading.
    """

    name: str
    statistic: str
    T: Statistic
    margin: float
    nulls: tuple[tuple[str, str, Statistic], ...] = ()
    roles: tuple[str, ...] = ()
    kind: str = "measure"
    full: bool = False


@dataclass(frozen=True)
class Spec:
    """A claim before any run.

    Parameters
    ----------
    id, says, paper_value : as on the page.
    roles : the runs that it reads.
    ways : the first is primary.
    axes : its *train* readings, run with ``--full``; or a function of the base that gives them.
    size : what we measure for the paper's number, the paper's range, a unit.
    note, beside : as on the page.
    exact : for an exact claim, in the place of ways: all seeds' models -> statements.
    once : roles that are run in the primary setting alone: what other ways than the first read, and controls. Where it
        names some, a train reading is judged without controls, and says so.
    """

    id: str
    says: str
    paper_value: str
    roles: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    axes: tuple[Axis, ...] | Callable[[Any], tuple[Axis, ...]] = ()
    size: tuple[Statistic, tuple[float, float], str] | None = None
    note: str = ""
    beside: tuple[tuple[str, str, Statistic], ...] = ()
    exact: Callable[[Sequence[Models]], tuple[Statement, ...]] | None = None
    once: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return one_line(self)

    def readings(self, full: bool) -> tuple[Way, ...]:
        """The ways that a call in full, or one that is not, measures."""
        return tuple(way for way in self.ways if full or not way.full)

    def reads(self, full: bool) -> tuple[str, ...]:
        """The roles that it reads in the primary setting; none where all of its ways are of ``--full`` alone."""
        if self.ways and not self.readings(full):
            return ()
        of_ways = [role for way in self.readings(full) for role in way.roles]
        return tuple(dict.fromkeys((*self.roles, *self.once, *of_ways)))


@dataclass(frozen=True)
class Experiment:
    """The claims of a paper and the roles that they read.

    Parameters
    ----------
    base, quick : the config that roles start from, and a small one.
    roles : by name a change of the base, a function of the base that gives one, `Across` another role's seeds, or a
        `Pair` of two others.
    specs : the claims.
    measured : from the config of a model to that of the run that measures it, where this is not the run that trains it.
    lean : changes that make a run measure only what primary statistics need; runs of axes have them, and seeds that
        only give to a role across seeds. A model that some role needs in full is not trained a second time.
    """

    base: Any
    quick: Any
    roles: Mapping[str, Role]
    specs: tuple[Spec, ...]
    measured: Callable[[Any], Any] | None = None
    lean: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def ids(self) -> tuple[str, ...]:
        """The claims' ids, in order."""
        return tuple(spec.id for spec in self.specs)

    def plan(self, ids: Sequence[str], *, full: bool, quick: bool, seeds: int | None) -> "Trial":
        """The plan of a call: five seeds by default, eight in full; a quick one has two and a small model.

        Raises
        ------
        ValueError : for a claim that this paper does not have.
        """
        for id in ids:
            if id not in self.ids:
                raise ValueError(f"expected a claim among {', '.join(self.ids)}; got {id!r}")
        chosen = tuple(id for id in self.ids if id in set(ids or self.ids))
        return Trial(self, chosen, full, seeds or usual_seeds(full, quick), quick)


@dataclass(frozen=True)
class Trial:
    """What to run of an experiment: the claims asked for, the mode, the seeds."""

    experiment: Experiment
    ids: tuple[str, ...]
    full: bool
    seeds: int
    quick: bool = False
    shown: int | None = None  # seeds that claims and figures read: all, unless some are still to come
    changes: tuple[tuple[str, Any], ...] = ()  # of the base config, such as the text that a call names
    missing: tuple[tuple[str, str], ...] = ()  # claims that cannot be tested here, each with what is not there

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def base(self) -> Any:
        """The config that roles and axes start from."""
        return replace(self.experiment.quick if self.quick else self.experiment.base, **dict(self.changes))

    @property
    def options(self) -> str:
        """The options of a call that asks for this plan."""
        return options_of(self.full, self.quick, self.seeds)

    def specs(self) -> list[Spec]:
        """The claims asked for."""
        lacks = dict(self.missing)
        return [
            replace(spec, roles=(), ways=(), axes=(), beside=(), size=None, once=(), note=lacks[spec.id])
            if spec.id in lacks
            else spec
            for spec in self.experiment.specs
            if spec.id in self.ids
        ]

    def axes(self, spec: Spec) -> tuple[Axis, ...]:
        """The *train* readings of a claim, whether they are run or not."""
        return spec.axes(self.base) if callable(spec.axes) else spec.axes

    @property
    def counted(self) -> range:
        """The seeds that claims and figures read."""
        return range(self.seeds if self.shown is None else self.shown)

    # from roles to runs

    def config(self, role: str, seed: int, axis: Axis | None = None) -> Any:
        """The config of a role's model, on an axis or in the primary setting."""
        lean, change = self.experiment.lean, self._change(role, axis)
        if lean and (axis is not None or seed >= self.seeds):
            change |= lean
        config = replace(self.base, **change, seed=seed)
        if lean and lean.items() <= change.items() and seed < self.seeds:
            whole = replace(config, **{name: getattr(self.base, name) for name in lean})
            return whole if whole in self._in_full(seed) else config
        return config

    def _change(self, role: str, axis: Axis | None) -> dict[str, Any]:
        made = self.experiment.roles[role]
        if isinstance(made, Across | Pair):
            raise ValueError(f"expected a role that is one model; {role!r} is made of several")
        change = {**(made(self.base) if callable(made) else made)}
        if axis is not None and (not axis.roles or role in axis.roles):
            change |= axis.change
        if axis is not None:
            change |= axis.each.get(role, {})
        return change

    def _in_full(self, seed: int) -> set[Any]:
        """The configs of one seed that some role has in the primary setting, measured in full."""
        roles = [role for role, made in self.experiment.roles.items() if not isinstance(made, Across | Pair)]
        changes = [self._change(role, None) for role in roles]
        return {
            replace(self.base, **change, seed=seed)
            for change in changes
            if not self.experiment.lean.items() <= change.items()
        }

    def run(self, role: str, seed: int, axis: Axis | None = None) -> Any:
        """The config of the run that measures a role."""
        made = self.experiment.roles[role]
        if isinstance(made, Across):
            count = made.count(self.base)
            seeds = [(seed + i) % max(self.seeds, count) for i in range(count)]
            return made.run(tuple(self.config(made.role, s, axis) for s in seeds))
        if isinstance(made, Pair):
            return made.run(self.config(made.role, seed, axis), self.config(made.other, seed, axis))
        config, measured = self.config(role, seed, axis), self.experiment.measured
        return config if measured is None else measured(config)

    def configs(self) -> list[Any]:
        """Every run that the claims read, each once, in the order in which a page can show them.

        The primary setting comes first, seed by seed; roles across seeds wait for all of these; *train* readings last.
        """
        return list(dict.fromkeys(self.run(*part) for part in self._parts()))

    def _parts(self) -> Iterator[tuple[str, int, Axis | None]]:
        roles = dict.fromkeys(role for spec in self.specs() for role in spec.reads(self.full))
        across = [role for role in roles if isinstance(self.experiment.roles[role], Across)]
        for some in ([role for role in roles if role not in across], across):
            yield from ((role, seed, None) for seed in range(self.seeds) for role in some)
        for spec in self.specs() if self.full else ():
            yield from ((role, s, axis) for axis in self.axes(spec) for role in spec.roles for s in range(self.seeds))

    def readings(self) -> list[tuple[str, str, list[str], list[str]]]:
        """(id, says, readings that are run, readings that are left out) of each claim, without running any."""
        found = []
        for spec in self.specs():
            run_now = [way.name for way in spec.readings(self.full)]
            run_now += ["exact statements, counted on every Site"] if spec.exact else []
            train = [axis.name for axis in self.axes(spec)]
            found.append((spec.id, spec.says, run_now + train * self.full, list(self._left_out(spec))))
        return found

    def _left_out(self, spec: Spec) -> tuple[str, ...]:
        """The readings of ``--full`` where this is none."""
        if self.full:
            return ()
        return (*(way.name for way in spec.ways if way.full), *(axis.name for axis in self.axes(spec)))

    # from runs to claims

    def found(self, results: Results, role: str, seed: int, axis: Axis | None = None) -> Run | None:
        """A finished run, or None where no claim that was asked for reads it."""
        config = self.run(role, seed, axis)
        if config not in results:
            return None
        several = isinstance(self.experiment.roles[role], Across | Pair)
        model = None if several else self.config(role, seed, axis)
        return Run(model, results[config])

    def models(self, results: Results, roles: Sequence[str], seed: int, axis: Axis | None = None) -> Models:
        """The finished runs of one seed.

        Raises
        ------
        KeyError : for a role that was not run.
        """
        runs = {role: self.found(results, role, seed, axis) for role in roles}
        missing = [role for role, run in runs.items() if run is None]
        if missing:
            raise KeyError(
                f"expected finished runs of {', '.join(roles)}; {', '.join(missing)} of seed {seed} was not run"
            )
        return Models(seed, {role: run for role, run in runs.items() if run is not None})

    def seeds_of(self, results: Results, roles: Sequence[str], axis: Axis | None = None) -> list[Models]:
        """The finished runs of every seed that counts."""
        return [self.models(results, roles, seed, axis) for seed in self.counted]

    def complete(self, results: Results, roles: Sequence[str], axis: Axis | None = None) -> int:
        """How many seeds have all these roles, from the first on without a gap."""
        for seed in range(self.seeds):
            if any(self.run(role, seed, axis) not in results for role in roles):
                return seed
        return self.seeds

    def claims(self, results: Results) -> list[Claim]:
        """The claims asked for, in the paper's order, each on the seeds that are there."""
        return [self._claim(spec, results) for spec in self.specs()]

    def _claim(self, spec: Spec, results: Results) -> Claim:
        seeds = self.complete(results, spec.reads(self.full))
        primary = replace(self, shown=seeds).seeds_of(results, spec.reads(self.full))
        if spec.ways and not spec.readings(self.full):
            left = self._left_out(spec)
            note = f"Left out of this run; --full measures it. {spec.note}"
            return Claim(spec.id, spec.says, spec.paper_value, (), left_out=left, note=note, options=" --full")
        if seeds == 0 and (spec.ways or spec.exact):
            return Claim(
                spec.id,
                spec.says,
                spec.paper_value,
                (),
                note="Still to be computed.",
                options=self.options,
                seeds=0,
                pending=True,
            )
        readings = [
            _reading(way, primary, way.name, way.kind, i == 0) for i, way in enumerate(spec.readings(self.full))
        ]
        waiting = []
        for axis in self.axes(spec) if self.full else ():
            way = _without_controls(spec.ways[0]) if spec.once else spec.ways[0]
            there = self.complete(results, spec.roles, axis)
            if there < self.seeds:
                waiting.append(f"{axis.name} (still to come: {self.seeds - there} of {self.seeds} seeds)")
            if there:
                found = replace(self, shown=there).seeds_of(results, spec.roles, axis)
                readings.append(_reading(way, found, axis.name, "train", False))
        return Claim(
            spec.id,
            spec.says,
            spec.paper_value,
            tuple(readings),
            None if spec.size is None else Size(_values(spec.size[0], primary), spec.size[1], spec.size[2]),
            (*self._left_out(spec), *waiting),
            tuple(Beside(name, says, _values(T, primary)) for name, says, T in spec.beside),
            spec.note,
            self.quick,
            self.options,
            () if spec.exact is None else spec.exact(primary),
            seeds,
        )


def _without_controls(way: Way) -> Way:
    """A way whose controls are not run: T may hold then, but not be called reproduced."""
    missing: Statistic = lambda m: float("nan")  # noqa: E731
    nulls = [
        (f"{name} (not run)", kind, missing) if kind == "control" else (name, kind, T0) for name, kind, T0 in way.nulls
    ]
    return way._replace(nulls=tuple(nulls))


def _values(T: Statistic, seeds: Sequence[Models]) -> tuple[float, ...]:
    return tuple(float(T(m)) for m in seeds)


def _reading(way: Way, seeds: Sequence[Models], name: str, kind: str, primary: bool) -> Reading:
    nulls = tuple(Null(n, k, _values(T0, seeds)) for n, k, T0 in way.nulls)
    return Reading(name, kind, way.statistic, way.margin, _values(way.T, seeds), nulls, primary)


def usual_seeds(full: bool, quick: bool) -> int:
    """How many seeds a call has that names no number."""
    return 2 if quick else 8 if full else 5


def options_of(full: bool, quick: bool, seeds: int) -> str:
    """The options of a call in this mode and with so many seeds, such as " --full --seeds 9"."""
    mode = " --quick" if quick else " --full" if full else ""
    return mode + (f" --seeds {seeds}" if seeds != usual_seeds(full, quick) else "")
