"""The comparisons: each a function of a dtype that gives a `Row`. Sizes are SC1's unless said.

A row's ways start from one `Problem`; `compare` holds their numbers against one another before it times them. Peers
that are not installed are left out, and the table says so.
"""

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf

import npmoe
from bench.memory import megabytes
from bench.problem import Problem, problem
from bench.timing import Row, compare
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.scalar import gelu
from npmoe.calculus.threads import each
from npmoe.geometry.pca import weighted_pca
from npmoe.probe import function

__all__ = ["AIMS", "DTYPES", "EXTRA", "PEERS", "ROWS", "WORK", "Aim", "missing"]

Array = np.ndarray
Ways = dict[str, Callable[[], Any]]

PEERS = {"torch": "bench.peers.with_torch", "jax": "bench.peers.with_jax"}
TOLERANCE = {
    "float64": 1e-9,
    "float32": 2e-4,
}  # of the largest entry; sums of up to 1024 products, and losses of 5 steps


#: Ways that are the framework's own line for the work. The others were tuned for these very sizes.
PLAIN = {
    "torch eager",
    "jax jit",
    "torch vmap jacrev",
    "jax jit(vmap(jacrev))",
    "jax jacrev in a shared shift, plain",
    "torch batched backward",
    "torch svdvals",
    "jax svd",
    "torch script",
}


class Aim(NamedTuple):
    """Ratios to the best peer: what is aimed at, and what is to be reached."""

    aim: float
    least: float


# ---- ours ------------------------------------------------------------------------------------------------------------


def train(p: Problem) -> Callable[[], Any]:
    """One step of `fit`; gives the loss in front of it."""
    training = npmoe.fit(p.moe(), p.x, p.y, steps=10**9)
    return lambda: next(training)[1]


def expert_jacobians(p: Problem) -> Callable[[], Any]:
    """Every expert at every token, in closed form."""
    experts = p.moe().experts
    return lambda: each(lambda f: f.jacobian(p.x), experts)


def moe_jacobian(p: Problem) -> Callable[[], Any]:
    """The whole layer, router's term included."""
    moe = p.moe()
    return lambda: moe.jacobian(p.x)


def mean_jacobians(p: Problem) -> Callable[[], Any]:
    """Weighted by gates, from one forward pass."""
    moe = p.moe()
    site = npmoe.Site(x=p.x, gates=p.gates, chosen=moe.route(p.x)[1], experts=moe.experts)
    return lambda: function.mean_jacobians(site)


def leading_values(p: Problem) -> Callable[[], Any]:
    """Lanczos on the factors; no Jacobian is formed."""
    experts = p.moe().experts
    return lambda: each(lambda f: f.linearize(p.x).leading(1e-6).values, experts)


def full_spectra(p: Problem) -> Callable[[], Any]:
    """Formed a piece at a time, and decomposed by LAPACK."""
    experts = p.moe().experts
    return lambda: each(lambda f: f.linearize(p.x).singular_values(), experts)


def pca(p: Problem) -> Callable[[], Any]:
    """Eigenvalues of the covariances, weighted by gates."""
    return lambda: weighted_pca(p.x, p.gates).eigenvalues


def sc1(problems: dict[str, Problem], steps: int) -> dict[str, tuple]:
    """The controlled experiment: train, then mean of the routed tokens' spectra, spectra of the means, PCA."""
    found = {}
    for name, p in problems.items():
        for _, loss, model in npmoe.fit(p.moe(), p.x, p.y, steps):  # noqa: B007, the last pair is what is wanted
            pass
        site = npmoe.site(model, p.x)
        spectra = function.token_spectra(site).sigma
        found[name] = loss, spectra, function.mean_spectra(site), weighted_pca(site.x, site.gates).eigenvalues
    return found


#: What is timed, and over which sizes it is made to grow in `bench.scaling`.
WORK: dict[str, Callable[[Problem], Callable[[], Any]]] = {
    "train": train,
    "expert_jacobians": expert_jacobians,
    "moe_jacobian": moe_jacobian,
    "mean_jacobians": mean_jacobians,
    "leading_values": leading_values,
    "full_spectra": full_spectra,
    "weighted_pca": pca,
}


# ---- theirs ----------------------------------------------------------------------------------------------------------


def _modules() -> Iterator[Any]:
    for name in PEERS.values():
        try:
            yield importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in PEERS:
                raise


def missing() -> list[str]:
    """Peers that are not installed."""
    have = {module.__name__ for module in _modules()}
    return [peer for peer, name in PEERS.items() if name not in have]


def _theirs(work: str, p: Problem) -> Ways:
    return {name: way for module in _modules() for name, way in getattr(module, work)(p).items()}


def _close(rtol: float) -> Callable[[Any, Any], None]:
    def equal(a: Any, b: Any) -> None:
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(np.abs(b).max()))

    return equal


def _row(name: str, work: str, *, k: int, dtype: str, least: int = 3, **sizes: int) -> Row:
    p = problem(k, dtype=dtype, **sizes)
    (n, d), (E, h, _) = p.x.shape, p.W1.shape
    size = f"E={E} k={k} d={d} h={h} N={n}"
    equal = _close(TOLERANCE[dtype])
    return compare(name, WORK[work](p), _theirs(work, p), size=size, dtype=dtype, equal=equal, least=least, plain=PLAIN)


# ---- the rows --------------------------------------------------------------------------------------------------------


def train_soft(dtype: str) -> Row:
    """One step of Adam on the mean squared error, all experts on all tokens."""
    return _train("train soft", 8, dtype)


def train_top2(dtype: str) -> Row:
    """The same with two experts a token."""
    return _train("train top2", 2, dtype)


def _train(name: str, k: int, dtype: str, **sizes: int) -> Row:
    """Checked by the losses of the first steps, each way from the same start, on an instance of its own."""
    p = problem(k, dtype=dtype, **sizes)

    def losses(way: Callable[[], Any]) -> Array:
        return np.array([float(way()) for _ in range(6)])

    ours = losses(train(p))
    for peer, way in _theirs("train", p).items():
        try:
            _close(TOLERANCE[dtype])(ours, losses(way))
        except AssertionError as error:
            raise AssertionError(f"{name} ({dtype}): {peer} gives other losses than npmoe: {error}") from None
    size = f"E={len(p.router)} k={k} d={p.x.shape[1]} h={p.W1.shape[1]} N={len(p.x)}"
    return compare(name, train(p), _theirs("train", p), size=size, dtype=dtype, least=5, plain=PLAIN)


def expert_jacobian_row(dtype: str) -> Row:
    """dy/dx of all experts at all tokens."""
    return _row("expert jacobians", "expert_jacobians", k=8, dtype=dtype)


def moe_jacobian_row(dtype: str) -> Row:
    """dy/dx of the whole layer, all experts on all tokens."""
    return _row("moe jacobian", "moe_jacobian", k=8, dtype=dtype)


def moe_jacobian_top2(dtype: str) -> Row:
    """The same with two experts a token."""
    return _row("moe jacobian top2", "moe_jacobian", k=2, dtype=dtype)


def mean_row(dtype: str) -> Row:
    """Mean Jacobians of all experts, weighted by gates, against autodiff."""
    return _row("mean jacobians", "mean_jacobians", k=8, dtype=dtype)


def closed_row(dtype: str) -> Row:
    """The same against the same closed form, typed into the other frameworks."""
    p = problem(8, dtype=dtype)
    ways = _theirs("mean_jacobians_closed", p)
    equal = _close(TOLERANCE[dtype])
    size = "E=8 k=8 d=64 h=128 N=512"
    return compare("mean jacobians closed", mean_jacobians(p), ways, size=size, dtype=dtype, equal=equal)


def leading_row(dtype: str) -> Row:
    """Largest singular value of every expert's Jacobian at every token, to 1e-6, against forming and decomposing."""
    return _leading("leading values", dtype, matrix_free=False)


def matrix_free_row(dtype: str) -> Row:
    """The same against the same idea in another framework: no Jacobian is formed on either side."""
    return _leading("leading values matrix-free", dtype, matrix_free=True)


def _leading(name: str, dtype: str, matrix_free: bool) -> Row:
    p = problem(8, dtype=dtype)
    ways = {way: f for way, f in _theirs("leading_values", p).items() if ("matrix-free" in way) == matrix_free}
    equal = _close({"float64": 1e-6, "float32": 1e-4}[dtype])
    return compare(
        name, leading_values(p), ways, size="E=8 k=8 d=64 h=128 N=512", dtype=dtype, equal=equal, plain=PLAIN
    )


def spectra_row(dtype: str) -> Row:
    """All singular values of every expert's Jacobian at every token, from the weights."""
    return _row("full spectra", "full_spectra", k=8, dtype=dtype)


def pca_row(dtype: str) -> Row:
    """Covariance spectra of the tokens of every expert, weighted by gates."""
    return _row("weighted pca", "weighted_pca", k=8, dtype=dtype)


def sc1_row(dtype: str, steps: int = 1000) -> Row:
    """Three models trained, all spectra and PCA: ours against a careful script. Checked after 20 steps."""
    dense = problem(1, E=1, dtype=dtype)
    problems = {"dense": dense, "soft": problem(8, dtype=dtype), "top2": problem(2, dtype=dtype)}
    has = [module for module in _modules() if hasattr(module, "sc1")]
    scripts = {f"{module.__name__.rpartition('_')[2]} script": module.sc1 for module in has}
    memory = {"npmoe": megabytes(partial(sc1, problems, 20))}
    for way, script in scripts.items():
        memory[way] = megabytes(partial(script, problems, 20))
        theirs = script(problems, 20)
        for name, ours in sc1(problems, 20).items():
            for a, b in zip(ours, theirs[name], strict=True):
                _close({"float64": 1e-6, "float32": 1e-2}[dtype])(a, b)  # Adam's first steps divide by tiny moments
    peers: Ways = {name: partial(script, problems, steps) for name, script in scripts.items()}
    return compare("sc1 end to end", lambda: sc1(problems, steps), peers, size=f"3 models, {steps} steps", dtype=dtype,
                   least=1, plain=PLAIN, memory=memory)  # fmt: skip


def import_row(dtype: str = "") -> Row:
    """Seconds that `import npmoe` takes in a new interpreter, less those of an empty one; no peer."""
    del dtype

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - start) * 1e3

    without = "import npmoe, sys; assert 'matplotlib' not in sys.modules"
    run(without)  # bytecode and disk cache
    taken = [run(without) - run("pass") for _ in range(15)]
    return Row("import", "", "of npmoe, without matplotlib", float(np.median(taken)), {}, {}, len(taken))


def gelu_row(dtype: str) -> Row:
    """Value and slope of the exact GELU, one thread, against scipy's erf."""
    keep_heap()
    z = np.random.default_rng(0).standard_normal((512, 128)).astype(dtype)
    root, scale = z.dtype.type(np.sqrt(0.5)), z.dtype.type(1 / np.sqrt(2 * np.pi))

    def with_erf() -> tuple[Array, Array]:
        Phi = (1 + erf(z * root)) / 2
        return z * Phi, Phi + z * np.exp(-z * z / 2) * scale

    equal = _close({"float64": 1e-14, "float32": 1e-6}[dtype])
    return compare("gelu", lambda: gelu(z), {"scipy erf": with_erf}, size="512 x 128", dtype=dtype, equal=equal)


def mean_of_width(d: int) -> Callable[[str], Row]:
    """Mean Jacobian of one expert of width d: autodiff needs d passes, the closed form one."""

    def row(dtype: str) -> Row:
        return _row(f"mean jacobians d={d}", "mean_jacobians", k=1, dtype=dtype, E=1, n=64, d=d, h=2 * d, least=1)

    return row


def train_wide(dtype: str) -> Row:
    """A training step where the matrix products are nearly all of the work."""
    return _train("train soft wide", 8, dtype, d=512, h=1024)


ROWS: dict[str, Callable[[str], Row]] = {
    "train soft": train_soft,
    "train top2": train_top2,
    "expert jacobians": expert_jacobian_row,
    "moe jacobian": moe_jacobian_row,
    "mean jacobians": mean_row,
    "mean jacobians closed": closed_row,
    "leading values": leading_row,
    "full spectra": spectra_row,
    "weighted pca": pca_row,
    "sc1 end to end": sc1_row,
    "import": import_row,
}

#: Beyond the issue's table: where the gain comes from, how it grows, and where the peers are as good or better.
EXTRA: dict[str, Callable[[str], Row]] = {
    "moe jacobian top2": moe_jacobian_top2,
    "leading values matrix-free": matrix_free_row,
    "gelu": gelu_row,
    **{f"mean jacobians d={d}": mean_of_width(d) for d in (64, 128, 256, 512, 1024)},
    "train soft wide": train_wide,
}

#: Rows that are timed in other dtypes than both.
DTYPES = {
    "import": ("",),
    "train soft wide": ("float64",),
    **{f"mean jacobians d={d}": ("float64",) for d in (64, 128, 256, 512, 1024)},
}

AIMS = {
    "train soft": Aim(2, 1.3),
    "train top2": Aim(4, 2.5),
    "expert jacobians": Aim(4, 3.5),
    "moe jacobian": Aim(4, 3),
    "mean jacobians": Aim(60, 30),
    "mean jacobians closed": Aim(1, 0.8),
    "leading values": Aim(10, 5),
    "full spectra": Aim(2, 1.7),
    "weighted pca": Aim(1.2, 1),
    "sc1 end to end": Aim(4, 2.5),
}
