"""Ordinary messages, which have nothing to do with memory.

`ordinary.yaml` has whole messages, patterns, and messages that go on with an earlier exchange ("and in kilos"). Where
the text of a chat is dropped, a model does not see what the last ones mean. It must not take them for questions about
facts.
"""

import random
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product

import yaml

_SLOT = re.compile(r"\{(\w+)\}")
_SHORT = 110
# The share of messages that go on with an earlier exchange.
_FURTHER = 0.25
# The number of messages to draw for one that is not in the conversation yet.
_DRAWS = 1000


@cache
def ordinary_messages() -> tuple[str, ...]:
    """Return every ordinary message: the whole ones, those that go on, then all combinations of patterns and parts."""
    whole, further, patterns, parts = _read()
    combined: list[str] = []
    for pattern in patterns:
        names = _SLOT.findall(pattern)
        for drawn in product(*(parts[name] for name in names)):
            combined.append(_combined(pattern, iter(drawn)))
    return (*whole, *further, *combined)


def ordinary_message(rng: random.Random) -> str:
    """Draw an ordinary message: one that goes on with an earlier exchange, a whole one, or one from a pattern."""
    whole, further, patterns, parts = _read()
    if rng.random() < _FURTHER:
        return rng.choice(further)
    if rng.random() < len(whole) / (len(whole) + 6 * len(patterns)):
        return rng.choice(whole)
    pattern = rng.choice(patterns)
    return _combined(pattern, (rng.choice(parts[name]) for name in _SLOT.findall(pattern)))


def ordinary_messages_for(rng: random.Random, count: int) -> Iterator[str]:
    """Draw the ordinary messages of a conversation, which are all different.

    Raises:
        ValueError: There are not as many messages.
    """
    seen: set[str] = set()
    for _ in range(count):
        message = next((each for _ in range(_DRAWS) if (each := ordinary_message(rng)) not in seen), None)
        if message is None:
            raise ValueError(
                f"a conversation was to have {count} ordinary messages; expected fewer, as they are all different"
            )
        seen.add(message)
        yield message


def short_request(rng: random.Random) -> str:
    """Draw a short question that can be added to another message."""
    return rng.choice(_short())


@cache
def _short() -> tuple[str, ...]:
    whole = _read()[0]
    return tuple(each for each in whole if len(each) < _SHORT and each[:1].isupper() and each.endswith("?"))


def _combined(pattern: str, drawn: Iterator[str]) -> str:
    return _SLOT.sub(lambda match: next(drawn), pattern)


@cache
def _read() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], dict[str, tuple[str, ...]]]:
    read = yaml.safe_load(files(__package__).joinpath("ordinary.yaml").read_text(encoding="utf-8"))
    lists = {name: tuple(text.strip().split("\n")) for name, text in read.items()}
    whole, further, patterns = lists.pop("whole"), lists.pop("further"), lists.pop("patterns")
    for pattern in patterns:
        if unknown := set(_SLOT.findall(pattern)) - set(lists):
            raise ValueError(f"ordinary.yaml has {pattern!r} with {sorted(unknown)}; expected names of its lists")
    return whole, further, patterns, lists
