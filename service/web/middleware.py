"""What surrounds every request: its id, its log line, its problem document, its safety headers."""

import re
import time
import uuid
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from service.errors import ArchiveBroken, InternalError, MethodNotAllowed, RouteNotFound, ServiceError, problem
from service.web.archive_response import ArchiveResponse
from service.web.connection import SERVER_NAME, ClientConnection

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROBLEM_TYPE = "application/problem+json"
REQUEST_ID = web.RequestKey("request_id", str)
# Set by a handler as soon as its response has begun, so that a later failure breaks that response off.
STREAMING = web.RequestKey("streaming", ArchiveResponse)

# What is taken over from a caller goes into logs and upstream headers: word characters, and not without end.
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

log = structlog.get_logger(__name__)


@web.middleware
async def trace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id and write its line in the log."""
    given = request.headers.get("X-Request-ID", "")
    if isinstance(request.protocol, ClientConnection):
        request.protocol.head_received()
    request_id = given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    request[REQUEST_ID] = request_id
    started = time.monotonic()
    status: int | None = None
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        try:
            response = await handler(request)
            status = response.status
        finally:
            # Without a status the client has gone: the handler was cancelled.
            log.info(
                "http.request",
                method=request.method,
                path=request.path,
                status=status,
                seconds=round(time.monotonic() - started, 4),
            )
    return response


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document, or break the response off if it has begun.

    This is the outermost catch of the service: whatever arrives here that is not ours is a fault of ours.
    """
    try:
        return await handler(request)
    except ServiceError as error:
        return problem_response(request, error)
    except ArchiveBroken as error:
        log.warning("archive.broken", detail=str(error))
        request[STREAMING].break_off(request)
        return request[STREAMING]
    except web.HTTPException as error:
        return problem_response(request, _routing_error(request, error))
    except ConnectionResetError:
        raise  # the client has gone; there is nobody to answer
    except Exception as error:  # the outermost catch; anything else would end as aiohttp's HTML page
        log.exception("request.failed", exc_info=error)
        if STREAMING in request:
            request[STREAMING].break_off(request)
            return request[STREAMING]
        return problem_response(request, InternalError("The service failed; its log tells why."))


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put on every response what every response has (signal ``on_response_prepare``)."""
    response.headers["Server"] = SERVER_NAME
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    if isinstance(request, web.Request) and REQUEST_ID in request:
        response.headers["X-Request-ID"] = request[REQUEST_ID]


def problem_response(request: web.Request, error: ServiceError) -> web.Response:
    """Return the RFC 9457 document of an error."""
    document = {**problem(error), "instance": f"urn:request:{request[REQUEST_ID]}"}
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    log.info("request.refused", problem=error.slug, status=error.status, detail=error.detail)
    return web.json_response(document, status=error.status, headers=headers, content_type=PROBLEM_TYPE)


def _routing_error(request: web.Request, error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        return MethodNotAllowed(f"{request.method} is not one of {', '.join(allowed)}.", allowed=allowed)
    if isinstance(error, web.HTTPNotFound):
        return RouteNotFound("There is no such path.")
    raise error
