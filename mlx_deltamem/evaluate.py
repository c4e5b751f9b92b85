"""Measure whether a δ-mem adapter helps: questions with the history in the text, in the memory, or left out."""

import argparse
from pathlib import Path

from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.options import add_model_options, model_and_adapter
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.evaluation.conditions import CONDITIONS, DEFAULT_CONDITIONS, parse_conditions
from mlx_deltamem.evaluation.tasks.registry import HEALTH, TASKS
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.options.arguments import add_options
from mlx_deltamem.options.rule import COUNT, PLACE, POSITIVE, SHARE, STEP, TEMPERATURE, Rule
from mlx_deltamem.sessions.turns.writing import WRITES

# The index of a question is added to the seed of its reply, and MLX takes seeds of 64 bits.
_SEED = Rule(int, least=0, most=2**63 - 1)
# Examples for --help.
_BASELINES = ("last", "last-256", "bm25-4", "bm25-all", "dense-4", "oracle", "summary-256")


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
    meanings += "; and baselines, other ways to remember: " + "; ".join(
        f"{name}: {condition.meaning}" for name in _BASELINES for condition in parse_conditions([name])
    )
    meanings += "; a baseline with +state (or the controls +zeroed, +shuffled): the memory beside its text"
    default = ",".join(DEFAULT_CONDITIONS)
    parser.add_argument("--conditions", type=_names, default=default, help=f"{meanings} (default: {default}).")
    parser.add_argument(
        "--output",
        type=user_path,
        required=True,
        help="The folder of the run: a new one, or one with a run, which is continued.",
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
    parser.add_argument(
        "--dense-model",
        type=PLACE,
        help="For the conditions dense: the folder or Hub repo of a model of model2vec, for example "
        "minishlab/potion-retrieval-32M.",
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
    """Run the command."""
    args = setup_arg_parser().parse_args()
    model_and_adapter(args)
    from mlx_deltamem.commands.evaluate import run

    run(args)


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


if __name__ == "__main__":
    main()
