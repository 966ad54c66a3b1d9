"""Problem documents (RFC 9457): errors as responses, and the pages behind their type URIs."""

import inspect
from http import HTTPStatus

import structlog
from aiohttp import web

from service.errors import NotFound, ServiceError, UpstreamError, concrete_errors, problem
from service.web.http.context import HTTP, REQUEST_ID

PROBLEM_TYPE = "application/problem+json"

log = structlog.get_logger(__name__)


def problem_response(request: web.Request, error: ServiceError) -> web.Response:
    """Return an error as a problem document; log it, and remember it if the upstream caused it."""
    document = {**problem(error), "instance": f"urn:request:{request[REQUEST_ID]}"}
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"  # required by RFC 9110 section 11.6.1; the scheme by RFC 6750 section 3
    log.info("request.rejected", problem=error.slug, status=error.status, detail=error.detail)
    if isinstance(error, UpstreamError):
        request.app[HTTP].recent_errors.note("request.rejected", error.detail, request[REQUEST_ID])
    response = web.json_response(document, status=error.status, headers=headers, content_type=PROBLEM_TYPE)
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()  # RFC 9110 section 15.5.9: the rest of the body may still arrive
    return response


async def get_problem(request: web.Request) -> web.Response:
    """Describe a problem type at its type URI (RFC 9457 section 4.1)."""
    for error in concrete_errors():
        if error.slug == request.match_info["slug"]:
            text = f"{error.title} (status {error.status})\n\n{inspect.getdoc(error)}\n"
            return web.Response(text=text)
    raise NotFound("There is no such problem type.")
