"""The parameters of a download, as the parser in ``service.archive.plan`` takes them, and those of other paths."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from service.archive.plan import (
    FORMATS,
    MAX_CREDITS,
    MAX_QUALITY,
    MAX_WAIT_SECONDS,
    MAX_WIDTH_PIXELS,
    MIN_QUALITY,
    PARAMETERS,
    ArchiveOptions,
    ManifestMode,
    OnError,
)
from service.archive.writer import Layout
from service.model import ImageOptions

# The sandbox has this order, so that "Try it out" works there as it stands.
EXAMPLE_ORDER = "5a4d0b0c-0000-4000-8000-00000000d0e0"
EXAMPLE_ARCHIVE = "0f8fad5b-d9cb-469f-a165-70867728950e"
EXAMPLE_IMAGE = "5a4d0b0c-d0e0-4001-8000-000000000001"

_BOOLEAN = {"type": "boolean"}
# Of each parameter: its schema without the default, which the options have, and what it means.
_DOWNLOAD: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "format": ({"type": "string", "enum": list(FORMATS)}, "Image format the API is asked for."),
    "quality": (
        {"type": "integer", "minimum": MIN_QUALITY, "maximum": MAX_QUALITY},
        "Image quality. Left out, the API decides.",
    ),
    "preview": (_BOOLEAN, "`true`: free preview. `false`: full quality, which **spends credits**."),
    "dev_mode": (_BOOLEAN, "`true`: no credits are spent, images are watermarked."),
    "max_width": (
        {"type": "integer", "minimum": 1, "maximum": MAX_WIDTH_PIXELS},
        "Greatest width in pixels.",
    ),
    "scale": ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "Scale, such as `0.5`."),
    "watermark": (_BOOLEAN, "Whether images carry a watermark. Left out, the API decides."),
    "finetune": (_BOOLEAN, "Whether images are fine-tuned. Left out, the API decides."),
    "on_error": (
        {"type": "string", "enum": [one.value for one in OnError]},
        "`report`: go on, and list what failed. `abort`: all or nothing.",
    ),
    "manifest": (
        {"type": "string", "enum": [one.value for one in ManifestMode]},
        "`auto`: report and manifest are added only if an image failed. `always`: also if none did, with SHA-256 sums.",
    ),
    "layout": (
        {"type": "string", "enum": [one.value for one in Layout]},
        "`streamable`: can be unpacked while it is received. `stored`: the images lie in the archive as they are.",
    ),
    "max_credits": (
        {"type": "integer", "minimum": 0, "maximum": MAX_CREDITS},
        "With full quality: buy nothing, and answer 402, if more images than this would have to be bought.",
    ),
    "archive_id": (
        {"type": "string", "format": "uuid"},
        "Id of this download, chosen by you so that you can watch it. Only a broken-off try may be repeated with it.",
    ),
    "wait": (
        {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_SECONDS},
        "Seconds to wait for images still being processed; ready ones are sent at once. The service may allow less.",
    ),
    "only": (
        {"type": "array", "items": {"type": "string", "minLength": 1}},
        "Take only these images. May be repeated; every other parameter may be given once.",
    ),
}


def download_parameters(*, without: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the query parameters of a download."""
    return [_download_parameter(name) for name in PARAMETERS if name not in without]


def path_parameter(name: str, meaning: str, example: str) -> dict[str, Any]:
    """Return a path's parameter that is a UUID."""
    schema = {"type": "string", "format": "uuid"}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": meaning,
        "schema": schema,
        "example": example,
    }


def header_parameter(name: str, meaning: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request header that may be left out."""
    return {"name": name, "in": "header", "description": meaning, "schema": dict(schema)}


ORDER_ID = path_parameter("order_id", "The order's id.", EXAMPLE_ORDER)
ARCHIVE_ID = path_parameter("archive_id", "Id of the download, from `X-Archive-Id` or chosen by you.", EXAMPLE_ARCHIVE)
LINK_TOKEN = {
    "name": "link",
    "in": "query",
    "description": "What a link carries instead of a key. Use the address of a link as it was given to you.",
    "schema": {"type": "string"},
}
TRACING = [
    header_parameter(
        "X-Request-ID",
        "Id of this request, for logs here and at the API. Left out or odd, the service makes one.",
        {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    ),
    header_parameter("traceparent", "W3C trace context; logged, and passed on to the API.", {"type": "string"}),
]


def _download_parameter(name: str) -> dict[str, Any]:
    schema, meaning = _DOWNLOAD[name]
    default = _defaults()[name]
    with_default = {**schema, "default": default} if default not in {None, ()} else {**schema}
    parameter = {"name": name, "in": "query", "description": meaning, "schema": with_default}
    return {**parameter, "style": "form", "explode": True} if name == "only" else parameter


def _defaults() -> dict[str, Any]:
    return {
        field.name: getattr(options, field.name)
        for options in (ArchiveOptions(), ImageOptions())
        for field in fields(options)
        if field.name != "image"
    }
