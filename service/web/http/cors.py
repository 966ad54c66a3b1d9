"""Which other sites' pages may read our answers (https://fetch.spec.whatwg.org/#http-cors-protocol).

Never with cookies: a page of another site needs a key or a link of its own.
"""

from aiohttp import hdrs, web

from service.web.services import SERVICES

_READABLE = "Content-Disposition, Retry-After, X-Archive-Id, X-Request-ID, X-Total-Images"
_METHODS = "GET, HEAD, POST, DELETE"
_SENDABLE = "Authorization, Content-Type, Last-Event-ID, X-Admin-Token, X-API-Key, X-Request-ID"
# How long a browser may remember the answer to a preflight; Chromium takes no more.
_PREFLIGHT_SECONDS = 7200


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks if a page may send a request."""
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def preflight_response() -> web.Response:
    """Answer it; whether the page's site is one of ours is said by ``add_cors_headers``."""
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _SENDABLE,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(_PREFLIGHT_SECONDS),
    }
    return web.Response(status=204, headers=headers)


def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Let the pages of ALLOWED_ORIGINS read a response, and caches know that it depends on who asks."""
    allowed = request.app[SERVICES].allowed_origins
    if not allowed:
        return
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin in allowed:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _READABLE
