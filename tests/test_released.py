"""Released `transformers` held against ours. Where it is not installed its tests are skipped; the rest runs anywhere.

What is asserted holds for every version: the numbers decide, and a verdict has to follow from them.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import close

from npmoe.battery import released
from npmoe.battery.command import main
from npmoe.battery.released import checks, comparison, families, models
from npmoe.calculus.scalar import softmax
from npmoe.model.balance import Balance, conventions, pooled
from npmoe.model.init import swiglu_moe
from npmoe.model.routing import route, top_k

# ---- without transformers ------------------------------------------------------------------------------------------


def test_a_softmax_taken_twice_hides_a_collapsed_router():
    """By hand: E = 8, k = 2, all tokens to the same two, gates 1/2: P = e^(1/2) / (2 e^(1/2) + 6) on them."""
    got = released.collapse(8, 2)
    root = np.exp(0.5)
    close(np.array(got), np.array([2.0, 8.0, 8 * 2 * root / (2 * root + 6)]), 1e-14)


@pytest.mark.parametrize(("E", "k"), [(8, 2), (64, 8), (128, 8), (3, 3), (5, 1)])
def test_the_collapsed_values_are_those_of_the_loss_itself(E, k):
    """The second route: scores of many tokens, and `conventions`, which knows the fault by name."""
    scores = np.where(np.arange(E) < k, 50.0, 0.0)[None].repeat(7, axis=0)
    chosen = top_k(scores, k)
    loss = Balance(count="per choice")
    balanced, on_scores, twice = released.collapse(E, k)
    close(loss(scores, chosen)[0], on_scores, 1e-13)
    close(loss(softmax(scores), chosen)[0], twice, 1e-13)
    close(on_scores, E, 1e-13)
    assert balanced <= twice * (1 + 1e-13)
    assert twice <= on_scores * (1 + 1e-13)
    if k < E:
        assert "FAULT: softmax taken twice" in conventions(twice, scores, chosen).matches[0].words


def test_a_balanced_router_costs_k_either_way():
    """Why nobody sees it: with all experts used alike the two losses are one number."""
    scores = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    chosen = top_k(scores, 2)
    for s in (scores, softmax(scores)):
        close(Balance(count="per choice")(s, chosen)[0], 2.0, 1e-15)


def test_the_message_without_transformers_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(models.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"expected torch and transformers.*pip install 'npmoe\[hf\]'"):
        released.findings(["mixtral"])
    assert "npmoe[hf]" in released.report()


def test_the_command_without_transformers_says_so_and_returns_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        checks, "installed_version", lambda: (_ for _ in ()).throw(ImportError("no transformers: npmoe[hf]"))
    )
    assert main(["released", "--json", str(tmp_path / "found.json")]) == 2
    assert "npmoe[hf]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_fault_is_repeated_by_the_command_that_the_page_names():
    found = released.finding("balance", "mixtral", "5.0.0", 6.0, 2.9, "softmax twice")
    assert found.repeat == "python -m npmoe.verify released mixtral"
    assert released.described([found]).endswith(f"mixtral, balance: softmax twice\n    {found.repeat}")


def test_an_unknown_family_is_refused_before_anything_is_imported():
    with pytest.raises(ValueError, match=r"expected families among mixtral.*got 'mistral'"):
        released.findings(["mixtral", "mistral"])


def tensors(moe, layout):
    """The state of a block of `transformers` that holds the weights of a mixture of ours."""
    experts = moe.experts
    gate_up = np.stack([np.concatenate([f.Wg, f.Wu]) for f in experts])  # (E, 2h, d)
    down = np.stack([f.Wd for f in experts])  # (E, d, h)
    if layout == "fused":
        return {"gate.weight": moe.router, "experts.gate_up_proj": gate_up, "experts.down_proj": down}
    if layout == "parallel":
        return {"router.layer.weight": moe.router, "input_linear.weight": gate_up, "output_linear.weight": down}
    if layout == "stacked":
        names = {"w1": "Wg", "v1": "Wu"}
        state = {f"experts.mlp.{n}": np.concatenate([getattr(f, w) for f in experts]) for n, w in names.items()}
        return state | {
            "router.layer.weight": moe.router,
            "experts.mlp.w2": np.concatenate([f.Wd.T for f in experts]),
        }
    words = {"numbered": ("w1", "w3", "w2"), "named": ("gate_proj", "up_proj", "down_proj")}[layout]
    each = [zip(words, (f.Wg, f.Wu, f.Wd), strict=True) for f in experts]
    return {"gate.weight": moe.router} | {
        f"experts.{e}.{name}.weight": W for e, weights in enumerate(each) for name, W in weights
    }


@pytest.mark.parametrize("layout", ["fused", "parallel", "stacked", "numbered", "named"])
def test_every_layout_gives_the_same_mixture(layout):
    rng = np.random.default_rng(0)
    moe = swiglu_moe(rng, E=3, d=4, h=5, k=2)
    x = rng.standard_normal((6, 4))
    got = released.mixture(tensors(moe, layout), k=2)
    close(got.forward(x)[0], moe.forward(x)[0], 1e-15)
    close(got.jacobian(x), moe.jacobian(x), 1e-15)


def test_an_unknown_layout_is_refused_by_its_names():
    with pytest.raises(ValueError, match=r"expected a router among gate\.weight.*got wi, wo"):
        released.mixture({"wi": np.zeros((2, 2)), "wo": np.zeros((2, 2))}, k=1)


def test_a_verdict_follows_from_the_numbers():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, 3))
    size = np.abs(a).max()
    for factor, verdict in ((0.5, "agrees"), (2.0, "fault")):
        b = a.copy()
        b[2, 1] += factor * released.TOLERANCE * size
        found = released.finding("output", "mixtral", "0", a, b)
        assert found.verdict == verdict
        close(found.error, factor * released.TOLERANCE, 1e-6)
        assert bool(found.symptom) == (verdict == "fault")
    assert released.finding("output", "mixtral", "0", a, np.full_like(a, np.nan)).verdict == "fault"


def test_arrays_of_two_shapes_are_not_compared():
    with pytest.raises(ValueError, match=r"expected output of mixtral of shape \(2, 3\); got \(3, 2\)"):
        released.finding("output", "mixtral", "0", np.zeros((2, 3)), np.zeros((3, 2)))


def test_the_table_has_a_line_for_each_finding():
    found = [
        released.finding("balance", "mixtral", "5.0.0", 6.0, 2.9, "softmax twice"),
        released.finding("output", "a_long_family_name", "5.0.0", np.ones(3), np.ones(3)),
        comparison.not_run("jacobian", "olmoe", "5.0.0", "LookupError: no such class"),
    ]
    lines = released.table(found).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["mixtral", "balance", "6", "2.9", "5.2e-01", "4e+06", "fault"]
    assert lines[2].split()[-2:] == ["0", "agrees"]
    assert lines[3].endswith("not run: LookupError: no such class")
    assert len({line.index(word) for line, word in zip(lines[1:3], ("fault", "agrees"), strict=True)}) == 1


def test_words_for_where_first_choices_went():
    chosen = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    right, wrong = np.eye(4), np.zeros((4, 4))
    wrong[:, 1] = 1.0
    words = checks._dispatched(chosen, right, np.array([2, 2, 2, 2]))
    assert words.startswith("100.0% of first choices reach their expert")
    assert words.endswith("experts are called on 8 rows, 2 of them expert 0's, for 8 choices")
    words = checks._dispatched(chosen, wrong, np.array([12, 4, 0, 0]))
    assert words.startswith("25.0% of first choices reach their expert, 100.0% go to expert 1; 1 of 4 experts are used")
    assert words.endswith("experts are called on 16 rows, 12 of them expert 0's, for 8 choices")


@pytest.mark.parametrize("fault", ["", "twice", "gates", "attention"])
def test_a_known_fault_of_the_balance_loss_is_called_by_its_name(fault):
    rng = np.random.default_rng(3)
    scores = [2 * rng.standard_normal((30, families.EXPERTS)) for _ in range(4)]
    chosen = [top_k(s, families.CHOSEN) for s in scores]
    loss = Balance(count="per choice", pool="pooled")
    given = {
        "": (scores, chosen),
        "twice": ([softmax(s) for s in scores], chosen),
        "gates": ([route(s, families.CHOSEN).gates for s in scores], chosen),
        "attention": ([scores[i] for i in (0, 0, 1, 2, 2, 3)], [chosen[i] for i in (0, 0, 1, 2, 2, 3)]),
    }[fault]
    words = checks._explained(pooled(loss, *given)[0], loss, scores, chosen, [c[:, ::-1] for c in chosen])
    assert {"": "f counts", "twice": "softmax taken twice", "gates": "of the k gates", "attention": "counted twice"}[
        fault
    ] in words
    assert checks._explained(1e3, loss, scores, chosen, chosen) == "no convention that we know"


# ---- with transformers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    """Findings of a family, each family run once."""
    known = {}

    def run(family):
        if family not in known:
            known[family] = released.findings([family])
        return known[family]

    return run


def installed():
    pytest.importorskip("torch")
    pytest.importorskip("transformers", exc_type=ImportError)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "olmoe", "jetmoe"])
def test_outputs_gradients_and_jacobians_of_released_blocks_are_ours(family, found):
    installed()
    blocks = [f for f in found(family) if not f.id.startswith("balance")]
    assert {f.id.split(" ")[0].split(":")[0] for f in blocks} >= {"output", "gradient", "jacobian"}
    assert all(f.verdict == "agrees" for f in blocks if not f.verdict.startswith("not run")), released.table(blocks)
    assert any(f.id.startswith("jacobian") and f.verdict == "agrees" for f in blocks)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "olmoe"])
def test_the_reported_balance_loss_is_ours_on_scores_or_on_probabilities(family, found):
    """And the finding says which."""
    installed()
    told = checks._reported(family, "", None)
    chosen = [top_k(s, families.CHOSEN) for s in told.scores]
    matches = conventions(told.value, told.scores, chosen, tolerance=released.TOLERANCE).matches
    words = [m.words for m in matches if m.balance.count == "per choice" and "layers pooled" in m.words]
    assert len(words) == 1, (told.value, matches)
    (finding,) = [f for f in found(family) if f.id == "balance"]
    assert (finding.verdict == "fault") == ("FAULT" in words[0])
    if finding.verdict == "fault":
        assert "softmax taken twice" in finding.symptom
        collapsed = next(f for f in found(family) if f.id == "balance:collapsed")
        assert collapsed.got < 0.55 * collapsed.expected  # E = 6, k = 2: 2.9 for 6.0
    close(finding.got, told.value, 1e-12)


def test_the_verdict_on_nllb_is_that_of_the_routing_counted_by_hand(found):
    """Which tokens each expert is given, by a hook; two choices a token and no capacity that drops any."""
    installed()
    import torch

    (finding,) = found("nllb_moe")
    assert not finding.verdict.startswith("not run"), finding.verdict
    rng = np.random.default_rng(5)
    with models.quiet(), torch.no_grad():
        config = models.class_of("nllb_moe", "configuration", "NllbMoeConfig")(
            d_model=16, num_experts=5, expert_capacity=30, moe_token_dropout=0.0, vocab_size=32
        )
        module = models.filled(models.class_of("nllb_moe", "modeling", "NllbMoeSparseMLP")(config, 12), rng)
        seen = {}
        for e in range(5):
            module.experts[f"expert_{e}"].register_forward_pre_hook(
                lambda _, args, e=e: seen.setdefault(e, []).append(args[0].double().numpy())
            )
        x = torch.as_tensor(rng.standard_normal((30, 16)), dtype=torch.float32)
        module(x[None], padding_mask=None)
        W = module.router.classifier
        scores = W(x).double().numpy()
    right = 0
    given = [np.concatenate(seen.get(e, [np.zeros((0, 16))])) for e in range(5)]
    for e in range(5):
        wanted = x.double().numpy()[(top_k(scores, 2) == e).any(axis=1)]
        right += {tuple(row) for row in wanted} == {tuple(row) for row in given[e]}
    assert (right == 5) == (finding.verdict == "agrees")
    rows = [len(each) for each in given]
    if finding.verdict == "agrees":
        assert sum(rows) == 2 * 30
    elif "2 of 8 experts are used" in finding.symptom:  # a mask of zeros and ones, taken for a list of experts
        assert rows == [4 * 30, 30, 0, 0, 0]
        assert "320 rows, 280 of them expert 0's, for 80 choices" in finding.symptom  # E = 8, n = 40


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "dots1"])
def test_groups_agree_where_no_score_is_negative(family, found):
    """The mask of 0 for -inf can only show where score + bias < 0."""
    installed()
    plain, shifted = found(family)
    assert plain.verdict == "agrees"
    assert shifted.verdict in ("agrees", "fault")
    assert shifted.expected == plain.expected


def test_a_planted_wrong_layer_is_a_fault(monkeypatch):
    """Their block with its gates off by a thousandth, under the same name."""
    installed()
    block = models.class_of("mixtral", "modeling", "MixtralSparseMoeBlock")

    class Planted(block):
        def forward(self, hidden_states):
            y = super().forward(hidden_states)
            return (1.001 * y[0], *y[1:]) if isinstance(y, tuple) else 1.001 * y

    monkeypatch.setitem(released.FAMILIES, "mixtral", replace(released.FAMILIES["mixtral"], model=""))
    get = models.class_of
    monkeypatch.setattr(
        checks, "class_of", lambda family, kind, name: Planted if name == block.__name__ else get(family, kind, name)
    )
    found = [f for f in released.findings(["mixtral"]) if not f.verdict.startswith("not run")]
    assert {f.verdict for f in found} == {"fault"}
    close(np.array([f.error for f in found]), np.full(len(found), 1e-3), 2e-3)  # float32's eps over 1e-3
    assert main(["released", "mixtral"]) == 1


def test_what_a_version_lacks_is_not_run_with_its_reason(monkeypatch):
    installed()
    monkeypatch.setitem(released.FAMILIES, "mixtral", replace(released.FAMILIES["mixtral"], block="Nowhere"))
    found = released.findings(["mixtral"])
    assert found[0].verdict == "not run: LookupError: no Nowhere in this version"
    assert any(f.id == "balance" and f.error is not None for f in found)
    assert "not run" in released.report(["mixtral"])
