"""Problem responses of the OpenAPI document (RFC 9457), made of the error tree."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from service.errors import EXAMPLE_ORDER_ID, PROBLEM_BASE, ServiceError, concrete_errors, example_problem
from service.web.openapi.schemas import Problem, reference

PROBLEM_TYPE = "application/problem+json"


def problem_examples() -> dict[str, Any]:
    """Return an example of each problem type, by slug."""
    instance = f"urn:request:{EXAMPLE_ORDER_ID.replace('-', '')}"
    return {
        error.slug: {
            "summary": error.title,
            "description": error.advice,
            "value": {**example_problem(error), "instance": instance},
        }
        for error in concrete_errors()
    }


def problem_responses(errors: Iterable[type[ServiceError]], *, with_body: bool = True) -> dict[str, Any]:
    """Return the response objects of these errors, by status."""
    by_status: dict[int, list[type[ServiceError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {str(status): _response(by_status[status], with_body=with_body) for status in sorted(by_status)}


def _response(errors: list[type[ServiceError]], *, with_body: bool) -> dict[str, Any]:
    headers = {}
    if any(error.has_retry_after for error in errors):
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
                "schema": {"allOf": [reference(Problem), types]},
                "examples": {error.slug: {"$ref": f"#/components/examples/{error.slug}"} for error in errors},
            }
        }
    return response
