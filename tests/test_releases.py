"""Files of findings in several releases, and what they say together: planted files, by hand."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from npmoe.battery import released
from npmoe.battery.command import main
from npmoe.battery.released import releases
from npmoe.battery.released.comparison import not_run

ERROR = 2.0**-22  # 2 eps of float32


def scan(version, *rows):
    """Findings of one release from (family, id, verdict or error, symptom)."""
    found = []
    for family, id, what, *symptom in rows:
        if what is None:
            found.append(not_run(id, family, version, "LookupError: no such class"))
        else:
            found.append(released.finding(id, family, version, 1.0, 1.0 + what, *symptom))
    return found


@pytest.fixture
def planted(tmp_path):
    """Five releases, oldest last: a fault that comes and goes, one that stays, and what did not run."""
    every = [
        scan("5.10.0", ("mixtral", "output", 0.0), ("mixtral", "balance", 0.0), ("dbrx", "balance", 0.5, "zero")),
        scan("5.2.0", ("mixtral", "output", ERROR), ("mixtral", "balance", 0.5, "twice"), ("dbrx", "balance", None)),
        scan("5.1.0", ("mixtral", "output", 0.0), ("mixtral", "balance", 0.5, "twice"), ("dbrx", "balance", 0.0)),
        scan("5.0.0", ("mixtral", "output", 0.0), ("mixtral", "balance", 0.25, "gates")),
        scan("5.0.0rc1", ("mixtral", "output", 0.0), ("mixtral", "balance", 0.0)),
    ]
    return [releases.write(found, tmp_path / f"{found[0].version}.json") for found in every]


# ---- files ---------------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written(tmp_path):
    found = scan("5.1.0", ("mixtral", "output", 0.0), ("mixtral", "balance", 0.5, "twice"), ("dbrx", "balance", None))
    (got,) = releases.read([releases.write(found, tmp_path / "new" / "a.json")])
    assert got.version == "5.1.0"
    assert list(got.findings) == found
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_numbers_that_are_not_finite_survive(tmp_path):
    found = [
        released.finding("output", "mixtral", "5.1.0", np.ones(2), np.full(2, bad)) for bad in (np.nan, np.inf, -np.inf)
    ]
    (got,) = releases.read([releases.write(found, tmp_path / "a.json")])
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    np.testing.assert_array_equal([f.error for f in got.findings], [f.error for f in found])
    assert {f.verdict for f in got.findings} == {"fault"}


def test_releases_come_oldest_first_and_a_candidate_before_its_release(planted):
    assert [s.version for s in releases.read(planted)] == ["5.0.0rc1", "5.0.0", "5.1.0", "5.2.0", "5.10.0"]


def test_families_of_one_release_may_be_in_several_files_but_once(tmp_path):
    one = releases.write(scan("5.1.0", ("mixtral", "output", 0.0)), tmp_path / "one.json")
    two = releases.write(scan("5.1.0", ("dbrx", "output", 0.0)), tmp_path / "two.json")
    (got,) = releases.read([one, two])
    assert [f.family for f in got.findings] == ["mixtral", "dbrx"]
    for again in (releases.write(scan("5.1.0", ("dbrx", "balance", 0.0)), tmp_path / "three.json"), two):
        with pytest.raises(ValueError, match=r"dbrx of 5\.1\.0 is in .*two\.json and " + re.escape(str(again))):
            releases.read([one, two, again])


def test_findings_of_two_releases_or_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"expected findings in one version; got 5\.0\.0, 5\.1\.0"):
        releases.write(scan("5.0.0", ("a", "b", 0.0)) + scan("5.1.0", ("a", "b", 0.0)), tmp_path / "a.json")
    with pytest.raises(ValueError, match="expected findings in one version; got none"):
        releases.write([], tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def changed(**new):
    return lambda data: data | new


def row(**new):
    return lambda data: data | {"findings": [data["findings"][0] | new]}


WRONG = {
    "other format": (changed(format="npmoe golden cases"), "expected findings, written with released --json, in "),
    "list": (lambda data: [data], "it is something else"),
    "schema": (changed(schema=2), "expected schema 1 in "),
    "no version": (changed(transformers=None), "expected a version of transformers in "),
    "odd version": (changed(transformers="main"), "expected a version of transformers in "),
    "nothing found": (changed(findings=[]), "expected a list of findings in "),
    "other version": (row(version="4.0.0"), r"expected version 5\.1\.0, as the file's, in finding 0 of "),
    "no finding": (changed(findings=[7]), "expected id, family, version, .* in finding 0 of .*got 7"),
    "other names": (row(extra=1), "expected id, family, version, .* in finding 0 of "),
    "a number for words": (row(symptom=3), "expected words in finding 0 of "),
    "words for a number": (row(error="small"), "expected a number for error in finding 0 of .*got 'small'"),
    "a truth for a number": (row(error=True), "expected a number for error in finding 0 of .*got True"),
    "verdict": (row(verdict="fine"), "expected a verdict of agrees, fault or not run in finding 0 of .*got 'fine'"),
    "agrees without an error": (row(error=None), "expected a tolerance, and an error .* in finding 0 of "),
    "no tolerance": (row(tolerance=None), "expected a tolerance, and an error .* in finding 0 of "),
    "not run, with an error": (row(verdict="not run: so"), "expected a tolerance, and an error .* in finding 0 of "),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_file_that_is_something_else_is_refused_by_its_name(fault, tmp_path, capsys):
    path = releases.write(scan("5.1.0", ("mixtral", "output", 0.0)), tmp_path / "planted.json")
    change, words = WRONG[fault]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=words) as told:
        releases.read([path])
    assert str(path) in str(told.value)
    assert main(["released", "--read", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("keep", [0, 1, 100, -3])
def test_a_file_that_is_cut_short_is_refused_by_its_name(keep, tmp_path):
    path = releases.write(scan("5.1.0", ("mixtral", "output", 0.0)), tmp_path / "cut.json")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"expected findings in JSON in .*cut\.json; cannot read it"):
        releases.read([path])


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"[" * 100_000, b"PK\x03\x04"])
def test_bytes_that_are_no_json_are_refused_by_the_name_of_the_file(raw, tmp_path):
    (tmp_path / "odd.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"odd\.json"):
        releases.read([tmp_path / "odd.json"])


# ---- what they say together ----------------------------------------------------------------------------------------


def test_spans_of_versions():
    every = ["4.9", "5.0", "5.1", "5.2", "5.3"]
    assert releases.spans([], every) == ""
    assert releases.spans(["5.1"], every) == "5.1"
    assert releases.spans(["5.1", "5.0"], every) == "5.0, 5.1"
    assert releases.spans(every, every) == "4.9 to 5.3"
    assert releases.spans(["4.9", "5.1", "5.2", "5.3"], every) == "4.9, 5.1 to 5.3"


def section(text, title):
    """Lines of a section, cut into cells at two spaces and more."""
    body = text.split(f"{title}", 1)[1].split("\n\n")[1]
    return [re.split(r"\s{2,}", line) for line in body.splitlines()]


def test_the_summary_counts_what_was_planted(planted):
    text = releases.summary(releases.read(planted))
    assert text.startswith("transformers, 5 releases: 5.0.0rc1, 5.0.0, 5.1.0, 5.2.0, 5.10.0\n")
    assert "all: 12 comparisons, 8 agree, 4 at fault; 1 not run" in text
    assert "outputs, gradients and Jacobians of blocks: 5 comparisons, 5 agree, 0 at fault; 0 not run" in text
    assert section(text, "Comparisons by what was compared")[1:] == [
        ["output", "5", "0", "0", "2.4e-07", "2.0", "mixtral", "5.2.0"],
        ["balance", "3", "4", "1", "0.0e+00", "0.0", "mixtral", "5.0.0rc1"],
    ]
    assert section(text, "Comparisons by family")[1:] == [
        ["mixtral", "7", "3", "0", "2.4e-07", "2.0", "output", "5.2.0"],
        ["dbrx", "1", "1", "1", "0.0e+00", "0.0", "balance", "5.1.0"],
    ]


def test_faults_have_the_releases_that_have_them_that_do_not_and_that_were_not_run(planted):
    text = releases.summary(releases.read(planted))
    assert section(text, "Faults, and the releases")[1:] == [
        ["mixtral", "balance", "5.0.0 to 5.2.0", "5.0.0rc1, 5.10.0", "-"],
        ["dbrx", "balance", "5.10.0", "5.1.0", "5.0.0rc1, 5.0.0, 5.2.0"],
    ]
    assert "mixtral, balance: 5.0.0: gates (error 0.25)\nmixtral, balance: 5.1.0, 5.2.0: twice (error 0.5)" in text
    assert text.endswith("dbrx, balance: 5.2.0: not run: LookupError: no such class")


def test_what_has_the_same_releases_shares_a_row(tmp_path):
    rows = [("mixtral", id, 0.5, "twice") for id in ("balance", "balance:masked")]
    path = releases.write(scan("5.0.0", *rows, ("mixtral", "balance:gradient", 0.0)), tmp_path / "a.json")
    text = releases.summary(releases.read([path]))
    assert section(text, "Faults, and the releases")[1:] == [["mixtral", "balance, :masked", "5.0.0", "-", "-"]]


def test_the_switch_of_a_block_is_no_comparison_of_its_own(tmp_path):
    rows = [("olmoe", f"output (norm_topk_prob {switch})", 0.0) for switch in (True, False)]
    text = releases.summary(releases.read([releases.write(scan("5.0.0", *rows), tmp_path / "a.json")]))
    assert [cells[:2] for cells in section(text, "Comparisons by what was compared")[1:]] == [["output", "2"]]
    assert "none" in [cells[0] for cells in section(text, "Faults, and the releases")]


def test_no_release_has_no_summary():
    with pytest.raises(ValueError, match="expected findings in at least one release; got none"):
        releases.summary([])


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_reads_files_back(planted, capsys):
    assert main(["released", "--read", *map(str, planted)]) == 1
    assert capsys.readouterr().out == releases.summary(releases.read(planted)) + "\n"
    assert main(["released", "--read", str(planted[-1])]) == 0
    assert "Faults, and the releases that have them\n\nnone\n" in capsys.readouterr().out


def test_the_command_writes_what_it_found(monkeypatch, tmp_path, capsys):
    found = scan("5.1.0", ("mixtral", "output", 0.0))
    monkeypatch.setattr(released, "findings", lambda families: found)
    path = tmp_path / "found.json"
    assert main(["released", "mixtral", "--json", str(path)]) == 0
    assert "transformers 5.1.0: 1 agree, 0 at fault, 0 not run" in capsys.readouterr().out
    assert releases.read([path])[0].findings == tuple(found)


@pytest.mark.parametrize("call", [["mixtral", "--read", "a.json"], ["--json", "b.json", "--read", "a.json"]])
def test_reading_goes_with_nothing_else(call, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["released", *call]) == 2
    assert "expected --read with files alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    assert main(["released", "--read", str(tmp_path / "nowhere.json")]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_neither_help_nor_reading_loads_scipy_or_pages(planted):
    """They take longer than the command itself."""
    call = (
        "import sys; from npmoe.battery.command import main\n"
        "assert main(['released', '--read', *sys.argv[1:]]) == 1\n"
        "loaded = {'scipy', 'matplotlib', 'jinja2', 'npmoe.report', 'npmoe.battery.golden'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", call, *map(str, planted)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
