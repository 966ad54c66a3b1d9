"""The whole OpenAPI document: paths, and the components that all operations share."""

from typing import Any

from service.web.auth.guards import LINK, SESSION_COOKIE
from service.web.openapi import download_schemas, downloads, others, schemas
from service.web.openapi.operation import unwrapped
from service.web.openapi.problems import PROBLEM_TYPE, problem_examples
from service.web.openapi.schemas import Problem, component_schemas, reference

OPERATIONS = (*downloads.OPERATIONS, *others.OPERATIONS)
_ABOUT = """\
Downloads all enhanced images of an [Autoenhance.ai](https://autoenhance.ai) order as one ZIP archive, streamed while
the images arrive. No image is lost silently: each failed image is listed, with the reason, in a report inside the
archive.

**Start here:** get an order (`GET /orders/{order_id}`), then download it (`GET /orders/{order_id}/images`).
Previews are free and the default; `preview=false` downloads full quality and spends credits.

- **Full reference.** `service/web/API.md` in the source tree has the whole HTTP reference: verification and retries,
  faults and their effects, report and manifest, entry names.
- **Access.** The operator decides whether an API key is required; `GET /session` shows it. Keys are sent in `X-API-Key`
  or as a bearer token, never in the URL. A link replaces a key for exactly one download.
- **Problems.** Every error before the first byte is an `application/problem+json` document (RFC 9457) whose `type` the
  service explains. Besides those listed, any request may end in a 500 (`internal-error`), and a malformed one in a 400
  (`bad-request`). Other paths are a 404 (`not-found`), other methods a 405 (`method-not-allowed`).
- **Every response** has `X-Request-ID`, the client's if it sent one, and security headers for browsers. Responses must
  not be cached, unless `Cache-Control` allows it.
- **HEAD** is supported wherever GET is, except for the events of a download. Pages of other sites need their origin
  in `ALLOWED_ORIGINS`.
"""
_TAGS = {
    "Orders": "Get an order, download it, create a link to it.",
    "Downloads": "Progress and receipts of downloads.",
    "Creating orders": "Upload photos to a new order. Requires the admin token.",
    "Access": "Sessions for browsers.",
    "Operation": "Health, metrics, statistics.",
    "Reference": "This document, and the meaning of problem types.",
}
_TEXT = {"type": "string"}
_HEADERS = {
    "X-Request-ID": ("Id of the request, as in the logs.", True, _TEXT),
    "Content-Disposition": ("File name of the archive, as `filename` and `filename*` (RFC 6266).", True, _TEXT),
    "X-Total-Images": ("Number of images requested.", True, {"type": "integer", "minimum": 1}),
    "X-Archive-Id": (
        "Id of this download, as in its receipt, report, manifest and logs.",
        True,
        {"type": "string", "format": "uuid"},
    ),
    "X-Accel-Buffering": ("`no`: nginx does not buffer the response.", True, {"const": "no"}),
    "Trailer": ("Names of the trailers. Not with HTTP/1.0.", False, _TEXT),
    "Retry-After": ("Seconds to wait before the next attempt.", False, {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("Authentication scheme (RFC 6750).", True, {"const": "Bearer"}),
    "Location": ("URL of the download of the enhanced images.", True, _TEXT),
    "Set-Cookie": ("The session: `HttpOnly`, `SameSite=Strict`.", True, _TEXT),
}
_SECURITY_SCHEMES = {
    "serviceKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key of the service."},
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of the service, or the admin token."},
    "adminToken": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Admin-Token",
        "description": "The admin token (`ADMIN_TOKEN`).",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "Set by `POST /session`, with the role of its key. Browsers send it automatically.",
    },
    "link": {
        "type": "apiKey",
        "in": "query",
        "name": LINK,
        "description": "Created by `POST /orders/{order_id}/links`.",
    },
    "webhookSecret": {
        "type": "apiKey",
        "in": "header",
        "name": "Authentication",
        "description": "The webhook secret that the Autoenhance API is configured with (`WEBHOOK_SECRET`).",
    },
}


def openapi_document(version: str) -> dict[str, Any]:
    """Return the OpenAPI document of a version of the service."""
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
            "schemas": component_schemas([*schemas.MODELS, *download_schemas.MODELS]),
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
        "description": "A fault of the service (500), or a malformed request (400)",
        "content": {PROBLEM_TYPE: {"schema": reference(Problem), "examples": examples}},
    }
