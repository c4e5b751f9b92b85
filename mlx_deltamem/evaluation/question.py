"""A question about a history: what every task gives, and every condition takes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_deltamem.sessions.template import Message

# Hexadecimal digits.
_DIGEST = 16

Labels = Mapping[str, float | str]


@dataclass(frozen=True)
class Question:
    """A question about a history. It is asked on its own, as if no other one had been.

    Its history is given in one of two ways: in the memory, or in the text. In the text it is either the beginning of
    the user's message (`context`, where a benchmark has a prompt of its own), or messages before the question.

    Attributes:
        id: Unique within its task, and the same whenever the task is run with the same settings.
        group: Questions of one group have the same `history` and the same `context`, which are run once for all of
            them. A group is one sample of the data: what is resampled together where intervals are computed.
        history: What came before, oldest first, as messages of a chat; what the memory reads. System prompts at its
            beginning belong to every prompt, in all conditions; so there may be nothing else in it.
        context: The history as the text that the user's message begins with where the history is in the text; "": it is
            given as `history`, messages before the user's.
        question: The user's message where the history is not in the text.
        question_with_context: The rest of the user's message where it begins with `context`: the message is
            `context + question_with_context`. Not used where `context` is "".
        golds: The accepted answers, at least one. A reply that is any of them has the full score.
        category: A row of the task's table, for example "temporal" or "updated".
        max_tokens: The longest reply, in tokens.
        labels: What else is known of it, for breakdowns (texts) and curves (numbers): "distance_turns", "level" ...
        index: Its place in the official order of the data, which seeds of sampling are counted from.
        given_replies: The places in `history` of replies that are told word for word in a chat too, where the model
            makes all others itself.
    """

    id: str
    group: str
    history: tuple[Message, ...]
    question: str
    golds: tuple[str, ...]
    category: str
    max_tokens: int
    context: str = ""
    question_with_context: str = ""
    labels: Labels = field(default_factory=dict)
    index: int = 0
    given_replies: tuple[int, ...] = ()

    @property
    def system(self) -> list[Message]:
        """The system prompts at the beginning of the history."""
        return list(self.history[: leading_system_prompts(self.history)])

    @property
    def told(self) -> bool:
        """Whether there is a history: more than system prompts."""
        return bool(self.context) or len(self.history) > len(self.system)

    def messages(self, with_history: bool) -> list[Message]:
        """The prompt: a chat whose last message is the user's.

        Args:
            with_history: Whether the history is in the text.
        """
        if not with_history:
            return [*self.system, user_message(self.question)]
        if self.context:
            return [*self.system, user_message(self.context + self.question_with_context)]
        return [*self.history, user_message(self.question)]


def leading_system_prompts(messages: Sequence[Message]) -> int:
    """How many messages at the beginning of a chat are system prompts."""
    return next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))


def digests(questions: Iterable[Question]) -> dict[str, str]:
    """For each question, by its id, a text that changes with anything in it or in its history."""
    found, told, history = {}, None, ""
    for question in questions:
        own = dict(vars(question))
        shared = own.pop("history"), own.pop("context")
        # The same of all questions of a group, and long.
        if shared != told:
            told, history = shared, _digest(shared)
        found[question.id] = _digest((history, own))
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:_DIGEST]


def user_message(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}
