"""Faults of the loopback Hub that a test asks for."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock

from tests.hub.http import RefusedError, Reply, refused

ALWAYS = math.inf
# The messages of the Hub for these statuses. For others it uses the phrase of the status.
MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Authorization error.",
    404: "Repository not found",
    429: "We had to rate limit you, you hit the quota of 1000 api requests per 5 minutes period.",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
}


@dataclass
class Fault:
    """A fault of the next `times` requests that match (see `Faults.add`)."""

    pattern: re.Pattern[str]
    status: int
    headers: Mapping[str, str]
    times: float
    cut: bool
    reset: bool
    answer_lost: bool

    def reply(self, host: str) -> Reply:
        """Return the refusal in the form of the Hub or, in XML, of a bucket."""
        message = MESSAGES.get(self.status, HTTPStatus(self.status).phrase)
        if host == "hub":
            return refused(
                RefusedError(self.status, message, "RepoNotFound" if self.status == 404 else None), self.headers
            )
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{HTTPStatus(self.status).name}</Code></Error>'
        return Reply(self.status, text.encode(), {"Content-Type": "application/xml", **self.headers})


class Faults:
    """The faults that are still to happen."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []
        self.lock = Lock()

    def add(
        self,
        pattern: str,
        status: int = 500,
        *,
        headers: Mapping[str, str] | None = None,
        times: float = 1,
        cut: bool = False,
        reset: bool = False,
        answer_lost: bool = False,
    ) -> None:
        """Add a fault for the next requests that match. Without other options they are refused.

        Args:
            pattern: A regular expression that is searched in `METHOD /path?query` (`PUT /objects/`, `POST .*/commit/`).
            status: The status of the answer.
            headers: Additional headers of the answer.
            times: The number of requests, or `ALWAYS`.
            cut: Close the connection in the middle of the request's body or, if it has no body, of the answer's body.
            reset: As `cut`, but reset the connection ("connection reset by peer").
            answer_lost: Do what the request asks for, and close the connection instead of answering.
        """
        fault = Fault(re.compile(pattern), status, headers or {}, times, cut or reset, reset, answer_lost)
        self.waiting.append(fault)

    def take(self, request: str) -> Fault | None:
        """Return the fault for a request, if there is one, and count it."""
        with self.lock:
            fault = next((fault for fault in self.waiting if fault.times > 0 and fault.pattern.search(request)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def clear(self) -> None:
        self.waiting.clear()
