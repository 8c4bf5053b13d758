"""What runs at work say of how far they are, from whichever process they are in to the progress bar.

It is for the eye alone: where nobody listens, as on a cluster, it is lost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["listen", "listening", "tell"]

_listeners: list[Callable[[str], None]] = []  # of this process; the last one hears


def tell(text: str) -> None:
    """Say how far the run at work is; one line, at most once a second or so."""
    for last in _listeners[-1:]:  # a copy: another thread may stop listening meanwhile
        last(text)


def listen(to: Callable[[str], None]) -> None:
    """Have `to` called with what is told from now on in this process."""
    _listeners.append(to)


@contextmanager
def listening(to: Callable[[str], None]) -> Iterator[None]:
    """Have `to` called with what is told meanwhile; it may be called in any thread.

    Examples
    --------
    >>> with listening(print):
    ...     tell("step 3 of 8")
    step 3 of 8
    >>> tell("lost")
    """
    listen(to)
    try:
        yield
    finally:
        _listeners.remove(to)
