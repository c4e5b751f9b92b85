"""AdamW with gradients clipped by their norm, and the learning rate over a run (facts 3.5)."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.tuner.utils import build_schedule

# Of the learning rate, where the cosine ends.
_LAST_SHARE = 0.01


class ClippedAdamW(optim.AdamW):
    """AdamW that first clips the gradients by their common norm, and keeps that norm in its state.

    Args:
        learning_rate: The highest learning rate.
        steps: The updates of the whole run: the rate rises for `warmup` of them, then falls along a cosine.
        warmup: See `steps`.
        weight_decay: Of AdamW.
        max_norm: The largest norm let through.
    """

    def __init__(self, learning_rate: float, steps: int, warmup: int, weight_decay: float, max_norm: float):
        falling = max(steps - warmup, 1)
        schedule = {
            "name": "cosine_decay",
            "arguments": [learning_rate, falling, learning_rate * _LAST_SHARE],
            "warmup": warmup,
        }
        # MLX leaves the correction out by default: early steps would then be several times too large.
        super().__init__(build_schedule(schedule), weight_decay=weight_decay, bias_correction=True)
        self._max_norm = max_norm

    def update(self, model: nn.Module, gradients: dict) -> None:
        clipped, norm = optim.clip_grad_norm(gradients, self._max_norm)
        super().update(model, clipped)
        # In the state, which a compiled step gives back.
        self.state["gradient_norm"] = norm

    @property
    def gradient_norm(self) -> float:
        """The norm of the last update's gradients before they were clipped; 0 before the first one."""
        return self.state.get("gradient_norm", mx.array(0.0)).item()
