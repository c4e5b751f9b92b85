"""Questions about a history: every task produces them, and every condition can ask them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_deltamem.sessions.text.messages import Message

# Hexadecimal digits of a digest.
_DIGEST = 16

Labels = Mapping[str, float | str]


@dataclass(frozen=True)
class Question:
    """A question about a history. Each question is asked independently of all others.

    The model gets the history in the memory or in the text. In the text, the history is either the beginning of the
    user's message (`context`, for benchmarks that define their own prompt) or the messages before the question.

    Attributes:
        id: Unique within the task, and the same in every run of the task with the same settings.
        group: Questions of one group share `history` and `context`, which are run once for the whole group. A group is
            one sample of the data: the bootstrap draws its questions together.
        history: The messages before the question, oldest first. The memory reads them. System prompts at the beginning
            are part of the prompt in every condition; a history may consist of them alone.
        context: The history as text at the beginning of the user's message. "" means that a history in the text is
            given as the messages of `history`.
        question: The user's message in conditions without the history in the text.
        question_with_context: The rest of the user's message after `context`. It is not used if `context` is "".
        golds: The accepted answers, at least one. A reply equal to any of them has the full score.
        category: The row of the task's table that the question counts in, for example "temporal" or "updated".
        max_tokens: The longest reply, in tokens.
        labels: Further properties: texts for breakdowns ("level") and numbers for curves ("distance_turns").
        index: The place in the official order of the data. The sampling seed of a reply is the run's seed plus it.
        given_replies: The indices in `history` of replies that the chat conditions use word for word. The model writes
            all other replies of a chat itself.
        evidence: The turns of the history that hold the answer, as indices (see `baselines.turns`). Empty if nothing
            in the history holds it; None if the data do not say.
        query: The words that retrieval looks for; "" means those of `question`. Benchmarks put instructions around it.
        age_order: The indices of the turns from the oldest to the newest; empty if they stand in this order.
        evidence_cut: The number of further turns that hold the answer and are not in `context`, for want of room.
        preface: The number of characters at the beginning of `context` that introduce the history and are no part of
            it.
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
    evidence: tuple[int, ...] | None = None
    age_order: tuple[int, ...] = ()
    evidence_cut: int = 0
    query: str = ""
    preface: int = 0

    @property
    def system(self) -> list[Message]:
        """The system prompts at the beginning of the history."""
        return list(self.history[: leading_system_prompts(self.history)])

    @property
    def told(self) -> bool:
        """Whether there is a history beyond the system prompts."""
        return bool(self.context) or len(self.history) > len(self.system)

    def messages(self, with_history: bool) -> list[Message]:
        """The messages of the prompt. The last one is the user's.

        Args:
            with_history: Whether the prompt contains the history as text.
        """
        if not with_history:
            return [*self.system, user_message(self.question)]
        if self.context:
            return [*self.system, user_message(self.context + self.question_with_context)]
        return [*self.history, user_message(self.question)]

    def text_label(self, name: str) -> str:
        """The value of a label that is a text.

        Raises:
            KeyError: The question has no such label.
        """
        return str(self.labels[name])


def leading_system_prompts(messages: Sequence[Message]) -> int:
    """The number of system prompts at the beginning of a chat."""
    return next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))


def digests(questions: Iterable[Question]) -> dict[str, str]:
    """Hash every question together with its history.

    Returns:
        By question id, 16 hexadecimal digits that depend on every field of the question.
    """
    found: dict[str, str] = {}
    hashed: tuple[object, object] | None = None
    history = ""
    for question in questions:
        own = dict(vars(question))
        shared = own.pop("history"), own.pop("context")
        # Long, and the same for all questions of a group: hashed once per group.
        if shared != hashed:
            hashed, history = shared, _digest(shared)
        found[question.id] = _digest((history, own))
    return found


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:_DIGEST]


def user_message(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}
