"""Measure whether a δ-mem adapter helps: questions with the history in the text, in the memory, or left out."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER
from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.options import DEFAULT_MODEL, add_model_options, load_model, load_spread_model
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.evaluation.asking import Manner
from mlx_deltamem.evaluation.conditions import CONDITIONS, DEFAULT_CONDITIONS, parse_conditions
from mlx_deltamem.evaluation.dealing import Dealt
from mlx_deltamem.evaluation.report import REPORT_FILE, result_tables
from mlx_deltamem.evaluation.request import Request, assist, check_harness_request, evaluate, write_evaluation
from mlx_deltamem.evaluation.run import Plan
from mlx_deltamem.evaluation.task import Sampling, Task
from mlx_deltamem.evaluation.tasks.harness import HarnessOptions
from mlx_deltamem.evaluation.tasks.health_report import NAME as HEALTH
from mlx_deltamem.evaluation.tasks.health_report import health_tables
from mlx_deltamem.evaluation.tasks.registry import TASKS
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.options.arguments import add_options
from mlx_deltamem.options.rule import COUNT, POSITIVE, SHARE, STEP, TEMPERATURE, Rule
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.ranks.world import World
from mlx_deltamem.sessions.writing import AFTER, ALL, WRITES
from mlx_deltamem.show.tables import print_tables

# The index of a question is added to the seed of its reply, and MLX takes seeds of 64 bits.
_SEED = Rule(int, least=0, most=2**63 - 1)
# NumPy's limit.
_LARGEST_HARNESS_SEED = 2**32 - 1


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser. Options of tasks are None if they are not given."""
    parser = Parser(prog="mlx_deltamem.evaluate", description=__doc__)
    add_model_options(parser)
    parser.add_argument(
        "--tasks",
        type=_names,
        required=True,
        help=f"Tasks, with commas between: {', '.join(TASKS)}; {HEALTH}, which compares the perplexity of plain "
        "English and the replies with nothing told with the frozen model's; and any task of lm-evaluation-harness "
        "(ifeval, gsm8k, mmlu ...).",
    )
    meanings = "; ".join(f"{name}: {condition.meaning}" for name, condition in CONDITIONS.items())
    meanings += "; chat-N: as chat, with the last N tokens of earlier turns kept in the text"
    default = ",".join(DEFAULT_CONDITIONS)
    parser.add_argument("--conditions", type=_names, default=default, help=f"{meanings} (default: {default}).")
    parser.add_argument(
        "--output", type=user_path, required=True, help="The folder of the run. A run that is there is continued."
    )
    parser.add_argument(
        "--data", type=_place, action="append", default=[], metavar="TASK=PATH", help="The data of a task."
    )
    parser.add_argument(
        "--limit",
        type=POSITIVE,
        help="The most questions of each task. A run can be continued with another limit, except tasks of "
        "lm-evaluation-harness.",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="Under mlx.launch: split the model over the machines, if it is too large for one. Without it each machine "
        "has the whole model and asks a part of the questions.",
    )
    parser.add_argument("--batch-size", type=POSITIVE, default=16, help="Questions in a batch (default: 16).")
    parser.add_argument("--seed", type=_SEED, default=0, help="The seed of all random choices (default: 0).")
    parser.add_argument("--seeds", type=_SEED, nargs="+", help="The seeds of sampled replies, one run each.")
    parser.add_argument("--temp", type=TEMPERATURE, help="Sampling temperature (default: the task's).")
    parser.add_argument("--top-p", type=SHARE, help="Sampling top-p (default: the task's).")
    parser.add_argument("--top-k", type=COUNT, help="Sampling top-k (default: the task's).")
    parser.add_argument(
        "--write",
        choices=WRITES,
        help="The text that is written into the memory. In chat and chat-N it applies to each turn, as in "
        "mlx_deltamem.chat (default: all). In other conditions the history is written; all writes questions and "
        "replies too, after does not (default: after, as in training). full always writes everything, base and replay "
        "only read.",
    )
    parser.add_argument(
        "--reply-tokens",
        type=POSITIVE,
        default=64,
        help="The longest reply of a chat before the question, in tokens (default: 64).",
    )
    parser.add_argument(
        "--prefill-step-size", type=STEP, default=2048, help="Tokens to process at a time (default: 2048)."
    )
    parser.add_argument(
        "--history-tokens",
        type=POSITIVE,
        help="The tokens of text that are visible while a history is read into the memory (default: the model's "
        "window).",
    )
    for name, task in TASKS.items():
        add_options(parser.add_argument_group(f"task {name}", task.source), task, f"{name}-")
    group = parser.add_argument_group("tasks of lm-evaluation-harness", "They are asked under base and full only.")
    group.add_argument("--harness-shots", type=COUNT, help="Examples in a prompt (default: the task's).")
    group.add_argument("--harness-max-tokens", type=POSITIVE, help="The longest reply (default: the task's).")
    group.add_argument("--harness-include", type=user_path, help="A folder with tasks of yours (.yaml).")
    group.add_argument("--harness-run-code", action="store_true", help="Let tasks execute code that the model writes.")
    return parser


@command_of_ranks
def main() -> None:
    args = setup_arg_parser().parse_args()
    request = _request(args)
    dealt = Dealt(world(), args.shard)
    if args.shard:
        _check_shard(request, dealt.world)
    if not dealt.world.is_first:
        assist(request, *_load(args), dealt)
        return
    if args.output.is_file():
        raise ValueError(f"--output is the file {args.output}; name a folder")
    # Created before the model is loaded, which may take long.
    with _created(args.output):
        evaluation = evaluate(request, *_load(args), args.output, dealt)
        write_evaluation(evaluation, args.output)
    print_tables(table for result in evaluation.results for table in result_tables(result))
    print_tables([] if evaluation.health is None else health_tables(evaluation.health))
    print(f"The report is in {args.output / REPORT_FILE}")


def _load(args: argparse.Namespace) -> tuple[nn.Module, TokenizerWrapper]:
    """The whole model in each rank; with --shard, a part of it."""
    return load_spread_model(args) if args.shard else load_model(args)


def _check_shard(request: Request, ranks: World) -> None:
    """Check that the ranks can ask the questions with one model together.

    Raises:
        ValueError: They cannot.
    """
    if ranks.is_alone:
        raise ValueError("--shard is for several machines; start the command with mlx.launch, or leave it out")
    if request.harness_tasks:
        raise ValueError(
            f"--shard is not for tasks of lm-evaluation-harness ({', '.join(request.harness_tasks)}); leave it out: "
            "rank 0 then asks them"
        )


@contextmanager
def _created(folder: Path) -> Iterator[None]:
    """Create a folder and its parents. If the block fails, those that are new and still empty are removed."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


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
            f"{text!r} does not name the data of a task; expected TASK=PATH, with TASK one of {', '.join(with_data)}"
        )
    return task, user_path(path)


def _request(args: argparse.Namespace) -> Request:
    """The work that the command line describes.

    Raises:
        FileNotFoundError: The folder of --harness-include does not exist.
        ValueError: Options contradict each other or are impossible, or a task does not exist.
    """
    names = list(dict.fromkeys(args.tasks))
    conditions = parse_conditions(args.conditions)
    others = [condition.name for condition in conditions if condition.chat is None]
    if others and args.write not in (None, ALL, AFTER):
        raise ValueError(f"--write {args.write} is for chat and chat-N; {', '.join(others)} take {ALL} or {AFTER}")
    given = [name for name, _ in args.data]
    if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
        raise ValueError(f"--data names the data of {', '.join(twice)} twice; leave one of them out")
    if unused := [name for name in given if name not in names]:
        raise ValueError(f"--data is of {', '.join(unused)}, which is not among --tasks; add it there, or leave it out")
    tasks = [_task(name, args) for name in names if name in TASKS]
    harness_options = _harness_options(args)
    harness_tasks = [name for name in names if name not in (*TASKS, HEALTH)]
    if harness_tasks:
        if args.seed > _LARGEST_HARNESS_SEED:
            raise ValueError(f"--seed is {args.seed}; tasks of lm-evaluation-harness take seeds from 0 to 2**32 - 1")
        check_harness_request(harness_tasks, conditions, harness_options.include)
    elif harness_options != HarnessOptions(args.limit, args.batch_size, seed=args.seed):
        raise ValueError("--harness-... is for tasks of lm-evaluation-harness, and none is among --tasks; add one")
    return Request(
        model=args.model or DEFAULT_MODEL,
        adapter=args.adapter or REFERENCE_ADAPTER,
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


if __name__ == "__main__":
    main()
