"""Makes episodes of chats: a history that is written into the memory, and questions about it (facts 3.2).

Only the last messages before an answer stay visible. Everything earlier goes into the memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import cast

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.segments import shared_length
from mlx_deltamem.sessions.turns.writing import AFTER, NONE
from mlx_deltamem.training.cached_tokenizer import CachedTokenizer
from mlx_deltamem.training.counts import Counts
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.records import Record, RecordError
from mlx_deltamem.training.rules import EpisodeRules
from mlx_deltamem.training.turns import exchanges, split_system, wrong_roles
from mlx_deltamem.training.written import WrittenHistory, written_flags


class EpisodeMaker:
    """Makes episodes of chats for one tokenizer.

    Args:
        tokenizer: mlx-lm's tokenizer, with a chat template.
        rules: The rules for making episodes.
        context: Whether to add the whole chats, for a teacher.
        strict: Raise the error of an unusable record, instead of counting the record.

    Attributes:
        counts: The numbers of episodes, questions and unusable records so far.
    """

    def __init__(self, tokenizer: TokenizerWrapper, rules: EpisodeRules, context: bool = False, strict: bool = False):
        self.counts = Counts()
        self._tokenizer = tokenizer
        # Thinking is off, as in ChatSession.
        self._template = ChatTemplate(cast(TokenizerWrapper, CachedTokenizer(tokenizer)), enable_thinking=False)
        self._rules = rules
        self._context = context
        self._strict = strict

    def episodes(self, records: Iterable[Record | RecordError]) -> list[Episode]:
        """Make the episodes of records, in order, and update `counts`.

        Raises:
            RecordError: A record is unusable, and the maker is strict.
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
        elif problem := wrong_roles(record.messages):
            self._refuse(RecordError(f"{record.where} {problem}", "wrong roles"))
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
        """The indices of the messages to train on: answers to a user."""
        pairs = enumerate(pairwise(message["role"] for message in messages), 1)
        answers = [index for index, roles in pairs if roles == ("user", "assistant")]
        return answers[-1:] if self._rules.final_assistant_only else answers

    def _of_answer(self, record: Record, index: int) -> Episode:
        """Make the episode of one answer, `record.messages[index]`.

        Raises:
            RecordError: It is unusable.
        """
        where, rules = f"{record.where}, message {index},", self._rules
        system, chat = split_system(record.messages[: index + 1])
        if not chat[-1]["content"].strip():
            raise RecordError(f"{where} is empty; expected an answer", "empty")
        visible = (rules.recent_messages if record.recent is None else record.recent) + 1
        write = rules.write if record.write is None else record.write
        # If nothing is written, the history has no effect and is left out.
        earlier = [] if write == NONE else chat[:-visible]
        turn_by_turn = rules.turn_by_turn if record.turn_by_turn is None else record.turn_by_turn
        is_last = index == len(record.messages) - 1
        value, cut = (record.value, record.cut) if is_last else ("", False)
        try:
            text = self._question([*system, *chat[-visible:]], value, write, turn_by_turn and bool(earlier))
            text = self._without_end(text, chat) if cut else text
            history = self._history(system, earlier, write, turn_by_turn)
            whole = self._question([*system, *chat], value) if self._context else None
            whole = self._without_end(whole, chat) if cut and whole else whole
        except ValueError as error:
            raise RecordError(f"{where} cannot be used: {error}", "refused by the chat template") from None
        if len(text.ids) - text.answer >= rules.max_seq_length:
            raise RecordError(
                f"{where} is an answer of {len(text.ids) - text.answer} tokens; expected fewer than --max-seq-length, "
                f"which is {rules.max_seq_length}",
                "too long",
            )
        if whole is not None and whole.ids[whole.answer :] != text.ids[text.answer :]:
            raise RecordError(
                f"{where} has other tokens after the whole chat, so that a teacher cannot be compared with it",
                "refused by the chat template",
            )
        self._count(history, text, value)
        context = () if whole is None else (whole.last(rules.max_write_length + rules.max_seq_length),)
        history = history.last(rules.max_write_length)
        text = replace(text.last(rules.max_seq_length), target=record.target, weight=record.weight, kind=record.kind)
        return Episode(history.history, (text,), context, history.written, history.turns)

    def _history(self, system: list[Message], earlier: list[Message], write: str, turn_by_turn: bool) -> WrittenHistory:
        """Make the history that is written before a text.

        Raises:
            ValueError: The chat template refuses the messages.
        """
        parts = []
        for exchange in exchanges(earlier) if turn_by_turn else [earlier] if earlier else []:
            messages = [*system, *exchange]
            parts.append(WrittenHistory.in_one_pass(write, self._template.whole(messages), messages))
        return WrittenHistory.turn_by_turn(parts) if turn_by_turn and parts else parts[0] if parts else WrittenHistory()

    def _count(self, history: WrittenHistory, text: Question, value: str) -> None:
        """Count a usable question by what happens to it."""
        self.counts.note(
            len(history.history.ids) > self._rules.max_write_length,
            len(text.ids) > self._rules.max_seq_length,
            not history.history.ids,
            bool(value) and text.value[0] == text.value[1],
        )

    def _question(self, messages: list[Message], value: str, write: str = AFTER, started: bool = False) -> Question:
        """Make a question of a chat that ends with an answer.

        Args:
            messages: The chat.
            value: The part of the answer that matters, or "".
            write: The part of the chat that is written as it is read.
            started: Whether an earlier turn has written the tokens before the first message.

        Raises:
            ValueError: The chat template refuses the messages.
        """
        chat = self._template.whole(messages)
        # Not the length of the prompt: the answer's first token may include the end of the prompt.
        answer = shared_length(chat.ids, self._template.ids(messages[:-1], generation_prompt=True))
        if not answer:
            raise ValueError(
                "the chat template writes no token before the answer, and a model cannot predict the first token of a "
                "text; add text to the question, or give the tokenizer another chat template"
            )
        # The template's tokens at the end are left out, as their text may contain the value as well.
        content = [at for at in range(answer, len(chat.ids)) if chat.sentence_ids[at] >= 0]
        begin, end = (content[0], content[-1] + 1) if content else (answer, len(chat.ids))
        first, last = self._value_tokens(chat.ids[begin:end], value)
        written = written_flags(write, chat, messages, started)
        return Question(chat.ids, answer, (begin + first, begin + last), written)

    def _without_end(self, question: Question, messages: list[Message]) -> Question:
        """Cut the template's tokens off the end of a question whose answer was cut by length.

        Raises:
            ValueError: The question does not end with these tokens, or nothing of the answer would be left.
        """
        ending = self._template.ending(messages).ids
        count = len(question.ids) - len(ending)
        if question.ids[count:] != ending or count <= question.answer:
            raise ValueError(
                "it has cut: true, and the tokens that end its answer cannot be separated from it; leave out cut"
            )
        written = question.written if isinstance(question.written, bool) else question.written[:count]
        return replace(question, ids=question.ids[:count], written=written)

    def _value_tokens(self, ids: list[int], value: str) -> tuple[int, int]:
        """Find the tokens `[first, last)` of the last mention of a value; `(0, 0)` if there is none."""
        text = self._tokenizer.decode(ids)
        begin = text.rfind(value) if value else -1
        if begin < 0:
            return 0, 0
        beginnings = [self._tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
        # If a token ends within a character, the text of the tokens so far is not a beginning of the whole text.
        first = max(count for count, part in enumerate(beginnings) if text[:begin].startswith(part))
        last = min(count for count, part in enumerate(beginnings) if part.startswith(text[: begin + len(value)]))
        return first, last
