"""Shared state of the HTTP layer: what middleware and body reads need, and the keys of per-request state."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from service.monitoring.metrics import Metrics
from service.monitoring.recent_errors import RecentErrors


@dataclass(frozen=True, slots=True)
class HttpContext:
    """What every request needs, whichever feature serves it.

    ``report_fault`` sends a bug of ours to Sentry, if it is configured. ``allowed_origins`` is for CORS.
    """

    metrics: Metrics
    recent_errors: RecentErrors
    report_fault: Callable[[BaseException], None]
    allowed_origins: frozenset[str]
    request_body_timeout_seconds: float


HTTP = web.AppKey("http", HttpContext)

REQUEST_ID = web.RequestKey("request_id", str)
# When the request arrived, by ``time.monotonic``.
ARRIVED = web.RequestKey("arrived", float)
