"""Online memory for local language models: δ-mem adapters on MLX.

The public names are imported when they are first used: a command that only prints its help needs none of them, and the
import of mlx-lm takes a second.
"""

import importlib
from typing import TYPE_CHECKING

import mlx_deltamem.cli.starting  # noqa: F401  (Ctrl-C during the imports of a command)
from mlx_deltamem._version import __version__

if TYPE_CHECKING:
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

# By module, its public names; as above.
_PUBLIC = {
    "adapters.folder": ("load_adapter", "save_adapter"),
    "adapters.loading": ("attach", "load"),
    "core.adapter": ("Adapter",),
    "core.cache": ("make_prompt_cache", "memory", "reset_memory", "set_memory"),
    "core.config": ("DeltaMemConfig",),
    "core.drafting": ("with_draft",),
    "core.model": ("current_adapter", "detach"),
    "core.use": ("read_only", "write_mask", "write_spans"),
    "recurrence.scan": ("delta_scan",),
    "sessions.session": ("ChatSession",),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

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


def __getattr__(name: str) -> object:
    """Import a public name, and keep it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
