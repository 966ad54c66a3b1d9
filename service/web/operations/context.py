"""Shared state of the operations endpoints: health, metrics, statistics and Sentry issues."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from service.monitoring.metrics import Metrics
from service.monitoring.recent_errors import RecentErrors
from service.streaming.admission import Admission
from service.streaming.budgets import MemoryBudget
from service.upstream.health import UpstreamHealth
from service.upstream.sentry_api import SentryApi


@dataclass(frozen=True, slots=True)
class OperationsContext:
    """What the operations handlers need.

    ``admission`` is that of the archives. ``started`` is by ``time.monotonic``; ``public_limits`` are the settings
    that ``/api/stats`` shows.
    """

    version: str
    started: float
    public_limits: Mapping[str, float]
    api_key_configured: bool
    metrics: Metrics
    recent_errors: RecentErrors
    admission: Admission
    total_budget: MemoryBudget
    upstream_health: UpstreamHealth
    sentry: SentryApi


OPERATIONS = web.AppKey("operations", OperationsContext)
