"""Whose or what's a fact is: a person with a name, a relative, or a thing."""

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from . import invented, libraries
from .relations import PERSON, Relation
from .split import side_of
from .wording import second_person

_PRONOUNS = {"female": ("she", "her", "her"), "male": ("he", "his", "him")}


@dataclass(frozen=True)
class Subject:
    """A person or a thing.

    Attributes:
        it: A thing, as a noun without an article.
        name: A person's name, or "".
        role: What a person is to the user ("my aunt"), or "".
        gender: Of a person: "female" or "male".
    """

    it: str = ""
    name: str = ""
    role: str = ""
    gender: str = "female"

    @property
    def key(self) -> str:
        """A text that names it, for records."""
        return self.it or self.name or self.role

    def blanks(self, use: str, by_name: bool = True) -> dict[str, str]:
        """The texts for its slots, to `tell` of it, to `ask` and to `answer`.

        Who has a name and a role is told of by both, and asked for by one of them: `by_name`, or by role.
        """
        if self.it:
            return {"it": second_person(self.it) if use == "answer" else self.it}
        if self.name and self.role:
            asked = self.name if by_name else self.role
            who = f"{self.role} {self.name}" if use == "tell" else asked
        else:
            who = self.name or self.role
        who = second_person(who) if use == "answer" else who
        he, his, him = _PRONOUNS[self.gender]
        return {"who": who, "whose": f"{who}'s", "he": he, "his": his, "him": him}


@cache
def people() -> dict[str, dict[str, tuple[str, ...]]]:
    """Names and roles by gender, as `names.yaml` lists them."""
    read = yaml.safe_load(files(__package__).joinpath("names.yaml").read_text(encoding="utf-8"))
    return {gender: {what: tuple(text.split("\n")) for what, text in lists.items()} for gender, lists in read.items()}


def draw_subject(rng: random.Random, relation: Relation, taken: set[str], from_libraries: bool) -> Subject | None:
    """Draw whose or what's it is, other than those taken; None where the relation is of nothing.

    Raises:
        ValueError: All are taken.
    """
    if relation.of is None:
        return None
    if relation.of != PERSON:
        free = [it for it in relation.of if it not in taken]
        if not free:
            raise ValueError(f"{relation.name} is wanted of more than its {len(relation.of)} things; tell fewer facts")
        return Subject(it=rng.choice(free))
    while True:
        subject = _draw_person(rng, from_libraries)
        if not {subject.name, subject.role} & taken:
            return subject


def _draw_person(rng: random.Random, from_libraries: bool) -> Subject:
    gender = rng.choice(("female", "male"))
    roles = people()[gender]["roles"]
    form = rng.random()
    if form < 0.3:
        return Subject(role=rng.choice(roles), gender=gender)
    name = _draw_name(rng, gender, from_libraries)
    return Subject(name=name, role=rng.choice(roles) if form < 0.6 else "", gender=gender)


def _draw_name(rng: random.Random, gender: str, from_libraries: bool) -> str:
    """Draw a name that training may see: a name that is held out is for values."""
    while True:
        if rng.random() < 0.15:
            name = invented.invent(rng, "name")
        else:
            name = rng.choice(libraries.pool(f"{gender}_names") if from_libraries else people()[gender]["names"])
        if side_of(name) == "train":
            return name
