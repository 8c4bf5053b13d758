"""Changes of parameters: the row, column or matrix of which a relative change explains the difference.

n tokens, d width, o output width, m projections.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from npmoe.calculus import tree
from npmoe.calculus.products import matmul
from npmoe.verify.faults import Fault
from npmoe.verify.fitting import FAR, Seen, asked, fit, in_several, tried, unit, worst_first
from npmoe.verify.reference import Reference, kind_of

__all__ = ["ALL", "Found", "changed", "leaf_words"]

Array = np.ndarray

#: Explanations, each with the sum of squares that it leaves.
Found = list[tuple[float, Fault]]

ALL = " there explains 100 % of the difference"
_REFINED = 8  # changes of parameters that are tried out in full
_PROJECTIONS = 8  # random ones, through which changes of parameters are looked at
_MOST_PARAMETERS = 20_000_000  # of a layer whose changes are looked at
_MOST_CHANGES = 600  # that are looked at one by one
_ROUTING = ("router", "bias")


def leaf_words(name: str) -> str:
    """The name of a parameter, of an expert's in words."""
    owner = name.split(".")
    if "experts" not in owner:
        return name
    at = owner.index("experts")
    return ", ".join(filter(None, [".".join(owner[:at]), f"expert {owner[at + 1]}", ".".join(owner[at + 2 :])]))


class _Change(NamedTuple):
    """A row, a column or all (`part` is its index) of the leaves `at`, several where every expert has them."""

    words: str
    at: tuple[int, ...]
    part: tuple[Any, ...] = ()


def _changes(layer: Any) -> Iterator[_Change]:
    """Every row and column of every parameter, every entry of a vector, each matrix as a whole, and some together."""
    leaves = list(tree.named_leaves(layer))
    names = {name for name, _ in leaves}
    for at, (name, leaf) in enumerate(leaves):
        says = leaf_words(name)
        if leaf.ndim == 1:
            yield from (_Change(f"{says}, entry {i}", (at,), (i,)) for i in range(len(leaf)))
            continue
        yield from (_Change(f"{says}, row {i}", (at,), (i,)) for i in range(len(leaf)))
        yield from (_Change(f"{says}, column {j}", (at,), (slice(None), j)) for j in range(leaf.shape[1]))
        cold = name.endswith("router") and name.removesuffix("router") + "bias" not in names
        yield _Change(f"{says}, all of it{_COLD * cold}", (at,))
    for says, found in _together(leaves).items():
        yield _Change(says, tuple(found))


_COLD = " (the inverse of a temperature)"


def _together(leaves: Sequence[tuple[str, Array]]) -> dict[str, list[int]]:
    """Leaves that may change together, by words: matrices that every expert has, the router and its bias."""
    groups: dict[str, list[int]] = {}
    places = {name: at for at, (name, _) in enumerate(leaves)}
    for name, at in places.items():
        before, among, after = name.rpartition("experts.")
        if among and leaves[at][1].ndim == 2:
            path = f"{before.rstrip('.')}, " if before else ""
            groups.setdefault(f"{path}every expert, {after.partition('.')[2]}, all of it", []).append(at)
        bias = name.removesuffix("router") + "bias"
        if name.endswith("router") and bias in places:
            groups[f"{name} and bias, all of both{_COLD}"] = [at, places[bias]]
    return {words: found for words, found in groups.items() if len(found) > 1}


def changed(seen: Seen) -> tuple[Found, str]:
    """The parts of parameters of which a relative change explains the difference; else the one that nearly does."""
    order, every, layer = worst_first(seen), np.flatnonzero(seen.used), seen.ref.layer
    if not np.isfinite(seen.got[every]).all() or sum(a.size for a in tree.leaves(layer)) > _MOST_PARAMETERS:
        return [], ""
    orders = [order]
    if len(order) > FAR:  # where a change moves the choice of experts, the worst rows are the least like it
        middle = len(order) // 2 - FAR // 2
        orders.append(order[middle : middle + FAR])
    most, nearly, found = 0.0, "", []
    for some in orders:
        rows = tried(seen, some)
        for change, guess in _likely(seen, rows):
            c, share = _refined(seen, rows, change, guess)
            other, says = _with(layer, change, c), f"{change.words}: a relative change of {c:.2e}"
            alone = tuple(_with(layer, change._replace(at=(at,)), c) for at in change.at) if len(change.at) > 1 else ()
            fault = Fault(f"{says}{ALL}", other, alone)
            if fit(seen, rows, other) is not None and (square := fit(seen, every, other)) is not None:
                if not alone or in_several(seen, every, fault.alone):
                    found.append((square, fault))
            elif share > most and abs(c) < 0.1:
                most = share
                nearly = f"{says} there would explain {100 * share:.4g} % of the difference, not all of it"
        if found:
            return found, ""
    return [], nearly if 0.99 <= most < 0.99995 else ""


def _with(layer: Any, change: _Change, c: float) -> Any:
    """The layer with a part of some leaves 1 + c times as large."""
    leaves = tree.leaves(layer)
    for at in change.at:
        leaves[at] = leaves[at].copy()
        leaves[at][change.part] *= 1 + c
    new = iter(leaves)
    return tree.map_leaves(lambda _: next(new), layer)


def _likely(seen: Seen, rows: Array) -> list[tuple[_Change, float]]:
    """The changes whose direction is nearest to that of the difference, each with a first guess of its size.

    The difference D and what each change makes of the answer, R, are seen through a few random projections <P, D> and
    <P, R>. One backward pass gives <P, R> of all changes at once: <P, R> is the derivative of <P, answer> in the
    parameters, and of a Jacobian P = u v^T the difference of two passes, at x + h v and x - h v.
    """
    ref, kind = seen.ref, kind_of(seen.name)
    D = seen.got[rows] - seen.want[rows]
    if kind in ("output", "gradient", "jacobian"):
        p, Q, changes = _projected(ref, kind, rows, D)
    else:
        p, Q, changes = _one_by_one(seen, rows, D)
    square = (Q * Q).sum(axis=0)
    c = np.divide(matmul(p, Q), square, out=np.zeros_like(square), where=square > 0)
    left = ((p[:, None] - c * Q) ** 2).sum(axis=0)
    order = np.argsort(np.nan_to_num(left, nan=np.inf), kind="stable")[:_REFINED]
    # of a small change nothing is left but curvature; of a large one, or of two, more
    limit = min(0.5, 1e-3 + 100 * left.min(initial=np.inf) / max(matmul(p, p), 1e-300)) * matmul(p, p)
    return [(changes[i], float(c[i])) for i in order if left[i] <= limit]


def _projected(ref: Reference, kind: str, rows: Array, D: Array) -> tuple[Array, Array, list[_Change]]:
    """Projections of the difference (m,) and of all changes (m, changes)."""
    rng, layer, x = np.random.default_rng(0), ref.layer, ref.x[rows]
    h = 1e-5 * np.minimum(1, np.sqrt((x * x).mean(axis=1, keepdims=True)))  # (rows, 1)
    h[h == 0] = 1e-5

    def slopes(x: Array, u: Array) -> list[Array]:
        return tree.leaves(layer.vjp(layer.forward(x)[1], u)[1])

    p, Q = [], []
    for _ in range(_PROJECTIONS):
        u = rng.standard_normal((len(x), layer.widths[-1]))
        if kind == "output":
            p.append((u * D).sum())
            found = slopes(x, u)
        else:
            v = rng.standard_normal(x.shape)
            if kind == "gradient":
                assert ref.dy is not None
                u = ref.dy[rows]
            p.append((v * D).sum() if kind == "gradient" else np.einsum("no,nod,nd->", u, D, v))
            sides = slopes(x + h * v, u / (2 * h)), slopes(x - h * v, u / (2 * h))
            found = [a - b for a, b in zip(*sides, strict=True)]
        moved = [g * leaf for g, leaf in zip(found, tree.leaves(layer), strict=True)]
        groups = _together(list(tree.named_leaves(layer))).values()
        together = [sum(float(moved[at].sum()) for at in group) for group in groups]
        Q.append(np.concatenate([*map(_by_part, moved), together]))
    return np.array(p), np.array(Q), list(_changes(layer))


def _by_part(a: Array) -> Array:
    """Sums over rows, columns and all of it, in the order of `_changes`."""
    return a if a.ndim == 1 else np.concatenate([a.sum(axis=1), a.sum(axis=0), [a.sum()]])


def _one_by_one(seen: Seen, rows: Array, D: Array) -> tuple[Array, Array, list[_Change]]:
    """The difference and what each change does, entry by entry, for answers that have no backward pass."""
    layer, step = seen.ref.layer, 1e-6
    changes = list(_changes(layer))
    if kind_of(seen.name) in ("gates", "scores"):
        changes = [change for change in changes if change.words.startswith(_ROUTING)]
    if len(changes) > _MOST_CHANGES:
        return np.zeros(0), np.zeros((0, 0)), []
    base = seen.want[rows]
    Q = [(asked(seen, rows, _with(layer, change, step)) - base).ravel() / step for change in changes]
    return D.ravel(), np.stack(Q, axis=1), changes


def _refined(seen: Seen, rows: Array, change: _Change, c: float) -> tuple[float, float]:
    """The size of a change by Newton's steps on the exact answer, and the share of the squares that it explains."""
    layer, step = seen.ref.layer, 1e-6
    got, scale = seen.got[rows], unit(seen, rows, seen.want[rows])
    was = float((((got - seen.want[rows]) / scale) ** 2).sum())
    best = (np.inf, c)
    for i in range(8):
        made, ahead = (asked(seen, rows, _with(layer, change, at)) for at in (c, c + step))
        if made is None or ahead is None or not np.isfinite(made).all():
            break
        left, R = (got - made) / scale, (ahead - made) / scale / step
        remains, square = float((left * left).sum()), float((R * R).sum())
        best = min(best, (remains, c))
        if not square > 0 or (i == 2 and remains > was / 100):
            break
        move = float((left * R).sum()) / square
        if abs(move) < 1e-15 * abs(c):
            break
        c += move
    return best[1], 1 - best[0] / was
