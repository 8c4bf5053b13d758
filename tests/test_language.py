"""`npmoe language`: training on text, going on after a kill, evaluating, writing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import npmoe
from npmoe.data.text import Vocabulary
from npmoe.files import FileError
from npmoe.language import command, folder
from npmoe.model.language import Progress

SMALL = ["--width", "16", "--heads", "2", "--layers", "1", "--hidden", "8", "--experts", "4", "--context", "12"]
SMALL += ["--batch", "4", "--steps", "24", "--vocabulary", "30"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "animals.txt"
    path.write_text("The cat sat on the mat. The dog sat on the log. The cat saw the dog, and slept.\n\n" * 30)
    return path


@pytest.fixture
def call(capsys, text, tmp_path):
    def made(*words, status=0):
        corpus = ["--corpus", str(text)] * (words[0] in ("train", "evaluate"))
        assert command.main([*words, *corpus]) == status
        return capsys.readouterr()

    return made


def test_a_model_is_trained_evaluated_and_writes(call, tmp_path):
    out, _ = call("train", "--output", str(tmp_path / "lm"), *SMALL)
    assert "text: animals.txt" in out
    assert "held-out perplexity" in out
    out, _ = call("evaluate", str(tmp_path / "lm"))
    *_, unigram, bigram, trigram, last = out.splitlines()
    counts = dict(line.strip().split(": ") for line in (unigram, bigram, trigram))
    assert list(counts) == ["unigram", "Kneser-Ney bigram", "Kneser-Ney trigram"]
    best = min(counts, key=lambda name: float(counts[name]))
    ours = float(re.search(r"held-out perplexity ([\d.]+)", out).group(1))
    assert last == (f"The {best} predicts better." if float(counts[best]) < ours else
                    "The model predicts better than all counts.")  # fmt: skip
    out, err = call("sample", str(tmp_path / "lm"), "--prompt", "The cat", "--tokens", "5")
    assert out.startswith("The cat")
    assert "trained on animals.txt" in err
    again, _ = call("sample", str(tmp_path / "lm"), "--prompt", "The cat", "--tokens", "5")
    assert again == out, "the same seed writes the same"


@pytest.mark.parametrize("options", [[], ["--mixtral"], ["--balance", "0.01", "--z-loss", "0.001"]])
def test_a_run_that_was_killed_ends_with_the_same_bytes(options, call, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call("train", "--output", str(whole), *SMALL, *options)
    monkeypatch.setattr(command, "EVERY", 0.0)  # every piece is written
    written = []

    def dying(path, progress, losses):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(progress.step)
        return keep(path, progress, losses)

    keep = folder.keep
    monkeypatch.setattr(command.kept, "keep", dying)
    _, err = call("train", "--output", str(killed), *SMALL, *options, status=130)
    assert "the same call goes on" in err
    monkeypatch.setattr(command.kept, "keep", keep)
    out, _ = call("train", "--output", str(killed), *SMALL, *options)
    assert f"going on from step {written[-1]} of 24" in out
    for name in ("model.npz", "progress.npz"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert len(folder.progress_of(whole)[1]) == 24, "a loss for each step"


def test_another_run_is_refused_and_says_what_differs(call, tmp_path):
    call("train", "--output", str(tmp_path / "lm"), *SMALL)
    _, err = call("train", "--output", str(tmp_path / "lm"), *SMALL, "--k", "1", "--seed", "3", status=2)
    assert "it has k 2, not 1, seed 0, not 3" in err
    out, _ = call("train", "--output", str(tmp_path / "lm"), *SMALL)
    assert "going on from step 24 of 24" in out


def test_a_damaged_progress_is_named(call, tmp_path):
    call("train", "--output", str(tmp_path / "lm"), *SMALL)
    path = tmp_path / "lm" / "progress.npz"
    path.write_bytes(path.read_bytes()[:-200])
    _, err = call("train", "--output", str(tmp_path / "lm"), *SMALL, status=2)
    assert str(path) in err
    folder.keep(tmp_path / "lm", Progress(3, *np.zeros((3, 4), np.float32)), np.zeros(3))
    _, err = call("train", "--output", str(tmp_path / "lm"), *SMALL, status=2)
    assert "expected progress of a model of" in err


def test_a_progress_without_its_checksum_is_damaged(tmp_path):
    from npmoe.files import pack, write

    write(tmp_path / "progress.npz", pack({"step": np.array(3)}))
    with pytest.raises(FileError, match="damaged file"):
        folder.progress_of(tmp_path)


def test_what_is_not_there_is_named(call, tmp_path):
    _, err = call("sample", str(tmp_path / "nothing"), status=2)
    assert "it has no settings.json. Train one: npmoe language train" in err


def test_a_text_longer_than_the_positions_is_refused(call, tmp_path):
    call("train", "--output", str(tmp_path / "lm"), *SMALL)
    _, err = call("sample", str(tmp_path / "lm"), "--prompt", "The cat", "--tokens", "11", status=2)
    assert "at most 12 tokens" in err
    call("train", "--output", str(tmp_path / "long"), *SMALL, "--mixtral")
    out, _ = call("sample", str(tmp_path / "long"), "--prompt", "The cat", "--tokens", "30")
    assert len(out.split()) > 12, "rotary positions have no end"


def test_the_files_are_plain(call, tmp_path):
    call("train", "--output", str(tmp_path / "lm"), *SMALL)
    words = json.loads((tmp_path / "lm" / "vocabulary.json").read_text())
    vocabulary = Vocabulary.from_json(words)
    model = npmoe.load(tmp_path / "lm" / "model.npz")
    assert len(vocabulary) == len(model.embedding.W)
    assert json.loads((tmp_path / "lm" / "settings.json").read_text())["text"] == "animals.txt"


def test_bad_sizes_are_named(call, tmp_path):
    for words, said in (
        (["--heads", "3"], "width that heads divide"),
        (["--k", "9"], "k within 1..4"),
        (["--vocabulary", "1"], "size of at least"),
        (["--context", "5000"], "take a shorter context"),
        (["--lr", "-1"], "lr"),
    ):
        _, err = call("train", "--output", str(tmp_path / "lm"), *SMALL, *words, status=2)
        assert said in err, err
        assert not (tmp_path / "lm" / "progress.npz").exists()


def test_a_page_shows_the_experts_of_each_token(call, tmp_path):
    folder_of = tmp_path / "lm"
    call("train", "--output", str(folder_of), *SMALL)
    out, _ = call("show", str(folder_of), "--prompt", "The cat <b>", "--tokens", "4")
    page = Path(out.strip()).read_text(encoding="utf-8")
    HTMLParser().feed(page)
    kept = folder.opened(folder_of)
    prompt = kept.vocabulary.encode("The cat <b>")
    (site,) = npmoe.sites(kept.model, prompt)
    order = np.argsort(-site.gates, axis=1, kind="stable")[:, :2]
    assert f"The<sub>{order[0, 0]},{order[0, 1]}</sub>" in page
    assert "<b>" not in page, "text is escaped"
    assert 'href="#block-0"' in page
    assert 'id="block-0"' in page
    assert page.count('class="rollout"') == 1
    assert page.count("<sub>") == len(prompt) + 4
    assert "http" not in page, "no network"


def test_a_dense_model_has_no_experts_to_show(call, tmp_path):
    call("train", "--output", str(tmp_path / "lm"), *SMALL, "--experts", "1", "--k", "1")
    _, err = call("show", str(tmp_path / "lm"), "--tokens", "3", status=2)
    assert "expected a model with mixtures" in err
