"""Requests and answers of the loopback Hub, and the table from requests to methods."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote


class RefusedError(Exception):
    """A refusal of the Hub: an HTTP status, a message and a code.

    The code is the header `X-Error-Code`, from which `huggingface_hub` chooses the exception that it raises.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Call:
    """A request: the query by name, the headers (names in any case), and the complete body."""

    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[..., Reply]


class Routes:
    """The methods of a class by the pattern of the requests that they answer.

    A method gets the call, and then the groups of the pattern.
    """

    def __init__(self) -> None:
        self.table: list[tuple[re.Pattern[str], Answer]] = []

    def __call__(self, pattern: str) -> Callable[[Answer], Answer]:
        """Decorate the method that answers requests `METHOD /path` of this pattern."""

        def register(answer: Answer) -> Answer:
            self.table.append((re.compile(pattern), answer))
            return answer

        return register

    def answer(self, service: object, request: str, call: Call) -> Reply:
        """Return the answer of the service to `METHOD /path`, with the path still quoted. It may be a refusal."""
        for pattern, answer in self.table:
            if match := pattern.fullmatch(request):
                try:
                    return answer(service, call, *(group and unquote(group) for group in match.groups()))
                except RefusedError as refusal:
                    return refused(refusal)
        return refused(RefusedError(404, f"The loopback Hub has nothing at {request}"))


def json_reply(content: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json; charset=utf-8"})


def refused(refusal: RefusedError, headers: Mapping[str, str] | None = None) -> Reply:
    reply = json_reply({"error": refusal.message}, refusal.status)
    code = {} if refusal.code is None else {"X-Error-Code": refusal.code}
    message = {"X-Error-Message": refusal.message}
    return Reply(reply.status, reply.body, {**reply.headers, **message, **code, **(headers or {})})


def content_reply(content: bytes, headers: Mapping[str, str], wanted: str | None) -> Reply:
    """Return the content, or the part that the header `Range: bytes=A-B` asks for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if match is None:
        return Reply(200, content, {**headers, "Accept-Ranges": "bytes"})
    start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    if start > end:
        return Reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    return Reply(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})
