"""Compare the recurrence with its token loop: `python -m tools.measure.scan_speed [--json]`."""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.scan import delta_scan


class Figure(NamedTuple):
    name: str
    ratio: float
    spread: float
    target: float


def measure() -> list[Figure]:
    """Token loop over scan: processor time, and peak memory on top of the inputs; medians and median deviations."""
    one, four = random_inputs(heads=1), random_inputs(heads=4)
    forward, training = compare(lambda scan: scan(*one)), compare(lambda scan: with_gradients(scan)(*one))
    return [
        Figure("forward, 1 head", *forward[0], 25),
        Figure("forward, 4 heads", *compare(lambda scan: scan(*four))[0], 15),
        Figure("forward and backward, 1 head", *training[0], 35),
        Figure("peak memory of that", *training[1], 40),
    ]


def random_inputs(heads: int) -> list[mx.array]:
    query, key, value, gate = mx.random.normal((4, 1, 2048, heads, 8))
    query, key = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    beta = mx.sigmoid(gate - 1.5)
    return [mx.zeros((1, heads, 8, 8)), query, key, value, 1 - beta, beta, beta]


def with_gradients(scan: Callable) -> Callable:
    return mx.value_and_grad(lambda *inputs: sum(x.square().sum() for x in scan(*inputs)), argnums=tuple(range(7)))


def compare(work: Callable) -> list[tuple[float, float]]:
    """Ratio and spread of time and of memory: five of the short scans for each loop, after a round for warming up."""
    rounds = []
    for _ in range(6):
        scans = [cost(lambda: work(delta_scan)) for _ in range(5)]
        loop = cost(lambda: work(delta_scan_reference))
        rounds.append([x / median(y) for x, y in zip(loop, zip(*scans, strict=True), strict=True)])
    return [(median(x), median(abs(y - median(x)) for y in x)) for x in zip(*rounds[1:], strict=True)]


def cost(work: Callable) -> tuple[float, int]:
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.process_time()
    mx.eval(work())
    return time.process_time() - start, mx.get_peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    as_json = parser.parse_args().json
    figures = measure()
    table = Table("token loop over delta_scan", "measured", "spread", "must reach")
    for name, *numbers in figures:
        table.add_row(name, *(f"{number:.1f}" for number in numbers))
    Console().print_json(data=[x._asdict() for x in figures]) if as_json else Console().print(table)


if __name__ == "__main__":
    main()
