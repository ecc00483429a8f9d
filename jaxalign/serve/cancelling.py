"""Work that is ended early: the draws beside one that failed, and what a client no longer wants."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import TypeVar

from starlette.requests import Request

from jaxalign.serve.api_errors import ApiError

T = TypeVar("T")


@contextlib.contextmanager
def cancelling(*tasks: asyncio.Future) -> Iterator[None]:
    """Cancel what has not ended of some tasks when the block ends, as where one of them failed.

    Example:
        >>> import asyncio
        >>> from jaxalign.serve.cancelling import cancelling
        >>> async def fail():
        ...     raise ValueError
        >>> async def run():
        ...     tasks = [asyncio.ensure_future(one) for one in (fail(), asyncio.sleep(60))]
        ...     try:
        ...         with cancelling(*tasks):
        ...             await asyncio.gather(*tasks)
        ...     except ValueError:
        ...         await asyncio.wait(tasks)
        ...     return tasks[1].cancelled()
        >>> asyncio.run(run())
        True
    """
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def while_connected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Return the result of some work, which is cancelled when the client goes away.

    Args:
        request: whose body has been read.
        work: what the client waits for.

    Raises:
        ApiError: the client went away before the work was done.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    with cancelling(task, left):
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        raise ApiError(499, "The client went away before the answer.", "client_gone")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
