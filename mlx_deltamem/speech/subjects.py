"""The subjects of facts: a person with a name, a relative, or a thing."""

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from . import invented, libraries
from .relations import Relation
from .split import side_of
from .wording import second_person

_PRONOUNS = {"female": ("she", "her", "her"), "male": ("he", "his", "him")}
_BY_ASSISTANT = ("answer", "repeat")


@dataclass(frozen=True)
class Subject:
    """A person or a thing.

    Attributes:
        it: The noun of a thing, without an article; "" for a person.
        name: The name of a person, or "".
        role: The relation of a person to the user ("my aunt"), or "".
        gender: The gender of a person: "female" or "male".
    """

    it: str = ""
    name: str = ""
    role: str = ""
    gender: str = "female"

    @property
    def key(self) -> str:
        """The name of the subject in records."""
        return self.it or self.name or self.role

    def blanks(self, use: str, by_name: bool = True) -> dict[str, str]:
        """Return the texts for the slots. `use` is `tell`, `ask`, `answer` or `repeat`.

        A person with a name and a role is told and repeated with both, and asked for by name (`by_name`) or by role.
        """
        if self.it:
            return {"it": second_person(self.it) if use in _BY_ASSISTANT else self.it}
        if self.name and self.role:
            asked = self.name if by_name else self.role
            who = f"{self.role} {self.name}" if use in ("tell", "repeat") else asked
        else:
            who = self.name or self.role
        who = second_person(who) if use in _BY_ASSISTANT else who
        he, his, him = _PRONOUNS[self.gender]
        return {"who": who, "whose": f"{who}'s", "he": he, "his": his, "him": him}


@cache
def people() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the names and roles by gender, from `names.yaml`."""
    read = yaml.safe_load(files(__package__).joinpath("names.yaml").read_text(encoding="utf-8"))
    return {gender: {what: tuple(text.split("\n")) for what, text in lists.items()} for gender, lists in read.items()}


def first_names(gender: str, from_libraries: bool) -> tuple[str, ...]:
    """Return the first names of a gender, from the libraries or from `names.yaml`."""
    return libraries.pool(f"{gender}_names") if from_libraries else people()[gender]["names"]


def draw_subject(rng: random.Random, relation: Relation, taken: set[str], from_libraries: bool) -> Subject | None:
    """Draw a subject that is not taken; None if the relation has no subjects.

    Raises:
        ValueError: All subjects are taken.
    """
    if relation.of is None:
        return None
    if isinstance(relation.of, tuple):
        free = [it for it in relation.of if it not in taken]
        if not free:
            raise ValueError(f"{relation.name} needs more than its {len(relation.of)} things; use fewer facts")
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
    """Draw a name on the training side: held-out names are kept for values."""
    while True:
        invents = rng.random() < 0.15
        name = invented.invent(rng, "name") if invents else rng.choice(first_names(gender, from_libraries))
        if side_of(name) == "train":
            return name
