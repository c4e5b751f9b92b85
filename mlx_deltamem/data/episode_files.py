"""Write converted chats as episodes, and count those that cannot be used: nothing is dropped silently."""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlx_deltamem.cli.options import count_from
from mlx_deltamem.files.atomic import new_file, user_path
from mlx_deltamem.recall import Message

# Why a chat is not written. Only the first is an error in the file, which `--on-error` is about.
BAD = "bad records"
EMPTY = "empty: a message without text"
NO_HISTORY = "nothing before the question"
ROLE_BROKEN = "role-broken: not user and assistant in turn"
OVER_LONG = "over-long"

_PLACES_SHOWN = 5
_LONGEST_NAME = 60
_DEFAULT_MAX_WORDS = 6_000


@dataclass(frozen=True)
class Found:
    """A chat that may be an episode: the last message is the answer, the one before it the question."""

    place: str
    messages: list[Message]


@dataclass(frozen=True)
class Unusable:
    """Something that is no episode, and why.

    Attributes:
        place: Where it is.
        reason: What it is counted as.
        problem: What is wrong with a bad record; empty otherwise.
    """

    place: str
    reason: str
    problem: str = ""


@dataclass
class Counts:
    """What became of the chats of a file: `left_out` gives the places of those not written, by reason."""

    written: int = 0
    words: int = 0
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def add_file_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add what every converter needs: the files, the longest chat, and what to do about a bad record.

    Args:
        parser: Where to.
        what: What is read.
    """
    parser.add_argument("input", type=user_path, help=what)
    parser.add_argument("output", type=user_path, help="The .jsonl file to write.")
    parser.add_argument(
        "--max-words",
        type=count_from(1),
        default=_DEFAULT_MAX_WORDS,
        help=f"Leave out chats of more words, all messages together (default: {_DEFAULT_MAX_WORDS:,}).",
    )
    parser.add_argument(
        "--on-error",
        choices=("skip", "stop"),
        default="stop",
        help="Leave a bad record out and go on, or stop and write nothing (default: stop).",
    )


def write_episodes(found: Iterable[Found | Unusable], args: argparse.Namespace) -> Counts:
    """Write the usable chats to `args.output`, name each bad record on stderr, and print what was left out.

    Args:
        found: The chats of a file, and what is none.
        args: The options of `add_file_options`.

    Raises:
        ValueError: A record is bad and `--on-error stop` was asked for, no chat can be used, or the output is the
            input or a folder. Nothing is written then.
    """
    if args.output.is_dir():
        raise ValueError(f"{args.output} is a folder; name a .jsonl file in it")
    if args.input.exists() and args.output.exists() and args.output.samefile(args.input):
        raise ValueError(f"{args.output} would replace what is read; name another file")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    with new_file(args.output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for episode in _usable(found, counts, args):
            counts.written += 1
            counts.words += _words(episode.messages)
            file.write(json.dumps({"messages": episode.messages}, ensure_ascii=False) + "\n")
        Console(width=110, highlight=False).print(summary(args.output, counts))
        if not counts.written:
            raise ValueError("no episode is left; nothing was written")
    return counts


def summary(path: Path, counts: Counts) -> Table:
    """Return a table of what was written and what was not."""
    table = Table(title=escape(str(path)))
    table.add_column("")
    table.add_column("episodes", justify="right")
    table.add_column("where")
    mean = f"{counts.words // counts.written:,} words each on average" if counts.written else ""
    table.add_row("written", f"{counts.written:,}", mean)
    for reason, places in counts.left_out.items():
        more = f" and {len(places) - _PLACES_SHOWN:,} more" if len(places) > _PLACES_SHOWN else ""
        table.add_row(f"left out, {reason}", f"{len(places):,}", escape(", ".join(places[:_PLACES_SHOWN])) + more)
    return table


def _usable(found: Iterable[Found | Unusable], counts: Counts, args: argparse.Namespace) -> Iterator[Found]:
    for item in found:
        unusable = item if isinstance(item, Unusable) else check(item, args.max_words)
        if unusable is None:
            yield item
            continue
        if unusable.reason == BAD:
            if args.on_error == "stop":
                raise ValueError(f"{unusable.place}: {unusable.problem}; mend it, or go on with --on-error skip")
            print(f"{unusable.place}: {unusable.problem}; left out", file=sys.stderr)
        counts.left_out[unusable.reason].append(unusable.place)


def check(found: Found, max_words: int) -> Unusable | None:
    """Return why a chat is no episode, or None if it is one."""
    roles = [message["role"] for message in found.messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if any(not message["content"].strip() for message in found.messages) or not turns:
        return Unusable(found.place, EMPTY)
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        return Unusable(found.place, ROLE_BROKEN)
    if len(turns) < 4:
        return Unusable(found.place, NO_HISTORY)
    if _words(found.messages) > max_words:
        return Unusable(found.place, OVER_LONG)
    return None


def shown(name: object) -> str:
    """Return a name from a file as it can be printed: on one line, without control characters, not too long."""
    return repr(name)[:_LONGEST_NAME]


def checked_text(text: str) -> str:
    """Return a text that can be written.

    Raises:
        ValueError: It holds half a character, as a JSON escape can.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate)") from None
    return text


def _words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)
