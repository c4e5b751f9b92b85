"""A command whose first argument names another command, such as `mlx_deltamem NAME ...`."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_deltamem._version import __version__
from mlx_deltamem.options.rule import shown


@dataclass(frozen=True)
class CommandList:
    """The commands that the first argument may name.

    Attributes:
        prog: The name of the command that lists them, as a user types it.
        noun: The word for one of them, for the help and for errors.
        commands: By name, the purpose of each.
        package: The package with a module of each command's name, where `-` becomes `_`.
    """

    prog: str
    noun: str
    commands: Mapping[str, str]
    package: str

    @property
    def usage(self) -> str:
        """The help text."""
        hint = (
            f"`{self.prog} {self.noun.upper()} --help` lists the options of a {self.noun}; "
            f"`{self.prog} --version` prints the version."
        )
        lines = [f"  {name:<10} {purpose}" for name, purpose in self.commands.items()]
        return "\n".join([f"usage: {self.prog} {self.noun.upper()} ...", "", f"{self.noun}s:", *lines, "", hint])

    def run(self) -> None:
        """Run the `main` of the command that the first argument names.

        Raises:
            ValueError: There is no such command.
        """
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name in self.commands:
            sys.argv[:2] = [f"{self.prog} {name}"]
            importlib.import_module(f"{self.package}.{name.replace('-', '_')}").main()
        elif name in ("-h", "--help"):
            print(self.usage)
        elif name == "--version":
            print(__version__)
        else:
            problem = f"there is no {self.noun} {shown(name)}" if name else f"there is no {self.noun} named"
            raise ValueError(f"{problem}; expected {', '.join(self.commands)} (`{self.prog} --help` explains them)")
