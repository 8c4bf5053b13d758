"""What is measured on one model of GA: config in, small arrays out.

d width, E experts, r dimension of a subspace. Ends: untrained and trained. Nulls made by chance have `draws` draws.

cosines (2, E, E)                  of the experts' mean Jacobians, at both ends
mean jacobians (E, d, d)           trained
shuffled cosines (draws, E, E)     gates shuffled
left, right (2, E, E, d)           overlap of the leading r left or right singular directions, r = 1 to d, both ends
overlap (2, E, E, d)               of the leading r principal directions of what experts are given, both ends
shuffled overlap, thinned overlap (draws, E, E, d)
                                   gates shuffled; as many unrelated tokens as each expert effectively has
ranks (E,), shuffled ranks, thinned ranks (draws, E)
                                   k@0.9 of each expert
distances (9 + 2, E, E), shuffled distances (draws, 9 + 2, E, E)
                                   at r = 8, in the order of `MEASURES`, trained
share (E,)                         of the gates' sum that each expert has
loss ()                            at the end
"""

import numpy as np

from npmoe.geometry import grassmann
from npmoe.geometry.pca import Axes, n_eff, principal_axes
from npmoe.geometry.spectra import cosines, k_at
from npmoe.model.train import fit
from npmoe.probe import function
from npmoe.probe.null import shuffled
from npmoe.probe.representation import overlaps, subspaces
from npmoe.probe.site import Site, site
from npmoe.reproduce.mixture import Config, batch, build, fresh_targets, generator

__all__ = ["MEASURES", "RANK", "compute"]

Array = np.ndarray
Arrays = dict[str, Array]

RANK = 8  # dimension of the subspaces in the primary readings
FLOOR = 1e-3  # of the log-Euclidean distance: with few tokens a covariance is singular
MEASURES = (*grassmann.DISTANCES, "bures", "log-euclidean")


def compute(config: Config) -> Arrays:
    """Train the model of a config and measure it; the work of one run."""
    data = batch(config)
    first = last = None
    loss = np.nan
    for step in fit(build(config), data.x, fresh_targets(config), config.steps, frozen=config.frozen):
        _, loss, last = step
        first = first or last
    start, end = site(first, data.x), site(last, data.x)
    rng = generator(config.seed, "null")
    nulls = [shuffled(end, rng) for _ in range(config.draws)]
    return {
        **_function(start, end, nulls),
        **_representation(start, end, nulls, rng),
        "share": end.gates.sum(axis=0) / end.gates.sum(),
        "loss": np.array(loss),
    }


def _function(start: Site, end: Site, nulls: list[Site]) -> Arrays:
    means = [function.mean_jacobians(s) for s in (start, end)]
    directions = [np.linalg.svd(_defined(J)) for J in means]
    return {
        "cosines": np.stack([cosines(J) for J in means]),
        "mean jacobians": means[1],
        "shuffled cosines": np.stack([cosines(function.mean_jacobians(null)) for null in nulls]),
        "left": np.stack([overlaps(U) for U, _, _ in directions]),
        "right": np.stack([overlaps(Vt.swapaxes(1, 2)) for _, _, Vt in directions]),
    }


def _defined(J: Array) -> Array:
    """Mean Jacobians with zeros for experts that no token reaches, which SVD would refuse."""
    return np.nan_to_num(J)


def _representation(start: Site, end: Site, nulls: list[Site], rng: np.random.Generator) -> Arrays:
    eigenvalues, axes = subspaces(end)
    random = [_thinned(end, rng) for _ in nulls]
    routed = [subspaces(null) for null in nulls]
    return {
        "overlap": np.stack([overlaps(subspaces(start).axes), overlaps(axes)]),
        "ranks": k_at(eigenvalues),
        "distances": _distances(eigenvalues, axes),
        "shuffled overlap": np.stack([overlaps(found.axes) for found in routed]),
        "shuffled ranks": np.stack([k_at(found.eigenvalues) for found in routed]),
        "shuffled distances": np.stack([_distances(*found) for found in routed]),
        "thinned overlap": np.stack([overlaps(found.axes) for found in random]),
        "thinned ranks": np.stack([k_at(found.eigenvalues) for found in random]),
    }


def _thinned(here: Site, rng: np.random.Generator) -> Axes:
    """Principal axes of random sets of tokens, one for each expert and as large as its n_eff, chosen apart."""
    W = np.zeros(here.gates.shape)
    for e, size in enumerate(n_eff(here.gates)):
        W[rng.choice(here.n, max(2, round(float(size))), replace=False), e] = 1
    return principal_axes(here.x, W)


def _distances(eigenvalues: Array, axes: Array) -> Array:
    """Every distance between experts, (measures, E, E)."""
    r = min(RANK, axes.shape[-1] - 1)
    live = ~np.isnan(eigenvalues[:, 0])
    out = np.full((len(MEASURES), len(axes), len(axes)), np.nan)
    at = np.ix_(live, live)
    theta = grassmann.pairwise_angles(axes[live][:, :, :r])  # (E, E, r)
    covariances = np.einsum("eij,ej,ekj->eik", axes[live], eigenvalues[live], axes[live])
    covariances = (covariances + covariances.swapaxes(1, 2)) / 2
    a, b = np.triu_indices(len(covariances), 1)
    for i, name in enumerate(MEASURES):
        if name in grassmann.DISTANCES:
            out[i][at] = grassmann.distance(theta, name)
            continue
        table = np.zeros((len(covariances), len(covariances)))
        A, B = covariances[a], covariances[b]
        table[a, b] = grassmann.bures(A, B) if name == "bures" else grassmann.log_euclidean(A, B, FLOOR)
        out[i][at] = table + table.T
    return out
