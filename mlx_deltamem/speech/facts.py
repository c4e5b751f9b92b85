"""Draws the facts of a conversation: relations, their subjects, and their values."""

import random
import re
from dataclasses import dataclass, field

from .conversation import Style
from .distinct import Distinct
from .relations import PERSON, Relation, relations_on
from .settings import SpeechSettings
from .subjects import Subject, draw_subject
from .wording import fill, second_person, slots, words

_TRIES = 300
_VALUE = re.compile(r"(?:(?:the|a|an) )?\{(?:a_)?value\}")
_THING = re.compile(r"(?:(?:the|a|an|my|our) )?\{(?:a_)?it\}")


@dataclass(eq=False)
class Fact:
    """A relation of a subject, with its values so far.

    Attributes:
        relation: The relation.
        subject: The person or thing that the fact is about; None if the relation has no subjects.
        values: All values so far; the last one is the present value.
        wording: The name of the wording that told, updated or deleted it last.
        turn: The turn that did so.
        style: How it was told first.
        deleted: Whether it was deleted.
        by_name: Whether a person with a name and a role is asked for by name.
    """

    relation: Relation
    subject: Subject | None
    values: list[str] = field(default_factory=list)
    wording: str = ""
    turn: int = -1
    style: Style = "plain"
    deleted: bool = False
    by_name: bool = True

    def blanks(self, use: str) -> dict[str, str]:
        """Return the texts for the slots of its wordings. `use` is `tell`, `ask`, `answer` or `repeat`."""
        found = self.subject.blanks(use, self.by_name) if self.subject else {}
        if self.values:
            found["value"] = self.values[-1]
        if len(self.values) > 1:
            found["old"] = self.values[-2]
        return found

    def called(self, name: str) -> str:
        """Return its `topic` or `about`, in the words of a user who asks."""
        return fill(getattr(self.relation, name), self.blanks("ask"))

    def repeated(self) -> str:
        """Return it as the assistant repeats it when it is told."""
        return fill(self.relation.repeat, self.blanks("repeat"))

    def phrase(self, value: str) -> str:
        """Return one of its values with the article that it has in a sentence ("a barber")."""
        article = _VALUE.search(self.relation.repeat)
        assert article  # The reader of relations requires it.
        return fill(article[0], {"value": value})

    def subject_phrase(self, use: str) -> str:
        """Return its subject as a phrase ("the side gate", "my aunt"); empty if the relation has no subjects."""
        if self.subject is None:
            return ""
        if not self.subject.it:
            return self.blanks(use)["who"]
        thing = _THING.search(self.relation.topic) or _THING.search(self.relation.about)
        text = fill(thing[0] if thing else "{it}", self.blanks(use))
        return second_person(text) if use == "answer" else text

    def short(self) -> dict[str, str]:
        """Return the texts for the slots of short messages: `subject`, `value` and `old`.

        There is no `subject` if the relation has none, and no `old` if the value is the first one.
        """
        names = ("old", "value") if len(self.values) > 1 else ("value",)
        found = {name: self.phrase(value) for name, value in zip(names, self.values[-len(names) :], strict=True)}
        if subject := self.subject_phrase("tell"):
            found["subject"] = subject
        return found

    def same_as(self, other: "Fact") -> bool:
        """Whether both have the same relation and subject."""
        return self.relation is other.relation and self.subject == other.subject


class FactDrawer:
    """Draws facts that differ, with values that cannot be confused.

    Args:
        rng: The source of random choices.
        settings: The settings of the conversation.

    Raises:
        ValueError: No relation is left on the sides of the split.
    """

    def __init__(self, rng: random.Random, settings: SpeechSettings):
        self._rng, self._settings = rng, settings
        self._relations = relations_on(settings.split.relations, settings.split.wordings, settings.only)
        self._drawn: list[Fact] = []
        self._distinct = Distinct()

    def fact(self, absent: bool = False) -> Fact | None:
        """Draw a fact without a value, different from those before; None if no such fact is found."""
        for _ in range(_TRIES):
            relation = self._relation(absent)
            taken = self._taken(relation)
            if isinstance(relation.of, tuple) and set(relation.of) <= taken:
                continue
            fact = Fact(relation, self._subject(relation, taken))
            if not any(fact.same_as(other) for other in self._drawn):
                self._drawn.append(fact)
                if fact.subject:
                    self._distinct.add(fact.subject.blanks("tell").values())
                return fact
        return None

    def value(self, fact: Fact) -> bool:
        """Give a fact a value that overlaps no name or value of the conversation, and no wording of its questions.

        Returns:
            Whether such a value was found. A relation may have few values on a side.
        """
        asked = [words(text) for use in ("ask", "about", "topic") for text in _texts(fact.relation, use)]
        value = self._distinct.draw(
            lambda: fact.relation.patterns.draw(self._rng, self._settings.libraries),
            self._settings.split.values,
            asked,
        )
        if value is None:
            return False
        fact.values.append(value)
        return True

    def _relation(self, absent: bool) -> Relation:
        told = [fact.relation for fact in self._drawn if fact.values]
        if told and self._rng.random() < self._settings.siblings:
            near = [each for each in told if each.of is not None and not (absent and each.by_assistant)]
            if near:
                return self._rng.choice(near)
            if absent:
                themes = {each.theme for each in told}
                return self._rng.choice([each for each in self._relations if each.theme in themes])
        if self._settings.assistant and self._rng.random() < self._settings.assistant:
            by_assistant = [each for each in self._relations if each.by_assistant]
            return self._rng.choice(by_assistant or self._relations)
        return self._rng.choice(self._relations)

    def _taken(self, relation: Relation) -> set[str]:
        if relation.of == PERSON:
            people = [fact.subject for fact in self._drawn if fact.relation.of == PERSON and fact.subject]
            return {text for each in people for text in (each.name, each.role) if text}
        return {fact.subject.it for fact in self._drawn if fact.relation is relation and fact.subject}

    def _subject(self, relation: Relation, taken: set[str]) -> Subject | None:
        """Draw a new subject, or a person of another fact."""
        known = [fact.subject for fact in self._drawn if fact.relation.of == PERSON and fact.relation is not relation]
        if relation.of == PERSON and known and self._rng.random() < 0.4:
            return self._rng.choice(known)
        return draw_subject(self._rng, relation, taken, self._settings.libraries)


def _texts(relation: Relation, use: str) -> tuple[str, ...]:
    texts = relation.texts.get(use) or (getattr(relation, use),)
    return tuple(text.replace("{", "").replace("}", "") if slots(text) else text for text in texts)
