"""Measure how much a memory keeps when the topic changes: `python -m tools.measure.topic_shift --output FOLDER`.

Each chat tells a fact, changes the topic a number of times, and tells another fact at the end. Then both are asked for.
The chats are real ones, history `none`, with the model's own replies, in three ways: everything is written, only the
user's messages are, or each topic has a memory of its own that is swapped in by hand. Writes `topic-shifts.json` and
`topic-shifts.png`.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

import mlx.nn as nn
from mlx_deltamem import ChatSession, load
from mlx_deltamem.evaluation.tasks.naming import names_only
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate
from mlx_deltamem.files.atomic import new_file, user_path
from mlx_deltamem.show.style import LINES, WIDTH, add_title, save_figure, styled
from mlx_deltamem.show.progress import Counted, counting_progress
from mlx_deltamem.recall import EpisodeSettings, Split, make_episode
from mlx_deltamem.recall.vocabulary import filler, keys, values
from tools import smollm2
from tools.demo import ADAPTER

WAYS = ("write all", "write user", "a memory for each topic")
SIDES = ("before", "after")
NAME = "topic-shifts"


@dataclass(frozen=True)
class Asked:
    """A question asked after a chat.

    Attributes:
        way, chat, shifts: How the chat was held, which one it is, and how often its topic changed.
        side: Whether the fact was told `before` the topic changed, or `after`.
        question, value, reply: What was asked, what is right, and what came.
        right: Whether the reply names the value and no other.
        tokens: Of the chat, from the turn that told the fact to the question.
        changed: By turn, how far it moved the memory relative to its norm, the mean over layers.
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


@dataclass(frozen=True)
class Script:
    """The user's messages in a chat: facts (statement, question, value, other values), and blocks of idle turns."""

    facts: list[tuple[str, str, str, tuple[str, ...]]]
    blocks: list[list[str]]


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure.topic_shift", description=__doc__)
    parser.add_argument("--model", help="A model (default: the offline backbone).")
    parser.add_argument("--adapter", help="Its adapter (default: the one that comes with the project).")
    parser.add_argument("--output", type=user_path, required=True, help="The folder for results and picture.")
    parser.add_argument("--shifts", type=int, nargs="+", default=[0, 1, 2, 4], help="Changes of topic.")
    parser.add_argument("--chats", type=int, default=30, help="Chats of each kind (default: 30).")
    parser.add_argument("--block", type=int, default=2, help="Turns about each topic (default: 2).")
    parser.add_argument("--reply-tokens", type=int, default=24, help="Longest reply (default: 24).")
    return parser


def main() -> None:
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
    """Hold all chats."""
    for shifts in args.shifts:
        for index in range(args.chats):
            script = make_script(index, shifts, args.block)
            for way in WAYS:
                chat = ChatSession(model, tokenizer, history="none", write="user" if way == "write user" else "all")
                for side, fact, reply, tokens in hold(chat, script, way == WAYS[-1], args.reply_tokens):
                    _, question, value, rivals = fact
                    right = names_only(reply, value, rivals, question)
                    changed = [float(np.mean(list(drift.changed.values()))) for drift in chat.drift]
                    yield Asked(way, index, shifts, side, question, value, reply, right, tokens, changed)
                progress(f"{shifts} changes of topic", 1)


def hold(
    chat: ChatSession, script: Script, swapped: bool, reply_tokens: int
) -> Iterator[tuple[str, tuple[str, str, str, tuple[str, ...]], str, int]]:
    """Hold a chat and ask for both facts, each in a copy of it: side, fact, reply and tokens since."""
    first, last = script.facts
    empty = chat.memory
    chat.send(first[0], reply_tokens)
    told = len(chat.segments.ids)
    memory_of_first = chat.memory
    for block in script.blocks:
        if swapped:
            chat.memory = empty
        for text in block:
            chat.send(text, reply_tokens)
    chat.send(last[0], reply_tokens)
    said = len(chat.segments.ids)
    for side, fact, tokens in (("before", first, said - told), ("after", last, 0)):
        copy = chat.fork()
        if swapped and side == "before" and script.blocks:
            copy.memory = memory_of_first
        yield side, fact, copy.send(fact[1], reply_tokens), tokens


def make_script(index: int, shifts: int, block: int) -> Script:
    """The script of chat `index`; the facts are the same however often the topic changes."""
    settings = EpisodeSettings(facts=(2, 2), split=Split(values="held_out"))
    episode = make_episode(settings, "topic-shift", index)
    lists = {key.name: key.values for key in keys()}
    told = tuple(question.value for question in episode.questions)
    facts = [
        (episode.history[2 * each.turn]["content"], each.text, each.value, (*values(lists[each.key]), *told))
        for each in sorted(episode.questions, key=lambda question: question.turn)
    ]
    rng = random.Random(f"topic-shift/{index}")
    topics = rng.sample(sorted(filler()), shifts)
    return Script(facts, [[said for said, _ in rng.sample(filler()[topic], block)] for topic in topics])


def estimates(asked: list[Asked]) -> dict[tuple[str, str, int], Estimate]:
    """Recall by way, side and number of shifts, with intervals over chats."""
    groups: dict[tuple[str, str, int], list[bool]] = {}
    for each in asked:
        groups.setdefault((each.way, each.side, each.shifts), []).append(each.right)
    return {
        key: Bootstrap(np.array([right], float), [str(chat) for chat in range(len(right))], 0).mean(0)
        for key, right in groups.items()
    }


def show(asked: list[Asked], console: Console) -> None:
    """Print recall by number of shifts."""
    found = estimates(asked)
    table = Table(title="Facts named when asked for, percent (95 % interval)")
    for heading in ("changes of topic", "tokens since", *(f"{way}: {side}" for way in WAYS for side in SIDES)):
        table.add_column(heading)
    for shifts in dict.fromkeys(each.shifts for each in asked):
        tokens = np.mean([each.tokens for each in asked if each.shifts == shifts and each.side == "before"])
        cells = [found[way, side, shifts] for way in WAYS for side in SIDES]
        table.add_row(str(shifts), f"{tokens:.0f}", *(f"{e.value:.0f} ({e.low:.0f}–{e.high:.0f})" for e in cells))
    console.print(table)


@styled
def draw(asked: list[Asked], block: int) -> Figure:
    """Draw recall by number of shifts, and how far each turn of the longest chats moved the memory."""
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
