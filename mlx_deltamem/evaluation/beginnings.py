"""The shared beginnings of prompts: text that the questions of a group have in common is read once."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.nn as nn

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.use import observing
from mlx_deltamem.evaluation.effects import Measures, WriteGates
from mlx_deltamem.sessions.reading.prefill import prefill
from mlx_deltamem.sessions.text.segments import Segments


@dataclass
class _Beginning:
    """The shared beginning of a group's prompts under a condition, and the prompt cache after it.

    Attributes:
        key: The group and the condition.
        ids: The tokens.
        cache: The prompt cache after them.
        seconds: The time that it took to read them.
    """

    key: tuple[str, str]
    ids: list[int]
    cache: PromptCache
    seconds: float


class Beginnings:
    """Reads the shared beginnings of prompts, and keeps the last one.

    Args:
        model: An attached model.
        step: The most tokens in one call of the model.
    """

    def __init__(self, model: nn.Module, step: int):
        self._model = model
        self._step = step
        self._last: _Beginning | None = None

    def after(
        self,
        key: tuple[str, str],
        shared: Segments,
        writing: bool,
        empty: Callable[[], PromptCache],
        measures: Measures,
    ) -> PromptCache:
        """A separate prompt cache after a shared beginning.

        Args:
            key: The group of the question, and the condition.
            shared: The beginning; at least one token.
            writing: Whether it is written into the memory.
            empty: Makes the cache before it.
            measures: The tokens and write gates are added if the beginning is read now, the time in any case.
        """
        if self._last is None or self._last.key != key or self._last.ids != shared.ids:
            # Release the old cache before the new one takes memory.
            self._last = None
            begun, gates, cache = time.perf_counter(), WriteGates(), empty()
            with observing(self._model, gates):
                prefill(self._model, cache, shared, writing, self._step, gates.evaluate, want_logits=False)
            measures.add_gates(gates)
            measures.prompt_tokens += len(shared.ids)
            self._last = _Beginning(key, shared.ids, cache, time.perf_counter() - begun)
        measures.asked_seconds += self._last.seconds
        # A deep copy shares its arrays until one side writes.
        return copy.deepcopy(self._last.cache)
