"""Measurements taken while questions are asked: the effect of the memory, and tokens, seconds and bytes.

Observers watch the layers while texts are read. `Measures` are the sums of a batch of questions, and `Costs` are the
means that a report shows for a condition.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.key_shift import square
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.evaluation.records import MeasuresRow
from mlx_deltamem.sessions.turns.restore import States


class WriteGates:
    """An `Observer` that sums β, the write gate, over the layers and the written tokens."""

    def __init__(self) -> None:
        self._sum, self._count = mx.zeros(()), mx.zeros(())

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if reads.written:
            found, count = reads.sum_over_written(reads.gates.write)
            self._sum, self._count = self._sum + found.sum(), self._count + count.sum()

    def evaluate(self, *_: int) -> None:
        """Compute the sums, which releases the activations they depend on. Also usable as a `Progress`."""
        mx.eval(self._sum, self._count)

    @property
    def count(self) -> int:
        """The number of summands: written tokens times layers."""
        return int(_number(self._count))

    @property
    def sum(self) -> float:
        """The sum of β over written tokens and layers."""
        return _number(self._sum)


class Corrections:
    """An `Observer` that sums ‖Δo‖ / ‖o‖ over the layers and the tokens of prompts.

    Padding reads nothing and adds nothing. Calls with a single token are ignored: they are the steps of a reply, which
    must not become slower.
    """

    def __init__(self) -> None:
        self._sum = mx.zeros(())

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if output.shape[1] > 1:
            # Added to zeros: beside a large output, rounding would lose a small correction.
            delta = reads.correct("o_proj", mx.zeros_like(output))
            self._sum = self._sum + (_row_norms(delta) / _row_norms(output)).sum()

    def evaluate(self) -> None:
        """Compute the sum, which releases the activations it depends on."""
        mx.eval(self._sum)

    @property
    def sum(self) -> float:
        """The sum of ‖Δo‖ / ‖o‖ over tokens and layers."""
        return _number(self._sum)


def corrects_output(model: nn.Module) -> bool:
    """Whether the adapter of an attached model corrects the attention output."""
    return "o" in attachment_of(model).config.delta_heads


def mean_norm(states: States) -> float:
    """The mean Frobenius norm of the states' matrices, over the layers that have a memory; 0 if there is none."""
    norms = [mx.linalg.norm(square(state)) for state in states if state.shape[-1]]
    return _number(mx.stack(norms).mean()) if norms else 0.0


def state_bytes(states: States) -> int:
    """The bytes of a memory as a file of safetensors."""
    file = io.BytesIO()
    mx.save_safetensors(file, {str(index): state for index, state in enumerate(states)})
    return len(file.getvalue())


@dataclass
class Measures:
    """Sums over a batch of questions.

    Attributes:
        prompt_tokens, prompt_seconds: Tokens of histories and prompts that were run, and the time. A text that
            questions share counts once. 0 for chats, which read and generate in turn.
        reply_tokens, reply_seconds: Generated tokens, and the time; likewise.
        peak_memory: The most memory in use, in bytes.
        beyond_window: The number of prompts longer than the model's window.
        write, written: The sum of β over the written tokens of histories and shared text and over the layers, and the
            number of summands.
        correction, corrected: The sum of ‖Δo‖ / ‖o‖ over the tokens of the questions and over the layers, and the
            number of summands.
        norm, prompts: The sum over the questions of ‖S‖, the layers' mean norm of the state before the question, and
            the number of questions.
        kept_bytes: The sum over the questions of the bytes that are kept between the history and the question.
        memory_bytes: The sum over the questions of the bytes of a memory, also of conditions that keep none.
        turns: The sum over the questions of the turns of the history.
        read_tokens: The sum over the questions of the tokens of the prompt, also of text that questions share.
        told_seconds: The sum over the questions of the time in which the history is taken in: written into the memory,
            indexed or summarised.
        asked_seconds: The sum over the questions of the time from the question to the end of the reply. In a batch it
            is a question's share of the time. The time for text that questions share counts for each of them.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reply_tokens: int = 0
    reply_seconds: float = 0.0
    peak_memory: int = 0
    beyond_window: int = 0
    write: float = 0.0
    written: int = 0
    correction: float = 0.0
    corrected: int = 0
    norm: float = 0.0
    prompts: int = 0
    kept_bytes: int = 0
    memory_bytes: int = 0
    turns: int = 0
    read_tokens: int = 0
    told_seconds: float = 0.0
    asked_seconds: float = 0.0

    def add_gates(self, gates: WriteGates) -> None:
        """Add the write gates of a text that was written."""
        self.write += gates.sum
        self.written += gates.count


@dataclass(frozen=True)
class Costs:
    """The cost of a condition, and the effect of the memory under it. None: nothing of the kind was measured.

    Attributes:
        prompt_tps, reply_tps: Tokens per second, read and generated, over all questions that ran together.
        peak_memory: The most memory in use, in bytes.
        beyond_window: The number of prompts longer than the model's window.
        write: The mean of β, the write gate, over the layers and the written tokens of histories.
        norm: ‖S‖, the mean Frobenius norm of the layers' states just before a question.
        correction: ‖Δo‖ / ‖o‖, the mean over the layers and the tokens of questions.
        kept_bytes, memory_bytes, turns, read_tokens, told_seconds, asked_seconds: Means over the questions; see
            `Measures`.
    """

    prompt_tps: float | None
    reply_tps: float | None
    peak_memory: int
    beyond_window: int
    write: float | None
    norm: float | None
    correction: float | None
    kept_bytes: float | None = None
    memory_bytes: float | None = None
    turns: float | None = None
    read_tokens: float | None = None
    told_seconds: float | None = None
    asked_seconds: float | None = None


def sum_up(rows: Iterable[MeasuresRow]) -> Costs:
    """The costs of a condition from the measures of its batches."""
    found = list(rows)
    return Costs(
        prompt_tps=_ratio((row["prompt_tokens"], row["prompt_seconds"]) for row in found),
        reply_tps=_ratio((row["reply_tokens"], row["reply_seconds"]) for row in found),
        peak_memory=max((row["peak_memory"] for row in found), default=0),
        beyond_window=sum(row["beyond_window"] for row in found),
        write=_ratio((row["write"], row["written"]) for row in found),
        norm=_ratio((row["norm"], row["prompts"]) for row in found),
        correction=_ratio((row["correction"], row["corrected"]) for row in found),
        kept_bytes=_ratio((row["kept_bytes"], row["prompts"]) for row in found),
        memory_bytes=_ratio((row["memory_bytes"], row["prompts"]) for row in found),
        turns=_ratio((row["turns"], row["prompts"]) for row in found),
        read_tokens=_ratio((row["read_tokens"], row["prompts"]) for row in found),
        told_seconds=_ratio((row["told_seconds"], row["prompts"]) for row in found),
        asked_seconds=_ratio((row["asked_seconds"], row["prompts"]) for row in found),
    )


def _ratio(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The sum of the first numbers divided by the sum of the second; None if that is 0."""
    above, below = (sum(numbers) for numbers in zip((0.0, 0.0), *pairs, strict=True))
    return above / below if below else None


def _row_norms(x: mx.array) -> mx.array:
    return mx.linalg.norm(x.astype(mx.float32), axis=-1)


def _number(scalar: mx.array) -> float:
    return cast(float, scalar.item())
