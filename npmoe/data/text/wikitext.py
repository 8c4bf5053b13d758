"""WikiText in the files of its authors: recognised by its structure, taken apart into articles.

WikiText (Merity et al. 2016, arXiv 1609.07843) is Wikipedia's good and featured articles as lines of words with a space
between any two, in three splits. Every line begins and ends with a space. An article begins with `` = Title = ``, a
blank line before it and one after; headings of its sections have more equals signs: `` = = Section = = ``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from npmoe.data.text.documents import Corpus, Document, last_tenth
from npmoe.data.text.reading import fingerprint, read_text

__all__ = ["articles", "edition", "is_wikitext", "wikitext_file", "wikitext_folder"]

SPLITS = {"train": "training", "valid": "validation", "test": "test"}
FORMS = ("wiki.{}.tokens", "wiki.{}.raw", "{}.txt")
HEADING = re.compile(r"= (?!= ).*\S (?<!= )=")  # of a line without the spaces around it

# Words between spaces, which are the tokens of the paper's Table 1 less one <eos> a line
TRAIN = {"WikiText-2": 2_051_910, "WikiText-103": 101_425_671}
EVALUATION = {"valid": 213_886, "test": 241_211}  # the same articles in both editions

SOURCE = "WikiText, Merity et al. 2016, arXiv 1609.07843:"
LICENCE = "CC BY-SA 3.0, the authors of Wikipedia's articles."


def is_wikitext(text: str) -> bool:
    """Whether a text is built as WikiText is.

    It opens with an article's heading, its lines begin with a space, and its commas stand apart from words.

    Examples
    --------
    >>> is_wikitext(" \\n = Homarus gammarus = \\n \\n It is a species of lobster . \\n")
    True
    >>> is_wikitext("= Homarus gammarus =\\n\\nIt is a species of lobster.\\n")
    False
    """
    lines = text.split("\n")
    written = [i for i, line in enumerate(lines) if line.strip()]
    indented = sum(lines[i].startswith(" ") for i in written)
    attached, apart = (len(re.findall(rf"{before}[,;] ", text)) for before in (r"\w", " "))
    opens = bool(written) and written[0] in _starts(lines)
    return opens and indented > 0.9 * len(written) and attached <= apart


def _starts(lines: list[str]) -> list[int]:
    """Where articles begin: at headings with one equals sign a side and no words in the lines around them.

    Inside a paragraph, a line such as `` = 1 <unk> / s and C = `` is a piece of a formula.
    """
    around = ["", *(line.strip() for line in lines), ""]
    return [i for i, line in enumerate(around[1:-1]) if HEADING.fullmatch(line) and not (around[i] or around[i + 2])]


def articles(text: str) -> tuple[Document, ...]:
    """The articles of a split, each from its heading up to the next one, blank lines included.

    Blank lines in front of the first article are left out.

    Examples
    --------
    >>> articles(" \\n = One = \\n \\n Words . \\n \\n = = Section = = \\n \\n \\n = Two = \\n \\n More . \\n")
    (Document('One': 10 words), Document('Two': 5 words))
    """
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    starts = _starts(lines)
    ends = [*starts[1:], len(lines)]
    return tuple(
        Document("\n".join(lines[start:end]), lines[start][2:-2]) for start, end in zip(starts, ends, strict=True)
    )


def edition(splits: Mapping[str, str]) -> str:
    """Which WikiText the texts of some splits are: by size "WikiText-2" or "WikiText-103"; "WikiText" if not sure.

    Both editions validate and test on the same articles. Of their words, 5 to 6 % are `<unk>` in the small edition;
    in the large one 0.4 %, says the paper. Raw text has no `<unk>`.
    """
    raw = not any("<unk>" in text for text in splits.values())
    sizes = {split: len(text.split()) for split, text in splits.items()}
    found = "WikiText"
    if "train" in sizes:
        found = next((name for name, size in TRAIN.items() if abs(sizes["train"] - size) <= 0.02 * size), found)
    elif not raw and all(abs(n - EVALUATION.get(split, 0)) <= 0.01 * n for split, n in sizes.items()):
        unknown = sum(text.count("<unk>") for text in splits.values()) / sum(sizes.values())
        found = "WikiText-2" if unknown > 0.03 else "WikiText-103" if unknown < 0.01 else found
    return f"{found} (raw)" if raw else found


def _files(folder: Path) -> dict[str, Path]:
    """Split -> file, of the first form of names that is there."""
    for form in FORMS:
        found = {split: folder / form.format(split) for split in SPLITS}
        found = {split: path for split, path in found.items() if path.is_file()}
        if found:
            return found
    return {}


def wikitext_folder(folder: Path) -> Corpus | None:
    """WikiText in a folder, or None where its files are not there.

    Where the training split is absent, the validation split trains; where the test split is, the validation split is
    held out. Of a single split the last tenth of its articles is held out. The name says so.

    Raises
    ------
    ValueError : for a file named as only WikiText's are that is something else.
    """
    files = _files(folder)
    texts = {split: read_text(path) for split, path in files.items()}
    other = [path for split, path in files.items() if not is_wikitext(texts[split])]
    if other and other[0].suffix != ".txt":
        raise ValueError(
            f"{other[0]}: expected WikiText, which opens with a line such as ' = Title = '; "
            f"got {read_text(other[0]).strip()[:40]!r}: give the authors' file, or rename another text to *.txt"
        )
    if not files or other:
        return None
    if len(files) == 1:
        return wikitext_file(next(iter(files.values())))
    name = edition(texts)
    if "train" not in files:
        name += ", trained on its validation split"
    if "test" not in files:
        name += ", its validation split held out"
    first, second = next(iter(files)), "test" if "test" in files else "valid"
    source = f"{SOURCE} {fingerprint(files[first])}, {fingerprint(files[second])}."
    return Corpus(name, source, LICENCE, articles(texts[first]), articles(texts[second]), tokenised=True)


def wikitext_file(path: Path) -> Corpus | None:
    """One file of WikiText, of whose articles the last tenth is held out, or None where the file is something else."""
    text = read_text(path)
    if not is_wikitext(text):
        return None
    names = {form.format(split): split for form in FORMS for split in SPLITS}
    split = names.get(path.name)
    what = f"its {SPLITS[split]} split" if split else path.name
    name = f"{edition({split: text} if split else {'': text})}, nine tenths of {what}, the last tenth held out"
    return Corpus(name, f"{SOURCE} {fingerprint(path)}.", LICENCE, *last_tenth(articles(text)), tokenised=True)
