"""What a difference looks like: of faults planted one by one the right one is named, or none, and never a wrong one."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from cases import gelu, linear, mixture, swiglu
from test_verify import batch, drawn, everything, moe_and_x, one_expert

from npmoe import GeluExpert, Residual, RMSNorm, Stack
from npmoe.calculus import tree
from npmoe.model.balance import Balance
from npmoe.model.moe import MoE
from npmoe.model.routing import gates_jacobian
from npmoe.testing import assert_jacobian_close
from npmoe.verify import compare, compare_answers, compare_balance
from npmoe.verify import faults as tables
from npmoe.verify.candidate import Missing
from npmoe.verify.faults import Row
from npmoe.verify.reference import reference
from npmoe.verify.rounding import ARITHMETICS

# ---- the hunt --------------------------------------------------------------------------------------------------------


def scaled(a, part, c):
    a = a.copy()
    a[part] *= 1 + c
    return a


def swapped(a):
    return np.concatenate([a[1::-1], a[2:]])


def of_one_expert(moe, e):
    """Faults of one expert: name, layer, what may be said."""
    f = moe.experts[e]
    matrices = [name for name, leaf in tree.named_leaves(f) if leaf.ndim == 2]
    for name in matrices:
        W = getattr(f, name)
        for says, part, c in (("row 1", (1,), 1e-5), ("row 1", (1,), 0.5), ("column 1", (slice(None), 1), 1e-5)):
            # silu(Wg x) (Wu x): a row of Wu is a column of Wd
            twin = {("Wu", "row 1"): "Wd, column 1", ("Wd", "column 1"): "Wu, row 1"}.get((name, says))
            may_be = [(f"expert {e}, {words}", c) for words in (f"{name}, {says}", twin) if words]
            yield one_expert(moe, e, **{name: scaled(W, part, c)}), may_be
        yield one_expert(moe, e, **{name: swapped(W)}), []
        if W.shape[0] == W.shape[1]:
            yield one_expert(moe, e, **{name: W.T.copy()}), [f"in expert {e} {name} is transposed"]
    if isinstance(f, GeluExpert):
        for name in ("silu", "gelu_tanh"):
            yield one_expert(moe, e, activation=name), [f"in expert {e} the activation is {name}, not gelu"]
        for b in ("b1", "b2"):
            yield one_expert(moe, e, **{b: np.zeros_like(getattr(f, b))}), [f"in expert {e} {b} is left out"]
        yield one_expert(moe, e, b1=scaled(f.b1, 2, 1e-3)), [(f"expert {e}, b1, entry 2", 1e-3)]
    else:
        yield one_expert(moe, e, Wg=f.Wu, Wu=f.Wg), [f"in expert {e} gate and up are exchanged"]
        yield one_expert(moe, e, Wu=2 * f.Wu), [(f"expert {e}, {name}, all of it", 1.0) for name in ("Wu", "Wd")]


def of_all_experts(moe):
    def each(change):
        return replace(moe, experts=tuple(map(change, moe.experts)))

    if isinstance(moe.experts[0], GeluExpert):
        yield each(lambda f: replace(f, activation="silu")), ["in every expert the activation is silu, not gelu"]
        yield each(lambda f: replace(f, b1=0 * f.b1)), ["in every expert b1 is left out"]
        yield each(lambda f: replace(f, W1=f.W1.T.copy())), ["in every expert W1 is transposed"]
        yield each(lambda f: replace(f, W1=f.W1 / 2)), [("every expert, W1, all of it", -0.5)]
    else:
        yield each(lambda f: replace(f, Wg=f.Wu, Wu=f.Wg)), ["in every expert gate and up are exchanged"]
    one, two = moe.experts[:2]
    yield replace(moe, experts=(two, one, *moe.experts[2:])), ["experts 0 and 1 are exchanged"]
    after, before = (*moe.experts[1:], moe.experts[0]), (moe.experts[-1], *moe.experts[:-1])
    yield replace(moe, experts=after), ["in place of each expert e a token is given the next, e + 1"]
    yield replace(moe, experts=before), ["in place of each expert e a token is given the one before, e - 1"]


def of_the_routing(moe):
    E = len(moe.experts)
    for e, c in ((0, 1e-5), (1, 1e-2)):
        yield replace(moe, router=scaled(moe.router, e, c)), [(f"router, row {e}", c)]
    for T in (0.5, 2.0, 1.001):
        both = "router and bias, all of both" if moe.bias is not None else "router, all of it"
        yield (
            replace(moe, temperature=moe.temperature * T),
            [(f"{both} (the inverse of a temperature)", 1 / T - 1)],
        )
    if moe.temperature != 1:
        yield replace(moe, temperature=1.0), ["the temperature is left out"]
    if moe.bias is not None:
        yield replace(moe, bias=None), ["the router's bias is left out"]
    if moe.k < E:
        which = "all experts" if moe.renormalize else "the chosen experts alone"
        yield replace(moe, renormalize=not moe.renormalize), [f"the softmax runs over {which}"]
    yield from ((replace(moe, k=k), [f"k is {k}, not {moe.k}"]) for k in range(1, E + 1) if k != moe.k)


def faults(moe, e):
    yield from of_one_expert(moe, e)
    yield from of_all_experts(moe)
    yield from of_the_routing(moe)


def drawn_mixture(k, **options):
    return mixture(np.random.default_rng(0), 4, 6, 6, k, **options)


def inside(moe):
    """A mixture behind a norm, inside a residual."""
    return Stack((RMSNorm(np.linspace(0.5, 1.5, 6)), Residual(moe)))


BIASED = {"renormalize": False, "temperature": 0.75, "bias": np.array([0.25, -0.5, 0.0, 0.5])}
SETTINGS = {
    "k = 1": (drawn_mixture(1, renormalize=False), "float64", False),
    "k = 2": (drawn_mixture(2), "float64", False),
    "k = 2, not renormalized": (drawn_mixture(2, **BIASED), "float64", False),
    "soft": (drawn_mixture(4), "float64", False),
    "SwiGLU": (drawn_mixture(2, kind=swiglu), "float64", False),
    "inside a stack": (drawn_mixture(2), "float64", True),
    "float32": (drawn_mixture(2), "float32", False),
    "bfloat16": (drawn_mixture(1, renormalize=False), "bfloat16", False),
}


def said(report):
    """The alternatives that a report names, one by one."""
    looks = [clue.says for clue in report.clues if clue.kind == "looks like"]
    for caveat in (" (as far as half precision can tell)", " there explains 100 % of the difference"):
        looks = [says.removesuffix(caveat) for says in looks]
    return [text for says in looks for text in says.split(", or ")]


def true(text, may_be, path, digits):
    """Whether a clue is one of those that may be, its number right to so many digits."""
    for want in may_be:
        if isinstance(want, str):
            if text == (f"in {path}: " if path else "") + want:
                return True
            continue
        words, c = want
        join = "." if words.startswith("router") else ", "
        found = re.fullmatch(re.escape(f"{path}{join}{words}" if path else words) + ": a relative change of (.*)", text)
        if found and abs(float(found[1]) / c - 1) <= 0.5 * 10 ** (1 - digits):
            return True
    return False


@pytest.mark.parametrize("setting", SETTINGS)
def test_of_what_is_planted_the_right_is_named_or_nothing(setting):
    """By the Jacobian and by the output in turn; in float64 whatever has a name and is off gets it."""
    moe, arithmetic, nested = SETTINGS[setting]
    a = ARITHMETICS[arithmetic]
    moe = tree.map_leaves(a.round, moe)
    x = a.round(np.random.default_rng(5).standard_normal((20, 6)))
    good, wrong, silent = inside(moe) if nested else moe, [], 0
    digits = 3 if arithmetic == "float64" else 1  # a change of 1e-5 is near the limit of float32
    for i, (bad, may_be) in enumerate(faults(moe, e=2 * (list(SETTINGS).index(setting) % 2))):
        bad, what = inside(bad) if nested else bad, ("jacobian", "output")[i % 2]
        answer = a.round(bad.jacobian(x) if what == "jacobian" else bad.forward(x)[0])
        report = compare(good, lambda x, answer=answer: answer, x, what=what, arithmetic=arithmetic)
        found = said(report)
        wrong += [(may_be, text) for text in found if not true(text, may_be, "layers.1.layer" * nested, digits)]
        silent += bool(may_be) and not found and report.verdict in ("differs", "doubtful")
    assert not wrong, wrong
    # of half precision changes of rows are not named at all
    assert silent <= {"float64": 0, "float32": 2, "bfloat16": len(SETTINGS)}[arithmetic]


# ---- a new fault is a row --------------------------------------------------------------------------------------------


def _slopes_without_b1(f, _):
    return replace(f, b1=np.zeros_like(f.b1))


#: Faults that no table has, each with the table that would have it, and how a mixture has it.
NEW = {
    "MAPS": (
        Row((GeluExpert,), "the rows of W1 are reversed", lambda f, _: replace(f, W1=f.W1[::-1].copy())),
        lambda moe, row: replace(moe, experts=tuple(row.make(f, None) for f in moe.experts)).jacobian,
        "in every expert the rows of W1 are reversed",
    ),
    "SLOPES": (
        Row((GeluExpert,), "slopes are those without b1", _slopes_without_b1),
        lambda moe, row: (
            lambda x: (
                replace(moe, experts=tuple(row.make(f, None) for f in moe.experts)).expert_jacobian(x)
                + moe.router_jacobian(x)
            )
        ),
        "in every expert slopes are those without b1",
    ),
    "ROUTES": (
        Row(
            (MoE,),
            "the router reads input {it} twice",
            lambda moe, i: replace(moe, router=moe.router + moe.router * (np.arange(moe.widths[0]) == i)),
            lambda moe: range(moe.widths[0]),
        ),
        lambda moe, row: row.make(moe, 3).jacobian,
        "the router reads input 3 twice",
    ),
    "GATE_SLOPES": (
        Row(
            (MoE,),
            "the router's term is there twice",
            lambda moe, _: lambda x: moe.expert_jacobian(x) + 2 * moe.router_jacobian(x),
        ),
        lambda moe, row: row.make(moe, None),
        "the router's term is there twice",
    ),
}


@pytest.mark.parametrize("table", NEW)
def test_a_new_row_of_a_table_is_found(table, monkeypatch):
    """Without the row the fault has no such name; with it the search finds it, and only where it is."""
    row, plant, words = NEW[table]
    moe, x = moe_and_x()
    bad = plant(moe, row)
    assert words not in said(compare(moe, bad, x))
    monkeypatch.setattr(tables, table, (*getattr(tables, table), row))
    assert said(compare(moe, bad, x)) == [words]
    assert said(compare(moe, replace(moe, k=1).jacobian, x)) == ["k is 1, not 2"]


# ---- which of several explanations -----------------------------------------------------------------------------------


def test_a_fault_of_one_expert_is_not_laid_on_all_nor_the_other_way_round():
    """At k = 1 the rows that are farthest off visit one expert only: those that agree say that the others are right."""
    moe, x = moe_and_x(k=1, renormalize=False)
    assert said(compare(moe, one_expert(moe, 2, W1=moe.experts[2].W1.T.copy()).jacobian, x)) == [
        "in expert 2 W1 is transposed"
    ]
    every = replace(moe, experts=tuple(replace(f, W1=f.W1.T.copy()) for f in moe.experts))
    assert said(compare(moe, every.jacobian, x)) == ["in every expert W1 is transposed"]
    # of tokens that visit one expert alone nothing is known of the others
    alone = x[moe.route(x)[1][:, 0] == 2]
    assert said(compare(moe, every.jacobian, alone)) == ["in expert 2 W1 is transposed"]
    two = one_expert(one_expert(moe, 2, b1=np.zeros(6)), 1, b1=np.zeros(6))
    assert said(compare(moe, two.jacobian, x)) == []


def test_slopes_of_one_expert():
    moe, x = moe_and_x()
    other = one_expert(moe, 1, activation="silu")
    report = compare(moe, lambda x: other.expert_jacobian(x) + moe.router_jacobian(x), x)
    assert said(report) == ["in expert 1 values of gelu with slopes of silu"]


def test_faults_of_experts_are_matched_by_their_words():
    """One expert has no b2, the other no b1: that each loses the bias it has is not one fault."""
    moe, x = moe_and_x(E=2)
    one, two = moe.experts
    one, two = replace(one, b2=np.zeros(6)), replace(two, b1=np.zeros(6))
    good, bad = (
        {"experts": pair} for pair in ((one, two), (replace(one, b1=np.zeros(6)), replace(two, b2=np.zeros(6))))
    )
    assert said(compare(replace(moe, **good), lambda x: replace(moe, **bad).forward(x)[0], x)) == []


def test_two_experts_are_exchanged():
    moe, x = moe_and_x(E=2, k=1, renormalize=False)
    assert said(compare(moe, replace(moe, experts=moe.experts[::-1]).jacobian, x)) == ["the two experts are exchanged"]


def test_experts_sorted_as_text():
    moe, x = moe_and_x(E=12, n=40)
    bad = replace(moe, experts=tuple(moe.experts[e] for e in sorted(range(12), key=str)))
    assert said(compare(moe, bad.jacobian, x)) == ["the experts are sorted as text: 0, 1, 10, 11, ..., 2"]


def test_a_row_of_the_router_is_named_where_one_expert_is_off():
    """Softmax over all experts: a row of the router reaches every token, at k = 1 renormalized none."""
    moe, x = moe_and_x(renormalize=False)
    bad = replace(moe, router=scaled(moe.router, 3, 1e-6))
    assert said(compare(moe, bad.jacobian, x)) == ["router, row 3: a relative change of 1.00e-06"]
    gates = compare(moe, lambda x: {"gates": bad.route(x)[0], "scores": bad.scores(x)}, x)
    assert said(gates) == ["router, row 3: a relative change of 1.00e-06"]


def test_what_fits_equally_well_is_named_too():
    """The one output of one token: a row of W2, the entry of b2 and whatever else moves it alone."""
    f = gelu(np.random.default_rng(0), 3, 4, 2)
    x = np.random.default_rng(1).standard_normal((1, 3))
    found = said(compare(f, replace(f, b2=scaled(f.b2, 1, 1e-3)).jacobian, x))
    assert found == []  # b2 is not in the Jacobian
    found = said(compare(f, lambda x: replace(f, b2=scaled(f.b2, 1, 1e-3)).forward(x)[0], x))
    assert [text.split(":")[0] for text in found] == ["W2, row 1", "b2, entry 1"]


def test_a_change_that_is_not_the_whole_of_it_says_so():
    f = gelu(np.random.default_rng(0), 6, 8, 6)
    x = np.random.default_rng(1).standard_normal((12, 6))
    bad = replace(f, W1=scaled(scaled(f.W1, 3, 1e-4), 5, 2e-6))
    (says,) = said(compare(f, bad.jacobian, x))
    assert says.startswith("W1, row 3: a relative change of 1.0")
    assert re.search(r"there would explain 99\.\d+ % of the difference, not all of it", says)


@pytest.mark.parametrize("seed", range(5))
def test_what_has_no_name_is_given_none(seed):
    moe, x = moe_and_x(seed=seed)
    rng = np.random.default_rng(seed)
    J = moe.jacobian(x)
    for bad in (
        J * (1 + 1e-6 * rng.standard_normal(J.shape)),
        J + 1e-3 * rng.standard_normal(J.shape),
        np.roll(J, 1, 0),
    ):
        report = compare(moe, lambda x, bad=bad: bad, x)
        assert report.verdict == "differs"
        assert said(report) == []
        assert report.clues[0].kind == "where"


@pytest.mark.parametrize("arithmetic", ["float64", "bfloat16"])
def test_rounding_that_went_far_has_no_name(arithmetic):
    """A few entries a little beyond what is usual: in wide limits some fault would be near enough to them."""
    a = ARITHMETICS[arithmetic]
    moe, x = moe_and_x()
    moe, x = tree.map_leaves(a.round, moe), a.round(x)
    allowed = reference(moe, x, arithmetic=arithmetic).allowed("jacobian")
    far = moe.jacobian(x)
    for row, sign in ((3, 1), (7, -1), (11, 1)):
        far[row, 1, 2] += sign * 1.3 * allowed.usual[row, 1, 2]
    report = compare(moe, lambda x: far, x, arithmetic=arithmetic)
    assert report.verdict == "doubtful"
    assert said(report) == []


def test_a_fault_of_some_rows_alone_is_said_to_be_so():
    moe, x = moe_and_x()
    J = moe.jacobian(x)
    J[3] = moe.expert_jacobian(x)[3]
    assert said(compare(moe, lambda x: J, x)) == [
        "the router's term is missing: gates are held constant, in the rows that are off alone"
    ]


# ---- several answers -------------------------------------------------------------------------------------------------


def test_one_explanation_for_all_answers():
    f = gelu(np.random.default_rng(0), 6, 8, 6)
    x = np.random.default_rng(1).standard_normal((12, 6))
    dy, bad = drawn(f, x), replace(f, activation="silu")
    names = ("output", "jacobian", "gradient")
    report = compare(f, lambda x, dy: {name: everything(bad, x, dy)[name] for name in names}, x, dy=dy)
    # of the Jacobian alone it could as well be its slopes
    assert said(report) == ["the activation is silu, not gelu"]
    assert said(compare(f, bad.jacobian, x)) == [
        "values of gelu with slopes of silu",
        "the activation is silu, not gelu",
    ]
    right = f.forward(x)[0]
    report = compare(f, lambda x: {"output": right, "jacobian": bad.jacobian(x)}, x)
    assert said(report) == ["values of gelu with slopes of silu"]


def test_an_answer_that_an_explanation_does_not_fit_is_told():
    f = gelu(np.random.default_rng(0), 6, 8, 6)
    x = np.random.default_rng(1).standard_normal((12, 6))
    bad = replace(f, b1=np.zeros(8))
    report = compare(f, lambda x: {"output": f.forward(x)[0], "jacobian": bad.jacobian(x)}, x)
    assert said(report) == ["b1 is left out; but output does not fit that"]


def test_a_gradient_in_a_parameter_times_a_number():
    moe, x = moe_and_x()
    dy = drawn(moe, x)
    answers = everything(moe, x, dy)
    answers["experts.1.W1"] = 2 * answers["experts.1.W1"]
    report = compare_answers(moe, answers, x, dy=dy)
    assert [(clue.answer, clue.says) for clue in report.clues] == [
        ("experts.1.W1", "expert 1, W1, rows 0, 1, 2, 3, 4, 5 of 6"),
        ("experts.1.W1", "all of it is ours times 2"),
    ]


# ---- inside residuals and stacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Residual, lambda f: Stack((f, f))])
def test_square_matrices_inside_other_layers(kind):
    f = gelu(np.random.default_rng(0), 6, 6, 6)
    layer, x = kind(f), np.random.default_rng(1).standard_normal((5, 6))
    report = compare(layer, lambda x: 1.001 * layer.jacobian(x), x)
    assert (report.verdict, said(report)) == ("differs", ["all of it is ours times 1 + 0.001"])


def wrong_set(moe):
    def jacobian(x):
        flipped = replace(moe, renormalize=not moe.renormalize).routing(x)
        routing = moe.routing(x)._replace(q=flipped.q)
        return moe.expert_jacobian(x) + moe._outputs(x, routing) @ gates_jacobian(routing, moe.router)

    return jacobian


@pytest.mark.parametrize(
    ("jacobian", "words"),
    [
        (lambda moe: moe.expert_jacobian, "the router's term is missing: gates are held constant"),
        (wrong_set, "the gates' derivative takes the softmax over all experts"),
        (lambda moe: one_expert(moe, 3, W2=moe.experts[3].W2.T.copy()).jacobian, "in expert 3 W2 is transposed"),
    ],
)
def test_derivatives_of_a_mixture_inside_are_named_with_their_place(jacobian, words):
    moe, x = moe_and_x()
    first = linear(np.random.default_rng(2), 6, 6, "silu")
    layer = Stack((first, Residual(moe)))
    inner = jacobian(moe)

    def chain(x):
        return (np.eye(6) + inner(first.forward(x)[0])) @ first.jacobian(x)

    report = compare(layer, chain, x)
    assert said(report) == [f"in layers.1.layer: {words}"]
    if "expert 3" in words:
        assert "all tokens that visit expert 3 of layers.1.layer, and no others" in report.clues[0].says


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: Stack((s.layers[0], s.layers[1].layer)), "in layers.1: what goes in is not added"),
        (lambda s: s.layers[1], "layers.0 is left out"),
        (lambda s: Stack((RMSNorm(s.layers[0].gamma, 1e-5), s.layers[1])), "in layers.0: eps is 1e-05, not 1e-06"),
        (lambda s: Stack((RMSNorm(1 + s.layers[0].gamma), s.layers[1])), "in layers.0: gamma is 1 more"),
        (lambda s: Stack((RMSNorm(np.ones(6)), s.layers[1])), "in layers.0: gamma is left out"),
    ],
)
def test_what_stands_around_a_mixture(change, words):
    layer = inside(drawn_mixture(2))
    x = np.random.default_rng(1).standard_normal((12, 6))
    assert said(compare(layer, change(layer).jacobian, x)) == [words]
    assert said(compare(layer, lambda x: change(layer).forward(x)[0], x)) == [words]


# ---- where -----------------------------------------------------------------------------------------------------------


def test_nan_is_far_off_wherever_it_is():
    moe, x = moe_and_x()
    J = moe.jacobian(x)
    J[5, 1, 2] = np.nan
    report = compare(moe, lambda x: J, x)
    assert report.clues[0].says.startswith("1 of 24 tokens (5), output 1 of 6")
    assert said(report) == []


def test_tokens_on_a_tie_do_not_count():
    moe, x = moe_and_x(n=40, E=5)
    router = moe.router.copy()
    router[1] = router[0]  # tokens whose second expert is 0 or 1 lie on a tie
    moe = replace(moe, router=router)
    bad = one_expert(moe, 3, b1=np.zeros(6))
    report = compare(moe, bad.jacobian, x)
    assert report.undecided.any()
    assert not report.undecided.all()
    assert "; all decided tokens that visit expert 3, and no other decided ones" in report.clues[0].says
    assert said(report) == ["in expert 3 b1 is left out"]


# ---- answers that are none, and those that are not finite ------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_off_the_diagonal_is_a_difference(value):
    moe, x = moe_and_x(n=5)
    J4 = batch(moe.jacobian(x))
    J4[3, :, 1] = value
    report = compare(moe, lambda x: J4, x)
    assert report.verdict == "differs"
    assert f"row 3 of the output depends on row 1 of x (entry {abs(value):.3g})" in str(report)


def test_infinite_answers_are_the_same_twice():
    moe, x = moe_and_x()
    J = np.full_like(moe.jacobian(x), np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = compare(moe, lambda x: J, x)
    assert report.verdict == "differs"
    assert "otherwise" not in str(report)
    calls = iter([np.inf, np.nan])
    assert "answered otherwise" in str(compare(moe, lambda x: np.full_like(J, next(calls)), x))


def test_halves_are_asked_twice_by_their_own_eps():
    moe, x = moe_and_x()
    rng = np.random.default_rng(0)
    noisy = compare(moe, lambda x: (moe.jacobian(x) * (1 + rng.random((24, 1, 1)))).astype(np.float16), x)
    assert "answered otherwise" in str(noisy)


def test_one_ragged_answer_leaves_the_others():
    moe, x = moe_and_x()
    report = compare(moe, lambda x: {"jacobian": [[1.0], [1.0, 2.0]], "output": moe.forward(x)[0]}, x)
    assert [part.verdict for part in report.parts] == ["no answer", "agrees"]
    assert "jacobian: expected an array of floats; got none (ValueError:" in str(report)
    report = compare_answers(moe, {"jacobian": [[1.0], [1.0, 2.0]], "output": moe.forward(x)[0]}, x)
    assert [part.verdict for part in report.parts] == ["no answer", "agrees"]


def test_why_there_is_no_answer_is_kept():
    moe, x = moe_and_x()
    assert "output: RuntimeError: boom" in str(compare_answers(moe, {"output": Missing("RuntimeError: boom")}, x))
    scores = np.random.default_rng(0).standard_normal((8, 4))
    chosen = np.argsort(-scores, axis=1)[:, :2]
    report = compare_balance(Balance("switch"), {"value": Missing("RuntimeError: boom")}, scores, chosen)
    assert (report.verdict, report.parts[0].remarks) == ("no answer", ("RuntimeError: boom",))


def test_no_answer_has_a_reason():
    moe, x = moe_and_x()
    for report in (compare(moe, lambda x: {}, x), compare_answers(moe, {}, x)):
        assert report.verdict == "no answer"
        assert "expected one answer at least; got an empty dict" in str(report)


# ---- assertions ------------------------------------------------------------------------------------------------------


def test_an_assertion_about_a_weighted_mean():
    moe, x = moe_and_x()
    w = np.linspace(0, 1, 24)
    mean = {"mean_jacobian": moe.mean_jacobian(x, w)}
    assert assert_jacobian_close(mean, moe, x, weights=w).verdict == "agrees"
    with pytest.raises(AssertionError, match="mean_jacobian"):
        assert_jacobian_close(mean, moe, x)


def test_a_name_for_answers_that_have_names():
    moe, x = moe_and_x()
    answers = {"jacobian": moe.jacobian(x)}
    with pytest.raises(ValueError, match="expected `what` for an answer without a name; got 'output'"):
        assert_jacobian_close(answers, moe, x, what="output")
    report = compare(moe, lambda x: answers, x, what="output")
    assert report.verdict == "differs"
    assert "the candidate gave a dict, which has its own names" in str(report)


def test_half_precision_names_with_a_caveat_and_measures_no_change():
    moe, x = moe_and_x()
    keep = ARITHMETICS["bfloat16"].round
    moe, x = tree.map_leaves(keep, moe), keep(x)
    report = compare(moe, lambda x: keep(replace(moe, k=3).jacobian(x)), x, arithmetic="bfloat16")
    looks = [clue.says for clue in report.clues if clue.kind == "looks like"]
    assert looks
    assert all(says.endswith("(as far as half precision can tell)") for says in looks)
    assert not any("a relative change" in says for says in looks)
