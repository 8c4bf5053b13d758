"""The report, on made-up results: every number here is invented."""

from __future__ import annotations

import copy
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npmoe.ledger import join
from npmoe.ledger.plain import MEANINGS
from npmoe.report import write_report
from npmoe.report.read import MARKS, read_figure

# id, says, paper's number, centre of T, number of readings
CLAIMS = [
    ("SC1.1", "The dense Jacobian norm grows throughout training", "about 5 to over 50", 0.42, 14),
    ("SC1.2", "The MoE norm rises early, then reaches a plateau", "after about 250 iterations", 0.55, 22),
    ("SC1.3", "Cross-expert cosines are near zero at the end", "-0.01 to 0.015", 1.1, 24),
    ("SC1.4", "MoE experts' leading singular values are smaller than the dense model's", "1.5 to 1.7 times", -0.31, 40),
    ("SC1.5", "MoE spectra hold their energy in fewer directions", "figure", -0.06, 12),
    ("SC1.6", "Dense representations reach 90 % of variance with few components", "about 3", -40.0, 11),
    ("SC1.7", "MoE experts need many components", "more than 20", -0.2, 9),
    ("SC1.8", "Top-k routing is more concentrated than soft routing", "figure", 6.0, 15),
    ("SC1.9", "Alignment is low in both regimes", "figure", 0.9, 10),
    ("SC1.10a", "The effects weaken with near-uniform routing", "", 0.02, 5),
    ("SC1.10b", "The effects weaken with a residual", "", 0.09, 5),
    ("SC1.10c", "The effects weaken with predefined tasks", "", 0.0, 5),
    ("SC1.10d", "The effects weaken in stacked layers", "", 0.0, 0),
    ("SC1.11", "Experts have smaller second derivatives (ours)", "", 0.3, 6),
]
NAMES = [
    "mean of the SVDs",
    "SVD of the mean",
    "per token, mean",
    "per token, max",
    "stacked Jacobian",
    "Frobenius norm",
    "at equal training loss",
    "at equal effective sample size",
    "soft router",
    "product of the weights' norms",
    "Xavier initialization",
    "He initialization",
    "normal(0.02) initialization",
    "250 steps",
    "5000 steps",
    "dense h = 256",
    "dense h = 1024",
    "N = 128",
    "N = 256",
    "a trainable linear layer in front",
    "linear + GELU in front",
    "residual around the layer",
    "targets are x",
    "targets from a teacher",
    "fresh targets each step",
    "router with bias",
    "batch fixed over seeds",
    "experts initialized alike",
    "gates without gradient",
]


def _spread(rng: np.random.Generator, centre: float, sd: float) -> dict[str, Any]:
    values = rng.normal(centre, sd, 8)
    half = 2.365 * values.std(ddof=1) / 8**0.5
    return {"values": values.tolist(), "low": values.mean() - half, "high": values.mean() + half}


def _reading(rng: np.random.Generator, index: int, centre: float, margin: float) -> dict[str, Any]:
    size = max(abs(centre), margin)
    t = _spread(rng, centre if index == 0 else rng.normal(centre, 0.7 * size), 0.12 * size)
    nulls = []
    for name, kind in (("untrained", "control"), ("independent", "chance"))[: 1 + index % 2 if index else 2]:
        null = _spread(rng, 0.3 * centre, 0.08 * size)
        excess = {"excess_low": t["low"] - null["high"], "excess_high": t["high"] - null["low"]}
        nulls.append({"name": name, "kind": kind, **null, **excess})
    low, high = t["low"], t["high"]
    verdict = "reversed" if high < -margin else "undecided"
    verdict = "not reproduced" if -margin <= low and high <= margin else verdict
    if low > margin:
        verdict = "reproduced" if all(null["excess_low"] > margin for null in nulls) else "so does the null"
    return {
        "name": "as the appendix says"
        if index == 0
        else NAMES[(index - 1) % len(NAMES)] + ("" if index <= 29 else ", k = 4"),
        "primary": index == 0,
        "kind": "measure" if index == 0 or (index - 1) % 29 < 10 else "train",
        "statistic": "log of the dense's sigma_1 over the experts' sigma_1",
        "margin": margin,
        "mean": float(np.mean(t["values"])),
        "verdict": verdict,
        "nulls": nulls,
        **t,
    }


TOLD: dict[str, Any] = {  # what a paper says of its own claim
    "sentence": "Experts have 1.47 times the dense model's.",
    "firmness": {"stands": False, "without": {"inconclusive": 2}, "seeds": 30},
    "effect": {
        "what": "leading value, experts over dense",
        "mean": 1.47,
        "low": 1.4,
        "high": 1.53,
        "values": [1.45, 1.49],
        "none": 1.0,
        "claimed": 0.91,
        "opposite": 1.1,
        "nulls": [{"name": "untrained", "kind": "chance", "values": [0.99, 1.01]}],
    },
}
FOUND = [{"id": "SC1.4", "title": "Experts are more sensitive", "says": "Experts have 1.47 times the dense model's."}]


def results(mode: str = "default") -> dict[str, Any]:
    """Made-up results of the shape and size that SC1 has."""
    rng = np.random.default_rng(7)
    claims = []
    for name, says, paper, centre, count in CLAIMS:
        margin = 1.0 if abs(centre) > 2 else 0.095
        readings = [_reading(rng, index, centre, margin) for index in range(count)]
        first = readings[0] if readings else None
        judged = [reading["verdict"] for reading in readings]
        holds = sum(verdict in ("reproduced", "so does the null") for verdict in judged)
        claims.append(
            {
                "id": name,
                "says": says,
                "paper_value": paper,
                "statistic": "log sigma_1(dense) / sigma_1(experts)",
                "unit": "log ratio",
                "margin": margin,
                "verdict": "no verdict" if mode == "quick" else first["verdict"] if first else "not tested",
                "size": {
                    "measured": "0.73 times" if paper else "",
                    "paper": paper,
                    "judgement": "outside" if paper else "not given",
                },
                "agreement": {"holds": holds, "reversed": judged.count("reversed"), "of": len(readings)},
                "headline": (first["verdict"] + "; depends on the reading") if first else "",
                "rule": "The interval of the primary reading lies below minus the margin, so the opposite holds.",
                "measured": f"T = {first['mean']:.2f} [{first['low']:.2f}, {first['high']:.2f}], holds means > {margin}"
                if first
                else "",
                "beside": [
                    {
                        "name": "training loss",
                        "values": [0.01] * 8,
                        "low": 0.008,
                        "high": 0.02,
                        "says": "the MoE interpolates",
                    }
                ]
                if name == "SC1.2"
                else [],
                "left_out": ["5000 steps", "N = 128"] if name == "SC1.4" else [],
                "note": "A remark about SC1.3 alone." if name == "SC1.3" else "",
                "repeat": f"python -m npmoe.reproduce {name}",
                "readings": readings,
                **(TOLD if name == "SC1.4" and mode != "quick" else {}),
            }
        )
    return {
        "word": "sc1",
        "npmoe": "0.1.0",
        "mode": mode,
        "command": "python -m npmoe.reproduce sc1",
        "title": "Does routing make a mixture's Jacobians smaller? SC1, measured again",
        "paper": {"id": "SC1", "title": "Mixture-of-Experts as Soft Clustering", "cite": "F. Liu, arXiv 2601.11616 v1"},
        "seeds": 8,
        "environment": {"python": "3.11.7", "numpy": "2.1.0", "machine": "x86_64", "cores": 2},
        "notes": ["With about 20 primaries half a false “holds” is to be expected."],
        "claims": claims,
    }


def _panel(
    title: str, x: str, y: str, *marks: dict[str, Any], scales: tuple[str, str] = ("linear", "linear")
) -> dict[str, Any]:
    axes = {"x": {"label": x, "scale": scales[0]}, "y": {"label": y, "scale": scales[1]}}
    return {"title": title, **axes, "marks": list(marks)}


def figures() -> dict[str, dict[str, Any]]:
    """Made-up figures with every kind of mark in them."""
    rng = np.random.default_rng(3)
    step = np.unique(np.geomspace(1, 1000, 40).astype(int))
    grown = {
        "dense": 0.5 + 0.8 * np.log(step),
        "top2": 2.8 - 2.3 * np.exp(-step / 60),
        "soft": 3.9 - 3.4 * np.exp(-step / 90),
    }

    def band(role: str, name: str, scale: float = 1.0) -> dict[str, Any]:
        base = grown.get(role, grown["dense"] * 0.7) * scale
        values = base * np.exp(rng.normal(0, 0.06, (8, 1)) + rng.normal(0, 0.01, (8, len(step))))
        return {"kind": "band", "name": name, "role": role, "x": step.tolist(), "values": values.tolist()}

    norms = [
        band("dense", "dense"),
        band("top2", "top-2 of 8"),
        band("soft", "soft"),
        band("wide", "dense, as wide as all experts"),
    ]
    loss = {
        "kind": "line",
        "name": "training loss of top-2",
        "role": "loss",
        "x": step.tolist(),
        "y": np.exp(-step / 200.0).tolist(),
    }
    energy = np.arange(1, 65)
    share = {role: (1 - np.exp(-energy / width)).tolist() for role, width in (("dense", 14), ("top2", 18))}
    ribbon = {
        "kind": "ribbon",
        "name": "untrained",
        "role": "null",
        "x": energy.tolist(),
        "low": (1 - np.exp(-energy / 24)).tolist(),
        "high": (1 - np.exp(-energy / 20)).tolist(),
    }
    lines = [{"kind": "line", "name": role, "role": role, "x": energy.tolist(), "y": y} for role, y in share.items()]
    cosines = rng.normal(0, 0.012, (8, 8))
    np.fill_diagonal(cosines, 1)
    matrix = {
        "kind": "matrix",
        "name": "cosine",
        "values": cosines.tolist(),
        "rows": [f"e{i}" for i in range(8)],
        "columns": [f"e{i}" for i in range(8)],
        "center": 0,
        "limit": 0.05,
    }
    counts, edges = np.histogram(rng.normal(0, 0.014, 400), 24)
    size = np.geomspace(8, 500, 60)
    law = 0.9 * 64 * size / (size + 64)
    points = [
        {
            "kind": "points",
            "name": name,
            "role": role,
            "x": size[i::3].tolist(),
            "y": (law + rng.normal(0, 1, 60))[i::3].tolist(),
        }
        for i, (name, role) in enumerate((("top-2", "top2"), ("soft", "soft"), ("shuffled gates", "null")))
    ]
    strips = [
        {"kind": "strip", "name": name, "role": role, "values": rng.normal(centre, 0.03, 8).tolist()}
        for name, role, centre in (
            ("dense", "dense", 1.6),
            ("top-2 experts", "experts", 1.9),
            ("untrained experts", "untrained", 0.6),
        )
    ]
    paper = {
        "kind": "points",
        "name": "the paper's figure, read off",
        "role": "paper",
        "x": [10, 1000],
        "y": [5.0, 50.0],
    }
    return {
        "1A": {
            "schema": 1,
            "id": "1A",
            "title": "Norm of the Jacobian while training",
            "source": "paper figure 1A",
            "claims": ["SC1.1", "SC1.2"],
            "caption": "The dense model's norm grows to the end; the mixture's stops where its training loss does.",
            "panels": [
                _panel(
                    "Leading value of the mean Jacobian",
                    "step",
                    "norm",
                    *norms,
                    paper,
                    {"kind": "vline", "x": 250, "name": "250 steps"},
                    scales=("log", "log"),
                ),
                _panel("Training loss", "step", "mean squared error", loss, scales=("linear", "log")),
            ],
        },
        "1B": {
            "schema": 1,
            "id": "1B",
            "title": "Cosines between the experts' mean Jacobians",
            "source": "paper figure 1B",
            "claims": ["SC1.3"],
            "caption": "Off the diagonal all are small, as between random matrices.",
            "panels": [
                _panel("One seed", "expert", "expert", matrix),
                _panel(
                    "All pairs and seeds",
                    "cosine",
                    "pairs",
                    {
                        "kind": "hist",
                        "name": "top-2",
                        "role": "top2",
                        "edges": edges.tolist(),
                        "counts": counts.tolist(),
                    },
                    {
                        "kind": "hist",
                        "name": "independent experts",
                        "role": "null",
                        "edges": (edges * 1.1).tolist(),
                        "counts": counts[::-1].tolist(),
                    },
                ),
                _panel(
                    "Change",
                    "step",
                    "signed change",
                    {**lines[0], "y": rng.normal(0, 3, 64).tolist()},
                    scales=("linear", "symlog"),
                ),
            ],
        },
        "2": {
            "schema": 1,
            "id": "2",
            "title": "Energy in the leading directions",
            "source": "paper figure 2",
            "claims": ["SC1.5"],
            "caption": "Cumulative share of the squared singular values.",
            "panels": [
                _panel(
                    "",
                    "number of directions",
                    "share of energy",
                    *lines,
                    ribbon,
                    {"kind": "level", "name": "90 %", "role": "other", "y": 0.9},
                )
            ],
        },
        "law": {
            "schema": 1,
            "id": "ours 1",
            "title": "Components are a law of sample size",
            "source": "ours",
            "claims": ["SC1.6", "SC1.7", "SC9.9"],
            "caption": "Real and shuffled gates fall on the curve of a plain Gaussian with as many rows.",
            "panels": [
                _panel(
                    "k at 90 % against effective sample size",
                    "effective sample size of an expert",
                    "components for 90 %",
                    *points,
                    {"kind": "line", "name": "Gaussian", "role": "control", "x": size.tolist(), "y": law.tolist()},
                    scales=("log", "linear"),
                ),
                _panel(
                    "Leading singular values",
                    "",
                    "sigma_1",
                    *strips,
                    {"kind": "level", "name": "the paper", "role": "paper", "y": 1.5},
                ),
            ],
        },
    }


def write_example(folder: Path, found: dict[str, Any] | None = None, drawn: dict[str, Any] | None = None) -> Path:
    """Results of one paper (or a ledger) and figures, as a run leaves them."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    found, drawn = results() if found is None else found, figures() if drawn is None else drawn
    ledger = found if "schema" in found else join([{**found, "figures": list(drawn)}]) | {"findings": FOUND}
    (folder / "results.json").write_text(json.dumps(ledger))
    for name, figure in drawn.items():
        (folder / "figures" / f"{name}.json").write_text(json.dumps(figure))
    return folder


class Page(HTMLParser):
    """Tags must close in the order in which they opened; ids and references are collected."""

    EMPTY = frozenset(["meta", "link"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set(re.findall(r"url\(#([^)]+)\)", text))
        self.tags: list[tuple[str, dict[str, str | None]]] = []
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

    def take(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice at {self.getpos()}"
        self.tags.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        if (found.get("href") or "").startswith("#"):
            self.references.add((found["href"] or "")[1:])
        self.references.update((found.get("aria-labelledby") or "").split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_example(tmp_path_factory.mktemp("report"))
    assert write_report(folder) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_page_shows_every_claim_reading_and_figure(text: str) -> None:
    words = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))).replace("−", "-")
    for claim in results()["claims"]:
        for part in ("id", "says", "repeat", "measured", "paper_value"):
            assert claim[part] in words
        for reading in claim["readings"]:
            assert reading["name"] in words
    for figure in figures().values():
        assert figure["title"] in words
        assert figure["caption"] in words
    assert "A remark about SC1.3 alone." in words
    assert "Left out of this run: 5000 steps; N = 128." in words
    assert text.index('<table class="claims"') < text.index('<article class="claim"') < text.index('class="drawn"')
    assert all(f">{word}</span>" in text for word in MEANINGS)
    assert "Experts have 1.47 times the dense model's." in words
    assert "Borderline: with one seed left out the verdict is inconclusive (2 of 8); 30 seeds would settle it." in words
    assert "leading value, experts over dense: measured 1.47; untrained 1.00" in words
    assert text.count('class="effect"') == 2, "on the card, and with the claim"
    assert "Experts are more sensitive" in words


def test_page_is_well_formed_and_every_reference_resolves(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert next(found for tag, found in page.tags if tag == "html") == {"lang": "en"}
    assert all("scope" in found for tag, found in page.tags if tag == "th")
    for tag, found in page.tags:
        assert tag != "svg" or found.get("aria-hidden") == "true" or found.get("role") == "img"


def test_page_needs_no_network(text: str) -> None:
    assert not re.search(r"https?://|//[a-z]+\.|@import|src=|<script", text)
    assert len(text) < 3_000_000
    page = Page(text)
    outside = {found["href"] for tag, found in page.tags if tag == "a" and not (found["href"] or "").startswith("#")}
    assert outside == {"results.json"} | {f"figures/{n}.{e}" for n in figures() for e in ("svg", "json")}


def test_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    some = {"law": put(figures()["law"], "panels.0", figures()["1A"]["panels"][0])}
    first, second = (write_example(tmp_path / name, None, some) for name in ("first", "second"))
    write_report(first)
    write_report(second)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert len(names) == 2 + 2 * len(some)  # and no temporary file is left
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []


X, Y = [1.0, 2.0, None, 4.0], [1.0, None, 3.0, -2.0]
MARK_EXAMPLES = {
    "band": {"x": X, "values": [Y, Y, [None] * 4]},
    "line": {"x": X, "y": Y},
    "points": {"x": X, "y": Y},
    "strip": {"values": [0.3, None, -0.2]},
    "ribbon": {"x": X, "low": Y, "high": [2.0, None, 4.0, None]},
    "level": {"y": 0.5},
    "vline": {"x": 2.0},
    "matrix": {
        "values": [[1.0, None], [-0.5, 0.0]],
        "rows": ["a", "b"],
        "columns": ["c", "d"],
        "center": 0,
        "limit": None,
    },
    "hist": {"edges": [0, 1, 2], "counts": [3, None]},
}


def one_mark(kind: str, role: str = "experts", scale: str = "linear", **fields: Any) -> dict[str, Any]:
    mark = {"kind": kind, "name": "a name", "role": role, **MARK_EXAMPLES[kind], **fields}
    return {"schema": 1, "id": "one", "title": "One", "panels": [_panel("", "x", "y", mark, scales=("linear", scale))]}


@pytest.mark.parametrize(
    ("kind", "scale"), [*((kind, scale) for kind in MARKS for scale in ("linear", "log")), ("band", "symlog")]
)
def test_every_mark_is_drawn_with_nulls_on_every_scale(kind: str, scale: str, tmp_path: Path) -> None:
    from npmoe.report.figure import legend, panel_svg
    from npmoe.report.read import read_figure

    path = tmp_path / "one.json"
    path.write_text(json.dumps(one_mark(kind, scale=scale)))
    figure = read_figure(path)
    drawn = panel_svg(figure, 0, "p")
    assert ("var(--r-experts)" in drawn) == (kind != "matrix")
    assert not re.search(r"nan|http|font-family", drawn)
    assert len(legend(figure, 0)) == (kind not in ("strip", "matrix"))
    if kind == "matrix":
        assert ">−0.5</text>" in drawn


@pytest.mark.parametrize("scale", ["log", "symlog"])
def test_a_figure_of_nothing_but_nulls_is_drawn(scale: str, tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"x": [1, 2], "values": [[None, None]]}
    drawn = {"empty": one_mark("band", scale=scale, **nothing)}
    drawn["empty"]["panels"] += [_panel("", "", "", scales=("linear", scale))]
    write_report(write_example(tmp_path, results("quick"), drawn))
    assert "no data" in (tmp_path / "figures" / "empty.svg").read_text()


def test_nulls_anywhere_in_the_results(tmp_path: Path) -> None:
    def emptied(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: value if key == "schema" else emptied(value) for key, value in found.items()}
        if isinstance(found, list):
            return [emptied(item) for item in found]
        return None if isinstance(found, float) else found

    page = write_report(write_example(tmp_path, emptied(results()), {})).read_text(encoding="utf-8")
    Page(page)
    assert "undefined" in page
    assert not re.search(r">\s*None\s*<|None[,%\]]", page)


def test_quick_runs_and_runs_without_train_readings_say_so(tmp_path: Path) -> None:
    found = results("quick")
    for claim in found["claims"]:
        claim["readings"] = [reading for reading in claim["readings"] if reading["kind"] == "measure"]
    page = write_report(write_example(tmp_path, found, {})).read_text(encoding="utf-8")
    assert "these verdicts mean nothing" in page
    assert "2 further interpretations train the models differently" in page
    assert "python -m npmoe.reproduce sc1 --quick" in page


def test_text_is_escaped(text: str, tmp_path: Path) -> None:
    assert "these verdicts mean nothing" not in text
    found, drawn, nasty = (
        results(),
        {"nasty": one_mark("line", name="<b>&amp; $x_1$")},
        "<script>alert('1')</script>\"&",
    )
    found["title"] = found["claims"][0]["says"] = found["claims"][0]["readings"][0]["name"] = nasty
    found["claims"][0]["readings"][0]["nulls"][0]["name"] = nasty
    drawn["nasty"] |= {"title": nasty, "caption": nasty}
    page = write_report(write_example(tmp_path, found, drawn)).read_text(encoding="utf-8")
    Page(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in (tmp_path / "figures" / "nasty.svg").read_text(encoding="utf-8")


def put(found: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a path such as claims.0.id; ... removes it."""
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
        ("schema", 2, r"expected schema 1 .*results\.json; got 2"),
        ("claims", ..., "expected results to have 'claims', a list"),
        ("papers.0.mode", "fast", "mode one of default, full, quick; got 'fast'"),
        ("papers", ..., "expected a ledger with papers"),
        ("papers.0.word", "../sc1", "a paper's word of letters and digits.*got '../sc1'"),
        ("papers.0.claims.0", "SC9.9", "missing SC9.9"),
        ("claims.0", 3, "expected claim 1 to be an object; got 3"),
        ("claims.1.id", "SC1.1", "each claim once; got 'SC1.1' twice"),
        ("claims.0.verdict", "fine", "claim SC1.1, verdict one of reproduced.*got 'fine'"),
        ("claims.0.readings.0.values", [1, "2"], 'a list of numbers.*got .1, "2"'),
        ("claims.0.readings.0.low", "0.1", 'low to be a number; got "0.1"'),
        ("claims.0.readings.0.primary", 1, "primary to be true or false; got 1"),
        ("claims.0.readings.0.nulls.0.kind", "luck", "one of chance, control; got 'luck'"),
    ],
)
def test_wrong_results_are_named(path: str, value: Any, message: str, tmp_path: Path) -> None:
    ledger = join([{**results(), "figures": ["one"]}])
    write_example(tmp_path, put(ledger, path, value), {"one": one_mark("level")})
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "index.html").exists()
    assert list(tmp_path.rglob("*.svg")) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("line", "panels", [], "at least one panel; got none"),
        ("line", "panels.0.marks.0.kind", "pie", r"panel 1, mark 1, kind one of band.*got 'pie' in .*one\.json"),
        ("line", "panels.0.marks.0.role", "MoE", 'role one of dense.*got "MoE"'),
        ("line", "panels.0.marks.0.y", [1, 2], r"mark 1 \(line\), y to have 4 numbers.*got 2"),
        ("band", "panels.0.marks.0.values.1", [1, 2], r"mark 1 \(band\), values to have 4 numbers.*got 2"),
        ("band", "panels.0.marks.0.values", [1, 2], "values to be a list of rows"),
        ("level", "panels.0.marks.0.y", [1], "y to be a number"),
        ("ribbon", "panels.0.marks.0.low", ..., "missing low"),
        ("matrix", "panels.0.marks.0.rows", ["a"], "2 rows, as many as values has; got 1"),
        ("hist", "panels.0.marks.0.edges", [0, 1], "one edge more than counts; got 2 edges, 2 counts"),
        ("line", "panels.0.x.scale", "sqrt", "x.scale one of"),
    ],
)
def test_wrong_figures_are_named(kind: str, path: str, value: Any, message: str, tmp_path: Path) -> None:
    write_example(tmp_path, None, {"one": put(one_mark(kind), path, value)})
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)


def test_missing_and_cut_off_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.json; there is no such file"):
        write_report(tmp_path)
    write_example(tmp_path, None, {})
    path = tmp_path / "results.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match=r"whole and in JSON, in .*results\.json; got .*cut off"):
        write_report(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"an object with schema 1.*got \[1\]"):
        write_report(tmp_path)


def _contrast(one: str, other: str) -> float:
    """Contrast of two #rrggbb as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_colours_are_legible_in_light_and_dark() -> None:
    from npmoe.report import page, style

    css = re.sub(r"#([0-9a-f])([0-9a-f])([0-9a-f])(?![0-9a-f])", r"#\1\1\2\2\3\3", (page.HERE / "page.css").read_text())
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    for shades in blocks[:2]:
        for name in ("ink", "muted", "link", "good", "same", "turned", "none", "open", "proof", "wrong", "absent"):
            for ground in ("page", "card", "wash"):
                assert _contrast(shades[name], shades[ground]) >= 4.5, (name, ground)
        for role in style.ROLES:
            assert _contrast(shades[f"r-{role}"], shades["page"]) >= 3, role
    assert {role: look.colour for role, look in style.ROLES.items()} == {r: blocks[0][f"r-{r}"] for r in style.ROLES}
    assert (
        len({look.colour for look in style.ROLES.values()} | {style.INK, style.MUTED, style.GRID})
        == len(style.ROLES) + 3
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (-0.31234, "−0.312"), (1234.4, "1234"), (12.0, "12.0"), (3e-7, "3·10⁻⁷"), (-1e6, "−10⁶")],
)
def test_numbers_are_written_as_people_write_them(value: float | None, text: str) -> None:
    from npmoe.report.style import number

    assert number(value) == text


def test_intervals_have_the_decimals_that_their_width_warrants() -> None:
    from npmoe.report.style import estimate, interval, minus

    assert interval(-0.3512, -0.2748) == "[−0.351, −0.275]"
    assert interval(0.1081, 0.1402, 0) == "[0.11, 0.14]"
    assert interval(-43.88, -36.73) == "[−43.9, −36.7]"
    assert interval(None, None) == "–"
    assert estimate(-0.0001, -0.03, 0.03) == "0.000 [−0.030, 0.030]"
    assert minus("T = -0.3, SC-3, 1-2") == "T = −0.3, SC-3, 1-2"


# Texts


WORDS_OF_A_TEXT = {"words": ["<b>", "is", "&", "\n"], "experts": [[0, 2], [1, 0], [2, 1], [0, 1]], "prompt": 2, "of": 3}


def text_figure(**changed: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "id": "text",
        "title": "Experts of each token",
        "caption": "A prompt.",
        "panels": [{"title": "Block 0", "text": {**WORDS_OF_A_TEXT, **changed}, "marks": []}],
    }


def test_a_text_stands_in_the_page_and_on_a_page_of_its_own(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "text.json").write_text(json.dumps(text_figure()))
    (tmp_path / "results.json").write_text(json.dumps(join([{**results(), "figures": ["text"]}])))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    alone = (tmp_path / "figures" / "text.html").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "text.svg").exists()
    assert 'href="figures/text.html"' in page
    for where in (page, alone):
        HTMLParser().feed(where)
        assert '<span class="token" style="--c:#e69f00">&lt;b&gt;<sub>0,2</sub></span>' in where
        assert "&amp;<sub>2,1</sub>" in where
        assert "¶<sub>0,1</sub>" in where
        assert where.count('<span class="rollout">') == 1
        row = '<tr><th scope="row">prompt</th><td>50 %</td><td>25 %</td><td>25 %</td></tr>'
        assert row in where
        assert "The bar is where the model begins to write by itself." in where
        assert ".token {" in where
    assert 'href="#block-0"' in alone
    assert 'id="block-0"' in alone
    assert "http" not in alone


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"words": ["a"]}, "to have experts for each of 1 words, and a prompt among them; got 4 and 2"),
        ({"words": [1, "a", "b", "c"]}, "words to be text; got 1"),
        ({"prompt": 5}, "a prompt among them; got 4 and 5"),
        ({"prompt": None}, "prompt to be a whole number"),
        ({"of": 2}, "experts to be lists of numbers below 2; got [0, 2]"),
        ({"experts": [[0], [], [1], [2]]}, "experts to be lists of numbers below 3; got []"),
        ({"experts": [[0], ["1"], [1], [2]]}, 'below 3; got ["1"]'),
    ],
)
def test_a_text_that_is_not_one_is_named(changed, said, tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(text_figure(**changed)))
    with pytest.raises(ValueError, match=re.escape(said)) as found:
        read_figure(tmp_path / "f.json")
    assert str(tmp_path / "f.json") in str(found.value)
    assert "panel 1, text" in str(found.value)
