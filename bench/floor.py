"""What the parts of the rows take on their own: no arrangement of them in NumPy is faster than the sum of its parts.

Sizes are SC1's: E = 8, d = 64, h = 128, N = 512. One and two threads, since NumPy's calls are short and the interpreter
is handed over between them.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from bench.problem import Problem, problem
from bench.timing import best_of
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.scalar import gelu
from npmoe.calculus.threads import each

__all__ = ["floors"]

Array = np.ndarray


def floors() -> dict[str, float]:
    """Milliseconds by what was timed, float64 and float32, with one thread and with as many as there are."""
    keep_heap()
    found: dict[str, float] = {}
    for dtype in ("float64", "float32"):
        p = problem(8, dtype=dtype)
        for what, part in PARTS.items():
            for threads in (1, None):
                with threadpool_limits(threads):
                    label = f"{what}, {dtype}, {'one thread' if threads else 'all threads'}"
                    found[label] = best_of(part(p), spend=0.6)
    for n in (4096, 32768, 262144):
        alone, together = _handover(n, 1), _handover(n, 2)
        found[f"one product of {n} numbers in place, alone"] = alone
        found[f"one product of {n} numbers in place, while another thread does the same"] = together
    found["import numpy"] = _import("numpy") - _import("sys")
    return found


def _products(p: Problem) -> Callable[[], Any]:
    """The five products of a training step, an expert after the other, into memory that is there."""
    h = p.W1.shape[1]
    z, dy = np.empty((len(p.router), len(p.x), h), p.x.dtype), p.y
    y, dW = np.empty_like(np.broadcast_to(p.y, (len(p.router), *p.y.shape))), np.empty_like(p.W1)

    def expert(W1: Array, W2: Array, z: Array, y: Array, dW: Array) -> None:
        np.matmul(p.x, W1.T, out=z)
        np.matmul(z, W2.T, out=y)
        np.matmul(dy, W2, out=z)
        np.matmul(z.T, p.x, out=dW)
        np.matmul(z.T, dy, out=dW)  # dW2, transposed

    return lambda: each(expert, p.W1, p.W2, z, y, dW)


def _gelu(p: Problem) -> Callable[[], Any]:
    """Value and slope of all experts' hidden units."""
    z = np.einsum("nd,ehd->enh", p.x, p.W1)
    return lambda: each(gelu, z)


def _stacks(p: Problem) -> Callable[[], Any]:
    """The one product behind all Jacobians of an expert, into memory that is there, with its operands there too."""
    (E, h, d), n = p.W1.shape, len(p.x)
    S, K = np.ones((n, h), p.x.dtype), np.ones((h, d * d), p.x.dtype)
    J = np.empty((E, n, d * d), p.x.dtype)
    return lambda: each(lambda out: np.matmul(S, K, out=out), J)


def _decompositions(p: Problem) -> Callable[[], Any]:
    """Singular values of 4096 matrices of 64 x 64 by LAPACK."""
    J = np.random.default_rng(0).standard_normal((len(p.router), len(p.x), 64, 64)).astype(p.x.dtype)
    return lambda: each(lambda part: np.linalg.svd(part, compute_uv=False), J)


def _covariances(p: Problem) -> Callable[[], Any]:
    """Eight covariances and their eigenvalues, in float64 as all sums over tokens."""
    X = p.x.astype(np.float64)
    return lambda: each(lambda _: np.linalg.eigvalsh(X.T @ X), p.router)


PARTS = {
    "products of a soft training step": _products,
    "GELU and slope of a soft step": _gelu,
    "products behind all expert Jacobians": _stacks,
    "4096 decompositions": _decompositions,
    "covariances and their eigenvalues": _covariances,
}


def _handover(n: int, threads: int) -> float:
    """Milliseconds that a call takes when `threads` threads make such calls, each on its own array."""
    repeats = max(50, 4_000_000 // n)

    def work(a: Array) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            np.multiply(a, 1.0000001, out=a)
        return (time.perf_counter() - start) / repeats * 1e3

    with ThreadPoolExecutor(threads) as pool:
        return float(np.median([max(pool.map(work, [np.ones(n) for _ in range(threads)])) for _ in range(9)]))


def _import(name: str) -> float:
    """Milliseconds of a new interpreter that imports one module, the median of several."""
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken))
