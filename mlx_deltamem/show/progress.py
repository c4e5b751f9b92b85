"""Progress bars: for a text that a model reads, and for long runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mlx_deltamem.sessions.prefill import Progress
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
