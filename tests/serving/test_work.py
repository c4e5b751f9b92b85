"""Work on one memory is done in order."""

import logging

import pytest

from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.work import free, held, when_free
from tests.serving.conftest import chat_of, plain_chat


def unwanted() -> None:
    raise AssertionError("the memory was not deleted")


def test_requests_for_one_memory_wait_for_each_other(running):
    server = running()
    server.run(*(server.asking(f"Number {index}.", memory="anna") for index in range(5)))
    assert len(chat_of(server, "anna").turns) == 5
    assert server.engine.waiting == server.engine.active == 0


@pytest.fixture
def memory() -> Memory:
    return Memory("anna", plain_chat(), None)


def test_work_waits_in_order_for_the_end_of_a_turn(memory):
    done: list[str] = []

    def begin() -> None:
        done.append("turn")
        memory.is_busy = True

    for work in (lambda: done.append("first"), begin, lambda: done.append("second"), begin):
        when_free(memory, work, unwanted)
    assert done == ["first", "turn"]
    free(memory)
    assert done == ["first", "turn", "second", "turn"]
    free(memory)
    assert not memory.is_in_use


def test_work_that_waits_and_fails_does_not_end_the_work_after_it(memory, caplog):
    done: list[str] = []

    def fail() -> None:
        raise RuntimeError("a text of a message")

    def long_work() -> None:
        with held(memory):
            when_free(memory, fail, unwanted)
            when_free(memory, lambda: done.append("other"), unwanted)
            assert memory.settled is not None
            done.append("long")

    with caplog.at_level(logging.ERROR):
        when_free(memory, long_work, unwanted)
    assert done == ["long", "other"]
    assert memory.settled is None
    assert "work on a memory failed" in caplog.text and "a text of a message" not in caplog.text
