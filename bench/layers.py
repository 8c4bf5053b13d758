"""Layers of real size, with random weights of a realistic scale, expert by expert: exact means, alignments and spectra.

n tokens, d width, h hidden, E experts, k experts a token. Everything is float32, as such checkpoints are read.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import npmoe
from bench.memory import megabytes
from npmoe.calculus.scalar import silu
from npmoe.geometry.spectra import cosines
from npmoe.model.routing import route
from npmoe.probe import function

__all__ = ["SHAPES", "Experts", "Shape", "survey"]

Array = np.ndarray


class Shape(NamedTuple):
    """Sizes of one layer of a published model, and how many of its tokens are probed."""

    E: int
    d: int
    h: int
    k: int
    n: int


SHAPES = {
    "mixtral": Shape(E=8, d=4096, h=14336, k=2, n=4096),  # Mixtral-8x7B
    "qwen3": Shape(E=128, d=2048, h=768, k=8, n=4096),  # Qwen3-30B-A3B
}


@dataclass(frozen=True)
class Experts(Sequence):
    """SwiGLU experts made when they are asked for, always the same and never kept: N(0, 0.02), GPT-2's scheme.

    Examples
    --------
    >>> experts = Experts(Shape(E=2, d=4, h=8, k=1, n=3))
    >>> experts[1].widths, bool((experts[1].Wg == experts[1].Wg).all())
    ((4, 8, 4), True)
    """

    shape: Shape
    seed: int = 0

    def __len__(self) -> int:
        return self.shape.E

    def __getitem__(self, e: Any) -> Any:
        if not 0 <= e < len(self):
            raise IndexError(f"expected an expert within 0..{len(self) - 1}; got {e}")
        rng, (_, d, h, _, _) = np.random.default_rng([self.seed, e]), self.shape

        def draw(out: int, into: int) -> Array:
            W = rng.standard_normal((out, into), dtype=np.float32)
            W *= np.float32(0.02)
            return W

        return npmoe.SwigluExpert(Wg=draw(h, d), Wu=draw(h, d), Wd=draw(d, h))


def site(shape: Shape, n: int | None = None, seed: int = 0) -> npmoe.Site:
    """Gaussian hidden states behind a norm (entries of unit variance) and a random router's choice."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n or shape.n, shape.d), dtype=np.float32)
    router = rng.standard_normal((shape.E, shape.d), dtype=np.float32) * np.float32(0.02)
    routing = route(x @ router.T, shape.k)
    return npmoe.Site(x=x, gates=routing.gates, chosen=routing.chosen, experts=Experts(shape, seed))


def survey(name: str, shape: Shape | None = None) -> dict[str, Any]:
    """Means, all pairwise alignments, spectra or leading values, and a check against float64; seconds and peak memory.

    Parameters
    ----------
    name : of `SHAPES`. "mixtral" adds the leading values of 64 tokens by Lanczos, "qwen3" the exact spectra of the
        mean Jacobians through the small core.
    shape : another shape than that of the name (a test's).
    """
    shape = shape or SHAPES[name]
    s = site(shape)
    found: dict[str, Any] = {"name": name, **shape._asdict()}
    kept: dict[str, Array] = {}

    def timed(key: str, work: Any) -> Array:
        start = time.perf_counter()
        result = kept[key] = work()
        found[f"{key} seconds"] = time.perf_counter() - start
        return result

    def everything() -> None:
        means = timed("means", lambda: function.mean_jacobians(s))
        timed("alignments", lambda: cosines(means.reshape(len(means), -1)))
        if name == "qwen3":
            timed("spectra", lambda: function.mean_spectra(s))
        else:
            few = site(shape, min(64, shape.n))
            timed("leading", lambda: function.leading_values(few))

    start = time.perf_counter()
    found["peak megabytes"] = megabytes(everything)
    found["seconds"] = time.perf_counter() - start
    off_diagonal = kept["alignments"][~np.eye(shape.E, dtype=bool)]
    found["alignment, largest off the diagonal"] = float(np.abs(off_diagonal).max())
    found["entries checked"], found["largest error in eps of the largest entry"] = _checked(s, kept["means"])
    if name == "qwen3":
        spectra = kept["spectra"].astype(np.float64)
        frobenius = np.linalg.norm(kept["means"].reshape(shape.E, -1).astype(np.float64), axis=1)
        found["rank bound"] = min(shape.h, shape.d)
        found["spectra against Frobenius norms, relative"] = float(
            np.abs(np.sqrt((spectra**2).sum(axis=1)) / frobenius - 1).max()
        )
        found["sigma_1 from, to"] = [float(spectra[:, 0].min()), float(spectra[:, 0].max())]
    else:
        values = kept["leading"]
        found["leading values"] = int(np.isfinite(values).sum())
        found["sigma_1 from, to"] = [float(np.nanmin(values)), float(np.nanmax(values))]
    return found


def _checked(s: npmoe.Site, means: Array, experts: int = 2, entries: int = 16) -> tuple[int, float]:
    """Entries of some experts' mean Jacobians in float64, from the definition: no Factored, no silu pair shared."""
    worst, number = 0.0, 0
    rng = np.random.default_rng(1)
    for e in rng.choice(s.E, min(experts, s.E), replace=False).tolist():
        rows = s.rows(e)
        f, w = s.experts[e], s.gates[rows, e].astype(np.float64)  # type: ignore[index]
        m = np.zeros((2, len(f.Wg)))
        x = s.x[rows].astype(np.float64)
        for start in range(0, len(f.Wg), 1024):  # some hidden units at a time, or float64 takes twice the memory
            units = slice(start, start + 1024)
            a, u = x @ f.Wg[units].astype(np.float64).T, x @ f.Wu[units].astype(np.float64).T
            b, slope = silu(a)
            m[:, units] = (w @ (slope * u)) / w.sum(), (w @ b) / w.sum()
        i, j = rng.integers(len(f.Wd), size=entries), rng.integers(f.Wg.shape[1], size=entries)
        middle = m[0][:, None] * f.Wg[:, j] + m[1][:, None] * f.Wu[:, j]  # (h, entries)
        exact = np.einsum("eh,he->e", f.Wd[i].astype(np.float64), middle)
        error = np.abs(means[e][i, j] - exact).max() / np.abs(means[e]).max() / np.finfo(np.float32).eps
        worst, number = max(worst, float(error)), number + entries
    return number, worst
