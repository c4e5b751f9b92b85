"""The split of values, relations and wordings into those for training and those held out for tests.

The side depends on a hash of the text alone (`side_of`), so that it stays the same when others are added. A value has
the same side in `mlx_deltamem.recall`, so that a model can be trained on both kinds of data.
"""

from dataclasses import dataclass

from mlx_deltamem.recall.split import SIDES, Side, check_sides, on_side, side_of


@dataclass(frozen=True)
class Split:
    """The sides that values, relations and wordings are drawn from, chosen separately.

    Wordings are those of statements, questions, updates and deletions. Subjects, small talk and ordinary turns are the
    same on both sides.

    Raises:
        ValueError: A side is neither `train` nor `held_out`.
    """

    values: Side = "train"
    relations: Side = "train"
    wordings: Side = "train"

    def __post_init__(self) -> None:
        check_sides(vars(self))


__all__ = ["SIDES", "Side", "Split", "on_side", "side_of"]
