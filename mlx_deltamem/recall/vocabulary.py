"""The vocabulary of episodes, read from the files in this folder: values, keys, phrasings and filler turns."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

import yaml

from .split import SIDES, Side, on_side

_FILES: Traversable = files(__package__)

Phrasings = dict[Side, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Family:
    """The phrasings of a group of keys.

    Attributes:
        name: The name in `keys.yaml`.
        my, your: The key in the words of the user and of the assistant ("my dog's name").
        fact: A clause that tells a value ("my dog is called {value}").
        answer: The answer to every question about a key. It ends with the value and a full stop.
        tell, ask: The phrasings of each side.
        lasting: Whether the fact cannot change, so that an update corrects an error.
    """

    name: str
    my: str
    your: str
    fact: str
    answer: str
    tell: Phrasings
    ask: Phrasings
    lasting: bool

    def update(self, side: Side) -> tuple[str, ...]:
        """Return the phrasings that give a key a new value."""
        return shared().correct[side] if self.lasting else (*shared().change[side], *shared().correct[side])


@dataclass(frozen=True, eq=False)
class Key:
    """A kind of fact.

    Attributes:
        name: The name, for example "dog_name".
        family: The family with its phrasings.
        values: The name of its list of values. Keys with the same list have the same held-out values.
        side: The side of the split.
        blanks: The words for this key in the family's phrasings.
    """

    name: str
    family: Family
    values: str
    side: Side
    blanks: dict[str, str]

    def say(self, phrasing: str, value: str = "") -> str:
        """Fill in a phrasing, as a sentence with a capital."""
        text = self.fill(phrasing, value)
        return text[:1].upper() + text[1:]

    def answer(self, value: str) -> str:
        """Return the answer to a question about this key."""
        return self.fill(self.family.answer, value)

    def fill(self, phrasing: str, value: str = "") -> str:
        """Fill in a phrasing, without changing its first letter."""
        blanks = {"value": value, "a_value": with_article(value)}
        for name, text in self.blanks.items():
            blanks |= {name: text, name.capitalize(): text[:1].upper() + text[1:], f"a_{name}": with_article(text)}
        for name in ("my", "your", "fact"):
            blanks[name] = getattr(self.family, name).format_map(blanks)
        return phrasing.format_map(blanks)


@dataclass(frozen=True)
class Shared:
    """The phrasings for all keys.

    Attributes:
        change, correct, delete: The phrasings of each side to change, correct and delete a fact.
        absent, deleted: The answers to questions about a fact that was never told, and about a deleted fact.
        acknowledge, forget: The replies to a fact, and to the wish to forget a fact.
    """

    change: Phrasings
    correct: Phrasings
    delete: Phrasings
    absent: str
    deleted: str
    acknowledge: tuple[str, ...]
    forget: tuple[str, ...]


def with_article(noun: str) -> str:
    """Return a noun with "a" or "an", by its first letter.

    This is right for all nouns of the lists. For an invented noun it may be wrong.
    """
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


@cache
def values(name: str) -> tuple[str, ...]:
    """Return the list of values with this name.

    Raises:
        ValueError: There is no such list.
    """
    names = value_lists()
    if name not in names:
        raise ValueError(f"there is no list of values {name!r}; expected one of {', '.join(names)}")
    return tuple(_FILES.joinpath("values", f"{name}.txt").read_text(encoding="utf-8").splitlines())


@cache
def values_on(name: str, side: Side) -> tuple[str, ...]:
    """Return the values of a list that are on a side."""
    return on_side(values(name), side)


@cache
def value_lists() -> tuple[str, ...]:
    """Return the names of all lists of values."""
    return tuple(sorted(path.name.removesuffix(".txt") for path in _FILES.joinpath("values").iterdir()))


@cache
def keys() -> tuple[Key, ...]:
    """Return every key, in the order of `keys.yaml`."""
    found = []
    for name, entry in _read("keys.yaml").items():
        texts = {field: entry[field] for field in ("my", "your", "fact", "answer")}
        family = Family(
            name=name,
            tell=_phrasings(entry["tell"]),
            ask=_phrasings(entry["ask"]),
            lasting=entry.get("lasting", False),
            **texts,
        )
        for side in SIDES:
            for key, blanks in entry["keys"].get(side, {}).items():
                rest = dict(blanks)
                found.append(Key(key, family, rest.pop("values", entry.get("values")), side, rest))
    return tuple(found)


@cache
def shared() -> Shared:
    """Return the phrasings for all keys."""
    entry = _read("shared.yaml")
    return Shared(
        change=_phrasings(entry["change"]),
        correct=_phrasings(entry["correct"]),
        delete=_phrasings(entry["delete"]),
        absent=entry["absent"],
        deleted=entry["deleted"],
        acknowledge=tuple(entry["acknowledge"]),
        forget=tuple(entry["forget"]),
    )


@cache
def filler() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the filler turns by topic, each as the user's message and the reply."""
    return {topic: tuple((said, reply) for said, reply in turns) for topic, turns in _read("filler.yaml").items()}


def choose_keys(names: tuple[str, ...], side: Side) -> tuple[Key, ...]:
    """Return the keys of a side by the names of keys, families or lists of values; without names, all keys.

    Raises:
        ValueError: There is no such name, or no key of that name is on the side.
    """
    if not names:
        return tuple(key for key in keys() if key.side == side)
    for name in names:
        found = [key.side for key in keys() if name in _names(key)]
        if not found:
            families = ", ".join(dict.fromkeys(key.family.name for key in keys()))
            raise ValueError(f"there is no key {name!r}; name a key, a list of values, or a family: {families}")
        if side not in found:
            raise ValueError(f"{name!r} has no {side} key; leave it out or choose the other side")
    return tuple(key for key in keys() if key.side == side and not _names(key).isdisjoint(names))


def _names(key: Key) -> set[str]:
    return {key.name, key.family.name, key.values}


def _phrasings(entry: dict[Side, list[str]]) -> Phrasings:
    return {side: tuple(entry[side]) for side in SIDES}


def _read(name: str) -> dict:
    return yaml.safe_load(_FILES.joinpath(name).read_text(encoding="utf-8"))
