"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness): IFEval, GPQA, MMLU ..."""

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.evaluation.conditions import Condition
from mlx_deltamem.evaluation.published import Published, published_scores
from mlx_deltamem.evaluation.records import JsonLines, Record
from mlx_deltamem.evaluation.tasks.harness_results import HarnessResult, harness_records, read_result
from mlx_deltamem.evaluation.tasks.rows import evaluate_extra
from mlx_deltamem.files.atomic import one_line
from mlx_deltamem.show.progress import Counted

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# The conditions of these tasks, and whether the memory is written. A question is one text with its history, so there
# are no others.
HARNESS_CONDITIONS = {"base": False, "full": True}

# The harness's names of tasks with short names.
_NAMES = {"gpqa_diamond": "gpqa_diamond_cot_zeroshot"}
_DIFFERENCES = {
    "ifeval": ("Published runs generated up to 1,500 tokens, the harness up to 1,280.",),
    "gpqa_diamond": (
        "Published runs asked for a letter in JSON and ordered the options by a hash. The harness asks for steps of "
        "thought and shuffles in its own way.",
    ),
}
_GENERAL = (
    "Adapters that write means of messages write token by token here, because requests are not divided into messages.",
    "The harness puts a request into the model's chat template, with thinking switched off, and decodes greedily.",
)
_PURPOSE = "a task of lm-evaluation-harness"


@dataclass(frozen=True)
class HarnessOptions:
    """The options of tasks of the harness.

    Attributes:
        limit: The most questions of each task; None: all.
        batch_size: The number of prompts in a batch.
        shots: The number of examples in a prompt; None: the task's.
        max_tokens: The longest reply; None: the task's.
        seed: The seed of the harness's random choices.
        include: A folder of the user's tasks (`.yaml`).
        run_code: Whether tasks may execute the code that the model writes.
    """

    limit: int | None = None
    batch_size: int = 8
    shots: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    include: Path | None = None
    run_code: bool = False

    @property
    def settings(self) -> Mapping[str, object]:
        """The options that the records depend on."""
        include = None if self.include is None else str(self.include)
        return {"limit": self.limit, "shots": self.shots, "max_tokens": self.max_tokens, "include": include}


@dataclass(frozen=True)
class HarnessTask:
    """The description of a task for the analysis and the report; see `Described`."""

    name: str
    breakdowns: ClassVar[tuple[str, ...]] = ()
    curves: ClassVar[tuple[str, ...]] = ()
    outside_mean: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        return f"{self.name} (lm-evaluation-harness)"

    @property
    def published(self) -> tuple[Published, ...]:
        return published_scores(self.name)

    @property
    def differences(self) -> tuple[str, ...]:
        return (*_DIFFERENCES.get(self.name, ()), *_GENERAL)


class HarnessRun:
    """Runs tasks of the harness and keeps their records in a run's folder.

    The harness runs a task as a whole. If a run was killed during a task, the task is run again from its start.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        options: The options of the tasks.
        records: The records of the run.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, options: HarnessOptions, records: JsonLines[Record]
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._records = records

    def ask(self, task: str, conditions: Iterable[Condition], progress: Counted) -> None:
        """Run a task under those of the conditions that it supports.

        Raises:
            FileNotFoundError: The data of the task cannot be read.
            ValueError: lm-eval is not installed or has no such task, the task needs permission to execute code, or its
                questions have no scores.
        """
        for condition in asked_conditions(conditions):
            progress(f"{task}, {condition}", 0)
            present = {row["id"] for row in self._of(task, condition)}
            if condition not in self.complete_conditions(task):
                result = run_harness_task(self._model, self._tokenizer, task, condition, self._options)
                first = [each.metric for each in HarnessTask(task).published]
                rows = harness_records(result, first)
                self._records.add(row for row in rows if row["id"] not in present)
            progress(f"{task}, {condition}", 1)

    def complete_conditions(self, task: str) -> list[str]:
        """The conditions under which all questions of a task have a record."""
        rows = {condition: self._of(task, condition) for condition in HARNESS_CONDITIONS}
        return [condition for condition, found in rows.items() if found and len(found) == found[0]["questions"]]

    def rows(self, task: str, conditions: Sequence[str]) -> list[Record]:
        """The records of a task under some conditions."""
        return [row for condition in conditions for row in self._of(task, condition)]

    def _of(self, task: str, condition: str) -> list[Record]:
        return [row for row in self._records.rows if (row["task"], row["condition"]) == (task, condition)]


def asked_conditions(conditions: Iterable[Condition]) -> list[str]:
    """The names of the conditions that tasks of the harness support, out of some conditions."""
    return [condition.name for condition in conditions if condition.name in HARNESS_CONDITIONS]


def check_harness_tasks(names: Sequence[str], include: Path | None = None) -> None:
    """Check the names of tasks before anything is run.

    Args:
        names: The names.
        include: A folder of the user's tasks.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: lm-eval is not installed, or it has no task of a name.
    """
    known = task_manager(include).all_tasks
    for name in names:
        if _NAMES.get(name, name) not in known:
            near = difflib.get_close_matches(name, [*_NAMES, *known])
            hint = f"there are {', '.join(near)}" if near else "`lm-eval ls tasks` lists the tasks"
            raise ValueError(f"there is no task {name}, here or in lm-evaluation-harness; {hint}")


def run_harness_task(
    model: nn.Module, tokenizer: TokenizerWrapper, name: str, condition: str, options: HarnessOptions
) -> HarnessResult:
    """Run a task of the harness.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        name: The name of the task or of a group of tasks.
        condition: `base`, the frozen backbone, or `full`, with a memory that is empty at the start of each request.
        options: The options.

    Raises:
        FileNotFoundError: The data of the task cannot be read.
        ValueError: The condition is another one, lm-eval is not installed or has no such task, the task needs
            permission to execute code, or the model has no adapter.
    """
    if condition not in HARNESS_CONDITIONS:
        raise ValueError(
            f"there is no condition {condition} for tasks of the harness; expected {', '.join(HARNESS_CONDITIONS)}"
        )
    check_harness_tasks([name], options.include)
    harness = evaluate_extra("lm_eval", _PURPOSE)
    memory_lm = evaluate_extra("mlx_deltamem.evaluation.tasks.harness_model", _PURPOSE).MemoryLM
    lm = memory_lm(model, tokenizer, HARNESS_CONDITIONS[condition], options.batch_size, options.max_tokens)
    harness_name = _NAMES.get(name, name)
    with _data_errors(name):
        output = harness.simple_evaluate(
            model=lm,
            tasks=[harness_name],
            task_manager=task_manager(options.include),
            num_fewshot=options.shots,
            limit=options.limit,
            apply_chat_template=lm.use_chat_template,
            random_seed=options.seed,
            numpy_random_seed=options.seed,
            torch_random_seed=options.seed,
            fewshot_random_seed=options.seed,
            confirm_run_unsafe_code=options.run_code,
        )
    return read_result(name, harness_name, condition, output)


@functools.cache
def task_manager(include: Path | None) -> "TaskManager":
    """The harness's index of tasks. Building it reads thousands of files.

    Args:
        include: A folder of the user's tasks.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: lm-eval is not installed.
    """
    tasks = evaluate_extra("lm_eval.tasks", _PURPOSE)
    if include is not None and not include.is_dir():
        raise FileNotFoundError(f"there is no folder {include}; name a folder of tasks (.yaml)")
    return tasks.TaskManager(include_path=include)


@contextmanager
def _data_errors(name: str) -> Iterator[None]:
    with hub_errors(name):
        try:
            yield
        except OSError as error:
            raise FileNotFoundError(
                f"cannot read the data of {name} ({one_line(error)}); check the network, or the files the task names"
            ) from None
