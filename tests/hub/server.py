"""The Hugging Face Hub on this machine, for tests without a network. It answers the requests of huggingface_hub.

    with Hub() as hub:
        hub.create("user/model", {"README.md": b"# A model"})
        subprocess.run(command, env=os.environ | hub.environment(tmp_path))

Two servers run: the Hub, and the storage of large files under another port. So a test sees if a token is sent to a host
that is not the Hub. Tests in this process use the fixture of tests/hub/fixture.py.
"""

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.hub import api as hub_api
from tests.hub import storage as hub_storage
from tests.hub.api import Api, User
from tests.hub.faults import Faults
from tests.hub.http import Call, Reply, Routes
from tests.hub.repository import Commit, Repository
from tests.hub.storage import Storage

TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_loopbackWriter", "hf_loopbackReader", "hf_loopbackStranger"


@dataclass(frozen=True)
class Request:
    """A request that a server received.

    Attributes:
        host: `hub` or `storage`.
        method: The HTTP method.
        path: The path with the query.
        token_sent: True if the request has a token.
        received: The bytes of the body that arrived.
        range: The part of a file that was asked for (`bytes=10-`), or None.
    """

    host: str
    method: str
    path: str
    token_sent: bool
    received: int
    range: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Hub:
    """The loopback Hub. `with Hub() as hub:` runs it on free ports.

    `endpoint` and `storage.endpoint` are the addresses. `requests` has all requests. `fail(...)` is `Faults.add`.
    `slept` has the seconds that huggingface_hub would have slept between retries; the fixture fills it. `tokens` maps
    tokens to users: `TOKEN` can write the repositories of `user`, `READ_TOKEN` can read them, `OTHER_TOKEN` is of
    another user.

    Args:
        lfs_above: A text file of more bytes is a large file. Binary files always are.
        multipart_above: A large file of more bytes is sent in parts.
        part_size: The bytes of a part.
    """

    def __init__(self, lfs_above: int = 100_000, multipart_above: int = 1 << 20, part_size: int = 1 << 19) -> None:
        self.tokens = {TOKEN: User("user"), READ_TOKEN: User("user", may_write=False), OTHER_TOKEN: User("stranger")}
        self.storage = Storage(multipart_above, part_size)
        self.api = Api(self.tokens, self.storage, lfs_above)
        self.requests: list[Request] = []
        self.faults = Faults()
        self.fail = self.faults.add
        self.slept: list[float] = []
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self.storage.endpoint = self._running.enter_context(_serving("storage", self, self.storage, hub_storage.route))
        self.api.endpoint = self._running.enter_context(_serving("hub", self, self.api, hub_api.route))
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def endpoint(self) -> str:
        return self.api.endpoint

    def create(
        self,
        name: str,
        files: Mapping[str, bytes] | None = None,
        *,
        kind: str = "models",
        private: bool = False,
        gated: bool = False,
    ) -> Repository:
        """Make a repository with files, without a request. `kind` is `models` or `datasets`."""
        repository = Repository(kind, name, private=private, gated=gated)
        self.api.repositories[kind, name] = repository
        if files is not None:
            self.commit(name, files, kind=kind)
        return repository

    def commit(self, name: str, files: Mapping[str, bytes], *, kind: str = "models") -> Commit:
        """Add a commit with files to `main`, without a request."""
        changes = {path: self.api.file(path, content) for path, content in files.items()}
        return self.repository(name, kind).commit(changes, "Commit by the test")

    def repository(self, name: str, kind: str = "models") -> Repository:
        return self.api.repositories[kind, name]

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Return the environment with which another process uses this Hub. Its cache is in `home`; "" is no token."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


class Server(ThreadingHTTPServer):
    """One of the two servers. It knows its open connections, so that it can stop while clients are connected."""

    daemon_threads = False

    def __init__(self, name: str, hub: Hub, service: object, routes: Routes) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.name, self.hub, self.service, self.routes = name, hub, service, routes
        self.turn = threading.Lock()
        self.connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)


class Connection(BaseHTTPRequestHandler):
    """A client's connection to one of the two servers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def serve(self) -> None:
        """Record the request, and answer it or let it fail."""
        hub, name, address = self.server.hub, self.server.name, urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        fault = hub.faults.take(f"{self.command} {self.path}")
        body = self.rfile.read(length // 2 if fault and fault.cut else length)
        token_sent, wanted = "Authorization" in self.headers, self.headers.get("Range")
        hub.requests.append(Request(name, self.command, self.path, token_sent, len(body), wanted))
        if fault and fault.cut and length:
            self.hang_up(fault.reset)
        elif fault and not fault.cut and not fault.answer_lost:
            self.send(fault.reply(name))
        else:
            with self.server.turn:
                call = Call(parse_qs(address.query), self.headers, body)
                reply = self.server.routes.answer(self.server.service, f"{self.command} {address.path}", call)
            if fault is None:
                self.send(reply)
            else:
                if fault.cut:
                    self.send_half(reply)
                self.hang_up(fault.reset)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815  (the names that http.server looks for)

    def send(self, reply: Reply) -> None:
        self.send_head(reply)
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def send_half(self, reply: Reply) -> None:
        """Send an answer up to the middle of its body. Send nothing if it has no body."""
        if reply.body and self.command != "HEAD":
            self.send_head(reply)
            self.wfile.write(reply.body[: len(reply.body) // 2])

    def hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def send_head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("X-Request-Id", f"Root=1-{len(self.server.hub.requests)}")
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the requests are in `Hub.requests`."""


@contextmanager
def _serving(name: str, hub: Hub, service: object, routes: Routes) -> Iterator[str]:
    """Run a server in a thread, and yield its address."""
    with Server(name, hub, service, routes) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.hang_up()
