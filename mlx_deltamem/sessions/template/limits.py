"""Limits of a chat template while it runs: its time, and the size of what it writes and keeps."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# Seconds of processor time for one text. A template of a model needs about a thousandth.
_SECONDS = 2.0
# Characters that a template may write, besides twice what it is given.
_CHARACTERS = 1_000_000
# Texts that go into variables count too, and so do the constants of all branches in a loop.
_TIMES = 16
_LARGEST = 2**62
_STEPS_BETWEEN_CHECKS = 64


class TemplateLimitError(Exception):
    """A template did more than its limits allow. Not a ValueError, because filters such as `int` catch those."""


class Budget:
    """The rest of the limits of one text.

    Args:
        given: What the template gets. It is measured only if the template makes much.

    Attributes:
        longest: The characters of the longest text that may be made, and the items of the longest list.
    """

    def __init__(self, given: object):
        self.longest = _CHARACTERS
        self._characters = _TIMES * self.longest
        self._given: object = given
        self._steps = 0
        self._end = time.thread_time() + _SECONDS

    def step(self) -> None:
        """Count a step of the program."""
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_CHECKS == 0 and time.thread_time() > self._end:
            raise TemplateLimitError(f"it ran for more than {_SECONDS:g} seconds")

    def write(self, characters: int) -> None:
        """Count characters that the program writes."""
        self._characters -= characters
        if self._characters < 0:
            self._add_given()
            if self._characters < 0:
                raise _too_long()

    def check(self, length: int) -> None:
        """Check the length of one text or list."""
        if length > self.longest:
            self._add_given()
            if length > self.longest:
                raise _too_long()

    def _add_given(self) -> None:
        """Allow more for a template that gets more."""
        more = 0 if self._given is None else 2 * size(self._given, _LARGEST)
        self._given = None
        self.longest += more
        self._characters += _TIMES * more


def _too_long() -> TemplateLimitError:
    return TemplateLimitError(f"it makes more than {_CHARACTERS:,} characters besides those of the chat")


_BUDGET: ContextVar[Budget | None] = ContextVar("budget of a chat template", default=None)


def budget() -> Budget:
    """The rest of the limits for the text that is written in this thread.

    Raises:
        TemplateLimitError: None is.
    """
    found = _BUDGET.get()
    if found is None:
        raise TemplateLimitError("it runs outside `limited`")
    return found


@contextmanager
def limited(given: object) -> Iterator[Callable[[str], str]]:
    """Limit the guarded templates that run in the block, in this thread.

    Args:
        given: The messages and options that the template gets. More may be written of more.

    Yields:
        A function that checks the text that was written, and returns it.

    Raises:
        TemplateLimitError: A template does more than the limits allow.
    """
    made = Budget(given)

    def checked(text: str) -> str:
        made.check(len(text))
        return text

    token = _BUDGET.set(made)
    try:
        yield checked
    finally:
        _BUDGET.reset(token)


def size(value: object, enough: int) -> int:
    """About the number of characters of a value as text; any number above `enough` if it has more."""
    if isinstance(value, str | bytes):
        return len(value)
    total = 8
    if isinstance(value, Mapping):
        for name, each in value.items():
            total += size(name, enough - total) + size(each, enough - total)
            if total > enough:
                break
    elif isinstance(value, list | tuple):
        for each in value:
            total += size(each, enough - total)
            if total > enough:
                break
    return total
