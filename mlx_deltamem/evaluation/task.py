"""The base class of tasks: questions, the rule that scores the replies, and a description for the report.

A task is a frozen dataclass. Its fields are its options: the field `filler` of the task `recall` is the option
`--recall-filler` of the command. A run can be continued only with options that give the same questions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from mlx_deltamem.evaluation.published import Published, published_scores
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.options.option import check_options

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are drawn.

    Attributes:
        temp: The temperature. At 0 the likeliest token is taken, and `top_p` and `top_k` have no effect.
        top_p: Draw from the likeliest tokens that reach this total probability; 1 means from all tokens.
        top_k: Draw from this many likeliest tokens; 0 means from all tokens.
    """

    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Backbone:
    """The properties of the model that questions may depend on.

    Attributes:
        tokenizer: mlx-lm's tokenizer.
        window: The longest text in tokens; None if the model does not state it.
    """

    tokenizer: "TokenizerWrapper"
    window: int | None


class Described(Protocol):
    """The part of a `Task` that the analysis and the report use."""

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
    """A set of questions, and the rule that scores the replies.

    Attributes:
        name: The name of the task in `--tasks`.
        title: The heading in the report.
        source: The origin of the data, for `--help`; "" for a task without data.
        stop: Texts that end a reply. They are not part of the reply.
        breakdowns: Labels of the questions. Each gets a table, beside the table of categories.
        curves: Labels of the questions that are numbers. Scores are plotted against each.
        outside_mean: Categories that the mean over all questions leaves out.
        data: The file or folder of the data (`--data NAME=PATH`). None: the task has no data, or downloads them.
        seed: The seed of the random choices in the questions (`--seed`).
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

    def __post_init__(self) -> None:
        check_options(self, f"{self.name}-")

    @property
    def sampling(self) -> Sampling:
        """How replies are drawn, for options that the command does not set."""
        return Sampling()

    @property
    def published(self) -> tuple[Published, ...]:
        """The published scores of this task, for the report."""
        return published_scores(self.name)

    @property
    def differences(self) -> tuple[str, ...]:
        """Where the protocol differs from the published one under the options of this task, one sentence each."""
        return ()

    @abstractmethod
    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """Yield the questions. The questions of a group follow each other.

        Raises:
            FileNotFoundError: The data do not exist.
            ValueError: The data are damaged or of another kind, or the options are impossible.
        """

    @abstractmethod
    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        """Score a reply, by metric, from 0 to 1.

        The first metric is the task's main one. All questions have the same metrics. A reply that equals one of the
        question's golds scores 1, and an empty reply scores 0.
        """
