"""``/docs`` and ``/openapi.json``: the API reference, for people and for programs.

The page is Swagger UI, vendored: it loads nothing from other hosts, and no URL makes it show another document.
"""

from aiohttp import web

from service.errors import NotFound
from service.web.site.context import SITE
from service.web.site.page import STATIC

_PAGE = STATIC / "docs" / "index.html"
VENDORED = STATIC / "vendor" / "swagger-ui-5.35.0"
# The page's files by the last segment of their URLs: no other file can be requested. A URL with a version in it never
# changes its content.
ASSETS = {
    "docs.js": STATIC / "docs" / "docs.js",
    "docs.css": STATIC / "docs" / "docs.css",
    "swagger-ui-5.35.0.js": VENDORED / "swagger-ui-bundle.js",
    "swagger-ui-5.35.0.css": VENDORED / "swagger-ui.css",
}
_IMMUTABLE = "public, max-age=31536000, immutable"
# Everything from this origin, nothing inline, no eval; ``data:`` images are the icons in Swagger UI's style sheet.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def get_docs(_request: web.Request) -> web.FileResponse:
    """Return the page."""
    return web.FileResponse(_PAGE, headers={"Content-Security-Policy": DOCS_POLICY})


async def get_docs_asset(request: web.Request) -> web.FileResponse:
    """Return a script or style sheet of the page."""
    name = request.match_info["asset"]
    if name not in ASSETS:
        raise NotFound("The reference has no such file.")
    path = ASSETS[name]
    return web.FileResponse(path, headers={"Cache-Control": _IMMUTABLE} if VENDORED in path.parents else None)


async def get_openapi(request: web.Request) -> web.Response:
    """Return the OpenAPI document."""
    return web.Response(body=request.app[SITE].openapi, content_type="application/json", charset="utf-8")
