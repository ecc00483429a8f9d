"""Progress of work that comes in batches."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")
_AFTER_SECONDS = 3.0


def shown(
    title: str, batches: Iterable[Batch], total: int, count: Callable[[Batch], int], progress: bool
) -> Iterator[Batch]:
    """The batches, with a bar on stderr once they have taken some seconds.

    Args:
        title: what is being done.
        batches: passed on one by one.
        total: of what is counted.
        count: how much of it a batch is.
        progress: False shows nothing.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task, start, visible = bar.add_task(title, total=total), time.monotonic(), False
    try:
        for batch in batches:
            yield batch
            bar.advance(task, count(batch))
            if progress and not visible and time.monotonic() - start > _AFTER_SECONDS:
                bar.start()
                visible = True
    finally:
        if visible:
            bar.stop()
