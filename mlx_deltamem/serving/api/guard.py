"""The checks of a request before its content is read: its host, its origin, its key, and the size of its body."""

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_deltamem.serving.api.errors import error_reply
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.serving.exchange import RefusedError

# A browser cannot send a key when it opens a page. These files hold no data; the page asks for the key.
_WITHOUT_KEY = {"/health", "/", "/page.js", "/page.css"}


class Guard:
    """ASGI middleware that refuses requests which must not reach an endpoint.

    A page of another site can send requests to a server on this machine. Its requests are known by their Host header
    (if the site's name was bound to this machine's address) or by their Origin header.

    Args:
        app: The application.
        settings: The settings.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app = app
        self._settings = settings
        self._hosts = {host.lower() for host in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        importing = scope["method"] == "PUT" and path.endswith("/import")
        limit = self._settings.max_import if importing else self._settings.max_body
        try:
            self._check(path, Headers(scope=scope), limit)
        except RefusedError as error:
            await error_reply(path, error)(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive, limit, self._settings.body_timeout), send)

    def _check(self, path: str, headers: Headers, limit: int) -> None:
        host = _name_of(headers.get("host", ""))
        if not self._allows(host):
            raise RefusedError(
                403, "host_not_allowed", f"the Host header names {host[:80]!r}; expected one of {self._expected_hosts}"
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(_name_of(origin.partition("://")[2]), host):
            raise RefusedError(
                403, "origin_not_allowed", "the request comes from a page of another site; send it without a browser"
            )
        if self._settings.api_key is not None and path not in _WITHOUT_KEY:
            _check_key(self._settings.api_key, headers)
        length = headers.get("content-length", "0")
        # Python refuses to read numbers of more than 4,300 digits.
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise RefusedError(400, "invalid_header", "the Content-Length header is not a number of bytes")
        if int(length) > limit:
            raise _too_large(limit)

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may send requests to `host`. If every host is allowed, it must be the same one."""
        return origin == host if "*" in self._hosts else origin in self._hosts

    def _allows(self, host: str) -> bool:
        return "*" in self._hosts or host in self._hosts

    @property
    def _expected_hosts(self) -> str:
        return ", ".join(sorted(self._hosts))


class _Bounded:
    """The body of a request, which must not be too long or too slow."""

    def __init__(self, receive: Receive, limit: int, seconds: float):
        self._receive = receive
        self._limit = limit
        self._seconds = seconds
        self._got = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(
                408, "body_timeout", f"nothing of the body arrived for {self._seconds:g} seconds; send all of it"
            ) from None
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
            self._got += len(message.get("body", b""))
            if self._got > self._limit:
                raise _too_large(self._limit)
        return message


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, "body_too_large", f"the body has more than {limit:,} bytes; send less")


def _check_key(key: str, headers: Headers) -> None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    # Headers are read as Latin-1, so this gives the bytes that were sent.
    if not hmac.compare_digest(given.encode("latin-1", "replace"), key.encode()):
        raise RefusedError(
            401,
            "invalid_api_key",
            "the API key is missing or wrong; send it in the header `Authorization: Bearer KEY` or `x-api-key: KEY`",
        )


def _name_of(host: str) -> str:
    """A host without its port, in small letters."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]
