"""The benchmark's own machinery; that a way is fast is measured there, and asserted nowhere."""

import importlib
import json
import sys

import numpy as np
import pytest

import npmoe
from bench import figure, layers, scaling, table
from bench.__main__ import main
from bench.memory import megabytes
from bench.problem import problem
from bench.rows import AIMS, EXTRA, PEERS, ROWS, TOLERANCE, WORK, sc1
from bench.timing import Row, compare

SMALL = {"n": 70, "d": 5, "h": 9, "E": 3}
RESULTS = {
    "machine": "a machine",
    "date": "2026-01-01",
    "versions": {"numpy": "2"},
    "rows": [
        Row("train soft", "float64", "E=8", 2.0, {"torch eager": 4.0}, {"npmoe": 1.0, "torch eager": 3.0}, 5,
            2.0, 1.9, 2.2, "torch eager", "torch eager", 2.0)._asdict(),
        Row("import", "", "of npmoe", 126.0, {}, {}, 15)._asdict(),
    ],
    "growth": [scaling.Growth("train", "n", (1, 2), (1.0, 2.0), 1.0, 1)._asdict()],
    "floor": {"import numpy": 90.0},
    "layers": [{"name": "small", "seconds": 1.0, "sigma_1 from, to": [1.0, 2.0]}],
}  # fmt: skip


def test_every_row_of_the_issue_has_its_aim():
    assert set(ROWS) - set(AIMS) == {"import"}
    assert not set(EXTRA) & set(ROWS)
    assert set(scaling.ALLOWED) == set(WORK)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_problem_is_the_mixture_that_it_says(k, dtype):
    p = problem(k, dtype=dtype, **SMALL)
    assert {a.dtype for a in p[:-1]} == {np.dtype(dtype)}
    np.testing.assert_array_equal(p.gates, p.moe().route(p.x)[0])
    np.testing.assert_array_equal(WORK["expert_jacobians"](p)()[1], p.moe().experts[1].jacobian(p.x))


def test_ways_of_ours_agree_with_one_another():
    p = problem(2, **SMALL)
    J = np.array(WORK["expert_jacobians"](p)())
    w = (p.gates / p.gates.sum(axis=0)).T
    np.testing.assert_allclose(WORK["mean_jacobians"](p)(), np.einsum("en,enod->eod", w, J), rtol=0, atol=1e-14)
    sigma = np.linalg.svd(J, compute_uv=False)
    np.testing.assert_allclose(WORK["full_spectra"](p)(), sigma, rtol=0, atol=1e-14)
    np.testing.assert_allclose(WORK["leading_values"](p)(), sigma[..., 0], rtol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of the frameworks, about themselves
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k", [2, 3])
def test_peers_give_the_same_numbers(peer, dtype, k):
    """At an odd size, where a token or an expert that a peer forgot would show."""
    pytest.importorskip(peer, reason=f"{peer} is not installed (extra: bench)")
    module = importlib.import_module(PEERS[peer])
    p = problem(k, dtype=dtype, **SMALL)
    for work, ours in WORK.items():
        want = ours(p)
        for name, way in getattr(module, work)(p).items():
            if "compile" in name:
                continue  # minutes; the benchmark itself holds these
            for _ in range(3 if work == "train" else 1):  # losses of three steps
                a, b = np.asarray(want()), np.asarray(way())
                atol = TOLERANCE[dtype] if work != "leading_values" else max(TOLERANCE[dtype], 1e-6)
                np.testing.assert_allclose(b, a, rtol=0, atol=atol * np.abs(a).max(), err_msg=f"{work}: {name}")
                if work != "train":
                    break
            want = ours(p)


def test_other_numbers_are_not_timed():
    def equal(a, b):
        assert a == b

    with pytest.raises(AssertionError, match=r"sum \(float64\): wrong gives other numbers"):
        compare("sum", lambda: 1, {"right": lambda: 1, "wrong": lambda: 2}, size="", equal=equal)


def test_ratio_is_that_of_the_fastest(monkeypatch):
    monkeypatch.setattr("bench.timing._milliseconds", lambda way: way())
    monkeypatch.setattr("bench.timing.megabytes", lambda way: 0.0)
    row = compare("row", lambda: 2.0, {"slow": lambda: 9.0, "fast": lambda: 3.0}, size="", plain={"slow"}, most=3)
    assert (row.npmoe_ms, row.best, row.ratio, row.plain, row.plain_ratio) == (2.0, "fast", 1.5, "slow", 4.5)
    assert {"name", "dtype", "size", "npmoe_ms", "peers", "ratio"} <= set(row._asdict())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's count of memory is Linux's")
def test_megabytes():
    size = 40 << 20
    assert 39 <= megabytes(lambda: np.ones(size // 8)) <= 45
    assert megabytes(lambda: None) < 2


def test_end_to_end_gives_what_it_says():
    p = problem(2, **SMALL)
    loss, spectra, means, variance = sc1({"top2": p}, 3)["top2"]
    *_, (_, want, model) = npmoe.fit(p.moe(), p.x, p.y, 3)
    assert loss == want
    assert spectra.shape == means.shape == variance.shape == (3, 5)
    gates = model.route(p.x)[0]
    for e, f in enumerate(model.experts):
        mean = f.mean_jacobian(p.x, gates[:, e])
        np.testing.assert_allclose(means[e], np.linalg.svd(mean, compute_uv=False), rtol=1e-10)


def test_table_and_figure(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'npmoe[bench]'")
    text = table.markdown(json.loads(json.dumps(RESULTS)))
    assert "| `train soft` | float64 | E=8 | 2 | 4 torch eager | 2.00 | 1.90 to 2.20 | 2, 1.3 |" in text
    widths = {len(line.split("|")) for line in text.splitlines() if line.startswith("| `")}
    assert widths == {len(text.splitlines()[2].split("|"))}
    figure.draw(RESULTS, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.parametrize("name", layers.SHAPES)
def test_a_layer_of_real_shape_made_small(name):
    shape = layers.Shape(E=6, d=40, h=24 if name == "qwen3" else 72, k=2, n=64)
    found = layers.survey(name, shape)
    assert found["largest error in eps of the largest entry"] < 8
    assert found["entries checked"] == 32
    if name == "qwen3":
        assert found["spectra against Frobenius norms, relative"] < 1e-5
    else:
        assert found["leading values"] == 64 * 2


def test_experts_are_made_anew_and_the_same():
    experts = layers.Experts(layers.Shape(E=2, d=4, h=8, k=1, n=3))
    assert experts[0] is not experts[0]
    np.testing.assert_array_equal(experts[1].Wd, experts[1].Wd)
    assert (experts[0].Wg != experts[1].Wg).all()
    with pytest.raises(IndexError, match=r"expected an expert within 0..1; got 2"):
        experts[2]


def test_a_typo_names_the_rows(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "train sof"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "train soft" in capsys.readouterr().err
