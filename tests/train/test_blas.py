"""The number of BLAS threads while functions run in several threads of the process."""

import threading
import time

import pytest

from jaxalign.train.blas import _libraries, one_blas_thread


def threads():
    return {one["num_threads"] for one in _libraries().info() if one["user_api"] == "blas"}


def in_a_thread(function):
    """Run to the end in a thread of its own, which owns the limit no longer than it lives."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.fixture
def two_threads():
    (before,) = threads()
    in_a_thread(lambda: _libraries().limit(limits=2, user_api="blas"))
    assert threads() == {2}
    yield
    in_a_thread(lambda: _libraries().limit(limits=before, user_api="blas"))


@pytest.mark.usefixtures("two_threads")
def test_calls_of_several_threads_have_one_blas_thread_from_begin_to_end():
    found = []

    @one_blas_thread
    def limited():
        found.append(threads())
        time.sleep(0.02)  # long enough for the others to begin
        found.append(threads())

    calls = [threading.Thread(target=limited) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert found == [{1}] * 8
    assert threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_a_call_inside_a_call_keeps_the_limit():
    inner = one_blas_thread(threads)
    assert one_blas_thread(lambda: (inner(), threads()))() == ({1}, {1})
    assert threads() == {2}
