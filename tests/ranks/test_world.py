"""The messages between ranks: values, errors and files of rank 0, rows of the others, and ends."""

import io
import os
import socket
from pathlib import Path

import pytest

from mlx_deltamem.ranks import connection, world
from mlx_deltamem.ranks.world import RankError, World
from tests.ranks.together import connection_to, together


def test_all_ranks_get_the_value_of_the_first(ranks):
    assert (
        together(ranks[0], lambda each: each.share({"rank": each.rank, "word": "δ\udcff"}))
        == [{"rank": 0, "word": "δ\udcff"}] * 3
    )


def test_only_the_first_rank_acts(ranks):
    acted = []
    assert together(ranks[0], lambda each: each.first(lambda: acted.append(each.rank) or "done")) == ["done"] * 3
    assert acted == [0]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), ValueError),
        (FileNotFoundError("no"), FileNotFoundError),
        (PermissionError("no"), PermissionError),
        (IsADirectoryError("no"), OSError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), ValueError),
        (EOFError("no"), EOFError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_all_ranks_get_the_error_of_the_first(ranks, error, kind):
    def fail():
        raise error

    outcomes = together(ranks[0], lambda each: each.first(fail))
    assert outcomes == [(type(error), str(error)), (kind, str(error)), (kind, str(error))]


def test_an_error_that_the_others_do_not_get_ends_the_first_rank():
    two = World(0, 2)

    def fail():
        raise KeyError("no")

    with pytest.raises(RankError, match="KeyError: 'no'"):
        two.first(fail)


def test_all_ranks_get_the_values_of_all(ranks):
    assert together(ranks[0], lambda each: each.collect([each.rank])) == [[[0], [1], [2]]] * 3


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_a_file_of_the_first_rank_is_there_in_all(ranks, tmp_path, size):
    path, copies = tmp_path / "chat.safetensors", []
    path.write_bytes(os.urandom(size))

    def read(each):
        with each.file(path) as found:
            copies.append(found)
            return found.suffix, found.read_bytes()

    assert together(ranks[0], read) == [(".safetensors", path.read_bytes())] * 3
    assert [copy for copy in copies if copy.exists()] == [path]


def test_a_missing_file_is_missing_in_all(ranks, tmp_path):
    def is_there(each):
        with each.file(tmp_path / "none.safetensors") as found:
            return found.exists()

    assert together(ranks[0], is_there) == [False] * 3


def test_a_copy_that_cannot_be_written_is_an_error_of_one_rank(ranks, tmp_path, monkeypatch):
    path, write = tmp_path / "chat.safetensors", Path.write_bytes
    write(path, b"chat")

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    def read(each):
        try:
            with each.file(path) as found:
                return found.read_bytes()
        except RuntimeError as error:
            return str(error)

    first, *others = together(ranks[0], read)
    assert first == b"chat"
    assert all("cannot be written: No space left on device" in other for other in others)


def test_rows_come_in_order_and_before_what_follows(ranks):
    worlds, _ = ranks
    rows = {1: [], 2: []}

    def send(each):
        if each.rank:
            for number in range(100):
                each.connections[0].send_rows([each.rank, number])
        else:
            for peer, connection in each.connections.items():
                connection.take_rows(rows[peer].append)
        return each.collect(None)

    together(worlds, send)
    assert rows == {rank: [[rank, number] for number in range(100)] for rank in (1, 2)}


def test_a_rank_that_is_gone_ends_the_others_with_one_line_that_names_it(ranks, exits):
    worlds, sockets = ranks
    sockets[1, 0].shutdown(socket.SHUT_RDWR)
    _until(lambda: len(exits) >= 2)
    assert worlds[0].errors.getvalue() == (
        "error: rank 1 (mac-1) is gone; this rank ends too, and files are as they were saved last\n"
    )
    # Rank 2 has it from rank 0, which has printed the line.
    assert worlds[2].errors.getvalue() == ""
    assert set(exits) == {world.GONE}


def test_a_rank_that_says_nothing_counts_as_gone(exits, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE", 0.3)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    alone = World(0, 2, None, {}, io.StringIO())
    alone.connections = {1: connection_to(alone, 1, ours)}
    _until(lambda: exits)
    assert "rank 1 (mac-1) has not answered for" in alone.errors.getvalue()
    theirs.close()
    ours.close()


def test_the_error_of_another_rank_is_printed_once_and_its_exit_code_is_that_of_all(ranks, exits):
    worlds, _ = ranks
    worlds[1].leave(3, "the model is damaged")
    _until(lambda: len(exits) >= 2)
    assert worlds[0].errors.getvalue() == "error: rank 1 (mac-1): the model is damaged\n"
    assert worlds[1].errors.getvalue() == worlds[2].errors.getvalue() == ""
    assert set(exits) == {3}


def test_ranks_that_fail_alike_print_nothing_about_each_other(ranks, exits):
    worlds, _ = ranks
    together(worlds, lambda each: each.leave(2, "the prompt is empty"))
    assert [each.errors.getvalue() for each in worlds] == [""] * 3
    assert exits == []


def test_ranks_that_have_done_their_work_leave_each_other(ranks, exits):
    worlds, sockets = ranks
    together(worlds, lambda each: each.leave(0))
    for sock in sockets.values():
        sock.close()
    assert [each.errors.getvalue() for each in worlds] == [""] * 3
    assert exits == []


def test_a_rank_alone_needs_nobody(tmp_path):
    alone = World(0, 1)
    assert alone.share(1) == alone.first(lambda: 1) == 1
    assert alone.collect(1) == [1]
    with alone.file(tmp_path / "x") as path:
        assert path == Path(tmp_path / "x")
    alone.leave(0)


def test_an_error_that_all_ranks_have_may_be_handled():
    two = World(0, 2)
    for error in (ValueError("no"), OSError("no"), KeyError("no")):
        two.check_common(error)
    for error in (RuntimeError("no"), MemoryError("no")):
        World(0, 1).check_common(error)
        with pytest.raises(RankError, match="no"):
            two.check_common(error)


def _until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        connection.time.sleep(0.05)
    raise AssertionError("it did not happen within 10 seconds")
