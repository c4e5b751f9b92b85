"""Episodes: a history that is written into the memory, and questions that are answered from it (facts 3.2).

The end of a record's history is what the model still sees when it answers; everything earlier is only in the memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template import ChatTemplate, Message, shared_length
from mlx_deltamem.sessions.writing import AFTER, NONE, WRITES
from mlx_deltamem.training.counts import Counts
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.option import check_options, option
from mlx_deltamem.training.records import Record, RecordError, listed
from mlx_deltamem.training.remembering_tokenizer import RememberingTokenizer
from mlx_deltamem.training.told import Told, Written, without_start, written_text


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
    write: str = option(AFTER, "What of a chat is written into the memory, as `--write` of a chat.", choices=WRITES)
    turn_by_turn: bool = option(False, "Write a history turn by turn, as a chat that does not see its earlier turns.")
    questions_per_write: int = option(4, "Questions in a row about one history that share one pass over it.", least=1)

    def __post_init__(self) -> None:
        check_options(self)


class EpisodeMaker:
    """Makes episodes of one tokenizer's chats.

    Args:
        tokenizer: mlx-lm's tokenizer, with a chat template.
        rules: How a chat becomes episodes.
        context: Whether the whole chats are wanted as well, for a teacher.
        strict: Raise the error of a record that cannot be used, instead of counting it.
    """

    def __init__(self, tokenizer: TokenizerWrapper, rules: EpisodeRules, context: bool = False, strict: bool = False):
        self.counts = Counts()
        self._tokenizer = tokenizer
        # As in a ChatSession.
        self._template = ChatTemplate(RememberingTokenizer(tokenizer), enable_thinking=False)
        self._rules = rules
        self._context = context
        self._strict = strict

    def episodes(self, records: Iterable[Record | RecordError]) -> list[Episode]:
        """The episodes of records, in their order; `counts` tells what was left out.

        Raises:
            RecordError: A record cannot be used, and the maker is strict.
        """
        made: list[Episode] = []
        for record in records:
            for episode in self._of_record(record):
                if made and self._shares_history(made[-1], episode):
                    made.append(made.pop().joined(episode))
                else:
                    made.append(episode)
        self.counts.found["episodes"] += len(made)
        self.counts.found["questions"] += sum(len(episode.questions) for episode in made)
        return made

    def _shares_history(self, one: Episode, other: Episode) -> bool:
        return len(one.questions) < self._rules.questions_per_write and one.shares_history(other)

    def _of_record(self, record: Record | RecordError) -> Iterator[Episode]:
        if isinstance(record, RecordError):
            self._refuse(record)
        elif problem := _broken(record.messages):
            self._refuse(RecordError(f"{record.where} {problem}", "role-broken"))
        else:
            for index in self._answers(record.messages):
                try:
                    yield self._of_answer(record, index)
                except RecordError as error:
                    self._refuse(error)

    def _refuse(self, error: RecordError) -> None:
        if self._strict:
            raise error
        self.counts.refuse(error)

    def _answers(self, messages: tuple[Message, ...]) -> list[int]:
        """The messages that are learned: answers to a user."""
        pairs = enumerate(pairwise(message["role"] for message in messages), 1)
        answers = [index for index, roles in pairs if roles == ("user", "assistant")]
        return answers[-1:] if self._rules.final_assistant_only else answers

    def _of_answer(self, record: Record, index: int) -> Episode:
        """The episode of one answer: `record.messages[index]`.

        Raises:
            RecordError: It cannot be used.
        """
        where, rules = f"{record.where}, message {index},", self._rules
        system, chat = _split(record.messages[: index + 1])
        if not chat[-1]["content"].strip():
            raise RecordError(f"{where} is empty; expected an answer", "empty")
        visible = (rules.recent_messages if record.recent is None else record.recent) + 1
        write = rules.write if record.write is None else record.write
        # What is not written has no effect, and need not be read.
        earlier = [] if write == NONE else chat[:-visible]
        turn_by_turn = rules.turn_by_turn if record.turn_by_turn is None else record.turn_by_turn
        is_last = index == len(record.messages) - 1
        value, cut = (record.value, record.cut) if is_last else ("", False)
        try:
            begun = turn_by_turn and bool(earlier)
            text = self._question([*system, *chat[-visible:]], value, write, begun)
            text = self._without_end(text, chat) if cut else text
            told = self._told(system, earlier, write, turn_by_turn)
            whole = self._question([*system, *chat], value) if self._context else None
            whole = self._without_end(whole, chat) if cut and whole else whole
        except ValueError as error:
            raise RecordError(f"{where} cannot be used: {error}", "refused by the chat template") from None
        if len(text.ids) - text.answer >= rules.max_seq_length:
            raise RecordError(
                f"{where} is an answer of {len(text.ids) - text.answer} tokens; expected fewer than --max-seq-length, "
                f"which is {rules.max_seq_length}",
                "over-long",
            )
        if whole is not None and whole.ids[whole.answer :] != text.ids[text.answer :]:
            raise RecordError(
                f"{where} is written in another way after the whole chat, which a teacher cannot follow",
                "refused by the chat template",
            )
        self._note(told, text, value)
        context = () if whole is None else (whole.last(rules.max_write_length + rules.max_seq_length),)
        told = told.last(rules.max_write_length)
        text = replace(text.last(rules.max_seq_length), target=record.target, weight=record.weight, kind=record.kind)
        return Episode(told.history, (text,), context, told.written, told.turns)

    def _told(self, system: list[Message], earlier: list[Message], write: str, turn_by_turn: bool) -> Told:
        """What is written before a text.

        Raises:
            ValueError: The chat template refuses the messages.
        """
        exchanges = _exchanges(earlier) if turn_by_turn else [earlier] if earlier else []
        parts = []
        for exchange in exchanges:
            messages = [*system, *exchange]
            parts.append(Told.in_one_pass(write, self._template.whole(messages), messages))
        return Told.turn_by_turn(parts) if turn_by_turn and parts else parts[0] if parts else Told()

    def _note(self, told: Told, text: Question, value: str) -> None:
        """Count what befalls a question that is used."""
        self.counts.note(
            len(told.history.ids) > self._rules.max_write_length,
            len(text.ids) > self._rules.max_seq_length,
            not told.history.ids,
            bool(value) and text.value[0] == text.value[1],
        )

    def _question(self, messages: list[Message], value: str, write: str = AFTER, begun: bool = False) -> Question:
        """A chat that ends with an answer, whole.

        Args:
            messages: The chat.
            value: The part of the answer that matters, or "".
            write: What is written as it is read.
            begun: The visible start is only read, since an earlier turn has written it.

        Raises:
            ValueError: The chat template refuses the messages.
        """
        chat = self._template.whole(messages)
        # Shared, since the first token of an answer may take in the end of what asks for it.
        answer = shared_length(chat.ids, self._template.ids(messages[:-1], generation_prompt=True))
        if not answer:
            raise ValueError(
                "the chat template writes no token before the answer, so that nothing foretells its first one; put "
                "text into the question, or give the tokenizer another chat template"
            )
        # Without the template's tokens at the end, in whose text a value may be, too.
        content = [at for at in range(answer, len(chat.ids)) if chat.sentence_ids[at] >= 0]
        begin, end = (content[0], content[-1] + 1) if content else (answer, len(chat.ids))
        first, last = self._value_tokens(chat.ids[begin:end], value)
        written: Written = written_text(write, chat, messages)
        if begun and written is True:
            written = without_start(written, chat)
        return Question(chat.ids, answer, (begin + first, begin + last), written)

    def _without_end(self, question: Question, messages: list[Message]) -> Question:
        """A question whose answer stops where it was cut, before what the template ends it with.

        Raises:
            ValueError: The chat does not end with that, or there is no answer besides.
        """
        ending = self._template.ending(messages).ids
        count = len(question.ids) - len(ending)
        if question.ids[count:] != ending or count <= question.answer:
            raise ValueError("it is said to be cut, and its end is not to be told apart from its text; leave out cut")
        written = question.written if isinstance(question.written, bool) else question.written[:count]
        return replace(question, ids=question.ids[:count], written=written)

    def _value_tokens(self, ids: list[int], value: str) -> tuple[int, int]:
        """The tokens `[first, last)` that hold the last mention of a value; nothing where there is none."""
        text = self._tokenizer.decode(ids)
        begin = text.rfind(value) if value else -1
        if begin < 0:
            return 0, 0
        beginnings = [self._tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
        # Where a token ends within a character, the tokens so far are no beginning of the text.
        first = max(count for count, part in enumerate(beginnings) if text[:begin].startswith(part))
        last = min(count for count, part in enumerate(beginnings) if part.startswith(text[: begin + len(value)]))
        return first, last


def _split(messages: tuple[Message, ...]) -> tuple[list[Message], list[Message]]:
    """The leading system prompts, and the rest."""
    leading = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[:leading]), list(messages[leading:])


def _exchanges(messages: list[Message]) -> list[list[Message]]:
    """The turns of a chat: what was said, up to and with the reply."""
    exchanges: list[list[Message]] = [[]]
    for message in messages:
        exchanges[-1].append(message)
        if message["role"] == "assistant":
            exchanges.append([])
    return [exchange for exchange in exchanges if exchange]


def _broken(messages: tuple[Message, ...]) -> str:
    """What is wrong with the roles of a chat, or ""."""
    roles = [message["role"] for message in _split(messages)[1]]
    if strange := set(roles) - {"user", "assistant"}:
        return f"has messages of {listed(sorted(strange))}; expected system (first), user and assistant"
    if roles[-1:] != ["assistant"]:
        return "does not end with an answer; expected an assistant's message last"
    if roles[-2:-1] != ["user"]:
        return "answers nothing; expected a user's message before the last one"
    return ""
