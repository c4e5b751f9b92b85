"""Measure whether a δ-mem adapter helps: questions with the history in the text, in the memory, or nowhere."""

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import DEFAULT_MODEL, add_model_options, count_from, load_model, number_from
from mlx_deltamem.core.adapter import RESULTS_FILE
from mlx_deltamem.evaluation.analysis import Result, analyse
from mlx_deltamem.evaluation.asking import Manner
from mlx_deltamem.evaluation.conditions import CONDITIONS, DEFAULT_CONDITIONS, Condition, parse_conditions
from mlx_deltamem.evaluation.costs import Costs, sum_up
from mlx_deltamem.evaluation.report import REPORT_FILE, Report, write_report, write_results
from mlx_deltamem.evaluation.run import Plan, Run, prepare
from mlx_deltamem.evaluation.settings import compare_settings, keep_settings
from mlx_deltamem.evaluation.table import health_tables, result_tables
from mlx_deltamem.evaluation.task import Sampling, Task
from mlx_deltamem.evaluation.tasks.harness import HarnessOptions, check_harness_tasks
from mlx_deltamem.evaluation.tasks.harness_run import HarnessRun, HarnessTask, asked_conditions
from mlx_deltamem.evaluation.tasks.health import Checkup
from mlx_deltamem.evaluation.tasks.health_report import NAME as HEALTH
from mlx_deltamem.evaluation.tasks.health_report import STEPS, Health, examine
from mlx_deltamem.evaluation.tasks.registry import TASKS
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.sessions.writing import AFTER, ALL, WRITES
from mlx_deltamem.show.plot import load_figures
from mlx_deltamem.show.printing import print_tables
from mlx_deltamem.show.progress import counting_progress


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser. Options of tasks that are not given are None."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.evaluate", description=__doc__)
    add_model_options(parser)
    parser.add_argument(
        "--tasks",
        type=_names,
        required=True,
        help=f"Of {', '.join(TASKS)}; {HEALTH}: perplexity of plain English and replies with nothing told, beside the "
        "frozen model's; and any of lm-evaluation-harness (ifeval, gsm8k, mmlu ...), with commas between.",
    )
    meanings = "; ".join(f"{name}: {condition.meaning}" for name, condition in CONDITIONS.items())
    meanings += "; chat-N: as chat, the last N tokens of earlier turns kept in the text"
    default = ",".join(DEFAULT_CONDITIONS)
    parser.add_argument("--conditions", type=_names, default=default, help=f"{meanings} (default: {default}).")
    parser.add_argument("--output", type=user_path, required=True, help="Folder; a run that is there already goes on.")
    parser.add_argument("--data", type=_place, action="append", default=[], metavar="TASK=PATH", help="A task's data.")
    parser.add_argument(
        "--limit",
        type=count_from(1),
        help="At most so many questions of each task. A run can be continued with another limit, except tasks of "
        "lm-evaluation-harness.",
    )
    parser.add_argument("--batch-size", type=count_from(1), default=16, help="Questions side by side (default: 16).")
    parser.add_argument("--seed", type=count_from(0), default=0, help="Of all that is drawn at random (default: 0).")
    parser.add_argument("--seeds", type=count_from(0), nargs="+", help="Of sampled replies, one run each.")
    parser.add_argument("--temp", type=number_from(0.0), help="Sampling temperature (default: the task's).")
    parser.add_argument("--top-p", type=number_from(0.0, 1.0), help="Sampling top-p (default: the task's).")
    parser.add_argument("--top-k", type=count_from(0), help="Sampling top-k (default: the task's).")
    parser.add_argument(
        "--write",
        choices=WRITES,
        help="What is written into the memory. In chat and chat-N: of each turn, as in mlx_deltamem.chat (default: "
        "all). In other conditions the history is written, and all writes questions and replies too, after does not "
        "(default: after, as in training); full always writes all, base and replay only read.",
    )
    parser.add_argument(
        "--reply-tokens", type=count_from(1), default=64, help="The longest reply of chats before the question."
    )
    parser.add_argument("--prefill-step-size", type=count_from(1), default=2048, help="Tokens to process at a time.")
    parser.add_argument(
        "--history-tokens",
        type=count_from(1),
        help="Tokens of text seen at once while a history is read into the memory (default: the model's window).",
    )
    for name, task in TASKS.items():
        group = parser.add_argument_group(f"task {name}", task.source)
        for each in fields(task):
            if each.name not in ("data", "seed"):
                _add_option(group, f"--{name}-{each.name.replace('_', '-')}", each.default, **each.metadata)
    group = parser.add_argument_group("tasks of lm-evaluation-harness", "They are asked under base and full only.")
    group.add_argument("--harness-shots", type=count_from(0), help="Examples in a prompt (default: the task's).")
    group.add_argument("--harness-max-tokens", type=count_from(1), help="The longest reply (default: the task's).")
    group.add_argument("--harness-include", type=user_path, help="A folder with tasks of your own (.yaml).")
    group.add_argument("--harness-run-code", action="store_true", help="Let tasks run what the model writes.")
    return parser


def _add_option(
    group: argparse._ArgumentGroup,
    flag: str,
    default: object,
    help: str,
    choices: tuple[str, ...],
    kind: type,
    count: int | None,
) -> None:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{help} (default: {'any' if shown in ('', None) else shown})"
    if isinstance(default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif isinstance(default, tuple):
        kind = type(default[0]) if default else kind
        group.add_argument(flag, type=kind, nargs=count or "+", choices=choices or None, help=text)
    else:
        kind = kind if default is None else type(default)
        group.add_argument(flag, type=kind, choices=choices or None, help=text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} has no names; expected some, with commas between")
    return names


def _place(text: str) -> tuple[str, Path]:
    task, found, path = text.partition("=")
    with_data = [name for name, kind in TASKS.items() if kind.source]
    if not found or task not in with_data:
        raise argparse.ArgumentTypeError(
            f"{text!r} names no task's data; expected TASK=PATH, TASK of {', '.join(with_data)}"
        )
    return task, user_path(path)


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    names = list(dict.fromkeys(args.tasks))
    conditions = parse_conditions(args.conditions)
    others = [condition.name for condition in conditions if condition.chat is None]
    if others and args.write not in (None, ALL, AFTER):
        raise ValueError(f"--write {args.write} is for chat and chat-N; {', '.join(others)} take {ALL} or {AFTER}")
    if unused := [name for name, _ in args.data if name not in names]:
        raise ValueError(f"--data is of {', '.join(unused)}, which is not among --tasks; add it there, or leave it out")
    tasks = [_task(name, args) for name in names if name in TASKS]
    harness_names = [name for name in names if name not in (*TASKS, HEALTH)]
    _check_harness(harness_names, conditions, args)
    if args.output.is_file():
        raise ValueError(f"--output is the file {args.output}; name a folder")
    # What comes next may take long.
    args.output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(args)
    prepared = [prepare(task, _manner(task, args), model, tokenizer, args.limit) for task in tasks]
    checkup = Checkup(model, tokenizer, args.limit, args.limit) if HEALTH in names else None
    plan = Plan(conditions, tuple(dict.fromkeys(args.seeds or (args.seed,))), args.batch_size, args.seed)
    options = _harness_options(args)
    settings = {each.task.name: each.settings for each in prepared}
    settings |= {name: options.settings for name in harness_names}
    whole_plan = {"seed": args.seed, "seeds": plan.seeds}
    to_keep = compare_settings(args.output, origin_of(model, tokenizer), whole_plan, settings)
    run = Run(model, tokenizer, plan, args.output)
    for each in prepared:
        run.check(each)
    keep_settings(args.output, to_keep)
    harness = HarnessRun(model, tokenizer, options, run.records)
    amount = sum(map(run.amount, prepared)) + len(harness_names) * len(asked_conditions(conditions))
    amount += 0 if checkup is None else len(STEPS)
    with counting_progress(amount) as progress:
        health = None if checkup is None else examine(checkup, args.seed, progress)
        for each in prepared:
            run.ask(each, progress)
        for name in harness_names:
            harness.ask(name, conditions, progress)
    results, costs = [], {}
    for each in prepared:
        asked = run.complete_conditions(each)
        results.append(analyse(each.task, run.rows(each, asked), asked, args.seed))
        costs |= {(each.task.name, name): sum_up(run.measures_of(each, name)) for name in asked}
    for name in harness_names:
        asked = harness.complete_conditions(name)
        results.append(analyse(HarnessTask(name), harness.rows(name, asked), asked, args.seed))
    settings |= {each.task.name: each.summary for each in prepared}
    settings |= {} if checkup is None else {HEALTH: checkup.settings}
    _report(results, health, costs, args, settings)


def _check_harness(names: Sequence[str], conditions: Sequence[Condition], args: argparse.Namespace) -> None:
    """Check, before any work, that tasks of the harness can be run.

    Raises:
        ValueError: lm-eval is not installed or has no such task, or no condition is one for them.
    """
    if not names:
        if _harness_given(args):
            raise ValueError("--harness-... is for tasks of lm-evaluation-harness, and none is among --tasks; add one")
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            f"there is no task {', '.join(names)}; there are {', '.join((*TASKS, HEALTH))}, and those of "
            "lm-evaluation-harness with pip install 'mlx-deltamem[evaluate]'"
        )
    check_harness_tasks(names, args.harness_include)
    if not asked_conditions(conditions):
        raise ValueError(f"{', '.join(names)} can be asked under base and full only; add one to --conditions")


def _harness_given(args: argparse.Namespace) -> bool:
    shots, length = args.harness_shots is not None, args.harness_max_tokens is not None
    return shots or length or args.harness_include is not None or args.harness_run_code


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


def _report(
    results: Sequence[Result],
    health: Health | None,
    costs: Mapping[tuple[str, str], Costs],
    args: argparse.Namespace,
    settings: Mapping[str, object],
) -> None:
    """Write the report, draw the figures, and print the results."""
    pictures: dict[str, list[str]] = {}
    if importlib.util.find_spec("matplotlib") is not None:
        draw = load_figures("evaluation").draw
        pictures = {result.task.name: draw(result, args.output) for result in results}
    names = args.model or DEFAULT_MODEL, args.adapter or REFERENCE_ADAPTER
    report = Report(*names, settings, results, costs, pictures, health)
    write_results(report, args.output / RESULTS_FILE)
    write_report(report, args.output / REPORT_FILE)
    print_tables(table for result in results for table in result_tables(result))
    print_tables([] if health is None else health_tables(health))
    print(f"The report is in {args.output / REPORT_FILE}")


def _task(name: str, args: argparse.Namespace) -> Task:
    """A task with its options from the command line.

    Raises:
        ValueError: Its options cannot be met.
    """
    kind = TASKS[name]
    given = {}
    for each in fields(kind):
        value = getattr(args, f"{name}_{each.name}", None)
        if value is not None:
            given[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(data=dict(args.data).get(name), seed=args.seed, **given)


def _manner(task: Task, args: argparse.Namespace) -> Manner:
    asked = {name: getattr(args, name) for name in ("temp", "top_p", "top_k")}
    own = {name: getattr(task.sampling, name) if value is None else value for name, value in asked.items()}
    return Manner(
        sampling=Sampling(**own),
        stop=task.stop,
        write=args.write,
        reply_tokens=args.reply_tokens,
        prefill_step_size=args.prefill_step_size,
        history_tokens=args.history_tokens,
    )


if __name__ == "__main__":
    main()
