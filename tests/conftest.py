"""What holds in every test: a floating-point accident is an error, and what hypothesis draws can be drawn again."""

import os

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("local", deadline=None)
# CI repeats the same draws; and no test may fail because a machine is slow
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config):
    config.addinivalue_line("markers", "underflow: numbers that vanish to zero are meant here, and are no error")


class Accidents:
    """Makes an error of each floating-point flag, as ``all="raise"`` does, but for those of BLAS in a test's own ``@``.

    BLAS raises flags that mean nothing (`npmoe.calculus.products`), and a test that failed of one would hang on luck.
    The package's own products go through `matmul`, which lets true ones through under other names.
    """

    def write(self, message):
        if "matmul" not in message:
            raise FloatingPointError(message.removeprefix("Warning: ").strip())


@pytest.fixture(autouse=True)
def accidents(request):
    """Division by zero, overflow, NaN out of numbers: errors; underflow too, unless the test says that it is meant."""
    under = "ignore" if request.node.get_closest_marker("underflow") else "log"
    with np.errstate(all="log", under=under, call=Accidents()):
        yield


@pytest.fixture
def rng(request):
    """A generator of the test's own, seeded by its name: the same numbers in any order and under any selection."""
    return np.random.default_rng(list(request.node.name.encode()))
