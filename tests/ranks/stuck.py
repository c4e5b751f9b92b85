"""Run by several ranks: rank 0 is stuck in a call, and the others wait.

The argument is the kind of call: `lock` keeps Python's lock, so that no thread of the rank runs. `mlx` is one of MLX in
which a rank waits for the others. `python` is one in which the other threads run.
"""

import ctypes
import sys
import time

import mlx.core as mx

from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.ranks.joining import join

_LONG = 600


@command_of_ranks
def main() -> None:
    joined = join()
    print("joined", flush=True)
    if not joined.is_first or sys.argv[1] == "python":
        time.sleep(_LONG)
    elif sys.argv[1] == "lock":
        ctypes.PyDLL(None).sleep(_LONG)
    else:
        mx.eval(mx.distributed.all_sum(mx.ones(100), group=joined.group))


if __name__ == "__main__":
    main()
