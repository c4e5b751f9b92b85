"""Write converted chats as training records, and count the chats that are left out."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlx_deltamem.files.atomic import check_absent, created, user_path
from mlx_deltamem.files.jsonl import write_json_lines
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.sessions.text.messages import Message

if TYPE_CHECKING:
    from rich.table import Table

# The reasons for leaving a chat out. Only the first is an error in the file, for `--on-error`.
BAD = "bad records"
EMPTY = "empty: a message without text"
NO_HISTORY = "nothing before the question"
NO_ANSWER = "no answer to the last message"
WRONG_ROLES = "wrong roles: not user and assistant in turn"
TOO_LONG = "too long"

_PLACES_SHOWN = 5
_LONGEST_NAME = 60
_DEFAULT_MAX_WORDS = 6_000


@dataclass(frozen=True)
class Found:
    """A chat that may become a record: the last message is the answer, the message before it the question."""

    place: str
    messages: list[Message]


@dataclass(frozen=True)
class Unusable:
    """A part of a file that cannot become a record.

    Attributes:
        place: Its place in the file.
        reason: The reason that it is counted under.
        problem: The problem with a bad record; otherwise empty.
    """

    place: str
    reason: str
    problem: str = ""


@dataclass
class Counts:
    """The counts of a file's chats. `left_out` has the places of those that were not written, by reason."""

    written: int = 0
    words: int = 0
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def add_file_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options of all converters: the files, the longest chat, and what to do with a bad record.

    Args:
        parser: The parser.
        what: The help text of the input file.
    """
    parser.add_argument("input", type=user_path, help=what)
    parser.add_argument("output", type=user_path, help="The new .jsonl file.")
    parser.add_argument(
        "--max-words",
        type=POSITIVE,
        default=_DEFAULT_MAX_WORDS,
        help=f"Leave out chats with more words in all their messages (default: {_DEFAULT_MAX_WORDS:,}).",
    )
    parser.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="stop",
        help="Leave bad records out, or stop and write nothing (default: stop).",
    )


def write_episodes(found: Iterable[Found | Unusable], args: argparse.Namespace) -> Counts:
    """Write the usable chats to `args.output`, name each bad record on stderr, and print the counts.

    Args:
        found: The chats of a file, and its unusable parts.
        args: The options of `add_file_options`.

    Raises:
        ValueError: There is a bad record and `--on-error` is `stop`, no chat is usable, or the output is a folder or
            exists already. Nothing is written then.
    """
    if args.output.is_dir():
        raise ValueError(f"{args.output} is a folder; name a .jsonl file in it")
    check_absent(args.output)
    from mlx_deltamem.show.console import Console

    counts = Counts()

    def records() -> Iterator[dict[str, list[Message]]]:
        for chat in _usable(found, counts, args):
            counts.written += 1
            counts.words += _words(chat.messages)
            yield {"messages": chat.messages}
        title = str(args.output) if counts.written else "nothing was written"
        Console(width=110, highlight=False).print(summary(title, counts))
        if not counts.written:
            raise ValueError("no chat is left; nothing was written")

    with created(args.output.parent):
        write_json_lines(args.output, records())
    return counts


def summary(title: str, counts: Counts) -> "Table":
    """Return a table of the counts."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    table.add_column("")
    table.add_column("records", justify="right")
    table.add_column("where")
    mean = f"{counts.words // counts.written:,} words each on average" if counts.written else ""
    table.add_row("written", f"{counts.written:,}", mean)
    for reason, places in counts.left_out.items():
        more = f" and {len(places) - _PLACES_SHOWN:,} more" if len(places) > _PLACES_SHOWN else ""
        table.add_row(f"left out, {reason}", f"{len(places):,}", escape(", ".join(places[:_PLACES_SHOWN])) + more)
    return table


def _usable(found: Iterable[Found | Unusable], counts: Counts, args: argparse.Namespace) -> Iterator[Found]:
    for item in found:
        if isinstance(item, Found):
            unusable = check(item, args.max_words)
            if unusable is None:
                yield item
                continue
        else:
            unusable = item
        if unusable.reason == BAD:
            if args.on_error == "stop":
                raise ValueError(f"{unusable.place}: {unusable.problem}; correct it, or use --on-error skip")
            print(f"{unusable.place}: {unusable.problem}; left out", file=sys.stderr)
        counts.left_out[unusable.reason].append(unusable.place)


def check(found: Found, max_words: int) -> Unusable | None:
    """Return the reason that a chat cannot become a record; None if it can."""
    roles = [message["role"] for message in found.messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if any(not message["content"].strip() for message in found.messages) or not turns:
        return Unusable(found.place, EMPTY)
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns)):
        return Unusable(found.place, WRONG_ROLES)
    if len(turns) % 2:
        return Unusable(found.place, NO_ANSWER)
    if len(turns) < 4:
        return Unusable(found.place, NO_HISTORY)
    if _words(found.messages) > max_words:
        return Unusable(found.place, TOO_LONG)
    return None


def shown(name: object) -> str:
    """Return a name from a file for printing: on one line, without control characters, not too long."""
    return repr(name)[:_LONGEST_NAME]


def _words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)
