"""Documents as one stream of ids, and windows of it: batches to train on, and consecutive windows to evaluate.

N tokens of the stream, B windows of T tokens a batch. The target of a token is the token after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.words import one_line
from npmoe.data.text.documents import Document

__all__ = ["Stream", "batches", "stream", "windows"]

Array = np.ndarray


class Coder(Protocol):
    """What a stream needs of a vocabulary."""

    def encode(self, text: str) -> Array:
        """The ids of a text."""

    @property
    def eos(self) -> int:
        """The id that ends a document."""


@dataclass(frozen=True, eq=False)
class Stream:
    """All documents as one sequence of tokens.

    Parameters
    ----------
    ids : int32 (N,).
    document : int32 (N,), the number of the document that each token is of.
    titles, topics : of each document.
    """

    ids: Array  # (N,)
    document: Array  # (N,)
    titles: tuple[str, ...]
    topics: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.shape != self.document.shape:
            raise ValueError(f"expected ids and document of shape (N,); got {self.ids.shape} and {self.document.shape}")
        if len(self.titles) != len(self.topics):
            raise ValueError(
                f"expected a title and a topic for each document; got {len(self.titles)} and {len(self.topics)}"
            )

    def __repr__(self) -> str:
        return one_line(self)


def stream(documents: Sequence[Document], vocabulary: Coder) -> Stream:
    """The documents one after another, an `<eos>` after each.

    Examples
    --------
    >>> from npmoe.data.text.vocabulary import Vocabulary
    >>> documents = [Document("to be or not", "Hamlet"), Document("to be", "Ophelia")]
    >>> found = stream(documents, Vocabulary(("<unk>", "<eos>", "to", "be")))
    >>> found.ids, found.document
    (array([2, 3, 0, 0, 1, 2, 3, 1], dtype=int32), array([0, 0, 0, 0, 0, 1, 1, 1], dtype=int32))
    """
    documents = tuple(documents)
    if not documents:
        raise ValueError("expected at least one document; got none")
    eos = np.array([vocabulary.eos], np.int32)
    pieces = [np.append(vocabulary.encode(document.text), eos) for document in documents]
    return Stream(
        np.concatenate(pieces).astype(np.int32, copy=False),
        np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece) for piece in pieces]),
        tuple(document.title for document in documents),
        tuple(document.topic for document in documents),
    )


def batches(stream: Stream, B: int, T: int, seed: int) -> Callable[[int], tuple[Array, Array]]:
    """Batches of windows drawn at random, as a function of the step alone, step -> ids (B, T), targets (B, T).

    Step i draws its windows from a generator seeded by (seed, i), so that a resumed run sees what the first would have
    seen. Every window is as likely as any other. A window may go over the end of a document; the `<eos>` marks it.

    Parameters
    ----------
    stream : N tokens, at least T + 1.
    B, T : windows a batch, tokens a window.
    seed : integer of at least 0.

    Examples
    --------
    >>> text = Stream(np.arange(9, dtype=np.int32), np.zeros(9, np.int32), ("",), ("",))
    >>> batch = batches(text, B=2, T=4, seed=0)
    >>> ids, targets = batch(5)
    >>> ids.shape, np.array_equal(targets, ids + 1), np.array_equal(batch(5)[0], ids)
    ((2, 4), True, True)
    """
    check.integer("B", B, 1)
    check.integer("seed", seed, 0)
    _long_enough(stream, T)
    offsets = np.arange(T)

    def batch(step: int) -> tuple[Array, Array]:
        rng = np.random.default_rng((seed, check.integer("step", step, 0)))
        at = rng.integers(0, len(stream.ids) - T, size=(B, 1)) + offsets  # (B, T); the last window ends one before N
        return stream.ids[at], stream.ids[at + 1]

    return batch


def windows(stream: Stream, T: int) -> tuple[Array, Array]:
    """Consecutive windows of the stream without overlap, ids (m, T) and targets (m, T), m = (N - 1) // T.

    They cover the stream from its beginning. Up to T - 1 tokens at its end fill no window and are left out: the last
    token that is predicted is ``stream.ids[m * T]``.

    Examples
    --------
    >>> text = Stream(np.arange(9, dtype=np.int32), np.zeros(9, np.int32), ("",), ("",))
    >>> windows(text, T=3)[1]
    array([[1, 2, 3],
           [4, 5, 6]], dtype=int32)
    """
    _long_enough(stream, T)
    m = (len(stream.ids) - 1) // T
    return stream.ids[: m * T].reshape(m, T), stream.ids[1 : m * T + 1].reshape(m, T)


def _long_enough(stream: Stream, T: int) -> None:
    check.integer("T", T, 1)
    if len(stream.ids) <= T:
        raise ValueError(
            f"expected text of at least T + 1 = {T + 1} tokens, a window and the token after it; "
            f"got {len(stream.ids)}: take a shorter context or a longer text"
        )
