"""Progress bars: for a text that a model reads, and for long runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mlx_deltamem.sessions.reading.prefill import Progress
from mlx_deltamem.show.console import Console

# Called with the name of the present step and the number of items that were done since the last call.
Counted = Callable[[str, int], None]


@contextmanager
def reading_progress(what: str, shown: bool = True) -> Iterator[Progress]:
    """Give a callback for the tokens that a model reads. On a terminal it moves a bar; elsewhere it shows nothing.

    Args:
        what: The text before the bar.
        shown: False shows nothing on a terminal either.

    Yields:
        A function of the number of tokens done and the number of all tokens.
    """
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(escape(what))

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done == total:
                # The reply may be printed in the bar's place before this block ends.
                bar.stop()

        yield update


class TimeLeft:
    """The speed of a long text that is read, and the time that the rest of it takes.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._begin: tuple[float, int] | None = None

    def after(self, done: int, total: int) -> str:
        """The text to put after the numbers of tokens; empty until something has been read."""
        if self._begin is None:
            # A text that goes on begins with tokens that were read earlier.
            self._begin = self._clock(), done
        seconds, read = self._clock() - self._begin[0], done - self._begin[1]
        if read <= 0 or seconds <= 0:
            return ""
        left = round((total - done) * seconds / read)
        return f", {read / seconds:,.0f} tokens/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"


@contextmanager
def counting_progress(total: int) -> Iterator[Counted]:
    """Give a callback for the items of a long run.

    On a terminal it moves a bar that shows the time left. Elsewhere it prints one line for each new step.

    Args:
        total: The number of all items.

    Yields:
        A function of the name of the present step and the number of items done since the last call.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task, before = bar.add_task("", total=total), ""

        def update(what: str, more: int) -> None:
            nonlocal before
            if what != before and not console.is_terminal:
                console.print(f"{escape(what)} ...")
            before = what
            bar.update(task, description=escape(what), advance=more)

        yield update
