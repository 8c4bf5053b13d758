"""Sites of mixtures of every kind of routing, and a router that lies: what the tests of `npmoe.probe` share."""

from dataclasses import replace

import numpy as np
from cases import mixture
from hypothesis import settings
from hypothesis import strategies as st

import npmoe
from npmoe import site

EPS = np.finfo(float).eps
ROUNDING = 1e-12  # a few thousand eps: scores of some tens, differences of them divided by a gap of 0.01
EXAMPLES = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)

#: E, d, k, renormalize, temperature, bias
KINDS = {
    "soft": (6, 9, 6, True, 1.0, False),
    "soft not renormalized": (4, 7, 4, False, 1.0, False),
    "soft cold": (5, 8, 5, True, 0.25, False),
    "top2": (8, 12, 2, True, 1.0, False),
    "top2 cold biased": (8, 12, 2, True, 0.25, True),
    "top3 warm": (7, 9, 3, True, 4.0, False),
    "top2 not renormalized": (6, 8, 2, False, 1.0, True),
    "top1": (5, 8, 1, True, 1.0, False),
    "switch": (5, 8, 1, False, 1.0, False),
    "switch cold biased": (5, 8, 1, False, 0.25, True),
    "two experts": (2, 5, 1, True, 1.0, True),
    "two experts soft": (2, 5, 2, True, 4.0, False),
    "more experts than d": (9, 4, 3, True, 1.0, False),
    "many more, switch": (12, 3, 1, False, 4.0, True),
    "one expert": (1, 3, 1, True, 1.0, True),
}
#: those with a wall, and those of which a part of x is invisible
WALLED = {name for name, (E, _, k, *_) in KINDS.items() if k < E}
BLIND = {name for name, (E, d, *_) in KINDS.items() if d > E - 1}

kinds = st.sampled_from(sorted(KINDS))
walled = st.sampled_from(sorted(WALLED))
blind = st.sampled_from(sorted(BLIND - {"one expert"}))


def drawn(kind, seed, n=20, trained=False):
    """The Site of a mixture of this kind on n tokens, at random or after 20 steps, and the generator."""
    E, d, k, renormalize, temperature, bias = KINDS[kind]
    rng = np.random.default_rng(seed)
    b = rng.standard_normal(E) if bias else None
    moe = mixture(rng, E, d, 4, k, renormalize=renormalize, temperature=temperature, bias=b)
    if trained:
        x = rng.standard_normal((40, d))
        *_, (_, _, moe) = npmoe.fit(moe, x, np.tanh(x[:, ::-1]), 20, lr=0.05)
    labels = {"sequence": np.arange(n) % 3}
    return replace(site(moe, rng.standard_normal((n, d))), labels=labels), rng


def sets(s, x):
    """The chosen sets of the Site's router, (n, k) in order of number."""
    return np.sort(s.router.moe.route(x)[1], axis=1)


def changed(s, x):
    """Tokens whose set at x is another one than the Site's."""
    return (sets(s, x) != np.sort(s.chosen, axis=1)).any(axis=1)


def partners(s, rng):
    """Others near and far: half of them close to x."""
    far = rng.standard_normal(s.x.shape)
    near = s.x + rng.standard_normal(s.x.shape) * 10.0 ** rng.uniform(-9, 0, (s.n, 1))
    return np.where(rng.random((s.n, 1)) < 0.5, near, far)


class Liar:
    """A router whose scores are those of another matrix than it shows."""

    def __init__(self, router, factor=1.0, matrix=None):
        self.router, self.factor, self.shown = router, factor, matrix
        self.bias, self.temperature, self.moe = router.bias, router.temperature, router.moe
        self.gates, self.scores = router.gates, router.scores

    @property
    def matrix(self):
        return self.router.matrix * self.factor if self.shown is None else self.shown
