"""The work of `mlx_deltamem.evaluate`: it asks the questions of the tasks, and writes and prints the report."""

import argparse
from dataclasses import fields
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.cli.opening import load_model, load_spread_model
from mlx_deltamem.cli.options import model_and_adapter
from mlx_deltamem.core.adapter import RESULTS_FILE
from mlx_deltamem.evaluation.asking import Manner
from mlx_deltamem.evaluation.conditions import parse_conditions
from mlx_deltamem.evaluation.dealing import Dealt
from mlx_deltamem.evaluation.report import REPORT_FILE, result_tables
from mlx_deltamem.evaluation.request import (
    Request,
    assist,
    check_baselines,
    check_harness_request,
    evaluate,
    write_evaluation,
)
from mlx_deltamem.evaluation.run import Plan
from mlx_deltamem.evaluation.settings import SETTINGS_FILE
from mlx_deltamem.evaluation.task import Sampling, Task
from mlx_deltamem.evaluation.tasks.harness import HarnessOptions
from mlx_deltamem.evaluation.tasks.health_report import health_tables
from mlx_deltamem.evaluation.tasks.registry import HEALTH, TASKS
from mlx_deltamem.files.atomic import created
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.ranks.world import World
from mlx_deltamem.sessions.turns.writing import AFTER, ALL
from mlx_deltamem.show.tables import print_tables

# NumPy's limit.
_LARGEST_HARNESS_SEED = 2**32 - 1


def run(args: argparse.Namespace) -> None:
    """Do the work that the options of the command describe.

    Raises:
        FileNotFoundError: The model, the adapter or the data of a task do not exist.
        ValueError: Options contradict each other or are impossible, a task does not exist, or a file is damaged.
    """
    request = _request(args)
    dealt = Dealt(world(), args.shard)
    _check_ranks(request, args.shard, dealt.world)
    if not dealt.world.is_first:
        assist(request, *_load(args), dealt)
        return
    _check_output(args.output)
    # Created before the model is loaded, which may take long.
    with created(args.output):
        evaluation = evaluate(request, *_load(args), args.output, dealt)
        earlier = write_evaluation(evaluation, args.output)
    print_tables(table for result in evaluation.results for table in result_tables(result))
    print_tables([] if evaluation.health is None else health_tables(evaluation.health))
    print(f"The report is in {args.output / REPORT_FILE}")
    if earlier:
        print(
            f"It leaves out the earlier tasks of the folder ({', '.join(earlier)}), which {RESULTS_FILE} keeps. Name "
            "them in --tasks too, and the report has them; recorded questions are not asked again"
        )


def _check_output(folder: Path) -> None:
    """Check, before any work, that a run can begin or go on in a folder.

    Raises:
        ValueError: It is a file, or it has files and no run.
    """
    if folder.is_file():
        raise ValueError(f"--output is the file {folder}; name a folder")
    if not folder.is_dir() or (folder / SETTINGS_FILE).exists():
        return
    # Finder and killed processes leave hidden files.
    if files := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise ValueError(f"--output {folder} has no run and is not empty ({files[0]}); name a new folder")


def _load(args: argparse.Namespace) -> tuple[nn.Module, TokenizerWrapper]:
    """The whole model in each rank; with --shard, a part of it."""
    return load_spread_model(args) if args.shard else load_model(args)


def _check_ranks(request: Request, is_spread: bool, ranks: World) -> None:
    """Check that the ranks can ask the questions, each with a model or all with one.

    Raises:
        ValueError: They cannot.
    """
    if is_spread and ranks.is_alone:
        raise ValueError("--shard is for several machines; start the command with mlx.launch, or leave it out")
    if request.harness_tasks and not ranks.is_alone:
        raise ValueError(
            f"tasks of lm-evaluation-harness ({', '.join(request.harness_tasks)}) are for one machine, and mlx.launch "
            "has started several; run them in a command of their own, without mlx.launch"
        )


def _request(args: argparse.Namespace) -> Request:
    """The work that the command line describes.

    Raises:
        FileNotFoundError: The folder of --harness-include does not exist.
        ValueError: Options contradict each other or are impossible, or a task does not exist.
    """
    names = list(dict.fromkeys(args.tasks))
    conditions = parse_conditions(args.conditions)
    others = [condition.name for condition in conditions if condition.chat is None]
    check_baselines(conditions, args.dense_model)
    if others and args.write not in (None, ALL, AFTER):
        raise ValueError(f"--write {args.write} is for chat and chat-N; {', '.join(others)} take {ALL} or {AFTER}")
    given = [name for name, _ in args.data]
    if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
        raise ValueError(f"--data names the data of {', '.join(twice)} twice; leave one of them out")
    if unused := [name for name in given if name not in names]:
        raise ValueError(f"--data is of {', '.join(unused)}, which is not among --tasks; add it there, or leave it out")
    absent = ((name, each.name) for name, kind in TASKS.items() if name not in names for each in fields(kind))
    for name, option in absent:
        if getattr(args, f"{name}_{option}", None) is not None:
            unused_option = f"--{name}-{option}".replace("_", "-")
            raise ValueError(
                f"{unused_option} is for the task {name}, which is not among --tasks; add it, or leave it out"
            )
    tasks = [_task(name, args) for name in names if name in TASKS]
    harness_options = _harness_options(args)
    harness_tasks = [name for name in names if name not in (*TASKS, HEALTH)]
    if harness_tasks:
        if args.seed > _LARGEST_HARNESS_SEED:
            raise ValueError(f"--seed is {args.seed}; tasks of lm-evaluation-harness take seeds from 0 to 2**32 - 1")
        check_harness_request(harness_tasks, conditions, harness_options.include)
    elif harness_options != HarnessOptions(args.limit, args.batch_size, seed=args.seed):
        raise ValueError("--harness-... is for tasks of lm-evaluation-harness, and none is among --tasks; add one")
    model, adapter = model_and_adapter(args)
    return Request(
        model=model,
        adapter=adapter,
        tasks=[(task, _manner(task, args)) for task in tasks],
        harness_tasks=harness_tasks,
        harness_options=harness_options,
        health=HEALTH in names,
        plan=Plan(conditions, tuple(dict.fromkeys(args.seeds or (args.seed,))), args.batch_size, args.seed),
        limit=args.limit,
    )


def _task(name: str, args: argparse.Namespace) -> Task:
    """A task with its options.

    Raises:
        ValueError: An option is impossible.
    """
    kind = TASKS[name]
    given = {}
    for each in fields(kind):
        value = getattr(args, f"{name}_{each.name}", None)
        if value is not None:
            given[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(data=dict(args.data).get(name), seed=args.seed, **given)


def _manner(task: Task, args: argparse.Namespace) -> Manner:
    usual = task.sampling
    return Manner(
        sampling=Sampling(
            temp=usual.temp if args.temp is None else args.temp,
            top_p=usual.top_p if args.top_p is None else args.top_p,
            top_k=usual.top_k if args.top_k is None else args.top_k,
        ),
        stop=task.stop,
        write=args.write,
        reply_tokens=args.reply_tokens,
        prefill_step_size=args.prefill_step_size,
        history_tokens=args.history_tokens,
        dense_model=args.dense_model,
    )


def _harness_options(args: argparse.Namespace) -> HarnessOptions:
    return HarnessOptions(
        limit=args.limit,
        batch_size=args.batch_size,
        shots=args.harness_shots,
        max_tokens=args.harness_max_tokens,
        seed=args.seed,
        include=args.harness_include,
        run_code=args.harness_run_code,
    )
