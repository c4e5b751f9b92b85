import io
import os
import socket
from pathlib import Path

import mlx_lm
import pytest

from mlx_deltamem.ranks import world
from mlx_deltamem.ranks.world import World
from tests.ranks.models import make_adapter, make_model
from tests.ranks.together import connection_to


def model_options(folder: Path, family: str) -> list[object]:
    """The options that name a model and an adapter, which are made in a folder."""
    model = make_model(folder / "model", family)
    adapter = make_adapter(folder / "adapter", mlx_lm.load(str(model))[0], rank=4, delta_heads=("q", "o"))
    return ["--model", model, "--adapter", adapter]


@pytest.fixture(scope="session")
def options(tmp_path_factory) -> list[object]:
    """The options that name a model and an adapter."""
    return model_options(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def exits(monkeypatch):
    """The exit codes with which ranks would have ended their process."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(world, "_GRACE", 0.1)
    monkeypatch.setattr(world, "_LEAVING", 0.2)
    return codes


@pytest.fixture
def ranks(exits):
    """Three ranks in this process, and their sockets by rank and peer."""
    worlds = [World(rank, 3, None, {}, io.StringIO()) for rank in range(3)]
    sockets = {}
    for rank in (1, 2):
        sockets[0, rank], sockets[rank, 0] = socket.socketpair(socket.AF_UNIX)
    for (rank, peer), sock in sockets.items():
        worlds[rank].connections = {
            **worlds[rank].connections,
            peer: connection_to(worlds[rank], peer, sock),
        }
    yield worlds, sockets
    for each in worlds:
        # What follows must not end the process of the tests.
        each.leave(0)
    for sock in sockets.values():
        sock.close()
