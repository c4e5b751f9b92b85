"""`EngineCalls`: operations in the engine's thread for clients that wait in an event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar, TypeVarTuple

from mlx_deltamem.ranks.world import World
from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.exchange import RefusedError, refusal
from mlx_deltamem.serving.operations import Operations, Settle

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class EngineCalls:
    """Lets the engine's thread do operations, and waits for their results.

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

    async def run(
        self,
        operation: Callable[[Operations, Settle[_Result], *_Arguments], None],
        *arguments: *_Arguments,
    ) -> _Result:
        """Do an operation between two steps, and wait for its result.

        Args:
            operation: A method of `Operations`.
            arguments: Its arguments, without the one that takes the result.

        Raises:
            RefusedError: The operation is refused, or the server ends or has stalled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def settle(work: Callable[[], _Result]) -> None:
            _settle(loop, future, work, self._engine.world)

        def fail(error: Exception) -> None:
            soon(loop, lambda: _fail(future, error))

        self._engine.inbox.call(operation, settle, *arguments)
        with self.waiting(fail):
            return await future


def soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Run a function in an event loop, from any thread. Nothing happens if the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(work)


def _settle(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[_Result]", work: Callable[[], _Result], world: World
) -> None:
    """Give a future the result of a function, or its error, from another thread."""
    try:
        result = work()
    except Exception as error:
        world.check_common(error)
        refused = refusal(error)
        soon(loop, lambda: _fail(future, refused))
    else:
        soon(loop, lambda: None if future.done() else future.set_result(result))


def _fail(future: "asyncio.Future[_Result]", error: Exception) -> None:
    # The client may have gone.
    if not future.done():
        future.set_exception(error)
