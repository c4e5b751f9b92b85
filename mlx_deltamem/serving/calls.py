"""`EngineCalls`: functions that run in the engine's thread for clients that wait in an event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.exchange import RefusedError, refusal
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.work import when_free

_Result = TypeVar("_Result")


class EngineCalls:
    """Runs functions in the engine's thread, and waits for their results.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        # Each answers a client that waits with an error.
        self._waiting: set[Callable[[Exception], None]] = set()

    def fail_all(self, error: RefusedError) -> None:
        """Answer all clients that wait for the engine with an error. Any thread may call it."""
        for fail in list(self._waiting):
            fail(error)

    @contextlib.contextmanager
    def waiting(self, fail: Callable[[Exception], None]) -> Iterator[None]:
        """A context in which a client waits for the engine.

        Args:
            fail: Answers the client with an error. Any thread may call it.
        """
        self._waiting.add(fail)
        try:
            yield
        finally:
            self._waiting.discard(fail)

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Run a function between two steps.

        Raises:
            RefusedError: The server ends or has stalled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._engine.call(lambda: _settle(loop, future, work))
        return await self._result(future)

    async def run_on(self, name: str, work: Callable[[Memory], _Result], make: bool = False) -> _Result:
        """Run a function on a memory when no turn of it is under way.

        Args:
            name: The name of the memory.
            work: The function.
            make: Make an empty memory if there is none.

        Raises:
            RefusedError: The memory cannot be used, or the server ends or has stalled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def find() -> None:
            try:
                memory = self._engine.memories.get(name, make)
            except RefusedError as refused:
                # Python unbinds the name of an exception at the end of its block.
                error = refused
                soon(loop, lambda: _fail(future, error))
            else:
                when_free(memory, lambda: _settle(loop, future, lambda: work(memory)))

        self._engine.call(find)
        return await self._result(future)

    async def _result(self, future: "asyncio.Future[_Result]") -> _Result:
        """Wait for a result of the engine."""
        loop = asyncio.get_running_loop()

        def fail(error: Exception) -> None:
            soon(loop, lambda: _fail(future, error))

        with self.waiting(fail):
            return await future


def soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Run a function in an event loop, from any thread. Nothing happens if the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(work)


def _settle(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[_Result]", work: Callable[[], _Result]) -> None:
    """Give a future the result of a function, or its error, from another thread."""
    try:
        result = work()
    except Exception as error:
        refused = refusal(error)
        soon(loop, lambda: _fail(future, refused))
    else:
        soon(loop, lambda: None if future.done() else future.set_result(result))


def _fail(future: "asyncio.Future[_Result]", error: Exception) -> None:
    # The client may have gone.
    if not future.done():
        future.set_exception(error)
