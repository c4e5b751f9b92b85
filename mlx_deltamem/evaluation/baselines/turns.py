"""The turns of a history, and questions that are shown only some of them.

A turn is a message of the user with the replies that follow it. If a task writes its history into the user's message
(`Question.context`), a turn is a part of that text up to the next blank line.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.sessions.text.messages import Message

_BLANK_LINE = re.compile(r"(?<=\n\n)(?=\S)")


def turn_texts(question: Question) -> list[str]:
    """The text of each turn of a question's history, as they stand there; empty without a history."""
    if question.context:
        return context_parts(question)
    return ["\n".join(message["content"] for message in turn) for turn in message_turns(question)]


def oldest_first(question: Question) -> Sequence[int]:
    """The indices of the turns of a question's history, from the oldest to the newest."""
    return question.age_order or range(len(turn_texts(question)))


def message_turns(question: Question) -> list[list[Message]]:
    """The messages of each turn, without the system prompts at the beginning."""
    turns: list[list[Message]] = []
    for message in question.history[len(question.system) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def context_parts(question: Question) -> list[str]:
    """The parts of a question's `context` after its preface. Joined, they are that text."""
    return parts_of(question.context[question.preface :])


def parts_of(text: str) -> list[str]:
    """The parts of a text, each up to the next blank line. Joined, they are the text."""
    return _BLANK_LINE.split(text) if text else []


def with_turns(question: Question, chosen: Collection[int]) -> Question:
    """A question that is shown only some turns of its history, in their order.

    Args:
        question: The question.
        chosen: The indices of the turns. With all of them, the result is `question` itself.
    """
    count = len(turn_texts(question))
    kept = sorted(set(chosen))
    if len(kept) == count:
        return question
    system = tuple(question.system)
    if not question.context:
        turns = message_turns(question)
        return replace(question, history=(*system, *(message for index in kept for message in turns[index])))
    parts = context_parts(question)
    text = "".join(parts[index] for index in kept)
    if not kept:
        # Without a history the question is asked as in the conditions without one.
        return replace(question, history=system, context="", age_order=())
    order = tuple(kept.index(index) for index in question.age_order if index in kept)
    return replace(question, history=system, context=question.context[: question.preface] + text, age_order=order)


def with_text(question: Question, text: str) -> Question:
    """A question that is shown a text in place of its history, at the beginning of the user's message."""
    system = tuple(question.system)
    if question.context:
        text = f"{question.context[: question.preface]}{text}"
        return replace(question, history=system, context=text, age_order=())
    return replace(question, history=system, context=f"{text}\n\n", question_with_context=question.question)


def text_bytes(question: Question) -> int:
    """The bytes of the history of a question as a JSON text in UTF-8, without the system prompts."""
    kept: Sequence[object] = context_parts(question) if question.context else message_turns(question)
    return len(json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode())
