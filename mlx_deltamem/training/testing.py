"""Tests an adapter on records that no run has seen, as `mlx_lm.lora --test` does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_deltamem.adapters.card.folder import load_with_card
from mlx_deltamem.core.model import attach_adapter, attached_attention, detach
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.show.progress import Counted
from mlx_deltamem.training import passes, processes
from mlx_deltamem.training.accuracy import Accuracy
from mlx_deltamem.training.batches import BatchMaker, Feed
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.logits import head_at_positions
from mlx_deltamem.training.loss import answer_losses
from mlx_deltamem.training.prepare import freeze_all_but_adapter

# The exponential of a larger loss is infinite as a float.
_LARGEST_LOSS = 709.0


@dataclass(frozen=True)
class Tested:
    """The result of a test.

    Attributes:
        loss: The mean cross-entropy of the answer tokens, in nats; each token counts once, whatever the weights of
            values and records. NaN if there are none.
        frozen_loss: The same of the frozen model, which reads only the text that stays visible.
        tokens: The number of answer tokens; questions with the frozen model as their target have none.
        accuracy: The shares of right answers, as `Accuracy.take` returns them.
    """

    loss: float
    frozen_loss: float
    tokens: int
    accuracy: dict[str, float]

    @property
    def perplexity(self) -> float:
        """The perplexity of the answer tokens."""
        return _exponential(self.loss)

    @property
    def frozen_perplexity(self) -> float:
        """The perplexity that the frozen model has for them."""
        return _exponential(self.frozen_loss)


def _exponential(loss: float) -> float:
    return math.inf if loss > _LARGEST_LOSS else math.exp(loss)


def measure_test(
    model: nn.Module, episodes: Sequence[Episode], batch_size: int, batches: int = -1, progress: Counted | None = None
) -> Tested:
    """Ask the questions of episodes: with their histories in the memory, and of the frozen model without them.

    All processes of a run take part, and get the same result.

    Args:
        model: An attached model.
        episodes: One or more episodes.
        batch_size: The number of episodes in a batch, over all processes.
        batches: The number of batches, in the order of the episodes; -1 for all.
        progress: Called after each batch.
    """
    kinds = sorted({question.kind for each in episodes for question in each.questions} - {""})
    accuracy, totals = Accuracy(kinds), mx.zeros(3)
    feed = Feed(BatchMaker(attachment_of(model).config, kinds=kinds), 0, 0, batches, lambda _: None)
    model.eval()
    with head_at_positions(model):
        for batch in feed(episodes, batch_size, 0, comm_group=mx.distributed.init()):
            asked = batch.asked
            states = passes.of_rows(passes.write(model, batch), batch.rows)
            logits = passes.read(model, states, asked, writes=batch.writes)
            frozen = passes.read(model, passes.empty(model), asked)
            accuracy.add(logits, asked)
            if batch.frozen is not None:
                rows = batch.frozen.rows
                accuracy.add_frozen(logits[rows], frozen[rows], asked.of_rows(rows), batch.frozen)
            counted = asked.weights > 0
            losses = [(answer_losses(each, asked) * counted).sum() for each in (logits, frozen)]
            totals = totals + mx.stack([*losses, counted.sum().astype(mx.float32)])
            mx.eval(totals)
            if progress is not None:
                progress("testing", 1)
    loss, frozen_loss, tokens = processes.sum_of(*totals)
    of_tokens = tokens or math.nan
    return Tested(loss / of_tokens, frozen_loss / of_tokens, round(tokens), accuracy.take())


def put_back(model: nn.Module, folder: Path) -> None:
    """Give a model the adapter that a run has ended with, as it is stored in the run's folder.

    That adapter may be the best one and not the last one, and it may have been rounded when it was stored.

    Args:
        model: The trained model.
        folder: The folder of the run, which the first process reads. The others get the weights from it.

    Raises:
        OSError: The adapter cannot be read.
        ValueError: It is damaged.
    """
    if processes.is_first():
        adapter = load_with_card(folder)
        detach(model)
        attach_adapter(model, adapter)
    freeze_all_but_adapter(model)
    for attention in attached_attention(model).values():
        attention.delta_mem.update(tree_map(_of_first, attention.delta_mem.parameters()))
    mx.eval(model.parameters())


def _of_first(weight: mx.array) -> mx.array:
    mine = weight if processes.is_first() else mx.zeros_like(weight)
    return mx.distributed.all_sum(mine, stream=mx.cpu)
