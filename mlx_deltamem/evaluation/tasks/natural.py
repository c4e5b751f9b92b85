"""The hand-written texts of `natural.yaml`: questions for `--recall-natural`, everyday prompts, and plain English."""

import functools
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TypedDict

import yaml

from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.evaluation.tasks.naming import names, names_any, says_not_told
from mlx_deltamem.sessions.text.messages import Message

# The reply in the history to a message without a given reply. In a chat, the model writes its own instead.
_ACKNOWLEDGED = "Okay."
# Replies in free speech may have some words before the answer.
REPLY_TOKENS = 40
_NOT_TOLD = "You have not told me that."


class _Reply(TypedDict):
    assistant: str


class _Item(TypedDict):
    """A question of the file, which says what the fields are."""

    id: str
    kind: str
    told: list[str | _Reply]
    ask: str
    answers: list[str]
    rivals: list[str]


class _File(TypedDict):
    items: list[_Item]
    prompts: list[str]
    prose: list[str]


def natural_questions(system: tuple[Message, ...]) -> Iterator[Question]:
    """Yield the questions, each about a different chat. The kinds take turns, so the first questions are of all kinds.

    Args:
        system: System prompts at the beginning of every chat.
    """
    kinds: dict[str, list[_Item]] = {}
    for item in _written()["items"]:
        kinds.setdefault(item["kind"], []).append(item)
    while any(kinds.values()):
        for waiting in kinds.values():
            if waiting:
                yield _question(waiting.pop(0), system)


def natural_score(question: Question, reply: str) -> Mapping[str, float]:
    """Score a reply: `named` if it names an accepted answer as whole words, `exact` if it also names no rival.

    All lines of a reply count. Only chats have several: under other conditions a reply ends with its first line. If
    nothing was told, `named` means that the reply says so (`says_not_told`).
    """
    reply = " ".join(reply.split())
    rivals = question.text_label("rivals").split("\n")
    if question.category == "absent":
        unknown = says_not_told(reply)
        return {"exact": float(unknown and not names_any(reply, rivals, question.question)), "named": float(unknown)}
    right = any(names(reply, answer) for answer in question.golds)
    rival = names_any(reply, rivals, "\n".join((*question.golds, question.question)))
    return {"exact": float(right and not rival), "named": float(right)}


def natural_prompts() -> tuple[str, ...]:
    """Everyday prompts that do not need a memory."""
    return tuple(_written()["prompts"])


def natural_prose() -> tuple[str, ...]:
    """Paragraphs of plain English."""
    return tuple(_written()["prose"])


@functools.cache
def _written() -> _File:
    text = files(__package__).joinpath("natural.yaml").read_text(encoding="utf-8")
    # The C loader is ten times as fast, but not in every build of PyYAML.
    content: _File = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return content


def _question(item: _Item, system: tuple[Message, ...]) -> Question:
    history, given = list(system), []
    for message in item["told"]:
        if isinstance(message, str):
            history += [user_message(message), {"role": "assistant", "content": _ACKNOWLEDGED}]
        else:
            history[-1] = {"role": "assistant", "content": message["assistant"]}
            given.append(len(history) - 1)
    told = sum(isinstance(message, str) for message in item["told"])
    turns = [history[at : at + 2] for at in range(len(system), len(history), 2)]
    return Question(
        id=item["id"],
        group=item["id"],
        history=tuple(history),
        question=item["ask"],
        golds=tuple(item["answers"]) or (_NOT_TOLD,),
        category=item["kind"],
        max_tokens=REPLY_TOKENS,
        labels={"facts": told, "kind": item["kind"], "rivals": "\n".join(item["rivals"])},
        given_replies=tuple(given),
        evidence=tuple(place for place, turn in enumerate(turns) if _tells(turn, item["answers"])),
    )


def _tells(turn: list[Message], answers: list[str]) -> bool:
    """Whether a turn names an accepted answer."""
    text = " ".join(" ".join(message["content"] for message in turn).split())
    return any(names(text, answer) for answer in answers)
