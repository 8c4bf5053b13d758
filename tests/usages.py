"""Usage of experts, drawn: what the tests of overlap, evenness and matching share."""

import numpy as np
from hypothesis import strategies as st


def usage(rng, n, E, kind="spread"):
    """Rows of usage with some to every row: spread, over many decades, counts with zeros, or nearly equal rows."""
    rows = {
        "spread": lambda: rng.uniform(0.1, 1, (n, E)),
        "decades": lambda: 10.0 ** rng.uniform(-12, 3, (n, E)),
        "counts": lambda: rng.poisson(1, (n, E)).astype(float),
        "near": lambda: 1 + 1e-7 * rng.standard_normal((n, E)),
    }[kind]()
    rows[np.arange(n), rng.integers(E, size=n)] += 1
    return rows


kinds = st.sampled_from(["spread", "decades", "counts", "near"])


def random_sets(rng, n, E, k):
    return rng.random((n, E)).argsort(axis=1) < k
