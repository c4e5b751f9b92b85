"""Published scores of the tasks, which a report shows beside its own. The numbers are in `published.yaml`."""

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import TypedDict

import yaml


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        method: The method's name: "backbone", "δ-mem TSW" ...
        condition: The condition of this project to compare it with; "" if there is none.
        category: The category of the task's questions; "" for all questions.
        metric: The name of the score.
        value: The score in percent.
        source: The publication, with the backbone.
    """

    method: str
    condition: str
    category: str
    metric: str
    value: float
    source: str


class _Number(TypedDict, total=False):
    method: str
    condition: str
    category: str
    value: float


class _Group(TypedDict):
    source: str
    metric: str
    numbers: list[_Number]


class _File(TypedDict):
    sources: dict[str, str]
    tasks: dict[str, list[_Group]]


def published_scores(task: str) -> tuple[Published, ...]:
    """The published scores of a task, in the order of the file; empty for a task without any.

    Args:
        task: The task's name, as in `--tasks`.
    """
    return tuple(_published(group, number) for group in _file()["tasks"].get(task, []) for number in group["numbers"])


@functools.cache
def _file() -> _File:
    content: _File = yaml.safe_load(files(__package__).joinpath("published.yaml").read_text(encoding="utf-8"))
    return content


def _published(group: _Group, number: _Number) -> Published:
    return Published(
        method=number["method"],
        condition=number.get("condition", ""),
        category=number.get("category", ""),
        metric=group["metric"],
        value=number["value"],
        source=_file()["sources"][group["source"]],
    )
