"""``/docs`` and ``/openapi.json``: the description of the service, for people and for programs.

The page is Swagger UI, vendored: nothing is fetched from anywhere else, and no address makes it show another document.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from service.errors import NotFound
from service.web.openapi.document import openapi_document

_STATIC = Path(__file__).parent / "static"
_PAGE = _STATIC / "docs" / "index.html"
VENDORED = _STATIC / "vendor" / "swagger-ui-5.35.0"
# What the page is made of, by the last part of its address: nothing else of the disk can be asked for. What has a
# version in its address never changes.
ASSETS = {
    "docs.js": _STATIC / "docs" / "docs.js",
    "docs.css": _STATIC / "docs" / "docs.css",
    "swagger-ui-5.35.0.js": VENDORED / "swagger-ui-bundle.js",
    "swagger-ui-5.35.0.css": VENDORED / "swagger-ui.css",
}
_FOR_EVER = "public, max-age=31536000, immutable"
# Everything from here, nothing inline, no eval; ``data:`` images are the icons within Swagger UI's style sheet.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def get_docs(_request: web.Request) -> web.FileResponse:
    """Answer with the page."""
    return web.FileResponse(_PAGE, headers={"Content-Security-Policy": DOCS_POLICY})


async def get_docs_asset(request: web.Request) -> web.FileResponse:
    """Answer with a part of the page."""
    name = request.match_info["asset"]
    if name not in ASSETS:
        raise NotFound("The reference has no such part.")
    path = ASSETS[name]
    return web.FileResponse(path, headers={"Cache-Control": _FOR_EVER} if VENDORED in path.parents else None)


def openapi_handler(version: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of ``/openapi.json``; the document is made once."""
    body = json.dumps(openapi_document(version), ensure_ascii=False).encode()

    async def get_openapi(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json", charset="utf-8")

    return get_openapi
