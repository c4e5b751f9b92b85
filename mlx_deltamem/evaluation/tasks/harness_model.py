"""A model with a memory for lm-evaluation-harness. Importing this module needs the package lm_eval."""

from contextlib import AbstractContextManager, nullcontext

import mlx.nn as nn
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from mlx_lm.evaluate import MLXLM
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.use import read_only
from mlx_deltamem.sessions.template.text import has_template, rendered
from mlx_deltamem.sessions.text.messages import Message

# The runs of the reference had thinking switched off.
_OPTIONS: dict[str, object] = {"enable_thinking": False}
# Marks the end of a message.
_END = "THE_REPLY_GOES_ON_HERE "


class MemoryLM(MLXLM):
    """mlx-lm's model for the harness, with a memory that is empty at the beginning of each request.

    mlx-lm asks the model for a new prompt cache for each request, and the cache contains the memory. If several endings
    of one prompt are compared, each continues from a copy of the cache.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        writes: Whether prompts and replies are written. If not, the model behaves like its frozen backbone.
        batch_size: The number of prompts in a batch.
        max_tokens: The longest reply, and the longest prompt if endings are compared; None: the task's.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        writes: bool,
        batch_size: int,
        max_tokens: int | None = None,
    ):
        # MLXLM's own __init__ would load a model.
        LM.__init__(self)
        self._model = model
        self.tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self.use_chat_template = has_template(tokenizer)
        self._sampler = None
        self._writes = writes

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """The text of a request, under the limits that templates of chats have.

        Args:
            chat_history: The messages.
            add_generation_prompt: Whether a new reply is asked for; else the last message is the beginning of one.

        Raises:
            ValueError: The template refuses the messages or fails, or takes too long, or writes too much.
        """
        if add_generation_prompt:
            return rendered(self.tokenizer, chat_history, True, _OPTIONS)
        # Transformers finds the end of the last message in this way too, but not in a template that is parsed already.
        *before, last = chat_history
        marked: list[Message] = [*before, {**last, "content": last["content"] + _END}]
        text, found, rest = rendered(self.tokenizer, marked, False, _OPTIONS).rpartition(_END.strip())
        if not found:
            raise ValueError(
                "the chat template leaves out the beginning of a reply; expected that it writes all messages: take a "
                "task without such beginnings (gen_prefix), or another chat template"
            )
        # A template that strips the message has stripped the space of the mark.
        return text if rest.startswith(" ") else text.rstrip()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        with self._memory_use():
            return super().loglikelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        with self._memory_use():
            return super().loglikelihood_rolling(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        with self._memory_use():
            return super().generate_until(requests)

    def _memory_use(self) -> AbstractContextManager[None]:
        return nullcontext() if self._writes else read_only(self._model)
