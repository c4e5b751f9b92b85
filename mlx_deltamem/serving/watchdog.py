"""A watchdog: it ends the server if the generation thread stalls, so that whatever started it can start it again."""

import logging
import os
import threading
import time
from collections.abc import Callable

from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.exchange import RefusedError

EXIT_CODE = 1
_LOG = logging.getLogger(__name__)
# The time in which the answers to those who wait are sent, in seconds.
_FOR_ANSWERS = 1.0
_LONGEST_PAUSE = 1.0


def watch(engine: Engine, seconds: float, fail_all: Callable[[RefusedError], None]) -> None:
    """Watch an engine in another thread. If it stalls, answer all who wait with 503, and end the process.

    The thread that stalls cannot be ended alone, and cannot save: turns that were not saved are lost, as by a kill.

    Args:
        engine: The engine.
        seconds: The time without a new step, while there is work, after which it counts as stalled.
        fail_all: Answers all who wait with an error.
    """
    threading.Thread(target=_watch, args=(engine, seconds, fail_all), name="watchdog", daemon=True).start()


def _watch(engine: Engine, seconds: float, fail_all: Callable[[RefusedError], None]) -> None:
    while engine.stalled_seconds <= seconds:
        time.sleep(min(seconds / 4, _LONGEST_PAUSE))
    engine.inbox.is_accepting = False
    _LOG.error("the generation thread has stalled for %.1f seconds; the server ends (--exit-on-stall)", seconds)
    fail_all(RefusedError(503, "stalled", "the server has stalled and ends; try again later"))
    time.sleep(_FOR_ANSWERS)
    os._exit(EXIT_CODE)
