"""The relations of facts, from the files in `relations/`: a folder for each area, and a file for each theme.

A relation has these entries. A text has one wording on each of its lines:

- `value`: the kind of its values (a name in `kinds/`), or patterns.
- `of`: its subjects, if it has any: "person", or a list of things ([ladder, drill]).
- `topic`: the fact as a noun in the first person, "my {it}". `about`: the fact as a clause, "who has my {it}".
- `tell`, `ask`, `update`: statements, questions, and statements with a new value (`{old}` is the value before).
- `repeat`: the fact in the second person, as the assistant may repeat it when it is told. It names the subject, and the
  value comes last.
- `wish`: requests for the value, if the assistant tells it. `tell` then has the replies.
- `all`: questions for all facts of the relation.
- `back`: questions for the subject of a value.
- `pair`: statements of two facts in one sentence. The second fact has the slots `{value2}`, `{it2}`, `{who2}` ...
- `lasting`: true if the fact cannot change, so that an update corrects an error.

Slots: `{value}`; for a person `{who}`, `{whose}`, `{he}`, `{his}`, `{him}`; for a thing `{it}`. `{a_value}` puts the
article before the value, and likewise for the others. A statement that begins in lower case is always typed like that;
others are typed either way.
"""

import re
from dataclasses import dataclass, field
from functools import cache

from .entries import check_names, entries
from .split import Side, on_side, side_of
from .values import Patterns, kinds, patterns_of
from .wording import named, wording_id

PERSON = "person"
_PERSON_SLOTS = {"who", "whose", "he", "his", "him"}
_TEXTS = ("tell", "ask", "repeat", "update", "wish", "all", "back", "pair")
_NEEDED = {"value", "topic", "about", "tell", "ask", "repeat"}
_ALLOWED = _NEEDED | set(_TEXTS) | {"of", "lasting"}
# Whether each text must have the slot {value}, or must not have it.
_WITH_VALUE = {
    "tell": True,
    "ask": False,
    "repeat": True,
    "update": True,
    "wish": False,
    "all": False,
    "back": True,
    "pair": True,
}
_LEAST = {"tell": 10, "ask": 8}


@dataclass(frozen=True, eq=False)
class Relation:
    """A relation, as the docstring of this module describes it.

    Attributes:
        name, theme: The name of the relation, and the name of its file.
        value_kind: The name of its kind of values; the relation's name if it has its own patterns.
        patterns: The patterns of its values.
        topic, about, lasting: As in the file.
        texts: The wordings of each use.
        of: The subjects: a tuple of things, or "person"; None if it has no subjects.
    """

    name: str
    theme: str
    value_kind: str
    patterns: Patterns
    topic: str
    about: str
    texts: dict[str, tuple[str, ...]]
    of: tuple[str, ...] | str | None = None
    lasting: bool = False
    _sides: dict[tuple[str, Side], tuple[str, ...]] = field(default_factory=dict)

    def wordings(self, use: str, side: Side) -> tuple[str, ...]:
        """Return the wordings of a use that are on a side of the split."""
        if (use, side) not in self._sides:
            self._sides[use, side] = on_side(self.texts.get(use, ()), side)
        return self._sides[use, side]

    def wording_id(self, use: str, template: str) -> str:
        """Return the name of a wording."""
        return wording_id(self.name, use, template)

    @property
    def repeat(self) -> str:
        """The wording in which the assistant repeats a fact."""
        return self.texts["repeat"][0]

    @property
    def by_assistant(self) -> bool:
        """Whether the assistant tells the value."""
        return "wish" in self.texts


@cache
def relations() -> tuple[Relation, ...]:
    """Return all relations, by theme and in the order of their files.

    Raises:
        ValueError: A file has a mistake.
    """
    return tuple(_relation(theme, name, entry) for theme, name, entry in entries("relations"))


@cache
def relations_on(relation_side: Side, wording_side: Side, only: tuple[str, ...] = ()) -> tuple[Relation, ...]:
    """Return the relations on a side that have wordings on a side.

    Args:
        relation_side, wording_side: The sides.
        only: The names of relations or themes to use; empty: all.

    Raises:
        ValueError: There is no such name, or no relation is left.
    """
    themes = dict.fromkeys(each.theme for each in relations())
    if unknown := set(only) - set(themes) - {each.name for each in relations()}:
        raise ValueError(
            f"there is no relation {', '.join(sorted(unknown))}; "
            f"expected the names of relations, or of these themes: {', '.join(themes)}"
        )
    found = tuple(
        each
        for each in relations()
        if side_of(each.name) == relation_side
        and all(each.wordings(use, wording_side) for use in ("tell", "ask"))
        and (not only or not {each.name, each.theme}.isdisjoint(only))
    )
    if not found:
        raise ValueError(f"none of the named relations is {relation_side} and has {wording_side} wordings; name others")
    return found


def _relation(theme: str, name: str, entry: dict) -> Relation:
    where = f"{theme}.yaml, {name},"
    check_names(where, entry, _NEEDED, _ALLOWED)
    texts = {use: tuple(entry[use].strip().splitlines()) for use in _TEXTS if use in entry}
    _check_texts(where, texts)
    _check_repeat(where, texts["repeat"])
    of = entry.get("of")
    of = tuple(of) if isinstance(of, list) else of
    _check_slots(where, of, {**texts, "topic": (entry["topic"],), "about": (entry["about"],)})
    value = entry["value"]
    return Relation(
        name=name,
        theme=theme,
        value_kind=value if value in kinds() else name,
        patterns=patterns_of(where, "values", value),
        topic=entry["topic"],
        about=entry["about"],
        texts=texts,
        of=of,
        lasting=entry.get("lasting", False),
    )


def _check_texts(where: str, texts: dict[str, tuple[str, ...]]) -> None:
    for use, least in _LEAST.items():
        if len(texts[use]) < least:
            raise ValueError(f"{where} has {len(texts[use])} wordings to {use}; write {least} or more")
    for use, lines in texts.items():
        if len(set(lines)) < len(lines) or not all(lines):
            raise ValueError(f"{where} has the same line twice, or an empty one, in {use}")
        for line in lines:
            if use in _WITH_VALUE and ("value" in named(line)) != _WITH_VALUE[use]:
                raise ValueError(
                    f"{where} has {line!r} in {use}, which must {'' if _WITH_VALUE[use] else 'not '}have {{value}}"
                )


def _check_repeat(where: str, lines: tuple[str, ...]) -> None:
    if len(lines) != 1:
        raise ValueError(f"{where} has {len(lines)} wordings to repeat; write one")
    if not re.search(r"[\w}] \{(a_)?value\}\.$", lines[0]):
        raise ValueError(f"{where} has {lines[0]!r} in repeat, which must have {{value}} at its end")


def _check_slots(where: str, of: tuple[str, ...] | str | None, texts: dict[str, tuple[str, ...]]) -> None:
    if isinstance(of, str) and of != PERSON:
        raise ValueError(f"{where} is of {of!r}; write {PERSON}, or a list of things")
    subject_slots = _PERSON_SLOTS if of == PERSON else set() if of is None else {"it"}
    known = subject_slots | {"value", "values", "old"}
    known |= {f"{name}2" for name in known}
    # A reply of the assistant follows a request that names the subject.
    told = ("wish", "ask") if "wish" in texts else ("tell", "ask", "update")
    for use, lines in texts.items():
        for line in lines:
            if use in told and of is not None and not set(named(line)) & ({"who", "whose"} if of == PERSON else {"it"}):
                raise ValueError(f"{where} has {line!r} in {use}, which does not name the subject")
            if strange := set(named(line)) - known:
                raise ValueError(f"{where} has {line!r} in {use}, with {sorted(strange)}; it may have {sorted(known)}")
