"""Which backbone can be trained on which Mac, on how long a history: `python -m tools.measure.mac_memory [--json]`.

Computed from shapes, and measured on no Mac. A step of one episode, as the recipes of `mlx_deltamem.train` take it:

- the backbone's weights, those of 4 and 8 bits in groups of 64 with a scale and a bias of 16 bits each;
- 8 copies of the largest recipe's adapter in float32: its weights, two moments and their successors, the gradient and
  the sum of gradients;
- the write pass in segments, and the read pass in one piece, both by the formula of
  `tools.measure.training_memory`, as if they were held at once;
- the logits of the answer, 4 times in float32.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import count_from
from mlx_deltamem.training.recipes import RECIPES
from tools.measure.training_memory import Widths, computed_peak

# Of a Mac's memory, in GiB, what a GPU may use unless it is told otherwise (`sysctl iogpu.wired_limit_mb`): Metal's
# recommendedMaxWorkingSetSize, as logs of llama.cpp show it: 10,923, 21,845, 49,152 and 98,304 MiB.
GPU_SHARES = {16: 2 / 3, 32: 2 / 3, 64: 3 / 4, 128: 3 / 4}
BITS = (4, 8, 16)
HISTORIES = (1024, 2048, 4096, 8192, 16384, 32768)
ANSWER = 64
_GROUP, _GROUP_BITS = 64, 32
_ADAPTER_COPIES, _LOGIT_COPIES = 8, 4
_GIB = 2**30


@dataclass(frozen=True)
class Backbone:
    """A model by its shape.

    Attributes:
        name: As people call it.
        widths: See `Widths`.
        vocabulary: Its tokens.
        tied: Whether the head is the embedding.
    """

    name: str
    widths: Widths
    vocabulary: int
    tied: bool = True

    def weight_bytes(self, bits: int) -> float:
        """The weights of all products and of the embedding; norms are next to nothing."""
        w = self.widths
        layer = w.d * (2 * w.q + 2 * w.k + 3 * w.m)
        count = w.layers * layer + self.vocabulary * w.d * (1 if self.tied else 2)
        return count * (bits if bits == 16 else bits + _GROUP_BITS / _GROUP) / 8

    def adapter_parameters(self, width: int) -> int:
        """Of an adapter on q and o with all state heads `width` wide: those that are trained (facts 1.7)."""
        w = self.widths
        return w.layers * width * (4 * w.d + w.q + w.d + 1)

    def step_bytes(self, bits: int, tokens: int, segment: int) -> float:
        """The peak of a step on a history of so many tokens, all in all."""
        rules, width = RECIPES["msw"].rules, RECIPES["msw"].adapter.width
        return (
            self.weight_bytes(bits)
            + _ADAPTER_COPIES * 4 * self.adapter_parameters(width)
            + computed_peak(self.widths, tokens, segment, itemsize=2)
            + computed_peak(self.widths, rules.max_seq_length, None, itemsize=2)
            + _LOGIT_COPIES * 4 * ANSWER * self.vocabulary
        )

    def longest_history(self, bits: int, memory: int, segment: int) -> int | None:
        """The longest of `HISTORIES` that a Mac of so many GiB has room for; None where there is none."""
        room = memory * _GIB * GPU_SHARES[memory]
        fitting = [tokens for tokens in HISTORIES if self.step_bytes(bits, tokens, segment) <= room]
        return max(fitting, default=None)


# Those of the paper (facts 5.2), as in their config.json.
BACKBONES = (
    Backbone("SmolLM3-3B", Widths(layers=36, heads=16, d=2048, q=2048, k=512, m=11008), 128256),
    Backbone("Qwen3-4B", Widths.of("qwen3-4b"), 151936),
    Backbone("Qwen3-8B", Widths(layers=36, heads=32, d=4096, q=4096, k=1024, m=12288), 151936, tied=False),
)


def rows(segment: int) -> list[dict[str, object]]:
    """For each backbone and number of bits, the weights in GB and the longest history by memory in GiB."""
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


def table(found: Sequence[dict[str, object]], segment: int) -> Table:
    title = f"The longest history that fits, in tokens (up to {HISTORIES[-1]:,}), with --segment {segment}"
    made = Table("backbone", "bits", "weights", *(f"{memory} GB" for memory in GPU_SHARES), title=title)
    for row in found:
        histories = ["–" if tokens is None else f"{tokens:,}" for tokens in row["histories"].values()]
        made.add_row(row["backbone"], str(row["bits"]), f"{row['weights_gb']} GB", *histories)
    return made


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.measure.mac_memory", description=__doc__)
    parser.add_argument("--segment", type=count_from(1), default=1024, help="tokens of a segment of the write pass")
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
