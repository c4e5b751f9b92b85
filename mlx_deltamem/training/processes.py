"""The processes of a run that is spread over several machines with `mlx.launch`. Only the first one writes files."""

import mlx.core as mx
import numpy as np


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return mx.distributed.init().rank() == 0


def count() -> int:
    """Return the number of processes."""
    return mx.distributed.init().size()


def any_of(*mine: bool) -> list[bool]:
    """For each condition, return whether it holds in any process. All processes get the same result."""
    return [total > 0 for total in sum_of(*map(float, mine))]


def sum_of(*mine: float | mx.array) -> list[float]:
    """For each number, return its sum over all processes; a number may be an array of one element."""
    totals = mx.distributed.all_sum(mx.array([float(number) for number in mine]), stream=mx.cpu)
    return [float(total) for total in np.array(totals)]


def from_first(content: bytes) -> bytes:
    """Return the content that the first process gives, in all processes."""
    if count() == 1:
        return content
    length = int(mx.distributed.all_sum(mx.array(len(content) if is_first() else 0), stream=mx.cpu))
    if not length:
        return b""
    mine = np.frombuffer(content, np.uint8) if is_first() else np.zeros(length, np.uint8)
    return np.asarray(mx.distributed.all_sum(mx.array(mine), stream=mx.cpu)).tobytes()
