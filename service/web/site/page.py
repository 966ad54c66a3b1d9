"""``GET /``: the page for people. Its files lie in ``static/`` as they are served: no build step."""

from pathlib import Path

from aiohttp import web

from service.archive.report import PLAIN_WORDS
from service.errors import NotFound
from service.web.services import SERVICES

STATIC = Path(__file__).parent / "static"
# Everything comes from here, and nothing is written into the page that could run.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


async def page(_request: web.Request) -> web.FileResponse:
    """Answer with the page."""
    return web.FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})


async def page_file(request: web.Request) -> web.FileResponse:
    """Answer with one of the page's files.

    Raises:
        NotFound: it has no such file.
    """
    path = STATIC / request.match_info["name"]
    if not path.is_file():
        raise NotFound("There is no such file.")
    return web.FileResponse(path)


async def page_config(request: web.Request) -> web.Response:
    """Tell the page about the service: nothing that a stranger may not know."""
    services = request.app[SERVICES]
    facts = {
        "version": services.version,
        "api_key_configured": services.upstream is not None,
        "demo_order_id": services.demo_order_id,
        "wait_max_seconds": services.wait_max_seconds,
        "max_upload_files": services.max_upload_files,
        "max_upload_bytes": services.max_upload_bytes,
        "reasons": {
            reason.value: {"words": words, "again": again.value} for reason, (words, again) in PLAIN_WORDS.items()
        },
    }
    return web.json_response(facts)
