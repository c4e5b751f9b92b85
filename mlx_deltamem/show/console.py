"""The console of all commands: rich's, for texts that anyone may have written."""

from collections.abc import Iterable
from typing import IO, Any

from rich import console as rich_console
from rich.console import ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from mlx_deltamem.show.printable import printable

# Characters: the width where the terminal does not give one, and the smallest width for which tables are laid out.
_UNKNOWN_WIDTH, _LEAST_WIDTH = 80, 20
_UNKNOWN_HEIGHT = 25


class Console(rich_console.Console):
    """A rich console that shows control characters, and characters that the terminal lacks, as `\\x1b` and `\\u03b4`.

    Args:
        options: Those of rich's console. Its colours are always those that the terminal has.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "color_system": "auto", "highlight": False, "emoji": False})

    def _get_file(self) -> IO[str]:
        # While a bar moves, rich's stream is before the command's, which has another one for consoles behind it.
        file = super().file
        while (behind := getattr(file, "rich_proxied_file", None)) is not None:
            file = behind
        return file

    def _set_file(self, file: IO[str]) -> None:
        self._file = file

    file = property(_get_file, _set_file)

    def _get_size(self) -> ConsoleDimensions:
        size = super().size
        width = size.width or _UNKNOWN_WIDTH
        return ConsoleDimensions(max(width, _LEAST_WIDTH), size.height or _UNKNOWN_HEIGHT)

    def _set_size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    # COLUMNS=0 would print nothing.
    size = property(_get_size, _set_size)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text of a string, before the widths of tables are found."""
        return super().render_str(self._shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object. What did not come through `render_str` is shown here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._shown(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Let the error go on to the command, which ends with the code for it."""
        raise  # noqa: PLE0704  # rich calls this in its handler of the error.

    def _shown(self, text: str) -> str:
        return printable(text, encoding=self.encoding)
