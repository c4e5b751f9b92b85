"""A server's engine with a tiny model, without HTTP."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import Done, Mode, Piece, ReplyRequest
from mlx_deltamem.sessions.text.messages import parse_messages
from tests.sessions.test_session import HISTORIES, loaded, new_chat

pytest.importorskip("prometheus_client")

from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.local import LocalService
from mlx_deltamem.serving.memories import Memories


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, for at most half a minute."""
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


class Running:
    """A running engine. Requests are given as messages, and answered as texts."""

    def __init__(self, folder: Path, **options: Any):
        model, tokenizer = loaded()
        tokenizer = options.pop("tokenizer", tokenizer)
        history, write = options.pop("history", "full"), options.pop("write", "all")
        self.memories = Memories(
            model, tokenizer, folder, history, write, most_bytes=options.pop("most_bytes", 1 << 30)
        )
        self.engine = Engine(model, tokenizer, self.memories, **options)
        self.engine.start()
        self.service = LocalService(self.engine, "tiny")

    def run(self, *works: Coroutine) -> list:
        """Run coroutines at the same time."""

        async def all_of_them() -> list:
            return await asyncio.gather(*works)

        return asyncio.run(all_of_them())

    def ask(self, *said: str | dict, **options: Any) -> tuple[str, Done]:
        """Ask for one reply."""
        return self.run(self.asking(*said, **options))[0]

    async def asking(
        self, *said: str | dict, leave_after: int | None = None, **options: Any
    ) -> tuple[str, Done | None]:
        """The reply to messages. Those that are texts alternate between user and assistant."""
        roles = ("user", "assistant")
        messages = [
            {"role": roles[place % 2], "content": each} if isinstance(each, str) else each
            for place, each in enumerate(said)
        ]
        if system := options.pop("system", None):
            messages.insert(0, {"role": "system", "content": system})
        options.setdefault("max_tokens", 8)
        request = ReplyRequest(messages=parse_messages(messages) if messages else (), **options)
        text, done, pieces = "", None, self.service.reply(request)
        count = 0
        async for item in pieces:
            if isinstance(item, Piece):
                text += item.text
                count += 1
                if count == leave_after:
                    await pieces.aclose()
                    break
            else:
                done = item
        return text, done


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(folder: Path | None = None, **options: Any) -> Running:
        started.append(Running(folder or tmp_path / "memories", **options))
        return started[-1]

    yield start
    for each in started:
        each.engine.stop(0)


def chat_of(running: Running, name: str) -> ChatSession:
    return running.memories.get(name).chat


def plain_chat(history: str | int = "full") -> ChatSession:
    return new_chat(history=history, system=None)


READ, OFF, WRITE = Mode.READ, Mode.OFF, Mode.WRITE
every_history = pytest.mark.parametrize("history", HISTORIES)
