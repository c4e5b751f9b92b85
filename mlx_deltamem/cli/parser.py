"""The argument parser of all commands: no abbreviations, errors of one line, ranges and defaults in the help."""

import argparse
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

from mlx_deltamem._version import __version__
from mlx_deltamem.options.mlx_lm_habits import OPTIONS
from mlx_deltamem.options.rule import Rule
from mlx_deltamem.show.printable import on_one_line

# An error names at most this many options that are written alike.
_MOST_NAMED = 3
# Characters of an error. Arguments may be of any length.
_LONGEST = 1000
# The least similarity of two names, from 0 to 1.
_ALIKE = 0.75


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the default of an option to its help text, and the range of a number."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None:
            return None
        text = action.help.rstrip()
        # A help text may explain the default itself.
        if "default:" not in text and (default := _default(action)):
            text = f"{text.removesuffix('.')} (default: {default})."
        rule = action.type
        if action.choices or not isinstance(rule, Rule) or rule.kind not in (int, float):
            return text
        expected = rule.expected_one
        return f"{text} {expected[0].upper()}{expected[1:]}."


def _default(action: argparse.Action) -> str:
    """The default of an option, for its help text; "" for a switch, and for an option that has none."""
    default = action.default
    if action.nargs == 0 or default is None or default is argparse.SUPPRESS or default in ([], (), {}, ""):
        return ""
    text = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
    # argparse replaces names after this sign.
    return text.replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """A parser of the options of a command.

    Options are written in full: an abbreviation could be another option of mlx-lm, as `--train` is. For an unknown
    option, the error names mlx-lm's option of that name or one that is written alike.

    Args:
        prog: The name of the command, as a user types it: `mlx_deltamem.train`.
        description: The text of the help.
        usage: The first lines of the help; None: made from the options.
    """

    def __init__(self, prog: str | None = None, description: str | None = None, usage: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            usage=usage,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.add_argument("--version", action="version", version=__version__, help="Print the version.")

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse the arguments of a command line; a wrong one ends the process with exit code 2."""
        given = sys.argv[1:] if args is None else list(args)
        for text in given[: given.index("--")] if "--" in given else given:
            name = text.partition("=")[0]
            # A text with a space is the value of an option, as for argparse.
            if name.startswith("--") and name not in self._option_string_actions and " " not in text:
                self.error(f"there is no option {name}{self._hint(name)}")
        try:
            found, more = self.parse_known_args(given, namespace)
        except argparse.ArgumentError as error:
            self.error(_sentence(error))
        if more:
            hint = self._hint(more[0] if more[0].startswith("-") else "")
            self.error(f"{' '.join(more)} is too much{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """Print an error in one line, with the place where the options are listed; end the process with exit code 2."""
        shown = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."
        self.exit(2, f"error: {on_one_line(shown)} (`{self.prog} --help` lists the options)\n")
        raise AssertionError("exit returned")

    def _hint(self, name: str) -> str:
        """The advice for an unknown option, with a semicolon before it: another option; "" if there is none."""
        known = OPTIONS.get(self.prog.rpartition(".")[2], {})
        if name in known:
            return f"; {known[name]}"
        begun = [option for option in self._option_string_actions if name and option.startswith(name)]
        if close := begun or get_close_matches(name, self._option_string_actions, n=1, cutoff=_ALIKE):
            return f"; did you mean {' or '.join(close[:_MOST_NAMED])}?"
        return ""


def _sentence(error: argparse.ArgumentError) -> str:
    """The message of an error of argparse. Our own rules begin theirs with a verb, so that the name can go before."""
    if error.argument_name is None:
        return error.message
    return f"{error.argument_name}{' ' if error.message.startswith('is ') else ': '}{error.message}"
