"""Exit codes, errors and warnings of commands."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from mlx_deltamem.cli.command import command, standard_input
from mlx_deltamem.cli.starting import is_command
from mlx_deltamem.show.streams import ShownStream


def ended(main) -> int:
    """The exit code of a command."""
    try:
        command(main)()
    except SystemExit as error:
        return error.code
    return 0


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    "error", [ValueError("no\nuse \x1b[2J"), OSError("no\nuse \x1b[2J"), NotImplementedError("no\nuse \x1b[2J")]
)
def test_an_expected_error_is_one_line(error, capsys):
    assert ended(raising(error)) == 2
    assert capsys.readouterr().err == "error: no use \\x1b[2J\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(KeyError):
        command(raising(KeyError("a bug")))()


@pytest.mark.parametrize("code", [0, 2, 3, None])
def test_the_exit_code_of_argparse(code):
    assert ended(raising(SystemExit(code))) == (code or 0)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def fail_at_cleaning_up() -> None:
    try:
        press_ctrl_c()
    finally:
        raise FileNotFoundError("no temporary folder")


def go_on() -> None:
    try:
        press_ctrl_c()
    except BaseException:
        print("done")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("main", [press_ctrl_c, fail_at_cleaning_up, go_on, raising(KeyboardInterrupt())])
def test_ctrl_c_ends_with_130_in_every_case(main, capsys):
    assert ended(main) == 130
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_warning_is_one_line(capsys):
    command(lambda: warnings.warn("not\nfinite \x1b[2J", stacklevel=1))()
    assert capsys.readouterr().err == "warning: not finite \\x1b[2J\n"


def test_a_command_may_run_another_one():
    def inner() -> None:
        assert isinstance(sys.stdout, ShownStream)
        raise ValueError("inner")

    assert ended(command(inner)) == 2
    assert not isinstance(sys.stdout, ShownStream)


def test_standard_input_that_is_no_text(tmp_path, monkeypatch):
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    with (tmp_path / "bytes").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(ValueError, match=r"standard input is not UTF-8 \(byte 3\); expected the prompt"):
            standard_input("the prompt")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        standard_input("the prompt")


PROGRAM = """
import sys
from mlx_deltamem.cli.command import command
@command
def main():
    for number in range(100_000):
        print(number)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "code", "error"),
    [
        ("| head -n 1", 141, ""),
        ("> /dev/full", 2, "error: standard output cannot be written (No space left on device); send it elsewhere\n"),
        (">&-", 0, ""),
        ("> /dev/full 2>&-", 2, ""),
    ],
)
def test_output_that_cannot_be_written(place, code, error):
    if "full" in place and not Path("/dev/full").exists():
        pytest.skip("it has no such device")
    script = f'"$0" -c "$1" {place}; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(
        ["bash", "-c", script, sys.executable, PROGRAM], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (code, error)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["python", "-m", "mlx_deltamem", "chat"], True),
        (["python", "-m", "mlx_deltamem.convert"], True),
        (["python", "/a/bin/mlx_deltamem.chat", "--model", "x"], True),
        (["python", "/a/bin/mlx_deltamem"], True),
        (["python", "-m", "pytest", "mlx_deltamem"], False),
        (["python", "-c", "import mlx_deltamem"], False),
        (["python", "server.py", "mlx_deltamem"], False),
        (["python"], False),
    ],
)
def test_only_commands_of_this_package_take_ctrl_c(arguments, expected):
    assert is_command(arguments) is expected


def test_ctrl_c_at_the_very_end_changes_nothing(tmp_path):
    # Python runs `__del__` of what is left when it has given its signal handlers back.
    program = tmp_path / "mlx_deltamem.late"
    program.write_text(
        "import os, signal\n"
        "import mlx_deltamem.cli.starting\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):\n"
        "        kill(process, number)\n"
        "late = Late()\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
