"""Runs by role, and how they become claims: what GA and MY share.

A *role* is one model of a comparison ("top2", "weight 0.1"): a change of the base config. An *axis* is one *train*
reading: a further change, of all roles or of those that it names. A claim reads roles; its first way of measuring is
primary, and is the one that every axis is read with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npmoe.ledger import Beside, Claim, Null, Reading, Size, Statement
from npmoe.reproduce.paper import Results, options_of, usual_seeds

__all__ = ["Axis", "Experiment", "Models", "Spec", "Statistic", "Trial", "Way"]

Array = np.ndarray
Arrays = Mapping[str, Array]


class Axis(NamedTuple):
    """One *train* reading: its name, what it changes, in which roles (all, unless some are named), and what in each."""

    name: str
    change: Mapping[str, Any]
    roles: tuple[str, ...] = ()
    each: Mapping[str, Mapping[str, Any]] = {}


@dataclass(frozen=True)
class Models:
    """The finished runs of one seed by role, and of all seeds where a role crosses them (independent experts).

    `configs` holds the config of each role.
    """

    seed: int
    runs: Mapping[str, Arrays]
    configs: Mapping[str, Any]
    across: Mapping[str, Sequence[Arrays]]

    def __getitem__(self, role: str) -> Arrays:
        return self.runs[role]


Statistic = Callable[[Any], float]  # of the models of one seed


class Way(NamedTuple):
    """A *measure* reading: name, T in words, T, margin, and its nulls as (name, kind, T0)."""

    name: str
    statistic: str
    T: Statistic
    margin: float
    nulls: tuple[tuple[str, str, Statistic], ...] = ()


@dataclass(frozen=True)
class Spec:
    """A claim before any run.

    Parameters
    ----------
    id, says, paper_value : as on the page.
    roles : the runs that it reads.
    ways : the first is primary.
    axes : its *train* readings, run with ``--full``.
    size : what we measure for the paper's number, the paper's range, a unit.
    note, beside : as on the page.
    exact : for an exact claim, in the place of ways: all seeds' models -> statements.
    """

    id: str
    says: str
    paper_value: str
    roles: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    axes: tuple[Axis, ...] = ()
    size: tuple[Statistic, tuple[float, float], str] | None = None
    note: str = ""
    beside: tuple[tuple[str, str, Statistic], ...] = ()
    exact: Callable[[Sequence[Models]], tuple[Statement, ...]] | None = None


@dataclass(frozen=True)
class Experiment:
    """The claims of a paper and the roles that they read, from a base config; `quick` is a small base.

    A role is a change of the base, or a function of the base that gives one. Roles in `across` are also run with
    further seeds, until there are `donors` of them.
    """

    base: Any
    quick: Any
    roles: Mapping[str, Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]]
    specs: tuple[Spec, ...]
    across: tuple[str, ...] = ()
    donors: int = 0

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

    @property
    def base(self) -> Any:
        """The config that roles and axes start from."""
        return self.experiment.quick if self.quick else self.experiment.base

    @property
    def options(self) -> str:
        """The options of a call that asks for this plan."""
        return options_of(self.full, self.quick, self.seeds)

    def specs(self) -> list[Spec]:
        """The claims asked for."""
        return [spec for spec in self.experiment.specs if spec.id in self.ids]

    def config(self, role: str, seed: int, axis: Axis | None = None) -> Any:
        """The config of a role, on an axis or in the primary setting."""
        of_role = self.experiment.roles[role]
        change = {**(of_role(self.base) if callable(of_role) else of_role)}
        if axis is not None and (not axis.roles or role in axis.roles):
            change |= axis.change
        if axis is not None:
            change |= axis.each.get(role, {})
        return replace(self.base, **change, seed=seed)

    def configs(self) -> list[Any]:
        """Every run that is needed, each once, those of the primary setting first."""
        found: dict[Any, None] = {}
        for axis, role in self._parts():
            count = max(self.seeds, self.experiment.donors) if role in self.experiment.across else self.seeds
            found |= dict.fromkeys(self.config(role, seed, axis) for seed in range(count))
        return list(found)

    def _parts(self) -> Iterator[tuple[Axis | None, str]]:
        for spec in self.specs():
            yield from ((None, role) for role in spec.roles)
        for spec in self.specs() if self.full else ():
            yield from ((axis, role) for axis in spec.axes for role in spec.roles)

    def readings(self) -> list[tuple[str, str, list[str], list[str]]]:
        """(id, says, readings that are run, readings that are left out) of each claim, without running any."""
        found = []
        for spec in self.specs():
            measure, train = [way.name for way in spec.ways], [axis.name for axis in spec.axes]
            measure += ["exact statements, counted on every Site"] if spec.exact else []
            found.append((spec.id, spec.says, measure + train * self.full, [] if self.full else train))
        return found

    def models(self, results: Results, roles: Sequence[str], seed: int, axis: Axis | None = None) -> Models:
        """The finished runs of one seed."""
        configs = {role: self.config(role, seed, axis) for role in roles}
        count = max(self.seeds, self.experiment.donors)
        across = {
            role: [results[self.config(role, s, axis)] for s in range(count)]
            for role in roles
            if role in self.experiment.across
        }
        return Models(seed, {role: results[config] for role, config in configs.items()}, configs, across)

    def seeds_of(self, results: Results, roles: Sequence[str], axis: Axis | None = None) -> list[Models]:
        """The finished runs of every seed."""
        return [self.models(results, roles, seed, axis) for seed in range(self.seeds)]

    def claims(self, results: Results) -> list[Claim]:
        """The claims asked for, in the paper's order."""
        return [self._claim(spec, results) for spec in self.specs()]

    def _claim(self, spec: Spec, results: Results) -> Claim:
        primary = self.seeds_of(results, spec.roles)
        readings = [_reading(way, primary, way.name, "measure", i == 0) for i, way in enumerate(spec.ways)]
        if self.full:
            for axis in spec.axes:
                seeds = self.seeds_of(results, spec.roles, axis)
                readings.append(_reading(spec.ways[0], seeds, axis.name, "train", False))
        return Claim(
            spec.id,
            spec.says,
            spec.paper_value,
            tuple(readings),
            None if spec.size is None else Size(_values(spec.size[0], primary), spec.size[1], spec.size[2]),
            () if self.full else tuple(axis.name for axis in spec.axes),
            tuple(Beside(name, says, _values(T, primary)) for name, says, T in spec.beside),
            spec.note,
            self.quick,
            self.options,
            () if spec.exact is None else spec.exact(primary),
        )


def _values(T: Statistic, seeds: Sequence[Models]) -> tuple[float, ...]:
    return tuple(float(T(m)) for m in seeds)


def _reading(way: Way, seeds: Sequence[Models], name: str, kind: str, primary: bool) -> Reading:
    nulls = tuple(Null(n, k, _values(T0, seeds)) for n, k, T0 in way.nulls)
    return Reading(name, kind, way.statistic, way.margin, _values(way.T, seeds), nulls, primary)
