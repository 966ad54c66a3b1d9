"""``GET /api/stats``: counters since the start and current load, as JSON for people and pages."""

import time
from typing import Any

from aiohttp import web

from service.web.auth.credentials import Role
from service.web.auth.guards import role_of
from service.web.operations.context import OPERATIONS

# The settings that are public: limits, and nothing that reveals where the upstream is.
PUBLIC_LIMITS = (
    "max_archives",
    "max_images_per_order",
    "images_in_flight",
    "max_images_in_flight",
    "image_attempts",
    "image_timeout_seconds",
    "first_byte_seconds",
    "client_stall_seconds",
    "give_up_after",
    "read_ahead_bytes",
    "read_ahead_total_bytes",
    "max_concurrent_downloads",
    "upstream_requests_per_second",
    "drain_seconds",
    "max_concurrent_uploads",
    "max_upload_files",
    "max_upload_bytes",
)


async def get_stats(request: web.Request) -> web.Response:
    """Return counters, load and limits; recent errors for the operator only."""
    context = request.app[OPERATIONS]
    stats: dict[str, Any] = {
        "version": context.version,
        "uptime_seconds": round(time.monotonic() - context.started, 3),
        "in_progress": {
            "archives": context.admission.active,
            "read_ahead_bytes": context.total_budget.held_bytes,
            "draining": context.admission.draining,
            "upstream_failing": context.upstream_health.is_failing,
        },
        "counters": context.metrics.totals(),
        "limits": dict(context.public_limits),
    }
    if role_of(request) is Role.ADMIN:
        stats["recent_errors"] = context.recent_errors.newest_first()
    return web.json_response(stats)
