"""The backend that programs are made for: that of this process, or of a device elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_ELSEWHERE: ContextVar[str | None] = ContextVar("elsewhere", default=None)


def program_backend() -> str:
    """Return the name of the backend that programs are made for, such as "cpu" or "gpu".

    What has a form of its own for some kind of device asks for it here, while it is traced.

    Example:
        >>> import jax
        >>> from jaxalign.backend import program_backend
        >>> program_backend() == jax.default_backend()
        True
    """
    return _ELSEWHERE.get() or jax.default_backend()


@contextmanager
def programs_for(backend: str) -> Iterator[None]:
    """Make programs for a backend that this process need not have.

    What `jax.jit` has kept of other backends is forgotten at the start and at the end, since what
    it keeps does not say which backend it was made for.

    Args:
        backend: as `jax.default_backend` would name it.

    Example:
        >>> from jaxalign.backend import program_backend, programs_for
        >>> with programs_for("gpu"):
        ...     program_backend()
        'gpu'
    """
    jax.clear_caches()
    before = _ELSEWHERE.set(backend)
    try:
        yield
    finally:
        _ELSEWHERE.reset(before)
        jax.clear_caches()
