"""JSON documents of the API, by its version."""

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from service.sandbox.state import SandboxImage, SandboxOrder

# Up to this version images also carried the booleans ``enhanced`` and ``error``.
_LAST_WITH_BOOLEANS = "2024-09-24"
_PENDING = frozenset({"waiting", "processing"})
_STATUS_ORDER = ("processing", "waiting", "error")


def problem(status: int, detail: Mapping[str, object] | None = None, *, message: str | None = None) -> web.Response:
    """Return an error response in the API's format."""
    text = message or HTTPStatus(status).phrase
    return web.json_response({"detail": dict(detail or {}), "message": text}, status=status)


def invalid(location: str, problems: Mapping[str, list[str]]) -> web.Response:
    """Return a 422 with the errors of each field at a location (``query`` or ``json``)."""
    return problem(422, {location: dict(problems)}, message="Validation error")


def image_json(image: SandboxImage, version: str) -> dict[str, object]:
    """Return the JSON of an image."""
    fields: dict[str, object] = {
        "image_id": image.image_id,
        "image_name": image.name,
        "order_id": image.order_id,
        "user_id": "auth0|000000000000000000000000",
        "status": image.status,
        "status_reason": image.status_reason,
        "downloaded": image.downloaded,
        "date_added": 1756719000123,
        "enhance": True,
        "enhance_type": "property",
        "ai_version": "4.x",
        "scene": "interior",
        "lens_correction": True,
        "vertical_correction": True,
        "sky_replacement": False,
        "cloud_type": None,
        "privacy": False,
        "upscale": False,
        "window_pull_type": "NONE",
        "rating": 0,
        "metadata": {},
        "finetune_settings": None,
        "preset_id": None,
        "parent_image_id": None,
    }
    if version and version <= _LAST_WITH_BOOLEANS:
        fields |= {"enhanced": image.status == "processed", "error": image.status == "error"}
    return _merged(fields, image.extra)


def order_json(order: SandboxOrder, version: str) -> dict[str, object]:
    """Return the JSON of an order with all its images."""
    # The API's times carry microseconds and no zone.
    created = order.created_at.replace(tzinfo=None).isoformat(timespec="microseconds")
    statuses = {image.status for image in order.images}
    processing = bool(statuses & _PENDING) if order.is_processing is None else order.is_processing
    hidden = order.hidden.get(order.polls, frozenset())
    images = [] if order.is_merging or hidden is None else [one for one in order.images if one.image_id not in hidden]
    fields: dict[str, object] = {
        "order_id": order.order_id,
        "name": order.name,
        "status": next((status for status in _STATUS_ORDER if status in statuses), "processed"),
        "is_processing": processing,
        "is_merging": order.is_merging,
        "is_deleted": order.is_deleted,
        "total_images": len(images),
        "created_at": created,
        "last_updated_at": created,
        "images": None if hidden is None else [image_json(image, version) for image in images],
    }
    if order.name is None:
        del fields["name"]
    return _merged(fields, order.extra)


def _merged(fields: dict[str, object], extra: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in (fields | dict(extra)).items() if value is not ...}
