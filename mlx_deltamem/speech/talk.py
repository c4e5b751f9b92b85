"""Sentences around facts, for all relations, from `talk.yaml`."""

from functools import cache
from importlib.resources import files

import yaml

from .split import Side, on_side
from .wording import slots, wording_id

SHARED = "shared"
# The slots of messages that leave out what the conversation has said, by their use.
SHORT = {
    "next": {"value", "subject"},
    "next_joined": {"value", "subject"},
    "changed_value": {"value", "old"},
    "corrected_value": {"value", "old"},
    "changed_subject": {"value", "old", "subject"},
    "corrected_subject": {"value", "old", "subject"},
}
# The uses with wordings that are split; the others are the same on both sides.
_SPLIT = {"forget", "ask", "change", "correct", *SHORT}
_SLOTS = {"forget": {"topic"}, "ask": {"about", "topic"}, "answer": {"value"}, "answer_own": {"value"}, **SHORT}


@cache
def talk(use: str, side: Side) -> tuple[str, ...]:
    """Return the lines of a use; those of a side, if the use is split."""
    lines = _all()[use]
    return on_side(lines, side) if use in _SPLIT else lines


def talk_id(use: str, template: str) -> str:
    """Return the name of a wording for all relations."""
    return wording_id(SHARED, use, template)


def use_of(name: str) -> str | None:
    """Return the use of a wording for all relations, by its name; None for a wording of a relation."""
    owner, use, _ = name.split("/")
    return use if owner == SHARED else None


@cache
def _all() -> dict[str, tuple[str, ...]]:
    read = yaml.safe_load(files(__package__).joinpath("talk.yaml").read_text(encoding="utf-8"))
    found = {use: tuple(text.rstrip("\n").split("\n")) for use, text in read.items()}
    for use, lines in found.items():
        for line in lines:
            if not slots(line) <= _SLOTS.get(use, set()):
                raise ValueError(
                    f"talk.yaml, {use}, has {line!r}; expected only the slots {sorted(_SLOTS.get(use, set()))}"
                )
    return found
