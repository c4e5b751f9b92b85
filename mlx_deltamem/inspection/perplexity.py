"""How well a model with an adapter predicts a text, beside the frozen model."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import RenderableType

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.use import writing
from mlx_deltamem.evaluation.tasks.health import (
    CARRIED_READ,
    CARRIED_WRITTEN,
    MEANINGS,
    WRITTEN,
    Checkup,
    perplexity_ratio,
)
from mlx_deltamem.sessions.turns.restore import States
from mlx_deltamem.show.tables import columns, number

# Tokens in a call of the model: their logits are in memory at once.
_STEP = 256


@dataclass(frozen=True)
class Perplexities:
    """The perplexities of a text.

    Attributes:
        tokens: The number of predicted tokens: all but the first.
        frozen: The perplexity of the frozen model.
        written: That of the model with the adapter, if the text is written as it is read, from an empty memory on.
        carried_read: If the text is only read, with the facts of another chat in the memory.
        carried_written: If it is written as it is read, with these facts in the memory.
    """

    tokens: int
    frozen: float
    written: float
    carried_read: float
    carried_written: float

    def table(self) -> RenderableType:
        """The perplexities, and their ratios to the frozen model's."""
        shown = columns("Perplexity of the text", "the text is", "perplexity", "÷ frozen", texts=(0,))
        shown.add_row("read by the frozen model", number(self.frozen), "1")
        for way in (WRITTEN, CARRIED_READ, CARRIED_WRITTEN):
            found = getattr(self, way)
            shown.add_row(MEANINGS[way], number(found), number(found / self.frozen))
        return shown


def text_perplexities(model: nn.Module, tokenizer: TokenizerWrapper, ids: list[int]) -> Perplexities | None:
    """Measure the perplexities of a text; None if it has fewer than two tokens, so that nothing is predicted.

    The facts in the memory are those of the first chat that `evaluate --tasks health` uses. The text belongs to no
    message, so adapters that write the means of messages or sentences write it token by token.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        ids: The tokens of the text, no more than the model's window.
    """
    if len(ids) < 2:
        return None
    empty = make_prompt_cache(model)[-1].cache
    carried = Checkup(model, tokenizer, texts=1, prompts=0).carried_states()
    return Perplexities(
        tokens=len(ids) - 1,
        # An empty memory that is only read has no effect.
        frozen=_perplexity(model, ids, empty, False),
        written=_perplexity(model, ids, empty, True),
        carried_read=_perplexity(model, ids, carried, False),
        carried_written=_perplexity(model, ids, carried, True),
    )


def _perplexity(model: nn.Module, ids: list[int], states: States, written: bool) -> float:
    """The perplexity of a text that is read with a memory; `inf` if it is not finite."""
    cache, total = make_prompt_cache(model), 0.0
    cache[-1].cache = list(states)
    for begin in range(0, len(ids) - 1, _STEP):
        part = mx.array([ids[begin : min(begin + _STEP, len(ids) - 1)]])
        following = mx.array([ids[begin + 1 : begin + 1 + part.shape[1]]])
        with writing(model, written):
            logits = model(part, cache=cache).astype(mx.float32)
        total += float(np.array(nn.losses.cross_entropy(logits, following).sum()))
        mx.eval([entry.state for entry in cache])
    # Divided by a perplexity of 1, whose loss is 0.
    return perplexity_ratio(total / (len(ids) - 1))
