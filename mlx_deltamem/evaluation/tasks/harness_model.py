"""mlx-lm's model for lm-evaluation-harness, with a memory. Importing this needs the package lm_eval."""

from contextlib import AbstractContextManager, nullcontext

import mlx.nn as nn
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from mlx_lm.evaluate import MLXLM, chat_template_fn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.use import read_only


class MemoryLM(MLXLM):
    """A model whose memory is empty at the beginning of each request.

    mlx-lm makes a prompt cache for each request by asking the model, so each has a memory of its own; where several
    endings of one prompt are compared, each continues from a copy of it.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        writes: Whether prompts and replies are written. Without, the model is its frozen backbone.
        batch_size: Prompts to run side by side.
        max_tokens: The longest reply and, where endings are compared, the longest prompt; None: as the task says.
    """

    # As in the reference's runs.
    apply_chat_template = chat_template_fn(enable_thinking=False)

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        writes: bool,
        batch_size: int,
        max_tokens: int | None = None,
    ):
        # Not that of MLXLM, which loads a model.
        LM.__init__(self)
        self._model = model
        self.tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self.use_chat_template = tokenizer.has_chat_template
        self._sampler = None
        self._writes = writes

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
