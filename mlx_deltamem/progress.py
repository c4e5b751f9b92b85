"""A progress bar for text that a model reads."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar

from mlx_deltamem.runner import Progress


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
