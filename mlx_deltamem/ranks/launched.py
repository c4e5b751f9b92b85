"""Whether a launcher of MLX has started this process, and with which number. It is known without an import of MLX."""

import os

# A variable that each launcher sets: mlx.launch (for its rings, JACCL and NCCL), Open MPI, MPICH, PMIx.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def is_launched() -> bool:
    """Whether a launcher of MLX has started this process as one of several."""
    return any(name in os.environ for name in _LAUNCHED)


def launched_rank() -> int:
    """The rank that a launcher gave to this process, 0 without a launcher. MLX is not asked, so no rank waits."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)
