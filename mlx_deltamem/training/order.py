"""The order of a run's batches, which depends on the seed alone, so that a run can go on anywhere in it."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from mlx_deltamem.training.episode import Episode

# Batches are made of episodes of like length, out of this many batches' worth at a time.
_BATCHES_AT_A_TIME = 16


def _size(episode: Episode) -> tuple[int, int, int]:
    """What episodes of a batch should have in common: roughly how long the texts are, then in how many passes the
    history is written, then how long these are."""
    texts = max(len(question.ids) for question in episode.questions)
    return texts.bit_length(), len(episode.passes), max(len(ids) for ids, _ in episode.passes)


class BatchOrder:
    """Which episodes make up which batch, epoch after epoch.

    Episodes whose texts are written and others are never in one batch. Every epoch is another permutation of the
    episodes, without the last few of each kind, which fill no batch.

    Args:
        episodes: The data set.
        batch_size: Episodes per batch, over all processes.
        seed: Decides the order; None keeps the given one, as far as kinds allow, and ends after one pass, the last
            batch of each kind may be smaller.

    Raises:
        ValueError: There are fewer episodes of a kind than a batch needs.
    """

    def __init__(self, episodes: Sequence[Episode], batch_size: int, seed: int | None):
        self._sizes = [_size(episode) for episode in episodes]
        self._batch_size = batch_size
        self._seed = seed
        # Of those whose texts are only read, and of those whose texts are written.
        kinds = ([at for at, each in enumerate(episodes) if each.writes_questions is kind] for kind in (False, True))
        self._kinds = [found for found in kinds if found]
        fewest = min(self._kinds, key=len, default=[])
        if seed is not None and len(fewest) < batch_size:
            kind = "written" if fewest and episodes[fewest[0]].writes_questions else "only read"
            which = f" whose texts are {kind}" if len(self._kinds) > 1 else ""
            raise ValueError(
                f"there are {len(fewest)} episodes{which}, fewer than a batch of {batch_size}; "
                "use a smaller --batch-size"
            )

    @property
    def per_epoch(self) -> int:
        """Batches per epoch."""
        return sum(len(found) // self._batch_size for found in self._kinds)

    def indices(self, first: int = 0) -> Iterator[list[int]]:
        """The episodes of each batch, from the batch of this number on; without an end, unless there is no seed."""
        if self._seed is None:
            # In the order of their first episodes.
            batches = sorted(batch for found in self._kinds for batch in _cut(found, self._batch_size))
            yield from islice(batches, first, None)
            return
        epoch, skipped = divmod(first, self.per_epoch)
        while True:
            yield from islice(self._epoch(epoch), skipped, None)
            epoch, skipped = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[list[int]]:
        """The batches of an epoch; those of one stretch of the data are of like length."""
        generator = np.random.default_rng((self._seed, epoch))
        batches = []
        for found in self._kinds:
            order = generator.permutation(found)[: len(found) // self._batch_size * self._batch_size]
            for stretch in _cut(order.tolist(), self._batch_size * _BATCHES_AT_A_TIME):
                batches += _cut(sorted(stretch, key=self._sizes.__getitem__), self._batch_size)
        for index in generator.permutation(len(batches)):
            yield batches[index]


def _cut(indices: Sequence[int], length: int) -> list[list[int]]:
    """Pieces of a length; the last may be shorter."""
    return [list(indices[begin : begin + length]) for begin in range(0, len(indices), length)]
