"""AdamW with clipped gradients, and the learning rate schedule of a run (facts 3.5)."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.tuner.utils import build_schedule

# The cosine decay ends at this share of the peak learning rate.
_LAST_SHARE = 0.01


class ClippedAdamW(optim.AdamW):
    """AdamW that clips the gradients by their global norm first, and keeps that norm in its state.

    Args:
        learning_rate: The peak learning rate.
        steps: The updates of the whole run. The rate rises linearly for `warmup` of them, then decays along a cosine.
        warmup: The updates of the warm-up.
        weight_decay: The weight decay of AdamW.
        max_norm: The gradients are scaled down to this norm.
    """

    def __init__(self, learning_rate: float, steps: int, warmup: int, weight_decay: float, max_norm: float):
        falling = max(steps - warmup, 1)
        schedule = {
            "name": "cosine_decay",
            "arguments": [learning_rate, falling, learning_rate * _LAST_SHARE],
            "warmup": warmup,
        }
        # By default MLX does not correct the bias of the moments, and the early steps are several times too large.
        super().__init__(build_schedule(schedule), weight_decay=weight_decay, bias_correction=True)
        self._max_norm = max_norm

    def update(self, model: nn.Module, gradients: dict) -> None:
        clipped, norm = optim.clip_grad_norm(gradients, self._max_norm)
        super().update(model, clipped)
        # A compiled step returns the optimizer's state.
        self.state["gradient_norm"] = norm

    @property
    def gradient_norm(self) -> float:
        """The norm of the gradients of the last update before clipping; 0 before the first update."""
        return float(self.state.get("gradient_norm", mx.array(0.0)))
