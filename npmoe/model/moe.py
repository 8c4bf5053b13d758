"""The mixture: a router matrix and experts, y = sum_e g_e(x) f_e(x).

n tokens, d width, o output width, E experts, k experts a token, S shared experts, which no router chose and every token
visits. Experts see only the rows routed to them. Where gates stand on the input, y = sum_e f_e(g_e(x) x).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import check, tree, words
from npmoe.calculus.factored import CACHED, Factored
from npmoe.calculus.products import matmul
from npmoe.calculus.scalar import sigmoid
from npmoe.calculus.threads import each, parts
from npmoe.calculus.words import one_line
from npmoe.model.expert import GeluExpert, SwigluExpert
from npmoe.model.gate import PLAIN, Gate
from npmoe.model.routing import Routing, gates_jacobian, route_vjp

__all__ = ["MoE", "MoETrace"]

Array = np.ndarray


class MoETrace(NamedTuple):
    """What `MoE.vjp` reads: x, the routing, the weights (n, E + S) of all experts, and for each expert its rows, its
    outputs and its own trace."""

    x: Array
    routing: Routing
    weights: Array
    rows: tuple[Array | slice, ...]
    outputs: tuple[Array, ...]
    traces: tuple[Any, ...]

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True, eq=False)
class MoE:
    """Mixture of experts with soft or top-k routing.

    Parameters
    ----------
    router : array (E, d); scores are ``(x @ router.T + bias) / temperature``.
    experts : tuple of E experts of one width.
    k : experts a token, 1..E; k = E is the soft router.
    renormalize : softmax over the k chosen (their gates sum to 1), else over all E, of which the chosen k are kept.
    temperature : positive number that divides the scores.
    bias : array (E,) or None.
    gate : `Gate`: other scores than a softmax's, groups, a scale, gates on the input.
    shared : tuple of S experts that every token visits, with a weight of 1.
    shared_gate : array (S, d) or None: the weight of a shared expert is sigmoid(``x @ shared_gate[s]``) then.

    Raises
    ------
    ValueError, TypeError : if k is outside 1..E, shapes do not fit together or arrays are not floats.

    Examples
    --------
    >>> import npmoe
    >>> rng = np.random.default_rng(0)
    >>> moe = npmoe.init.gelu_moe(rng, E=4, d=3, h=5, k=2)
    >>> x = rng.standard_normal((6, 3))
    >>> y, trace = moe.forward(x)
    >>> dx, dmoe = moe.vjp(trace, np.ones_like(y))
    >>> bool(np.allclose(dx, moe.jacobian(x).sum(axis=1)))
    True
    """

    router: Array
    experts: tuple[GeluExpert | SwigluExpert, ...]
    k: int
    renormalize: bool = True
    temperature: float = 1.0
    bias: Array | None = None
    gate: Gate = PLAIN
    shared: tuple[Any, ...] = ()
    shared_gate: Array | None = None

    def __post_init__(self) -> None:
        E, d = check.shaped("router", self.router, ("E", "d"), "MoE").shape
        wanted = f"expected a tuple of {E} experts, one for each row of the router"
        if not isinstance(self.experts, tuple):
            raise TypeError(f"{wanted}; got {type(self.experts).__name__}")
        if len(self.experts) != E:
            raise ValueError(f"{wanted}; got {len(self.experts)}")
        check.integer("k", self.k, 1, E, f"a mixture of {E} experts")
        if self.bias is not None:
            check.shaped("bias", self.bias, (E,), "MoE")
        check.positive("temperature", self.temperature)
        if not isinstance(self.renormalize, bool | np.bool_):
            raise TypeError(f"expected renormalize to be True or False; got {self.renormalize!r}")
        if not isinstance(self.gate, Gate):
            raise TypeError(f"expected gate as a Gate; got {type(self.gate).__name__}")
        self.gate.fits(E, self.k)
        if not isinstance(self.shared, tuple):
            raise TypeError(f"expected shared as a tuple of experts; got {type(self.shared).__name__}")
        if self.shared_gate is not None:
            check.shaped("shared_gate", self.shared_gate, (len(self.shared), d), "MoE")
        other = next((type(f).__name__ for f in self.visited if not hasattr(f, "linearize")), None)
        if other is not None:
            raise TypeError(f"expected experts with forward, vjp and linearize; got {other}")
        widths = {(expert.widths[0], expert.widths[2]) for expert in self.visited}
        if len(widths) != 1 or next(iter(widths))[0] != d:
            raise ValueError(f"expected experts of width {d}, as the router, and of one output width; got {widths}")

    @property
    def widths(self) -> tuple[int, int]:
        """(d, o)."""
        return self.experts[0].widths[0], self.experts[0].widths[2]

    @property
    def plain(self) -> bool:
        """A softmax's gates on the outputs, without groups, selection, scale and shared experts."""
        gate = self.gate
        more = gate.selection is not None or gate.groups is not None or gate.on_input or bool(self.shared)
        return gate.scores == "softmax" and gate.scale == 1 and not more

    @property
    def visited(self) -> tuple[Any, ...]:
        """All experts, those that are chosen and then the shared ones."""
        return self.experts + self.shared

    def scores(self, x: Array) -> Array:
        """Scores over the temperature, x (n, d) -> (n, E)."""
        s = matmul(check.matrix("x", x, self.router.shape[1], "this mixture"), self.router.T)  # (n, E)
        if self.bias is not None:
            s = s + self.bias
        return s / s.real.dtype.type(self.temperature)

    def routing(self, x: Array) -> Routing:
        """Gates, choice and what their vjp reads."""
        return self.gate.route(self.scores(x), self.k, self.renormalize)

    def weights(self, x: Array, routing: Routing) -> Array:
        """What multiplies each expert, (n, E + S): the gates, and the weights of shared experts."""
        if not self.shared:
            return routing.gates
        if self.shared_gate is None:
            return np.concatenate([routing.gates, np.ones((len(x), len(self.shared)), routing.gates.dtype)], axis=1)
        return np.concatenate([routing.gates, sigmoid(matmul(x, self.shared_gate.T))], axis=1)

    def route(self, x: Array) -> tuple[Array, Array]:
        """gates (n, E) and chosen (n, k), best first."""
        routing = self.routing(check.finite("x", check.floating("x", x)))
        return routing.gates, routing.chosen

    def forward(self, x: Array) -> tuple[Array, MoETrace]:
        """x (n, d) -> y (n, o) and what `vjp` reads. NaN in, NaN out; all that measures refuses NaN."""
        x = check.matrix("x", x, self.router.shape[1], "this mixture")
        routing = self.routing(x)
        weights = self.weights(x, routing)

        def visit(e: int, expert: Any) -> tuple[Array | slice, Array, Array, Any]:
            r = self._rows(routing, e)
            if self._inside(e):
                f, trace = expert.forward(weights[r, e, None] * x[r])  # (n_e, o)
                return r, f, f, trace
            f, trace = expert.forward(x[r])  # (n_e, o)
            return r, f, weights[r, e, None] * f, trace

        rows, outputs, gated, traces = zip(*each(visit, *self._visits(), elements=self._share(x)), strict=True)
        y = np.zeros((len(x), self.widths[1]), np.result_type(x, self.router))
        for r, gf in zip(rows, gated, strict=True):
            y[r] += gf
        return y, MoETrace(x, routing, weights, rows, outputs, traces)

    def _visits(self) -> tuple[range, tuple[Any, ...]]:
        return range(len(self.visited)), self.visited

    def _inside(self, e: int) -> bool:
        """Whether expert e is given its weight times x."""
        return self.gate.on_input and e < len(self.experts)

    def _share(self, x: Array) -> int:
        """Elements of x that an expert sees where all see as many, or those of a weight, whichever are more."""
        d, o = self.widths
        return max(x.size * self.k // len(self.experts), d * o)

    def _rows(self, routing: Routing, e: int) -> Array | slice:
        # a slice where all rows go to all experts: no copy of x
        everyone = self.k == len(self.experts) or e >= len(self.experts)
        return slice(None) if everyone else np.flatnonzero(routing.on[:, e])

    def vjp(
        self, trace: MoETrace, dy: Array, wrt_x: bool = True, dscores: Array | float = 0.0
    ) -> tuple[Array | None, "MoE"]:
        """dy (n, o) -> dx (n, d) and the gradient, itself a MoE; dx is None where it is not wanted.

        `dscores` is a cotangent that reaches the scores from elsewhere (a balance loss).
        """
        x, routing, weights = trace.x, trace.routing, trace.weights
        dy = check.shaped("dy", dy, (len(x), self.widths[1]), "this trace")
        dweights = np.zeros_like(weights)  # (n, E + S)

        def visit(e: int, expert: Any, r: Array | slice, f: Array, inner: Any) -> tuple[Array | None, Any]:
            dy_e = dy[r]  # (n_e, o)
            if self._inside(e):
                du, dexpert = expert.vjp(inner, dy_e)  # u = w x
                dweights[r, e] = np.einsum("nd,nd->n", du, x[r])
                return weights[r, e, None] * du, dexpert
            dweights[r, e] = np.einsum("no,no->n", dy_e, f)
            return expert.vjp(inner, weights[r, e, None] * dy_e, wrt_x)

        visits = *self._visits(), trace.rows, trace.outputs, trace.traces
        dxs, dexperts = zip(*each(visit, *visits, elements=self._share(x)), strict=True)
        dx = np.zeros_like(x) if wrt_x else None
        if dx is not None:
            for r, dx_e in zip(trace.rows, dxs, strict=True):
                dx[r] += dx_e
        E = len(self.experts)
        ds = (route_vjp(routing, dweights[:, :E]) + dscores) / routing.gates.dtype.type(self.temperature)  # (n, E)
        if dx is not None:
            dx += matmul(ds, self.router)
        dbias = None if self.bias is None else ds.sum(axis=0)
        found = {"router": matmul(ds.T, x), "experts": dexperts[:E], "bias": dbias}
        if self.shared:
            found["shared"] = dexperts[E:]
        if self.shared_gate is not None:
            dz = dweights[:, E:] * weights[:, E:] * (1 - weights[:, E:])  # (n, S)
            found["shared_gate"] = matmul(dz.T, x)
            if dx is not None:
                dx += matmul(dz, self.shared_gate)
        if self.gate.selection is not None:
            found["gate"] = tree.alike(self.gate, selection=np.zeros_like(self.gate.selection))
        return dx, tree.alike(self, **found)

    def jacobian(self, x: Array) -> Array:
        """Jacobian of the whole layer, sum_e g_e J_e + sum_e f_e dg_e^T, x (n, d) -> (n, o, d)."""
        return self._add_experts(x, self.router_jacobian(x))

    def expert_jacobian(self, x: Array) -> Array:
        """First term, sum_e g_e J_e, (n, o, d): the one that the papers keep. Shared experts are part of it.

        Where gates stand on the input it is sum_e g_e J_e(g_e x).
        """
        x = check.finite("x", check.matrix("x", x, self.router.shape[1], "this mixture"))
        return self._add_experts(x, np.zeros((len(x), *reversed(self.widths)), np.result_type(x, self.router)))

    def router_jacobian(self, x: Array) -> Array:
        """Second term, sum_e f_e dg_e^T, (n, o, d): of rank k - 1 at most where the gates sum to 1, else k.

        A shared expert's gate adds its own. Where gates stand on the input, f_e is J_e(g_e x) x.
        """
        x = check.finite("x", check.matrix("x", x, self.router.shape[1], "this mixture"))
        routing = self.routing(x)
        F, dweights = self._outputs(x, routing), self.weights_jacobian(x, routing)  # (n, o, E + S), (n, E + S, d)
        J = np.empty((len(x), *reversed(self.widths)), np.result_type(x, self.router))
        each(
            lambda rows: matmul(F[rows], dweights[rows], out=J[rows]),
            list(parts(len(x), CACHED // (J.shape[1] * J.shape[2]))),
        )
        return J

    def _add_experts(self, x: Array, J: Array) -> Array:
        """Add the first term to J (n, o, d), in place and for a few outputs at a time, which stay in the cache."""
        routing = self.routing(x)
        weights = self.weights(x, routing)

        def gated(e: int, expert: Any) -> tuple[Array | slice, Factored]:
            r = self._rows(routing, e)
            J_e = expert.linearize(self._read(x, weights, r, e))
            return r, Factored(J_e.L, J_e.S * weights[r, e, None], J_e.R)

        stacks = each(gated, *self._visits())

        def add(outputs: slice) -> None:
            for r, J_e in stacks:
                J[r, outputs] += J_e.outputs(outputs).dense()

        n, o, d = J.shape
        each(add, list(parts(o, CACHED // max(1, n * d) if n >= o else o)))  # few tokens: see Factored.dense
        return J

    def _read(self, x: Array, weights: Array, r: Array | slice, e: int) -> Array:
        """What expert e reads of its rows, (n_e, d)."""
        return weights[r, e, None] * x[r] if self._inside(e) else x[r]

    def mean_jacobian(self, x: Array, weights: Array | None = None, *, router: bool = True) -> Array:
        """Weighted mean over tokens of the whole layer's Jacobian, (o, d), in closed form.

        Parameters
        ----------
        x : array (n, d).
        weights : array (n,), non-negative, not all zero; equal unless given.
        router : without, the experts' term alone.
        """
        x = check.finite("x", check.matrix("x", x, self.router.shape[1], "this mixture"))
        routing = self.routing(x)
        if not len(x):
            raise ValueError("expected at least one token; got none, which have no mean Jacobian")
        w = np.ones(len(x)) if weights is None else check.weights("weights", weights, len(x)).astype(np.float64)
        w = w / w.max()  # the sum of subnormal weights must not be 0
        total = np.zeros((self.widths[1], self.widths[0]))
        own = self.weights(x, routing)  # (n, E + S)

        def visit(e: int, expert: Any) -> Array | float:
            r = self._rows(routing, e)
            g = w[r] * own[r, e]
            return expert.mean_jacobian(self._read(x, own, r, e), g) * g.sum() if g.any() else 0.0

        for J_e in each(visit, *self._visits()):
            total += J_e
        if router:
            dweights = self.weights_jacobian(x, routing)  # (n, E + S, d), zero where not chosen

            def term(e: int, expert: Any) -> Array:
                r = self._rows(routing, e)
                f = self._towards(x, own, r, e, expert)  # (n_e, o)
                return matmul((w[r, None] * f).T, dweights[r, e])

            # expert by expert: one product over all of them would have other bits with other threads of BLAS
            for T_e in each(term, *self._visits()):
                total += T_e
        return (total / w.sum()).astype(np.result_type(x, self.router), copy=False)

    def weights_jacobian(self, x: Array, routing: Routing) -> Array:
        """Derivative of the weights in x, (n, E + S, d)."""
        W = self.router / self.router.dtype.type(self.temperature)
        dgates = gates_jacobian(routing, W)  # (n, E, d)
        if not self.shared:
            return dgates
        if self.shared_gate is None:
            return np.concatenate([dgates, np.zeros((len(x), len(self.shared), x.shape[1]), dgates.dtype)], axis=1)
        p = sigmoid(matmul(x, self.shared_gate.T))  # (n, S)
        return np.concatenate([dgates, (p * (1 - p))[:, :, None] * self.shared_gate], axis=1)

    def _towards(self, x: Array, weights: Array, r: Array | slice, e: int, expert: Any) -> Array:
        """Derivative of an expert's part of y in its weight, (n_e, o): its output; J x where the weight is inside."""
        if self._inside(e):
            return expert.linearize(weights[r, e, None] * x[r]).apply(x[r])
        return expert.forward(x[r])[0]

    def _outputs(self, x: Array, routing: Routing) -> Array:
        """`_towards` of all experts, (n, o, E + S); zero where not chosen, since there dg_e is zero too."""
        F = np.zeros((len(x), self.widths[1], len(self.visited)), np.result_type(x, self.router))
        weights = self.weights(x, routing)

        def fill(e: int, expert: Any) -> None:
            r = self._rows(routing, e)
            F[r, :, e] = self._towards(x, weights, r, e, expert)

        each(fill, *self._visits())
        return F

    @words.never_raises
    def __repr__(self) -> str:
        routing = "soft" if self.k == len(self.experts) else f"top {self.k}"
        parts = [words.counted([words.kind(f) for f in self.experts]), routing]
        parts += ["renormalized" if self.renormalize else "not renormalized"] * (self.k < len(self.experts))
        parts += [f"temperature {self.temperature:.4g}"] * (self.temperature != 1)
        parts += ["with a bias"] * (self.bias is not None)
        parts += [repr(self.gate)] * (repr(self.gate) != repr(PLAIN))
        parts += [f"{len(self.shared)} shared"] * bool(self.shared)
        return words.cut(f"MoE({', '.join(parts)}", f", {words.dtype_of(tree.leaves(self))})")
