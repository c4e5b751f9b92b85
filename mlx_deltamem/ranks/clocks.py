"""The clocks of the ranks. Chat templates write the date into the messages, which must be the same in all ranks."""

from collections.abc import Callable
from datetime import datetime
from typing import cast

from mlx_deltamem.ranks.world import World

# Seconds. Clocks that are set by the network differ by far less.
_APART = 60.0


def _now() -> datetime:
    return datetime.now().astimezone()


def check_clocks(world: World, now: Callable[[], datetime] = _now) -> None:
    """Check that the clocks of all ranks show the same time, in the same time zone. All ranks must call it.

    Args:
        world: The ranks.
        now: Gives the local time, with its time zone.

    Raises:
        ValueError: They do not. The error comes in all ranks.
    """
    # So that all ranks are here when they look at their clocks.
    world.share(None)
    shown = [datetime.fromisoformat(cast(str, each)) for each in world.collect(now().isoformat())]
    for rank, time in enumerate(shown):
        if time.utcoffset() != shown[0].utcoffset() or abs((time - shown[0]).total_seconds()) > _APART:
            raise ValueError(
                f"the clock of rank {rank} shows {time:%Y-%m-%d %H:%M %z}, and that of rank 0 "
                f"{shown[0]:%Y-%m-%d %H:%M %z}; expected the same time and zone, because chat templates write the "
                "date: set the clocks alike"
            )
