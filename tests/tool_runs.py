"""Run a program of tools/ or mlx_deltamem.data in this process, as from a command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest


class Run(NamedTuple):
    """The exit code of a program, its standard output and its standard error."""

    code: int
    output: str
    errors: str


def runner(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Return a function that runs `tool.main()` with the given arguments."""

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as exit_:
            code = exit_.code
        return Run(code, *capsys.readouterr())

    return run


def records_of(path: Path) -> list[dict]:
    """Return the records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
