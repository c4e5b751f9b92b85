"""Estimate which backbone can be trained on which Mac: `python -m tools.measure.mac_memory [--json]`.

The result is the longest history that fits. It is computed from shapes and was not measured on a Mac. A training step
of one episode, with the recipes of `mlx_deltamem.train`, needs:

- the backbone's weights; at 4 and 8 bits, each group of 64 weights has a scale and a bias of 16 bits each;
- 8 copies of the adapter of the largest recipe in float32: the weights, two moments and their successors, the gradient
  and the sum of gradients;
- the write pass in segments and the read pass in one piece, by the formula of `tools.measure.training_memory`, as if
  both were in memory at once;
- the logits of the answer, 4 times in float32.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.training.recipes import RECIPES
from tools.measure.training_memory import Widths, computed_peak

# By a Mac's memory in GiB, the share that the GPU may use by default (`sysctl iogpu.wired_limit_mb` changes it). It is
# Metal's recommendedMaxWorkingSetSize. Logs of llama.cpp show 10,923, 21,845, 49,152 and 98,304 MiB.
GPU_SHARES = {16: 2 / 3, 32: 2 / 3, 64: 3 / 4, 128: 3 / 4}
BITS = (4, 8, 16)
HISTORIES = (1024, 2048, 4096, 8192, 16384, 32768)
ANSWER = 64
_GROUP, _GROUP_BITS = 64, 32
_ADAPTER_COPIES, _LOGIT_COPIES = 8, 4
_GIB = 2**30


@dataclass(frozen=True)
class Backbone:
    """A model, described by its shape.

    Attributes:
        name: The usual name of the model.
        widths: See `Widths`.
        vocabulary: The number of tokens in the vocabulary.
        tied: True if the output projection is the embedding matrix.
    """

    name: str
    widths: Widths
    vocabulary: int
    tied: bool = True

    def weight_bytes(self, bits: int) -> float:
        """Return the bytes of all matrices and of the embedding. The norms are too small to count."""
        w = self.widths
        layer = w.d * (2 * w.q + 2 * w.k + 3 * w.m)
        count = w.layers * layer + self.vocabulary * w.d * (1 if self.tied else 2)
        return count * (bits if bits == 16 else bits + _GROUP_BITS / _GROUP) / 8

    def adapter_parameters(self, width: int) -> int:
        """Return the trained parameters of an adapter on q and o (facts.md 1.7). `width` is rank × state heads."""
        w = self.widths
        return w.layers * width * (4 * w.d + w.q + w.d + 1)

    def step_bytes(self, bits: int, tokens: int, segment: int) -> float:
        """Return the peak of memory of a training step on a history of `tokens` tokens, in bytes."""
        rules, width = RECIPES["msw"].rules, RECIPES["msw"].adapter.width
        return (
            self.weight_bytes(bits)
            + _ADAPTER_COPIES * 4 * self.adapter_parameters(width)
            + computed_peak(self.widths, tokens, segment, itemsize=2)
            + computed_peak(self.widths, rules.max_seq_length, None, itemsize=2)
            + _LOGIT_COPIES * 4 * ANSWER * self.vocabulary
        )

    def longest_history(self, bits: int, memory: int, segment: int) -> int | None:
        """Return the longest of `HISTORIES` that fits into a Mac with `memory` GiB; None if none fits."""
        room = memory * _GIB * GPU_SHARES[memory]
        fitting = [tokens for tokens in HISTORIES if self.step_bytes(bits, tokens, segment) <= room]
        return max(fitting, default=None)


# The backbones of the paper (facts.md 5.2). The numbers are from their config.json.
BACKBONES = (
    Backbone("SmolLM3-3B", Widths(layers=36, heads=16, d=2048, q=2048, k=512, m=11008), 128256),
    Backbone("Qwen3-4B", Widths.of("qwen3-4b"), 151936),
    Backbone("Qwen3-8B", Widths(layers=36, heads=32, d=4096, q=4096, k=1024, m=12288), 151936, tied=False),
)


class Row(TypedDict):
    """A row of the table: the weights in GB, and the longest history in tokens by the Mac's memory in GiB."""

    backbone: str
    bits: int
    weights_gb: float
    histories: dict[int, int | None]


def rows(segment: int) -> list[Row]:
    """Return a row for each backbone and number of bits. `segment`: the tokens of a segment of the write pass."""
    return [
        {
            "backbone": backbone.name,
            "bits": bits,
            "weights_gb": round(backbone.weight_bytes(bits) / 1e9, 1),
            "histories": {memory: backbone.longest_history(bits, memory, segment) for memory in GPU_SHARES},
        }
        for backbone in BACKBONES
        for bits in BITS
    ]


def table(found: Sequence[Row], segment: int) -> Table:
    """Return the table of the rows."""
    title = f"The longest history that fits, in tokens (up to {HISTORIES[-1]:,}), with --segment {segment}"
    made = Table("backbone", "bits", "weights", *(f"{memory} GB" for memory in GPU_SHARES), title=title)
    for row in found:
        histories = ["–" if tokens is None else f"{tokens:,}" for tokens in row["histories"].values()]
        made.add_row(row["backbone"], str(row["bits"]), f"{row['weights_gb']} GB", *histories)
    return made


@command
def main() -> None:
    """Compute the longest histories and print them."""
    parser = Parser(prog="python -m tools.measure.mac_memory", description=__doc__)
    parser.add_argument("--segment", type=POSITIVE, default=1024, help="tokens of a segment of the write pass")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    args = parser.parse_args()
    found, console = rows(args.segment), Console()
    if args.json:
        console.print_json(data={"segment": args.segment, "gpu_shares": GPU_SHARES, "rows": found})
        return
    console.print(table(found, args.segment))
    shares = ", ".join(f"{share:.0%} of {memory} GB" for memory, share in GPU_SHARES.items())
    console.print(f"The GPU may use {shares}.")


if __name__ == "__main__":
    main()
