"""Packages of the extra `evaluate`, which are imported only where they are used."""

import importlib
import importlib.util
from types import ModuleType


def evaluate_extra(module: str, purpose: str) -> ModuleType:
    """Import a module of the extra `evaluate`.

    Args:
        module: Its name, for example "nltk.stem.porter".
        purpose: What needs it, for the error.

    Raises:
        ValueError: Its package is not installed.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{purpose} needs the package {package}, which is not installed: pip install 'mlx-deltamem[evaluate]'"
        )
    return importlib.import_module(module)
