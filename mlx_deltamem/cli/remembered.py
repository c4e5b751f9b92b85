"""Read the text or the file that a user names to be remembered."""

from pathlib import Path

from mlx_deltamem.cli.command import read_input
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.files.jsonl import LARGEST_FILE, parsed_json
from mlx_deltamem.files.regular import read_file
from mlx_deltamem.files.text import check_text
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.reading.remembering import turn_to_remember
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.text.messages import GivenMessages, Message, parse_messages
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import ALL


def to_remember(given: str) -> str | tuple[Message, ...]:
    """The content of the file with this name; if there is no such file, the text itself.

    Raises:
        ValueError, OSError: As in `read_remembered`; or the text has a character that cannot be in a text.
    """
    is_file = world().first(lambda: _is_file(given))
    return read_remembered(user_path(given)) if is_file else check_text(given, "the text")


def read_remembered(path: Path) -> str | tuple[Message, ...]:
    """Read a text file, or the messages of a `.json` file in the form of OpenAI's API; `-` is standard input.

    Of several ranks, rank 0 reads.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty or not UTF-8 text, or its JSON is not a list of messages; or a `.json` file is a
            pipe or a device, or too large.
        OSError: The file cannot be read.
    """
    return world().first(lambda: _read(path))


def name_of(path: Path) -> str:
    """The name of a file for messages; `-` is standard input."""
    return "standard input" if str(path) == "-" else str(path)


def turn_of(chat: ChatSession, name: str, text: GivenMessages) -> Turn:
    """The turn that a text will become when a chat remembers it. The chat is not changed, and nothing runs.

    Raises:
        ValueError: The chat cannot remember it; the error begins with `name`.
    """
    try:
        return turn_to_remember(chat.state, text, ALL)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_file(given: str) -> bool:
    try:
        return user_path(given).is_file()
    except (OSError, ValueError):
        # The text cannot be a name: it is too long, or it has a NUL in it.
        return False


def _read(path: Path) -> str | tuple[Message, ...]:
    if str(path) == "-":
        return _text(read_input("the text to remember"), name_of(path))
    is_json = path.suffix == ".json"
    try:
        # A text may come through a pipe, as the shell's <(...) makes it.
        text = read_file(path, LARGEST_FILE).decode("utf-8-sig") if is_json else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; expected a text file, or messages in a .json file") from None
    if not is_json:
        return _text(text, str(path))
    value, problem = parsed_json(text.encode())
    if problem:
        raise ValueError(f"{path} has no messages: it is {problem}")
    try:
        return parse_messages(value)
    except ValueError as error:
        raise ValueError(f"{path} has no messages: {error}") from None


def _text(text: str, name: str) -> str:
    text = check_text(text, name)
    if not text.strip():
        raise ValueError(f"{name} is empty; expected a text to remember")
    return text
