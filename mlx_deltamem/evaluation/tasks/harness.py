"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness): IFEval, GPQA, MMLU ..."""

import difflib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.evaluation.tasks.extras import evaluate_extra

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

Found = Mapping[str, object]  # what the harness says of a run, of a task, of a question

# What these tasks can tell: their history is not apart from their question.
HARNESS_CONDITIONS = {"base": False, "full": True}

# Short names of tasks, and those of the harness.
_NAMES = {"gpqa_diamond": "gpqa_diamond_cot_zeroshot"}
_DIFFERENCES = {
    "ifeval": ("Published runs generated up to 1,500 tokens; the harness up to 1,280.",),
    "gpqa_diamond": (
        "Published runs asked for a JSON letter, the options in an order by a hash; the harness asks for steps of "
        "thought and shuffles in its own way.",
    ),
}
_GENERAL = (
    "Adapters that write means of messages write token by token here, since requests have no messages.",
    "The harness puts a request into the model's chat template, thinking off, and takes the likeliest tokens.",
)
_PURPOSE = "a task of lm-evaluation-harness"


@dataclass(frozen=True)
class HarnessOptions:
    """How tasks of the harness are run.

    Attributes:
        limit: At most so many questions of each task; None: all.
        batch_size: Prompts to run side by side.
        shots: Examples in a prompt; None: as the task says.
        max_tokens: The longest reply; None: as the task says.
        seed: Of what the harness draws at random.
        include: A folder with tasks of one's own (`.yaml`).
        run_code: Whether tasks that run what the model wrote may do so.
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
        """What decides the results."""
        include = None if self.include is None else str(self.include)
        return {"limit": self.limit, "shots": self.shots, "max_tokens": self.max_tokens, "include": include}


@dataclass(frozen=True)
class Sample:
    """A question of a task.

    Attributes:
        task: The task or, of a group such as MMLU, the member of it.
        id: Its place in the task.
        gold: The right answer, as the harness has it.
        replies: What the model said or, where endings are compared, how likely each is.
        scores: By metric; those alone that are a share for each question, whose mean is the harness's own number.
    """

    task: str
    id: int
    gold: str
    replies: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class HarnessResult:
    """What came of a task.

    Attributes:
        task: Its name, as it was asked for.
        condition: `base` or `full`.
        scores: By metric, the harness's own aggregate; of a group, of all its members.
        questions: How many were asked.
        samples: Every question.
    """

    task: str
    condition: str
    scores: Mapping[str, float]
    questions: int
    samples: tuple[Sample, ...]


def harness_differences(name: str) -> tuple[str, ...]:
    """What the harness does otherwise than the published runs of a task, a sentence each."""
    return (*_DIFFERENCES.get(name, ()), *_GENERAL)


def check_harness_tasks(names: Sequence[str], include: Path | None = None) -> None:
    """Check names of tasks before anything is run.

    Raises:
        ValueError: lm-eval is not installed, or it has no such task.
    """
    known = task_manager(include).all_tasks
    for name in names:
        if _NAMES.get(name, name) not in known:
            near = (
                ", ".join(difflib.get_close_matches(name, [*_NAMES, *known])) or "others: `lm-eval ls tasks` lists them"
            )
            raise ValueError(f"there is no task {name}, here or in lm-evaluation-harness; there are {near}")


def run_harness_task(
    model: nn.Module, tokenizer: TokenizerWrapper, name: str, condition: str, options: HarnessOptions
) -> HarnessResult:
    """Run a task of the harness.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        name: Of the task or group.
        condition: `base`, the frozen backbone, or `full`, with a memory that each request begins anew.
        options: How.

    Raises:
        FileNotFoundError: The task's data cannot be had.
        ValueError: lm-eval is not installed, there is no such task, it may not run, or the model has no adapter.
    """
    if condition not in HARNESS_CONDITIONS:
        raise ValueError(
            f"there is no condition {condition} for tasks of the harness; expected {', '.join(HARNESS_CONDITIONS)}"
        )
    check_harness_tasks([name], options.include)
    harness = evaluate_extra("lm_eval", _PURPOSE)
    memory_lm = evaluate_extra("mlx_deltamem.evaluation.tasks.harness_model", _PURPOSE).MemoryLM
    lm = memory_lm(model, tokenizer, HARNESS_CONDITIONS[condition], options.batch_size, options.max_tokens)
    with _data_errors(name):
        found = harness.simple_evaluate(
            model=lm,
            tasks=[_NAMES.get(name, name)],
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
    return _result(name, condition, found)


@functools.cache
def task_manager(include: Path | None) -> "TaskManager":
    """What knows the tasks; it reads thousands of files to learn them."""
    evaluate_extra("lm_eval", _PURPOSE)
    if include is not None and not include.is_dir():
        raise FileNotFoundError(f"there is no folder {include} of tasks")
    return evaluate_extra("lm_eval.tasks", _PURPOSE).TaskManager(include_path=include)


@contextmanager
def _data_errors(name: str) -> Iterator[None]:
    with hub_errors(name):
        try:
            yield
        except OSError as error:
            raise FileNotFoundError(f"the data of {name} cannot be had ({' '.join(str(error).split())})") from None


def _result(name: str, condition: str, found: Found) -> HarnessResult:
    own = _NAMES.get(name, name)
    results = found["results"]
    aggregates = dict(results.get(own) or {})
    if not any(_is_number(value) for value in aggregates.values()):
        # A tag stands for several tasks, which have no mean.
        aggregates = {f"{task} {key}": value for task, each in results.items() for key, value in each.items()}
    scores = {}
    for key, value in aggregates.items():
        # "exact_match_stderr,strict-match"; other entries are no scores.
        metric, comma, chosen = key.partition(",")
        if comma and _is_number(value) and not metric.endswith("_stderr"):
            scores[_metric(metric, chosen)] = float(value)
    samples = tuple(
        sample for task, rows in found["samples"].items() for sample in _samples(task, rows, results.get(task) or {})
    )
    return HarnessResult(name, condition, scores, len(samples), samples)


def _samples(task: str, rows: Sequence[Found], aggregates: Found) -> Iterator[Sample]:
    """The questions of a task; the harness has a row for each way to find the answer in a reply."""
    by_id: dict[int, list[Found]] = {}
    found: dict[tuple[str, str], list[object]] = {}
    for row in rows:
        by_id.setdefault(row["doc_id"], []).append(row)
        for metric in row["metrics"]:
            found.setdefault((metric, row["filter"]), []).append(row[metric])
    kept = {key for key, values in found.items() if _is_mean(values, aggregates.get(",".join(key)))}
    for number, same in sorted(by_id.items()):
        scores = {
            _metric(metric, row["filter"]): float(row[metric])
            for row in same
            for metric in row["metrics"]
            if (metric, row["filter"]) in kept
        }
        replies = tuple(str(reply) for replies in same[0]["resps"] for reply in replies)
        yield Sample(task, number, str(same[0]["target"]), replies, scores)


def _metric(name: str, chosen: str) -> str:
    """A metric's name, with the way in which the answer is found where there are several."""
    return name if chosen == "none" else f"{name},{chosen}"


def _is_mean(scores: Sequence[object], aggregate: object) -> bool:
    """Whether the harness's own number is the mean of shares: perplexities and BLEU are no such means."""
    if not (_is_number(aggregate) and all(_is_number(score) and 0 <= score <= 1 for score in scores)):
        return False
    return math.isclose(np.mean(scores), aggregate, abs_tol=1e-6)


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float | np.number)
