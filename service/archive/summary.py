"""Order summary: the images, entry names and credits of a download before it starts."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from service.archive.naming import archive_filename, entry_name
from service.archive.parameters import ArchiveOptions
from service.archive.plan import PlannedImage, readiness_failure, select_images
from service.model import Order, Readiness

# The usual extension of each requested format. An entry's real extension follows the type of the received image.
_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "avif": "avif", "jxl": "jxl"}


class OrderStatus(StrEnum):
    """What a download would contain now."""

    READY = "ready"  # every image
    PARTIAL = "partial"  # some images, and no more will become ready
    BUSY = "busy"  # more images may become ready: they are being processed or merged
    FAILED = "failed"  # no image, and none will become ready
    EMPTY = "empty"  # the order has no images


def summarize_order(order: Order, options: ArchiveOptions) -> dict[str, Any]:
    """Summarize a download of the order with these options, as JSON values.

    ``credits``: ``to_buy`` with these options, ``full_quality`` with ``preview=false``, ``paid`` images that are
    already bought. Images that are not ready yet count; failed ones do not.

    Raises:
        ImageNotInOrder: ``only`` names an id the order does not have.
    """
    selected = select_images(order, options.only)
    counts = {state.value: sum(item.image.readiness is state for item in selected) for state in Readiness}
    obtainable = [item.image for item in selected if item.image.readiness in {Readiness.READY, Readiness.NOT_READY}]
    unpaid = sum(not image.paid for image in obtainable)
    return {
        "order_id": order.order_id,
        "name": order.name,
        "status": _status(order, selected).value,
        "busy": order.busy,
        "archive_name": archive_filename(order.name, order.order_id),
        "counts": {"total": len(selected), **counts},
        "credits": {
            "to_buy": unpaid if options.image.spends_credits else 0,
            "full_quality": unpaid,
            "paid": len(obtainable) - unpaid,
        },
        "images": [_image(item, options.image.format) for item in selected],
    }


def _status(order: Order, selected: Sequence[PlannedImage]) -> OrderStatus:
    states = {item.image.readiness for item in selected}
    if order.busy or Readiness.NOT_READY in states:
        return OrderStatus.BUSY
    if not states:
        return OrderStatus.EMPTY
    if Readiness.READY not in states:
        return OrderStatus.FAILED
    return OrderStatus.READY if states == {Readiness.READY} else OrderStatus.PARTIAL


def _image(item: PlannedImage, image_format: str) -> dict[str, Any]:
    image = item.image
    failure = None if image.readiness is Readiness.READY else readiness_failure(image)
    return {
        "position": item.position,
        "image_id": image.image_id,
        "name": image.name,
        "entry": entry_name(item.stem, _EXTENSIONS[image_format]),
        "readiness": image.readiness.value,
        "reason": failure.reason.value if failure else None,
        "detail": failure.detail if failure else None,
        "status": image.status,
        "paid": image.paid,
    }
