"""A stack of Jacobians kept in factors, J_n = L (sum_t diag(S_t[n]) R_t).

All that is to be known of an expert's Jacobians is written here once, on arrays.

Letters: n tokens, d width, h hidden, o output width, t terms (GELU 1, SwiGLU 2);
L (o, h), S (t, n, h), R (t, h, d). Sums over tokens are accumulated in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npmoe.calculus import check, words
from npmoe.calculus.memory import keep_heap
from npmoe.calculus.products import matmul
from npmoe.calculus.threads import each, parts
from npmoe.calculus.words import one_line

__all__ = ["CACHED", "Factored", "Leading"]

Array = np.ndarray

_PIECE = 1 << 20  # elements of a dense piece: 8 MB in float64, so memory does not grow with tokens
CACHED = 1 << 17  # elements of an operand that is to stay in a core's cache: 1 MB in float64


class Leading(NamedTuple):
    """Leading singular values (n,), their residuals |J^T u - sigma v| / sigma (n,), and the steps taken."""

    values: Array
    residual: Array
    steps: int

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class Factored:
    """Jacobians J_n = L (sum_t diag(S_t[n]) R_t) of n tokens, in factors.

    Parameters
    ----------
    L : array (o, h).
    S : array (t, n, h), the slopes.
    R : array (t, h, d).

    Raises
    ------
    ValueError, TypeError : if the shapes do not fit together or the arrays are not floats.

    Examples
    --------
    >>> J = Factored(L=np.eye(2), S=np.array([[[3.0, 4.0]]]), R=np.eye(2)[None])
    >>> J.dense()
    array([[[3., 0.],
            [0., 4.]]])
    >>> J.frobenius(), J.singular_values()
    (array([5.]), array([[4., 3.]]))
    """

    L: Array
    S: Array
    R: Array

    def __post_init__(self) -> None:
        _, h = check.shaped("L", self.L, ("o", "h"), "Factored").shape
        t, _, _ = check.shaped("S", self.S, ("t", "n", h), "Factored").shape
        check.shaped("R", self.R, (t, h, "d"), "Factored")

    def __len__(self) -> int:
        return self.S.shape[1]

    def __getitem__(self, rows: slice | Array) -> "Factored":
        """The Jacobians of some of the tokens (an index array, a mask or a slice)."""
        return Factored(self.L, self.S[:, rows], self.R)

    def pieces(self) -> Iterator[tuple[slice, "Factored"]]:
        """Consecutive runs of tokens whose dense Jacobians take a few megabytes."""
        for rows in parts(len(self), _PIECE // (self.L.shape[0] * self.R.shape[2])):
            yield rows, self[rows]

    def outputs(self, rows: slice) -> "Factored":
        """The same tokens' Jacobians for some of the outputs (rows of J)."""
        return Factored(self.L[rows], self.S, self.R)

    # ---- all of them, and products from either side ------------------------------------------------------------

    def dense(self) -> Array:
        """All Jacobians, (n, o, d).

        J is linear in the slopes, vec J_n = K^T S[n] with K the Khatri-Rao product of L's columns and R's
        rows: the stack is one matrix product, taken for a few outputs at a time, so that their part of K stays in
        the cache.
        """
        (o, h), (t, n, _), d = self.L.shape, self.S.shape, self.R.shape[2]
        if n < o:  # few tokens: K itself would cost more than it saves
            return matmul(self.L, np.einsum("tnh,thd->nhd", self.S, self.R))
        S = self.S.transpose(1, 0, 2).reshape(n, t * h)
        J = np.empty((n, o * d), np.result_type(self.L, self.S, self.R))

        def fill(outputs: slice) -> None:
            K = self.L[outputs].T[None, :, :, None] * self.R[:, :, None, :]  # (t, h, part of o, d)
            matmul(S, K.reshape(t * h, -1), out=J[:, outputs.start * d : outputs.stop * d])

        each(fill, list(parts(o, CACHED // (t * h * d))))
        return J.reshape(n, o, d)

    def apply(self, v: Array) -> Array:
        """J_n v_n for every token (the jvp): v (n, d) -> (n, o)."""
        v = check.shaped("v", v, (len(self), self.R.shape[2]), "this stack")
        hidden = self.S[0] * matmul(v, self.R[0].T)  # (n, h)
        for S, R in zip(self.S[1:], self.R[1:], strict=True):
            hidden += S * matmul(v, R.T)
        return matmul(hidden, self.L.T)

    def apply_transpose(self, u: Array) -> Array:
        """J_n^T u_n for every token (the vjp): u (n, o) -> (n, d)."""
        u = check.shaped("u", u, (len(self), self.L.shape[0]), "this stack")
        hidden = matmul(u, self.L)  # (n, h)
        out = matmul(hidden * self.S[0], self.R[0])
        for S, R in zip(self.S[1:], self.R[1:], strict=True):
            out += matmul(hidden * S, R)
        return out

    # ---- sums over tokens, in closed form -----------------------------------------------------------------------

    def mean(self, weights: Array | None = None) -> Array:
        """Weighted mean sum_n w_n J_n / sum_n w_n, (o, d), at the cost of one mean of slopes.

        Slopes are summed over tokens in float64; the product of the three factors is taken in theirs.

        Raises
        ------
        ValueError : for weights that are negative, all zero, not finite or not (n,); for a stack of no tokens.
        """
        averaged = self.averaged(weights)
        return matmul(averaged.L, averaged.R[0])

    def averaged(self, weights: Array | None = None) -> "Factored":
        """The weighted mean as a stack of one, kept in factors: L and one R, its terms summed, with slopes of one.

        Its `singular_values` are those of `mean`, through the small core where h is below o and d.
        """
        m = matmul(self._weights(weights), self.S.astype(np.float64, copy=False))  # (t, h)
        m = m.astype(self.R.dtype, copy=False)
        middle = m[0][:, None] * self.R[0]  # (h, d)
        for m_t, R_t in zip(m[1:], self.R[1:], strict=True):
            middle += m_t[:, None] * R_t
        return Factored(self.L, np.ones((1, 1, len(middle)), self.S.dtype), middle[None])

    def second_moment(self, weights: Array | None = None) -> Array:
        """sum_n w_n J_n^T J_n, (d, d), float64, with w = 1 unless given; not divided by anything.

        sum over t, u of R_t^T [(L^T L) * (S_t^T diag(w) S_u)] R_u: no Jacobian is formed. Its leading eigenvalue
        is the square of the leading singular value of the rows sqrt(w_n) J_n stacked.
        """
        w = np.ones(len(self)) if weights is None else check.weights("weights", weights, len(self))
        R, S = self.R.astype(np.float64, copy=False), self.S.astype(np.float64, copy=False)
        LtL = matmul(self.L.astype(np.float64, copy=False).T, self.L)
        total = np.zeros((R.shape[2], R.shape[2]))
        for t in range(len(R)):
            weighted = (S[t] * w[:, None]).T  # (h, n)
            for u in range(len(R)):
                total += matmul(R[t].T, matmul(LtL * matmul(weighted, S[u]), R[u]))
        return total

    def _weights(self, weights: Array | None) -> Array:
        """Weights that sum to one, float64."""
        if len(self) == 0:
            raise ValueError("expected Jacobians of at least one token; got none, which have no mean")
        if weights is None:
            return np.full(len(self), 1 / len(self))
        w = check.weights("weights", weights, len(self)).astype(np.float64)
        w /= w.max()  # the sum of subnormal weights must not be 0
        return w / w.sum()

    # ---- inner products and norms -------------------------------------------------------------------------------

    def inner(self, other: "Factored") -> Array:
        """<J_a[n], J_b[n]>_F for every token, (n,), from one h x h matrix a pair of terms."""
        if (len(self), self.L.shape[0], self.R.shape[2]) != (len(other), other.L.shape[0], other.R.shape[2]):
            raise ValueError(
                f"expected two stacks of one shape (n, o, d); got {(len(self), self.L.shape[0], self.R.shape[2])} "
                f"and {(len(other), other.L.shape[0], other.R.shape[2])}"
            )
        LtL = matmul(self.L.T, other.L)
        total = np.zeros(len(self), np.result_type(self.S, other.S))
        for Sa, Ra in zip(self.S, self.R, strict=True):
            for Sb, Rb in zip(other.S, other.R, strict=True):
                total += np.einsum("nh,nh->n", matmul(Sa, LtL * matmul(Ra, Rb.T)), Sb)
        return total

    def frobenius(self) -> Array:
        """|J_n|_F for every token, (n,).

        Where the terms of J cancel the absolute error is sqrt(eps) |L| |S| |R|: it is the root of a difference.
        """
        unit, sizes = self._unit()
        # a tiny norm can come out as a negative square by rounding
        return _rescale(np.sqrt(np.maximum(unit.inner(unit), 0)), sizes)

    def _unit(self) -> "tuple[Factored, list[float]]":
        """The stack with factors whose largest entry is 1, and these entries: squares must not overflow or vanish."""
        sizes = [float(np.abs(a).max(initial=0)) or 1.0 for a in (self.L, self.S, self.R)]
        L, S, R = (a / a.dtype.type(size) for a, size in zip((self.L, self.S, self.R), sizes, strict=True))
        return Factored(L, S, R), sizes

    # ---- spectra --------------------------------------------------------------------------------------------------

    def core(self) -> "Factored":
        """A stack with the same singular values whose matrices are min(h, o) x min(t h, d).

        Thin QR of L and of R_t stacked, once for all tokens: worth it where h is well under o and d.
        """
        (o, h), (t, _, d) = self.L.shape, self.R.shape
        L, R = self.L, self.R
        if h < o:
            L = np.asarray(np.linalg.qr(L, mode="r"))
        if t * h < d:
            R = np.asarray(np.linalg.qr(R.reshape(t * h, d).T, mode="r")).T.reshape(t, h, t * h)
        return Factored(L, self.S, R)

    def singular_values(self) -> Array:
        """All singular values of every Jacobian, descending, (n, min(o, d)); streamed, so memory stays small."""
        core = self.core()
        q = min(core.L.shape[0], core.R.shape[2])
        out = np.zeros((len(self), min(self.L.shape[0], self.R.shape[2])), self.S.dtype)

        def fill(rows: slice) -> None:
            out[rows, :q] = np.linalg.svd(core[rows].dense(), compute_uv=False)

        each(fill, [rows for rows, _ in core.pieces()])
        return out

    def leading(self, tol: float = 1e-6, steps: int | None = None) -> Leading:
        """Leading singular value of every Jacobian by Lanczos on (J v, J^T u), batched over tokens.

        Golub-Kahan bidiagonalization (Golub and Van Loan, 4th ed., section 10.4), reorthogonalized on the right
        only, which is enough (Simon and Zha 2000). The residual |J^T u - sigma v| / sigma of the pair found is
        exact; its square over the gap bounds the relative error, so a token leaves the batch at a residual of
        sqrt(tol) / 10, or after min(o, d) steps, when its value is exact and the residual 0.

        Parameters
        ----------
        tol : relative error aimed at.
        steps : most steps to take; min(o, d) unless given.

        Returns
        -------
        Leading : values (n,), residual (n,), steps. A zero Jacobian has value 0 and residual 0.
        """
        keep_heap()
        if not (np.isfinite(tol) and tol > 0):
            raise ValueError(f"expected a relative error tol above 0; got {tol}")
        core, sizes = self.core()._unit()
        full = min(core.L.shape[0], core.R.shape[2])
        most = full if steps is None else min(full, check.integer("steps", steps, 1))

        def search(rows: slice) -> Leading:
            return _golub_kahan(core[rows], most, full, np.sqrt(tol) / 10)

        found = each(search, list(parts(len(self), _PIECE // core.R.shape[2] // 16)))  # 16 vectors a token: 8 MB
        if not found:
            return Leading(np.zeros(0, self.S.dtype), np.zeros(0, self.S.dtype), 0)
        values, residual = (np.concatenate([getattr(one, name) for one in found]) for name in ("values", "residual"))
        return Leading(_rescale(values, sizes), residual, max(one.steps for one in found))

    @words.never_raises
    def __repr__(self) -> str:
        (o, h), t, d = self.L.shape, len(self.S), self.R.shape[2]
        terms = f"{t} term{'s' * (t != 1)} of {h} hidden"
        return f"Factored({len(self)} Jacobians of {o} x {d}, {terms}, {words.dtype_of([self.L, self.S, self.R])})"


def _golub_kahan(J: Factored, most: int, full: int, stop: float) -> Leading:
    """Leading singular values of a stack; finished tokens are taken out of the batch.

    J V = U B and J^T U = V B^T + beta v e^T with B upper bidiagonal, alpha on and beta above its diagonal. Of the
    leading triple (sigma, p, q) of B, the residual |J^T U p - sigma V q| is beta |p_last|, and p_last is
    alpha_last q_last / sigma.
    """
    n, dtype = len(J), J.S.dtype
    tiny, rounding = np.finfo(dtype).tiny, 4 * np.finfo(dtype).eps * sum(J.R.shape[1:])
    floor = np.full(n, tiny, dtype)  # what is below is rounding: normalized, it would enter B as a direction of J
    values, residual = np.zeros(n, dtype), np.zeros(n, dtype)
    at = np.arange(n)  # which tokens are still in the batch
    # one start for all tokens, the same on every machine, along no axis of the weights. (The mean's leading vector
    # spares two steps, and can hide a token's own: where that has next to no part in it, the residual stops too early.)
    v = np.repeat(np.random.default_rng(0).standard_normal((1, J.R.shape[2])).astype(dtype), n, axis=0)
    _normalize(v, tiny)
    V = v[None]  # (j, n, d), the right basis
    B = np.zeros((2, 0, n))  # alpha and beta, in float64 whatever J is in
    u, beta = np.zeros((n, J.L.shape[0]), dtype), np.zeros(n, dtype)
    for j in range(1, most + 1):
        w = J.apply(v)  # (n, o)
        w -= beta[:, None] * u
        alpha, u = _normalize(w, floor), w
        floor = np.maximum(floor, rounding * alpha)
        v = J.apply_transpose(u)  # (n, d)
        before = np.einsum("nd,nd->n", v, v)
        _project_out(v, V)
        if (np.einsum("nd,nd->n", v, v) < 1e-2 * before).any():  # what is left has lost digits: once more is enough
            _project_out(v, V)
        beta = _normalize(v, floor)
        B = np.concatenate([B, np.stack([alpha, beta])[:, None]], axis=1)
        if j == most or (j >= 8 and j % 2 == 0):
            if j == full:  # the left basis is complete: beta is all that is left of J, and belongs to B
                B = np.concatenate([B, np.zeros_like(B[:, :1])], axis=1)
            sigma, last = _ritz(B[0], B[1, :-1])
            rest = B[0, -1] * B[1, -1] * np.sqrt(last)
            error = np.divide(rest, sigma**2, out=np.zeros_like(sigma), where=sigma > tiny)
            done = (error <= stop) | (j == most)
            values[at[done]], residual[at[done]] = sigma[done], error[done]
            if done.all():
                return Leading(values, residual, j)
            if done.any():
                keep = np.flatnonzero(~done)
                at, J, B, V, u, v = at[keep], J[keep], B[..., keep], V[:, keep], u[keep], v[keep]
                beta, floor = beta[keep], floor[keep]
        V = np.concatenate([V, v[None]])
    return Leading(values, residual, most)


def _ritz(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Largest singular value of each bidiagonal B, and the square of the last entry of its right singular vector.

    alpha (m, n) stands on the diagonals, beta (m - 1, n) above; both results (n,). T = B^T B is tridiagonal, a on its
    diagonal and b beside it. Its eigenvector q has q_{i+1} = -b_i q_i / p_{i+1}, p the pivots of T - lambda taken from
    below: stable, as q_1, the part of the start in it, is never small. (Eigenvectors by LAPACK, a matrix at a time,
    take longer than all of the rest.)
    """
    m, n = alpha.shape
    a = alpha**2
    a[1:] += beta**2
    b = alpha[:-1] * beta
    T, i = np.zeros((n, m, m)), np.arange(m)
    T[:, i, i], T[:, i[1:], i[:-1]] = a.T, b.T  # the lower half is all that eigvalsh reads
    lam = np.linalg.eigvalsh(T)[:, -1]
    shifted, tiny = a - lam, np.finfo(np.float64).tiny
    pivot, last, total = shifted[-1], np.ones(n), np.ones(n)  # last = q_m^2, total = |q|^2, both over q_1^2
    for b_i, below in zip(b[::-1], shifted[-2::-1], strict=True):
        pivot = np.minimum(pivot, -tiny)  # negative but for rounding
        ratio = b_i / pivot
        step = ratio * ratio
        last *= step
        total *= step
        total += 1
        pivot = below - b_i * ratio
    return np.sqrt(np.maximum(lam, 0)), last / total


def _project_out(v: Array, V: Array) -> None:
    """Take from each v (n, d) its part along the basis V (j, n, d), in place."""
    v -= np.einsum("jn,jnd->nd", np.einsum("jnd,nd->jn", V, v), V)


def _rescale(values: Array, sizes: list[float]) -> Array:
    """values times all sizes, the most extreme first, so that two that cancel do; dtype kept."""
    for size in sorted(sizes, key=lambda size: -abs(np.log(size))):
        values = values * values.dtype.type(size)
    return values


def _normalize(v: Array, floor: Array | float) -> Array:
    """Divide each v (n, d) by its norm, in place, and return the norms; one at or below the floor becomes zero."""
    norm = np.sqrt(np.einsum("nd,nd->n", v, v))
    norm[norm <= floor] = 0
    v *= np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)[:, None]
    return norm
