"""`Agenda`: the work that the engine does between two steps. Several ranks that hold the model do it in the same order.

Rank 0 takes what has come to it, tells the other ranks of it, and does it. They make the same work of what they are
told. So all ranks run the same passes of the model.
"""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.ranks.world import RankError, World

Work: TypeAlias = Callable[[], None]
_STEP = "step"


@dataclass(frozen=True)
class Item:
    """Something to do.

    Attributes:
        work: Does it, in the thread of the engine.
        name: What it is, for other ranks.
        arguments: Gives the values, in the form of JSON, from which other ranks make the same work.
    """

    work: Work
    name: str
    arguments: Callable[[], Sequence[Json]] = tuple


class Agenda:
    """A queue of the work for the engine.

    Args:
        world: The ranks.
        work_of: In other ranks than rank 0: makes the work of what rank 0 does, from its name and arguments.
        active: The number of replies that are being generated. It must be the same in all ranks.

    Attributes:
        now: When the last work was taken, in seconds: the same in all ranks.
    """

    def __init__(
        self, world: World, work_of: Callable[[str, Sequence[Json]], Work], active: Callable[[], int] = lambda: 0
    ):
        self.now = time.monotonic()
        self._world = world
        self._work_of = work_of
        self._active = active
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        """Add something. Any thread of rank 0 may call it."""
        self._items.put(item)

    def next(self, wait: bool, until: float | None = None) -> Work | None:
        """Take the next work. All ranks call it at the same places.

        Args:
            wait: Wait if there is none.
            until: The time up to which to wait; None: without end.

        Returns:
            None if there is no work, and it is time for a step.

        Raises:
            RankError: This rank is not where rank 0 is.
        """
        if not self._world.is_first:
            return self._told()
        try:
            item = self._items.get(wait, None if until is None else max(0.0, until - time.monotonic()))
        except queue.Empty:
            item = None
        self.now = time.monotonic()
        if not self._world.is_alone:
            said = [_STEP] if item is None else [item.name, *item.arguments()]
            self._world.share([self.now, self._active(), *said])
        return None if item is None else item.work

    def _told(self) -> Work | None:
        now, active, name, *arguments = cast("list[Json]", self._world.share(None))
        self.now = cast(float, now)
        if active != self._active():
            raise RankError(f"rank 0 generates {active} replies, and this rank {self._active()}")
        return None if name == _STEP else self._work_of(cast(str, name), arguments)
