"""Run the command `train`: in processes that can be interrupted and killed, or in this process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_deltamem import train
from tests.conftest import REPO, backbone
from tests.core.test_shard import free_ports

PATIENCE = 240


class Train(subprocess.Popen):
    """`mlx_deltamem.train` in another process, without access to the Hub."""

    def __init__(self, *options: object, cwd: Path, **environment: str):
        super().__init__(
            [sys.executable, "-m", "mlx_deltamem", "train", *map(str, options)],
            cwd=cwd,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, something: Callable[[], bool]) -> None:
        """Wait until something is so, or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not something() and self.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[int, str, str]:
        """The exit code and what was printed."""
        out, err = self.communicate(timeout=PATIENCE)
        return self.returncode, out, err


def two_processes(*options: object, folders: tuple[Path, Path], cwd: Path) -> list[Train]:
    """Two processes of one run, connected over loopback (MLX's ring), each with its folder."""
    hosts = cwd / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    return [
        Train(*options, "--adapter-path", folder, cwd=cwd, MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts))
        for rank, folder in enumerate(folders)
    ]


def tiny_options(data: Path, **options: object) -> list[object]:
    """Options of a run on the golden backbone."""
    given = {"model": backbone(), "data": data, "batch-size": 2, "sparsity": 0, "learning-rate": 1e-3} | options
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def last_checkpoint(folder: Path) -> int:
    """The number of steps in the last checkpoint of a run; 0 if there is none."""
    return max((int(path.stem) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)


def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command in this process: from options to exit code, output and errors."""

    def run(*options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlx_deltamem.train", *map(str, options)])
        capsys.readouterr()
        try:
            train.main()
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run
