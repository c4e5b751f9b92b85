"""The task `recall`: facts told in a chat and asked for later. It needs no data.

Values are held out from training. A score depends on the value in the reply, not on the sentence around it (`naming`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Backbone, Task
from mlx_deltamem.evaluation.tasks.naming import names, names_any, names_only, says_not_told
from mlx_deltamem.evaluation.tasks.natural import natural_questions, natural_score
from mlx_deltamem.evaluation.tasks.recall_kinds import KINDS, WRITTEN, make_kind_chat
from mlx_deltamem.files.text import check_text
from mlx_deltamem.options.option import option
from mlx_deltamem.recall import Episode, EpisodeSettings, Split, make_episode
from mlx_deltamem.recall import Question as Asked
from mlx_deltamem.recall.vocabulary import choose_keys, keys, values
from mlx_deltamem.sessions.text.messages import Message

if TYPE_CHECKING:
    from mlx_deltamem.sessions.template.chat_template import ChatTemplate

# The family of keys that tell an instruction instead of a fact.
_INSTRUCTIONS = "code_word"
# With `hard`: the facts that are told beside those that are asked, and lists of values that many keys have.
_MORE_FACTS = 3
_HARD_LISTS = ("first_names", "towns")
# The kinds of questions that nothing answers.
_NO_ANSWER = ("absent", "deleted")
# Long values are where a memory fails first: the answers by their length in tokens of the model.
_LENGTH = "tokens of the answer"
_LENGTHS = ("1", "2", "3 or more")
# The settings of chats in which a fact of each kind is asked.
_KIND_SETTINGS: dict[str, dict[str, Any]] = {
    "told": {"updates": (0, 0), "deletions": (0, 0), "absent": (0, 0)},
    "updated": {"updates": (1, 1), "deletions": (0, 0), "absent": (0, 0), "questions": None},
    "deleted": {"updates": (0, 0), "deletions": (1, 1), "absent": (0, 0), "questions": None},
    "absent": {"updates": (0, 0), "deletions": (0, 0), "absent": (1, 1)},
}


@dataclass(frozen=True)
class Recall(Task):
    """Questions about facts told in generated chats, equally many for each number of facts.

    The main score `exact` requires the value and no rival. The score `named` requires the value only. If nothing can be
    recalled, `named` requires that the reply says so, and `exact` also that it names no rival.
    """

    name: ClassVar[str] = "recall"
    title: ClassVar[str] = "Recall of facts told in a chat"
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    breakdowns: ClassVar[tuple[str, ...]] = ("facts", "kind", _LENGTH)
    curves: ClassVar[tuple[str, ...]] = ("distance_tokens", "distance_turns", "topic_shifts", "facts")

    facts: tuple[int, ...] = option((1, 2, 4), "Facts told in a chat; several numbers are asked separately.", least=0)
    questions_each: int = option(500, "Questions for each number of facts.", least=1)
    filler: tuple[int, ...] = option(
        (0, 6), "Turns about other things, anywhere in the chat: the least and the most.", count=2
    )
    gap: tuple[int, ...] = option((0, 0), "Turns about other things just before the question.", count=2)
    topic_shifts: tuple[int, ...] = option(
        (), "How often the turns about other things change their topic.", kind=int, count=2
    )
    updates: tuple[int, ...] = option((0, 0), "Facts that are told again with another value.", count=2)
    deletions: tuple[int, ...] = option((0, 0), "Facts that the user takes back.", count=2)
    absent: tuple[int, ...] = option((0, 0), "Questions about facts that were not told, in each chat.", count=2)
    keys: tuple[str, ...] = option((), "Only these keys: a key (dog_name), a family (pet_name) or a list of values.")
    held_out_keys: bool = option(False, "Ask for keys that training does not use.")
    held_out_phrasings: bool = option(False, "Use phrasings that training does not use.")
    system_prompt: str | None = option(
        None, "The system prompt of every chat; an empty one suppresses the default of the chat template."
    )
    max_tokens: int = option(16, "The longest reply, in tokens.", least=1)
    kinds: tuple[str, ...] = option(
        (),
        "Ask these kinds, each in chats of its own: facts that were told, updated, deleted or not told (absent), two "
        "facts to join (joined), the same fact told by several people (people), and habits (often). Then "
        "--recall-questions-each is for each kind, and the largest of --recall-facts counts.",
        KINDS,
    )
    hard: bool = option(
        False, "Values of several words, and three more facts in each chat with values of the same list."
    )
    natural: bool = option(
        False, "Ask the hand-written questions in free wording. Of these options, only the system prompt goes with it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Checked before the model is loaded, not only when the first chat is made.
        _ = self._system
        if self.natural:
            self._check_natural()
        for count in self.facts:
            choose_keys(self._settings(count).keys, "held_out" if self.held_out_keys else "train")

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """See `Task`. The numbers of facts take turns, so the first questions are of all kinds."""
        # Sampled replies depend on the index: each question has random numbers of its own.
        for index, question in enumerate(self._in_order(backbone)):
            yield replace(question, index=index, labels={**question.labels, **_length(question, backbone)})

    def _in_order(self, backbone: Backbone) -> Iterator[Question]:
        if self.natural:
            yield from natural_questions(tuple(self._system))
            return
        from mlx_deltamem.sessions.template.chat_template import ChatTemplate

        if self.kinds:
            yield from self._of_kinds(ChatTemplate(backbone.tokenizer, enable_thinking=False))
            return
        template = ChatTemplate(backbone.tokenizer, enable_thinking=False)
        left = dict.fromkeys(self.facts, self.questions_each)
        index = 0
        while any(left.values()):
            for count in [count for count, more in left.items() if more]:
                episode = make_episode(self._settings(count, index), f"{self.seed}/evaluate/{count}", index)
                asked = episode.questions[: left[count]]
                left[count] -= len(asked)
                yield from self._questions(template, episode, asked, f"facts {count}, chat {index}", count)
            index += 1

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        """The scores `exact` and `named` of a reply."""
        if self.natural:
            return natural_score(question, reply)
        rivals = (*values(question.text_label("values")), *question.text_label("told").split("\n"))
        if "value" in question.labels:
            value = question.text_label("value")
            exact = names_only(reply, value, rivals, question.question)
            return {"exact": float(exact), "named": float(names(reply, value))}
        unknown = says_not_told(reply)
        exact = unknown and not names_any(reply, rivals, question.question)
        return {"exact": float(exact), "named": float(unknown)}

    def _check_natural(self) -> None:
        applies = ("natural", "system_prompt", "data", "seed")
        others = [each.name for each in fields(self) if each.name not in applies]
        defaults = {each.name: each.default for each in fields(self)}
        if unused := [name for name in others if getattr(self, name) != defaults[name]]:
            options = ", ".join(f"--recall-{name.replace('_', '-')}" for name in unused)
            raise ValueError(f"{options} has no effect with --recall-natural, whose questions are given; leave it out")

    @property
    def _system(self) -> list[Message]:
        if self.system_prompt is None:
            return []
        return [{"role": "system", "content": check_text(self.system_prompt, "--recall-system-prompt")}]

    def _of_kinds(self, template: "ChatTemplate") -> Iterator[Question]:
        """The questions of `kinds`. The kinds take turns."""
        count = max(self.facts)
        for index in range(self.questions_each):
            for kind in dict.fromkeys(self.kinds):
                group = f"{kind}, chat {index}"
                if kind in WRITTEN:
                    yield self._of_written_kind(kind, group, index)
                    continue
                settings = replace(self._settings(max(count, 1), index), **_KIND_SETTINGS[kind])
                episode = make_episode(settings, f"{self.seed}/evaluate/{kind}", index)
                asked = next(each for each in episode.questions if each.kind == kind)
                yield from self._questions(template, episode, (asked,), group, settings.facts[0])

    def _of_written_kind(self, kind: str, group: str, index: int) -> Question:
        filled, gap = _range(self.filler), _range(self.gap)
        chat = make_kind_chat(kind, filled, gap, self.hard, f"{self.seed}/evaluate", index)
        labels: dict[str, float | str] = {"facts": len(chat.told), "kind": "fact", "values": chat.values}
        return Question(
            id=f"{group}, question 0",
            group=group,
            history=(*self._system, *chat.history),
            question=chat.ask,
            golds=(chat.value,),
            category=kind,
            max_tokens=self.max_tokens,
            labels={**labels, "told": "\n".join(chat.told), "value": chat.value},
            evidence=chat.evidence,
        )

    def _settings(self, facts: int, index: int = 0) -> EpisodeSettings:
        split = Split(
            values="held_out",
            keys="held_out" if self.held_out_keys else "train",
            phrasings="held_out" if self.held_out_phrasings else "train",
        )
        told, keys = facts, self.keys
        if self.hard and facts:
            told = facts + _MORE_FACTS
            # The values of one list: each fact is a rival of the others.
            keys = keys or (_HARD_LISTS[index % len(_HARD_LISTS)],)
        return EpisodeSettings(
            facts=(told, told),
            questions=facts if self.hard else None,
            doubled=self.hard,
            filler=_range(self.filler),
            gap=_range(self.gap),
            updates=_range(self.updates),
            deletions=_range(self.deletions),
            absent=_range(self.absent),
            topic_switches=_range(self.topic_shifts) if self.topic_shifts else None,
            keys=keys,
            split=split,
        )

    def _questions(
        self, template: "ChatTemplate", episode: Episode, asked: tuple[Asked, ...], group: str, facts: int
    ) -> Iterator[Question]:
        told_before = [Message(role=message["role"], content=message["content"]) for message in episode.history]
        history = (*self._system, *told_before)
        message_ids = template.whole(history).message_ids if history else []
        told = "\n".join(each.value for each in episode.questions if each.value is not None)
        by_name = {key.name: key for key in keys()}
        for number, each in enumerate(asked):
            key = by_name[each.key]
            kind = "instruction" if key.family.name == _INSTRUCTIONS else "fact"
            labels: dict[str, float | str] = {"facts": facts, "kind": kind, "key": key.name}
            labels |= {"values": key.values, "told": told}
            if each.value is not None:
                labels |= {"value": each.value, **_distances(each, message_ids)}
            yield Question(
                id=f"{group}, question {number}",
                group=group,
                history=history,
                question=each.text,
                golds=(each.answer,) if each.value is None else (each.value, each.answer),
                category=each.kind,
                max_tokens=self.max_tokens,
                labels=labels,
                evidence=() if each.turn is None else (each.turn,),
            )


def _distances(asked: Asked, message_ids: list[int]) -> dict[str, float | str]:
    """The labels for the distance from the message that told or updated a fact to the question.

    Args:
        asked: A question about a fact that was told.
        message_ids: The message of each token of the history, counted without system prompts.
    """
    if asked.turn is None or asked.distance is None or asked.topic_switches is None:
        return {}
    # The message of the user in turn N is message 2N.
    since = sum(message > 2 * asked.turn for message in message_ids)
    return {"topic_shifts": asked.topic_switches, "distance_turns": asked.distance, "distance_tokens": since}


def _length(question: Question, backbone: Backbone) -> dict[str, str]:
    """The label for the length of the shortest answer, as it stands after other words.

    Questions about what was not told have none.
    """
    if question.category in _NO_ANSWER:
        return {}
    encode = backbone.tokenizer.encode
    tokens = min(len(encode(f" {answer}", add_special_tokens=False)) for answer in question.golds)
    return {_LENGTH: _LENGTHS[min(max(tokens, 1), len(_LENGTHS)) - 1]}


def _range(numbers: tuple[int, ...]) -> tuple[int, int]:
    low, high = numbers
    return low, high
