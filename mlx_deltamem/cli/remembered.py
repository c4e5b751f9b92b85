"""Reads the text or the file that a user names on a command line to be remembered."""

import json
from pathlib import Path

from mlx_deltamem.cli.command import standard_input
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.sessions.messages import Message, parse_messages


def to_remember(given: str) -> str | tuple[Message, ...]:
    """A file's text if there is such a file, else the text itself.

    Raises:
        ValueError, OSError: As `read_remembered`.
    """
    try:
        is_file = user_path(given).is_file()
    except (OSError, ValueError):
        # Too long for a name, or with a NUL in it.
        is_file = False
    return read_remembered(user_path(given)) if is_file else given


def read_remembered(path: Path) -> str | tuple[Message, ...]:
    """A file's text, or the messages in a `.json` file, as OpenAI's API has them; `-` is standard input.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no UTF-8 text, or its JSON is no list of messages.
        OSError: It cannot be read.
    """
    if str(path) == "-":
        return standard_input("the text to remember")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; expected a text file, or messages in a .json file") from None
    if path.suffix != ".json":
        return text
    try:
        return parse_messages(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no messages: {error}") from None
