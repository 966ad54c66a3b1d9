"""Every problem of the error tree (RFC 9457): its schema, an example of each type, and responses made of them."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from service.errors import (
    PROBLEM_BASE,
    AtCapacity,
    Draining,
    OrderNotReady,
    ServiceError,
    TooManyAuthFailures,
    concrete_errors,
)
from service.model import Reason
from service.web.openapi.parameters import EXAMPLE_IMAGE, EXAMPLE_ORDER

PROBLEM_TYPE = "application/problem+json"
# Those that say when to ask again.
_WITH_RETRY = (AtCapacity, Draining, OrderNotReady, TooManyAuthFailures)

_FAILED_IMAGE = {
    "image_id": EXAMPLE_IMAGE,
    "name": "kitchen.jpg",
    "reason": "not_ready",
    "detail": "The image is not processed yet.",
    "upstream_status": None,
}
_FAILED_FILE = {
    "file": "notes.txt",
    "image_id": None,
    "outcome": "failed",
    "reason": "not_a_photo",
    "detail": "the first bytes are not those of a photo that can be enhanced",
    "bytes": 120,
}
# Of each type: what ``detail`` may say, and the members that it has beyond those of all.
EXAMPLES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bad-request": ("The request is malformed, or its head is too large.", {}),
    "invalid-order-id": ("The order id must be a UUID such as 3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b.", {}),
    "invalid-parameter": ("'quality' must be a whole number from 1 to 90.", {"parameter": "quality"}),
    "unknown-parameter": ("There is no parameter 'previw'.", {"parameter": "previw"}),
    "repeated-parameter": ("The parameter 'quality' is given more than once.", {"parameter": "quality"}),
    "image-not-in-order": ("The order has no image 'x'.", {"parameter": "only", "image_id": "x"}),
    "invalid-body": ("The body is not JSON.", {}),
    "invalid-archive-id": ("The archive id must be a UUID such as 3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b.", {}),
    "authentication-required": ("Send one of the service's keys in X-API-Key or as bearer token.", {}),
    "invalid-credentials": ("This is neither a key of the service nor the operator's token.", {}),
    "admin-required": ("This is for the operator: send ADMIN_TOKEN's value in X-Admin-Token or as bearer token.", {}),
    "admin-not-configured": ("The operator must set ADMIN_TOKEN before anybody can do this.", {}),
    "webhook-unauthorized": ("The header Authentication does not have the secret.", {}),
    "webhooks-not-configured": ("The operator must set WEBHOOK_SECRET before notices are taken.", {}),
    "full-quality-not-allowed": (
        "preview=false spends credits, and this caller may not; dev_mode=true spends none.",
        {},
    ),
    "link-invalid": ("This link was not made for this order with these parameters.", {}),
    "link-expired": ("The time of this link is over; ask who gave it to you for a new one.", {}),
    "too-many-auth-failures": ("Too many wrong keys came from this address.", {}),
    "not-found": ("There is no such path.", {}),
    "method-not-allowed": ("PUT is not one of GET, HEAD, POST.", {"allowed": ["GET", "HEAD", "POST"]}),
    "credits-exceeded": (
        "14 images would have to be bought, at most 5 may be.",
        {"credits": 14, "max_credits": 5},
    ),
    "archive-not-found": ("This process knows no such archive, or has forgotten it.", {}),
    "archive-id-in-use": ("This archive id is taken; choose a new UUID for each download.", {}),
    "archive-not-resumable": (
        (
            "An archive cannot be sent from its middle. Start over without Range and without a part file: "
            "curl without '-C -', wget without '-c'."
        ),
        {},
    ),
    "order-not-found": ("The API knows no such order.", {}),
    "order-empty": ("The order exists, but it has no images.", {}),
    "order-not-ready": ("The order is still being merged or processed; its images are not listed yet.", {}),
    "request-body-timeout": ("Nothing came for 60 s.", {}),
    "unsupported-media-type": (
        "Send multipart/form-data, not compressed, with the photos in the field 'files'.",
        {},
    ),
    "no-files-uploaded": ("Not one file could be uploaded.", {"failures": [_FAILED_FILE], "order_id": None}),
    "too-many-images": (
        "3000 images are asked for, at most 2000 fit one archive; take parts with 'only'.",
        {"images": 3000, "max_images": 2000},
    ),
    "no-images-available": ("No image of the order is ready.", {"failures": [_FAILED_IMAGE]}),
    "upstream-failed": ("The Autoenhance API cannot be reached.", {}),
    "upstream-invalid-response": ("The Autoenhance API's answer is not an order.", {}),
    "upstream-unauthorized": ("The Autoenhance API refuses the service's key.", {}),
    "upstream-timeout": ("The Autoenhance API did not answer in time.", {}),
    "first-byte-timeout": ("No image arrived within 50 s.", {"failures": [_FAILED_IMAGE]}),
    "thumbnail-unavailable": (
        "The picture cannot be had: the API answered 404.",
        {"reason": "not_found", "upstream_status": 404},
    ),
    "sentry-unauthorized": ("Sentry refuses SENTRY_AUTH_TOKEN, or the token may not read this project.", {}),
    "sentry-unavailable": ("Sentry cannot be reached.", {}),
    "sentry-invalid-response": ("Sentry's answer is not a list of issues.", {}),
    "api-key-not-configured": ("The operator must set AUTOENHANCE_API_KEY; until then no order can be fetched.", {}),
    "links-not-configured": ("The operator must set SIGNING_KEYS before links can be made.", {}),
    "sentry-not-configured": ("The operator must set SENTRY_ORG.", {"missing": ["SENTRY_ORG"]}),
    "at-capacity": ("64 archives are being served already.", {}),
    "draining": ("The service is about to stop; another replica may answer.", {}),
    "internal-error": ("The service failed; its log tells why.", {}),
}


def problem_examples() -> dict[str, Any]:
    """Return an example of each problem type, by its slug."""
    return {error.slug: {"summary": error.title, "value": _example(error)} for error in concrete_errors()}


def problem_schema() -> dict[str, Any]:
    """Return what all problems have in common, and what some have beyond it."""
    uploaded = {"type": "array", "items": {"$ref": "#/components/schemas/UploadedFile"}}
    return {
        "type": "object",
        "description": "What went wrong (RFC 9457). The service explains each `type` at that address.",
        "required": ["type", "title", "status", "detail", "instance"],
        "additionalProperties": False,
        "properties": {
            "type": {"type": "string", "enum": [PROBLEM_BASE + error.slug for error in concrete_errors()]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What went wrong this time, in a sentence."},
            "instance": {"type": "string", "description": "`urn:request:` and the id of the request."},
            "parameter": {"type": "string", "description": "The query parameter that is wrong."},
            "image_id": {"type": "string", "description": "The id that the order does not have."},
            "reason": {
                "type": "string",
                "enum": [reason.value for reason in Reason],
                "description": "Why the picture cannot be had.",
            },
            "upstream_status": {"type": ["integer", "null"], "description": "What the API or its storage answered."},
            "allowed": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The methods that the path takes.",
            },
            "credits": {"type": "integer", "description": "Images that would have to be bought."},
            "max_credits": {"type": "integer", "description": "How many you allowed."},
            "images": {
                "description": "With `too-many-images` their number; with a broken upload what became of each file.",
                "anyOf": [{"type": "integer"}, uploaded],
            },
            "max_images": {"type": "integer", "description": "How many fit one archive."},
            "failures": {
                "description": "Each image or file that failed, and why.",
                "anyOf": [{"type": "array", "items": {"$ref": "#/components/schemas/FailedImage"}}, uploaded],
            },
            "order_id": {"type": ["string", "null"], "description": "The order that an upload has begun."},
            "refused": {
                "type": "object",
                "description": "With `archive-not-found`: the problem with which this replica refused the download for "
                "want of room. Another one may have taken it.",
            },
            "missing": {"type": "array", "items": {"type": "string"}, "description": "Settings that are not set."},
        },
    }


def problem_responses(errors: Iterable[type[ServiceError]], *, with_body: bool = True) -> dict[str, Any]:
    """Return the responses of an operation that these errors make, by status."""
    by_status: dict[int, list[type[ServiceError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {str(status): _response(by_status[status], with_body=with_body) for status in sorted(by_status)}


def _response(errors: list[type[ServiceError]], *, with_body: bool) -> dict[str, Any]:
    headers = {}
    if any(error in _WITH_RETRY for error in errors):
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if errors[0].status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
    response: dict[str, Any] = {
        "description": "; or: ".join(f"{error.title} (`{error.slug}`)" for error in errors),
    }
    if headers:
        response["headers"] = headers
    if with_body:
        types = {"properties": {"type": {"enum": [PROBLEM_BASE + error.slug for error in errors]}}}
        response["content"] = {
            PROBLEM_TYPE: {
                "schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, types]},
                "examples": {error.slug: {"$ref": f"#/components/examples/{error.slug}"} for error in errors},
            }
        }
    return response


def _example(error: type[ServiceError]) -> dict[str, Any]:
    detail, members = EXAMPLES[error.slug]
    return {
        "type": PROBLEM_BASE + error.slug,
        "title": error.title,
        "status": error.status,
        "detail": detail,
        **members,
        "instance": f"urn:request:{EXAMPLE_ORDER.replace('-', '')}",
    }
