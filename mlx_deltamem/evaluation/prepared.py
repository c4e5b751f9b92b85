"""Tasks prepared for a run: their questions are made and checked."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice, pairwise

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.asking import Manner
from mlx_deltamem.evaluation.question import Question, digests
from mlx_deltamem.evaluation.task import Backbone, Task
from mlx_deltamem.sessions.reading.prefill import window


@dataclass(frozen=True)
class PreparedTask:
    """A task with its questions.

    Attributes:
        task: The task.
        questions: The questions, those of a group in a row.
        manner: How they are asked.
    """

    task: Task
    questions: tuple[Question, ...]
    manner: Manner

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def settings(self) -> dict[str, object]:
        """The settings that the records depend on, beside the questions, as JSON values."""
        manner: dict[str, object] = json.loads(json.dumps(asdict(self.manner)))
        # The step size has no effect on the replies.
        del manner["prefill_step_size"]
        return manner

    @property
    def summary(self) -> dict[str, object]:
        """The settings and a hash of all questions. Two runs with equal summaries give equal records."""
        digest = hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()
        return {"questions": len(self.questions), "sha256": digest, **self.settings}

    @cached_property
    def digests(self) -> dict[str, str]:
        """A hash of every question, by its id (`question.digests`)."""
        return digests(self.questions)


def prepare(
    task: Task, manner: Manner, model: nn.Module, tokenizer: TokenizerWrapper, limit: int | None
) -> PreparedTask:
    """Make and check the questions of a task.

    Args:
        task: The task.
        manner: How to ask its questions.
        model, tokenizer: The model and its tokenizer; a question's text may depend on the window and the tokens.
        limit: The most questions; None: all.

    Raises:
        ValueError: The task has no questions, two questions have the same id, or a group is not in a row.
    """
    questions = tuple(islice(task.questions(Backbone(tokenizer, window(model))), limit))
    if not questions:
        raise ValueError(f"{task.name} has no questions; check its data and options")
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{task.name} has two questions with the same id; expected unique ids")
    groups = [question.group for question in questions]
    changes = 1 + sum(one != other for one, other in pairwise(groups))
    if changes > len(set(groups)):
        raise ValueError(f"{task.name} has questions of one group in several places; expected them in a row")
    return PreparedTask(task, questions, manner)
