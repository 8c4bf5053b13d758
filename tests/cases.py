"""The one table of layers, and the tolerances. A new layer is one new row; every law in test_laws.py then holds it.

n tokens, d width, h hidden, o output width, E experts, k experts a token.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from npmoe import GeluExpert, LayerNorm, Linear, MoE, Residual, RMSNorm, Stack, SwigluExpert
from npmoe.calculus import tree
from npmoe.model.gate import Gate, Groups

# ---- tolerances, each once and with its reason -------------------------------------------------------------------

ROUNDING = 1e-13  # the same sum in another order: at most a few hundred eps = 2.2e-16
TRANSPOSE = 1e-12  # two chains of products through a whole layer, no step size
COMPLEX_STEP = 1e-12  # exact but for rounding: the step, 1e-30, is squared away
DIFFERENCE = 1e-9  # the best of a series of central differences: h^2 against eps/h meet at 1e-11, times curvature
ORDER = 0.1  # how far the observed order of an error may be from 2
ROOM = 0.15  # margin of the routing that the tokens of a smooth case have: no step below moves a score so far
SINGLE = 2e-5  # float32 against float64 through a layer: some 200 eps = 1.2e-7


def close(got, want, rtol, scale=None):
    """`got` is `want` within rtol of each element and of the scale, which is the largest of `want` unless given."""
    want = np.asarray(want)
    scale = np.abs(want).max(initial=0) if scale is None else scale
    assert np.shape(got) == want.shape
    error, allowed = np.abs(got - want), rtol * np.maximum(np.abs(want), scale)
    assert (error <= allowed).all(), f"off by up to {error.max():.2e} where {np.max(allowed):.2e} is allowed"


def trees_close(got, want, rtol, scale=None):
    """Leaf by leaf `close`, each leaf with a scale of its own, or with that of its place in the tree `scale`."""
    assert [name for name, _ in tree.named_leaves(got)] == [name for name, _ in tree.named_leaves(want)]
    scales = tree.leaves(want if scale is None else scale)
    for a, b, s in zip(tree.leaves(got), tree.leaves(want), scales, strict=True):
        close(a, b, rtol, np.abs(s).max(initial=0))


# ---- layers of drawn numbers ---------------------------------------------------------------------------------------


def gelu(rng, d, h, o, activation="gelu"):
    draw = rng.standard_normal
    return GeluExpert(draw((h, d)), draw(h), draw((o, h)), draw(o), activation)


def swiglu(rng, d, h, o):
    draw = rng.standard_normal
    return SwigluExpert(draw((h, d)), draw((h, d)), draw((o, h)))


def linear(rng, d, o, activation=None):
    return Linear(rng.standard_normal((o, d)), rng.standard_normal(o), activation)


def norm(rng, d):
    return RMSNorm(rng.standard_normal(d))


def layer_norm(rng, d):
    return LayerNorm(rng.standard_normal(d), rng.standard_normal(d))


def gpt_oss(rng, d, h, o, limit=1.5):
    draw = rng.standard_normal
    return replace(swiglu(rng, d, h, o), bg=draw(h), bu=draw(h), bd=draw(o), limit=limit, beta=1.702, shift=1.0)


def mixture(rng, E, d, h, k, o=None, kind=gelu, shared=0, shared_gate=False, **options):
    experts = tuple(kind(rng, d, h, o or d) for _ in range(E))
    router = rng.standard_normal((E, d))
    options |= {"shared": tuple(kind(rng, d, h + 1, o or d) for _ in range(shared))}
    options |= {"shared_gate": rng.standard_normal((shared, d)) if shared_gate else None}
    return MoE(router, experts, k, **options)


# ---- how wide the routing's margin is ------------------------------------------------------------------------------


def margin(moe, x):
    """Gap between the last chosen score and the first that is not, (n,); infinite where all are chosen."""
    scores, gate = moe.scores(x).real, moe.gate
    if gate.scores == "sparsemixer":
        return _sparsemixer_margin(scores, gate.near, moe.k)
    ranked = gate.ranked(scores)
    # p moves by a quarter of what a score does where it is a sigmoid, by half of that of all where it is a softmax
    free = gate.selection is None and gate.groups is None
    steepest = 1 if free else 4 if gate.scores == "sigmoid" else 2
    least = steepest * _gap(ranked, moe.k)
    if gate.groups is None:
        return least
    whole = replace(gate, groups=None, selection=np.zeros(len(moe.experts)) if free else gate.selection).ranked(scores)
    members = np.sort(whole.reshape(len(x), gate.groups.number, whole.shape[1] // gate.groups.number), axis=2)
    best = members[:, :, -1] if gate.groups.by == "largest" else members[:, :, -2:].sum(axis=2) / 2
    return np.minimum(least, steepest * _gap(best, gate.groups.kept))


def _gap(ranked, k):
    """Between the k-th largest and the next, of what can be chosen."""
    if k == ranked.shape[1]:
        return np.full(len(ranked), np.inf)
    falling = -np.sort(-ranked, axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(falling[:, k]), np.inf, falling[:, k - 1] - falling[:, k])


def _sparsemixer_margin(scores, near, k):
    """Between the choices, and between a score and being near enough to the best."""
    falling = -np.sort(-scores, axis=1)
    least = np.abs(np.diff(falling, axis=1))[:, :k].min(axis=1)
    for i in range(k):
        best = falling[:, i, None]
        to = np.abs((best - falling) - near * np.maximum(np.abs(falling), best))
        to[:, : i + 1] = np.inf
        least = np.minimum(least, to.min(axis=1) / 2)
    return least


def mixtures(layer, x):
    """Every mixture inside a layer with the input that reaches it, in order."""
    if isinstance(layer, MoE):
        yield layer, x
    elif isinstance(layer, Residual):
        yield from mixtures(layer.layer, x)
    elif isinstance(layer, Stack):
        for inner in layer.layers:
            yield from mixtures(inner, x)
            x, _ = inner.forward(x)


def decided(layer, x, room=ROOM):
    """The rows of x that every mixture inside routes by a margin of `room` at least."""
    wide = np.ones(len(x), bool)
    for moe, inner in mixtures(layer, x):
        wide &= margin(moe, inner) > room
    return x[wide]


# ---- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A layer and an input, made from a generator seeded by the name.

    `smooth` is False where the input sits on a boundary of the routing, where a finite difference has no meaning.
    """

    name: str
    make: Callable
    n: int = 6
    smooth: bool = True
    underflow: bool = False

    def build(self):
        """The layer and x (n, d); where it is smooth every token is routed by a clear margin."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        made = self.make(rng)
        layer, x = made if isinstance(made, tuple) else (made, None)
        if x is None:
            x = rng.standard_normal((16 * self.n + 64, layer.widths[0]))
        x = (decided(layer, x) if self.smooth else x)[: self.n]
        assert len(x) == self.n, f"{self.name} has too few tokens with a clear margin"
        return layer, x

    def __str__(self):
        return self.name


def _scaled(f, down):
    """The same map but for the bias: a first layer of tiny weights under a second of huge ones."""
    return replace(f, W1=f.W1 * down, b1=f.b1 * down, W2=f.W2 / down)


def _rank_one(f):
    """Rows of W1 that are all multiples of one; each is the same direction, so is every Jacobian's row space."""
    return replace(f, W1=np.outer(f.W1[:, 0], f.W1[0]))


def _far(rng):
    """Inputs so large that most of the GELU is saturated on either side, some of it past the table's edge at 9."""
    return gelu(rng, 4, 9, 3), 4 * rng.standard_normal((6, 4))


def _near_zero(rng):
    """A norm of tokens as small as the root of its eps, where eps is half of the answer."""
    return norm(rng, 5), 1e-3 * rng.standard_normal((6, 5))


def _avoided(rng):
    """A bias under which no token goes to expert 2."""
    return mixture(rng, 4, 5, 3, 2, bias=np.array([0.3, 0.0, -100.0, -0.2]))


def _faint(rng):
    """A soft mixture that hardly listens to expert 2: gates of 1e-4 count."""
    return mixture(rng, 3, 4, 5, 3, bias=np.array([0.3, 0.0, -9.0]))


def _lonely(rng):
    """Each of 12 experts gets two of the six tokens, if any."""
    return mixture(rng, 12, 3, 2, 1, renormalize=False)


def _tied(rng, **options):
    """Experts 1 and 3 of equal score, second best for the first four tokens.

    Small whole numbers make the tie exact in any order of summation; no tied score is 0, which a complex step moves.
    """
    moe = mixture(rng, 4, 3, 5, 2, **options)
    router = np.array([[4.0, 0, 0], [1, 2, 0], [-4, 0, 1], [1, 2, 0]])
    x = np.array([[1.0, 0, 0], [2, 1, 3], [-1, 1, 1], [1, 1, 0], [1, 3, 1], [0, 1, -2]])
    return replace(moe, router=router), x


def _alike(rng):
    """Two of the experts are one and the same."""
    moe = mixture(rng, 3, 4, 5, 2)
    return replace(moe, experts=(*moe.experts[:2], moe.experts[0]))


def _underflowing(rng, k):
    """Scores so far apart that gates of chosen experts are exactly 0."""
    return mixture(rng, 5, 3, 4, k, bias=np.array([0.0, -900.0, 0.5, 0.2, -1800.0]))


def _mixed(rng):
    """Experts of several kinds and hidden widths."""
    experts = (gelu(rng, 4, 3, 2), swiglu(rng, 4, 7, 2), gelu(rng, 4, 1, 2, "gelu_tanh"), gelu(rng, 4, 5, 2, "silu"))
    return MoE(rng.standard_normal((4, 4)), experts, 2)


def _unclipped_edges(rng):
    """An expert of gpt-oss with tokens of which some units are clipped, and none is near the edge, a kink."""
    f = gpt_oss(rng, 3, 4, 5)
    x = rng.standard_normal((4000, 3))
    z = np.concatenate([f.limit - (x @ f.Wg.T + f.bg), f.limit - np.abs(x @ f.Wu.T + f.bu)], axis=1)
    far = (np.abs(z) > ROOM).all(axis=1) & (z < 0).any(axis=1)
    return f, x[far][:6]


def _deepseek(rng):
    """All at once: sigmoid scores, a selection bias, groups, a scale, shared experts."""
    gate = Gate("sigmoid", rng.standard_normal(8) / 4, Groups(4, 2), scale=2.5)
    return mixture(rng, 8, 5, 3, 3, kind=swiglu, gate=gate, shared=1)


def _block(rng, d):
    return Residual(Stack((norm(rng, d), mixture(rng, 3, d, 3, 1, renormalize=False))))


EXPERTS = (
    Case("gelu", lambda rng: gelu(rng, 5, 7, 5)),
    Case("gelu_square", lambda rng: gelu(rng, 4, 4, 4)),
    Case("gelu_tanh", lambda rng: gelu(rng, 5, 7, 5, "gelu_tanh")),
    Case("mlp_of_silu", lambda rng: gelu(rng, 5, 7, 5, "silu")),
    Case("gelu_narrow_output", lambda rng: gelu(rng, 5, 7, 2)),
    Case("gelu_wide_hidden", lambda rng: gelu(rng, 3, 40, 4)),
    Case("gelu_one_hidden", lambda rng: gelu(rng, 5, 1, 3)),
    Case("gelu_of_a_number", lambda rng: gelu(rng, 1, 1, 1), n=1),
    Case("gelu_one_token", lambda rng: gelu(rng, 5, 7, 5), n=1),
    Case("gelu_rank_one", lambda rng: _rank_one(gelu(rng, 5, 7, 5))),
    Case("gelu_tiny_under_huge", lambda rng: _scaled(gelu(rng, 5, 7, 5), 1e-12)),
    Case("gelu_saturated", _far, underflow=True),
    Case("swiglu", lambda rng: swiglu(rng, 5, 7, 5)),
    Case("swiglu_narrow_output", lambda rng: swiglu(rng, 5, 7, 2)),
    Case("swiglu_one_hidden", lambda rng: swiglu(rng, 5, 1, 3)),
    Case("swiglu_one_token", lambda rng: swiglu(rng, 3, 7, 4), n=1),
)

LAYERS = (
    Case("linear", lambda rng: linear(rng, 5, 3)),
    Case("linear_gelu", lambda rng: linear(rng, 5, 3, "gelu")),
    Case("linear_one_token", lambda rng: linear(rng, 1, 1, "silu"), n=1),
    Case("norm", lambda rng: norm(rng, 5)),
    Case("norm_near_zero", _near_zero),
    Case("norm_of_two_numbers", lambda rng: norm(rng, 2), n=2),
    Case("layer_norm", lambda rng: layer_norm(rng, 5)),
    Case("layer_norm_near_zero", lambda rng: (layer_norm(rng, 5), 3e-3 * rng.standard_normal((6, 5)))),
    Case("layer_norm_of_three_numbers", lambda rng: layer_norm(rng, 3), n=2),
    Case("residual", lambda rng: Residual(gelu(rng, 5, 7, 5))),
    Case("stack", lambda rng: Stack((linear(rng, 5, 4), swiglu(rng, 4, 6, 4), linear(rng, 4, 2, "gelu_tanh")))),
    Case("stack_of_squares", lambda rng: Stack((linear(rng, 4, 4), gelu(rng, 4, 3, 4), linear(rng, 4, 4)))),
    Case("block", lambda rng: Residual(Stack((norm(rng, 5), mixture(rng, 4, 5, 3, 2))))),
    Case("layer_norm_block", lambda rng: Residual(Stack((layer_norm(rng, 5), mixture(rng, 4, 5, 3, 2))))),
    Case("two_blocks", lambda rng: Stack((_block(rng, 4), _block(rng, 4)))),
)

MIXTURES = (
    Case("soft", lambda rng: mixture(rng, 4, 5, 3, 4)),
    Case("soft_not_renormalized", lambda rng: mixture(rng, 4, 5, 3, 4, renormalize=False)),
    Case("top1", lambda rng: mixture(rng, 4, 5, 3, 1)),
    Case("switch", lambda rng: mixture(rng, 4, 5, 3, 1, renormalize=False)),
    Case("top2", lambda rng: mixture(rng, 4, 5, 3, 2)),
    Case("top2_not_renormalized", lambda rng: mixture(rng, 4, 5, 3, 2, renormalize=False)),
    Case("top2_cold", lambda rng: mixture(rng, 4, 5, 3, 2, temperature=0.3)),
    Case("top2_warm", lambda rng: mixture(rng, 4, 5, 3, 2, renormalize=False, temperature=2.0)),
    Case("top3_biased", lambda rng: mixture(rng, 5, 4, 3, 3, bias=rng.standard_normal(5), temperature=0.7)),
    Case("swiglu_mixture", lambda rng: mixture(rng, 3, 4, 5, 2, kind=swiglu)),
    Case("mixed_kinds", _mixed),
    Case("narrow_output", lambda rng: mixture(rng, 4, 5, 3, 2, o=2)),
    Case("wide_output", lambda rng: mixture(rng, 3, 2, 3, 2, o=7, renormalize=False)),
    Case("one_hidden", lambda rng: mixture(rng, 3, 4, 1, 2)),
    Case("one_expert", lambda rng: mixture(rng, 1, 4, 5, 1)),
    Case("one_token", lambda rng: mixture(rng, 4, 5, 3, 2), n=1),
    Case("one_of_everything", lambda rng: mixture(rng, 1, 1, 1, 1, bias=rng.standard_normal(1)), n=1),
    Case("avoided_expert", _avoided),
    Case("faint_expert", _faint),
    Case("more_experts_than_tokens", _lonely),
    Case("ties", _tied, smooth=False),
    Case("ties_not_renormalized", lambda rng: _tied(rng, renormalize=False), smooth=False),
    Case("experts_alike", lambda rng: _alike(rng)),
    Case("underflowing_gates", lambda rng: _underflowing(rng, 5), underflow=True),
    Case("underflowing_chosen_gate", lambda rng: _underflowing(rng, 4), underflow=True),
)  # fmt: skip

# gates and experts of released families, of which verify knows nothing yet

FIELD_EXPERTS = (
    Case(
        "swiglu_biased", lambda rng: replace(swiglu(rng, 5, 7, 4), bg=rng.standard_normal(7), bd=rng.standard_normal(4))
    ),
    Case("swiglu_steep", lambda rng: replace(swiglu(rng, 5, 7, 4), beta=1.702, shift=1.0)),
    Case("gpt_oss", _unclipped_edges),
)

FIELD_MIXTURES = (
    Case("sigmoid", lambda rng: mixture(rng, 4, 5, 3, 2, gate=Gate("sigmoid"))),
    Case("sigmoid_not_renormalized", lambda rng: mixture(rng, 4, 5, 3, 2, renormalize=False, gate=Gate("sigmoid"))),
    Case("sigmoid_of_all", lambda rng: mixture(rng, 4, 5, 3, 4, gate=Gate("sigmoid", scale=0.5))),
    Case(
        "sigmoid_cold",
        lambda rng: mixture(
            rng, 4, 5, 3, 2, temperature=0.5, bias=rng.standard_normal(4), gate=Gate("sigmoid", scale=3.0)
        ),
    ),
    Case("scaled", lambda rng: mixture(rng, 4, 5, 3, 2, gate=Gate(scale=2.5))),
    Case("scaled_not_renormalized", lambda rng: mixture(rng, 4, 5, 3, 2, renormalize=False, gate=Gate(scale=16.0))),
    Case("selection", lambda rng: mixture(rng, 5, 4, 3, 2, gate=Gate("sigmoid", rng.standard_normal(5)))),
    Case("selection_of_softmax", lambda rng: mixture(rng, 5, 4, 3, 2, gate=Gate(selection=rng.standard_normal(5)))),
    Case(
        "groups_by_largest",
        lambda rng: mixture(rng, 6, 4, 3, 2, renormalize=False, gate=Gate(groups=Groups(3, 2, "largest"), scale=2.0)),
    ),
    Case("groups_by_best_two", lambda rng: mixture(rng, 6, 4, 3, 2, gate=Gate("sigmoid", groups=Groups(3, 1)))),
    Case("one_group", lambda rng: mixture(rng, 4, 4, 3, 2, gate=Gate(groups=Groups(1, 1)))),
    Case("deepseek", _deepseek),
    Case("sparsemixer", lambda rng: mixture(rng, 5, 4, 3, 2, gate=Gate("sparsemixer", near=0.8))),
    Case("sparsemixer_of_one", lambda rng: mixture(rng, 5, 4, 3, 1, gate=Gate("sparsemixer", near=1.2, scale=2.0))),
    Case(
        "gates_on_the_input",
        lambda rng: mixture(
            rng, 4, 5, 3, 1, renormalize=False, kind=swiglu, gate=Gate("sigmoid", on_input=True), shared=1
        ),
    ),
    Case("soft_gates_on_the_input", lambda rng: mixture(rng, 3, 4, 3, 3, o=2, gate=Gate(on_input=True))),
    Case("shared", lambda rng: mixture(rng, 4, 5, 3, 2, shared=2)),
    Case("shared_gated", lambda rng: mixture(rng, 4, 5, 3, 2, renormalize=False, shared=1, shared_gate=True)),
    Case("two_shared_gated", lambda rng: mixture(rng, 3, 4, 5, 3, o=2, shared=2, shared_gate=True)),
)

CASES = EXPERTS + LAYERS + MIXTURES
ALL = CASES + FIELD_EXPERTS + FIELD_MIXTURES
BY_NAME = {case.name: case for case in ALL}
assert len(BY_NAME) == len(ALL), "two cases of one name would draw the same numbers"


def rows(*table):
    """The rows of a table for pytest, whose last column is a case; it says whether the row may underflow."""
    return [
        pytest.param(
            *row,
            id="-".join(getattr(cell, "__name__", str(cell)) for cell in row),
            marks=[pytest.mark.underflow] * row[-1].underflow,
        )
        for row in table
    ]
