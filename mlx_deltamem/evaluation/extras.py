"""Import packages of optional extras, only where they are needed."""

import importlib
import importlib.util
from types import ModuleType


def extra_module(module: str, purpose: str, extra: str) -> ModuleType:
    """Import a module of an optional extra.

    Args:
        module: The name of the module, for example "nltk.stem.porter".
        purpose: The feature that needs it, for the error message.
        extra: The extra of this package that installs it.

    Raises:
        ValueError: The package is not installed.
    """
    check_extra(module, purpose, extra)
    return importlib.import_module(module)


def check_extra(module: str, purpose: str, extra: str) -> None:
    """Check that the package of a module is installed, without importing it.

    Raises:
        ValueError: It is not installed.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{purpose} needs the package {package}, which is not installed: pip install 'mlx-deltamem[{extra}]'"
        )
