"""Checks of the training data before a run begins."""

from collections.abc import Sequence

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.training import processes
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.order import BatchOrder
from mlx_deltamem.training.settings import Schedule


def check_data(
    episodes: Sequence[Episode], held_out: Sequence[Episode], schedule: Schedule, config: DeltaMemConfig
) -> None:
    """Check that batches can be made of the training data, and that the adapter can write what it is to.

    Raises:
        ValueError: There are too few episodes, the processes cannot share a batch evenly, or texts or turns are to be
            written by an adapter that does not write tokens.
    """
    if schedule.batch_size % processes.count():
        raise ValueError(
            f"--batch-size is {schedule.batch_size}; expected a multiple of the {processes.count()} processes"
        )
    BatchOrder(episodes, schedule.batch_size, schedule.seed)
    granularity = config.memory_write_granularity
    if granularity == "token":
        return
    if any(episode.writes_questions for episode in (*episodes, *held_out)):
        raise ValueError(
            f"the adapter writes by {granularity}, and texts can be written as they are read by token only; expected "
            "--write after or none, and no other in records"
        )
    if any(episode.turns for episode in (*episodes, *held_out)):
        raise ValueError(
            f"the adapter writes by {granularity}, and histories can be written turn by turn by token only; leave out "
            "--turn-by-turn, in records too"
        )
