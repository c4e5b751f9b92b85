"""Measure how much a memory keeps when the topic changes: `python -m tools.measure.topic_shift --output FOLDER`.

Each chat tells a fact, changes the topic some times, and tells another fact at the end. Then it asks for both facts.
The model replies to every message, and the history is `none`. There are three ways: all messages are written; only
those of the user are written; or each topic has a separate memory, which this program swaps in. Writes
`topic-shifts.json` and `topic-shifts.png` into FOLDER.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import mlx.nn as nn
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate
from mlx_deltamem.evaluation.tasks.naming import names_only
from mlx_deltamem.files.atomic import new_file, user_path
from mlx_deltamem.options.rule import COUNT, POSITIVE
from mlx_deltamem.recall import EpisodeSettings, Split, make_episode
from mlx_deltamem.recall.vocabulary import filler, keys, values
from mlx_deltamem.show.progress import Counted, counting_progress
from mlx_deltamem.show.style import LINES, WIDTH, add_title, save_figure, styled
from tools import smollm2
from mlx_deltamem.demo.model import ADAPTER

WAYS = ("write all", "write user", "a memory for each topic")
SIDES = ("before", "after")
NAME = "topic-shifts"


@dataclass(frozen=True)
class Asked:
    """A question after a chat, and the reply.

    Attributes:
        way: The way of the chat, one of `WAYS`.
        chat: The number of the chat.
        shifts: The number of changes of topic.
        side: `before` if the chat told the fact before the topic changed, else `after`.
        question: The question.
        value: The right answer.
        reply: The reply of the model.
        right: True if the reply names the value and no other value.
        tokens: The tokens of the chat between the turn that told the fact and the question.
        changed: For each turn, the relative change of the memory (see `Drift`), as the mean over layers.
    """

    way: str
    chat: int
    shifts: int
    side: str
    question: str
    value: str
    reply: str
    right: bool
    tokens: int
    changed: list[float]


class Fact(NamedTuple):
    """A fact of a chat.

    Attributes:
        told: The message of the user that tells it.
        question: The question about it.
        value: The right answer.
        rivals: Other values, which a right reply does not name.
    """

    told: str
    question: str
    value: str
    rivals: tuple[str, ...]


@dataclass(frozen=True)
class Script:
    """The user's messages in a chat: the first and the last fact, and a block of messages for each topic."""

    facts: tuple[Fact, Fact]
    blocks: list[list[str]]


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.topic_shift", description=__doc__)
    parser.add_argument("--model", help="A model (default: the offline backbone).")
    parser.add_argument("--adapter", help="Its adapter (default: that of the project).")
    parser.add_argument("--output", type=user_path, required=True, help="The folder for the results and the figure.")
    parser.add_argument("--shifts", type=COUNT, nargs="+", default=[0, 1, 2, 4], help="Numbers of topic changes.")
    parser.add_argument("--chats", type=POSITIVE, default=30, help="Chats of each kind (default: 30).")
    parser.add_argument("--block", type=POSITIVE, default=2, help="Turns about each topic (default: 2).")
    parser.add_argument("--reply-tokens", type=POSITIVE, default=24, help="Tokens of a reply at most (default: 24).")
    return parser


@command
def main() -> None:
    """Hold the chats, and write the results and the figure."""
    args = setup_arg_parser().parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args.model or smollm2.build(), args.adapter or ADAPTER)
    with counting_progress(len(WAYS) * len(args.shifts) * args.chats) as progress:
        asked = list(ask_all(model, tokenizer, args, progress))
    with new_file(args.output / f"{NAME}.json") as temporary:
        temporary.write_text(json.dumps([asdict(each) for each in asked], indent=1), encoding="utf-8")
    show(asked, Console(width=100))
    save_figure(draw(asked, args.block), args.output / f"{NAME}.png")


def ask_all(
    model: nn.Module, tokenizer: TokenizerWrapper, args: argparse.Namespace, progress: Counted
) -> Iterator[Asked]:
    """Hold all chats; yield each question with its reply."""
    for shifts in args.shifts:
        for index in range(args.chats):
            script = make_script(index, shifts, args.block)
            for way in WAYS:
                chat = ChatSession(model, tokenizer, history="none", write="user" if way == "write user" else "all")
                for side, fact, reply, tokens in hold(chat, script, way == WAYS[-1], args.reply_tokens):
                    right = names_only(reply, fact.value, fact.rivals, fact.question)
                    drifts = [drift for drift in chat.drift if drift is not None]
                    changed = [float(np.mean(list(drift.changed.values()))) for drift in drifts]
                    yield Asked(way, index, shifts, side, fact.question, fact.value, reply, right, tokens, changed)
                progress(f"{shifts} changes of topic", 1)


def hold(chat: ChatSession, script: Script, swapped: bool, reply_tokens: int) -> Iterator[tuple[str, Fact, str, int]]:
    """Hold a chat, and ask for each of the two facts in a copy of it.

    Args:
        chat: A new chat.
        script: The messages of the user.
        swapped: Give each topic a separate memory.
        reply_tokens: The tokens of a reply at most.

    Yields:
        The side (`before` or `after`), the fact, the reply, and the tokens between the fact and the question.
    """
    first, last = script.facts
    empty = chat.memory
    chat.send(first.told, reply_tokens)
    told = len(chat.segments.ids)
    memory_of_first = chat.memory
    for block in script.blocks:
        if swapped:
            chat.memory = empty
        for text in block:
            chat.send(text, reply_tokens)
    chat.send(last.told, reply_tokens)
    said = len(chat.segments.ids)
    for side, fact, tokens in (("before", first, said - told), ("after", last, 0)):
        copy = chat.fork()
        if swapped and side == "before" and script.blocks:
            copy.memory = memory_of_first
        yield side, fact, copy.send(fact.question, reply_tokens), tokens


def make_script(index: int, shifts: int, block: int) -> Script:
    """Make the script of chat `index`. Its facts do not depend on the number of topic changes."""
    settings = EpisodeSettings(facts=(2, 2), split=Split(values="held_out"))
    episode = make_episode(settings, "topic-shift", index)
    lists = {key.name: key.values for key in keys()}
    told = tuple(question.value for question in episode.questions if question.value is not None)
    facts: list[tuple[int, Fact]] = []
    for each in episode.questions:
        # With these settings every fact is told, and none is deleted.
        assert each.turn is not None and each.value is not None
        said, rivals = episode.history[2 * each.turn]["content"], (*values(lists[each.key]), *told)
        facts.append((each.turn, Fact(said, each.text, each.value, rivals)))
    (_, first), (_, last) = sorted(facts, key=lambda fact: fact[0])
    rng = random.Random(f"topic-shift/{index}")
    topics = rng.sample(sorted(filler()), shifts)
    return Script((first, last), [[said for said, _ in rng.sample(filler()[topic], block)] for topic in topics])


def estimates(asked: list[Asked]) -> dict[tuple[str, str, int], Estimate]:
    """Return the percentage of right replies, and its interval over chats, by way, side and number of topic changes."""
    groups: dict[tuple[str, str, int], list[bool]] = {}
    for each in asked:
        groups.setdefault((each.way, each.side, each.shifts), []).append(each.right)
    return {
        key: Bootstrap(np.array([right], float), [str(chat) for chat in range(len(right))], 0).mean(0)
        for key, right in groups.items()
    }


def show(asked: list[Asked], console: Console) -> None:
    """Print the share of right replies by number of topic changes."""
    found = estimates(asked)
    table = Table(title="Facts named, percent (95 % interval)")
    for heading in ("changes of topic", "tokens since", *(f"{way}: {side}" for way in WAYS for side in SIDES)):
        table.add_column(heading)
    for shifts in dict.fromkeys(each.shifts for each in asked):
        tokens = np.mean([each.tokens for each in asked if each.shifts == shifts and each.side == "before"])
        cells = [found[way, side, shifts] for way in WAYS for side in SIDES]
        table.add_row(str(shifts), f"{tokens:.0f}", *(f"{e.value:.0f} ({e.low:.0f}–{e.high:.0f})" for e in cells))
    console.print(table)


@styled
def draw(asked: list[Asked], block: int) -> Figure:
    """Draw the share of right replies by number of topic changes, and the change of the memory in each turn."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    add_title(figure, "When the topic changes: chats of which only the memory is kept")
    recall, drift = figure.subplots(1, 2)
    found, shifts = estimates(asked), sorted({each.shifts for each in asked})
    for way, style in zip(WAYS, LINES, strict=True):
        for side in SIDES:
            values = [found[way, side, count].value for count in shifts]
            recall.plot(shifts, values, label=f"{way}: told {side}", **style, alpha=1.0 if side == "before" else 0.4)
        before = [found[way, "before", count] for count in shifts]
        low, high = [each.low for each in before], [each.high for each in before]
        recall.fill_between(shifts, low, high, color=style["color"], alpha=0.12, linewidth=0)
        moved = [each.changed for each in asked if (each.way, each.side, each.shifts) == (way, "after", shifts[-1])]
        drift.plot(range(1, len(moved[0]) + 1), np.mean(moved, axis=0), label=way, **style)
    for border in range(shifts[-1] + 1):
        drift.axvline(1.5 + border * block, color="0.8", linewidth=0.8, zorder=0)
    recall.set(xlabel="changes of topic", ylabel="facts named, %", ylim=(0, 100), xticks=shifts)
    drift.set(xlabel="turn (lines: a new topic begins, and the second fact)", ylim=(0, None))
    drift.xaxis.set_major_locator(MaxNLocator(integer=True))
    drift.set_ylabel("change of the memory in the turn")
    figure.legend(*recall.get_legend_handles_labels(), loc="outside lower center", ncols=len(WAYS))
    return figure


if __name__ == "__main__":
    main()
