"""Parses the API's payloads tolerantly into ``model``.

No field is required by the API's schema, shapes differ between its versions, and unknown fields come and go.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from service.model import Image, Order, Readiness

# Longer names are cut: no real name is longer, and each is normalised, compared and listed.
MAX_NAME_CHARACTERS = 1000


class PayloadError(Exception):
    """The payload is not an order, however tolerantly it is read."""


def _text(value: Any) -> str | None:
    """Ids and names have been seen as text only, but nothing promises it; objects become ``None``."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _name(value: Any) -> str | None:
    return _text(value[:MAX_NAME_CHARACTERS] if isinstance(value, str) else value)


Name = Annotated[str | None, BeforeValidator(_name)]
Text = Annotated[str | None, BeforeValidator(_text)]
Flag = Annotated[bool | None, BeforeValidator(_flag)]


class ImagePayload(BaseModel):
    """An image object of the API (section "image object" of its reference)."""

    model_config = ConfigDict(extra="ignore")

    image_id: Text = None
    image_name: Name = None
    status: Text = None
    status_reason: Text = None
    downloaded: Flag = None
    # Only before version 2024-10, but cheap to understand.
    enhanced: Flag = None
    error: Flag = None

    def to_image(self, *, order_busy: bool) -> Image:
        """Return the image of ``model``."""
        if not self.image_id:
            return Image("", self.image_name or "", Readiness.FAILED, self.status, "it is listed without an id")
        return Image(
            self.image_id,
            self.image_name or "",
            self._readiness(order_busy=order_busy),
            self.status,
            self.status_reason,
            paid=bool(self.downloaded),
        )

    def _readiness(self, *, order_busy: bool) -> Readiness:
        known = _READINESS.get((self.status or "").lower())
        if known is not None:
            return known
        if self.error:
            return Readiness.FAILED
        if self.enhanced is not None:
            return Readiness.READY if self.enhanced else Readiness.NOT_READY
        # No status at all. In a finished order the image is requested: what is wrong with it will be reported.
        return Readiness.NOT_READY if order_busy else Readiness.READY


_READINESS = {
    "waiting": Readiness.NOT_READY,
    "processing": Readiness.NOT_READY,
    "processed": Readiness.READY,
    "completed": Readiness.READY,
    "error": Readiness.FAILED,
    "failed": Readiness.FAILED,
    "expired": Readiness.EXPIRED,
}


class OrderPayload(BaseModel):
    """An order object of the API (``GET /orders/{id}``)."""

    model_config = ConfigDict(extra="ignore")

    order_id: Text = None
    name: Name = None
    status: Text = None
    is_processing: Flag = None
    is_merging: Flag = None
    images: list[ImagePayload] | None = None

    def to_order(self, order_id: str) -> Order:
        """Return the order of ``model``; an image listed twice under one id counts once."""
        busy = bool(self.is_merging or self.is_processing)
        images: dict[str | int, Image] = {}
        for index, payload in enumerate(self.images or ()):
            image = payload.to_image(order_busy=busy)
            images.setdefault(image.image_id or index, image)
        return Order(order_id, self.name or "", busy, tuple(images.values()))


def read_order(order_id: str, payload: bytes) -> Order:
    """Parse the response of an order look-up.

    Raises:
        PayloadError: not JSON, or not an order.
    """
    try:
        # The standard library's parser, because pydantic's rejects halves of surrogate pairs, which names may contain.
        order = OrderPayload.model_validate(json.loads(payload))
    except (ValueError, RecursionError) as error:
        raise PayloadError("the response is not an order") from error
    if not order.model_fields_set:
        raise PayloadError("the response has none of an order's fields")
    return order.to_order(order_id)
