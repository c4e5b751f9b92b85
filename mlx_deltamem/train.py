"""Train a δ-mem adapter for a frozen model: the history of a chat goes into the memory, the answer is read from it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import yaml
from mlx_lm.cli_ui import make_console, print_header_panel, rprint
from mlx_lm.lora import yaml_loader
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import get_total_parameters

from mlx_deltamem.attach import attach, current_adapter
from mlx_deltamem.command import command
from mlx_deltamem.config import DeltaMemConfig
from mlx_deltamem.files import user_path
from mlx_deltamem.loading import load
from mlx_deltamem.training.curves import draw_curves
from mlx_deltamem.training.data import ON_ERROR, load_episodes
from mlx_deltamem.training.episodes import Counts, EpisodeRules
from mlx_deltamem.training.loss import LossTerms
from mlx_deltamem.training.run import Run
from mlx_deltamem.training.settings import RECIPE, SETTINGS_FILE, Reporting, Schedule, Settings
from mlx_deltamem.training.start import tie_output

_GROUPS = {"run": Schedule, "reports": Reporting, "episodes": EpisodeRules, "loss": LossTerms}
_PLACES = ("model", "data", "start")


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser. Options that are not given are None."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.train", description=__doc__)
    parser.add_argument("--model", help="Folder or Hub repo of the model; it stays as it is.")
    parser.add_argument("--data", help="Folder with train.jsonl and perhaps valid.jsonl, or a data set on the Hub.")
    parser.add_argument("--adapter-path", type=user_path, required=True, help="Folder for the adapter and the run.")
    parser.add_argument("--start", "--adapter", help="Folder or Hub repo of an adapter to go on from.")
    parser.add_argument("-c", "--config", type=user_path, help="YAML file of options, as in train_config.yaml.")
    parser.add_argument("--resume", action="store_true", help="Go on from the last checkpoint in --adapter-path.")
    parser.add_argument("--on-error", choices=ON_ERROR, default="stop", help="For records that cannot be used.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    for title, kind in _GROUPS.items():
        group = parser.add_argument_group(title)
        for each in fields(kind):
            _add_option(group, each.name, each.default, each.metadata["help"])
    group = parser.add_argument_group("adapter", "Of a new adapter, as in delta_mem_config.json.")
    for each in fields(DeltaMemConfig):
        _add_option(group, each.name, getattr(RECIPE, each.name), "")
    return parser


def _add_option(group: argparse._ArgumentGroup, name: str, default: object, text: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{text} (default: {'all' if shown == '' else shown})".strip()
    if isinstance(default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif isinstance(default, tuple):
        kind = int if name == "target_layers" else str
        group.add_argument(flag, type=kind, nargs="*", metavar=name.upper()[:-1], help=text)
    else:
        group.add_argument(flag, type=type(default), metavar=type(default).__name__.upper(), help=text)


@dataclass(frozen=True)
class Options:
    """What a run was asked to be.

    Attributes:
        settings: What decides the weights.
        reporting: What is told on the way.
    """

    settings: Settings
    reporting: Reporting

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Options":
        """From the command line, then the YAML file, then the run that is resumed, then the defaults.

        Raises:
            FileNotFoundError: There is no such file, or nothing to resume.
            ValueError: An option is unknown, missing or out of range, or another one than in the run resumed.
        """
        asked = _read_options(args.config) if args.config is not None else {}
        known = _known_options()
        if unknown := sorted(asked.keys() - known):
            raise ValueError(f"{args.config} has unknown options {', '.join(unknown)}; see mlx_deltamem.train --help")
        asked |= {name: value for name, value in vars(args).items() if name in known and value is not None}
        earlier = _read_options(args.adapter_path / SETTINGS_FILE) if args.resume else {}
        options = earlier | asked
        if missing := [name for name in ("model", "data") if not options.get(name)]:
            raise ValueError(f"--{missing[0]} is missing; expected a folder or a Hub repo")
        settings = Settings.from_flat(options)
        if args.resume and (changed := _changes(Settings.from_flat(earlier), settings)):
            raise ValueError(f"the run in {args.adapter_path} has another {', '.join(changed)}; leave it out")
        reporting = {each.name: options[each.name] for each in fields(Reporting) if each.name in options}
        return cls(settings, Reporting(**reporting))


def _known_options() -> set[str]:
    return {*_PLACES, *(each.name for kind in (*_GROUPS.values(), DeltaMemConfig) for each in fields(kind))}


def _read_options(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; expected a YAML file of options, which every run writes")
    try:
        options = yaml.load(path.read_text(encoding="utf-8"), yaml_loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}); expected options, one a line") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no options; expected lines like `batch_size: 4`")
    return options


def _changes(one: Settings, other: Settings) -> list[str]:
    after = other.flat()
    return [name for name, value in one.flat().items() if after[name] != value]


def prepare_model(settings: Settings, trust_remote_code: bool = False) -> tuple[nn.Module, TokenizerWrapper]:
    """The backbone of a run with the adapter that it starts from, the same for the same settings."""
    options = {"tokenizer_config": {"trust_remote_code": True}, "trust_remote_code": True} if trust_remote_code else {}
    model, tokenizer = load(settings.model, settings.start or None, **options)
    mx.random.seed(settings.schedule.seed)
    if not settings.start:
        attach(model, settings.adapter)
        if settings.schedule.tie_output:
            tie_output(model)
    return model, tokenizer


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    options = Options.of(args)
    _check_folder(args.adapter_path, args.resume)
    model, tokenizer = prepare_model(options.settings, args.trust_remote_code)
    data = load_episodes(options.settings, tokenizer, args.on_error)
    _show_header(options.settings, model, {split: counts for split, (_, counts) in data.items()})
    if mx.distributed.init().rank() == 0:
        args.adapter_path.mkdir(parents=True, exist_ok=True)
        options.settings.save(args.adapter_path)
    run = Run(model, options.settings, options.reporting, args.adapter_path)
    if args.resume:
        rprint(f"Resuming after step {run.resume():,}; mlx-lm counts from there.")
    try:
        seconds = run.train(data["train"][0], data["valid"][0])
    except KeyboardInterrupt:
        rprint(f"Stopped; go on with: mlx_deltamem.train --resume --adapter-path {args.adapter_path}")
        raise
    if mx.distributed.init().rank() == 0:
        _finish(args.adapter_path, seconds)


def _check_folder(folder: Path, resume: bool) -> None:
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder, or go on with --resume")


def _show_header(settings: Settings, model: nn.Module, counts: Mapping[str, Counts]) -> None:
    if mx.distributed.init().rank() != 0:
        return
    adapter, schedule = current_adapter(model), settings.schedule
    rows = [
        ("model", f"{settings.model} · {get_total_parameters(model) - adapter.parameters:,} parameters, frozen"),
        ("adapter", f"{settings.start or 'new'} · {adapter.parameters:,} parameters"),
        *((f"{split} data", _described(each)) for split, each in counts.items()),
        ("optimizer", f"AdamW · lr {schedule.learning_rate:.1e}, {schedule.warmup_updates:,} updates of warm-up"),
        ("batch · iters", f"{schedule.batch_size} · {schedule.iters:,}"),
    ]
    print_header_panel(make_console(), "mlx_deltamem.train", rows)


def _described(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.rows()) or "none"


def _finish(folder: Path, seconds: float) -> None:
    print(f"Trained in {seconds / 60:.1f} min. The adapter is in {folder}; use it with --adapter {folder}")
    if (picture := draw_curves(folder)) is not None:
        print(f"The curves are in {picture}")


if __name__ == "__main__":
    main()
