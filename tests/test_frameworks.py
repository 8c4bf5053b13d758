"""Our closed forms against torch, JAX and autograd, each with models of its own; skipped where one is missing."""

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
from cases import BY_NAME, close

from npmoe import GeluExpert, MoE, verify
from npmoe.battery import frameworks
from npmoe.calculus import tree
from npmoe.model.balance import Balance
from npmoe.model.routing import top_k
from npmoe.verify import compare, from_jax, from_torch
from npmoe.verify.ask import common
from npmoe.verify.ask import jax as of_jax
from npmoe.verify.ask import torch as of_torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),  # torch.func itself loads such scripts
    pytest.mark.underflow,  # slopes of what is saturated, in other people's code
]

#: Two chains of the same products in another order; measured 1.4e-14 and 2.2e-5 at worst over the whole table, the
#: latter where the tanh-GELU's slope is a difference of large numbers.
TOLERANCE = {"float64": 1e-12, "float32": 5e-5}

#: JAX compiles each layer for seconds, and is asked fewer; all kinds of layers and switches are there.
CASES = ("gelu", "gelu_tanh", "swiglu", "stack", "two_blocks", "top2", "top3_biased", "switch", "mixed_kinds")
CASES += ("underflowing_chosen_gate", "top2_not_renormalized", "linear_gelu", "norm_near_zero", "swiglu_mixture")
ASKED = {"torch": (CASES, CASES), "autograd": (CASES, CASES)}
ASKED["jax"] = ("block", "mixed_kinds"), ("top3_biased",)
ROWS = [
    (name, arithmetic, case)
    for name, cases in ASKED.items()
    for arithmetic, some in zip(TOLERANCE, cases, strict=True)
    for case in some
]

BALANCES = [
    Balance(),
    Balance(count="per choice", scale="1", weight=0.01),
    Balance(first_choice=True, scale="E/k", count="per choice"),
    Balance(fraction="soft", count="per choice"),
    Balance(fraction="held"),
    Balance("gshard"),
    Balance("gshard", first_choice=False, count="per choice"),
    *(Balance("importance", gates=gates) for gates in ("soft", "renormalized", "kept")),
    Balance("importance", variance="sample"),
    Balance("z", weight=0.3),
]


def installed(name):
    """The module of a framework's models, or a skip that names what is missing."""
    pytest.importorskip(name)
    return frameworks.load(name)


@pytest.fixture(params=frameworks.FRAMEWORKS)
def framework(request):
    return installed(request.param)


@cache
def problem(case, arithmetic):
    """A layer, x, dy and weights that are numbers of the arithmetic."""
    layer, x = BY_NAME[case].build()
    layer, x = tree.map_leaves(lambda leaf: leaf.astype(arithmetic), layer), x.astype(arithmetic)
    rng = np.random.default_rng(5)
    dy = rng.standard_normal((len(x), layer.widths[-1])).astype(arithmetic)
    return layer, x, dy, (rng.random(len(x)) + 0.1).astype(arithmetic)


@cache
def ours(case, arithmetic):
    layer, x, dy, weights = problem(case, arithmetic)
    y, trace = layer.forward(x)
    dx, gradient = layer.vjp(trace, dy)
    J = layer.jacobian(x)
    found = {"output": y, "gradient": dx, "jacobian:reverse": J, "jacobian:forward": J}
    found |= dict(tree.named_leaves(gradient))
    mean = np.einsum("n,nod->od", weights / weights.sum(), J)
    found["mean_jacobian"] = layer.mean_jacobian(x, weights) if hasattr(layer, "mean_jacobian") else mean
    found["jacobian:batch"] = np.einsum("nod,nm->nomd", J, np.eye(len(x), dtype=J.dtype))
    if isinstance(layer, MoE):
        found |= {"scores": layer.scores(x), "gates": layer.route(x)[0]}
        found |= {name: getattr(layer, name)(x) for name in ("expert_jacobian", "router_jacobian")}
    return found


def differences(theirs, ours):
    """For each answer its largest difference, relative to the scale: of a mixture's terms, that of the whole."""
    assert set(theirs) == set(ours)
    whole = np.abs(ours["jacobian:reverse"]).max()
    found = {}
    for name, want in ours.items():
        assert theirs[name].shape == want.shape, name
        assert theirs[name].dtype == want.dtype, name
        scale = whole if name.endswith("_jacobian") else np.abs(want).max(initial=0)
        found[name] = np.abs(theirs[name] - want).max(initial=0) / (scale or 1)
    return found


@pytest.mark.parametrize(("name", "arithmetic", "case"), ROWS)
def test_every_answer_is_ours(name, arithmetic, case):
    layer, x, dy, weights = problem(case, arithmetic)
    theirs = installed(name).answers(layer, x, dy, arithmetic, weights)
    off = differences(theirs, ours(case, arithmetic))
    assert max(off.values()) < TOLERANCE[arithmetic], off


def test_without_weights_all_tokens_count_the_same(framework):
    layer, x, dy, _ = problem("gelu", "float64")
    close(framework.answers(layer, x, dy)["mean_jacobian"], layer.mean_jacobian(x), 1e-12)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_bfloat16_comes_as_float32_and_is_that_coarse(name):
    layer, x, dy, weights = problem("gelu", "float64")
    theirs = installed(name).answers(layer, x, dy, "bfloat16", weights)
    assert {array.dtype for array in theirs.values()} == {np.dtype(np.float32)}
    off = {n: np.abs(theirs[n] - want).max() / np.abs(want).max() for n, want in ours("gelu", "float64").items()}
    assert min(off.values()) > 1e-4  # eps is 8e-3: what is closer was computed in something else
    assert max(off.values()) < 0.2, off
    for array in theirs.values():  # and each is a number of bfloat16, whose last 16 bits are empty
        assert not (array.view(np.uint32) & 0xFFFF).any()


# ---- test of the tests: a fault planted in the framework's model ---------------------------------------------------


def test_a_wrong_activation_is_seen(framework, monkeypatch):
    layer, x, dy, weights = problem("gelu", "float64")
    right = framework._activation
    monkeypatch.setattr(framework, "_activation", lambda of, name: right(of, "gelu_tanh"))
    off = differences(framework.answers(layer, x, dy, "float64", weights), ours("gelu", "float64"))
    assert all(off[name] > 1e-6 for name in off if name != "b2"), off
    assert off["b2"] < 1e-12, "the output's bias does not feel it"


@pytest.mark.parametrize("name", ["torch", "autograd"])
def test_a_lost_temperature_is_seen(name):
    layer, x, dy, _ = problem("top3_biased", "float64")
    lost = installed(name).answers(replace(layer, temperature=1.0), x, dy)
    assert np.abs(lost["router_jacobian"] - layer.router_jacobian(x)).max() > 0.1
    close(lost["scores"] / layer.temperature, layer.scores(x), 1e-12)


# ---- ties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jax", "autograd"])
def test_ties_go_to_the_lower_expert(name):
    """In JAX as in NumPy's stable sort; torch.topk promises nothing, and takes some of the higher."""
    layer, x, dy, _ = problem("ties_not_renormalized", "float64")
    close(installed(name).answers(layer, x, dy)["gates"], layer.route(x)[0], 1e-12)


# ---- balance losses ------------------------------------------------------------------------------------------------


def batch(arithmetic="float64"):
    rng = np.random.default_rng(3)
    scores = (rng.standard_normal((20, 5)) + np.linspace(1, -1, 5)).astype(arithmetic)
    return scores, top_k(scores, 2), rng.random(20) < 0.7


@pytest.mark.parametrize("arithmetic", TOLERANCE)
def test_balance_losses_are_ours(framework, arithmetic):
    scores, chosen, mask = batch(arithmetic)
    balances = BALANCES if framework.NAME != "jax" or arithmetic == "float64" else BALANCES[::5]
    for balance in [*balances, Balance(mask=mask)]:
        value, dscores = balance(scores, chosen)
        theirs = framework.balance_answers(balance, scores, chosen, arithmetic)
        assert {array.dtype for array in theirs.values()} == {np.dtype(arithmetic)}
        close(theirs["value"], value, TOLERANCE[arithmetic])
        close(theirs["scores"], dscores, TOLERANCE[arithmetic])


# ---- what is there, what is asked, what is left as it was ----------------------------------------------------------


def test_available_names_what_is_missing(monkeypatch):
    found = frameworks.available()
    assert list(found) == ["torch", "jax", "autograd"]
    assert all(found.values())

    def missing():
        raise ModuleNotFoundError("No module named 'jax'")

    def broken():
        raise RuntimeError("built for another NumPy")

    monkeypatch.setattr(frameworks.load("jax"), "version", missing)
    monkeypatch.setattr(frameworks.load("torch"), "version", broken)
    found = frameworks.available()
    assert found["jax"] == "missing: No module named 'jax'"
    assert found["torch"] == "broken: RuntimeError: built for another NumPy"


class Other(GeluExpert):
    """A kind of its own, which no framework has a model of."""


def test_what_is_unknown_is_refused(framework):
    layer, x, dy, _ = problem("gelu", "float64")
    with pytest.raises(ValueError, match="framework among torch, jax, autograd; got 'tinygrad'"):
        frameworks.load("tinygrad")
    with pytest.raises(ValueError, match=f"arithmetic of {framework.NAME} among float64.*; got 'int8'"):
        framework.answers(layer, x, dy, "int8")
    with pytest.raises(ValueError, match=r"dy of shape \(6, 5\)"):
        framework.answers(layer, x, dy[:2])
    with pytest.raises(ValueError, match="at least one token"):
        framework.answers(layer, x[:0], dy[:0])
    with pytest.raises(ValueError, match=r"layer among GeluExpert, .*; got Other"):
        framework.answers(Other(layer.W1, layer.b1, layer.W2, layer.b2), x, dy)


def test_torch_is_left_as_it_was():
    torch = pytest.importorskip("torch")
    layer, x, dy, _ = problem("top2", "float64")
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    x.setflags(write=False)  # of which torch would warn
    frameworks.load("torch").answers(layer, x[::-1], dy)
    after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("wide", [False, True])
def test_jax_is_left_as_it_was(wide):
    jax = pytest.importorskip("jax")
    scores, chosen, _ = batch()
    with jax.enable_x64(wide):
        for arithmetic in TOLERANCE:
            found = frameworks.load("jax").balance_answers(Balance("z"), scores, chosen, arithmetic)
            assert found["value"].dtype == arithmetic
            assert bool(jax.config.jax_enable_x64) is wide
        assert jax.config.jax_default_matmul_precision is None


# ---- candidates ----------------------------------------------------------------------------------------------------


def torch_mixtures(torch, moe):
    """Modules of other people's make for one mixture, and how each one's gradients are read."""
    F, E = torch.nn.functional, len(moe.experts)
    of = {name: torch.tensor(np.stack([getattr(f, name) for f in moe.experts])) for name in ("W1", "b1", "W2", "b2")}

    def gates(x, router):
        best, chosen = (x @ router.T).topk(moe.k)
        return best.softmax(dim=-1), chosen

    class Rows(torch.nn.Module):
        """A ModuleList, index_add_, and Python that follows the choice."""

        def __init__(self):
            super().__init__()
            h, d = moe.experts[0].W1.shape
            self.router = torch.nn.Parameter(torch.tensor(moe.router))
            make = [
                torch.nn.Sequential(torch.nn.Linear(d, h), torch.nn.GELU(), torch.nn.Linear(h, d)) for _ in range(E)
            ]
            self.experts = torch.nn.ModuleList(make).double()
            for e, expert in enumerate(self.experts):
                new = {"0.weight": of["W1"], "0.bias": of["b1"], "2.weight": of["W2"], "2.bias": of["b2"]}
                expert.load_state_dict({name: stack[e] for name, stack in new.items()})

        def forward(self, x):
            g, chosen = gates(x, self.router)
            y = torch.zeros_like(x)
            for e in chosen.unique().tolist():
                rows, place = torch.where(chosen == e)
                y.index_add_(0, rows, g[rows, place, None] * self.experts[e](x[rows]))
            return y, "and something else"

    class Fused(torch.nn.Module):
        """All experts in one three-dimensional parameter, on (batch, seq, d)."""

        def __init__(self):
            super().__init__()
            self.router = torch.nn.Parameter(torch.tensor(moe.router))
            self.up, self.down = (torch.nn.Parameter(of[n].transpose(1, 2).clone()) for n in ("W1", "W2"))  # (E, d, h)
            self.up_bias, self.down_bias = torch.nn.Parameter(of["b1"]), torch.nn.Parameter(of["b2"])

        def forward(self, x):
            b, s, d = x.shape
            g, chosen = gates(x.reshape(-1, d), self.router)
            dense = torch.zeros(b * s, E, dtype=x.dtype).scatter(1, chosen, g)  # (n, E)
            hidden = F.gelu(torch.einsum("bsd,edh->bseh", x, self.up) + self.up_bias)
            y = torch.einsum("bseh,eho->bseo", hidden, self.down) + self.down_bias
            return (dense.reshape(b, s, E, 1) * y).sum(dim=2)

    def read_rows(theirs):
        names = {"0.weight": "W1", "0.bias": "b1", "2.weight": "W2", "2.bias": "b2"}
        found = {f"experts.{e}.{ours}": theirs[f"experts.{e}.{name}"] for e in range(E) for name, ours in names.items()}
        return {"router": theirs["router"], **found}

    def read_fused(theirs):
        stacks = zip(theirs["up"].mT, theirs["up_bias"], theirs["down"].mT, theirs["down_bias"], strict=True)
        return MoE(theirs["router"], tuple(GeluExpert(*arrays) for arrays in stacks), moe.k)

    return {"rows": (Rows(), read_rows, False), "fused": (Fused(), read_fused, True)}


def same_as(wanted, found):
    want = {**wanted}
    for name in ("jacobian:forward", "mean_jacobian", "gates", "scores", "expert_jacobian", "router_jacobian"):
        want.pop(name, None)
    assert found.remarks == found.notes == ()
    assert {answer.arithmetic for answer in found.values()} == {"float64"}
    off = differences(arrays(found), want)
    assert max(off.values()) < 1e-12, off


def arrays(found):
    return {name: answer.array for name, answer in found.items()}


def of_reader(read):
    """What `converted` must have at least."""
    return SimpleNamespace(read=read)


@pytest.mark.parametrize("kind", ["rows", "fused"])
def test_a_candidate_in_torch(kind):
    torch = pytest.importorskip("torch")
    moe, x, dy, _ = problem("top2", "float64")
    module, read, batched = torch_mixtures(torch, moe)[kind]
    ask = of_torch.candidate(module, of_reader(read), batched=batched)
    same_as(ours("top2", "float64"), ask(x, dy))
    assert all(parameter.grad is None for parameter in module.parameters())
    module.router.requires_grad_(False)  # frozen: its gradient is asked for all the same, and it stays frozen
    same_as(ours("top2", "float64"), ask(x, dy))
    assert not module.router.requires_grad
    single = of_torch.candidate(module, arithmetic="float32", batched=batched)(x, dy)
    assert {(a.array.dtype, a.arithmetic) for a in single.values()} == {(np.dtype(np.float32), "float32")}
    assert set(single) == {"output", "gradient", "jacobian:reverse", "jacobian:batch"}, "without a mapping no leaves"
    close(single["jacobian:reverse"].array, moe.jacobian(x), TOLERANCE["float32"])
    assert module.router.dtype == torch.float64


@pytest.mark.parametrize("kind", ["rows", "fused"])
def test_gradients_are_asked_whatever_surrounds_the_call(kind):
    torch = pytest.importorskip("torch")
    moe, x, dy, _ = problem("top2", "float64")
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            module, read, batched = torch_mixtures(torch, moe)[kind]
            found = of_torch.candidate(module, of_reader(read), batched=batched)(x, dy)
        same_as(ours("top2", "float64"), found)


def test_answers_that_are_asked():
    torch = pytest.importorskip("torch")
    moe, x, dy, _ = problem("top2", "float64")
    module, read, _ = torch_mixtures(torch, moe)["rows"]
    leaves = set(dict(tree.named_leaves(moe)))
    want = {"output": {"output"}, "gradient": {"gradient"}, "parameters": leaves}
    want["jacobian"] = {"jacobian:reverse", "jacobian:batch"}
    for name, names in want.items():
        assert set(of_torch.candidate(module, of_reader(read), answers=(name,))(x, dy)) == names
    for bad in (("jacobien",), ()):
        with pytest.raises(ValueError, match="answers among output, gradient, jacobian, parameters; got"):
            of_torch.candidate(module, answers=bad)


@pytest.mark.parametrize("kind", ["rows", "fused"])
def test_one_pass_an_output_gives_the_jacobians_of_a_larger_batch(kind, monkeypatch):
    torch = pytest.importorskip("torch")
    moe, x, dy, _ = problem("top2", "float64")
    module, _, batched = torch_mixtures(torch, moe)[kind]
    monkeypatch.setattr(common, "SMALL", 0)
    found = of_torch.candidate(module, batched=batched, answers=("jacobian",))(x, dy)
    assert set(found) == {"jacobian:reverse"}
    assert found.remarks == ()
    close(found["jacobian:reverse"].array, moe.jacobian(x), 1e-12)
    monkeypatch.setattr(common, "LARGEST", 10)
    with pytest.raises(ValueError, match=r'Jacobians of at most .*: ask fewer tokens, or answers=\("output"'):
        of_torch.candidate(module, batched=batched)(x)


def odd(torch, forward):
    """A module of the name Odd."""
    return type("Odd", (torch.nn.Module,), {"forward": lambda self, x: forward(x)})()


def test_tokens_that_feel_each_other_are_seen_in_the_batch(monkeypatch):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((3, 2))
    ask = of_torch.candidate(odd(torch, lambda x: x - x.mean(dim=0)))
    found = ask(x)
    close(found["jacobian:reverse"].array, np.broadcast_to(2 / 3 * np.eye(2), (3, 2, 2)), 1e-12)
    close(found["jacobian:batch"].array[0, :, 1], -np.eye(2) / 3, 1e-12)
    (remark,) = found.remarks
    assert "rows 0, 1, 2 of the output depend on other tokens of the batch (row" in remark
    monkeypatch.setattr(common, "SMALL", 0)  # too large a batch: each token alone, as is said
    found = ask(x)
    assert "jacobian:batch" not in found
    assert found.remarks == (remark,)
    close(found["jacobian:reverse"].array, np.zeros((3, 2, 2)), 1e-12)
    # a difference far within rounding, of which the gradient knows
    (remark,) = of_torch.candidate(odd(torch, lambda x: x + 1e-15 * x.flip(0)))(x).remarks
    assert "tokens depend on each other; the Jacobian is each token's without the others" in remark


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_capacity_and_a_softmax_over_tokens_are_seen(name):
    framework = pytest.importorskip(name)
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    if name == "torch":
        softmax = odd(framework, lambda x: x * framework.softmax(x, dim=0))
        capacity = odd(framework, lambda x: x * ((x[:, :1] > 0).cumsum(0) <= 12))
        asks = [of_torch.candidate(module) for module in (softmax, capacity)]
    else:
        softmax, capacity = (
            lambda p, x: x * framework.nn.softmax(x, axis=0),
            lambda p, x: x * (framework.numpy.cumsum(x[:, :1] > 0, 0) <= 12),
        )
        asks = [of_jax.candidate(function, {}) for function in (softmax, capacity)]
    for ask in asks:
        (remark,) = ask(x, x).remarks
        assert "on other tokens of the batch" in remark


def test_a_row_on_a_tie_is_no_token_that_feels_others():
    """A choice that turns with the number of rows, as another order of sums may turn it, and with x's last bits."""

    def says(first, at):
        x = np.array([[first], [2.0], [0.5], [0.25]])
        step = lambda x: np.where(x >= (1 if len(x) == 4 else at), 1.0, 0.0)  # noqa: E731
        return common.together(step, x, step(x), "float64")[0]

    assert says(1.0, 1 + 1e-15) == ()
    (remark,) = says(1.25, 1.5)
    assert "row 0 of the output depends on other tokens" in remark


def test_a_changed_input_is_seen():
    torch = pytest.importorskip("torch")
    x = np.ones((3, 2))
    for write in (lambda x: x.data.mul_(1.5), lambda x: x.mul_(1.5)):
        (remark,) = of_torch.candidate(odd(torch, lambda x, write=write: write(x) + 0 * x))(x, x).remarks
        assert remark == "Odd changes its input x in place, in rows 0, 1, 2"


def test_torch_candidates_that_are_refused():
    torch = pytest.importorskip("torch")
    candidate, x = of_torch.candidate, np.ones((3, 2))
    module = partial(odd, torch)
    with pytest.raises(TypeError, match=r"expected an nn\.Module; got function"):
        candidate(lambda x: x)
    with pytest.raises(
        TypeError, match=r"what from_torch or from_jax returned \(it has \.layer and \.coverage\); got MoE"
    ):
        candidate(torch.nn.Identity(), problem("top2", "float64")[0])
    with pytest.raises(ValueError, match=r"the same output twice; .*training mode"), torch.random.fork_rng():
        candidate(torch.nn.Dropout(0.5))(np.ones((30, 4)))
    with pytest.raises(ValueError, match="Odd with a gradient; it is detached"):
        candidate(module(lambda x: x.detach()))(x)
    assert set(candidate(module(lambda x: x.detach()), answers=("output",))(x)) == {"output"}
    with pytest.raises(ValueError, match=r"output of shape \(3, o\) of Odd; got \(3,\)"):
        candidate(module(lambda x: x.sum(dim=1)))(x)
    with pytest.raises(ValueError, match=r"output of shape \(3, o\) of Odd; got \(3,\), the first of 2"):
        candidate(module(lambda x: (x.sum(dim=1), x)))(x)
    with pytest.raises(TypeError, match=r"output \(n, o\) of Odd, .*; got dict of y, aux"):
        candidate(module(lambda x: {"y": x, "aux": x}))(x)
    with pytest.raises(ValueError, match=r"dy of shape \(3, 2\)"):
        candidate(torch.nn.Identity())(x, np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"dy of shape \(3, 1\).* this output, the first of 2"):
        candidate(module(lambda x: (x[:, :1], x)))(x, x)

    def sequences(x):
        b, s, d = x.shape
        return x.reshape(b, s, d)

    with pytest.raises(ValueError, match=r"it takes \(batch, seq, d\): say batched=True"):
        candidate(module(sequences))(x)


def gelu_in_torch(torch, dtype):
    layer = problem("gelu", "float64")[0]
    d, h, o = layer.widths
    module = torch.nn.Sequential(torch.nn.Linear(d, h), torch.nn.GELU(), torch.nn.Linear(h, o)).to(dtype)
    for linear, names in ((module[0], ("W1", "b1")), (module[2], ("W2", "b2"))):
        linear.load_state_dict(
            dict(zip(("weight", "bias"), (torch.tensor(getattr(layer, n)) for n in names), strict=True))
        )
    return module


GELU = {"W1": "0.weight", "b1": "0.bias", "W2": "2.weight", "b2": "2.bias"}


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16", "float32", "float64"])
def test_a_right_module_agrees_in_its_arithmetic(arithmetic):
    torch = pytest.importorskip("torch")
    module = gelu_in_torch(torch, getattr(torch, arithmetic))
    mine, (_, x, dy, _) = from_torch(module, GELU), problem("gelu", "float64")
    report = compare(mine.layer, verify.ask_torch(module, mine), x, dy=dy)
    assert report.ok, report
    assert report.arithmetic == arithmetic
    compiled = torch.compile(module, backend="eager")
    assert any(name.startswith("_orig_mod.") for name, _ in compiled.named_parameters())
    assert set(verify.ask_torch(compiled, mine)(x, dy)) >= {"W1", "b1", "W2", "b2"}


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_one_float32_matrix_among_bfloat16(name):
    """A router that is kept in float32, as many are: nothing is cast, and no answer is better than bfloat16."""
    framework = pytest.importorskip(name)
    rng = np.random.default_rng(0)
    router, up, down = (rng.standard_normal(s) / 2 for s in ((4, 3), (4, 5, 3), (4, 3, 5)))
    x, dy = rng.standard_normal((2, 6, 3))
    layout = {"router": "router", "experts.{e}.W1": "up[e]", "experts.{e}.W2": "down[e]"}
    if name == "torch":
        torch, F = framework, framework.nn.functional
        as_given = {n: torch.tensor(a) for n, a in (("router", router), ("up", up), ("down", down))}

        class Mixed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.router = torch.nn.Parameter(as_given["router"].float())
                self.up, self.down = (torch.nn.Parameter(as_given[n].bfloat16()) for n in ("up", "down"))

            def forward(self, x):
                gates = (x.float() @ self.router.T).softmax(dim=-1).to(x.dtype)
                hidden = F.gelu(torch.einsum("nd,ehd->neh", x, self.up))
                return torch.einsum("ne,neh,eoh->no", gates, hidden, self.down)

        module = Mixed()
        mine = from_torch(module, layout, k=4)
        ask = verify.ask_torch(module, mine)
    else:
        jnp = framework.numpy
        params = {"router": jnp.asarray(router, "float32"), "up": jnp.asarray(up, "bfloat16")}
        params["down"] = jnp.asarray(down, "bfloat16")

        def function(p, x):
            gates = framework.nn.softmax(x.astype("float32") @ p["router"].T)  # not cast back: y is promoted
            hidden = framework.nn.gelu(jnp.einsum("nd,ehd->neh", x, p["up"]), approximate=False)
            return jnp.einsum("ne,neh,eoh->no", gates, hidden, p["down"])

        mine = from_jax(params, layout, k=4)
        ask = verify.ask_jax(function, params, mine)
        assert str(framework.eval_shape(function, params, jnp.asarray(x, "bfloat16")).dtype) == "float32"
    found = ask(x, dy)
    assert {answer.arithmetic for answer in found.values()} == {"bfloat16"}
    report = compare(mine.layer, ask, x, dy=dy)
    assert report.ok, report


def test_what_a_mapping_does_not_use_is_noted():
    torch = pytest.importorskip("torch")
    module = gelu_in_torch(torch, torch.float64)
    module.register_buffer("seen", torch.zeros(3))
    mine, (_, x, dy, _) = from_torch(module, GELU), problem("gelu", "float64")
    found = verify.ask_torch(module, mine)(x, dy)
    assert found.notes == ("not used: seen (3,)",)
    assert found.remarks == ()


def jax_mixture(jax, moe):
    """A function of other people's make for one mixture, and its pytree."""
    fields = ("W1", "b1", "W2", "b2")
    params = {"router": moe.router, "experts": [{n: getattr(f, n) for n in fields} for f in moe.experts]}

    def function(params, x):
        best, chosen = jax.lax.top_k(x @ params["router"].T, moe.k)
        rows = jax.numpy.arange(len(x))[:, None]
        gates = jax.numpy.zeros((len(x), len(moe.experts)), x.dtype).at[rows, chosen].set(jax.nn.softmax(best))
        outputs = [
            jax.nn.gelu(x @ f["W1"].T + f["b1"], approximate=False) @ f["W2"].T + f["b2"] for f in params["experts"]
        ]
        return jax.numpy.einsum("ne,eno->no", gates, jax.numpy.stack(outputs)), "and something else"

    return function, params


def test_a_candidate_in_jax(monkeypatch):
    jax = pytest.importorskip("jax")
    moe, x, dy, _ = problem("top2", "float64")
    function, params = jax_mixture(jax, moe)
    before = bool(jax.config.jax_enable_x64)  # other tests may have set it
    same_as(ours("top2", "float64"), of_jax.candidate(function, params, of_reader(lambda found: found))(x, dy))
    assert bool(jax.config.jax_enable_x64) is before
    assert set(of_jax.candidate(function, params, answers=("gradient",))(x, dy)) == {"gradient"}
    monkeypatch.setattr(common, "SMALL", 0)
    found = of_jax.candidate(function, params, answers=("jacobian",))(x)
    assert set(found) == {"jacobian:reverse"}
    close(found["jacobian:reverse"].array, moe.jacobian(x), 1e-12)


def test_jax_candidates_that_are_refused():
    pytest.importorskip("jax")
    x, rng = np.ones((3, 2)), np.random.default_rng(0)
    with pytest.raises(TypeError, match=r"output \(n, o\) of the candidate, .*; got dict of y"):
        of_jax.candidate(lambda p, x: {"y": x}, {})(x)
    with pytest.raises(ValueError, match="the same output twice"):
        of_jax.candidate(lambda p, x: x + rng.standard_normal(x.shape), {})(x)
    with pytest.raises(TypeError, match=r"it takes \(batch, seq, d\): wrap it"):
        of_jax.candidate(lambda p, x: x.reshape(*x.shape[:2], 2), {})(x)
