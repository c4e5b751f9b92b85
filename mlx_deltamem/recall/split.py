"""Which values, keys and phrasings a model is trained on, and which are kept to test it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["train", "held_out"]
SIDES: tuple[Side, ...] = ("train", "held_out")

HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class Split:
    """The side of values, of keys and of phrasings, each chosen on its own.

    Keys and phrasings are on the side that `keys.yaml` and `shared.yaml` give them; values are on `side_of(value)`.
    """

    values: Side = "train"
    keys: Side = "train"
    phrasings: Side = "train"

    def __post_init__(self) -> None:
        check_sides(vars(self))


def check_sides(sides: Mapping[str, str]) -> None:
    """Check the sides of a split, by the name of what is split.

    Raises:
        ValueError: One is no side.
    """
    for name, side in sides.items():
        if side not in SIDES:
            raise ValueError(f"{name} of a split is {side!r}; it must be one of {', '.join(SIDES)}")


def side_of(value: str) -> Side:
    """Return the side of a value: a hash of the value alone, so that no list can move it, whatever it is listed with.

    About `HELD_OUT_SHARE` of all values are held out.
    """
    number = int.from_bytes(hashlib.sha256(value.casefold().encode()).digest()[:8])
    return "held_out" if number < HELD_OUT_SHARE * 2**64 else "train"


def on_side(values: Iterable[str], side: Side) -> tuple[str, ...]:
    """Return those of `values` that are on a side, in their order."""
    return tuple(value for value in values if side_of(value) == side)
