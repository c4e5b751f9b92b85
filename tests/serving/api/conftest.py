"""A scripted engine, and clients of the application over it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.serving.exchange import Done, Mode, Piece, RefusedError, ReplyRequest, TokenLogprob
from mlx_deltamem.serving.service import Health, MemoryInfo, TurnInfo

MODEL = "org/tiny"
SETTINGS = Settings(allowed_hosts=("testserver", "localhost"))


class Tokenizer:
    """A tokenizer with one token for each character, with markers for thoughts and tool calls."""

    think_start, think_end = "<think>", "</think>"
    tool_call_start, tool_call_end = "<call>", "</call>"
    has_tool_calling = True
    response_initial_state = None
    structural_markers = ()
    has_chat_template, chat_template = False, None

    def __init__(self):
        self.has_thinking = False
        self.response_transitions = {}
        self.tool_parser = lambda text, tools: json.loads(text)

    def __len__(self):
        return 256

    def encode(self, text, add_special_tokens=True, verbose=True):
        return [ord(character) for character in text]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


class Service:
    """An engine that gives the steps of `script` and records what it was asked."""

    model_name = MODEL

    def __init__(self):
        self.tokenizer = Tokenizer()
        self.script: Sequence[str | Exception] = ["Hel", "lo"]
        self.finish_reason, self.stop_text, self.note = "stop", None, None
        self.asked: list[ReplyRequest] = []
        self.closed = 0
        # Turns that the memory has lost.
        self.lost: set[str] = set()
        # Set: a reply goes on after its script without an end.
        self.endless = False
        self.alive = Health(0.0, 0, 0, True)
        self.infos = {name: MemoryInfo(name, "1", 2, 30, 400, "full", "all", True) for name in ("anna", "bob")}

    async def reply(self, request: ReplyRequest) -> AsyncIterator[Piece | Done]:
        self.asked.append(request)
        try:
            if request.continues in self.lost:
                raise RefusedError(404, "turn_not_found", "there is no such turn")
            for step in self.script:
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                logprob = TokenLogprob(step, -0.5, step.encode())
                wanted = request.top_logprobs is not None
                note = self.note if step is self.script[0] else None
                yield Piece(step, logprob if wanted else None, (logprob,) * (request.top_logprobs or 0), note)
            if self.endless:
                await asyncio.sleep(60)
            written = request.mode is Mode.WRITE
            turn = f"turn{len(self.asked)}"
            yield Done(
                self.finish_reason,
                10,
                2,
                4,
                turn,
                request.memory,
                7,
                written,
                self.note,
                saved=False,
                stop_text=self.stop_text,
                tag=None if request.memory is None else "5",
            )
        finally:
            self.closed += 1

    async def memories(self):
        return [*self.infos.values()]

    async def memory_names(self):
        return [*self.infos]

    async def memory(self, name):
        if name not in self.infos:
            raise RefusedError(404, "memory_not_found", f"there is no memory {name}")
        return self.infos[name]

    async def _checked(self, name, match):
        info = await self.memory(name)
        if match is not None and info.revision not in match:
            raise RefusedError(412, "memory_changed", "it was changed")
        return info

    async def _changed(self, name, match, **changes):
        info = await self._checked(name, match)
        self.infos[name] = replace(info, revision=str(int(info.revision) + 1), **changes)
        return self.infos[name]

    async def create(self, name, history, write):
        if name in self.infos:
            raise RefusedError(409, "memory_exists", "there is such a memory")
        self.infos[name] = MemoryInfo(name, "0", 0, 0, 0, history or "full", write or "all", True)
        return self.infos[name]

    async def change(self, name, history, write, match):
        return await self._changed(name, match, **({"history": history} if history else {}))

    async def delete(self, name, match):
        await self._changed(name, match)
        del self.infos[name]

    async def fork(self, name, new, match):
        self.infos[new] = replace(await self._checked(name, match), name=new)
        return self.infos[new]

    async def reset(self, name, match):
        return await self._changed(name, match, turns=0)

    async def undo(self, name, match):
        return await self._changed(name, match, turns=1)

    async def remember(self, name, messages, write, match):
        self.remembered = (messages, write)
        return await self._changed(name, match, turns=3)

    async def turns(self, name):
        await self.memory(name)
        return [TurnInfo("t1", "c", ({"role": "user", "content": "hi"},), False, "all", {3: 0.5})]

    async def exported(self, name):
        await self.memory(name)
        return b"file"

    async def imported(self, name, content, match):
        if match is not None:
            await self._checked(name, match)
        self.content = content
        self.infos[name] = MemoryInfo(name, "1", 1, 1, 1, "full", "all", True)
        return self.infos[name]

    async def heatmap(self, name):
        await self.memory(name)
        return {"layers": [{"layer": 0, "head": 0, "values": [[0.0, -1.0], [0.5, 1.0]]}]}

    async def drift(self, name):
        await self.memory(name)
        return {"turns": [], "borders": []}

    async def events(self, name) -> AsyncIterator[Mapping[str, object]]:
        yield {"type": "turn", "id": "t1"}

    def health(self):
        return self.alive

    def metrics(self):
        return "# HELP x\nx 1\n"


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def client(service):
    return TestClient(make_app(service, SETTINGS))


def events(response) -> list[dict]:
    """The JSON of a stream, without its last line if that is [DONE]."""
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def asgi(app, path, body: dict | None = None, method="POST", headers=()):
    """Call an application directly. Returns the queue of what it receives, the list of what it sent, and its task."""
    received: asyncio.Queue = asyncio.Queue()
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    content = json.dumps(body or {}).encode()
    received.put_nowait({"type": "http.request", "body": content, "more_body": False})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"testserver"), *headers],
    }
    return received, sent, asyncio.create_task(app(scope, received.get, send))
