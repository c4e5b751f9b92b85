"""A request for a reply in a form that JSON has, in which rank 0 sends it to the other ranks."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.exchange import Mode, ReplyRequest, Sampling


def as_json(request: ReplyRequest) -> Json:
    """A request as a JSON value."""
    fields = asdict(request)
    fields["mode"] = request.mode.value
    return cast(Json, fields)


def from_json(value: Json) -> ReplyRequest:
    """The request of a value of `as_json`, after its way through JSON, which has lists and texts as names only."""
    fields = dict(cast(Mapping[str, Any], value))
    sampling = dict(fields["sampling"])
    sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
    tools = fields["tools"]
    return ReplyRequest(
        **{
            **fields,
            "messages": tuple(fields["messages"]),
            "mode": Mode(fields["mode"]),
            "tools": None if tools is None else tuple(tools),
            "stop": tuple(fields["stop"]),
            "sampling": Sampling(**sampling),
        }
    )
