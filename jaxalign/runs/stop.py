"""Ctrl-C and SIGTERM between two steps: the state is written before the run is left."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\njaxalign: stopping when the state is written; once more to stop at once.\n"


class StopRequest:
    """Whether the run has been asked to stop.

    Attributes:
        signal: the number of the signal that asked; None as long as none did.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal has come: write the state, and leave the block of `stop_request`."""
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Hold back SIGINT and SIGTERM while a loop finishes its step and writes its state.

    A second signal is not held back. When the block is left, the signal takes the effect that it
    would have had, and control does not return: `KeyboardInterrupt`, or the end of the process.

    Signals are left alone outside the main thread, where they are ignored, and in a run of several
    processes, which cannot agree on a step to stop at.

    Yields:
        The request, to be looked at after each step.

    Raises:
        KeyboardInterrupt: at the end of the block, if a stop was asked for.

    Example:
        >>> import signal
        >>> from jaxalign.runs.stop import stop_request
        >>> try:
        ...     with stop_request() as stop:
        ...         for step in range(9):
        ...             signal.raise_signal(signal.SIGINT) if step == 3 else None
        ...             if stop.asked:
        ...                 break
        ... except KeyboardInterrupt:
        ...     print("left after step", step)
        left after step 3
    """
    import jax

    request = StopRequest()
    alone = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
    before = {number: signal.getsignal(number) for number in _SIGNALS if alone}
    held = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}

    def hold(number: int, frame: FrameType | None) -> None:
        if request.asked:
            for one, old in held.items():
                signal.signal(one, old)
            signal.raise_signal(number)
            return
        request.signal = number
        os.write(2, _NOTICE)

    for number in held:
        signal.signal(number, hold)
    try:
        yield request
    finally:
        for number, old in held.items():
            signal.signal(number, old)
    if request.signal is not None:
        signal.raise_signal(request.signal)
        raise KeyboardInterrupt  # whatever a handler of somebody else's made of the signal
