"""Replies of the engine: several at once, closed when their reader leaves, and bounded in time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from mlx_deltamem.serving.exchange import Done, Piece, RefusedError

Result = TypeVar("Result")
Step = Piece | Done
# How far one of several replies may be ahead of the reader.
_AHEAD = 64


async def close(iterator: AsyncIterator[object]) -> None:
    """Close an iterator of the engine. This ends the reply that it gives."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


async def merged(replies: Sequence[AsyncIterator[Step]]) -> AsyncGenerator[tuple[int, Step], None]:
    """Yield the steps of several replies as they come, each with the number of its reply.

    All replies are closed when this generator ends, is closed or fails. An error in one reply ends all.
    """
    if len(replies) == 1:
        try:
            async for step in replies[0]:
                yield 0, step
        finally:
            await close(replies[0])
        return
    queue: asyncio.Queue[tuple[int, Step] | Exception | None] = asyncio.Queue(_AHEAD)
    tasks = [asyncio.create_task(_pump(index, reply, queue)) for index, reply in enumerate(replies)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        await cancelled(tasks)


async def cancelled(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[object, object, Result], seconds: float) -> Result:
    """Do some work for a client, unless it leaves or the time is over.

    Raises:
        ClientDisconnect: The client left. The work was cancelled.
        RefusedError: The time is over. The work was cancelled.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.create_task(left(request))
    try:
        await asyncio.wait((task, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if leaving.done():
            raise ClientDisconnect
        raise too_slow(seconds)
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def left(request: Request) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def too_slow(seconds: float) -> RefusedError:
    """The error for a reply that takes too long."""
    return RefusedError(504, "timeout", f"the reply took more than {seconds:g} seconds; ask for fewer tokens")


def incomplete() -> RefusedError:
    """The error for a reply without an end."""
    return RefusedError(500, "internal_error", "the reply has no end; ask again")


async def _pump(
    index: int, reply: AsyncIterator[Step], queue: "asyncio.Queue[tuple[int, Step] | Exception | None]"
) -> None:
    try:
        async for step in reply:
            await queue.put((index, step))
    # The reader of the queue raises it.
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
    finally:
        await close(reply)
