"""The relations that facts can be told about: those of the files in `relations/`, one file a theme.

A relation has these entries; a text has a wording on each of its lines:

- `value`: the kind of its values (kinds.yaml), or patterns of its own.
- `of`: whose or what's it is, if there are several: "person", or a list of things ([ladder, drill]).
- `topic`: it in the first person, as a noun: "my {it}". `about`: as a clause that is asked for: "who has my {it}".
- `tell`, `ask`, `update`: statements, questions, and statements that give it another value (`{old}` is what it was).
- `answer`: to a question, in the second person.
- `wish`: only where the assistant says the value: what it is asked for, and `tell` is what it replies.
- `all`: questions about all that was told of it, and `all_answer`, where `{values}` are named one after the other.
- `back`: questions from the value to what it is of, and `back_answer`.
- `pair`: statements that tell two of it in one sentence, whose second has the slots `{value2}`, `{it2}`, `{who2}` ...
- `lasting`: true if it cannot change, but can have been told wrongly.

Slots: `{value}` and, of a person, `{who}`, `{whose}`, `{he}`, `{his}`, `{him}`; of a thing, `{it}`. Any of them may
follow its article: `{a_value}`. A statement that begins in lower case is typed so; the others are typed in either way.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import yaml

from .split import Side, side_of
from .values import Patterns, kinds
from .wording import slots, wording_id

PERSON = "person"
_PERSON_SLOTS = {"who", "whose", "he", "his", "him"}
_TEXTS = ("tell", "ask", "answer", "update", "wish", "all", "all_answer", "back", "back_answer", "pair")
_NEEDED = {"value", "topic", "about", "tell", "ask", "answer"}
_ALLOWED = _NEEDED | set(_TEXTS) | {"of", "lasting"}
# The slot that each text is about: it has to be there, or must not.
_WITH_VALUE = {
    "tell": True,
    "ask": False,
    "answer": True,
    "update": True,
    "wish": False,
    "all": False,
    "back": True,
    "pair": True,
}
_LEAST = {"tell": 10, "ask": 8, "answer": 2}


@dataclass(frozen=True, eq=False)
class Relation:
    """Something that can be told; see this module.

    Attributes:
        name, theme: Its own name and that of its file.
        value_kind: The name of its kind of values: its own name, if it has its own patterns.
        patterns: How its values are made.
        of: None; or a tuple of things, or "person".
        topic, about, lasting: As in its file.
        texts: The wordings of each use.
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
        """The wordings of a use that are on a side of the split."""
        if (use, side) not in self._sides:
            found = self.texts.get(use, ())
            self._sides[use, side] = tuple(template for template in found if side_of(template) == side)
        return self._sides[use, side]

    def wording_id(self, use: str, template: str) -> str:
        return wording_id(self.name, use, template)

    @property
    def by_assistant(self) -> bool:
        """Whether the assistant says the value."""
        return "wish" in self.texts


@cache
def relations() -> tuple[Relation, ...]:
    """All relations, by theme and in the order of their files.

    Raises:
        ValueError: A file has a mistake.
    """
    folder = files(__package__).joinpath("relations")
    found: dict[str, Relation] = {}
    for path in sorted(folder.iterdir(), key=lambda each: each.name):
        if path.name.endswith(".yaml"):
            for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
                if name in found:
                    raise ValueError(f"{path.name} has {name}, which {found[name].theme}.yaml has, too; rename one")
                found[name] = _relation(path.name.removesuffix(".yaml"), name, entry)
    return tuple(found.values())


@cache
def relations_on(relation_side: Side, wording_side: Side, only: tuple[str, ...] = ()) -> tuple[Relation, ...]:
    """The relations on a side that can be told and asked for with wordings of a side.

    Args:
        relation_side, wording_side: The sides.
        only: The names of relations or themes that are wanted; all, if there are none.

    Raises:
        ValueError: There is no such name, or no relation is left.
    """
    themes = dict.fromkeys(each.theme for each in relations())
    if unknown := set(only) - set(themes) - {each.name for each in relations()}:
        raise ValueError(
            f"there is no relation {', '.join(sorted(unknown))}; name relations, or these themes: {', '.join(themes)}"
        )
    found = tuple(
        each
        for each in relations()
        if side_of(each.name) == relation_side
        and all(each.wordings(use, wording_side) for use in ("tell", "ask"))
        and (not only or not {each.name, each.theme}.isdisjoint(only))
    )
    if not found:
        raise ValueError(
            f"none of the wanted relations is {relation_side} and has {wording_side} wordings; want others"
        )
    return found


def _relation(theme: str, name: str, entry: dict) -> Relation:
    where = f"{theme}.yaml, {name},"
    if wrong := (set(entry) - _ALLOWED) | (_NEEDED - set(entry)):
        raise ValueError(f"{where} lacks or should not have {', '.join(sorted(wrong))}")
    texts = {use: tuple(entry[use].strip().splitlines()) for use in _TEXTS if use in entry}
    _check_texts(where, texts)
    of = entry.get("of")
    of = tuple(of) if isinstance(of, list) else of
    _check_slots(where, of, {**texts, "topic": (entry["topic"],), "about": (entry["about"],)})
    value = entry["value"]
    own = value not in kinds()
    if own and not {"\n", "{"} & set(value):
        raise ValueError(f"{where} has values of the kind {value!r}, which kinds.yaml lacks")
    return Relation(
        name=name,
        theme=theme,
        value_kind=name if own else value,
        patterns=Patterns(where, value) if own else kinds()[value],
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
            if use in _WITH_VALUE and ("value" in _named(line)) != _WITH_VALUE[use]:
                raise ValueError(
                    f"{where} has {line!r} in {use}, which must {'' if _WITH_VALUE[use] else 'not '}have {{value}}"
                )
    for one, other in (("all", "all_answer"), ("back", "back_answer")):
        if (one in texts) != (other in texts):
            raise ValueError(f"{where} has only one of {one} and {other}; write both")


def _check_slots(where: str, of: tuple[str, ...] | str | None, texts: dict[str, tuple[str, ...]]) -> None:
    if isinstance(of, str) and of != PERSON:
        raise ValueError(f"{where} is of {of!r}; write {PERSON}, or a list of things")
    known = {None: set(), PERSON: _PERSON_SLOTS}.get(of, {"it"}) | {"value", "values", "old"}
    known |= {f"{name}2" for name in known}
    # What the assistant says follows what it was asked, which tells whose it is.
    told = ("wish", "ask") if "wish" in texts else ("tell", "ask", "update")
    for use, lines in texts.items():
        for line in lines:
            if use in told and of is not None and not _named(line) & ({"who", "whose"} if of == PERSON else {"it"}):
                raise ValueError(f"{where} has {line!r} in {use}, which does not say whose or what's it is")
            if strange := _named(line) - known or {"{"} & set(re.sub(r"\{\w+\}", "", line)):
                raise ValueError(f"{where} has {line!r} in {use}, with {sorted(strange)}; it may have {sorted(known)}")


def _named(line: str) -> set[str]:
    """The slots of a line, without the article before them."""
    return {name.removeprefix("a_") for name in slots(line)}
