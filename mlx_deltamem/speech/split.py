"""Which values, relations and wordings a model is trained on, and which are kept to test it, each on its own.

The side of each is a hash of its text alone (`side_of`), so that nothing moves when others are added. A value is on the
side that it has in `mlx_deltamem.recall`, so that both kinds of data can be trained on together.
"""

from dataclasses import dataclass

from mlx_deltamem.recall.split import SIDES, Side, check_sides, side_of


@dataclass(frozen=True)
class Split:
    """The side of values, of relations and of wordings (of statements, questions, updates and wishes to forget).

    Subjects, such as the cousin whose birthday it is, small talk and ordinary turns are the same on every side.

    Raises:
        ValueError: One is neither `train` nor `held_out`.
    """

    values: Side = "train"
    relations: Side = "train"
    wordings: Side = "train"

    def __post_init__(self) -> None:
        check_sides(vars(self))


__all__ = ["SIDES", "Side", "Split", "side_of"]
