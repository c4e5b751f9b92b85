import os
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest

from mlx_deltamem import __version__
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.main import COMMANDS
from tests.command_line import run_command


@pytest.mark.slow
def test_version_and_help():
    assert run_command("--version").stdout.strip() == __version__
    listing = run_command("--help")
    assert listing.returncode == 0
    assert all(f"  {name} " in listing.stdout and purpose in listing.stdout for name, purpose in COMMANDS.items())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_what_is_no_command_ends_with_2(arguments):
    result = run_command(*arguments)
    assert result.returncode == 2
    assert "there is no command" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_three_names(command):
    script = Path(sysconfig.get_path("scripts")) / f"mlx_deltamem.{command}"
    for call in (
        [script],
        [sys.executable, "-m", f"mlx_deltamem.{command}"],
        [sys.executable, "-m", "mlx_deltamem", command],
    ):
        result = subprocess.run([*map(str, call), "--help"], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("usage:")
        assert "RuntimeWarning" not in result.stderr


def test_a_warning_is_one_line(capsys):
    @command
    def main() -> None:
        warnings.warn("the memory is not finite", stacklevel=1)

    main()
    assert capsys.readouterr().err == "warning: the memory is not finite\n"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mlx_deltamem", "mlx_deltamem.data"])
def test_a_reader_who_leaves_early_is_no_traceback(module):
    # The pipe is closed before anything is written.
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-m", module, "--help"]
    ended = subprocess.run(arguments, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert ended.returncode == 141
    assert "Traceback" not in ended.stderr
