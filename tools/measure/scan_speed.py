"""Compare `delta_scan` with the token loop that defines it: `python -m tools.measure.scan_speed [--json]`."""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.scan import delta_scan


Scan = Callable[..., tuple[mx.array, mx.array]]


class Figure(NamedTuple):
    """A ratio, token loop over `delta_scan`.

    Attributes:
        name: The work that was measured.
        ratio: The median of the ratio.
        spread: The median of its absolute deviations from `ratio`.
        target: The smallest ratio that is wanted.
    """

    name: str
    ratio: float
    spread: float
    target: float


def measure() -> list[Figure]:
    """Measure processor time, and the peak of memory beyond the inputs."""
    one, four = random_inputs(heads=1), random_inputs(heads=4)
    forward, training = compare(lambda scan: scan(*one)), compare(lambda scan: with_gradients(scan)(*one))
    return [
        Figure("forward, 1 head", *forward[0], 25),
        Figure("forward, 4 heads", *compare(lambda scan: scan(*four))[0], 15),
        Figure("forward and backward, 1 head", *training[0], 35),
        Figure("peak memory of that", *training[1], 40),
    ]


def random_inputs(heads: int) -> list[mx.array]:
    """Return the arguments of a scan of 2,048 tokens: the state `[1, H, 8, 8]`, and six arrays `[1, 2048, H, 8]`."""
    query, key, value, gate = mx.random.normal((4, 1, 2048, heads, 8))
    query, key = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    beta = mx.sigmoid(gate - 1.5)
    return [mx.zeros((1, heads, 8, 8)), query, key, value, 1 - beta, beta, beta]


def with_gradients(scan: Scan) -> Callable[..., object]:
    """Return a function that computes a scan and the gradients of all its inputs."""

    def loss(*inputs: mx.array) -> mx.array:
        reads, state = scan(*inputs)
        return reads.square().sum() + state.square().sum()

    return mx.value_and_grad(loss, argnums=tuple(range(7)))


def compare(work: Callable[[Scan], object]) -> list[tuple[float, float]]:
    """Return ratio and spread of the time and of the memory.

    A round has five runs with `delta_scan`, which is fast, and one with the token loop. The first round does not count.
    """
    rounds = []
    for _ in range(6):
        scans = [cost(lambda: work(delta_scan)) for _ in range(5)]
        loop = cost(lambda: work(delta_scan_reference))
        rounds.append([x / median(y) for x, y in zip(loop, zip(*scans, strict=True), strict=True)])
    return [(median(x), median(abs(y - median(x)) for y in x)) for x in zip(*rounds[1:], strict=True)]


def cost(work: Callable[[], object]) -> tuple[float, int]:
    """Run some work; return its processor seconds and its peak memory beyond what is in use, in bytes."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.process_time()
    mx.eval(work())
    return time.process_time() - start, mx.get_peak_memory() - before


@command
def main() -> None:
    """Measure the scans and print them."""
    parser = Parser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    as_json = parser.parse_args().json
    figures = measure()
    table = Table("token loop over delta_scan", "measured", "spread", "must reach")
    for name, *numbers in figures:
        table.add_row(name, *(f"{number:.1f}" for number in numbers))
    if as_json:
        Console().print_json(data=[figure._asdict() for figure in figures])
    else:
        Console().print(table)


if __name__ == "__main__":
    main()
