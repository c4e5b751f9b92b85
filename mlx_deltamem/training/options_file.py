"""YAML files of options: `-c FILE.yaml`, and the file that a run keeps of its options.

An option that stands in a file twice is refused: YAML would take the last one.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import yaml
from mlx_lm.lora import yaml_loader

from mlx_deltamem.files.yaml_text import parse_yaml
from mlx_deltamem.options.mlx_lm_habits import ALWAYS, TRAINING
from mlx_deltamem.options.rule import shown
from mlx_deltamem.training.records import listed

_LARGEST = 64 << 10
_MOST_HINTS = 3


def read_content(path: Path) -> bytes:
    """Read a file of options.

    Raises:
        ValueError: The file is larger than any file of options.
    """
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"{path} has {size:,} bytes; expected a file of options, at most {_LARGEST:,} bytes")
    return path.read_bytes()


def parse_options(content: bytes, path: Path, known: Collection[str]) -> dict[str, object]:
    """Parse a YAML file of options; options without a value are left out.

    Args:
        content: The content of the file.
        path: The path for error messages.
        known: The names of the options.

    Raises:
        ValueError: The content is not valid YAML, or has unknown options.
    """
    try:
        text = content.decode("utf-8-sig")
        options = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML ({error}); expected options, one a line") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no options; expected lines like `batch_size: 4`")
    if twice := _twice(text):
        raise ValueError(f"{path} has {listed(twice)} twice; leave one of them out")
    for name in ALWAYS.keys() & options.keys():
        if options.pop(name) not in (True, None):
            raise ValueError(f"{path} turns {name} off, and {ALWAYS[name]}; leave it out")
    if unknown := sorted(shown(name) if not isinstance(name, str) else name for name in options if name not in known):
        hints = [f"{name}: {TRAINING[name]}" for name in unknown if name in TRAINING]
        raise ValueError(
            f"{path} has unknown options {listed(unknown)}; expected those of mlx_deltamem.train --help, written "
            "like batch_size (config, resume and trust_remote_code go on the command line only)"
            + "".join(f"; {hint}" for hint in hints[:_MOST_HINTS])
        )
    return {name: value for name, value in options.items() if value is not None}


def _twice(text: str) -> list[str]:
    """The names that stand twice in a valid YAML text."""
    # The import of mlx-lm's loader has taught PyYAML's SafeLoader, which `parse_yaml` uses, to read 1e-5 as a number.
    node = yaml.compose(text, yaml_loader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))
    return [name for name, times in names.items() if times > 1]
