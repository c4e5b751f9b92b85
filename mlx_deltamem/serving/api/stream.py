"""Streams of server-sent events, which end at once when their reader leaves."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_deltamem.serving.api.choice import Choice
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import error_body, error_reply, json_bytes
from mlx_deltamem.serving.api.failures import as_refused
from mlx_deltamem.serving.api.replies import cancelled, left, too_slow
from mlx_deltamem.serving.api.selection import memory_headers, note_headers
from mlx_deltamem.serving.exchange import RefusedError

DONE = b"data: [DONE]\n\n"
_KEEPALIVE = b": keepalive\n\n"


def event(value: object, name: str = "") -> bytes:
    """An event with JSON.

    Args:
        value: The value.
        name: The name of the event; "": none.
    """
    # JSON has no line breaks outside of its texts, where they are escaped.
    data = b"data: " + json_bytes(value) + b"\n\n"
    return f"event: {name}\n".encode() + data if name else data


def chunk_stream(
    context: Context,
    request: Request,
    events: AsyncGenerator[bytes, None],
    memory: str | None,
    choice: Choice,
) -> "EventStream":
    """The answer of OpenAI's completion endpoints that is a stream of chunks. An error ends it as its end does.

    Args:
        context: The server.
        request: The request.
        events: The chunks.
        memory: The name of the memory, for the headers; None: a private one.
        choice: The first reply.
    """
    return EventStream(
        events,
        lambda error: event(error_body(request.scope["path"], error)) + DONE,
        context.settings.keepalive,
        context.settings.timeout,
        memory_headers(memory),
        lambda: note_headers(choice.note),
    )


class EventStream(Response):
    """An answer that is a stream of events.

    Its head is sent with the first event, so that an error before it gets a status of its own; or after some time, as
    a comment, so that the connection is kept. The generator is closed when the reader leaves.

    Args:
        events: The events.
        on_error: The events for an error after the head was sent.
        keepalive: A comment is sent if nothing was sent for this time, in seconds.
        timeout: The longest time, in seconds; None: no limit.
        headers: The headers of the answer.
        late: Gives further headers when the head is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_error: Callable[[RefusedError], bytes],
        keepalive: float,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        late: Callable[[], Mapping[str, str]] = dict,
    ):
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._on_error = on_error
        self._keepalive_seconds = keepalive
        self._timeout = timeout
        self._late = late
        self._begun = False
        self._sent = 0.0
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        pump = asyncio.create_task(self._pump(scope, receive, send))
        others = [asyncio.create_task(left(Request(scope, receive))), asyncio.create_task(self._keep_alive(send))]
        try:
            await asyncio.wait((pump, others[0]), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled([pump, *others])
            # A generator that was cancelled between two events has not ended.
            await self._events.aclose()

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                async for each in self._events:
                    await self._send(send, each)
                    # Events may wait already. Between two of them the loop learns whether the reader has left.
                    await asyncio.sleep(0)
        # One exception ends one answer.
        except Exception as error:
            refused = too_slow(self._timeout or 0) if isinstance(error, TimeoutError) else as_refused(error)
            if not self._begun:
                self._begun = True
                await error_reply(scope["path"], refused)(scope, receive, send)
                return
            await self._send(send, self._on_error(refused))
        await self._send(send, b"", last=True)

    async def _keep_alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._sent = clock()
        while True:
            await asyncio.sleep(max(self._sent + self._keepalive_seconds - clock(), 0.001))
            if clock() - self._sent >= self._keepalive_seconds:
                await self._send(send, _KEEPALIVE)

    async def _send(self, send: Send, content: bytes, last: bool = False) -> None:
        # Two tasks send; the head must come first.
        async with self._lock:
            if not self._begun:
                self._begun = True
                self.headers.update(self._late())
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._sent = asyncio.get_running_loop().time()
            await send({"type": "http.response.body", "body": content, "more_body": not last})
