"""Exceptions as errors for clients. Nothing of an exception that was not foreseen is told: it may quote a message."""

import logging
import traceback

from starlette.exceptions import HTTPException

from mlx_deltamem.serving.exchange import RefusedError

_CODES = {404: "not_found", 405: "method_not_allowed"}

_log = logging.getLogger(__name__)


def as_refused(error: Exception) -> RefusedError:
    """The error that a client gets for an exception. One that was not foreseen is logged, without its text."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, HTTPException):
        return RefusedError(error.status_code, _CODES.get(error.status_code, "http_error"), str(error.detail))
    places = "".join(traceback.format_tb(error.__traceback__))
    _log.error("a request failed with %s at\n%s", type(error).__name__, places)
    return RefusedError(500, "internal_error", f"the server failed with {type(error).__name__}; its log has the place")
