# mypy: ignore-errors
"""JAX on the CPU, compiled: everything is under `jax.jit`, and autodiff does the differentiation unless a name says so.

Two things matter more than the choice of a transform: intermediates are kept in the cache (`jax.lax.map` with
`batch_size` over tokens), and GELU is written with the faster of XLA's erf and erfc for each dtype.

n tokens, d width, h hidden, E experts, k experts a token; c slots an expert in the dispatched step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.problem import Problem

__all__ = [
    "expert_jacobians",
    "full_spectra",
    "leading_values",
    "mean_jacobians",
    "mean_jacobians_closed",
    "moe_jacobian",
    "train",
    "weighted_pca",
]

jax.config.update("jax_enable_x64", True)  # float32 arrays stay float32

Array = jax.Array
Ways = dict[str, Callable[[], Any]]

_ROOT_HALF, _DENSITY = 0.5**0.5, (2 * np.pi) ** -0.5  # 1 / sqrt(2), 1 / sqrt(2 pi)
_CHUNK = 64  # tokens whose Jacobians of one expert are formed together
_CHUNK_LAYER = 16  # the same for the whole layer, where a token brings all its experts


def _cdf(z: Array) -> Array:
    """Standard normal distribution: XLA vectorizes erf in float32, and erfc better than erf in float64."""
    if z.dtype == jnp.float32:
        return 0.5 + 0.5 * jax.lax.erf(_ROOT_HALF * z)
    return 0.5 * jax.lax.erfc(-_ROOT_HALF * z)


def _gelu(z: Array) -> Array:
    """Exact GELU."""
    return z * _cdf(z) if z.dtype == jnp.float32 else jax.nn.gelu(z, approximate=False)


def _expert(W1: Array, b1: Array, W2: Array, b2: Array, x: Array) -> Array:
    """One expert, for x (d,) or (n, d)."""
    return _gelu(x @ W1.T + b1) @ W2.T + b2


def _weights(p: Problem) -> tuple[Array, ...]:
    """W1, b1, W2, b2 of all experts."""
    return tuple(jnp.asarray(w) for w in (p.W1, p.b1, p.W2, p.b2))


def _finished(f: Callable, *args: Any, **options: Any) -> Callable[[], Any]:
    """`f` compiled, as a callable without arguments that waits for the result."""
    compiled = jax.jit(f, **options)
    return lambda: jax.block_until_ready(compiled(*args))


# ---- training ------------------------------------------------------------------------------------------------------


def train(p: Problem) -> Ways:
    """Steps of Adam: all experts as two large products; for k < E also only the chosen experts, grouped by expert."""
    return {"jax jit": _dense_step(p)} | ({"jax dispatch": _dispatched_step(p)} if p.k < len(p.router) else {})


def _choose(scores: Array, k: int) -> Array:
    """Indices of the k largest, (n, k): a few argmax are faster than `jax.lax.top_k` on the CPU."""
    chosen, rest, experts = [], jax.lax.stop_gradient(scores), jnp.arange(scores.shape[-1])
    for _ in range(k):
        best = rest.argmax(-1)
        chosen.append(best)
        rest = jnp.where(experts == best[..., None], -jnp.inf, rest)
    return jnp.stack(chosen, -1)


def _gates(scores: Array, k: int) -> Array:
    """Softmax over the k largest scores, 0 elsewhere."""
    E = scores.shape[-1]
    if k < E:
        on = (_choose(scores, k)[..., None] == jnp.arange(E)).any(-2)
        scores = jnp.where(on, scores, -jnp.inf)
    return jax.nn.softmax(scores)


def _start(parameters: dict[str, Array]) -> tuple:
    """Parameters, moments of zero, and the number of steps taken."""
    parameters = {name: jnp.array(value) for name, value in parameters.items()}  # copies: they will be donated
    m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
    return parameters, m, v, jnp.zeros((), jnp.int32)


def _adam(state: tuple, gradient: dict[str, Array], lr: float = 1e-3) -> tuple:
    """One step of Adam over the tree."""
    parameters, m, v, t = state
    t = t + 1
    c1, c2 = (1 / (1 - beta ** t.astype(jnp.float64)) for beta in (0.9, 0.999))

    def move(w: Array, m: Array, v: Array) -> Array:
        return w - lr * (m * c1.astype(w.dtype)) / (jnp.sqrt(v * c2.astype(w.dtype)) + 1e-8)

    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradient)
    return jax.tree.map(move, parameters, m, v), m, v, t


def _dense_step(p: Problem) -> Callable[[], Array]:
    """All experts at all tokens: gates scale the hidden units, so that both layers are single products."""
    E, h, d = p.W1.shape
    x, y = jnp.asarray(p.x), jnp.asarray(p.y)
    # the layouts whose gradients are products x^T z, which Eigen likes better than z^T x
    W1, W2 = p.W1.reshape(E * h, d).T, p.W2.transpose(1, 0, 2).reshape(d, E * h)
    state = _start({"router": p.router, "W1": W1, "b1": p.b1.reshape(-1), "W2": W2, "b2": p.b2})

    def loss(w: dict[str, Array], x: Array, y: Array) -> Array:
        gates = _gates(x @ w["router"].T, p.k)
        a = _gelu(x @ w["W1"] + w["b1"]).reshape(-1, E, h) * gates[:, :, None]
        return jnp.mean((a.reshape(-1, E * h) @ w["W2"].T + gates @ w["b2"] - y) ** 2)

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple, x: Array, y: Array) -> tuple[tuple, Array]:
        value, gradient = jax.value_and_grad(loss)(state[0], x, y)
        return _adam(state, gradient), value

    def once() -> Array:
        nonlocal state
        state, value = jax.block_until_ready(step(state, x, y))
        return value

    return once


@jax.custom_vjp
def _permute(values: Array, source: Array, back: Array) -> Array:
    """values[source], whose cotangent is a gather too, not a scatter; `back` undoes `source`."""
    return values[source]


_permute.defvjp(lambda values, source, back: (values[source], back), lambda back, ct: (ct[back], None, None))


def _dispatched_step(p: Problem) -> Callable[[], Array]:
    """Chosen experts only: tokens sorted by expert into c slots each, then batched products.

    Shapes are static, so a step is compiled for each c. It returns the largest number of tokens of an expert; should
    that exceed c, the step is thrown away and done again with enough slots: no token is ever dropped.
    """
    (n, d), E, k = p.x.shape, len(p.router), p.k
    x, y = jnp.asarray(p.x), jnp.asarray(p.y)
    W1, W2 = p.W1.transpose(0, 2, 1), p.W2.transpose(0, 2, 1)  # (E, d, h), (E, h, d)
    state = _start({"router": p.router, "W1": W1, "b1": p.b1, "W2": W2, "b2": p.b2})

    def loss(w: dict[str, Array], x: Array, y: Array, c: int) -> tuple[Array, Array]:
        scores = x @ w["router"].T
        chosen = _choose(scores, k)  # (n, k)
        gates = jax.nn.softmax(jnp.take_along_axis(scores, chosen, 1)).reshape(-1)
        expert, pair = chosen.reshape(-1).astype(jnp.int32), jnp.arange(n * k, dtype=jnp.int32)
        order = jnp.sort(expert * (n * k) + pair) % (n * k)  # pairs (token, choice), by expert
        counts = (expert[:, None] == jnp.arange(E)).sum(0, dtype=jnp.int32)
        first = jnp.cumsum(counts) - counts
        place = jnp.zeros_like(pair).at[order].set(pair, unique_indices=True) - first[expert]
        slot = jnp.minimum(expert * c + place, E * c - 1)  # of every pair, (n k,)
        offset = jnp.arange(c, dtype=jnp.int32)
        pair_of = order[jnp.minimum(first[:, None] + offset, n * k - 1)].reshape(-1)  # of every slot, (E c,)
        used = (offset < counts[:, None])[:, :, None]
        g = jnp.where(used, _permute(gates, pair_of, slot).reshape(E, c, 1), 0)
        a = _gelu(x[pair_of // k].reshape(E, c, d) @ w["W1"] + w["b1"][:, None]) * g
        out = a @ w["W2"] + g * w["b2"][:, None]  # (E, c, d)
        out = _permute(out.reshape(E * c, d), slot, pair_of).reshape(n, k, d).sum(1)
        return jnp.mean((out - y) ** 2), counts.max()

    @partial(jax.jit, static_argnames="c")
    def step(state: tuple, x: Array, y: Array, c: int) -> tuple[tuple, Array, Array]:
        (value, load), gradient = jax.value_and_grad(loss, has_aux=True)(state[0], x, y, c)
        return _adam(state, gradient), value, load

    def enough(load: int) -> int:
        return min(n, -(-load // 32) * 32)

    c = enough(-(-n * k // E))

    def once() -> Array:
        nonlocal state, c
        while True:
            new, value, load = jax.block_until_ready(step(state, x, y, c))
            if int(load) <= c:
                state = new
                return value
            c = enough(int(load))

    return once


# ---- Jacobians -----------------------------------------------------------------------------------------------------


def _jacobians(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Array:
    """Jacobians of one expert, (n, d, d): reverse mode, a chunk of tokens at a time."""
    return jax.lax.map(jax.jacrev(partial(_expert, W1, b1, W2, b2)), x, batch_size=_CHUNK)


def expert_jacobians(p: Problem) -> Ways:
    """vmap(jacrev) over tokens and experts at once, an expert at a time, or an expert and a chunk at a time."""
    x, w = jnp.asarray(p.x), _weights(p)
    each = list(zip(*w, strict=True))
    rows = jax.vmap(jax.jacrev(_expert, argnums=4), in_axes=(None, None, None, None, 0))
    one, chunked = jax.jit(rows), jax.jit(_jacobians)
    return {
        "jax jit(vmap(jacrev))": _finished(lambda x, *w: jax.vmap(rows, in_axes=(0, 0, 0, 0, None))(*w, x), x, *w),
        "jax jacrev by expert": lambda: jax.block_until_ready([one(*we, x) for we in each]),
        "jax jacrev in chunks": lambda: jax.block_until_ready([chunked(x, *we) for we in each]),
    }


def moe_jacobian(p: Problem) -> Ways:
    """vmap(jacrev) of the layer at once or in chunks of tokens; for k < E also with the chosen weights gathered."""
    E, h, d = p.W1.shape
    arrays = tuple(jnp.asarray(a) for a in (p.x, p.router, p.W1, p.b1, p.W2, p.b2))

    def flat(router: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> tuple[Array, ...]:
        return router, W1.reshape(E * h, d), b1.reshape(-1), W2.transpose(1, 0, 2).reshape(d, E * h), b2

    def layer(w: tuple[Array, ...], x: Array) -> Array:
        router, W1, b1, W2, b2 = w
        gates = _gates(router @ x, p.k)
        return W2 @ (_gelu(W1 @ x + b1).reshape(E, h) * gates[:, None]).reshape(-1) + gates @ b2

    def gathered(w: tuple[Array, ...], x: Array) -> Array:
        router, W1, b1, W2, b2 = w
        scores = router @ x
        e = _choose(scores, p.k)
        gates = jax.nn.softmax(scores[e])
        a = _gelu(jnp.einsum("khd,d->kh", W1[e], x) + b1[e]) * gates[:, None]
        return jnp.einsum("koh,kh->o", W2[e], a) + gates @ b2[e]

    def chunks(f: Callable, w: tuple[Array, ...], x: Array) -> Array:
        return jax.lax.map(jax.jacrev(partial(f, w)), x, batch_size=_CHUNK_LAYER)

    ways = {
        "jax jit(vmap(jacrev))": _finished(lambda x, *w: jax.vmap(jax.jacrev(partial(layer, flat(*w))))(x), *arrays),
        "jax jacrev in chunks": _finished(lambda x, *w: chunks(layer, flat(*w), x), *arrays),
    }
    if p.k < E:
        ways["jax jacrev in chunks, gathered"] = _finished(lambda x, *w: chunks(gathered, w, x), *arrays)
    return ways


def mean_jacobians(p: Problem) -> Ways:
    """vjp of the weighted mean in a shift that all tokens share, a few cotangents at a time; no Jacobian a token."""
    d = p.x.shape[1]
    arrays = (jnp.asarray(p.x), jnp.asarray(p.gates), *_weights(p))

    def plain(x: Array, gates: Array, *w: Array) -> Array:
        def mean(delta: Array, g: Array, *w: Array) -> Array:
            return (g / g.sum()) @ _expert(*w, x + delta)

        return jax.lax.map(lambda we: jax.jacrev(mean)(jnp.zeros(d, x.dtype), *we), (gates.T, *w))

    def shifted(x: Array, gates: Array, *w: Array) -> Array:
        def one(we: tuple[Array, ...]) -> Array:
            g, W1, b1, W2, b2 = we

            def mean(delta: Array) -> Array:  # W1 (x + delta) = W1 x + W1 delta, and the mean before W2
                a = _gelu((x @ W1.T + b1) + W1 @ delta)
                return W2 @ ((g / g.sum())[:, None] * a).sum(0) + b2  # a sum that XLA fuses, where a product is not

            _, vjp = jax.vjp(mean, jnp.zeros(d, x.dtype))
            return jax.lax.map(lambda ct: vjp(ct)[0], jnp.eye(d, dtype=x.dtype), batch_size=4)

        return jax.lax.map(one, (gates.T, *w))

    ways = {"jax vjp in a shared shift": _finished(shifted, *arrays)}
    if d <= 128:  # holds d hidden layers of all tokens at once
        ways["jax jacrev in a shared shift, plain"] = _finished(plain, *arrays)
    return ways


def mean_jacobians_closed(p: Problem) -> Ways:
    """The slope of GELU typed by hand, its weighted mean, and one product an expert."""
    E, h, d = p.W1.shape

    def closed(x: Array, gates: Array, W1: Array, b1: Array, W2: Array) -> Array:
        z = x @ W1.reshape(E * h, d).T + b1.reshape(-1)
        slope = _cdf(z) + z * jnp.exp(-0.5 * z * z) * _DENSITY
        m = jnp.einsum("ne,neh->eh", gates / gates.sum(0), slope.reshape(-1, E, h))
        return (W2 * m[:, None]) @ W1

    return {"jax closed form": _finished(closed, *(jnp.asarray(a) for a in (p.x, p.gates, p.W1, p.b1, p.W2)))}


# ---- spectra -------------------------------------------------------------------------------------------------------


def _spectra(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Array:
    """Singular values of one expert's Jacobians, (n, d)."""
    return jnp.linalg.svd(_jacobians(x, W1, b1, W2, b2), compute_uv=False)


def leading_values(p: Problem) -> Ways:
    """The first of all singular values; or Lanczos on v -> J^T J v by jvp and vjp."""
    x, w = jnp.asarray(p.x), _weights(p)
    return {
        "jax svd": _finished(lambda x, *w: jax.lax.map(lambda we: _spectra(x, *we)[:, 0], w), x, *w),
        "jax matrix-free": _finished(_lanczos, x, *w),
    }


def full_spectra(p: Problem) -> Ways:
    """Form and decompose; XLA decomposes a batch on one core, and two programs at once locked up (jaxlib 0.10.0)."""
    x, w = jnp.asarray(p.x), _weights(p)
    return {
        "jax svd": _finished(lambda x, *w: jax.lax.map(lambda we: _spectra(x, *we), w), x, *w),
    }


def _lanczos(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Array:
    """Leading singular values, (E, n), of all Jacobians at once: no Jacobian, and no basis, is kept.

    Without reorthogonalization copies of an eigenvalue appear, which does not change the largest. Steps go on until
    no value moves any more by a tenth of what is asked.
    """
    E, d = len(W1), x.shape[1]
    first, every, most = 16, 4, 16 + 4 * d
    tol = 1e-5 if x.dtype == jnp.float32 else 1e-7

    def forward(x: Array) -> Array:
        a = _gelu(x @ W1.transpose(0, 2, 1) + b1[:, None])
        return a @ W2.transpose(0, 2, 1) + b2[:, None]

    xs = jnp.broadcast_to(x, (E, *x.shape))
    _, jvp = jax.linearize(forward, xs)
    vjp = jax.linear_transpose(jvp, xs)

    def step(j: Array, carry: tuple) -> tuple:
        v, before, alphas, betas = carry
        u = vjp(jvp(v))[0] - betas[j][..., None] * before
        alpha = (u * v).sum(-1)
        u = u - alpha[..., None] * v
        beta = jnp.sqrt((u * u).sum(-1))
        u = u / jnp.maximum(beta, jnp.finfo(x.dtype).tiny)[..., None]
        return u, v, alphas.at[j].set(alpha), betas.at[j + 1].set(beta)

    def advance(state: tuple, steps: int) -> tuple:
        j, values, _, carry = state
        carry = jax.lax.fori_loop(j, j + steps, step, carry)
        new = _largest(*carry[2:], j + steps, values)
        return j + steps, new, jnp.max((new - values) / new), carry

    start = jax.random.normal(jax.random.key(0), xs.shape, x.dtype)
    start /= jnp.linalg.norm(start, axis=-1, keepdims=True)
    carry = start, jnp.zeros_like(start), *(jnp.zeros((most + 1, *xs.shape[:2]), x.dtype) for _ in range(2))
    state = advance((0, jnp.zeros(xs.shape[:2], x.dtype), jnp.inf, carry), first)
    state = advance(state, every)
    moves = jax.lax.while_loop(
        lambda s: (s[2] > 2 * tol) & (s[0] + every <= most), partial(advance, steps=every), state
    )
    return jnp.sqrt(moves[1])


def _largest(alphas: Array, betas: Array, steps: Array, low: Array) -> Array:
    """Largest eigenvalue, at least `low`, of tridiagonal matrices of the first `steps` rows: bisection with Sturm."""
    high = alphas.max(0) + 2 * betas.max(0)
    tiny = jnp.finfo(low.dtype).tiny

    def above(s: Array) -> Array:  # whether all eigenvalues are below s: all pivots of T - s are negative
        def pivot(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            q, negative = carry
            q = (alphas[i] - s) - betas[i] ** 2 / q
            return jnp.where(q == 0, tiny, q), negative & (q < 0)

        ones = -jnp.ones_like(s)
        return jax.lax.fori_loop(0, steps, pivot, (ones, s == s))[1]

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        right = above(middle)
        return jnp.where(right, low, middle), jnp.where(right, middle, high)

    low, high = jax.lax.fori_loop(0, 20 if low.dtype == jnp.float32 else 27, halve, (low, high))
    return (low + high) / 2


def weighted_pca(p: Problem) -> Ways:
    """Weighted covariances of all experts as one batched product, then eigvalsh."""

    def spectra(x: Array, gates: Array) -> Array:
        w = gates / gates.sum(0)  # (n, E)
        xs = (x - (w.T @ x)[:, None]) * jnp.sqrt(w.T)[:, :, None]  # (E, n, d)
        return jnp.linalg.eigvalsh(xs.transpose(0, 2, 1) @ xs)[:, ::-1]

    return {"jax eigvalsh": _finished(spectra, jnp.asarray(p.x), jnp.asarray(p.gates))}
