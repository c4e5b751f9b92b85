"""What goes wrong on the loopback Hub, on request."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock

from tests.hub.http import RefusedError, Reply, refused

ALWAYS = math.inf
# What the Hub says with these statuses; with the others it says the status' own phrase.
MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Authorization error.",
    404: "Repository not found",
    429: "We had to rate limit you, you hit the quota of 1000 api requests per 5 minutes period.",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
}


@dataclass
class Fault:
    """What happens to the next `times` requests that match, instead of an answer (see `Faults.add`)."""

    pattern: re.Pattern[str]
    status: int
    headers: Mapping[str, str]
    times: float
    cut: bool
    reset: bool
    answer_lost: bool

    def reply(self, host: str) -> Reply:
        """The refusal as the Hub or, in XML, as a bucket words it."""
        message = MESSAGES.get(self.status, HTTPStatus(self.status).phrase)
        if host == "hub":
            return refused(
                RefusedError(self.status, message, "RepoNotFound" if self.status == 404 else None), self.headers
            )
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{HTTPStatus(self.status).name}</Code></Error>'
        return Reply(self.status, text.encode(), {"Content-Type": "application/xml", **self.headers})


class Faults:
    """The faults to come."""

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
        """Refuse the next requests that match.

        Arguments:
            pattern: an expression to be found in `METHOD /path?query` (`PUT /objects/`, `POST .*/commit/`).
            status, headers: what is answered.
            times: how often, or `ALWAYS`.
            cut: no answer; the connection ends in the middle of the request's body where it has one, else in the
                middle of the answer's.
            reset: the same with a reset ("connection reset by peer") instead of an orderly end.
            answer_lost: what was asked is done, but the connection ends instead of an answer.
        """
        fault = Fault(re.compile(pattern), status, headers or {}, times, cut or reset, reset, answer_lost)
        self.waiting.append(fault)

    def take(self, request: str) -> Fault | None:
        """The fault that a request meets, which then has one time less to happen."""
        with self.lock:
            fault = next((fault for fault in self.waiting if fault.times > 0 and fault.pattern.search(request)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def clear(self) -> None:
        self.waiting.clear()
