"""Optimizers with clipped gradients, and the learning rate schedule of a run (facts 3.5)."""

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.tuner.utils import build_schedule

from mlx_deltamem.training.settings import WITHOUT_DECAY

# The cosine decay ends at this share of the peak learning rate.
_LAST_SHARE = 0.01


# By the names of `settings.OPTIMIZERS`, the class of mlx-lm's optimizer and its arguments besides the learning rate.
# By default MLX does not correct the bias of Adam's moments, and the early steps are several times too large; and its
# Adafactor ignores the learning rate.
_KINDS: dict[str, tuple[type[optim.Optimizer], dict[str, bool]]] = {
    "adamw": (optim.AdamW, {"bias_correction": True}),
    "adam": (optim.Adam, {"bias_correction": True}),
    "muon": (optim.Muon, {}),
    "sgd": (optim.SGD, {}),
    "adafactor": (optim.Adafactor, {"relative_step": False}),
}


class ClippedOptimizer(optim.Optimizer):
    """An optimizer of MLX that clips the gradients by their global norm first, and keeps that norm in its state.

    `clipped_optimizer` makes one. Its class inherits from this class and from MLX's.
    """

    max_norm: float

    def update(self, model: nn.Module, gradients: dict) -> None:
        clipped, norm = optim.clip_grad_norm(gradients, self.max_norm)
        super().update(model, clipped)
        # A compiled step returns the optimizer's state.
        self.state["gradient_norm"] = norm

    @property
    def gradient_norm(self) -> float:
        """The norm of the gradients of the last update before clipping; 0 before the first update."""
        return float(self.state.get("gradient_norm", mx.array(0.0)))


def clipped_optimizer(
    name: str, learning_rate: float, steps: int, warmup: int, weight_decay: float, max_norm: float
) -> ClippedOptimizer:
    """Make the optimizer of a run.

    Args:
        name: One of `settings.OPTIMIZERS`.
        learning_rate: The peak learning rate.
        steps: The updates of the whole run. The rate rises linearly for `warmup` of them, then decays along a cosine.
        warmup: The updates of the warm-up.
        weight_decay: The weight decay; it is ignored for those of `WITHOUT_DECAY`.
        max_norm: The gradients are scaled down to this norm.
    """
    kind, options = _KINDS[name]
    schedule = {
        "name": "cosine_decay",
        "arguments": [learning_rate, max(steps - warmup, 1), learning_rate * _LAST_SHARE],
        "warmup": warmup,
    }
    arguments: dict[str, object] = {**options, "learning_rate": build_schedule(schedule)}
    if name not in WITHOUT_DECAY:
        arguments["weight_decay"] = weight_decay
    # The class is made here, so that MLX's own method follows the clipping in the order of inheritance.
    clipped = type(f"Clipped{kind.__name__}", (ClippedOptimizer, kind), {})
    optimizer = cast(ClippedOptimizer, cast(Any, clipped)(**arguments))
    optimizer.max_norm = max_norm
    return optimizer
