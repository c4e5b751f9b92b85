"""Online memory for local language models: δ-mem adapters on MLX."""

import mlx_deltamem.cli.starting  # noqa: F401, I001  (Ctrl-C during the imports below)

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.folder import load_adapter, save_adapter
from mlx_deltamem.adapters.loading import attach, load
from mlx_deltamem.core.adapter import Adapter
from mlx_deltamem.core.cache import make_prompt_cache, memory, reset_memory, set_memory
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.drafting import with_draft
from mlx_deltamem.core.model import current_adapter, detach
from mlx_deltamem.core.use import read_only, write_mask, write_spans
from mlx_deltamem.recurrence.scan import delta_scan
from mlx_deltamem.sessions.session import ChatSession

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
    "with_draft",
    "write_mask",
    "write_spans",
]
