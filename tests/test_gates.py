"""Gates and experts of released families: against their own code, over odd shapes, and what is refused.

The laws of test_laws.py hold all of them against their definitions and derivatives; here are the released programs.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import BY_NAME, ROUNDING, close, gpt_oss, mixture, swiglu
from hypothesis import given, settings
from hypothesis import strategies as st

import npmoe
from npmoe import MoE, Site, SwigluExpert
from npmoe.model.gate import Gate, Groups
from npmoe.probe import function, router, statements, walls
from npmoe.probe.site import mixture_site

n, d, h, E = 40, 12, 10, 8
RELEASED = 2e-6  # of the largest entry: the released routers work in float32, whatever their input


# ---- the released code -----------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
    return pytest.importorskip("torch", reason="torch is not installed (extra hf)")


def drawn(torch, block):
    """The block in float64 and evaluation, with weights of the size of one over the root of what they sum."""
    block = block.double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        fan = parameter.shape[-1] if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan**0.5
    return block


def fused(gate_up, down, interleaved=False, transposed=False, biases=(None, None)):
    """Experts of one tensor each: gate rows then up rows, or in turn; (E, 2h, d), or transposed."""
    found = []
    for e in range(len(gate_up)):
        W = gate_up[e].T if transposed else gate_up[e]  # (2h, d)
        Wd = down[e].T if transposed else down[e]
        half = len(W) // 2
        parts = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
        bg, bu = (None, None) if biases[0] is None else (biases[0][e][part] for part in parts)
        bd = None if biases[1] is None else biases[1][e]
        found.append(SwigluExpert(W[parts[0]], W[parts[1]], Wd, bg=bg, bu=bu, bd=bd))
    return tuple(found)


def plain(weights, name):
    """A SwiGLU layer of three matrices."""
    return SwigluExpert(*(weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))


def of(block):
    return {name: tensor.detach().numpy() for name, tensor in block.state_dict().items()}


def deepseek_v3(torch, **options):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=d, moe_intermediate_size=h, n_routed_experts=E, num_local_experts=E, n_shared_experts=1,
        routed_scaling_factor=2.5, **options,
    )  # fmt: skip
    block = drawn(torch, DeepseekV3MoE(config))
    block.gate.e_score_correction_bias = torch.linspace(-0.3, 0.3, E, dtype=torch.float64)
    w = of(block)
    groups = Groups(config.n_group, config.topk_group)
    gate = Gate("sigmoid", block.gate.e_score_correction_bias.numpy(), groups, config.routed_scaling_factor)
    ours = MoE(
        w["gate.weight"],
        fused(w["experts.gate_up_proj"], w["experts.down_proj"]),
        config.num_experts_per_tok,
        config.norm_topk_prob,
        gate=gate,
        shared=(plain(w, "shared_experts"),),
    )
    return block, ours


def deepseek_v2(torch, **options):
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Config, DeepseekV2Moe

    config = DeepseekV2Config(
        hidden_size=d, moe_intermediate_size=h, n_routed_experts=E, num_experts=E, n_shared_experts=2,
        routed_scaling_factor=16.0, num_experts_per_tok=3, num_attention_heads=4, **options,
    )  # fmt: skip
    block = drawn(torch, DeepseekV2Moe(config))
    w = of(block)
    grouped = config.topk_method == "group_limited_greedy"
    groups = Groups(config.n_group, config.topk_group, "largest") if grouped else None
    ours = MoE(
        w["gate.weight"],
        fused(w["experts.gate_up_proj"], w["experts.down_proj"]),
        3,
        False,
        gate=Gate(groups=groups, scale=16.0),
        shared=(plain(w, "shared_experts"),),
    )
    return block, ours


def qwen2_moe(torch, **options):
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeConfig, Qwen2MoeSparseMoeBlock

    config = Qwen2MoeConfig(
        hidden_size=d, moe_intermediate_size=h, shared_expert_intermediate_size=h + 3, num_experts=E,
        num_experts_per_tok=3, **options,
    )  # fmt: skip
    block = drawn(torch, Qwen2MoeSparseMoeBlock(config))
    w = of(block)
    ours = MoE(
        w["gate.weight"],
        fused(w["experts.gate_up_proj"], w["experts.down_proj"]),
        3,
        config.norm_topk_prob,
        shared=(plain(w, "shared_expert"),),
        shared_gate=w["shared_expert_gate.weight"],
    )
    return block, ours


def phimoe(torch, **options):
    from transformers.models.phimoe.modeling_phimoe import PhimoeConfig, PhimoeSparseMoeBlock

    config = PhimoeConfig(
        hidden_size=d, intermediate_size=h, num_local_experts=E, num_experts_per_tok=2, **options
    )  # fmt: skip
    block = drawn(torch, PhimoeSparseMoeBlock(config))
    w = of(block)
    gate = Gate("sparsemixer", near=2 * config.router_jitter_noise)
    return block, MoE(w["router.weight"], fused(w["experts.gate_up_proj"], w["experts.down_proj"]), 2, False, gate=gate)


def gpt_oss_block(torch, **options):
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssMLP

    config = GptOssConfig(
        hidden_size=d, intermediate_size=h, num_local_experts=E, num_experts_per_tok=3, **options
    )  # fmt: skip
    block = drawn(torch, GptOssMLP(config))
    block.experts.gate_up_proj.data *= 6  # so that some units are clipped
    w = of(block)
    biases = w["experts.gate_up_proj_bias"], w["experts.down_proj_bias"]
    experts = fused(w["experts.gate_up_proj"], w["experts.down_proj"], True, True, biases)
    experts = tuple(replace(f, limit=7.0, beta=1.702, shift=1.0) for f in experts)
    return block, MoE(w["router.weight"], experts, 3, bias=w["router.bias"])


def llama4(torch, **options):
    from transformers.models.llama4.modeling_llama4 import Llama4TextConfig, Llama4TextMoe

    config = Llama4TextConfig(hidden_size=d, intermediate_size=h, num_local_experts=E, **options)
    block = drawn(torch, Llama4TextMoe(config))
    w = of(block)
    experts = fused(w["experts.gate_up_proj"], w["experts.down_proj"], transposed=True)
    gate = Gate("sigmoid", on_input=True)
    k = config.num_experts_per_tok
    return block, MoE(w["router.weight"], experts, k, False, gate=gate, shared=(plain(w, "shared_expert"),))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (deepseek_v3, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "norm_topk_prob": True}),
        (deepseek_v3, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "norm_topk_prob": False}),
        (deepseek_v3, {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "norm_topk_prob": True}),
        (deepseek_v2, {"topk_method": "greedy"}),
        (deepseek_v2, {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
        (qwen2_moe, {"norm_topk_prob": True}),
        (qwen2_moe, {"norm_topk_prob": False}),
        (phimoe, {"router_jitter_noise": 0.01}),
        (phimoe, {"router_jitter_noise": 0.4}),
        (gpt_oss_block, {}),
        (llama4, {"num_experts_per_tok": 1}),
        (llama4, {"num_experts_per_tok": 2}),
    ],
)
def test_a_released_block_and_its_gradients(make, options, torch):
    block, ours = make(torch, **options)
    x = np.random.default_rng(1).standard_normal((n, d))
    at = torch.tensor(x[None], requires_grad=True)
    theirs = block(at)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    y, trace = ours.forward(x)
    close(y, theirs.detach().numpy().reshape(n, d), RELEASED)
    w = np.random.default_rng(2).standard_normal(y.shape)
    theirs.backward(torch.tensor(w).reshape(theirs.shape))
    dx, gradient = ours.vjp(trace, w)
    close(dx, at.grad.numpy()[0], RELEASED)
    names = ("gate.weight", "router.weight")
    (found,) = (parameter.grad.numpy() for name, parameter in block.named_parameters() if name in names)
    close(gradient.router, found, RELEASED)


def test_some_units_of_gpt_oss_are_clipped_in_that_test(torch):
    _, ours = gpt_oss_block(torch)
    x = np.random.default_rng(1).standard_normal((n, d))
    f = ours.experts[0]
    assert (x @ f.Wg.T + f.bg > f.limit).any()
    assert (np.abs(x @ f.Wu.T + f.bu) > f.limit).any()


# ---- odd shapes, ties ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gates_keep_to_their_groups_and_their_sum(data):
    G, size = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 4))
    kept = data.draw(st.integers(1, G))
    k = data.draw(st.integers(1, kept * size))
    scores, by = data.draw(st.sampled_from(["softmax", "sigmoid"])), data.draw(st.sampled_from(["largest", "best two"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # few different numbers: ties everywhere
    s = rng.integers(-2, 3, (7, G * size)).astype(float)
    selection = rng.integers(0, 2, G * size) / 2 if data.draw(st.booleans()) else None
    gate = Gate(scores, selection, Groups(G, kept, by), scale=2.0)
    gate.fits(G * size, k)
    routing = gate.route(s, k, renormalize=True)
    close(routing.gates.sum(axis=1), np.full(7, 2.0), ROUNDING)
    assert (routing.on.sum(axis=1) == k).all()
    for row in routing.chosen:
        assert len(set(row)) == k
        assert len({int(e) // size for e in row}) <= kept
    again = gate.route(s, k, renormalize=True)
    np.testing.assert_array_equal(again.chosen, routing.chosen)


def test_ties_go_to_the_lower_group_and_the_lower_expert():
    gate = Gate("sigmoid", groups=Groups(3, 1))
    routing = gate.route(np.zeros((1, 6)), 2, renormalize=True)
    np.testing.assert_array_equal(routing.chosen, [[0, 1]])


def test_one_group_and_no_selection_is_the_plain_choice(rng):
    s = rng.standard_normal((50, 6))
    for scores in ("softmax", "sigmoid"):
        np.testing.assert_array_equal(Gate(scores, groups=Groups(1, 1)).choice(s, 3), Gate(scores).choice(s, 3))


def test_saturated_scores_are_told_apart_by_themselves():
    """A sigmoid of 40 and of 50 is 1 to the last bit: the choice is by scores where nothing else enters it."""
    np.testing.assert_array_equal(Gate("sigmoid").choice(np.array([[40.0, 50.0, 45.0]]), 2), [[1, 2]])


def test_a_selection_bias_moves_the_choice_and_no_gate(rng):
    moe = mixture(rng, 5, 4, 3, 2, gate=Gate("sigmoid"), renormalize=False)
    x = rng.standard_normal((30, 4))
    pushed = replace(moe, gate=Gate("sigmoid", selection=np.array([0, 0, 0, 0, 9.0])))
    gates, chosen = pushed.route(x)
    assert (chosen[:, 0] == 4).all()
    close(gates[:, 4], 1 / (1 + np.exp(-moe.scores(x)[:, 4])), ROUNDING)


# ---- experts ---------------------------------------------------------------------------------------------------------


def test_a_clipped_expert_no_longer_answers():
    f = SwigluExpert(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), limit=2.0, shift=1.0)
    x = np.array([[1.0], [5.0]])
    assert f.jacobian(x)[0, 0, 0] > 0
    assert f.jacobian(x)[1, 0, 0] == 0
    close(f.forward(x)[0][1], f.forward(np.array([[2.0]]))[0][0], ROUNDING)


def test_slopes_at_the_limit_are_those_inside():
    f = SwigluExpert(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), limit=2.0)
    close(f.jacobian(np.array([[2.0]])), f.jacobian(np.array([[2.0 - 1e-12]])), 1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 0.0}, "limit"),
        ({"beta": -1.0}, "beta"),
        ({"bg": np.ones(4)}, r"bg of shape \(3,\)"),
        ({"bd": np.ones((2, 1))}, "bd of shape"),
    ],
)
def test_parameters_of_an_expert_that_do_not_fit(change, said, rng):
    with pytest.raises((ValueError, TypeError), match=said):
        replace(swiglu(rng, 4, 3, 2), **change)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gate("softmaxx"), "expected scores among softmax, sigmoid, sparsemixer; got 'softmaxx'"),
        (lambda: Gate(scale=0.0), "scale"),
        (lambda: Gate(groups=Groups(4, 5)), "groups kept within 1..4"),
        (lambda: Gate(groups=Groups(4, 2, "mean")), "expected groups by largest or best two; got 'mean'"),
        (lambda: Gate("sparsemixer", np.zeros(3)), "expected a sparsemixer without selection and groups"),
        (lambda: Gate(selection=np.zeros((2, 2))), "selection"),
    ],
)
def test_gates_that_are_none(make, said):
    with pytest.raises((ValueError, TypeError), match=said):
        make()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gate": Gate(groups=Groups(4, 1))}, "expected groups of one size; got 6 experts in 4 groups"),
        ({"gate": Gate(groups=Groups(6, 2))}, "expected groups of two experts or more, to take the best two of; got 1"),
        ({"gate": Gate(groups=Groups(3, 1)), "k": 3}, "expected k up to 2, the experts of 1 group; got 3"),
        ({"gate": Gate("sparsemixer"), "k": 3}, "expected one or two experts a token of a sparsemixer; got k = 3"),
        ({"gate": Gate(selection=np.zeros(5))}, "expected selection of 6 experts; got 5"),
        ({"gate": "sigmoid"}, "expected gate as a Gate; got str"),
        ({"shared": []}, "expected shared as a tuple of experts; got list"),
        ({"shared_gate": np.zeros((1, 4))}, "shared_gate"),
    ],
)
def test_mixtures_that_do_not_fit_their_gate(options, said, rng):
    moe = mixture(rng, 6, 4, 3, 2)
    with pytest.raises((ValueError, TypeError), match=said):
        replace(moe, **options)


# ---- saved, shown, probed --------------------------------------------------------------------------------------------


def test_saved_and_loaded_with_gate_and_shared_experts(rng, tmp_path):
    gate = Gate("sigmoid", rng.standard_normal(6), Groups(3, 2), scale=2.5)
    moe = mixture(rng, 6, 4, 3, 2, kind=gpt_oss, gate=gate, shared=1, shared_gate=True)
    again = npmoe.load(npmoe.save(moe, tmp_path / "moe.npz"))
    x = rng.standard_normal((5, 4))
    np.testing.assert_array_equal(again.forward(x)[0], moe.forward(x)[0])
    assert again.gate.groups == gate.groups
    assert repr(gate) == "Gate(sigmoid, a selection bias, the best 2 of 3 groups by their best two, times 2.5)"
    assert "Gate(sigmoid" in repr(moe)
    assert "1 shared" in repr(mixture(rng, 3, 4, 3, 2, shared=1))


def test_a_site_has_shared_experts_as_the_last_which_all_visit(rng):
    moe = mixture(rng, 4, 5, 3, 2, shared=1, shared_gate=True)
    x = rng.standard_normal((9, 5))
    site = npmoe.site(moe, x)
    assert (site.E, site.always, site.chosen.shape) == (5, 1, (9, 2))
    close(site.gates[:, 4], 1 / (1 + np.exp(-(x @ moe.shared_gate[0]))), ROUNDING)
    J = sum(first + second for _, first, second in [next(function.layer_jacobians(site))])
    close(J, moe.jacobian(x), 1e-12)


def test_gates_on_the_input_have_no_site(rng):
    moe = mixture(rng, 4, 5, 3, 1, gate=Gate("sigmoid", on_input=True), renormalize=False)
    with pytest.raises(ValueError, match="expected a mixture with gates on the experts' outputs"):
        mixture_site(moe, rng.standard_normal((3, 5)))


def test_a_sigmoids_router_sees_a_shift_of_all_scores(rng):
    """What a softmax cannot see, the mean of all scores, changes a sigmoid's gates: its null space is one smaller."""
    moe = mixture(rng, 3, 6, 4, 3)
    x = rng.standard_normal((20, 6))
    soft, alone = npmoe.site(moe, x), npmoe.site(replace(moe, gate=Gate("sigmoid"), renormalize=False), x)
    assert router.null_basis(soft).shape[1] == 4
    assert router.null_basis(alone).shape[1] == 3
    y = router.null_pair(alone, np.arange(5), 0.1, rng)
    close(alone.router.gates(y), alone.gates[:5], 1e-9)


@pytest.mark.parametrize(
    ("options", "probe"),
    [
        ({"gate": Gate("sigmoid")}, "bounds"),
        ({"gate": Gate(scale=2.0)}, "bounds"),
        ({"gate": Gate("sigmoid", np.ones(6))}, "radius"),
        ({"gate": Gate(groups=Groups(3, 1))}, "radius"),
        ({"gate": Gate("sparsemixer")}, "radius"),
    ],
)
def test_a_probe_that_would_be_untrue_says_what_it_needs(options, probe, rng):
    site: Site = npmoe.site(mixture(rng, 6, 5, 3, 2, **options), rng.standard_normal((8, 5)))
    with pytest.raises(ValueError, match=f"{probe} needs .*; the Site '' has Gate"):
        statements.bounds(site, site.x[::-1]) if probe == "bounds" else walls.radius(site)


def test_a_scale_and_a_sigmoid_leave_the_walls_where_they_are(rng):
    moe, x = mixture(rng, 6, 5, 3, 2), rng.standard_normal((8, 5))
    want = walls.radius(npmoe.site(moe, x)).radius
    for gate in (Gate(scale=3.0), Gate("sigmoid")):
        close(walls.radius(npmoe.site(replace(moe, gate=gate), x)).radius, want, ROUNDING)


@pytest.mark.parametrize("name", ["deepseek", "shared", "gpt_oss"])
def test_verify_and_foreign_layouts_say_what_they_do_not_know_yet(name):
    """A judge whose reference did not know a gate would call right layers wrong."""
    layer, x = BY_NAME[name].build()
    with pytest.raises(TypeError, match="whose rounding is known"):
        npmoe.verify.compare(layer, lambda x: x, x)
    with pytest.raises(TypeError, match="that these layouts can hold"):
        npmoe.convert.to_torch(layer, "mixtral")
