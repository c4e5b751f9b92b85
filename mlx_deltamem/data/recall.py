"""Write synthetic recall data: `mlx_deltamem.data recall FOLDER`.

Each record is a chat in which the user tells facts, and a question about one of them; the questions about one history
follow each other. train.jsonl is made of training values, valid.jsonl and test.jsonl of values that are held out; keys
and phrasings can be held out too.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlx_deltamem.adapters.loading import load_tokenizer
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import count_from, number_from
from mlx_deltamem.files.atomic import new_file, new_folder, user_path
from mlx_deltamem.recall import Episode, EpisodeSettings, Split, make_episode, words_of
from mlx_deltamem.sessions.writing import ALL

TRAIN, HELD_OUT = "train", ("valid", "test")
_RANGES = {
    "facts": "Facts told, each in a turn of its own",
    "filler": "Turns about other things, anywhere",
    "gap": "Turns about other things just before the question",
    "updates": "Facts told anew with another value",
    "deletions": "Facts that the assistant is asked to forget",
    "absent": "Questions about what was not told",
    "topic_switches": "How often the turns about other things change their topic",
}
_SHARES = {
    "written": "questions are written into the memory as they are read, as in a chat",
    "kept": "the history is not dropped but read with each question, and both are written as they are read; to "
    "training, each question is an episode then, which --max-seq-length must hold",
}


@dataclass(frozen=True)
class Chats:
    """How the questions of an episode are asked.

    Attributes:
        system: A system prompt that every chat begins with, or None.
        written: Of this share of the episodes, questions are written into the memory as they are read.
        kept: Of this share, the history is not dropped either: it is read with the question, and written as it is read.

    Raises:
        ValueError: The shares are more than everything.
    """

    system: str | None = None
    written: float = 0.0
    kept: float = 0.0

    def __post_init__(self) -> None:
        if self.written + self.kept > 1:
            raise ValueError(
                f"--written {self.written:g} and --kept {self.kept:g} are more than 1; give smaller shares"
            )

    def records(self, episode: Episode, seed: str) -> Iterator[dict[str, object]]:
        """Yield the records of an episode; `seed` decides how it is asked, and nothing else of it."""
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        drawn = random.Random(seed).random()
        more = {}
        if drawn < self.kept:
            more = {"recent_messages": len(episode.history) + 1, "write": ALL}
        elif drawn < self.kept + self.written:
            more = {"write": ALL}
        for record in episode.records():
            yield {**record, "messages": [*opening, *record["messages"]], **more}


@dataclass
class Contents:
    """What went into a file. `kinds` counts its questions."""

    episodes: int = 0
    turns: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    values: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    wordings: set[str] = field(default_factory=set)

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.turns += len(episode.topics)
        for question in episode.questions:
            self.kinds[question.kind] += 1
            self.keys.add(question.key)
            self.wordings.add(question.text)
            if question.value is not None:
                self.values.add(question.value)


def write(path: Path, settings: EpisodeSettings, seed: str, count: int, chats: Chats) -> Contents:
    """Write the records of `count` episodes to a file, and return what went into it."""
    contents = Contents()
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index in range(count):
            episode = make_episode(settings, seed, index)
            contents.add(episode)
            for record in chats.records(episode, f"{seed}/{index}/chat"):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return contents


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.data recall", description=__doc__)
    parser.add_argument("folder", type=user_path, help="A new folder for train.jsonl, valid.jsonl and test.jsonl.")
    for name, count in ((TRAIN, 20_000), *zip(HELD_OUT, (200, 500), strict=True)):
        text = f"Episodes of {name}.jsonl (default: {count:,})."
        parser.add_argument(f"--{name}", type=count_from(1), default=count, help=text)
    parser.add_argument("--seed", type=int, default=0, help="Another seed gives other episodes (default: 0).")
    for name, text in _RANGES.items():
        low_high = getattr(EpisodeSettings(), name)
        default = f"{low_high[0]} to {low_high[1]}" if low_high else "at random"
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, nargs=2, metavar=("MIN", "MAX"), help=f"{text} (default: {default}).")
    parser.add_argument(
        "--questions", type=count_from(0), help="At most so many questions about what was told (default: all)."
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Only these keys: a key (dog_name), a family (pet_name) or a list of values (first_names).",
    )
    parser.add_argument(
        "--invent",
        type=number_from(0, 1),
        default=0.0,
        metavar="SHARE",
        help="Train with this share of values invented, so that no list can be learned by heart (default: 0).",
    )
    parser.add_argument("--words-of", metavar="MODEL", help="Invent values from the words in this model's tokenizer.")
    parser.add_argument(
        "--system-prompt",
        help="Begin every chat with it; an empty one keeps a template's own away (default: none, so the template's).",
    )
    for name, text in _SHARES.items():
        parser.add_argument(
            f"--{name}",
            type=number_from(0, 1),
            default=0.0,
            metavar="SHARE",
            help=f"Of this share of the training episodes, {text} (default: 0).",
        )
    parser.add_argument("--held-out-keys", action="store_true", help="Test with keys that are not trained on.")
    parser.add_argument(
        "--held-out-phrasings", action="store_true", help="Test with phrasings that are not trained on."
    )
    return parser


def training_settings(args: argparse.Namespace) -> EpisodeSettings:
    """Return the settings of the training file."""
    given = {name: tuple(getattr(args, name)) for name in _RANGES if getattr(args, name)}
    if bool(args.invent) != bool(args.words_of):
        raise ValueError("give --invent SHARE and --words-of MODEL together, or neither of them")
    words = words_of(load_tokenizer(args.words_of).get_vocab()) if args.words_of else ()
    if args.words_of and not words:
        raise ValueError(f"the tokenizer of {args.words_of} has no words of 3 letters; name another model")
    return EpisodeSettings(questions=args.questions, keys=tuple(args.keys), words=words, invented=args.invent, **given)


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    settings = training_settings(args)
    held_out = Split(
        values="held_out",
        keys="held_out" if args.held_out_keys else "train",
        phrasings="held_out" if args.held_out_phrasings else "train",
    )
    if args.folder.exists():
        raise ValueError(f"there is already a {args.folder}; name a new folder or remove it")
    # What each file is made of, and how it is asked.
    made = dict.fromkeys(HELD_OUT, (replace(settings, split=held_out, invented=0.0), Chats(args.system_prompt)))
    made[TRAIN] = settings, Chats(args.system_prompt, args.written, args.kept)
    files = {}
    with new_folder(args.folder) as folder:
        # The small ones first: what cannot be met is met with early.
        for name, (own, chats) in made.items():
            path, count = folder / f"{name}.jsonl", getattr(args, name)
            files[name] = write(path, own, f"{args.seed}/{name}", count, chats)
    Console(width=110).print(summary(args.folder, files))


def summary(folder: Path, files: dict[str, Contents]) -> Table:
    """Return a table of what was written, and of how much of it training has seen."""
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
