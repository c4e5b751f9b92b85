"""Sentences around facts, the same for all relations; `talk.yaml` lists them."""

from functools import cache
from importlib.resources import files

import yaml

from .split import Side, side_of
from .wording import slots, wording_id

SHARED = "shared"
# What must be learned, and is on a side of the split; the rest is the same on both.
_SPLIT = {"forget", "ask", "change", "correct"}
_SLOTS = {"forget": {"topic"}, "ask": {"about", "topic"}, "absent": {"about"}, "deleted": {"about"}}
_SLOTS["absent_sibling"] = {"about", "sibling"}


@cache
def talk(use: str, side: Side) -> tuple[str, ...]:
    """The lines of a use, on a side where they are split."""
    lines = _all()[use]
    return tuple(line for line in lines if side_of(line) == side) if use in _SPLIT else lines


def shared_questions() -> tuple[str, ...]:
    """The questions that can be asked about any relation."""
    return _all()["ask"]


def talk_id(use: str, template: str) -> str:
    return wording_id(SHARED, use, template)


@cache
def _all() -> dict[str, tuple[str, ...]]:
    read = yaml.safe_load(files(__package__).joinpath("talk.yaml").read_text(encoding="utf-8"))
    found = {use: tuple(text.rstrip("\n").split("\n")) for use, text in read.items()}
    for use, lines in found.items():
        for line in lines:
            if not slots(line) <= _SLOTS.get(use, set()):
                raise ValueError(
                    f"talk.yaml, {use}, has {line!r}; it may have the slots {sorted(_SLOTS.get(use, set()))}"
                )
    return found
