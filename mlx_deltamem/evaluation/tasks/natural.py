"""The hand-written texts of natural.yaml: the questions of `--recall-natural`, everyday prompts, and prose."""

import functools
from collections.abc import Iterator, Mapping
from importlib.resources import files

import yaml

from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.evaluation.tasks.naming import names, names_any, says_unknown
from mlx_deltamem.sessions.template import Message

# What the history has for a reply where the model makes its own in a chat.
_ACKNOWLEDGED = "Okay."
# A reply in free speech takes its time to get to the point.
REPLY_TOKENS = 40
_NOT_TOLD = "You have not told me that."


def natural_questions(system: tuple[Message, ...]) -> Iterator[Question]:
    """The questions, each about a chat of its own, by turns of all kinds, so that the first few are of all kinds.

    Args:
        system: System prompts that every chat begins with.
    """
    kinds: dict[str, list[dict[str, object]]] = {}
    for item in _written()["items"]:
        kinds.setdefault(item["kind"], []).append(item)
    while any(kinds.values()):
        for waiting in kinds.values():
            if waiting:
                yield _question(waiting.pop(0), system)


def natural_score(question: Question, reply: str) -> Mapping[str, float]:
    """Whether a reply names an accepted answer, as whole words anywhere in it, and no wrong one.

    Where nothing was told, a reply is right that says so and names nothing that was told of something else.
    """
    reply = " ".join(reply.split())
    rivals = str(question.labels["rivals"]).split("\n")
    if question.category == "absent":
        unknown = says_unknown(reply)
        return {"exact": float(unknown and not names_any(reply, rivals, question.question)), "named": float(unknown)}
    right = any(names(reply, answer) for answer in question.golds)
    rival = names_any(reply, rivals, "\n".join((*question.golds, question.question)))
    return {"exact": float(right and not rival), "named": float(right)}


def natural_prompts() -> tuple[str, ...]:
    """Everyday prompts that have nothing to do with memory."""
    return tuple(_written()["prompts"])


def natural_prose() -> tuple[str, ...]:
    """Paragraphs of plain English."""
    return tuple(_written()["prose"])


@functools.cache
def _written() -> Mapping[str, list]:
    text = files(__package__).joinpath("natural.yaml").read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _question(item: Mapping[str, object], system: tuple[Message, ...]) -> Question:
    history, given = list(system), []
    for message in item["told"]:
        if isinstance(message, str):
            history += [user_message(message), {"role": "assistant", "content": _ACKNOWLEDGED}]
        else:
            history[-1] = {"role": "assistant", "content": message["assistant"]}
            given.append(len(history) - 1)
    told = sum(isinstance(message, str) for message in item["told"])
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
    )
