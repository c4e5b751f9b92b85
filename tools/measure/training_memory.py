"""The memory of the write pass of training, with and without segments: `python -m tools.measure.training_memory`.

For Qwen3-4B it is computed by a formula. For a small model it is measured, and compared with the same formula.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

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
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.shapes import SHAPES
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.training.prepare import freeze_all_but_adapter
from mlx_deltamem.training.segments.write_pass import write_states

MEASURED = "small"


class Figure(NamedTuple):
    """The peak of a write pass in bytes, without the weights. `measured` is None for a model that was not run."""

    tokens: int
    segment: int | None
    computed: float
    measured: int | None = None


@dataclass(frozen=True)
class Widths:
    """The shape of a backbone.

    Attributes:
        layers: The number of layers.
        heads: The number of query heads.
        d: The hidden size.
        q: The width of the queries of all heads.
        k: The width of the keys of all heads; also that of the values.
        m: The width inside the MLP.
    """

    layers: int
    heads: int
    d: int
    q: int
    k: int
    m: int

    @classmethod
    def of(cls, shape: str) -> "Widths":
        """Return the widths of one of the shapes of `mlx_deltamem.benchmarking.shapes`."""

        def size(name: str) -> int:
            return int(SHAPES[shape][name])

        heads, width = size("num_attention_heads"), size("head_dim")
        return cls(
            layers=size("num_hidden_layers"),
            heads=heads,
            d=size("hidden_size"),
            q=heads * width,
            k=size("num_key_value_heads") * width,
            m=size("intermediate_size"),
        )


def computed_peak(w: Widths, tokens: int, segment: int | None, itemsize: int) -> float:
    """Estimate the peak of a write pass and its gradient for one row, in bytes.

    Weights, logits and the optimizer do not count. The formula follows the arrays that the gradients of MLX's
    operations keep, for T tokens:

    - A layer in one piece keeps, per token: the input, the normed input and the sum after the attention (3 d); the
      queries before their norm and after scaling (2 q); the keys before and after their norm, and the values (3 k); in
      the MLP the gate, its sigmoid, up, and the product (4 m); the attention weights of h heads (h T).
    - A layer in segments keeps input, keys and values (d + 2 k per token). The layer and segment that is computed has
      the arrays above, the keys and values of all segments, and the gradients of what the segments keep.
    - The gradient of the attention has two more arrays of scores, and gradients of keys and values before and after the
      sum over the heads that share them. The gradient of the MLP has three arrays of width m. The larger one counts.
    - In the last layer only the memory runs: it keeps the input and the normed input.

    The memory's states and projections would add a few percent. They are left out.

    Args:
        w: The shape of the backbone.
        tokens: T, the tokens of the history.
        segment: The tokens of a segment; None for one piece.
        itemsize: Bytes of one number of the activations.
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
    """Return a small random model with an adapter that can be trained."""
    mx.random.seed(0)
    model = random_model(MEASURED, mx.float32)
    attach(model, FRESH_ADAPTER)
    model.train()
    freeze_all_but_adapter(model)
    return model


def make_step(model: nn.Module, tokens: int, segment: int | None) -> Callable[[], None]:
    """Return a function that runs a write pass and its gradient, compiled as in mlx-lm's trainer, and run it once."""

    def loss(model: nn.Module, ids: mx.array, lengths: mx.array) -> mx.array:
        states = write_states(model, ids, lengths, segment=segment)
        return mx.stack([state.square().sum() for state in states]).sum()

    def step(ids: mx.array, lengths: mx.array) -> tuple[mx.array, dict[str, object]]:
        return nn.value_and_grad(model, loss)(model, ids, lengths)

    compiled = mx.compile(step, inputs=[model.state], outputs=[model.state])
    ids, lengths = mx.random.randint(0, int(SHAPES[MEASURED]["vocab_size"]), (1, tokens)), mx.array([tokens])

    def run() -> None:
        mx.eval(compiled(ids, lengths))

    run()
    return run


def measured_peak(step: Callable[[], None]) -> int:
    """Run a step; return its peak of memory beyond what is in use, in bytes."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    with measured() as sample:
        step()
    return sample.peak_bytes - before


def time_ratio(steps: list[Callable[[], None]], rounds: int) -> list[float]:
    """Return, for each round, the processor time of the second step divided by that of the first."""

    def seconds(step: Callable[[], None]) -> float:
        with measured() as sample:
            step()
        return sample.cpu_seconds

    return [seconds(steps[1]) / seconds(steps[0]) for _ in range(rounds)]


def table(title: str, figures: list[Figure]) -> Table:
    """Return a table of some figures."""
    made = Table("tokens", "segment", "computed", "measured", "measured ÷ computed", title=title)
    for tokens, segment, computed, peak in figures:
        shown = [f"{computed / 1e9:.2f} GB"]
        shown += ["", ""] if peak is None else [f"{peak / 1e9:.3f} GB", f"{peak / computed:.2f}"]
        made.add_row(f"{tokens:,}", "none" if segment is None else f"{segment:,}", *shown)
    return made


@command
def main() -> None:
    """Compute and measure the peaks, and print them."""
    parser = Parser(prog="python -m tools.measure.training_memory", description=__doc__)
    parser.add_argument("--tokens", type=POSITIVE, nargs="+", default=[1024, 2048], help="histories to measure")
    parser.add_argument("--segments", type=POSITIVE, nargs="+", default=[128, 256, 512], help="segments to measure")
    parser.add_argument("--rounds", type=POSITIVE, default=5, help="rounds of the comparison of time")
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
