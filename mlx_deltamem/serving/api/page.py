"""The page at `/`: three static files, with a policy that allows nothing from elsewhere."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.serving.api.context import Context

_FOLDER = Path(__file__).parent.parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PATHS = tuple(_FILES)


async def page(context: Context, request: Request) -> Response:
    """One of the files."""
    name, kind = _FILES[request.scope["path"]]
    path = _FOLDER / name
    if not path.is_file():
        raise HTTPException(404, "this server was installed without its page; install the package again")
    return Response(path.read_bytes(), headers=_HEADERS, media_type=kind)
