"""Compare the start with mlx-lm's: `python -m tools.measure.start_up --model M --adapter-path A`.

Each figure is the processor time of whole processes: an import, or a command that generates one token. The processes
take turns. Without a model, only the imports are measured.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial

from rich.console import Console
from rich.table import Table

import mlx_deltamem
from mlx_deltamem.benchmarking.paired import Sample, compare, interleave
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import Rule
from mlx_deltamem.show.progress import reading_progress

# By figure: mlx-lm's program, ours, and the target.
IMPORTS = {
    "import mlx_deltamem": ("import mlx_lm", "import mlx_deltamem", 1.02),
    "import all public names": (
        "import mlx_lm",
        f"from mlx_deltamem import {', '.join(name for name in mlx_deltamem.__all__ if name != '__version__')}",
        None,
    ),
}
_COMMAND = "import sys; sys.argv = {arguments!r}; from {module} import main; main()"


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.start_up", description=__doc__)
    parser.add_argument("--model", help="Folder of a model, to generate one token with.")
    parser.add_argument("--adapter-path", help="Folder of an adapter for it.")
    parser.add_argument("--rounds", type=Rule(int, least=3), default=20, help="Rounds of measuring (default: 20).")
    return parser


def first_token(model: str, adapter: str) -> tuple[str, str, float]:
    """Return the programs that generate one token, mlx-lm's and ours, and the target."""
    arguments = ["generate", "--model", model, "--prompt", "What is my name?", "--max-tokens", "1"]
    return (
        _COMMAND.format(arguments=arguments, module="mlx_lm.generate"),
        _COMMAND.format(arguments=[*arguments, "--adapter-path", adapter], module="mlx_deltamem.generate"),
        1.03,
    )


def run(program: str) -> Sample:
    """Run a program in a process of its own and measure its processor time.

    Raises:
        ValueError: It ends with an error.
    """
    # Bytecode is kept between runs, as that of an installed package is.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    silent = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    started = os.posix_spawn(sys.executable, [sys.executable, "-c", program], environment, file_actions=[silent])
    _, status, used = os.wait4(started, 0)
    if status:
        raise ValueError(f"the program ended with the status {status}; expected 0: {program}")
    return Sample(cpu_seconds=used.ru_utime + used.ru_stime)


def measure(theirs: str, ours: str, rounds: int, name: str) -> Mapping[str, list[Sample]]:
    """Run two programs in turn, the first one twice in each round, after a round that does not count."""
    trials = {"theirs": partial(run, theirs), "ours": partial(run, ours), "theirs again": partial(run, theirs)}
    with reading_progress(name) as progress:
        return interleave(trials, rounds, progress=progress)


@command
def main() -> None:
    """Measure all figures and print a table."""
    args = setup_arg_parser().parse_args()
    if (args.model is None) != (args.adapter_path is None):
        raise ValueError("there is only one of --model and --adapter-path; expected both or none")
    programs: dict[str, tuple[str, str, float | None]] = dict(IMPORTS)
    if args.model is not None:
        programs["generate one token"] = first_token(args.model, args.adapter_path)
    table = Table("processor time, ours over mlx-lm's", "mlx-lm, s", "ours, s", "ratio", "noise", "target")
    for name, (theirs, ours, target) in programs.items():
        samples = measure(theirs, ours, args.rounds, name)
        seconds = {key: [sample.cpu_seconds for sample in found] for key, found in samples.items()}
        ratio = compare(seconds["ours"], seconds["theirs"], seconds["theirs again"])
        medians = (f"{sorted(seconds[key])[args.rounds // 2]:.3f}" for key in ("theirs", "ours"))
        wanted = "" if target is None else f"≤ {target}"
        table.add_row(name, *medians, f"{ratio.quartiles.median:.3f}", f"±{ratio.noise:.3f}", wanted)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
