"""Adds the options of a dataclass to a command line."""

import argparse
from typing import TYPE_CHECKING

from mlx_deltamem.options.option import Rule, flag, rules

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def add_options(group: argparse._ActionsContainer, kind: "type[DataclassInstance]", prefix: str = "") -> None:
    """Add an argument for each option of a dataclass.

    Args:
        group: The parser, or a group of its arguments.
        kind: The dataclass.
        prefix: What the arguments begin with: `recall-` for `--recall-facts`.
    """
    for name, default, rule in rules(kind):
        add_option(group, prefix + name, default, rule)


def add_option(group: argparse._ActionsContainer, name: str, default: object, rule: Rule, empty: str = "any") -> None:
    """Add an argument for one option. An argument that is not given is None; the help text names the default.

    Args:
        group: The parser, or a group of its arguments.
        name: The option's name, as in a dataclass (`batch_size`).
        default: Its default.
        rule: Its type, choices and help text.
        empty: The word for a default of no values.
    """
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else "none" if default is None else default
    text = f"{rule.help} (default: {empty if shown == '' else shown})".strip()
    if rule.kind is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    metavar = None if rule.choices else rule.kind.__name__.upper()
    nargs = rule.count if rule.several else None
    group.add_argument(
        flag(name), type=rule.kind, nargs=nargs, choices=rule.choices or None, metavar=metavar, help=text
    )
