"""The report, on made-up results: every number here is invented."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npmoe.report import write_report
from npmoe.report.read import MARKS, VERDICTS

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
    "mean of the SVDs", "SVD of the mean", "per token, mean", "per token, max", "stacked Jacobian", "Frobenius norm",
    "at equal training loss", "at equal effective sample size", "soft router", "product of the weights' norms",
    "Xavier initialization", "He initialization", "normal(0.02) initialization", "250 steps", "5000 steps",
    "dense h = 256", "dense h = 1024", "N = 128", "N = 256", "a trainable linear layer in front",
    "linear + GELU in front", "residual around the layer", "targets are x", "targets from a teacher", "fresh targets each step",
    "router with bias", "batch fixed over seeds", "experts initialized alike", "gates without gradient",
]  # fmt: skip


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
        "name": "as the appendix says" if index == 0 else NAMES[(index - 1) % len(NAMES)] + ("" if index <= 29 else ", k = 4"),
        "primary": index == 0,
        "kind": "measure" if index == 0 or (index - 1) % 29 < 10 else "train",
        "statistic": "log of the dense's sigma_1 over the experts' sigma_1",
        "margin": margin,
        "mean": float(np.mean(t["values"])),
        "verdict": verdict,
        "nulls": nulls,
        **t,
    }


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
                    {"name": "training loss", "values": [0.01] * 8, "low": 0.008, "high": 0.02, "says": "the MoE interpolates"}
                ]
                if name == "SC1.2"
                else [],
                "left_out": ["5000 steps", "N = 128"] if name == "SC1.4" else [],
                "repeat": f"python -m npmoe.reproduce {name}",
                "readings": readings,
            }
        )
    return {
        "schema": 1,
        "npmoe": "0.1.0",
        "mode": mode,
        "command": "python -m npmoe.reproduce sc1",
        "title": "Does routing make a mixture's Jacobians smaller? SC1, measured again",
        "paper": {"id": "SC1", "title": "Mixture-of-Experts as Soft Clustering", "cite": "F. Liu, arXiv 2601.11616 v1"},
        "seconds": 1234.5,
        "seeds": 8,
        "environment": {"python": "3.11.7", "numpy": "2.1.0", "machine": "x86_64", "cores": 2},
        "notes": ["With about 20 primaries half a false “holds” is to be expected."],
        "claims": claims,
    }


def _panel(title: str, x: str, y: str, *marks: dict[str, Any], scales: tuple[str, str] = ("linear", "linear")) -> dict[str, Any]:
    axes = {"x": {"label": x, "scale": scales[0]}, "y": {"label": y, "scale": scales[1]}}
    return {"title": title, **axes, "marks": list(marks)}


def figures() -> dict[str, dict[str, Any]]:
    """Made-up figures with every kind of mark in them."""
    rng = np.random.default_rng(3)
    step = np.unique(np.geomspace(1, 1000, 40).astype(int))
    grown = {"dense": 0.5 + 0.8 * np.log(step), "top2": 2.8 - 2.3 * np.exp(-step / 60), "soft": 3.9 - 3.4 * np.exp(-step / 90)}

    def band(role: str, name: str, scale: float = 1.0) -> dict[str, Any]:
        base = grown.get(role, grown["dense"] * 0.7) * scale
        values = base * np.exp(rng.normal(0, 0.06, (8, 1)) + rng.normal(0, 0.01, (8, len(step))))
        return {"kind": "band", "name": name, "role": role, "x": step.tolist(), "values": values.tolist()}

    norms = [band("dense", "dense"), band("top2", "top-2 of 8"), band("soft", "soft"), band("wide", "dense, as wide as all experts")]
    loss = {"kind": "line", "name": "training loss of top-2", "role": "loss", "x": step.tolist(), "y": np.exp(-step / 200.0).tolist()}
    energy = np.arange(1, 65)
    share = {role: (1 - np.exp(-energy / width)).tolist() for role, width in (("dense", 14), ("top2", 18))}
    ribbon = {"kind": "ribbon", "name": "untrained", "role": "null", "x": energy.tolist(),
              "low": (1 - np.exp(-energy / 24)).tolist(), "high": (1 - np.exp(-energy / 20)).tolist()}  # fmt: skip
    lines = [{"kind": "line", "name": role, "role": role, "x": energy.tolist(), "y": y} for role, y in share.items()]
    cosines = rng.normal(0, 0.012, (8, 8))
    np.fill_diagonal(cosines, 1)
    matrix = {"kind": "matrix", "name": "cosine", "values": cosines.tolist(), "rows": [f"e{i}" for i in range(8)],
              "columns": [f"e{i}" for i in range(8)], "center": 0, "limit": 0.05}  # fmt: skip
    counts, edges = np.histogram(rng.normal(0, 0.014, 400), 24)
    size = np.geomspace(8, 500, 60)
    law = 0.9 * 64 * size / (size + 64)
    points = [
        {"kind": "points", "name": name, "role": role, "x": size[i::3].tolist(), "y": (law + rng.normal(0, 1, 60))[i::3].tolist()}
        for i, (name, role) in enumerate((("top-2", "top2"), ("soft", "soft"), ("shuffled gates", "null")))
    ]
    strips = [
        {"kind": "strip", "name": name, "role": role, "values": rng.normal(centre, 0.03, 8).tolist()}
        for name, role, centre in (("dense", "dense", 1.6), ("top-2 experts", "experts", 1.9), ("untrained experts", "untrained", 0.6))
    ]
    paper = {"kind": "points", "name": "the paper's figure, read off", "role": "paper", "x": [10, 1000], "y": [5.0, 50.0]}
    return {
        "1A": {"schema": 1, "id": "1A", "title": "Norm of the Jacobian while training", "source": "paper figure 1A", "claims": ["SC1.1", "SC1.2"],
               "caption": "The dense model's norm grows to the end; the mixture's stops where its training loss does.",
               "panels": [_panel("Leading value of the mean Jacobian", "step", "norm", *norms, paper, {"kind": "vline", "x": 250, "name": "250 steps"}, scales=("log", "log")),
                          _panel("Training loss", "step", "mean squared error", loss, scales=("linear", "log"))]},
        "1B": {"schema": 1, "id": "1B", "title": "Cosines between the experts' mean Jacobians", "source": "paper figure 1B", "claims": ["SC1.3"],
               "caption": "Off the diagonal all are small, as between random matrices.",
               "panels": [_panel("One seed", "expert", "expert", matrix),
                          _panel("All pairs and seeds", "cosine", "pairs",
                                 {"kind": "hist", "name": "top-2", "role": "top2", "edges": edges.tolist(), "counts": counts.tolist()},
                                 {"kind": "hist", "name": "independent experts", "role": "null", "edges": (edges * 1.1).tolist(), "counts": counts[::-1].tolist()}),
                          _panel("Change", "step", "signed change", {**lines[0], "y": rng.normal(0, 3, 64).tolist()}, scales=("linear", "symlog"))]},
        "2": {"schema": 1, "id": "2", "title": "Energy in the leading directions", "source": "paper figure 2", "claims": ["SC1.5"],
              "caption": "Cumulative share of the squared singular values.",
              "panels": [_panel("", "number of directions", "share of energy", *lines, ribbon, {"kind": "level", "name": "90 %", "role": "other", "y": 0.9})]},
        "law": {"schema": 1, "id": "ours 1", "title": "Components are a law of sample size", "source": "ours", "claims": ["SC1.6", "SC1.7", "SC9.9"],
                "caption": "Real and shuffled gates fall on the curve of a plain Gaussian with as many rows.",
                "panels": [_panel("k at 90 % against effective sample size", "effective sample size of an expert", "components for 90 %", *points,
                                  {"kind": "line", "name": "Gaussian", "role": "control", "x": size.tolist(), "y": law.tolist()}, scales=("log", "linear")),
                           _panel("Leading singular values", "", "sigma_1", *strips, {"kind": "level", "name": "the paper", "role": "paper", "y": 1.5})]},
    }  # fmt: skip


def write_example(folder: Path, found: dict[str, Any] | None = None, drawn: dict[str, Any] | None = None) -> Path:
    """Results and figures as a run leaves them."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results() if found is None else found))
    for name, figure in (figures() if drawn is None else drawn).items():
        (folder / "figures" / f"{name}.json").write_text(json.dumps(figure))
    return folder
