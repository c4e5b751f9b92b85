"""Standard output and standard error of a command: what may be written to them, and what happens when they fail."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from mlx_deltamem.show.printable import printable

# tqdm begins a line again, and goes up to the line of another bar.
_PROGRESS = re.compile(r"\r|(?:\n|\x1b\[A)+\Z")
# What rich writes for its own styles, and for bars and spinners that it draws again. Everything else is text.
_CODES = re.compile(r"(?P<style>\x1b\[[0-9;]*m)|(?P<move>\x1b\[\d*[AK]|\x1b\[\?25[lh]|\r)|\x1b|[^\x1b\r]+")


class _Output:
    """A stream and its first failure.

    Args:
        stream: The stream.
        is_needed: Whether a failure is an error. If not, the output is lost.
    """

    def __init__(self, stream: TextIO, is_needed: bool):
        self.stream = stream
        self.failure: OSError | None = None
        self.is_kept = False
        self._is_needed = is_needed

    def write(self, text: str) -> None:
        self._try(lambda: self.stream.write(text))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                action()
            except OSError as error:
                self.failure = _named(error)
        if self.failure is not None and self._is_needed and not self.is_kept:
            raise self.failure


class _Rendered:
    """The stream of a rich console: it sends text and the codes of styles. It shows other codes.

    Args:
        output: The stream to write to.
    """

    def __init__(self, output: _Output):
        self._output = output
        self._has_styles = _has_styles(output.stream)

    def write(self, text: str) -> int:
        self._output.write(_CODES.sub(self._shown, text))
        return len(text)

    def flush(self) -> None:
        self._output.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output.stream, name)

    def _shown(self, match: re.Match[str]) -> str:
        if match["style"] is not None:
            return match[0] if self._has_styles else ""
        return match[0] if match["move"] is not None else printable(match[0])


class ShownStream:
    """A stream that shows control characters and does not send them.

    Args:
        stream: The stream to write to.
        is_needed: Whether a failure of the stream is an error.

    Attributes:
        rich_proxied_file: The stream for rich consoles, which look for this attribute: they write codes of their own.
    """

    def __init__(self, stream: TextIO, is_needed: bool = True):
        self._output = _Output(stream, is_needed)
        self.rich_proxied_file = _Rendered(self._output)

    @property
    def failure(self) -> OSError | None:
        """The first error of the stream; what was written after it is lost."""
        return self._output.failure

    def write(self, text: str) -> int:
        begin = match.end() if (match := _PROGRESS.match(text)) else 0
        self._output.write(text[:begin] + printable(text[begin:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._output.flush()

    @contextmanager
    def keeping_failures(self) -> Iterator[None]:
        """A context in which a failure does not stop the work. It is raised at the end, unless another error is."""
        before, self._output.is_kept = self._output.is_kept, True
        try:
            yield
        finally:
            self._output.is_kept = before
        if self.failure is not None and not before:
            raise self.failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output.stream, name)


@contextmanager
def shown_streams() -> Iterator[ShownStream]:
    """A context in which standard output and standard error are a `ShownStream`.

    No character is refused: those that the encoding lacks are written as `\\u03b4`. A closed stream takes everything.
    A failure of standard error is never an error.

    Yields:
        Standard output.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        _fill_descriptors()
        out = ShownStream(_open(before[0], stack))
        err = ShownStream(_open(before[1], stack), is_needed=False)
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        handlers = [(handler, handler.stream) for handler in _log_handlers() if handler.stream in before]
        for handler, _ in handlers:
            handler.setStream(cast(TextIO, err))
        try:
            yield out
        finally:
            sys.stdout, sys.stderr = before
            for handler, stream_before in handlers:
                handler.setStream(stream_before)
            for stream in (out, err):
                if stream.failure is not None:
                    _discard(stream)


@contextmanager
def keeping_output_failures() -> Iterator[None]:
    """A context in which work goes on when standard output fails, so that its result can be saved.

    Raises:
        OSError: At the end: standard output has failed.
    """
    if isinstance(sys.stdout, ShownStream):
        with sys.stdout.keeping_failures():
            yield
    else:
        yield


def _open(stream: TextIO | None, stack: ExitStack) -> TextIO:
    if stream is None:
        return stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _fill_descriptors() -> None:
    """Open the null device in the place of closed standard streams, so that no file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _log_handlers() -> list[logging.StreamHandler[TextIO]]:
    """The handlers of libraries, which took the streams when they were imported."""
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    found = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return [handler for handler in found if isinstance(handler, logging.StreamHandler)]


def _discard(stream: ShownStream) -> None:
    """Send what is left in a stream to the null device; Python would write it at exit, and print an error."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _has_styles(stream: TextIO) -> bool:
    """Whether a stream takes the codes of colours: a terminal does, unless the environment says otherwise."""
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get("NO_COLOR")


def _named(error: OSError) -> OSError:
    if isinstance(error, BrokenPipeError):
        return error
    return OSError(f"standard output cannot be written ({error.strerror or error}); send it elsewhere")
