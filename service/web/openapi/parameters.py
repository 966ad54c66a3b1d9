"""Parameter objects of the OpenAPI document; those of a download follow from ``ArchiveParameters``."""

from collections.abc import Mapping
from typing import Any

from service.archive.parameters import QUERY_SCHEMAS, ArchiveParameters
from service.errors import EXAMPLE_ORDER_ID

EXAMPLE_ARCHIVE_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def download_parameters(*, without: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the query parameters of a download."""
    return [_download_parameter(name) for name in QUERY_SCHEMAS if name not in without]


def _download_parameter(name: str) -> dict[str, Any]:
    field, schema = ArchiveParameters.model_fields[name], QUERY_SCHEMAS[name]
    parameter = {"name": name, "in": "query", "description": field.description, "schema": dict(schema)}
    if field.examples:
        parameter["example"] = field.examples[0]
    return {**parameter, "style": "form", "explode": True} if schema["type"] == "array" else parameter


def path_parameter(name: str, meaning: str, example: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a path parameter."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": meaning,
        "schema": dict(schema),
        "example": example,
    }


def header_parameter(name: str, meaning: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optional request header."""
    return {"name": name, "in": "header", "description": meaning, "schema": dict(schema)}


_UUID = {"type": "string", "format": "uuid"}
# The sandbox has this order, so that "Try it out" works there unchanged.
ORDER_ID = path_parameter("order_id", "Id of the order.", EXAMPLE_ORDER_ID, _UUID)
ARCHIVE_ID = path_parameter(
    "archive_id", "Id of the download, from `X-Archive-Id` or chosen by the client.", EXAMPLE_ARCHIVE_ID, _UUID
)
LINK_TOKEN = {
    "name": "link",
    "in": "query",
    "description": "Signed token of a link, in place of an API key. Use the URL of a link unchanged.",
    "schema": {"type": "string"},
}
TRACING = [
    header_parameter(
        "X-Request-ID",
        "Id of this request, for the logs of this service and of the API. Generated if missing or invalid.",
        {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    ),
    header_parameter("traceparent", "W3C trace context; logged, and forwarded to the API.", {"type": "string"}),
]
