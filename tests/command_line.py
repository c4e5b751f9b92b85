"""Run commands as a user runs them: each in a new process."""

import os
import re
import subprocess
import sys


def run_command(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m mlx_deltamem ...` without access to the Hub. `environment`: additional variables."""
    return subprocess.run(
        [sys.executable, "-m", "mlx_deltamem", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        check=False,
    )


def error_line(errors: str) -> str:
    """The line of an error, without the name of the help, which errors in the options have at their end."""
    assert errors.count("\n") == 1 and errors.endswith("\n")
    return re.sub(r" \(`mlx_deltamem\.[a-z -]+ --help` lists the options\)$", "", errors[:-1])


def assert_refused(result: subprocess.CompletedProcess[str], message: str) -> None:
    """Check for exit code 2, an error of one line that contains `message`, and no traceback."""
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
