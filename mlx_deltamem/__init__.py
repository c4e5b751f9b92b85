"""Online memory for local language models: δ-mem adapters on MLX."""

from mlx_deltamem._version import __version__
from mlx_deltamem.adapter import Adapter
from mlx_deltamem.adapter_folder import load_adapter, save_adapter
from mlx_deltamem.attach import attach, current_adapter, detach
from mlx_deltamem.cache import make_prompt_cache, memory, reset_memory, set_memory
from mlx_deltamem.config import DeltaMemConfig
from mlx_deltamem.loading import load
from mlx_deltamem.scan import delta_scan
from mlx_deltamem.session import ChatSession
from mlx_deltamem.use import read_only, write_mask, write_spans

__all__ = [
    "Adapter",
    "ChatSession",
    "DeltaMemConfig",
    "__version__",
    "attach",
    "current_adapter",
    "delta_scan",
    "detach",
    "load",
    "load_adapter",
    "make_prompt_cache",
    "memory",
    "read_only",
    "reset_memory",
    "save_adapter",
    "set_memory",
    "write_mask",
    "write_spans",
]
