"""Middleware for every request: request id, access log, problem documents, and headers of every response."""

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
)
from service.monitoring.tracing import read_traceparent, request_context
from service.web.auth.context import AUTH
from service.web.http.connection import ClientConnection
from service.web.http.context import ARRIVED, HTTP, REQUEST_ID
from service.web.http.cors import add_cors_headers, is_preflight, preflight_response
from service.web.http.expect_continue import check_expectation, is_continue_pending
from service.web.http.headers import SECURITY_HEADERS, SERVER_NAME
from service.web.http.problems import problem_response
from service.web.http.streaming_response import STREAMING

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# A client's X-Request-ID goes into logs and upstream headers, so characters and length are limited.
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A name or an address, and perhaps a port (RFC 3986 section 3.2; RFC 9110 section 7.2).
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]{0,5})?")

# Label values for everything else: a client must not be able to create label values at will.
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"
NO_ROUTE = "unmatched"
NO_STATUS = "none"

# Probes and scrapes come every few seconds, tens of thousands a day: successful ones are logged at debug level.
_PROBE_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})

log = structlog.get_logger(__name__)


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Assign the request id; log and count the request."""
    if isinstance(request.protocol, ClientConnection):
        request.protocol.headers_received()
    given_id = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = given_id if _VALID_REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
    request[ARRIVED] = time.monotonic()
    status: int | None = None
    with request_context(request[REQUEST_ID], read_traceparent(request.headers.getall("traceparent", ()))):
        request.app[AUTH].client_ips.warn_of_untrusted_proxy(request)
        try:
            response = await handler(request)
            status = response.status
            if is_continue_pending(request) and not response.prepared:
                response.force_close()  # and sends "Connection: close" (RFC 9110 section 10.1.1)
        finally:
            # Without a status the client has gone: the handler was cancelled.
            _log_and_count(request, status)
    return response


@web.middleware
async def render_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Render every error as a problem document, or abort a response that has started.

    This is the outermost ``except`` of the service: an exception that is not a ``ServiceError`` is a bug of ours.
    """
    try:
        _check_host(request)
        check_expectation(request)
        return preflight_response() if is_preflight(request) else await handler(request)
    except ServiceError as error:
        return problem_response(request, error)
    except ArchiveAborted as error:
        log.warning("archive.aborted", detail=str(error))
        request.app[HTTP].recent_errors.note("archive.aborted", str(error), request[REQUEST_ID])
        request[STREAMING].abort(request)
        return request[STREAMING]
    except asyncio.CancelledError:
        # The client has gone, or the service stops: a started response must not pass for a whole archive.
        if STREAMING in request:
            request[STREAMING].abort(request)
        raise
    except web.HTTPException as error:
        return problem_response(request, _translate_http_exception(request, error))
    except ConnectionResetError:
        raise  # the client has gone; no response is possible
    except Exception as error:  # the outermost catch; otherwise aiohttp would respond with an HTML page
        log.exception("request.failed", exc_info=error)
        request.app[HTTP].report_fault(error)
        request.app[HTTP].recent_errors.note("request.failed", f"{type(error).__name__}: {error}", request[REQUEST_ID])
        if STREAMING in request:
            request[STREAMING].abort(request)
            return request[STREAMING]
        return problem_response(request, InternalError("The service failed; its log has the reason."))


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add the headers of every response (signal ``on_response_prepare``)."""
    response.headers["Server"] = SERVER_NAME
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    # The page's files may be cached, but are revalidated each time (aiohttp responds 304 by their ETag).
    response.headers.setdefault("Cache-Control", "no-cache" if isinstance(response, web.FileResponse) else "no-store")
    if isinstance(request, web.Request) and REQUEST_ID in request:
        response.headers["X-Request-ID"] = request[REQUEST_ID]
        add_cors_headers(request, response)


def _log_and_count(request: web.Request, status: int | None) -> None:
    seconds = round(time.monotonic() - request[ARRIVED], 4)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else NO_ROUTE
    if route in _PROBE_ROUTES and status == HTTPStatus.OK:
        log.debug("http.request", method=request.method, path=request.path, status=status, seconds=seconds)
    else:
        log.info("http.request", method=request.method, path=request.path, status=status, seconds=seconds)
    request.app[HTTP].metrics.http_requests.labels(
        route,
        request.method if request.method in _KNOWN_METHODS else OTHER_METHOD,
        NO_STATUS if status is None else str(status),
    ).inc()


def _check_host(request: web.Request) -> None:
    """Reject an invalid Host (RFC 9112 section 3.2): URLs in our responses are built from it.

    Raises:
        BadRequest
    """
    try:
        valid = _HOST.fullmatch(request.host) is not None and bool(request.url.host)
    except ValueError:  # yarl's, for impossible ports and addresses
        valid = False
    if not valid:
        raise BadRequest("The header Host is not a valid host.")


def _translate_http_exception(request: web.Request, error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        return MethodNotAllowed(f"{request.method} is not one of {', '.join(allowed)}.", allowed=allowed)
    if isinstance(error, web.HTTPNotFound):
        return NotFound("There is no such path.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return InvalidBody("The body is larger than this endpoint accepts.")
    raise error
