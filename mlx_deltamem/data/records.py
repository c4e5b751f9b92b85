"""Make training records of conversations: `mlx_deltamem.data records CONVERSATIONS OUTPUT --model MODEL`.

CONVERSATIONS is a file of `mlx_deltamem.data speech`, OUTPUT a new `.jsonl` file for `mlx_deltamem.train`. Histories
are written turn by turn, as in a chat that drops its text. All tokens are written, except that some of the questions
are only read. The reply to a message that tells something repeats it in the words of the later answer ("Got it. Your
cat is called Boris."). Other messages without a reply in CONVERSATIONS get the frozen model's reply, greedy and cut to
a length.

Besides the records of the questions there are two other kinds. A record of kind `told` trains on the reply to a message
that tells something. A record of kind `ordinary` has a message that has nothing to do with memory, after a conversation
or at the beginning of a chat, and trains to predict the reply to it as the frozen model does (`"target": "frozen"`).
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.files.atomic import check_absent, one_line, user_path
from mlx_deltamem.files.fields import Row, as_text, given_fields, given_items
from mlx_deltamem.files.jsonl import JsonRecord, json_records, write_json_lines
from mlx_deltamem.options.rule import PLACE, POSITIVE, SEED, SHARE, Rule
from mlx_deltamem.sessions.writing import AFTER, ALL
from mlx_deltamem.speech import Conversation, Question, Turn, ordinary_message
from mlx_deltamem.training.records import FROZEN

if TYPE_CHECKING:
    from mlx_deltamem.data.replies import Replies

_ACKNOWLEDGED = ("Got it.", "Noted.", "Okay.", "All right.", "Thanks, noted.", "Good to know.")
_TELLING = ("told", "update")
# The fields that a conversation in a file may leave out.
_TURN: Row = {"assistant": None, "relations": [], "wordings": [], "repeated": [], "values": []}
_QUESTION: Row = {each.name: None for each in fields(Question)}
_PER_CONVERSATION = Rule(float, least=0, most=1000)


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.data records", description=__doc__)
    parser.add_argument("conversations", type=user_path, help="A file of `mlx_deltamem.data speech`.")
    parser.add_argument("output", type=user_path, help="The new .jsonl file.")
    parser.add_argument(
        "--model", type=PLACE, required=True, help="The model that the adapter is trained for. It writes replies."
    )
    parser.add_argument("--reply-tokens", type=POSITIVE, default=24, help="Most tokens of its replies (default: 24).")
    parser.add_argument(
        "--ordinary", type=_PER_CONVERSATION, default=1.0, help="Ordinary records per conversation (default: 1)."
    )
    parser.add_argument(
        "--begun",
        type=SHARE,
        default=0.6,
        help="The share of ordinary records that follow a conversation, instead of beginning a chat (default: 0.6).",
    )
    parser.add_argument(
        "--only-read",
        type=SHARE,
        default=0.15,
        help="The share of conversations whose questions are only read, not written as in a chat (default: 0.15).",
    )
    parser.add_argument(
        "--only-read-ordinary",
        type=SHARE,
        default=0.5,
        help="The same share for ordinary records that follow a conversation (default: 0.5).",
    )
    parser.add_argument("--told", type=SHARE, default=0.5, help="Told records per conversation (default: 0.5).")
    parser.add_argument("--seed", type=SEED, default=0, help="Another seed gives other records (default: 0).")
    return parser


def restated(turn: Turn, rng: random.Random) -> str:
    """Make the reply to a turn that tells something: an acknowledgement, and the facts in the words of the answers."""
    return " ".join((rng.choice(_ACKNOWLEDGED), *turn.repeated))


def with_replies(conversation: Conversation, replies: "Replies", rng: random.Random) -> Conversation:
    """Complete a conversation with the missing replies, and with new replies to the turns that tell something."""
    given = []
    for turn in conversation.turns:
        if turn.kind in _TELLING:
            given.append(restated(turn, rng))
        elif turn.assistant is None:
            given.append(replies.found[turn.user][0] or rng.choice(_ACKNOWLEDGED))
        else:
            given.append(turn.assistant)
    turns = [replace(turn, assistant=reply) for turn, reply in zip(conversation.turns, given, strict=True)]
    return replace(conversation, turns=tuple(turns))


@dataclass(frozen=True)
class Drawn:
    """The random choices for the records of one conversation.

    Attributes:
        ordinary: For each ordinary record, the message, whether it follows the conversation, and its `write`.
        told: Whether there is a record of kind `told`.
        write: The `write` of the records that ask about the conversation.
    """

    ordinary: list[tuple[str, bool, str]]
    told: bool
    write: str

    @classmethod
    def by(cls, rng: random.Random, args: argparse.Namespace) -> "Drawn":
        """Draw by the shares of the command line."""
        ordinary = []
        for _ in range(int(args.ordinary) + (rng.random() < args.ordinary % 1)):
            begun = rng.random() < args.begun
            write = AFTER if begun and rng.random() < args.only_read_ordinary else ALL
            ordinary.append((ordinary_message(rng), begun, write))
        return cls(ordinary, rng.random() < args.told, AFTER if rng.random() < args.only_read else ALL)


def records(
    conversation: Conversation, drawn: Drawn, replies: "Replies", rng: random.Random
) -> Iterator[dict[str, object]]:
    """Yield the records of a conversation.

    Args:
        conversation: A conversation with all its replies.
        drawn: The random choices for it.
        replies: The frozen model's replies.
        rng: Chooses the turn of the record of kind `told`.
    """
    for question, record in zip(conversation.questions, conversation.records(), strict=True):
        yield {**record, **_chat(drawn.write), "kind": question.kind}
    for message, begun, write in drawn.ordinary:
        reply, cut = replies.found[message]
        if reply:
            asked = [{"role": "user", "content": message}, {"role": "assistant", "content": reply}]
            messages = [*(conversation.history() if begun else []), *asked]
            # Trained on the reply itself, the model moves away from the frozen one: TRAIN.md has figures.
            yield {"messages": messages, **_chat(write), "kind": "ordinary", "cut": cut, "target": FROZEN}
    telling = [index for index, turn in enumerate(conversation.turns) if turn.kind in _TELLING]
    if drawn.told and telling:
        chosen = rng.choice(telling)
        record = {"messages": conversation.history()[: 2 * chosen + 2], **_chat(ALL), "kind": "told"}
        values = conversation.turns[chosen].values
        yield {**record, "value": rng.choice(values)} if values else record


def _chat(write: str) -> dict[str, object]:
    return {"write": write, "turn_by_turn": True}


def _needs_reply(turn: Turn) -> bool:
    return turn.assistant is None and turn.kind not in _TELLING


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    check_absent(args.output)
    found = [_conversation(record, args.conversations) for record in json_records(args.conversations)]
    if not found:
        raise ValueError(f"{args.conversations} has no conversations; expected a file of `mlx_deltamem.data speech`")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"speech-records/{args.seed}")
    plans = [Drawn.by(rng, args) for _ in found]
    asked = [turn.user for each in found for turn in each.turns if _needs_reply(turn)]
    asked += [message for each in plans for message, _, _ in each.ordinary]
    from mlx_deltamem.data.replies import Replies
    from mlx_deltamem.show.console import Console
    from mlx_deltamem.show.progress import counting_progress

    replies = Replies(args.model, args.reply_tokens)
    with counting_progress(len(set(asked))) as progress:
        replies.ask(asked, progress)
    made = (
        record
        for conversation, drawn in zip(found, plans, strict=True)
        for record in records(with_replies(conversation, replies, rng), drawn, replies, rng)
    )
    count = write_json_lines(args.output, made)
    Console().print(f"{args.output}: {count:,} records of {len(found):,} conversations", highlight=False)


def _conversation(record: JsonRecord, path: Path) -> Conversation:
    """The conversation of a record.

    Raises:
        ValueError: The record is of another kind.
    """
    problem = record.problem
    if not problem:
        try:
            found = given_fields(record.value)
            turns = [_TURN | given_fields(turn) for turn in given_items(found["turns"])]
            questions = [_QUESTION | given_fields(question) for question in given_items(found["questions"])]
            conversation = Conversation.from_json({"turns": turns, "questions": questions})
            _check_texts(conversation)
            return conversation
        except (KeyError, TypeError, ValueError) as error:
            problem = f"not a conversation ({one_line(error)})"
    raise ValueError(f"{path} {record.place} is {problem}; expected a file of `mlx_deltamem.data speech`")


def _check_texts(conversation: Conversation) -> None:
    """Check all texts of a conversation.

    Raises:
        ValueError: A text is missing or not a text.
    """
    for turn in conversation.turns:
        for name in ("user", "assistant", "kind"):
            if name != "assistant" or turn.assistant is not None:
                as_text(getattr(turn, name), f"the {name!r} of a turn")
    for question in conversation.questions:
        for name in ("text", "answer", "kind", "value"):
            if name != "value" or question.value is not None:
                as_text(getattr(question, name), f"the {name!r} of a question")


if __name__ == "__main__":
    main()
