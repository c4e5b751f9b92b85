"""Progress bars: for text that a model reads, and for long runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mlx_deltamem.sessions.read import Progress

Counted = Callable[[str, int], None]


@contextmanager
def reading_progress(what: str, shown: bool = True) -> Iterator[Progress]:
    """Give a callback that is told how many tokens are read, and of how many; it moves a bar, on a terminal only.

    Args:
        what: What is written before the bar.
        shown: False shows nothing.
    """
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(what)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done == total:
                # What comes next may be written where the bar is.
                bar.stop()

        yield update


@contextmanager
def counting_progress(total: int) -> Iterator[Counted]:
    """Give a callback that is told what is going on and how many more are done; on a terminal it moves a bar that
    shows the time left, elsewhere there is a line for each thing that goes on.

    Args:
        total: How many there are.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task, before = bar.add_task("", total=total), ""

        def update(what: str, more: int) -> None:
            nonlocal before
            if what != before and not console.is_terminal:
                console.print(f"{what} ...", highlight=False)
            before = what
            bar.update(task, description=what, advance=more)

        yield update
