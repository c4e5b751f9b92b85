"""Write synthetic recall data: `python -m tools.recall_data FOLDER`.

Each record is a chat in which the user tells facts, and a question about one of them; several questions about one
history follow each other. train.jsonl is made of training values, valid.jsonl and test.jsonl of values that are held
out; keys and phrasings can be held out too.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlx_deltamem.command import command
from mlx_deltamem.files import new_file, user_path
from mlx_deltamem.recall import Episode, EpisodeSettings, Split, make_episode

HELD_OUT_FILES = ("valid", "test")


@dataclass
class Written:
    """What went into a file: counts, and every value, key and text about them."""

    episodes: int = 0
    turns: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    values: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    questions: set[str] = field(default_factory=set)

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.turns += len(episode.topics)
        for question in episode.questions:
            self.kinds[question.kind] += 1
            self.keys.add(question.key)
            self.questions.add(question.text)
            if question.value is not None:
                self.values.add(question.value)


def write(path: Path, settings: EpisodeSettings, seed: str, count: int) -> Written:
    """Write the records of `count` episodes to a file, and return what went into it."""
    written = Written()
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for episode in _episodes(settings, seed, count):
            written.add(episode)
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in episode.records())
    return written


def _episodes(settings: EpisodeSettings, seed: str, count: int) -> Iterator[Episode]:
    return (make_episode(settings, seed, index) for index in range(count))


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="python -m tools.recall_data", description=__doc__)
    parser.add_argument("folder", help="Where train.jsonl, valid.jsonl and test.jsonl go.")
    for name, count in (("train", 20_000), ("valid", 200), ("test", 500)):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"Episodes of {name}.jsonl (default: {count}).")
    parser.add_argument("--seed", type=int, default=0, help="Other seeds give other episodes (default: 0).")
    for name, default, text in (
        ("facts", (1, 1), "Facts told, each in a turn of its own"),
        ("filler", (0, 0), "Turns about other things, anywhere"),
        ("gap", (0, 0), "Turns about other things just before the question"),
        ("updates", (0, 0), "Facts told anew with another value"),
        ("deletions", (0, 0), "Facts that the assistant is asked to forget"),
        ("absent", (0, 0), "Questions about what was not told"),
    ):
        shown = f"{text} (default: {default[0]} {default[1]})."
        parser.add_argument(f"--{name}", type=int, nargs=2, metavar=("MIN", "MAX"), default=default, help=shown)
    parser.add_argument(
        "--topic-switches",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="How often those turns change their topic (default: each has a random one).",
    )
    parser.add_argument("--questions", type=int, help="At most so many questions about what was told (default: all).")
    parser.add_argument(
        "--keys",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Only these keys: a key (dog_name), a family (pet_name) or a list of values (first_names).",
    )
    parser.add_argument("--held-out-keys", action="store_true", help="Hold keys out of training too.")
    parser.add_argument("--held-out-phrasings", action="store_true", help="Hold phrasings out of training too.")
    return parser


def settings_of(args: argparse.Namespace) -> EpisodeSettings:
    """Return the settings of the training file."""
    ranges = ("facts", "filler", "gap", "updates", "deletions", "absent")
    return EpisodeSettings(
        **{name: tuple(getattr(args, name)) for name in ranges},
        topic_switches=tuple(args.topic_switches) if args.topic_switches else None,
        questions=args.questions,
        keys=tuple(args.keys),
    )


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    settings = settings_of(args)
    held_out = Split(
        values="held_out",
        keys="held_out" if args.held_out_keys else "train",
        phrasings="held_out" if args.held_out_phrasings else "train",
    )
    folder = user_path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train": write(folder / "train.jsonl", settings, f"{args.seed}/train", args.train)}
    for name in HELD_OUT_FILES:
        path = folder / f"{name}.jsonl"
        files[name] = write(path, replace(settings, split=held_out), f"{args.seed}/{name}", getattr(args, name))
    show(folder, files)


def show(folder: Path, files: dict[str, Written]) -> None:
    """Print what was written."""
    table = Table(title=str(folder))
    for heading in ("file", "episodes", "turns", "questions", "values", "keys", "wordings", "in training: values"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for name, written in files.items():
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(written.kinds.items()))
        counts = (written.episodes, written.turns, kinds, len(written.values), len(written.keys))
        shared = "" if name == "train" else len(written.values & files["train"].values)
        row = (f"{name}.jsonl", *counts, len(written.questions), shared)
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in row))
    Console().print(table)


if __name__ == "__main__":
    main()
