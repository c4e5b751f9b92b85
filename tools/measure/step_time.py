"""Compare a training step with the frozen backbone and with a token loop: `python -m tools.measure.step_time`.

The work of the backbone is the forward pass over history and text, and the backward pass to the outputs of the
embeddings. The token loop is the reference's form: the step with the recurrence as it is defined, token by token, and
MLX's own gradient of it. All are compiled, as in mlx-lm's trainer, and all run the output projection at the answers
only. Measure on a machine that does nothing else.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from rich.console import Console
from rich.table import Table

from mlx_deltamem.adapters.loading import load
from mlx_deltamem.benchmarking.models import FRESH_ADAPTER, with_and_without
from mlx_deltamem.benchmarking.paired import Sample, compare, interleave, measured
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.shapes import SHAPES
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.recurrence import ops
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.show.progress import reading_progress
from mlx_deltamem.training.batch import Batch
from mlx_deltamem.training.batches import BatchMaker
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.terms import LossTerms
from mlx_deltamem.training.loss import EpisodeModel, answer_losses, weighted_mean
from mlx_deltamem.training.logits import head_at_positions
from mlx_deltamem.training.optimizer import clipped_optimizer
from mlx_deltamem.training.prepare import freeze_all_but_adapter

FROZEN, FROZEN_AGAIN, STEP, LOOP = "frozen", "frozen again", "step", "token loop"
TARGET = 1.15
_TYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.step_time", description=__doc__)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", help="Folder or Hub repo of a model.")
    model.add_argument("--shape", choices=SHAPES, default="small", help="Or random weights (default: small).")
    parser.add_argument("--dtype", choices=_TYPES, default="float32", help="Of random weights (default: float32).")
    sizes = {
        "batch": (16, "Episodes of a step"),
        "history": (48, "Tokens of each history"),
        "questions": (1, "Questions about each history"),
        "text": (32, "Tokens of each text, with its answer"),
        "answer": (8, "Tokens of each answer"),
        "rounds": (10, "Rounds of measuring"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=POSITIVE, default=default, help=f"{text} (default: {default}).")
    return parser


def random_batch(vocabulary: int, args: argparse.Namespace) -> Batch:
    """Return a batch of episodes with random tokens, all of the same size."""

    def tokens(count: int) -> list[int]:
        return generator.integers(0, vocabulary, count).tolist()

    generator, begin = np.random.default_rng(0), args.text - args.answer
    episodes = [
        Episode(
            Segments(tokens(args.history), [0] * args.history, [0] * args.history),
            tuple(Question(tokens(args.text), begin, (begin, begin)) for _ in range(args.questions)),
        )
        for _ in range(args.batch)
    ]
    return BatchMaker(FRESH_ADAPTER).batch(episodes)


def training_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """Return a function that trains an attached model for one step, as a training run does."""
    freeze_all_but_adapter(model)
    module = EpisodeModel(model, LossTerms()).train()
    optimizer = clipped_optimizer("adamw", 1e-4, steps=1000, warmup=100, weight_decay=0.0, max_norm=1.0)
    optimizer.init(module.trainable_parameters())
    state = [module.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(*fields: mx.array | bool | int | tuple | None) -> mx.array:
        loss_and_gradients = nn.value_and_grad(module, lambda module, *fields: module(Batch.of(*fields)))
        (loss, _), gradients = loss_and_gradients(module, *fields)
        optimizer.update(module, gradients)
        return loss

    def run() -> None:
        with head_at_positions(model):
            mx.eval(state, step(*batch))

    return run


@contextmanager
def token_loop() -> Iterator[None]:
    """A context in which the recurrence runs as it is defined, and MLX differentiates it."""
    with patch.object(ops, "delta_scan", delta_scan_reference):
        yield


def frozen_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """Return a function that runs the frozen backbone on the same tokens, and the gradient of the embeddings."""
    trunk, asked, (told,) = model.model, batch.asked, batch.history
    head = model.lm_head if "lm_head" in model else trunk.embed_tokens.as_linear

    def loss(history: mx.array, texts: mx.array) -> mx.array:
        written = trunk(told.ids, None, history).astype(mx.float32).mean()
        hidden = mx.take_along_axis(trunk(asked.ids, None, texts), asked.positions[..., None], axis=1)
        return written + weighted_mean(answer_losses(head(hidden), asked), asked.weights)

    embedded = [trunk.embed_tokens(ids) for ids in (told.ids, asked.ids)]
    step = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))
    return lambda: mx.eval(step(*embedded))


def timed(run: Callable[[], None]) -> Sample:
    """Measure one run."""
    with measured() as sample:
        run()
    return sample


@command
def main() -> None:
    """Measure the step and the backbone, and print a table."""
    args = setup_arg_parser().parse_args()
    if args.answer >= args.text:
        raise ValueError(f"--answer is {args.answer} and --text {args.text}; expected the text to be longer")
    model = load(args.model)[0] if args.model else random_model(args.shape, _TYPES[args.dtype])
    models = with_and_without(model, FRESH_ADAPTER)
    batch = random_batch(models.frozen(mx.array([[0]])).shape[-1], args)
    frozen, step = frozen_step(models.frozen, batch), training_step(models.attached, batch)
    loop = training_step(with_and_without(model, FRESH_ADAPTER).attached, batch)
    with token_loop():
        # The first run traces it, and the second one again: the optimizer has more state then.
        loop()
        loop()
    runs = ((FROZEN, frozen), (STEP, step), (FROZEN_AGAIN, frozen), (LOOP, loop))
    trials = {name: partial(timed, run) for name, run in runs}
    with reading_progress("Measuring") as progress:
        samples = interleave(trials, args.rounds, progress=progress)
    Console(highlight=False).print(table(args, samples))


def table(args: argparse.Namespace, samples: dict[str, list[Sample]]) -> Table:
    """Return a table of time and memory, and of the ratios of the step to the backbone, and of the loop to the step."""
    model = args.model or f"{args.shape}, {args.dtype}"
    shown = Table(
        title=f"{model}: {args.batch} × ({args.history} + {args.questions} × {args.text}) tokens, "
        f"ratios of pairs; the target is at most {TARGET}"
    )
    shown.add_column("")
    for heading in (FROZEN, STEP, "÷ frozen", "noise", LOOP, "÷ step"):
        shown.add_column(heading, justify="right")
    for quantity, unit in (("wall_seconds", "s"), ("cpu_seconds", "CPU s"), ("peak_bytes", "bytes")):
        frozen, step, again = ([getattr(x, quantity) for x in samples[name]] for name in (FROZEN, STEP, FROZEN_AGAIN))
        loop = [getattr(x, quantity) for x in samples[LOOP]]
        ratio = compare(step, frozen, again)
        figures = [f"{np.median(values):,.4g}" for values in (frozen, step, loop)]
        slower = np.median(np.divide(loop, step))
        shown.add_row(
            unit, *figures[:2], f"{ratio.quartiles.median:.3f}", f"±{ratio.noise:.3f}", figures[2], f"{slower:.2f}"
        )
    return shown


if __name__ == "__main__":
    main()
