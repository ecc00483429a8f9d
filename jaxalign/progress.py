"""Progress of long work on standard error: lines with the time, and bars.

rich loads when something is first shown: modules that import this one stay light.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Batch = TypeVar("Batch")
_SHOW_AFTER = 3.0  # seconds of work without a bar
_SAY_EVERY = 10.0  # seconds between two lines where there is no terminal for a bar


@functools.cache
def stderr_console() -> "Console":
    """Return the console on standard error that all progress goes to."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class Progress:
    """Print lines that say what is being done, each with the seconds since the start."""

    def __init__(self, show: bool = True) -> None:
        """Start the clock.

        Args:
            show: False prints nothing.
        """
        self.show = show
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line."""
        if self.show:
            _print_line(time.monotonic() - self._start, text)

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Print a line every 10 s while a block works that says nothing of itself.

        Of blocks inside one another the innermost is named, in each thread.

        Args:
            title: what is being done.
        """
        if not self.show:
            yield
            return
        done, blocks = threading.Event(), _blocks_of_thread()
        blocks.append(done)

        def remind() -> None:
            start = time.monotonic()
            while not done.wait(_SAY_EVERY):
                if blocks[-1] is done:
                    self.say(f"{title}: at work for {duration(time.monotonic() - start)}")

        reminder = threading.Thread(target=remind, daemon=True)
        reminder.start()
        try:
            yield
        finally:
            done.set()
            reminder.join()
            blocks.remove(done)


_thread = threading.local()


def _blocks_of_thread() -> list[threading.Event]:
    """The blocks that wait in this thread, the innermost last; each ends with its event."""
    if not hasattr(_thread, "blocks"):
        _thread.blocks = []
    blocks: list[threading.Event] = _thread.blocks
    return blocks


def _print_line(seconds: float, text: str) -> None:
    """Print one line with the seconds since a start."""
    from rich.text import Text

    # A text of its own: brackets in it, such as those of a prompt, are no markup.
    stderr_console().print(Text.assemble((f"{seconds:6.1f} s", "dim"), f"  {text}"))


def duration(seconds: float) -> str:
    """Return a time to wait in one or two units.

    Example:
        >>> from jaxalign.progress import duration
        >>> duration(41.6), duration(125), duration(8000)
        ('42 s', '2 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, in the plural where there is not one of them.

    Args:
        number: how many.
        noun: the noun in the singular, with what stands before it.
        plural: None for `noun` with an s.

    Example:
        >>> from jaxalign.progress import counted
        >>> counted(1, "user"), counted(2000, "new user"), counted(2, "policy", "policies")
        ('1 user', '2,000 new users', '2 policies')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def track(
    title: str,
    batches: Iterable[Batch],
    total: int | None,
    count: Callable[[Batch], int],
    show: bool,
    note: Callable[[], str] = lambda: "",
) -> Iterator[Batch]:
    """Yield batches, with a progress bar on standard error once they have taken 3 s.

    Where standard error is no terminal, a line says every 10 s how much is done. Until the first
    batch is there, lines say so everywhere.

    Args:
        title: what is being done.
        batches: passed on one by one.
        total: the sum of `count` over all batches, or an estimate; None where it is not known.
        count: how much of the total a batch is.
        show: False shows no bar.
        note: what stands behind the bar, such as a rate; called after every batch.

    Yields:
        The batches.

    Example:
        >>> from jaxalign.progress import track
        >>> sum(sum(batch) for batch in track("adding", [[1, 2], [3]], 3, len, show=False))
        6
    """
    if not show:
        yield from batches
        return
    from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (*Bars.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bars(*columns, TextColumn("{task.fields[note]}"), console=stderr_console())
    task, start, visible = bar.add_task(title, total=total, note=""), time.monotonic(), False
    done, said, drawn = 0, start, stderr_console().is_terminal
    rest = iter(batches)
    with Progress().waiting(title):  # a program may have to be compiled for the first batch
        first = list(islice(rest, 1))
    try:
        for batch in chain(first, rest):
            yield batch
            now, done = time.monotonic(), done + count(batch)
            if not drawn:
                if now - said > _SAY_EVERY:
                    said = now
                    _print_line(now - start, _so_far(title, done, total, now - start, note()))
                continue
            bar.update(task, completed=done, note=note())
            if not visible and now - start > _SHOW_AFTER:
                bar.start()
                visible = True
    finally:
        if visible:
            bar.stop()


def _so_far(title: str, done: int, total: int | None, seconds: float, note: str) -> str:
    # An estimate may turn out too low.
    parts = [f"{title}: {done:,}" + (f" of {total:,}" if total and done <= total else "")]
    if total and 0 < done < total:
        parts.append(f"{duration(seconds * (total - done) / done)} left")
    return ", ".join([*parts, note] if note else parts)
