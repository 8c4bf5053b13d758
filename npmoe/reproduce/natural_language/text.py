"""The text of a run: which one there is, its vocabulary, its training and held-out streams."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from npmoe.calculus.words import one_line
from npmoe.data.text import Corpus, Stream, Vocabulary, open_corpus, stream
from npmoe.data.text.installed import introductions
from npmoe.reproduce.natural_language.config import Config, Text

__all__ = ["Prepared", "found", "labelled", "prepared"]

INTRODUCTIONS = ":introductions"  # in the place of a path: those that the extra `text` installs, with their topics


class Prepared(NamedTuple):
    """A corpus as ids: its vocabulary, and the training and held-out streams."""

    corpus: Corpus
    vocabulary: Vocabulary
    train: Stream
    heldout: Stream

    def __repr__(self) -> str:
        return one_line(self)


@lru_cache(maxsize=3)
def _opened(path: str) -> Corpus:
    if path == INTRODUCTIONS:
        corpus = introductions()
        if corpus is None:
            raise ValueError("expected the introductions of the extra text; run `pip install 'npmoe[text]'`")
        return corpus
    return open_corpus(Path(path) if path else None)


def found(path: Path | None) -> Text:
    """The text that a call names, or the one that is found by itself, by name and digest.

    Raises
    ------
    ValueError, FileNotFoundError : as `npmoe.data.text.open_corpus`.
    """
    return _found("" if path is None else str(path))


def labelled(text: Text) -> Text:
    """A text whose documents have topics: this one where it has them, or else Wikipedia's introductions.

    Where these are not installed it is this text all the same: what is asked of topics has no answer then.
    """
    return text if text.topics or introductions() is None else _found(INTRODUCTIONS)


@lru_cache(maxsize=4)
def _found(path: str) -> Text:
    corpus = _opened(path)
    words = hashlib.sha256()
    for part in (corpus.train, corpus.heldout):
        for document in part:
            words.update(document.text.encode() + b"\0")
        words.update(b"\1")
    topics = len({document.topic for document in corpus.train}) > 1
    return Text(path, corpus.name, words.hexdigest()[:16], topics)


@lru_cache(maxsize=3)
def _prepared(text: Text, V: int) -> Prepared:
    corpus = _opened(text.path)
    if _found(text.path).digest != text.digest:
        raise ValueError(f"expected the text {text.name!r} as it was when this run was planned; it has changed")
    vocabulary = Vocabulary.train(corpus, V)
    return Prepared(corpus, vocabulary, stream(corpus.train, vocabulary), stream(corpus.heldout, vocabulary))


def prepared(config: Config) -> Prepared:
    """The corpus of a config as ids."""
    return _prepared(config.text, config.V)
