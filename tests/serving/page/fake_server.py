"""A small server with scripted data that serves the page: `python -m tests.serving.page.fake_server --port 8123`.

It has the part of the API that the page uses, and no model. Some messages have a special effect: `long` gives a long
reply, `html` a reply with HTML in it, `fail` an error, and `break` an error in the middle of a reply.
"""

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

PAGE = Path(__file__).parents[3] / "mlx_deltamem/serving/page"
HTML = "<img src=x onerror=\"document.title='owned'\"> <script>document.title='owned'</script>"
# The policy that the page is written for.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPLY = "Thank you, I will keep that in mind. Your dog is called Biscuit, and you live in Ghent near the canal."


@dataclass
class Fake:
    """A memory.

    Attributes:
        turns: Its turns, in the form of the API.
        states: By layer, the rows of the state.
        earlier: For each turn, the states before it.
        listeners: The queues of those who listen to its events.
    """

    name: str
    states: dict[int, list[list[float]]]
    turns: list[dict[str, object]] = field(default_factory=list)
    earlier: list[dict[int, list[list[float]]]] = field(default_factory=list)
    listeners: list[asyncio.Queue[tuple[str, object]]] = field(default_factory=list)
    revision: int = 0

    def info(self) -> dict[str, object]:
        """The memory, as clients see it."""
        return {
            "name": self.name,
            "revision": str(self.revision),
            "turns": len(self.turns),
            "tokens": 43 * len(self.turns),
            "state_bytes": 14 * 32 * 32 * 4,
            "history": "full",
            "write": "all",
            "loaded": True,
        }

    def tell(self, kind: str, data: object) -> None:
        """Send an event to those who listen."""
        for queue in self.listeners:
            queue.put_nowait((kind, data))


@dataclass
class FakeServer:
    """The server.

    Attributes:
        layers, rank: The layers with a memory, and the size of their states.
        delay: Seconds between tokens.
        key: The API key; None: no key is asked for.
        seen: The bodies of the requests for replies, for tests.
        hidden: The names of memories that cannot be opened.
        chance: The source of the made-up numbers.
    """

    layers: tuple[int, ...] = tuple(range(2, 30, 2))
    rank: int = 32
    delay: float = 0.03
    key: str | None = None
    memories: dict[str, Fake] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def app(self) -> Starlette:
        """The application."""
        memory = "/v1/memories/{name}"
        return Starlette(
            routes=[
                *[Route(path, _file(name)) for path, name in _FILES.items()],
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/memories", self._memories, methods=["GET", "POST"]),
                Route(memory, self._memory, methods=["GET", "DELETE"]),
                Route(memory + "/import", self._import, methods=["PUT"]),
                *[
                    Route(f"{memory}/{name}", self._change, methods=["POST"])
                    for name in ("fork", "reset", "undo", "remember")
                ],
                Route(memory + "/export", self._export),
                Route(memory + "/turns", self._turns),
                Route(memory + "/heatmap.json", self._heatmap),
                Route(memory + "/drift.json", self._drift),
                Route(memory + "/events", self._events),
            ],
            middleware=[Middleware(_Headers, server=self)],
            exception_handlers={HTTPException: _error},
        )

    def make(self, name: str) -> Fake:
        """Make an empty memory."""
        empty = {layer: [[0.0] * self.rank for _ in range(self.rank)] for layer in self.layers}
        self.memories[name] = Fake(name, empty)
        return self.memories[name]

    def fill(self, memory: Fake, number: int) -> None:
        """Give a memory some turns."""
        for index in range(number):
            before = _copy(memory.states)
            for _ in range(12):
                self._write(memory)
            text = (
                HTML if index == 1 else f"This is message {index + 1}. I moved to Ghent, and my dog is called Biscuit."
            )
            self._add_turn(memory, before, text, "I see. " + _REPLY, remembered=index == 3)

    def _write(self, memory: Fake) -> dict[int, float]:
        """Write a token: a product of two sparse vectors into each state. Returns β by layer."""
        beta = {}
        for layer, rows in memory.states.items():
            beta[layer] = min(0.9, max(0.01, self.chance.gauss(0.25 + 0.01 * layer, 0.12)))
            keys = [self.chance.gauss(0, 1) if self.chance.random() < 0.3 else 0.0 for _ in range(self.rank)]
            values = [self.chance.gauss(0, 0.02 + 0.001 * layer) for _ in range(self.rank)]
            for row, value in zip(rows, values, strict=True):
                row[:] = [0.995 * old + beta[layer] * value * key for old, key in zip(row, keys, strict=True)]
        return beta

    def _add_turn(
        self, memory: Fake, before: dict[int, list[list[float]]], asked: str, reply: str, remembered: bool = False
    ) -> str:
        index = len(memory.turns)
        messages = [{"role": "user", "content": asked}]
        if not remembered:
            messages.append({"role": "assistant", "content": reply})
        changed = {
            str(layer): min(1.4, 2 / (index + 2) + self.chance.random() * 0.3 + (0.5 if index in (4, 7) else 0))
            for layer in self.layers
        }
        turn = {"id": f"turn-{index}", "chat": "c", "messages": messages, "remembered": remembered, "write": "all"}
        memory.turns.append({**turn, "changed": changed})
        memory.earlier.append(before)
        memory.revision += 1
        return f"turn-{index}"

    def _found(self, request: Request) -> Fake:
        name = request.path_params["name"]
        if name not in self.memories:
            raise HTTPException(404, f"there is no memory {name!r}; expected one of {', '.join(self.memories)}")
        return self.memories[name]

    async def _models(self, request: Request) -> Response:
        ids = ["SmolLM2-135M-Instruct", *[f"SmolLM2-135M-Instruct@{name}" for name in (*self.memories, *self.hidden)]]
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in ids]})

    async def _memories(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"data": [self.memories[name].info() for name in sorted(self.memories)]})
        name = (await request.json())["name"]
        if name in self.memories or name in self.hidden:
            raise HTTPException(409, f"there is a memory {name!r} already; expected a new name")
        return JSONResponse(self.make(name).info(), 201)

    async def _memory(self, request: Request) -> Response:
        memory = self._found(request)
        if request.method == "DELETE":
            del self.memories[memory.name]
            return Response(status_code=204)
        return JSONResponse(memory.info(), headers={"ETag": f'"{memory.name}-{memory.revision}"'})

    async def _change(self, request: Request) -> Response:
        memory = self._found(request)
        match = request.headers.get("if-match")
        if match is not None and match != f'"{memory.name}-{memory.revision}"':
            raise HTTPException(412, "the revision is another one")
        kind = request.url.path.rpartition("/")[2]
        if kind == "fork":
            fork = self.make((await request.json())["name"])
            fork.states, fork.turns, fork.earlier = _copy(memory.states), [*memory.turns], [*memory.earlier]
            return JSONResponse(fork.info(), 201)
        if kind == "reset":
            revision = memory.revision
            memory = self.make(memory.name)
            memory.revision = revision + 1
        elif kind == "undo":
            if not memory.turns:
                raise HTTPException(409, "the memory has no turn; there is nothing to undo")
            memory.turns.pop()
            memory.states = memory.earlier.pop()
            memory.revision += 1
        else:
            before = _copy(memory.states)
            text = (await request.json())["text"]
            for word in text.split(" "):
                self._tell_token(memory, word + " ")
            memory.tell("turn", {"id": self._add_turn(memory, before, text, "", remembered=True)})
        return JSONResponse(memory.info())

    async def _export(self, request: Request) -> Response:
        return Response(json.dumps(self._found(request).turns).encode(), media_type="application/octet-stream")

    async def _import(self, request: Request) -> Response:
        try:
            turns = json.loads(await request.body())
        except ValueError:
            raise HTTPException(422, "the file is not a session file; expected one that was exported") from None
        memory = self.make(request.path_params["name"])
        self.fill(memory, len(turns))
        memory.turns = turns
        return JSONResponse(memory.info(), 201)

    async def _turns(self, request: Request) -> Response:
        return JSONResponse({"data": self._found(request).turns})

    async def _heatmap(self, request: Request) -> Response:
        return JSONResponse({"layers": _heat(self._found(request))})

    async def _drift(self, request: Request) -> Response:
        turns = [
            {
                "id": turn["id"],
                "chat": turn["chat"],
                "changed": turn["changed"],
                "kept": {str(layer): 0.93 + 0.002 * layer for layer in self.layers},
            }
            for turn in self._found(request).turns
        ]
        return JSONResponse({"turns": turns, "borders": [border for border in (4, 7) if border < len(turns)]})

    async def _events(self, request: Request) -> Response:
        memory = self._found(request)
        queue: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
        memory.listeners.append(queue)

        async def lines() -> AsyncIterator[str]:
            yield ": hello\n\n"
            while True:
                kind, data = await queue.get()
                yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        asked = body["messages"][-1]["content"]
        if asked == "fail":
            raise HTTPException(507, "no space is left for 'anna.safetensors'; free some and try again")
        name = body["memory"]["name"]
        if name not in self.memories:
            raise HTTPException(404, f"there is no memory {name!r}")
        return StreamingResponse(self._replies(body, asked), media_type="text/event-stream")

    async def _replies(self, body: Mapping[str, object], asked: str) -> AsyncIterator[str]:
        asked_memory = body["memory"]
        assert isinstance(asked_memory, dict)
        memory, mode = self.memories[asked_memory["name"]], asked_memory["mode"]
        reply = {"html": HTML, "long": " ".join([_REPLY] * 30)}.get(asked, _REPLY)
        if mode == "off":
            reply = "I am sorry, I do not know the name of your dog. You have not told me."
        before = _copy(memory.states)
        if mode == "write":
            for word in asked.split(" "):
                self._tell_token(memory, word + " ")
        words = reply.split(" ")
        for index, word in enumerate(words):
            await asyncio.sleep(self.delay)
            if asked == "break" and index == 5:
                yield _line({"error": {"message": "the state is not finite", "type": "server_error", "code": "nan"}})
                return
            text = word if index == 0 else " " + word
            if mode == "write":
                self._tell_token(memory, text)
            yield _line({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        if mode == "write":
            memory.tell("turn", {"id": self._add_turn(memory, before, asked, reply), "revision": str(memory.revision)})
        told = {"name": memory.name, "revision": memory.revision, "written": mode == "write"}
        yield _line({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield _line({"choices": [], "usage": {"completion_tokens": len(words), "memory": told}})
        yield "data: [DONE]\n\n"

    def _tell_token(self, memory: Fake, text: str) -> None:
        beta = self._write(memory)
        norms = {layer: sum(x * x for row in rows for x in row) ** 0.5 for layer, rows in memory.states.items()}
        memory.tell("token", {"text": text, "beta": beta, "norms": norms, "heat": _heat(memory)})


_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}


class _Headers:
    """Middleware that checks the key, and adds the page's content security policy."""

    def __init__(self, app: ASGIApp, server: FakeServer):
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._server.key
        if scope["type"] == "http" and key is not None and scope["path"] not in _FILES:
            given = dict(scope["headers"]).get(b"authorization", b"").decode()
            if given != f"Bearer {key}":
                await _reply_error(401, "the API key is missing or wrong")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})

    return endpoint


def _line(chunk: object) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _heat(memory: Fake) -> list[dict[str, object]]:
    return [
        {"layer": layer, "head": 0, "values": [[round(value, 4) for value in row] for row in rows]}
        for layer, rows in memory.states.items()
    ]


def _copy(states: Mapping[int, list[list[float]]]) -> dict[int, list[list[float]]]:
    return {layer: [row[:] for row in rows] for layer, rows in states.items()}


def _reply_error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": None}}, status)


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _reply_error(error.status_code, error.detail)


def main() -> None:
    """Serve the page on loopback until the program is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--key", default=None)
    given = parser.parse_args()
    server = FakeServer(key=given.key)
    server.fill(server.make("anna"), 9)
    uvicorn.run(server.app(), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
