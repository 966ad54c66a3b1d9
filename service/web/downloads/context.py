"""Shared state of the downloads: archives, receipts and their events."""

from dataclasses import dataclass
from typing import Self

from aiohttp import web

from service.monitoring.metrics import Metrics
from service.streaming.admission import Admission
from service.streaming.budgets import DownloadShare, MemoryBudget
from service.streaming.interfaces import StreamLimits
from service.streaming.receipts import Receipts
from service.upstream.api import UpstreamClient
from service.upstream.order_watcher import OrderWatcher

# Each event stream costs a connection and a timer; a page opens one for each download.
MAX_EVENT_STREAMS = 256


@dataclass(frozen=True, slots=True)
class DownloadsContext:
    """What the handlers of archives, receipts and events need.

    ``upstream`` is ``None`` without an API key. ``total_budget`` and ``connections`` are shared by all archives;
    ``limits`` holds for each. ``public_url`` begins the URLs in reports.
    """

    upstream: UpstreamClient | None
    order_watcher: OrderWatcher
    metrics: Metrics
    receipts: Receipts
    admission: Admission
    event_admission: Admission
    limits: StreamLimits
    total_budget: MemoryBudget
    connections: DownloadShare
    max_images: int
    wait_max_seconds: int
    first_byte_seconds: float
    client_stall_seconds: float
    public_url: str | None

    @classmethod
    def create(
        cls,
        upstream: UpstreamClient | None,
        order_watcher: OrderWatcher,
        metrics: Metrics,
        *,
        limits: StreamLimits,
        max_archives: int,
        max_concurrent_downloads: int,
        read_ahead_total_bytes: int,
        max_receipts: int,
        receipt_ttl_seconds: float,
        max_images: int,
        wait_max_seconds: int,
        first_byte_seconds: float,
        client_stall_seconds: float,
        public_url: str | None,
    ) -> Self:
        """Build the parts and export their gauges."""
        context = cls(
            upstream=upstream,
            order_watcher=order_watcher,
            metrics=metrics,
            receipts=Receipts(limit=max_receipts, ttl_seconds=receipt_ttl_seconds),
            admission=Admission(max_archives),
            event_admission=Admission(MAX_EVENT_STREAMS, "event streams are open"),
            limits=limits,
            total_budget=MemoryBudget(read_ahead_total_bytes),
            connections=DownloadShare(max_concurrent_downloads),
            max_images=max_images,
            wait_max_seconds=wait_max_seconds,
            first_byte_seconds=first_byte_seconds,
            client_stall_seconds=client_stall_seconds,
            public_url=public_url,
        )
        metrics.archives_limit.set(max_archives)
        metrics.archive_slots_in_use.set_function(lambda: context.admission.active)
        metrics.sse_connections.set_function(lambda: context.event_admission.active)
        metrics.receipts_held.set_function(lambda: len(context.receipts))
        metrics.watch_read_ahead(lambda: context.total_budget.held_bytes, read_ahead_total_bytes)
        return context


DOWNLOADS = web.AppKey("downloads", DownloadsContext)
