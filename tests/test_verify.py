"""Comparison with other people's answers: what is allowed is not exceeded by rounding, and each fault is found."""

from dataclasses import replace

import numpy as np
import pytest
from cases import BY_NAME, CASES, ROUNDING, close, gelu, mixture, swiglu
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe import Residual, RMSNorm, Stack
from npmoe.calculus import tree
from npmoe.calculus.scalar import ACTIVATIONS
from npmoe.model.routing import gates_jacobian
from npmoe.testing import assert_jacobian_close
from npmoe.verify import bounds, compare, compare_answers
from npmoe.verify.rounding import ARITHMETICS, Rounding

EXAMPLES = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
TABLE = [pytest.param(case, id=case.name, marks=[pytest.mark.underflow] * case.underflow) for case in CASES]


def everything(layer, x, dy):
    """All answers of one of our own layers, by name."""
    y, trace = layer.forward(x)
    dx, dlayer = layer.vjp(trace, dy)
    J = layer.jacobian(x)
    found = {"output": y, "gradient": dx, "jacobian": J, "jacobian:batch": batch(J)}
    found["mean_jacobian"] = layer.mean_jacobian(x) if hasattr(layer, "mean_jacobian") else J.mean(axis=0)
    if hasattr(layer, "router"):
        found |= {"gates": layer.route(x)[0], "scores": layer.scores(x)}
        found |= {name: getattr(layer, name)(x) for name in ("expert_jacobian", "router_jacobian")}
    return found | dict(tree.named_leaves(dlayer))


def batch(J):
    """(n, o, d) as (n, o, n, d) with zeros off the diagonal."""
    n, o, d = J.shape
    J4 = np.zeros((n, o, n, d), J.dtype)
    J4[np.arange(n), :, np.arange(n)] = J
    return J4


def as_float32(layer):
    return tree.map_leaves(lambda a: a.astype(np.float32), layer)


def drawn(layer, x, seed=0):
    return np.random.default_rng(seed).standard_normal((len(x), layer.widths[-1]))


def moe_and_x(n=24, d=6, h=6, E=4, k=2, seed=0, **options):
    rng = np.random.default_rng(seed)
    return mixture(rng, E, d, h, k, **options), rng.standard_normal((n, d))


# ---- what is allowed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLE)
def test_values_that_carry_their_rounding_are_those_of_the_layer(case):
    layer, x = case.build()
    dy = drawn(layer, x)
    own = everything(layer, x, dy)
    for usual in (False, True):
        r = Rounding(ARITHMETICS["float64"], usual)
        X = r.given(x)
        dx, grads = bounds.vjp(layer, X, r.given(dy), r)
        close(bounds.forward(layer, X, r).value, own["output"], 100 * ROUNDING)
        close(bounds.jacobian(layer, X, r).value, own["jacobian"], 100 * ROUNDING)
        close(bounds.mean_jacobian(layer, X, r).value, own["mean_jacobian"], 100 * ROUNDING)
        close(dx.value, own["gradient"], 100 * ROUNDING)
        assert sorted(grads) == sorted(bounds.leaf_names(layer))
        for name, grad in grads.items():
            close(grad.value, own[name], 100 * ROUNDING, scale=max(1.0, np.abs(own[name]).max()))


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
def test_our_own_layers_agree_with_themselves(case, arithmetic):
    """In float32 against float64: the rounding of a whole layer stays within what is allowed, ties or not."""
    layer, x = case.build()
    x = x.astype(np.float32)
    layer = as_float32(layer)
    dy = drawn(layer, x).astype(np.float32)
    used = layer if arithmetic == "float32" else tree.map_leaves(lambda a: a.astype(np.float64), layer)
    answers = everything(used, x.astype(arithmetic), dy.astype(arithmetic))
    report = compare_answers(layer, answers, x, dy=dy)
    assert report.arithmetic == arithmetic
    assert report.verdict in ("agrees", "undecided"), str(report)
    assert case.smooth is False or report.undecided.sum() == 0 or report.arithmetic == "float32"
    assert set(report.json()["parts"][0]) >= {"name", "verdict", "units"}


def test_what_is_allowed_is_no_blank_cheque():
    """For layers of plain sizes: tens of eps as a rule, and growing as the root of the width."""
    limits = []
    for d in (8, 32, 128):
        moe, x = moe_and_x(n=8, d=d, h=2 * d, k=2)
        moe = tree.map_leaves(lambda a: a / a.shape[-1] ** 0.5, moe)
        part = compare(moe, moe.jacobian, x)["jacobian"]
        limits.append((np.median(part.usual), np.median(part.worst)))
    usual, worst = np.array(limits).T
    assert (usual < 100).all()
    assert (worst > usual).all()
    assert usual[-1] < 6 * usual[0]  # sixteen times the width


@EXAMPLES
@given(seeds, st.sampled_from(["float32", "float16", "bfloat16"]))
def test_an_arithmetic_rounds_to_the_nearest(seed, name):
    a = np.random.default_rng(seed).standard_normal(50)
    rounded = ARITHMETICS[name].round(a)
    assert (np.abs(rounded - a) <= ARITHMETICS[name].unit * np.abs(a) * (1 + 1e-6)).all()
    assert (ARITHMETICS[name].round(rounded) == rounded).all()
    if name != "bfloat16":
        assert (rounded == a.astype(name)).all()


@EXAMPLES
@given(seeds, st.integers(1, 300))
def test_a_product_in_any_order_is_within_its_bound(seed, m):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, m)).astype(np.float32)
    r = Rounding(ARITHMETICS["float32"])
    exact = r.product(r.given(a[None]), r.given(b[:, None]))
    order = rng.permutation(m)
    total = np.float32(0)
    for i in order:
        total += a[i] * b[i]
    assert abs(total - exact.value[0, 0]) <= exact.error[0, 0]


# ---- planted faults --------------------------------------------------------------------------------------------------


def slopes_of(moe, name):
    """The experts' Jacobian with slopes of another activation; values, gates and their derivative as they are."""
    other = replace(moe, experts=tuple(replace(f, activation=name) for f in moe.experts))
    return lambda x: other.expert_jacobian(x) + moe.router_jacobian(x)


def wrong_set(moe):
    """Right gates, and their derivative as if the softmax ran over the other set."""

    def jacobian(x):
        flipped = replace(moe, renormalize=not moe.renormalize).routing(x)
        routing = moe.routing(x)._replace(q=flipped.q)
        return moe.expert_jacobian(x) + moe._outputs(x, routing) @ gates_jacobian(routing, moe.router)

    return jacobian


def one_expert(moe, e, **changes):
    return replace(moe, experts=(*moe.experts[:e], replace(moe.experts[e], **changes), *moe.experts[e + 1 :]))


MIX, X = moe_and_x()
HALF, _ = moe_and_x(renormalize=False)
COLD, _ = moe_and_x(temperature=0.5, bias=np.linspace(-1, 1, 4))
FAULTS = {
    "wrong slope": (
        replace(MIX, experts=tuple(replace(f, activation="gelu_tanh") for f in MIX.experts)),
        lambda moe: slopes_of(moe, "gelu"),
        "values of the experts' activation with slopes of gelu",
    ),
    "dropped gate gradient": (MIX, lambda moe: moe.expert_jacobian, "the router's term is missing"),
    "transposed weight": (
        MIX,
        lambda moe: one_expert(moe, 2, W1=moe.experts[2].W1.T.copy()).jacobian,
        "in expert 2 W1 is transposed",
    ),
    "all weights transposed": (
        MIX,
        lambda moe: replace(moe, experts=tuple(replace(f, W2=f.W2.T.copy()) for f in moe.experts)).jacobian,
        "in every expert W2 is transposed",
    ),
    "softmax over the wrong set": (
        MIX,
        lambda moe: replace(moe, renormalize=False).jacobian,
        "the softmax runs over all experts",
    ),
    "softmax over the wrong set, derivative alone": (
        HALF,
        wrong_set,
        "the gates' derivative takes the softmax over the chosen experts alone",
    ),
    "transposed Jacobian": (
        MIX,
        lambda moe: lambda x: moe.jacobian(x).transpose(0, 2, 1),
        "the Jacobian is transposed",
    ),
    "one too many": (MIX, lambda moe: replace(moe, k=3).jacobian, "k is 3, not 2"),
    "no temperature": (COLD, lambda moe: replace(moe, temperature=1.0).jacobian, "the temperature is left out"),
    "no bias": (COLD, lambda moe: replace(moe, bias=None).jacobian, "the router's bias is left out"),
    "a mean for a sum": (MIX, lambda moe: lambda x: moe.jacobian(x) / len(x), "1/n: a mean over tokens for a sum"),
    "bias of an expert": (
        MIX,
        lambda moe: one_expert(moe, 1, b1=np.zeros(6)).jacobian,
        "in expert 1 b1 is left out",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named(name):
    moe, plant, words = FAULTS[name]
    report = compare(moe, plant(moe), X, what="jacobian", name="block 7")
    assert report.verdict == "differs", str(report)
    assert not report.ok
    assert any(words in clue.says for clue in report.clues), str(report)
    assert str(report).startswith("block 7: differs")
    assert words in str(report)


def test_the_report_names_the_expert_whose_tokens_are_off():
    bad = one_expert(MIX, 2, W1=MIX.experts[2].W1.T.copy())
    report = compare(MIX, bad.jacobian, X)
    visits = np.flatnonzero((MIX.route(X)[1] == 2).any(axis=1))
    off = np.flatnonzero(report["jacobian"].status == "differs")
    np.testing.assert_array_equal(off, visits)
    assert "all tokens that visit expert 2, and no others" in report.clues[0].says


LEAVES = ["W1", "b1", "W2", "b2"]


@pytest.mark.parametrize("k", [2, 4])
@settings(max_examples=6, deadline=None)
@given(seed=seeds, e=st.integers(0, 3), leaf=st.sampled_from(["W1", "W2"]), data=st.data())
def test_a_change_of_1e_5_in_one_row_of_one_expert_is_caught_and_placed(k, seed, e, leaf, data):
    """From the Jacobian alone, also where all tokens visit all experts; with gradients by the name of the leaf."""
    moe, x = moe_and_x(k=k, seed=seed)
    W = getattr(moe.experts[e], leaf)
    row = data.draw(st.integers(0, len(W) - 1))
    changed = W.copy()
    changed[row] *= 1 + 1e-5
    bad = one_expert(moe, e, **{leaf: changed})
    visits = (moe.route(x)[1] == e).any()
    report = compare(moe, bad.jacobian, x)
    assert (report.verdict == "differs") == visits
    if visits:
        assert f"expert {e}, {leaf}, row {row}: a relative change of 1.00e-05" in report.clues[-1].says, str(report)
        dy = drawn(moe, x)
        report = compare(moe, lambda x, dy: everything(bad, x, dy), x, dy=dy)
        other = {"W1": "W2", "W2": "W1"}[leaf]
        assert report[f"experts.{e}.{other}"].verdict == "differs"
        untouched = [f"experts.{i}.W1" for i in range(4) if i != e]
        assert {report[name].verdict for name in untouched} == {"agrees"}


def test_a_fault_deep_in_a_stack_is_placed_by_layer_row_and_expert():
    rng = np.random.default_rng(3)
    blocks = [Residual(Stack((RMSNorm(np.ones(6)), mixture(rng, 4, 6, 5, 2)))) for _ in range(2)]
    good, x = Stack(tuple(blocks)), rng.standard_normal((16, 6))
    moe = blocks[1].layer.layers[1]
    W = moe.experts[3].W2.copy()
    W[4] *= 1 + 1e-5
    bad = Stack((blocks[0], Residual(Stack((RMSNorm(np.ones(6)), one_expert(moe, 3, W2=W))))))
    dy = drawn(good, x)
    report = compare(good, lambda x, dy: everything(bad, x, dy), x, dy=dy)
    assert report.verdict == "differs"
    assert report["layers.1.layer.layers.1.experts.3.W1"].verdict == "differs"
    assert any(
        "layers.1.layer.layers.1, expert 3, W2, row 4: a relative change of 1.00e-05" in c.says for c in report.clues
    )


def test_values_of_one_expert_kind_and_another():
    rng = np.random.default_rng(0)
    f, x = swiglu(rng, 5, 8, 3), rng.standard_normal((7, 5))
    report = compare(f, replace(f, Wg=f.Wu, Wu=f.Wg).jacobian, x)
    assert "gate and up are exchanged" in str(report)
    g = gelu(rng, 5, 8, 3)
    for other in set(ACTIVATIONS) - {"gelu"}:
        report = compare(g, replace(g, activation=other).jacobian, x)
        assert f"values of gelu with slopes of {other}" in str(report)


# ---- ties ------------------------------------------------------------------------------------------------------------


def test_a_candidate_may_break_a_tie_its_own_way():
    layer, x = BY_NAME["ties"].build()
    n = len(x)
    tied = np.arange(n) < 4
    # experts 1 and 3 have one score; the candidate sees them in the other order
    flipped = replace(layer, router=layer.router[::-1].copy(), experts=layer.experts[::-1], bias=np.zeros(4))
    report = compare(layer, flipped.jacobian, x)
    assert report.verdict == "agrees", str(report)
    np.testing.assert_array_equal(report.undecided[:4], tied[:4])
    assert (report["jacobian"].status[:4] == "other choice").all()
    assert "agrees with another of the choices that tie" in str(report)
    dy = drawn(layer, x)

    def answers(x, dy):
        y, trace = flipped.forward(x)
        dx, dflipped = flipped.vjp(trace, dy)
        leaves = dict(tree.named_leaves(replace(dflipped, experts=dflipped.experts[::-1])))
        return {"output": y, "gradient": dx, **leaves, "router": dflipped.router[::-1], "bias": dflipped.bias[::-1]}

    with_bias = replace(layer, bias=np.zeros(4))
    assert compare(with_bias, answers, x, dy=dy).verdict == "agrees"
    # parameters alone do not say who was chosen: undecided, and no more than that
    alone = {name: a for name, a in answers(x, dy).items() if name.startswith("experts")}
    assert compare_answers(with_bias, alone, x, dy=dy).verdict == "undecided"


def test_a_fault_at_a_tie_is_still_a_fault():
    layer, x = BY_NAME["ties"].build()
    report = compare(layer, layer.expert_jacobian, x[:4], what="jacobian")
    assert report.undecided.all()
    assert report.verdict == "differs"
    assert "agrees with none of the choices that tie" in str(report)


def test_rows_nearer_to_a_tie_than_the_step_of_a_difference_are_flagged():
    moe, x = moe_and_x(n=200, E=6)
    h = 1e-2

    def differences(x):
        sides = [moe.forward(x + s * h * e)[0] for e in np.eye(x.shape[1]) for s in (1, -1)]
        return np.stack([(a - b) / (2 * h) for a, b in zip(sides[::2], sides[1::2], strict=True)], axis=2)

    report = compare(moe, differences, x, step=h)
    assert report.undecided.any()
    assert not report.undecided.all()
    assert report.verdict in ("agrees", "undecided"), str(report)
    gap = np.sort(moe.scores(x), axis=1)
    gap = gap[:, -2] - gap[:, -3]
    assert report.undecided[gap.argmin()]
    assert compare(moe, differences, x).verdict == "differs"  # as exact derivatives they are not good enough


# ---- shapes and dtypes ---------------------------------------------------------------------------------------------


def test_an_answer_is_told_by_its_shape():
    moe, x = moe_and_x(d=6, o=3)
    dy = drawn(moe, x)
    J = moe.jacobian(x)
    assert [p.name for p in compare(moe, lambda x: moe.forward(x)[0], x).parts] == ["output"]
    assert [p.name for p in compare(moe, lambda x: J, x).parts] == ["jacobian"]
    assert [p.name for p in compare(moe, lambda x: batch(J), x).parts] == ["jacobian"]
    assert [p.name for p in compare(moe, lambda x: moe.mean_jacobian(x), x).parts] == ["mean_jacobian"]
    gradient = compare(moe, lambda x, dy: moe.vjp(moe.forward(x)[1], dy)[0], x, dy=dy)
    assert (gradient.parts[0].name, gradient.verdict) == ("gradient", "agrees")
    assert_jacobian_close(J, moe, x)
    assert_jacobian_close({"jacobian:forward": J, "jacobian:reverse": J}, moe, x)


def test_tokens_that_depend_on_one_another_are_told():
    moe, x = moe_and_x(n=5)
    J4 = batch(moe.jacobian(x))
    J4[3, :, 1] += 1e-9
    report = compare(moe, lambda x: J4, x)
    assert report.verdict == "differs"
    assert "row 3 of the output depends on row 1 of x" in str(report)


def test_float32_is_judged_as_float32_unless_more_was_asked():
    moe, x = moe_and_x()
    x = x.astype(np.float32).astype(np.float64)
    rough = as_float32(moe)
    report = compare(moe, lambda x: rough.jacobian(x.astype(np.float32)), x)
    assert (report.arithmetic, report.verdict) == ("float32", "agrees")
    assert 0 < report["jacobian"].largest < 30
    asked = compare(moe, lambda x: rough.jacobian(x.astype(np.float32)), x, arithmetic="float64")
    assert asked.verdict == "differs"
    assert "expected float64; answered in float32" in str(asked)
    half = compare(moe, lambda x: moe.jacobian(x).astype(np.float16), x)
    assert (half.arithmetic, half.verdict) == ("float16", "agrees")
    coarse = ARITHMETICS["bfloat16"].round(moe.jacobian(x))
    assert compare(moe, lambda x: coarse, x, arithmetic="bfloat16").verdict == "agrees"
    assert compare(moe, lambda x: coarse, x).verdict == "differs"


# ---- candidates that misbehave -------------------------------------------------------------------------------------


class Tensor:
    """What a framework's tensor looks like from outside."""

    def __init__(self, array, dtype="torch.float64"):
        self.array, self.dtype = array, dtype

    def detach(self):
        return self

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def __array__(self, dtype=None, copy=None):
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


def test_a_tensor_is_detached_and_bfloat16_understood():
    moe, x = moe_and_x()
    assert compare(moe, lambda x: Tensor(moe.jacobian(x)), x).verdict == "agrees"
    coarse = Tensor(ARITHMETICS["bfloat16"].round(moe.jacobian(x)), "torch.bfloat16")
    assert compare(moe, lambda x: coarse, x).arithmetic == "bfloat16"


def test_a_candidate_that_raises_costs_nothing():
    moe, x = moe_and_x()

    def candidate(x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    report = compare(moe, candidate, x)
    assert report.verdict == "no answer"
    assert "raised RuntimeError: mat1 and mat2" in str(report)
    assert "test_verify.py" in str(report)
    with pytest.raises(KeyboardInterrupt):
        compare(moe, lambda x: (_ for _ in ()).throw(KeyboardInterrupt()), x)


def test_a_candidate_that_changes_its_input_is_told_and_hurts_nobody():
    moe, x = moe_and_x()
    before = x.copy()

    def candidate(x):
        x[2] *= 2
        return moe.jacobian(before)

    report = compare(moe, candidate, x)
    np.testing.assert_array_equal(x, before)
    assert report["jacobian"].verdict == "agrees"
    assert report.verdict == "differs"
    assert "changed its input x, in row 2" in str(report)


def test_a_candidate_that_answers_otherwise_each_time():
    moe, x = moe_and_x()
    rng = np.random.default_rng(0)
    report = compare(moe, lambda x: moe.jacobian(x) * (rng.random((len(x), 1, 1)) > 0.5), x)
    assert "answered otherwise when it was called again" in str(report)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda J: J.transpose(1, 0, 2), "expected jacobian of shape (24, 6, 6), (n, o, d) or"),
        (lambda J: J[:-1], "got (23, 6, 6)"),
        (lambda J: J.astype(int), "expected an array of floats; got int64"),
        (lambda J: J.astype(complex), "got complex128"),
        (lambda J: "nothing", "expected an array of floats"),
        (lambda J: None, "expected an array of floats; got object"),
        (lambda J: {"jacobean": J}, "expected the name of an answer, output, jacobian"),
        (lambda J: {"router": J}, "router is a gradient of sum(dy * y): expected dy"),
    ],
)
def test_an_answer_that_cannot_be_compared(answer, words):
    moe, x = moe_and_x()
    J = moe.jacobian(x)
    report = compare(moe, lambda x: answer(J), x, what=None)
    assert report.verdict == "no answer"
    assert words in str(report)
    with pytest.raises(AssertionError, match="no answer"):
        assert_jacobian_close(lambda x: answer(J), moe, x)


def test_one_bad_answer_of_several_leaves_the_others():
    moe, x = moe_and_x()
    report = compare(moe, lambda x: {"output": moe.forward(x)[0], "jacobian": np.zeros(3)}, x)
    assert [part.verdict for part in report.parts] == ["agrees", "no answer"]
    assert report.verdict == "no answer"
    with pytest.raises(KeyError, match="expected one of the answers output, jacobian"):
        report["gates"]


def test_nan_is_a_difference_and_says_where():
    moe, x = moe_and_x()
    J = moe.jacobian(x)
    J[5, 1, 2] = np.nan
    report = compare(moe, lambda x: J, x)
    assert report.verdict == "differs"
    assert "NaN or infinity in row 5" in str(report)
    assert report["jacobian"].rows(1)[0].row == 5
    assert "inf" in str(report.json())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": np.zeros((4, 5))}, ValueError, "expected x of shape (n, 6)"),
        ({"x": np.full((4, 6), np.nan)}, ValueError, "expected x to be finite"),
        ({"x": np.zeros((0, 6))}, ValueError, "at least one token"),
        ({"x": np.zeros((4, 6), int)}, TypeError, "expected x to be an array of floats"),
        ({"dy": np.zeros((4, 6))}, ValueError, "expected dy of shape (24, 6)"),
        ({"arithmetic": "float33"}, ValueError, "expected an arithmetic among float64, float32"),
        ({"layer": object()}, TypeError, "expected a layer of npmoe"),
        ({"candidate": np.zeros(3)}, TypeError, "compare_answers"),
        ({"step": -1.0}, ValueError, "expected a step of at least 0"),
        ({"weights": np.zeros(24)}, ValueError, "positive sum"),
    ],
)
def test_what_we_are_given_is_checked(change, error, words):
    moe, x = moe_and_x()
    arguments = {"layer": moe, "candidate": moe.jacobian, "x": x} | change
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
        compare(arguments.pop("layer"), arguments.pop("candidate"), arguments.pop("x"), **arguments)


def test_doubtful_is_between_the_usual_and_the_worst():
    f, x = gelu(np.random.default_rng(0), 64, 128, 64), np.random.default_rng(1).standard_normal((5, 64))
    J = f.jacobian(x)
    part = compare(f, lambda x: J, x)["jacobian"]
    usual, worst = (limit * part.eps * part.scale for limit in (part.usual, part.worst))
    assert (worst > 4 * usual).all()
    between = J.copy()
    at = np.abs(J[0]).argmax()
    between[0].flat[at] += (usual[0] + worst[0]) / 2
    report = compare(f, lambda x: between, x)
    assert report.verdict == "doubtful"
    with pytest.raises(AssertionError, match="doubtful"):
        assert_jacobian_close(between, f, x)
    assert assert_jacobian_close(between, f, x, strict=False).verdict == "doubtful"
