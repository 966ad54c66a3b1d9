"""What surrounds every request: its id, its log line, its problem document, its safety headers."""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import web

from service.errors import (
    ArchiveAborted,
    BadRequest,
    InternalError,
    InvalidBody,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    UpstreamError,
    problem,
)
from service.monitoring.tracing import read_traceparent, request_context
from service.web.http.connection import SAFETY_HEADERS, SERVER_NAME, ClientConnection
from service.web.http.cors import add_cors_headers, is_preflight, preflight_response
from service.web.http.expect_continue import check_expectation, is_continue_pending
from service.web.http.streaming_response import StreamingResponse
from service.web.services import SERVICES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROBLEM_TYPE = "application/problem+json"
REQUEST_ID = web.RequestKey("request_id", str)
# When the request arrived, by ``time.monotonic``.
ARRIVED = web.RequestKey("arrived", float)
# Set by a handler as soon as its response has begun, so that a later failure breaks that response off.
STREAMING = web.RequestKey("streaming", StreamingResponse)

# What is taken over from a caller goes into logs and upstream headers: word characters, and not without end.
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A name or an address, and perhaps a port (RFC 3986 section 3.2; RFC 9110 section 7.2).
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]{0,5})?")

# What stands for the others in labels, of which a caller could otherwise make as many as it likes.
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"
NO_ROUTE = "unmatched"
NO_STATUS = "none"

# Probes and scrapes come every few seconds, tens of thousands a day: while all is well their lines hide the others.
_ASKED_BY_MACHINES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})

log = structlog.get_logger(__name__)


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, write its line in the log, and count it."""
    if isinstance(request.protocol, ClientConnection):
        request.protocol.head_received()
    given = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    request[ARRIVED] = time.monotonic()
    status: int | None = None
    with request_context(request[REQUEST_ID], read_traceparent(request.headers.getall("traceparent", ()))):
        request.app[SERVICES].access.callers.notice(request)
        try:
            response = await handler(request)
            status = response.status
            if is_continue_pending(request) and not response.prepared:
                response.force_close()  # and says so, as RFC 9110 section 10.1.1 wants it
        finally:
            # Without a status the client has gone: the handler was cancelled.
            _note(request, status)
    return response


def _note(request: web.Request, status: int | None) -> None:
    seconds = round(time.monotonic() - request[ARRIVED], 4)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else NO_ROUTE
    if route in _ASKED_BY_MACHINES and status == HTTPStatus.OK:
        log.debug("http.request", method=request.method, path=request.path, status=status, seconds=seconds)
    else:
        log.info("http.request", method=request.method, path=request.path, status=status, seconds=seconds)
    request.app[SERVICES].metrics.http_requests.labels(
        route,
        request.method if request.method in _KNOWN_METHODS else OTHER_METHOD,
        NO_STATUS if status is None else str(status),
    ).inc()


@web.middleware
async def render_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document, or break the response off if it has begun.

    This is the outermost catch of the service: whatever arrives here that is not ours is a fault of ours.
    """
    try:
        _check_host(request)
        check_expectation(request)
        return preflight_response() if is_preflight(request) else await handler(request)
    except ServiceError as error:
        return problem_response(request, error)
    except ArchiveAborted as error:
        log.warning("archive.aborted", detail=str(error))
        request.app[SERVICES].recent_errors.note("archive.aborted", str(error), request[REQUEST_ID])
        request[STREAMING].abort(request)
        return request[STREAMING]
    except asyncio.CancelledError:
        # The client has gone, or the service ends: what has begun must not pass for a whole archive.
        if STREAMING in request:
            request[STREAMING].abort(request)
        raise
    except web.HTTPException as error:
        return problem_response(request, _routing_error(request, error))
    except ConnectionResetError:
        raise  # the client has gone; there is nobody to answer
    except Exception as error:  # the outermost catch; anything else would end as aiohttp's HTML page
        log.exception("request.failed", exc_info=error)
        request.app[SERVICES].report_fault(error)
        request.app[SERVICES].recent_errors.note(
            "request.failed", f"{type(error).__name__}: {error}", request[REQUEST_ID]
        )
        if STREAMING in request:
            request[STREAMING].abort(request)
            return request[STREAMING]
        return problem_response(request, InternalError("The service failed; its log tells why."))


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put on every response what every response has (signal ``on_response_prepare``)."""
    response.headers["Server"] = SERVER_NAME
    for name, value in SAFETY_HEADERS.items():
        response.headers.setdefault(name, value)
    # Files of the page may be kept, but are asked for each time (aiohttp answers 304 by their ETag).
    response.headers.setdefault("Cache-Control", "no-cache" if isinstance(response, web.FileResponse) else "no-store")
    if isinstance(request, web.Request) and REQUEST_ID in request:
        response.headers["X-Request-ID"] = request[REQUEST_ID]
        add_cors_headers(request, response)


def problem_response(request: web.Request, error: ServiceError) -> web.Response:
    """Return the RFC 9457 document of an error."""
    document = {**problem(error), "instance": f"urn:request:{request[REQUEST_ID]}"}
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 section 11.6.1 wants one; RFC 6750 section 3 says which
    log.info("request.rejected", problem=error.slug, status=error.status, detail=error.detail)
    if isinstance(error, UpstreamError):
        request.app[SERVICES].recent_errors.note("request.rejected", error.detail, request[REQUEST_ID])
    response = web.json_response(document, status=error.status, headers=headers, content_type=PROBLEM_TYPE)
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()  # RFC 9110 section 15.5.9: the rest of the body may still come
    return response


def _check_host(request: web.Request) -> None:
    """Refuse a request whose Host is none (RFC 9112 section 3.2): addresses of ours are built from it.

    Raises:
        BadRequest
    """
    try:
        readable = _HOST.fullmatch(request.host) is not None and bool(request.url.host)
    except ValueError:  # so yarl refuses ports and addresses that there cannot be
        readable = False
    if not readable:
        raise BadRequest("The field Host is not a host.")


def _routing_error(request: web.Request, error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        return MethodNotAllowed(f"{request.method} is not one of {', '.join(allowed)}.", allowed=allowed)
    if isinstance(error, web.HTTPNotFound):
        return NotFound("There is no such path.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return InvalidBody("The body is larger than this path takes.")
    raise error
