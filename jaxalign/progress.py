"""Progress of long work on standard error: lines with the time, and bars.

rich loads when something is first shown: modules that import this one stay light.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Batch = TypeVar("Batch")
_SHOW_AFTER = 3.0  # seconds of work without a bar


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
            from rich.text import Text

            # A text of its own: brackets in it, such as those of a prompt, are no markup.
            seconds = time.monotonic() - self._start
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


def track(
    title: str,
    batches: Iterable[Batch],
    total: int,
    count: Callable[[Batch], int],
    show: bool,
    note: Callable[[], str] = lambda: "",
) -> Iterator[Batch]:
    """Yield batches, with a progress bar on standard error once they have taken 3 s.

    Args:
        title: what is being done.
        batches: passed on one by one.
        total: the sum of `count` over all batches.
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
    from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (*Bars.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bars(*columns, TextColumn("{task.fields[note]}"), console=stderr_console())
    task, start, visible = bar.add_task(title, total=total, note=""), time.monotonic(), False
    try:
        for batch in batches:
            yield batch
            bar.update(task, advance=count(batch), note=note())
            if show and not visible and time.monotonic() - start > _SHOW_AFTER:
                bar.start()
                visible = True
    finally:
        if visible:
            bar.stop()
