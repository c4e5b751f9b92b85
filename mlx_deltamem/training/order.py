"""The order of a run's batches. It depends on the seed alone, so that a resumed run continues at its place."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from mlx_deltamem.training.episode import Episode

# Episodes are sorted by length within this many batches at a time.
_BATCHES_AT_A_TIME = 16


def _size(episode: Episode) -> tuple[int, int, int]:
    """The key that batches are sorted by: the rough length of the texts, the number of passes, and their length."""
    texts = max(len(question.ids) for question in episode.questions)
    return texts.bit_length(), len(episode.passes), max(len(ids) for ids, _ in episode.passes)


class BatchOrder:
    """The episodes of each batch, epoch after epoch.

    A batch has only episodes that write their questions, or only episodes that do not. Each epoch is a new permutation
    of the episodes. It leaves out the last few of each kind, which do not fill a batch.

    Args:
        episodes: The data set.
        batch_size: The number of episodes in a batch, over all processes.
        seed: The seed of the permutations. None: one epoch in the given order, as far as the two kinds allow. The last
            batch of each kind may then be smaller.

    Raises:
        ValueError: There is a seed, and a kind has fewer episodes than a batch.
    """

    def __init__(self, episodes: Sequence[Episode], batch_size: int, seed: int | None):
        self._sizes = [_size(episode) for episode in episodes]
        self._batch_size = batch_size
        self._seed = seed
        kinds = ([at for at, each in enumerate(episodes) if each.writes_questions is kind] for kind in (False, True))
        self._kinds = [found for found in kinds if found]
        fewest = min(self._kinds, key=len, default=[])
        if seed is not None and len(fewest) < batch_size:
            kind = "written" if fewest and episodes[fewest[0]].writes_questions else "only read"
            which = f" with questions that are {kind}" if len(self._kinds) > 1 else ""
            raise ValueError(
                f"there are {len(fewest)} episodes{which}, fewer than a batch of {batch_size}; "
                "use a smaller --batch-size"
            )

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return sum(len(found) // self._batch_size for found in self._kinds)

    def indices(self, first: int = 0) -> Iterator[list[int]]:
        """Yield the episodes of each batch, from batch `first` on; with a seed, without an end."""
        if self._seed is None:
            # The batches of both kinds, in the order of their first episodes.
            batches = sorted(batch for found in self._kinds for batch in _cut(found, self._batch_size))
            yield from islice(batches, first, None)
            return
        epoch, skipped = divmod(first, self.per_epoch)
        while True:
            yield from islice(self._epoch(np.random.default_rng((self._seed, epoch))), skipped, None)
            epoch, skipped = epoch + 1, 0

    def _epoch(self, generator: np.random.Generator) -> Iterator[list[int]]:
        """Yield the batches of an epoch. Those of one stretch of the permutation have episodes of similar length."""
        batches = []
        for found in self._kinds:
            order = generator.permutation(found)[: len(found) // self._batch_size * self._batch_size]
            for stretch in _cut(order.tolist(), self._batch_size * _BATCHES_AT_A_TIME):
                batches += _cut(sorted(stretch, key=self._sizes.__getitem__), self._batch_size)
        for index in generator.permutation(len(batches)):
            yield batches[index]


def _cut(indices: Sequence[int], length: int) -> list[list[int]]:
    """Cut indices into pieces of a length; the last piece may be shorter."""
    return [list(indices[begin : begin + length]) for begin in range(0, len(indices), length)]
