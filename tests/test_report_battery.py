"""The battery's page, on made-up results: no framework is needed, every number here is invented."""

from __future__ import annotations

import copy
import html
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from npmoe.report.battery import units, write_battery

ANSWERS = [
    ("gelu", "output", "output"),
    ("gelu", "W1", "parameters"),
    ("gelu", "jacobian:forward", "jacobian:forward"),
    ("switch", "scores", "scores"),
    ("switch", "value", "balance value"),
    ("switch", "scores", "balance scores"),
]


def entry(framework: str, arithmetic: str, index: int, **fields: Any) -> dict[str, Any]:
    case, answer, group = ANSWERS[index]
    usual = 4.0 + 3.1 * index + len(framework) + len(arithmetic) / 7
    found = {
        "framework": framework,
        "arithmetic": arithmetic,
        "case": case,
        "answer": answer,
        "group": group,
        "verdict": "agrees",
        "units": 0.11 * usual + 0.01 * index,
        "usual": usual,
        "worst": 9.0 * usual,
        "ratio": 0.11 + 0.01 * index / usual,
        "remark": "",
    }
    return found | fields


def battery() -> dict[str, Any]:
    """Of the shape that npmoe.battery.table writes: 30 answers, one doubtful, one wrong, one on ties, one missing."""
    columns = [("torch", "float64"), ("torch", "bfloat16"), ("jax", "float64"), ("jax", "float32"), ("jax", "bfloat16")]
    entries = [entry(*column, index) for column in columns for index in range(len(ANSWERS))]
    entries[2] |= {"verdict": "doubtful", "units": 26.0, "usual": 16.0, "ratio": 1.6250}
    entries[7] |= {"verdict": "differs", "units": "inf", "worst": "inf", "ratio": "inf", "remark": "a column is zero"}
    entries[9] |= {"verdict": "undecided", "units": 0.0, "usual": 0.0, "worst": 0.0, "ratio": 0.0}
    entries[13] |= {
        "verdict": "no answer",
        "units": 0.0,
        "usual": 0.0,
        "worst": 0.0,
        "ratio": 0.0,
        "remark": "NoGrad: W1",
    }
    entries[18] |= {"units": 0.0, "ratio": 0.0}
    exact = [
        {"case": case, "answer": answer, "group": group, "who": who, "units": 0.5 + index + len(who) / 10}
        for index, (case, answer, group) in enumerate(ANSWERS[:4])
        for who in ("npmoe", "torch", "jax")
    ]
    row = {
        "absolute": 0.5,
        "absolute_at": -8.9,
        "mixed": 0.5,
        "mixed_at": 1e-8,
        "relative": 4.5e15,
        "relative_at": -12.0,
    }
    return {
        "schema": 1,
        "npmoe": "0.1.0",
        "command": "python -m npmoe.verify --framework all",
        "environment": {"python": "3.11.7", "numpy": "2.4.6", "machine": "Linux x86_64"},
        "frameworks": {"torch": "2.13.0", "jax": "0.10.2", "autograd": "missing: No module named 'autograd'"},
        "asked": ["torch", "jax", "autograd"],
        "verdict": "differs",
        "verdicts": {
            "agrees": "every entry is as near as rounding usually brings it",
            "undecided": "some rows lie on a tie",
            "doubtful": "farther off than rounding usually is",
            "differs": "farther off than any rounding could bring it",
            "no answer": "nothing that could be compared",
        },
        "groups": {
            "output": "output",
            "gradient": "gradient in x",
            "parameters": "gradients in parameters",
            "jacobian:forward": "Jacobian, forward mode",
            "scores": "scores",
            "balance value": "balance losses",
            "balance scores": "their gradients",
        },
        "arithmetics": {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7},
        "entries": entries,
        "exact": exact,
        "second": [{"case": "gelu", "complex_step": 1.6, "richardson": 1.02, "undecided": 3}],
        "elementary": [{"name": "exp (NumPy)", "dtype": dtype, **row} for dtype in ("float64", "float32")],
        "off": [
            "torch, float64: gelu: doubtful\n  GeluExpert, d = 5\n  3  17  <13>",
            "torch, bfloat16: gelu: differs\n  GeluExpert, d = 5",
            "jax, float64: gelu: no answer",
        ],
    }


def nothing() -> dict[str, Any]:
    """What a run writes where no framework is installed."""
    missing = {name: f"missing: No module named '{name}'" for name in ("torch", "jax", "autograd")}
    empty: dict[str, Any] = {"entries": [], "exact": [], "second": [], "elementary": [], "off": []}
    return {**battery(), "frameworks": missing, "verdict": "no answer", **empty}


class Page(HTMLParser):
    """Tags must close in the order in which they opened; ids, references, tables and text are collected."""

    EMPTY = frozenset(["meta", "link"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.take(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.take(tag, attrs)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.rows and self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def take(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice at {self.getpos()}"
        self.tags.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        if (found.get("href") or "").startswith("#"):
            self.references.add((found["href"] or "")[1:])
        for key in ("aria-labelledby", "aria-describedby"):
            self.references.update((found.get(key) or "").split())
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")


def words_of(text: str) -> str:
    """What a reader sees: no styles, no tags, white space of one."""
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    assert found
    return found.group()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("battery") / "new" / "folder"
    assert write_battery(battery(), folder) == folder / "verify.html"
    assert [path.name for path in folder.iterdir()] == ["verify.html"]
    return (folder / "verify.html").read_text(encoding="utf-8")


def test_the_headline_counts_and_names(text: str) -> None:
    said = words_of(section(text, "verdict"))
    said = re.sub(r" ([,.:])", r"\1", said)
    assert "differs 30 answers of 2 frameworks in 3 arithmetics, on 2 cases, held against closed forms:" in said
    assert "26 agree, 1 on ties, 1 doubtful, 1 differs, 1 no answer." in said
    assert "torch 2.13.0, jax 0.10.2" in said
    assert "Skipped: autograd missing: No module named 'autograd'; pip install 'npmoe[verify]' has it" in said
    assert "npmoe 0.1.0, python 3.11.7, numpy 2.4.6, Linux x86_64" in said
    assert "python -m npmoe.verify --framework all" in said
    assert 'href="#off"' in section(text, "verdict")


def test_a_cell_shows_the_answer_nearest_to_its_limit_and_says_what_is_off(text: str) -> None:
    rows = Page(section(text, "table")).rows
    parameters = next(row for row in rows if row[0].startswith("Gradients in param"))
    cells = [re.sub(r"\s+", " ", cell).strip() for cell in parameters[1:]]
    assert cells[1].startswith("∞ (")
    assert cells[1].endswith("1 differs")
    assert cells[2] == "–1 no answer"
    scores = next(row for row in rows if row[0].startswith("Scores"))
    assert scores[2] == "–1 on ties"
    assert scores[0] == "Scores 1 each"
    assert not any(row[0].startswith("Gradient in x") for row in rows)  # nobody was asked for it
    forward = next(row for row in rows if row[0].startswith("Jacobian, forward"))
    assert re.sub(r"\s+", " ", forward[1]) == "26 (16)1 doubtful"
    table = section(text, "table")
    assert table.count('class="heat-4') + table.count('class="first heat-4') == 2
    assert table.count(" is-wrong") == 1
    assert len(re.findall(r'class="(?:first )?heat-[0-4]', table)) == 6 * 5 - 2


def test_every_entry_is_there(text: str) -> None:
    """Error, limit and verdict of each, in the column of its arithmetic, in the table of its framework."""
    for name, arithmetics in (("torch", ["float64", "bfloat16"]), ("jax", ["float64", "float32", "bfloat16"])):
        place = re.search(rf"<details>\s*<summary>{name} .*?</details>", section(text, "entries"), re.DOTALL)
        assert place
        rows = [[cell.strip() for cell in row] for row in Page(place.group()).rows]
        lines = [row for row in rows if len(row) == 2 + 3 * len(arithmetics)]
        assert len(lines) == len(ANSWERS)
        order = [*range(4), 4, 5]  # the balance loss of a model's name stands apart, behind the models
        for line, index in zip(lines, order, strict=True):
            assert line[0] == ANSWERS[index][1]
            for column, arithmetic in enumerate(arithmetics):
                want = next(
                    e
                    for e in battery()["entries"]
                    if (e["framework"], e["arithmetic"]) == (name, arithmetic)
                    and (e["case"], e["answer"], e["group"]) == ANSWERS[index]
                )
                cells = line[1 + 3 * column : 4 + 3 * column]
                numbers = [units(float(want[key])).strip() for key in ("units", "usual")]
                came = want["verdict"] not in ("undecided", "no answer")
                assert cells == [*(numbers if came else "––"), want["verdict"]]
                assert want["remark"] in line[-1]
        assert [row for row in rows if len(row) == 1] == [["gelu"], ["switch"], ["switch balance loss"]]


def test_the_picture_has_a_dot_for_each_answer_that_was_judged(text: str) -> None:
    picture = section(text, "picture")
    paths = re.findall(r'<path class="dots" d="([^"]*)"', picture)[1:]  # the first is the legend's
    apart = re.findall(r'<svg class="v-(\w+)" x="([\d.]+)%"', picture)
    for which in (0, 1):  # errors, then errors over limits
        dots = sum(path.count("M") for path in paths[which::2])
        assert dots == 26
    assert sorted(name for name, _ in apart) == ["turned", "turned", "wrong", "wrong"]
    edge = float(re.findall(r'<line class="edge" x1="([\d.]+)%"', picture)[0])
    assert [float(x) > edge for _, x in apart[1::2]] == [True, True]
    ratios = [int(x) for path in paths[1::2] for x in re.findall(r"M(\d+) ", path)]
    assert max(ratios) < 10 * edge
    heights = [float(y) for path in paths for y in re.findall(r"M\d+ ([\d.-]+)h0", path)]
    assert 0 < min(heights) <= max(heights) < 40
    assert "1 differs" in words_of(picture)


def test_the_picture_stays_in_its_frame_with_thousands_of_answers(tmp_path: Path) -> None:
    found = battery()
    found["entries"] = [
        entry("jax", "float64", i % 6, case=f"case {i}", ratio=0.999, units=10.0 ** (i % 9 - 6)) for i in range(3000)
    ]
    found["entries"][5] |= {"units": 1e-300, "ratio": 0.0}
    found |= {"verdict": "agrees", "off": []}
    picture = section(write_battery(found, tmp_path).read_text(encoding="utf-8"), "picture")
    dots = re.findall(r"M(\d+) ([\d.-]+)h0", picture)
    assert len(dots) == 2 * 3000 + 1
    assert all(0 <= int(x) <= 1000 and 0 <= float(y) < 40 for x, y in dots)


def test_exact_second_and_elementary(text: str) -> None:
    rows = Page(section(text, "digits")).rows
    assert ["Answer", "npmoe", "torch", "jax"] in rows
    first = next(row for row in rows if row[0] == "Output")
    assert [cell.strip() for cell in first[1:]] == ["1.00", "1.00", "0.80"]
    assert section(text, "digits").count("<b>") == 2 * 4  # the least of each row, jax: in the groups and in the cases
    rows = [[cell.strip() for cell in row] for row in Page(section(text, "oracles")).rows]
    assert ["gelu", "1.60", "1.02", "3"] in rows
    assert ["exp (NumPy)", "float32", "0.50", "−8.9", "0.50", "10⁻⁸", "4.5·10¹⁵", "−12"] in rows


def test_reports_stand_below_and_are_led_to(text: str) -> None:
    off = section(text, "off")
    assert "<pre>  GeluExpert, d = 5\n  3  17  &lt;13&gt;</pre>" in off
    rows = Page(off).rows
    assert [row[3] for row in rows[1:]] == ["differs", "doubtful", "no answer"]
    assert rows[1][6].strip() == "∞"
    assert rows[1][7] == "a column is zero"
    assert rows[3][4:] == ["–", "–", "–", "NoGrad: W1"]
    assert re.findall(r'href="#report-(\d)"', off) == ["2", "1", "3"]
    assert words_of(section(text, "words")).count("Farther off than any rounding could bring it.") == 1


def test_where_nothing_is_off_the_page_says_so(tmp_path: Path) -> None:
    found = battery()
    found |= {"verdict": "agrees", "off": [], "entries": [entry("jax", "float32", 0)]}
    page = write_battery(found, tmp_path).read_text(encoding="utf-8")
    assert "Nothing: no answer is farther off than rounding usually is." in words_of(section(page, "off"))
    said = re.sub(r" ([,.:])", r"\1", words_of(section(page, "verdict")))
    assert "1 answer of 1 framework in 1 arithmetic, on 1 case, held against closed forms: 1 agrees, 0 on ties" in said
    assert "no answer" not in said


def test_no_framework_at_all(tmp_path: Path) -> None:
    page = write_battery(nothing(), tmp_path).read_text(encoding="utf-8")
    Page(page)
    said = words_of(page)
    assert "no framework that was asked could be used here" in said
    for name in ("torch", "jax", "autograd"):
        assert f"Skipped: {name} missing: No module named '{name}'" in said
    assert "no answers came" in section(page, "table")
    assert "no answer is farther off" not in said
    write_battery({**nothing(), "asked": [], "frameworks": {}}, tmp_path)


@pytest.mark.parametrize("make", [battery, nothing])
def test_page_is_well_formed_and_every_reference_resolves(make: Any, tmp_path: Path) -> None:
    page = Page(write_battery(make(), tmp_path).read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert next(found for tag, found in page.tags if tag == "html") == {"lang": "en"}
    assert all("scope" in found for tag, found in page.tags if tag == "th")
    assert {found["href"][:1] for tag, found in page.tags if tag == "a" and found["href"]} == {"#"}
    for tag, found in page.tags:  # an SVG has a name, is decoration, or is a part of one that has a name
        assert tag != "svg" or {"role", "aria-hidden", "viewbox", "x"} & set(found)


def test_page_needs_no_network_and_no_script(text: str) -> None:
    assert not re.search(r"https?:|//[a-z]+\.|@import|src=|<script|url\(", text)


def test_same_data_give_the_same_bytes_from_dict_and_from_file(text: str, tmp_path: Path) -> None:
    found = battery()
    before = copy.deepcopy(found)
    path = tmp_path / "verify.json"
    path.write_text(json.dumps(found))
    assert write_battery(path, tmp_path).read_text(encoding="utf-8") == text
    write_battery(found, tmp_path)
    assert found == before


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    nasty = "</style><script>alert(1)</script>\"'&<b"
    found = battery()
    found["asked"] = [nasty if name == "torch" else name for name in found["asked"]]
    found["frameworks"] = {nasty if name == "torch" else name: nasty for name in found["frameworks"]}
    found["arithmetics"][nasty] = 0.5
    found["groups"] = {**found["groups"], "output": nasty}
    found["verdicts"] = {**found["verdicts"], nasty: nasty}
    found |= {"command": nasty, "npmoe": nasty, "environment": {nasty: nasty}, "off": [f"{nasty}\n{nasty}"]}
    for row in found["entries"]:
        row["framework"] = nasty if row["framework"] == "torch" else row["framework"]
    found["entries"][0] |= {"arithmetic": nasty, "case": nasty, "answer": nasty, "remark": nasty, "verdict": nasty}
    found["exact"][0] |= {"case": nasty, "answer": nasty, "who": nasty}
    found["second"][0]["case"] = found["elementary"][0]["name"] = found["elementary"][0]["dtype"] = nasty
    page = write_battery(found, tmp_path).read_text(encoding="utf-8")
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20


@pytest.mark.parametrize("word", ["inf", "nan"])
def test_infinities_anywhere(word: str, tmp_path: Path) -> None:
    found = battery()
    for row in [*found["entries"], *found["exact"], *found["second"], *found["elementary"]]:
        row.update({key: word for key, value in row.items() if isinstance(value, float)})
    page = write_battery(found, tmp_path).read_text(encoding="utf-8")
    Page(page)
    assert ("∞" if word == "inf" else "NaN") in page
    assert not re.search(r">\s*(nan|inf|None)\s*<|\"[^\"]*\b(nan|inf)%", page)


def put(found: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a path such as entries.0.case; ... removes it."""
    found = copy.deepcopy(found)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = found
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "expected schema 1 of the battery's results"),
        ("entries", ..., "to have 'entries', a list"),
        ("entries", {}, "entries to be a list; got {}"),
        ("entries.3", 7, "expected entry 4 to be an object; got 7"),
        ("entries.0.case", ..., "entry 1 to have 'case', text"),
        ("entries.0.units", "much", 'entry 1, units to be a number; got "much"'),
        ("entries.0.units", None, "entry 1, units to be a number; got null"),
        ("entries.0.verdict", "fine", "entry 1, verdict one of agrees, .*got 'fine'"),
        ("entries.0.group", "hessian", "entry 1, group one of output, .*got 'hessian'"),
        ("entries.0.arithmetic", "fp8", "entry 1, arithmetic one of float64, .*got 'fp8'"),
        ("entries.0.framework", "mxnet", r"framework among those asked \(torch, jax, autograd\); got 'mxnet'"),
        ("groups", {}, "entry 1, group one of none; got 'output'"),
        ("asked.0", "mxnet", "asked among the frameworks .*got 'mxnet'"),
        ("verdict", "fine", "verdict one of agrees"),
        ("frameworks.torch", 2.1, "frameworks, torch to be text; got 2.1"),
        ("arithmetics.float64", "tiny", "arithmetics, float64 to be a number"),
        ("exact.0.units", True, "exact 1, units to be a number; got true"),
        ("second.0.undecided", 0.5, "second 1, undecided to be a whole number; got 0.5"),
        ("elementary.1.mixed_at", ..., "elementary 2 to have 'mixed_at', a number"),
        ("off.0", ["a"], r"off 1 to be text; got \['a'\]"),
    ],
)
def test_wrong_data_are_named_and_nothing_is_written(path: str, value: Any, message: str, tmp_path: Path) -> None:
    source = tmp_path / "verify.json"
    source.write_text(json.dumps(put(battery(), path, value)))
    with pytest.raises(ValueError, match=rf"(?s){message}.*") as caught:
        write_battery(source, tmp_path / "out")
    assert str(source) in str(caught.value)
    with pytest.raises(ValueError, match=message):
        write_battery(put(battery(), path, value), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_cut_off_files_are_named_and_an_old_page_stays(tmp_path: Path) -> None:
    source = tmp_path / "verify.json"
    with pytest.raises(ValueError, match=r"the battery's results in .*verify\.json; there is no such file"):
        write_battery(source, tmp_path)
    source.write_text(json.dumps(battery()))
    before = write_battery(source, tmp_path).read_bytes()
    for wrong, message in (
        (source.read_text()[:700], "was it cut off"),
        ("[1]", r"an object with schema 1.*got \[1\]"),
    ):
        source.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            write_battery(source, tmp_path)
    assert (tmp_path / "verify.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["verify.html", "verify.json"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.004, "<0.01"),
        (0.1264, "0.13"),
        (9.994, "9.99"),
        (9.996, "10"),
        (137.4, "137"),
        (58346.05, "58300"),
        (1.36e5, "1.4·10⁵"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
        (-3.0, "−3.00"),
    ],
)
def test_units_are_short_and_their_points_stand_below_each_other(value: float, shown: str) -> None:
    assert units(value).strip() == shown
    if "." not in shown or value >= 1e5:
        assert units(value) == shown + "\u2008\u2007\u2007"


def test_the_page_loads_neither_matplotlib_nor_a_framework() -> None:
    code = (
        "import sys, npmoe.report.battery; sys.exit(bool({'matplotlib', 'torch', 'jax', 'mpmath'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colours_are_legible_on_every_shade() -> None:
    """WCAG's contrast of 4.5 for ink on the shades of the table, in light and dark."""
    from npmoe.report.page import HERE

    def colours(block: str) -> dict[str, list[float]]:
        found = {k: [int(v[i : i + 2], 16) for i in (0, 2, 4)] for k, v in re.findall(r"--([\w-]+): #(\w{6})", block)}
        return found | {k: [int(p) for p in v.split()] for k, v in re.findall(r"--(\w+): (\d+ \d+ \d+)", block)}

    def luminance(colour: list[float]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(a * b for a, b in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    page, own = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "battery.css"))
    shades = re.findall(r"background: rgb\(var\(--(\w+)\) / (\d+)%\)", own)
    assert len(shades) >= 6
    blocks = [re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2] for text in (page, own)]
    for light_or_dark in (0, 1):
        known = colours(blocks[0][light_or_dark]) | colours(blocks[1][light_or_dark])
        for name, share in shades:
            part = int(share) / 100
            ground = [part * a + (1 - part) * b for a, b in zip(known[name], known["page"], strict=True)]
            inks = ["ink", *{"warm": ["turned"], "bad": ["wrong"]}.get(name, [])]
            for ink in inks:
                low, high = sorted([luminance(ground), luminance(known[ink])])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, share, ink, light_or_dark)


def test_the_page_leads_back_to_the_papers_where_they_lie_beside_it(tmp_path):
    alone = write_battery(battery(), tmp_path).read_text()
    assert 'href="index.html"' not in alone
    (tmp_path / "index.html").write_text("papers")
    assert 'href="index.html"' in write_battery(battery(), tmp_path).read_text()
