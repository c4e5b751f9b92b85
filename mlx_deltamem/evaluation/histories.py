"""The memories that hold the histories of questions. Each history is written once, from an empty memory."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.nn as nn

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.use import observing
from mlx_deltamem.evaluation.effects import Measures, WriteGates, state_bytes
from mlx_deltamem.evaluation.prompts import Prompts
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.sessions.reading.prefill import window, write_text
from mlx_deltamem.sessions.text.segments import Segments, start_length
from mlx_deltamem.sessions.turns.restore import States


@dataclass(frozen=True)
class Written:
    """A history in the memory.

    Attributes:
        states: The memory by layer index.
        gates: The write gates of its tokens.
        seconds: The time that it took to write.
        bytes: The bytes of the memory as a file.
    """

    states: States
    gates: WriteGates
    seconds: float
    bytes: int


class Histories:
    """Writes the histories of groups of questions.

    Args:
        model: An attached model.
        prompts: Makes the tokens of histories.
        questions: For each group, a question with the group's history.
        step: The most tokens in one call of the model.
        visible: The most tokens of text that are visible while a history is written. None: the model's window.
    """

    def __init__(
        self, model: nn.Module, prompts: Prompts, questions: Mapping[str, Question], step: int, visible: int | None
    ):
        self._model = model
        self._prompts = prompts
        self._questions = questions
        self._step = step
        self._visible = visible
        self._written: dict[str, Written] = {}

    def written(self, group: str, measures: Measures) -> Written:
        """The memory after the history of a group.

        Args:
            group: The group.
            measures: The tokens of the history are added if it is written now.
        """
        if group not in self._written:
            history = self._prompts.history(self._questions[group])
            states, gates = make_prompt_cache(self._model)[-1].cache, WriteGates()
            begun = time.perf_counter()
            if history.ids:
                with observing(self._model, gates):
                    seen = self._seen_of(history)
                    states = write_text(self._model, states, history, True, seen, self._step, gates.evaluate)
                measures.prompt_tokens += len(history.ids)
            seconds = time.perf_counter() - begun
            self._written[group] = Written(states, gates, seconds, state_bytes(states))
        return self._written[group]

    def _seen_of(self, history: Segments) -> int:
        """The most tokens of a history that are visible while it is written, beside the system prompt."""
        if self._visible is not None:
            return self._visible
        longest = window(self._model)
        return max(1, len(history.ids) if longest is None else longest - start_length(history))
