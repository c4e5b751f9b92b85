"""GET /openapi.json: the OpenAPI 3.1 document of this server."""

from dataclasses import dataclass
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem._version import __version__
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import JsonReply
from mlx_deltamem.serving.api.schemas import SCHEMAS, Schema
from mlx_deltamem.serving.names import NAME_PATTERN

_JSON, _EVENTS, _BYTES = "application/json", "text/event-stream", "application/octet-stream"
_MEMORIES, _RESPONSES = "/v1/memories", "/v1/responses"
_MEMORY, _RESPONSE = f"{_MEMORIES}/{{name}}", f"{_RESPONSES}/{{id}}"


@dataclass(frozen=True)
class _Operation:
    """An operation of the document.

    Attributes:
        method, path: As in the application.
        summary: What it does.
        body: The name of the schema of its body; "": it has none.
        result: The name of the schema of its answer; a media type if the answer is not JSON.
        status: The status of its answer.
        match: Whether it takes the header If-Match.
        chooses: Whether it takes the header that chooses a memory.
    """

    method: str
    path: str
    summary: str
    body: str = ""
    result: str = "Any"
    status: int = 200
    match: bool = False
    chooses: bool = False


_OPERATIONS = (
    _Operation("post", "/v1/chat/completions", "Reply to a chat", "ChatRequest", match=True, chooses=True),
    _Operation("post", "/v1/completions", "Continue texts", "CompletionRequest", match=True, chooses=True),
    _Operation("post", _RESPONSES, "Reply to some input", "ResponseRequest", match=True, chooses=True),
    _Operation("get", _RESPONSE, "A response that was kept"),
    _Operation("delete", _RESPONSE, "Forget a response"),
    _Operation("post", "/v1/messages", "Reply to a chat (Anthropic)", "AnthropicRequest", match=True, chooses=True),
    _Operation("get", "/v1/models", "List the model, and the model with each memory"),
    _Operation("get", "/v1/models/{id}", "One model"),
    _Operation("get", _MEMORIES, "List the memories"),
    _Operation("post", _MEMORIES, "Make an empty memory", "NewMemory", "Memory", 201),
    _Operation("get", _MEMORY, "One memory", result="Memory"),
    _Operation("patch", _MEMORY, "Change the settings of a memory", "MemoryChange", "Memory", match=True),
    _Operation("delete", _MEMORY, "Delete a memory and its file", match=True),
    _Operation("post", f"{_MEMORY}/fork", "Copy a memory", "Fork", "Memory", 201, match=True),
    _Operation("post", f"{_MEMORY}/reset", "Empty a memory", result="Memory", match=True),
    _Operation("post", f"{_MEMORY}/undo", "Take the last turn back", result="Memory", match=True),
    _Operation("post", f"{_MEMORY}/remember", "Write without a reply", "Remember", "Memory", match=True),
    _Operation("get", f"{_MEMORY}/export", "The session file of a memory", result=_BYTES),
    _Operation(
        "put", f"{_MEMORY}/import", "Make or replace a memory from a session file", _BYTES, "Memory", match=True
    ),
    _Operation("get", f"{_MEMORY}/turns", "The turns of a memory"),
    _Operation("get", f"{_MEMORY}/heatmap.json", "The states of a memory"),
    _Operation("get", f"{_MEMORY}/heatmap.png", "The states of a memory as an image", result="image/png"),
    _Operation("get", f"{_MEMORY}/drift.json", "What each turn changed"),
    _Operation("get", f"{_MEMORY}/events", "What happens to a memory, until the client leaves", result=_EVENTS),
    _Operation("get", "/health", "How the engine is: 503 if it is stalled or ends"),
    _Operation("get", "/metrics", "Figures for Prometheus", result="text/plain"),
    _Operation("get", "/openapi.json", "This document"),
)


async def openapi(context: Context, request: Request) -> Response:
    """The document."""
    return JsonReply(document())


@cache
def document() -> Schema:
    """The OpenAPI document as a JSON object."""
    paths: dict[str, dict[str, object]] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mlx_deltamem.server",
            "version": __version__,
            "description": "Language models with named memories, behind the APIs of OpenAI and Anthropic.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # The server may run without a key.
        "security": [{}, {"key": []}],
    }


def _described(operation: _Operation) -> Schema:
    error = "AnthropicError" if operation.path == "/v1/messages" else "Error"
    answer: Schema = {"description": operation.summary, "content": _content(operation.result)}
    if links := _links(operation):
        answer["links"] = links
    streams = operation.chooses
    if streams:
        answer["content"] = {**_content(operation.result), _EVENTS: {"schema": {"type": "string"}}}
    refused = {"description": "The request is refused, or failed", "content": _content(error)}
    responses: Schema = {str(operation.status): answer, "4XX": refused, "5XX": refused}
    if operation.path == "/health":
        responses["503"] = answer
    described: Schema = {
        "summary": operation.summary,
        "operationId": _name(operation),
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _name(operation: _Operation) -> str:
    return f"{operation.method}{operation.path}".replace("/", "_").translate({ord(mark): None for mark in "{}"})


def _links(operation: _Operation) -> dict[str, Schema]:
    """Links from an operation that makes a memory or a response to the operations whose path has its name or id."""
    makes = {(_MEMORIES, "post"): "name", (f"{_MEMORY}/fork", "post"): "name", (_RESPONSES, "post"): "id"}
    field = makes.get((operation.path, operation.method))
    if field is None:
        return {}
    return {
        _name(other): {"operationId": _name(other), "parameters": {field: f"$response.body#/{field}"}}
        for other in _OPERATIONS
        if other.path.startswith(_MEMORY if field == "name" else _RESPONSE)
    }


def _content(result: str) -> dict[str, object]:
    if "/" in result:
        return {result: {"schema": {"type": "string"} if result.startswith("text/") else {}}}
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{result}"}}}


def _parameters(operation: _Operation) -> list[Schema]:
    parameters: list[Schema] = []
    if "{name}" in operation.path:
        parameters.append(_parameter("path", "name", {"type": "string", "pattern": NAME_PATTERN}))
    if "{id}" in operation.path:
        parameters.append(_parameter("path", "id", {"type": "string", "minLength": 1}))
    if operation.match:
        parameters.append(_parameter("header", "If-Match", {"type": "string", "pattern": r'^(\*|"[!#-~]*")$'}))
    if operation.chooses:
        described = _parameter(
            "header", "X-Deltamem-Memory", {"type": "string", "pattern": f"^({NAME_PATTERN[1:-1]}(:ro)?)?$"}
        )
        parameters.append(described)
    return parameters


def _parameter(place: str, name: str, schema: Schema) -> Schema:
    return {"in": place, "name": name, "required": place == "path", "schema": schema}
