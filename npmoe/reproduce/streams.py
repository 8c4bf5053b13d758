"""Random numbers of a seed: a generator of its own for each use, so that no use moves the numbers of another."""

from collections.abc import Sequence

import numpy as np

__all__ = ["generator_of"]


def generator_of(streams: Sequence[str], seed: int, stream: str, part: int = 0) -> np.random.Generator:
    """The generator of one use of a seed, by its place among the uses that a paper has.

    A use that is added goes to the end of `streams`: those before it keep their numbers.

    Examples
    --------
    >>> a, b = (generator_of(("x", "y"), 0, stream).random() for stream in ("x", "y"))
    >>> a == b, a == generator_of(("x", "y", "z"), 0, "x").random()
    (False, True)
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(streams.index(stream), part))))
