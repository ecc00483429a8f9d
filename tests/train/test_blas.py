"""The number of BLAS threads while functions run in several threads of the process."""

import threading

from jaxalign.train.blas import _libraries, one_blas_thread


def threads():
    return {one["num_threads"] for one in _libraries().info() if one["user_api"] == "blas"}


def test_a_call_that_ends_leaves_the_limit_to_those_that_still_run():
    begun, ending = threading.Event(), threading.Event()

    @one_blas_thread
    def first():
        begun.set()
        assert ending.wait(60)

    @one_blas_thread
    def second(other):
        ending.set()
        other.join(60)
        return threads()

    with _libraries().limit(limits=2, user_api="blas"):
        other = threading.Thread(target=first)
        other.start()
        assert begun.wait(60)
        assert second(other) == {1}
        assert threads() == {2}
