"""Make synthetic recall data: `mlx_deltamem.data recall FOLDER`.

Each record is a chat in which the user tells facts, with a question about one of them. The questions about one history
follow each other. train.jsonl has training values; valid.jsonl and test.jsonl have held-out values. Keys and phrasings
can be held out as well.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.data.ranges import add_ranges, as_range
from mlx_deltamem.files.atomic import check_absent, new_folder, user_path
from mlx_deltamem.files.jsonl import write_json_lines
from mlx_deltamem.files.text import check_text
from mlx_deltamem.options.rule import COUNT, PLACE, POSITIVE, SEED, SHARE
from mlx_deltamem.recall import Episode, EpisodeSettings, Question, Split, make_episode, words_of
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.turns.writing import ALL
from mlx_deltamem.speech.questions import assistant_says

if TYPE_CHECKING:
    from rich.table import Table

TRAIN, HELD_OUT = "train", ("valid", "test")
_RANGES = {
    "facts": "Facts, each told in a separate turn",
    "filler": "Turns about other things, anywhere",
    "gap": "Turns about other things just before the question",
    "updates": "Facts told again with another value",
    "deletions": "Facts that the assistant is asked to forget",
    "absent": "Questions about what was not told",
    "topic_switches": "Changes of topic among the turns about other things",
}
_SHARES = {
    "written": "the questions are written into the memory as they are read, as in a chat",
    "kept": "the history stays in the text of each question, and both are written as they are read; each question is "
    "then an episode of its own in training, which must fit into --max-seq-length",
}


@dataclass(frozen=True)
class Chats:
    """The form of the chats that ask the questions of an episode.

    Attributes:
        system: The system prompt of every chat, or None.
        written: The share of episodes whose questions are written into the memory as they are read.
        kept: The share of episodes whose history stays in the text of each question; both are written as they are read.
        said: Answers are as in `data speech` ("You said Boris."). An answer that is only a value stays as it is.

    Raises:
        ValueError: The sum of the shares is more than 1, or the system prompt is not text.
    """

    system: str | None = None
    written: float = 0.0
    kept: float = 0.0
    said: bool = False

    def __post_init__(self) -> None:
        if self.written + self.kept > 1:
            raise ValueError(
                f"--written {self.written:g} and --kept {self.kept:g} are more than 1; give smaller shares"
            )
        if self.system is not None:
            # The dataclass is frozen for its users only.
            object.__setattr__(self, "system", check_text(self.system, "--system-prompt"))

    def records(self, episode: Episode, seed: str) -> Iterator[dict[str, object]]:
        """Yield the records of an episode. `seed` decides the form of its chats, and nothing else."""
        opening: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        drawn = random.Random(seed).random()
        more: dict[str, object] = {}
        if drawn < self.kept:
            more = {"recent_messages": len(episode.history) + 1, "write": ALL}
        elif drawn < self.kept + self.written:
            more = {"write": ALL}
        for question, record in zip(episode.questions, episode.records(), strict=True):
            *before, last = record["messages"]
            answer: Message = {**last, "content": _as_said(question)} if self.said else last
            yield {**record, "messages": [*opening, *before, answer], **more}


def _as_said(question: Question) -> str:
    """The answer of `data speech` to a question."""
    if question.value is None:
        return assistant_says("absent" if question.kind == "absent" else "deleted")
    # Where the user has set a word as the answer, the answer is this word alone.
    alone = question.answer.rstrip(".").casefold() == question.value.casefold()
    return question.answer if alone else assistant_says("answer", value=question.value)


@dataclass
class Contents:
    """Counts of a file's contents. `kinds` counts its questions."""

    episodes: int = 0
    turns: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    values: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    wordings: set[str] = field(default_factory=set)

    def add(self, episode: Episode) -> None:
        """Count an episode."""
        self.episodes += 1
        self.turns += len(episode.topics)
        for question in episode.questions:
            self.kinds[question.kind] += 1
            self.keys.add(question.key)
            self.wordings.add(question.text)
            if question.value is not None:
                self.values.add(question.value)


def write(path: Path, settings: EpisodeSettings, seed: str, count: int, chats: Chats) -> Contents:
    """Write the records of `count` episodes to a file, and return the counts of its contents."""
    contents = Contents()

    def records() -> Iterator[dict[str, object]]:
        for index in range(count):
            episode = make_episode(settings, seed, index)
            contents.add(episode)
            yield from chats.records(episode, f"{seed}/{index}/chat")

    write_json_lines(path, records())
    return contents


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.data recall", description=__doc__)
    parser.add_argument("folder", type=user_path, help="A new folder for train.jsonl, valid.jsonl and test.jsonl.")
    for name, count in ((TRAIN, 20_000), *zip(HELD_OUT, (200, 500), strict=True)):
        text = f"Episodes of {name}.jsonl (default: {count:,})."
        parser.add_argument(f"--{name}", type=POSITIVE, default=count, help=text)
    parser.add_argument("--seed", type=SEED, default=0, help="Another seed gives other episodes (default: 0).")
    add_ranges(parser, _RANGES, EpisodeSettings())
    parser.add_argument("--questions", type=COUNT, help="Most questions about the facts of an episode (default: all).")
    parser.add_argument(
        "--keys",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Only these keys: a key (dog_name), a family (pet_name) or a list of values (first_names).",
    )
    parser.add_argument(
        "--invent",
        type=SHARE,
        default=0.0,
        metavar="SHARE",
        help="The share of invented values in training, so that no list can be memorised (default: 0).",
    )
    parser.add_argument(
        "--words-of", type=PLACE, metavar="MODEL", help="Invent values from the words of this model's tokenizer."
    )
    parser.add_argument(
        "--system-prompt",
        help="The system prompt of every chat; an empty one replaces the template's own (default: none).",
    )
    for name, text in _SHARES.items():
        parser.add_argument(
            f"--{name}",
            type=SHARE,
            default=0.0,
            metavar="SHARE",
            help=f"The share of training episodes in which {text} (default: 0).",
        )
    parser.add_argument(
        "--said", action="store_true", help='Answer as `data speech` does: "You said Boris." (default: in a sentence).'
    )
    parser.add_argument(
        "--held-out-keys", action="store_true", help="Use other keys in valid.jsonl and test.jsonl than in train.jsonl."
    )
    parser.add_argument(
        "--held-out-phrasings",
        action="store_true",
        help="Use other phrasings in valid.jsonl and test.jsonl than in train.jsonl.",
    )
    return parser


def training_settings(args: argparse.Namespace) -> EpisodeSettings:
    """Return the settings of the training file.

    Raises:
        ValueError: Only one of --invent and --words-of is given, or the tokenizer has no words to invent from.
    """
    if bool(args.invent) != bool(args.words_of):
        raise ValueError("give --invent SHARE and --words-of MODEL together, or neither of them")
    words = _words(args.words_of) if args.words_of else ()
    return EpisodeSettings(
        facts=as_range(args.facts),
        filler=as_range(args.filler),
        gap=as_range(args.gap),
        updates=as_range(args.updates),
        deletions=as_range(args.deletions),
        absent=as_range(args.absent),
        questions=args.questions,
        topic_switches=None if args.topic_switches is None else as_range(args.topic_switches),
        keys=tuple(args.keys),
        words=words,
        invented=args.invent,
    )


def _words(model: str) -> tuple[str, ...]:
    """The words of a model's tokenizer, to invent values from.

    Raises:
        ValueError: It has none.
    """
    from mlx_deltamem.adapters.loading import load_tokenizer

    words = words_of(load_tokenizer(model).get_vocab())
    if not words:
        raise ValueError(f"the tokenizer of {model} has no words of 3 letters; name another model")
    return words


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    settings = training_settings(args)
    held_out = Split(
        values="held_out",
        keys="held_out" if args.held_out_keys else "train",
        phrasings="held_out" if args.held_out_phrasings else "train",
    )
    check_absent(args.folder)
    # The settings of each file.
    made = dict.fromkeys(
        HELD_OUT, (replace(settings, split=held_out, invented=0.0), Chats(args.system_prompt, said=args.said))
    )
    made[TRAIN] = settings, Chats(args.system_prompt, args.written, args.kept, args.said)
    files = {}
    with new_folder(args.folder) as folder:
        # The small files come first, so that impossible settings are found early.
        for name, (own, chats) in made.items():
            path, count = folder / f"{name}.jsonl", getattr(args, name)
            files[name] = write(path, own, f"{args.seed}/{name}", count, chats)
    from mlx_deltamem.show.console import Console

    Console(width=110).print(summary(args.folder, files))


def summary(folder: Path, files: dict[str, Contents]) -> "Table":
    """Return a table of the files' contents, and of the share of them that is in the training file."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(str(folder)))
    table.add_column("")
    names = (TRAIN, *HELD_OUT)
    for name in names:
        table.add_column(f"{name}.jsonl", justify="right")
    table.add_row("episodes", *(f"{files[name].episodes:,}" for name in names))
    table.add_row("turns before the question", *(f"{files[name].turns:,}" for name in names))
    for kind in sorted({kind for name in names for kind in files[name].kinds}):
        table.add_row(f"questions, {kind}", *(f"{files[name].kinds[kind]:,}" for name in names))
    for what in ("values", "keys", "wordings"):
        asked = {name: getattr(files[name], what) for name in names}
        table.add_row(f"different {what}", *map(_count, asked.values()))
        table.add_row("  of these in training", "", *(_count(asked[name] & asked[TRAIN]) for name in HELD_OUT))
    return table


def _count(texts: set[str]) -> str:
    return f"{len(texts):,}"


if __name__ == "__main__":
    main()
