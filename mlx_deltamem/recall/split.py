"""The split of values, keys and phrasings into those for training and those held out for tests."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["train", "held_out"]
SIDES: tuple[Side, ...] = ("train", "held_out")

HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class Split:
    """The sides that values, keys and phrasings are drawn from, chosen separately.

    `keys.yaml` and `shared.yaml` give the sides of keys and phrasings; `side_of` gives the side of a value.

    Raises:
        ValueError: A side is neither `train` nor `held_out`.
    """

    values: Side = "train"
    keys: Side = "train"
    phrasings: Side = "train"

    def __post_init__(self) -> None:
        check_sides(vars(self))


def check_sides(sides: Mapping[str, str]) -> None:
    """Check the sides of a split.

    Raises:
        ValueError: A side is neither `train` nor `held_out`.
    """
    for name, side in sides.items():
        if side not in SIDES:
            raise ValueError(f"{name} of a split is {side!r}; expected one of {', '.join(SIDES)}")


def side_of(value: str) -> Side:
    """Return the side of a value.

    It depends on a hash of the value alone, so that it stays the same when lists change. About `HELD_OUT_SHARE` of all
    values are held out.
    """
    number = int.from_bytes(hashlib.sha256(value.casefold().encode()).digest()[:8])
    return "held_out" if number < HELD_OUT_SHARE * 2**64 else "train"


def on_side(values: Iterable[str], side: Side) -> tuple[str, ...]:
    """Return the values that are on a side, in order."""
    return tuple(value for value in values if side_of(value) == side)
