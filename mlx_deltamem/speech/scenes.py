"""The scenes: short stories of several facts that belong together, as people tell them over a few messages.

`scenes/` has a file for each theme. A relation has many wordings of one fact; a scene has messages that go on from each
other, with pronouns, several facts in one message, and things that are only implied. A text has one wording on each of
its lines. A scene has these entries:

- `values`: the kind of each of its values by a name: a kind of `kinds/`, `woman` or `man` (a first name), or patterns.
- `tell`: its messages in order. All wordings of a message tell the same values for the first time, and may repeat
  values of earlier messages. A message with `wish` and `reply` is told by the assistant: the user's request, and the
  reply with the values.
- `ask`: questions for values. A value without questions only names something, such as a friend.
- `later`: messages that give a value anew, by its name. They make clear what they are about, since other talk may come
  in between. `{old}` is the value before.
- `never`: questions about things that the scene does not tell.

Slots are the names of values. `{a_name}` puts the article before the value.
"""

import random
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile
from typing import Any

from .entries import check_names, entries
from .split import Side, on_side, side_of
from .subjects import first_names
from .values import Patterns, patterns_of
from .wording import named, wording_id, words

_NEEDED = {"values", "tell", "ask"}
_ALLOWED = _NEEDED | {"later", "never"}
# The slot of the value before, in `later`.
_OLD = "old"
_NAMES = {"woman": "female", "man": "male"}
# The least wordings of a message of the scene, of a question, and of a message that gives a value anew.
_LEAST = {"tell": 3, "ask": 5, "later": 2}


@dataclass(frozen=True)
class Message:
    """A message of a scene.

    Attributes:
        tell: Its wordings; those of the assistant's reply, if the assistant tells the values.
        wish: The wordings of the user's request; empty if the user tells the values.
        new: The names of the values that it tells for the first time, as its first wording orders them.
    """

    tell: tuple[str, ...]
    wish: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene, as the docstring of this module describes it.

    Attributes:
        name, theme: The name of the scene, and the name of its file.
        kinds: The kind of each value.
        patterns: The patterns of each value that is not a first name.
        messages: The messages in order.
        ask, later: The wordings by the name of a value.
        never: Questions about things that it does not tell.
    """

    name: str
    theme: str
    kinds: dict[str, str]
    patterns: dict[str, Patterns]
    messages: tuple[Message, ...]
    ask: dict[str, tuple[str, ...]]
    later: dict[str, tuple[str, ...]]
    never: tuple[str, ...]

    @cached_property
    def asked(self) -> frozenset[tuple[str, ...]]:
        """The words of each question for a value."""
        return frozenset(words(line) for lines in self.ask.values() for line in lines)

    @cached_property
    def questions(self) -> frozenset[tuple[str, ...]]:
        """The words of each question, of those too about what it does not tell."""
        return self.asked | frozenset(words(line) for line in self.never)

    def told_on(self, side: Side) -> tuple[Message, ...]:
        """The messages at its beginning that have wordings on a side of the split."""
        return tuple(takewhile(lambda message: on_side(message.tell, side), self.messages))

    def asked_on(self, side: Side) -> set[str]:
        """The values in these messages that have questions on the side."""
        told = [name for message in self.told_on(side) for name in message.new]
        return {name for name in told if on_side(self.ask.get(name, ()), side)}

    def draw(self, rng: random.Random, value: str, from_libraries: bool) -> str:
        """Draw a value by its name. It may be on either side of the split."""
        if patterns := self.patterns.get(value):
            return patterns.draw(rng, from_libraries)
        return rng.choice(first_names(_NAMES[self.kinds[value]], from_libraries))

    def wording_id(self, use: str, template: str) -> str:
        """Return the name of a wording."""
        return wording_id(self.name, use, template)


@cache
def scenes() -> tuple[Scene, ...]:
    """Return all scenes, by theme and in the order of their files.

    Raises:
        ValueError: A file has a mistake.
    """
    return tuple(_scene(theme, name, entry) for theme, name, entry in entries("scenes"))


@cache
def scenes_on(scene_side: Side, wording_side: Side) -> tuple[Scene, ...]:
    """Return the scenes on a side that tell and ask for a value in wordings on a side."""
    return tuple(each for each in scenes() if side_of(each.name) == scene_side and each.asked_on(wording_side))


def _scene(theme: str, name: str, entry: dict[str, Any]) -> Scene:
    where = f"{theme}.yaml, {name},"
    check_names(where, entry, _NEEDED, _ALLOWED)
    found = {value: str(kind) for value, kind in entry["values"].items()}
    patterns = {value: patterns_of(where, value, kind) for value, kind in found.items() if kind not in _NAMES}
    ask = {value: _lines(where, "ask", text) for value, text in entry["ask"].items()}
    later = {value: _lines(where, "later", text) for value, text in entry.get("later", {}).items()}
    never = _lines(where, "never", entry["never"]) if "never" in entry else ()
    if taken := [value for value in found if value == _OLD or value.startswith("a_")]:
        raise ValueError(f"{where} has values named {', '.join(taken)}; old and a_ have a meaning, use other names")
    if strange := (set(ask) | set(later)) - set(found):
        raise ValueError(f"{where} has {', '.join(sorted(strange))} in ask or later, which values does not have")
    if strange := set(later) - set(ask):
        raise ValueError(f"{where} has {', '.join(sorted(strange))} in later without questions in ask")
    messages = _messages(where, entry["tell"], set(found))
    told = {value for each in messages for value in each.new}
    if told != set(found):
        raise ValueError(f"{where} does not tell {', '.join(sorted(set(found) - told))}")
    for value, lines in ask.items():
        _check_slots(f"{where} ask, {value},", lines, set(found) - {value})
    for value, lines in later.items():
        _check_slots(f"{where} later, {value},", lines, set(found) | {_OLD}, {value})
    _check_slots(f"{where} never,", never, set(found))
    return Scene(name, theme, found, patterns, messages, ask, later, never)


def _lines(where: str, use: str, text: str) -> tuple[str, ...]:
    lines = tuple(text.strip().splitlines())
    if len(lines) < _LEAST.get(use, 1):
        raise ValueError(f"{where} has {len(lines)} wordings in {use}: {lines[0]!r}; write {_LEAST[use]} or more")
    if len(set(lines)) < len(lines) or not all(lines):
        raise ValueError(f"{where} has the same line twice, or an empty one, in {use}: {lines[0]!r}")
    return lines


def _messages(where: str, told: list[Any], known: set[str]) -> tuple[Message, ...]:
    before: set[str] = set()
    found = []
    for each in told:
        text, wish = (each, "") if isinstance(each, str) else (each["reply"], each["wish"])
        tell = _lines(where, "tell", text)
        asked = _lines(where, "tell", wish) if wish else ()
        new = [name for name in named(tell[0]) if name not in before]
        _check_slots(f"{where} tell,", tell, before | set(new), set(new))
        _check_slots(f"{where} wish,", asked, before)
        if not set(new) <= known:
            raise ValueError(f"{where} has {tell[0]!r} with {sorted(set(new) - known)}; expected names of values")
        found.append(Message(tell, asked, tuple(new)))
        before |= set(new)
    return tuple(found)


def _check_slots(where: str, lines: tuple[str, ...], allowed: set[str], needed: set[str] | None = None) -> None:
    for line in lines:
        if strange := set(named(line)) - allowed:
            raise ValueError(f"{where} has {line!r} with {sorted(strange)}; it may have {sorted(allowed)}")
        if missing := (needed or set()) - set(named(line)):
            raise ValueError(f"{where} has {line!r}, which does not have {sorted(missing)}")
