"""CORS: which other origins' pages may read our responses (https://fetch.spec.whatwg.org/#http-cors-protocol).

Never with cookies: a page of another origin needs a key or a link of its own.
"""

from aiohttp import hdrs, web

from service.web.http.context import HTTP

_EXPOSED_HEADERS = "Content-Disposition, Retry-After, X-Archive-Id, X-Request-ID, X-Total-Images"
_ALLOWED_METHODS = "GET, HEAD, POST, DELETE"
_ALLOWED_HEADERS = "Authorization, Content-Type, Last-Event-ID, X-Admin-Token, X-API-Key, X-Request-ID"
# How long a browser may cache a preflight response; Chromium's maximum.
_PREFLIGHT_MAX_AGE_SECONDS = 7200


def is_preflight(request: web.Request) -> bool:
    """Whether a request is a CORS preflight."""
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def preflight_response() -> web.Response:
    """Return the response to a preflight; ``add_cors_headers`` adds whether the origin is allowed."""
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _ALLOWED_METHODS,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _ALLOWED_HEADERS,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(_PREFLIGHT_MAX_AGE_SECONDS),
    }
    return web.Response(status=204, headers=headers)


def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Allow the origins of ALLOWED_ORIGINS to read a response, and make caches vary by origin."""
    allowed_origins = request.app[HTTP].allowed_origins
    if not allowed_origins:
        return
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin in allowed_origins:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED_HEADERS
