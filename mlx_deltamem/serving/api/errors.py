"""Errors as clients see them: in OpenAI's form, and in Anthropic's form for its endpoint."""

import json
import math
from collections.abc import Mapping

from starlette.responses import Response

from mlx_deltamem.serving.exchange import RefusedError

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
ANTHROPIC_PATH = "/v1/messages"
# Seconds after which a client may ask again, for the statuses that say "later".
_RETRY_AFTER = {429: "1", 503: "5"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class BadFieldError(RefusedError):
    """A field of a request that is refused.

    Attributes:
        param: The name of the field.
    """

    def __init__(self, param: str, message: str, code: str = "invalid_value", status: int = 400):
        super().__init__(status, code, message)
        self.param = param


def json_bytes(value: object) -> bytes:
    """Encode a value as JSON in UTF-8.

    Half characters, which a model or a file may bring, become question marks. Numbers that are not finite, which a
    memory may have, become null.
    """
    try:
        text = _ENCODER.encode(value)
    except ValueError:
        text = _ENCODER.encode(_with_nulls(value))
    return text.encode("utf-8", "replace")


def _with_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _with_nulls(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonReply(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Encode the content."""
        return json_bytes(content)


def error_body(path: str, error: RefusedError) -> Mapping[str, object]:
    """The JSON of an error.

    Args:
        path: The path of the request, which decides the form.
        error: The error.
    """
    message = str(error)
    if path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/"):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if error.status == 429 else kind
    param = error.param if isinstance(error, BadFieldError) else None
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def error_reply(path: str, error: RefusedError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that is refused."""
    given = dict(headers or {})
    if error.status in _RETRY_AFTER:
        given.setdefault("Retry-After", _RETRY_AFTER[error.status])
    if error.status == 401:
        given.setdefault("WWW-Authenticate", "Bearer")
    return JsonReply(error_body(path, error), error.status, given)
