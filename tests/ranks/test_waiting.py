"""The kernel waits for the bytes of a rank on the same machine."""

import errno
import json
import os
import socket

import pytest

from mlx_deltamem.ranks.waiting import open_files, shares_machine, wait_asleep


@pytest.mark.parametrize(
    ("hosts", "rank", "shares"),
    [
        (["127.0.0.1:1", "127.0.0.1:2"], 0, True),
        (["10.0.0.1:1", "10.0.0.2:1"], 0, False),
        (["10.0.0.1:1", "10.0.0.2:1", "10.0.0.2:2"], 0, False),
        (["10.0.0.1:1", "10.0.0.2:1", "10.0.0.2:2"], 2, True),
        (["[::1]:1", "[::1]:2"], 1, True),
    ],
)
def test_ranks_with_one_address_share_a_machine(hosts, rank, shares, tmp_path, monkeypatch):
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps([[host] for host in hosts]))
    monkeypatch.setenv("MLX_HOSTFILE", str(file))
    assert shares_machine(rank) is shares


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "[[], []]", "null", None])
def test_without_a_ring_no_machine_is_shared(content, tmp_path, monkeypatch):
    """JACCL and MPI have no such file."""
    file = tmp_path / "hosts.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("MLX_HOSTFILE", str(file))
    assert not shares_machine(0)
    monkeypatch.delenv("MLX_HOSTFILE")
    assert not shares_machine(0)


def test_all_that_is_opened_later_is_found():
    before = open_files()
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    assert open_files() - before == set(files)
    for file in files:
        os.close(file)
    assert open_files() == before


def test_a_connection_waits_in_the_kernel_and_then_says_what_it_said_before():
    before = open_files()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        pipe = os.pipe()
        with theirs:
            for each in (ours, theirs):
                each.setblocking(False)
            wait_asleep(open_files() - before)
            assert os.get_blocking(ours.fileno())
            assert any(ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
            assert _error_of_reading(ours) in (errno.EAGAIN, errno.EWOULDBLOCK)
            theirs.send(b"ab")
            assert os.read(ours.fileno(), 2) == b"ab"
        # A connection that is closed is noticed as before.
        assert os.read(ours.fileno(), 2) == b""
        for file in pipe:
            os.close(file)


def _error_of_reading(sock: socket.socket) -> int | None:
    try:
        os.read(sock.fileno(), 1)
    except OSError as error:
        return error.errno
    return None
