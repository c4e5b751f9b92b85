"""The task `recall`: facts told in a chat and asked for later. It needs no data.

Values are held out from training. What is scored is the value, not the sentence around it (`naming`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Backbone, Task, option
from mlx_deltamem.evaluation.tasks.naming import names, names_any, names_only, says_unknown
from mlx_deltamem.evaluation.tasks.natural import natural_questions, natural_score
from mlx_deltamem.recall import Episode, EpisodeSettings, Split, make_episode
from mlx_deltamem.recall import Question as Asked
from mlx_deltamem.recall.vocabulary import keys, values
from mlx_deltamem.sessions.template import ChatTemplate, Message

_KEYS = {key.name: key for key in keys()}
_INSTRUCTIONS = "code_word"
_FIELDS_OF_SETTINGS = ("filler", "gap", "updates", "deletions", "absent")


@dataclass(frozen=True)
class Recall(Task):
    """Questions about facts told in made-up chats, as many for each number of facts.

    The main score, `exact`, is strict: the value and no rival of it. `named` is lenient: the value is there, whatever
    else is (where nothing can be recalled: the reply says so).
    """

    name: ClassVar[str] = "recall"
    title: ClassVar[str] = "Recall of facts told in a chat"
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    breakdowns: ClassVar[tuple[str, ...]] = ("facts", "kind")
    curves: ClassVar[tuple[str, ...]] = ("distance_tokens", "distance_turns", "topic_shifts", "facts")

    facts: tuple[int, ...] = option((1, 2, 4), "Facts told in a chat; so many questions for each of these numbers.")
    questions_each: int = option(500, "Questions for each number of facts.")
    filler: tuple[int, ...] = option((0, 6), "Turns about other things, anywhere.", count=2)
    gap: tuple[int, ...] = option((0, 0), "Such turns just before the question.", count=2)
    topic_shifts: tuple[int, ...] = option((), "How often these turns change their topic.", kind=int, count=2)
    updates: tuple[int, ...] = option((0, 0), "Facts told anew with another value.", count=2)
    deletions: tuple[int, ...] = option((0, 0), "Facts that are to be forgotten.", count=2)
    absent: tuple[int, ...] = option((0, 0), "Questions about what was not told, for each chat.", count=2)
    keys: tuple[str, ...] = option((), "Only these keys: a key (dog_name), a family (pet_name) or a list of values.")
    held_out_keys: bool = option(False, "Keys that are not trained on.")
    held_out_phrasings: bool = option(False, "Phrasings that are not trained on.")
    system_prompt: str | None = option(None, "Begin every chat with it; an empty one keeps a template's own away.")
    max_tokens: int = option(16, "The longest reply.")
    natural: bool = option(
        False, "Questions in free wording, written by hand; of the other options only the system prompt counts then."
    )

    def __post_init__(self) -> None:
        if not self.facts or min(self.facts) < 0 or self.questions_each < 1 or self.max_tokens < 1:
            raise ValueError("recall needs numbers of facts from 0 on, and questions and tokens from 1 on")
        for count in self.facts:
            self._settings(count)

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """The chats with each number of facts in turn, so that the first few questions are of all kinds."""
        if self.natural:
            yield from natural_questions(tuple(self._system))
            return
        template = ChatTemplate(backbone.tokenizer, enable_thinking=False)
        left = dict.fromkeys(self.facts, self.questions_each)
        index = 0
        while any(left.values()):
            for count in [count for count, more in left.items() if more]:
                episode = make_episode(self._settings(count), f"{self.seed}/evaluate/{count}", index)
                asked = episode.questions[: left[count]]
                left[count] -= len(asked)
                yield from self._questions(template, episode, asked, f"facts {count}, chat {index}", count)
            index += 1

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        if self.natural:
            return natural_score(question, reply)
        labels = question.labels
        rivals = (*values(labels["values"]), *labels["told"].split("\n"))
        if question.category in ("told", "updated"):
            exact = names_only(reply, labels["value"], rivals, question.question)
            return {"exact": float(exact), "named": float(names(reply, labels["value"]))}
        unknown = says_unknown(reply)
        exact = unknown and not names_any(reply, rivals, question.question)
        return {"exact": float(exact), "named": float(unknown)}

    @property
    def _system(self) -> list[Message]:
        return [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]

    def _settings(self, facts: int) -> EpisodeSettings:
        given = {name: tuple(getattr(self, name)) for name in _FIELDS_OF_SETTINGS if getattr(self, name)}
        if self.topic_shifts:
            given["topic_switches"] = tuple(self.topic_shifts)
        split = Split(
            values="held_out",
            keys="held_out" if self.held_out_keys else "train",
            phrasings="held_out" if self.held_out_phrasings else "train",
        )
        return EpisodeSettings(facts=(facts, facts), keys=tuple(self.keys), split=split, **given)

    def _questions(
        self, template: ChatTemplate, episode: Episode, asked: tuple[Asked, ...], group: str, facts: int
    ) -> Iterator[Question]:
        history = (*self._system, *(dict(message) for message in episode.history))
        message_ids = template.whole(history).message_ids if history else []
        told = "\n".join(each.value for each in episode.questions if each.value is not None)
        for number, each in enumerate(asked):
            key = _KEYS[each.key]
            kind = "instruction" if key.family.name == _INSTRUCTIONS else "fact"
            labels = {"facts": facts, "kind": kind, "key": key.name, "values": key.values, "told": told}
            if each.value is not None:
                # From the end of the message that told it, or updated it, to the question.
                since = sum(message > 2 * each.turn for message in message_ids)
                distances = {"distance_turns": each.distance, "distance_tokens": since}
                labels |= {"value": each.value, "topic_shifts": each.topic_switches, **distances}
            yield Question(
                id=f"{group}, question {number}",
                group=group,
                history=history,
                question=each.text,
                golds=(each.answer,) if each.value is None else (each.value, each.answer),
                category=each.kind,
                max_tokens=self.max_tokens,
                labels=labels,
            )
