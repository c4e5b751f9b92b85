"""GET /health and /metrics."""

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import JsonReply


async def health(context: Context, request: Request) -> Response:
    """Say how the engine is: 200 if it works, 503 if it is stalled or ends."""
    found = context.service.health()
    stalled = found.stalled_seconds > context.settings.stalled
    status = "stalled" if stalled else "ok" if found.accepting else "ending"
    content = {
        "status": status,
        "active": found.active,
        "waiting": found.waiting,
        "stalled_seconds": round(found.stalled_seconds, 3),
    }
    return JsonReply(content, 200 if status == "ok" else 503, {"Cache-Control": "no-store"})


async def metrics(context: Context, request: Request) -> Response:
    """The figures, for Prometheus."""
    return Response(context.service.metrics(), media_type="text/plain; version=0.0.4")
