"""What the write pass of training takes, with and without segments: `python -m tools.measure.training_memory [--json]`.

Computed for Qwen3-4B, and measured for a small model beside what the same formula says of it.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from rich.console import Console
from rich.table import Table

from mlx_deltamem import attach
from mlx_deltamem.benchmarking.models import FRESH_ADAPTER
from mlx_deltamem.benchmarking.paired import measured
from mlx_deltamem.benchmarking.shapes import SHAPES, random_model
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import count_from
from mlx_deltamem.training.run import freeze_all_but_adapter
from mlx_deltamem.training.segments.write_pass import write_states

MEASURED = "small"


class Figure(NamedTuple):
    """Bytes on top of the weights; `measured` is None where nothing was."""

    tokens: int
    segment: int | None
    computed: float
    measured: int | None = None


@dataclass(frozen=True)
class Widths:
    """The shape of a backbone, in numbers per token: hidden, all queries, all keys, inside the MLP."""

    layers: int
    heads: int
    d: int
    q: int
    k: int
    m: int

    @classmethod
    def of(cls, shape: str) -> "Widths":
        sizes = SHAPES[shape]
        heads, width = sizes["num_attention_heads"], sizes["head_dim"]
        keys = sizes["num_key_value_heads"] * width
        return cls(
            sizes["num_hidden_layers"], heads, sizes["hidden_size"], heads * width, keys, sizes["intermediate_size"]
        )


def computed_peak(w: Widths, tokens: int, segment: int | None, itemsize: int) -> float:
    """The peak of a write pass of one row with its gradient, in bytes, without weights, logits and optimizer.

    Numbers for T tokens and L layers, read off the gradients of MLX's operations. In the gradient of the attention MLX
    takes the scores of h heads apart from the rest: they count, h T for each query.

    - A layer in one piece keeps, per token: its input, that normed, and the sum after the attention (3 d); queries
      before their norm and scaled ones (2 q); keys before and after their norm, and values (3 k); gate, its sigmoid,
      their product and up of the MLP (4 m); the attention's weights (h T).
    - A layer in segments keeps its input, keys and values: d + 2 k per token. One layer and segment of S tokens at a
      time has the above, and beside it all keys and values joined, and gradients of what all segments kept.
    - The gradient of an attention has 2 more arrays of scores at a time, and gradients of keys and values before and
      after they are summed over the heads that share them; that of an MLP has 3 arrays as wide as it. The larger one
      counts.
    - Of the last layer only the memory is run: its input and that normed.

    The memory's own states and projections are a few percent of that and left out.
    """
    queries = tokens if segment is None else min(segment, tokens)
    one_layer = queries * (3 * w.d + 2 * w.q + 3 * w.k + 4 * w.m + w.heads * tokens)
    attention = 2 * w.heads * queries * tokens + 2 * tokens * (w.q + w.k)
    at_work = max(attention, 3 * queries * w.m)
    last_layer = 2 * tokens * w.d
    if segment is None:
        return itemsize * ((w.layers - 1) * one_layer + at_work + last_layer)
    handed_on = tokens * (w.d + 2 * w.k)
    joined = 2 * tokens * w.k
    return itemsize * ((w.layers - 1) * handed_on + one_layer + at_work + last_layer + handed_on + joined)


def trained_model() -> nn.Module:
    mx.random.seed(0)
    model = random_model(MEASURED, mx.float32)
    attach(model, FRESH_ADAPTER)
    model.train()
    freeze_all_but_adapter(model)
    return model


def make_step(model: nn.Module, tokens: int, segment: int | None) -> Callable[[], None]:
    """A write pass with its gradient, compiled as mlx-lm's trainer compiles a step, and already run once."""

    def loss(model: nn.Module, ids: mx.array, lengths: mx.array) -> mx.array:
        return sum(state.square().sum() for state in write_states(model, ids, lengths, segment=segment))

    def step(ids: mx.array, lengths: mx.array) -> tuple[mx.array, dict]:
        return nn.value_and_grad(model, loss)(model, ids, lengths)

    compiled = mx.compile(step, inputs=[model.state], outputs=[model.state])
    ids, lengths = mx.random.randint(0, SHAPES[MEASURED]["vocab_size"], (1, tokens)), mx.array([tokens])

    def run() -> None:
        mx.eval(compiled(ids, lengths))

    run()
    return run


def measured_peak(step: Callable[[], None]) -> int:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    with measured() as sample:
        step()
    return sample.peak_bytes - before


def time_ratio(steps: list[Callable[[], None]], rounds: int) -> list[float]:
    """Processor time of the second step over that of the first, round by round."""

    def seconds(step: Callable[[], None]) -> float:
        with measured() as sample:
            step()
        return sample.cpu_seconds

    return [seconds(steps[1]) / seconds(steps[0]) for _ in range(rounds)]


def table(title: str, figures: list[Figure]) -> Table:
    made = Table("tokens", "segment", "computed", "measured", "measured ÷ computed", title=title)
    for tokens, segment, computed, peak in figures:
        shown = [f"{computed / 1e9:.2f} GB"]
        shown += ["", ""] if peak is None else [f"{peak / 1e9:.3f} GB", f"{peak / computed:.2f}"]
        made.add_row(f"{tokens:,}", "none" if segment is None else f"{segment:,}", *shown)
    return made


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.measure.training_memory", description=__doc__)
    count = count_from(1)
    parser.add_argument("--tokens", type=count, nargs="+", default=[1024, 2048], help="histories to measure")
    parser.add_argument("--segments", type=count, nargs="+", default=[128, 256, 512], help="segments to measure")
    parser.add_argument("--rounds", type=count, default=5, help="rounds of the comparison of time, at most tokens")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    args = parser.parse_args()
    large, small = Widths.of("qwen3-4b"), Widths.of(MEASURED)
    computed = [
        Figure(tokens, segment, computed_peak(large, tokens, segment, itemsize=2))
        for tokens in (2048, 4096, 8192)
        for segment in (None, 512, 1024)
    ]
    model, small_figures = trained_model(), []
    for tokens in args.tokens:
        for segment in (None, *args.segments):
            peak = measured_peak(make_step(model, tokens, segment))
            small_figures.append(Figure(tokens, segment, computed_peak(small, tokens, segment, itemsize=4), peak))
    tokens, segment = max(args.tokens), max(args.segments)
    ratios = time_ratio([make_step(model, tokens, None), make_step(model, tokens, segment)], args.rounds)
    console = Console()
    if args.json:
        figures = {"computed": [x._asdict() for x in computed], "measured": [x._asdict() for x in small_figures]}
        console.print_json(data=figures | {"time_ratios": ratios})
        return
    console.print(table("Qwen3-4B, activations in bfloat16", computed))
    console.print(table(f"{MEASURED}, float32", small_figures))
    console.print(
        f"Time of {tokens:,} tokens in segments of {segment:,} ÷ in one piece: {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
