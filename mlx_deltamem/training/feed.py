"""The batches of a run, in the form in which mlx-lm's trainer asks for them; between two of them a step has ended."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import mlx.core as mx

from mlx_deltamem.training.batches import Batch, BatchMaker
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.order import BatchOrder


class Feed:
    """What mlx-lm's trainer takes as `iterate_batches`, for the training data and for the held-out data.

    Args:
        maker: Makes the batches.
        seed: Decides the order of the training data.
        first: The number of the training batch to go on from.
        held_out: So many batches of the held-out data, -1 for all. A process may have no share of a short one, but goes
            as far as the others, with which it talks between batches.
        between: Called before each batch with the number of training batches that are done.
    """

    def __init__(self, maker: BatchMaker, seed: int, first: int, held_out: int, between: Callable[[int], None]):
        self._maker = maker
        self._seed = seed
        self._first = first
        self._held_out = None if held_out < 0 else held_out
        self._between = between
        self._done = first
        # Of the training batches so far: the tokens in this process's share.
        self.tokens = 0

    def __call__(
        self,
        dataset: Sequence[Episode],
        batch_size: int,
        max_seq_length: int,
        loop: bool = False,
        comm_group: mx.distributed.Group | None = None,
    ) -> Iterator[Batch]:
        """The batches of this process: its share of the rows of each.

        Args:
            dataset: Training episodes, or held-out ones.
            batch_size: Over all processes.
            max_seq_length: mlx-lm's; episodes were cut when they were made.
            loop: Whether this is the training data.
            comm_group: The processes.
        """
        rank, size = (comm_group.rank(), comm_group.size()) if comm_group else (0, 1)
        order = BatchOrder(dataset, batch_size, self._seed if loop else None)
        batches = order.indices(self._first) if loop else islice(order.indices(), self._held_out)
        for indices in batches:
            self._between(self._done)
            if mine := indices[rank::size]:
                batch = self._maker.batch([dataset[index] for index in mine])
                self.tokens += loop * (batch.history_tokens + batch.asked.mask.sum().item())
                yield batch
            self._done += loop
