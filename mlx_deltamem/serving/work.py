"""Work on memories: one after the other on each, in the order in which it came. Only the engine's thread does it."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.ranks.world import World
from mlx_deltamem.serving.memory import Memory

_LOG = logging.getLogger(__name__)


def attempt(work: Callable[[], None], world: World) -> None:
    """Run a function. Its error is logged, so that other work goes on.

    Raises:
        RankError: The error may have come in this rank alone.
    """
    try:
        work()
    except Exception as error:
        world.check_common(error)
        # The text of the error may have text of a message.
        _LOG.exception("work on a memory failed", exc_info=False)


def when_free(memory: Memory, work: Callable[[], None], deleted: Callable[[], None]) -> None:
    """Run a function when no turn of a memory is under way. The function may begin one.

    Args:
        memory: The memory.
        work: The function.
        deleted: Run instead if the memory was deleted in the meantime.
    """
    if memory.is_busy:
        memory.waiting.append((work, deleted))
    else:
        work()
        _go_on(memory)


def free(memory: Memory) -> None:
    """End the turn that is under way, and let the next work on the memory begin."""
    memory.is_busy, memory.settled = False, None
    _go_on(memory)


@contextlib.contextmanager
def held(memory: Memory) -> Iterator[None]:
    """A context for long work on a memory, within which other work on it waits, and requests that read it do not.

    Use it in work that runs by `when_free`, which lets the next work begin afterwards. The work calls
    `Engine.others_go_on` from time to time.
    """
    memory.is_busy, memory.settled = True, memory.chat.state.snapshot()
    try:
        yield
    finally:
        memory.is_busy, memory.settled = False, None


def _go_on(memory: Memory) -> None:
    while memory.waiting and not memory.is_busy:
        work, deleted = memory.waiting.popleft()
        attempt(deleted if memory.is_deleted else work, world_of(memory.chat.model))
