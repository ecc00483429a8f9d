"""BLAS threads of the host."""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
R = TypeVar("R")


def one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with one BLAS thread a call, and the former number afterwards.

    XLA on a CPU hands each small triangular solve of a batch to LAPACK from its own threads; where
    LAPACK starts threads of its own, 256 solves of size 99 took 10 s here instead of .05. The
    function must wait for its results before it returns.
    """

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _ONE_CALL, _libraries().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


# The number is one for the whole process: a call that ends restores it for all others. Where calls
# meet, threadpoolctl lets one thread alone set it.
_ONE_CALL = threading.RLock()


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries of the process, looked up once: the search takes a millisecond and more."""
    return ThreadpoolController()
