"""``GET /``: the web page. Its files in ``static/`` are served as they are: no build step."""

from pathlib import Path

from aiohttp import web

from service.errors import NotFound
from service.web.site.context import SITE

STATIC = Path(__file__).parent / "static"
# Everything from this origin, and nothing inline.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


async def get_page(_request: web.Request) -> web.FileResponse:
    """Return the page."""
    return web.FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})


async def get_static_file(request: web.Request) -> web.FileResponse:
    """Return one of the page's files.

    Raises:
        NotFound: there is no such file.
    """
    path = STATIC / request.match_info["name"]
    if not path.is_file():
        raise NotFound("There is no such file.")
    return web.FileResponse(path)


async def get_page_config(request: web.Request) -> web.Response:
    """Return what the page needs to know of the service. All of it is public."""
    return web.json_response(request.app[SITE].page_config)
