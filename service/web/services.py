"""What handlers need of the process: made once by ``app``, looked up under one key."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from service.errors import ApiKeyNotConfigured
from service.monitoring.metrics import Metrics
from service.monitoring.recent_errors import RecentErrors
from service.streaming.admission import Admission
from service.streaming.archive_stream import StreamLimits
from service.streaming.budgets import DownloadShare, MemoryBudget
from service.streaming.receipts import Receipts
from service.upstream.api import UpstreamClient
from service.upstream.health import UpstreamHealth
from service.upstream.order_watcher import OrderWatcher
from service.upstream.sentry_api import SentryApi
from service.upstream.uploads import UploadClient
from service.web.auth.credentials import Access


@dataclass(frozen=True, slots=True)
class Services:
    """The shared parts and plain values of one running app.

    ``upstream`` is ``None`` without an API key. ``started`` is by ``time.monotonic``; ``public_limits`` are the
    settings that bound things, as ``/api/stats`` shows them.
    """

    upstream: UpstreamClient | None
    breaker: UpstreamHealth
    metrics: Metrics
    recent_errors: RecentErrors
    report_fault: Callable[[BaseException], None]
    sentry: SentryApi
    access: Access
    allowed_origins: frozenset[str]
    admission: Admission
    upload_admission: Admission
    event_admission: Admission
    receipts: Receipts
    demo_order_id: str | None
    thumbnail_admission: Admission
    thumbnail_slots: asyncio.Semaphore
    live_orders: OrderWatcher
    wait_max_seconds: int
    webhook_secret: str | None
    uploads: UploadClient | None
    max_upload_files: int
    max_upload_bytes: int
    limits: StreamLimits
    total_budget: MemoryBudget
    connections: DownloadShare
    max_images: int
    public_url: str | None
    first_byte_seconds: float
    client_stall_seconds: float
    request_body_timeout_seconds: float
    version: str
    started: float
    public_limits: Mapping[str, float]

    def require_upstream(self) -> UpstreamClient:
        """Return the API's client.

        Raises:
            ApiKeyNotConfigured: there is no key.
        """
        if self.upstream is None:
            raise ApiKeyNotConfigured("The operator must set AUTOENHANCE_API_KEY; until then no order can be fetched.")
        return self.upstream


SERVICES = web.AppKey("services", Services)
