"""The HTTP application: its routes, and the one place where exceptions become answers."""

from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_deltamem.serving.api import memories, models, operations, page, responses, views
from mlx_deltamem.serving.api.anthropic import messages
from mlx_deltamem.serving.api.chat_completions import chat_completions
from mlx_deltamem.serving.api.completions import completions
from mlx_deltamem.serving.api.context import Context, Endpoint
from mlx_deltamem.serving.api.errors import ANTHROPIC_PATH, error_reply
from mlx_deltamem.serving.api.failures import as_refused
from mlx_deltamem.serving.api.guard import Guard
from mlx_deltamem.serving.api.kept import KeptResponses
from mlx_deltamem.serving.api.openapi import openapi
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.serving.api.stream import EventStream
from mlx_deltamem.serving.service import Service

_MEMORIES = "/v1/memories"
_MEMORY = f"{_MEMORIES}/{{name}}"
# No client of this server is there any more; the status is nginx's for this.
_CLIENT_LEFT = 499

ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    # mlx_lm.server has this path too.
    ("POST", "/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/responses", responses.create),
    ("GET", "/v1/responses/{id}", responses.get),
    ("DELETE", "/v1/responses/{id}", responses.delete),
    ("POST", ANTHROPIC_PATH, messages),
    ("GET", "/v1/models", models.models),
    ("GET", "/v1/models/{name:path}", models.model),
    ("GET", _MEMORIES, memories.list_memories),
    ("POST", _MEMORIES, memories.create),
    ("GET", _MEMORY, memories.get),
    ("PATCH", _MEMORY, memories.change),
    ("DELETE", _MEMORY, memories.delete),
    ("POST", f"{_MEMORY}/fork", memories.fork),
    ("POST", f"{_MEMORY}/reset", memories.reset),
    ("POST", f"{_MEMORY}/undo", memories.undo),
    ("POST", f"{_MEMORY}/remember", memories.remember),
    ("GET", f"{_MEMORY}/export", memories.export),
    ("PUT", f"{_MEMORY}/import", memories.import_file),
    ("GET", f"{_MEMORY}/turns", views.turns),
    ("GET", f"{_MEMORY}/heatmap.json", views.heat_map),
    ("GET", f"{_MEMORY}/heatmap.png", views.heat_map_image),
    ("GET", f"{_MEMORY}/drift.json", views.drift),
    ("GET", f"{_MEMORY}/events", views.events),
    ("GET", "/health", operations.health),
    ("GET", "/metrics", operations.metrics),
    ("GET", "/openapi.json", openapi),
    *(("GET", path, page.page) for path in page.PATHS),
)


def make_app(service: Service, settings: Settings) -> Starlette:
    """Make the HTTP application.

    Args:
        service: The engine.
        settings: The settings.
    """
    context = Context(service, settings, KeptResponses(settings.most_responses))
    by_path: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in ENDPOINTS:
        by_path.setdefault(path, {})[method] = endpoint
    # One route has all methods of a path, so that another method gives 405 with all of them.
    routes = [
        Route(path, partial(_answer, context, endpoints), methods=list(endpoints))
        for path, endpoints in by_path.items()
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers={404: _unknown, 405: _unknown, Exception: _unknown},
    )
    # The address of a redirection would come from the Host header.
    app.router.redirect_slashes = False
    return app


async def _answer(context: Context, endpoints: dict[str, Endpoint], request: Request) -> Response:
    """Call the endpoint of a request, and turn every exception into an answer."""
    method = "GET" if request.method == "HEAD" else request.method
    try:
        answer = await endpoints[method](context, request)
        # The answer to HEAD has no content, and a stream would not end.
        return (
            Response(headers=answer.headers) if request.method == "HEAD" and isinstance(answer, EventStream) else answer
        )
    except ClientDisconnect:
        return Response(status_code=_CLIENT_LEFT)
    # One exception ends one answer.
    except Exception as error:
        return error_reply(request.scope["path"], as_refused(error))


async def _unknown(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that is not there."""
    headers = getattr(error, "headers", None)
    return error_reply(request.scope["path"], as_refused(error), headers)
