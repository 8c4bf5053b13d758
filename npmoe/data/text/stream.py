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

__all__ = ["Stream", "batches", "batches_of_one_topic", "stream", "windows"]

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


def batches_of_one_topic(stream: Stream, B: int, T: int, seed: int) -> Callable[[int], tuple[Array, Array]]:
    """As `batches`, but all windows of a batch are of one topic, drawn at each step by its share of the tokens.

    Over many steps a token is read as often as by `batches`, but for the ends of topics. A topic's documents follow one
    another in the order of the stream.

    Raises
    ------
    ValueError : where no topic has T + 1 tokens.

    Examples
    --------
    >>> text = Stream(np.arange(12, dtype=np.int32), np.arange(12, dtype=np.int32) // 3, ("",) * 4, ("a", "b") * 2)
    >>> batch = batches_of_one_topic(text, B=3, T=2, seed=0)
    >>> [set((batch(step)[0] // 3 % 2).ravel().tolist()) for step in range(4)]
    [{0}, {1}, {1}, {0}]
    """
    check.integer("seed", seed, 0)
    names, of_document = np.unique(stream.topics, return_inverse=True)
    of_token = of_document[stream.document]  # (N,)
    parts = [_part(stream, of_token == t) for t in range(len(names))]
    parts = [part for part in parts if len(part.ids) > T]
    if not parts:
        raise ValueError(f"expected a topic with T + 1 = {T + 1} tokens; the largest of {len(names)} has fewer")
    share = np.array([len(part.ids) for part in parts], float)
    share /= share.sum()
    of_topic = [batches(part, B, T, seed) for part in parts]

    def batch(step: int) -> tuple[Array, Array]:
        rng = np.random.default_rng((seed, check.integer("step", step, 0), 1))
        return of_topic[int(rng.choice(len(parts), p=share))](step)

    return batch


def _part(stream: Stream, on: Array) -> Stream:
    """The tokens of some documents."""
    return Stream(stream.ids[on], stream.document[on], stream.titles, stream.topics)


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
