"""Questions asked as a user asks them: in a chat, after the turns that told what they are about."""

import time
from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.decoding import Reply
from mlx_deltamem.evaluation.effects import mean_norm
from mlx_deltamem.evaluation.measures import Measures
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.sessions.history import History
from mlx_deltamem.sessions.session import ChatSession


class Chats:
    """Asks questions in chats.

    The user's messages of a question's history are said one after the other, and the model replies to each in its own
    words, greedily. The replies in the history are used only where the question asks for it
    (`Question.given_replies`). Then the question is asked; no stop text ends the reply early.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer, with a chat template.
        write: What of each turn is written into the memory, one of `WRITES`.
        reply_tokens: The longest reply before the question.
        prefill_step_size: The most tokens of a message to run at a time.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, write: str, reply_tokens: int, prefill_step_size: int
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._write = write
        self._reply_tokens = reply_tokens
        self._step = prefill_step_size
        # The last history that was told, and the chat after it: questions of a group follow each other.
        self._told: tuple[tuple[str, History], ChatSession] | None = None

    def ask(self, asked: Sequence[tuple[Question, Sampler]], history: History) -> tuple[list[Reply], Measures]:
        """Ask some questions, each in a chat of its own.

        Args:
            asked: The questions, and what draws the tokens of each reply.
            history: What the chats see of earlier turns.

        Returns:
            A reply to each, and what was measured on the way.
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
            measures.prompt_tokens += len(turn.opening.ids)
            measures.reply_tokens += last.generation_tokens
            measures.reply_seconds += time.perf_counter() - begun
            ending = "length" if last.finish_reason == "length" else "end"
            replies.append(Reply(turn.reply, last.generation_tokens, ending, turn.reply_ids))
        measures.peak_memory = mx.get_peak_memory()
        return replies, measures

    def _chat(self, question: Question, history: History, measures: Measures) -> ChatSession:
        """The chat in which a question's history has been told."""
        key = (question.group, history)
        if self._told is None or self._told[0] != key:
            self._told = None
            begun = time.perf_counter()
            chat = self._tell(question, history)
            measures.prompt_tokens += len(chat.segments.ids)
            measures.prompt_seconds += time.perf_counter() - begun
            self._told = key, chat
        return self._told[1]

    def _tell(self, question: Question, history: History) -> ChatSession:
        system = "\n".join(message["content"] for message in question.system) if question.system else None
        chat = ChatSession(self._model, self._tokenizer, system, history, self._write)
        messages = [*question.history[len(question.system) :], None]
        for place, (message, following) in enumerate(pairwise(messages), len(question.system)):
            if message["role"] != "user":
                continue
            chat.send(message["content"], self._reply_tokens, prefill_step_size=self._step)
            if following is not None and place + 1 in question.given_replies:
                chat.edit(-1, following["content"])
        return chat
