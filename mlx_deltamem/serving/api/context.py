"""`Context`: the engine, the settings and the kept responses, which every endpoint gets."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.serving.api.kept import KeptResponses
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.serving.service import Service


@dataclass(frozen=True)
class Context:
    """The server, as endpoints see it.

    Attributes:
        service: The engine.
        settings: The settings.
        kept: The replies of /v1/responses that can be continued.
        started: The time at which the server started, in seconds since 1970.
    """

    service: Service
    settings: Settings
    kept: KeptResponses
    started: int = field(default_factory=lambda: int(time.time()))


Endpoint = Callable[[Context, Request], Awaitable[Response]]
