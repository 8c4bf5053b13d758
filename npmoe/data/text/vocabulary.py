"""Vocabularies: text to ids and back, by whole words or by pieces of words.

A word-level `Vocabulary` needs nothing but Python. `BytePair` stands on the package `tokenizers` (extra `text`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.calculus import check
from npmoe.calculus.words import never_raises
from npmoe.data.text.documents import Corpus, Document

__all__ = ["END", "UNKNOWN", "WORD", "BytePair", "Vocabulary", "split"]

Array = np.ndarray

UNKNOWN, END = "<unk>", "<eos>"

_LETTER = r"[^\W\d_][\u0300-\u036f]*"  # with the accents that follow it
#: What a word is: a run of letters, with an apostrophe in front where one follows a letter ("don't" is don 't, as in
#: WikiText); a number with its points and commas; any other mark alone; the end of a line. Nothing else than white
#: space is left out, and no letter is lowered.
WORD = re.compile(rf"\n|<unk>|<eos>|(?:(?<=[^\W\d_])['’])?(?:{_LETTER})+|\d+(?:[.,]\d+)*|[^\w\s]|_")
_SPACED = re.compile(r"\n|\S+")


def split(text: str, tokenised: bool = False) -> list[str]:
    """The words of a text, a newline being one of them.

    Parameters
    ----------
    tokenised : whether spaces stand between all words already; else they are found by `WORD`.

    Examples
    --------
    >>> split("Don't pay $1,200.50 (now)!")
    ['Don', "'t", 'pay', '$', '1,200.50', '(', 'now', ')', '!']
    >>> split("the U.S. 's role @-@ playing game", tokenised=True)
    ['the', 'U.S.', "'s", 'role', '@-@', 'playing', 'game']
    """
    return (_SPACED if tokenised else WORD).findall(text)


@dataclass(frozen=True)
class Vocabulary:
    """Whole words by number.

    Parameters
    ----------
    words : the words, at least three. ``<unk>`` stands for all that are not among them, ``<eos>`` for the end of a line
        and of a document.
    tokenised : whether text has spaces between all words; else they are found by the regular expression `WORD`.

    Examples
    --------
    >>> vocabulary = Vocabulary.train(["To be, or not to be.", "To sleep."], size=6)
    >>> vocabulary.words
    ('<unk>', '<eos>', 'To', 'be', '.', ',')
    >>> ids = vocabulary.encode("To dream.")
    >>> ids, vocabulary.decode(ids), vocabulary.unknown(ids)
    (array([2, 0, 4], dtype=int32), 'To <unk> .', 0.3333333333333333)
    """

    words: tuple[str, ...]
    tokenised: bool = False

    def __post_init__(self) -> None:
        if len(self.words) < 3 or not {UNKNOWN, END} <= set(self.words):
            raise ValueError(
                f"expected at least three words, {UNKNOWN} and {END} among them; got {len(self.words)}: "
                f"{', '.join(map(repr, self.words[:4]))}"
            )
        again = [word for word, times in Counter(self.words).items() if times > 1 or word.split() != [word]]
        if again:
            raise ValueError(f"expected words that differ and have no white space in them; got {again[0]!r}")

    @classmethod
    def train(
        cls, texts: "Corpus | Iterable[Document | str]", size: int, tokenised: bool | None = None
    ) -> "Vocabulary":
        """The most frequent words of some texts; of words equally frequent, the one that comes first.

        Parameters
        ----------
        texts : a corpus, whose documents to train on count; or documents, or strings.
        size : number of words, `<unk>` and `<eos>` included; there are fewer if the texts have fewer.
        tokenised : as of `Vocabulary`; None for what the corpus says, else False.

        Raises
        ------
        ValueError : for a size below 3, and for texts in which all words are the same.
        """
        _size(size, 3, "<unk>, <eos> and a word")
        if tokenised is None:
            tokenised = texts.tokenised if isinstance(texts, Corpus) else False
        counts: Counter[str] = Counter()
        for text in _texts(texts):
            counts.update(split(text, tokenised))
        for special in ("\n", UNKNOWN, END):
            counts.pop(special, None)
        if len(counts) < 2:
            raise ValueError(
                f"expected text with at least two different words; got {', '.join(map(repr, counts)) or 'none'}: "
                "give a longer text"
            )
        # stable: of words equally frequent the first to occur comes first
        ranked = sorted(counts, key=counts.__getitem__, reverse=True)
        return cls((UNKNOWN, END, *ranked[: size - 2]), tokenised)

    @cached_property
    def _number(self) -> dict[str, int]:
        numbers = {word: i for i, word in enumerate(self.words)}
        return {**numbers, "\n": numbers[END]}

    @property
    def unk(self) -> int:
        """The id of `<unk>`."""
        return self._number[UNKNOWN]

    @property
    def eos(self) -> int:
        """The id of `<eos>`."""
        return self._number[END]

    def encode(self, text: str) -> Array:
        """The ids of a text, int32 (N,): a word that is not known is `<unk>`, and the end of a line is `<eos>`."""
        number, unk = self._number, self.unk
        return np.array([number.get(word, unk) for word in split(text, self.tokenised)], np.int32)

    def decode(self, ids: Any) -> str:
        """The words of ids with a space between any two, and a new line after each `<eos>`."""
        words = [self.words[i] for i in _ids(ids, len(self)).tolist()]
        return re.sub(" ?\n ?", "\n", " ".join("\n" if word == END else word for word in words))

    def unknown(self, ids: Any) -> float:
        """The share of `<unk>` among ids."""
        return _share(_ids(ids, len(self)), self.unk)

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same vocabulary."""
        return {"kind": "words", "tokenised": self.tokenised, "words": list(self.words)}

    @classmethod
    def from_json(cls, data: Any) -> "Vocabulary":
        """The vocabulary of plain data that `to_json` made.

        Raises
        ------
        ValueError : says what was expected and what came.
        """
        _kind(data, "words", "Vocabulary")
        words, tokenised = data.get("words"), data.get("tokenised")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"expected 'words' as a list of strings; got {str(words)[:60]}")
        if not isinstance(tokenised, bool):
            raise ValueError(f"expected 'tokenised' as true or false; got {str(tokenised)[:60]}")
        return cls(tuple(words), tokenised)

    def __len__(self) -> int:
        return len(self.words)

    @never_raises
    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words, {'spaces between them' if self.tokenised else 'found by WORD'})"


def _texts(texts: "Corpus | Iterable[Document | str]") -> Iterable[str]:
    """The strings among documents and strings."""
    if isinstance(texts, str):
        raise TypeError("expected several texts; got one string: put it into a list")
    documents = texts.train if isinstance(texts, Corpus) else texts
    return (text.text if isinstance(text, Document) else text for text in documents)


def _size(size: int, least: int, what: str) -> None:
    if check.integer("size", size, 0) < least:
        raise ValueError(f"expected a size of at least {least}, room for {what}; got {size}")


def _ids(ids: Any, V: int) -> Array:
    """Ids of a vocabulary of V words, checked, as (N,)."""
    found = check.unmasked("ids", ids)
    if not found.size:
        return found.astype(np.int32).ravel()
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise ValueError(f"expected ids as integers (N,); got {found.dtype} of shape {found.shape}")
    if found.min() < 0 or found.max() >= V:
        raise ValueError(
            f"expected ids within 0..{V - 1}, the words of this vocabulary; got {found.min()}..{found.max()}"
        )
    return found


def _share(ids: Array, unk: int | None) -> float:
    return float((ids == unk).mean()) if ids.size and unk is not None else 0.0


def _kind(data: Any, kind: str, name: str) -> None:
    if not isinstance(data, Mapping) or data.get("kind") != kind:
        got = f"the kind {data.get('kind')!r}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
        hint = {"words": ": read it by Vocabulary.from_json", "byte pairs": ": read it by BytePair.from_json"}
        other = hint.get(str(data.get("kind")), "") if isinstance(data, Mapping) else ""
        raise ValueError(f"expected the data of a {name}, of the kind {kind!r}; got {got}{other}")


# ---- pieces of words -------------------------------------------------------------------------------------------------

_BYTES = 256
_ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>")


@dataclass(frozen=True, eq=False)
class BytePair:
    """Pieces of words by number: byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909).

    Made by `BytePair.train` or `BytePair.open`. All methods are those of `Vocabulary`, but that the end of a line is a
    character as any other, and that byte-level pieces have no unknown words.

    Parameters
    ----------
    tokenizer : a ``tokenizers.Tokenizer``.
    end : the token after each document.
    """

    tokenizer: Any
    end: str = END

    def __post_init__(self) -> None:
        if self.tokenizer.token_to_id(self.end) is None:
            raise ValueError(f"expected a tokenizer with the token {self.end!r}; got one without: name another end")

    @classmethod
    def train(cls, texts: "Corpus | Iterable[Document | str]", size: int) -> "BytePair":
        """Byte-level pieces learnt from some texts.

        Parameters
        ----------
        texts : as of `Vocabulary.train`.
        size : number of tokens, the 256 bytes, `<unk>` and `<eos>` included; there are fewer if the texts give fewer.
        """
        _size(size, _BYTES + 3, "256 bytes, <unk>, <eos> and a pair")
        tokenizers = _tokenizers()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[UNKNOWN, END],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_texts(texts), trainer)
        return cls(tokenizer)

    @classmethod
    def open(cls, path: "str | PathLike[str]", end: str | None = None) -> "BytePair":
        """The tokenizer of a ``tokenizer.json``, such as released models come with.

        Parameters
        ----------
        path : the file.
        end : the token after each document; the first unless given that it has of ``<eos>``, ``<|endoftext|>``,
            ``<|end_of_text|>`` and ``</s>``.

        Raises
        ------
        FileNotFoundError, ValueError : where there is no file, or it is no tokenizer, or has no such token.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"expected a tokenizer.json at {str(path)!r}; there is none: check the path")
        return cls._made(path.read_bytes(), end, str(path))

    @classmethod
    def _made(cls, content: bytes, end: str | None, where: str) -> "BytePair":
        tokenizers = _tokenizers()
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{where}: expected a file of the tokenizers package; got {error}") from error
        tokenizer.no_truncation()  # some files cut every text at 512 tokens
        tokenizer.no_padding()
        known = [token for token in ((end,) if end else _ENDS) if tokenizer.token_to_id(token) is not None]
        if not known:
            special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
            raise ValueError(
                f"{where}: expected a token that ends a document, {' or '.join((end,) if end else _ENDS)}; got "
                f"{', '.join(special[:5]) or 'none'}: name one by end=..."
            )
        return cls(tokenizer, known[0])

    @property
    def unk(self) -> int | None:
        """The id of `<unk>`, or None where there is none."""
        return self.tokenizer.token_to_id(UNKNOWN)

    @property
    def eos(self) -> int:
        """The id of the token after each document."""
        return self.tokenizer.token_to_id(self.end)

    def encode(self, text: str) -> Array:
        """The ids of a text, int32 (N,)."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Any) -> str:
        """The text of ids, special tokens by name."""
        return self.tokenizer.decode(_ids(ids, len(self)).tolist(), skip_special_tokens=False)

    def unknown(self, ids: Any) -> float:
        """The share of `<unk>` among ids; 0 where there is no such token."""
        return _share(_ids(ids, len(self)), self.unk)

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same tokenizer."""
        return {"kind": "byte pairs", "end": self.end, "tokenizer": self.tokenizer.to_str()}

    @classmethod
    def from_json(cls, data: Any) -> "BytePair":
        """The tokenizer of plain data that `to_json` made.

        Raises
        ------
        ValueError : says what was expected and what came.
        """
        _kind(data, "byte pairs", "BytePair")
        end, tokenizer = data.get("end"), data.get("tokenizer")
        if not isinstance(end, str) or not isinstance(tokenizer, str):
            raise ValueError("expected 'end' and 'tokenizer' as strings; got something else")
        return cls._made(tokenizer.encode(), end, "the data of a BytePair")

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @never_raises
    def __repr__(self) -> str:
        return f"BytePair({len(self)} tokens, {self.end} ends a document)"


def _tokenizers() -> Any:
    """The package tokenizers.

    Raises
    ------
    ImportError : says how to install it.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "expected the package tokenizers, which BytePair needs; it is not installed: "
            "run `pip install 'npmoe[text]'`"
        ) from error
    return tokenizers
