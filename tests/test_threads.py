"""Work side by side: the same results in the same order as one after another, and BLAS left as it was found."""

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import npmoe
from npmoe.calculus.threads import each, one_blas_thread, parts
from npmoe.probe import function


def blas():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """As many threads as BLAS may use, whatever the machine has."""
    with threadpool_limits(request.param, user_api="blas"):
        if blas() != {request.param}:
            pytest.skip(f"this BLAS cannot be given {request.param} threads")
        yield request.param


def test_results_come_in_order(threads):
    def late(i):
        time.sleep(0.01 * (i % 3 == 0))  # whoever is free takes the next: the order of ending is not that of beginning
        return i * i

    assert each(late, range(10)) == [i * i for i in range(10)]
    assert each(lambda a, b: a + b, "abc", "xyz") == ["ax", "by", "cz"]
    assert each(late, []) == []


def test_side_by_side(threads):
    """As many calls at once as there are threads: each waits for the others, and alone would wait for ever."""
    together = threading.Barrier(threads, timeout=20)
    each(lambda _: together.wait(), range(3 * threads))


def test_short_calls_stay_in_one_thread(threads):
    assert len(set(each(lambda _: threading.get_ident(), range(20), elements=100))) == 1
    assert each(lambda _: blas(), range(2), elements=100) == [{1}] * 2


def test_blas_has_one_thread_inside_and_its_own_after(threads):
    assert each(lambda _: blas(), range(4)) == [{1}] * 4
    assert blas() == {threads}
    with one_blas_thread() as outer, one_blas_thread() as inner:
        assert (outer, inner, blas()) == (threads, threads, {1})
        each(abs, range(4))
        assert blas() == {1}
    assert blas() == {threads}


def test_a_single_call_keeps_blas(threads):
    assert each(lambda _: blas(), [0]) == [{threads}]


def test_calls_inside_calls_run_in_their_thread(threads):
    def outer(_):
        here = threading.get_ident()
        return {here} == set(each(lambda _: threading.get_ident(), range(5)))

    assert all(each(outer, range(4)))


def test_first_error_in_order_is_raised_and_nothing_else_begins(threads):
    begun = []

    def fail(i):
        begun.append(i)
        time.sleep(0.01 if i == 1 else 0)
        if i in (1, 2):
            raise ValueError(i)

    with pytest.raises(ValueError, match="1"):
        each(fail, range(50))
    assert len(begun) <= 2 + 2 * threads
    assert blas() == {threads}
    assert each(abs, [-1, -2]) == [1, 2]


def test_an_error_in_a_lazy_sequence_is_raised(threads):
    def lazy():
        yield 1
        raise KeyError("no second expert")

    with pytest.raises(KeyError, match="no second expert"):
        each(abs, lazy())


def test_no_more_of_a_lazy_sequence_alive_than_threads(threads):
    alive, most, lock = 0, 0, threading.Lock()

    class Large:
        def __init__(self):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    each(lambda _: time.sleep(0.001), (Large() for _ in range(12)))
    assert most <= threads
    assert alive == 0


def test_errstate_is_the_callers(threads):
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        each(lambda i: np.ones(1) / np.zeros(1), range(4))


def test_parts():
    assert [list(range(7))[part] for part in parts(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(parts(0, 3)) == []
    assert list(parts(2, 0)) == [slice(0, 1), slice(1, 2)]


def test_same_bits_with_any_number_of_threads():
    """A training run and what is measured of it: one after another or side by side."""
    rng = np.random.default_rng(0)
    moe = npmoe.init.gelu_moe(rng, E=5, d=16, h=24, k=5)
    x, y = rng.standard_normal((2, 1500, 16))  # enough to be shared out
    assert moe._share(x) > 1 << 14

    def run():
        *_, (_, loss, model) = npmoe.fit(moe, x, y, steps=5)
        s = npmoe.site(model, x)
        return [loss, model.jacobian(x), model.mean_jacobian(x), *function.survey(s), *function.token_spectra(s)]

    found = []
    for n in (1, 2, 3):
        with threadpool_limits(n, user_api="blas"):
            found.append(run())
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
