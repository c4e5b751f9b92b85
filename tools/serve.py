"""Serve the model and the adapter that come with the project: `python -m tools.serve` (or `make serve`).

Options are those of `mlx_deltamem.server`. The memories are in `.cache/memories`.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import sys

from mlx_deltamem import server
from tools import smollm2
from mlx_deltamem.cli.command import command
from mlx_deltamem.demo.model import ADAPTER


@command
def main() -> None:
    """Run the server."""
    folder = smollm2.build()
    places = ["--model", str(folder), "--adapter", str(ADAPTER), "--memories", str(folder.parent / "memories")]
    sys.argv[1:] = [*places, *sys.argv[1:]]
    server.main()


if __name__ == "__main__":
    main()
