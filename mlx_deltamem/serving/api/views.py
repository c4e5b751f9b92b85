"""The endpoints that show a memory: its turns, heat maps of its states, its drift, and its changes as they come."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import JsonReply, error_body
from mlx_deltamem.serving.api.heat_png import heat_png
from mlx_deltamem.serving.api.memories import named
from mlx_deltamem.serving.api.replies import close
from mlx_deltamem.serving.api.stream import EventStream, event
from mlx_deltamem.serving.service import TurnInfo


async def turns(context: Context, request: Request) -> Response:
    """The turns of a memory."""
    found = await context.service.turns(named(request))
    return JsonReply({"object": "list", "data": [_turn(turn) for turn in found]})


async def heat_map(context: Context, request: Request) -> Response:
    """The states of a memory, as numbers."""
    return JsonReply(await context.service.heatmap(named(request)))


async def heat_map_image(context: Context, request: Request) -> Response:
    """The states of a memory, as an image."""
    return Response(heat_png(await context.service.heatmap(named(request))), media_type="image/png")


async def drift(context: Context, request: Request) -> Response:
    """The change of the memory in each turn."""
    return JsonReply(await context.service.drift(named(request)))


async def events(context: Context, request: Request) -> Response:
    """The changes of a memory as they come, as a stream of events."""
    name = named(request)
    # An unknown memory is an answer with its status, not a stream.
    await context.service.memory(name)
    return EventStream(
        _events(context.service.events(name)),
        lambda error: event(error_body(request.scope["path"], error), "error"),
        context.settings.keepalive,
    )


def _turn(turn: TurnInfo) -> Mapping[str, object]:
    return {
        "id": turn.id,
        "object": "turn",
        "chat": turn.chat,
        "messages": list(turn.messages),
        "remembered": turn.remembered,
        "write": turn.write,
        "changed": {str(layer): share for layer, share in turn.changed.items()},
    }


async def _events(found: AsyncIterator[Mapping[str, object]]) -> AsyncGenerator[bytes, None]:
    try:
        # The head is sent with the first bytes, so that a client knows at once that it listens.
        yield b": listening\n\n"
        async for each in found:
            yield event(each)
    finally:
        await close(found)
