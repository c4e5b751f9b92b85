"""The names and values of a conversation, so that no value can be taken for another."""

from collections.abc import Callable, Iterable

from .split import Side, side_of
from .wording import contains, words

_TRIES = 300


class Distinct:
    """The texts that a conversation names so far: values, and the people and things that they belong to."""

    def __init__(self) -> None:
        self._said: list[tuple[str, ...]] = []

    def add(self, texts: Iterable[str]) -> None:
        """Add texts that later values must not overlap."""
        self._said += map(words, texts)

    def draw(self, value: Callable[[], str], side: Side, asked: Iterable[tuple[str, ...]]) -> str | None:
        """Draw a value that overlaps no text so far and occurs in no question, and add it.

        Args:
            value: Draws a value.
            side: The side of the split that it must be on.
            asked: The words of each question that may be asked.

        Returns:
            The value; None if none was found. There may be few on a side.
        """
        for _ in range(_TRIES):
            drawn = value()
            parts = words(drawn)
            near = any(contains(said, parts) or contains(parts, said) for said in self._said)
            if side_of(drawn) == side and not near and not any(contains(text, parts) for text in asked):
                self._said.append(parts)
                return drawn
        return None
