"""Shared state of the orders: summaries, thumbnails and webhooks."""

import asyncio
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from service.streaming.admission import Admission
from service.upstream.api import UpstreamClient
from service.upstream.order_watcher import OrderWatcher

# Thumbnails fetched concurrently, beside the images of archives; and the same with those that wait in the queue.
MAX_THUMBNAILS_IN_FLIGHT, MAX_THUMBNAILS = 6, 256


@dataclass(frozen=True, slots=True)
class OrdersContext:
    """What the handlers of summaries, thumbnails and webhooks need.

    ``upstream`` is ``None`` without an API key; ``webhook_secret`` is ``None`` if webhooks are not configured.
    """

    upstream: UpstreamClient | None
    order_watcher: OrderWatcher
    thumbnail_admission: Admission
    thumbnail_slots: asyncio.Semaphore
    webhook_secret: str | None
    first_byte_seconds: float

    @classmethod
    def create(
        cls,
        upstream: UpstreamClient | None,
        order_watcher: OrderWatcher,
        *,
        webhook_secret: str | None,
        first_byte_seconds: float,
    ) -> Self:
        """Build the limits of the thumbnails."""
        return cls(
            upstream=upstream,
            order_watcher=order_watcher,
            thumbnail_admission=Admission(MAX_THUMBNAILS, "thumbnails are being fetched"),
            thumbnail_slots=asyncio.Semaphore(MAX_THUMBNAILS_IN_FLIGHT),
            webhook_secret=webhook_secret,
            first_byte_seconds=first_byte_seconds,
        )


ORDERS = web.AppKey("orders", OrdersContext)
