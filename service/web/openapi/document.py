"""The whole document: what is common to all operations, and their paths."""

from typing import Any

from service.web.auth.guards import LINK, SESSION_COOKIE
from service.web.openapi import downloads, others
from service.web.openapi.operation import unwrapped
from service.web.openapi.problems import PROBLEM_TYPE, problem_examples
from service.web.openapi.schemas import component_schemas

OPERATIONS = (*downloads.OPERATIONS, *others.OPERATIONS)
_ABOUT = """\
Hands out all enhanced images of an [Autoenhance.ai](https://autoenhance.ai) order as one ZIP archive, streamed while
the images arrive. No image is lost silently: what cannot be had is named, with the reason, in a report inside the
archive.

**Start here:** look at an order (`GET /orders/{order_id}`), then download it (`GET /orders/{order_id}/images`).
Previews are free and the default; `preview=false` fetches full quality and spends credits.

- **Access.** Whether a key is needed, the operator decides; `GET /session` tells. Keys travel in `X-API-Key` or as
  bearer token, never in an address. A link stands for a key, for exactly one download.
- **Problems.** Every error before the first byte is an `application/problem+json` document (RFC 9457) whose `type` the
  service explains. Besides those listed, any request may end in a 500 (`internal-error`), and one that cannot be read
  in a 400 (`bad-request`). Other paths are a 404 (`not-found`), other methods a 405 (`method-not-allowed`).
- **Every response** has `X-Request-ID`, yours if you sent one, and headers that keep browsers safe. Nothing is to be
  cached, unless `Cache-Control` says so.
- **HEAD** works wherever GET does, but for the events of a download. Pages of other sites need their origin
  in `ALLOWED_ORIGINS`.
"""
_TAGS = {
    "Orders": "Look at an order, download it, hand on a link to it.",
    "Downloads": "What a download does, and what it did.",
    "Creating orders": "Photos in, an order out. For the operator.",
    "Access": "Sessions for browsers.",
    "Operation": "Health, metrics, statistics.",
    "Reference": "This description, and what problems mean.",
}
_TEXT = {"type": "string"}
_HEADERS = {
    "X-Request-ID": ("Id of the request; in the logs as well.", True, _TEXT),
    "Content-Disposition": ("File name of the archive, as `filename` and `filename*` (RFC 6266).", True, _TEXT),
    "X-Total-Images": ("Number of images asked for.", True, {"type": "integer", "minimum": 1}),
    "X-Archive-Id": (
        "Id of this download; also in its receipt, report, manifest and logs.",
        True,
        {"type": "string", "format": "uuid"},
    ),
    "X-Accel-Buffering": ("`no`: tells nginx not to collect the response.", True, {"const": "no"}),
    "Trailer": ("Announces the trailers. Not over HTTP/1.0.", False, _TEXT),
    "Retry-After": ("Seconds to wait before asking again.", False, {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to send a key (RFC 6750).", True, {"const": "Bearer"}),
    "Location": ("Where the enhanced images can be downloaded.", True, _TEXT),
    "Set-Cookie": ("The session: `HttpOnly`, `SameSite=Strict`.", True, _TEXT),
}
_SECURITY_SCHEMES = {
    "serviceKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of the service."},
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the service, or the operator's token."},
    "operator": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Admin-Token",
        "description": "The operator's token (`ADMIN_TOKEN`).",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "Set by `POST /session`; worth as much as the key given. Browsers send it by themselves.",
    },
    "link": {"type": "apiKey", "in": "query", "name": LINK, "description": "Made by `POST /orders/{order_id}/links`."},
    "webhookSecret": {
        "type": "apiKey",
        "in": "header",
        "name": "Authentication",
        "description": "What the Autoenhance API was given as its webhook's secret (`WEBHOOK_SECRET`).",
    },
}


def openapi_document(version: str) -> dict[str, Any]:
    """Return the description of a version of the service."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation.document()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Autoenhance batch downloader",
            "version": version,
            "summary": "All enhanced images of an order as one ZIP, streamed while they arrive.",
            "description": unwrapped(_ABOUT),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": component_schemas(),
            "headers": {
                name: {"description": words, "required": required, "schema": schema}
                for name, (words, required, schema) in _HEADERS.items()
            },
            "examples": problem_examples(),
            "responses": {"Fault": _fault()},
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _fault() -> dict[str, Any]:
    examples = {slug: {"$ref": f"#/components/examples/{slug}"} for slug in ("internal-error", "bad-request")}
    return {
        "description": "A fault of the service (500), or a request that cannot be read (400)",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }
