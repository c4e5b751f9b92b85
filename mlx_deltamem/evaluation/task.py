"""What a task is: questions, the rule that scores replies to them, and what is published about it.

A task is a frozen dataclass. Its fields are its options: the field `filler` of the task `recall` is the option
`--recall-filler` of the command, and all of them decide whether a run may be resumed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.question import Question

OptionValue = bool | int | float | str | tuple[int, ...] | tuple[str, ...] | None


def option(
    default: OptionValue, text: str, choices: tuple[str, ...] = (), kind: type = str, count: int | None = None
) -> object:
    """A field of a task that is an option of the command.

    Args:
        default: Its default, whose type is the option's. A tuple makes an option of several values.
        text: The option's help.
        choices: What it may be, each of several values.
        kind: The type of its values where the default does not tell: it is None or an empty tuple.
        count: How many values a tuple has; None: any number.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "kind": kind, "count": count})


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. A temperature of 0 takes the likeliest token, and nothing else matters then."""

    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        method: Whose it is: "backbone", "δ-mem TSW" ...
        condition: The condition of ours that it is to be compared with, or "" where there is none.
        category: Of the task's questions; "" for all.
        metric: The name of the score.
        value: In percent.
        source: Where it is published, with the backbone.
    """

    method: str
    condition: str
    category: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Backbone:
    """What questions may depend on: how the model counts tokens, and how many it can see.

    Attributes:
        tokenizer: mlx-lm's tokenizer.
        window: The longest text in tokens; None where the model does not tell.
    """

    tokenizer: TokenizerWrapper
    window: int | None


class Described(Protocol):
    """What a report tells of a task, and needs to know of it; the attributes are those of `Task`."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def breakdowns(self) -> tuple[str, ...]: ...

    @property
    def curves(self) -> tuple[str, ...]: ...

    @property
    def outside_mean(self) -> tuple[str, ...]: ...

    @property
    def published(self) -> tuple[Published, ...]: ...

    @property
    def differences(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Task(ABC):
    """A set of questions, and the rule that scores replies to them.

    Attributes:
        name: As in `--tasks`.
        title: For the report's heading.
        source: Where the data come from, for `--help` and the report.
        sampling: How replies are drawn, unless the command says otherwise.
        stop: Texts that end a reply, and are no part of it.
        breakdowns: Labels of questions that get a table each, beside the one of categories.
        curves: Labels of questions (numbers) that scores are drawn against.
        outside_mean: Categories that the mean over all questions leaves out.
        data: The file or folder of the data (`--data NAME=PATH`); None where the task needs none or finds its own.
        seed: Decides what is drawn at random in the questions (`--seed`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str] = ""
    stop: ClassVar[tuple[str, ...]] = ()
    breakdowns: ClassVar[tuple[str, ...]] = ()
    curves: ClassVar[tuple[str, ...]] = ()
    outside_mean: ClassVar[tuple[str, ...]] = ()

    data: Path | None = None
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    @property
    def published(self) -> tuple[Published, ...]:
        """Published numbers of this task, for the report."""
        return ()

    @property
    def differences(self) -> tuple[str, ...]:
        """What our protocol does otherwise than the published one, a sentence each, with the present options."""
        return ()

    @abstractmethod
    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """The questions, those of a group one after the other.

        Raises:
            FileNotFoundError: There are no such data.
            ValueError: The data are damaged or of another kind, or the options cannot be met.
        """

    @abstractmethod
    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        """Scores from 0 to 1 by metric. The first is the task's main one; all questions have the same metrics.

        Every one of a question's golds scores 1, and an empty reply 0.
        """
