"""Chats for `--recall-kinds` that training data do not have: facts to join, facts of several people, and habits."""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NotRequired, TypedDict

import yaml

from mlx_deltamem.evaluation.question import user_message
from mlx_deltamem.recall.vocabulary import filler, shared, values_on, with_article
from mlx_deltamem.sessions.text.messages import Message

# The kinds that the generator of training data makes too, and the kinds of this file.
GENERATED = ("told", "updated", "deleted", "absent")
WRITTEN = ("joined", "people", "often")
KINDS = GENERATED + WRITTEN
# How often a habit is told. Each of its rivals is told once.
_OFTEN = 3
# The number of other people or values, and the same with --recall-hard.
_RIVALS, _HARD_RIVALS = 1, 3

Range = tuple[int, int]


class _Fact(TypedDict):
    """A fact of the file, which says what the texts are."""

    values: str
    tell: list[str]
    ask: str
    first: NotRequired[list[str]]


class _File(TypedDict):
    persons: list[str]
    joined: list[_Fact]
    people: list[_Fact]
    often: list[_Fact]


@dataclass(frozen=True)
class KindChat:
    """A chat of one kind, and its question.

    Attributes:
        history: The messages.
        evidence: The turns that hold the answer.
        ask: The question.
        value: The value to name.
        told: All values that were told, the right one first.
        values: The name of the list of values.
    """

    history: tuple[Message, ...]
    evidence: tuple[int, ...]
    ask: str
    value: str
    told: tuple[str, ...]
    values: str


# A message of the user, and whether it is evidence.
_Turn = tuple[str, bool]


def make_kind_chat(kind: str, filled: Range, gap: Range, hard: bool, seed: str, index: int) -> KindChat:
    """Make a chat. The same arguments give the same chat on every machine. All names and values are held out.

    Args:
        kind: One of `WRITTEN`.
        filled: The turns about other things, anywhere in the chat: the least and the most.
        gap: The turns about other things just before the question.
        hard: Whether there are more rivals, and values of two words or more.
        seed, index: The choice among the chats.
    """
    rng = random.Random(f"{seed}/{kind}/{index}")
    texts = _texts()
    make, facts = {
        "joined": (_joined, texts["joined"]),
        "people": (_people, texts["people"]),
        "often": (_often, texts["often"]),
    }[kind]
    fact = rng.choice(facts)
    rivals = _HARD_RIVALS if hard else _RIVALS
    told = _draw_values(rng, fact["values"], 1 + rivals, hard)
    turns, ask = make(rng, fact, told)
    history, evidence = _with_filler(rng, turns, rng.randint(*filled), rng.randint(*gap))
    return KindChat(history, evidence, ask, told[0], tuple(told), fact["values"])


def _joined(rng: random.Random, fact: _Fact, told: list[str]) -> tuple[list[_Turn], str]:
    """Each person is named in one turn, and each name has a value in a later one."""
    persons = rng.sample(_texts()["persons"], len(told))
    names = rng.sample(values_on("first_names", "held_out"), len(told))
    first = list(zip(persons, names, [True] + [False] * (len(told) - 1), strict=True))
    second = list(zip(names, told, [True] + [False] * (len(told) - 1), strict=True))
    rng.shuffle(first)
    rng.shuffle(second)
    turns = [
        (_say(rng.choice(fact.get("first", [])), person=person, name=name), right) for person, name, right in first
    ]
    turns += [(_say(rng.choice(fact["tell"]), value, name=name), right) for name, value, right in second]
    return turns, _say(fact["ask"], person=persons[0])


def _people(rng: random.Random, fact: _Fact, told: list[str]) -> tuple[list[_Turn], str]:
    """Each person tells the same thing."""
    names = rng.sample(values_on("first_names", "held_out"), len(told))
    turns = [
        (_say(rng.choice(fact["tell"]), value, name=name), not place)
        for place, (name, value) in enumerate(zip(names, told, strict=True))
    ]
    rng.shuffle(turns)
    return turns, _say(fact["ask"], name=names[0])


def _often(rng: random.Random, fact: _Fact, told: list[str]) -> tuple[list[_Turn], str]:
    """The first value is told several times, each other one once."""
    turns = [(_say(rng.choice(fact["tell"]), told[0]), True) for _ in range(_OFTEN)]
    turns += [(_say(rng.choice(fact["tell"]), value), False) for value in told[1:]]
    rng.shuffle(turns)
    return turns, fact["ask"]


def _draw_values(rng: random.Random, name: str, count: int, hard: bool) -> list[str]:
    """Draw values none of which is a part of another; with `hard`, each has another value of the list after it."""
    values = list(values_on(name, "held_out"))
    rng.shuffle(values)
    chosen: list[str] = []
    for value in values:
        folded = value.casefold()
        if not any(folded in other.casefold() or other.casefold() in folded for other in chosen):
            chosen.append(value)
    drawn = chosen[:count]
    if len(drawn) < count:
        raise ValueError(f"a chat needs {count} held-out {name}, and there are {len(drawn)}; name another kind")
    return (
        [f"{value} {rng.choice([other for other in values if other != value])}" for value in drawn] if hard else drawn
    )


def _with_filler(
    rng: random.Random, turns: Sequence[_Turn], between: int, after: int
) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """Put turns about other things among the turns and behind them. Returns the messages and the turns of evidence."""
    idle = [turn for topic in filler().values() for turn in topic]
    others = [rng.choice(idle) for _ in range(between + after)]
    exchanges = [(text, rng.choice(shared().acknowledge), right) for text, right in turns]
    for said, reply in others[:between]:
        exchanges.insert(rng.randint(0, len(exchanges)), (said, reply, False))
    exchanges += [(said, reply, False) for said, reply in others[between:]]
    history: list[Message] = []
    for said, reply, _ in exchanges:
        history += [user_message(said), {"role": "assistant", "content": reply}]
    return tuple(history), tuple(place for place, (*_, right) in enumerate(exchanges) if right)


def _say(text: str, value: str = "", **blanks: str) -> str:
    said = text.format(value=value, a_value=with_article(value) if value else "", **blanks)
    return said[:1].upper() + said[1:]


@functools.cache
def _texts() -> _File:
    content: _File = yaml.safe_load(files(__package__).joinpath("recall_kinds.yaml").read_text(encoding="utf-8"))
    return content
