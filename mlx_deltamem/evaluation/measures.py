"""Sums of tokens, seconds, bytes and memory statistics, collected while questions are asked."""

from dataclasses import dataclass

from mlx_deltamem.evaluation.effects import WriteGates


@dataclass
class Measures:
    """Sums of what was measured; the means are over tokens and layers, and over prompts.

    Attributes:
        prompt_tokens, prompt_seconds: Of histories and prompts as they were run: what is shared is counted once.
        reply_tokens, reply_seconds: Of replies.
        peak_memory: The most memory in use, in bytes.
        beyond_window: Prompts that were longer than the model's window.
        write, written: The sum of β over layers and written tokens of histories and shared text, and their number.
        correction, corrected: The sum of ‖Δo‖ / ‖o‖ over layers and tokens of the questions, and their number.
        norm, prompts: The sum of ‖S‖, the mean norm of the layers' states before a question, and the questions' number.
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

    def add_gates(self, gates: WriteGates) -> None:
        self.write += gates.sum
        self.written += gates.count
