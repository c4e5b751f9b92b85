"""Ask questions the way a user does: in a chat, after turns that tell the history."""

import time
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.baselines.turns import turn_texts
from mlx_deltamem.evaluation.decoding import Ending, GeneratedReply
from mlx_deltamem.evaluation.effects import Measures, mean_norm, state_bytes
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.text.segments import start_length
from mlx_deltamem.sessions.turns.history import History
from mlx_deltamem.sessions.turns.seen import seen_before


class Chats:
    """Asks questions in chats.

    The chat gets the user's messages of the question's history one after the other, and the model replies to each
    greedily. The replies in the history are used only if the question says so (`Question.given_replies`). Then the
    question is asked. Stop texts have no effect.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer, with a chat template.
        write: The part of each turn that is written into the memory, one of `WRITES`.
        reply_tokens: The longest reply before the question, in tokens.
        prefill_step_size: The most tokens of a message in one call of the model.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, write: str, reply_tokens: int, prefill_step_size: int
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._write = write
        self._reply_tokens = reply_tokens
        self._step = prefill_step_size
        # The last chat that was told a history. The questions of a group follow each other and share it.
        self._told: tuple[tuple[str, History], ChatSession] | None = None
        self._told_seconds = 0.0

    def ask(self, asked: Sequence[tuple[Question, Sampler]], history: History) -> tuple[list[GeneratedReply], Measures]:
        """Ask questions, each in a separate chat.

        Args:
            asked: The questions, each with the sampler of its reply.
            history: How much of earlier turns the chats see as text.

        Returns:
            The replies in the order of the questions, and the measures.
        """
        measures = Measures(prompts=len(asked))
        mx.reset_peak_memory()
        replies = []
        for question, sampler in asked:
            chat = self._chat(question, history, measures).fork()
            measures.norm += mean_norm(list(chat.memory.values()))
            begun, step = time.perf_counter(), self._step
            *_, last = chat.stream(question.question, question.max_tokens, sampler=sampler, prefill_step_size=step)
            turn = chat.turns[-1]
            # A chat reads and generates in turn, so it has no speed of either.
            measures.asked_seconds += time.perf_counter() - begun
            self._add_costs(question, chat, history, measures)
            ending: Ending = "length" if last.finish_reason == "length" else "end"
            replies.append(GeneratedReply(turn.reply, last.generation_tokens, ending, turn.reply_ids))
        measures.peak_memory = mx.get_peak_memory()
        return replies, measures

    def _chat(self, question: Question, history: History, measures: Measures) -> ChatSession:
        """The chat after the history of a question."""
        key = (question.group, history)
        if self._told is not None and self._told[0] == key:
            return self._told[1]
        # Release the old chat before the new one takes memory.
        self._told = None
        begun = time.perf_counter()
        chat = self._tell(question, history)
        self._told_seconds = time.perf_counter() - begun
        self._told = key, chat
        return chat

    def _add_costs(self, question: Question, chat: ChatSession, history: History, measures: Measures) -> None:
        """Add the costs of the last turn of a chat, which asked a question."""
        *earlier, turn = chat.turns
        again = seen_before(turn, earlier, history).ids
        visible = again[start_length(earlier[0].opening) if earlier else 0 :]
        measures.turns += len(turn_texts(question))
        measures.read_tokens += len(again) + len(turn.opening.ids)
        measures.told_seconds += self._told_seconds
        memory = state_bytes(list(chat.memory.values()))
        measures.memory_bytes += memory
        measures.kept_bytes += memory + len(self._tokenizer.decode(visible).encode())

    def _tell(self, question: Question, history: History) -> ChatSession:
        system = "\n".join(message["content"] for message in question.system) if question.system else None
        chat = ChatSession(self._model, self._tokenizer, system, history, self._write)
        for place, message in enumerate(question.history):
            if message["role"] == "user":
                chat.send(message["content"], self._reply_tokens, prefill_step_size=self._step)
            elif place in question.given_replies:
                chat.edit(-1, message["content"])
        return chat
