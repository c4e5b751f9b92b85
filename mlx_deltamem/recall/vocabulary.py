"""What episodes are made of, read from the files beside this one: values, keys, phrasings, filler."""

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
    """A way of talking about some keys.

    Attributes:
        name: Its name in `keys.yaml`.
        my, your: What the key is, as the user and as the assistant call it ("my dog's name").
        fact: A clause that tells a value ("my dog is called {value}").
        answer: The answer to every question about it. It ends in the value and a full stop.
        tell, ask: Phrasings of each side.
        lasting: Whether it is a fact that cannot change, only have been told wrongly.
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
        """Return the phrasings that give its keys a new value."""
        return shared().correct[side] if self.lasting else (*shared().change[side], *shared().correct[side])


@dataclass(frozen=True, eq=False)
class Key:
    """Something that can be told.

    Attributes:
        name: For example "dog_name".
        family: How it is talked about.
        values: The name of its list of values. Keys that share a list share the held-out values.
        side: Whether it is trained on.
        blanks: What the family's phrasings need to talk about this key.
    """

    name: str
    family: Family
    values: str
    side: Side
    blanks: dict[str, str]

    def say(self, phrasing: str, value: str = "") -> str:
        """Fill a phrasing in, as a sentence of the user."""
        text = self.fill(phrasing, value)
        return text[:1].upper() + text[1:]

    def answer(self, value: str) -> str:
        """Return the answer to a question about this key."""
        return self.fill(self.family.answer, value)

    def fill(self, phrasing: str, value: str = "") -> str:
        """Fill a phrasing in, as it stands."""
        blanks = {"value": value, "a_value": with_article(value)}
        for name, text in self.blanks.items():
            blanks |= {name: text, name.capitalize(): text[:1].upper() + text[1:], f"a_{name}": with_article(text)}
        for name in ("my", "your", "fact"):
            blanks[name] = getattr(self.family, name).format_map(blanks)
        return phrasing.format_map(blanks)


@dataclass(frozen=True)
class Shared:
    """What is said alike of every key.

    Attributes:
        change, correct, delete: Phrasings of each side, for a fact that has changed, was told wrongly, is taken back.
        absent, deleted: The answers to a question about what was never told, and about what was taken back.
        acknowledge, forget: Replies to a fact, and to the wish to forget one.
    """

    change: Phrasings
    correct: Phrasings
    delete: Phrasings
    absent: str
    deleted: str
    acknowledge: tuple[str, ...]
    forget: tuple[str, ...]


def with_article(noun: str) -> str:
    """Return a noun after "a" or "an". No noun of the lists is one whose sound and first letter disagree;
    invented ones may be.
    """
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


@cache
def values(name: str) -> tuple[str, ...]:
    """Return a list of values by its name.

    Raises:
        ValueError: There is no such list.
    """
    names = value_lists()
    if name not in names:
        raise ValueError(f"there is no list of values {name!r}; there are {', '.join(names)}")
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
    """Return what is said alike of every key."""
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
    """Return turns that tell nothing about the user, by topic: what the user says, and the reply."""
    return {topic: tuple((said, reply) for said, reply in turns) for topic, turns in _read("filler.yaml").items()}


def choose_keys(names: tuple[str, ...], side: Side) -> tuple[Key, ...]:
    """Return the keys of a side that are named: by key, by family, or by list of values; no name means all.

    Raises:
        ValueError: A name is none of these, or the side has no key of that name.
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
