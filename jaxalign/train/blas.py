"""BLAS threads of the host."""

import functools
import threading
from collections.abc import Callable
from contextlib import ExitStack
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
        with _ONE_THREAD:
            return function(*args, **kwargs)

    return limited


class _OneThread:
    """The limit of the process while one call or more are running, in whatever threads.

    Each call by itself would restore the number that it found, while others still run.
    """

    def __init__(self) -> None:
        self._lock, self._calls, self._limit = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._calls:
                self._limit.enter_context(_libraries().limit(limits=1, user_api="blas"))
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if not self._calls:
                self._limit.close()


_ONE_THREAD = _OneThread()


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries of the process, looked up once: the search takes a millisecond and more."""
    return ThreadpoolController()
