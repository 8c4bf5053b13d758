"""Runs that read other runs: each after what it reads."""

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["in_order", "missing"]

C = TypeVar("C")


def in_order(configs: Iterable[C], reads: Callable[[C], Iterable[C]]) -> list[C]:
    """The configs and all that they read, each once, in the order asked for, and each right behind what it reads.

    Raises
    ------
    ValueError
        Where a run would have to be there before itself.

    Examples
    --------
    >>> in_order([7, 3, 2], lambda n: [n // 2] if n else [])
    [0, 1, 3, 7, 2]
    """
    placed: dict[C, None] = {}

    def place(config: C, above: tuple[C, ...] = ()) -> None:
        if config in above:
            raise ValueError(
                f"expected a run that reads others than itself; got {config!r}, which comes to need itself"
            )
        if config not in placed:
            for other in reads(config):
                place(other, (*above, config))
            placed[config] = None

    for config in configs:
        place(config)
    return list(placed)


def missing(asked: Iterable[C], needed: dict[C, tuple[C, ...]], there: Callable[[C], bool]) -> list[C]:
    """The runs to be computed, in order: those asked for that are not there, and of what these read the same."""
    found: dict[C, bool] = {}

    def look(config: C) -> None:
        if config not in found:
            found[config] = not there(config)
            for other in needed[config] if found[config] else ():
                look(other)

    for config in asked:
        look(config)
    return [config for config in needed if found.get(config)]
