"""Runs that read other runs: what must be there before what."""

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["in_stages", "missing"]

C = TypeVar("C")


def in_stages(configs: Iterable[C], reads: Callable[[C], Iterable[C]]) -> list[C]:
    """The configs and all that they read, each once: first those that read nothing, then those that read these, and on.

    Raises
    ------
    ValueError
        Where a run would have to be there before itself.

    Examples
    --------
    >>> in_stages([3, 1, 0], lambda n: [n - 1] if n else [])
    [0, 1, 2, 3]
    """
    stage: dict[C, int] = {}

    def place(config: C, above: tuple[C, ...] = ()) -> int:
        if config in above:
            raise ValueError(
                f"expected a run that reads others than itself; got {config!r}, which comes to need itself"
            )
        if config not in stage:
            found = [place(other, (*above, config)) for other in reads(config)]
            stage[config] = 1 + max(found, default=-1)
        return stage[config]

    for config in configs:
        place(config)
    return sorted(stage, key=stage.__getitem__)  # stable: in the order asked for within a stage


def missing(asked: Iterable[C], needed: dict[C, tuple[C, ...]], there: Callable[[C], bool]) -> list[C]:
    """The runs to be computed, in stages: those asked for that are not there, and of what these read the same."""
    found: dict[C, bool] = {}

    def look(config: C) -> None:
        if config not in found:
            found[config] = not there(config)
            for other in needed[config] if found[config] else ():
                look(other)

    for config in asked:
        look(config)
    return [config for config in needed if found.get(config)]
