"""Make training records of conversations: `mlx_deltamem.data records CONVERSATIONS OUTPUT --model MODEL`.

CONVERSATIONS is a file of `mlx_deltamem.data speech`, OUTPUT a new `.jsonl` file for `mlx_deltamem.train`. Histories
are written turn by turn, as in a chat that drops its text. All tokens are written, except that some of the questions
are only read. The reply to a message that tells something repeats it ("Got it. Your cat is called Boris."), or only
acknowledges it (`--acknowledged`, and in scenes). Other messages without a reply in CONVERSATIONS get the reply of the
frozen model, greedy and cut to a length. With `--adapter` histories have the replies of this adapter in a live chat,
right or wrong, and only what is trained is right: data for a second run, which starts from the adapter.

Besides the records of the questions there are two other kinds. A record of kind `told` trains on the reply to a message
that tells something. A record of kind `ordinary` has a message that has nothing to do with memory, after a conversation
or at the beginning of a chat, and trains to predict the reply to it as the frozen model does (`"target": "frozen"`).
Some of these replies may be long (`--long`): the harm that a memory does to its model grows with the text.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.data.conversations import read_conversations
from mlx_deltamem.files.atomic import check_absent, user_path
from mlx_deltamem.files.jsonl import write_json_lines
from mlx_deltamem.options.rule import PLACE, POSITIVE, SEED, SHARE, Rule
from mlx_deltamem.sessions.turns.writing import AFTER, ALL
from mlx_deltamem.speech import Conversation, Turn, ordinary_message
from mlx_deltamem.training.records import FROZEN

if TYPE_CHECKING:
    from mlx_deltamem.data.replies import Replies

_PER_CONVERSATION = Rule(float, least=0, most=1000)
_WEIGHT = Rule(float, least=1e-6, most=1000)


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
        "--ordinary-weight",
        type=_WEIGHT,
        default=1.0,
        help="The weight of ordinary records in the loss; others have 1 (default: 1).",
    )
    parser.add_argument(
        "--long",
        type=SHARE,
        default=0.0,
        help="The share of ordinary records with a long reply, which the model samples (default: 0).",
    )
    parser.add_argument("--long-tokens", type=POSITIVE, default=112, help="Most tokens of a long reply (default: 112).")
    parser.add_argument(
        "--absent-weight",
        type=_WEIGHT,
        default=1.0,
        help="The weight of questions whose answer is that nothing was said, or that it is forgotten (default: 1).",
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
    parser.add_argument(
        "--adapter", type=PLACE, help="Write the histories with the replies of this adapter, each in a live chat."
    )
    parser.add_argument(
        "--live",
        type=SHARE,
        help="The share of conversations with the replies of --adapter (default: 1). The others are as without it.",
    )
    parser.add_argument(
        "--acknowledged",
        type=SHARE,
        default=0.0,
        help="The share of conversations in which the assistant does not repeat what it is told (default: 0).",
    )
    parser.add_argument("--told", type=SHARE, default=0.5, help="Told records per conversation (default: 0.5).")
    parser.add_argument("--seed", type=SEED, default=0, help="Another seed gives other records (default: 0).")
    return parser


@dataclass(frozen=True)
class Ordinary:
    """The choices for an ordinary record.

    Attributes:
        message: The message.
        is_long: Whether the reply is a long one.
        begun: Whether the message follows the conversation, instead of beginning a chat.
        write: The `write` of the record.
    """

    message: str
    is_long: bool
    begun: bool
    write: str

    @classmethod
    def by(cls, rng: random.Random, args: argparse.Namespace) -> "Ordinary":
        """Draw by the shares of the command line."""
        begun = rng.random() < args.begun
        write = AFTER if begun and rng.random() < args.only_read_ordinary else ALL
        return cls(ordinary_message(rng), rng.random() < args.long, begun, write)


@dataclass(frozen=True)
class Drawn:
    """The choices for the records of one conversation.

    Attributes:
        ordinary: The choices for each ordinary record.
        told: Whether there is a record of kind `told`.
        write: The `write` of the records that ask about the conversation.
        live: Whether the replies are the adapter's.
        repeats: Whether the assistant repeats what it is told.
        weight: The weight of the ordinary records, which is not drawn.
        absent_weight: The weight of questions whose answer has no value, which is not drawn either.
    """

    ordinary: list[Ordinary]
    told: bool
    write: str
    live: bool
    repeats: bool
    weight: float
    absent_weight: float

    @classmethod
    def by(cls, rng: random.Random, args: argparse.Namespace) -> "Drawn":
        """Draw by the shares of the command line."""
        count = int(args.ordinary) + (rng.random() < args.ordinary % 1)
        ordinary = [Ordinary.by(rng, args) for _ in range(count)]
        told, write = rng.random() < args.told, AFTER if rng.random() < args.only_read else ALL
        repeats = rng.random() >= args.acknowledged
        # The last draw, so that the others are the same without an adapter.
        live = bool(args.adapter) and rng.random() < (1 if args.live is None else args.live)
        return cls(ordinary, told, write, live, repeats, args.ordinary_weight, args.absent_weight)


def records(
    conversation: Conversation, right: Conversation, drawn: Drawn, replies: "Replies", rng: random.Random
) -> Iterator[dict[str, object]]:
    """Yield the records of a conversation.

    Args:
        conversation: A conversation with all the replies of its history.
        right: The same with right replies to the turns that tell something.
        drawn: The random choices for it.
        replies: The frozen model's replies.
        rng: Chooses the turn of the record of kind `told`.
    """
    for question, record in zip(conversation.questions, conversation.records(), strict=True):
        weight = {} if question.value or drawn.absent_weight == 1 else {"weight": drawn.absent_weight}
        yield {**record, **_chat(drawn.write), "kind": question.kind, **weight}
    for each in drawn.ordinary:
        reply, cut = (replies.found_long if each.is_long else replies.found)[each.message]
        if reply:
            asked = [{"role": "user", "content": each.message}, {"role": "assistant", "content": reply}]
            messages = [*(conversation.history() if each.begun else []), *asked]
            record = {"messages": messages, **_chat(each.write), "kind": "ordinary", "cut": cut}
            # Trained on the reply itself, the model moves away from the frozen one: TRAIN.md has figures.
            yield {**record, "target": FROZEN, "weight": drawn.weight}
    telling = [index for index, turn in enumerate(conversation.turns) if turn.tells]
    if drawn.told and telling:
        chosen = rng.choice(telling)
        messages = [*conversation.history()[: 2 * chosen + 1], right.history()[2 * chosen + 1]]
        record = {"messages": messages, **_chat(ALL), "kind": "told"}
        values = conversation.turns[chosen].values
        yield {**record, "value": rng.choice(values)} if values and drawn.repeats else record


def _chat(write: str) -> dict[str, object]:
    return {"write": write, "turn_by_turn": True}


def _needs_reply(turn: Turn) -> bool:
    return turn.assistant is None and not turn.tells


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    check_absent(args.output)
    if args.live is not None and not args.adapter:
        raise ValueError("--live is given without --adapter; add the adapter that replies, or leave --live out")
    found = read_conversations(args.conversations)
    args.output.parent.mkdir(parents=True, exist_ok=True)

    # Held-out conversations have other draws than those that are trained on.
    content = hashlib.sha256(json.dumps([each.as_json() for each in found]).encode()).hexdigest()

    def draws(purpose: str, place: int) -> random.Random:
        # Each has its own, so that what is asked does not depend on where the replies come from.
        return random.Random(f"speech-records/{args.seed}/{content}/{purpose}/{place}")

    plans = [Drawn.by(draws("plan", place), args) for place in range(len(found))]
    # A live chat has its own replies.
    frozen = [each for each, drawn in zip(found, plans, strict=True) if not drawn.live]
    asked = [turn.user for each in frozen for turn in each.turns if _needs_reply(turn)]
    ordinary = [each for drawn in plans for each in drawn.ordinary]
    asked += [each.message for each in ordinary if not each.is_long]
    long = [each.message for each in ordinary if each.is_long]
    from mlx_deltamem.data.live_replies import LiveReplies
    from mlx_deltamem.data.replied import with_live_replies, with_replies
    from mlx_deltamem.data.replies import Replies
    from mlx_deltamem.show.console import Console
    from mlx_deltamem.show.progress import counting_progress

    replies = Replies(args.model, args.reply_tokens, args.long_tokens, args.seed)
    with counting_progress(len(set(asked)) + len(set(long))) as progress:
        replies.ask(asked, long, progress)
    right = [
        with_replies(each, replies, draws("replies", place), drawn.repeats)
        for place, (each, drawn) in enumerate(zip(found, plans, strict=True))
    ]
    written = dict(enumerate(right))
    live = [place for place, drawn in enumerate(plans) if drawn.live]
    if live:
        chats = LiveReplies(args.model, args.adapter, args.reply_tokens)
        with counting_progress(len(live)) as progress:
            told = with_live_replies([found[place] for place in live], chats, draws("live", 0), progress)
        written |= zip(live, told, strict=True)
    made = (
        record
        for place, drawn in enumerate(plans)
        for record in records(written[place], right[place], drawn, replies, draws("records", place))
    )
    count = write_json_lines(args.output, made)
    Console().print(f"{args.output}: {count:,} records of {len(found):,} conversations", highlight=False)


if __name__ == "__main__":
    main()
