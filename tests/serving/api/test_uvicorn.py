"""The application behind uvicorn, over a socket."""

import asyncio
import contextlib
import json
from dataclasses import replace

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.exchange import Piece
from tests.serving.api.conftest import SETTINGS, Service

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@contextlib.asynccontextmanager
async def serving(service, **changes):
    """A server on a free port of this machine."""
    app = make_app(service, replace(SETTINGS, **changes))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)


async def post(port, body, path="/v1/chat/completions", host="localhost"):
    """Send a request, and return the streams of its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + content)
    return reader, writer


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_closed_connection_ends_the_reply(stream, path):
    async def leave():
        service = Service()
        service.endless = True
        async with serving(service) as port:
            _, writer = await post(port, {**HELLO, "stream": stream}, path)
            await until(lambda: service.asked)
            assert service.closed == 0
            writer.close()
            await until(lambda: service.closed == 1)
            service.endless = False
            reader, _ = await post(port, HELLO)
            assert b"200 OK" in await reader.read()

    asyncio.run(leave())


def test_tokens_arrive_one_by_one():
    async def read():
        service = Service()
        service.endless = True
        async with serving(service) as port:
            reader, writer = await post(port, {**HELLO, "stream": True})
            for text in (b"200 OK", b'"role":"assistant"', b'"Hel"', b'"lo"'):
                assert text in await asyncio.wait_for(reader.readuntil(text), 5)
            writer.close()
            await until(lambda: service.closed == 1)

    asyncio.run(read())


def test_a_reader_that_leaves_a_fast_stream_is_noticed(caplog):
    class Fast(Service):
        given = 0

        async def reply(self, request):
            try:
                # More than a socket takes before its reader has left.
                while self.given < 200_000:
                    self.given += 1
                    yield Piece("word ")
            finally:
                self.closed += 1

    async def leave():
        service = Fast()
        async with serving(service) as port:
            reader, writer = await post(port, {**HELLO, "stream": True})
            await reader.readuntil(b"word")
            writer.transport.abort()
            await until(lambda: service.closed == 1)
        assert service.given < 200_000

    asyncio.run(leave())
    # asyncio warns of what is written into a connection that has ended.
    assert not caplog.records


def test_a_body_that_is_too_large_is_refused_before_it_is_sent():
    async def send():
        async with serving(Service()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
            assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
            writer.close()

    asyncio.run(send())


def test_an_unfinished_body_is_refused():
    async def send():
        async with serving(Service(), body_timeout=0.1) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
            writer.close()

    asyncio.run(send())


def test_many_clients_that_come_and_go():
    async def one(port, number):
        reader, writer = await post(
            port, {**HELLO, "stream": number % 2 == 0, **({"n": 99} if number % 20 == 3 else {})}
        )
        if number % 10 == 1:
            writer.close()
            return b""
        answer = await reader.read()
        writer.close()
        return answer

    async def load():
        service = Service()
        async with serving(service) as port:
            answers = await asyncio.gather(*(one(port, number) for number in range(100)))
            for number, answer in enumerate(answers):
                if number % 10 == 1:
                    continue
                assert (b" 400 " if number % 20 == 3 else b" 200 ") in answer.split(b"\r\n")[0]
                assert number % 2 or b"[DONE]" in answer
            await until(lambda: service.closed == len(service.asked))

    asyncio.run(load())
