"""What is measured on the trained models of GA: training runs in, small arrays out.

d width, E experts, r dimension of a subspace, R the dimensions `RANKS`. Ends: untrained and trained. Nulls made by
chance have `draws` draws: *shuffled* gates; *apart*, random sets of tokens drawn apart, one for each expert and as
large as its n_eff.

cosines (2, E, E)               of the experts' mean Jacobians
mean jacobians (E, d, d)        trained
left, right (2, E, E, R)        overlap of the leading left or right singular directions of the mean Jacobians
overlap (2, E, E, R)            overlap of the leading principal directions of what experts are given
halves (2, R)                   the overlap of two random halves of one expert's tokens, and of one half of an expert's
                                with the other half of another's; means over experts or pairs, and over splits
overlap k90 (E, E)              the same over chance, each expert with as many dimensions as k@0.9 says
distances (11, E, E)            at r = 8, in the order of `MEASURES`
    each with its nulls: "shuffled cosines", "shuffled left", "shuffled overlap", "apart overlap", ... (draws, ...)
overlap curve (2, d), shuffled overlap curve, apart overlap curve (d,)
                                mean over pairs for r = 1 to d, and over draws
share (E,)                      of the gates' sum that each expert has
loss ()                         at the end

A mixture thinned to the n_eff of another (`thin`) has n_eff (1,), the one aimed at; overlap (R,), distances (11,),
means over pairs and draws.
"""

from collections.abc import Mapping

import numpy as np

from npmoe.calculus.products import matmul
from npmoe.geometry import grassmann, random_subspaces
from npmoe.geometry.covariances import log_euclidean, pairwise_bures
from npmoe.geometry.pca import Axes, n_eff, principal_axes
from npmoe.geometry.spectra import cosines, k_at, off_diagonal
from npmoe.probe import function
from npmoe.probe.null import shuffled, thinned
from npmoe.probe.representation import overlaps, subspaces
from npmoe.probe.site import Site
from npmoe.reproduce.geometric_asymmetry.config import Measured, Thinned
from npmoe.reproduce.mixture import Config, generator
from npmoe.reproduce.trained import ends

__all__ = ["MEASURES", "RANK", "RANKS", "compute", "ranks_of", "singular_overlaps", "thin"]

Array = np.ndarray
Arrays = dict[str, Array]

RANKS = (4, 8, 16)
RANK = 8  # dimension of the subspaces in the primary readings
FLOOR = 1e-3  # of the log-Euclidean distance: with few tokens a covariance is singular
MEASURES = (*grassmann.DISTANCES, "bures", "log-euclidean")


def ranks_of(d: int) -> list[int]:
    """`RANKS`, but below the width, where every overlap is 1."""
    return [min(r, d - 1) for r in RANKS]


def compute(config: Measured, read: Mapping[Config, Mapping[str, Array]]) -> Arrays:
    """Measure the model of a config; the work of one run."""
    model, trained = config.model, read[config.model]
    start, end = ends(model, trained)
    rng = generator(model.seed, "null")
    nulls = [shuffled(end, rng) for _ in range(model.draws)]
    return {
        **_function(start, end, nulls),
        **_representation(start, end, nulls, rng),
        "share": end.gates.sum(axis=0) / end.gates.sum(),
        "loss": np.array(trained["loss"][-1]),
    }


def _function(start: Site, end: Site, nulls: list[Site]) -> Arrays:
    ends = [function.mean_jacobians(s) for s in (start, end)]
    null = [function.mean_jacobians(s) for s in nulls]
    found = {"mean jacobians": ends[1]}
    for prefix, means in (("", ends), ("shuffled ", null)):
        found[f"{prefix}cosines"] = np.stack([cosines(J) for J in means])
        sides = [singular_overlaps(J) for J in means]
        for side in ("left", "right"):
            found[f"{prefix}{side}"] = np.stack([overlap[side] for overlap in sides])
    return found


def singular_overlaps(J: Array) -> dict[str, Array]:
    """Overlaps of the leading left and right singular directions of matrices (E, o, d), each (E, E, R); NaN where a
    matrix is NaN."""
    dead = np.isnan(J[:, 0, 0])
    U, _, Vt = np.linalg.svd(np.nan_to_num(J))
    found = {}
    for side, basis in (("left", U), ("right", Vt.swapaxes(1, 2))):
        table = _at_ranks(overlaps(basis))
        table[dead] = table[:, dead] = np.nan  # the directions of a matrix of zeros are any
        found[side] = table
    return found


def _at_ranks(tables: Array) -> Array:
    return tables[..., np.array(ranks_of(tables.shape[-1])) - 1]


def _representation(start: Site, end: Site, nulls: list[Site], rng: np.random.Generator) -> Arrays:
    before, after = subspaces(start), subspaces(end)
    found: dict[str, list[Array]] = {}
    splits = [end] * max(1, len(nulls) // 4)
    found["halves"] = [np.mean([_halves(site, rng) for site in splits], axis=0)]
    found["shuffled halves"] = [_halves(null, rng) for null in nulls]
    for prefix, many in (
        ("", [after]),
        ("shuffled ", [subspaces(null) for null in nulls]),
        ("apart ", [_apart(end, rng) for _ in nulls]),
    ):
        for axes in many:
            every = overlaps(axes.axes)
            found.setdefault(f"{prefix}overlap", []).append(_at_ranks(every))
            found.setdefault(f"{prefix}overlap curve", []).append(np.nanmean(off_diagonal(every), axis=0))
            found.setdefault(f"{prefix}overlap k90", []).append(_own_ranks(axes))
            found.setdefault(f"{prefix}distances", []).append(_distances(axes))
    out = {name: np.stack(values) for name, values in found.items()}
    every = overlaps(before.axes)
    out["overlap"] = np.stack([_at_ranks(every), out["overlap"][0]])
    out["overlap curve"] = np.stack([np.nanmean(off_diagonal(every), axis=0), out["overlap curve"][0]])
    out |= {name: out[name][0] for name in ("overlap k90", "distances", "halves")}
    return out | {f"{null} overlap curve": out[f"{null} overlap curve"].mean(axis=0) for null in ("shuffled", "apart")}


def _apart(here: Site, rng: np.random.Generator) -> Axes:
    """Principal axes of random sets of tokens drawn apart, one for each expert and as large as its n_eff."""
    W = np.zeros(here.gates.shape)
    for e, size in enumerate(n_eff(here.gates)):
        if size > 0:
            W[rng.choice(here.n, max(2, round(float(size))), replace=False), e] = 1
    return principal_axes(here.x, W)


def _halves(here: Site, rng: np.random.Generator) -> Array:
    """Overlaps within and between experts at equal n_eff, (2, R): tokens are parted at random into two halves."""
    order = rng.permutation(here.n)
    one, two = (principal_axes(here.x[rows], here.gates[rows]).axes for rows in np.array_split(order, 2))
    E, own = len(one), np.arange(len(one))
    table = _at_ranks(overlaps(np.concatenate([one, two])))[:E, E:]  # (E, E, R), half one against half two
    off = ~np.eye(E, dtype=bool)
    return np.stack([np.nanmean(table[own, own], axis=0), np.nanmean(table[off], axis=0)])


def _own_ranks(axes: Axes) -> Array:
    """Overlap over its chance level, |U_k^T V_l|^2 / min(k, l) over max(k, l)/d, with k and l from k@0.9, (E, E)."""
    E, d, _ = axes.axes.shape
    ranks = k_at(axes.eigenvalues)
    out = np.full((E, E), np.nan)
    for a in range(E):
        for b in range(a + 1, E):
            if np.isnan(ranks[[a, b]]).any():
                continue
            k, l = int(ranks[a]), int(ranks[b])  # noqa: E741
            squares = matmul(axes.axes[a][:, :k].T, axes.axes[b][:, :l]) ** 2
            out[a, b] = out[b, a] = squares.sum() / min(k, l) / random_subspaces.chance_overlap(k, l, d)
    return out


def _distances(axes: Axes) -> Array:
    """Every distance between experts, (measures, E, E)."""
    E, d, _ = axes.axes.shape
    live = ~np.isnan(axes.eigenvalues[:, 0])
    out = np.full((len(MEASURES), E, E), np.nan)
    at = np.ix_(live, live)
    basis, values = axes.axes[live], axes.eigenvalues[live]
    theta = grassmann.pairwise_angles(basis[:, :, : min(RANK, d - 1)])  # (E, E, r)
    covariances = np.einsum("eij,ej,ekj->eik", basis, values, basis)
    covariances = (covariances + covariances.swapaxes(1, 2)) / 2
    for i, name in enumerate(MEASURES):
        if name == "bures":
            out[i][at] = pairwise_bures(covariances)
        elif name == "log-euclidean":
            out[i][at] = log_euclidean(covariances[:, None], covariances, FLOOR)
        else:
            out[i][at] = grassmann.distance(theta, name)
    return out


def thin(config: Thinned, read: Mapping[Config, Mapping[str, Array]]) -> Arrays:
    """Measure a mixture on as few effective tokens as another has, its gates as they are; the work of one run."""
    model = config.model
    here = ends(model, read[model])[1]
    target = float(n_eff(ends(config.to, read[config.to])[1].gates).mean())
    target = min(target, float(n_eff(here.gates).mean()))
    rng = generator(model.seed, "thin")
    overlap, distances = [], []
    for _ in range(max(1, model.draws // 4)):
        found = subspaces(thinned(here, target, rng))
        overlap.append(np.nanmean(off_diagonal(_at_ranks(overlaps(found.axes))), axis=0))
        distances.append(np.nanmean(off_diagonal(np.moveaxis(_distances(found), 0, -1)), axis=0))
    return {"n_eff": np.array([target]), "overlap": np.mean(overlap, axis=0), "distances": np.mean(distances, axis=0)}
