"""Adds the options of a dataclass to a command line."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_deltamem.options.option import Option, flag, options_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def add_options(
    group: argparse._ActionsContainer,
    kind: "DataclassInstance | type[DataclassInstance]",
    prefix: str = "",
    empty: str = "any",
) -> None:
    """Add an argument for each option of a dataclass. An argument that is not given is None.

    Args:
        group: The parser, or a group of its arguments.
        kind: The dataclass, or an object of it, which then has the defaults that the help texts name.
        prefix: What the arguments begin with: `recall-` for `--recall-facts`.
        empty: The word for a default of no values.
    """
    for each in options_of(kind):
        default = each.default if isinstance(kind, type) else getattr(kind, each.name)
        _add(group, replace(each, name=prefix + each.name, default=default), empty)


def _add(group: argparse._ActionsContainer, option: Option, empty: str) -> None:
    default, rule = option.default, option.rule
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else "none" if default is None else default
    text = f"{option.help} (default: {empty if shown == '' else shown})".strip()
    if rule.kind is bool:
        group.add_argument(flag(option.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    metavar = None if rule.choices else rule.kind.__name__.upper()
    nargs = rule.count if rule.several else None
    group.add_argument(
        flag(option.name), type=rule, nargs=nargs, choices=rule.choices or None, metavar=metavar, help=text
    )
