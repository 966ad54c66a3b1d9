"""What handlers need of the process: made once by ``app``, looked up under one key."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from service.errors import NotConfigured
from service.metrics import Metrics
from service.pipeline import StreamLimits
from service.receipts import Receipts
from service.shares import Budget, ConnectionShare
from service.upstream.breaker import Breaker
from service.upstream.client import UpstreamClient
from service.upstream.live import LiveOrders
from service.upstream.sentry_api import SentryApi
from service.upstream.uploads import UploadClient
from service.web.admission import Admission
from service.web.auth import Access
from service.web.recent_errors import RecentErrors


@dataclass(frozen=True, slots=True)
class Services:
    """The shared parts and plain values of one running app.

    ``upstream`` is ``None`` without an API key. ``started`` is by ``time.monotonic``; ``public_limits`` are the
    settings that bound things, as ``/api/stats`` shows them.
    """

    upstream: UpstreamClient | None
    breaker: Breaker
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
    preview_admission: Admission
    preview_turns: asyncio.Semaphore
    live_orders: LiveOrders
    wait_max_seconds: int
    webhook_secret: str | None
    uploads: UploadClient | None
    max_upload_files: int
    max_upload_bytes: int
    limits: StreamLimits
    total_budget: Budget
    connections: ConnectionShare
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
            NotConfigured: there is no key.
        """
        if self.upstream is None:
            raise NotConfigured("The operator must set AUTOENHANCE_API_KEY; until then no order can be fetched.")
        return self.upstream


SERVICES = web.AppKey("services", Services)
