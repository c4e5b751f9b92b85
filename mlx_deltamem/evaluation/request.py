"""A whole evaluation: ask the questions of all tasks, analyse the records, and write the report and the figures."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.core.adapter import RESULTS_FILE
from mlx_deltamem.evaluation.analysis import Result, analyse
from mlx_deltamem.evaluation.asking import Manner
from mlx_deltamem.evaluation.baselines.baseline import Kind
from mlx_deltamem.evaluation.baselines.retrieval import check_bm25, load_vectors
from mlx_deltamem.evaluation.conditions import Condition
from mlx_deltamem.evaluation.dealing import MEASURES, RECORDS, Dealt, SentRows
from mlx_deltamem.evaluation.effects import Costs, sum_up
from mlx_deltamem.evaluation.prepared import PreparedTask, prepare
from mlx_deltamem.evaluation.report import REPORT_FILE, write_report
from mlx_deltamem.evaluation.results import Evaluation, write_results
from mlx_deltamem.evaluation.run import EvaluationRun, PartOfRun, Plan
from mlx_deltamem.evaluation.settings import compare_settings, keep_settings
from mlx_deltamem.evaluation.task import Task
from mlx_deltamem.evaluation.tasks.harness import (
    HarnessOptions,
    HarnessRun,
    HarnessTask,
    asked_conditions,
    check_harness_tasks,
)
from mlx_deltamem.evaluation.tasks.health import Checkup
from mlx_deltamem.evaluation.tasks.health_report import STEPS, Health, examine
from mlx_deltamem.evaluation.tasks.registry import HEALTH, TASKS
from mlx_deltamem.show.plot import load_figures
from mlx_deltamem.show.progress import counting_progress


@dataclass(frozen=True)
class Request:
    """The work of an evaluation.

    Attributes:
        model, adapter: The names of the model and the adapter, for the report.
        tasks: The tasks of this project, each with the manner of asking.
        harness_tasks: The names of the tasks of lm-evaluation-harness.
        harness_options: The options of these tasks.
        health: Whether to measure the effect of the adapter on the model itself.
        plan: The conditions, seeds and batches.
        limit: The most questions of each task, and of texts and prompts for `health`; None: all.
    """

    model: str
    adapter: str
    tasks: Sequence[tuple[Task, Manner]]
    harness_tasks: Sequence[str]
    harness_options: HarnessOptions
    health: bool
    plan: Plan
    limit: int | None = None


def check_harness_request(names: Sequence[str], conditions: Sequence[Condition], include: Path | None) -> None:
    """Check, before any work, that tasks of lm-evaluation-harness can be run.

    Args:
        names: The names of the tasks; at least one.
        conditions: All conditions of the evaluation.
        include: A folder of the user's tasks.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: lm-eval is not installed or has no such task, or the tasks support none of the conditions.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            f"there is no task {', '.join(names)}; there are {', '.join((*TASKS, HEALTH))}, and those of "
            "lm-evaluation-harness with pip install 'mlx-deltamem[evaluate]'"
        )
    check_harness_tasks(names, include)
    if not asked_conditions(conditions):
        raise ValueError(f"{', '.join(names)} can be asked under base and full only; add one to --conditions")


def check_baselines(conditions: Sequence[Condition], dense_model: str | None) -> None:
    """Check, before any work, that the libraries and the model of the baselines are there.

    Args:
        conditions: All conditions of the evaluation.
        dense_model: The folder or Hub repo of the model of model2vec, if one is given.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: A package is not installed, the model is damaged, or `dense` has no model or a model no `dense`.
    """
    kinds = {condition.baseline.kind for condition in conditions if condition.baseline is not None}
    if Kind.BM25 in kinds:
        check_bm25()
    if Kind.DENSE not in kinds:
        if dense_model is not None:
            raise ValueError("--dense-model is for the condition dense, which is not among --conditions; add it there")
        return
    if dense_model is None:
        raise ValueError("the condition dense needs --dense-model: the folder or Hub repo of a model of model2vec")
    load_vectors(dense_model)


def assist(request: Request, model: nn.Module, tokenizer: TokenizerWrapper, dealt: Dealt) -> None:
    """Ask the questions of a rank other than 0, which evaluates. The records go to rank 0.

    Args:
        request: The work, as in rank 0.
        model: An attached model: all of it; or a part of it, and then all ranks ask all questions together.
        tokenizer: Its tokenizer.
        dealt: The part of this rank.

    Raises:
        FileNotFoundError: The data of a task do not exist.
        ValueError: The data of a task are damaged, or the questions cannot be asked.
    """
    prepared = [prepare(task, manner, model, tokenizer, request.limit) for task, manner in request.tasks]
    if request.health and not dealt.is_dealt:
        examine(Checkup(model, tokenizer, request.limit, request.limit), request.plan.seed, lambda *_: None)
    done = dealt.share_done([])
    part = PartOfRun(model, tokenizer, request.plan, dealt)
    for task in prepared:
        part.ask(task, done, SentRows(dealt, RECORDS), SentRows(dealt, MEASURES), lambda *_: None)
    dealt.wait()


def evaluate(
    request: Request, model: nn.Module, tokenizer: TokenizerWrapper, folder: Path, dealt: Dealt | None = None
) -> Evaluation:
    """Ask all questions and analyse the records. A run in the folder is continued.

    Args:
        request: The work.
        model: An attached model.
        tokenizer: Its tokenizer.
        folder: The folder of the records and settings. It exists.
        dealt: The part of rank 0, where other ranks `assist`; None: there are none.

    Raises:
        FileNotFoundError: The data of a task do not exist.
        ValueError: The folder's run has other settings or questions, the data of a task are damaged, or the questions
            cannot be asked.
        OSError: A file in the folder cannot be read or written.
    """
    prepared = [prepare(task, manner, model, tokenizer, request.limit) for task, manner in request.tasks]
    checkup = Checkup(model, tokenizer, request.limit, request.limit) if request.health else None
    run = EvaluationRun(model, tokenizer, request.plan, folder, dealt)
    harness = HarnessRun(model, tokenizer, request.harness_options, run.records)

    harness_settings: dict[str, object] = {name: request.harness_options.settings for name in request.harness_tasks}
    plan = {"seed": request.plan.seed, "seeds": request.plan.seeds}
    settings: dict[str, object] = {task.name: task.settings for task in prepared}
    settings |= harness_settings
    to_keep = compare_settings(folder, origin_of(model, tokenizer), plan, settings)
    for task in prepared:
        run.check(task)
    keep_settings(folder, to_keep)

    health = _ask(request, run, harness, prepared, checkup)
    results, costs = _analyse(request, run, harness, prepared)
    summaries: dict[str, object] = {task.name: task.summary for task in prepared}
    summaries |= harness_settings
    if checkup is not None:
        summaries[HEALTH] = checkup.settings
    return Evaluation(request.model, request.adapter, summaries, results, costs, health)


def write_evaluation(evaluation: Evaluation, folder: Path) -> list[str]:
    """Write `results.json`, `report.md` and, if matplotlib is installed, the figures.

    Returns:
        The tasks of earlier runs in the folder. Their results stay in `results.json`, and are not in the report.

    Raises:
        OSError: A file cannot be written. An old file is unchanged.
    """
    pictures: dict[str, list[str]] = {}
    if importlib.util.find_spec("matplotlib") is not None:
        draw = load_figures("evaluation").draw
        pictures = {
            result.task.name: draw(result, evaluation.costs_of(result.task.name), folder)
            for result in evaluation.results
        }
    earlier = write_results(evaluation, folder / RESULTS_FILE)
    write_report(evaluation, pictures, folder / REPORT_FILE)
    return earlier


def _ask(
    request: Request,
    run: EvaluationRun,
    harness: HarnessRun,
    prepared: Sequence[PreparedTask],
    checkup: Checkup | None,
) -> Health | None:
    """Ask all questions that have no record, and measure the health if there is a checkup."""
    conditions = request.plan.conditions
    steps = sum(map(run.amount, prepared)) + len(request.harness_tasks) * len(asked_conditions(conditions))
    steps += 0 if checkup is None else len(STEPS)
    with counting_progress(steps) as progress:
        health = None if checkup is None else examine(checkup, request.plan.seed, progress)
        run.ask(prepared, progress)
        for name in request.harness_tasks:
            harness.ask(name, conditions, progress)
    return health


def _analyse(
    request: Request, run: EvaluationRun, harness: HarnessRun, prepared: Sequence[PreparedTask]
) -> tuple[list[Result], dict[tuple[str, str], Costs]]:
    """The results of each task, and the costs by task and condition. Conditions that are not complete are left out."""
    results: list[Result] = []
    costs: dict[tuple[str, str], Costs] = {}
    for task in prepared:
        asked = run.complete_conditions(task)
        results.append(analyse(task.task, run.rows(task, asked), asked, request.plan.seed))
        costs |= {(task.name, condition): sum_up(run.measures_of(task, condition)) for condition in asked}
    for name in request.harness_tasks:
        asked = harness.complete_conditions(name)
        results.append(analyse(HarnessTask(name), harness.rows(name, asked), asked, request.plan.seed))
    return results, costs
