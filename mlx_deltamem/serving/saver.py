"""`Saver`: when memories are saved after their turns."""

import logging
from collections.abc import Callable

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.serving.memory import Memory

_LOG = logging.getLogger(__name__)
# After a failure, this much time passes before the next try, in seconds.
_PAUSE = 1.0


class Saver:
    """Saves memories after their turns: before the end of a reply is told, or some seconds later.

    One thread calls all methods but `unsaved`.

    Args:
        seconds: The longest time that a turn waits for its file; 0: each turn is saved before its end is told. A turn
            that is under way when the time is over is waited for.
        clock: Gives the time, in seconds. In several ranks it gives the same time at the same place.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]):
        self._seconds = seconds
        self._clock = clock
        # By memory, when it is to be saved.
        self._due: dict[Memory, float] = {}
        self._paused_until = 0.0

    @property
    def unsaved(self) -> int:
        """The number of memories with turns that are not in their files."""
        return sum(memory.is_unsaved for memory in list(self._due))

    def turned(self, memory: Memory) -> None:
        """Save a memory that has a new turn, now or later. A private memory is not saved.

        Raises:
            RefusedError: It had to be saved now, and that failed: so the turn is to be taken back. This is also so for
                a memory with earlier turns that could not be saved.
        """
        if memory.path is None:
            return
        now, had_more = self._clock(), memory.is_unsaved
        if not had_more:
            self._due[memory] = now + self._seconds
        if self._due[memory] <= now:
            memory.save()
        else:
            memory.is_unsaved = True

    def save_due(self) -> None:
        """Save the memories that have waited long enough. Those that cannot be saved stay and are tried again."""
        now = self._clock()
        if now >= self._paused_until:
            for memory in [each for each, due in self._due.items() if due <= now and not each.is_busy]:
                self._save(memory)

    @property
    def due_at(self) -> float | None:
        """When `save_due` has something to do; None: nothing waits."""
        return max(min(self._due.values()), self._paused_until) if self._due else None

    def save_all(self) -> int:
        """Save all memories that wait, but those that a turn or a text changes just then.

        Returns:
            The number of memories that were not saved.
        """
        for memory in [each for each in self._due if not each.is_busy]:
            self._save(memory)
        return self.unsaved

    def _save(self, memory: Memory) -> None:
        # Something else may have saved or deleted it.
        if memory.is_unsaved:
            try:
                memory.save()
            except Exception as error:
                world_of(memory.chat.model).check_common(error)
                code = error.code if isinstance(error, RefusedError) else type(error).__name__
                _LOG.error("a memory was not saved (%s); its last turns are in RAM only, and it is tried again", code)
                self._paused_until = self._clock() + _PAUSE
                return
        del self._due[memory]
