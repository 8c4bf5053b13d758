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


def mixture(rng, E, d, h, k, o=None, kind=gelu, **options):
    experts = tuple(kind(rng, d, h, o or d) for _ in range(E))
    return MoE(rng.standard_normal((E, d)), experts, k, **options)


# ---- how wide the routing's margin is ------------------------------------------------------------------------------


def margin(moe, x):
    """Gap between the last chosen score and the first that is not, (n,); infinite where all are chosen."""
    if moe.k == len(moe.experts):
        return np.full(len(x), np.inf)
    falling = -np.sort(-moe.scores(x).real, axis=1)
    return falling[:, moe.k - 1] - falling[:, moe.k]


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
)

CASES = EXPERTS + LAYERS + MIXTURES
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases of one name would draw the same numbers"


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
