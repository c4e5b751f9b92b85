"""Episodes: a history that is written into the memory, and questions that are answered from it (facts 3.2).

The end of a record's history is what the model still sees when it answers; everything earlier is only in the memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.segments import ChatTemplate, Message, Segments
from mlx_deltamem.training.option import check_options, option
from mlx_deltamem.training.records import Record, RecordError

NOTHING = Segments([], [], [])


@dataclass(frozen=True)
class EpisodeRules:
    """How a chat becomes episodes.

    Raises:
        ValueError: A number is out of range.
    """

    recent_messages: int = option(1, "So many messages before the answer stay in the text.", least=1)
    final_assistant_only: bool = option(True, "Learn only the last answer of a chat, instead of each one.")
    max_write_length: int = option(8192, "Tokens of a history; of a longer one, the last are kept.", least=1)
    max_seq_length: int = option(512, "Tokens of a text with its answer; of a longer one, the last are kept.", least=2)
    questions_per_write: int = option(4, "Questions in a row about one history that share one pass over it.", least=1)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Question:
    """A text with its answer.

    Attributes:
        ids: The tokens: system prompt, what is still visible, and the answer.
        answer: Where the answer begins.
        value: The tokens `[begin, end)` of the answer that matter most; empty where none do.
    """

    ids: list[int]
    answer: int
    value: tuple[int, int]


@dataclass(frozen=True)
class Episode:
    """A history and questions about it.

    Attributes:
        history: Its tokens and their spans; there may be none.
        questions: What is asked and answered.
        context: For each question, the tokens of the whole chat, which a teacher may read.
    """

    history: Segments
    questions: tuple[Question, ...]
    context: tuple[Question, ...] = ()


@dataclass
class Counts:
    """What became of a data set's records.

    Attributes:
        found: Episodes, questions, and by reason what was cut or left out.
        errors: The first few records that cannot be used, each with its place.
    """

    found: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def refuse(self, kind: str, message: str) -> None:
        self.found[kind] += 1
        self.errors.append(message)

    def rows(self) -> list[tuple[str, int]]:
        """What to tell the user, most important first."""
        order = ("episodes", "questions", *REFUSED, *CUT)
        return [(name, self.found[name]) for name in order if self.found[name]]


REFUSED = ("unreadable", "role-broken", "empty", "over-long answer")
CUT = ("history cut to its end", "text cut to its end")


class EpisodeMaker:
    """Makes episodes of one tokenizer's chats.

    Args:
        tokenizer: mlx-lm's tokenizer, with a chat template.
        rules: How a chat becomes episodes.
        context: Whether the whole chats are wanted as well, for a teacher.
    """

    def __init__(self, tokenizer: TokenizerWrapper, rules: EpisodeRules, context: bool = False):
        self.counts = Counts()
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._rules = rules
        self._context = context

    def episodes(self, records: Iterable[Record | RecordError]) -> list[Episode]:
        """The episodes of records; `counts` tells what was left out."""
        made: list[Episode] = []
        for record in records:
            for episode in self._of_record(record):
                if made and self._shares_history(made[-1], episode):
                    made.append(_joined(made.pop(), episode))
                else:
                    made.append(episode)
        self.counts.found["episodes"] += len(made)
        self.counts.found["questions"] += sum(len(episode.questions) for episode in made)
        return made

    def _shares_history(self, one: Episode, other: Episode) -> bool:
        return (
            bool(one.history.ids)
            and one.history == other.history
            and len(one.questions) < self._rules.questions_per_write
        )

    def _of_record(self, record: Record | RecordError) -> Iterator[Episode]:
        if isinstance(record, RecordError):
            self.counts.refuse("unreadable", str(record))
            return
        if problem := _broken(record.messages):
            self.counts.refuse("role-broken", f"{record.where} {problem}")
            return
        pairs = enumerate(pairwise(message["role"] for message in record.messages), 1)
        answers = [index for index, roles in pairs if roles == ("user", "assistant")]
        for index in answers[-1:] if self._rules.final_assistant_only else answers:
            if not record.messages[index]["content"].strip():
                self.counts.refuse("empty", f"{record.where} has an empty answer (message {index})")
                continue
            value = record.value if index == len(record.messages) - 1 else ""
            if (episode := self._of_answer(record, index, value)) is not None:
                yield episode

    def _of_answer(self, record: Record, index: int, value: str) -> Episode | None:
        """The episode of one answer: `record.messages[index]`."""
        system, chat = _split(record.messages[: index + 1])
        visible = self._rules.recent_messages + 1
        question = self._question([*system, *chat[-visible:]], value, self._rules.max_seq_length)
        if question is None:
            self.counts.refuse("over-long answer", f"{record.where} has an answer over {self._rules.max_seq_length}")
            return None
        history = self._history([*system, *chat[:-visible]]) if len(chat) > visible else NOTHING
        longest = self._rules.max_write_length + self._rules.max_seq_length
        context = self._question([*system, *chat], value, longest) if self._context else None
        return Episode(history, (question,), () if context is None else (context,))

    def _question(self, messages: list[Message], value: str, longest: int) -> Question | None:
        """The text with its answer, or None where the answer alone is longer than a text may be."""
        ids = self._template.whole(messages).ids
        prompt = len(self._template.whole(messages[:-1], generation_prompt=True).ids)
        cut = max(len(ids) - longest, 0)
        self.counts.found["text cut to its end"] += cut > 0
        if prompt - cut < 1:
            return None
        begin, end = self._value(ids[prompt:], value)
        return Question(ids[cut:], prompt - cut, (prompt - cut + begin, prompt - cut + end))

    def _history(self, messages: list[Message]) -> Segments:
        history = self._template.whole(messages)
        cut = max(len(history.ids) - self._rules.max_write_length, 0)
        self.counts.found["history cut to its end"] += cut > 0
        return Segments(history.ids[cut:], history.message_ids[cut:], history.sentence_ids[cut:]) if cut else history

    def _value(self, answer: list[int], value: str) -> tuple[int, int]:
        """The tokens of an answer that hold the last mention of a value."""
        if not value:
            return 0, 0
        begin = self._tokenizer.decode(answer).rfind(value)
        if begin < 0:  # written in another way by the template
            return 0, 0
        ends = [len(self._tokenizer.decode(answer[: count + 1])) for count in range(len(answer))]
        inside = [at for at, end in enumerate(ends) if end > begin and (ends[at - 1] if at else 0) < begin + len(value)]
        return inside[0], inside[-1] + 1


def _joined(one: Episode, other: Episode) -> Episode:
    """One episode of two about the same history."""
    return replace(one, questions=one.questions + other.questions, context=one.context + other.context)


def _split(messages: tuple[Message, ...]) -> tuple[list[Message], list[Message]]:
    """The leading system prompts, and the rest."""
    leading = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[:leading]), list(messages[leading:])


def _broken(messages: tuple[Message, ...]) -> str:
    """What is wrong with the roles of a chat, or ""."""
    chat = _split(messages)[1]
    roles = [message["role"] for message in chat]
    if strange := set(roles) - {"user", "assistant"}:
        return f"has messages of {', '.join(sorted(strange))}; expected system (first), user and assistant"
    if roles[-1:] != ["assistant"]:
        return "does not end with an answer; expected an assistant's message last"
    if roles[-2:-1] != ["user"]:
        return "answers nothing; expected a user's message before the last one"
    return ""
