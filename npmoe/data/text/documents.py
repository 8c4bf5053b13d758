"""Documents and corpora: what a language model reads, and how a part of it is held out.

Everything that holds text out stands here. No rule draws at random: the same files give the same split.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from npmoe.calculus.words import MOST, never_raises, short

__all__ = ["FEWEST", "Corpus", "Document", "count_words", "enough", "every_tenth", "last_tenth"]

FEWEST = 100  # words of a corpus: with fewer there is nothing to learn


@dataclass(frozen=True)
class Document:
    """One text with its title and topic, each "" where unknown.

    Examples
    --------
    >>> Document("A list is mutable.", "list")
    Document('list': 4 words)
    """

    text: str
    title: str = ""
    topic: str = ""

    @never_raises
    def __repr__(self) -> str:
        topic = f", topic {short(self.topic)}" if self.topic else ""
        return f"Document({short(self.title)}: {count_words([self])} words{topic})"


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, with where they come from.

    Parameters
    ----------
    name : what every result prints.
    source : a sentence on where the text comes from.
    licence : a sentence on its licence.
    train, heldout : the documents, at least one each.
    tokenised : whether spaces stand between all words and punctuation marks, as in WikiText.

    Examples
    --------
    >>> Corpus("two notes", "Written here.", "Public domain.", (Document("one"),), (Document("two"),))
    Corpus('two notes': 1 document to train on, 1 held out)
    """

    name: str
    source: str
    licence: str
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    tokenised: bool = False

    def __post_init__(self) -> None:
        if not (self.train and self.heldout):
            raise ValueError(
                f"expected at least one document to train on and one held out in {self.name!r}; "
                f"got {len(self.train)} and {len(self.heldout)}"
            )

    @never_raises
    def __repr__(self) -> str:
        n, topics = len(self.train), len({document.topic for document in self.train} - {""})
        rest = f": {n} document{'s' * (n != 1)} to train on, {len(self.heldout)} held out"
        rest += f", {topics} topics)" if topics else ")"
        room = MOST - len("Corpus('...'") - len(rest)
        return f"Corpus({self.name if len(self.name) <= room else self.name[:room] + '...'!r}{rest}"


def count_words(documents: Iterable[Document]) -> int:
    """The number of words of documents, a word being what stands between white space."""
    return sum(len(document.text.split()) for document in documents)


def enough(corpus: Corpus, where: object) -> Corpus:
    """The corpus itself, if it has words enough to learn from.

    Raises
    ------
    ValueError : for fewer than 100 words; names `where` they came from.
    """
    n = count_words(corpus.train) + count_words(corpus.heldout)
    if n < FEWEST:
        raise ValueError(f"{where}: expected at least {FEWEST} words of text; got {n}: give a longer text")
    return corpus


def last_tenth(documents: Sequence[Document]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """All but the last tenth of the documents, and that tenth: at least one. A single document is cut by its words.

    Examples
    --------
    >>> train, heldout = last_tenth([Document(str(i)) for i in range(20)])
    >>> len(train), [document.text for document in heldout]
    (18, ['18', '19'])
    >>> last_tenth([Document("a b c d e f g h i j", "letters")])[1][0].text
    'j'
    """
    if len(documents) == 1:
        return _cut(documents[0])
    n = len(documents) - max(1, len(documents) // 10)
    return tuple(documents[:n]), tuple(documents[n:])


def _cut(document: Document) -> tuple[tuple[Document], tuple[Document]]:
    """One document in two, at nine tenths of its words."""
    starts = [found.start() for found in re.finditer(r"\S+", document.text)]
    at = starts[-max(1, len(starts) // 10)] if starts else 0
    first, second = document.text[:at].rstrip(), document.text[at:]
    return (
        (Document(first, document.title, document.topic),),
        (Document(second, f"{document.title} (the end)".strip(), document.topic),),
    )


def every_tenth(documents: Sequence[Document]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """All but every tenth document of each topic, and those. Where no topic has ten, it is the `last_tenth`.

    Examples
    --------
    >>> train, heldout = every_tenth([Document(str(i), topic="even" if i % 2 == 0 else "odd") for i in range(40)])
    >>> [(document.text, document.topic) for document in heldout]
    [('18', 'even'), ('19', 'odd'), ('38', 'even'), ('39', 'odd')]
    """
    seen: Counter[str] = Counter()
    train: list[Document] = []
    heldout: list[Document] = []
    for document in documents:
        seen[document.topic] += 1
        (train if seen[document.topic] % 10 else heldout).append(document)
    return (tuple(train), tuple(heldout)) if heldout else last_tenth(documents)
