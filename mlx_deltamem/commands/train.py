"""The work of `mlx_deltamem.train`: it trains an adapter, and prints the progress."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.cli_ui import make_console, print_header_panel, rprint
from mlx_lm.utils import get_total_parameters
from rich.markup import escape

from mlx_deltamem.adapters.card.folder import load_with_card, refresh_card
from mlx_deltamem.evaluation.tasks.health import Checkup
from mlx_deltamem.show.progress import counting_progress
from mlx_deltamem.training import processes
from mlx_deltamem.training.batches import check_writes
from mlx_deltamem.training.best import BEST_FOLDER, best_step
from mlx_deltamem.training.counts import Counts
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.fit import Place, fit_adapter, places_to_fit
from mlx_deltamem.training.health import PROMPTS
from mlx_deltamem.training.keeper import RunStoppedError
from mlx_deltamem.training.monitor import by_kind, described, draw_curves
from mlx_deltamem.training.prepare import load_episodes, prepare_model
from mlx_deltamem.training.records import TEST, TRAIN, VALID
from mlx_deltamem.training.run import Run
from mlx_deltamem.training.run_options import RunOptions
from mlx_deltamem.training.services import check_services
from mlx_deltamem.training.settings import BEST, LAST
from mlx_deltamem.training.testing import measure_test, put_back

# The header lists at most this many errors of records.
_FEW_ERRORS = 5


def run(args: argparse.Namespace) -> None:
    """Do the work that the options of the command describe.

    Raises:
        OSError: A file does not exist, or cannot be read or written.
        ValueError: The options do not fit each other, the model or the data.
    """
    options = RunOptions.of(args)
    if options.trains:
        _check_folder(options.folder, args.resume)
        check_services(options.reporting)
    model, tokenizer = prepare_model(options.settings, args.trust_remote_code)
    # Before a run of hours, a test must be known to be possible.
    splits = [*((TRAIN, VALID) if options.trains else ()), *((TEST,) if options.tests else ())]
    data = load_episodes(options.settings, tokenizer, options.on_error, splits)
    if options.tests:
        check_writes(data[TEST][0], model.attachment.config)
    if not options.trains:
        _print_test(options, data[TEST][1])
        _test(options, model, data[TEST][0])
        return
    texts = options.reporting.health_texts
    checkup = Checkup(model, tokenizer, texts, PROMPTS) if texts and data["valid"][0] else None
    training = Run(model, options.settings, options.reporting, options.folder, checkup)
    training.check(data["train"][0], data["valid"][0])
    schedule, config = options.settings.schedule, model.attachment.config
    places = places_to_fit(config, data["train"][0], schedule.fit, schedule.seed) if schedule.fit else []
    try:
        with training.alone(args.resume):
            _train(training, options, data, places, args)
    except RunStoppedError:
        if not processes.is_first():
            # The first process prints the error.
            sys.exit(2)
        raise
    if options.tests:
        put_back(model, options.folder)
        _test(options, model, data[TEST][0])


def _print_test(options: RunOptions, counts: Counts) -> None:
    """Print what is tested, unless a run has printed it."""
    if not processes.is_first():
        return
    settings = options.settings
    rows = [("model", settings.model), ("adapter", settings.start), ("data", settings.data), (TEST, _described(counts))]
    print_header_panel(make_console(), "mlx_deltamem.train", [(name, escape(text)) for name, text in rows])
    _print_left_out([counts])


def _test(options: RunOptions, model: nn.Module, episodes: Sequence[Episode]) -> None:
    """Test the adapter of a model, and print the result as mlx-lm does."""
    rprint("Testing")
    settings, most = options.settings, options.reporting.test_batches
    batch = settings.schedule.batch_size
    total = -(-len(episodes) // batch)
    with counting_progress(total if most < 0 else min(total, most)) as progress:
        found = measure_test(model, episodes, batch, most, progress if processes.is_first() else None)
    if not processes.is_first():
        return
    if found.tokens:
        rprint(f"Test loss {found.loss:.3f}, Test ppl {found.perplexity:.3f}.")
        print(f"Frozen model without the history: loss {found.frozen_loss:.3f}, ppl {found.frozen_perplexity:.3f}.")
    for kind, accuracy in by_kind(found.accuracy).items():
        print(f"{kind or 'Test'}: {described(accuracy)}")


def _train(
    run: Run,
    options: RunOptions,
    data: Mapping[str, tuple[list[Episode], Counts]],
    places: Sequence[Place],
    args: argparse.Namespace,
) -> None:
    """Train to the last step, and print the progress."""
    done = run.resume() if args.resume else 0
    if processes.is_first():
        options.save()
        _print_header(options, run.model, {split: counts for split, (_, counts) in data.items()})
        if args.resume:
            _print_resumed(options.folder, done, options.settings.schedule.iters)
    if places and not done:
        _fit(run.model, places, options.settings.schedule.seed)
    try:
        run.train(data["train"][0], data["valid"][0])
    except KeyboardInterrupt:
        _print_stopped(run, args.trust_remote_code)
        raise
    if processes.is_first():
        _finish(run, args.trust_remote_code)


def _fit(model: nn.Module, places: Sequence[Place], seed: int) -> None:
    """Fit the first weights. All processes do the same work; the first one prints the progress."""
    if not processes.is_first():
        fit_adapter(model, places, seed)
        return
    with counting_progress(len(places)) as progress:
        fit_adapter(model, places, seed, progress)
    print(f"The first weights are fitted to {len(places):,} questions")


def _check_folder(folder: Path, resume: bool) -> None:
    """Check, before any work, that the run can be kept in its folder."""
    if not processes.is_first():
        return
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file; expected a folder for the adapter and its run")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"the folder {there} is read-only; name another --adapter-path")
    # Finder and killed processes leave hidden files.
    if not resume and there == folder and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder, or go on with the run in it with --resume")


def _print_header(options: RunOptions, model: nn.Module, counts: Mapping[str, Counts]) -> None:
    settings, schedule = options.settings, options.settings.schedule
    trained = sum(weight.size for weight in dict(tree_flatten(model.trainable_parameters())).values())
    frozen = get_total_parameters(model) - trained
    update = f", an update every {schedule.grad_accumulation_steps}" if schedule.grad_accumulation_steps > 1 else ""
    rows = [
        ("model", f"{settings.model} · {frozen:,} parameters, frozen"),
        ("adapter", f"{settings.start or 'new'} · {trained:,} parameters to train"),
        *([("recipe", _followed(options))] if options.recipe else []),
        ("data", settings.data),
        *((split, _described(each)) for split, each in counts.items()),
        (
            "optimizer",
            f"{schedule.optimizer} · lr {schedule.learning_rate:.1e}, {schedule.warmup_updates:,} updates of warm-up",
        ),
        ("batch · iters", f"{schedule.batch_size} · {schedule.iters:,}{update}"),
    ]
    print_header_panel(make_console(), "mlx_deltamem.train", [(name, escape(text)) for name, text in rows])
    _print_left_out(counts.values())


def _print_left_out(counts: Iterable[Counts]) -> None:
    errors = [error for each in counts for error in each.errors]
    for error in errors[:_FEW_ERRORS]:
        print(f"Left out: {error}")
    if len(errors) > _FEW_ERRORS:
        print(f"Left out: {len(errors) - _FEW_ERRORS:,} more")


def _followed(options: RunOptions) -> str:
    """The recipe of a run, and the part of it that is not used."""
    left_out = " · without its configuration of a new adapter" if options.settings.start else ""
    return f"{options.recipe}{left_out}"


def _described(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.rows()) or "none"


def _print_resumed(folder: Path, done: int, iters: int) -> None:
    if done == iters:
        print(f"The run in {folder} is finished: all {iters:,} steps are done.")
    elif done:
        print(f"Resuming after step {done:,} of {iters:,}; mlx-lm counts from here, its iter 1 is step {done + 1:,}.")
    else:
        print(f"The run in {folder} has no checkpoint yet; it starts again from the first step.")


def _print_stopped(run: Run, trust_remote_code: bool) -> None:
    rprint(f"Stopped; {run.kept}. Go on with: {_resuming(run, trust_remote_code)}")


def _resuming(run: Run, trust_remote_code: bool, *options: str) -> str:
    """The command that resumes a run."""
    trusting = ["--trust-remote-code"] if trust_remote_code else []
    return shlex.join(["mlx_deltamem.train", "--resume", "--adapter-path", str(run.folder), *trusting, *options])


def print_best(run: Run, trust_remote_code: bool = False) -> None:
    """Say which adapter is in the folder of a run that has ended, if it is not that of the last evaluation."""
    folder, step = run.folder, best_step(run.folder)
    # mlx-lm's last evaluation comes before the last step.
    if step is None or step >= run.settings.schedule.iters - 1:
        return
    best = f"that of step {step:,}, the best by health and held-out answers"
    if run.reporting.keep == BEST:
        again = _resuming(run, trust_remote_code, "--keep", LAST)
        print(f"The adapter is {best}. For that of the last step: {again}")
    else:
        print(f"The adapter is that of the last step; {best}, is in {folder / BEST_FOLDER}")


def _finish(run: Run, trust_remote_code: bool) -> None:
    folder, took = run.folder, timedelta(seconds=round(run.seconds))
    use = shlex.join(["mlx_deltamem.chat", "--model", run.settings.model, "--adapter", str(folder)])
    print(f"Trained in {took}. Talk to it: {use}")
    print_best(run, trust_remote_code)
    picture = draw_curves(folder)
    if picture is None:
        print("The curves are not drawn: matplotlib is not installed (pip install 'mlx-deltamem[plot]')")
        return
    print(f"The curves are in {picture}")
    # The card shows the curves. A damaged card or results.json is no reason to fail after the run.
    with suppress(ValueError, IsADirectoryError):
        refresh_card(folder, load_with_card(folder))
