"""GET /v1/models and /v1/models/ID: the model, and the model with each memory, for clients with a model menu."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import JsonReply
from mlx_deltamem.serving.exchange import RefusedError


async def models(context: Context, request: Request) -> Response:
    """List the models."""
    return JsonReply({"object": "list", "data": [_entry(context, name) for name in await _names(context)]})


async def model(context: Context, request: Request) -> Response:
    """One model."""
    name: str = request.path_params["name"]
    if name not in await _names(context):
        raise RefusedError(404, "model_not_found", f"there is no model {name[:200]!r}; GET /v1/models lists them")
    return JsonReply(_entry(context, name))


async def _names(context: Context) -> list[str]:
    model_name = context.service.model_name
    with_memory = [f"{model_name}@{memory}" for memory in await context.service.memory_names()]
    return [model_name, *(name + mode for name in with_memory for mode in ("", ":ro"))]


def _entry(context: Context, name: str) -> Mapping[str, object]:
    return {"id": name, "object": "model", "created": context.started, "owned_by": "mlx_deltamem"}
