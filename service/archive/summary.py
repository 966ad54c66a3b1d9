"""An order as its owner looks at it before downloading: what is there, under which names, and what it would cost."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from service.archive.naming import archive_filename, entry_name
from service.archive.parameters import ArchiveOptions
from service.archive.plan import PlannedImage, select_images, unavailable
from service.model import Order, Readiness

# The extension that the format asked for usually brings; the real one follows the real type.
_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "avif": "avif", "jxl": "jxl"}


class OrderStatus(StrEnum):
    """What a download would bring now."""

    READY = "ready"  # every image
    PARTIAL = "partial"  # some, and no more to come
    BUSY = "busy"  # more may come: images are being processed or merged
    FAILED = "failed"  # none, and none to come
    EMPTY = "empty"  # the order has no images


def preview_order(order: Order, options: ArchiveOptions) -> dict[str, Any]:
    """Return what a download of the order with these options would hold.

    ``credits``: ``to_buy`` with these options, ``full_quality`` with ``preview=false``, ``paid`` images that were
    bought already. Images that are not ready yet count, those that failed do not.

    Raises:
        ImageNotInOrder: ``only`` names an id the order does not have.
    """
    selected = select_images(order, options.only)
    counts = {word.value: sum(item.image.readiness is word for item in selected) for word in Readiness}
    costing = [one.image for one in selected if one.image.readiness in {Readiness.READY, Readiness.NOT_READY}]
    unpaid = sum(not image.paid for image in costing)
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
            "paid": len(costing) - unpaid,
        },
        "images": [_image(item, options.image.format) for item in selected],
    }


def _status(order: Order, selected: Sequence[PlannedImage]) -> OrderStatus:
    found = {item.image.readiness for item in selected}
    if order.busy or Readiness.NOT_READY in found:
        return OrderStatus.BUSY
    if not found:
        return OrderStatus.EMPTY
    if Readiness.READY not in found:
        return OrderStatus.FAILED
    return OrderStatus.READY if found == {Readiness.READY} else OrderStatus.PARTIAL


def _image(item: PlannedImage, image_format: str) -> dict[str, Any]:
    image = item.image
    ready = image.readiness is Readiness.READY
    failure = None if ready else unavailable(item).failure
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
