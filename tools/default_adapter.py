"""Train the adapter of the project from nothing: `python -m tools.default_adapter` (or `make default-adapter`).

`default_adapter.yaml` has all settings, of two stages. In each the data are made first, then a run trains on them. The
second one starts from the adapter of the first, and its histories have the replies of that adapter. What is finished is
kept, and a run that was stopped goes on. On a CPU each core gets a process, and the processes share each batch.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import mlx.core as mx

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.core.adapter import SETTINGS_FILE
from mlx_deltamem.files.yaml_text import parse_yaml
from mlx_deltamem.options.rule import POSITIVE, SEED
from tools import smollm2

RECIPE = Path(__file__).with_suffix(".yaml")
# The options of each command, by its name.
Stage: TypeAlias = Mapping[str, Mapping[str, object]]
DEFAULT_FOLDER = smollm2.DEFAULT_CACHE / "default-adapter"
# Held-out values measure the run.
HELD_OUT = "values"
_PARTS = ("recall", "speech", "records", "train")


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.default_adapter", description=__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="Folder for data and run.")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="YAML file of all settings.")
    parser.add_argument("--processes", type=POSITIVE, help="Processes that share a batch (default: the cores).")
    parser.add_argument("--seed", type=SEED, default=0, help="Added to the seeds of all parts, for another repetition.")
    return parser


def flags(options: Mapping[str, object]) -> list[str]:
    """Options of a command line, from their names and values."""
    found = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            found += [f"--{flag}", *map(str, values)]
    return found


def make_data(folder: Path, stage: Stage, model: Path, adapter: Path | None = None) -> Path:
    """Make the training data of a stage, and return their folder. Files that are complete are kept.

    Args:
        folder: The folder of the stage.
        stage: Its part of the recipe.
        model: The model.
        adapter: The adapter of the stage before.
    """
    if not (folder / "recall").exists():
        _run("data.recall", [str(folder / "recall"), "--words-of", str(model), *flags(stage["recall"])])
    if not (folder / "speech").exists():
        _run("data.speech", [str(folder / "speech"), *flags(stage["speech"])])
    live = ["--adapter", str(adapter)] if adapter else []
    for name in ("train", HELD_OUT):
        records = folder / f"{name}-records.jsonl"
        if not records.exists():
            places = [str(folder / "speech" / f"{name}.jsonl"), str(records)]
            _run("data.records", [*places, "--model", str(model), *live, *flags(stage["records"])])
    data = folder / "data"
    data.mkdir(exist_ok=True)
    parts = {
        "train": [folder / "train-records.jsonl", folder / "recall" / "train.jsonl"],
        "valid": [folder / f"{HELD_OUT}-records.jsonl"],
    }
    for name, files in parts.items():
        with (data / f"{name}.jsonl").open("wb") as output:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, output)
    return data


def train(run: Path, data: Path, stage: Stage, model: Path, processes: int, adapter: Path | None = None) -> int:
    """Train, or go on with a run that was stopped; returns the exit code.

    Args:
        run: The folder of the run.
        data: The folder of the data.
        stage: The stage's part of the recipe.
        model: The model.
        processes: How many share each batch.
        adapter: The adapter to start from; None: a new one.
    """
    if (run / SETTINGS_FILE).exists():
        options = ["--resume", "--adapter-path", str(run)]
    else:
        start = ["--start", str(adapter)] if adapter else []
        places = ["--model", str(model), "--data", str(data), "--adapter-path", str(run)]
        options = [*places, *start, *flags(stage["train"])]
    command = [sys.executable, "-c", "import tools.openblas; from mlx_deltamem.train import main; main()", *options]
    with tempfile.TemporaryDirectory() as folder:
        # The environment of MLX's ring of processes, as `mlx.launch` sets it.
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(processes)]))
        ring = [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(processes)]
        environments = ring if processes > 1 else [{}]
        started = [subprocess.Popen(command, env=os.environ | each) for each in environments]
        try:
            return max(process.wait() for process in started)
        except KeyboardInterrupt:
            # Ctrl-C reaches the processes too. They save a checkpoint and end.
            return max(process.wait() for process in started)


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _run(command: str, arguments: list[str]) -> None:
    print(f"mlx_deltamem.{command} {' '.join(arguments)}")
    sys.argv = [f"mlx_deltamem.{command}", *arguments]
    importlib.import_module(f"mlx_deltamem.{command}").main()


def read_recipe(file: Path) -> dict[str, Stage]:
    """The stages of a recipe.

    Raises:
        ValueError: It is no YAML, or a stage of it lacks a part or a seed.
    """
    try:
        recipe = parse_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no YAML file: {error}") from None
    if not isinstance(recipe, dict) or not recipe:
        raise ValueError(f"{file} has no stages; expected some, by name, as {RECIPE.name} has")
    for name, stage in recipe.items():
        for part in _PARTS:
            options = stage.get(part) if isinstance(stage, dict) else None
            if not isinstance(options, dict) or not isinstance(options.get("seed"), int):
                raise ValueError(f"{file}, stage {name}: expected a part {part} with options and a seed")
    return recipe


def with_seed(recipe: Mapping[str, Stage], more: int) -> dict[str, Stage]:
    """The recipe with a number added to each seed."""
    return {
        name: {part: {**options, "seed": int(str(options["seed"])) + more} for part, options in stage.items()}
        for name, stage in recipe.items()
    }


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    recipe = with_seed(read_recipe(args.recipe), args.seed)
    model = smollm2.build()
    processes = args.processes or (1 if mx.default_device() == mx.gpu else os.cpu_count() or 1)
    adapter = None
    for name, stage in recipe.items():
        folder = args.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        data = make_data(folder, stage, model, adapter)
        if code := train(folder / "adapter", data, stage, model, processes, adapter):
            sys.exit(code)
        adapter = folder / "adapter"
    print(f"The adapter is in {adapter}.")


if __name__ == "__main__":
    main()
