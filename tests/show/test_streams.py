"""The streams of a command: what reaches the terminal, and what happens when it cannot be written."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

import pytest
from rich.console import Console as RichConsole
from rich.progress import Progress
from tqdm import tqdm

from mlx_deltamem.show.console import Console
from mlx_deltamem.show.streams import ShownStream, keeping_output_failures, shown_streams

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
SHOWN = "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202e"


class Screen(io.StringIO):
    """A stream that takes `room` writes. It is a terminal."""

    def __init__(self, room: int = 1_000_000, error: OSError | None = None):
        super().__init__()
        self.room = room
        self.error = error or BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.room -= 1
        if self.room < 0:
            raise self.error
        return super().write(text)


@pytest.fixture
def screen(monkeypatch) -> Screen:
    """A terminal of 256 colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Screen()


@contextmanager
def shown_on(out: TextIO | None, err: TextIO | None) -> Iterator[ShownStream]:
    """The streams of a command on other ones. pytest sets standard output before each test, after its fixtures."""
    with redirect_stdout(out), redirect_stderr(err), shown_streams() as output:
        yield output


def test_controls_are_shown(screen):
    with shown_on(screen, screen):
        print(EVIL)
        print("tab\tand line", file=sys.stderr)
        sys.stdout.writelines([EVIL, "\n"])
    assert screen.getvalue() == f"{SHOWN}\ntab\tand line\n{SHOWN}\n"
    assert not isinstance(sys.stdout, ShownStream)


def test_consoles_have_their_colours_and_no_other_codes(screen):
    with shown_on(screen, screen):
        RichConsole().print(f"[bold]{EVIL}[/] [link=http://a]b[/link]", highlight=False)
        Console().print("[bold]bold[/]")
    first, second = screen.getvalue().splitlines()
    assert first.startswith("\x1b[1m\\x1b]0;title")
    assert "\x1b[2J" not in first
    assert "\x1b]8;" not in first and "\\x1b]8;" in first
    assert second == "\x1b[1mbold\x1b[0m"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_no_colours_where_none_are_wanted(screen, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with shown_on(screen, screen):
        RichConsole(color_system="truecolor").print("[bold red]warm[/]")
        Console(color_system="truecolor").print("[bold red]warm[/]")
    assert screen.getvalue() == "warm\nwarm\n"


def test_a_file_has_no_colours(screen, monkeypatch):
    monkeypatch.setattr(screen, "isatty", lambda: False)
    with shown_on(screen, screen):
        # So does mlx-lm's training.
        RichConsole(color_system="truecolor").print("[bold red]warm[/]")
    assert screen.getvalue() == "warm\n"


def test_bars_move(screen):
    with shown_on(screen, screen):
        with Progress(console=Console()) as bar:
            bar.advance(bar.add_task("work", total=2), 2)
        for _ in tqdm(range(2), file=sys.stderr, desc="\x1b[2J"):
            pass
    assert "\\x1b[2K" not in screen.getvalue() and "\\x0d" not in screen.getvalue()
    assert "\x1b[2K" in screen.getvalue() and "\r" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


def test_the_handlers_of_libraries(screen):
    logger = logging.getLogger("mlx_deltamem.test_streams")
    handler = logging.StreamHandler(screen)
    logger.addHandler(handler)
    try:
        with shown_on(screen, screen):
            logger.error(EVIL)
        assert handler.stream is screen
    finally:
        logger.removeHandler(handler)
    assert screen.getvalue() == f"{SHOWN}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_character_is_refused(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with shown_on(stream, stream):
        print("δ-mem \udcff", flush=True)
    assert stream.buffer.getvalue() == b"\\u03b4-mem \\udcff\n"


def test_closed_streams_take_everything():
    with shown_on(None, None):
        print("lost", flush=True)
        print("lost", file=sys.stderr)
        Console().print("lost")
        assert os.fstat(sys.stdout.fileno())


def test_a_failure_is_an_error(screen):
    screen.room = 1
    with shown_on(screen, screen) as output, pytest.raises(BrokenPipeError):
        print("seen", "lost")
    assert isinstance(output.failure, BrokenPipeError)


@pytest.mark.parametrize("console", [None, Console])
def test_work_goes_on_until_it_is_saved(screen, console):
    screen.room, screen.error = 1, OSError(28, "No space left on device")
    saved = []
    show = print if console is None else console().print
    with (
        shown_on(screen, screen),
        pytest.raises(OSError, match=r"standard output cannot be written \(No space left on device"),
    ):
        with keeping_output_failures():
            show("seen")
            show("lost")
            with keeping_output_failures():
                show("lost", "too")
            saved.append("the turn")
        saved.append("not reached")
    assert saved == ["the turn"]
    assert screen.getvalue().startswith("seen")


def test_another_error_comes_first(screen):
    screen.room = 0
    with shown_on(screen, screen), pytest.raises(ValueError, match="other"), keeping_output_failures():
        print("lost")
        raise ValueError("other")


def test_a_failure_of_standard_error_is_none():
    stream = ShownStream(Screen(room=0), is_needed=False)
    print("lost", file=stream, flush=True)
    assert stream.failure is not None
