"""Options for random data: two numbers, the smallest and the largest (`--facts 1 3`), and shares (`--updates 0.3`)."""

import argparse
from collections.abc import Mapping, Sequence

from mlx_deltamem.options.option import flag
from mlx_deltamem.options.rule import COUNT, SHARE
from mlx_deltamem.recall import Range


def add_ranges(parser: argparse.ArgumentParser, texts: Mapping[str, str], defaults: object) -> None:
    """Add options with ranges.

    Args:
        parser: The parser.
        texts: By name, the help text of each, without the default.
        defaults: An object that has the default ranges under these names; None there stands for a random choice.
    """
    for name, text in texts.items():
        limits: Range | None = getattr(defaults, name)
        shown = f"{limits[0]} to {limits[1]}" if limits else "at random"
        help_text = f"{text} (default: {shown})."
        parser.add_argument(flag(name), type=COUNT, nargs=2, metavar=("MIN", "MAX"), default=limits, help=help_text)


def add_shares(parser: argparse.ArgumentParser, texts: Mapping[str, str], defaults: object) -> None:
    """Add options with shares from 0 to 1; the arguments are those of `add_ranges`."""
    for name, text in texts.items():
        share: float = getattr(defaults, name)
        parser.add_argument(flag(name), type=SHARE, default=share, help=f"{text} (default: {share}).")


def as_range(limits: Sequence[int]) -> Range:
    """The two numbers of an option as a range."""
    low, high = limits
    return low, high
